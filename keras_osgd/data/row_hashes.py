"""A hash of each row, by which training data are known again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from keras_osgd.data.uneven_columns import Uneven

__all__ = ["row_hashes"]

_AT_ONCE = 2**20  # bytes of rows in a part, copied to be hashed
_STEP, _MIX_1, _MIX_2 = (  # of SplitMix64 (Steele, Lea & Flood 2014)
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
)
_FAMILY = 2**40  # more numbers than a row has words


def row_hashes(leaves: Sequence[np.ndarray | Uneven]) -> np.ndarray:
    """Returns `[n]` uint64: equal for rows of equal bytes, hardly ever for others.

    A row's hash is the sum of its 32-bit words, each times a number of its own, modulo
    2^64. For random numbers, the upper halves of the hashes of two different rows are
    equal with probability 2^-32 (multilinear hashing; Lemire & Kaser 2014). The numbers
    are always the same, and so are the hashes in every process.

    Args:
        leaves: arrays or columns of n rows, in memory. A megabyte is copied at a time.

    Example:
        >>> a, b, c = row_hashes([np.array([1.0, 1.0, -0.0])])
        >>> bool(a == b), bool(a == c)
        (True, False)
    """
    total = np.zeros(len(leaves[0]), np.uint64)
    for order, leaf in enumerate(leaves):
        for rows in _parts(leaf):
            total[rows] += _hashes(leaf, rows, order * _FAMILY * 2**8)
    return total


def _parts(leaf: np.ndarray | Uneven) -> Iterator[slice]:
    n = len(leaf)
    rows = max(1, _AT_ONCE * n // max(1, leaf.nbytes))
    for first in range(0, n, rows):
        yield slice(first, min(first + rows, n))


def _hashes(leaf: np.ndarray | Uneven, rows: slice, first: int) -> np.ndarray:
    if isinstance(leaf, Uneven):
        taken = leaf.take(np.arange(rows.start, rows.stop))
        return _of_uneven(taken, len(leaf.splits), first)
    if leaf.dtype.hasobject:
        return _of_texts(leaf[rows], first)
    return _of_dense(leaf[rows], first)


def _numbers(first: int, count: int) -> np.ndarray:
    """Returns `count` fixed random numbers, uint64, from the one at `first` on."""
    z = (np.arange(count, dtype=np.uint64) + np.uint64(first + 1)) * _STEP
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def _of_dense(rows: np.ndarray, first: int) -> np.ndarray:
    size = rows[:1].nbytes  # `rows` may be no row, or of no values
    words = -(-size // 4)
    if not words:
        return np.zeros(len(rows), np.uint64)
    contents = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    if size % 4:
        padded = np.zeros([len(rows), 4 * words], np.uint8)
        padded[:, :size] = contents
        contents = padded
    wide = contents.view(np.uint32).astype(np.uint64)
    return np.einsum("ij,j->i", wide, _numbers(first, words))


def _of_texts(rows: np.ndarray, first: int) -> np.ndarray:
    """Returns hashes of values that lie elsewhere, such as strings."""
    digests = [
        hashlib.blake2b(repr(row).encode(), digest_size=8).digest()
        for row in rows.tolist()
    ]
    return np.frombuffer(b"".join(digests), np.uint64) * _numbers(first, 1)


def _of_uneven(taken: Sequence[np.ndarray], levels: int, first: int) -> np.ndarray:
    """Returns hashes of the result of `Uneven.take` with that many splits.

    The hash of an axis is the sum of its entries' hashes, each times the number of its
    place, and of its length times a number.
    """
    splits, entries = taken[:levels], taken[levels:]
    hashes = np.zeros(len(entries[0]), np.uint64)
    for order, entry in enumerate(entries):
        hashes += _of_dense(entry, first + order * _FAMILY)
    for level, split in enumerate(reversed(splits), start=len(entries)):
        lengths = np.diff(split)
        places = np.arange(split[-1]) - np.repeat(split[:-1], lengths)
        by_place = _numbers(first + level * _FAMILY, int(lengths.max(initial=0)) + 1)
        sums = np.zeros(len(hashes) + 1, np.uint64)
        np.cumsum(hashes * by_place[places + 1], out=sums[1:])
        hashes = sums[split[1:]] - sums[split[:-1]]
        hashes += lengths.astype(np.uint64) * by_place[0]
    return hashes
