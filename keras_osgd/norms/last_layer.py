"""Per-example gradient norms of the last layer, from the step's own backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_osgd.base import keras_compat, replicas
from keras_osgd.losses.described import OutputLoss, output_of, weights_for
from keras_osgd.norms.calls import replaced_calls, without_activation
from keras_osgd.norms.forms import dense_form, sizes

__all__ = [
    "Head",
    "heads_of",
    "last_layer_squares",
    "recording",
    "squared_gradient",
    "squared_norms",
    "squares_in_inference",
]

# A subclass with its own `call` may do anything, so it is not recognised.
_WITH_KERNEL = {
    layer.call
    for layer in (
        keras.layers.Dense,
        keras.layers.EinsumDense,
        keras.layers.Conv1D,
        keras.layers.Conv2D,
        keras.layers.Conv3D,
        keras.layers.Conv1DTranspose,
        keras.layers.Conv2DTranspose,
        keras.layers.Conv3DTranspose,
    )
}
_ACTIVATIONS = {
    layer.call
    for layer in (
        keras.layers.Activation,
        keras.layers.ELU,
        keras.layers.LeakyReLU,
        keras.layers.ReLU,
        keras.layers.Softmax,
    )
}


class Head(NamedTuple):
    """The pre-activation of one output of the model, and its layer's inputs.

    Attributes:
        pre_activation: `[m, ...]`, z; delta is the loss's gradient with respect to it.
        inputs: `[m, ..., k]`, a, where a Dense layer made z; else `None`.
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
        """Returns the head of one output; z is `y_pred` if no recorded layer made it.

        A softmax or sigmoid outside any layer is traced back to its logits, as losses
        do: always if `keras.ops` made it, only in graphs if `tf.nn` did.
        """
        tensor = _logits(y_pred)
        for record in reversed(self._records):
            if not (_is(tensor, record.output) or _is(tensor, record.pre_activation)):
                continue
            call = type(record.layer).call
            if call in _ACTIVATIONS:
                tensor = _logits(record.inputs)
                continue
            dense = call is keras.layers.Dense.call
            inputs = record.inputs if dense else None
            return Head(record.pre_activation, inputs, dense and record.layer.use_bias)
        return Head(tensor, None, False)


