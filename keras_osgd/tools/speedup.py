"""Estimates the time that importance sampling may save in a long training."""

from __future__ import annotations

import contextlib
import copy
import random
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base.refusals import line_of
from keras_osgd.data import training_data
from keras_osgd.data.indexed_examples import Indexed
from keras_osgd.data.training_data import TrainingData
from keras_osgd.draws.blocks import LEAST_FLOOR, block_steps
from keras_osgd.draws.reshuffled import reshuffled
from keras_osgd.fit.held import as_in_fit
from keras_osgd.gain.gain_ratio import MAX_GAIN
from keras_osgd.losses.described import describe
from keras_osgd.model import accelerate
from keras_osgd.norms.last_layer import squares_in_inference
from keras_osgd.sampling import RAIS
from keras_osgd.scores.distributions import by_scores

__all__ = [
    "SpeedupEstimate",
    "attainable_gain",
    "estimate_speedup",
    "least_steps",
    "planning_seconds",
]

# (Mean gain ratio - 1) over (attainable gain ratio after the probe - 1): the least and
# the most in the experiments (examples/results/speedup.md).
_SHARES = (0.25, 1.5)
_ROWS = 4096  # whose norms are taken; 16 batches if these are more
_ROUNDS = 5  # of steps of both kinds, in turn
_NOT_TIMED = 5  # steps at the start of a round


class SpeedupEstimate(NamedTuple):
    """Savings to expect in training; `str` of it is a short account.

    Attributes:
        verdict: "likely", "uncertain" or "unlikely" to save time, or "will not help".
        seconds: (low, high), of importance-sampled training over uniform training's.
            `low` has planning on an idle core, `high` adds all of it.
        steps: (low, high), likewise, of steps for the same progress.
        overhead: time of a sampled step over that of a uniform one.
        step_milliseconds: time of a uniform step.
        planning_milliseconds: time of planning for a step, in a thread of its own.
        variance_ratio: A_U/A_O, second moment of single uniform draws over that of the
            best ones.
        attainable_gain: r of equation (4) for the best draws at this batch size.
        batch_size: m.
        probe_steps: steps that the copy had made when the norms were taken.
        rows: number of examples whose norms were taken.
    """

    verdict: str
    seconds: tuple[float, float]
    steps: tuple[float, float]
    overhead: float
    step_milliseconds: float
    planning_milliseconds: float
    variance_ratio: float
    attainable_gain: float
    batch_size: int
    probe_steps: int
    rows: int

    def __str__(self) -> str:
        """Returns the account."""
        (low, high), (fast, slow) = self.steps, self.seconds
        said = {
            "likely": "Importance sampling is likely to save time here.",
            "uncertain": "Importance sampling may save time here, or may not.",
            "unlikely": "Importance sampling is unlikely to save time here.",
            "will not help": "Importance sampling will not help here.",
        }
        return (
            f"{said[self.verdict]}\n"
            f"  steps for the same progress  {low:.2f} to {high:.2f} times uniform's\n"
            f"  time of a step               {self.overhead:.2f} times "
            f"{self.step_milliseconds:.2f} ms, and beside it "
            f"{self.planning_milliseconds:.2f} ms of planning\n"
            f"  seconds                      {fast:.2f} to {slow:.2f} times uniform's\n"
            f"The best draws would have a gain ratio of {self.attainable_gain:.2f} at "
            f"batch size {self.batch_size} (and {self.variance_ratio:.2f} times less "
            f"variance one by one), by the last layer's gradients of {self.rows} "
            f"examples after {self.probe_steps} steps of a copy. Training attains a "
            "part of that, none in its first pass over the data and most at its end: "
            "hence the range. Times are as noisy as this machine is busy."
        )


