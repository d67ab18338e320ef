"""What Keras' `fit` takes, each tried by a `fit` of its own.

`python -m tests.feature_table` writes the table into `keras_osgd/fit/README.md`.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

import keras_osgd
from keras_osgd import sampling
from keras_osgd.data import indexed, records
from tests.helpers import keras_losses, keras_metrics

PAGE = pathlib.Path(keras_osgd.__file__).parent / "fit" / "README.md"
BEGIN, END = "<!-- the table begins -->\n", "<!-- the table ends -->"
SAMPLED = "sampled"

L, K = keras.layers, keras.callbacks
N, M = 40, 8
_rng = np.random.default_rng(0)
X = _rng.normal(size=(N, 4)).astype("float32")
Y = _rng.normal(size=(N, 2)).astype("float32")
LABELS = _rng.integers(0, 2, N)


class Row(NamedTuple):
    """A thing that Keras' `fit` takes.

    Attributes:
        name: as the table shows it.
        fit: arguments of `fit`, made anew at each call.
        model: makes the compiled model.
    """

    name: str
    fit: Callable[[], dict[str, Any]]
    model: Callable[[], keras.Model]


def compiled(model: keras.Model | None = None, **options: Any) -> keras.Model:
    """Returns a compiled model, with the default sampling."""
    if model is None:
        model = keras_osgd.Sequential([keras.Input((4,)), L.Dense(2)])
    model.compile(**{"optimizer": "sgd", "loss": "mse", **options})
    return model


def arrays(**others: Any) -> Callable[[], dict[str, Any]]:
    """Returns a function that makes the arguments of `fit` for arrays."""
    return lambda: {"x": X, "y": Y, "batch_size": M, **others}


# Arguments


def _arguments() -> Iterator[Row]:
    held_out = {"validation_data": (X[:8], Y[:8])}
    given = {
        "x": arrays(),
        "y": arrays(),
        "batch_size": arrays(batch_size=7),
        "epochs": arrays(epochs=2),
        "verbose": arrays(verbose=2),
        "callbacks": arrays(callbacks=[K.Callback()]),
        "validation_split": arrays(validation_split=0.2),
        "validation_data": arrays(**held_out),
        "shuffle": arrays(shuffle=False),
        "class_weight": lambda: {"x": X, "y": LABELS, "class_weight": {0: 1.0, 1: 2.0}},
        "sample_weight": arrays(sample_weight=np.ones(N)),
        "initial_epoch": arrays(epochs=2, initial_epoch=1),
        "steps_per_epoch": arrays(steps_per_epoch=3),
        "validation_steps": arrays(**held_out, validation_steps=1),
        "validation_batch_size": arrays(**held_out, validation_batch_size=4),
        "validation_freq": arrays(**held_out, validation_freq=2),
    }
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for name, fit in given.items():
        loss = sparse if name == "class_weight" else "mse"
        yield Row(f"`{name}`", fit, lambda loss=loss: compiled(loss=loss))


def _options() -> Iterator[Row]:
    given: dict[str, dict[str, Any]] = {
        "optimizer": {"optimizer": "rmsprop"},
        "loss": {"loss": lambda y, y_pred: keras.ops.mean((y - y_pred) ** 2, -1)},
        "loss_weights": {"loss_weights": [2.0]},
        "metrics": {"metrics": ["mae"]},
        "weighted_metrics": {"weighted_metrics": ["mae"]},
        "run_eagerly": {"run_eagerly": True},
        "steps_per_execution": {"steps_per_execution": 2},
        "jit_compile": {"jit_compile": True},
    }
    for name, option in given.items():
        yield Row(f"`{name}`", arrays(), lambda o=option: compiled(**o))
    yield Row("`auto_scale_loss` (mixed_float16)", arrays(), _half)


def _half() -> keras.Model:
    layer = L.Dense(2, dtype="mixed_float16")
    return compiled(keras_osgd.Sequential([keras.Input((4,)), layer]))


# Data


class Batches(keras.utils.PyDataset):
    def __init__(self, scale: float = 0.0) -> None:
        super().__init__()
        self._scale = scale

    def __len__(self) -> int:
        return N // M

    def __getitem__(self, index: int) -> tuple:
        rows = slice(index * M, index * M + M)
        return X[rows] + self._scale * np.random.normal(size=(M, 4)), Y[rows]


def dataset() -> tf.data.Dataset:
    """Returns batches of (x, y)."""
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(M)


def _generated() -> Iterator[tuple]:
    for start in range(0, N, M):
        yield X[start : start + M], Y[start : start + M]


def _noisy(x: Any, y: Any) -> tuple:
    return x + tf.random.normal(tf.shape(x)), y


def _ragged() -> tf.RaggedTensor:
    return tf.RaggedTensor.from_row_lengths(
        np.ones(2 * N, "float32"), [1, 3] * (N // 2)
    )


def _scipy() -> Any:
    import scipy.sparse

    return scipy.sparse.csr_matrix(X)


def _pandas() -> Any:
    import pandas

    return pandas.DataFrame(X)


def _named() -> keras.Model:
    one, other = keras.Input((4,), name="one"), keras.Input((4,), name="other")
    output = L.Dense(2)(L.Concatenate()([one, other]))
    return compiled(keras_osgd.Model({"one": one, "other": other}, output))


def _on_ragged() -> keras.Model:
    inputs = keras.Input((None,), ragged=True)
    output = L.Lambda(lambda x: tf.reduce_sum(x, 1)[:, None], output_shape=(1,))(inputs)
    return compiled(keras_osgd.Model(inputs, L.Dense(2)(output)))


def _on_text() -> keras.Model:
    lookup = L.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")
    inputs = keras.Input((1,), dtype="string")
    return compiled(keras_osgd.Model(inputs, L.Dense(2)(lookup(inputs))))


def _data() -> Iterator[Row]:
    text = np.array([["a"], ["b"]] * (N // 2))
    given: list[tuple] = [
        ("NumPy arrays, `np.memmap`", arrays()),
        ("tensors", arrays(x=tf.constant(X), y=tf.constant(Y))),
        ("pandas", lambda: {"x": _pandas(), "y": Y}),
        ("dicts, tuples and lists of arrays", arrays(x={"one": X, "other": X}), _named),
        ("strings", arrays(x=text), _on_text),
        ("ragged x", arrays(x=_ragged()), _on_ragged),
        ("ragged y", arrays(y=tf.RaggedTensor.from_tensor(Y))),
        ("sparse tensors as x", arrays(x=tf.sparse.from_dense(X))),
        ("SciPy's sparse matrices", lambda: {"x": _scipy(), "y": Y}),
        ("no y", lambda: {"x": X}, _loss_added),
        ("a finite `tf.data.Dataset`", lambda: {"x": dataset()}),
        ("one that augments", lambda: {"x": dataset().map(_noisy)}),
        (
            "one without an end",
            lambda: {"x": dataset().repeat(), "steps_per_epoch": 5},
        ),
        (
            "one of unknown length",
            lambda: {"x": dataset().filter(lambda x, y: True)},
        ),
        ("a `PyDataset`", lambda: {"x": Batches()}),
        ("one that augments", lambda: {"x": Batches(1.0)}),
        ("generators and other iterables", lambda: {"x": _generated()}),
        (
            "`keras_osgd.data.indexed`",
            lambda: {"x": indexed(dataset(), map=_noisy, verbose=False)},
        ),
        (
            "`keras_osgd.data.records`",
            lambda: {"x": records(list(zip(X, Y, strict=True)))},
        ),
    ]
    for name, fit, *model in given:
        yield Row(name, fit, *(model or [compiled]))


# Models


class Subclass(keras_osgd.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = L.Dense(2)

    def call(self, x: Any) -> Any:
        return self.dense(x)


class WithLoss(L.Layer):
    def call(self, x: Any) -> Any:
        self.add_loss(keras.ops.mean(x**2))
        return x


class OwnStep(Subclass):
    def train_step(self, data: Any) -> dict:
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True), weights)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply(gradients, self.trainable_weights)
        return {"loss": loss}


class OtherStep(Subclass):
    def train_step(self, data: Any) -> dict:
        x, y = data
        with tf.GradientTape() as tape:
            loss = keras.ops.mean((self(x) - y) ** 2)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply(gradients, self.trainable_weights)
        return {"loss": loss}


class OwnLoss(Subclass):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
        return 2.0 * super().compute_loss(x, y, y_pred, sample_weight, **kwargs)


class LossWithoutWeights(Subclass):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
        return super().compute_loss(x, y, y_pred, None, **kwargs)


def _sequential(*layers: L.Layer) -> keras.Model:
    return compiled(keras_osgd.Sequential([keras.Input((4,)), *layers, L.Dense(2)]))


def _loss_added() -> keras.Model:
    layers = [keras.Input((4,)), L.Dense(2), WithLoss()]
    return compiled(keras_osgd.Sequential(layers), loss=None)


def _several() -> keras.Model:
    inputs = keras.Input((4,))
    outputs = [L.Dense(2)(inputs), L.Dense(2)(inputs)]
    return compiled(keras_osgd.Model(inputs, outputs), loss=["mse", "mae"])


def _frozen() -> keras.Model:
    model = _sequential()
    model.trainable = False
    return compiled(model)


def _stateful() -> keras.Model:
    inputs = keras.Input(batch_shape=(M, 4, 1))
    outputs = L.Dense(2)(L.SimpleRNN(3, stateful=True)(inputs))
    return compiled(keras_osgd.Model(inputs, outputs))


def _accelerated() -> keras.Model:
    model = keras.Sequential([keras.Input((4,)), L.Dense(2)])
    model.compile("sgd", "mse")
    return keras_osgd.accelerate(model)


def _low_rank() -> keras.Model:
    model = _sequential(L.Dense(4, "relu"))
    model.layers[0].enable_lora(1)
    return compiled(model)


def _models() -> Iterator[Row]:
    two = arrays(y=[Y, Y])
    given: dict[str, tuple] = {
        "`Sequential`": (_sequential,),
        "`Model(inputs, outputs)`": (
            lambda: _named(),
            arrays(x={"one": X, "other": X}),
        ),
        "a subclass of `Model`": (lambda: compiled(Subclass()),),
        "a Keras model after `accelerate`": (_accelerated,),
        "several outputs": (_several, two),
        "Dropout": (lambda: _sequential(L.Dropout(0.5)),),
        "BatchNormalization": (lambda: _sequential(L.BatchNormalization()),),
        "regularizers": (lambda: _sequential(L.Dense(3, kernel_regularizer="l2")),),
        "`add_loss` beside a loss": (lambda: _sequential(L.Dense(3), WithLoss()),),
        "`add_loss` alone": (_loss_added,),
        "LoRA": (_low_rank,),
        "no trainable weights": (_frozen,),
        "a stateful RNN": (_stateful, arrays(x=X[..., None])),
        "an own `train_step` with `compute_loss`": (lambda: compiled(OwnStep()),),
        "one without": (lambda: compiled(OtherStep()),),
        "an own `compute_loss`": (lambda: compiled(OwnLoss()),),
        "one that drops `sample_weight`": (lambda: compiled(LossWithoutWeights()),),
    }
    for name, (model, *fit) in given.items():
        yield Row(name, fit[0] if fit else arrays(), model)


# Keras' own classes


def classes(module: Any, base: type) -> list[type]:
    """Returns the subclasses of `base` in one of Keras' modules, by name."""
    found = vars(module).items()
    return [
        value
        for name, value in sorted(found)
        if isinstance(value, type) and issubclass(value, base) and value is not base
    ]


