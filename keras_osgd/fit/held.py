"""The sampling that a model holds, out of sight of Keras and TensorFlow."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_osgd.data.datasets import from_dataset, was_read
from keras_osgd.fit.run import Run, RunVariables
from keras_osgd.pools.stream_run import StreamRun
from keras_osgd.sampling import Sampling, get
from keras_osgd.scores.most_sampled import are_labels
from keras_osgd.scores.state import SamplingState
from keras_osgd.step.state import StepState

__all__ = ["Held", "as_in_fit"]

_ENTERING = threading.Lock()  # no attribute: what holds a lock cannot be copied


class Held:
    """Method, state and run of a model's sampling; Keras neither tracks nor saves it.

    Other modules read the attributes, and change them only by the methods.

    Attributes:
        sampling: the method given to `compile`.
        state: the sampling state.
        run: the `fit` with importance sampling under way, or the last one; `None` after
            one without.
        kept: variables of the last run, to be used again; `None` if there are none.
        history: numbers logged in the last `fit`, by epoch.
        targets: y of the last `fit`, if it is labels.
        sizes: n and m of a uniform `fit`, as far as they are known.
        reasons: why the last `fit` trained as in Keras although the method is `Auto`.
    """

    def __init__(self) -> None:
        """Starts with the default and without a run."""
        self.sampling: Sampling = get("auto")
        self.state = SamplingState()
        self.run: Run | StreamRun | None = None
        self.history: dict[str, list[float]] = {}
        self.targets: Any = None
        self.sizes: tuple[int | None, int | None] = (None, None)
        self.reasons: tuple[str, ...] = ()
        self.kept: RunVariables | StreamRun | None = None
        self._traced: StepState | None = None  # the one `train_function` is for
        self._dataset: tuple | None = None  # of the last `fit`, and its examples
        self._stop_requested = self._epoch_complete = False
        self._fits, self._claimed = 0, False

    @contextlib.contextmanager
    def one_fit(self) -> Iterator[None]:
        """Counts a `fit` while it is under way.

        Raises:
            RuntimeError: if another one is, and has claimed the model.
        """
        with _ENTERING:
            if self._claimed:
                raise RuntimeError(
                    "One `fit` with importance sampling must train a model at a time: "
                    "it keeps count of the draws and their weights. Received: another "
                    "`fit` of this model, from a callback or thread, while one is "
                    "under way; nothing was changed. Call it when that has ended, or "
                    'compile with sampling="uniform".'
                )
            self._fits += 1
        try:
            yield
        finally:
            with _ENTERING:
                self._fits -= 1
                self._claimed = self._claimed and self._fits > 0

    def claim(self) -> str:
        """Keeps the model for the present `fit`; returns a reason if it cannot."""
        with _ENTERING:
            self._claimed = self._fits == 1
        if self._claimed:
            return ""
        return (
            "A `fit` with importance sampling must be the only one of its model. "
            "Received: one while Keras' own `fit` of this model is under way. Call it "
            "when that has ended."
        )

    def disclaim(self) -> None:
        """Lets others train the model too, as Keras does."""
        self._claimed = False

    def configure(self, sampling: Sampling) -> None:
        """Sets the method; forgets earlier runs, which planned by another."""
        self.sampling, self.run, self.kept = sampling, None, None

    def read(self, x: Any, verbose: bool) -> Any:
        """Returns x as `fit` uses it; a dataset is read once for all fits."""
        x, self._dataset = from_dataset(x, self._dataset, verbose)
        return x

    def has_read(self, x: Any) -> bool:
        """Returns whether x is the dataset that the last `fit` read."""
        return was_read(x, self._dataset)

    def seen(self, x: Any) -> Any:
        """Returns the same as `read`, but prints and remembers nothing."""
        return from_dataset(x, self._dataset, verbose=False)[0]

    def keep(self, kept: RunVariables | StreamRun) -> None:
        """Keeps variables, or a stream's run, for the next `fit` that they serve."""
        self.kept = kept

    def prepare(self, targets: Any) -> None:
        """Forgets the last run: the state belongs to the data of a new `fit` now.

        Args:
            targets: y of that data, nested arrays.
        """
        self.run, self.history = None, {}
        self.targets = targets if are_labels(targets) else None  # they may be large
        self.reasons = ()

    def begin(self, model: keras.Model, run: Run | StreamRun) -> None:
        """Begins a `fit` with importance sampling.

        Keras makes a new training function unless the last one refers to the same
        variables.

        Args:
            model: that keeps this.
            run: of the `fit`.
        """
        self.run, self.history = run, {}
        if self._traced is not run.step_state:
            model.train_function = None

    def record(self) -> None:
        """Adds an epoch's numbers, and the steps since `fit` began, to the history."""
        for name, value in {"steps": self.run.clock.step, **self.run.logged()}.items():
            self.history.setdefault(name, []).append(value)

    def leave(
        self,
        model: keras.Model,
        sizes: tuple[int | None, int | None],
        reasons: tuple[str, ...] = (),
    ) -> None:
        """Lets the model train as in Keras.

        Args:
            model: the owner of this object.
            sizes: n and m of the `fit`, as far as they are known.
            reasons: see the attribute.
        """
        if self._traced is not None:
            model.train_function = None
        self.sizes, self.reasons, self._traced = sizes, reasons, None
        self.run, self.kept, self.history = None, None, {}

    def trained_by(self, keras_function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Returns the training function of a model whose steps are sampled.

        Args:
            keras_function: made by Keras from the step of `run`.
        """
        self._traced = self.run.step_state

        def function(iterator: Any) -> Any:
            drawn = self.run is not None and self.run.active
            if not drawn or inspect.isgenerator(iterator):  # of `train_on_batch`
                return keras_function(iterator)
            logs, self._epoch_complete = self.run.execution(keras_function, iterator)
            return logs

        return function

    @property
    def stop_training(self) -> bool:
        """Whether `fit` is to stop; briefly also true when an epoch is complete."""
        return self._stop_requested or self._epoch_complete

    def request_stop(self, value: bool) -> None:
        """Takes the value assigned to `model.stop_training`.

        What the last steps left is looked at then: validation may follow at once.
        """
        self._stop_requested = value
        if value and self.run is not None and self.run.active:
            self.run.look()

    def begin_next_epoch(self) -> None:
        """Lets `fit` go on after an epoch that ended early."""
        self._epoch_complete = False


def as_in_fit(model: keras.Model, x: Any) -> Any:
    """Returns x as a `fit` of this model uses it; prints nothing."""
    held = getattr(model, "sampling_held", None)
    return from_dataset(x, None, verbose=False)[0] if held is None else held.seen(x)
