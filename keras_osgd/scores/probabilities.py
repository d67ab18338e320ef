"""From what is known of all examples to their probabilities."""

from __future__ import annotations

import numpy as np

from keras_osgd.scores import distributions
from keras_osgd.scores.state import SamplingState
from keras_osgd.scores.uncertainty_set import UncertaintySet

__all__ = ["by_scores", "worst_norm"]


def by_scores(state: SamplingState, floor: float) -> tuple[np.ndarray, bool] | None:
    """Returns p by the scores: equation (6), by the last good fit, and the floor.

    Where every fit has failed, it is in proportion to the norms last observed.

    Args:
        state: with a table.
        floor: epsilon, above 0.

    Returns:
        `[n]` float64, at least floor/n, sums to 1; and whether all predicted norms are
        0, so that it is uniform. `None` where nothing is known.

    Raises:
        ValueError: if a score is not finite.
    """
    fitted = state.uncertainty_set or _last_norms_only(state)
    if fitted is None:
        return None
    worst = worst_norm(fitted, state.table.mean_features())
    p = distributions.oracle(state.table.combine(worst))
    p = np.asarray(distributions.with_floor(p, floor))
    return p, not (fitted.objective > 0 or fitted.mean.any())


def worst_norm(fitted: UncertaintySet, mean_features: np.ndarray) -> np.ndarray:
    """Returns `[F]`, the coefficients c + k d of the norms in equation (6).

    k = sqrt(n / sum_j <d, s_j>) needs no more of the examples than their mean features,
    so that one pass over them does; `distributions.robust` of <c, s> and <d, s> is the
    same in three.

    Args:
        fitted: c, h, and the spread, with d = h spread.
        mean_features: `[F]`, >= 0, over all examples.

    Example:
        >>> known = UncertaintySet(np.ones(2), np.array([0.5, 0.0]), 2.0, 1, True)
        >>> worst_norm(known, np.array([1.0, 3.0]))
        array([2., 1.])
    """
    radius = float(fitted.spread @ mean_features)  # of the spread, whose scale is h
    if radius <= 0:
        return fitted.mean
    return fitted.mean + np.sqrt(fitted.objective / radius) * fitted.spread


def _last_norms_only(state: SamplingState) -> UncertaintySet | None:
    """Returns what stands in where every fit has failed, if there is anything."""
    features = state.table.features
    if not (state.fit_failures and state.observed and "last" in features):
        return None
    mean = np.array([float(name == "last") for name in features])
    return UncertaintySet(mean, np.zeros(len(features)), 0.0, 0, converged=False)
