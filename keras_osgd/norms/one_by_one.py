"""Per-example gradients of layers without a rule, taken one example at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_osgd.base import keras_compat
from keras_osgd.norms import rules
from keras_osgd.norms.calls import Frame, without_activation
from keras_osgd.norms.forms import PerExample

__all__ = ["forms"]


def forms(
    frame: Frame,
    variables: dict[Any, keras.Variable],
    size: int,
    training: bool,
    batched: Sequence[bool] | None = None,
) -> dict[Any, PerExample]:
    """Returns gradients by calling the layer again on each example alone, vectorized.

    Args:
        frame: the call.
        variables: reference -> variable to differentiate with respect to.
        size: m.
        training: whether the call was in training mode.
        batched: whether each leaf of the arguments has rows for each example; `None`
            if only the lengths can tell.

    Raises:
        Obstacle: if the layer draws random numbers, since a second call would draw
            others, or if it cannot be called on one example.
    """
    if training:
        _check_repeatable(frame.layer)
    leaves = keras.tree.flatten((frame.args, frame.kwargs))
    if batched is None or len(batched) != len(leaves):
        batched = [True] * len(leaves)
    split = [i for i, own in enumerate(batched) if own and _rows(leaves[i], size)]
    rows = [_split(leaves[i], size) for i in split]
    deltas = keras.tree.flatten(frame.delta)
    kept = [i for i, delta in enumerate(deltas) if delta is not None]
    rows += [_split(deltas[i], size) for i in kept]

    def gradients(own: list[tf.Tensor]) -> list[tf.Tensor]:
        given = list(leaves)
        for i, row in zip(split, own, strict=False):
            given[i] = row
        args, kwargs = keras.tree.pack_sequence_as((frame.args, frame.kwargs), given)
        mode = keras_compat.calling(frame.layer, training)
        with tf.GradientTape() as tape, keras.StatelessScope(), mode:
            output = keras.tree.flatten(_called_again(frame)(*args, **kwargs))
        found = tape.gradient(
            [output[i] for i in kept],
            [keras_compat.tensor_of(v) for v in variables.values()],
            output_gradients=own[len(split) :],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return [tf.convert_to_tensor(gradient) for gradient in found]

    try:
        found = tf.vectorized_map(gradients, rows)
    except (ValueError, TypeError, NotImplementedError, tf.errors.OpError) as error:
        raise rules.Obstacle(
            f"{frame.layer.name} ({type(frame.layer).__name__}) has no rule and cannot "
            f"be called on one example at a time ({_reason(error)}). "
            "Register a rule with `keras_osgd.norms.register`"
        ) from error
    return dict(zip(variables, map(PerExample, found), strict=True))


def _check_repeatable(layer: keras.Layer) -> None:
    if keras_compat.draws_random_numbers(layer):
        raise rules.Obstacle(
            f"{layer.name} ({type(layer).__name__}) draws random numbers in training "
            "and no rule is registered for it: a second call would draw others. Move "
            "its own weights into a layer of their own, or register one with "
            "`keras_osgd.norms.register`"
        )


def _reason(error: Exception) -> str:
    """Returns the line of an error that says why: the bold one, if Keras wrote one."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [
        line for line in lines if line not in ("", "in user code:", "(in user code:)")
    ]
    bold = [line for line in lines if line.startswith("\x1b[1m")]
    first = [*bold, *lines, type(error).__name__][0]
    return first.removeprefix("\x1b[1m").removesuffix("\x1b[0m")


def _called_again(frame: Frame) -> Callable:
    layer = frame.layer
    if frame.rule is None or not frame.rule.pre_activation:
        return layer

    def call(*args: Any, **kwargs: Any) -> Any:
        with without_activation(layer):
            return layer(*args, **kwargs)

    return call


def _rows(leaf: Any, size: int) -> bool:
    if not tf.is_tensor(leaf) or not leaf.shape.rank:
        return False
    return leaf.shape[0] is None or leaf.shape[0] % size == 0


def _split(tensor: tf.Tensor, size: int) -> tf.Tensor:
    """Returns `[m, rows of an example, ...]`."""
    return tf.reshape(tensor, tf.concat([[size, -1], tf.shape(tensor)[1:]], axis=0))
