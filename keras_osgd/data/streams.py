"""Data of `fit` as a dataset without an end, for sampling within pools."""

from __future__ import annotations

import itertools
import random
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base.refusals import NO_EXAMPLES
from keras_osgd.data import datasets
from keras_osgd.data.indexed_examples import Indexed
from keras_osgd.data.training_data import TrainingData, prepare
from keras_osgd.data.weights import require_labels_of_keras

__all__ = ["Stream", "opened"]

_NO_LENGTH = (
    "The length of an epoch must be known. Received: steps_per_epoch=None and {}. Pass "
    "`steps_per_epoch`."
)


class Stream(NamedTuple):
    """Data to be read in order.

    Attributes:
        dataset: batches; starts over at the end of the data, but ends with a generator.
        steps: effective iterations of an epoch.
        first: the first batch, from which the losses are described.
        class_weight: class weights that Keras has yet to multiply, or `None`.
        of_arrays: whether y and `sample_weight` are in the dataset; else Keras
            refuses them.
    """

    dataset: tf.data.Dataset
    steps: int
    first: TrainingData
    class_weight: Mapping[int, float] | None
    of_arrays: bool


def opened(
    x: Any,
    y: Any,
    sample_weight: Any,
    class_weight: Mapping[int, float] | None,
    batch_size: int | None,
    steps_per_epoch: int | None,
    shuffle: bool,
    loss: Any = None,
) -> Stream:
    """Returns the data given to `fit`, of any kind, as a stream.

    Args:
        x: a `tf.data.Dataset`, `PyDataset` or generator of batches, all as in Keras,
            an `Indexed`, or arrays.
        y: as in `fit`; Keras refuses it beside a dataset.
        sample_weight: likewise.
        class_weight: as in `fit`.
        batch_size: for arrays and `Indexed`.
        steps_per_epoch: as in `fit`; may be left out where the data know their length.
        shuffle: whether to shuffle arrays, `Indexed` and a `PyDataset`'s batches.
        loss: as compiled, see `weights.labels_of`.

    Raises:
        ValueError: if the data have no example or no targets, are no batches of one
            shape, the length of an epoch is unknown, or Keras would misread the classes
            that `class_weight` is for.
    """
    of_arrays = False
    if isinstance(x, tf.data.Dataset):
        dataset, length = _without_end(x), int(x.cardinality())
        datasets.require_batches(x)
        first = _first_of(datasets.batches(x, batched=True))
        name = "a dataset that is infinite or of unknown length"
    elif isinstance(x, keras.utils.PyDataset):
        length = -1 if x.num_batches is None else x.num_batches
        first = _first_of(map(x.__getitem__, range(1) if length else ()))
        order = random.Random(random.randrange(2**31)) if shuffle else None
        dataset = _from_batches(lambda: _passes(x, order), first)
        name = "a PyDataset without a length"
    elif isinstance(x, types.GeneratorType):
        first, length, name = _first_of(x), -1, "a generator"
        dataset = _from_batches(lambda: _with_first(first, x), first)
    else:
        if not isinstance(x, Indexed):
            parts = (x, y, sample_weight, class_weight, batch_size, steps_per_epoch)
            data, of_arrays = prepare(*parts, loss), True
            x, batch_size, class_weight = Indexed(data.arrays), data.batch_size, None
        finite = x.dataset(batch_size or x.batch_size or 32, shuffle)
        dataset, length = finite.repeat(), int(finite.cardinality())
        first, name = _first_of(finite), "examples"
    if not steps_per_epoch and length < 0:
        raise ValueError(_NO_LENGTH.format(name))
    _check_spec(dataset.element_spec)
    steps, described = int(steps_per_epoch or length), _described(first)
    require_labels_of_keras(described.arrays[1], loss, class_weight)
    return Stream(dataset, steps, described, class_weight, of_arrays)


def _without_end(dataset: tf.data.Dataset) -> tf.data.Dataset:
    infinite = dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    return dataset if infinite else dataset.repeat()


def _first_of(batches: Any) -> tuple:
    first = next(iter(batches), None)
    if first is None:
        raise ValueError(NO_EXAMPLES)
    return datasets.as_arrays(first)


def _described(first: tuple) -> TrainingData:
    x, y, weight = (*first, None, None)[:3]
    if y is None:
        raise ValueError(
            "Targets must be given: an example's importance comes from its own loss. "
            "Received: batches of x alone. Let them be (x, y), or compile with "
            'sampling="uniform".'
        )
    size = len(keras.tree.flatten(x)[0])
    return TrainingData((x, y, weight), size, size)


def _from_batches(batches: Callable[[], Iterator], first: tuple) -> tf.data.Dataset:
    """Returns a dataset of an iterator's batches, read in a thread of its own."""

    def spec(leaf: np.ndarray) -> tf.TensorSpec:
        return tf.TensorSpec([None, *leaf.shape[1:]], leaf.dtype)

    signature = keras.tree.map_structure(spec, first)

    def arrays() -> Iterator[tuple]:
        return map(datasets.as_arrays, batches())

    return tf.data.Dataset.from_generator(arrays, output_signature=signature).prefetch(
        tf.data.AUTOTUNE
    )


def _with_first(first: tuple, others: Iterator) -> Iterator:
    """Yields the first batch, then the others; each call repeats it, as in Keras."""
    yield first
    yield from others


def _passes(dataset: keras.utils.PyDataset, order: random.Random | None) -> Iterator:
    """Yields batches, pass after pass; with `order`, each pass is shuffled anew."""
    while True:
        dataset.on_epoch_begin()
        count = dataset.num_batches
        numbers = itertools.count() if count is None else list(range(count))
        if order is not None and count is not None:
            order.shuffle(numbers)
        yield from map(dataset.__getitem__, numbers)
        dataset.on_epoch_end()


def _check_spec(spec: Any) -> None:
    """Raises unless batches can be joined along their first axis."""
    specs = tf.nest.flatten(spec)
    shapes = [tuple(s.shape) for s in specs if isinstance(s, tf.TensorSpec)]
    if len(shapes) < len(specs) or any(None in shape[1:] for shape in shapes):
        raise ValueError(
            "The batches of a pool are put together: they must be dense tensors that "
            "have one length along each axis but the first. Received: batches of "
            f"{specs}. Pad to one length, as `padded_batch(..., padded_shapes=...)` "
            'does, or compile with sampling="uniform".'
        )
