"""`model.sampling`: the sampling method, and the record of its draws."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_osgd.draws.blocks import LEAST_FLOOR, without
from keras_osgd.sampling import Sampling, require_count
from keras_osgd.scores.distributions import by_scores
from keras_osgd.scores.most_sampled import MostSampled, most_sampled

__all__ = ["SamplingView"]


class SamplingView:
    """The method given to `compile`, and the record of a model's training with it.

    Attributes of the method, `RAIS` or another, are read and set through the view. When
    it is copied, pickled or given to another model, only the method is passed on.

    Args:
        held: of the model.

    Example:
        >>> import keras, keras_osgd
        >>> model = keras_osgd.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse", sampling="rais")
        >>> history = model.fit(np.eye(2), np.array([1.0, 2.0]), epochs=3, verbose=0)
        >>> model.sampling.floor
        0.05
        >>> model.sampling.most_sampled(1).times_seen.shape
        (1,)
    """

    def __init__(self, held: Any) -> None:
        """Keeps `held`, which is read anew at each use."""
        vars(self)["held"] = held

    @property
    def configuration(self) -> Sampling:
        """The method itself."""
        return self.held.sampling

    @property
    def __class__(self) -> type:
        """The method's class, for `isinstance`."""
        return type(self.configuration)

    def __getattr__(self, name: str) -> Any:
        """Returns an attribute of the method."""
        return getattr(vars(self)["held"].sampling, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute of the method."""
        setattr(self.configuration, name, value)

    def __repr__(self) -> str:
        """Returns the call that makes the method."""
        return repr(self.configuration)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        """Makes copies and pickles hold the method alone."""
        return self.configuration.from_config, (self.configuration.get_config(),)

    @property
    def history(self) -> dict[str, np.ndarray]:
        """Numbers of each epoch of the last `fit`, named as `SamplingMonitor` does.

        `steps` counts from the beginning of `fit`. Empty without importance sampling.
        """
        return {name: np.array(v) for name, v in self.held.history.items()}

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the last `fit` trained as in Keras though the method is `Auto`.

        Empty if it was sampled, and with any other method.
        """
        return self.held.reasons

    def probabilities(self) -> np.ndarray | None:
        """Returns `[n]` float64, p by the scores as last planned, or `None`.

        Uniform until enough examples have been drawn, and `None` if nothing is known.
        In a loaded model it follows from the scores that were saved with it.
        """
        run, state = self.held.run, self.held.state.known()
        if run is not None:
            return run.probabilities()
        if state.table is None:
            return None
        floor = getattr(self.configuration, "floor", None) or 0.0
        found = by_scores(state, max(floor, LEAST_FLOOR))
        return found and without(found[0], state.bad_examples.set_aside)

    def most_sampled(self, k: int = 100) -> MostSampled:
        """Returns the k examples that were drawn most often, the most drawn first.

        Hard, rare and mislabelled examples come first. All `fit`s on these rows count,
        also those before the model was saved and loaded. `.to_csv(path)` saves the
        returned table.

        Args:
            k: at least 1; all of them if there are fewer examples.

        Raises:
            ValueError: if k is less than 1, or nothing is known of any example.
        """
        require_count("k", k, 1)
        if self.held.state.table is None:
            method, told = type(self.configuration).__name__, self.reasons[:1]
            why = "".join(f"Its last `fit` trained as in Keras. {r} " for r in told)
            raise ValueError(
                "There must have been a `fit` with importance sampling. Received: a "
                f"model that had none, compiled with {method}. {why}Train it with "
                '`sampling="rais"`, or load weights saved after such training.'
            )
        if self.held.run is not None:
            self.held.run.settle()
        return most_sampled(self.held.state.known(), self.held.targets, k)
