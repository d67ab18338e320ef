"""Importance sampling within a pool, after a forward pass over it.

Katharopoulos & Fleuret, "Not All Samples Are Created Equal: Deep Learning with
Importance Sampling", ICML 2018, Algorithm 1. Of a pool of B uniform draws, m are drawn
again, with replacement, at g_i proportional to the norm of the loss' gradient with
respect to the last layer's pre-activation (their upper bound), and weigh 1/(B g_i).
It is on while a moving average of

    tau = (1 - ||g - u||^2 / ||g||^2)^(-1/2),   u = 1/B,

the root of the growth in batch size that would reduce the second moment alike, exceeds
tau_th; else the batch is uniform, and its own backward pass gives the scores for tau.

Taken over: the above, with a_tau = 0.9, and B = 3m as in their examples. tau_th = 1.5
is their choice; with B = 3m and a backward pass at twice the cost of a forward one, the
gain is certain above 2. Pools and uniform batches are taken from reshuffled passes, so
that a run which never switches on is ordinary training. The clock is steps. Left
out: nothing of Algorithm 1; their code scores in Keras' training mode, here
neither Dropout nor augmentation acts on the scoring pass.
"""

from __future__ import annotations

import numpy as np

from examples.experiments.rivals.rival import Draw, Observed, Rival, Score
from keras_osgd.draws import reshuffled as draws

_POOL = 3  # B over m
_DECAY = 0.9  # a_tau


def pool_probability(scores: np.ndarray) -> np.ndarray:
    """Returns `[B]`, g: proportional to the scores; uniform where all are 0."""
    scores = np.asarray(scores, np.float64)
    # Scores are >= 0; the small constant only keeps weights finite (see `steps`).
    scores = scores + 1e-7 * scores.mean() + np.finfo(np.float64).tiny
    return scores / scores.sum()


def tau(probability: np.ndarray) -> float:
    """Returns (1 - ||g - u||^2 / ||g||^2)^(-1/2), which is sqrt(B sum g^2).

    tau^2 is the second moment of the uniform estimator, (1/B) sum v^2, over that of
    p ~ v, ((1/B) sum v)^2.
    """
    distance = np.square(probability - 1.0 / probability.size).sum()
    return float((1.0 - distance / np.square(probability).sum()) ** -0.5)


class Presampling(Rival):
    """Parameter: tau_th; clock: steps over their fixed number."""

    TITLE = "presampling (Katharopoulos & Fleuret)"
    PARAMETER = "tau_th"
    DEFAULT = 1.5
    RANGE = (1.1, 4.0, "log")

    def begin(self, n: int, batch_size: int, epochs: float, seed: int) -> None:
        """Starts uniform, with tau = 0."""
        super().begin(n, batch_size, epochs, seed)
        self._tau = 0.0
        self._switched_on = False

    def next(self, score: Score) -> Draw | None:
        """Returns m of a pool, or the next m of the pass."""
        if self.steps >= self.total:
            return None
        self._switched_on = self._tau > self.parameter
        if not self._switched_on:
            return self.passes.take(self.batch_size), self.ones
        pool = self.passes.take(_POOL * self.batch_size)
        probability = pool_probability(score(pool).pre_activation_norms)
        self._follow(probability)
        chosen = draws.independent(probability, self.batch_size, self.rng)
        weights = 1.0 / (pool.size * probability[chosen])
        return pool[chosen], weights.astype(np.float32)

    def observe(self, index: np.ndarray, observed: Observed) -> None:
        """Follows tau by a uniform batch's own scores."""
        super().observe(index, observed)
        if not self._switched_on:
            self._follow(pool_probability(observed.pre_activation_norms))

    def _follow(self, probability: np.ndarray) -> None:
        self._tau = _DECAY * self._tau + (1.0 - _DECAY) * tau(probability)
