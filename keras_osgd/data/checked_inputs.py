"""What `fit` is given, as columns of one length, or refused."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_osgd.base.refusals import NO_EXAMPLES, refuse
from keras_osgd.data.arrays import as_array
from keras_osgd.data.record_columns import Column
from keras_osgd.data.uneven_columns import Uneven, is_uneven, uneven
from keras_osgd.data.weights import leaves_of

__all__ = ["checked"]

_SOURCES = (
    "Importance sampling needs random access to a finite set: pass arrays or "
    "tensors (lists, tuples and dicts of them too), a finite `tf.data.Dataset` or "
    "`PyDataset`, what `keras_osgd.data.indexed` or `.records` return, or compile with "
    "`sampling=keras_osgd.sampling.Presample(ratio=4)`, which draws from what a stream "
    'gives next, or with sampling="uniform" for Keras\' own training.'
)


def checked(x: Any, y: Any, sample_weight: Any) -> tuple[tuple[Any, Any, Any], int]:
    """Returns (x, y, sample_weight) as NumPy arrays of equal length, and the length."""
    parts = {"x": x, "y": y, "sample_weight": sample_weight}
    refuse(_problem_of_source(name, part) for name, part in parts.items())
    arrays = {name: _as_columns(part) for name, part in parts.items()}
    return tuple(arrays.values()), _check_lengths(arrays)


def _problem_of_source(name: str, part: Any) -> str | None:
    leaves = leaves_of(part)
    missing = name == "x" and not leaves
    columns = [leaf for leaf in leaves if is_uneven(leaf)]
    if missing or not all(is_uneven(a) or hasattr(a, "__array__") for a in leaves):
        return f"`{name}` must be arrays. Received: {type(part).__name__}. {_SOURCES}"
    if columns and name != "x":
        return (
            f"`{name}` must be dense. Received: {type(columns[0]).__name__}. Only x "
            "may be ragged or sparse: pad it with `.to_tensor()` or make it dense."
        )
    return None


def _as_columns(part: Any) -> Any:
    """Returns NumPy arrays or columns in tuples, as Keras' own `fit` takes them."""

    def convert(leaf: Any) -> np.ndarray | Column | Uneven | None:
        if leaf is None or isinstance(leaf, Column):
            return leaf
        column = uneven(leaf)
        return as_array(leaf) if column is None else column

    # tf.data would stack a list into one tensor.
    return keras.tree.lists_to_tuples(keras.tree.map_structure(convert, part))


def _check_lengths(arrays: dict[str, Any]) -> int:
    lengths = [
        (name, len(leaf) if leaf.ndim else 0)
        for name, part in arrays.items()
        for leaf in leaves_of(part)
    ]
    first, n = lengths[0]
    refuse(
        f"{first} has {n} examples but {other} has {length}. All arrays must have the "
        "same length: check how they were cut or joined."
        for other, length in lengths
        if length != n
    )
    if n == 0:
        raise ValueError(NO_EXAMPLES)
    return n
