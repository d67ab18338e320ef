"""What every weighted step does, whoever made its forward and backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base import keras_compat, replicas
from keras_osgd.fit.run import Run
from keras_osgd.gain import learning_rate
from keras_osgd.scores import distributions
from keras_osgd.step import skipping

__all__ = ["Pass", "size_of", "update", "weights_of"]


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


def weights_of(run: Run, probability: tf.Tensor) -> tf.Tensor:
    """Returns the importance weights of a batch; see `replicas.Share`."""
    return distributions.importance_weights(probability, run.n / run.share.workers)


def size_of(sample: Any) -> tf.Tensor:
    """Returns `[]` float32, m: a stream's last batch may be smaller than the others."""
    return tf.cast(tf.size(sample.probability) * replicas.count(), tf.float32)


def update(
    model: keras.Model,
    run: Run,
    sample: Any,
    done: Pass,
    apply: Callable[[Any], None],
    before: Sequence[tuple[keras.Variable, tf.Tensor]] = (),
) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies the gradients at the adapted rate if all is finite, and observes moments.

    What it decides and counts, it does once for all replicas.

    Args:
        model: in training.
        run: of the step.
        sample: of the batch.
        done: forward and backward.
        apply: takes the gradients and applies them, on one replica.
        before: from `skipping.state_before`, put back where the step does not count.

    Returns:
        `[]` twice: whether the step counts, and the gain ratio before it, NaN where an
        example is to blame.
    """
    weights = weights_of(run, sample.probability)
    drawn, size = (weights, weights_of(run, sample.candidate)), size_of(sample)
    both = [norms for norms in (done.last_layer, done.exact) if norms is not None]
    observed = [replicas.averaged(run.gain.moments(*drawn, *norms)) for norms in both]
    importance = tf.reduce_all(sample.probability == sample.candidate)
    flags = replicas.everywhere(*_is_finite(model, done), importance)

    def conclude(each: Callable, gradients: Any, old: Any) -> tuple:
        finite, _, importance = flags
        counts, gain = run.skips.admit(finite), run.gain.current(size)
        applied_gain = tf.where(importance, gain, 1.0) if run.adapt else tf.ones([])
        changed = [(v, value) for (v, _), value in zip(before, old, strict=True)]
        step = functools.partial(each, apply, gradients)
        _apply(model, run, step, changed, applied_gain, counts)
        run.gain.update(observed[-1], counts)
        if done.exact:
            run.last_layer_gain.update(observed[0], counts)
        return counts, gain

    old = [value for _, value in before]
    counts, gain = replicas.once(conclude, done.gradients, old)
    return counts, tf.where(counts & flags[1], gain, np.nan)


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


def _apply(model, run, apply: Callable, changed, gain, counts) -> None:
    """Applies the gradients at the adapted rate and counts the effective iterations.

    Where the step does not count, what it `changed` is put back instead.
    """
    optimizer = model.optimizer
    inner = learning_rate.inner_optimizer(optimizer)
    scaled = inner is not optimizer  # by the loss: overflowing steps are skipped
    before = tf.identity(keras_compat.steps_taken(inner)) if scaled else None
    lead = run.clock.lead.read_value()

    def step() -> tf.Tensor:
        with learning_rate.adapted(optimizer, gain, lead):
            apply()
        return tf.constant(True)

    def undo() -> tf.Tensor:
        skipping.put_back(changed)
        return tf.constant(False)

    applied = tf.cond(counts, step, undo)
    if before is not None:
        applied = keras_compat.steps_taken(inner) > before
    run.clock.advance(gain, applied)
