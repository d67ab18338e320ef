"""Keras' own progress bar, with figures of the sampling that change while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable

import keras

__all__ = ["ProgressBar"]

_SECONDS = 0.05  # figures are read no more often, as the bar is drawn no more often


class ProgressBar(keras.callbacks.ProgbarLogger):
    """`ProgbarLogger` that shows figures after what the training step logs.

    Only the bar shows them: the logs of other callbacks, and `History`, stay as they
    are.

    Args:
        figures: returns what to show, by name.
    """

    async_safe = True

    def __init__(self, figures: Callable[[], dict[str, float]]) -> None:
        """Shows nothing yet."""
        super().__init__()
        self._figures = figures
        self._shown: dict[str, float] = {}
        self._read_at = -_SECONDS

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Shows logs and figures, as they were a moment ago at most."""
        if self.verbose == 1:
            now = time.monotonic()
            if now - self._read_at >= _SECONDS:
                self._shown, self._read_at = self._figures(), now
            logs = {**(logs or {}), **self._shown}
        super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Shows logs and figures at the end of an epoch, validation last."""
        logs = logs or {}
        trained = {k: v for k, v in logs.items() if not k.startswith("val_")}
        super().on_epoch_end(epoch, {**trained, **self._figures(), **logs})
