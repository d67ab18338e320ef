"""The arrays given to `fit`: checked, split and described before the first step."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

__all__ = ["TrainingData", "prepare", "split"]

_PROBES = 64
_MOST_CLASSES = 10_000
_SOURCES = (
    "Importance sampling needs random access to a finite set: pass NumPy arrays or "
    "tensors (tuples and dicts of them too), load the data into arrays first, or "
    'compile with sampling="uniform" for Keras\' own training'
)


class TrainingData(NamedTuple):
    """What `fit` trains on.

    Attributes:
        arrays: (x, y, sample_weight) as nested NumPy arrays; `None` without weights.
        n: number of examples.
        batch_size: m.
    """

    arrays: tuple[Any, Any, Any]
    n: int
    batch_size: int

    def rows(self, count: int) -> tuple[Any, Any, Any]:
        """Returns the first `count` examples as tensors."""
        return keras.tree.map_structure(
            lambda a: None if a is None else tf.convert_to_tensor(a[:count]),
            self.arrays,
        )

    def classes(self) -> np.ndarray | None:
        """Returns each example's class from 0 on, or `None` where y has no classes.

        Classes are integer labels `[n]` or `[n, 1]`, zeros and ones of any type, and
        one-hot rows.
        """
        y = self.arrays[1]
        if not isinstance(y, np.ndarray) or y.dtype.kind not in "iubf":
            return None
        if y.ndim == 2 and y.shape[1] > 1:
            one_hot = ((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all()
            return y.argmax(axis=1) if one_hot else None
        if y.size != len(y):
            return None
        y = y.ravel()
        if y.dtype.kind == "f" and not ((y == 0) | (y == 1)).all():
            return None
        low, high = int(y.min()), int(y.max())
        few = high - low < min(_MOST_CLASSES, max(2, len(y)))
        return y.astype(np.int64) - low if few else None

    def fingerprint(self) -> str:
        """Returns a hash of n, shapes, dtypes and 64 fixed rows."""
        digest = hashlib.sha256(str(self.n).encode())
        probes = np.linspace(0, self.n - 1, _PROBES).astype(np.int64)
        for leaf in keras.tree.flatten(self.arrays):
            if leaf is not None:
                digest.update(f"{leaf.shape[1:]}{leaf.dtype}".encode())
                digest.update(np.ascontiguousarray(leaf[probes]).tobytes())
        return digest.hexdigest()


def prepare(
    x: Any,
    y: Any,
    sample_weight: Any,
    class_weight: Mapping[int, float] | None,
    batch_size: int | None,
    steps_per_epoch: int | None,
) -> TrainingData:
    """Returns checked training data; class weights become sample weights.

    Args:
        x, y, sample_weight: nested arrays or tensors, as in `keras.Model.fit`.
        class_weight: weight of each class; 1 where a class is missing. Multiplies
            `sample_weight`, where Keras refuses to take both.
        batch_size: m; `None` means 32, or n / `steps_per_epoch`.
        steps_per_epoch: as in `keras.Model.fit`.

    Raises:
        ValueError: if x is no array, has no example, the lengths differ, or a weight is
            negative or not finite.
    """
    _check_source(x)
    if y is None:
        raise ValueError(
            "`y` must be given: an example's importance comes from its own loss. "
            'Received: y=None. Pass targets, or compile with sampling="uniform".'
        )
    arrays = tuple(_to_numpy(part) for part in (x, y, sample_weight))
    n = _check_lengths(arrays)
    _check_weights(arrays[2])
    if class_weight is not None:
        arrays = (*arrays[:2], _with_class_weight(arrays, class_weight))
    if not batch_size:
        batch_size = math.ceil(n / steps_per_epoch) if steps_per_epoch else 32
    return TrainingData(arrays, n, int(batch_size))


def split(x: Any, y: Any, sample_weight: Any, validation_split: float):
    """Splits off the last examples for validation, at the row where Keras does.

    Returns:
        ((x, y, sample_weight), validation data as `fit` takes it).
    """
    _check_source(x)
    arrays = tuple(_to_numpy(part) for part in (x, y, sample_weight))
    n = _check_lengths(arrays)
    at = math.floor(n * (1.0 - validation_split))
    if at in (0, n):
        raise ValueError(
            "`validation_split` must leave examples on both sides. Received: "
            f"validation_split={validation_split} with {n} examples. Provide more data "
            "or another value."
        )

    def rows(part: slice):
        return keras.tree.map_structure(
            lambda a: None if a is None else a[part], arrays
        )

    validation = rows(slice(at, None))
    return rows(slice(at)), validation[: 3 if sample_weight is not None else 2]


def _check_source(x: Any) -> None:
    if isinstance(x, tf.data.Dataset):
        cardinality = int(x.cardinality())
        kind = {-1: "infinite", -2: "of unknown length"}.get(cardinality)
        received = "The dataset is " + (kind or f"a tf.data pipeline of {cardinality}")
        remedy = ""
        if kind:
            remedy = (
                "; `dataset.take(n)` makes a finite one, which arrays can be read from"
            )
        raise ValueError(f"{received}. {_SOURCES}{remedy}.")
    arrays = keras.tree.flatten(x)
    if isinstance(x, keras.utils.PyDataset) or not all(map(_is_array, arrays)):
        raise ValueError(
            f"`x` must be arrays. Received: {type(x).__name__}. {_SOURCES}."
        )


def _is_array(leaf: Any) -> bool:
    return leaf is None or hasattr(leaf, "__array__")


def _to_numpy(part: Any) -> Any:
    def convert(leaf: Any) -> np.ndarray | None:
        if leaf is None:
            return None
        array = np.asarray(leaf)
        if array.dtype.kind == "f" and array.dtype.itemsize > 2:
            array = array.astype(keras.config.floatx(), copy=False)
        return array

    return keras.tree.map_structure(convert, part)


def _check_lengths(arrays: tuple[Any, Any, Any]) -> int:
    names = ("x", "y", "sample_weight")
    lengths = {
        (name, len(leaf) if leaf.ndim else 0)
        for name, part in zip(names, arrays, strict=True)
        for leaf in keras.tree.flatten(part)
        if leaf is not None
    }
    if len({length for _, length in lengths}) > 1:
        (first, a), *others = sorted(lengths, key=lambda item: names.index(item[0]))
        other, b = next(item for item in others if item[1] != a)
        raise ValueError(
            f"{first} has {a} examples but {other} has {b}. All arrays must have the "
            "same length: check how they were cut or joined."
        )
    n = next(iter(lengths))[1]
    if n == 0:
        raise ValueError(
            "The training data has 0 examples. Check the filter or path that produced it."
        )
    return n


def _check_weights(sample_weight: Any) -> None:
    for leaf in keras.tree.flatten(sample_weight):
        if leaf is None:
            continue
        bad = ~(leaf >= 0) | ~np.isfinite(leaf)
        if bad.any():
            index = int(np.argwhere(bad)[0][0])
            raise ValueError(
                "`sample_weight` must be finite and not negative. Received: "
                f"sample_weight[{index}]={leaf[index]}. Drop such examples or give them "
                "weight 0."
            )


def _with_class_weight(arrays, class_weight: Mapping[int, float]) -> np.ndarray:
    _, y, sample_weight = arrays
    if not isinstance(y, np.ndarray):
        raise ValueError(
            "`class_weight` must go with a single output. Received: y of type "
            f"{type(y).__name__}. Pass `sample_weight` for each output instead."
        )
    labels = y
    if y.ndim > 1:
        labels = y.argmax(axis=-1) if y.shape[-1] != 1 else y[..., 0]
    classes, positions = np.unique(np.round(labels), return_inverse=True)
    table = [class_weight.get(int(label), 1.0) for label in classes]
    weights = np.asarray(table, keras.config.floatx())[positions.reshape(labels.shape)]
    _check_weights(weights)
    if sample_weight is None:
        return weights
    extra = sample_weight.ndim - weights.ndim
    return sample_weight * weights.reshape(weights.shape + (1,) * max(extra, 0))
