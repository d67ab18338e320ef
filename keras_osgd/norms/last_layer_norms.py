"""Norms and gradient of the last layer of each output, all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_osgd.base import keras_compat, replicas
from keras_osgd.losses import described as losses
from keras_osgd.norms import last_layer

__all__ = ["heads_of", "last_layer_squares", "squares_in_inference"]


def heads_of(
    described: Sequence[losses.OutputLoss], heads: last_layer.Heads, y_pred: Any
) -> list[last_layer.Head]:
    """Returns the head of each loss's output, after a recorded forward pass."""
    return [
        heads.of(losses.output_of(y_pred, item.path, order))
        for order, item in enumerate(described)
    ]


def last_layer_squares(
    model: keras.Model,
    described: Sequence[losses.OutputLoss],
    found: Sequence[last_layer.Head],
    deltas: Sequence[tf.Tensor],
    size: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the squared norms `[k]`, times w^2, and ||g||^2, both of f's mean.

    The norms are of this replica's k examples, the gradient is that of all replicas.

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
        norms.append(last_layer.squared_norms(head, delta) / coefficient)
        squared = last_layer.squared_gradient(head, delta, replicas.summed)
        gradient.append(squared / (coefficient * tf.square(size)))
    return _total(norms), _total(gradient)


def squares_in_inference(
    model: keras.Model, described: Sequence[losses.OutputLoss], batch: tuple
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what `last_layer_squares` does, of a batch (x, y, sample_weight).

    Dropout is off, and BatchNormalization does not mix examples: what an example is
    worth is its own. Nothing of the model changes.
    """
    x, y, own = batch
    size = tf.shape(keras.tree.flatten(y)[0])[0]
    combined = losses.weights_for(described, tf.ones(size[tf.newaxis]), own)
    with tf.GradientTape() as tape, last_layer.recording(model) as heads:
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
