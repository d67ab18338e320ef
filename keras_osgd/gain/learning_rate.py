"""Adapts an optimizer's rate and schedule to the gain ratio (equation 5)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import keras
import tensorflow as tf

from keras_osgd.base import keras_compat
from keras_osgd.base.replacing import replaced

__all__ = [
    "Rule",
    "adapted",
    "applied_rate",
    "inner_optimizer",
    "is_scaled",
    "rule_for",
]

Rule = Literal["linear", "square_root", "none"]

_MOMENTUM = (keras.optimizers.SGD,)
_ADAPTIVE = (
    keras.optimizers.Adam,
    keras.optimizers.Adamax,
    keras.optimizers.Nadam,
    keras.optimizers.RMSprop,
)
_DECAYS = ("beta_1", "beta_2", "rho")


def inner_optimizer(
    optimizer: keras.optimizers.Optimizer,
) -> keras.optimizers.Optimizer:
    """Returns the optimizer that a `LossScaleOptimizer` wraps, or `optimizer`."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def is_scaled(optimizer: keras.optimizers.Optimizer) -> bool:
    """Returns whether a loss scaler skips steps whose gradients overflow."""
    return inner_optimizer(optimizer) is not optimizer


def applied_rate(
    optimizer: keras.optimizers.Optimizer, gain: tf.Tensor, lead: tf.Tensor
) -> float:
    """Returns the learning rate of a step inside `adapted`."""
    with adapted(optimizer, gain, lead):
        return float(inner_optimizer(optimizer).learning_rate)


def rule_for(optimizer: keras.optimizers.Optimizer) -> Rule:
    """Returns the rule by which the rate follows the gain ratio r (equation 5).

    "linear" for SGD with or without momentum: rate times r. "square_root" for Adam,
    AdamW, Adamax, Nadam and RMSprop: rate times sqrt(r), and 1 - beta times r for
    every decay of a moving average. "none" for all others.

    Example:
        >>> rule_for(keras.optimizers.SGD(momentum=0.9))
        'linear'

    Reference: Malladi, Lyu, Panigrahi & Arora, NeurIPS 2022 (square-root rule).
    """
    optimizer = inner_optimizer(optimizer)
    if isinstance(optimizer, _MOMENTUM):
        return "linear"
    return "square_root" if isinstance(optimizer, _ADAPTIVE) else "none"


@contextlib.contextmanager
def adapted(
    optimizer: keras.optimizers.Optimizer, gain: tf.Tensor, lead: tf.Tensor
) -> Iterator[None]:
    """Applies `optimizer` inside the block as if one step were `gain` steps.

    The rate the user or a callback set is multiplied, never overwritten; a schedule is
    read at the effective iterations, `lead` beyond the optimizer's own count. A bias
    correction counts effective iterations too, see `_bias_correction`.

    Args:
        optimizer: any Keras optimizer.
        gain: `[]`, > 0. The gain ratio r to apply; 1 leaves the rate as it is.
        lead: `[]`, effective iterations minus the optimizer's iterations; 0 for an
            optimizer that has not made a step.

    Example:
        >>> weight, optimizer = keras.Variable(1.0), keras.optimizers.SGD(0.25)
        >>> with adapted(optimizer, tf.constant(2.0), tf.constant(0.0)):
        ...     optimizer.apply([tf.constant(1.0)], [weight])
        >>> float(weight), float(optimizer.learning_rate)
        (0.5, 0.25)
    """
    rule, optimizer = rule_for(optimizer), inner_optimizer(optimizer)
    wide = tf.float64 if keras.config.floatx() == "float64" else tf.float32
    gain = tf.cast(gain, wide)
    multiplier = {"linear": gain, "square_root": tf.sqrt(gain)}.get(rule)
    attributes = {}
    if rule == "square_root":
        attributes = _decays(optimizer, gain)
        correction = _bias_correction(optimizer, attributes, gain, lead)
        update_step = optimizer.update_step

        def corrected_step(gradient, variable, learning_rate):
            factor = tf.cast(correction, learning_rate.dtype)
            return update_step(gradient, variable, learning_rate * factor)

        attributes["update_step"] = corrected_step
    if multiplier is None:
        multiplier = tf.ones_like(gain)
    reading = keras_compat.reading_rate(optimizer, multiplier, lead)
    with replaced(optimizer, attributes), reading:
        yield


def _decays(optimizer, gain: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns beta' = 1 - r (1 - beta), at least 0, of every moving average."""
    return {
        name: tf.maximum(1.0 - gain * (1.0 - vars(optimizer)[name]), 0.0)
        for name in _DECAYS
        if name in vars(optimizer)
    }


def _bias_correction(optimizer, decays, gain, lead) -> tf.Tensor:
    """Returns the factor that corrects Keras' bias correction.

    Keras assumes that after t steps a moving average holds the share 1 - beta'^t of its
    weight, as if r had always had its present value. After 78 steps at r = 1 and one at
    r = 4, that makes the step 1.9 times too large. The true share is 1 - prod(beta').
    The product is beta'^(tau/r) with the effective iterations tau, exactly if r stays.
    """
    steps = tf.cast(tf.convert_to_tensor(optimizer.iterations), gain.dtype)
    lead = tf.cast(lead, gain.dtype) / (optimizer.gradient_accumulation_steps or 1)
    effective = (steps + lead) / gain + 1.0
    steps += 1.0
    correction = tf.ones_like(gain)
    # Nadam keeps the true product of its beta_1; Adamax corrects no second moment.
    if "beta_1" in decays and not isinstance(optimizer, keras.optimizers.Nadam):
        beta = decays["beta_1"]
        correction *= (1.0 - beta**steps) / (1.0 - beta**effective)
    if "beta_2" in decays and not isinstance(optimizer, keras.optimizers.Adamax):
        beta = decays["beta_2"]
        correction *= tf.sqrt((1.0 - beta**effective) / (1.0 - beta**steps))
    return correction
