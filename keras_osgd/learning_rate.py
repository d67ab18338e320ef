"""Applies an optimizer at its rate times the gain ratio, ahead on its schedule."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import keras
import tensorflow as tf

from keras_osgd import keras_compat

__all__ = ["Rule", "adapted", "inner_optimizer", "rule_for"]

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


def rule_for(optimizer: keras.optimizers.Optimizer) -> Rule:
    """Returns how the rate of `optimizer` follows the gain ratio r (equation 5).

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
    read at the effective iterations, `lead` beyond the optimizer's own count.

    Args:
        optimizer: any Keras optimizer.
        gain: `[]`, > 0. The gain ratio r to apply; 1 leaves the rate as it is.
        lead: `[]`, effective iterations minus the optimizer's iterations.
    """
    rule = rule_for(optimizer)
    optimizer = inner_optimizer(optimizer)
    multiplier = {
        "linear": lambda: gain,
        "square_root": lambda: tf.sqrt(gain),
        "none": lambda: tf.ones_like(gain),
    }[rule]()
    decays = {}
    if rule == "square_root":
        decays = {
            name: vars(optimizer)[name] for name in _DECAYS if name in vars(optimizer)
        }
    try:
        for name, decay in decays.items():
            vars(optimizer)[name] = tf.maximum(1.0 - gain * (1.0 - decay), 0.0)
        with keras_compat.reading_rate(optimizer, multiplier, lead):
            yield
    finally:
        vars(optimizer).update(decays)
