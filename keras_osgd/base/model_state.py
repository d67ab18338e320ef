"""A model's state, put back after the model has been tried out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf

from keras_osgd.base import keras_compat

__all__ = ["state_kept"]


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
