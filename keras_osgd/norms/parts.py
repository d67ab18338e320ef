"""Forms of forms: products made in parts, and the sum of one weight's uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from keras_osgd.norms.arrays import joined, widened
from keras_osgd.norms.forms import Gathered, PerExample, Products

__all__ = ["InParts", "combined"]

_PART = 2**21  # entries of the inputs that are made at a time


class InParts(NamedTuple):
    """`Products` that are made and measured for a part of the examples at a time.

    For inputs that take much more room than what they are made of, as patches do.

    Attributes:
        make: from rows of `tensors` to their `Products`.
        tensors: `[m, ...]` each.
        width: entries that one example's inputs take.
    """

    make: Callable[..., Products]
    tensors: tuple[tf.Tensor, ...]
    width: int

    def folded(self, size: int) -> InParts | Products:
        """Returns `size` rows from a multiple of it."""
        if self.tensors[0].shape[0] == size:
            return self
        return self.whole().folded(size)

    def whole(self) -> Products:
        """Returns the products of all examples at once."""
        # Not as soon as the forward pass allows, to be kept through the backward pass.
        with tf.control_dependencies(list(self.tensors)):
            return self.make(*map(tf.identity, self.tensors))

    def materialised(self, shape: Sequence[int]) -> tf.Tensor:
        """Returns `[m, *shape]`, the gradients themselves."""
        return self.whole().materialised(shape)

    def summed(self, shape: Sequence[int]) -> tf.Tensor:
        """Returns `[*shape]`, the gradients' sum."""
        return self.whole().summed(shape)

    def measured(self, shape: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Returns the squared norms `[m]` and, where it comes free, their sum."""
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
