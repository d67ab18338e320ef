"""One timed training run, as several benchmarks make it."""

import dataclasses
import gc
import math

import keras
import numpy as np

from examples.common import data, models
from examples.common.clock import Clock


@dataclasses.dataclass(frozen=True)
class Run:
    """What is trained, and how.

    Attributes:
        model: `"mlp"` or `"cnn"`.
        sampling: `"plain"` for `keras.Sequential` and Keras' own `fit`; otherwise
            what `keras_osgd.Sequential.compile` takes as `sampling`.
        epochs: epochs of uniform training, effective epochs of importance sampling.
        rate: peak learning rate.
        seed: of the initial weights and of every draw.
        optimizer: `"sgd"` (with momentum) or `"adam"`.
        decay: whether the rate follows the examples' schedule, or stays as it is.
    """

    model: str
    sampling: object
    epochs: int
    rate: float
    seed: int
    optimizer: str = "sgd"
    decay: bool = True


def build(run: Run, train: data.Split) -> keras.Sequential:
    """Returns the compiled, untrained network, every random draw seeded."""
    keras.utils.set_random_seed(run.seed)
    base = keras.Sequential
    options = {}
    if run.sampling != "plain":
        # Plain Keras must be measurable where the add-on is not even imported.
        import keras_osgd

        base = keras_osgd.Sequential
        options = {"sampling": run.sampling}
    x, _ = train
    model = models.BUILDERS[run.model](base, x, 1000 * run.seed)
    rate = models.schedule(run.rate, run.epochs, len(x)) if run.decay else run.rate
    model.compile(
        optimizer=models.optimizer(run.optimizer, rate),
        loss=models.loss(),
        metrics=["accuracy"],
        **options,
    )
    return model


def train(run: Run, splits: data.Splits) -> tuple[keras.Sequential, dict[str, object]]:
    """Trains one network and measures it.

    Returns:
        The trained model and its record: `steps`; `epochs_processed`, steps times
        batch size over n; `seconds`, spent in `fit` after its first step and without
        evaluation; `first_step_seconds`, from the call of `fit` to the end of its
        first step, hence with tracing; `test_error` and `validation_error`, at the
        end, in percent; `history`, one entry an epoch for `steps`, `seconds`,
        `test_error`, `gain_ratio` and, where the method has them, `scoring_seconds`,
        `gain_ratio_exact` and `gain_ratio_last_layer`; `gain`, effective iterations per
        step.
    """
    keras.backend.clear_session()
    gc.collect()
    (x, y), validation, test = splits
    model = build(run, (x, y))
    stopwatch = Stopwatch(test)
    callbacks: list[keras.callbacks.Callback] = [stopwatch]
    if run.sampling != "plain":
        import keras_osgd

        callbacks.append(keras_osgd.callbacks.SamplingMonitor())
    logs = model.fit(
        x,
        y,
        batch_size=models.BATCH_SIZE,
        epochs=run.epochs,
        callbacks=callbacks,
        verbose=0,
    ).history
    steps = stopwatch.history["steps"][-1]
    gains = [float(gain) for gain in logs.get("gain_ratio", [1.0] * run.epochs)]
    further = {
        name: [float(value) for value in logs[name]]
        for name in ("scoring_seconds", "gain_ratio_exact", "gain_ratio_last_layer")
        if name in logs
    }
    uniform_steps = run.epochs * math.ceil(len(x) / models.BATCH_SIZE)
    return model, {
        "steps": steps,
        "epochs_processed": steps * models.BATCH_SIZE / len(x),
        "seconds": stopwatch.history["seconds"][-1],
        "first_step_seconds": stopwatch.first_step_seconds,
        "test_error": stopwatch.history["test_error"][-1],
        "validation_error": error_percent(model, validation),
        "gain": uniform_steps / steps,
        "history": {**stopwatch.history, "gain_ratio": gains, **further},
    }


def error_percent(model: keras.Model, split: data.Split) -> float:
    """Returns the share of wrongly classified examples, in percent."""
    return float(100 * np.mean(is_wrong(model, split)))


def is_wrong(model: keras.Model, split: data.Split) -> np.ndarray:
    """Returns `[n]`, whether each example is wrongly classified."""
    x, y = split
    parts = [
        model.predict_on_batch(x[start : start + 1000]).argmax(axis=-1)
        for start in range(0, len(x), 1000)
    ]
    return np.concatenate(parts) != y


class Stopwatch(keras.callbacks.Callback):
    """Records steps, training seconds and test error at the end of every epoch.

    The clock stands still during evaluation.

    Attributes:
        history: lists with an entry an epoch; seconds are totals since the first
            step, errors in percent.
    """

    def __init__(self, test: data.Split) -> None:
        super().__init__()
        self._test = test
        self._clock = Clock()
        self.history: dict[str, list] = {"steps": [], "seconds": [], "test_error": []}

    @property
    def first_step_seconds(self) -> float:
        """From the start of `fit` to the end of its first step."""
        return self._clock.first_step_seconds

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Starts the clock when the second step begins."""
        self._clock.execution_begins()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Stops the clock, evaluates, adds `test_error` to Keras' logs."""
        self._clock.stop()
        seconds = self._clock.seconds()
        if math.isnan(seconds):
            raise ValueError(
                "Timing needs at least two steps before the first epoch ends. "
                "Received: 1 step. Train on more examples."
            )
        error = error_percent(self.model, self._test)
        self.history["steps"].append(int(self.model.optimizer.iterations))
        self.history["seconds"].append(seconds)
        self.history["test_error"].append(error)
        if logs is not None:
            logs["test_error"] = error
        self._clock.go_on()
