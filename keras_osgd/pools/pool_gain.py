"""The gain ratio of draws from pools (equation 4, with the pool's own variance)."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from keras_osgd.base.placement import step_variable
from keras_osgd.gain.gain_ratio import MAX_GAIN, move

__all__ = ["PoolGain", "pool_moments", "pool_probability", "pool_ratio"]


def pool_moments(
    weights: tf.Tensor,
    squared_norms: tf.Tensor,
    squared_gradient: tf.Tensor,
    ratio: float,
    floor: float,
    pooled: tf.Tensor,
) -> tf.Tensor:
    """Returns one step's estimates of A_U, A_P and f, from which `pool_ratio` follows.

    A_U = E v^2 and A_P = E (1/B^2) sum_pool v^2/p are the second moments with minibatch
    size 1 of uniform draws and of draws from a pool. f = (1 - 1/m) ||grad F||^2 is the
    rest of E||g||^2. Expanding ||g||^2 (equation 2) for m draws from a pool, which is
    itself B draws from the stream, gives

        E||g_P||^2 = A_P/m + (1 - 1/m) A_U/B + (1 - 1/B) f,
        E||g_U||^2 = A_U/m + f,

    the first because E||grad F_pool||^2 = A_U/B + (1 - 1/B) ||grad F||^2, by (2) again.
    A step without a pool estimates A_P with its own batch as the pool. At floor 0 this
    is too high by var(v) (1/m - 1/B), so the promised gain is rather too low.

    Args:
        weights: `[m]`, > 0. Importance weights of the draws; 1 without a pool.
        squared_norms: `[m]`, >= 0, squared gradient-norm units.
        squared_gradient: `[]`, same units. ||g||^2 of the step's weighted gradient.
        ratio: B/m.
        floor: share of the draws spread evenly over the pool.
        pooled: `[]`, whether the step drew from a pool.

    Returns:
        `[3]`, in the units of `squared_norms`.

    Example:
        >>> ones, squares = tf.ones(2), tf.constant([0.0, 4.0])
        >>> pool_moments(ones, squares, 2.0, 4.0, 0.0, tf.constant(False)).numpy()
        array([2., 1., 1.], dtype=float32)
    """
    m = tf.cast(tf.size(weights), weights.dtype)
    own = pool_probability(tf.sqrt(squared_norms), floor)
    promised = tf.reduce_mean(tf.math.divide_no_nan(squared_norms, m * own))
    uniform = tf.reduce_mean(weights * squared_norms)
    drawn = tf.reduce_mean(tf.square(weights) * squared_norms)
    share = tf.where(pooled, 1.0 / (ratio * m), 0.0)
    rest = squared_gradient - drawn / m - (1.0 - 1.0 / m) * share * uniform
    return tf.stack(
        [uniform, tf.where(pooled, drawn, promised), rest / (1.0 - share)], axis=0
    )


def pool_ratio(
    averages: tf.Tensor, batch_size: tf.Tensor, ratio: float | tf.Tensor
) -> tf.Tensor:
    """Returns r = E||g_U||^2 / E||g_P||^2 (see `pool_moments`).

    Args:
        averages: `[3]`, averages of `pool_moments`, up to a common factor.
        batch_size: `[]`, m.
        ratio: B/m.

    Returns:
        `[]`: r in [1/MAX_GAIN, MAX_GAIN]; 1 where nothing has been observed.

    Example:
        >>> averages = tf.constant([4.0, 1.0, 0.5])  # (4/2 + 1/2)/(1/2 + 2/8 + 7/16)
        >>> round(float(pool_ratio(averages, 2.0, 4.0)), 3)
        2.105
    """
    uniform, drawn, rest = tf.unstack(averages)
    rest = tf.maximum(rest, 0.0)
    share = 1.0 / (ratio * batch_size)
    of_uniform = uniform / batch_size + rest
    of_pools = drawn / batch_size + (1.0 - share) * rest
    of_pools += (1.0 - 1.0 / batch_size) * share * uniform
    gain = tf.clip_by_value(of_uniform / of_pools, 1 / MAX_GAIN, MAX_GAIN)
    return tf.where(of_pools > 0, gain, tf.ones_like(gain))


def pool_probability(scores: tf.Tensor, floor: float) -> tf.Tensor:
    """Returns p within a pool: proportional to the scores, with a floor.

    An example whose score is not finite is never drawn, since it would spoil the step;
    p is uniform where no score is above 0, or none is finite.

    Args:
        scores: `[B]`, >= 0 or not finite.
        floor: share of the draws spread evenly over all that can be drawn.

    Returns:
        `[B]`, >= 0, sums to 1.

    Example:
        >>> pool_probability(tf.constant([3.0, 1.0, float("nan")]), 0.5).numpy()
        array([0.625, 0.375, 0.   ], dtype=float32)
    """
    fine = tf.math.is_finite(scores)
    scores = tf.where(fine, scores, tf.zeros_like(scores))
    tiny = np.finfo(scores.dtype.as_numpy_dtype).tiny
    scores /= tf.maximum(tf.reduce_max(scores), tiny)  # no sum may overflow
    usable = tf.cast(fine | ~tf.reduce_any(fine), scores.dtype)
    alike = usable / tf.reduce_sum(usable)
    total = tf.reduce_sum(scores)
    mixed = (1.0 - floor) * tf.math.divide_no_nan(scores, total) + floor * alike
    return tf.where(total > 0, mixed, alike)


class PoolGain:
    """Moving averages of the moments; a `tf.Variable`, updated inside the step.

    Args:
        ratio: B/m.
        floor: as in `pool_moments`.

    Example:
        >>> float(PoolGain(4, 0.05).current(64.0))
        1.0
    """

    def __init__(self, ratio: int, floor: float) -> None:
        """Starts with nothing observed: r = 1."""
        self._ratio, self._floor = float(ratio), floor
        self.averages = step_variable(np.zeros(3, np.float32))
        self.observed = step_variable(0, tf.int64)

    def current(self, batch_size: tf.Tensor) -> tf.Tensor:
        """Returns r from the steps before this one, so independent of its batch."""
        return pool_ratio(self.averages.read_value(), batch_size, self._ratio)

    def moments(
        self,
        weights: tf.Tensor,
        candidate_weights: tf.Tensor,
        squared_norms: tf.Tensor,
        squared_gradient: tf.Tensor,
    ) -> tf.Tensor:
        """Returns one step's `pool_moments`.

        Args:
            weights: as in `pool_moments`.
            candidate_weights: equal to `weights` where the step drew from a pool.
            squared_norms: as in `pool_moments`.
            squared_gradient: as in `pool_moments`.
        """
        pooled = tf.reduce_all(weights == candidate_weights)
        given = (weights, squared_norms, squared_gradient, self._ratio, self._floor)
        return pool_moments(*given, pooled)

    def update(self, observed: tf.Tensor, counts: tf.Tensor) -> None:
        """Adds one step's `moments`, if it `counts` and they are finite."""
        moved = move(self.averages, observed, counts)
        self.observed.assign_add(tf.cast(moved, tf.int64))
