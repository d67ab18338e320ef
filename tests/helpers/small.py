"""A tiny model and its data, for the tests that go through `fit`."""

import contextlib
import warnings
from collections.abc import Callable

import keras
import numpy as np

import keras_osgd
from keras_osgd.sampling import RAIS

_rng = np.random.default_rng(0)
X = _rng.normal(size=(60, 4)).astype("float32")
Y = _rng.integers(0, 3, 60)
BATCH_SIZE = 4  # 15 steps an epoch; a block of draws has 50, the first is uniform
EPOCHS = 6  # until well into the second block


def crossentropy(**options) -> keras.losses.Loss:
    """Returns a loss for labels 0, 1, 2 and the logits of `model`."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)


def model(loss=None, units: int = 3, optimizer="sgd", **options):
    """Returns a compiled linear model; the same weights and draws each time."""
    keras.utils.set_random_seed(0)
    options = {"sampling": RAIS(seed=0), **options}
    made = keras_osgd.Sequential([keras.Input((4,)), keras.layers.Dense(units)])
    made.compile(optimizer, loss or crossentropy(), **options)
    return made


def fit(trained, x=X, y=Y, **options) -> keras.callbacks.History:
    """Trains one silent epoch, unless said otherwise."""
    return trained.fit(x, y, **{"batch_size": BATCH_SIZE, "verbose": 0, **options})


def warned(function: Callable, *args, **kwargs) -> list[str]:
    """Returns the warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function(*args, **kwargs)
    mine = [w for w in caught if not issubclass(w.category, DeprecationWarning)]
    return [str(w.message) for w in mine]


def flat(trained) -> np.ndarray:
    """Returns all weights as one vector."""
    return np.concatenate([w.ravel() for w in trained.get_weights()])


@contextlib.contextmanager
def precision(floatx, policy=None):
    """Sets the float type of Keras and its policy, until the end of the block."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    try:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy or floatx)  # one that was set hides floatx
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])
