"""What a classifier says of its training examples, as probabilities."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base import keras_compat
from keras_osgd.base.refusals import refuse
from keras_osgd.data.training_data import TrainingData
from keras_osgd.losses import described as losses

__all__ = ["class_probabilities"]

_CROSSENTROPIES = (
    "sparse_categorical_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "binary_crossentropy",
    "binary_focal_crossentropy",
)


def class_probabilities(model: keras.Model, data: TrainingData) -> np.ndarray:
    """Returns `[n, classes]` float64, those of the model in inference mode.

    Of two classes for which there is one output, both.

    Raises:
        ValueError: for labels outside of the classes, losses that are no crossentropy,
            and several outputs.
    """
    losses.describe(model, data)  # raises for labels outside of the classes
    found = keras_compat.compiled_losses(model)
    loss = found[0][1]
    name = getattr(getattr(loss, "fn", None), "__name__", type(loss).__name__)
    first = data.batch(slice(1))[0]
    outputs = keras.tree.flatten(keras_compat.call_model(model, first, False))
    shape = tuple(outputs[0].shape)
    refuse(
        [
            _problem_of_outputs(len(found), len(outputs), shape),
            None if name in _CROSSENTROPIES else _problem_of_loss(name),
        ]
    )
    from_logits = keras_compat.loss_options(loss).get("from_logits", False)
    parts = []
    for first in range(0, data.n, data.batch_size):
        inputs = data.batch(slice(first, first + data.batch_size))[0]
        made = keras.tree.flatten(model.predict_on_batch(inputs))[0]
        parts.append(_as_probabilities(np.asarray(made, np.float64), from_logits))
    return np.concatenate(parts)


def _problem_of_outputs(losses_: int, outputs: int, shape: tuple) -> str | None:
    if losses_ == outputs == 1 and len(shape) == 2:
        return None
    return (
        "The model must have one output with a row of classes for each example. "
        f"Received: {outputs} outputs, {losses_} losses, shape {shape}. Look at one "
        "output at a time, by a model of its own."
    )


def _problem_of_loss(name: str) -> str:
    return (
        "The loss must be one of Keras' crossentropies, by which outputs are "
        f"probabilities or logits. Received: {name}. Compile with "
        "`SparseCategoricalCrossentropy`, `CategoricalCrossentropy` or "
        "`BinaryCrossentropy`."
    )


def _as_probabilities(outputs: np.ndarray, from_logits: bool) -> np.ndarray:
    """Returns `[m, classes]`; of one output of two classes, both."""
    if outputs.shape[1] == 1:
        positive = tf.sigmoid(outputs).numpy() if from_logits else outputs
        return np.concatenate([1 - positive, positive], axis=1)
    return tf.nn.softmax(outputs).numpy() if from_logits else outputs
