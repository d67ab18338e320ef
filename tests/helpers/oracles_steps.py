"""A slow second implementation of the weighted training step: example by example."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf


def rows_of(structure: Any, rows: Any) -> Any:
    """Returns rows of nested arrays, as tensors; `None` stays."""
    return keras.tree.map_structure(
        lambda a: None if a is None else tf.constant(a[rows]), structure
    )


def weighted_step(
    model: keras.Model, data: tuple, rows: np.ndarray, weights: np.ndarray, summed: bool
) -> np.ndarray:
    """Makes a step on plain Keras' own losses of single examples.

    Args:
        model: of plain Keras, compiled, its optimizer built.
        data: all of x, y and the user's `sample_weight`.
        rows: `[m]`, drawn.
        weights: `[m]`, importance weights.
        summed: whether the loss is the sum over the batch.

    Returns:
        `[m, variables]` float64: squared gradient norms of each example's loss, for
        each trainable variable, before the step.
    """
    variables = model.trainable_weights
    watched = [v.value for v in variables]
    total = [np.zeros(v.shape) for v in variables]
    squared = np.zeros([len(rows), len(variables)])
    reached = set()
    for place, (row, weight) in enumerate(zip(rows, weights, strict=True)):
        x, y, own = rows_of(data, slice(row, row + 1))
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True), own)
            loss -= _terms(model)
        gradients = tape.gradient(loss, watched)
        reached |= {i for i, g in enumerate(gradients) if g is not None}
        for i, gradient in enumerate(_dense(gradients, variables)):
            squared[place, i] = (gradient**2).sum()
            total[i] += weight * gradient / (1 if summed else len(rows))
    with tf.GradientTape() as tape:
        model(rows_of(data[0], rows), training=True)
        beside = _terms(model)
    regular = _dense(tape.gradient(beside, watched), variables)
    scale = float(model.optimizer.scale_loss(tf.ones([])))
    model.optimizer.apply(
        [
            tf.cast(scale * (total[i] + regular[i]), v.dtype) if i in reached else None
            for i, v in enumerate(variables)
        ],
        variables,
    )
    return squared


def _terms(model: keras.Model) -> tf.Tensor:
    """Returns what `add_loss` and regularizers add to the loss of a forward pass."""
    terms = [tf.cast(tf.reduce_sum(t), keras.config.floatx()) for t in model.losses]
    return tf.add_n([tf.zeros([], keras.config.floatx()), *terms])


def _dense(gradients: list, variables: list) -> list[np.ndarray]:
    return [
        np.zeros(v.shape)
        if g is None
        else np.asarray(tf.convert_to_tensor(g), np.float64)
        for g, v in zip(gradients, variables, strict=True)
    ]
