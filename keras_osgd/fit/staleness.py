"""Warns where an oracle's scores age between two scorings."""

from __future__ import annotations

import keras

from keras_osgd.base.warn import warn_once
from keras_osgd.data.training_data import TrainingData
from keras_osgd.sampling import Oracle

__all__ = ["warn_of_staleness"]


def warn_of_staleness(model: keras.Model, sampling: Oracle, data: TrainingData) -> None:
    """Warns once where `refresh` leaves scores to age."""
    steps = sampling.block_steps(data.n, data.batch_size)
    if steps == 1:
        return
    by_default = " by default" if sampling.refresh is None else ""
    warn_once(
        model,
        "stale",
        f"{data.n} examples are scored every {steps} steps{by_default}: in between, "
        "the oracle is a stale point estimate. Measured on 5,000 examples, the test "
        "error was 15.7 % scored every step and 20.4 / 21.1 % every 5 / 20 steps at a "
        "constant rate; under a cosine schedule 15.8 %, and every 20 steps 15.9 % with "
        "a floor of 0.1 and 16.2 % without. `Oracle(refresh=...)` sets the steps; a "
        f"scoring costs about as much as {-(-data.n // data.batch_size)} of them. "
        'sampling="rais" is made for scores that age.',
    )
