"""A check of exact norms on three examples, before the norms are relied on."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_osgd.base import keras_compat
from keras_osgd.base.refusals import NOT_REASONS, line_of, refuse
from keras_osgd.base.replicas import on_one
from keras_osgd.base.warn import warn_once
from keras_osgd.norms.exact import Measured, refusal
from keras_osgd.norms.scorer import Scorer

__all__ = ["verify"]

# Shares of a weight's own norm and of the norm over all weights, by coarsest type.
_TOLERANCE = {
    "float16": (0.2, 0.02),
    "bfloat16": (0.2, 0.02),
    "float32": (2e-3, 2e-5),
    "float64": (1e-6, 1e-10),
}
_RULE = (
    "Register a rule with `keras_osgd.norms.register` for the layer that uses them, or "
    'mend it; or use the last layer\'s norms, `sampling.RAIS(norm="last_layer")`.'
)
_WRONG_NORMS = (
    "Exact gradient norms must equal those of single-example gradients. On three "
    "examples they did not, for {}: these weights are used in a way that no layer's "
    f"rule sees. {_RULE}"
)
_WRONG_SUMS = (
    "Per-example gradients must add up to the batch's gradient. On three examples they "
    "did not, for {}: a layer mixes examples in training, or a rule is wrong. "
    f"{_RULE}"
)


def verify(scorer: Scorer, in_training: bool) -> None:
    """Compares norms, and sums of per-example gradients, with gradients by tapes.

    Norms are compared with passes over one example alone, in inference mode, since
    Dropout would drop other values in each pass; sums with the gradient of the same
    pass. The model's state does not change. Layers without a rule are named once.

    Args:
        scorer: of the model.
        in_training: whether to check a pass in training mode too.

    Raises:
        ValueError: naming all weights where they differ, and listing every layer that
            has no per-example gradients in either mode.
    """
    with on_one(scorer.model.distribute_strategy):
        obstacles, wrong_norms, wrong_sums = _found_wrong(scorer)
        if in_training and not scorer.holds_statistics:
            with scorer.in_mode(training=True):
                measured, gradients = scorer.measured(*scorer.probe)
            obstacles += measured.obstacles
            wrong_sums |= _wrong_sums(scorer, measured, gradients)
    wrong_sums -= wrong_norms
    refuse(
        [
            obstacles and refusal(obstacles),
            wrong_norms and _WRONG_NORMS.format(sorted(wrong_norms)),
            wrong_sums and _WRONG_SUMS.format(sorted(wrong_sums)),
        ]
    )
    if scorer.worked_out:
        warn_once(
            scorer.model,
            "one by one",
            f"No rule is known for the gradient norms of {scorer.worked_out}: they are "
            "worked out one example at a time, which is exact but slow. Register one "
            "with `keras_osgd.norms.register`.",
        )


def _found_wrong(scorer: Scorer) -> tuple[list[str], set[str], set[str]]:
    """Returns obstacles, and weights of wrong norms and sums, in inference mode."""
    wrong, obstacles = set(), []
    with scorer.in_mode(training=False):
        measured, gradients = scorer.measured(*scorer.probe)
        for row in range(len(scorer.probe_rows)):
            try:
                alone = np.array(_norms_alone(scorer, row))
            except NOT_REASONS:
                raise
            except Exception as error:
                obstacles = [f"it cannot be called on one example ({line_of(error)})"]
                continue
            found = _norms_found(scorer, measured, row, alone)
            wrong |= set(_differing(scorer, np.abs(found - alone), alone))
    sums = _wrong_sums(scorer, measured, gradients)
    return measured.obstacles or obstacles, wrong, sums


def _norms_found(
    scorer: Scorer, measured: Measured, row: int, alone: np.ndarray
) -> np.ndarray:
    """Returns the measured norm of each weight for a row; `alone` if it is left out."""
    found = np.zeros_like(alone)
    for i, reference in enumerate(_references(scorer)):
        if reference in measured.left_out:
            found[i] = alone[i]
        elif reference in measured.by_weight:
            found[i] = np.sqrt(measured.by_weight[reference][row])
    return found


def _wrong_sums(scorer: Scorer, measured: Measured, gradients: list[Any]) -> set[str]:
    """Returns the weights whose per-example gradients do not add up to the batch's.

    This holds in training mode too, and finds wrong signs or axes and mixed examples.
    """
    errors, sizes = [], []
    weights = scorer.model.trainable_variables
    for variable, reference, gradient in zip(
        weights, _references(scorer), gradients, strict=True
    ):
        form = measured.forms.get(reference)
        if gradient is None or form is None or reference in measured.left_out:
            errors.append(0.0)
            sizes.append(0.0)
            continue
        gradient = tf.cast(tf.convert_to_tensor(gradient), tf.float64)
        summed = tf.cast(form.summed(variable.shape), tf.float64)
        errors.append(float(tf.norm(summed - gradient)))
        sizes.append(float(tf.norm(gradient)))
    return set(_differing(scorer, np.array(errors), np.array(sizes)))


def _differing(scorer: Scorer, errors: np.ndarray, sizes: np.ndarray) -> list[str]:
    """Returns the weights whose errors are too large for rounding, or NaN.

    Where a gradient itself is not finite, nothing can be told of its weight.
    """
    model = scorer.model
    layers = [model, *keras_compat.layers_of(model)]
    known = [_TOLERANCE.get(layer.compute_dtype, (0.0, 0.0)) for layer in layers]
    own, share = max(known)
    told = np.isfinite(sizes)
    limits = own * sizes + share * np.sqrt(np.sum(sizes[told] ** 2))
    differ = told & ~(errors <= limits)  # in this form NaN differs too
    pairs = zip(model.trainable_variables, differ, strict=True)
    return [variable.path for variable, wrong in pairs if wrong]


def _references(scorer: Scorer) -> list[Any]:
    variables = scorer.model.trainable_variables
    return [keras_compat.tensor_of(v).ref() for v in variables]


def _norms_alone(scorer: Scorer, row: int) -> list[float]:
    """Returns the gradient norm of each weight, by a pass over one example."""
    one = scorer.probe_rows[row]
    with tf.GradientTape() as tape:
        loss = scorer.loss(*one, 1)
    watched = [keras_compat.tensor_of(v) for v in scorer.model.trainable_variables]
    return [
        0.0
        if g is None
        else float(tf.norm(tf.cast(tf.convert_to_tensor(g), tf.float64)))
        for g in tape.gradient(loss, watched)
    ]
