"""Weighted batches as a `tf.data.Dataset`, gathered from one copy of the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_osgd.base.placement import host_variable
from keras_osgd.data.rows import Rows

__all__ = ["READ_AHEAD", "Plan", "PlanBuffers", "Sample", "batches"]

READ_AHEAD = 3  # batches, while plans are made beside the steps
_NEVER = tf.int64.max
_READ_TOO_FAR = (
    "The pipeline read further ahead than its plan. This is a fault of keras_osgd: "
    "please report it with your `fit` and `compile` calls."
)
_COLUMNS = ("probability", "candidate", "loss_factor", "loss_baseline")


class Sample(NamedTuple):
    """The part of a batch that travels beside x and y.

    It has few tensors, as Keras' training function looks at each one at every step.

    Attributes:
        columns: `[k, m]` float32, the properties below, one below the other. A pool has
            the first two only.
        row: `[]` int64. Place of the step in the `ObservationLog`.
        sample_weight: `[m, ...]`, the user's own weights, or `None`.
    """

    columns: tf.Tensor
    row: tf.Tensor
    sample_weight: Any = None

    @classmethod
    def of(
        cls, probability: tf.Tensor, candidate: tf.Tensor, sample_weight: Any = None
    ) -> Sample:
        """Returns the sample of a batch that is not drawn by a plan."""
        columns = tf.stack([probability, candidate])
        return cls(columns, tf.zeros([], tf.int64), sample_weight)

    @property
    def probability(self) -> tf.Tensor:
        """`[m]`. The block's p of each row as it was drawn, times the block's credit.

        1/(n probability) is the importance weight; see `Plan`.
        """
        return self._column(0)

    @property
    def candidate(self) -> tf.Tensor:
        """`[m]`. p by the scores; `probability` unless the block is drawn uniformly."""
        return self._column(1)

    @property
    def loss_factor(self) -> tf.Tensor:
        """`[m]`, see `Plan`."""
        return self._column(2)

    @property
    def loss_baseline(self) -> tf.Tensor:
        """`[m]`, see `Plan`."""
        return self._column(3)

    def _column(self, place: int) -> tf.Tensor:
        if self.columns.shape[0] is None:  # as with several workers
            return self.columns[place]
        return tf.unstack(self.columns)[place]  # one operation for all columns


_UNIFORM = np.zeros(0)


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
        credit: see `reshuffled.Reshuffled`; makes the mean weight 1.
        mass: credit that the block gave each example.
        number: number of all draws before the block.
        loss_factor: `[k]` float32, factor of each weight in the mean loss that is
            shown: see `blocks.estimate_of_loss`. Early checkpoints have none.
        loss_baseline: `[k]` float32, in units of the loss: likewise.
        over_all: `[n]` float64, p of all examples; empty where it is uniform.
        share: of p by the scores in the candidate; see `scores.trust`.
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
    loss_factor: np.ndarray | float = 1.0
    loss_baseline: np.ndarray | float = 0.0
    over_all: np.ndarray = _UNIFORM
    share: float = 1.0


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
        self.index = host_variable(np.zeros(shape, np.int64))
        # `_COLUMNS` of each step, one below the other: read at once.
        columns = [shape[0], len(_COLUMNS), batch_size]
        self.columns = host_variable(np.ones(columns, np.float32))
        self.number = host_variable(np.zeros(shape[:1], np.int64))
        self.planned_until = host_variable(0, tf.int64)
        self.start = host_variable(0, tf.int64)
        self.end = host_variable(_NEVER, tf.int64)

    @property
    def rows(self) -> int:
        """Number of steps there is room for."""
        return 2 * self.block_steps

    def write(self, plan: Plan) -> None:
        """Puts a plan where the pipeline reads it once its first step comes up."""
        rows = (plan.start + np.arange(self.block_steps)) % self.rows
        shape = [self.block_steps, self.batch_size]
        index = plan.index.reshape(shape)
        columns = np.empty([shape[0], len(_COLUMNS), shape[1]], np.float32)
        for place, name in enumerate(_COLUMNS):
            values = np.broadcast_to(getattr(plan, name), plan.index.shape)
            columns[:, place] = values.reshape(shape)
        self.index.scatter_update(tf.IndexedSlices(index, rows))
        self.columns.scatter_update(tf.IndexedSlices(columns, rows))
        numbers = plan.number + self.batch_size * np.arange(self.block_steps)
        self.number.scatter_update(tf.IndexedSlices(numbers, rows))
        self.planned_until.assign(plan.start + self.block_steps)

    def read(
        self, step: tf.Tensor, part: tf.Tensor, parts: int
    ) -> tuple[tf.Tensor, Sample]:
        """Returns one of the equal parts of a step's draws: `[m]` int64 and the rest.

        Args:
            step: counted from the start of `fit`.
            part: from 0 on.
            parts: number of them, which divides m.
        """
        # The raw operation: that of `tf.debugging` brings a conditional with it.
        tf.raw_ops.Assert(condition=step < self.planned_until, data=[_READ_TOO_FAR])
        row, size = step % self.rows, self.batch_size // parts
        index, columns = tf.gather(self.index, row), tf.gather(self.columns, row)
        if parts > 1:
            index = tf.reshape(index, [parts, size])[part]
            columns = tf.reshape(columns, [len(_COLUMNS), parts, size])[:, part]
            row = row * parts + part
        return index, Sample(columns, row)

    def numbers(self, step: tf.Tensor, part: tf.Tensor, parts: int) -> tf.Tensor:
        """Returns `[k]` int64, the number of each draw, counted over all blocks.

        Args:
            step: as in `read`.
            part: as in `read`.
            parts: as in `read`.
        """
        first, size = tf.gather(self.number, step % self.rows), self.batch_size // parts
        return first + part * size + tf.range(size, dtype=tf.int64)


def batches(
    buffers: PlanBuffers,
    rows: Rows,
    read_ahead: int = READ_AHEAD,
    transform: Callable | None = None,
    seed: int = 0,
    parts: int = 1,
    ends: bool = True,
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
        seed: for `transform`, together with the number of each draw.
        parts: number of elements that a step's batch comes in.
        ends: whether it ends by itself. Looking for the end at every batch takes a
            fifth of the pipeline's time; one that is stopped at the end need not look.
    """
    seed = tf.constant(seed, tf.int64)

    @tf.autograph.experimental.do_not_convert
    def batch(element: tf.Tensor):
        step, part = buffers.start + element // parts, element % parts
        index, sample = buffers.read(step, part, parts)
        taken = rows(index)
        if transform is not None:
            numbers = buffers.numbers(step, part, parts)
            seeds = tf.stack([tf.fill(numbers.shape, seed), numbers], axis=1)
            taken = transform(taken, seeds)
        x, y, sample_weight = taken
        return x, y, sample._replace(sample_weight=sample_weight)

    @tf.autograph.experimental.do_not_convert
    def is_before_end(element: tf.Tensor) -> tf.Tensor:
        return buffers.start + element // parts < buffers.end

    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.inject_prefetch = False
    options.deterministic = True
    # Repeated, as Keras would take the length of a range for an epoch's.
    dataset = tf.data.Dataset.range(_NEVER).repeat()
    if ends:
        dataset = dataset.take_while(is_before_end)
    dataset = dataset.map(batch)
    if read_ahead > 0:
        dataset = dataset.prefetch(read_ahead - 1)  # and one is in the making
    return dataset.with_options(options)
