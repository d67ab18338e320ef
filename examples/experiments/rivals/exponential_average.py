"""Draws by an exponential average of each example's gradient norm.

After the papers of Salaün, Huang, Georgiev, Mitra & Singh (2023 to 2025): p follows

    q_i <- alpha q_i + (1 - alpha) v_i,

v_i the norm of the loss' gradient with respect to the last layer's pre-activation, seen
whenever i is drawn. Draws are with replacement and weigh 1/(n p_i); the first epoch is
uniform, so that every q_i has been seen; the learning rate is not adapted, and the
clock is steps. `Biased` is the same without the weights.

Left out: their adaptive batch sizes and the variants for regression. No code of theirs
was found.
"""

from __future__ import annotations

import math

import numpy as np

from examples.experiments.rivals.rival import Draw, Observed, Rival, Score
from keras_osgd.draws import reshuffled as draws


class ExponentialAverage(Rival):
    """Parameter: alpha; clock: steps over their fixed number."""

    TITLE = "exponential average (Salaün et al.)"
    PARAMETER = "alpha"
    DEFAULT = 0.1
    RANGE = (0.02, 0.6, "log")

    def begin(self, n: int, batch_size: int, epochs: float, seed: int) -> None:
        """Starts with no average."""
        super().begin(n, batch_size, epochs, seed)
        self._average = np.full(n, np.nan)
        self._uniform_steps = math.ceil(n / batch_size)

    def next(self, score: Score) -> Draw | None:
        """Returns the next m of the first pass, then m drawn by the averages."""
        if self.steps >= self.total:
            return None
        if self.steps < self._uniform_steps:
            return self.passes.take(self.batch_size), self.ones
        known = np.nan_to_num(self._average, nan=np.nanmean(self._average))
        # A small constant keeps weights finite.
        known = known + 1e-3 * known.mean() + np.finfo(float).tiny
        probability = known / known.sum()
        chosen = draws.independent(probability, self.batch_size, self.rng)
        return chosen, self._weights(probability[chosen])

    def observe(self, index: np.ndarray, observed: Observed) -> None:
        """Moves the averages of what was drawn."""
        super().observe(index, observed)
        new, old = observed.pre_activation_norms, self._average[index]
        alpha = self.parameter
        moved = np.where(np.isnan(old), new, alpha * old + (1 - alpha) * new)
        self._average[index] = moved

    def _weights(self, probability: np.ndarray) -> np.ndarray:
        return (1.0 / (self.n * probability)).astype(np.float32)


class Biased(ExponentialAverage):
    """The same with weights of 1: another objective is minimised."""

    TITLE = "exponential average, without weights"

    def _weights(self, probability: np.ndarray) -> np.ndarray:
        return self.ones
