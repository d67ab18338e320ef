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
from keras_osgd.step.metrics import Importance, weighted
from keras_osgd.step.own_train_step import own_train_step, taking_part
from keras_osgd.step.state import StepState

__all__ = ["Step", "make_core", "update"]


class Step(NamedTuple):
    """What a step of training returns.

    Attributes:
        logs: for Keras.
        norms: `[m]`, of each example's gradient, without its weight.
        gain: `[]`, gain ratio before the step. NaN where the step changed nothing, as
            its loss or gradient is not finite, and where the loss scaler skips the
            gradient at a scale of 1 or less. Infinite where the step changed nothing
            and its examples are not at fault: after too many such steps, and where the
            weights are not finite.
        losses: `[m]` float32, of each example; `None` where they are not known.
    """

    logs: dict[str, tf.Tensor]
    norms: tf.Tensor
    gain: tf.Tensor
    losses: tf.Tensor | None = None


def make_core(model: keras.Model, state: StepState, jit_compile: bool) -> Any:
    """Returns the step up to its logging, compiled by XLA if asked for.

    It returns logs and `observed_of` the step.
    """
    own = own_train_step(model)

    def core(data: Any) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        if own is not None:
            done = own_sampled_step(model, state, data, own)
        else:
            done = sampled_step(model, state, data)
        return done.logs, observed_of(done)

    if jit_compile and not model.run_eagerly:
        return tf.function(core, jit_compile=True, autograph=False)
    return core


def observed_of(step: Step) -> tf.Tensor:
    """Returns `[2 m + 1]` float32: norms, losses (NaN if unknown) and gain ratio."""
    losses = (
        tf.fill(tf.shape(step.norms), np.nan) if step.losses is None else step.losses
    )
    parts = [step.norms, losses, step.gain[tf.newaxis]]
    return tf.concat([tf.cast(part, tf.float32) for part in parts], axis=0)


def sampled_step(model: keras.Model, state: StepState, data: Any) -> Step:
    """Trains on a weighted batch, unless its loss or gradient is not finite."""
    x, y, sample = data
    weights = weights_of(state, sample.probability)
    combined = weights_for(state.losses, weights, sample.sample_weight)
    before = skipping.state_before(model)
    done = _forward_and_backward(model, state, data, weights)
    losses = _track_loss(model, state, (y, sample), done, weights)
    with weighted(model, importance_of(state, sample)):
        logs = model.compute_metrics(x, y, done.y_pred, sample_weight=combined)

    def apply(gradients: Any) -> None:
        pairs = zip(gradients, model.trainable_weights, strict=True)
        model.optimizer.apply_gradients(pairs)

    _, gain = update(model, state, sample, done, apply, before)
    logs = skipping.shown(logs, model.get_metrics_result())
    return Step(logs, tf.sqrt((done.exact or done.last_layer)[0]), gain, losses)


def own_sampled_step(
    model: keras.Model, state: StepState, data: Any, step: Callable
) -> Step:
    """Trains on a weighted batch by a user's own step; returns as `sampled_step` does.

    The user's step gets (x, y, weights), or (x, y) if the weights go to `compute_loss`
    alone. Where it calls `compute_loss`, norms are taken by a tape beside its own.
    Where it calls the optimizer, the rate is adapted, and a step that is not finite is
    skipped. Other weights and metrics of the model that a skipped step assigned are put
    back.
    """
    x, y, sample = data
    weights = weights_of(state, sample.probability)
    combined = weights_for(state.losses, weights, sample.sample_weight)
    before, seen = skipping.state_before(model), {}

    def at_loss(y_pred: Any, loss: tf.Tensor, weighted: Callable) -> None:
        found = heads_of(state.losses, heads, y_pred)
        scaled = model.optimizer.scale_loss(loss)
        deltas = tape.gradient(scaled, [head.pre_activation for head in found])
        squared, squared_gradient = last_layer_squares(
            model, state.losses, found, deltas, size_of(sample)
        )
        last = squared / tf.square(weights), squared_gradient
        seen["pass"] = Pass(y_pred, loss, [], last, None)

    def at_update(apply: Callable, gradients: list, variables: list | None) -> None:
        done = seen["pass"]._replace(gradients=replicas.summed(gradients))
        seen["counts"], seen["gain"] = update(model, state, sample, done, apply)

    def with_masks(y: Any, y_pred: Any) -> Any:
        return _with_masks(model, state, (y, y_pred, sample), weights)[0]

    with (
        weighted(model, importance_of(state, sample)),
        last_layer.recording(model) as heads,
        tf.GradientTape() as tape,
        taking_part(model, combined, at_loss, at_update, state.handed, with_masks),
    ):
        logs = step(model, (x, y, combined) if state.handed else (x, y))
    skipping.put_back_unless(seen["counts"], before)
    logs = skipping.shown(logs, model.get_metrics_result())
    return Step(logs, tf.sqrt(seen["pass"].last_layer[0]), seen["gain"])


