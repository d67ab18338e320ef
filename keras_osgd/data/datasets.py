"""Datasets, read once as examples that can be drawn at random."""

from __future__ import annotations

import functools
import math
import os
import pathlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base import keras_compat
from keras_osgd.base.model_state import seeds_kept
from keras_osgd.base.refusals import NO_EXAMPLES
from keras_osgd.data.arrays import as_array
from keras_osgd.data.indexed_examples import Indexed
from keras_osgd.data.row_hashes import row_hashes
from keras_osgd.data.stored_columns import (
    in_memory,
    kept_in,
    on_disk,
    too_large,
)
from keras_osgd.data.uneven_columns import Uneven, uneven

__all__ = [
    "Indexed",
    "as_arrays",
    "batches",
    "from_dataset",
    "indexed",
    "is_batched",
    "is_dataset",
    "length_of",
    "read",
    "require_batches",
    "require_readable",
    "stand_in",
    "was_read",
]

MEMORY_LIMIT = 2**30
_READ_AT_ONCE = 256  # examples
_STANDING_IN = 8  # examples
_INFINITE = tf.data.INFINITE_CARDINALITY
_UNKNOWN = tf.data.UNKNOWN_CARDINALITY
_FROZEN = (
    "The dataset must give the same examples whenever it is read: what is drawn at "
    "random would be frozen. Received: {}. Take the random part, such as augmentation, "
    "out of the dataset and pass `keras_osgd.data.indexed(dataset, map=augment)` to "
    "`fit`."
)


def indexed(
    dataset: tf.data.Dataset | keras.utils.PyDataset,
    map: Callable | None = None,
    cache: str | os.PathLike | None = None,
    memory_limit: int = MEMORY_LIMIT,
    batched: bool | None = None,
    verbose: bool = True,
) -> Indexed:
    """Reads a dataset once, so that `fit` can draw its examples.

    The dataset's operations (decode, resize, filter, shuffle) run once. Operations that
    are random at every visit, such as augmentation, go into `map`.

    Args:
        dataset: finite; a `tf.data.Dataset` of (x, y) or (x, y, sample_weight), single
            examples or batches, or a `PyDataset`. Examples have one shape.
        map: as in `dataset.map`: takes an element of the dataset, (x, y) of an example
            or of a batch, and returns the same. An argument named `seed` gets two int64
            numbers for TensorFlow's `stateless_random_*`, for each batch or each visit
            of an example; such a run can be resumed bit for bit.
        cache: a directory. Examples are written there and read from there, also the
            next time, as by `dataset.cache(filename)`. Delete it when the dataset
            changes. `None` keeps them in memory.
        memory_limit: bytes that may be kept in memory.
        batched: whether the elements are batches; `None` decides by their shapes.
        verbose: whether to show a progress bar.

    Returns:
        Examples that `fit` takes in place of x.

    Raises:
        ValueError: if the dataset is infinite, too large, not of one shape, or gives
            other examples when it is read again; or if shapes do not tell `batched`.

    Example:
        >>> x, y = np.zeros([6, 8, 8, 1], "float32"), np.arange(6) % 2
        >>> dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
        >>> def flip(x, y, seed):
        ...     return tf.image.stateless_random_flip_left_right(x, seed), y
        >>> examples = indexed(dataset, map=flip, verbose=False)
        >>> len(examples), examples.batch_size
        (6, 2)
    """
    _require_finite(dataset)
    batched = is_batched(dataset) if batched is None else batched
    directory = None if cache is None else pathlib.Path(cache)
    if directory is None or kept_in(directory) is None:
        require_readable(dataset, memory_limit if directory is None else None)
    first = next(batches(dataset, batched), None)
    if first is None:
        raise ValueError(NO_EXAMPLES)
    leaves = None if directory is None else _kept(directory, first)
    if leaves is None:
        leaves = read(dataset, batched, directory, memory_limit, verbose)
    arrays = keras.tree.pack_sequence_as(first, leaves)
    size = len(keras.tree.flatten(first)[0]) if batched else None
    return Indexed((*arrays, None, None)[:3], map, size)


