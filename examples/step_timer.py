"""The time of a step of `fit`, for the benchmarks."""

import time
from collections.abc import Sequence

import keras
import models


def milliseconds_a_step(
    model: keras.Model,
    train: tuple,
    epochs: int,
    steps_per_epoch: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> float:
    """Returns the mean time of a step of `fit`, without its first execution."""
    timer = _StepTimer()
    model.fit(
        *train,
        batch_size=models.BATCH_SIZE,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        callbacks=[*callbacks, timer],
        verbose=0,
    )
    return timer.milliseconds()


class _StepTimer(keras.callbacks.Callback):
    """Counts and times the executions after the first."""

    def __init__(self) -> None:
        super().__init__()
        self._executions = 0
        self._started = self._ended = 0.0

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        self._executions += 1
        if self._executions == 2:
            self._started = time.perf_counter()

    def on_train_end(self, logs: dict | None = None) -> None:
        self._ended = time.perf_counter()

    def milliseconds(self) -> float:
        steps = (self._executions - 1) * self.model.steps_per_execution
        return 1000 * (self._ended - self._started) / steps
