"""InfoBatch: prunes examples of low loss at random, and reweights those kept.

Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning",
ICLR 2024. Before each epoch, an example whose latest loss is below the mean of all
latest losses is pruned with probability r; the kept ones of low loss weigh 1/(1 - r),
all others 1: E[w_i 1(i kept)] = 1 for every example. The last 1 - delta = 12.5 % of the
epochs are full, at weight 1.

Taken over: scores from the training steps alone, with no further forward pass; all
scores equal at first, so that the first epoch is full; pruning by independent draws, as
in the paper's equation. The clock is passes: an epoch of kept examples is an epoch of
the schedule, as in the paper. An epoch is pruned if it ends by delta T: for
a T that 8 divides that is the paper's rule, and short runs keep one full epoch as well.
Left out: several thresholds by percentile, which the paper offers for other tasks.
"""

from __future__ import annotations

import numpy as np

from examples.experiments.rivals.rival import Draw, Observed, Rival, Score

_DELTA = 0.875


def keep(
    scores: np.ndarray, r: float, uniform: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the examples kept in an epoch and their weights.

    Args:
        scores: `[n]`, latest losses.
        r: probability of pruning an example below the mean, in [0, 1).
        uniform: `[n]`, random in [0, 1).

    Returns:
        `[kept]` int64 in ascending order, and `[kept]` float32.
    """
    low = scores < scores.mean()
    kept = np.flatnonzero(~low | (uniform >= r))
    weights = np.where(low[kept], 1.0 / (1.0 - r), 1.0)
    return kept, weights.astype(np.float32)


class InfoBatch(Rival):
    """Parameter: r; clock: passes over what is kept of the data, over epochs."""

    TITLE = "InfoBatch (Qin et al.)"
    PARAMETER = "r"
    DEFAULT = 0.5
    RANGE = (0.1, 0.9, "linear")

    def begin(self, n: int, batch_size: int, epochs: float, seed: int) -> None:
        """Starts with equal scores."""
        super().begin(n, batch_size, epochs, seed)
        self._scores = np.ones(n)
        self._epoch, self._progress = 0, 0.0
        self._index = np.zeros(0, np.int64)
        self._weights = np.zeros(0, np.float32)
        self._share = np.zeros(0)  # of the run, that an example's visit makes up

    @property
    def progress(self) -> float:
        """Passes over the kept examples, over epochs."""
        return min(self._progress, 1.0)

    def next(self, score: Score) -> Draw | None:
        """Returns the next m kept examples; a batch may reach into the next epoch."""
        if self._progress >= 1.0 - 1e-9:
            return None
        while len(self._index) < self.batch_size:
            self._begin_epoch()
        m = self.batch_size
        return self._index[:m], self._weights[:m]

    def observe(self, index: np.ndarray, observed: Observed) -> None:
        """Keeps the losses as scores."""
        super().observe(index, observed)
        m = self.batch_size
        self._scores[index] = observed.losses
        self._progress += self._share[:m].sum()
        self._index, self._weights = self._index[m:], self._weights[m:]
        self._share = self._share[m:]

    def _begin_epoch(self) -> None:
        pruned = self._epoch + 1 <= _DELTA * self.epochs
        r = self.parameter if pruned else 0.0
        kept, weights = keep(self._scores, r, self.rng.random(self.n))
        order = self.rng.permutation(len(kept))
        share = np.full(len(kept), 1.0 / (len(kept) * self.epochs))
        self._index = np.concatenate([self._index, kept[order]])
        self._weights = np.concatenate([self._weights, weights[order]])
        self._share = np.concatenate([self._share, share])
        self._epoch += 1
