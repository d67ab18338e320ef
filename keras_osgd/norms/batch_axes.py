"""Tells the calls that have a batch axis from those that have none."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_osgd.base import keras_compat
from keras_osgd.norms.arrays import rows_from
from keras_osgd.norms.calls import Frame, recording

__all__ = ["Axes", "batch_axes", "numbered"]


class Axes(NamedTuple):
    """Where a call has a batch axis.

    Attributes:
        outputs: whether its outputs have one.
        arguments: whether each leaf of its arguments has one; `None` if not known.
    """

    outputs: bool = True
    arguments: tuple[bool, ...] | None = None


def batch_axes(model: keras.Model, x: Any) -> dict[tuple[int, int], Axes]:
    """Returns which calls of which layer have a batch axis, by two trial runs.

    An embedding of positions, added to every example alike, has none, though its length
    may happen to be the batch's.

    Args:
        model: built.
        x: at least 3 examples.

    Raises:
        ValueError: if the model takes batches of one size only.

    Returns:
        (`id` of the layer, how many calls of it came before) -> where the length of
        the first axis is a multiple of the number of examples.
    """
    lengths = []
    for size in (2, 3):
        rows = keras.tree.map_structure(lambda leaf, m=size: rows_from(leaf, 0, m), x)
        with recording(model) as frames, keras.StatelessScope():
            try:
                keras_compat.call_model(model, rows, training=False)
            except (ValueError, tf.errors.InvalidArgumentError) as error:
                raise ValueError(
                    "Exact gradient norms need a model that takes any number of "
                    f"examples at once. Received: {str(error).splitlines()[0]} with "
                    f"{size}. Leave the batch size open and layers not `stateful`, or "
                    'use the last layer\'s norms, `sampling.RAIS(norm="last_layer")`.'
                ) from error
        _refuse_ragged(frames)
        lengths.append({key: _lengths(frame, size) for key, frame in numbered(frames)})
    two, three = lengths
    return {key: _axes(two[key], three[key]) for key in two if key in three}


def _refuse_ragged(frames: Sequence[Frame]) -> None:
    names = [
        frame.layer.name
        for _, frame in numbered(frames)
        if any(isinstance(t, tf.RaggedTensor) for t in keras.tree.flatten(frame.output))
    ]
    if names:
        raise ValueError(
            "Exact gradient norms need layers with dense outputs. Received: ragged "
            f"ones of {names}. Call `.to_tensor()` on the input in a layer of its own, "
            'or use the last layer\'s norms, `sampling.RAIS(norm="last_layer")`.'
        )


def _axes(two: list[int | None], three: list[int | None]) -> Axes:
    outputs, *arguments = (
        a is not None and a == b for a, b in zip(two, three, strict=False)
    )
    return Axes(outputs, tuple(arguments) if len(two) == len(three) else None)


def _lengths(frame: Frame, size: int) -> list[int | None]:
    """Returns how many rows of the outputs, and of each argument, an example has."""
    arguments = keras.tree.flatten((frame.args, frame.kwargs))
    leaves = [keras.tree.flatten(frame.output), *([leaf] for leaf in arguments)]
    return [_length([x for x in own if tf.is_tensor(x)], size) for own in leaves]


def _length(tensors: list[tf.Tensor], size: int) -> int | None:
    """Returns how many rows belong to an example; `None` if unclear."""
    rows = {x.shape[0] if x.shape.rank else 0 for x in tensors}
    only = rows.pop() if len(rows) == 1 else 0
    return only // size if only and only % size == 0 else None


def numbered(frames: Sequence[Frame]) -> Iterator[tuple[tuple[int, int], Frame]]:
    """Yields each call with its layer's `id` and number of calls before it."""
    calls: collections.Counter = collections.Counter()
    for root in frames:
        for frame in root.everything():
            number = id(frame.layer)
            yield (number, calls[number]), frame
            calls[number] += 1
