"""Datasets read batch after batch: what they consist of, and all of it as columns."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.data import stored_columns as columns
from keras_osgd.data.arrays import as_array
from keras_osgd.data.uneven_columns import Uneven, uneven

__all__ = ["as_arrays", "batches", "is_batched", "read"]

_READ_AT_ONCE = 256  # examples


def is_batched(dataset: Any) -> bool:
    """Returns whether the elements are batches, by their shapes.

    Raises:
        ValueError: if they do not tell.
    """
    if isinstance(dataset, keras.utils.PyDataset):
        return True
    specs = tf.nest.flatten(dataset.element_spec)
    shapes = [spec.shape for spec in specs]
    if any(shape.rank == 0 for shape in shapes):
        return False
    sizes = {shape[0] if shape.rank else None for shape in shapes}
    if sizes == {None}:
        return True
    if len(sizes) > 1:
        return False
    raise ValueError(
        "It must be known whether the dataset's elements are batches. Received: "
        f"elements of shapes {[tuple(shape) for shape in shapes]}, which can be a "
        "batch or one example. Pass `batched=True` or `batched=False`."
    )


def batches(dataset: Any, batched: bool) -> Iterator[Any]:
    """Yields tuples of x, y, ... as arrays, of many examples each."""
    if isinstance(dataset, keras.utils.PyDataset):
        for order in range(_length(dataset)):
            yield as_arrays(dataset[order])
        return
    for element in dataset if batched else dataset.batch(_READ_AT_ONCE):
        yield as_arrays(element)


def _length(dataset: keras.utils.PyDataset) -> int:
    length = dataset.num_batches
    if length is None:
        raise ValueError(
            "The PyDataset must be finite: its `num_batches` or `__len__` must be a "
            "number. Received: None. Define `__len__`."
        )
    return length


def _count_of_batches(dataset: Any, batched: bool) -> int | None:
    if isinstance(dataset, keras.utils.PyDataset):
        return _length(dataset)
    count = int(dataset.cardinality())
    if count < 0:
        return None
    return count if batched else -(-count // _READ_AT_ONCE)


def as_arrays(element: Any) -> tuple:
    """Returns (x, y, ...) of an element as arrays, floats as `floatx`."""
    parts = element if isinstance(element, tuple) else (element,)
    while len(parts) > 1 and parts[-1] is None:
        parts = parts[:-1]

    def convert(leaf: Any) -> np.ndarray | Uneven:
        found = uneven(leaf)
        return as_array(leaf) if found is None else found

    return keras.tree.lists_to_tuples(keras.tree.map_structure(convert, parts))


def read(
    dataset: Any,
    batched: bool,
    directory: pathlib.Path | None,
    memory_limit: int,
    verbose: bool,
) -> list[np.ndarray]:
    """Returns the columns of all examples, read twice as far as the first batch."""
    hashes: list[np.ndarray] = []

    def leaves_read() -> Iterator[list[np.ndarray]]:
        total = _count_of_batches(dataset, batched)
        if verbose:
            print("Reading the dataset once, to draw from its examples")
            bar = keras.utils.Progbar(total, unit_name="batch")
        for done, batch in enumerate(batches(dataset, batched), start=1):
            leaves = keras.tree.flatten(batch)
            hashes.append(columns.row_hashes(leaves))
            yield leaves
            if verbose:
                bar.update(done)

    if directory is None:
        found = columns.in_memory(leaves_read(), memory_limit)
    else:
        found = columns.on_disk(leaves_read(), directory)
    again = columns.row_hashes(keras.tree.flatten(next(batches(dataset, batched))))
    new = np.count_nonzero(~np.isin(again, np.concatenate(hashes)))
    if new:
        raise ValueError(
            "The dataset must give the same examples whenever it is read: what is "
            f"drawn at random would be frozen. Received: {new} of {len(again)} "
            "examples that were not there the first time. Take the random part, such "
            "as augmentation, out of the dataset and pass "
            "`keras_osgd.data.indexed(dataset, map=augment)` to `fit`."
        )
    return found
