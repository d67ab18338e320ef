"""The forms in which per-example gradients are held, and their squared norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

__all__ = ["Gathered", "PerExample", "Products", "combined", "sizes", "widened"]


class PerExample(NamedTuple):
    """Per-example gradients as they are, for small weights.

    Attributes:
        gradient: `[m, *weight.shape]`.
    """

    gradient: tf.Tensor

    def folded(self, size: int) -> PerExample:
        """Returns `size` rows from a multiple of it: consecutive rows are summed."""
        if self.gradient.shape[0] == size:
            return self
        shape = [size, -1, *sizes(self.gradient)[1:]]
        return PerExample(tf.reduce_sum(tf.reshape(self.gradient, shape), axis=1))

    def materialised(self, shape: Sequence[int]) -> tf.Tensor:
        """Returns `[m, *shape]`, the gradients themselves."""
        return tf.reshape(widened(self.gradient), [-1, *shape])

    def measured(self, shape: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Returns the squared norms `[m]` and the gradients' sum, `[*shape]`."""
        gradient = widened(self.gradient)
        total = tf.reshape(tf.reduce_sum(gradient, axis=0), shape)
        return _squared_by_row(gradient), total


class Products(NamedTuple):
    """Per-example gradients sum_t delta_t a_t', of a kernel that multiplies a_t.

    The norm of one product is ||a|| ||delta|| (Goodfellow 2015). Of a sum over T
    positions it is taken by the Gram matrices of a and delta, T^2 (P + Q) products, or
    of the sums themselves, T P Q, whichever is less.

    Attributes:
        inputs: `[m, ..., T, P]`, a. Further axes are groups with kernels of their own.
        deltas: `[m, ..., T, Q]`, delta, the loss's gradient with respect to the
            products.
        split: shape of `[..., Q, P]` where its axes are taken apart.
        order: of the axes of `split` in the weight; reshaped, they are the weight.
    """

    inputs: tf.Tensor
    deltas: tf.Tensor
    split: tuple[int, ...]
    order: tuple[int, ...]

    def folded(self, size: int) -> Products:
        """Returns `size` rows from a multiple of it, as further positions."""
        if self.inputs.shape[0] == size:
            return self
        folded = [_positions_folded(x, size) for x in (self.inputs, self.deltas)]
        return self._replace(inputs=folded[0], deltas=folded[1])

    def materialised(self, shape: Sequence[int]) -> tf.Tensor:
        """Returns `[m, *shape]`, the gradients themselves."""
        return self._arranged(self._sums(), shape)

    def measured(self, shape: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Returns the squared norms `[m]` and, where it comes free, their sum."""
        inputs, deltas = widened(self.inputs), widened(self.deltas)
        positions, columns, rows = *inputs.shape[-2:], deltas.shape[-1]
        if positions == 1:
            squared = [
                tf.reduce_sum(tf.square(x), axis=(-2, -1)) for x in (inputs, deltas)
            ]
            return _sum_by_row(squared[0] * squared[1]), None
        if positions is not None and positions * (columns + rows) < columns * rows:
            gram = tf.matmul(inputs, inputs, transpose_b=True)
            gram *= tf.matmul(deltas, deltas, transpose_b=True)
            return tf.maximum(_sum_by_row(gram), 0), None
        sums = self._sums()
        total = tf.reduce_sum(sums, axis=0, keepdims=True)
        return _squared_by_row(sums), self._arranged(total, shape)[0]

    def _sums(self) -> tf.Tensor:
        # This way round: 0.6-0.85 of the time of the transposed product.
        return tf.matmul(widened(self.deltas), widened(self.inputs), transpose_a=True)

    def _arranged(self, sums: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
        axes = [0, *(axis + 1 for axis in self.order)]
        split = tf.reshape(sums, [-1, *self.split])
        return tf.reshape(tf.transpose(split, axes), [-1, *shape])


class Gathered(NamedTuple):
    """Per-example gradients of rows looked up in a table, such as embeddings.

    Attributes:
        indices: `[m, T]`, rows looked up.
        deltas: `[m, T, Q]`, the loss's gradient with respect to what was looked up.
    """

    indices: tf.Tensor
    deltas: tf.Tensor

    def folded(self, size: int) -> Gathered:
        """Returns `size` rows from a multiple of it, as further positions."""
        width = self.deltas.shape[-1]
        return Gathered(
            tf.reshape(self.indices, [size, -1]),
            tf.reshape(self.deltas, [size, -1, width]),
        )

    def products(self, shape: Sequence[int]) -> Products:
        """Returns the same as products with one-hot inputs."""
        inputs = tf.one_hot(self.indices, shape[0], dtype=self.deltas.dtype)
        return Products(inputs, self.deltas, (shape[1], shape[0]), (1, 0))

    def materialised(self, shape: Sequence[int]) -> tf.Tensor:
        """Returns `[m, *shape]`, the gradients themselves."""
        return self.products(shape).materialised(shape)

    def measured(self, shape: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Returns the squared norms `[m]`: equal rows of an example are summed."""
        deltas, (size, positions) = widened(self.deltas), sizes(self.indices)
        order = tf.argsort(self.indices, axis=1)
        ordered = tf.gather(self.indices, order, batch_dims=1)
        deltas = tf.gather(deltas, order, batch_dims=1)
        is_new = tf.cast(ordered[:, 1:] != ordered[:, :-1], tf.int32)
        run = tf.pad(tf.cumsum(is_new, axis=1), [[0, 0], [1, 0]])
        segment = run + positions * tf.range(size)[:, tf.newaxis]
        summed = tf.math.unsorted_segment_sum(
            tf.reshape(deltas, [-1, shape[1]]),
            tf.reshape(segment, [-1]),
            size * positions,
        )
        return _squared_by_row(tf.reshape(summed, [size, positions, shape[1]])), None


def combined(
    forms: Sequence[PerExample | Products | Gathered], shape: Sequence[int]
) -> PerExample | Products | Gathered:
    """Returns the sum of per-example gradients of one weight that is used repeatedly.

    Args:
        forms: one for each use.
        shape: of the weight.

    Example:
        >>> once = PerExample(tf.constant([[3.0], [4.0]]))
        >>> combined([once, once], [1]).gradient.numpy()
        array([[6.],
               [8.]], dtype=float32)
    """
    if len(forms) == 1:
        return forms[0]
    if any(isinstance(form, Products) for form in forms):
        forms = [
            form.products(shape) if isinstance(form, Gathered) else form
            for form in forms
        ]
    if all(isinstance(form, Gathered) for form in forms):
        indices = [tf.cast(form.indices, tf.int64) for form in forms]
        return Gathered(tf.concat(indices, 1), _joined([f.deltas for f in forms], 1))
    first = forms[0]
    if all(
        isinstance(form, Products)
        and (form.split, form.order) == (first.split, first.order)
        for form in forms
    ):
        return first._replace(
            inputs=_joined([form.inputs for form in forms], -2),
            deltas=_joined([form.deltas for form in forms], -2),
        )
    return PerExample(tf.add_n([form.materialised(shape) for form in forms]))


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


def _joined(tensors: list[tf.Tensor], axis: int) -> tf.Tensor:
    return tf.concat([widened(tensor) for tensor in tensors], axis)


def _positions_folded(tensor: tf.Tensor, size: int) -> tf.Tensor:
    """Returns `[size, ..., k T, P]` from `[size k, ..., T, P]`."""
    rank = tensor.shape.rank
    *lengths, columns = sizes(tensor)[1:]
    split = tf.reshape(tensor, [size, -1, *lengths, columns])
    axes = [0, *range(2, rank - 1), 1, rank - 1, rank]
    shape = [size, *lengths[:-1], -1, columns]
    return tf.reshape(tf.transpose(split, axes), shape)


def _sum_by_row(values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(values, axis=range(1, values.shape.rank))


def _squared_by_row(values: tf.Tensor) -> tf.Tensor:
    return _sum_by_row(tf.square(values))
