"""What the compiled losses return, found out on two examples before training."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_osgd import keras_compat
from keras_osgd.training_data import TrainingData

__all__ = ["OutputLoss", "describe", "output_of", "weights_for"]

_BATCH_MEANS = ("sum_over_batch_size", "mean")


class OutputLoss(NamedTuple):
    """One of the model's losses.

    Attributes:
        path: keys that lead to its output.
        rank: of its values, one or more for each example.
        values: number of values for each example; f_i is their mean.
        batch_mean: whether the loss is the mean over the batch (else the sum).
    """

    path: tuple
    rank: int
    values: int
    batch_mean: bool

    def coefficient(self, batch_size: tf.Tensor) -> tf.Tensor:
        """Returns the factor of f_i in the batch's loss: 1/m for means."""
        if self.batch_mean:
            return 1.0 / tf.cast(batch_size, tf.float32)
        return tf.constant(float(self.values))


def describe(model: keras.Model, data: TrainingData) -> list[OutputLoss]:
    """Builds the model, if need be, and describes its losses.

    Raises:
        ValueError: if there is no loss, one gives no value per example, one divides by
            the sum of the weights, the loss takes no notice of weights, or a label lies
            outside the model's classes.
    """
    x, y, _ = data.rows(2)
    y_pred = keras_compat.call_model(model, x, training=False)
    if type(model).compute_loss is not keras.Model.compute_loss:
        if not _heeds_weights(model, x, y, y_pred):
            raise ValueError(
                "`compute_loss` must multiply each example's loss by `sample_weight`, "
                "which carries the importance weights. Received: the same loss for "
                "weights 1 and 0.5. Pass it on to `super().compute_loss(...)`, or "
                'compile with sampling="uniform".'
            )
    else:
        keras_compat.compute_loss(model, x, y, y_pred, None)
    found = keras_compat.compiled_losses(model)
    if not found:
        raise ValueError(
            "`compile` must be given a `loss`: an example's importance is the gradient "
            'of its own loss. Received: loss=None. Pass one, or sampling="uniform".'
        )
    described, refused = [], []
    for order, (path, loss) in enumerate(found):
        target, prediction = _at(y, path, order), output_of(y_pred, path, order)
        values = loss.call(
            tf.cast(tf.convert_to_tensor(target), loss.dtype),
            tf.cast(prediction, loss.dtype),
        )
        shape = tuple(values.shape)
        if not shape or shape[0] != len(prediction):
            refused.append((loss.name, shape))
            continue
        _check_reduction(loss)
        _check_labels(loss, _at(data.arrays[1], path, order), prediction)
        size = int(np.prod(shape[1:]))
        described.append(
            OutputLoss(path, len(shape), size, loss.reduction in _BATCH_MEANS)
        )
    if refused:
        listed = ", ".join(f"{name} got shape {shape}" for name, shape in refused)
        raise ValueError(
            f"Each loss must return one value per example; {listed}. Use Keras losses, or "
            "let yours return the mean over all axes but the first."
        )
    return described


def _heeds_weights(model: keras.Model, x, y, y_pred) -> bool:
    """Returns whether the loss follows `sample_weight`."""
    halves = tf.fill([len(keras.tree.flatten(y_pred)[0])], 0.5)
    whole = keras_compat.compute_loss(model, x, y, y_pred, None)
    half = keras_compat.compute_loss(model, x, y, y_pred, halves)
    return not bool(tf.reduce_all(whole == half))


def _check_reduction(loss: keras.losses.Loss) -> None:
    if loss.reduction == "mean_with_sample_weight":
        raise ValueError(
            "A loss's `reduction` must not be 'mean_with_sample_weight': it divides by "
            "the sum of the weights and biases the gradient. Received: it in "
            f"{loss.name}. Use 'sum_over_batch_size'."
        )


def _check_labels(loss, y: Any, prediction: tf.Tensor) -> None:
    name = getattr(getattr(loss, "fn", None), "__name__", "")
    if name != "sparse_categorical_crossentropy":
        return
    ignored = getattr(loss, "ignore_class", None)
    outputs = prediction.shape[getattr(loss, "axis", -1)]
    outside = (y < 0) | (y >= outputs)
    if ignored is not None:
        outside &= y != ignored
    if outside.any():
        index = int(np.argwhere(outside)[0][0])
        label = np.ravel(y[index])[np.ravel(outside[index])][0]
        raise ValueError(
            f"y has label {label:g} at index {index} but the model has {outputs} outputs. "
            f"Labels must be 0 to {outputs - 1}: renumber them or widen the last layer."
        )


def output_of(y_pred: Any, path: tuple, order: int) -> tf.Tensor:
    """Returns the output that the loss with this path and place belongs to."""
    return _at(y_pred, path, order)


def _at(structure: Any, path: tuple, order: int) -> Any:
    try:
        for key in path:
            structure = structure[key]
    except (KeyError, TypeError, IndexError):
        structure = keras.tree.flatten(structure)[order]
    return keras.tree.flatten(structure)[0]


def weights_for(
    losses: list[OutputLoss], weights: tf.Tensor, sample_weight: Any
) -> Any:
    """Returns the `sample_weight` that carries the importance weights to each loss.

    Args:
        losses: as described.
        weights: `[m]`, importance weights.
        sample_weight: the user's, `[m, ...]`, one for each output, or `None`.
    """
    own = [leaf for leaf in keras.tree.flatten(sample_weight) if leaf is not None]

    def combined(order: int, rank: int) -> tf.Tensor:
        user = own[order if len(own) > 1 else 0] if own else None
        shape = [-1] + [1] * (rank - 1)
        shaped = tf.reshape(weights, shape)
        if user is None:
            return shaped
        user = tf.cast(user, weights.dtype)
        if user.shape.rank < rank:
            user = tf.reshape(
                user, tf.concat([tf.shape(user), [1] * (rank - user.shape.rank)], 0)
            )
        elif user.shape.rank > rank:
            user = tf.reshape(user, tf.shape(user)[:rank])
        return shaped * user

    each = [combined(order, loss.rank) for order, loss in enumerate(losses)]
    if len(each) == 1 and not losses[0].path:
        return each[0]
    nested: dict = {}
    for loss, weight in zip(losses, each, strict=True):
        level = nested
        for key in loss.path[:-1]:
            level = level.setdefault(key, {})
        level[loss.path[-1]] = weight
    return nested