def from_dataset(x: Any, earlier: tuple | None, verbose: bool) -> tuple[Any, Any]:
    """Returns the examples to use for x in a `fit`, and a record for the next one.

    Args:
        x: as given to `fit`; anything but a dataset is returned as it is.
        earlier: record of the last `fit` or `None`; with it, the same dataset is not
            read again.
        verbose: whether to show a progress bar.

    Raises:
        ValueError: if a dataset cannot be read once and drawn from; says what to do.
    """
    if not is_dataset(x):
        return x, earlier
    if was_read(x, earlier):
        return earlier[1], earlier
    require_batches(x, ", or pass `keras_osgd.data.indexed(dataset)`")
    found = indexed(x, batched=True, verbose=verbose)
    return found, (weakref.ref(x), found)


def was_read(x: Any, earlier: tuple | None) -> bool:
    """Returns whether x is the dataset of a record of `from_dataset`."""
    return earlier is not None and earlier[0]() is x


def require_batches(dataset: Any, or_else: str = "") -> None:
    """Raises a ValueError if shapes show that the elements are single examples."""
    try:
        batched = is_batched(dataset)
    except ValueError:  # its shapes do not tell, and Keras takes them for batches
        return
    if not batched:
        raise ValueError(
            "A dataset given to `fit` must consist of batches, as in Keras. Received: "
            f"one of single examples. Call `.batch(batch_size)`{or_else}."
        )


def _require_finite(dataset: Any) -> None:
    if isinstance(dataset, tf.data.Dataset) and dataset.cardinality() == _INFINITE:
        raise ValueError(
            "The dataset is infinite. Importance sampling needs random access to a "
            "finite set: leave `.repeat()` out, or pass `dataset.take(n)`, or compile "
            "with `sampling=keras_osgd.sampling.Presample(ratio=4)`, which draws from "
            "what a stream gives next."
        )


def require_readable(dataset: Any, memory_limit: int | None) -> None:
    """Raises where it is known without reading that a dataset cannot be read once.

    Args:
        dataset: to be read.
        memory_limit: bytes that may be kept; `None` where they are on disk.

    Raises:
        ValueError: if it draws at random, is infinite or does not fit into the memory.
    """
    if isinstance(dataset, keras.utils.PyDataset):
        _length(dataset)
        return
    _require_finite(dataset)
    if keras_compat.draws_at_random(dataset):
        raise ValueError(_FROZEN.format("functions that draw at random"))
    if memory_limit is not None and _least_bytes(dataset) > memory_limit:
        raise ValueError(too_large(memory_limit))


def _least_bytes(dataset: tf.data.Dataset) -> int:
    """Returns the least size of all examples; axes of unknown length count as 1."""
    size, total = keras_compat.batch_size_of(dataset) or 1, 0
    for spec in tf.nest.flatten(dataset.element_spec, expand_composites=True):
        if isinstance(spec, tf.TensorSpec) and spec.shape.rank:
            first, *others = spec.shape
            rows = (first or size) * math.prod(other or 1 for other in others)
            total += spec.dtype.size * rows
    return total * max(int(dataset.cardinality()) - 1, 0)  # the last may be smaller


def stand_in(dataset: Any) -> tuple | None:
    """Returns a few rows shaped as those of a dataset, to try a model on.

    A `tf.data.Dataset` is not read, a `PyDataset` gives its first batch twice.

    Returns:
        (x, y, ...) of arrays: normal numbers for floats of x, weights of 1, and zeros
        or empty strings for all else. The first batch of a `PyDataset`. `None` where
        the shapes are not known.

    Raises:
        ValueError: if a `PyDataset` gives other examples when it is read again.
    """
    if isinstance(dataset, keras.utils.PyDataset):
        with seeds_kept():
            first, again = as_arrays(dataset[0]), as_arrays(dataset[0])
        _refuse_new(*(row_hashes(keras.tree.flatten(rows)) for rows in (first, again)))
        return first
    for spec in tf.nest.flatten(dataset.element_spec):
        if not isinstance(spec, tf.TensorSpec) or not spec.shape.rank:
            return None
        if None in spec.shape.as_list()[1:]:
            return None
    parts = dataset.element_spec
    parts = parts if isinstance(parts, tuple) else (parts,)
    numbers = np.random.default_rng(0)

    def normal(shape: list[int]) -> np.ndarray:
        return numbers.normal(size=shape)

    # Of x, y and the weights: what makes floats, and what makes all other numbers.
    makers = (normal, np.zeros), (np.zeros, np.zeros), (np.ones, np.ones)
    made = [
        tf.nest.map_structure(functools.partial(_rows_of, *makes), part)
        for makes, part in zip(makers, parts, strict=False)
    ]
    return as_arrays(tuple(made))


