"""Recomputes BatchNormalization's moving statistics in a pass over all the data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base import keras_compat
from keras_osgd.base.model_state import state_kept
from keras_osgd.data import training_data
from keras_osgd.norms import calls, rules
from keras_osgd.norms.normalization import couples_examples

__all__ = ["recalibrate_batch_normalization"]

_PROBED = 5  # rows to build an unbuilt model with


def recalibrate_batch_normalization(
    model: keras.Model, x: Any, batch_size: int = 256, seed: int = 0
) -> None:
    """Sets BatchNormalization's moving mean and variance to those of `x`.

    Importance sampling draws hard examples more often, and the moving statistics follow
    the examples drawn. `evaluate` and `predict` then normalize by statistics of other
    data. A pass over `x` in training mode, without a gradient, recomputes them. Nothing
    else changes: weights, Dropout's seeds and layers that are not `trainable` stay.

    Batch b has m_b values a channel, of mean mu_b and variance s_b^2. The mean is set
    to mu = sum_b m_b mu_b / sum_b m_b, and the variance to
    sum_b m_b (s_b^2 + (mu_b - mu)^2) / sum_b m_b. These are the statistics of all
    values at once, so they are exact for the first such layer, whatever the batches.
    Later layers see values normalized batch by batch, as in training; prediction
    normalizes these by the moving statistics. The larger the batches, the closer the
    two: take the largest that fits in memory, and no less than in training.

    Args:
        model: any Keras model, compiled or not; one that is not built is built.
        x: inputs of the training data: arrays or tensors, nested or not, or the result
            of `data.indexed`.
        batch_size: examples in a batch, at most; at least 2. Sizes of batches differ by
            at most one, so that none is left with a few examples.
        seed: of a random order of the examples, so that no batch is of one class alone.

    Raises:
        ValueError: if no BatchNormalization is trained, `x` is not an array, or
            statistics are not finite; nothing has changed then.

    Example:
        >>> layers = [keras.Input((1,)), keras.layers.BatchNormalization()]
        >>> model = keras.Sequential(layers)
        >>> recalibrate_batch_normalization(model, np.array([[1.0], [3.0], [8.0]]))
        >>> print(model.layers[0].moving_mean.numpy())
        [4.]

    Reference: Wu & Johnson, "Rethinking 'Batch' in BatchNorm", 2021 (precise BN).
    """
    if batch_size < 2:
        raise ValueError(
            "`batch_size` must be at least 2: one example alone has no variance. "
            f"Received: batch_size={batch_size}. Leave it out for 256."
        )
    data = training_data.inputs(x)
    if not model.built:
        first, _, _ = data.batch(slice(_PROBED))
        keras_compat.call_model(model, first, training=False)
    layers = _trained_layers(model)
    totals = {layer: _Total() for layer in layers}
    order = np.random.default_rng(seed).permutation(data.n)
    with (
        state_kept(model),
        _momentum_of_zero(layers),
        _eagerly(),
        calls.replaced_calls(layers, lambda *call: _counted(*call, totals)),
    ):
        for index in np.array_split(order, -(-data.n // batch_size)):
            batch, _, _ = data.batch(np.sort(index))
            keras_compat.call_model(model, batch, training=True)
    _assign({layer: total for layer, total in totals.items() if total.count > 0})


class _Total:
    """Count, mean `[channels]` and variance `[channels]` of all values so far."""

    def __init__(self) -> None:
        self.count, self.mean, self.variance = 0.0, 0.0, 0.0

    def add(self, count: float, mean: np.ndarray, variance: np.ndarray) -> None:
        """Adds a batch: the mean of both variances, and the variance of both means."""
        if count == 0:
            return
        share = count / (self.count + count)
        distance = mean - self.mean
        self.mean = self.mean + share * distance
        within = (1 - share) * self.variance + share * variance
        self.variance = within + share * (1 - share) * distance**2
        self.count += count


def _trained_layers(model: keras.Model) -> list[keras.Layer]:
    layers = {id(x): x for x in keras_compat.layers_of(model)}.values()
    trained = [layer for layer in layers if couples_examples(layer) and layer.built]
    if not trained:
        kind = keras.layers.BatchNormalization
        frozen = [layer.name for layer in layers if isinstance(layer, kind)]
        received = f"only {frozen}, not `trainable`" if frozen else "none"
        raise ValueError(
            "The model must have a BatchNormalization that is trained: others have no "
            f"statistics that training moves. Received: {received}. Leave this call "
            "out: importance sampling has changed no statistics."
        )
    return trained


def _counted(layer: keras.Layer, original: Callable, totals: dict) -> Callable:
    """Returns `original` that also adds each call's batch statistics to the total.

    A momentum of 0 leaves these behind, call by call: a layer may be called twice.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        made = rules.Call(layer, rules.bound(type(layer).call, layer, args, kwargs))
        if made.arguments.get("training", True):
            mask = made.arguments.get("mask")
            values = tf.size(made.inputs) // made.inputs.shape[layer.axis]
            if mask is not None:  # a mask has no axis of channels
                values = tf.math.count_nonzero(mask)
            mean, variance = map(np.float64, (layer.moving_mean, layer.moving_variance))
            totals[layer].add(float(values), mean, variance)
        return output

    return call


@contextlib.contextmanager
def _momentum_of_zero(layers: list[keras.Layer]) -> Iterator[None]:
    """Makes moving statistics those of the last batch, by a momentum of 0."""
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0
            for variable in (layer.moving_mean, layer.moving_variance):
                # 0 times NaN is NaN: it would stay for ever.
                finite = tf.math.is_finite(variable)
                variable.assign(tf.where(finite, variable, 0.0))
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


@contextlib.contextmanager
def _eagerly() -> Iterator[None]:
    """Runs functions eagerly, as compiled ones contain the usual momentum."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def _assign(totals: dict[keras.Layer, _Total]) -> None:
    for layer, total in totals.items():
        if not np.isfinite([total.mean, total.variance]).all():
            raise ValueError(
                "BatchNormalization's statistics over `x` must be finite. Received: "
                f"NaN or infinity in {layer.name}. Look for NaN in x, or for weights "
                "that have diverged; nothing was changed."
            )
    for layer, total in totals.items():
        layer.moving_mean.assign(total.mean)
        layer.moving_variance.assign(total.variance)
        if layer.renorm:
            layer.moving_stddev.assign(np.sqrt(total.variance + layer.epsilon))
