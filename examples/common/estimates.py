"""Equal test error and intervals, for benchmarks and experiments."""

import statistics

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


def t_interval(values: list[float]) -> list[float] | None:
    """Returns the 95 % interval of the mean, for independent normal values."""
    if len(values) < 2:
        return None
    half = scipy.stats.sem(values) * scipy.stats.t.ppf(0.975, len(values) - 1)
    mean = statistics.fmean(values)
    return [mean - half, mean + half]
