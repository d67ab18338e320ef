"""What importance sampling may save, estimated before a long training."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np

from keras_osgd.data import training_data
from keras_osgd.data.datasets import as_in_fit
from keras_osgd.gain.gain_ratio import MAX_GAIN
from keras_osgd.model import accelerate
from keras_osgd.sampling import RAIS
from keras_osgd.tools.speedup_probe import (
    copied,
    least_steps,
    norms_of,
    planning_seconds,
    randomness_kept,
    train_in_turn,
)

__all__ = ["SpeedupEstimate", "attainable_gain", "estimate_speedup"]

# Mean gain less 1, over the attainable one's after the probe: the least and the most in
# the experiments (examples/results/speedup.md).
_SHARES = (0.25, 1.5)


class SpeedupEstimate(NamedTuple):
    """What training may save; `str` of it is a short account.

    Attributes:
        verdict: "likely", "uncertain" or "unlikely" to save time, or "will not help".
        seconds: (low, high), of importance-sampled training over uniform training's:
            with planning done while a core is idle, and with all of it added.
        steps: (low, high), likewise, of steps for the same progress.
        overhead: the time of a step over that of a uniform one.
        step_milliseconds: of a uniform step.
        planning_milliseconds: of planning, beside each step in a thread of its own.
        variance_ratio: A_U/A_O, second moments of single draws: uniform ones over the
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
    """Returns what importance sampling may save of a training, and whether it may.

    An untrained model says little about gradients later on. So a copy trains for some
    `steps`, uniformly, at its own rate; then the gradient norms of up to 4096 examples
    say what the best draws could gain. Another copy trains with importance sampling, in
    turn, and both are timed. The model, its optimizer and its scores are not touched.
    It takes the time of about 2 `steps` steps and of setting up training twice.

    Args:
        model: a compiled Keras model, of whatever class, that can be copied.
        x: inputs, arrays or tensors, nested or not, n examples; or, without y, a
            dataset, or what `data.indexed` or `data.records` returned.
        y: targets.
        batch_size: m, of the training to come; 32, or that of a dataset.
        steps: of the probe, at least 35, and more with `steps_per_execution`. A fifth
            of an epoch says little; more than an epoch says more.
        seed: of the copy's examples and draws. Times are no part of what it fixes.
        sample_weight: as for `fit`.

    Raises:
        ValueError: for what `fit` refuses, and models that cannot be copied.

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
    given = x, y, sample_weight
    data = training_data.prepare(*given, None, batch_size, None)
    with randomness_kept():
        plain, sampled = (
            accelerate(copied(model), s) for s in ("uniform", RAIS(seed=seed))
        )
        times = train_in_turn(plain, sampled, given, data, steps, seed)
        times = (*times, planning_seconds(sampled, data))
        squared, gradient = norms_of(plain, data, seed)
    return _estimate(times, np.sqrt(squared), gradient, data.batch_size, steps)


def attainable_gain(
    norms: np.ndarray, squared_gradient: float, batch_size: int
) -> tuple[float, float]:
    """Returns A_U/A_O and r of equation (4) for p in proportion to the norms.

    A_U = mean v^2 and A_O = (mean v)^2, by (3) the least there is;
    r = E||g_U||^2 / (E||g_U||^2 - (A_U - A_O)/m).

    Args:
        norms: `[k]`, >= 0, gradient-norm units.
        squared_gradient: E||g_U||^2, of uniform batches of m, in squared units.
        batch_size: m.

    Returns:
        Both at least 1, and r at most the first and at most 8; 1 where no norm is
        above 0.

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
    """Returns the estimate; times: seconds of a step, a sampled one, its planning."""
    variance_ratio, gain = attainable_gain(norms, squared_gradient, batch_size)
    overhead = max(times[1] / times[0], 1.0)  # what is below is the clock's noise
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
    """Returns what a range of the ratio of seconds comes to.

    Example:
        >>> [_verdict(*r) for r in ((0.5, 0.9), (0.6, 1.2), (0.8, 1.3), (1.0, 1.1))]
        ['likely', 'uncertain', 'unlikely', 'will not help']
    """
    if low >= 0.97:  # what a few per cent save, no one will notice
        return "will not help"
    if high < 1:
        return "likely"
    return "uncertain" if low * high < 1 else "unlikely"
