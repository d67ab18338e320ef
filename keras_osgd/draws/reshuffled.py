"""A block's draws: which training examples the next few steps will see.

The functions are pure; the only state, the mass each example is owed, is passed in
and returned.
"""

from typing import NamedTuple

import numpy as np

from keras_osgd.base.chunks import chunks
from keras_osgd.draws.densities import RESIDUE, block_density
from keras_osgd.draws.systematic import search, spread, systematic


class Reshuffled(NamedTuple):
    """A block of reshuffled draws and the state that it leaves behind.

    Attributes:
        index: `[size]`, int64, in 0..n-1. The examples, in the order of the steps.
        owed: `[n]`, float64, any sign, in visits of weight 1: for the next block.
        credit: mass the block gave every example, over size/n: the mean weight to
            expect of its draws. 1 in the first block, and near 1 while p moves
            smoothly; p times it makes weights whose mean is 1.
    """

    index: np.ndarray
    owed: np.ndarray
    credit: float


def reshuffled(
    owed: np.ndarray, probability: np.ndarray, size: int, rng: np.random.Generator
) -> Reshuffled:
    """Returns a block of draws that gives every example the weight it is owed.

    Credits every example with the same mass, about size/n, draws by systematic
    sampling along a fresh random order of all examples with the density of
    `cycle_density`, puts the draws in random order (`spread`), and subtracts the
    importance weight 1/(n p_i) for each visit. With uniform p and blocks that divide
    n, it visits every example once an epoch.

    Args:
        owed: `[n]`, in visits of weight 1: zeros at first, then what the last
            block returned. Not changed in place.
        probability: `[n]`, > 0, sums to 1. Target probability p of this block.
        size: number of draws, >= 1; may exceed n.
        rng: source of all randomness.

    Returns:
        The block's indices, the new owed masses and the credit.

    Raises:
        ValueError: if `size` is below 1, `probability` is no distribution or has a
            0 (or a number whose inverse is none), or `owed` has another shape or an
            entry that is not finite.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> block = reshuffled(np.zeros(4), np.full(4, 0.25), 4, rng)
        >>> np.sort(block.index)
        array([0, 1, 2, 3])
    """
    probability = _checked(probability, size)
    owed = _checked_mass(owed, probability)
    density, credit = block_density(owed, probability, size)
    # Of those that may be visited, about half, alone: the others take up no place.
    permutation = rng.permutation(np.flatnonzero(density > 0.0))
    # The middle of one of 2^32 cells, so never so close to an integer that the
    # rounding of the cumulative sum decides between two neighbours.
    offset = (rng.integers(2**32) + 0.5) / 2**32
    index = systematic(density, size, permutation, offset)
    index = spread(index, rng.random(size))
    owed += credit
    np.subtract.at(owed, index, _weights(probability, index))
    return Reshuffled(index, owed, credit * density.size / size)


def refund(owed: np.ndarray, probability: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Returns the owed masses after giving back visits that never took place.

    The inverse of the subtraction in `reshuffled`, for draws that were planned
    and then not used, as when training stops inside a block.

    Args:
        owed: `[n]`, in visits of weight 1. Not changed in place.
        probability: `[n]`, > 0 where drawn. The p that `index` was drawn with.
        index: `[unused]`, integer, in 0..n-1.

    Returns:
        `[n]`, float64: `owed` + 1/(n p_i) for each unused visit of example i.

    Example:
        >>> refund(np.array([-1.0, 1.0]), np.array([0.5, 0.5]), np.array([0]))
        array([0., 1.])
    """
    owed = np.array(owed, np.float64)
    np.add.at(owed, index, _weights(np.asarray(probability, np.float64), index))
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
    # In their order, as a search that leaps waits for memory: a fifth of the time.
    order = np.argsort(position)
    index = np.empty(size, np.int64)
    index[order] = search(probability, position[order])
    return index


def _weights(probability: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Returns `[k]`, 1/(n p_i) of the draws `index`."""
    # Of those drawn alone: 1/(n p) is infinite where p = 0.
    return 1.0 / (probability.size * probability[index])


def _checked_mass(owed: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Returns `[n]`, the owed masses as float64, free of residues."""
    owed = np.asarray(owed, np.float64)
    if owed.shape != probability.shape:
        raise ValueError(
            "`owed` must have one entry per training example, as `probability` has. "
            f"Received: shapes {owed.shape} and {probability.shape}. "
            "Start from zeros when the training set changes."
        )
    # The smallest normal number: the inverses of those below overflow.
    if not (probability >= np.finfo(np.float64).tiny).all():
        raise ValueError(
            "`probability` must be above 0 for every example, each of which is owed "
            f"visits. Received: {probability.min()} at index {probability.argmin()}. "
            "Mix in a floor, or use independent draws."
        )
    if not np.isfinite(owed).all():
        raise ValueError(
            "`owed` must be finite. Received: "
            f"{owed[~np.isfinite(owed)][0]}. Start from zeros."
        )
    owed = owed.copy()
    for rows in chunks(len(owed)):
        owed[rows][np.abs(owed[rows]) < RESIDUE] = 0.0
    return owed


def _checked(probability: np.ndarray, size: int) -> np.ndarray:
    """Returns `probability` as float64, or raises if it is no distribution."""
    probability = np.asarray(probability, np.float64)
    if size < 1:
        raise ValueError(
            "`size`, the number of draws in a block, must be at least 1. "
            f"Received: size={size}. Ask for a block of at least one batch."
        )
    # Written so that NaN fails too; 1e-4 admits probabilities made in float32.
    total = probability.sum()
    if probability.ndim != 1 or not (probability >= 0.0).all() & (
        abs(total - 1) < 1e-4
    ):
        raise ValueError(
            "`probability` must be one row of numbers >= 0 that sum to 1. "
            f"Received: shape {probability.shape}, sum {total}. "
            "Divide the scores by their sum, and look for NaN among them."
        )
    return probability
