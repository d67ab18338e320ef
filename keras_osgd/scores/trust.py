"""Trust in the scores: the share of p that follows them, as far as they predict."""

from __future__ import annotations

import numpy as np

__all__ = [
    "SHARES",
    "is_measured",
    "measured",
    "mixed",
    "share",
    "trusted",
    "untrusted",
]

SHARES = np.array([0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0])
_MEMORY = 0.5  # weight of the plans before, in the sums
_RISE = 3.5  # most that the share grows by from one plan to the next


def untrusted() -> np.ndarray:
    """Returns `[9]`, the sums of `measured` before anything has been."""
    return np.zeros(len(SHARES) + 1)


def trusted() -> np.ndarray:
    """Returns `[9]`, sums by which scores are followed fully, until more is measured.

    Example:
        >>> share(trusted())
        1.0
    """
    return np.append(1.0 - SHARES, 1.0)


def share(sums: np.ndarray, before: float = 1.0) -> float:
    """Returns the share of `SHARES` whose gradient varied least; the least at first.

    Args:
        sums: `[9]`, as `measured` returns them.
        before: share of the plan before, of which it is 3.5 times at most.

    Example:
        >>> share(untrusted()), share(trusted(), before=0.1)
        (0.1, 0.35)
    """
    allowed = _RISE * before >= SHARES
    return float(SHARES[allowed][np.argmin(sums[:-1][allowed])])


def is_measured(sums: np.ndarray) -> bool:
    """Returns whether anything has been measured, or is known from elsewhere."""
    return bool(sums[-1] > 0)


def mixed(probability: np.ndarray, share: float) -> np.ndarray:
    """Returns `[n]`, the share of p and a share of uniform draws that makes up 1.

    Example:
        >>> mixed(np.array([0.9, 0.1]), 0.5)
        array([0.7, 0.3])
    """
    if share == 1.0:
        return probability
    return share * probability + (1.0 - share) / len(probability)


def measured(
    sums: np.ndarray, weights: np.ndarray, relative: np.ndarray, norms: np.ndarray
) -> np.ndarray:
    """Returns the sums with some more observations; older ones count half.

    Had they been drawn with the share s of p by scores, the second moment of a draw's
    gradient, A' of equation (4), would be the mean of w v^2 / (1 - s + s n p). It is
    summed over the observations, for each s in `SHARES`, in units of that of uniform
    draws. p is the one planned before the norms were observed, so that scores which age
    within a block, or predict nothing, show as they are.

    Args:
        sums: `[9]`, from earlier observations: one for each share, and their number.
        weights: `[k]`, > 0. Importance weights w of the draws.
        relative: `[k]`, > 0. n p by the scores, of the draws; all 1 if none were known.
        norms: `[k]`, >= 0, finite. v, gradient-norm units.

    Example:
        >>> sums = measured(untrusted(), np.ones(2), np.array([1.5, 0.5]), [3.0, 1.0])
        >>> share(sums)  # larger norms were drawn more often: rightly
        1.0
    """
    uniform = weights * np.square(norms, dtype=np.float64)
    total = uniform.sum()
    if not (total > 0 and np.ptp(relative) > 0):
        return sums
    relative = relative - 1.0
    moments = [(uniform / (1.0 + s * relative)).sum() for s in SHARES]  # few at once
    return _MEMORY * sums + np.append(np.array(moments) / total, 1.0) * len(uniform)
