"""Control: uniform training, reshuffled every epoch, as Keras' `fit` does it."""

from __future__ import annotations

from examples.experiments.rivals.rival import Draw, Rival, Score


class Reshuffled(Rival):
    """Every example once an epoch at weight 1; clock: steps over their fixed number.

    The number of steps is that of Keras, epochs * ceil(n / m). Keras' last batch of an
    epoch is smaller; here it is filled up from the next epoch's order, so that all
    batches are full and nothing is dropped.
    """

    TITLE = "uniform, in the rivals' loop"

    def next(self, score: Score) -> Draw | None:
        """Returns the next m of the pass."""
        if self.steps >= self.total:
            return None
        return self.passes.take(self.batch_size), self.ones