def _rows_of(floats: Callable, others: Callable, spec: tf.TensorSpec) -> np.ndarray:
    """Returns a few rows of a tensor's shape and type, made by a function of shapes."""
    shape = [spec.shape[0] or _STANDING_IN, *spec.shape[1:]]
    if spec.dtype == tf.string:
        return np.full(shape, "", object)
    make = floats if spec.dtype.is_floating else others
    return make(shape).astype(spec.dtype.as_numpy_dtype)


def length_of(dataset: Any) -> tuple[int | None, int]:
    """Returns the number of examples, if it is known, and of batches.

    Raises:
        ValueError: if the number of batches is not known without reading.
    """
    if isinstance(dataset, keras.utils.PyDataset):
        return None, _length(dataset)
    count = int(dataset.cardinality())
    if count == _UNKNOWN:
        raise ValueError(
            "The dataset's length must be known, for it is read once and kept. "
            "Received: one of unknown length. Apply "
            "`tf.data.experimental.assert_cardinality(batches)`, or pass "
            "`keras_osgd.data.indexed(dataset)`."
        )
    size = keras_compat.batch_size_of(dataset)
    return None if size is None else count * size, count


def _kept(directory: pathlib.Path, first: Any) -> list[np.ndarray] | None:
    """Returns the stored columns or `None`; raises if they are not this dataset's."""
    leaves = kept_in(directory)
    if leaves is None:
        return None
    found = [(leaf.dtype, leaf.shape[1:]) for leaf in leaves]
    wanted = [(leaf.dtype, leaf.shape[1:]) for leaf in keras.tree.flatten(first)]
    if found != wanted:
        raise ValueError(
            "`cache` must hold the examples of this dataset. Received: "
            f"{directory} with columns {found}, where the dataset has {wanted}. "
            "Delete it, or name another directory."
        )
    return leaves


def is_dataset(x: Any) -> bool:
    """Returns whether x is a dataset that `fit` reads once."""
    return isinstance(x, tf.data.Dataset | keras.utils.PyDataset)


def is_batched(dataset: Any) -> bool:
    """Returns whether the elements are batches, by their shapes.

    Raises:
        ValueError: if the shapes do not tell.
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
    """Yields (x, y, ...) as arrays of many examples each."""
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
    """Returns the columns of all examples; reads the first batch again to check it."""
    hashes: list[np.ndarray] = []

    def leaves_read() -> Iterator[list[np.ndarray]]:
        total = _count_of_batches(dataset, batched)
        if verbose:
            print("Reading the dataset once, to draw from its examples")
            bar = keras.utils.Progbar(total, unit_name="batch")
        for done, batch in enumerate(batches(dataset, batched), start=1):
            leaves = keras.tree.flatten(batch)
            hashes.append(row_hashes(leaves))
            yield leaves
            if verbose:
                bar.update(done)

    if directory is None:
        found = in_memory(leaves_read(), memory_limit)
    else:
        found = on_disk(leaves_read(), directory)
    again = row_hashes(keras.tree.flatten(next(batches(dataset, batched))))
    _refuse_new(np.concatenate(hashes), again)
    return found


def _refuse_new(known: np.ndarray, again: np.ndarray) -> None:
    new = np.count_nonzero(~np.isin(again, known))
    if new:
        raise ValueError(
            _FROZEN.format(
                f"{new} of {len(again)} examples that were not there the first time"
            )
        )
