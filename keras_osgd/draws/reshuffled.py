"""Draws of a block: the training examples that the next few steps will see.

The functions are pure; the only state, the visits that each example is owed, is passed
in and returned.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from keras_osgd.base.chunks import chunks

__all__ = [
    "Reshuffled",
    "block_density",
    "credited",
    "cycle_density",
    "in_phase",
    "independent",
    "places",
    "refund",
    "reshuffled",
    "rescaled",
    "search",
    "systematic",
]

# Visits owed this close to 0 are rounding errors: those of a million blocks stay below
# 1e-9. Were they kept, an example that has just had its visit could get another.
RESIDUE = 1e-9
_SAME_PHASE = 1e-6  # rounding errors are far below
_LEAST_CREDIT = 2.0**-100  # over size/n
_NONE_TO_GO = 1e-300  # of a cycle whose visit is overdue
_MOST_STEPS = 100
# An order of so many examples is shuffled at once, and one of more by runs and cells.
_SHUFFLED_AT_ONCE = 65_536
_RUN, _CELL = 32, 8192


class Reshuffled(NamedTuple):
    """A block of reshuffled draws and the state that it leaves behind.

    Attributes:
        index: `[size]`, int64, in 0..n-1. The examples, in the order of the steps.
        owed: `[n]`, float64, any sign, in visits: for the next block.
        credit: mass the block gave every example, over size/n: the expected mean
            weight of its draws. 1 in the first block, and near 1 while p moves
            smoothly. Weights by p times credit have a mean of 1.
        visits: `[size]`, float64, > 0. How often the block was to visit each drawn
            example on average, given all that was drawn before.
    """

    index: np.ndarray
    owed: np.ndarray
    credit: float
    visits: np.ndarray


def reshuffled(
    owed: np.ndarray,
    probability: np.ndarray,
    size: int,
    rng: np.random.Generator,
    in_place: bool = False,
) -> Reshuffled:
    """Returns a block of draws that gives every example the visits it is owed.

    Credits every example with the same mass a, about size/n, that is with a n p_i
    visits of weight 1/(n p_i). Draws by systematic sampling with the density of
    `cycle_density`, along a fresh random order of the examples. Puts the draws in the
    order of their `places`, and subtracts 1 for each visit. With uniform p, blocks of
    any sizes join to permutations: every n draws from the first one on visit every
    example once.

    Args:
        owed: `[n]`, in visits: zeros at first, then as returned by the last block.
        probability: `[n]`, > 0, sums to 1. Target probability p of this block.
        size: number of draws, >= 1; may exceed n.
        rng: source of all randomness.
        in_place: whether the visits owed after the block may take the place of `owed`,
            a float64 array, which saves a copy.

    Returns:
        The block's indices, the visits owed after it, and the credit.

    Raises:
        ValueError: if `size` is below 1, `probability` is no distribution or has a
            0 (or a number whose inverse overflows), or `owed` has another shape or an
            entry that is not finite.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> block = reshuffled(np.zeros(4), np.full(4, 0.25), 4, rng)
        >>> np.sort(block.index)
        array([0, 1, 2, 3])
    """
    probability = _checked(probability, size)
    owed = owed if in_place else np.array(owed, np.float64)
    _clear_residues(owed, probability)
    density, credit = block_density(owed, probability, size)
    index = _in_random_order(density, size, rng)
    n = probability.size
    due = credited(probability[index], credit, n)
    place = places(index, rng.random(size), owed[index], due)
    for rows in chunks(n):
        owed[rows] += credited(probability[rows], credit, n)
    # With one number for all rows it would take twenty times as long.
    np.subtract.at(owed, index, np.ones(size))
    index = index[np.argsort(place)]
    return Reshuffled(index, owed, credit * n / size, density[index])


def _in_random_order(
    density: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns `[size]`, the draws of `systematic` along a fresh random order.

    The order of many examples is made in two steps that stay in a core's own cache:
    short runs of neighbours are shuffled among all, then the examples of a cell among
    themselves. Two examples of one run lie in one cell, at any two of its places;
    where a cell begins depends on the runs before it. So no pattern of the data's order
    meets one of the draws.
    """
    # Only those that may be visited, about half: the others have no length.
    order = np.flatnonzero(density > 0.0)
    if len(order) <= _SHUFFLED_AT_ONCE:
        order = rng.permutation(order)
        return systematic(density, size, order, _offset(rng))
    runs = order[: len(order) // _RUN * _RUN].reshape(-1, _RUN)
    order[: runs.size] = runs[rng.permutation(len(runs))].ravel()
    index, first, start = np.empty(size, np.int64), 0, -_offset(rng)
    scale = size / density.sum()
    for begin in range(0, len(order), _CELL):
        cell = order[begin : begin + _CELL]
        rng.shuffle(cell)
        ends = density.take(cell).cumsum()
        ends *= scale
        ends += start
        start = ends[-1]
        until = np.minimum(np.ceil(ends, out=ends), size).astype(np.int64)
        if begin + _CELL >= len(order):
            until[-1] = size  # where rounding left a draw over
        drawn = cell.repeat(np.diff(until, prepend=first))
        index[first : until[-1]] = drawn
        first = until[-1]
    return index


def _offset(rng: np.random.Generator) -> float:
    # The middle of one of 2^32 cells: never so close to an integer that the rounding
    # of the cumulative sum decides between two neighbours.
    return (rng.integers(2**32) + 0.5) / 2**32


def credited(probability: np.ndarray, credit: float, n: int) -> np.ndarray:
    """Returns the visits that a block owes examples: credit times n p.

    Args:
        probability: `[k]`, p of the examples.
        credit: > 0, mass that the block gives to each example.
        n: number of examples that p was defined on.
    """
    return (credit * n) * probability


def rescaled(owed: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Returns the visits owed where p has changed by factors.

    An example that has had its visit (owed < 0) waits for the rest of that visit's
    mass. If p changes because the example was visited, it still waits for that mass,
    which is `factor` times as many visits of the new weight. So the next cycle begins
    when it would have without the visit, and each block expects the same weight still,
    if p moves before that cycle begins. (Left alone, examples whose visits lower p
    would be visited too seldom.)

    Args:
        owed: `[k]`, in visits, of examples whose p was changed by their own visits. Not
            changed in place.
        factor: `[k]`, > 0. p now over p before.

    Example:
        >>> rescaled(np.array([-0.5, 0.5]), np.array([0.2, 0.2]))
        array([-0.1,  0.5])
    """
    return np.where(owed < 0.0, owed * factor, owed)


def refund(
    owed: np.ndarray, due: np.ndarray, index: np.ndarray, size: int
) -> np.ndarray:
    """Returns the visits owed after taking back draws that never took place.

    Args:
        owed: `[n]`, in visits. Not changed in place.
        due: `[n]`, as returned by `credited` for the whole block.
        index: `[unused]`, integer, in 0..n-1. The draws that were not used, as when
            training stops inside a block.
        size: number of the block's draws.

    Returns:
        `[n]`, float64: `owed` + 1 for each unused visit, less the unused part of `due`.

    Example:
        >>> refund(np.array([-0.5, 0.5]), np.array([0.5, 0.5]), np.array([0]), 1)
        array([0., 0.])
    """
    owed = owed - due * (len(index) / size)
    np.add.at(owed, index, 1.0)
    return owed


def independent(
    probability: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns independent draws with replacement, as in the paper.

    Args:
        probability: `[n]`, >= 0, sums to 1.
        size: number of draws, >= 1.
        rng: source of all randomness.

    Returns:
        `[size]`, int64, in 0..n-1.

    Raises:
        ValueError: if `size` is below 1 or `probability` is no distribution.

    Example:
        >>> independent(np.array([0.0, 1.0]), 3, np.random.default_rng(0))
        array([1, 1, 1])

    Reference: Johnson & Guestrin, NeurIPS 2018.
    """
    probability = _checked(probability, size)
    position = rng.random(size)
    # Sorted, the search takes a fifth of the time: unsorted, it waits for memory.
    order = np.argsort(position)
    index = np.empty(size, np.int64)
    index[order] = search(probability, position[order])
    return index


def _clear_residues(owed: np.ndarray, probability: np.ndarray) -> None:
    """Sets residues of visits owed to 0, in place; checks that visits can be owed."""
    if owed.shape != probability.shape:
        raise ValueError(
            "`owed` must have one entry per training example, as `probability` has. "
            f"Received: shapes {owed.shape} and {probability.shape}. "
            "Start from zeros when the training set changes."
        )
    # The smallest normal number: the inverses of smaller ones overflow.
    if not probability.min() >= np.finfo(np.float64).tiny:
        raise ValueError(
            "`probability` must be above 0 for every example, each of which is owed "
            f"visits. Received: {probability.min()} at index {probability.argmin()}. "
            "Mix in a floor, or use independent draws."
        )
    for rows in chunks(len(owed)):
        part = owed[rows]
        visits = np.abs(part)
        if not visits.max() < np.inf:  # in this form NaN fails too
            raise ValueError(
                "`owed` must be finite. Received: "
                f"{part[~np.isfinite(part)][0]}. Start from zeros."
            )
        part[visits < RESIDUE] = 0.0


def _checked(probability: np.ndarray, size: int) -> np.ndarray:
    """Returns `probability` as float64, or raises if it is no distribution."""
    probability = np.asarray(probability, np.float64)
    if size < 1:
        raise ValueError(
            "`size`, the number of draws in a block, must be at least 1. "
            f"Received: size={size}. Ask for a block of at least one batch."
        )
    # Written so that NaN fails too; 1e-4 admits probabilities made in float32.
    total, least = probability.sum(), probability.min(initial=1.0)
    if probability.ndim != 1 or not (least >= 0.0 and abs(total - 1) < 1e-4):
        raise ValueError(
            "`probability` must be one row of numbers >= 0 that sum to 1. "
            f"Received: shape {probability.shape}, sum {total}. "
            "Divide the scores by their sum, and look for NaN among them."
        )
    return probability


def cycle_density(
    owed: np.ndarray, rate: np.ndarray, credit: float
) -> tuple[np.ndarray, float]:
    """Returns how often a block should visit each example, on average.

    An example is due n p visits for each unit of mass. The visits due so far are its
    time, which is cut into cycles of one visit each. The visit of a cycle comes at a
    uniform time in it. Before that visit (owed >= 0, the part of the cycle that is
    over), its chance within the next time t is t / (1 - owed), the hazard of a uniform
    time. After it (owed < 0), there is no chance until owed + t > 0, in the next cycle.

    So each example expects t visits of weight 1/(n p) = credit / t, the same weight in
    every block, whatever its p and however p moves by itself. Proof: 1 / (1 - owed)
    before the visit, and 0 after it, is a martingale, with mean 1. If p moves because
    the example was visited, see `rescaled`.

    Args:
        owed: `[n]`, any sign, in visits, before the block's credit.
        rate: `[n]`, > 0. n p, visits for each unit of mass.
        credit: > 0, mass that the block gives to each example.

    Returns:
        `[n]`, >= 0, expected visits (above 1 where one is not enough), and the slope
        of their sum in `credit`.
    """
    visits, *scratch = np.empty([3, owed.size])
    steady = _cycle(owed, credit * rate, visits, scratch)
    return visits, (visits.sum() - steady) / credit


def _cycle(
    owed: np.ndarray, due: np.ndarray, visits: np.ndarray, scratch: Sequence[np.ndarray]
) -> float:
    """Writes `cycle_density` into `visits`; returns the part of its sum that is steady.

    The visits that an example is due change with the credit, those that it was owed do
    not. Without the latter the sum is in proportion to the credit: hence its slope.

    Args:
        owed: `[k]`.
        due: `[k]`, > 0.
        visits: `[k]`, overwritten.
        scratch: two of `[k]`, overwritten.
    """
    # Both expressions are computed for all: choosing example by example would cost
    # more than all else. The smaller one holds, whatever is owed.
    total, room = scratch
    np.add(owed, due, out=total)
    np.subtract(1.0, owed, out=room)
    np.clip(room, _NONE_TO_GO, 1.0, out=room)
    np.divide(due, room, out=visits)
    np.minimum(visits, total, out=visits)
    least = RESIDUE
    if due.min(initial=1.0) < 1e3 * RESIDUE:
        least = np.minimum(RESIDUE, 1e-3 * due)
    np.multiply(visits, total > least, out=visits)
    # No dot product: BLAS would split it among busy cores.
    return np.einsum("i,i", owed, visits == total)


def block_density(
    owed: np.ndarray, probability: np.ndarray, size: int
) -> tuple[np.ndarray, float]:
    """Returns the density of a block, and the credit at which it sums to `size`.

    Newton's method between two bounds. The sum is increasing and piecewise linear in
    the credit, so that the last step is exact. The first block needs no step.

    Args:
        owed: `[n]`, any sign, in visits.
        probability: `[n]`, > 0, sums to 1.
        size: number of draws, >= 1.

    Returns:
        `[n]`, >= 0, in visits, which sums to `size` up to rounding; and the mass that
        each example is given, about size/n. Where examples are owed more than `size`
        visits, the density sums to those, and the mass is next to nothing.
    """
    n, density = probability.size, np.empty(probability.size)
    credit, low, high = size / n, 0.0, np.inf
    least = credit * _LEAST_CREDIT
    for _ in range(_MOST_STEPS):
        total, steady = _density_of_all(owed, probability, credit, density)
        excess, steepness = total - size, (total - steady) / credit
        owed_too_much = excess > 0 and credit <= least
        if abs(excess) <= 1e-12 * size or owed_too_much:
            break
        low, high = (low, credit) if excess > 0 else (credit, high)
        # Where no example is due or the step leaves the bounds: double, or bisect.
        # There may be no root at all: the least credit is tried before bisecting.
        step = credit - excess / steepness if steepness > 0 else np.inf
        if low < step < high:
            credit = step
        elif np.isinf(high):
            credit = 2 * credit
        else:
            credit = (low + high) / 2 if low > 0 else least
    return density, credit


def _density_of_all(
    owed: np.ndarray, probability: np.ndarray, credit: float, density: np.ndarray
) -> tuple[float, float]:
    """Writes `cycle_density` into `density`; returns its sum and the steady part."""
    n, total, steady = probability.size, 0.0, 0.0
    longest = next(chunks(n)).stop
    scratch = np.empty([3, longest])
    for rows in chunks(n):
        part = density[rows]
        due, *others = scratch[:, : part.size]
        np.multiply(n, probability[rows], out=due)
        due *= credit
        steady += _cycle(owed[rows], due, part, others)
        total += part.sum()
    return total, steady


def systematic(
    density: np.ndarray, size: int, permutation: np.ndarray, offset: float
) -> np.ndarray:
    """Returns the examples at offset, offset + 1, ... along a line of intervals.

    The intervals lie in the order of `permutation` and are as long as the density
    of their examples. With an offset uniform in [0, 1), example i gets density_i
    visits on average, and always that number rounded down or up.

    Args:
        density: `[n]`, >= 0, in visits; sums to `size` up to rounding.
        size: number of draws, >= 1.
        permutation: `[n]`, each of 0..n-1 once.
        offset: in [0, 1).

    Returns:
        `[size]`, int64, in 0..n-1, in the order of `permutation`.

    Example:
        >>> systematic(np.array([0.5, 1.5]), 2, np.array([0, 1]), 0.25)
        array([0, 1])
    """
    position = (np.arange(size) + offset) / size
    return permutation[search(density[permutation], position)]


def places(
    index: np.ndarray, uniform: np.ndarray, owed: np.ndarray, due: np.ndarray
) -> np.ndarray:
    """Returns where in a block its draws come, each in the cycle that it belongs to.

    In a block an example's time goes on by the visits that it is due, and each visit
    has a cycle of length 1 to itself (see `cycle_density`): the first cycle begins
    -owed from the block's start. The visit comes at a random place of its cycle, as far
    as that lies in the block. So visits that are due early come early, and with uniform
    p an example comes again only after all others have come. An example owed a visit
    from before has its visits spread evenly over the block: else all such examples
    would crowd at its start.

    Args:
        index: `[size]`, as `systematic` returns it: visits of one example together.
        uniform: `[size]`, in [0, 1), at random.
        owed: `[size]`, of each draw's example, in visits, before the block's credit.
        due: `[size]`, > 0. Visits that the block owes each draw's example.

    Returns:
        `[size]`, in [0, 1], parts of the block.

    Example:
        >>> owed, due = np.array([0.8, 0.8, -0.2]), np.full(3, 0.4)
        >>> places(np.array([4, 4, 7]), np.full(3, 0.5), owed, due)
        array([0.25, 0.75, 0.75])
    """
    first = np.flatnonzero(np.diff(index, prepend=-1))
    visits = np.diff(first, append=index.size)
    number = np.arange(index.size) - np.repeat(first, visits)
    overdue = owed >= 1.0
    start = np.where(overdue, 0.0, -owed)
    length = np.where(overdue, due / np.repeat(visits, visits), 1.0)
    begin = np.clip(start + number * length, 0.0, due)
    end = np.minimum(start + (number + 1) * length, due)
    return (begin + uniform * (end - begin)) / due


def in_phase(owed: np.ndarray) -> bool:
    """Returns whether what is owed differs by whole visits.

    Then blocks of uniform p join to permutations.

    Args:
        owed: `[n]`.

    Example:
        >>> in_phase(np.array([0.3, -0.7, 0.3])), in_phase(np.array([0.3, 0.0]))
        (True, False)
    """
    return all(
        (np.abs(part - np.rint(part)) < _SAME_PHASE).all()
        for part in (owed[rows] - owed[0] for rows in chunks(len(owed)))
    )


def search(density: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Returns the interval of each position in [0, 1); `density` gives the lengths.

    side="right" passes over intervals of length 0, which must never be drawn. A
    position rounded up to 1 is replaced by the last number below 1, so that it lies in
    the last interval that has a length, and never beyond n-1.
    """
    cumulative = np.cumsum(density, dtype=np.float64)
    cumulative /= cumulative[-1]
    position = np.minimum(position, np.nextafter(1.0, 0.0))
    return np.searchsorted(cumulative, position, side="right")
