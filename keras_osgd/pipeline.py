"""Weighted batches as a `tf.data.Dataset`, gathered from one copy of the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.uneven_columns import Uneven, dtypes_of, taken_from

__all__ = ["READ_AHEAD", "Plan", "PlanBuffers", "Rows", "Sample", "batches"]

READ_AHEAD = 3  # batches, while plans are made beside the steps
_IN_PLACE_BYTES = 2**28  # larger arrays are read where they are, never copied
_NEVER = tf.int64.max


class Sample(NamedTuple):
    """What travels with a batch beside x and y.

    Attributes:
        index: `[m]` int64. Rows drawn.
        probability: `[m]` float32. The block's target p of each row, as it was drawn.
        candidate: `[m]` float32. p by the scores; equals `probability` unless the block
            is drawn uniformly.
        position: `[m]` int64. Where the step leaves what it observes.
        sample_weight: `[m, ...]`, the user's own weights, or `None`.
    """

    index: tf.Tensor
    probability: tf.Tensor
    candidate: tf.Tensor
    position: tf.Tensor
    sample_weight: Any = None


class Plan(NamedTuple):
    """One block's draws.

    Attributes:
        start: first step of the block, counted from the start of `fit`.
        index: `[k]` int64, `k = steps * m`; batch after batch.
        probability: `[k]` float64, p of each draw, times `credit`.
        candidate: `[k]` float64, p' of each draw, times `credit`.
        features: `[k, F]` float32, the score table's as the block was drawn.
        importance: whether the draws follow the scores.
        largest_weight: largest importance weight over all examples.
        credit: see `draws.Reshuffled`; makes the mean weight 1.
        mass: what the block credited each example with, in visits of weight 1.
        number: how many draws there were before the block, in all.
    """

    start: int
    index: np.ndarray
    probability: np.ndarray
    candidate: np.ndarray
    features: np.ndarray
    importance: bool
    largest_weight: float
    credit: float
    mass: float
    number: int = 0


class PlanBuffers:
    """Plans of two blocks in `tf.Variable`s: one being trained on, one made ready.

    Args:
        block_steps: steps of a block.
        batch_size: m.
    """

    def __init__(self, block_steps: int, batch_size: int) -> None:
        """Allocates room for two blocks."""
        self.block_steps, self.batch_size = block_steps, batch_size
        shape = [2 * block_steps, batch_size]
        with tf.device("CPU:0"):
            self.index = tf.Variable(tf.zeros(shape, tf.int64), trainable=False)
            self.probability = tf.Variable(tf.ones(shape), trainable=False)
            self.candidate = tf.Variable(tf.ones(shape), trainable=False)
            self.number = tf.Variable(tf.zeros(shape[:1], tf.int64), trainable=False)
            self.planned_until = tf.Variable(0, dtype=tf.int64, trainable=False)
            self.start = tf.Variable(0, dtype=tf.int64, trainable=False)
            self.end = tf.Variable(_NEVER, dtype=tf.int64, trainable=False)

    @property
    def rows(self) -> int:
        """Number of steps there is room for."""
        return 2 * self.block_steps

    def write(self, plan: Plan) -> None:
        """Puts a plan where the pipeline reads it once its first step comes up."""
        rows = (plan.start + np.arange(self.block_steps)) % self.rows
        for variable, values in (
            (self.index, plan.index),
            (self.probability, plan.probability.astype(np.float32)),
            (self.candidate, plan.candidate.astype(np.float32)),
        ):
            values = values.reshape(self.block_steps, self.batch_size)
            variable.scatter_update(tf.IndexedSlices(values, rows))
        numbers = plan.number + self.batch_size * np.arange(self.block_steps)
        self.number.scatter_update(tf.IndexedSlices(numbers, rows))
        self.planned_until.assign(plan.start + self.block_steps)

    def read(self, step: tf.Tensor) -> Sample:
        """Returns the draws of one step, counted from the start of `fit`."""
        tf.debugging.assert_less(
            step,
            self.planned_until,
            "The pipeline read further ahead than its plan. This is a fault of "
            "keras_osgd: please report it with your `fit` and `compile` calls.",
        )
        row = step % self.rows
        positions = row * self.batch_size + tf.range(self.batch_size, dtype=tf.int64)
        return Sample(
            tf.gather(self.index, row),
            tf.gather(self.probability, row),
            tf.gather(self.candidate, row),
            positions,
        )

    def numbers(self, step: tf.Tensor) -> tf.Tensor:
        """Returns `[m]` int64, each draw's number among all there have been."""
        first = tf.gather(self.number, step % self.rows)
        return first + tf.range(self.batch_size, dtype=tf.int64)


