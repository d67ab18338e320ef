"""What the training steps leave behind for the planner."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from keras_osgd.pipeline import PlanBuffers

__all__ = ["ObservationLog"]


class ObservationLog:
    """What the steps of two blocks leave behind, in `tf.Variable`s on the CPU.

    Args:
        buffers: whose steps are observed.
    """

    def __init__(self, buffers: PlanBuffers) -> None:
        """Allocates room for two blocks."""
        self._batch_size, self._rows = buffers.batch_size, buffers.rows
        with tf.device("CPU:0"):
            norms = tf.zeros([self._rows * self._batch_size])
            self._norms = tf.Variable(norms, trainable=False)
            self._gains = tf.Variable(tf.zeros([self._rows]), trainable=False)

    def write(self, position: tf.Tensor, norms: tf.Tensor, gain: tf.Tensor) -> None:
        """Leaves a step's norms `[m]` and gain ratio `[]`; part of the step."""
        self._norms.scatter_update(tf.IndexedSlices(norms, position))
        row = position[:1] // self._batch_size
        self._gains.scatter_update(tf.IndexedSlices(gain[tf.newaxis], row))

    def read(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the norms `[k * m]` and gains `[k]` of steps first <= step < last."""
        rows = np.arange(first, last) % self._rows
        positions = rows[:, np.newaxis] * self._batch_size + np.arange(self._batch_size)
        norms = tf.gather(self._norms, positions.ravel()).numpy()
        return norms, tf.gather(self._gains, rows).numpy()
