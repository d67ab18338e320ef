"""Every metric of `keras.metrics`, with data that it takes, and how it is shown."""

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

import keras
import numpy as np
from keras import layers as L
from keras import metrics as M
from keras import ops

import keras_osgd
from keras_osgd.data import training_data
from keras_osgd.sampling import RAIS
from keras_osgd.step import metrics

N, BATCH_SIZE = 60, 8
WEIGHTED, UNWEIGHTED, AS_IN_KERAS = "weighted", "unweighted, one warning", "as in Keras"
BATCH = "its value is of the whole batch: no example has one of its own"
OWN = "Keras takes none in `compile`; a `train_step` of yours gives it weights or not"
_rng = np.random.default_rng(0)


class Family(NamedTuple):
    """Data, and a model for it.

    Attributes:
        x: `[N, ...]`.
        y: `[N, ...]`.
        loss: of `compile`.
        head: makes the model's layer.
    """

    x: np.ndarray
    y: np.ndarray
    loss: str
    head: Callable[[], keras.Layer]


def _x(*shape: int) -> np.ndarray:
    """Returns inputs of which a few are much larger than the others."""
    size = np.exp(_rng.normal(size=(N, *[1] * len(shape))))
    return (size * _rng.normal(size=(N, *shape))).astype("float32")


def _families() -> dict[str, Family]:
    x, pixels = _x(4), _x(3, 3, 2)
    noise = _rng.normal(size=(N, 3))
    labels = (x[:, :3] + noise).argmax(axis=1)
    of_pixels = (pixels[..., 0] + _rng.normal(size=pixels.shape[:3]) > 0).astype(int)
    sparse, binary = "sparse_categorical_crossentropy", "binary_crossentropy"
    one_hot = np.eye(3, dtype="float32")[labels]
    return {
        "binary": Family(x, labels[:, None] % 2, binary, lambda: L.Dense(1, "sigmoid")),
        "labels": Family(x, labels, sparse, lambda: L.Dense(3, "softmax")),
        "one-hot": Family(
            x, one_hot, "categorical_crossentropy", lambda: L.Dense(3, "softmax")
        ),
        "numbers": Family(
            x,
            0.5 + np.abs(x[:, :3] + noise).astype("float32"),
            "mse",
            lambda: L.Dense(3, "softplus"),
        ),
        "masks": Family(pixels, of_pixels, sparse, lambda: L.Dense(2, "softmax")),
        "one-hot masks": Family(
            pixels,
            np.eye(2, dtype="float32")[of_pixels],
            "categorical_crossentropy",
            lambda: L.Dense(2, "softmax"),
        ),
        "binary masks": Family(
            pixels, of_pixels[..., None], binary, lambda: L.Dense(1, "sigmoid")
        ),
    }


FAMILIES = _families()


class Row(NamedTuple):
    """A metric, and how it is to be shown.

    Attributes:
        family: name of the data that it takes.
        make: makes it, or a function that is one.
        how: `WEIGHTED`, `UNWEIGHTED` or `AS_IN_KERAS`.
        reason: for what is not weighted.
    """

    family: str
    make: Callable[[], Callable]
    how: str = WEIGHTED
    reason: str = ""


def _of(family: str, *classes: type, **options: object) -> dict[str, Row]:
    return {c.__name__: Row(family, functools.partial(c, **options)) for c in classes}


CLASSES: dict[str, Row] = {
    **_of("binary", M.AUC, M.TruePositives, M.TrueNegatives, M.FalsePositives),
    **_of("binary", M.FalseNegatives, M.BinaryAccuracy, M.BinaryCrossentropy),
    **_of("binary", M.Hinge, M.SquaredHinge),
    **_of("binary", M.PrecisionAtRecall, M.RecallAtPrecision, recall=0.5)
    | _of("binary", M.RecallAtPrecision, precision=0.5),
    **_of("binary", M.SensitivityAtSpecificity, specificity=0.5),
    **_of("binary", M.SpecificityAtSensitivity, sensitivity=0.5),
    **_of("labels", M.SparseCategoricalAccuracy, M.SparseCategoricalCrossentropy),
    **_of("labels", M.SparseTopKCategoricalAccuracy, k=2),
    **_of("one-hot", M.CategoricalAccuracy, M.CategoricalCrossentropy),
    **_of("one-hot", M.CategoricalHinge, M.KLDivergence, M.F1Score, M.FBetaScore),
    **_of("one-hot", M.TopKCategoricalAccuracy, k=2),
    **_of("one-hot", M.OneHotIoU, num_classes=3, target_class_ids=[0, 2]),
    **_of("numbers", M.MeanSquaredError, M.RootMeanSquaredError, M.MeanAbsoluteError),
    **_of("numbers", M.MeanAbsolutePercentageError, M.MeanSquaredLogarithmicError),
    **_of("numbers", M.CosineSimilarity, M.LogCoshError, M.Poisson, M.R2Score),
    **_of("numbers", M.PearsonCorrelation, M.ConcordanceCorrelation, M.Accuracy),
    **_of("numbers", M.MeanMetricWrapper, fn=keras.losses.huber, name="wrapped"),
    **_of("masks", M.MeanIoU, num_classes=2, sparse_y_pred=False),
    **_of("masks", M.IoU, num_classes=2, target_class_ids=[1], sparse_y_pred=False),
    **_of("one-hot masks", M.OneHotMeanIoU, num_classes=2),
    **_of("binary masks", M.BinaryIoU, M.Precision, M.Recall),
    **{
        c.__name__: Row("numbers", c, AS_IN_KERAS, OWN)
        for c in (M.Metric, M.Mean, M.Sum)
    },
}


