"""Whether the loss of an example depends on the other examples of its batch."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base import keras_compat
from keras_osgd.base.refusals import tried_out
from keras_osgd.losses import probe

__all__ = ["differ", "problem_of_loss", "problem_of_outputs", "text", "values"]

# Share of the largest value, and least value, above rounding: that depends on the
# number of rows, as some are calculated together and others one by one.
_SHARE, _LEAST = 1e-4, 1e-6


def text(received: str) -> str:
    """Returns the reason to refuse what couples the examples of a batch."""
    return (
        "An example's loss must not depend on the other examples of its batch: "
        "importance weights make up for how often an example is drawn, not for which "
        f"others are drawn with it. Received: {received}. Compare with fixed examples "
        "instead of those of the batch (as negatives, or for statistics), or compile "
        'with sampling="uniform".'
    )


def values(loss: keras.losses.Loss, target: Any, prediction: tf.Tensor) -> np.ndarray:
    """Returns a loss's values, `[rows, ...]` if it gives one for each example."""
    dtype = tf.as_dtype(loss.dtype)
    dtype = tf.float32 if dtype.size < 4 else dtype  # to tell changes from rounding
    # Without the logits that Keras' softmax leaves on its output: a slice has none, and
    # of probabilities the loss is clipped.
    prediction = tf.identity(tf.cast(prediction, dtype))
    found = loss.call(tf.cast(tf.convert_to_tensor(target), dtype), prediction)
    return np.asarray(found, np.float64)


def differ(some: np.ndarray, others: np.ndarray, size: float) -> bool:
    """Returns whether values differ by more than rounding; `size` is their largest."""
    limit = _SHARE * size + _LEAST
    alike = some.shape == others.shape
    return not (alike and np.allclose(some, others, 0.0, limit, equal_nan=True))


def problem_of_loss(
    loss: keras.losses.Loss, target: Any, prediction: tf.Tensor
) -> str | None:
    """Returns why a loss must be refused whose values change with the other examples.

    Three examples are tried alone and among the others. Nothing can be told of a loss
    that draws random numbers.

    Args:
        loss: gives a value for each example.
        target: `[rows, ...]`.
        prediction: `[rows, ...]`, the model's output.
    """
    with tried_out(f"The loss {loss.name}"):
        among, again = (values(loss, target, prediction) for _ in range(2))
        rows = [slice(i, i + 1) for i in range(probe.KEPT)]
        alone = [values(loss, target[row], prediction[row]) for row in rows]
    size = np.max(np.abs(among), where=np.isfinite(among), initial=0.0)
    if differ(among, again, size):
        return None
    coupled = any(differ(a, among[r], size) for a, r in zip(alone, rows, strict=True))
    received = f"the loss {loss.name}, whose values change with the other examples"
    return text(received) if coupled else None


def problem_of_outputs(model: keras.Model, x: Any, y_pred: Any) -> str | None:
    """Returns why a model must be refused that compares the examples of a batch.

    An output `[m, m]` does so, such as all similarities of two towers.

    Args:
        model: built.
        x: `[rows, ...]`.
        y_pred: its outputs for x.
    """
    shapes = [leaf.shape for leaf in keras.tree.flatten(y_pred)]
    count, dense = shapes[0][0], all(map(_is_dense, keras.tree.flatten(x)))
    if not (dense and any(count in shape[1:] for shape in shapes)):
        return None
    fewer = keras.tree.map_structure(lambda leaf: leaf[:-1], x)
    with tried_out("The model"):
        found = keras_compat.call_model(model, fewer, training=False)
    pairs = zip(shapes, keras.tree.flatten(found), strict=True)
    names = [str(tuple(a)) for a, b in pairs if a[1:] != b.shape[1:]]
    return text(f"outputs of shape {names[0]} for {count} examples") if names else None


def _is_dense(leaf: Any) -> bool:
    return isinstance(leaf, tf.Tensor)  # padding may follow the batch's longest row
