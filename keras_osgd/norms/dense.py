"""Per-example gradients of matrix products, embeddings and PReLU."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.norms.forms import (
    Gathered,
    PerExample,
    Products,
    dense_form,
    sizes,
    widened,
)
from keras_osgd.norms.rules import Call, Uses, register

__all__ = ["bias_form", "by_position"]

_LAYERS = keras.layers


def by_position(tensor: tf.Tensor) -> tf.Tensor:
    """Returns `[m, T, k]` from `[m, ..., k]`; T is 1 for `[m, k]`.

    Example:
        >>> by_position(tf.zeros([2, 3, 4, 5])).shape
        TensorShape([2, 12, 5])
    """
    first, *positions, last = sizes(tensor)
    known = all(isinstance(length, int) for length in positions)
    count = int(np.prod(positions)) if known else -1
    return tf.reshape(tensor, [first, count, last])


def _as_float(call: Call) -> tf.Tensor:
    """Returns the inputs, which may be integers, as floating-point numbers."""
    inputs = dense_form(call.inputs)
    return inputs if inputs.dtype.is_floating else tf.cast(inputs, call.delta.dtype)


def bias_form(delta: tf.Tensor, axes: tuple[int, ...] = (-1,)) -> PerExample:
    """Returns the gradients of a weight that is added along `axes` of the output."""
    rank = delta.shape.rank
    kept = {axis % rank for axis in axes}
    others = [axis for axis in range(1, rank) if axis not in kept]
    return PerExample(tf.reduce_sum(widened(delta), axis=others) if others else delta)


@register(_LAYERS.Dense, pre_activation=True)
def dense(call: Call) -> Uses:
    """Dense: the sum over positions of delta_t a_t', and of delta_t for the bias."""
    layer = call.layer
    inputs, deltas = by_position(_as_float(call)), by_position(call.delta)
    split = (deltas.shape[-1], layer.kernel.shape[0])
    found: Uses = [(layer.kernel, Products(inputs, deltas, split, (1, 0)))]
    if layer.bias is not None:
        found.append((layer.bias, bias_form(deltas)))
    return found


@register(_LAYERS.EinsumDense, pre_activation=True)
def einsum_dense(call: Call) -> Uses:
    """EinsumDense: the gradients of Dense, along the axes that the equation names."""
    layer = call.layer
    terms = _terms(layer.equation, call.inputs.shape.rank)
    if terms is None:
        return []
    of_inputs, of_kernel, of_output = terms
    example = of_inputs[0]
    summed = [x for x in of_inputs if x not in of_kernel + of_output]
    groups = [x for x in of_kernel if x in of_inputs and x in of_output]
    columns = [x for x in of_kernel if x in of_inputs and x not in of_output]
    rows = [x for x in of_kernel if x in of_output and x not in of_inputs]
    positions = [x for x in of_inputs[1:] if x in of_output and x not in of_kernel]
    if example in of_kernel or of_output[0] != example or summed:
        return []
    if len(groups + columns + rows) != len(of_kernel):
        return []
    inputs = _flattened(_as_float(call), of_inputs, groups, positions, columns)
    deltas = _flattened(call.delta, of_output, groups, positions, rows)
    length = dict(zip(of_kernel, layer.kernel.shape, strict=True))
    unfolded = groups + rows + columns
    split = tuple(length[x] for x in unfolded)
    order = tuple(unfolded.index(x) for x in of_kernel)
    found: Uses = [(layer.kernel, Products(inputs, deltas, split, order))]
    if layer.bias is not None:
        lengths = layer.bias.shape
        rank = call.delta.shape.rank
        kept = [rank - len(lengths) + i for i, n in enumerate(lengths) if n != 1]
        found.append((layer.bias, bias_form(call.delta, tuple(kept))))
    return found


def _terms(equation: str, rank: int) -> tuple[str, str, str] | None:
    """Returns the axes' letters of inputs, kernel and output; `None` if one repeats."""
    left, output = equation.replace(" ", "").split("->")
    inputs, kernel = left.split(",")
    if "..." in equation:
        spare = [x for x in map(chr, range(65, 91)) if x not in equation]
        ellipsis = "".join(spare[: rank - len(inputs.replace("...", ""))])
        inputs, output = (x.replace("...", ellipsis) for x in (inputs, output))
    terms = inputs, kernel, output
    return terms if all(len(set(x)) == len(x) for x in terms) else None


def _flattened(tensor, letters, groups, positions, last) -> tf.Tensor:
    """Returns `[m, groups..., T, k]`; T and k each flatten several axes."""
    order = [letters[0], *groups, *positions, *last]
    tensor = tf.transpose(tensor, [letters.index(x) for x in order])
    length = dict(zip(order, sizes(tensor), strict=True))
    known = all(isinstance(length[x], int) for x in positions)
    count = int(np.prod([length[x] for x in positions])) if known else -1
    width = int(np.prod([length[x] for x in last]))
    shape = [length[letters[0]], *(length[x] for x in groups), count, width]
    return tf.reshape(tensor, shape)


@register(_LAYERS.Embedding)
def embedding(call: Call) -> Uses:
    """Embedding: delta_t in the row that was looked up."""
    table = call.layer.embeddings
    indices = tf.reshape(tf.cast(call.inputs, tf.int64), [sizes(call.inputs)[0], -1])
    width = call.delta.shape[-1]
    deltas = tf.reshape(call.delta, [*sizes(indices), width])
    return [(table, Gathered(indices, deltas))]


@register(_LAYERS.ReversibleEmbedding)
def reversible_embedding(call: Call) -> Uses:
    """ReversibleEmbedding: an embedding, or the product with its transpose."""
    layer = call.layer
    if not call.arguments["reverse"]:
        return embedding(call)
    if layer.logit_soft_cap is not None:
        return []
    inputs, deltas = by_position(call.inputs), by_position(call.delta)
    width, rows = inputs.shape[-1], deltas.shape[-1]
    if layer.tie_weights:
        return [(layer.embeddings, Products(deltas, inputs, (width, rows), (1, 0)))]
    form = Products(inputs, deltas, (rows, width), (1, 0))
    return [(layer.reverse_embeddings, form)]


@register(_LAYERS.PReLU)
def prelu(call: Call) -> Uses:
    """PReLU: delta times the negative part, summed over the shared axes."""
    alpha = call.layer.alpha
    gradient = widened(call.delta) * tf.minimum(widened(call.inputs), 0)
    shared = [i + 1 for i, length in enumerate(alpha.shape) if length == 1]
    summed = tf.reduce_sum(gradient, axis=shared, keepdims=True)
    return [(alpha, PerExample(summed))]
