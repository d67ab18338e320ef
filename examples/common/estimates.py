"""Equal test error and intervals, for benchmarks and experiments."""

from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.stats


def equal_error_length(
    lengths: np.ndarray, errors: np.ndarray, target: float
) -> tuple[float, str]:
    """Returns the length of uniform training that reaches `target`.

    The errors are first made non-increasing in length (least squares), then joined
    by straight lines.

    Args:
        lengths: `[k]`, increasing; epochs of uniform training.
        errors: `[k]`; the mean test error at each length.
        target: the error to reach.

    Returns:
        The shortest such length, and how to read it: `"="`; `">"` if not even the
        longest training reaches `target`, `"<"` if the shortest does more than
        that. The longest or the shortest length is returned then.
    """
    fitted = scipy.optimize.isotonic_regression(errors, increasing=False).x
    if target < fitted[-1]:
        return float(lengths[-1]), ">"
    if target > fitted[0]:
        return float(lengths[0]), "<"
    reached = int(np.argmax(fitted <= target))
    if reached == 0:
        return float(lengths[0]), "="
    high, low = fitted[reached - 1], fitted[reached]
    share = (high - target) / (high - low)
    before, after = lengths[reached - 1], lengths[reached]
    return float(before + share * (after - before)), "="


_TRIMMED_FROM = 10
"""Seeds from which on the best and the worst of them are left out."""


def centred(values: Sequence[float]) -> tuple[float, np.ndarray, int]:
    """Returns a mean over seeds that one run off the others does not move.

    With ten seeds or more it is the mean without the lowest and the highest value: of
    ten trainings one may diverge. With fewer it is the mean.

    Args:
        values: `[n]`, one of each seed.

    Returns:
        The mean; `[n]`, how far each seed moves it off (the square root of their sum
        of squares over n (n - 1) is the mean's standard error, by winsorised values:
        Tukey & McLaughlin 1963); the degrees of freedom of that error.
    """
    values = np.array(values, float)
    count = len(values)
    if count < _TRIMMED_FROM:
        return values.mean(), values - values.mean(), count - 1
    ordered = np.sort(values)
    winsorised = np.clip(values, ordered[1], ordered[-2])
    deviations = (winsorised - winsorised.mean()) / (1 - 2 / count)
    return ordered[1:-1].mean(), deviations, count - 3


def t_interval(values: Sequence[float]) -> list[float] | None:
    """Returns the 95 % interval of `centred`, for independent normal values."""
    count = len(values)
    if count < 2:
        return None
    mean, deviations, freedom = centred(values)
    error = np.sqrt(np.sum(deviations**2) / (count * (count - 1)))
    half = float(error * scipy.stats.t.ppf(0.975, freedom))
    return [float(mean) - half, float(mean) + half]
