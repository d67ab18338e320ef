"""The pipeline of a `fit` with importance sampling, without a model."""

import numpy as np
import tensorflow as tf

from examples.common import models
from keras_osgd.data.rows import Rows
from keras_osgd.draws.pipeline import Plan, PlanBuffers, batches


def planned_batches(train: tuple, steps: int) -> tf.data.Dataset:
    """Returns the batches of one plan, gathered and read ahead as in training.

    Args:
        train: `(x, y)`, arrays.
        steps: number of batches; rows are drawn at random.
    """
    n, m = len(train[0]), models.BATCH_SIZE
    buffers = PlanBuffers(steps, m)
    index = np.random.default_rng(0).integers(0, n, steps * m)
    probability = np.full(steps * m, 1 / n)
    features = np.zeros((steps * m, 0), np.float32)
    buffers.write(
        Plan(0, index, probability, probability, features, True, 1.0, 1.0, 1.0)
    )
    return batches(buffers, Rows((*train, None)), ends=False).take(steps)
