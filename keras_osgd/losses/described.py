"""Descriptions of the compiled losses, made on a few examples before training."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base import keras_compat
from keras_osgd.base.model_state import state_kept
from keras_osgd.base.refusals import Refused, refuse, tried_out
from keras_osgd.data.training_data import TrainingData
from keras_osgd.losses import coupling, own_loss, probe

__all__ = [
    "OutputLoss",
    "WithoutLoss",
    "describe",
    "leaf_of",
    "metric_weights",
    "output_of",
    "times",
    "weights_for",
]

_BATCH_MEANS = ("sum_over_batch_size", "mean")


class WithoutLoss(Refused):
    """`compile` was given no loss."""


class OutputLoss(NamedTuple):
    """One of the model's losses.

    Attributes:
        path: keys that lead to its output.
        rank: number of axes of its values, one or more for each example.
        values: number of values for each example; f_i is their mean.
        batch_mean: whether the loss is the mean over the batch (else the sum).
        target: place of its target among the leaves of y, and of its weights among
            those of `sample_weight`.
        alone: whether an example's loss depends on no other example. It does where
            Keras divides by how many values of the batch a mask leaves.
    """

    path: tuple
    rank: int
    values: int
    batch_mean: bool
    target: int = 0
    alone: bool = True

    def coefficient(self, batch_size: tf.Tensor) -> tf.Tensor:
        """Returns the factor of f_i in the batch's loss: 1/m, or `values` for sums."""
        if self.batch_mean:
            return 1.0 / tf.cast(batch_size, tf.float32)
        return tf.constant(float(self.values))


def describe(
    model: keras.Model, data: TrainingData, held_out: Any = None
) -> list[OutputLoss]:
    """Builds the model, if need be, and describes its losses.

    Each loss is tried on a few examples: of one that draws random numbers it cannot be
    told whether it couples the examples of a batch.

    Args:
        model: compiled.
        data: to train on.
        held_out: targets of the validation data, nested arrays, whose labels are
            checked too; `None` for none.

    Raises:
        ValueError: if the model has no `call`, keeps states or cannot be tried out; if
            there is no loss, one gives no value per example or a value that depends on
            the other examples, or one divides by the sum of the weights; if a label
            lies outside the model's classes, or weights do not fit the loss.
    """
    refuse([_problem_of_call(model), _problem_of_states(model)])
    x, y, _ = data.batch(probe.rows(data))
    with tried_out("The model"):
        y_pred = keras_compat.call_model(model, x, training=False)
    refuse([coupling.problem_of_outputs(model, x, y_pred)])
    # Zeros, since a label may be outside the classes, which is checked below.
    zeros = keras.tree.map_structure(lambda a: a if a is None else tf.zeros_like(a), y)
    described, refused, problems = [], [], []
    for order, (path, loss) in enumerate(_built(model, x, zeros, y_pred)):
        prediction = output_of(y_pred, path, order)
        target = _target_of(y, y_pred, path, order, getattr(model, "output_names", ()))
        with tried_out(f"The loss {loss.name}"):
            values, each = _values(loss, leaf_of(zeros, target), prediction)
        shape = tuple(values.shape)
        if not each:
            refused.append(_without_values(path, loss, shape, prediction))
            continue
        labels = _problem_of_labels(loss, leaf_of(data.arrays[1], target), prediction)
        if held_out is not None:
            y_held = leaf_of(held_out, target)
            whose = "y of the validation data"
            problems.append(_problem_of_labels(loss, y_held, prediction, whose))
        problems += [
            _problem_of_reduction(loss),
            labels or coupling.problem_of_loss(loss, leaf_of(y, target), prediction),
            _problem_of_weights(leaf_of(data.arrays[2], target), shape),
        ]
        size, mean = int(np.prod(shape[1:])), loss.reduction in _BATCH_MEANS
        masked = any(keras_compat.mask_of(t) is not None for t in (prediction, values))
        alone = not (mean and masked)
        described.append(OutputLoss(path, len(shape), size, mean, target, alone))
    refuse([_problem_of_shapes(refused), *problems])
    if own_loss.has_own(model):
        batches = [data.batch(probe.rows(data, others)) for others in (False, True)]
        carried = functools.partial(weights_for, described, sample_weight=None)
        own_loss.verify(model, batches, carried)
    return described


def _problem_of_call(model: keras.Model) -> str | None:
    if type(model).call is not keras.Model.call or "call" in vars(model):
        return None
    return (
        "The model must have a `call`: importance sampling takes an example's loss "
        f"from its outputs. Received: {type(model).__name__} without one. Define "
        "`call`, as the forward pass of its `train_step`, or compile with sampling="
        '"uniform".'
    )


