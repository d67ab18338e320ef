"""Small functions on tensors whose first axis is that of the examples."""

from __future__ import annotations

import tensorflow as tf

__all__ = [
    "dense_form",
    "joined",
    "positions_folded",
    "rows_from",
    "sizes",
    "squared_by_row",
    "sum_by_row",
    "widened",
]


def dense_form(tensor: tf.Tensor | tf.SparseTensor) -> tf.Tensor:
    """Returns a tensor, of a sparse one all its values.

    Example:
        >>> dense_form(tf.sparse.from_dense([[0, 2]])).numpy()
        array([[0, 2]], dtype=int32)
    """
    if isinstance(tensor, tf.SparseTensor):
        return tf.sparse.to_dense(tensor)
    return tf.convert_to_tensor(tensor)


def widened(tensor: tf.Tensor) -> tf.Tensor:
    """Returns float32 for half precision, so that squares neither vanish nor overflow.

    Example:
        >>> widened(tf.constant(1.0, tf.float16)).dtype
        tf.float32
    """
    return tf.cast(tensor, tf.float32) if tensor.dtype.size < 4 else tensor


def sizes(tensor: tf.Tensor) -> list[int | tf.Tensor]:
    """Returns the length of each axis, as an integer where it is known.

    Example:
        >>> sizes(tf.zeros([2, 3]))
        [2, 3]
    """
    known, actual = tensor.shape.as_list(), tf.shape(tensor)
    return [actual[i] if size is None else size for i, size in enumerate(known)]


def joined(tensors: list[tf.Tensor], axis: int) -> tf.Tensor:
    """Returns the tensors one after the other along `axis`, in float32 at least."""
    return tf.concat([widened(tensor) for tensor in tensors], axis)


def positions_folded(tensor: tf.Tensor, size: int) -> tf.Tensor:
    """Returns `[size, ..., k T, P]` from `[size k, ..., T, P]`."""
    rank = tensor.shape.rank
    *lengths, columns = sizes(tensor)[1:]
    split = tf.reshape(tensor, [size, -1, *lengths, columns])
    axes = [0, *range(2, rank - 1), 1, rank - 1, rank]
    shape = [size, *lengths[:-1], -1, columns]
    return tf.reshape(tf.transpose(split, axes), shape)


def rows_from(tensor: tf.Tensor | tf.SparseTensor, first: int, count: int) -> tf.Tensor:
    """Returns `count` rows from `first` on, of a ragged or sparse tensor too."""
    if isinstance(tensor, tf.SparseTensor):
        begin = [first] + [0] * (tensor.shape.rank - 1)
        return tf.sparse.slice(tensor, begin, [count, *tensor.shape[1:]])
    return tensor[first : first + count]


def sum_by_row(values: tf.Tensor) -> tf.Tensor:
    """Returns `[m]`, the sum of each row of `[m, ...]`."""
    return tf.reduce_sum(values, axis=range(1, values.shape.rank))


def squared_by_row(values: tf.Tensor) -> tf.Tensor:
    """Returns `[m]`, the squared norm of each row of `[m, ...]`."""
    return sum_by_row(tf.square(values))
