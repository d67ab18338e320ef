"""What every weighted step does, whoever made its forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_osgd import distributions, keras_compat, learning_rate, losses, skipping
from keras_osgd import gain_ratio as gain_ratios
from keras_osgd.norms import last_layer
from keras_osgd.run import Run

__all__ = ["Pass", "heads_of", "squared_of", "update"]


class Pass(NamedTuple):
    """What the forward and backward pass give; norms and moments without w.

    Attributes:
        y_pred: the model's outputs.
        loss: `[]`, of the batch, as trained on.
        gradients: one for each trainable weight.
        last_layer: squared norms `[m]` and ||g||^2 `[]` of the last layer.
        exact: the same of all trainable weights, or `None`.
    """

    y_pred: Any
    loss: tf.Tensor
    gradients: list[Any]
    last_layer: tuple[tf.Tensor, tf.Tensor]
    exact: tuple[tf.Tensor, tf.Tensor] | None


def heads_of(run, heads: last_layer.Heads, y_pred: Any) -> list[last_layer.Head]:
    """Returns the head of each loss's output, in the order of the losses."""
    return [
        heads.of(losses.output_of(y_pred, item.path, order))
        for order, item in enumerate(run.losses)
    ]


def squared_of(model, run, found, deltas) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the squared norms `[m]`, times w^2, and ||g||^2, both of f's mean."""
    size = tf.cast(run.batch_size, tf.float32)
    norms, gradient = [], []
    scale = tf.cast(model.optimizer.scale_loss(tf.ones([])), tf.float32)
    for item, head, delta in zip(run.losses, found, deltas, strict=True):
        coefficient = tf.square(item.coefficient(size) * scale)
        norms.append(last_layer.squared_norms(head, delta) / coefficient)
        squared = last_layer.squared_gradient(head, delta)
        gradient.append(squared / (coefficient * tf.square(size)))
    return _total(norms), _total(gradient)


def update(
    model: keras.Model, run: Run, sample: Any, done: Pass, apply: Callable
) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies the gradients at the adapted rate if all is finite, and observes moments.

    Returns:
        `[]` twice: whether the step counts, and the gain ratio before it, NaN where an
        example is to blame.
    """
    weights = distributions.importance_weights(sample.probability, run.n)
    candidate_weights = distributions.importance_weights(sample.candidate, run.n)
    finite, blameless = _is_finite(model, done)
    counts = run.skips.admit(finite)
    gain = run.gain.current(tf.cast(run.batch_size, tf.float32))
    importance = tf.reduce_all(sample.probability == sample.candidate)
    applied_gain = tf.where(importance, gain, 1.0) if run.adapt else tf.ones([])
    _apply(model, run, apply, applied_gain, counts)
    run.gain.update(
        gain_ratios.moments(
            weights, candidate_weights, *(done.exact or done.last_layer)
        ),
        counts,
    )
    if done.exact:
        run.last_layer_gain.update(
            gain_ratios.moments(weights, candidate_weights, *done.last_layer), counts
        )
    return counts, tf.where(counts & blameless, gain, np.nan)


def _is_finite(model, done: Pass) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `[]` twice: whether a step counts, and whether no example is to blame.

    Overflows are the loss scaler's to skip; but one bad gradient would make the scale
    fall for ever, so that from a scale of 1 on its examples are held to be at fault.
    """
    optimizer = model.optimizer
    finite = skipping.all_finite(done.loss, done.gradients)
    if learning_rate.inner_optimizer(optimizer) is optimizer:
        return finite, finite
    overflow = optimizer.scale_loss(tf.ones([])) > 1.0
    return skipping.all_finite(done.loss, []), finite | overflow


def _apply(model, run, apply: Callable, gain, counts) -> None:
    """Applies the gradients at the adapted rate and counts the effective iterations."""
    optimizer = model.optimizer
    inner = learning_rate.inner_optimizer(optimizer)
    scaled = inner is not optimizer  # by the loss: overflowing steps are skipped
    before = tf.identity(keras_compat.steps_taken(inner)) if scaled else None
    lead = run.clock.lead.read_value()

    def step() -> tf.Tensor:
        with learning_rate.adapted(optimizer, gain, lead):
            apply()
        return tf.constant(True)

    applied = tf.cond(counts, step, lambda: tf.constant(False))
    if before is not None:
        applied = keras_compat.steps_taken(inner) > before
    run.clock.advance(gain, applied)


def _total(values: list[tf.Tensor]) -> tf.Tensor:
    return values[0] if len(values) == 1 else tf.add_n(values)
