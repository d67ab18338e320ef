"""What the processes of a strategy tell each other between steps.

All of them must make the same calls in the same order, as they make the same steps.
With one process, every function here answers at once.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_osgd.base.replicas import share_of

__all__ = ["agreed", "first_failure", "gathered", "lost_workers_told", "told_by_all"]

_KINDS = (OSError, FloatingPointError, RuntimeError, ValueError)
_DTYPES = ("float32", "float64", "int32", "int64")  # that TensorFlow gathers


def gathered(strategy: tf.distribute.Strategy, values: Any) -> list[np.ndarray]:
    """Returns what each worker passed, in the order of their ranks.

    Args:
        strategy: of the model.
        values: `[k]`, of one of TensorFlow's four common types; k may differ.

    Example:
        >>> gathered(tf.distribute.get_strategy(), np.array([1, 2]))
        [array([1, 2])]
    """
    values, share = np.asarray(values), share_of(strategy)
    if share.workers == 1:
        return [values]
    lengths = _of_all(strategy, np.array([len(values)])).tolist()[:: share.replicas]
    everything = _of_all(strategy, values)
    ends = np.cumsum(np.repeat(lengths, share.replicas))
    return np.split(everything, ends[:-1])[:: share.replicas]


def _of_all(strategy: tf.distribute.Strategy, values: np.ndarray) -> np.ndarray:
    return _gatherer(strategy, values.dtype.name)(values).numpy()


@functools.lru_cache(maxsize=2 * len(_DTYPES))
def _gatherer(strategy: tf.distribute.Strategy, dtype: str) -> Callable:
    @tf.function(input_signature=[tf.TensorSpec([None], dtype)], autograph=False)
    def gather(values: tf.Tensor) -> tf.Tensor:
        def of_replica(own: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            return context.all_gather(tf.identity(own), axis=0)

        everywhere = strategy.run(of_replica, (values,))
        return strategy.experimental_local_results(everywhere)[0]

    return gather


def told_by_all(strategy: tf.distribute.Strategy, what: Any) -> list[Any]:
    """Returns what each worker told, numbers and texts that JSON can keep.

    Example:
        >>> told_by_all(tf.distribute.get_strategy(), {"step": 3})
        [{'step': 3}]
    """
    if share_of(strategy).workers == 1:
        return [what]
    sent = np.frombuffer(json.dumps(what).encode(), np.uint8).astype(np.int32)
    return [
        json.loads(part.astype(np.uint8).tobytes()) for part in gathered(strategy, sent)
    ]


def first_failure(
    strategy: tf.distribute.Strategy, error: Exception | None
) -> Exception | None:
    """Returns this worker's error, or else the first one of another, or `None`.

    That of another is of the same built-in class, and names the worker.
    """
    told = None
    if error is not None:
        place = next((i for i, k in enumerate(_KINDS) if isinstance(error, k)), 2)
        told = [place, getattr(error, "errno", None), str(error)]
    all_told = told_by_all(strategy, told)
    if error is not None:
        return error
    for rank, other in enumerate(all_told):
        if other is not None:
            place, number, text = other
            text = f"worker {rank}: {text}"
            if place == 0 and number is not None:
                return OSError(number, text)
            return _KINDS[place](text)
    return None


def agreed(
    strategy: tf.distribute.Strategy, function: Callable[..., Any], *args: Any
) -> Any:
    """Returns `function(*args)`; an error of one worker is raised on all.

    Args:
        strategy: of the model.
        function: tells the other workers nothing itself.
        *args: its arguments.
    """
    error = result = None
    try:
        result = function(*args)
    except Exception as own:
        error = own
    failure = first_failure(strategy, error)
    if failure is not None:
        raise failure
    return result


@contextlib.contextmanager
def lost_workers_told(
    strategy: tf.distribute.Strategy, checkpoint: Any = None
) -> Iterator[None]:
    """Raises one clear error in the block where another worker was lost.

    A process that is killed closes its connections, or misses the heartbeats of
    TensorFlow: the steps of the others end with an error within half a minute.

    Args:
        strategy: of the model.
        checkpoint: a `Checkpoint`, or `None`.

    Raises:
        RuntimeError: if a worker ended or cannot be reached.
    """
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        share = share_of(strategy)
        if share.workers == 1:
            raise
        parts = (
            f"All {share.workers} workers must stay alive and reachable during `fit`. "
            f"Received: another one than worker {share.rank} ended, or cannot be "
            "reached any more; TensorFlow cannot go on without it.",
            "Start all workers again, this one too, with the same `fit`"
            + (
                ": it goes on from the last checkpoint."
                if checkpoint
                else "; with "
                "`keras_osgd.callbacks.Checkpoint` among its callbacks nothing is lost."
            ),
            checkpoint.where_saved() if checkpoint else "",
        )
        raise RuntimeError(" ".join(filter(None, parts))) from error
