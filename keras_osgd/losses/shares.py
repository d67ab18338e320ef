"""Each example's share of the loss, and the parts that belong to the whole batch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_osgd.base import keras_compat, replicas
from keras_osgd.losses.described import (
    OutputLoss,
    leaf_of,
    output_of,
    times,
    weights_for,
)
from keras_osgd.losses.own_loss import has_own

__all__ = [
    "beside",
    "require_single_examples",
    "are_known",
    "depends_on_batch",
    "each",
    "factors_of_masks",
    "has_terms_of_the_batch",
    "scale",
    "unmasked",
]


def require_single_examples(
    model: keras.Model, described: Sequence[OutputLoss]
) -> None:
    """Raises where an example's loss depends on the other examples of its batch.

    Raises:
        ValueError: if some losses are means over the batch and others sums, or one is
            divided by the number of the batch's labels that are not ignored.
    """
    if len({loss.batch_mean for loss in described}) > 1:
        raise ValueError(
            "For exact gradient norms the losses of all outputs must have the same "
            "`reduction`: with means beside sums, what an example weighs in one "
            "depends on the batch size. Received: both. Use 'sum_over_batch_size' for "
            "all, with `loss_weights`."
        )
    for _, loss in keras_compat.compiled_losses(model):
        ignored = keras_compat.loss_options(loss).get("ignore_class")
        if ignored is not None and described[0].batch_mean:
            raise ValueError(
                "For exact gradient norms a loss must not be divided by how many "
                f"labels of the batch count. Received: ignore_class={ignored} in "
                f"{loss.name}. Give such positions a `sample_weight` of 0 instead, or "
                "use `reduction='sum'`."
            )


def are_known(model: keras.Model, described: Sequence[OutputLoss]) -> bool:
    """Returns whether `each` gives the losses that the model trains on.

    Not with a `compute_loss` of the user, nor where a loss is not reduced, or divided
    by how many values of the batch a mask leaves.
    """
    reductions = [loss.reduction for _, loss in keras_compat.compiled_losses(model)]
    if has_own(model) or None in reductions or "none" in reductions:
        return False
    return all(loss.alone for loss in described)


def each(
    model: keras.Model,
    described: Sequence[OutputLoss],
    batch: tuple[Any, Any, Any],
    size: tf.Tensor,
) -> tf.Tensor:
    """Returns `[m]`, each example's loss: their mean is what Keras shows of the batch.

    The losses of all outputs are in it, by `loss_weights` and the user's weights;
    regularisation is not. The losses are computed a second time, from the outputs:
    Keras gives away only their mean.

    Args:
        model: for which `are_known`.
        described: its losses.
        batch: targets, outputs, and the user's weights or `None`.
        size: `[]`, m, of all replicas together: a sum is shown as m times its mean.
    """
    y, y_pred, sample_weight = batch
    compiled, total = keras_compat.compiled_losses(model), 0.0
    weights = keras_compat.loss_weights(model)
    for order, one in enumerate(described):
        output = output_of(y_pred, one.path, order)
        target, user = (leaf_of(tree, one.target) for tree in (y, sample_weight))
        values = _weighted_values(compiled[order][1], one.rank, target, output, user)
        axes = list(range(1, values.shape.rank))
        reduced = tf.reduce_mean if one.batch_mean else tf.reduce_sum
        own = reduced(values, axis=axes) if axes else values
        if not one.batch_mean:
            own *= tf.cast(size, values.dtype)
        total += weights[order] * tf.cast(own, keras.config.floatx())
    return total


def factors_of_masks(
    model: keras.Model,
    described: Sequence[OutputLoss],
    batch: tuple[Any, Any],
    weights: tf.Tensor,
) -> tuple[list[tf.Tensor | None], tf.Tensor | None]:
    """Returns factors of the weights of masked losses, and what these are divided by.

    Keras divides a masked mean by the number of the batch's values that are left. Among
    draws by importance that number is not the data's, for masked examples are rarely
    drawn. Times its factor, each weight is divided by the sum of the weights of the
    values left, which estimates it, as in any weighted mean.

    Args:
        model: compiled.
        described: its losses.
        batch: targets and outputs.
        weights: `[m]`, importance weights.

    Returns:
        `[]` for each loss, `None` where nothing is masked; and `[]`, the sum of the
        weights of the values left, in all masked losses, `None` without such. On
        several replicas it is their mean.
    """
    y, y_pred = batch
    compiled, factors, sums = keras_compat.compiled_losses(model), [], []
    for order, one in enumerate(described):
        if one.alone:
            factors.append(None)
            continue
        target, output = leaf_of(y, one.target), output_of(y_pred, one.path, order)
        left = _values_left(compiled[order][1], target, output)
        weighted = tf.reduce_sum(left * tf.cast(weights, left.dtype))
        sums.append(replicas.averaged(weighted))
        factors.append(tf.math.divide_no_nan(tf.reduce_sum(left), sums[-1]))
    return factors, tf.add_n(sums) if sums else None


def _values_left(loss: keras.Loss, target: Any, output: tf.Tensor) -> tf.Tensor:
    """Returns `[m]` float32, how many values of each example a loss's masks leave."""
    _, masks = _values_and_masks(loss, target, output)
    left = functools.reduce(tf.multiply, (tf.cast(mask, tf.float32) for mask in masks))
    return tf.reduce_sum(tf.reshape(left, [tf.shape(left)[0], -1]), axis=1)


