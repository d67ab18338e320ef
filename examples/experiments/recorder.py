"""What a run records while it trains: progress, seconds, validation error."""

import math

import keras
import numpy as np

from examples.common.clock import Clock
from examples.common.training import is_wrong
from examples.experiments import sets
from examples.experiments.setting import Setting

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


def errors(model: keras.Model, split: sets.Split, data: sets.Data) -> dict[str, float]:
    """Returns what a model makes of a part of its data, by name of the metric.

    Args:
        model: trained.
        split: that part.
        data: whose `kind` says how it is measured, `classes` how many there are.

    Returns:
        "deviation", in percent, for a regression; "bits" a byte for sequences; else
        "error" and "balanced_error", in percent.
    """
    x, y = split
    if data.kind == "regression":
        missed = _predicted(model, x) - y
        return {"deviation": float(100 * np.sqrt(np.mean(np.square(missed))))}
    if data.kind == "sequence":
        found = _predicted(model, x)
        nats = keras.losses.sparse_categorical_crossentropy(y, found, from_logits=True)
        return {"bits": float(np.mean(nats) / math.log(2))}
    wrong = is_wrong(model, split)
    within = [
        wrong[y == label].mean() for label in range(data.classes) if (y == label).any()
    ]
    return {
        "error": float(100 * wrong.mean()),
        "balanced_error": float(100 * np.mean(within)),
    }


def _predicted(model: keras.Model, x: np.ndarray) -> np.ndarray:
    parts = range(0, len(x), 1000)
    return np.concatenate(
        [model.predict_on_batch(x[part : part + 1000]) for part in parts]
    )


class Recorder(keras.callbacks.Callback):
    """Records progress at the end of every epoch; its clock stands still meanwhile.

    Attributes:
        clock: of training.
        failed: why training was ended early, or `None`.
    """

    def __init__(self, data: sets.Data, setting: Setting) -> None:
        super().__init__()
        self._data, self._setting = data, setting
        self._n = len(data.train[0])
        self.clock = Clock()
        self._tracing_seconds = 0.0
        self._last: Record = dict.fromkeys(_TOTALS, 0)
        self._before = self._last
        self._history: dict[str, list[float]] = {name: [] for name in _HISTORY}
        self.failed: str | None = None

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Starts the clock when the second execution begins."""
        self.clock.execution_begins()

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
        self.clock.stop()
        self._last = {
            "steps": steps,
            "gradients": gradients,
            "forward": forward,
            "epochs_processed": gradients / self._n,
            "effective_epochs": effective_epochs,
            "seconds": self.clock.seconds(),
        }
        entry = {name: self._last[name] for name in _HISTORY if name in self._last}
        entry["gain_ratio"] = gain
        if self._setting.purpose == "error":
            found = errors(self.model, self._data.validation, self._data)
            entry["validation_error"] = found[self._data.metric]
        for name, value in entry.items():
            self._history[name].append(value)
        self.clock.go_on()

    def add_counts(self, counts: Record) -> None:
        """Records an epoch of `rivals.train`, without the tracing of its graphs."""
        self.clock.leave_out(counts["tracing_seconds"] - self._tracing_seconds)
        self._tracing_seconds = counts["tracing_seconds"]
        self.clock.first_step_seconds = self._tracing_seconds
        names = ("steps", "gradients", "forward", "effective_epochs", "gain_ratio")
        self.add(*(counts[name] for name in names))

    def begin_second(self) -> None:
        """Goes on counting in a second training; its tracing is left out."""
        self._before = self._last
        self.clock.begin_another()

    def measured(self) -> Record:
        """Returns the record of the run, without errors."""
        return {
            **self._last,
            "first_step_seconds": self.clock.first_step_seconds,
            "history": self._history,
            "n": self._n,
            "failed": self.failed,
        }