class Rows:
    """Random access to the examples of nested arrays, without a copy of large ones.

    Args:
        arrays: arrays or columns in any nesting of tuples, lists and dicts, `None`
            allowed; all with the same first dimension.
        in_place: whether none is taken into a variable, however small.

    Example:
        >>> Rows((np.arange(6.0).reshape(3, 2), None))(tf.constant([2]))[0].numpy()
        array([[4., 5.]])
    """

    def __init__(self, arrays: Any, in_place: bool = False) -> None:
        """Takes small arrays into variables and refers to large ones."""
        self._structure = arrays
        leaves = [leaf for leaf in keras.tree.flatten(arrays) if leaf is not None]
        self._in_place = in_place or self.reads_in_place(arrays)
        self._leaves = leaves
        if not self._in_place:
            # Not a captured tensor: each new iterator would copy that once more.
            with tf.device("CPU:0"):
                self._leaves = [tf.Variable(leaf, trainable=False) for leaf in leaves]

    @staticmethod
    def reads_in_place(arrays: Any) -> bool:
        """Returns whether rows are taken from the arrays as they are."""
        leaves = [leaf for leaf in keras.tree.flatten(arrays) if leaf is not None]
        # What is no array of NumPy's is a column whose rows are taken one by one.
        return sum(leaf.nbytes for leaf in leaves) > _IN_PLACE_BYTES or any(
            not isinstance(leaf, np.ndarray) for leaf in leaves
        )

    def __call__(self, index: tf.Tensor) -> Any:
        """Returns rows `index` of every array, in the same nesting."""
        if self._in_place:
            gathered = self._gather_in_place(index)
        else:
            gathered = [tf.gather(leaf, index) for leaf in self._leaves]
        rows = iter(gathered)
        return keras.tree.map_structure(
            lambda leaf: None if leaf is None else next(rows), self._structure
        )

    def _gather_in_place(self, index: tf.Tensor) -> list[Any]:
        def take(rows: np.ndarray) -> list[np.ndarray]:
            return [part for leaf in self._leaves for part in taken_from(leaf, rows)]

        dtypes = [tf.as_dtype(d) for leaf in self._leaves for d in dtypes_of(leaf)]
        taken = iter(tf.numpy_function(take, [index], dtypes, stateful=False))
        gathered = []
        for leaf in self._leaves:
            tensors = [next(taken) for _ in dtypes_of(leaf)]
            if isinstance(leaf, Uneven):
                leaf.set_shapes(tensors, index.shape[0])
                gathered.append(leaf.tensor(tensors))
            else:
                tensors[0].set_shape([index.shape[0], *leaf.shape[1:]])
                gathered.append(tensors[0])
        return gathered


def batches(
    buffers: PlanBuffers,
    rows: Rows,
    read_ahead: int = READ_AHEAD,
    transform: Callable | None = None,
    seed: int = 0,
) -> tf.data.Dataset:
    """Returns the dataset of one epoch's batches (x, y, `Sample`).

    It begins at step `buffers.start` and ends before step `buffers.end`, both read
    while it runs; every batch is full. It reads `read_ahead` batches ahead and no more:
    TensorFlow's hidden prefetch and autotuning are off, since reading ahead is part of
    the algorithm.

    Args:
        buffers: plans by step.
        rows: of (x, y, sample_weight).
        read_ahead: batches; 0 where a batch is planned just before it is trained on.
        transform: see `data.Indexed.transform`.
        seed: of what it draws, beside the number of each draw.
    """
    m, seed = buffers.batch_size, tf.constant(seed, tf.int64)

    @tf.autograph.experimental.do_not_convert
    def batch(step: tf.Tensor):
        sample = buffers.read(step)
        taken = rows(sample.index)
        if transform is not None:
            numbers = buffers.numbers(step)
            taken = transform(taken, tf.stack([tf.fill([m], seed), numbers], axis=1))
        x, y, sample_weight = taken
        return x, y, sample._replace(sample_weight=sample_weight)

    @tf.autograph.experimental.do_not_convert
    def steps(_):
        return tf.data.Dataset.range(buffers.start, _NEVER)

    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.inject_prefetch = False
    options.deterministic = True
    dataset = (
        tf.data.Dataset.range(1)
        .flat_map(steps)
        .take_while(lambda step: step < buffers.end)
        .map(batch)
    )
    if read_ahead > 0:
        dataset = dataset.prefetch(read_ahead - 1)  # and one is in the making
    return dataset.with_options(options)
