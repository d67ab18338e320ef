"""The state of a model and of random generators, put back after a trial."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base import keras_compat

__all__ = ["build", "seeds_kept", "state_kept"]


def build(model: keras.Model, inputs: Callable[[], Any]) -> None:
    """Builds the layers that are not built, by tracing, as Keras' `fit` does.

    No operation runs, so that a layer which counts its calls has counted none.

    Args:
        model: any.
        inputs: returns `[rows, ...]`, inputs; called only if a layer is not built.
    """
    layers = keras_compat.layers_of(model)
    if model.run_eagerly or all(layer.built for layer in layers):
        return
    call = functools.partial(keras_compat.call_model, model, training=True)
    tf.function(call).get_concrete_function(inputs())


@contextlib.contextmanager
def state_kept(model: keras.Model) -> Iterator[None]:
    """Restores weights, seeds, statistics and metrics at the end of the block.

    TensorFlow's own variables, as attributes of the model or a layer, are restored too.
    Weights are included since SpectralNormalization assigns its layer's kernel. Each
    replica's copy gets its own value back. A `keras.StatelessScope` would not do: Keras
    3.15 hands `None` to regularizers in it.
    """
    layers = [model, *keras_compat.layers_of(model)]
    metrics = [v for layer in layers for v in layer.metrics_variables]
    plain = [v for layer in layers for v in vars(layer).values()]
    plain = [v for v in plain if isinstance(v, tf.Variable)]
    variables = [*map(keras_compat.tensor_of, [*model.variables, *metrics]), *plain]
    copies = map(model.distribute_strategy.experimental_local_results, variables)
    variables = {id(v): v for of_all in copies for v in of_all}
    held = [(v, tf.identity(v)) for v in variables.values()]
    try:
        yield
    finally:
        for variable, value in held:
            variable.assign(value)


@contextlib.contextmanager
def seeds_kept() -> Iterator[None]:
    """Restores the random generators outside of models after the block.

    They are those of Python, NumPy, Keras and TensorFlow.
    """
    states = random.getstate(), np.random.get_state()
    try:
        with keras_compat.global_seeds_kept():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
