"""Per-example gradient norms of the last layer, from the step's own backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_osgd import keras_compat

__all__ = ["Head", "Heads", "recording", "squared_gradient", "squared_norms"]

_WITH_KERNEL = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_ELEMENTWISE = (
    keras.layers.Activation,
    keras.layers.ELU,
    keras.layers.LeakyReLU,
    keras.layers.ReLU,
    keras.layers.Softmax,
)


class Head(NamedTuple):
    """What one output of the model was made of.

    Attributes:
        pre_activation: `[m, ...]`, z, whose gradient is delta.
        inputs: `[m, ..., k]`, a, where z is a Dense layer's; else `None`.
        bias: whether that layer has a bias.
    """

    pre_activation: tf.Tensor
    inputs: tf.Tensor | None
    bias: bool


class _Record(NamedTuple):
    layer: keras.Layer
    inputs: tf.Tensor
    pre_activation: tf.Tensor
    output: tf.Tensor


class Heads:
    """Finds, after a forward pass, the pre-activation of each output."""

    def __init__(self) -> None:
        """Starts with no layer recorded."""
        self._records: list[_Record] = []

    def record(self, layer, inputs, pre_activation, output) -> None:
        """Notes one call of a layer."""
        self._records.append(_Record(layer, inputs, pre_activation, output))

    def of(self, y_pred: tf.Tensor) -> Head:
        """Returns the head of one output: z is `y_pred` itself where none is found."""
        tensor = keras_compat.logits(y_pred)
        for record in reversed(self._records):
            if record.output is not tensor and record.pre_activation is not tensor:
                continue
            layer = record.layer
            if isinstance(layer, _ELEMENTWISE):
                tensor = keras_compat.logits(record.inputs)
                continue
            dense = type(layer).call is keras.layers.Dense.call
            return Head(
                record.pre_activation,
                record.inputs if dense else None,
                dense and layer.use_bias,
            )
        return Head(tensor, None, False)


@contextlib.contextmanager
def recording(model: keras.Model) -> Iterator[Heads]:
    """Records the calls of layers that may be a model's last, for one forward pass.

    An activation inside a Dense, EinsumDense or convolution is taken off for the length
    of the call and applied after it, which is the same arithmetic, so that z exists as a
    tensor of its own.

    Args:
        model: any Keras model; its outputs stay bit for bit what they were.
    """
    heads = Heads()
    layers = [
        layer
        for layer in keras_compat.layers_of(model)
        if isinstance(layer, _WITH_KERNEL + _ELEMENTWISE)
    ]
    for layer in layers:
        vars(layer)["call"] = _recorded_call(layer, heads)
    try:
        yield heads
    finally:
        for layer in layers:
            vars(layer).pop("call", None)


def _recorded_call(layer: keras.Layer, heads: Heads):
    original = layer.call

    def call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, _ELEMENTWISE):
            output = original(inputs, *args, **kwargs)
            heads.record(layer, inputs, output, output)
            return output
        activation = vars(layer).get("activation")
        vars(layer)["activation"] = None
        try:
            pre_activation = original(inputs, *args, **kwargs)
        finally:
            vars(layer)["activation"] = activation
        output = pre_activation if activation is None else activation(pre_activation)
        heads.record(layer, inputs, pre_activation, output)
        return output

    return call


def squared_norms(head: Head, delta: tf.Tensor) -> tf.Tensor:
    """Returns each example's squared gradient norm with respect to the last layer.

    (||a||^2 + 1) ||delta||^2 for a Dense layer with bias on `[m, k]` inputs (Goodfellow
    2015); its Gram form ||sum_t a_t delta_t'||^2 + ||sum_t delta_t||^2 on sequences;
    ||delta||^2, the gradient of one bias for each output value, for other heads.

    Args:
        head: what `Heads.of` returned.
        delta: like `head.pre_activation`. Row i is the gradient of example i's loss.

    Returns:
        `[m]`, >= 0, float32; in the units of `delta` squared.
    """
    delta = _by_position(tf.cast(delta, tf.float32), head)
    if head.inputs is None:
        return tf.reduce_sum(tf.square(delta), axis=(1, 2))
    inputs = _by_position(tf.cast(head.inputs, tf.float32), head)
    if delta.shape[1] == 1:
        factor = tf.reduce_sum(tf.square(inputs), axis=(1, 2))
        factor += 1.0 if head.bias else 0.0
        return factor * tf.reduce_sum(tf.square(delta), axis=(1, 2))
    gram = tf.matmul(inputs, inputs, transpose_b=True)
    gram += 1.0 if head.bias else 0.0
    gram *= tf.matmul(delta, delta, transpose_b=True)
    return tf.maximum(tf.reduce_sum(gram, axis=(1, 2)), 0.0)


def squared_gradient(head: Head, delta: tf.Tensor) -> tf.Tensor:
    """Returns ||g||^2 of the last layer's parameters, regularisation left out.

    Args:
        head: what `Heads.of` returned.
        delta: like `head.pre_activation`. Row i is the gradient of the batch's loss
            with respect to z_i, so its weight and the 1/m are in it.

    Returns:
        `[]`, in the units of `squared_norms`.
    """
    delta = _by_position(tf.cast(delta, tf.float32), head)
    if head.inputs is None:
        return tf.reduce_sum(tf.square(tf.reduce_sum(delta, axis=0)))
    rows = tf.reshape(delta, [-1, delta.shape[-1]])
    inputs = tf.cast(head.inputs, tf.float32)
    columns = tf.reshape(inputs, [-1, inputs.shape[-1]])
    kernel = tf.matmul(columns, rows, transpose_a=True)
    squared = tf.reduce_sum(tf.square(kernel))
    if head.bias:
        squared += tf.reduce_sum(tf.square(tf.reduce_sum(rows, axis=0)))
    return squared


def _by_position(tensor: tf.Tensor, head: Head) -> tf.Tensor:
    """Returns `tensor` as `[m, positions, values]`; one position without a kernel."""
    size = tf.shape(tensor)[0]
    if head.inputs is None or tensor.shape.rank == 2:
        values = tensor.shape[1:].num_elements()
        if tensor.shape.rank == 1:
            values = 1
        shape = [size, 1, -1 if values is None else values]
    else:
        positions = tensor.shape[1:-1].num_elements()
        shape = [size, -1 if positions is None else positions, tensor.shape[-1]]
    return tf.reshape(tensor, shape)
