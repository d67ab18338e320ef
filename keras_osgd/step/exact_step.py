"""The backward pass of a training step that takes exact gradient norms as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_osgd.base import keras_compat, replicas
from keras_osgd.losses import shares
from keras_osgd.norms.calls import Frame
from keras_osgd.norms.forms import widened
from keras_osgd.norms.scorer import Scorer

__all__ = ["Backward", "backward"]


class Backward(NamedTuple):
    """Gradients and exact norms from one backward pass.

    Attributes:
        gradients: of the loss, for each trainable weight, summed over all replicas;
            `None` where it has none.
        deltas: gradients of the loss without regularisation, for each tensor asked for.
        squared_norms: `[k]`, of each w f of this replica, squared gradient-norm units.
        squared_gradient: `[]`, of the mean of w f over all replicas, same units.
    """

    gradients: list[Any]
    deltas: list[Any]
    squared_norms: tf.Tensor
    squared_gradient: tf.Tensor


def backward(
    model: keras.Model,
    scorer: Scorer,
    tape: tf.GradientTape,
    frames: Sequence[Frame],
    losses: tuple[tf.Tensor, tf.Tensor],
    tensors: list[tf.Tensor],
    held: tf.Tensor | None,
) -> Backward:
    """Returns gradients and exact norms of the forward pass that `tape` recorded.

    A convolution's per-example gradients add up to the batch's gradient, which then
    need not be computed again: in a graph TensorFlow omits unused operations. Several
    replicas sum each gradient once, for the update and for ||g||^2.

    Args:
        model: in training.
        scorer: knows which calls have a batch axis.
        tape: persistent.
        frames: recorded calls.
        losses: `[]` each, this replica's part of the batch's loss with and without
            regularisation, both importance-weighted and scaled for the optimizer. They
            are the same tensor where regularisation depends on the weights alone.
        tensors: further tensors whose gradients are wanted.
        held: `[k]`, squared norms from another pass, with BatchNormalization's
            statistics held; `None` where this pass gives the norms.
    """
    (loss, of_data), variables = losses, model.trainable_weights
    watched = [keras_compat.tensor_of(v) for v in variables]
    references = [v.ref() for v in watched]
    size = scorer.batch_size
    part = size // replicas.count()
    uses = scorer.uses(frames if held is None else [], training=True, size=part)
    sources = (watched, tensors, uses.outputs)
    own, deltas, of_outputs = tape.gradient(of_data, sources)
    known = dict(zip(references, own, strict=True)) if held is None else {}
    measured = uses.measure(of_outputs, known).of_all_weights()
    scale = model.optimizer.scale_loss
    if of_data is loss:
        regular = [_of_regularizer(variable, scale) for variable in variables]
        gradients, own = _apart(references, own, regular, measured.gradients)
    else:
        gradients, own = replicas.summed([tape.gradient(loss, watched), own])
    unit = scale(tf.constant(shares.scale(scorer.losses, size)))
    norms = tf.cast(measured.squared_norms, tf.float32) / tf.square(unit)
    squared = _squared_norm(own) / tf.square(unit * size)
    return Backward(gradients, deltas, norms if held is None else held, squared)


def _apart(
    references: Sequence[Any],
    gradients: Sequence[Any],
    regular: Sequence[Any],
    free: dict[Any, tf.Tensor],
) -> tuple[list[Any], list[Any]]:
    """Returns the gradients with and without regularisation, in the cheaper way.

    They are summed over all replicas, whose losses share the regularisation evenly.
    """
    without = [
        gradient is not None and reference in free and not tf.executing_eagerly()
        for reference, gradient in zip(references, gradients, strict=True)
    ]
    parts = zip(references, gradients, without, strict=True)
    found = replicas.summed(
        [tf.cast(free[r], g.dtype) if known else g for r, g, known in parts]
    )
    whole, own = list(found), list(found)
    for i, (gradient, added) in enumerate(zip(found, regular, strict=True)):
        if gradient is None or added is None:
            continue
        if without[i]:
            whole[i] = gradient + added
        else:
            own[i] = tf.convert_to_tensor(gradient) - added
    return whole, own


def _squared_norm(gradients: Sequence[Any]) -> tf.Tensor:
    parts = [
        tf.cast(tf.reduce_sum(tf.square(widened(tf.convert_to_tensor(g)))), tf.float32)
        for g in gradients
        if g is not None
    ]
    return tf.add_n([tf.zeros([]), *parts])


def _of_regularizer(variable: keras.Variable, scale: Any) -> tf.Tensor | None:
    """Returns the gradient of a weight's regularisation loss, or `None`."""
    if variable.regularizer is None:
        return None
    own = keras_compat.tensor_of(variable)
    with tf.GradientTape() as tape:
        loss = scale(variable.regularizer(variable))
    return tape.gradient(loss, own)
