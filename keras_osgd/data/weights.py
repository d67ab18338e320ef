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
    "labels_of",
    "leaves_of",
    "require_labels_of_keras",
    "require_weights",
    "with_class_weight",
]

_LOSSES_OF_INDICES = {
    "categoricalgeneralizedcrossentropy",
    "sparsecategoricalcrossentropy",
}
_LOSSES_OF_SHARES = {
    "categoricalcrossentropy",
    "categoricalfocalcrossentropy",
    "categoricalhinge",
    "kld",
    "kldivergence",
}


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
    y: Any, sample_weight: Any, class_weight: Mapping[int, float], loss: Any = None
) -> np.ndarray:
    """Returns each example's weight times the weight of its class.

    Two kinds of y are read otherwise than by Keras, which takes every last axis but one
    of length 1 for one-hot: class indices that have further axes, as masks of images
    and labels of sequences have. Each of their values gets the weight of its class.

    Args:
        y: labels, `[n, ...]` or `[n, ..., 1]`, or one-hot rows (see `labels_of`).
        sample_weight: `[n, ...]` or `None`.
        class_weight: weight of each class; 1 where a class is missing. A warning names
            the classes that are missing, and keys that are no class.
        loss: as compiled, or `None`.

    Raises:
        ValueError: if y has several parts; and if `class_weight` is no dict, or the
            weight of a class that occurs is negative or not finite, when
            `Refused.found` holds `sample_weight`.
    """
    if not isinstance(y, np.ndarray):
        raise ValueError(
            "`class_weight` must go with a single output. Received: y of type "
            f"{type(y).__name__}. Pass `sample_weight` for each output."
        )
    refuse([_problem_of_kind(class_weight)], found=sample_weight)
    labels = labels_of(y, loss)
    classes, positions = np.unique(np.round(labels), return_inverse=True)
    _warn_of_classes([int(label) for label in classes], class_weight)
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


def _problem_of_kind(class_weight: Any) -> str | None:
    if isinstance(class_weight, Mapping):
        return None
    return (
        "`class_weight` must be a dict from class to weight, as in Keras. Received: "
        f"{type(class_weight).__name__}. If it holds the weights of classes 0, 1, ... "
        "in order, pass `dict(enumerate(class_weight))`."
    )


def _warn_of_classes(classes: list[int], class_weight: Mapping[int, float]) -> None:
    missing = [label for label in classes if label not in class_weight]
    useless = [key for key in class_weight if key not in classes]
    texts = []
    if missing:
        texts.append(
            f"`class_weight` has no entry for {missing[:10]}: such examples get weight "
            "1, as in Keras."
        )
    if useless:
        texts.append(
            f"`class_weight` has entries for {useless[:10]}, which have no effect: y "
            f"has only the classes {classes[:10]}{', ...' if classes[10:] else ''}."
        )
    if texts:
        warn(" ".join(texts))


def labels_of(y: np.ndarray, loss: Any = None) -> np.ndarray:
    """Returns the class indices in y, which are rounded if they are floats.

    Args:
        y: `[n, ...]` class indices, with or without a last axis of length 1, or
            `[n, ..., classes]`, one-hot or other shares of the classes. If neither the
            loss nor rows that sum to 1 tell, floats and zeros and ones of two axes are
            taken for the second kind, as in Keras, so that the first of several labels
            of a row counts.
        loss: as compiled, or `None`.

    Example:
        >>> labels_of(np.array([[0.0, 1.0], [1.0, 0.0]]))
        array([1, 0])
        >>> labels_of(np.array([[0, 2], [3, 0]]), "sparse_categorical_crossentropy")
        array([[0, 2],
               [3, 0]])
    """
    if y.ndim > 1 and y.shape[-1] == 1:
        return y[..., 0]
    return y.argmax(axis=-1) if _has_class_axis(y, loss) else y


def require_labels_of_keras(y: Any, loss: Any, class_weight: Any) -> None:
    """Raises unless Keras reads the classes in y as `labels_of` does.

    Args:
        y: targets of a batch, which may have several parts.
        loss: as compiled, or `None`.
        class_weight: as in `fit`; `None` needs no classes.
    """
    if class_weight is None:
        return
    refuse([_problem_of_kind(class_weight)])
    wide = isinstance(y, np.ndarray) and y.ndim > 1 and y.shape[-1] != 1
    if wide and not _has_class_axis(y, loss):
        raise ValueError(
            "With `class_weight`, a stream's targets must be one class index for each "
            "example, or have a last axis of length 1: Keras takes any other for "
            f"one-hot. Received: class indices in batches of shape {y.shape}. Add an "
            "axis, as by `dataset.map(lambda x, y: (x, y[..., tf.newaxis]))`."
        )


def _has_class_axis(y: np.ndarray, loss: Any) -> bool:
    """Returns whether the last axis of y is that of the classes."""
    name = _name_of(loss)
    if y.ndim == 1 or name in _LOSSES_OF_INDICES:
        return False
    if name in _LOSSES_OF_SHARES or all(map(_are_shares, (p for _, p in parts_of(y)))):
        return True
    return y.ndim == 2 and bool(y.dtype.kind not in "iu" or y.max() <= 1)


def _are_shares(rows: np.ndarray) -> bool:
    off = rows.sum(axis=-1, dtype=np.float64) - 1.0
    return bool((rows >= 0).all() and (np.abs(off) < 1e-3).all())


def _name_of(loss: Any) -> str:
    """Returns the name of a single loss of Keras, in small letters; else ""."""
    leaves = keras.tree.flatten(loss)
    loss = leaves[0] if len(leaves) == 1 else ""
    loss = getattr(loss, "fn", loss)  # Keras' losses call a function
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", "")
    return name.lower().replace("_", "")
