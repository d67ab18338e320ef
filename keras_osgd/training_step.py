"""The weighted training step: where the stages of the method meet."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_osgd import (
    distributions,
    exact_step,
    keras_compat,
    learning_rate,
    loss_shares,
    losses,
    skipping,
)
from keras_osgd import gain_ratio as gain_ratios
from keras_osgd.norms import last_layer
from keras_osgd.norms.calls import recording
from keras_osgd.run import Run

__all__ = ["make_core"]


def make_core(model: keras.Model, run: Run, jit_compile: bool) -> Any:
    """Returns the step up to what it leaves behind, compiled by XLA if asked for."""

    def core(data: Any) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        return sampled_step(model, run, data)

    if jit_compile and not model.run_eagerly:
        return tf.function(core, jit_compile=True, autograph=False)
    return core


class _Pass(NamedTuple):
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


def sampled_step(
    model: keras.Model, run: Run, data: Any
) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
    """Trains on a weighted batch; returns logs, norms `[m]` and the gain ratio `[]`.

    A step whose loss or gradient is not finite changes nothing; its gain ratio is NaN.
    So is that of a step whose gradient the loss scaler skips at a scale of 1 or less.
    """
    x, y, sample = data
    weights = distributions.importance_weights(sample.probability, run.n)
    candidate_weights = distributions.importance_weights(sample.candidate, run.n)
    combined = losses.weights_for(run.losses, weights, sample.sample_weight)
    size = tf.cast(run.batch_size, tf.float32)
    before = skipping.state_before(model)
    done = _forward_and_backward(model, run, data, weights, combined)
    finite, blameless = _is_finite(model, done)
    counts = run.skips.admit(finite)
    gain = run.gain.current(size)
    importance = tf.reduce_all(sample.probability == sample.candidate)
    applied_gain = tf.where(importance, gain, 1.0) if run.adapt else tf.ones([])
    _apply(model, run, done.gradients, applied_gain, counts)
    squared, squared_gradient = done.exact or done.last_layer
    run.gain.update(
        gain_ratios.moments(weights, candidate_weights, squared, squared_gradient),
        counts,
    )
    if done.exact:
        run.last_layer_gain.update(
            gain_ratios.moments(weights, candidate_weights, *done.last_layer), counts
        )
    held = model.sampling_held
    held.importance_weights = weights, sample.sample_weight
    try:
        logs = model.compute_metrics(x, y, done.y_pred, sample_weight=combined)
    finally:
        held.importance_weights = None
    logs = skipping.kept_if(counts, before, logs, model.get_metrics_result)
    return logs, tf.sqrt(squared), tf.where(counts & blameless, gain, np.nan)


def _is_finite(model, done: _Pass) -> tuple[tf.Tensor, tf.Tensor]:
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


def _forward_and_backward(model, run, data, weights, combined) -> _Pass:
    (x, y, sample), size = data, tf.cast(run.batch_size, tf.float32)
    scorer, held = run.scorer, None
    if scorer is not None and scorer.holds_statistics:
        alone = tf.cast(scorer(x, y, sample.sample_weight), tf.float32)
        held = tf.square(weights * alone)
    with tf.GradientTape(persistent=scorer is not None) as tape:
        recorded = contextlib.nullcontext([]) if scorer is None else recording(model)
        with recorded as frames, last_layer.recording(model) as heads:
            y_pred = keras_compat.call_model(model, x, training=True)
            loss = keras_compat.compute_loss(model, x, y, y_pred, combined)
            _track_loss(model, loss, weights, size)
        scaled = of_data = model.optimizer.scale_loss(loss)
        if scorer is not None and loss_shares.depends_on_batch(model):
            beside = loss_shares.beside(model, run.losses, x, y, y_pred)
            of_data = model.optimizer.scale_loss(loss - beside)
    found = [
        heads.of(losses.output_of(y_pred, item.path, order))
        for order, item in enumerate(run.losses)
    ]
    outputs, exact = [head.pre_activation for head in found], None
    if scorer is None:
        sources = model.trainable_weights, outputs
        gradients, deltas = tape.gradient(scaled, sources)
    else:
        done = exact_step.backward(
            model, scorer, tape, frames, (scaled, of_data), outputs, held
        )
        gradients, deltas = done.gradients, done.deltas
        exact = done.squared_norms / tf.square(weights), done.squared_gradient
    squared, squared_gradient = _squared(model, run, found, deltas, size)
    last = squared / tf.square(weights), squared_gradient
    return _Pass(y_pred, loss, gradients, last, exact)


def _track_loss(model, loss, weights, size) -> None:
    """Shows the self-normalised mean of an epoch: sum w f over sum w.

    Regularisation is in `loss` as well, and shown times m over the epoch's mean sum of
    weights, which is 1 within a few per cent: taking it out would compute it twice.
    """
    total = tf.reduce_sum(weights)
    keras_compat.track_loss(model, loss * size / total, total)


def _squared(model, run, found, deltas, size) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the squared norms `[m]`, times w^2, and ||g||^2, both of f's mean."""
    norms, gradient = [], []
    scale = tf.cast(model.optimizer.scale_loss(tf.ones([])), tf.float32)
    for item, head, delta in zip(run.losses, found, deltas, strict=True):
        coefficient = tf.square(item.coefficient(size) * scale)
        norms.append(last_layer.squared_norms(head, delta) / coefficient)
        squared = last_layer.squared_gradient(head, delta)
        gradient.append(squared / (coefficient * tf.square(size)))
    return _total(norms), _total(gradient)


def _apply(model, run, gradients, gain, counts) -> None:
    """Applies the gradients at the adapted rate and counts the effective iterations."""
    optimizer, variables = model.optimizer, model.trainable_weights
    inner = learning_rate.inner_optimizer(optimizer)
    scaled = inner is not optimizer  # by the loss: overflowing steps are skipped
    before = tf.identity(keras_compat.steps_taken(inner)) if scaled else None
    lead = run.clock.lead.read_value()

    def step() -> tf.Tensor:
        with learning_rate.adapted(optimizer, gain, lead):
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return tf.constant(True)

    applied = tf.cond(counts, step, lambda: tf.constant(False))
    if before is not None:
        applied = keras_compat.steps_taken(inner) > before
    run.clock.advance(gain, applied)


def _total(values: list[tf.Tensor]) -> tf.Tensor:
    return values[0] if len(values) == 1 else tf.add_n(values)
