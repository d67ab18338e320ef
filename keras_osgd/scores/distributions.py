"""Sampling distributions: how often each training example should be drawn.

The functions of TensorFlow tensors are pure and keep the dtype they are given. Pass
float64, which is exact enough for any training set.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from keras_osgd.scores.state import SamplingState
from keras_osgd.scores.uncertainty_set import UncertaintySet

__all__ = [
    "by_scores",
    "importance_weights",
    "oracle",
    "uniform",
    "with_floor",
    "worst_norm",
]


def uniform(n: int) -> tf.Tensor:
    """Returns the distribution that draws all examples equally often.

    Args:
        n: number of training examples, >= 1.

    Returns:
        `[n]`, float64, every entry 1/n.

    Raises:
        ValueError: if `n` is below 1.

    Example:
        >>> uniform(4).numpy()
        array([0.25, 0.25, 0.25, 0.25])
    """
    _check_number_of_examples(n)
    return tf.fill([n], tf.constant(1.0 / n, tf.float64))


def oracle(norms: tf.Tensor) -> tf.Tensor:
    """Returns p_i = v_i / sum_j v_j, the best p when gradient norms are known exactly.

    Equation (3): it minimises sum_i v_i^2 / p_i (Cauchy-Schwarz), and makes the
    weighted norm w_i v_i the same for every example. Uniform where all norms are 0.

    Args:
        norms: `[n]`, >= 0, finite, gradient-norm units. Any size up to the largest
            float will do.

    Returns:
        `[n]`, >= 0, sums to 1; unchanged if all gradients are rescaled.

    Raises:
        ValueError: outside of a graph, if a norm is negative or not finite.

    Example:
        >>> oracle(tf.constant([1.0, 3.0])).numpy()
        array([0.25, 0.75], dtype=float32)

    Reference: Johnson & Guestrin, NeurIPS 2018 (O-SGD).
    """
    _check_scores("norms", norms)
    return _in_proportion_to(norms)


def _in_proportion_to(scores: tf.Tensor) -> tf.Tensor:
    """Returns scores / sum, even if the sum overflows; uniform if all scores are 0."""
    dtype, limits = scores.dtype, np.finfo(scores.dtype.as_numpy_dtype)
    n = tf.cast(tf.size(scores), dtype)
    # Shrunk by a power of 2, which changes no digit, and only if the sum may overflow.
    shrunk = tf.pow(tf.constant(0.5, dtype), tf.math.ceil(tf.math.log(n) / np.log(2.0)))
    overflows = tf.reduce_max(scores) >= limits.max / n
    # `tf.cond`, as each `tf.where` would be one more pass over all examples.
    scores = tf.cond(overflows, lambda: scores * (shrunk / 2.0), lambda: scores)
    total = tf.reduce_sum(scores)
    nothing_known = total < limits.tiny
    return tf.cond(
        nothing_known, lambda: tf.ones_like(scores) / n, lambda: scores / total
    )


def with_floor(probability: tf.Tensor, floor: float) -> tf.Tensor:
    """Returns (1 - floor) p + floor / n: a share of the draws goes to everyone.

    It bounds every importance weight: p >= floor/n, so 1/(n p) <= 1/floor.

    Args:
        probability: `[n]`, >= 0, sums to 1.
        floor: share of uniform draws, from 0 (none) to 1 (all).

    Returns:
        `[n]`, >= floor/n, sums to 1.

    Raises:
        ValueError: if `floor` is not in [0, 1] or, outside of a graph, `probability` is
            no distribution.

    Example:
        >>> with_floor(tf.constant([0.0, 1.0]), 0.5).numpy()
        array([0.25, 0.75], dtype=float32)
    """
    if not 0.0 <= floor <= 1.0:
        raise ValueError(
            "`floor` is a share of the draws and must lie in [0, 1]. "
            f"Received: floor={floor}. "
            "Use 0.05 to 0.1; 0 leaves the importance weights without a bound."
        )
    _check_scores("probability", probability, total=1.0)
    n = tf.cast(tf.size(probability), probability.dtype)
    return (1.0 - floor) * probability + floor / n


def importance_weights(probability: tf.Tensor, n: int) -> tf.Tensor:
    """Returns w_i = 1 / (n p_i), which make the weighted gradient unbiased.

    Args:
        probability: `[m]`, > 0. p of the examples drawn (or of all); over all n it
            sums to 1. Signs are not checked here; a floor above 0 guarantees them.
        n: number of training examples p was defined on, >= 1.

    Returns:
        `[m]`, > 0, without unit. Their mean under p is 1.

    Raises:
        ValueError: if `n` is below 1.

    Example:
        >>> importance_weights(tf.constant([0.25, 0.5]), n=4).numpy()
        array([1. , 0.5], dtype=float32)
    """
    _check_number_of_examples(n)
    return 1.0 / (n * probability)


def _check_number_of_examples(n: int) -> None:
    if n < 1:
        raise ValueError(
            "`n`, the number of training examples, must be at least 1. "
            f"Received: n={n}. Pass a training set that is not empty."
        )


def _check_scores(name: str, scores: tf.Tensor, total: float | None = None) -> None:
    """Raises unless scores are finite, >= 0 and sum to `total`; never in a graph."""
    if not tf.executing_eagerly():
        return
    values = np.asarray(scores)  # no copy, unlike `numpy()`
    smallest, largest = values.min(initial=0.0), values.max(initial=0.0)
    met = smallest >= 0.0 and largest < np.inf  # in this form NaN fails too
    must, extent = "", f"smallest {smallest}, largest {largest}"
    if met and total is not None:
        with np.errstate(over="ignore"):
            found = values.sum(dtype=np.float64)
        met, extent = abs(found - total) < 1e-4, f"{extent}, sum {found}"
        must = f" and sum to {total:g}"
    if not met:
        raise ValueError(
            f"`{name}` must be finite and >= 0{must}. Received: {extent}. "
            "Look for a loss that overflowed, or a learning rate too high."
        )


def by_scores(state: SamplingState, floor: float) -> tuple[np.ndarray, bool] | None:
    """Returns p by the scores: equation (6) with the average fit, and the floor.

    If every fit has failed, p is in proportion to the norms last observed.

    Args:
        state: with a table.
        floor: epsilon, above 0.

    Returns:
        p, `[n]` float64, at least floor/n, sums to 1; and whether p is uniform because
        all predicted norms are 0. `None` if nothing is known.

    Raises:
        ValueError: if a score is not finite.
    """
    fitted = state.uncertainty_set or _last_norms_only(state)
    if fitted is None:
        return None
    worst = worst_norm(fitted, state.table.mean_features())
    p = _with_floor_in_place(state.table.combine(worst), floor)
    return p, not (fitted.objective > 0 or fitted.mean.any())


def _with_floor_in_place(scores: np.ndarray, floor: float) -> np.ndarray:
    """Returns `oracle` of the scores `with_floor`, in two passes and without a copy.

    Scores with a sum that is 0 or not finite are left to those functions.
    """
    with np.errstate(over="ignore"):
        total = scores.sum()
    if not np.finfo(scores.dtype).tiny <= total < np.inf:  # in this form NaN fails too
        return np.asarray(with_floor(oracle(tf.convert_to_tensor(scores)), floor))
    scores *= (1.0 - floor) / total
    scores += floor / len(scores)
    return scores


def worst_norm(fitted: UncertaintySet, mean_features: np.ndarray) -> np.ndarray:
    """Returns `[F]`, the coefficients c + k d of the worst norms in equation (6).

    p in proportion to the worst norms v* = <c, s> + k <d, s> minimises over p the worst
    sum_i v_i^2 / p_i over all gradient norms v in the set; v* attains that worst value.
    k = sqrt(n / sum_j <d, s_j>) depends on the examples by their mean features only.

    Args:
        fitted: c, h, and the spread, with d = h spread.
        mean_features: `[F]`, >= 0. Means over all examples.

    Example:
        >>> known = UncertaintySet(np.ones(2), np.array([0.5, 0.0]), 2.0, 1, True)
        >>> worst_norm(known, np.array([1.0, 3.0]))
        array([2., 1.])

    Reference: Johnson & Guestrin, NeurIPS 2018 (minimax sampling distribution).
    """
    radius = float(fitted.spread @ mean_features)  # mean of <spread, s>
    if radius <= 0:
        return fitted.mean
    return fitted.mean + np.sqrt(fitted.objective / radius) * fitted.spread


def _last_norms_only(state: SamplingState) -> UncertaintySet | None:
    """Returns a set that predicts the last norms if every fit has failed, or `None`."""
    features = state.table.features
    if not (state.fit_failures and state.observed and "last" in features):
        return None
    mean = np.array([float(name == "last") for name in features])
    return UncertaintySet(mean, np.zeros(len(features)), 0.0, 0, converged=False)
