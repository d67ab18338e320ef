"""Skipping of steps whose loss or gradient is not finite, without a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base import replicas
from keras_osgd.base.keras_compat import layers_of, tensor_of, track_loss
from keras_osgd.base.placement import step_variable
from keras_osgd.scores.bad_examples import MOST_IN_A_ROW

__all__ = [
    "Skips",
    "all_finite",
    "put_back",
    "put_back_unless",
    "shown",
    "state_before",
    "statistics_of",
]
_POLL = 8  # steps between two looks, as in the clock


class Skips:
    """Decides inside the step whether it counts, and counts steps skipped in a row.

    After `MOST_IN_A_ROW` skipped steps, or one where that ends `fit`, every step is
    skipped until the next `restart`, so that the weights do not depend on when the
    training thread looks.

    Attributes:
        end_fit: whether a callback of Keras ends training at a loss that is not finite.
        in_a_row: `[]` int64, steps skipped since the last one that counted.

    Example:
        >>> skips = Skips()
        >>> bool(skips.admit(tf.constant(False))), bool(skips.admit(tf.constant(True)))
        (False, True)
    """

    def __init__(self) -> None:
        """Starts with nothing skipped."""
        self.end_fit = False
        self.in_a_row = step_variable(0, tf.int64)
        self._most = step_variable(MOST_IN_A_ROW, tf.int64)
        self._poll_at = _POLL

    def restart(self, end_fit: bool = False) -> None:
        """Starts counting for a new `fit`.

        Args:
            end_fit: see the attribute.
        """
        self.end_fit = end_fit
        self.in_a_row.assign(0)
        self._most.assign(1 if end_fit else MOST_IN_A_ROW)
        self._poll_at = _POLL

    def admit(self, finite: tf.Tensor) -> tf.Tensor:
        """Returns `[]`, whether the step counts; part of the step.

        Args:
            finite: `[]`, whether the step's loss and gradient are finite.
        """
        before = self.in_a_row.read_value()
        counts = finite & (before < self._most.read_value())
        self.in_a_row.assign(tf.where(counts, tf.zeros_like(before), before + 1))
        return counts

    def too_many(self, step: int | None = None) -> bool:
        """Returns whether training must stop; looks at every eighth step or so.

        Args:
            step: number of steps done; `None` looks in any case.
        """
        if step is not None:
            if step < self._poll_at:
                return False
            self._poll_at = step + _POLL
        return int(self.in_a_row) >= MOST_IN_A_ROW

    def logs(self, model: keras.Model, logs: dict[str, Any]) -> dict[str, Any]:
        """Returns an execution's logs; a loss of NaN where a skipped step ends `fit`.

        The epoch shows that loss from now on too.

        Args:
            model: that is trained.
            logs: of the execution.
        """
        if not (self.end_fit and int(self.in_a_row)):
            return logs
        nan = tf.constant(np.nan)
        track_loss(model, nan, tf.ones([]))
        return {**logs, "loss": nan}


def all_finite(loss: tf.Tensor, gradients: Sequence[Any]) -> tf.Tensor:
    """Returns `[]`, whether the loss and all entries of all gradients are finite.

    A sum is finite only if all its terms are. If a sum of finite terms overflows, no
    step could be made with that gradient either.

    Args:
        loss: `[]`, or one value an example.
        gradients: tensors, `tf.IndexedSlices` or `None`.

    Example:
        >>> bool(all_finite(tf.ones([]), [tf.constant([1.0, float("inf")]), None]))
        False
    """
    given = [g for g in gradients if g is not None]
    sums = [_total(loss), *(_total(getattr(g, "values", g)) for g in given)]
    wide = tf.float64 if any(s.dtype == tf.float64 for s in sums) else tf.float32
    return tf.math.is_finite(tf.add_n([tf.cast(s, wide) for s in sums]))


def _total(values: tf.Tensor) -> tf.Tensor:
    if values.dtype.size < 4:  # half precision, whose sums overflow
        values = tf.cast(values, tf.float32)
    # Of a single number no sum is taken: each operation of a step takes time.
    return tf.reduce_sum(values) if values.shape.rank != 0 else values


def state_before(model: keras.Model) -> list[tuple[keras.Variable, tf.Tensor]]:
    """Returns the variables that a forward pass and metrics change, and their values.

    These are `statistics_of`, the sums of metrics, and the kernels that
    SpectralNormalization assigns.
    """
    layers, spectral = layers_of(model), keras.layers.SpectralNormalization
    changing = [*statistics_of(model), *model.metrics_variables]
    changing += [v for x in layers if isinstance(x, spectral) for v in x.weights]
    changing = {id(v): v for v in changing}
    return [(v, tf.convert_to_tensor(v)) for v in changing.values()]


def statistics_of(model: keras.Model) -> list[keras.Variable]:
    """Returns weights that a forward pass may change, as BatchNormalization's do.

    Those of frozen layers are left out, since a compiled step would have to copy them.
    """
    layers = layers_of(model)
    # Outer layers come first, so the innermost decides: it may train in a frozen model.
    frozen = {id(v): not layer.trainable for layer in layers for v in layer.weights}
    return [v for v in model.non_trainable_weights if not frozen.get(id(v))]


def put_back(before: Sequence[tuple[keras.Variable, Any]]) -> None:
    """Restores the variables that a step has changed, on every replica.

    Args:
        before: from `state_before`; inside `once`, with the values of all replicas.
    """
    for variable, value in before:
        replicas.assign_each(tensor_of(variable), value)


def put_back_unless(
    counts: tf.Tensor, before: Sequence[tuple[keras.Variable, Any]]
) -> None:
    """Restores variables unless the step `counts`, `[]` bool; each replica calls it.

    Args:
        counts: the same on all replicas.
        before: from `state_before`.
    """

    def conclude(each: Callable, old: Any) -> tf.Tensor:
        def undo() -> tf.Tensor:
            put_back([(v, value) for (v, _), value in zip(before, old, strict=True)])
            return counts

        return tf.cond(counts, lambda: counts, undo)

    replicas.once(conclude, [value for _, value in before])


def shown(logs: dict[str, Any], results: dict[str, Any]) -> dict[str, tf.Tensor]:
    """Returns a step's logs, with the metrics as they are now.

    Results of several metrics in one are single entries, as Keras shows them.

    Args:
        logs: of the step; entries other than metrics are the user's own.
        results: of the metrics now.
    """
    logs, results = _flat(logs), _flat(results)
    logs = keras.tree.map_structure(tf.convert_to_tensor, logs)
    for name in logs.keys() & results.keys():
        value = tf.cast(results[name], logs[name].dtype)
        if value.shape == logs[name].shape:
            logs[name] = value
    return logs


def _flat(logs: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in logs.items():
        found |= _flat(value) if isinstance(value, dict) else {name: value}
    return found