def _problem_of_states(model: keras.Model) -> str | None:
    layers = [x for x in keras_compat.layers_of(model) if getattr(x, "stateful", False)]
    names = [layer.name for layer in layers]
    return names and (
        "No layer may be `stateful`: it hands the state of each row to the same row of "
        "the next batch, but importance sampling draws the examples of each batch "
        f"anew. Received: stateful={names}. Set `stateful=False` and leave the batch "
        'size open, or compile with sampling="uniform".'
    )


def _built(model, x, y, y_pred) -> list[tuple[tuple, keras.losses.Loss]]:
    """Returns (path, loss) of each loss; a first call makes Keras build them."""
    if model.loss is not None:
        with state_kept(model), tried_out("The loss"):
            keras_compat.untracked_loss(model, x, y, y_pred, None)
    found = keras_compat.compiled_losses(model) if model.loss is not None else []
    if not found:
        raise WithoutLoss(
            [
                "`compile` must be given a `loss`, and a `compute_loss` of yours must "
                "call it: an example's importance is the gradient of its own loss. "
                f"Received: loss={model.loss!r}. Pass one, or compile with "
                'sampling="uniform".'
            ]
        )
    return found


def _values(loss, target, prediction: tf.Tensor) -> tuple[tf.Tensor, bool]:
    """Returns a loss's values, and whether there is one or more per example."""
    sizes, found = (1, len(prediction)), []
    for rows in sizes:
        values = loss.call(
            tf.cast(tf.convert_to_tensor(target[:rows]), loss.dtype),
            tf.cast(prediction[:rows], loss.dtype),
        )
        found.append(values)
    # Two sizes, since the shape for a single one may agree by chance.
    pairs = zip(found, sizes, strict=True)
    return found[-1], all(tuple(v.shape[:1]) == (rows,) for v, rows in pairs)


def _without_values(path: tuple, loss, shape: tuple, prediction) -> tuple[str, str]:
    """Returns what a loss returned, and what to do that it returns what it must."""
    of = f" of output {'/'.join(map(str, path))}" if path else ""
    found = f"{loss.name}{of} got shape {shape}"
    function = getattr(loss, "fn", loss.call)
    options = inspect.signature(function).parameters
    axis = keras_compat.loss_options(loss).get("axis")
    if axis is None and "axis" in options and options["axis"].default is None:
        name = getattr(function, "__name__", "").title()
        axes = tuple(range(1, len(prediction.shape)))
        if hasattr(keras.losses, name):
            return found, f"`keras.losses.{name}(axis={axes})`"
    return found, f"a mean over all axes but the first in {loss.name}"


def _problem_of_shapes(refused: list[tuple[str, str]]) -> str | None:
    if not refused:
        return None
    found, remedies = map(dict.fromkeys, zip(*refused, strict=True))
    return (
        f"Each loss must return one value per example; {', '.join(found)}. Use "
        f"{', '.join(remedies)}."
    )


def _problem_of_reduction(loss: keras.losses.Loss) -> str | None:
    if loss.reduction != "mean_with_sample_weight":
        return None
    return (
        "A loss's `reduction` must not be 'mean_with_sample_weight': it divides by "
        "the sum of the weights and biases the gradient. Received: it in "
        f"{loss.name}. Use 'sum_over_batch_size'."
    )


def _problem_of_labels(
    loss, y: np.ndarray, prediction: tf.Tensor, whose: str = "y"
) -> str | None:
    name = getattr(getattr(loss, "fn", None), "__name__", "")
    if name != "sparse_categorical_crossentropy":
        return None
    options = keras_compat.loss_options(loss)
    outputs = prediction.shape[options.get("axis", -1)]
    outside = ~((y >= 0) & (y < outputs))  # in this form NaN is outside too
    if options.get("ignore_class") is not None:
        outside &= y != options["ignore_class"]
    if not outside.any():
        return None
    index = int(np.argwhere(outside)[0][0])
    label = np.ravel(y[index])[np.ravel(outside[index])][0]
    return (
        f"{whose} has label {label:g} at index {index} but the model has {outputs} "
        f"outputs. Labels must be 0 to {outputs - 1}: renumber them or widen the "
        "last layer."
    )


