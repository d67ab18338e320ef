"""Arrays that users give, in the types that Keras' own `fit` gives them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

__all__ = ["as_array", "in_floatx", "parts_of", "row_numbers", "type_kept"]

_AT_ONCE = 2**20  # values in a part, where all of them are checked


def as_array(leaf: Any) -> np.ndarray:
    """Returns `leaf` as an array, floats as `floatx`; copied only where needed.

    Args:
        leaf: an array, a tensor, or a pandas table; a Series becomes `[n, 1]`.
    """
    array = np.asarray(leaf)
    if hasattr(leaf, "iloc") and array.ndim == 1:
        array = array[:, np.newaxis]
    return in_floatx(array)


def in_floatx(array: np.ndarray) -> np.ndarray:
    """Returns the array, floats as `floatx`."""
    return array.astype(type_kept(array.dtype), copy=False)


def type_kept(dtype: np.dtype) -> np.dtype:
    """Returns `floatx` for floats of any size, else the type itself."""
    is_float = dtype.name.startswith(("float", "bfloat"))
    return np.dtype(keras.config.floatx()) if is_float else dtype


def parts_of(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields parts of the rows, each after its first row's number, to save memory.

    Example:
        >>> [first for first, part in parts_of(np.zeros([3, 2**20]))]
        [0, 1, 2]
    """
    rows = max(1, _AT_ONCE // max(1, array[:1].size))
    for first in range(0, len(array), rows):
        yield first, array[first : first + rows]


def row_numbers(rows: Any, n: int) -> np.ndarray:
    """Returns the row numbers that `rows` selects; time grows with `rows`, not n.

    Args:
        rows: a number, counted from the end if negative; an array of numbers or of n
            booleans; or a slice.
        n: number of all rows.

    Example:
        >>> row_numbers(slice(1, None, 2), 5), int(row_numbers(-1, 5))
        (array([1, 3]), 4)
    """
    if isinstance(rows, slice):
        return np.arange(*rows.indices(n))
    index = np.asarray(rows)
    if index.dtype == bool:
        return np.flatnonzero(index)
    return np.where(index < 0, index + n, index)
