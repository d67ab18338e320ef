"""Selective Backprop: backward passes for examples whose loss is large of late.

Jiang et al., "Accelerating Deep Learning by Focusing on the Biggest Losers", 2019
(arXiv 1910.00762). Every example of a uniform batch is passed forward and selected with
probability CDF_R(loss)^beta, CDF_R the share of the last R = 1024 losses that are not
above its own. Selected examples wait until there are m, then one step is taken on them.
With losses that keep their distribution, 1/(beta + 1) of the examples is selected.

Taken over: the above, without importance weights: biased, as theirs. The losses passed
forward enter the R before they are judged. The clock is passes over the data,
as their learning-rate schedule follows the epochs of forward passes; so the method
makes 1/(beta + 1) of the usual steps. Forward passes are in inference mode. Left out:
their later variant that passes forward only every few epochs ("stale" losses).
Examples left waiting at the end are dropped, fewer than m.
"""

from __future__ import annotations

import numpy as np

from examples.experiments.rivals.rival import Draw, Observed, Rival, Score

_HISTORY = 1024  # R


def selection_probability(
    losses: np.ndarray, history: np.ndarray, beta: float
) -> np.ndarray:
    """Returns `[m]`, CDF(loss)^beta by the losses in `history`, `[R]`, in any order."""
    below = np.searchsorted(np.sort(history), losses, side="right")
    return (below / len(history)) ** beta


class SelectiveBackprop(Rival):
    """Parameter: beta; clock: examples passed forward, over epochs * n."""

    TITLE = "Selective Backprop (Jiang et al.)"
    PARAMETER = "beta"
    DEFAULT = 1.0
    RANGE = (0.25, 4.0, "log")

    def begin(self, n: int, batch_size: int, epochs: float, seed: int) -> None:
        """Starts with no history."""
        super().begin(n, batch_size, epochs, seed)
        self._history = np.zeros(0)
        self._selected = np.zeros(0, np.int64)
        self._batches_seen = 0

    @property
    def progress(self) -> float:
        """Batches passed forward, over their fixed number."""
        return self._batches_seen / self.total

    def next(self, score: Score) -> Draw | None:
        """Passes batches forward until m examples are selected, and returns those."""
        while len(self._selected) < self.batch_size:
            if self._batches_seen >= self.total:
                return None
            self._select(score)
        return self._selected[: self.batch_size], self.ones

    def observe(self, index: np.ndarray, observed: Observed) -> None:
        """Takes the trained examples off the queue."""
        super().observe(index, observed)
        self._selected = self._selected[self.batch_size :]

    def _select(self, score: Score) -> None:
        index = self.passes.take(self.batch_size)
        losses = score(index).losses
        self._history = np.concatenate([self._history, losses])[-_HISTORY:]
        probability = selection_probability(losses, self._history, self.parameter)
        selected = index[self.rng.random(len(index)) < probability]
        self._selected = np.concatenate([self._selected, selected])
        self._batches_seen += 1
