"""Callbacks that take part in a `fit` before and after Keras' own hooks."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import keras

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keras_osgd.data.training_data import TrainingData
    from keras_osgd.fit.run import RunVariables

__all__ = ["FitCallback", "ResumingCallback", "Resumed"]

_ENTERING = threading.Lock()


class FitCallback(keras.callbacks.Callback):
    """A callback with a part in `fit` beyond Keras' hooks.

    Attributes:
        adds_to_logs: whether it comes before other callbacks, which read the logs.
    """

    adds_to_logs = False
    _fitting = False

    @contextlib.contextmanager
    def in_fit(self) -> Iterator[None]:
        """Takes part in a `fit` during the block, and is closed at its end.

        Raises:
            RuntimeError: if it takes part in another one.
        """
        with _ENTERING:
            if self._fitting:
                name = type(self).__name__
                raise RuntimeError(
                    f"A `{name}` must be given to one `fit` at a time: it keeps what "
                    "that one does. Received: one whose `fit` is under way. Make "
                    f"another `{name}`, with a directory of its own."
                )
            self._fitting = True
        try:
            yield
        finally:
            try:
                self.close()
            finally:
                self._fitting = False

    def close(self) -> None:
        """Ends what it began; called when a `fit` is over, however that ended."""


class Resumed(NamedTuple):
    """The point at which a `fit` goes on.

    Attributes:
        epoch: index of its first epoch.
        saved: for `Run.start`, to go on bit for bit, or `None`.
        done: part of the epoch that was trained already, where `saved` is `None`.
        line: to print; "" for none.
        effective_epochs: progress so far, where `saved` is `None`; `None` means that
            of `epoch` whole epochs.
    """

    epoch: int
    saved: Mapping[str, Any] | None = None
    done: float = 0.0
    line: str = ""
    effective_epochs: float | None = None


class ResumingCallback(FitCallback):
    """A callback that decides where a `fit` begins; at most one in a `fit`."""

    def after(self, callbacks: list[keras.callbacks.Callback]) -> None:
        """Moves to its place in the list of all callbacks."""

    def begin(
        self,
        model: keras.Model,
        variables: RunVariables | None,
        data: TrainingData | None,
        epochs: int,
        initial_epoch: int,
        steps: int | None = None,
        whole: TrainingData | None = None,
    ) -> Resumed:
        """Returns where to begin; called with the model set, before the run is made.

        Args:
            model: compiled; it need not be built without importance sampling.
            variables: of the run; `None` without importance sampling.
            data: that the run trains on: this worker's rows; `None` likewise.
            epochs: as in `fit`.
            initial_epoch: as in `fit`.
            steps: effective iterations of an epoch; `None` likewise.
            whole: the data of all workers; `None` likewise.
        """
        return Resumed(initial_epoch)

    def where_saved(self) -> str:
        """Returns a sentence on the last checkpoint, or nothing."""
        return ""
