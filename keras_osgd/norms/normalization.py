"""Per-example gradients of normalization layers: scale * normalized + offset."""

from __future__ import annotations

import keras
import tensorflow as tf

from keras_osgd.norms.dense import bias_form
from keras_osgd.norms.forms import widened
from keras_osgd.norms.rules import Call, Uses, register

__all__ = ["couples_examples", "coupling"]

_LAYERS = keras.layers


@register(_LAYERS.LayerNormalization)
def layer_normalization(call: Call) -> Uses:
    """LayerNormalization: weights along its axes."""
    layer = call.layer
    axes = (layer.axis,) if isinstance(layer.axis, int) else tuple(layer.axis)
    return _scale_and_offset(call, layer.gamma, layer.beta, axes)


@register(_LAYERS.GroupNormalization, _LAYERS.BatchNormalization)
def channel_normalization(call: Call) -> Uses:
    """Group- and BatchNormalization with held statistics: weights of each channel."""
    layer = call.layer
    scale = layer.gamma if layer.scale else None
    offset = layer.beta if layer.center else None
    return _scale_and_offset(call, scale, offset, (layer.axis,))


@register(_LAYERS.RMSNormalization)
def rms_normalization(call: Call) -> Uses:
    """RMSNormalization: a scale along its axis."""
    axis = call.layer.axis
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    return _scale_and_offset(call, call.layer.scale, None, axes)


def _scale_and_offset(
    call: Call,
    scale: keras.Variable | None,
    offset: keras.Variable | None,
    axes: tuple[int, ...],
) -> Uses:
    found: Uses = []
    if offset is not None:
        found.append((offset, bias_form(call.delta, axes)))
    if scale is not None:
        values = [(scale, tf.ones(scale.shape, scale.dtype))]
        if offset is not None:
            values.append((offset, tf.zeros(offset.shape, offset.dtype)))
        with keras.StatelessScope(values):
            normalized = call.layer(call.inputs)
        gradient = widened(call.delta) * widened(normalized)
        found.append((scale, bias_form(gradient, axes)))
    return found


def couples_examples(layer: keras.Layer) -> bool:
    """Returns whether the layer couples the examples of a batch in training mode."""
    return isinstance(layer, _LAYERS.BatchNormalization) and layer.trainable


def coupling(call: Call) -> str | None:
    """Returns why no example has a gradient of its own after this call, or `None`.

    BatchNormalization in training mode normalizes by the batch's statistics: every
    example's loss then depends on all examples.
    """
    layer = call.layer
    if not (couples_examples(layer) and call.arguments.get("training")):
        return None
    return (
        f"{layer.name} (BatchNormalization) in training mode normalizes by the "
        "batch's statistics, so that no example has a gradient of its own: "
        "`training=False` holds them at their moving averages"
    )
