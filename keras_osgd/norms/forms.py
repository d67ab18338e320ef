"""The forms in which per-example gradients are held, and their squared norms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

__all__ = [
    "Gathered",
    "InParts",
    "PerExample",
    "Products",
    "combined",
    "dense_form",
    "rows_from",
    "sizes",
    "widened",
]

_PART = 2**21  # entries of the inputs that are made at a time


def dense_form(tensor: tf.Tensor | tf.SparseTensor) -> tf.Tensor:
    """Returns the tensor, made dense if it is sparse.

    Example:
        >>> dense_form(tf.sparse.from_dense([[0, 2]])).numpy()
        array([[0, 2]], dtype=int32)
    """
    if isinstance(tensor, tf.SparseTensor):
        return tf.sparse.to_dense(tensor)
    return tf.convert_to_tensor(tensor)


def widened(tensor: tf.Tensor) -> tf.Tensor:
    """Returns half precision as float32, so that squares neither vanish nor overflow.

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
    """Returns `count` rows from `first` on; the tensor may be ragged or sparse."""
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


class PerExample(NamedTuple):
    """Per-example gradients as they are, for small weights.

    Attributes:
        gradient: `[m, *weight.shape]`.
    """

    gradient: tf.Tensor

    def folded(self, size: int) -> PerExample:
        """Returns `size` rows: an example's consecutive rows are summed."""
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

    The norm of one product is ||a|| ||delta|| (Goodfellow 2015). That of a sum comes
    from Gram matrices by T^2 (P + Q) multiplications, or from the sum itself by T P Q.

    Attributes:
        inputs: `[m, ..., T, P]`, a. Further axes are groups with kernels of their own.
        deltas: `[m, ..., T, Q]`, delta, the loss's gradient with respect to the
            products.
        split: shape that takes the axes of `[..., Q, P]` apart.
        order: order of the axes of `split` in the weight, before a last reshape.
    """

    inputs: tf.Tensor
    deltas: tf.Tensor
    split: tuple[int, ...]
    order: tuple[int, ...]

    def folded(self, size: int) -> Products:
        """Returns `size` rows: an example's rows become further positions."""
        if self.inputs.shape[0] == size:
            return self
        folded = [positions_folded(x, size) for x in (self.inputs, self.deltas)]
        return self._replace(inputs=folded[0], deltas=folded[1])

    def materialised(self, shape: Sequence[int]) -> tf.Tensor:
        """Returns `[m, *shape]`, the gradients themselves."""
        return self._arranged(self._sums(), shape)

    def measured(self, shape: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Returns the squared norms `[m]` and, where it is free, the gradients' sum."""
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
        """Returns whether Gram matrices take fewer multiplications than the sums."""
        positions, columns, rows = *self.inputs.shape[-2:], self.deltas.shape[-1]
        return positions is not None and positions * (columns + rows) < columns * rows

    def _sums(self) -> tf.Tensor:
        # In this order: 0.6-0.85 of the time of the transposed product.
        return tf.matmul(widened(self.deltas), widened(self.inputs), transpose_a=True)

    def _arranged(self, sums: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
        axes = [0, *(axis + 1 for axis in self.order)]
        split = tf.reshape(sums, [-1, *self.split])
        return tf.reshape(tf.transpose(split, axes), [-1, *shape])


class Gathered(NamedTuple):
    """Per-example gradients of rows looked up in a table, such as embeddings.

    Attributes:
        indices: `[m, T]`, rows looked up.
        deltas: `[m, T, Q]`, the loss's gradient with respect to those rows.
    """

    indices: tf.Tensor
    deltas: tf.Tensor

    def folded(self, size: int) -> Gathered:
        """Returns `size` rows: an example's rows become further positions."""
        width = self.deltas.shape[-1]
        return Gathered(
            tf.reshape(self.indices, [size, -1]),
            tf.reshape(self.deltas, [size, -1, width]),
        )

    def products(self, shape: Sequence[int]) -> Products:
        """Returns these gradients as products with one-hot inputs."""
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
        """Returns the squared norms `[m]`, with repeated rows summed, and `None`."""
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


class InParts(NamedTuple):
    """`Products` that are made and measured for a part of the examples at a time.

    For inputs much larger than the tensors that they are made of, such as patches.

    Attributes:
        make: function from rows of `tensors` to their `Products`.
        tensors: `[m, ...]` each.
        width: number of entries of one example's inputs.
    """

    make: Callable[..., Products]
    tensors: tuple[tf.Tensor, ...]
    width: int

    def folded(self, size: int) -> InParts | Products:
        """Returns `size` rows, as `Products.folded` does."""
        if self.tensors[0].shape[0] == size:
            return self
        return self.whole().folded(size)

    def whole(self) -> Products:
        """Returns the products of all examples at once."""
        # Made once the deltas exist: inputs made earlier would be kept until then.
        with tf.control_dependencies(list(self.tensors)):
            return self.make(*map(tf.identity, self.tensors))

    def materialised(self, shape: Sequence[int]) -> tf.Tensor:
        """Returns `[m, *shape]`, the gradients themselves."""
        return self.whole().materialised(shape)

    def summed(self, shape: Sequence[int]) -> tf.Tensor:
        """Returns `[*shape]`, the gradients' sum."""
        return self.whole().summed(shape)

    def measured(self, shape: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Returns the squared norms `[m]` and, where it is free, the gradients' sum."""
        size = self.tensors[0].shape[0]
        fitting = [k for k in range(1, size + 1) if size % k == 0]
        parts = min(k for k in fitting if self.width * size <= k * _PART or k == size)
        if parts == 1:
            return self.whole().measured(shape)
        split = [tf.reshape(t, [parts, -1, *t.shape[1:]]) for t in self.tensors]

        def measure(own: Sequence[tf.Tensor]) -> tuple[tf.Tensor, ...]:
            squared, total = self.make(*own).measured(shape)
            return (squared,) if total is None else (squared, total)

        dtype = widened(self.tensors[0]).dtype
        with_total = not self.make(*(t[0] for t in split)).gram_is_cheaper()
        squared, *totals = tf.map_fn(
            measure,
            split,
            fn_output_signature=(dtype, dtype) if with_total else (dtype,),
            parallel_iterations=1,
        )
        total = tf.reduce_sum(totals[0], axis=0) if with_total else None
        return tf.reshape(squared, [size]), total


def combined(
    forms: Sequence[PerExample | Products | Gathered], shape: Sequence[int]
) -> PerExample | Products | Gathered:
    """Returns the sum of the per-example gradients of one weight over its uses.

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
    forms = [form.whole() if isinstance(form, InParts) else form for form in forms]
    if any(isinstance(form, Products) for form in forms):
        forms = [
            form.products(shape) if isinstance(form, Gathered) else form
            for form in forms
        ]
    if all(isinstance(form, Gathered) for form in forms):
        indices = [tf.cast(form.indices, tf.int64) for form in forms]
        return Gathered(tf.concat(indices, 1), joined([f.deltas for f in forms], 1))
    first = forms[0]
    if all(
        isinstance(form, Products)
        and (form.split, form.order) == (first.split, first.order)
        for form in forms
    ):
        return first._replace(
            inputs=joined([form.inputs for form in forms], -2),
            deltas=joined([form.deltas for form in forms], -2),
        )
    return PerExample(tf.add_n([form.materialised(shape) for form in forms]))
