"""The time of training, for benchmarks and experiments."""

import math
import time
from collections.abc import Sequence

import keras

from examples.common import models


class Clock:
    """Seconds of training since the end of its first execution, without pauses.

    The first execution is left out: TensorFlow traces the model in it, which has
    nothing to do with the number of steps. A callback calls `execution_begins` in
    `on_train_batch_begin` and should have no method for the end of a batch: Keras
    calls the former in line, whereas the latter would make it wait for every step's
    logs.

    Attributes:
        first_step_seconds: from the making of the clock until it starts.
        executions: begun in the training under way.
    """

    def __init__(self) -> None:
        self._created = time.perf_counter()
        self._started = math.nan
        self._left_out = 0.0
        self._stopped: float | None = None
        self.first_step_seconds = math.nan
        self.executions = 0

    def execution_begins(self) -> None:
        """Starts the clock at the second call, or lets it go on after a pause."""
        self.executions += 1
        if self.executions != 2:
            return
        if math.isnan(self._started):
            self.start()
        if self._stopped is not None:
            self.go_on()

    def start(self) -> None:
        """Starts the clock now, whatever has been executed."""
        self._started = time.perf_counter()
        self.first_step_seconds = self._started - self._created

    def seconds(self) -> float:
        """Returns the seconds so far, NaN before the start."""
        now = time.perf_counter() if self._stopped is None else self._stopped
        return now - self._started - self._left_out

    def stop(self) -> None:
        """Lets the clock stand still."""
        if self._stopped is None:
            self._stopped = time.perf_counter()

    def go_on(self) -> None:
        """Ends the pause."""
        self._left_out += time.perf_counter() - self._stopped
        self._stopped = None

    def leave_out(self, seconds: float) -> None:
        """Takes away seconds that have been counted and should not be."""
        self._left_out += seconds

    def begin_another(self) -> None:
        """Stands still until the first execution of another training has ended."""
        self.stop()
        self.executions = 0


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
    def __init__(self) -> None:
        super().__init__()
        self._clock = Clock()

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        self._clock.execution_begins()

    def on_train_end(self, logs: dict | None = None) -> None:
        self._clock.stop()

    def milliseconds(self) -> float:
        steps = (self._clock.executions - 1) * self.model.steps_per_execution
        return 1000 * self._clock.seconds() / steps
