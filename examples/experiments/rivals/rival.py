"""What every rival method is: a rule which examples come next, and at what weight."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import numpy as np

from examples.experiments.rivals.passes import Passes

Score = Callable[[np.ndarray], "Observed"]
Draw = tuple[np.ndarray, np.ndarray]  # index [m] int64 and weights [m] float32


class Observed(NamedTuple):
    """What a pass says of its examples; weights and regularisation are left out.

    Attributes:
        losses: `[m]`.
        norms: `[m]`, of the loss' gradient with respect to the last layer's weights.
        pre_activation_norms: `[m]`, with respect to that layer's pre-activation.
        squared_gradient: ||(1/m) sum_i w_i g_i||^2 of the last layer's weights.
    """

    losses: np.ndarray
    norms: np.ndarray
    pre_activation_norms: np.ndarray
    squared_gradient: float


class Rival(abc.ABC):
    """State of one method in one run; all of it follows from `begin`'s seed.

    For each step the loop calls `next`, reads `progress` and `rate_factor`, trains, and
    calls `observe`.

    Args:
        parameter: the method's own; `DEFAULT` if `None`.

    Attributes:
        TITLE: of the method in tables.
        PARAMETER: name of its own parameter in the paper; `None` for a method without.
        DEFAULT: value of the parameter, or `None`.
        RANGE: where to tune it: lowest, highest, and "log" or "linear".
        rate_factor: what the optimizer's scheduled rate is multiplied by.
        passes: reshuffled passes over all examples.
        steps: done.
        total: iterations of the learning-rate schedule, epochs * ceil(n / m).
    """

    TITLE: ClassVar[str]
    PARAMETER: ClassVar[str | None] = None
    DEFAULT: ClassVar[float | None] = None
    RANGE: ClassVar[tuple[float, float, str] | None] = None
    rate_factor = 1.0

    def __init__(self, parameter: float | None = None) -> None:
        """Keeps the parameter."""
        self.parameter = self.DEFAULT if parameter is None else parameter

    def begin(self, n: int, batch_size: int, epochs: float, seed: int) -> None:
        """Starts a run on n examples; called once, before all else."""
        self.n, self.batch_size, self.epochs = n, batch_size, epochs
        self.rng = np.random.default_rng(seed)
        self.total = round(epochs * math.ceil(n / batch_size))
        self.steps = 0
        self.ones = np.ones(batch_size, np.float32)
        self.passes = Passes(n, self.rng)

    @property
    def progress(self) -> float:
        """How much of the run is done, from 0 to 1: steps over `total` here."""
        return self.steps / self.total

    @abc.abstractmethod
    def next(self, score: Score) -> Draw | None:
        """Returns the next batch and its weights, or `None` at the end of the run.

        Args:
            score: passes examples forward, in inference mode, and tells of them.
        """

    def observe(self, index: np.ndarray, observed: Observed) -> None:
        """Takes in what the step on `index` has shown, and counts the step."""
        self.steps += 1
