"""Placement of the package's own variables; no other module places any on devices.

Tables, plans and observations live on the host: the planner and `tf.data` work there,
and a table may be larger than a GPU's memory. The few scalars that a step reads and
writes live beside the model: a step compiled by XLA can reach no other device. Both are
made outside of any strategy's scope. A variable made inside one silently loses the
writes of every replica but the first.
"""

from __future__ import annotations

import concurrent.futures
from typing import Any

import tensorflow as tf

__all__ = ["HOST", "host_variable", "step_variable"]

HOST = "CPU:0"


def host_variable(value: Any, dtype: Any = None) -> tf.Variable:
    """Returns a variable on the host, for values that grow with n or the batch.

    Args:
        value: as in `tf.Variable`; a function makes it without a copy.
        dtype: as in `tf.Variable`.

    Example:
        >>> host_variable(tf.zeros(3)).device[-5:]
        'CPU:0'
    """

    def make() -> tf.Variable:
        with tf.device(HOST):
            return tf.Variable(value, trainable=False, dtype=dtype)

    return _outside_any_scope(make)


def step_variable(value: Any, dtype: Any = None) -> tf.Variable:
    """Returns a small variable beside the model's, that steps read and write.

    Example:
        >>> step_variable(1.0).shape
        TensorShape([])
    """
    return _outside_any_scope(lambda: tf.Variable(value, trainable=False, dtype=dtype))


def _outside_any_scope(make: Any) -> tf.Variable:
    if not tf.distribute.has_strategy():
        return make()
    with concurrent.futures.ThreadPoolExecutor(1) as thread:  # scopes are per thread
        return thread.submit(make).result()
