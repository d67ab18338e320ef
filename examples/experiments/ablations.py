"""RAIS with one part taken away or replaced, where no argument of `RAIS` does it."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import numpy as np
import tensorflow as tf

from keras_osgd.draws.observations import Window
from keras_osgd.gain import gain_ratio
from keras_osgd.sampling import RAIS
from keras_osgd.scores import distributions as probabilities
from keras_osgd.scores.uncertainty_set import UncertaintySet


@contextlib.contextmanager
def without_robustness() -> Iterator[None]:
    """Draws by the predicted norms <c, s> alone, as if these were certain."""

    def predicted(fitted: UncertaintySet, mean_features: np.ndarray) -> np.ndarray:
        del mean_features
        return fitted.mean

    with mock.patch.object(probabilities, "worst_norm", predicted):
        yield


@contextlib.contextmanager
def without_start() -> Iterator[None]:
    """Draws by scores from the second block on, without a uniform first pass."""
    with mock.patch.object(RAIS, "uniform_draws", lambda self, n: 0):
        yield


@contextlib.contextmanager
def early_start() -> Iterator[None]:
    """Draws by scores once a fifth of the first pass is over."""
    with mock.patch.object(RAIS, "uniform_draws", lambda self, n: n // 5):
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


@contextlib.contextmanager
def variance_clock() -> Iterator[None]:
    """Takes the ratio of variances for the gain ratio, not that of second moments.

    tr Cov(g) = (A - ||grad F||^2) / m, with ||grad F||^2 from E||g||^2 by (2). Where
    the batch is large, the mean gradient is most of the second moment, and r near 1.
    """

    def ratio(averages: tf.Tensor, batch_size: tf.Tensor) -> tf.Tensor:
        second_uniform, second, candidate, squared_gradient = tf.unstack(averages)
        mean = (batch_size * squared_gradient - second) / (batch_size - 1)
        mean = tf.clip_by_value(mean, 0.0, 0.9 * tf.minimum(second_uniform, candidate))
        found = tf.math.divide_no_nan(second_uniform - mean, candidate - mean)
        bounded = tf.clip_by_value(found, 1 / gain_ratio.MAX_GAIN, gain_ratio.MAX_GAIN)
        return tf.where(candidate > 0, bounded, 1.0)

    with mock.patch.object(gain_ratio, "ratio", ratio):
        yield
