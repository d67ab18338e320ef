"""A probe of a training: copies of a model, trained for some steps and timed."""

from __future__ import annotations

import contextlib
import copy
import random
import time
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base.refusals import line_of
from keras_osgd.data.indexed_examples import Indexed
from keras_osgd.data.training_data import TrainingData
from keras_osgd.draws import reshuffled as draws
from keras_osgd.draws.block_lengths import block_steps
from keras_osgd.draws.blocks import LEAST_FLOOR
from keras_osgd.losses import described as losses
from keras_osgd.norms.last_layer_norms import squares_in_inference
from keras_osgd.sampling import RAIS
from keras_osgd.scores.probabilities import by_scores

__all__ = [
    "copied",
    "least_steps",
    "norms_of",
    "planning_seconds",
    "randomness_kept",
    "train_in_turn",
]

_ROWS = 4096  # whose norms are taken, or 16 batches
_ROUNDS = 5  # of steps of either kind, in turn
_NOT_TIMED = 5  # steps at the start of a round


def least_steps(steps_per_execution: int) -> int:
    """Returns how many steps there must be, lest a round have none that is timed.

    Example:
        >>> least_steps(1), least_steps(10)
        (35, 150)
    """
    skipped = -(-_NOT_TIMED // steps_per_execution)
    return _ROUNDS * (skipped + 2) * steps_per_execution


def copied(model: keras.Model) -> keras.Model:
    """Returns a copy, with weights and optimizer; raises a ValueError that says how."""
    try:
        with warnings.catch_warnings():  # of an optimizer that has made no step
            warnings.filterwarnings("ignore", "Skipping variable loading")
            return copy.deepcopy(model)
    except Exception as error:
        raise ValueError(
            "The model must be one that can be saved and loaded: a copy of it is "
            f"trained. Received: {type(model).__name__}, and {line_of(error)} "
            "Register its classes and functions with "
            "`keras.saving.register_keras_serializable`."
        ) from error


@contextlib.contextmanager
def randomness_kept() -> Iterator[None]:
    """Puts Python's and NumPy's generators back, from which seeds are made."""
    held, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(held)
        np.random.set_state(of_numpy)  # noqa: NPY002


def train_in_turn(
    plain: keras.Model,
    sampled: keras.Model,
    given: tuple[Any, Any, Any],
    data: TrainingData,
    steps: int,
    seed: int,
) -> tuple[float, float]:
    """Trains both in turn; returns the seconds of a step of each.

    Medians over the rounds, of a round's medians and, for the second, of its ratio to
    the first in the same round: what else the machine does changes slowly.

    Args:
        plain: trains uniformly.
        sampled: trains by importance.
        given: (x, y, sample_weight) for `fit`.
        data: the same, prepared.
        steps: of each.
        seed: of the uniform order.
    """
    m, rng = data.batch_size, np.random.default_rng(seed)
    count = -(-steps * m // data.n)
    order = np.concatenate([rng.permutation(data.n) for _ in range(count)])
    timers = _Timer(), _Timer()
    for part in np.array_split(np.arange(steps), _ROUNDS):
        # Shuffled here: Keras would take its numbers from TensorFlow's generator.
        rows = order[part[0] * m : (part[-1] + 1) * m]
        once = {"verbose": 0, "callbacks": [timers[1]], "steps_per_epoch": len(part)}
        _fit(sampled, given, batch_size=m, **once)  # first: it refuses what must be
        once |= {"shuffle": False, "callbacks": [timers[0]]}
        if isinstance(given[0], Indexed):  # read and mapped as in the other's steps
            batches = given[0].dataset(m, seed=int(rng.integers(2**31)))
            plain.fit(batches.repeat(), **once)
        else:
            taken = keras.tree.map_structure(
                lambda a, r=rows: None if a is None else a[r], data.arrays
            )
            _fit(plain, taken, batch_size=m, **once)
    uniform, ours = (timer.seconds() for timer in timers)
    typical = float(np.median(uniform))
    return typical, typical * float(np.median(ours / uniform))


def _fit(model: keras.Model, given: tuple[Any, Any, Any], **options: Any) -> None:
    x, y, sample_weight = given
    model.fit(x, y, sample_weight=sample_weight, **options)


class _Timer(keras.callbacks.Callback):
    """Times the steps from one's beginning to the next one's, without the first."""

    def __init__(self) -> None:
        super().__init__()
        self._begun: list[list[float]] = []

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._begun.append([])

    # Keras calls the beginning in line; for the end it would wait for the logs.
    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        self._begun[-1].append(time.perf_counter())

    def seconds(self) -> np.ndarray:
        """Returns `[rounds]`, the median of a step."""
        at_once = self.model.steps_per_execution
        skipped = -(-_NOT_TIMED // at_once)
        between = [np.diff(times)[skipped:] for times in self._begun]
        return np.array([np.median(times) for times in between]) / at_once


def planning_seconds(sampled: keras.Model, data: TrainingData) -> float:
    """Returns the seconds that p and the draws of a block take, over its steps.

    They pass in another thread: where a core is idle, they cost nothing.
    """
    state = sampled.sampling_state
    steps = block_steps(RAIS(), data.n, data.batch_size, sampled.steps_per_execution)
    begun = [time.perf_counter()]
    for seed in range(_ROUNDS):
        p, *_ = by_scores(state, LEAST_FLOOR) or [np.full(data.n, 1 / data.n)]
        rng = np.random.default_rng(seed)
        draws.reshuffled(state.owed, p, steps * data.batch_size, rng)
        begun.append(time.perf_counter())
    return float(np.diff(begun).min()) / steps


def norms_of(
    model: keras.Model, data: TrainingData, seed: int
) -> tuple[np.ndarray, float]:
    """Returns squared norms `[k]`, and the mean ||g||^2 of uniform batches of m."""
    m = data.batch_size
    described = losses.describe(model, data)
    count = max(1, min(data.n, max(_ROWS, 16 * m)) // m)
    rows = np.random.default_rng([seed, 1]).permutation(data.n)
    measure = tf.function(
        lambda batch: squares_in_inference(model, described, batch), autograph=False
    )
    found = [measure(data.batch(rows[i * m : (i + 1) * m])) for i in range(count)]
    squared = np.concatenate([v.numpy() for v, _ in found])
    return np.float64(squared), float(np.mean([g.numpy() for _, g in found]))
