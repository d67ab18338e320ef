"""The weighted training step: where the stages of the method meet."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base import keras_compat, replicas
from keras_osgd.gain import learning_rate
from keras_osgd.losses import shares
from keras_osgd.losses.described import weights_for
from keras_osgd.norms import last_layer
from keras_osgd.norms.calls import recording
from keras_osgd.norms.last_layer import heads_of, last_layer_squares
from keras_osgd.scores import distributions
from keras_osgd.step import exact_step, skipping
from keras_osgd.step.metrics import weighted
from keras_osgd.step.own_train_step import own_train_step, taking_part
from keras_osgd.step.state import StepState

__all__ = ["make_core", "update"]


def make_core(model: keras.Model, state: StepState, jit_compile: bool) -> Any:
    """Returns the step up to its logging, compiled by XLA if asked for."""
    own = own_train_step(model)

    def core(data: Any) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        if own is not None:
            return own_sampled_step(model, state, data, own)
        return sampled_step(model, state, data)

    if jit_compile and not model.run_eagerly:
        return tf.function(core, jit_compile=True, autograph=False)
    return core


def sampled_step(
    model: keras.Model, state: StepState, data: Any
) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
    """Trains on a weighted batch; returns logs, norms `[m]` and the gain ratio `[]`.

    A step whose loss or gradient is not finite changes nothing; its gain ratio is NaN.
    It is also NaN where the loss scaler skips the gradient at a scale of 1 or less.
    """
    x, y, sample = data
    weights = weights_of(state, sample.probability)
    combined = weights_for(state.losses, weights, sample.sample_weight)
    before = skipping.state_before(model)
    done = _forward_and_backward(model, state, data, weights, combined)
    with weighted(model, (weights, sample.sample_weight)):
        logs = model.compute_metrics(x, y, done.y_pred, sample_weight=combined)

    def apply(gradients: Any) -> None:
        pairs = zip(gradients, model.trainable_weights, strict=True)
        model.optimizer.apply_gradients(pairs)

    _, gain = update(model, state, sample, done, apply, before)
    logs = skipping.shown(logs, model.get_metrics_result())
    return logs, tf.sqrt((done.exact or done.last_layer)[0]), gain


def own_sampled_step(
    model: keras.Model, state: StepState, data: Any, step: Callable
) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
    """Trains on a weighted batch by a user's own step; returns as `sampled_step` does.

    The user's step gets (x, y, weights). Where it calls `compute_loss`, norms are taken
    by a tape beside its own. Where it calls the optimizer, the rate is adapted, and a
    step that is not finite is skipped. Other weights and metrics of the model that a
    skipped step assigned are put back.
    """
    x, y, sample = data
    weights = weights_of(state, sample.probability)
    combined = weights_for(state.losses, weights, sample.sample_weight)
    before, seen = skipping.state_before(model), {}

    def at_loss(y_pred: Any, loss: tf.Tensor) -> None:
        found = heads_of(state.losses, heads, y_pred)
        scaled = model.optimizer.scale_loss(loss)
        deltas = tape.gradient(scaled, [head.pre_activation for head in found])
        squared, squared_gradient = last_layer_squares(
            model, state.losses, found, deltas, size_of(sample)
        )
        last = squared / tf.square(weights), squared_gradient
        seen["pass"] = Pass(y_pred, loss, [], last, None)

    def at_update(apply: Callable, gradients: list, variables: list | None) -> None:
        done = seen["pass"]._replace(gradients=gradients)
        seen["counts"], seen["gain"] = update(
            model, state, sample, done, lambda _: apply()
        )

    with (
        weighted(model, (weights, sample.sample_weight)),
        last_layer.recording(model) as heads,
        tf.GradientTape() as tape,
        taking_part(model, combined, at_loss, at_update),
    ):
        logs = step(model, (x, y, combined))
    flat: dict[str, Any] = {}
    for name, value in logs.items():  # as Keras shows results of several metrics
        flat |= value if isinstance(value, dict) else {name: value}
    skipping.put_back_unless(seen["counts"], before)
    logs = skipping.shown(flat, model.get_metrics_result())
    return logs, tf.sqrt(seen["pass"].last_layer[0]), seen["gain"]


def _forward_and_backward(model, state, data, weights, combined) -> Pass:
    (x, y, sample), size = data, size_of(data[-1])
    scorer, held = state.scorer, None
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
        if scorer is not None and shares.depends_on_batch(model):
            beside = shares.beside(model, state.losses, x, y, y_pred)
            of_data = model.optimizer.scale_loss(loss - beside)
    found = heads_of(state.losses, heads, y_pred)
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
        model, state.losses, found, deltas, size
    )
    last = squared / tf.square(weights), squared_gradient
    return Pass(y_pred, loss, gradients, last, exact)


def _track_loss(model, loss, weights, size) -> None:
    """Shows the self-normalised mean of an epoch: sum w f over sum w.

    Regularisation is in `loss` too, so it is shown times m over the epoch's mean sum of
    weights, a factor of 1 within a few per cent. Taking it out would compute it twice.
    """
    total = tf.reduce_sum(weights)
    keras_compat.track_loss(model, loss * size / total, total)


class Pass(NamedTuple):
    """Results of the forward and backward pass; the squared norms are without w.

    Attributes:
        y_pred: the model's outputs.
        loss: `[]`, of the batch, as trained on.
        gradients: one for each trainable weight.
        last_layer: squared norms `[m]` and ||g||^2 `[]` of the last layer.
        exact: the same over all trainable weights, or `None`.
    """

    y_pred: Any
    loss: tf.Tensor
    gradients: list[Any]
    last_layer: tuple[tf.Tensor, tf.Tensor]
    exact: tuple[tf.Tensor, tf.Tensor] | None


def weights_of(state: StepState, probability: tf.Tensor) -> tf.Tensor:
    """Returns the importance weights of a batch; see `replicas.Share`."""
    return distributions.importance_weights(probability, state.n / state.share.workers)


def size_of(sample: Any) -> tf.Tensor:
    """Returns `[]` float32, m: a stream's last batch may be smaller than the others."""
    return tf.cast(tf.size(sample.probability) * replicas.count(), tf.float32)


