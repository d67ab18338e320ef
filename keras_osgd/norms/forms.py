"""The forms in which per-example gradients are held, and their squared norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from keras_osgd.norms.arrays import (
    positions_folded,
    sizes,
    squared_by_row,
    sum_by_row,
    widened,
)

__all__ = ["Gathered", "PerExample", "Products"]


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
        return squared_by_row(widened(self.gradient)), self.summed(shape)

    def summed(self, shape: Sequence[int]) -> tf.Tensor:
        """Returns `[*shape]`, the gradients' sum."""
        return tf.reshape(tf.reduce_sum(widened(self.gradient), axis=0), shape)


class Products(NamedTuple):
    """Per-example gradients sum_t delta_t a_t', of a kernel that multiplies a_t.

    One product's norm is ||a|| ||delta|| (Goodfellow 2015). That of a sum is taken by
    Gram matrices, T^2 (P + Q) multiplications, or of the sum itself, T P Q.

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
        folded = [positions_folded(x, size) for x in (self.inputs, self.deltas)]
        return self._replace(inputs=folded[0], deltas=folded[1])

    def materialised(self, shape: Sequence[int]) -> tf.Tensor:
        """Returns `[m, *shape]`, the gradients themselves."""
        return self._arranged(self._sums(), shape)

    def measured(self, shape: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Returns the squared norms `[m]` and, where it comes free, their sum."""
        inputs, deltas = widened(self.inputs), widened(self.deltas)
        if inputs.shape[-2] == 1:
            squared = [
                tf.reduce_sum(tf.square(x), axis=(-2, -1)) for x in (inputs, deltas)
            ]
            return sum_by_row(squared[0] * squared[1]), None
        if self.gram_is_cheaper():
            gram = tf.matmul(inputs, inputs, transpose_b=True)
            gram *= tf.matmul(deltas, deltas, transpose_b=True)
            return tf.maximum(sum_by_row(gram), 0), None
        sums = self._sums()
        flat = tf.reshape(sums, [sizes(sums)[0], -1])
        total = tf.matmul(tf.ones_like(flat[:, :1]), flat, transpose_a=True)
        return squared_by_row(sums), self._arranged(total, shape)[0]

    def summed(self, shape: Sequence[int]) -> tf.Tensor:
        """Returns `[*shape]`, the gradients' sum."""
        return tf.reduce_sum(self.materialised(shape), axis=0)

    def gram_is_cheaper(self) -> bool:
        """Returns whether Gram matrices take fewer products than the sums."""
        positions, columns, rows = *self.inputs.shape[-2:], self.deltas.shape[-1]
        return positions is not None and positions * (columns + rows) < columns * rows

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

    def summed(self, shape: Sequence[int]) -> tf.Tensor:
        """Returns `[*shape]`, the gradients' sum."""
        rows = tf.reshape(widened(self.deltas), [-1, shape[1]])
        return tf.math.unsorted_segment_sum(
            rows, tf.reshape(self.indices, [-1]), shape[0]
        )

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
        return squared_by_row(tf.reshape(summed, [size, positions, shape[1]])), None
