"""`model.sampling`: how examples are drawn, and which ones were."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_osgd.draws.blocks import LEAST_FLOOR, without
from keras_osgd.sampling import Sampling, require_count
from keras_osgd.scores.distributions import by_scores
from keras_osgd.scores.most_sampled import MostSampled, most_sampled

__all__ = ["SamplingView"]


class SamplingView:
    """The method given to `compile`, and what a model's training came to with it.

    All that the method has, `RAIS` or another, is read through it; copied, pickled or
    given to another model it is that method and nothing else.

    Args:
        held: what belongs to the model's sampling.

    Example:
        >>> import keras, keras_osgd
        >>> model = keras_osgd.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> history = model.fit(np.eye(2), np.array([1.0, 2.0]), epochs=3, verbose=0)
        >>> model.sampling.floor
        0.05
        >>> model.sampling.most_sampled(1).times_seen.shape
        (1,)
    """

    def __init__(self, held: Any) -> None:
        """Looks at a model's sampling, as it is whenever asked."""
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
        """Returns what the method has."""
        return getattr(vars(self)["held"].sampling, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets it of the method."""
        setattr(self.configuration, name, value)

    def __repr__(self) -> str:
        """Returns the call that makes the method."""
        return repr(self.configuration)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        """Lets copies be of the method alone."""
        return self.configuration.from_config, (self.configuration.get_config(),)

    @property
    def history(self) -> dict[str, np.ndarray]:
        """Figures of each epoch of the last `fit`, as `SamplingMonitor` names them.

        `steps`, since `fit` began, beside them; empty without importance sampling.
        """
        return {name: np.array(v) for name, v in self.held.history.items()}

    def probabilities(self) -> np.ndarray | None:
        """Returns `[n]` float64, p by the scores as last planned, or `None`.

        `None` until all examples can have been seen; of a model that was loaded, by the
        scores that were saved with it.
        """
        run, state = self.held.run, self.held.state
        if run is not None:
            return run.probabilities()
        if state.table is None:
            return None
        floor = getattr(self.configuration, "floor", None) or 0.0
        found = by_scores(state, max(floor, LEAST_FLOOR))
        return found and without(found[0], state.bad_examples.set_aside)

    def most_sampled(self, k: int = 100) -> MostSampled:
        """Returns the k examples that were drawn most often, the most drawn first.

        Hard examples, rare ones and mislabelled ones stand here. All `fit`s on these
        rows count, also those before the model was saved and loaded. `.to_csv(path)`
        of what is returned saves the table.

        Args:
            k: at least 1; all of them if there are fewer examples.

        Raises:
            ValueError: if k is less than 1, or nothing is known of any example.
        """
        require_count("k", k, 1)
        if self.held.state.table is None:
            raise ValueError(
                "There must have been a `fit` with importance sampling. Received: a "
                f"model that had none, compiled with {self.configuration!r}. Train it "
                'with `sampling="rais"`, or load weights saved after such training.'
            )
        if self.held.run is not None:
            self.held.run.settle()
        return most_sampled(self.held.state, self.held.targets, k)