_NOT_TO_PASS = (K.CallbackList, keras.optimizers.LossScaleOptimizer)
_MADE = {
    K.BackupAndRestore: lambda at: K.BackupAndRestore(at / "backup"),
    K.CSVLogger: lambda at: K.CSVLogger(at / "log.csv"),
    K.LearningRateScheduler: lambda at: K.LearningRateScheduler(lambda epoch: 0.01),
    K.ModelCheckpoint: lambda at: K.ModelCheckpoint(at / "model.keras"),
    K.SwapEMAWeights: lambda at: K.SwapEMAWeights(),
    K.TensorBoard: lambda at: K.TensorBoard(at / "board"),
}


def _callbacks(at: pathlib.Path) -> Iterator[Row]:
    for cls in classes(K, K.Callback):
        if cls in (K.RemoteMonitor, K.OrbaxCheckpoint):  # need what may be missing
            continue

        def fit(cls=cls):
            return arrays(callbacks=[_MADE.get(cls, lambda at: cls())(at)])()

        ema = keras.optimizers.SGD(0.01, use_ema=cls is K.SwapEMAWeights)
        yield Row(f"`{cls.__name__}`", fit, lambda ema=ema: compiled(optimizer=ema))


def _optimizers() -> Iterator[Row]:
    for cls in classes(keras.optimizers, keras.optimizers.Optimizer):
        if cls.__name__ in ("LossScaleOptimizer", "MultiOptimizer", "OptimizerMap"):
            continue
        yield Row(f"`{cls.__name__}`", arrays(), lambda c=cls: compiled(optimizer=c()))