def _weighted_values(
    loss: keras.Loss, rank: int, target: Any, output: tf.Tensor, user: Any
) -> tf.Tensor:
    """Returns `[m, ...]`, the values of a loss, masked and times the user's weights."""
    values, masks = _values_and_masks(loss, target, output)
    if user is not None:
        values *= times(tf.ones(tf.shape(values)[:1], values.dtype), user, rank)
    for mask in masks:
        values *= tf.cast(mask, values.dtype)
    return values


def _values_and_masks(
    loss: keras.Loss, target: Any, output: tf.Tensor
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Returns the values of a loss, and the masks that Keras applies to them."""
    values = loss.call(tf.cast(target, loss.dtype), tf.cast(output, loss.dtype))
    masks = [keras_compat.mask_of(tensor) for tensor in (output, values)]
    return values, [mask for mask in masks if mask is not None]


def scale(described: Sequence[OutputLoss], batch_size: int) -> float:
    """Returns the factor of each example's loss in the batch's: 1, or 1/m for means."""
    return 1.0 / batch_size if described[0].batch_mean else 1.0


def has_terms_of_the_batch(model: keras.Model) -> bool:
    """Returns whether `model.losses` holds more than the weights' regularisation."""
    weights = sum(v.regularizer is not None for v in model.trainable_weights)
    return len(model.losses) > weights


def depends_on_batch(model: keras.Model) -> bool:
    """Returns whether the loss may have terms besides those of examples and weights.

    That is so with `add_loss`, activity regularisers and a `compute_loss` of the user.
    """
    return has_own(model) or has_terms_of_the_batch(model)


def beside(
    model: keras.Model, described: list[OutputLoss], x: Any, y: Any, y_pred: Any
) -> tf.Tensor:
    """Returns `[]`, the part of the loss that no example's weight multiplies.

    It is the sum of `model.losses`, such as regularisation, of which each replica has
    an even share. A user's `compute_loss` returns it for weights of 0.
    """
    if has_own(model):
        size = tf.shape(keras.tree.flatten(y_pred)[0])[0]
        zeros = weights_for(described, tf.zeros([size], keras.config.floatx()), None)
        return keras_compat.untracked_loss(model, x, y, y_pred, zeros)
    terms = [tf.reduce_sum(tf.cast(t, keras.config.floatx())) for t in model.losses]
    terms = tf.add_n([tf.zeros([], keras.config.floatx()), *terms])
    return terms / tf.cast(replicas.count(), terms.dtype)


def unmasked(
    described: Sequence[OutputLoss], y_pred: Any, sample_weight: Any
) -> tuple[Any, Any]:
    """Returns outputs without masks, and weights that are 0 at masked positions.

    Keras divides a masked loss by the batch's number of unmasked positions. As weights,
    masks keep an example's loss independent of the others.

    Args:
        described: the losses, from `describe`.
        y_pred: the model's outputs.
        sample_weight: `[m, ...]`, one for each target, or `None`.
    """
    users, weights = keras.tree.flatten(sample_weight), {}
    for order, loss in enumerate(described):
        user = users[loss.target if len(users) > 1 else 0]
        mask = keras_compat.mask_of(output_of(y_pred, loss.path, order))
        if mask is not None and mask.shape.rank == loss.rank:
            mask = tf.cast(mask, keras.config.floatx())
            if user is not None:
                missing = [1] * (loss.rank - len(user.shape))
                shape = tf.concat([tf.shape(user), missing], axis=0)
                mask *= tf.cast(tf.reshape(user, shape), mask.dtype)
            user = mask
        weights[loss.target] = user
    bare = keras.tree.map_structure(keras_compat.without_mask, y_pred)
    return bare, [weights.get(target) for target in range(max(weights) + 1)]