def update(
    model: keras.Model,
    state: StepState,
    sample: Any,
    done: Pass,
    apply: Callable[[Any], None],
    before: Sequence[tuple[keras.Variable, tf.Tensor]] = (),
) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies the gradients at the adapted rate if all is finite, and observes moments.

    Decisions and counts are made once for all replicas.

    Args:
        model: in training.
        state: of the run.
        sample: of the batch.
        done: results of the forward and backward pass.
        apply: function that applies the gradients, on one replica.
        before: from `skipping.state_before`, put back where the step does not count.

    Returns:
        `[]` twice: whether the step counts, and the gain ratio before it; NaN where the
        step does not count or an example is to blame.
    """
    weights = weights_of(state, sample.probability)
    drawn, size = (weights, weights_of(state, sample.candidate)), size_of(sample)
    both = [norms for norms in (done.last_layer, done.exact) if norms is not None]
    observed = [replicas.averaged(state.gain.moments(*drawn, *norms)) for norms in both]
    importance = tf.reduce_all(sample.probability == sample.candidate)
    flags = replicas.everywhere(*_is_finite(model, done), importance)

    def conclude(each: Callable, gradients: Any, old: Any) -> tuple:
        finite, _, importance = flags
        counts, gain = state.skips.admit(finite), state.gain.current(size)
        applied_gain = tf.where(importance, gain, 1.0) if state.adapt else tf.ones([])
        changed = [(v, value) for (v, _), value in zip(before, old, strict=True)]
        step = functools.partial(each, apply, gradients)
        _apply(model, state, step, changed, applied_gain, counts)
        state.gain.update(observed[-1], counts)
        if done.exact:
            state.last_layer_gain.update(observed[0], counts)
        return counts, gain

    old = [value for _, value in before]
    counts, gain = replicas.once(conclude, done.gradients, old)
    return counts, tf.where(counts & flags[1], gain, np.nan)


def _is_finite(model, done: Pass) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `[]` twice: whether a step counts, and whether no example is to blame.

    The loss scaler skips overflows itself. But one bad gradient would make the scale
    fall for ever, so at a scale of 1 or less the examples are held to be at fault.
    """
    optimizer = model.optimizer
    finite = skipping.all_finite(done.loss, done.gradients)
    if learning_rate.inner_optimizer(optimizer) is optimizer:
        return finite, finite
    overflow = optimizer.scale_loss(tf.ones([])) > 1.0
    return skipping.all_finite(done.loss, []), finite | overflow


def _apply(model, state, apply: Callable, changed, gain, counts) -> None:
    """Applies the gradients at the adapted rate and counts the effective iterations.

    Where the step does not count, the values in `changed` are put back instead.
    """
    optimizer = model.optimizer
    inner = learning_rate.inner_optimizer(optimizer)
    scaled = inner is not optimizer  # a loss scaler skips overflowing steps
    before = tf.identity(keras_compat.steps_taken(inner)) if scaled else None
    lead = state.clock.lead.read_value()

    def step() -> tf.Tensor:
        unsummed = keras_compat.unsummed(inner)
        with unsummed, learning_rate.adapted(optimizer, gain, lead):
            apply()
        return tf.constant(True)

    def undo() -> tf.Tensor:
        skipping.put_back(changed)
        return tf.constant(False)

    applied = tf.cond(counts, step, undo)
    if before is not None:
        applied = keras_compat.steps_taken(inner) > before
    state.clock.advance(gain, applied)