def _logits(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the logits behind a softmax or sigmoid, or the tensor itself."""
    logits = keras_compat.logits(tensor)
    if logits is not tensor or tf.executing_eagerly():
        return logits
    return tensor.op.inputs[0] if tensor.op.type in ("Softmax", "Sigmoid") else tensor


def _is(tensor: tf.Tensor, output: tf.Tensor) -> bool:
    """Returns whether `tensor` is `output`, or its cast by a layer of another dtype."""
    if tensor is output:
        return True
    if not tf.executing_eagerly():
        return tensor.op.type == "Cast" and tensor.op.inputs[0] is output
    alike = tensor.dtype != output.dtype and tensor.shape == output.shape
    return alike and bool(tf.reduce_all(tf.cast(output, tensor.dtype) == tensor))


@contextlib.contextmanager
def recording(model: keras.Model) -> Iterator[Heads]:
    """Records the calls of layers that may be a model's last, for one forward pass.

    The activation of a Dense, EinsumDense or convolution layer is removed during the
    call and applied after it: the arithmetic is the same, but z becomes a tensor.

    Args:
        model: any Keras model; its outputs stay the same, bit for bit.

    Example:
        >>> dense = keras.layers.Dense(2, activation="softmax")
        >>> model = keras.Sequential([keras.Input((3,)), dense])
        >>> with recording(model) as heads:
        ...     y_pred = model(tf.ones([5, 3]))
        >>> heads.of(y_pred).inputs.shape
        TensorShape([5, 3])
    """
    heads = Heads()
    calls = _WITH_KERNEL | _ACTIVATIONS
    layers = [x for x in keras_compat.layers_of(model) if type(x).call in calls]

    def wrap(layer: keras.Layer, original: Callable) -> Callable:
        def call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if type(layer).call in _ACTIVATIONS:
                output = original(inputs, *args, **kwargs)
                heads.record(layer, inputs, output, output)
                return output
            with without_activation(layer) as activation:
                z = original(inputs, *args, **kwargs)
            output = z if activation is None else activation(z)
            heads.record(layer, inputs, z, output)
            return output

        return call

    with replaced_calls(layers, wrap):
        yield heads


def squared_norms(head: Head, delta: tf.Tensor) -> tf.Tensor:
    """Returns each example's squared gradient norm with respect to the last layer.

    For a Dense layer with bias on `[m, k]` inputs: (||a||^2 + 1) ||delta||^2
    (Goodfellow 2015). On sequences: ||sum_t a_t delta_t'||^2 + ||sum_t delta_t||^2, by
    its Gram form where that is smaller. For other heads: ||delta||^2, the gradient of
    one bias for each output value.

    Args:
        head: from `Heads.of`.
        delta: like `head.pre_activation`. Row i is the gradient of example i's loss.

    Returns:
        `[m]`, >= 0, float32; in the units of `delta` squared.

    Raises:
        ValueError: if `delta` is `None`: the loss does not depend on the output.

    Example:
        >>> head = Head(tf.zeros([1, 1]), tf.constant([[3.0, 4.0]]), bias=True)
        >>> squared_norms(head, tf.constant([[2.0]])).numpy()  # (9 + 16 + 1) * 4
        array([104.], dtype=float32)
    """
    if delta is None:
        raise ValueError(
            "The loss must depend on the model's output: an example's importance is "
            "taken from that gradient. Received: an output without a gradient. Let "
            '`compute_loss` use `y_pred`, or compile with sampling="uniform".'
        )
    bias = 1.0 if head.bias else 0.0
    single = _one_row_each(head, delta)
    if single is not None:
        rows, columns = single
        squared = tf.reduce_sum(tf.square(rows), axis=1)
        if columns is None:
            return squared
        return (tf.reduce_sum(tf.square(columns), axis=1) + bias) * squared
    delta, inputs = _by_position(delta, head), _by_position(head.inputs, head)
    positions = delta.shape[1]
    if positions is not None and positions**2 > inputs.shape[-1] * delta.shape[-1]:
        kernel = tf.matmul(inputs, delta, transpose_a=True)
        squared = tf.reduce_sum(tf.square(kernel), axis=(1, 2))
        return squared + bias * tf.reduce_sum(
            tf.square(tf.reduce_sum(delta, axis=1)), axis=1
        )
    gram = tf.matmul(inputs, inputs, transpose_b=True) + bias
    gram *= tf.matmul(delta, delta, transpose_b=True)
    return tf.maximum(tf.reduce_sum(gram, axis=(1, 2)), 0.0)


def squared_gradient(
    head: Head, delta: tf.Tensor, summed: Callable = lambda gradient: gradient
) -> tf.Tensor:
    """Returns ||g||^2 over the last layer's parameters, without regularisation.

    Args:
        head: from `Heads.of`.
        delta: like `head.pre_activation`. Row i is the gradient of the batch's loss
            with respect to z_i, which includes the example's weight and the 1/m.
        summed: function that adds up a part of the gradient over all replicas.

    Returns:
        `[]`, in the units of `squared_norms`.

    Example:
        >>> head = Head(tf.zeros([2, 1]), tf.constant([[3.0], [4.0]]), bias=False)
        >>> float(squared_gradient(head, tf.constant([[1.0], [-1.0]])))  # (3 - 4)^2
        1.0
    """
    single = _one_row_each(head, delta)
    if single is not None:
        rows, columns = single
    else:
        by_position = _by_position(delta, head), _by_position(head.inputs, head)
        rows, columns = (tf.reshape(a, [-1, sizes(a)[-1]]) for a in by_position)
    bias = tf.raw_ops.BiasAddGrad(out_backprop=rows)  # as in the layer's own gradient
    if columns is None:
        return 2.0 * tf.nn.l2_loss(summed(bias))
    # Written as TensorFlow writes the kernel's gradient, which is then computed once.
    kernel = tf.raw_ops.MatMul(a=columns, b=rows, transpose_a=True, grad_b=True)
    squared = tf.nn.l2_loss(summed(kernel))
    if head.bias:
        squared += tf.nn.l2_loss(summed(bias))
    return 2.0 * squared


def _one_row_each(head: Head, delta: Any) -> tuple[tf.Tensor, tf.Tensor | None] | None:
    """Returns delta and a as `[m, ...]`, one row an example; `None` if it has several.

    a is `None` if it is unknown.
    """
    given = [delta] if head.inputs is None else [delta, head.inputs]
    if all(isinstance(a, tf.Tensor) and a.shape.rank == 2 for a in given):
        rows = [tf.cast(a, tf.float32) for a in given]  # most often: nothing to reshape
    else:
        rows = [_by_position(a, head) for a in given]
        if rows[0].shape[1] != 1:
            return None
        rows = [row[:, 0] for row in rows]
    return rows[0], rows[1] if len(rows) > 1 else None


def _by_position(tensor: tf.Tensor, head: Head) -> tf.Tensor:
    """Returns `tensor` as `[m, positions, values]`; one position if a is unknown."""
    tensor = tf.cast(dense_form(tensor), tf.float32)
    size = tf.shape(tensor)[0]
    if head.inputs is None:
        return tf.reshape(tensor, [size, 1, -1])
    positions = tensor.shape[1:-1].num_elements()
    positions = -1 if positions is None else positions
    return tf.reshape(tensor, [size, positions, sizes(tensor)[-1]])


def heads_of(described: Sequence[OutputLoss], heads: Heads, y_pred: Any) -> list[Head]:
    """Returns the head of each loss's output, after a recorded forward pass."""
    return [
        heads.of(output_of(y_pred, item.path, order))
        for order, item in enumerate(described)
    ]


def last_layer_squares(
    model: keras.Model,
    described: Sequence[OutputLoss],
    found: Sequence[Head],
    deltas: Sequence[tf.Tensor],
    size: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the squared gradient norms `[k]` of each w f, and ||g||^2 of their mean.

    The k examples are those of this replica; the mean is over all replicas.

    Args:
        model: compiled.
        described: its losses.
        found: heads of their outputs.
        deltas: gradients of the scaled loss with respect to their pre-activations.
        size: `[]`, m.
    """
    norms, gradient = [], []
    scale = tf.cast(model.optimizer.scale_loss(tf.ones([])), tf.float32)
    for item, head, delta in zip(described, found, deltas, strict=True):
        coefficient = tf.square(item.coefficient(size) * scale)
        norms.append(squared_norms(head, delta) / coefficient)
        squared = squared_gradient(head, delta, replicas.summed)
        gradient.append(squared / (coefficient * tf.square(size)))
    return _total(norms), _total(gradient)


def squares_in_inference(
    model: keras.Model, described: Sequence[OutputLoss], batch: tuple
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `last_layer_squares` of a batch (x, y, sample_weight), in inference mode.

    Dropout is off and BatchNormalization does not mix examples, so that each example's
    norm depends on it alone. The model does not change.
    """
    x, y, own = batch
    size = tf.shape(keras.tree.flatten(y)[0])[0]
    combined = weights_for(described, tf.ones(size[tf.newaxis]), own)
    with tf.GradientTape() as tape, recording(model) as heads:
        y_pred = keras_compat.call_model(model, x, training=False)
        loss = keras_compat.untracked_loss(model, x, y, y_pred, combined)
        scaled = model.optimizer.scale_loss(loss)
    found = heads_of(described, heads, y_pred)
    deltas = tape.gradient(scaled, [head.pre_activation for head in found])
    return last_layer_squares(
        model, described, found, deltas, tf.cast(size, tf.float32)
    )


def _total(values: list[tf.Tensor]) -> tf.Tensor:
    return values[0] if len(values) == 1 else tf.add_n(values)
