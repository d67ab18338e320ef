"""Importance sampling whose learning rate follows an effective minibatch size.

A rule after Kutsuna, "Exploring Variance Reduction in Importance Sampling for Efficient
DNN Training", arXiv 2501.13296 and SIAM J. Math. Data Science 2025, of which no more
than the abstract and the introduction were at hand. Taken over from there: importance
from moving statistics of the gradients, unbiased weights w_i = 1/(n p_i), the reduction
of variance estimated from the minibatches of importance sampling alone, and a learning
rate by the effective minibatch size, m tr Cov_uniform / tr Cov_p.

The plainest rules that fill this in, which may differ from the paper's:

- moving averages, over an example's visits, of its norm v (of the last layer's
  gradient) and of v^2, without the weight of their start at 0; p_i proportional to
  sqrt(mean_i^2 + variance_i), the minimiser of the expected second moment; a tenth of
  the draws uniform, so that no weight exceeds 10;
- a first epoch of uniform reshuffled batches at the plain rate, in which every example
  is seen; then independent draws in blocks of 50 batches;
- with A_U = mean(w v^2), A = mean(w^2 v^2) and G the batch's weighted gradient,
  tr Cov_uniform = A_U - s and tr Cov_p = A - s, of single draws, where
  s = (m ||G||^2 - A) / (m - 1) estimates ||E G||^2 without bias; moving averages
  of these with decay 0.98;
- the scheduled rate times the ratio of the two, within [1/8, 8] (linear rule; square
  root for Adam, see `loop`), and a clock of steps that count as much as that ratio.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from examples.experiments.rivals.rival import Draw, Observed, Rival, Score
from keras_osgd.draws import reshuffled as draws
from keras_osgd.gain import gain_ratio
from keras_osgd.scores import distributions

_BLOCK = 50  # batches
_FLOOR = 0.1
_DECAY = 0.98  # of the variances


def traces(
    weights: np.ndarray, norms: np.ndarray, squared_gradient: float
) -> np.ndarray:
    """Returns unbiased estimates of tr Cov of w g for single draws: uniform, and by p.

    Args:
        weights: `[m]`, 1/(n p) of m >= 2 independent draws from p.
        norms: `[m]`, v, of the gradients without weights.
        squared_gradient: ||(1/m) sum_i w_i g_i||^2.

    Returns:
        `[2]`: of (1/n) sum_i v_i^2 - ||g||^2 and (1/n^2) sum_i v_i^2/p_i - ||g||^2,
        g the mean gradient of all n. Single estimates may be negative.
    """
    # As `gain_ratio.moments`; in NumPy, since TensorFlow's overhead outside of a graph
    # would add a third to the step.
    m, weighted = len(weights), weights * np.square(norms, dtype=np.float64)
    uniform, second = weighted.mean(), (weights * weighted).mean()
    mean = (m * squared_gradient - second) / (m - 1)
    return np.array([uniform - mean, second - mean])


class MovingMoments:
    """Moving averages of each example's norm and squared norm, over its visits.

    Args:
        n: number of training examples.
        decay: share of the old average kept at a visit, in [0, 1).
    """

    def __init__(self, n: int, decay: float) -> None:
        """Starts with nothing seen."""
        self._decay = decay
        self._sums = np.zeros((3, n))  # of v, v^2 and 1, each at the same decay

    def update(self, index: np.ndarray, norms: np.ndarray) -> None:
        """Adds a batch; an example in it more than once counts as one visit."""
        norms = norms.astype(np.float64)
        seen = np.stack([norms, np.square(norms), np.ones_like(norms)])
        kept = self._decay * self._sums[:, index]
        self._sums[:, index] = kept + (1.0 - self._decay) * seen

    def scores(self) -> np.ndarray:
        """Returns `[n]`, sqrt(mean^2 + variance); of those not seen, the others' mean.

        mean^2 + variance is the average of v^2.
        """
        total, squared, weight = self._sums
        seen = weight > 0
        if not seen.any():
            return np.ones(len(seen))
        mean = np.divide(total, weight, out=np.zeros_like(total), where=seen)
        second = np.divide(squared, weight, out=np.zeros_like(total), where=seen)
        variance = np.maximum(second - np.square(mean), 0.0)
        scores = np.sqrt(np.square(mean) + variance)
        return np.where(seen, scores, scores[seen].mean())


class EffectiveMinibatch(Rival):
    """Parameter: decay of the moving moments; clock: effective iterations."""

    TITLE = "effective minibatch (after Kutsuna)"
    PARAMETER = "decay"
    DEFAULT = 0.5
    RANGE = (0.0, 0.9, "linear")

    def begin(self, n: int, batch_size: int, epochs: float, seed: int) -> None:
        """Starts with a uniform pass."""
        super().begin(n, batch_size, epochs, seed)
        self._uniform_steps = -(-n // batch_size)
        self._moments = MovingMoments(n, self.parameter)
        self._traces = np.zeros(2)
        self._block: list[Draw] = []
        self._weights = self.ones
        self._effective = 0.0

    @property
    def progress(self) -> float:
        """Effective iterations over `total`."""
        return min(self._effective / self.total, 1.0)

    def next(self, score: Score) -> Draw | None:
        """Returns the next batch of the pass, or of the block."""
        if self._effective >= self.total:
            return None
        if self.steps < self._uniform_steps:
            return self.passes.take(self.batch_size), self.ones
        if not self._block:
            self._block = self._draw_block()
        index, self._weights = self._block.pop()
        return index, self._weights

    def observe(self, index: np.ndarray, observed: Observed) -> None:
        """Updates moments and variances; the rate follows from the next step on."""
        self._effective += self.rate_factor
        self._moments.update(index, observed.norms)
        if self.steps >= self._uniform_steps:
            found = traces(self._weights, observed.norms, observed.squared_gradient)
            self._traces += (1.0 - _DECAY) * (found - self._traces)
            self.rate_factor = _ratio(*self._traces)
        super().observe(index, observed)

    def _draw_block(self) -> list[Draw]:
        oracle = distributions.oracle(tf.constant(self._moments.scores()))
        p = distributions.with_floor(oracle, _FLOOR).numpy()
        index = draws.independent(p, _BLOCK * self.batch_size, self.rng)
        weights = distributions.importance_weights(p[index], self.n)
        weights = weights.astype(np.float32).reshape(_BLOCK, -1)
        return list(zip(index.reshape(_BLOCK, -1), weights, strict=True))


def _ratio(uniform: float, importance: float) -> float:
    """Returns the effective minibatch size over m; 1 where the averages are no use."""
    if uniform <= 0 or importance <= 0:
        return 1.0
    bound = gain_ratio.MAX_GAIN
    return float(np.clip(uniform / importance, 1.0 / bound, bound))