def _losses() -> Iterator[Row]:
    for name, trial in keras_losses.TRIALS.items():
        given = {"x": keras_losses.X, "y": trial.y, "batch_size": 4}
        model = functools.partial(trial.model, keras_osgd.Model)
        yield Row(f"`{name}`", functools.partial(dict, given), model)


def _metrics() -> Iterator[str]:
    for name, row in keras_metrics.ROWS.items():
        shown = keras_metrics.how_shown(row.make(), row.family)
        why = f": {row.reason}" if row.reason else ""
        yield f"| {name} | {shown}{why} |"


def sections(at: pathlib.Path) -> dict[str, Iterator[Row]]:
    """Returns the rows of each section; callbacks write into the folder `at`."""
    return {
        "Arguments of `fit`": _arguments(),
        "Arguments of `compile`": _options(),
        "Data": _data(),
        "Models": _models(),
        "Callbacks": _callbacks(at),
        "Optimizers": _optimizers(),
        "Losses": _losses(),
    }


# The table


@contextlib.contextmanager
def few_are_enough() -> Iterator[None]:
    """Lets the default sample the small data of the rows."""
    require = sampling.Auto.require_enough
    sampling.Auto.require_enough = lambda *args: None
    try:
        yield
    finally:
        sampling.Auto.require_enough = require


