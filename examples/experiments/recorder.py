"""What a run records while it trains: progress, seconds, validation error."""

import math
import time

import keras
import numpy as np
from training import is_wrong

from experiments import sets
from experiments.setting import Setting

Record = dict[str, object]

_TOTALS = (
    "steps",
    "gradients",
    "forward",
    "epochs_processed",
    "effective_epochs",
    "seconds",
)
_HISTORY = (
    "steps",
    "epochs_processed",
    "effective_epochs",
    "seconds",
    "gain_ratio",
    "validation_error",
)


def errors(model: keras.Model, split: sets.Split, classes: int) -> dict[str, float]:
    """Returns the error and the mean over classes of the error within it, in %."""
    wrong, (_, y) = is_wrong(model, split), split
    within = [
        wrong[y == label].mean() for label in range(classes) if (y == label).any()
    ]
    return {
        "error": float(100 * wrong.mean()),
        "balanced_error": float(100 * np.mean(within)),
    }


class Recorder(keras.callbacks.Callback):
    """Records progress at the end of every epoch; its clock stands still meanwhile.

    Attributes:
        failed: why training was ended early, or `None`.
    """

    def __init__(self, data: sets.Data, setting: Setting) -> None:
        super().__init__()
        self._data, self._setting = data, setting
        self._n = len(data.train[0])
        self._created = time.perf_counter()
        self._started = math.nan
        self._paused = self._tracing_seconds = 0.0
        self._first_step_seconds = math.nan
        self._waiting_since: float | None = None
        self._executions = 0
        self._last: Record = dict.fromkeys(_TOTALS, 0)
        self._before = self._last
        self._history: dict[str, list[float]] = {name: [] for name in _HISTORY}
        self.failed: str | None = None

    # Only the beginning of a step is overridden: Keras calls it in line, whereas a
    # method for its end would make Keras wait for every step's logs.
    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Starts the clock when the second execution begins."""
        self._executions += 1
        if self._executions == 2 and math.isnan(self._started):
            self.start_clock()
        if self._executions == 2 and self._waiting_since is not None:
            self._paused += time.perf_counter() - self._waiting_since
            self._waiting_since = None

    def start_clock(self) -> None:
        """Starts the clock: what came before was tracing and the first step."""
        self._started = time.perf_counter()
        self._first_step_seconds = self._started - self._created

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Records an epoch of `fit`."""
        logs = logs or {}
        before = self._before
        steps = before["steps"] + int(self.model.optimizer.iterations)
        gradients = steps * self._setting.batch_size
        effective = float(logs.get("effective_epochs", epoch + 1))
        effective += before["effective_epochs"]
        gain = float(logs.get("gain_ratio", 1.0))
        self.add(steps, gradients, 0, effective, gain)
        if not math.isfinite(logs.get("loss", 0.0)):
            self.failed = "the loss is not finite"
            self.model.stop_training = True

    def add(
        self,
        steps: int,
        gradients: int,
        forward: int,
        effective_epochs: float,
        gain: float = 1.0,
    ) -> None:
        """Records an epoch of progress: totals so far, and the gain ratio now."""
        entered = time.perf_counter()
        self._last = {
            "steps": steps,
            "gradients": gradients,
            "forward": forward,
            "epochs_processed": gradients / self._n,
            "effective_epochs": effective_epochs,
            "seconds": entered - self._started - self._paused,
        }
        entry = {name: self._last[name] for name in _HISTORY if name in self._last}
        entry["gain_ratio"] = gain
        if self._setting.purpose == "error":
            found = errors(self.model, self._data.validation, self._data.classes)
            entry["validation_error"] = found[self._data.metric]
        for name, value in entry.items():
            self._history[name].append(value)
        self._paused += time.perf_counter() - entered

    def add_counts(self, counts: Record) -> None:
        """Records an epoch of `rivals.train`, without the tracing of its graphs."""
        self._paused += counts["tracing_seconds"] - self._tracing_seconds
        self._tracing_seconds = counts["tracing_seconds"]
        self._first_step_seconds = self._tracing_seconds
        names = ("steps", "gradients", "forward", "effective_epochs", "gain_ratio")
        self.add(*(counts[name] for name in names))

    def begin_second(self) -> None:
        """Goes on counting in a second training; its tracing is left out."""
        self._before = self._last
        self._waiting_since, self._executions = time.perf_counter(), 0

    def measured(self) -> Record:
        """Returns the record of the run, without errors."""
        return {
            **self._last,
            "first_step_seconds": self._first_step_seconds,
            "history": self._history,
            "n": self._n,
            "failed": self.failed,
        }
