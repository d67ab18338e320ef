"""Examples with random access, and their augmentation at every visit."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_osgd.data.rows import Rows

__all__ = ["Indexed"]


class Indexed:
    """Examples with random access, and the `map` applied to them at every visit.

    Made by `indexed` or `records`; given to `fit` in place of x.

    Attributes:
        arrays: (x, y, sample_weight); `None` for parts that the dataset lacks.
        batch_size: that of the dataset if it consists of batches, else `None`.

    Example:
        >>> import numpy as np
        >>> examples = Indexed((np.arange(4.0), np.zeros(4), None))
        >>> [len(x) for x, y in examples.dataset(3)]
        [3, 1]
    """

    def __init__(
        self,
        arrays: tuple[Any, Any, Any],
        map: Callable | None = None,
        batch_size: int | None = None,
    ) -> None:
        """Keeps the examples; `map` is traced at its first call."""
        self.arrays, self.batch_size = arrays, batch_size
        self._takes_seed = map is not None and (
            "seed" in inspect.signature(map).parameters
        )
        self._map = self._transform = None
        if map is not None:
            self._map = tf.function(map)  # converts a user's `if` on a tensor
            self._transform = tf.function(self._mapped, autograph=False)

    def __len__(self) -> int:
        """Returns n."""
        return len(keras.tree.flatten(self.arrays[0])[0])

    @property
    def transform(self) -> Callable | None:
        """Function that applies `map` to m examples, or `None` without `map`.

        Its arguments are (x, y, sample_weight) and seeds `[m, 2]`.
        """
        return self._transform

    def dataset(
        self, batch_size: int, shuffle: bool = True, seed: int | None = None
    ) -> tf.data.Dataset:
        """Returns the batches of one uniform epoch, for plain Keras or `evaluate`.

        Args:
            batch_size: m; the last batch may be smaller.
            shuffle: whether each iteration has an order of its own.
            seed: seed of the order and `map`; `None` follows TensorFlow's.
        """
        rows, count = Rows(self.arrays), self._count
        order = tf.data.Dataset.range(len(self))
        order = order.shuffle(len(self), seed) if shuffle else order

        @tf.autograph.experimental.do_not_convert
        def batch(index: tf.Tensor) -> Any:
            taken = rows(index)
            if self._transform is not None:
                shape = tf.stack([tf.shape(index)[0], 2])
                most = tf.int64.max
                seeds = tf.random.uniform(shape, 0, most, tf.int64, seed)
                taken = self._transform(taken, seeds)
            return taken[:count]

        return order.batch(batch_size).map(batch).prefetch(2)

    @property
    def _count(self) -> int:
        return sum(part is not None for part in self.arrays)

    def _mapped(self, taken: tuple[Any, Any, Any], seeds: tf.Tensor) -> Any:
        parts, others = taken[: self._count], taken[self._count :]
        if self.batch_size is not None:
            return (*self._called(parts, seeds[0]), *others)
        first = keras.tree.map_structure(lambda leaf: leaf[:1], parts)
        signature = tf.data.Dataset.from_tensor_slices((first, seeds[:1])).map(
            tf.autograph.experimental.do_not_convert(lambda *e: self._called(*e))
        )
        mapped = tf.map_fn(
            lambda element: self._called(*element),
            (parts, seeds),
            fn_output_signature=signature.element_spec,
        )
        return (*mapped, *others)

    def _called(self, parts: tuple, seed: tf.Tensor) -> tuple:
        mapped = self._map(*parts, **({"seed": seed} if self._takes_seed else {}))
        if not isinstance(mapped, tuple) or len(mapped) != len(parts):
            names = ("x", "y", "sample_weight")[: len(parts)]
            raise ValueError(
                f"`map` must return ({', '.join(names)}), as the dataset has them. "
                f"Received: {type(mapped).__name__}. Return all of them in a tuple."
            )
        return mapped
