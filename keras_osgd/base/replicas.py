"""Operations of a step on several replicas: sums, means, calls once for all.

With one replica, and outside of strategies, every function here is the plain call.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_osgd.base.keras_compat import tensor_of

__all__ = [
    "Share",
    "assign_each",
    "averaged",
    "copies",
    "count",
    "everywhere",
    "on_one",
    "once",
    "share_of",
    "summed",
]


class Share(NamedTuple):
    """A process's part in training: each of W workers has a table over its own rows.

    Its rows are every W-th from `rank` on. It draws them with q by its own scores, so
    that overall p_i = q_i / W. The weight 1/(n p_i) is then W/(n q_i), and the mean of
    w grad f over the batches of all workers is unbiased, whatever their scores are.

    Attributes:
        workers: W, number of processes.
        rank: number of this process, from 0 on.
        replicas: number on this worker; its batches are split evenly among them.
    """

    workers: int = 1
    rank: int = 0
    replicas: int = 1

    @property
    def all_replicas(self) -> int:
        """Number of replicas of all workers."""
        return self.workers * self.replicas

    @property
    def rows(self) -> slice:
        """This worker's rows of the data.

        Example:
            >>> list(range(5))[Share(workers=2, rank=1).rows]
            [1, 3]
        """
        return slice(self.rank, None, self.workers)


@functools.lru_cache(maxsize=8)  # with several replicas it makes a dataset
def share_of(strategy: tf.distribute.Strategy) -> Share:
    """Returns this process's part under a strategy.

    Example:
        >>> share_of(tf.distribute.get_strategy())
        Share(workers=1, rank=0, replicas=1)
    """
    if strategy.num_replicas_in_sync == 1:
        return Share()
    contexts = []

    def note(context: tf.distribute.InputContext) -> tf.data.Dataset:
        contexts.append(context)
        return tf.data.Dataset.range(1)

    strategy.distribute_datasets_from_function(note)
    workers = contexts[0].num_input_pipelines
    replicas = strategy.num_replicas_in_sync // workers
    return Share(workers, contexts[0].input_pipeline_id, replicas)


def summed(values: Any) -> Any:
    """Returns tensors, nested or not, summed over all replicas; each must call it.

    `tf.IndexedSlices` stay such, and `None` stays `None`.

    Example:
        >>> float(summed(tf.constant(2.0)))
        2.0
    """
    if _alone():
        return values
    flat = keras.tree.flatten(values)
    given = [value for value in flat if value is not None]
    context = tf.distribute.get_replica_context()
    total = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, given))
    total = [value if value is None else next(total) for value in flat]
    return keras.tree.pack_sequence_as(values, total)


def averaged(values: tf.Tensor) -> tf.Tensor:
    """Returns the mean of a tensor over all replicas; each must call it.

    Example:
        >>> float(averaged(tf.constant(2.0)))
        2.0
    """
    if _alone():
        return values
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.MEAN, values)


def everywhere(*flags: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Returns for each flag `[]` whether all replicas set it; each must call it.

    Example:
        >>> [bool(flag) for flag in everywhere(tf.constant(True), tf.constant(False))]
        [True, False]
    """
    if _alone():
        return flags
    missing = summed(tf.cast(tf.logical_not(tf.stack(flags)), tf.float32))
    return tuple(tf.unstack(missing == 0))


def once(function: Callable, *args: Any) -> Any:
    """Calls `function` once for all replicas of this process; each must call it.

    `function` may write variables that are not a strategy's, and its conditions may
    contain work that replicas do together: neither is possible inside a replica.

    Args:
        function: takes a function `each` and all replicas' `args`; `each(f, *args)`
            calls `f` on each replica with its own.
        *args: this replica's own arguments.

    Returns:
        The tensors that `function` returns, the same for every replica.

    Example:
        >>> once(lambda each, value: each(lambda own: own + 1, value), 2)
        3
    """
    # A mirrored strategy of one device wants its updates outside of conditions too.
    if not tf.distribute.has_strategy():
        return function(lambda on_replica, *own: on_replica(*own), *args)

    def merged(strategy: tf.distribute.Strategy, *values: Any) -> Any:
        return function(lambda f, *of_all: strategy.run(f, args=of_all), *values)

    return tf.distribute.get_replica_context().merge_call(merged, args=args)


@contextlib.contextmanager
def on_one(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Runs the block on the first replica of this process alone, as a part of a step.

    Nothing in it may need the other replicas, as `summed` does.

    Args:
        strategy: of the model.

    Example:
        >>> with on_one(tf.distribute.get_strategy()):
        ...     tf.distribute.in_cross_replica_context()
        False
    """
    share = share_of(strategy)
    if share.all_replicas == 1:
        yield
        return
    first = share.rank * share.replicas
    device = strategy.extended.worker_devices[0]
    with tf.distribute.ReplicaContext(strategy, first), tf.device(device):
        yield


def assign_each(variable: tf.Variable, values: Any) -> None:
    """Gives every replica's copy of a variable its own value; inside `once`.

    It uses no collective operations: only one branch of a condition may have any.

    Args:
        variable: of a strategy or not.
        values: an argument of `once`, as it came.
    """
    local = tf.distribute.get_strategy().experimental_local_results
    for copy, value in zip(local(variable), local(values), strict=True):
        copy.assign(value)


def copies(
    strategy: tf.distribute.Strategy, variable: keras.Variable
) -> tuple[tf.Variable, ...]:
    """Returns a variable's copy on each replica of this process; outside of replicas.

    Example:
        >>> len(copies(tf.distribute.get_strategy(), keras.Variable(1.0)))
        1
    """
    return strategy.experimental_local_results(tensor_of(variable))


def count() -> int:
    """Returns the number of replicas that train together, 1 without a strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def _alone() -> bool:
    return count() == 1
