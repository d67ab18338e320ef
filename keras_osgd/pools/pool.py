"""One batch drawn from a pool of several, by a forward pass over all of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.draws.pipeline import Sample
from keras_osgd.draws.reshuffled import systematic
from keras_osgd.losses.described import OutputLoss
from keras_osgd.norms.last_layer import squares_in_inference
from keras_osgd.pools.pool_gain import pool_probability

__all__ = [
    "Batch",
    "Drawn",
    "drawing",
    "drawn_at",
    "joined",
    "plain",
    "pool_scores",
    "size_of",
]

Batch = tuple[Any, Any, Any]
"""x, y and sample weights or `None`."""


class Drawn(NamedTuple):
    """A batch drawn from a pool.

    Attributes:
        batch: (x, y, `Sample`), as the sampled step takes it. In `Sample`, `index` and
            `position` are places in the pool, and `probability` is B p, so that the
            importance weight with n = 1 is 1/(B p).
        largest_weight: `[]`, largest weight that could have been drawn.
    """

    batch: tuple[Any, Any, Sample]
    largest_weight: tf.Tensor


def drawing(
    model: keras.Model, described: Sequence[OutputLoss], floor: float
) -> Callable[[Batch, tf.Tensor, tf.Tensor], Drawn]:
    """Returns a function that draws from a pool, given the number and a seed `[2]`.

    Args:
        model: compiled and built.
        described: its losses.
        floor: share of the draws spread evenly over the pool.
    """

    def draw(pool: Batch, size: tf.Tensor, seed: tf.Tensor) -> Drawn:
        scores = pool_scores(model, described, pool)
        offset = tf.random.stateless_uniform([], seed, dtype=tf.float64)
        return drawn_at(pool, scores, floor, size, offset)

    if model.run_eagerly:
        return draw
    return tf.function(draw, reduce_retracing=True, autograph=False)


def drawn_at(
    pool: Batch, scores: tf.Tensor, floor: float, size: tf.Tensor, offset: tf.Tensor
) -> Drawn:
    """Returns the draws from a pool at a given random offset.

    Args:
        pool: examples.
        scores: `[B]`, from `pool_scores`.
        floor: share of the draws spread evenly over the pool.
        size: `[]`, number of draws.
        offset: `[]` float64, in [0, 1), see `draws.reshuffled.systematic`.
    """
    p = pool_probability(scores, floor)
    # On the host, wherever the model is: one place draws systematically.
    index = tf.numpy_function(_systematic, [p, size, offset], tf.int64)
    index = tf.ensure_shape(index, [None])
    # Examples whose scores are not finite cannot be drawn, and do not count.
    fine = tf.math.is_finite(scores)
    count = tf.reduce_sum(tf.cast(fine | ~tf.reduce_any(fine), p.dtype))
    least = tf.reduce_min(tf.where(p > 0, p, tf.ones_like(p)))
    x, y, own = keras.tree.map_structure(
        lambda leaf: None if leaf is None else tf.gather(leaf, index), pool
    )
    drawn = tf.gather(p, index) * count
    sample = Sample.of(drawn, drawn, own)
    return Drawn((x, y, sample), 1.0 / (count * least))


def joined(batches: Sequence[Batch]) -> Batch:
    """Returns the pool made of several batches."""
    return keras.tree.map_structure(
        lambda *parts: None if parts[0] is None else tf.concat(parts, axis=0), *batches
    )


def size_of(batch: Batch) -> int:
    """Returns the number of examples of a batch."""
    return len(keras.tree.flatten(batch[1])[0])


def plain(batch: Batch) -> tuple[Any, Any, Sample]:
    """Returns a batch with weights of 1 and unknown candidate probabilities (NaN)."""
    x, y, own = batch
    return x, y, _undrawn(size_of(batch))._replace(sample_weight=own)


@functools.lru_cache(maxsize=4)  # making them anew took a tenth of a small model's step
def _undrawn(size: int) -> Sample:
    return Sample.of(tf.ones([size]), tf.fill([size], np.nan))


def pool_scores(
    model: keras.Model, described: Sequence[OutputLoss], pool: Batch
) -> tf.Tensor:
    """Returns `[B]`, the norms of the last layer's gradient, in inference mode."""
    return tf.sqrt(squares_in_inference(model, described, pool)[0])


def _systematic(p: np.ndarray, size: np.int32, offset: float) -> np.ndarray:
    """Returns `[size]`, ascending: example i gets size p_i visits on average."""
    return systematic(p, int(size), np.arange(len(p)), float(offset))
