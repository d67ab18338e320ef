"""Keras' own progress bar, with numbers of the sampling while an epoch runs."""

from __future__ import annotations

import time
from collections.abc import Callable

import keras

from keras_osgd.run_directory import LOGGED_ONLY

__all__ = ["ProgressBar"]

_SECONDS = 0.05  # numbers are read no more often, as the bar is drawn no more often


class ProgressBar(keras.callbacks.ProgbarLogger):
    """`ProgbarLogger` that shows numbers of the sampling after the logs of the step.

    Only the bar shows them: the logs of other callbacks, and `History`, stay as they
    are. The bar leaves out the other numbers that `SamplingMonitor` adds, so that a
    line fits the screen. Its number of steps is the expected length of the epoch.

    Args:
        shown: returns the numbers to show, by name.
        steps_left: returns how many steps the epoch still has, as far as is known.
    """

    async_safe = True

    def __init__(
        self,
        shown: Callable[[], dict[str, float]],
        steps_left: Callable[[], int],
    ) -> None:
        """Shows nothing yet."""
        super().__init__()
        self._current, self._steps_left = shown, steps_left
        self._shown: dict[str, float] = {}
        self._read_at = -_SECONDS

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Shows logs, and numbers of the sampling that are at most `_SECONDS` old."""
        if self.verbose == 1:
            now = time.monotonic()
            if now - self._read_at >= _SECONDS:
                self._shown, self._read_at = self._current(), now
                self.progbar.target = batch + 1 + self._steps_left()
            logs = {**(logs or {}), **self._shown}
        super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Shows logs and numbers of the sampling after an epoch, validation last."""
        logs = logs or {}
        logs = {k: v for k, v in logs.items() if k not in LOGGED_ONLY}
        trained = {k: v for k, v in logs.items() if not k.startswith("val_")}
        super().on_epoch_end(epoch, {**trained, **self._current(), **logs})
