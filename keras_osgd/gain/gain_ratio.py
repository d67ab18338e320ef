"""The gain ratio r, estimated from the drawn examples (equations 2 and 4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_osgd.base.placement import step_variable

__all__ = ["MAX_GAIN", "GainRatio", "gradient_ess", "moments", "move", "ratio"]

MAX_GAIN = 8.0
_DECAY = 0.98


def moments(
    weights: tf.Tensor,
    candidate_weights: tf.Tensor,
    squared_norms: tf.Tensor,
    squared_gradient: tf.Tensor,
) -> tf.Tensor:
    """Returns one batch's estimates of the four moments behind the gain ratio.

    With w = 1/(n p) of the draw, w' = 1/(n p') of the candidate and v the norms:
    A_U = mean(w v^2), A = mean(w w v^2) and A' = mean(w w' v^2) estimate
    (1/n) sum v^2, (1/n^2) sum v^2/p and (1/n^2) sum v^2/p', the second moments of the
    estimator with minibatch size 1 under uniform p, the p drawn with, and p'.

    Args:
        weights: `[m]`, > 0. Importance weights of the draws.
        candidate_weights: `[m]`, > 0. Weights the candidate p' would give; equal to
            `weights` where the draws follow the candidate.
        squared_norms: `[m]`, >= 0, squared gradient-norm units.
        squared_gradient: `[]`, same units. ||g||^2 of the batch's weighted gradient.

    Returns:
        `[4]`: A_U, A, A' and ||g||^2.

    Example:
        >>> weights = tf.constant([0.5, 2.0])
        >>> moments(weights, tf.ones(2), tf.constant([8.0, 1.0]), 1.5).numpy()
        array([3. , 3. , 3. , 1.5], dtype=float32)
    """
    size = tf.cast(tf.size(weights), weights.dtype)
    uniform = weights * squared_norms
    columns = tf.stack([tf.ones_like(weights), weights, candidate_weights], axis=1)
    second = tf.linalg.matvec(columns, uniform, transpose_a=True) / size
    return tf.concat([second, [squared_gradient]], axis=0)


def ratio(averages: tf.Tensor, batch_size: tf.Tensor) -> tf.Tensor:
    """Returns the gain ratio r = E||g_U||^2 / E||g_R||^2 of the candidate (equation 4).

    E||g||^2 = A/m + (1 - 1/m) ||grad F||^2 for every p, so that the second moments of
    two p differ by the difference of their A, over m. Only ratios of averages enter:
    a common factor, such as the bias of a moving average that started at 0, cancels.

    Args:
        averages: `[4]`, averages of `moments`.
        batch_size: `[]`, m.

    Returns:
        `[]`: r, in [1/MAX_GAIN, MAX_GAIN]; at most A_U/A' where it is above 1; 1 where
        nothing has been observed.

    Example:
        >>> float(ratio(tf.constant([4.0, 2.0, 2.0, 4.0]), 2.0))  # 1 + (4 - 2)/(2 * 4)
        1.25
    """
    second_uniform, second, second_candidate, squared_gradient = tf.unstack(averages)
    uniform = squared_gradient + (second_uniform - second) / batch_size
    candidate = squared_gradient + (second_candidate - second) / batch_size
    bound = tf.math.divide_no_nan(second_uniform, second_candidate)
    gain = tf.where(candidate > 0, uniform / candidate, bound)
    most = tf.clip_by_value(bound, 1, MAX_GAIN)
    gain = tf.maximum(tf.minimum(gain, most), 1 / MAX_GAIN)
    return tf.where(second_candidate > 0, gain, tf.ones_like(gain))


def gradient_ess(weights: np.ndarray, norms: np.ndarray) -> float:
    """Returns the gradient's effective sample size over m, (sum w v)^2/(m sum (w v)^2).

    1 for exact O-SGD, and where no norm is above 0. The ESS of the weights alone is a
    bad alarm: it was 0.26 while sampling clearly helped.

    Args:
        weights: `[m]`, > 0. Importance weights of the draws.
        norms: `[m]`, >= 0, gradient-norm units.

    Example:
        >>> gradient_ess(np.array([0.5, 2.0]), np.array([4.0, 1.0]))
        1.0
    """
    products = weights * norms
    squared = (products**2).sum()
    return (
        float(products.sum() ** 2 / (len(products) * squared)) if squared > 0 else 1.0
    )


def move(averages: tf.Variable, observed: tf.Tensor, counts: Any = True) -> tf.Tensor:
    """Moves averages towards one batch's moments, if its step counts.

    Moments that are not finite never count.

    Args:
        averages: `[k]`.
        observed: `[k]`, of the batch.
        counts: `[]`, whether the step counts.

    Returns:
        `[]`, whether the averages were moved.

    Example:
        >>> averages = tf.Variable([0.0])
        >>> bool(move(averages, tf.constant([5.0]))), averages.numpy().round(3)
        (True, array([0.1], dtype=float32))
    """
    counts &= tf.reduce_all(tf.math.is_finite(observed))
    change = (1 - _DECAY) * (observed - averages)
    averages.assign_add(tf.where(counts, change, tf.zeros_like(change)))
    return counts


class GainRatio:
    """Moving averages of the moments; a `tf.Variable`, updated inside the step.

    Example:
        >>> gain = GainRatio()
        >>> float(gain.current(64.0))
        1.0
    """

    moments = staticmethod(moments)

    def __init__(self) -> None:
        """Starts with nothing observed: r = 1."""
        self.averages = step_variable(np.zeros(4, np.float32))

    def current(self, batch_size: tf.Tensor) -> tf.Tensor:
        """Returns r from the steps before this one, so independent of its batch."""
        return ratio(self.averages.read_value(), batch_size)

    def update(self, observed: tf.Tensor, counts: Any = True) -> None:
        """Adds one batch's `moments`, if its step `counts` and they are finite."""
        move(self.averages, observed, counts)
