"""A user's own `compute_loss`: whether it is a weighted sum of the examples' losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base import keras_compat
from keras_osgd.base.model_state import state_kept
from keras_osgd.base.refusals import refuse, tried_out
from keras_osgd.losses import coupling, own_metrics, probe

__all__ = ["has_own", "verify"]

_TURNED = 1e-3  # relative change of the examples' shares, above rounding
_ROUNDING = 1e-6  # of a whole loss, which hides small shares in it


def has_own(model: keras.Model) -> bool:
    """Returns whether `compute_loss` of the class or the model is not Keras' own."""
    of_class = type(model).compute_loss is not keras.Model.compute_loss
    return of_class or "compute_loss" in vars(model)


class _Losses(NamedTuple):
    """The loss of a batch for several weights of its examples.

    Attributes:
        one, again: all weights 1, twice.
        none: all 0.
        two: all 2.
        each: `[3]`, 1 for one example and 0 for the others.
        beside: sum of `model.losses`, which no weight multiplies.
    """

    one: float
    again: float
    none: float
    two: float
    each: np.ndarray
    beside: float

    @property
    def size(self) -> float:
        """The largest loss."""
        return max(map(abs, (self.one, self.two, self.none, *self.each)))


def verify(
    model: keras.Model,
    batches: Sequence[tuple],
    carried: Callable[[tf.Tensor], Any],
) -> None:
    """Tries a user's own `compute_loss` with several weights and in two batches.

    Besides terms of the weights alone it must be linear in `sample_weight`, and the
    loss of one example must not depend on the others. A factor that all examples of a
    batch share is let pass, since Keras divides by the number of unmasked values.
    Of one that draws random numbers only this is seen: whether it heeds weights at all.
    Terms without weights are not seen beside activity regularisers and `add_loss`.

    Args:
        model: compiled and built.
        batches: (x, y, sample_weight), twice, with the same first three examples.
        carried: function of weights `[rows]` that returns the `sample_weight`.

    Raises:
        ValueError: if it is not so, or the function cannot be tried out.
    """
    size = len(keras.tree.flatten(batches[0][1])[0])
    watched = own_metrics.watched(model, size, "compute_loss")
    with state_kept(model), tried_out("Your `compute_loss`"), watched:
        first, second = (_losses(model, batch, carried) for batch in batches)
    refuse([_problem(first, second)])


def _losses(model: keras.Model, batch: tuple, carried: Callable) -> _Losses:
    x, y, _ = batch
    y_pred = keras_compat.call_model(model, x, training=False)
    beside = sum(float(tf.reduce_sum(term)) for term in model.losses)
    rows = len(keras.tree.flatten(y_pred)[0])

    def loss(weights: Any) -> float:
        given = carried(tf.constant(weights, keras.config.floatx()))
        found = keras_compat.untracked_loss(model, x, y, y_pred, given)
        return float(tf.reduce_sum(found))

    ones = np.ones(rows)
    each = np.array([loss(row) for row in np.eye(rows)[: probe.KEPT]])
    return _Losses(*map(loss, (ones, ones, 0 * ones, 2 * ones)), each, beside)


def _problem(first: _Losses, second: _Losses) -> str | None:
    size = max(first.size, second.size)
    besides = first.beside, second.beside  # where those vary, they are warned of
    if first.one == first.two != 0:
        return _weights_needed("the same loss for weights 1 and 2")
    if not np.isfinite(first.one) or _apart(first.one, first.again, first.size):
        return None
    if not _are_apart_alike(first):
        return _weights_needed(
            "a loss that is not linear in the weights: "
            f"{first.none:.4g}, {first.one:.4g}, {first.two:.4g} for weights 0, 1, 2"
        )
    if _apart(first.none, second.none, size) and not _apart(*besides, size):
        return _weights_needed(
            f"a term without weights: for weights 0 the loss is {first.none:.4g} for "
            f"some examples and {second.none:.4g} for others"
        )
    received = "a `compute_loss` in which an example's part changes with the others"
    return coupling.text(received) if _turned(first, second) else None


def _weights_needed(received: str) -> str:
    return (
        "`compute_loss` must multiply each example's loss, in every term that depends "
        "on examples, by `sample_weight`, which carries the importance weights, and "
        f"must not divide by the weights' sum. Received: {received}. Pass "
        "`sample_weight` on to `super().compute_loss(...)` and multiply your own "
        'terms by it before the mean, or compile with sampling="uniform".'
    )


def _apart(some: float, other: float, size: float) -> bool:
    return coupling.differ(np.float64(some), np.float64(other), size)


def _are_apart_alike(found: _Losses) -> bool:
    """Returns whether the loss grows from 0 to 1 as from 1 to 2."""
    return not _apart(found.two - found.one, found.one - found.none, found.size)


def _turned(first: _Losses, second: _Losses) -> bool:
    """Returns whether the shares of the same examples are not in proportion."""
    shares = [found.each - found.none for found in (first, second)]
    sizes = [np.linalg.norm(share) for share in shares]
    hidden = _ROUNDING * max(first.size, second.size) * sum(sizes)
    distance = np.linalg.norm(shares[0] * sizes[1] - shares[1] * sizes[0])
    return distance > _TURNED * sizes[0] * sizes[1] + hidden
