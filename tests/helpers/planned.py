"""p of equation (6) as a plan makes it, of means and variances."""

import numpy as np
import tensorflow as tf

from keras_osgd.scores import distributions
from keras_osgd.scores.uncertainty_set import UncertaintySet

# <c, s_i> is the first feature of an example, h <d, s_i> the second.
_KNOWN = UncertaintySet(np.array([1.0, 0.0]), np.array([0.0, 1.0]), 1.0, 0, True)


def robust(mean: np.ndarray, variance: np.ndarray) -> tf.Tensor:
    """Returns `[n]`, p ~ mean_i + k variance_i, k = sqrt(n / sum_i variance_i).

    Args:
        mean: `[n]`, >= 0, of the size that scores have: float32's.
        variance: `[n]`, likewise.
    """
    features = np.stack([mean, variance], axis=1).astype(np.float64)
    worst = distributions.worst_norm(_KNOWN, features.mean(axis=0))
    return distributions.oracle(tf.constant(features @ worst))
