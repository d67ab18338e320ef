"""Online batch selection: examples are drawn by the rank of their latest known loss.

Loshchilov & Hutter, "Online Batch Selection for Faster Training of Neural Networks",
ICLR 2016 workshop. With rank 1 for the greatest loss, p_i falls by a constant factor
from each rank to the next, so that p_1 / p_n = s_e; the selection pressure s_e decays
exponentially over training, s_e = s_e0^(1 - progress), from s_e0 to s_e_end = 1.

Taken over: the first epoch passes over all examples in random order; then the latest
losses of all are recomputed by forward passes twice an epoch and ranked anew (their
recomputation with r_ratio = 1; that cost is counted); no importance weights: the
gradient is biased towards large losses, as theirs. Their factor is s_e^(1/n), here
s_e^(1/(n-1)), which makes the ratio s_e exact. The clock is steps. Left out: ranking
in between by the losses of training steps, which the recomputation soon overtakes, and
their tuning of the optimizers. Their frequency of recomputation, r_freq = 0.5, is read
here as a period of half an epoch.
"""

from __future__ import annotations

import math

import numpy as np

from examples.experiments.rivals.rival import Draw, Rival, Score


def rank_probability(n: int, pressure: float) -> np.ndarray:
    """Returns `[n]`, p of ranks 1 to n: geometric, with p_1 / p_n = `pressure` >= 1."""
    falling = pressure ** (-np.arange(n) / max(n - 1, 1))
    return falling / falling.sum()


def draw_ranks(n: int, pressure: float, uniform: np.ndarray) -> np.ndarray:
    """Returns ranks, from 0, drawn by `rank_probability` at a cost free of n.

    Inverts the distribution function (1 - q^k) / (1 - q^n), q the factor between ranks.

    Args:
        n: number of examples.
        pressure: s_e >= 1.
        uniform: `[m]`, random in [0, 1).
    """
    log_factor = -math.log(pressure) / max(n - 1, 1)
    if abs(n * log_factor) < 1e-6:  # uniform
        ranks = n * uniform
    else:
        ranks = np.log1p(uniform * math.expm1(n * log_factor)) / log_factor
    return np.minimum(ranks.astype(np.int64), n - 1)


class OnlineBatchSelection(Rival):
    """Parameter: s_e0; clock: steps over their fixed number."""

    TITLE = "online batch selection (Loshchilov & Hutter)"
    PARAMETER = "s_e0"
    DEFAULT = 100.0
    RANGE = (2.0, 1e4, "log")

    def begin(self, n: int, batch_size: int, epochs: float, seed: int) -> None:
        """Starts with a pass over all examples."""
        super().begin(n, batch_size, epochs, seed)
        self._period = math.ceil(n / batch_size) / 2
        self._rank_at = 2 * self._period
        self._by_rank: np.ndarray | None = None

    def next(self, score: Score) -> Draw | None:
        """Returns m examples drawn by rank, with replacement."""
        if self.steps >= self.total:
            return None
        if self.steps >= self._rank_at:
            losses = score(np.arange(self.n)).losses
            self._by_rank = np.argsort(-losses, kind="stable")
            self._rank_at += self._period
        if self._by_rank is None:
            return self.passes.take(self.batch_size), self.ones
        pressure = self.parameter ** (1.0 - self.progress)
        ranks = draw_ranks(self.n, pressure, self.rng.random(self.batch_size))
        return self._by_rank[ranks], self.ones