def _forward_and_backward(model, state, data, weights) -> Pass:
    (x, y, sample), size = data, size_of(data[-1])
    scorer, held = state.scorer, None
    if scorer is not None and scorer.holds_statistics:
        alone = tf.cast(scorer(x, y, sample.sample_weight), tf.float32)
        held = tf.square(weights * alone)
    with tf.GradientTape(persistent=scorer is not None) as tape:
        recorded = contextlib.nullcontext([]) if scorer is None else recording(model)
        with recorded as frames, last_layer.recording(model) as heads:
            y_pred = keras_compat.call_model(model, x, training=True)
            combined, left = _with_masks(model, state, (y, y_pred, sample), weights)
            loss = keras_compat.compute_loss(model, x, y, y_pred, combined)
        scaled = of_data = model.optimizer.scale_loss(loss)
        if scorer is not None and shares.depends_on_batch(model):
            beside = shares.beside(model, state.losses, x, y, y_pred)
            of_data = model.optimizer.scale_loss(loss - beside)
    found = heads_of(state.losses, heads, y_pred)
    outputs, exact = [head.pre_activation for head in found], None
    if scorer is None:
        sources = model.trainable_weights, outputs
        gradients, deltas = tape.gradient(scaled, sources)
        gradients = replicas.summed(gradients)
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
    return Pass(y_pred, loss, gradients, last, exact, left)


def _with_masks(model, state, batch, weights) -> tuple[Any, tf.Tensor | None]:
    """Returns the weights of each loss, and the sum that masked ones are divided by."""
    y, y_pred, sample = batch
    parts = model, state.losses, (y, y_pred), weights
    factors, left = shares.factors_of_masks(*parts)
    return weights_for(state.losses, weights, sample.sample_weight, factors), left


def _track_loss(model, state, batch, done, weights) -> tf.Tensor | None:
    """Adds a batch to the mean loss that is shown; returns each example's, if known.

    The mean over the steps is shown, as in Keras: of each step's loss, regularisation
    included, with its mean of w f replaced by that of `blocks.estimate_of_loss`. Where
    the losses of single examples are not known, it is the self-normalised mean of the
    epoch, sum w f over sum w, of far higher variance. Regularisation is then shown
    times m over the epoch's mean sum of weights, a factor of 1 within a few per cent.
    Of masked losses the sums are those over the values that the masks leave.
    """
    (y, sample), y_pred, loss = batch, done.y_pred, done.loss
    size, total = size_of(sample), tf.reduce_sum(weights)
    if done.left is not None:
        keras_compat.track_loss(model, loss * replicas.count(), done.left)
        return None
    if not state.losses_known:
        keras_compat.track_loss(model, loss * tf.cast(size / total, loss.dtype), total)
        return None
    each = shares.each(model, state.losses, (y, y_pred, sample.sample_weight), size)
    each = tf.cast(each, tf.float32)
    added = sample.loss_baseline + weights * (sample.loss_factor - 1.0) * each
    shown = loss * replicas.count() + tf.cast(tf.reduce_mean(added), loss.dtype)
    keras_compat.track_loss(model, shown, size)
    return each


class Pass(NamedTuple):
    """Results of the forward and backward pass; the squared norms are without w.

    Attributes:
        y_pred: the model's outputs.
        loss: `[]`, of the batch, as trained on.
        gradients: one for each trainable weight, summed over all replicas.
        last_layer: squared norms `[m]` and ||g||^2 `[]` of the last layer.
        exact: the same over all trainable weights, or `None`.
        left: `[]`, sum of the weights that masked losses were divided by, or `None`.
    """

    y_pred: Any
    loss: tf.Tensor
    gradients: list[Any]
    last_layer: tuple[tf.Tensor, tf.Tensor]
    exact: tuple[tf.Tensor, tf.Tensor] | None
    left: tf.Tensor | None = None


def weights_of(state: StepState, probability: tf.Tensor) -> tf.Tensor:
    """Returns the importance weights of a batch; see `replicas.Share`."""
    return distributions.importance_weights(probability, state.n / state.share.workers)


