"""The networks that `gpu.py` trains, and random data for them."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from keras import layers

import keras_osgd
from keras_osgd.sampling import RAIS

METHODS = ("plain", "rais")
CLASSES = 10


class Network(NamedTuple):
    """A network and the shape of one example.

    Attributes:
        shape: of x; of whole numbers below `words` if that is not 0.
        body: returns the last hidden layer's output, given the input and the width.
        width: of the first layers.
        words: size of the vocabulary.
    """

    shape: tuple[int, ...]
    body: Callable
    width: int
    words: int = 0


def _mlp(x, width):
    x = layers.Flatten()(x)
    return layers.Dense(width, "relu")(layers.Dense(width, "relu")(x))


def _cnn(x, width):
    for filters in (width, 2 * width):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(x)
    return layers.Dense(4 * width, "relu")(layers.Flatten()(x))


def _residual(x, width):
    x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
    for stage in range(3 if width > 4 else 2):
        for block in range(3 if width > 4 else 1):
            filters, stride = width * 2**stage, 1 + (stage > 0 and block == 0)
            short = x
            if filters != x.shape[-1]:
                short = layers.Conv2D(filters, 1, stride, use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
            x = layers.Conv2D(filters, 3, stride, "same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = layers.add([x, short])
    return layers.GlobalAveragePooling2D()(layers.ReLU()(x))


def _transformer(x, width):
    words, length = NETWORKS["transformer"].words, x.shape[1]
    x = layers.Embedding(words, width)(x)
    x = x + layers.Embedding(length, width)(np.arange(length)[np.newaxis])
    for _ in range(2 if width > 4 else 1):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, max(1, width // 4))(y, y)
        y = layers.Dense(4 * width, "gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dense(width)(y)
    return layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))


NETWORKS = {
    "mlp": Network((784,), _mlp, 256),
    "cnn": Network((28, 28, 1), _cnn, 32),
    "residual": Network((32, 32, 3), _residual, 16),
    "transformer": Network((64,), _transformer, 128, words=1000),
}


def examples(name: str, n: int, tiny: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y of n random examples of a network of `NETWORKS`."""
    rng = np.random.default_rng(0)
    shape = (n, *_shape(NETWORKS[name], tiny))
    if NETWORKS[name].words:
        x = rng.integers(0, NETWORKS[name].words, shape)
    else:
        x = rng.standard_normal(shape, np.float32)
    return x.astype(np.int32 if NETWORKS[name].words else np.float32), rng.integers(
        0, CLASSES, n
    )


def _shape(network: Network, tiny: bool) -> tuple[int, ...]:
    """Returns the shape of x; a smoke run's has no axis above 8."""
    return tuple(min(8, size) for size in network.shape) if tiny else network.shape


def compiled(name: str, method: str, jit_compile: bool, tiny: bool) -> keras.Model:
    """Returns an untrained network.

    Args:
        name: of `NETWORKS`.
        method: of `METHODS`. RAIS leaves the learning rate as it is, so that both
            methods make the same number of steps.
        jit_compile: whether steps are compiled by XLA.
        tiny: whether it is for a smoke run.
    """
    keras.utils.set_random_seed(0)
    network = NETWORKS[name]
    dtype = "int32" if network.words else "float32"
    x = keras.Input(_shape(network, tiny), dtype=dtype)
    output = layers.Dense(CLASSES)(network.body(x, 4 if tiny else network.width))
    base, options = keras.Model, {}
    if method == "rais":
        base = keras_osgd.Model
        options = {"sampling": RAIS(adapt_learning_rate=False)}
    model = base(x, output)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=jit_compile,
        **options,
    )
    return model