def estimate_speedup(
    model: keras.Model,
    x: Any,
    y: Any = None,
    batch_size: int | None = None,
    steps: int = 500,
    seed: int = 0,
    sample_weight: Any = None,
) -> SpeedupEstimate:
    """Returns an estimate of the time that importance sampling may save.

    An untrained model says little about later gradients. So a copy trains uniformly for
    `steps` steps, at its own rate. Then gradient norms of up to 4096 examples, or 16
    batches, tell what the best draws could gain. Another copy trains with importance
    sampling, in turn, and both are timed. The model, its optimizer and its scores are
    not touched. All takes the time of about 2 `steps` steps and two setups of training.

    Args:
        model: a compiled Keras model of any class that can be copied.
        x: inputs, arrays or tensors, nested or not, n examples; or, without y, a
            dataset, or the result of `data.indexed` or `data.records`.
        y: targets.
        batch_size: m, of the training to come; 32, or that of a dataset.
        steps: length of the probe, at least 35, and more with `steps_per_execution`. A
            fifth of an epoch says little; more than an epoch says more.
        seed: of the copies' examples and draws. It does not fix the measured times.
        sample_weight: as for `fit`.

    Raises:
        ValueError: for arguments that `fit` refuses, models that cannot be copied, and
            gradients that are not finite.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> x = np.random.default_rng(0).normal(size=(64, 4))
        >>> found = estimate_speedup(model, x, x[:, 0], batch_size=8, steps=35)
        >>> found.attainable_gain >= 1
        True
    """
    least = least_steps(getattr(model, "steps_per_execution", None) or 1)
    if steps < least:
        raise ValueError(
            f"`steps` must be at least {least}, to be timed at the model's "
            f"`steps_per_execution`. Received: steps={steps}. Pass more."
        )
    x = as_in_fit(model, x)
    arrays = x, y, sample_weight
    data = training_data.prepare(*arrays, None, batch_size, None)
    with randomness_kept():
        plain, sampled = (
            accelerate(copied(model), s) for s in ("uniform", RAIS(seed=seed))
        )
        times = train_in_turn(plain, sampled, arrays, data, steps, seed)
        times = (*times, planning_seconds(sampled, data))
        squared, gradient = norms_of(plain, data, seed)
    _require_finite(squared)
    return _estimate(times, np.sqrt(squared), gradient, data.batch_size, steps)


def _require_finite(squared_norms: np.ndarray) -> None:
    """Raises for norms that tell nothing; in the formulas below they would pass."""
    bad = np.count_nonzero(~np.isfinite(squared_norms))
    if bad:
        raise ValueError(
            "The gradient norms must be finite to tell what draws by them could gain. "
            f"Received: {bad} of {len(squared_norms)} that are not. Look for NaN and "
            "infinities in the data, or lower the learning rate, at which the copy may "
            "have diverged."
        )


def attainable_gain(
    norms: np.ndarray, squared_gradient: float, batch_size: int
) -> tuple[float, float]:
    """Returns A_U/A_O and r of equation (4) for p in proportion to the norms.

    A_U = mean v^2 and A_O = (mean v)^2, the least possible by (3);
    r = E||g_U||^2 / (E||g_U||^2 - (A_U - A_O)/m).

    Args:
        norms: `[k]`, >= 0, gradient-norm units.
        squared_gradient: E||g_U||^2, of uniform batches of m, in squared units.
        batch_size: m.

    Returns:
        A_U/A_O and r, both at least 1; r at most A_U/A_O and at most 8. Both are 1
        where no norm is above 0.

    Example:
        >>> attainable_gain(np.array([0.0, 2.0]), 1.0, 2)  # A_U = 2, A_O = 1
        (2.0, 2.0)
    """
    norms = np.asarray(norms, np.float64)
    uniform, best = float(np.mean(norms**2)), float(np.mean(norms)) ** 2
    if not best > 0:
        return 1.0, 1.0
    bound = max(uniform / best, 1.0)
    left = squared_gradient - (uniform - best) / batch_size
    gain = squared_gradient / left if left > 0 else bound
    return bound, float(np.clip(gain, 1.0, min(bound, MAX_GAIN)))


def _estimate(
    times: tuple[float, float, float],
    norms: np.ndarray,
    squared_gradient: float,
    batch_size: int,
    steps: int,
) -> SpeedupEstimate:
    """Returns the estimate; times: seconds of a uniform step, a sampled one, a plan."""
    variance_ratio, gain = attainable_gain(norms, squared_gradient, batch_size)
    overhead = max(times[1] / times[0], 1.0)  # below 1 is the clock's noise
    slow, fast = (min(1 + share * (gain - 1), MAX_GAIN) for share in _SHARES)
    by_steps = 1 / fast, 1 / slow
    by_seconds = overhead / fast, (overhead + times[2] / times[0]) / slow
    return SpeedupEstimate(
        _verdict(*by_seconds),
        by_seconds,
        by_steps,
        overhead,
        1000 * times[0],
        1000 * times[2],
        variance_ratio,
        gain,
        batch_size,
        steps,
        len(norms),
    )


def _verdict(low: float, high: float) -> str:
    """Returns the verdict on a range of the ratio of seconds.

    Example:
        >>> [_verdict(*r) for r in ((0.5, 0.9), (0.6, 1.2), (0.8, 1.3), (1.0, 1.1))]
        ['likely', 'uncertain', 'unlikely', 'will not help']
    """
    if low >= 0.97:  # no one notices savings of a few per cent
        return "will not help"
    if high < 1:
        return "likely"
    return "uncertain" if low * high < 1 else "unlikely"


