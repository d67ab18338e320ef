"""RAIS with one part taken away, where no argument of `RAIS` does it."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import numpy as np
import tensorflow as tf

from keras_osgd import distributions
from keras_osgd.observations import Window
from keras_osgd.sampling import RAIS
from keras_osgd.uncertainty_set import UncertaintySet


@contextlib.contextmanager
def without_robustness() -> Iterator[None]:
    """Draws by the predicted norms <c, s> alone, as if these were certain."""

    def predicted(mean: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
        del variance
        return distributions.oracle(mean)

    with mock.patch.object(distributions, "robust", predicted):
        yield


@contextlib.contextmanager
def without_start() -> Iterator[None]:
    """Draws by scores from the second block on, without a uniform first pass."""
    with mock.patch.object(RAIS, "uniform_draws", lambda self, n: 0):
        yield


@contextlib.contextmanager
def point_estimate() -> Iterator[None]:
    """Draws by the norm last seen: needs the features "constant" and "last"."""

    def last_seen(window: Window, start: object, mean_features: object) -> object:
        del window, start, mean_features
        last, constant = np.array([0.0, 1.0]), np.array([1.0, 0.0])
        return UncertaintySet(last, constant, 0.0, 0, True)

    with mock.patch.object(Window, "fit", last_seen), without_robustness():
        yield
