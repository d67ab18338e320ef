"""One training run: a `Setting` in, what was measured out."""

import functools
import gc
import math
import time

import keras
import models
import numpy as np

from experiments import cleaning, networks, rivals, sets, variance
from experiments.methods import METHODS, Method
from experiments.setting import Setting

Record = dict[str, object]


def run(setting: Setting, smoke: bool = False) -> Record:
    """Trains once and measures.

    Args:
        setting: what and how.
        smoke: whether on a small part of the data.

    Returns:
        What `report.write` describes: `steps`, `gradients`, `forward`,
        `epochs_processed`, `effective_epochs`, `seconds`, `first_step_seconds`,
        `validation`, `test` where the purpose is "error", `history`, `n`, `failed` and
        `measures`.

    Raises:
        sets.Missing: if the data is not on this machine.
    """
    data = _load(setting.data, smoke)
    keras.backend.clear_session()
    gc.collect()
    method = METHODS[setting.method]
    recorder = Recorder(data, setting)
    measures: Record = {}
    with method.without():
        if method.rival:
            model = _train_rival(setting, data, recorder)
        elif method.cleans:
            scores = cleaning.MeanProbability()
            _train_in_fit(setting, method, data, recorder, scores)
            kept, measures = cleaning.cleaned(data, scores.value)
            recorder.begin_second()
            model = _train_in_fit(setting, method, kept, recorder)
        elif method.measured:
            x, y = data.train
            frozen = variance.FrozenVariance(x, y, setting.batch_size)
            model = _train_in_fit(setting, method, data, recorder, frozen)
            measures = {"variance": frozen.measured}
        else:
            model = _train_in_fit(setting, method, data, recorder)
    measured = recorder.measured() | {"measures": measures}
    measured["validation"] = errors(model, data.validation, data.classes)
    if setting.purpose == "error":
        measured["test"] = errors(model, data.test, data.classes)
    return measured


@functools.lru_cache(maxsize=2)
def _load(name: str, smoke: bool) -> sets.Data:
    return sets.load(name, smoke)


def build(setting: Setting, base: type[keras.Model], data: sets.Data) -> keras.Model:
    """Returns the compiled, untrained network; `sampling` is left to the caller."""
    keras.utils.set_random_seed(setting.seed)
    return networks.build(setting.network, base, data, setting.seed)


def compile_options(setting: Setting, n: int) -> dict[str, object]:
    """Returns what every method's `compile` is given."""
    rate = schedule(setting, n)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return {"optimizer": optimizer(setting.optimizer, rate), "loss": loss}


def schedule(
    setting: Setting, n: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns the learning rate over (effective) iterations, the same for all."""
    return models.schedule(setting.rate, setting.epochs, n, setting.batch_size)


def optimizer(name: str, rate: object) -> keras.optimizers.Optimizer:
    """Returns the optimizer of a study.

    Raises:
        ValueError: if the name is none of those in `Setting`.
    """
    makers = {
        "sgd": keras.optimizers.SGD,
        "momentum": functools.partial(keras.optimizers.SGD, momentum=0.9),
        "adam": keras.optimizers.Adam,
        "adamw": keras.optimizers.AdamW,
    }
    if name not in makers:
        raise ValueError(
            f"`optimizer` must be one of {sorted(makers)}. Received: {name!r}. "
            "Correct it in `studies.py`."
        )
    return makers[name](rate)


def errors(model: keras.Model, split: sets.Split, classes: int) -> dict[str, float]:
    """Returns the error and the mean over classes of the error within it, in %."""
    x, y = split
    parts = [
        np.argmax(model.predict_on_batch(x[start : start + 1000]), axis=-1)
        for start in range(0, len(x), 1000)
    ]
    wrong = np.concatenate(parts) != y
    within = [
        wrong[y == label].mean() for label in range(classes) if (y == label).any()
    ]
    return {
        "error": float(100 * wrong.mean()),
        "balanced_error": float(100 * np.mean(within)),
    }


def _train_in_fit(
    setting: Setting,
    method: Method,
    data: sets.Data,
    recorder: "Recorder",
    *further: keras.callbacks.Callback,
) -> keras.Model:
    base, options, callbacks = keras.Sequential, {}, [recorder, *further]
    if method.sampling is not None:
        # Plain Keras must be measurable where the add-on is not even imported.
        import keras_osgd

        base = keras_osgd.Sequential
        options = {"sampling": method.sampling(setting.seed)}
        callbacks.append(keras_osgd.callbacks.SamplingMonitor())
    x, y = data.train
    model = build(setting, base, data)
    alone = setting.purpose == "seconds"
    model.compile(
        **compile_options(setting, len(x)),
        **options,
        steps_per_execution=1 if alone else method.steps_per_execution,
    )
    model.fit(
        x,
        y,
        batch_size=setting.batch_size,
        epochs=setting.epochs,
        callbacks=callbacks,
        verbose=0,
    )
    return model


def _train_rival(
    setting: Setting, data: sets.Data, recorder: "Recorder"
) -> keras.Model:
    x, _ = data.train
    model = build(setting, keras.Sequential, data)
    model.compile(**compile_options(setting, len(x)))
    recorder.set_model(model)
    recorder.start_clock()
    try:
        rivals.train(
            model,
            data.train,
            rivals.RIVALS[setting.method](setting.parameter),
            schedule(setting, len(x)),
            setting.batch_size,
            setting.epochs,
            setting.seed,
            recorder.add_counts,
        )
    except rivals.Diverged as error:
        recorder.failed = str(error)
    return model


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
        self._before: Record = {"steps": 0, "effective_epochs": 0.0}
        self._last: Record = dict(self._before)
        self._history: dict[str, list[float]] = {}
        self.failed: str | None = None

    # Only the beginning of a step is overridden: Keras calls it in line, whereas a
    # method for its end would make Keras wait for every step's logs.
    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Starts the clock when the second execution begins."""
        if batch > 0 and math.isnan(self._started):
            self.start_clock()
        if batch > 0 and self._waiting_since is not None:
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
        entry = {
            name: self._last[name]
            for name in ("steps", "epochs_processed", "effective_epochs", "seconds")
        }
        entry["gain_ratio"] = gain
        if self._setting.purpose == "error":
            found = errors(self.model, self._data.validation, self._data.classes)
            entry["validation_error"] = found[self._data.metric]
        for name, value in entry.items():
            self._history.setdefault(name, []).append(value)
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
        self._waiting_since = time.perf_counter()

    def measured(self) -> Record:
        """Returns the record of the run, without errors."""
        return {
            **self._last,
            "first_step_seconds": self._first_step_seconds,
            "history": self._history,
            "n": self._n,
            "failed": self.failed,
        }
