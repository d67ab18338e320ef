"""The weighted training step: where the stages of the method meet."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
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
    replicas,
    skipping,
)
from keras_osgd.last_layer_norms import heads_of, last_layer_squares
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
    n = run.n / run.share.workers
    weights = distributions.importance_weights(sample.probability, n)
    candidate_weights = distributions.importance_weights(sample.candidate, n)
    combined = losses.weights_for(run.losses, weights, sample.sample_weight)
    size = _size_of(sample)
    before = skipping.state_before(model)
    done = _forward_and_backward(model, run, data, weights, combined)
    logs = _metrics(model, x, y, done.y_pred, weights, combined)
    both = [norms for norms in (done.last_layer, done.exact) if norms is not None]
    observed = [
        replicas.averaged(run.gain.moments(weights, candidate_weights, *norms))
        for norms in both
    ]
    importance = tf.reduce_all(sample.probability == sample.candidate)
    flags = replicas.everywhere(*_is_finite(model, done), importance)
    values = [value for _, value in before]

    def conclude(
        each: Callable, gradients: Any, old: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        finite, _, importance = flags
        counts, gain = run.skips.admit(finite), run.gain.current(size)
        applied_gain = tf.where(importance, gain, 1.0) if run.adapt else tf.ones([])
        changed = list(zip((v for v, _ in before), old, strict=True))
        _apply(model, run, (each, gradients), changed, applied_gain, counts)
        run.gain.update(observed[-1], counts)
        if done.exact:
            run.last_layer_gain.update(observed[0], counts)
        return counts, gain

    counts, gain = replicas.once(conclude, done.gradients, values)
    logs = skipping.shown(logs, model.get_metrics_result())
    gain = tf.where(counts & flags[1], gain, np.nan)
    return logs, tf.sqrt(both[-1][0]), gain


def _metrics(model, x, y, y_pred, weights, combined) -> dict[str, tf.Tensor]:
    """Updates the metrics, importance-weighted, and returns them."""
    held = model.sampling_held
    held.importance_weights = weights, _output_weights(combined)
    try:
        return model.compute_metrics(x, y, y_pred, sample_weight=combined)
    finally:
        held.importance_weights = None


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
    (x, y, sample), size = data, _size_of(data[-1])
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
    found = heads_of(run.losses, heads, y_pred)
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
    squared, squared_gradient = last_layer_squares(
        model, run.losses, found, deltas, size
    )
    last = squared / tf.square(weights), squared_gradient
    return _Pass(y_pred, loss, gradients, last, exact)


def _track_loss(model, loss, weights, size) -> None:
    """Shows the self-normalised mean of an epoch: sum w f over sum w.

    Regularisation is in `loss` as well, and shown times m over the epoch's mean sum of
    weights, which is 1 within a few per cent: taking it out would compute it twice.
    """
    total = tf.reduce_sum(weights)
    keras_compat.track_loss(model, loss * size / total, total)


def _size_of(sample) -> tf.Tensor:
    """Returns `[]` float32, m: a stream's last batch may be smaller than the others."""
    return tf.cast(tf.size(sample.probability) * replicas.count(), tf.float32)


def _apply(model, run, on_each, changed, gain, counts) -> None:
    """Applies the gradients at the adapted rate and counts the effective iterations.

    Where the step does not count, what it `changed` is put back instead.
    """
    (each, gradients), optimizer = on_each, model.optimizer
    weights = model.trainable_weights
    inner = learning_rate.inner_optimizer(optimizer)
    scaled = inner is not optimizer  # by the loss: overflowing steps are skipped
    before = tf.identity(keras_compat.steps_taken(inner)) if scaled else None
    lead = run.clock.lead.read_value()

    def step() -> tf.Tensor:
        with learning_rate.adapted(optimizer, gain, lead):
            each(lambda own: _apply_gradients(optimizer, own, weights), gradients)
        return tf.constant(True)

    def undo() -> tf.Tensor:
        for variable, old in changed:
            replicas.assign_each(keras_compat.tensor_of(variable), old)
        return tf.constant(False)

    applied = tf.cond(counts, step, undo)
    if before is not None:
        applied = keras_compat.steps_taken(inner) > before
    run.clock.advance(gain, applied)


def _apply_gradients(optimizer, gradients, weights) -> None:
    optimizer.apply_gradients(zip(gradients, weights, strict=True))


def _output_weights(combined: Any) -> Any:
    flat = keras.tree.flatten(combined)
    return lambda output: flat[output] if len(flat) > 1 else flat[0]
