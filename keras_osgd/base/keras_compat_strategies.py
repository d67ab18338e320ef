"""What Keras' own training lacks under `tf.distribute`, by private names.

`tests/fit/test_replicas.py` fails, and says what broke or what Keras has mended, when Keras
changes one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

__all__ = ["UnderStrategy", "build_under_strategy"]


class UnderStrategy:
    """Mends what makes Keras' functions fail under a strategy.

    To build a model Keras 3.15 takes a mean over the replicas' batches, which fails for
    several workers and for batches with `None` in them; and it takes the mean of scalar
    logs along an axis, for several workers (keras issues 20585 and 20329).
    """

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None):
        strategy = self._distribute_strategy
        if iterator is not None and strategy is not None:
            batch = next(next(iter(iterator))[2], None)
            if batch is None:  # resumed where an epoch ends, with all built
                return
            data_batch = keras.tree.map_structure(
                lambda value: strategy.experimental_local_results(value)[0], batch
            )
            iterator = None
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    def _make_function(self, step_function: Callable) -> Callable:
        def with_an_axis(data: Any) -> Any:
            return keras.tree.map_structure(
                lambda value: tf.reshape(value, [1]) if value.shape == () else value,
                step_function(data),
            )

        several = _several_workers(self._distribute_strategy)
        return super()._make_function(with_an_axis if several else step_function)


def _several_workers(strategy: tf.distribute.Strategy | None) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def build_under_strategy(model: keras.Model, batch: tuple) -> None:
    """Builds all that has variables in the strategy's scope, for replicas cannot.

    Args:
        model: compiled.
        batch: (x, y) of a few examples.
    """
    with model.distribute_strategy.scope():
        model._symbolic_build(data_batch=batch)
