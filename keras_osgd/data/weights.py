"""Weights that a user gives to examples and classes, checked and multiplied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_osgd.base.refusals import refuse
from keras_osgd.base.warn import warn
from keras_osgd.data.arrays import parts_of

__all__ = [
    "checked_weights",
    "leaves_of",
    "require_weights",
    "with_class_weight",
]


def leaves_of(structure: Any) -> list[Any]:
    """Returns the arrays in a nested structure, without `None`."""
    return [leaf for leaf in keras.tree.flatten(structure) if leaf is not None]


def require_weights(x: Any, y: Any, sample_weight: Any) -> None:
    """Raises if `sample_weight` must be an input, such as the third of a triplet.

    It has the shape of an input then, and what no weights have: negative values, or
    more axes than targets, or as many as images and their targets.

    Args:
        x: nested arrays, `[n, ...]`.
        y: nested arrays, `[n, ...]`.
        sample_weight: one array `[n, ...]`, nested arrays or `None`.
    """
    shape = getattr(sample_weight, "shape", ())
    if len(shape) < 2 or shape not in [leaf.shape for leaf in leaves_of(x)]:
        return
    targets = [leaf.shape for leaf in leaves_of(y)]
    axes = max(len(target) - (target[-1:] == (1,)) for target in targets)
    images = len(shape) > 2 and shape[-1] > 1 and shape in targets
    negative = any((part < 0).any() for _, part in parts_of(sample_weight))
    if shape[-1] > 1 and (negative or images or len(shape) > axes):
        raise ValueError(
            "The third part of (x, y, sample_weight) must be weights. Received: one of "
            f"shape {shape}, as x is{', with negative values' * negative}. If examples "
            "are triplets such as (anchor, positive, negative), pass them as ((anchor, "
            'positive, negative), y), or compile with sampling="uniform".'
        )


def checked_weights(sample_weight: Any, y: Any) -> Any:
    """Returns `sample_weight`, or raises if the weights cannot be used.

    Args:
        sample_weight: `[n, ...]`, one array or nested as y is, or `None`.
        y: nested arrays.

    Raises:
        ValueError: if weights are not nested as y is, are negative or not finite. In
            the last two cases `Refused.found` holds the weights.
    """
    if keras.tree.is_nested(sample_weight):
        try:
            keras.tree.assert_same_structure(y, sample_weight)
        except (ValueError, TypeError) as error:
            raise ValueError(
                "`sample_weight` must be one array, or nested as y is. Received: "
                f"{type(sample_weight).__name__} of {len(sample_weight)} where y is "
                f"{type(y).__name__} of {len(y)}. Pass one array for each target."
            ) from error
    problems = [_problem_of_values(leaf) for leaf in leaves_of(sample_weight)]
    refuse(problems, found=sample_weight)
    return sample_weight


def _problem_of_values(leaf: np.ndarray) -> str | None:
    for first, part in parts_of(leaf):
        bad = ~(part >= 0) | ~np.isfinite(part)
        if bad.any():
            index = first + int(np.argwhere(bad)[0][0])
            return (
                "`sample_weight` must be finite and not negative. Received: "
                f"sample_weight[{index}]={leaf[index]}. Drop such examples or give "
                "them weight 0."
            )
    return None


def with_class_weight(
    y: Any, sample_weight: Any, class_weight: Mapping[int, float]
) -> np.ndarray:
    """Returns each example's weight times the weight of its class.

    Args:
        y: labels, `[n]` or `[n, ..., 1]`, or one-hot rows.
        sample_weight: `[n, ...]` or `None`.
        class_weight: weight of each class; 1 where a class is missing, with a warning.

    Raises:
        ValueError: if y has several parts, or the weight of a class that occurs is
            negative or not finite, when `Refused.found` holds `sample_weight`.
    """
    if not isinstance(y, np.ndarray):
        raise ValueError(
            "`class_weight` must go with a single output. Received: y of type "
            f"{type(y).__name__}. Pass `sample_weight` for each output."
        )
    labels = y if y.ndim == 1 else y[..., 0]
    if y.ndim > 1 and y.shape[-1] != 1:
        labels = y.argmax(axis=-1)
    classes, positions = np.unique(np.round(labels), return_inverse=True)
    missing = [int(label) for label in classes if int(label) not in class_weight]
    if missing:
        warn(
            f"`class_weight` has no entry for {missing[:10]}: such examples get weight "
            "1, as in Keras."
        )
    table = {int(label): class_weight.get(int(label), 1.0) for label in classes}
    bad = {k: v for k, v in table.items() if not 0 <= v < np.inf}
    if bad:
        label, value = next(iter(bad.items()))
        text = (
            "`class_weight` must be finite and not negative. Received: "
            f"class_weight[{label}]={value}. Give classes that must not count weight 0."
        )
        refuse([text], found=sample_weight)
    table = np.asarray(list(table.values()), keras.config.floatx())
    weights = table[positions.reshape(labels.shape)]
    if sample_weight is None:
        return weights
    fewer, more = sorted((weights, sample_weight), key=np.ndim)
    return more * fewer.reshape(fewer.shape + (1,) * (more.ndim - fewer.ndim))