def _problem_of_weights(weight: np.ndarray | None, shape: tuple) -> str | None:
    if weight is None:
        return None
    own = weight.shape[1:]
    pairs = zip(own, shape[1:], strict=False)  # further axes must be of length 1
    fits = all(a in (1, b) for a, b in pairs) and set(own[len(shape) - 1 :]) <= {1}
    return (
        None
        if fits
        else (
            "`sample_weight` must have one value per example, or one per value of its "
            f"loss, {shape[1:]} for each example. Received: {own} for each example. "
            "Sum or average it over the axes that the loss does not have."
        )
    )


def output_of(y_pred: Any, path: tuple, order: int) -> tf.Tensor:
    """Returns the output of a loss, found by its path or else by its place."""
    place = _place(y_pred, path)
    return leaf_of(y_pred, order if place is None else place)


def _target_of(y, y_pred, path: tuple, order: int, names: Sequence[str]) -> int:
    """Returns the place, among the leaves of y, of the target that a loss gets."""
    place = _place(y, path, names)
    if place is not None:
        return place
    outputs, targets = len(keras.tree.flatten(y_pred)), len(keras.tree.flatten(y))
    # As many targets as outputs have the outputs' order; else each loss has its own.
    place = _place(y_pred, path) if outputs == targets else order
    return order if place is None else place


def _place(structure: Any, path: tuple, names: Sequence[str] = ()) -> int | None:
    """Returns the place among the leaves that `path` leads to; `None` if nowhere."""
    count = len(keras.tree.flatten(structure))
    places = keras.tree.pack_sequence_as(structure, list(range(count)))
    try:
        for key in path:
            if isinstance(places, Mapping) and key not in places:
                key = names[key]
            places = places[key]
    except (KeyError, TypeError, IndexError):
        return None
    return keras.tree.flatten(places)[0]


def leaf_of(structure: Any, place: int) -> Any:
    """Returns the leaf at a place, or the only leaf."""
    leaves = keras.tree.flatten(structure)
    return leaves[place if len(leaves) > 1 else 0]


def weights_for(
    losses: list[OutputLoss],
    weights: tf.Tensor,
    sample_weight: Any,
    factors: Sequence[tf.Tensor | None] = (),
) -> Any:
    """Returns the `sample_weight` that carries the importance weights to each loss.

    Args:
        losses: from `describe`.
        weights: `[m]`, importance weights.
        sample_weight: the user's, `[m, ...]`, one for each target, or `None`.
        factors: `[]` for each loss, from `shares.factors_of_masks`.
    """

    def combined(loss: OutputLoss, factor: tf.Tensor | None) -> tf.Tensor:
        own = weights if factor is None else weights * tf.cast(factor, weights.dtype)
        return times(own, leaf_of(sample_weight, loss.target), loss.rank)

    pairs = list(zip(losses, factors or [None] * len(losses), strict=True))
    if len(losses) == 1 and not losses[0].path:
        return combined(*pairs[0])
    nested: dict = {}
    for loss, factor in pairs:
        level = nested
        for key in loss.path[:-1]:
            level = level.setdefault(key, {})
        level[loss.path[-1]] = combined(loss, factor)
    return nested


def metric_weights(weights: tf.Tensor, user: Any, output: tf.Tensor) -> tf.Tensor:
    """Returns the `sample_weight` of a metric, with at least the axes of the mask.

    Args:
        weights: `[m]`, importance weights.
        user: `[m, ...]`, the user's, or `None`.
        output: `[m, ...]`, which the metric measures.
    """
    mask = keras_compat.mask_of(output)
    ranks = [1, *(x.shape.rank for x in (user, mask) if x is not None)]
    return times(weights, user, max(ranks))


def times(weights: tf.Tensor, user: Any, rank: int) -> tf.Tensor:
    """Returns the product of importance weights and the user's, with `rank` axes.

    Args:
        weights: `[m]`, importance weights.
        user: `[m, ...]`, or `None`; axes beyond `rank` are of length 1. The product is
            float64 if it is, else of the type of `weights`.
        rank: number of axes, at least 1.

    Example:
        >>> times(tf.constant([2.0, 3.0]), tf.constant([[1.0, 4.0]] * 2), 2).numpy()
        array([[ 2.,  8.],
               [ 3., 12.]], dtype=float32)
    """
    shaped = tf.reshape(weights, [-1] + [1] * (rank - 1))
    if user is None:
        return shaped
    wide = tf.float64 if user.dtype == tf.float64 else weights.dtype
    user, shaped = tf.cast(user, wide), tf.cast(shaped, wide)
    missing = [1] * max(rank - user.shape.rank, 0)
    return shaped * tf.reshape(user, tf.concat([tf.shape(user)[:rank], missing], 0))
