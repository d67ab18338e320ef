"""From what is known of all examples to their probabilities."""

from __future__ import annotations

import numpy as np

from keras_osgd import distributions
from keras_osgd.state import SamplingState
from keras_osgd.uncertainty_set import UncertaintySet

__all__ = ["by_scores"]


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
    mean = state.table.combine(fitted.mean)
    variance = fitted.objective * state.table.combine(fitted.spread)
    p = distributions.with_floor(distributions.robust(mean, variance), floor)
    return p.numpy(), not (fitted.objective > 0 or fitted.mean.any())


def _last_norms_only(state: SamplingState) -> UncertaintySet | None:
    """Returns what stands in where every fit has failed, if there is anything."""
    features = state.table.features
    if not (state.fit_failures and state.observed and "last" in features):
        return None
    mean = np.array([float(name == "last") for name in features])
    return UncertaintySet(mean, np.zeros(len(features)), 0.0, 0, converged=False)
