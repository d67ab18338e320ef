"""The state of a model and of random generators, put back after a trial."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base import keras_compat

__all__ = ["seeds_kept", "state_kept"]


@contextlib.contextmanager
def state_kept(model: keras.Model) -> Iterator[None]:
    """Restores weights, seeds, statistics and metrics at the end of the block.

    Weights are included since SpectralNormalization assigns its layer's kernel. A
    `keras.StatelessScope` would not do: Keras 3.15 hands `None` to regularizers in it.
    """
    layers = [model, *keras_compat.layers_of(model)]
    metrics = [v for layer in layers for v in layer.metrics_variables]
    variables = {id(v): v for v in [*model.variables, *metrics]}
    held = [(v, tf.identity(v)) for v in variables.values()]
    try:
        yield
    finally:
        for variable, value in held:
            variable.assign(value)


@contextlib.contextmanager
def seeds_kept(model: keras.Model | None = None) -> Iterator[None]:
    """Restores the states of random generators at the end of the block.

    They are those of Python, of NumPy, of Keras and of the model's layers.
    """
    states = random.getstate(), np.random.get_state()
    weights = {id(v) for v in model.weights} if model else ()
    seeds = [v for v in model.variables if id(v) not in weights] if model else []
    held = [(v, tf.identity(v)) for v in seeds]
    try:
        with keras_compat.global_seeds_kept():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for variable, value in held:
            variable.assign(value)