def size_of(sample: Any) -> tf.Tensor:
    """Returns `[]` float32, m: a stream's last batch may be smaller than the others."""
    return tf.cast(tf.size(sample.probability) * replicas.count(), tf.float32)


def importance_of(state: StepState, sample: Any) -> Importance:
    """Returns the weights of a step's metrics, before the step.

    A total over an epoch, of ceil(n/m) effective iterations, is one over n examples.
    """
    size, visits = size_of(sample), tf.ones([])
    if state.adapt:
        drawn = tf.reduce_all(sample.probability == sample.candidate)
        visits = _applied(state, state.gain.current(size), drawn)
    if state.n > 1:  # not a stream, which does not know its length
        visits *= state.n / (size * tf.math.ceil(state.n / size))
    weights = weights_of(state, sample.probability)
    return Importance(weights, sample.sample_weight, state.metrics, visits)


def _applied(state: StepState, gain: tf.Tensor, importance: tf.Tensor) -> tf.Tensor:
    """Returns the gain ratio that rate and clock follow: 1 in uniform steps."""
    return tf.where(importance, gain, 1.0) if state.adapt else tf.ones([])


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
        `[]` twice: whether the step counts, and the gain ratio as in `Step`.
    """
    weights = weights_of(state, sample.probability)
    drawn, size = (weights, weights_of(state, sample.candidate)), size_of(sample)
    both = [norms for norms in (done.last_layer, done.exact) if norms is not None]
    observed = [replicas.averaged(state.gain.moments(*drawn, *norms)) for norms in both]
    importance = tf.reduce_all(sample.probability == sample.candidate)
    flags = replicas.everywhere(*_is_finite(model, done), importance)

    def conclude(each: Callable, gradients: Any, old: Any) -> tuple:
        finite, unblamed, importance = flags
        counts, gain = state.skips.admit(finite), state.gain.current(size)
        applied_gain = _applied(state, gain, importance)
        changed = [(v, value) for (v, _), value in zip(before, old, strict=True)]
        step = functools.partial(each, apply, gradients)
        gains, excused = (applied_gain, gain), finite & unblamed
        shown = _apply(model, state, step, changed, gains, counts, excused)
        state.gain.update(observed[-1], counts)
        if done.exact:
            state.last_layer_gain.update(observed[0], counts)
        return counts, shown

    old = [value for _, value in before]
    counts, gain = replicas.once(conclude, done.gradients, old)
    if learning_rate.is_scaled(model.optimizer):
        gain = tf.where(counts & ~flags[1], np.nan, gain)
    return counts, gain


def _is_finite(model, done: Pass) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `[]` twice: whether a step counts, and whether no example is to blame.

    The loss scaler skips overflows itself. But one bad gradient would make the scale
    fall for ever, so at a scale of 1 or less the examples are held to be at fault.
    """
    optimizer = model.optimizer
    finite = skipping.all_finite(done.loss, done.gradients)
    if not learning_rate.is_scaled(optimizer):
        return finite, finite
    overflow = optimizer.scale_loss(tf.ones([])) > 1.0
    return skipping.all_finite(done.loss, []), finite | overflow


def _apply(model, state, apply: Callable, changed, gains, counts, excused) -> tf.Tensor:
    """Applies the gradients at the adapted rate and counts the effective iterations.

    Where the step does not count, the values in `changed` are put back instead.

    Returns:
        `[]`, the gain ratio as in `Step`: the second of `gains`, of which the first is
        applied. Infinite where the step does not count and is `excused`, or the weights
        are not finite.
    """
    optimizer, (gain, shown) = model.optimizer, gains
    inner = learning_rate.inner_optimizer(optimizer)
    before = None
    if learning_rate.is_scaled(model.optimizer):
        before = tf.identity(keras_compat.steps_taken(inner))
    lead = state.clock.lead.read_value()

    def step() -> tf.Tensor:
        unsummed = keras_compat.unsummed(inner)
        with unsummed, learning_rate.adapted(optimizer, gain, lead):
            apply()
        return tf.identity(shown)

    def undo() -> tf.Tensor:
        skipping.put_back(changed)
        # Tensors, as the variables of several replicas have `values` of their own.
        weights = [tf.convert_to_tensor(v) for v in model.trainable_weights]
        sound = skipping.all_finite(tf.zeros([]), weights)
        return tf.where(excused | ~sound, np.inf, np.nan)

    shown = tf.cond(counts, step, undo)
    applied = counts
    if before is not None:
        applied = keras_compat.steps_taken(inner) > before
    state.clock.advance(gain, applied)
    return shown
