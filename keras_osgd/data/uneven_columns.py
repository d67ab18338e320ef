"""Ragged and sparse inputs as columns whose rows are taken by number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
import tensorflow as tf

from keras_osgd.data.arrays import in_floatx, row_numbers

__all__ = [
    "RaggedColumn",
    "SparseColumn",
    "Uneven",
    "dtypes_of",
    "is_uneven",
    "taken_from",
    "uneven",
]


class Uneven:
    """Rows of different lengths, held as entries and the place where each begins.

    Args:
        splits: row splits of each ragged axis, outermost first, as in a
            `tf.RaggedTensor`.
        entries: arrays `[k, ...]` of the rows' entries: values, then any indices.
        shape: shape of all rows, n first; `None` where rows differ.
    """

    def __init__(
        self,
        splits: Sequence[np.ndarray],
        entries: Sequence[np.ndarray],
        shape: tuple[int | None, ...],
    ) -> None:
        """Keeps the arrays as they are."""
        self.splits, self.entries, self.shape = list(splits), list(entries), shape
        self.dtype = self.entries[0].dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dtypes(self) -> list[np.dtype]:
        """Types of the arrays that `take` returns."""
        return [array.dtype for array in (*self.splits, *self.entries)]

    @property
    def nbytes(self) -> int:
        """Bytes of all splits and entries."""
        return sum(array.nbytes for array in (*self.splits, *self.entries))

    def __len__(self) -> int:
        """Returns n."""
        return len(self.splits[0]) - 1

    def __getitem__(self, rows: Any) -> tf.RaggedTensor | tf.SparseTensor:
        """Returns rows by number, slice or array of numbers, as a tensor."""
        index = np.atleast_1d(row_numbers(rows, len(self)))
        return self.tensor([tf.convert_to_tensor(a) for a in self.take(index)])

    def take(self, rows: np.ndarray) -> list[np.ndarray]:
        """Returns splits and entries of some rows, `[k]` integers."""
        taken = []
        for splits in self.splits:
            starts, lengths = splits[rows], splits[rows + 1] - splits[rows]
            begun = np.zeros(len(rows) + 1, splits.dtype)
            np.cumsum(lengths, out=begun[1:])
            taken.append(begun)
            rows = np.repeat(starts - begun[:-1], lengths) + np.arange(begun[-1])
        return [*taken, *(np.ascontiguousarray(entry[rows]) for entry in self.entries)]

    def tensor(self, taken: Sequence[tf.Tensor]) -> Any:
        """Returns the result of `take` as a ragged or sparse tensor."""
        raise NotImplementedError

    def finite(self, rows: np.ndarray) -> np.ndarray:
        """Returns `[k]`, whether all values of each row are finite."""
        place = len(self.splits)
        values = (self.take(rows[i : i + 1])[place] for i in range(len(rows)))
        return np.array([np.isfinite(v.astype(np.float32)).all() for v in values], bool)

    def set_shapes(self, taken: Sequence[tf.Tensor], size: int | None) -> None:
        """Tells TensorFlow the shapes of the result of `take` for `size` rows."""
        for place, tensor in enumerate(taken):
            length = None if place or size is None else size + 1
            inner = () if place < len(self.splits) else self._inner(place)
            tensor.set_shape([length, *inner])

    def _inner(self, place: int) -> tuple[int, ...]:
        return self.entries[place - len(self.splits)].shape[1:]

    @classmethod
    def joined(cls, columns: Sequence[Uneven]) -> Uneven:
        """Returns one column with the rows of all columns."""
        splits = []
        for level in zip(*(column.splits for column in columns), strict=True):
            lengths = np.concatenate([np.diff(part) for part in level])
            splits.append(np.concatenate([[0], np.cumsum(lengths)]))
        entries = zip(*(column.entries for column in columns), strict=True)
        n, inner = sum(map(len, columns)), columns[0].shape[1:]
        return cls(splits, [np.concatenate(parts) for parts in entries], (n, *inner))


class RaggedColumn(Uneven):
    """Column of a `tf.RaggedTensor`.

    Example:
        >>> column = uneven(tf.ragged.constant([[1, 2], [], [3]]))
        >>> column[[2, 0]].to_list()
        [[3], [1, 2]]
    """

    def tensor(self, taken: Sequence[tf.Tensor]) -> tf.RaggedTensor:
        """Returns a `tf.RaggedTensor`."""
        *splits, values = taken
        return tf.RaggedTensor.from_nested_row_splits(values, splits, validate=False)


class SparseColumn(Uneven):
    """Column of a `tf.SparseTensor` or of a sparse SciPy matrix.

    Example:
        >>> column = uneven(scipy.sparse.csr_array([[0, 5], [7, 0]]))
        >>> tf.sparse.to_dense(column[[1, 1]]).numpy()
        array([[7, 0],
               [7, 0]])
    """

    def tensor(self, taken: Sequence[tf.Tensor]) -> tf.SparseTensor:
        """Returns a `tf.SparseTensor`."""
        splits, values, inner = taken
        size = splits.shape[0]
        rows = tf.repeat(
            tf.range(tf.size(splits) - 1), splits[1:] - splits[:-1], name="rows"
        )
        inner = tf.reshape(tf.cast(inner, tf.int64), [-1, self.ndim - 1])
        indices = tf.concat([tf.cast(rows, tf.int64)[:, None], inner], axis=1)
        indices = tf.ensure_shape(indices, [None, self.ndim])
        size = tf.size(splits) - 1 if size is None else size - 1
        return tf.SparseTensor(indices, values, (size, *self.shape[1:]))


def dtypes_of(leaf: Any) -> list[np.dtype]:
    """Returns the types of the arrays that `taken_from` returns."""
    return leaf.dtypes if isinstance(leaf, Uneven) else [leaf.dtype]


def taken_from(leaf: Any, rows: np.ndarray) -> list[np.ndarray]:
    """Returns rows of an array or a column, as a list of arrays."""
    if isinstance(leaf, Uneven):
        return leaf.take(rows)
    return [np.ascontiguousarray(leaf[rows])]


def is_uneven(part: Any) -> bool:
    """Returns whether `uneven` makes a column of `part`."""
    return scipy.sparse.issparse(part) or isinstance(
        part, Uneven | tf.RaggedTensor | tf.SparseTensor
    )


def uneven(part: Any) -> Uneven | None:
    """Returns a column of a ragged or sparse input, `None` for anything else.

    Args:
        part: its floats become `floatx`, as in Keras; entries are not copied if
            they have that type and are in order of their rows.
    """
    if isinstance(part, Uneven):
        return part
    if isinstance(part, tf.RaggedTensor):
        splits = [np.asarray(split) for split in part.nested_row_splits]
        values = in_floatx(np.asarray(part.flat_values))
        return RaggedColumn(splits, [values], tuple(part.shape))
    if isinstance(part, tf.SparseTensor):
        return _sparse_column(part)
    if scipy.sparse.issparse(part):
        matrix = part.tocsr()
        if not matrix.has_sorted_indices:
            matrix = matrix.sorted_indices()
        entries = [in_floatx(matrix.data), matrix.indices]
        return SparseColumn([matrix.indptr], entries, matrix.shape)
    return None


def _sparse_column(part: tf.SparseTensor) -> SparseColumn:
    indices, n = np.asarray(part.indices), int(part.dense_shape[0])
    if (np.diff(indices[:, 0]) < 0).any():
        part = tf.sparse.reorder(part)
        indices = np.asarray(part.indices)
    splits = np.searchsorted(indices[:, 0], np.arange(n + 1))
    entries = [in_floatx(np.asarray(part.values)), indices[:, 1:]]
    return SparseColumn([splits], entries, (n, *part.shape[1:]))