def outcome(row: Row) -> str:
    """Trains an epoch and returns how: "sampled", or why as in Keras."""
    keras.utils.set_random_seed(0)
    model = row.model()
    model.fit(**{"verbose": 0, **row.fit()})
    if model.sampling_run is not None:
        return SAMPLED
    reason = model.sampling.reasons[0]
    return f"as in Keras: {reason.partition('. ')[0].rstrip('.')}"


def table() -> str:
    """Returns the table in Markdown; tries every row."""
    lines: list[str] = []
    with few_are_enough(), tempfile.TemporaryDirectory() as folder:
        for title, rows in sections(pathlib.Path(folder)).items():
            lines += [f'\n| {title} | with `sampling="auto"` |', "|---|---|"]
            for row in rows:
                lines.append(f"| {row.name} | {outcome(row)} |")
                print(lines[-1], flush=True)
                keras.backend.clear_session()
    lines += ["\n| Metrics | shown during training |", "|---|---|", *_metrics()]
    return "\n".join(lines).lstrip("\n") + "\n"


def committed() -> str:
    """Returns the table as it stands in the page."""
    return PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    """Writes the table into its page."""
    before, _, after = PAGE.read_text("utf-8").partition(BEGIN)
    after = after.partition(END)[2]
    PAGE.write_text(before + BEGIN + table() + END + after, "utf-8")


if __name__ == "__main__":
    main()
