"""How often a block should visit each example, so that each gets what it is owed."""

import numpy as np

from keras_osgd.base.chunks import chunks

__all__ = ["RESIDUE", "block_density", "cycle_density"]

# Owed masses this close to 0 are rounding, not mass: their unit is one visit of
# weight 1, of which a block credits 1e-5 or more, and the rounding errors of a
# million blocks stay below 1e-9. An example that has just had its visit would
# otherwise stand a chance of another.
RESIDUE = 1e-9
_LEAST_CREDIT = 2.0**-100  # over size/n
_NONE_TO_GO = 1e-300  # mass: a visit that is overdue
_MOST_STEPS = 100


def cycle_density(
    owed: np.ndarray, weight: np.ndarray, credit: float
) -> tuple[np.ndarray, float]:
    """Returns how often a block should visit each example, on average.

    Time is mass: an example of weight W = 1/(n p) is due one visit in each stretch of
    mass W, at a place uniform in it. While it has not had that visit (owed m >= 0) the
    chance of it within the next mass c is c / (W - m), the hazard of a uniform time;
    after it (m < 0) there is none until m + c > 0; an example that owes more than one
    visit, as after a rise of p, gets (m + c) / W at once. So each expects the weight c
    in every block, whatever its p, and none owes more than about one visit. A density
    of (m + c) / W for all would not do: it visits the rare too early, and gave them 2.4
    times their weight in the first blocks.

    Args:
        owed: `[n]`, any sign, in visits of weight 1, before the block's credit.
        weight: `[n]`, > 0. W, the weight of a visit.
        credit: c > 0, mass that the block gives to each example.

    Returns:
        `[n]`, >= 0, expected visits (above 1 where one is not enough), and the slope
        of their sum in `credit`.
    """
    # Both expressions for all: a choice between them, example by example, would cost
    # more than all else. The one that holds is the smaller, whatever is owed.
    chance = 1.0 / weight
    due = owed + credit
    overdue = due * chance
    hazard = credit / np.maximum(weight - np.maximum(owed, 0.0), _NONE_TO_GO)
    active = due > min(RESIDUE, 1e-3 * credit)
    waits = (hazard < overdue) & active
    visits = np.minimum(hazard, overdue) * active
    return visits, visits @ waits / credit + chance @ (active & ~waits)


def block_density(
    owed: np.ndarray, probability: np.ndarray, size: int
) -> tuple[np.ndarray, float]:
    """Returns the density of a block, and the credit at which it sums to `size`.

    Newton's method between two bounds; the sum is increasing and piecewise linear in
    the credit, so that the last step is exact. None is needed in the first block.

    Args:
        owed: `[n]`, any sign, in visits of weight 1.
        probability: `[n]`, > 0, sums to 1.
        size: number of draws, >= 1.

    Returns:
        `[n]`, >= 0, in visits, which sums to `size` to rounding, and the mass that
        each example is given, about size/n. Where examples are owed more than `size`
        visits, as after a rise of p for many, it sums to those, and the mass is next
        to nothing.
    """
    n, density = probability.size, np.empty(probability.size)
    credit, low, high = size / n, 0.0, np.inf
    least = credit * _LEAST_CREDIT
    for _ in range(_MOST_STEPS):
        excess, steepness = -float(size), 0.0
        for rows in chunks(n):
            weight = 1.0 / (n * probability[rows])
            density[rows], slope = cycle_density(owed[rows], weight, credit)
            excess += density[rows].sum()
            steepness += slope
        owed_too_much = excess > 0 and credit <= least
        if abs(excess) <= 1e-12 * size or owed_too_much:
            break
        low, high = (low, credit) if excess > 0 else (credit, high)
        # With no one due, or a step out of bounds: double, or halve the bounds. Below
        # all others there may be no root: the least is tried before it is halved for.
        step = credit - excess / steepness if steepness > 0 else np.inf
        if low < step < high:
            credit = step
        elif np.isinf(high):
            credit = 2 * credit
        else:
            credit = (low + high) / 2 if low > 0 else least
    return density, credit
