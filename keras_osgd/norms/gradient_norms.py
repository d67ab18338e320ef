"""The public function `keras_osgd.gradient_norms`: exact norms of given examples."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_osgd.data import training_data
from keras_osgd.losses.described import describe
from keras_osgd.norms.scorer import Scorer
from keras_osgd.norms.verification import verify

__all__ = ["gradient_norms"]


def gradient_norms(
    model: keras.Model,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    batch_size: int = 256,
    training: bool = False,
) -> np.ndarray:
    """Returns the exact norm of every example's gradient, over all trainable weights.

    v_i = ||grad f_i||, where f_i is the compiled loss of example i alone times its
    weight, without regularisation; masked positions count as zeros. One backward pass
    over a batch gives all norms (Goodfellow 2015 and its extensions); layers without a
    rule are worked out one example at a time (see `norms.register`).

    Args:
        model: a compiled Keras model of any class.
        x: inputs, arrays or tensors, nested or not; n examples. Or, without y, the
            result of `data.indexed`.
        y: targets.
        sample_weight: as in `fit`.
        batch_size: examples taken at once, at least 1; changes time and memory only.
        training: whether Dropout and the like are active. With `True`,
            BatchNormalization has no per-example gradients; with `False`, its
            statistics are held at their moving averages.

    Returns:
        `[n]`, >= 0, in gradient-norm units; float32, or float64 for float64 weights.

    Raises:
        ValueError: for data or losses that `fit` refuses too, and for layers without
            per-example gradients, all of which it lists.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(loss="mse")
        >>> model.set_weights([np.array([[1.0], [0.0]]), np.array([0.0])])
        >>> gradient_norms(model, np.array([[2.0, 1.0]]), np.array([[1.0]]))
        array([4.8989797], dtype=float32)

    Reference: Goodfellow, "Efficient per-example gradient computations", 2015.
    """
    if batch_size < 1:
        raise ValueError(
            "`batch_size` must be at least 1: so many examples are taken at once. "
            f"Received: batch_size={batch_size}. Leave it out for 256."
        )
    data = training_data.prepare(x, y, sample_weight, None, batch_size, None)
    described = describe(model, data)
    scorer = Scorer(model, described, data, training)
    verify(scorer, in_training=training)
    return scorer.of_all(data, data.batch_size)