def scalar(y, y_pred):
    return ops.sqrt(ops.mean(ops.square(y - y_pred)))


def of_columns(y, y_pred):
    return ops.max(ops.abs(y - y_pred), axis=0)


def of_examples(y, y_pred):
    return ops.mean(ops.abs(y - y_pred), axis=-1)


def in_a_column(y, y_pred):
    return ops.mean(ops.abs(y - y_pred), axis=-1, keepdims=True)


def of_pixels(y, y_pred):
    return ops.cast(ops.equal(y, ops.argmax(y_pred, axis=-1)), "float32")


def normalized(y, y_pred):
    """One value for each example, in which all others take part."""
    return ops.softmax(ops.mean(ops.abs(y - y_pred), axis=-1))


class Several(M.Metric):
    """A mean and a count in one, weighted unless told to ignore weights."""

    def __init__(self, ignores=False, **options):
        super().__init__(**options)
        self.ignores = ignores
        self.error, self.close = M.MeanAbsoluteError(), M.Sum()

    def update_state(self, y, y_pred, sample_weight=None):
        sample_weight = None if self.ignores else sample_weight
        self.error.update_state(y, y_pred, sample_weight)
        self.close.update_state(of_examples(y, y_pred) < 0.5, sample_weight)

    def reset_state(self):
        self.error.reset_state()
        self.close.reset_state()

    def result(self):
        of = "ignoring_" if self.ignores else ""
        return {of + "error": self.error.result(), of + "close": self.close.result()}


class Ignoring(M.Sum):
    """Counts examples that are close, whatever their weights."""

    def update_state(self, y, y_pred, sample_weight=None):
        super().update_state(of_examples(y, y_pred) < 0.5)


# Other options, shapes and outputs; the keys are what a table shows.
OTHERS: dict[str, Row] = {
    "PearsonCorrelation(axis=0)": Row(
        "numbers", lambda: M.PearsonCorrelation(axis=0), UNWEIGHTED, BATCH
    ),
    "ConcordanceCorrelation(axis=0)": Row(
        "numbers", lambda: M.ConcordanceCorrelation(axis=0), UNWEIGHTED, BATCH
    ),
    "CosineSimilarity(axis=0)": Row(
        "numbers", lambda: M.CosineSimilarity(axis=0), UNWEIGHTED, BATCH
    ),
    "R2Score(class_aggregation=None)": Row(
        "numbers", lambda: M.R2Score(class_aggregation=None)
    ),
    "AUC(multi_label=True)": Row("one-hot", lambda: M.AUC(multi_label=True)),
    "OneHotMeanIoU(dtype='float32')": Row(
        "one-hot masks", lambda: M.OneHotMeanIoU(2, dtype="float32")
    ),
    "AUC of masks": Row("binary masks", lambda: M.AUC(name="auc")),
    "accuracy of masks": Row("masks", lambda: "accuracy"),
    "'accuracy'": Row("labels", lambda: "accuracy"),
    "'mse'": Row("numbers", lambda: "mse"),
    "'AUC'": Row("binary", lambda: "AUC"),
    "function, []": Row("numbers", lambda: scalar, UNWEIGHTED, BATCH),
    "function, [k]": Row("numbers", lambda: of_columns, UNWEIGHTED, BATCH),
    "function, [m]": Row("numbers", lambda: of_examples),
    "function, [m, 1]": Row("numbers", lambda: in_a_column),
    "function, [m, H, W]": Row("masks", lambda: of_pixels),
    "function, [m], mixed": Row("numbers", lambda: normalized, UNWEIGHTED, BATCH),
    "several results": Row("numbers", lambda: Several(name="several")),
    "weights ignored": Row(
        "numbers",
        lambda: Several(True, name="ignoring"),
        UNWEIGHTED,
        "it does not use `sample_weight`",
    ),
}
ROWS = {**CLASSES, **OTHERS}


def classes_of_keras() -> set[str]:
    """Returns the names of all metric classes that Keras has."""
    found = vars(M).items()
    return {n for n, c in found if inspect.isclass(c) and issubclass(c, M.Metric)}


def model_for(family: str, given: Iterable[Callable | str], **options):
    """Returns a compiled model at a rate of 0, always with the same weights."""
    keras.utils.set_random_seed(0)
    x, _, loss, head = FAMILIES[family]
    model = keras_osgd.Sequential([keras.Input(x.shape[1:]), head()])
    options = {"sampling": RAIS(seed=0, floor=0.2, retreat_below=0.0), **options}
    model.compile(keras.optimizers.SGD(0.0), loss, metrics=list(given), **options)
    return model


def how_shown(metric: Callable | str, family: str | None = None) -> str:
    """Returns how training by importance shows a metric, found by trying it.

    Args:
        metric: as in `compile`.
        family: key of `FAMILIES`; may be left out for Keras' own classes.

    Returns:
        `WEIGHTED`, `UNWEIGHTED` or `AS_IN_KERAS`: Keras cannot update it in `compile`.
    """
    family = family or CLASSES[type(metric).__name__].family
    x, y, *_ = FAMILIES[family]
    model = model_for(family, [metric])
    try:
        model.compute_metrics(x, y, model(x))  # Keras' own, outside of a step
    except (TypeError, NotImplementedError):
        return AS_IN_KERAS
    data = training_data.prepare(x, y, None, None, BATCH_SIZE, None)
    with warnings.catch_warnings(action="ignore"):
        [shown] = metrics.try_out(model, data)
    return WEIGHTED if shown.weighted else UNWEIGHTED
