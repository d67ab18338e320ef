"""The one training loop of all rival methods: no method's seconds are its own."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from examples.experiments.rivals import steps
from examples.experiments.rivals.rival import Observed, Rival
from keras_osgd.data.rows import Rows
from keras_osgd.gain import learning_rate


class Diverged(RuntimeError):
    """A loss or a norm is not finite any more."""


@dataclasses.dataclass
class Counts:
    """What a run has cost so far.

    Attributes:
        steps: weight updates.
        gradients: examples whose gradient was taken, steps * m.
        forward: examples passed forward only.
        effective_epochs: progress on the method's own clock, in epochs.
        gain_ratio: the rate factor of the last step.
        tracing_seconds: spent on taking in the data and in the first call of each
            graph, which traces and compiles it; to be left out of a run's seconds.
    """

    steps: int = 0
    gradients: int = 0
    forward: int = 0
    effective_epochs: float = 0.0
    gain_ratio: float = 1.0
    tracing_seconds: float = 0.0


def train(
    model: keras.Model,
    data: tuple[np.ndarray, np.ndarray],
    rival: Rival,
    schedule: Callable[[Any], Any],
    batch_size: int,
    epochs: float,
    seed: int,
    on_epoch: Callable[[dict[str, Any]], None] = lambda fields: None,
) -> Counts:
    """Trains a compiled model by a rival method.

    Before each step the rate is `factor * schedule(progress * total)`, with the rival's
    own progress and total = epochs * ceil(n / m); factor is `rival.rate_factor`, or its
    square root for Adam and its kin, as in the package.

    Args:
        model: a plain Keras model, compiled with a loss object (one value an example)
            and an optimizer, whose own rate or schedule is replaced.
        data: x and y with n rows each.
        rival: fresh; see `Rival`.
        schedule: a Keras schedule, or any function of a tensor `[]`.
        batch_size: m.
        epochs: length of the schedule.
        seed: of the draws.
        on_epoch: called with the `Counts` so far, as a dict, whenever progress passes
            a multiple of 1/epochs, and at the end.

    Raises:
        Diverged: at the first step whose losses or norms are not finite.
    """
    counts, timed = Counts(), _Timer()
    rows = timed("rows", Rows, data)
    rival.begin(len(data[1]), batch_size, epochs, seed)
    step = steps.training_step(model, rows, schedule, batch_size)
    score_rows = steps.scoring(model, rows)
    rooted = learning_rate.rule_for(model.optimizer) == "square_root"
    ends = [min(k / epochs, 1.0) for k in range(1, math.ceil(epochs) + 1)]

    def score(index: np.ndarray) -> Observed:
        counts.forward += len(index)
        return timed(min(len(index), 1024), score_rows, index)

    def report(progress: float) -> None:
        counts.effective_epochs = progress * epochs
        counts.gain_ratio = rival.rate_factor
        counts.tracing_seconds = timed.first_calls
        while ends and progress >= ends[0] - 1e-9:
            ends.pop(0)
            on_epoch(dataclasses.asdict(counts))

    while (draw := rival.next(score)) is not None:
        index, weights = draw
        factor = math.sqrt(rival.rate_factor) if rooted else rival.rate_factor
        position = rival.progress * rival.total
        observed = timed("step", step, index, weights, position, factor)
        counts.steps += 1
        _check_finite(observed, counts.steps)
        counts.gradients += batch_size
        rival.observe(index, observed)
        report(rival.progress)
    report(1.0)
    return counts


class _Timer:
    """Calls functions and adds up the seconds of each one's first call."""

    def __init__(self) -> None:
        self.first_calls = 0.0
        self._called: set[Any] = set()

    def __call__(self, name: Any, function: Callable, *inputs: Any) -> Any:
        if name in self._called:
            return function(*inputs)
        self._called.add(name)
        started = time.perf_counter()
        result = function(*inputs)
        self.first_calls += time.perf_counter() - started
        return result


def _check_finite(observed: Observed, step: int) -> None:
    found = np.stack([observed.losses, observed.norms])
    if not np.isfinite(found).all():
        raise Diverged(
            "Losses and norms must stay finite. Received: "
            f"{found[~np.isfinite(found)][0]} in step {step}. Lower the learning rate."
        )
