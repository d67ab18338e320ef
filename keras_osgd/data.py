"""Datasets as examples that can be drawn at random: `keras_osgd.data.indexed`."""

from __future__ import annotations

import inspect
import os
import pathlib
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_osgd import columns, dataset_reading
from keras_osgd.pipeline import Rows

__all__ = ["Indexed", "from_dataset", "indexed"]

_MEMORY_LIMIT = 2**30


class Indexed:
    """Examples that were read once, and what is done to them at every visit.

    Made by `indexed`; given to `fit` in place of x.

    Attributes:
        arrays: (x, y, sample_weight); `None` where the dataset has none.
        batch_size: of the dataset, where it consists of batches, else `None`.

    Example:
        >>> dataset = tf.data.Dataset.from_tensor_slices(([1.0, 2.0], [0, 1]))
        >>> len(indexed(dataset, verbose=False))
        2
    """

    def __init__(
        self,
        arrays: tuple[Any, Any, Any],
        map: Callable | None = None,
        batch_size: int | None = None,
    ) -> None:
        """Keeps the examples, and traces `map` when it is first needed."""
        self.arrays, self.batch_size = arrays, batch_size
        self._takes_seed = map is not None and (
            "seed" in inspect.signature(map).parameters
        )
        self._map = self._transform = None
        if map is not None:
            self._map = tf.function(map)  # a user's `if` on a tensor is converted
            self._transform = tf.function(self._mapped, autograph=False)

    def __len__(self) -> int:
        """Returns n."""
        return len(keras.tree.flatten(self.arrays[0])[0])

    @property
    def transform(self) -> Callable | None:
        """What `map` makes of (x, y, sample_weight) of m examples and seeds `[m, 2]`.

        `None` where there is no `map`.
        """
        return self._transform

    def dataset(
        self, batch_size: int, shuffle: bool = True, seed: int | None = None
    ) -> tf.data.Dataset:
        """Returns the batches of one uniform epoch: for plain Keras, or `evaluate`.

        Args:
            batch_size: m; the last batch may be smaller.
            shuffle: whether each iteration has an order of its own.
            seed: of the order and of `map`; `None` follows TensorFlow's.
        """
        rows, count = Rows(self.arrays), self._count
        order = tf.data.Dataset.range(len(self))
        order = order.shuffle(len(self), seed) if shuffle else order

        @tf.autograph.experimental.do_not_convert
        def batch(index: tf.Tensor) -> Any:
            taken = rows(index)
            if self._transform is not None:
                shape = tf.stack([tf.shape(index)[0], 2])
                most = tf.int64.max
                seeds = tf.random.uniform(shape, 0, most, tf.int64, seed)
                taken = self._transform(taken, seeds)
            return taken[:count]

        return order.batch(batch_size).map(batch).prefetch(2)

    @property
    def _count(self) -> int:
        return sum(part is not None for part in self.arrays)

    def _mapped(self, taken: tuple[Any, Any, Any], seeds: tf.Tensor) -> Any:
        parts, others = taken[: self._count], taken[self._count :]
        if self.batch_size is not None:
            return (*self._called(parts, seeds[0]), *others)
        first = keras.tree.map_structure(lambda leaf: leaf[:1], parts)
        signature = tf.data.Dataset.from_tensor_slices((first, seeds[:1])).map(
            tf.autograph.experimental.do_not_convert(lambda *e: self._called(*e))
        )
        mapped = tf.map_fn(
            lambda element: self._called(*element),
            (parts, seeds),
            fn_output_signature=signature.element_spec,
        )
        return (*mapped, *others)

    def _called(self, parts: tuple, seed: tf.Tensor) -> tuple:
        mapped = self._map(*parts, **({"seed": seed} if self._takes_seed else {}))
        if not isinstance(mapped, tuple) or len(mapped) != len(parts):
            names = ("x", "y", "sample_weight")[: len(parts)]
            raise ValueError(
                f"`map` must return ({', '.join(names)}), as the dataset has them. "
                f"Received: {type(mapped).__name__}. Return all of them in a tuple."
            )
        return mapped


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
            "finite set: leave `.repeat()` out, or pass `dataset.take(n)`."
        )
    batched = dataset_reading.is_batched(dataset) if batched is None else batched
    first = next(dataset_reading.batches(dataset, batched), None)
    if first is None:
        raise ValueError(
            "The training data has 0 examples. Check the filter or path that "
            "produced it."
        )
    directory = None if cache is None else pathlib.Path(cache)
    leaves = None if directory is None else _kept(directory, first)
    if leaves is None:
        leaves = dataset_reading.read(
            dataset, batched, directory, memory_limit, verbose
        )
    arrays = keras.tree.pack_sequence_as(first, leaves)
    size = len(keras.tree.flatten(first)[0]) if batched else None
    return Indexed((*arrays, None, None)[:3], map, size)


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
