"""Training under `tf.distribute`: refusals, and the part of each process."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base.keras_compat import build_under_strategy
from keras_osgd.base.refusals import refuse
from keras_osgd.base.replicas import Share, share_of
from keras_osgd.data.arrays import row_numbers
from keras_osgd.data.record_columns import Column
from keras_osgd.data.training_data import TrainingData
from keras_osgd.data.uneven_columns import is_uneven
from keras_osgd.data.weights import leaves_of
from keras_osgd.draws.pipeline import Sample
from keras_osgd.gain.learning_rate import inner_optimizer
from keras_osgd.sampling import RAIS, Oracle

__all__ = [
    "build",
    "require_strategy",
    "distributed",
    "part_of",
    "received",
    "refuse_streams",
    "replicas_of",
    "scope_of",
]

_TAKEN = (
    tf.distribute.MirroredStrategy,
    tf.distribute.MultiWorkerMirroredStrategy,
)
_BUILT_BY = 2  # examples that a model is built with


def replicas_of(model: keras.Model) -> int:
    """Returns the number of replicas that train a model together."""
    return model.distribute_strategy.num_replicas_in_sync


def require_strategy(
    model: keras.Model, sampling: RAIS | Oracle, data: TrainingData
) -> None:
    """Raises for settings that do not work on several replicas or under a strategy."""
    strategy = model.distribute_strategy
    share, name = share_of(strategy), type(strategy).__name__
    if share.all_replicas == 1:
        return
    refuse(
        [
            _problem_of_sizes(data, share),
            *(problem for amiss, problem in _problems(model, sampling, name) if amiss),
        ]
    )


def _problems(model, sampling, name: str) -> list[tuple[bool, str]]:
    steps, jit_compile = model.steps_per_execution, model.jit_compile
    accumulated = inner_optimizer(model.optimizer).gradient_accumulation_steps
    return [
        (
            not isinstance(model.distribute_strategy, _TAKEN),
            "The strategy must be MirroredStrategy or MultiWorkerMirroredStrategy. "
            f'Received: {name}. Use one of these, or compile with sampling="uniform".',
        ),
        (
            isinstance(sampling, Oracle),
            "The oracle needs one replica: several read a batch ahead of its scores. "
            f"Received: sampling={sampling!r} under {name}. Compile with "
            'sampling=RAIS(norm="exact"), or train without a strategy.',
        ),
        (
            steps > 1,
            f"`steps_per_execution` must be 1: Keras makes no more under {name}. "
            f"Received: steps_per_execution={steps}. Leave it out of `compile`.",
        ),
        (
            bool(accumulated),
            "`gradient_accumulation_steps` must be None: Keras cannot accumulate under "
            f"{name}. Received: gradient_accumulation_steps={accumulated}. Use a "
            "larger batch instead.",
        ),
        (
            bool(jit_compile),
            f"`jit_compile` must be False: Keras cannot compile under {name}. "
            f"Received: jit_compile={jit_compile}. Leave it out of `compile`.",
        ),
    ]


def _problem_of_sizes(data: TrainingData, share: Share) -> str | None:
    if share.workers > 1 and any(map(is_uneven, leaves_of(data.arrays))):
        return (
            "Several workers need rows of one shape. Received: ragged or sparse data. "
            "Pad it, or train in one process."
        )
    if data.batch_size % share.all_replicas:
        return (
            "`batch_size` must be a multiple of the number of replicas, among which "
            f"each batch is divided. Received: batch_size={data.batch_size} for "
            f"{share.all_replicas} replicas. Change it."
        )
    if data.n < share.workers:
        return (
            "There must be an example for each worker. Received: "
            f"{data.n} examples for {share.workers} workers. Use fewer workers."
        )
    return None


def refuse_streams(model: keras.Model) -> None:
    """Raises where several replicas would draw from pools of one stream."""
    replicas = replicas_of(model)
    if replicas > 1:
        raise ValueError(
            f"`Presample` takes one replica. Received: {replicas}. Train without a "
            'strategy, or compile with sampling="uniform", or RAIS() for data with an '
            "index."
        )


def scope_of(model: keras.Model) -> contextlib.AbstractContextManager:
    """Returns the scope in which the model's variables are made."""
    strategy = model.distribute_strategy
    entered = strategy is tf.distribute.get_strategy()  # also where there is none
    return contextlib.nullcontext() if entered else strategy.scope()


def build(model: keras.Model, data: TrainingData) -> None:
    """Builds all variables before the first step: under a strategy, replicas cannot."""
    if replicas_of(model) > 1:
        batch = data.batch(slice(_BUILT_BY))[:2]
        build_under_strategy(model, batch)


def part_of(data: TrainingData, share: Share) -> TrainingData:
    """Returns one worker's part: its rows, as views, and its part of each batch."""
    if share.workers == 1:
        return data

    def part(leaf: Any) -> Any:
        if leaf is None or isinstance(leaf, np.ndarray):
            return leaf if leaf is None else leaf[share.rows]
        return _Part(leaf, share.rows)

    arrays = keras.tree.map_structure(part, data.arrays)
    n, size = len(range(data.n)[share.rows]), data.batch_size // share.workers
    return data._replace(arrays=arrays, n=n, batch_size=size)


class _Part:
    """Every W-th row of a column of records; rows are read only when asked for."""

    def __init__(self, column: Column, rows: slice) -> None:
        self._column, self._numbers = column, range(len(column))[rows]
        self.dtype, self.ndim = column.dtype, column.ndim
        self.shape = (len(self._numbers), *column.shape[1:])
        self.nbytes = column.nbytes // len(column) * len(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, rows: Any) -> np.ndarray:
        numbers = self._numbers
        return self._column[
            numbers.start + numbers.step * row_numbers(rows, len(numbers))
        ]


def distributed(model: keras.Model, dataset: tf.data.Dataset) -> Any:
    """Returns a dataset as the model's strategy takes it: a batch for each replica."""
    if replicas_of(model) == 1:
        return dataset
    dataset = dataset.map(_without_none)
    strategy = model.distribute_strategy
    return strategy.distribute_datasets_from_function(lambda context: dataset)


@tf.autograph.experimental.do_not_convert
def _without_none(x: Any, y: Any, sample: Sample) -> tuple:
    """Returns a batch without `None`, which several workers' iterators cannot hold."""
    if sample.sample_weight is None:
        sample = sample._replace(sample_weight=())
    return x, y, sample


def received(data: tuple) -> tuple:
    """Returns a batch of (x, y, `Sample`) as it was before `distributed`."""
    x, y, sample = data
    if isinstance(sample.sample_weight, tuple) and not sample.sample_weight:
        sample = sample._replace(sample_weight=None)
    return x, y, sample
