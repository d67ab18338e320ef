"""The metrics of `compile`, importance-weighted during training."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_osgd.base import keras_compat
from keras_osgd.base.warn import warn_once
from keras_osgd.losses.described import metric_weights

__all__ = ["update", "weighted"]


def update(model: keras.Model, importance: tuple, y: Any, y_pred: Any) -> None:
    """Updates the metrics of `compile`, with weights for those that take weights.

    Args:
        model: compiled.
        importance: importance weights `[m]`; the user's weights for `weighted_metrics`.
        y: targets.
        y_pred: outputs.
    """
    weights, users = importance

    def weight_of(metric: keras.Metric, output: tf.Tensor, user: Any) -> Any:
        if "sample_weight" not in inspect.signature(metric.update_state).parameters:
            warn_once(
                model,
                metric.name,
                f"Metric {metric.name!r} takes no `sample_weight`: during training "
                "it shows the drawn examples, not the data.",
            )
            return None
        return metric_weights(weights, user, output)

    keras_compat.update_compiled_metrics(model, y, y_pred, users, weight_of)


@contextlib.contextmanager
def weighted(model: keras.Model, importance: tuple) -> Iterator[None]:
    """Weights every update of the metrics of `compile` during the block.

    A user's own `train_step` updates each of `model.metrics`, where the metrics of
    `compile` are a single entry.
    """
    compiled = [m for m in model.metrics if m.name == "compile_metrics"]

    def update_state(y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        update(model, importance, y_true, y_pred)

    for metric in compiled:
        vars(metric)["update_state"] = update_state
    try:
        with model.sampling_held.weighting(importance):
            yield
    finally:
        for metric in compiled:
            del vars(metric)["update_state"]
