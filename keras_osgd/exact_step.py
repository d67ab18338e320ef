"""The backward pass of a training step that takes exact gradient norms as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_osgd import keras_compat, loss_shares, scoring
from keras_osgd.norms.arrays import widened
from keras_osgd.norms.calls import Frame

__all__ = ["Backward", "backward"]


class Backward(NamedTuple):
    """What one backward pass gives.

    Attributes:
        gradients: of the loss, for each trainable weight; `None` where it has none.
        deltas: of the loss without regularisation, for each tensor asked for.
        squared_norms: `[m]`, of each example's w f, squared gradient-norm units.
        squared_gradient: `[]`, of the mean of w f, same units.
    """

    gradients: list[Any]
    deltas: list[Any]
    squared_norms: tf.Tensor
    squared_gradient: tf.Tensor


def backward(
    model: keras.Model,
    scorer: scoring.Scorer,
    tape: tf.GradientTape,
    frames: Sequence[Frame],
    loss: tf.Tensor,
    tensors: list[tf.Tensor],
    held: tf.Tensor | None,
) -> Backward:
    """Returns gradients and exact norms of the forward pass that `tape` recorded.

    A convolution's per-example gradients add up to the batch's, which then need not be
    computed again: in a graph TensorFlow leaves out what nobody reads.

    Args:
        model: whose `losses` are those of this forward pass.
        scorer: knows which calls have a batch axis.
        tape: persistent; still recording.
        frames: recorded calls.
        loss: `[]`, of the batch, importance-weighted, with regularisation.
        tensors: further tensors whose gradients are wanted.
        held: `[m]`, squared norms taken elsewhere, with BatchNormalization's statistics
            held; `None` where this pass gives them.
    """
    variables = model.trainable_weights
    watched = [keras_compat.tensor_of(v) for v in variables]
    scale = model.optimizer.scale_loss
    # A `compute_loss` of the user's own may leave the regularisation out.
    own_loss = type(model).compute_loss is not keras.Model.compute_loss
    regularised = own_loss and bool(model.losses)
    separate = regularised or scoring.has_terms_of_the_batch(model)
    uses = scorer.uses(frames if held is None else [], training=True)
    scaled = scale(loss)
    of_data = (
        scale(loss - scoring.other_terms(model, loss.dtype)) if separate else scaled
    )
    with tape.stop_recording():
        sources = (watched, tensors, uses.outputs)
        of_mean, deltas, of_outputs = tape.gradient(of_data, sources)
        known = dict(_by_reference(watched, of_mean)) if held is None else {}
        measured = uses.measure(of_outputs, known)
        regular = [_of_regularizer(variable, scale) for variable in variables]
        gradients = tape.gradient(scaled, watched) if separate else list(of_mean)
    squared = tf.zeros([])
    for i, (reference, own) in enumerate(_by_reference(watched, of_mean)):
        if own is None:
            continue
        if reference in measured.gradients and not tf.executing_eagerly():
            own = tf.cast(measured.gradients[reference], own.dtype)
            if not separate:
                gradients[i] = own if regular[i] is None else own + regular[i]
        elif regular[i] is not None and not separate:
            own = tf.convert_to_tensor(own) - regular[i]
        wide = widened(tf.convert_to_tensor(own))
        squared += tf.cast(tf.reduce_sum(tf.square(wide)), tf.float32)
    size = scorer.batch_size
    unit = scale(tf.constant(loss_shares.scale(scorer.losses, size)))
    norms = tf.cast(measured.squared_norms, tf.float32) / tf.square(unit)
    norms = norms if held is None else held
    return Backward(gradients, deltas, norms, squared / tf.square(unit * size))


def _by_reference(watched: Sequence[tf.Variable], values: Sequence[Any]) -> list:
    return [(v.ref(), value) for v, value in zip(watched, values, strict=True)]


def _of_regularizer(variable: keras.Variable, scale: Any) -> tf.Tensor | None:
    """Returns the gradient of a weight's regularisation loss, or `None`."""
    if variable.regularizer is None:
        return None
    own = keras_compat.tensor_of(variable)
    with tf.GradientTape() as tape:
        loss = scale(variable.regularizer(variable))
    return tape.gradient(loss, own)