def least_steps(steps_per_execution: int) -> int:
    """Returns the least number of steps that gives every round some to time.

    Example:
        >>> least_steps(1), least_steps(10)
        (35, 150)
    """
    skipped = -(-_NOT_TIMED // steps_per_execution)
    return _ROUNDS * (skipped + 2) * steps_per_execution


def copied(model: keras.Model) -> keras.Model:
    """Returns a copy with weights and optimizer; raises a ValueError if that fails."""
    try:
        with warnings.catch_warnings():  # if the optimizer has made no step
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
    """Restores Python's and NumPy's generators, from which seeds are made."""
    held, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(held)
        np.random.set_state(of_numpy)  # noqa: NPY002


def train_in_turn(
    plain: keras.Model,
    sampled: keras.Model,
    arrays: tuple[Any, Any, Any],
    data: TrainingData,
    steps: int,
    seed: int,
) -> tuple[float, float]:
    """Trains both models in turn; returns the seconds of a step of each.

    The first is the median of the rounds' medians. The second is the first times the
    median of the ratios in each round: other load on the machine changes slowly.

    Args:
        plain: trains uniformly.
        sampled: trains by importance.
        arrays: (x, y, sample_weight) for `fit`.
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
        _fit(sampled, arrays, batch_size=m, **once)  # first: it refuses bad arguments
        once |= {"shuffle": False, "callbacks": [timers[0]]}
        if isinstance(arrays[0], Indexed):  # read and mapped as in the other's steps
            batches = arrays[0].dataset(m, seed=int(rng.integers(2**31)))
            plain.fit(batches.repeat(), **once)
        else:
            taken = keras.tree.map_structure(
                lambda a, r=rows: None if a is None else a[r], data.arrays
            )
            _fit(plain, taken, batch_size=m, **once)
    uniform, ours = (timer.seconds() for timer in timers)
    typical = float(np.median(uniform))
    return typical, typical * float(np.median(ours / uniform))


def _fit(model: keras.Model, arrays: tuple[Any, Any, Any], **options: Any) -> None:
    x, y, sample_weight = arrays
    model.fit(x, y, sample_weight=sample_weight, **options)


class _Timer(keras.callbacks.Callback):
    """Times steps, each until the next one begins, without the first of a round."""

    def __init__(self) -> None:
        super().__init__()
        self._begun: list[list[float]] = []

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._begun.append([])

    # Keras calls this hook at once; for one at a step's end it waits for the logs.
    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        self._begun[-1].append(time.perf_counter())

    def seconds(self) -> np.ndarray:
        """Returns `[rounds]`, the median seconds of a step."""
        at_once = self.model.steps_per_execution
        skipped = -(-_NOT_TIMED // at_once)
        between = [np.diff(times)[skipped:] for times in self._begun]
        return np.array([np.median(times) for times in between]) / at_once


def planning_seconds(sampled: keras.Model, data: TrainingData) -> float:
    """Returns the seconds that p and draws of a block take, divided by its steps.

    Planning runs in another thread: where a core is idle, it costs nothing.
    """
    state = sampled.sampling_state
    steps = block_steps(RAIS(), data.n, data.batch_size, sampled.steps_per_execution)
    begun = [time.perf_counter()]
    for seed in range(_ROUNDS):
        p, *_ = by_scores(state, LEAST_FLOOR) or [np.full(data.n, 1 / data.n)]
        rng = np.random.default_rng(seed)
        reshuffled(state.owed, p, steps * data.batch_size, rng)
        begun.append(time.perf_counter())
    return float(np.diff(begun).min()) / steps


def norms_of(
    model: keras.Model, data: TrainingData, seed: int
) -> tuple[np.ndarray, float]:
    """Returns squared norms `[k]`, and the mean ||g||^2 of uniform batches of m."""
    m = data.batch_size
    described = describe(model, data)
    count = max(1, min(data.n, max(_ROWS, 16 * m)) // m)
    rows = np.random.default_rng([seed, 1]).permutation(data.n)
    measure = tf.function(
        lambda batch: squares_in_inference(model, described, batch), autograph=False
    )
    found = [measure(data.batch(rows[i * m : (i + 1) * m])) for i in range(count)]
    squared = np.concatenate([v.numpy() for v, _ in found])
    return np.float64(squared), float(np.mean([g.numpy() for _, g in found]))
