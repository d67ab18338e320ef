"""Each loss of `keras.losses` on data that suit it, and whether it is sampled.

Both the tests and the table of losses are made from `TRIALS`.
"""

from typing import NamedTuple

import keras
import numpy as np

L = keras.losses
N = 12
_rng = np.random.default_rng(0)
X = _rng.normal(size=(N, 4)).astype("float32")
_LABELS = np.arange(N) % 3
_ONE_HOT = np.eye(3, dtype="float32")[_LABELS]
_REALS = _rng.normal(size=(N, 2)).astype("float32")
_POSITIVE = np.exp(_REALS)
_SHARES = _POSITIVE / _POSITIVE.sum(axis=1, keepdims=True)
_BITS = (_REALS > 0).astype("float32")
_SIGNS = 2 * _BITS - 1
_MASKS = (_rng.normal(size=(N, 3, 2, 1)) > 0).astype("float32")
_WORDS = _rng.integers(1, 4, (N, 2))  # 0 is for padding

ONE_NUMBER = "one value per example; {} got shape ().*Use `keras.losses.{}(axis="
OF_THE_BATCH = "must not depend on the other examples of its batch"


class Trial(NamedTuple):
    """A loss, and a model's outputs and targets for it.

    Attributes:
        loss: as given to `compile`.
        y: `[N, ...]`.
        shape: of the outputs for an example.
        activation: of the outputs.
        refused: part of the reason to refuse it; `None` where it is sampled.
    """

    loss: keras.losses.Loss
    y: np.ndarray
    shape: tuple = (2,)
    activation: str | None = None
    refused: str | None = None

    def model(self, of=keras.Model, **options) -> keras.Model:
        """Returns a compiled linear model with such outputs."""
        keras.utils.set_random_seed(0)
        inputs = keras.Input((4,))
        outputs = keras.layers.Dense(int(np.prod(self.shape)))(inputs)
        outputs = keras.layers.Reshape(self.shape)(outputs)
        if self.activation == "unit":
            outputs = keras.layers.UnitNormalization()(outputs)
        elif self.activation:
            outputs = keras.layers.Activation(self.activation)(outputs)
        model = of(inputs, outputs)
        model.compile("sgd", self.loss, **options)
        return model


_CLASSES, _IMAGE = ((3,), "softmax"), ((3, 2, 1), "sigmoid")
_SCALAR = ("dice", "Dice"), ("tversky", "Tversky")
_DICE, _TVERSKY = (ONE_NUMBER.format(*names) for names in _SCALAR)
TRIALS = {
    "BinaryCrossentropy()": Trial(L.BinaryCrossentropy(), _BITS, (2,), "sigmoid"),
    "BinaryFocalCrossentropy()": Trial(
        L.BinaryFocalCrossentropy(), _BITS, (2,), "sigmoid"
    ),
    "CTC()": Trial(L.CTC(), _WORDS, (5, 4)),
    "CategoricalCrossentropy()": Trial(
        L.CategoricalCrossentropy(label_smoothing=0.1), _ONE_HOT, *_CLASSES
    ),
    "CategoricalFocalCrossentropy()": Trial(
        L.CategoricalFocalCrossentropy(), _ONE_HOT, *_CLASSES
    ),
    "CategoricalGeneralizedCrossEntropy()": Trial(
        L.CategoricalGeneralizedCrossEntropy(), _LABELS, *_CLASSES
    ),
    "CategoricalHinge()": Trial(L.CategoricalHinge(), _ONE_HOT, (3,)),
    "Circle()": Trial(L.Circle(gamma=2), _LABELS, (3,), "unit", OF_THE_BATCH),
    "CosineSimilarity()": Trial(L.CosineSimilarity(), _REALS),
    "Dice()": Trial(L.Dice(), _MASKS, *_IMAGE, _DICE),
    "Dice(axis=(1, 2, 3))": Trial(L.Dice(axis=(1, 2, 3)), _MASKS, *_IMAGE),
    "Hinge()": Trial(L.Hinge(), _SIGNS),
    "Huber()": Trial(L.Huber(), _REALS),
    "KLDivergence()": Trial(L.KLDivergence(), _SHARES, (2,), "softmax"),
    "LogCosh()": Trial(L.LogCosh(), _REALS),
    "MeanAbsoluteError()": Trial(L.MeanAbsoluteError(), _REALS),
    "MeanAbsolutePercentageError()": Trial(L.MeanAbsolutePercentageError(), _POSITIVE),
    "MeanSquaredError()": Trial(L.MeanSquaredError(), _REALS),
    "MeanSquaredLogarithmicError()": Trial(
        L.MeanSquaredLogarithmicError(), _POSITIVE, (2,), "softplus"
    ),
    "Poisson()": Trial(L.Poisson(), np.round(_POSITIVE), (2,), "softplus"),
    "SparseCategoricalCrossentropy()": Trial(
        L.SparseCategoricalCrossentropy(), _LABELS, *_CLASSES
    ),
    "SparseCategoricalCrossentropy(ignore_class=0)": Trial(
        L.SparseCategoricalCrossentropy(ignore_class=0), _LABELS, *_CLASSES
    ),
    "SquaredHinge()": Trial(L.SquaredHinge(), _SIGNS),
    "Tversky()": Trial(L.Tversky(), _MASKS, *_IMAGE, _TVERSKY),
    "Tversky(axis=(1, 2, 3))": Trial(L.Tversky(axis=(1, 2, 3)), _MASKS, *_IMAGE),
}
