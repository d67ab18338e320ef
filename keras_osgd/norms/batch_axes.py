"""Tells the calls whose outputs have a batch axis from those that have none."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_osgd import keras_compat
from keras_osgd.norms.calls import Frame, recording

__all__ = ["batch_axes", "numbered"]


def batch_axes(model: keras.Model, x: Any) -> dict[tuple[int, int], bool]:
    """Returns which calls of which layer have a batch axis, by two trial runs.

    An embedding of positions, added to every example alike, has none, though its length
    may happen to be the batch's.

    Args:
        model: built.
        x: at least 3 examples.

    Raises:
        ValueError: if the model takes batches of one size only.

    Returns:
        (`id` of the layer, how many calls of it came before) -> whether the length of
        its outputs' first axis is a multiple of the number of examples.
    """
    lengths = []
    for size in (2, 3):
        rows = keras.tree.map_structure(lambda leaf, m=size: leaf[:m], x)
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
        lengths.append({key: _length(frame, size) for key, frame in numbered(frames)})
    two, three = lengths
    return {key: two[key] is not None and two[key] == three.get(key) for key in two}


def _length(frame: Frame, size: int) -> int | None:
    """Returns how many rows of the outputs belong to an example; `None` if unclear."""
    shapes = [x.shape for x in keras.tree.flatten(frame.output) if tf.is_tensor(x)]
    rows = {shape[0] if shape.rank else 0 for shape in shapes}
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
