"""Datasets and records as examples that can be drawn at random."""

from __future__ import annotations

import os
import pathlib
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base.refusals import NO_EXAMPLES
from keras_osgd.data import dataset_reading
from keras_osgd.data import stored_columns as columns
from keras_osgd.data.indexed_examples import Indexed
from keras_osgd.data.record_columns import Column, Records

__all__ = ["Indexed", "from_dataset", "indexed", "records"]

_MEMORY_LIMIT = 2**30


def indexed(
    dataset: tf.data.Dataset | keras.utils.PyDataset,
    map: Callable | None = None,
    cache: str | os.PathLike | None = None,
    memory_limit: int = _MEMORY_LIMIT,
    batched: bool | None = None,
    verbose: bool = True,
) -> Indexed:
    """Reads a dataset once, so that `fit` can draw its examples.

    What the dataset does (decode, resize, filter, shuffle) is done once; what is to be
    drawn anew at every visit, as augmentation is, goes into `map`.

    Args:
        dataset: finite; a `tf.data.Dataset` of (x, y) or (x, y, sample_weight), single
            examples or batches, or a `PyDataset`. Examples have one shape.
        map: as in `dataset.map`: takes what the dataset's elements are, (x, y) of an
            example or of a batch, and returns the same. If it has an argument `seed`,
            it gets two int64 numbers for TensorFlow's `stateless_random_*`, of a batch
            or of each visit of an example; such a run can be gone on with bit for bit.
        cache: a directory. Examples are written there and read from there, also the
            next time, as by `dataset.cache(filename)`: delete it when the dataset
            changes. `None` keeps them in memory.
        memory_limit: bytes that may be kept in memory.
        batched: whether the elements are batches; `None` finds out where it is plain.
        verbose: whether a bar is shown.

    Returns:
        What `fit` takes in place of x.

    Raises:
        ValueError: if the dataset is infinite, too large, not of one shape, or gives
            other examples when it is read again.

    Example:
        >>> x, y = np.zeros([6, 8, 8, 1], "float32"), np.arange(6) % 2
        >>> dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
        >>> def flip(x, y, seed):
        ...     return tf.image.stateless_random_flip_left_right(x, seed), y
        >>> examples = indexed(dataset, map=flip, verbose=False)
        >>> len(examples), examples.batch_size
        (6, 2)
    """
    if isinstance(dataset, tf.data.Dataset) and dataset.cardinality() == -1:
        raise ValueError(
            "The dataset is infinite. Importance sampling needs random access to a "
            "finite set: leave `.repeat()` out, or pass `dataset.take(n)`, or compile "
            "with `sampling=keras_osgd.sampling.Presample(ratio=4)`, which draws from "
            "what a stream gives next."
        )
    batched = dataset_reading.is_batched(dataset) if batched is None else batched
    first = next(dataset_reading.batches(dataset, batched), None)
    if first is None:
        raise ValueError(NO_EXAMPLES)
    directory = None if cache is None else pathlib.Path(cache)
    leaves = None if directory is None else _kept(directory, first)
    if leaves is None:
        leaves = dataset_reading.read(
            dataset, batched, directory, memory_limit, verbose
        )
    arrays = keras.tree.pack_sequence_as(first, leaves)
    size = len(keras.tree.flatten(first)[0]) if batched else None
    return Indexed((*arrays, None, None)[:3], map, size)


def records(
    source: Any,
    parse: Callable[[Any], tuple] | None = None,
    map: Callable | None = None,
    labels: Any = None,
    verbose: bool = True,
) -> Indexed:
    """Lets `fit` draw from records with random access, reading only what is drawn.

    For data larger than memory: array_record and grain sources, Hugging Face datasets,
    a list of paths, or anything with `__len__` and `__getitem__`. Reading runs beside
    the training step, in several threads.

    Args:
        source: with `__len__` and `__getitem__`; `__getitems__`, which takes a list of
            numbers, is called instead where there is one.
        parse: from a record to (x, y) or (x, y, sample_weight), as arrays of one shape;
            called at every visit. `None` where records are that already.
        map: as in `indexed`, of an example: TensorFlow's, for augmentation.
        labels: y of all records, `[n, ...]`. `None` reads all records once for them.
        verbose: whether that shows a bar.

    Returns:
        What `fit` takes in place of x.

    Raises:
        ValueError: if there is no record, or one is not what is said above.

    Example:
        >>> source = [{"image": np.ones([2, 2]), "label": i % 2} for i in range(5)]
        >>> train = records(source, lambda r: (r["image"], r["label"]), verbose=False)
        >>> len(train), train.arrays[1]
        (5, array([0, 1, 0, 1, 0]))
    """
    found = Records(source, parse)
    x, *others = found.columns()
    if labels is not None:
        others[0] = np.asarray(labels)
    orders = [c.order for c in keras.tree.flatten(others) if type(c) is Column]
    if orders:
        read = dict(zip(orders, _read_all(found, orders, verbose), strict=True))
        others = keras.tree.map_structure(
            lambda leaf: read[leaf.order] if type(leaf) is Column else leaf, others
        )
    return Indexed((x, *others, None, None)[:3], map)


def _read_all(found: Records, orders: list[int], verbose: bool) -> list[np.ndarray]:
    if not verbose:
        return found.all_of(orders)
    print("Reading all records once, for their labels")
    return found.all_of(
        orders, keras.utils.Progbar(len(found), unit_name="record").update
    )


def from_dataset(x: Any, earlier: tuple | None, verbose: bool) -> tuple[Any, Any]:
    """Returns what takes the place of x in a `fit`, and what to remember of it.

    Args:
        x: as given; anything but a dataset is left as it is.
        earlier: what was remembered of the last `fit`: the same dataset is not read
            once more.
        verbose: whether a bar is shown.

    Raises:
        ValueError: if a dataset cannot be read once and drawn from, with what to do.
    """
    if not isinstance(x, tf.data.Dataset | keras.utils.PyDataset):
        return x, earlier
    if earlier is not None and earlier[0]() is x:
        return earlier[1], earlier
    if not _may_be_batches(x):
        raise ValueError(
            "A dataset given to `fit` must consist of batches, as in Keras. Received: "
            "one of single examples. Call `.batch(batch_size)`, or pass "
            "`keras_osgd.data.indexed(dataset)`."
        )
    found = indexed(x, batched=True, verbose=verbose)
    return found, (weakref.ref(x), found)


def as_in_fit(model: keras.Model, x: Any) -> Any:
    """Returns what takes the place of x, as in a `fit` of this model but silently."""
    held = getattr(model, "sampling_held", None)
    return from_dataset(x, getattr(held, "indexed", None), verbose=False)[0]


def _may_be_batches(dataset: Any) -> bool:
    try:
        return dataset_reading.is_batched(dataset)
    except ValueError:  # its shapes do not tell, and Keras takes batches
        return True


def _kept(directory: pathlib.Path, first: Any) -> list[np.ndarray] | None:
    """Returns what the directory has, if it can be of this dataset."""
    leaves = columns.kept_in(directory)
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
