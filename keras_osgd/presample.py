"""Configures importance sampling for streams, which have no index to draw by."""

from __future__ import annotations

import numbers
from typing import Any

import keras

from keras_osgd.sampling_base import (
    PACKAGE,
    Sampling,
    check,
    check_count,
    check_floor,
)

__all__ = ["Presample"]


@keras.saving.register_keras_serializable(package=PACKAGE)
class Presample(Sampling):
    """Importance sampling within pools, for data that are read in order only.

    A step takes `ratio` batches from the stream, scores them by a forward pass in
    inference mode (v, the norms of the last layer's gradient), draws a batch of them
    with p proportional to v, and weighs each draw by 1/(B p), B the pool's size: its
    gradient is an unbiased estimate of the pool's. The learning rate follows the gain
    ratio r as in `RAIS`, by which an epoch is `steps_per_epoch` effective iterations.

    Drawing is on only while it pays: while r, measured at every step, pools or none,
    exceeds `cost`. Until then, steps are ordinary ones of one batch each. No r exceeds
    `ratio`, since a pool's gradient has a variance of its own.

    Args:
        ratio: B/m, batches of the stream for each batch trained on, 2 or more.
        floor: share of the draws that goes to all examples of a pool alike, in [0, 1],
            so that no importance weight exceeds 1/floor.
        adapt_learning_rate: as in `RAIS`.
        cost: of a step with its pool, in steps without; 1 or more. `None` means
            1 + ratio/3: by operations, a forward pass is a third of a step. Not taken
            from clocks, so that two runs with one seed are equal.
        seed: integer, or `None` to follow `keras.utils.set_random_seed`.

    Raises:
        ValueError: if an argument is outside what is said above.

    Example:
        >>> Presample(ratio=6).cost_of_a_step
        3.0

    Reference: Katharopoulos & Fleuret, ICML 2018. Theirs too are the cost and the
    switch; here r takes the pool's own variance into account, so that it pays later.
    """

    def __init__(
        self,
        ratio: int = 4,
        floor: float = 0.05,
        adapt_learning_rate: bool = True,
        cost: float | None = None,
        seed: int | None = None,
    ) -> None:
        """Checks and keeps the configuration."""
        check_count("ratio", ratio, 2)
        check_floor(floor)
        if cost is not None:
            met = isinstance(cost, numbers.Real) and 1 <= cost < float("inf")
            check("cost", cost, met, "a number and at least 1, the cost of a step")
        self.ratio, self.floor = int(ratio), float(floor)
        self.adapt_learning_rate = bool(adapt_learning_rate)
        self.cost: Any = None if cost is None else float(cost)
        self.seed = seed

    @property
    def cost_of_a_step(self) -> float:
        """Cost of a step with its pool, in steps without."""
        return 1.0 + self.ratio / 3.0 if self.cost is None else self.cost
