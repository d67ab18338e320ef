"""Per-example gradients of convolutions, as products with patches of their inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.norms.dense import bias_form
from keras_osgd.norms.forms import InParts, PerExample, Products, sizes
from keras_osgd.norms.rules import Call, Uses, register

__all__ = ["patches"]

_LAYERS = keras.layers
_FEW_CHANNELS = 4  # up to so many, slices beat a gather, since its rows are short


def patches(
    inputs: tf.Tensor,
    outputs: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: str,
) -> tf.Tensor:
    """Returns the patch of the inputs at each output position of a convolution.

    Args:
        inputs: `[m, ..., C]`.
        outputs: length of the output along each spatial axis.
        kernel: length of the kernel along each spatial axis.
        strides: as in Keras.
        dilation: as in Keras.
        padding: "valid", "same" or "causal".

    Returns:
        `[m, T, K C]`, for T positions of the output in order and K of the kernel.

    Example:
        >>> x = tf.reshape(tf.range(4.0), [1, 4, 1])
        >>> patches(x, (2,), (3,), (1,), (1,), "valid")[0].numpy()
        array([[0., 1., 2.],
               [1., 2., 3.]], dtype=float32)
    """
    first, *lengths, channels = sizes(inputs)
    axes = list(zip(lengths, outputs, kernel, strides, dilation, strict=True))
    pads = [_padding(*axis, padding) for axis in axes]
    if any(pad != (0, 0) for pad in pads):
        inputs = tf.pad(inputs, [(0, 0), *pads, (0, 0)])
    padded = [n + sum(pad) for n, pad in zip(lengths, pads, strict=True)]
    if channels <= _FEW_CHANNELS:
        return _sliced(inputs, axes, channels)
    # positions[t, k]: the input position that output t multiplies with kernel value k
    read = [
        np.arange(o)[:, None] * s + np.arange(k)[None, :] * d for _, o, k, s, d in axes
    ]
    positions = np.zeros((1, 1), np.int32)
    for own, length in zip(read, padded, strict=True):
        positions = positions[:, None, :, None] * length + own[None, :, None, :]
        positions = positions.reshape(
            positions.shape[0] * positions.shape[1], -1
        ).astype(np.int32)
    flat = tf.reshape(inputs, [first, int(np.prod(padded)), channels])
    gathered = tf.gather(flat, positions.ravel(), axis=1)
    count, taps = positions.shape
    return tf.reshape(gathered, [first, count, taps * channels])


def _padding(length, output, kernel, stride, dilation, padding) -> tuple[int, int]:
    if padding == "valid":
        return 0, 0
    reach = (kernel - 1) * dilation
    if padding == "causal":
        return reach, 0
    total = max((output - 1) * stride + reach + 1 - length, 0)
    return total // 2, total - total // 2


def _sliced(inputs: tf.Tensor, axes: list, channels: int) -> tf.Tensor:
    rank = len(axes)
    channels_first = tf.transpose(inputs, [0, rank + 1, *range(1, rank + 1)])
    taken = []
    for offsets in itertools.product(*(range(k) for _, _, k, _, _ in axes)):
        window = tuple(
            slice(i * d, i * d + (o - 1) * s + 1, s)
            for i, (_, o, _, s, d) in zip(offsets, axes, strict=True)
        )
        taken.append(channels_first[(slice(None), slice(None), *window)])
    shape = [sizes(inputs)[0], len(taken) * channels, np.prod([a[1] for a in axes])]
    stacked = tf.reshape(tf.stack(taken, axis=1), shape)
    return tf.transpose(stacked, [0, 2, 1])  # folded into the product


def _of_tensors(*layers: type[keras.Layer]) -> Callable:
    """Registers a function of the layer, its inputs and delta, with channels last.

    Gradients of the bias are added. Calls with unknown lengths have no rule.
    """

    def decorate(function: Callable[..., Uses]) -> Callable:
        @register(*layers, pre_activation=True)
        def of_call(call: Call) -> Uses:
            layer, tensors = call.layer, (call.inputs, call.delta)
            inputs, delta = (_channels_last(tensor, layer) for tensor in tensors)
            if None in [*inputs.shape[1:], *delta.shape[1:]]:
                return []
            found = function(layer, inputs, delta)
            return [*found, (layer.bias, bias_form(delta))] if layer.use_bias else found

        return function

    return decorate


@_of_tensors(_LAYERS.Conv1D, _LAYERS.Conv2D, _LAYERS.Conv3D)
def convolution(layer: keras.Layer, inputs: tf.Tensor, delta: tf.Tensor) -> Uses:
    """Convolutions: the sum over positions of delta_t times the patch at t."""
    return [(layer.kernel, _in_parts(inputs, delta, layer))]


def _products(taken: tf.Tensor, delta: tf.Tensor, layer: keras.Layer) -> Products:
    """Returns the products of patches `[m, T, K C]` and deltas `[m, ..., F]`."""
    size, positions, width = sizes(taken)
    filters, taps = delta.shape[-1], int(np.prod(layer.kernel_size))
    deltas = tf.reshape(delta, [size, positions, filters])
    groups = getattr(layer, "groups", 1)
    if groups == 1:
        return Products(taken, deltas, (filters, width), (1, 0))
    own, each = width // taps // groups, filters // groups
    inputs = tf.reshape(taken, [size, positions, taps, groups, own])
    inputs = tf.transpose(inputs, [0, 3, 1, 2, 4])
    inputs = tf.reshape(inputs, [size, groups, positions, taps * own])
    deltas = tf.reshape(deltas, [size, positions, groups, each])
    deltas = tf.transpose(deltas, [0, 2, 1, 3])
    return Products(inputs, deltas, (groups, each, taps, own), (2, 3, 0, 1))


def _in_parts(large: tf.Tensor, small: tf.Tensor, layer: keras.Layer) -> InParts:
    """Returns the products of `small` and patches of `large`."""

    def make(large: tf.Tensor, small: tf.Tensor) -> Products:
        return _products(_patches_of(layer, large, small), small, layer)

    width = np.prod(small.shape[1:-1]) * np.prod(layer.kernel_size) * large.shape[-1]
    return InParts(make, (large, small), int(width))


def _by_channel(taken: tf.Tensor, layer: keras.Layer) -> tf.Tensor:
    """Returns patches `[m, T, K C]` as `[m, T, K, C]`."""
    size, positions, width = sizes(taken)
    taps = int(np.prod(layer.kernel_size))
    return tf.reshape(taken, [size, positions, taps, width // taps])


def _depthwise(
    taken: tf.Tensor, delta: tf.Tensor, multiplier: int, kernel: keras.Variable
) -> PerExample:
    """Returns the gradients of a depthwise kernel, from patches `[m, T, K, C]`."""
    size, positions, _, channels = sizes(taken)
    deltas = tf.reshape(delta, [size, positions, channels, multiplier])
    gradient = tf.einsum("mtkc,mtcd->mkcd", taken, deltas)
    return PerExample(tf.reshape(gradient, [size, *kernel.shape]))


@_of_tensors(_LAYERS.DepthwiseConv1D, _LAYERS.DepthwiseConv2D)
def depthwise_convolution(
    layer: keras.Layer, inputs: tf.Tensor, delta: tf.Tensor
) -> Uses:
    """Depthwise convolutions: each channel by itself."""
    taken = _by_channel(_patches_of(layer, inputs, delta), layer)
    form = _depthwise(taken, delta, layer.depth_multiplier, layer.kernel)
    return [(layer.kernel, form)]


@_of_tensors(_LAYERS.SeparableConv1D, _LAYERS.SeparableConv2D)
def separable_convolution(
    layer: keras.Layer, inputs: tf.Tensor, delta: tf.Tensor
) -> Uses:
    """Separable convolutions: a depthwise one and a product at each position."""
    taken = _by_channel(_patches_of(layer, inputs, delta), layer)
    size, positions, taps, channels = sizes(taken)
    depthwise, pointwise = (
        tf.cast(keras.ops.convert_to_tensor(kernel), inputs.dtype)
        for kernel in (layer.depthwise_kernel, layer.pointwise_kernel)
    )
    kernel = tf.reshape(depthwise, [taps, channels, layer.depth_multiplier])
    between = tf.reshape(
        tf.einsum("mtkc,kcd->mtcd", taken, kernel),
        [size, positions, channels * layer.depth_multiplier],
    )
    deltas = tf.reshape(delta, [size, positions, layer.filters])
    product = tf.reshape(pointwise, [-1, layer.filters])
    inner = tf.matmul(deltas, product, transpose_b=True)
    kernel, multiplier = layer.depthwise_kernel, layer.depth_multiplier
    split = (layer.filters, product.shape[0])
    return [
        (kernel, _depthwise(taken, inner, multiplier, kernel)),
        (layer.pointwise_kernel, Products(between, deltas, split, (1, 0))),
    ]


@_of_tensors(_LAYERS.Conv1DTranspose, _LAYERS.Conv2DTranspose, _LAYERS.Conv3DTranspose)
def transposed_convolution(
    layer: keras.Layer, inputs: tf.Tensor, delta: tf.Tensor
) -> Uses:
    """Transposed convolutions: inputs times patches of delta."""
    return [(layer.kernel, _in_parts(delta, inputs, layer))]


def _channels_last(tensor: tf.Tensor, layer: keras.Layer) -> tf.Tensor:
    if layer.data_format == "channels_last":
        return tensor
    return tf.transpose(tensor, [0, *range(2, tensor.shape.rank), 1])


def _patches_of(layer: keras.Layer, large: tf.Tensor, small: tf.Tensor) -> tf.Tensor:
    return patches(
        large,
        tuple(small.shape[1:-1]),
        tuple(layer.kernel_size),
        _each(layer.strides, layer.rank),
        _each(layer.dilation_rate, layer.rank),
        layer.padding,
    )


def _each(value: int | tuple[int, ...], rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)
