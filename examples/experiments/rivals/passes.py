"""Endless reshuffled passes over the training examples."""

import numpy as np


class Passes:
    """A stream of examples: one random order of all n after another.

    Args:
        n: number of training examples.
        rng: source of all randomness.

    Example:
        >>> passes = Passes(3, np.random.default_rng(0))
        >>> np.sort(passes.take(6))
        array([0, 0, 1, 1, 2, 2])
    """

    def __init__(self, n: int, rng: np.random.Generator) -> None:
        """Starts at the beginning of a first pass."""
        self._n, self._rng = n, rng
        self._waiting = np.zeros(0, np.int64)

    def take(self, count: int) -> np.ndarray:
        """Returns the next `count` examples, `[count]` int64.

        What is left of a pass comes first: nothing is dropped, and a batch may reach
        from one pass into the next.
        """
        while len(self._waiting) < count:
            order = self._rng.permutation(self._n)
            self._waiting = np.concatenate([self._waiting, order])
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken
