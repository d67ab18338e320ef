"""The arrays given to `fit`: checked, split and described before the first step."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

__all__ = ["TrainingData", "checked", "prepare", "split"]

_PROBES = 64
_MOST_CLASSES = 10_000
_SOURCES = (
    "Importance sampling needs random access to a finite set: pass NumPy arrays or "
    "tensors (lists, tuples and dicts of them too), or compile with "
    'sampling="uniform" for Keras\' own training.'
)


class TrainingData(NamedTuple):
    """What `fit` trains on.

    Attributes:
        arrays: (x, y, sample_weight) as NumPy arrays in tuples and dicts; `None`
            without weights.
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
        y, *others = keras.tree.flatten(self.arrays[1])
        if others or y is None or y.dtype.kind not in "iubf":
            return None
        binary = ((y == 0) | (y == 1)).all()
        if y.ndim == 2 and y.shape[1] > 1:
            one_hot = binary and (y.sum(axis=1) == 1).all()
            return y.argmax(axis=1) if one_hot else None
        if y.size != len(y) or (y.dtype.kind == "f" and not binary):
            return None
        low = int(y.min())
        few = int(y.max()) - low < min(_MOST_CLASSES, max(2, len(y)))
        return y.ravel().astype(np.int64) - low if few else None

    def fingerprint(self) -> str:
        """Returns a hash of n, shapes, dtypes and 64 fixed rows."""
        digest = hashlib.sha256(str(self.n).encode())
        probes = np.linspace(0, self.n - 1, _PROBES).astype(np.int64)
        for leaf in _leaves(self.arrays):
            digest.update(f"{leaf.shape[1:]}{leaf.dtype}".encode())
            rows = leaf[probes]
            # The bytes of an object, such as a string, are but its address.
            objects = repr(rows.tolist()).encode() if rows.dtype.hasobject else b""
            digest.update(objects or rows.tobytes())
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
        x: nested arrays or tensors, as in `keras.Model.fit`.
        y: likewise.
        sample_weight: likewise.
        class_weight: weight of each class; 1 where a class is missing. Multiplies
            `sample_weight`, where Keras refuses to take both.
        batch_size: m; `None` means 32, or n / `steps_per_epoch`.
        steps_per_epoch: as in `keras.Model.fit`.

    Raises:
        ValueError: if the data are no arrays, have no example, the lengths differ, or
            weights have another structure than y, are negative or not finite.
    """
    arrays, n = checked(x, y, sample_weight)
    if y is None:
        raise ValueError(
            "`y` must be given: an example's importance comes from its own loss. "
            'Received: y=None. Pass targets, or compile with sampling="uniform".'
        )
    _check_weights(arrays[2], arrays[1])
    if class_weight is not None:
        arrays = (*arrays[:2], _with_class_weight(*arrays[1:], class_weight))
    if not batch_size:
        batch_size = math.ceil(n / steps_per_epoch) if steps_per_epoch else 32
    return TrainingData(arrays, n, int(batch_size))


def split(
    x: Any, y: Any, sample_weight: Any, validation_split: float
) -> tuple[tuple[Any, Any, Any], tuple]:
    """Splits off the last examples for validation, at the row where Keras does.

    Returns:
        ((x, y, sample_weight), validation data as `fit` takes it).
    """
    arrays, n = checked(x, y, sample_weight)
    at = math.floor(n * (1.0 - validation_split))
    if at in (0, n):
        raise ValueError(
            "`validation_split` must leave examples on both sides. Received: "
            f"validation_split={validation_split} with {n} examples. Change either."
        )

    def rows(part: slice) -> Any:
        return keras.tree.map_structure(lambda a: a if a is None else a[part], arrays)

    validation = rows(slice(at, None))
    return rows(slice(at)), validation[: 3 if sample_weight is not None else 2]


def checked(x: Any, y: Any, sample_weight: Any) -> tuple[tuple[Any, Any, Any], int]:
    """Returns (x, y, sample_weight) as NumPy arrays of equal length, and the length."""
    parts = {"x": x, "y": y, "sample_weight": sample_weight}
    for name, part in parts.items():
        _check_source(name, part)
    arrays = {name: _to_numpy(part) for name, part in parts.items()}
    return tuple(arrays.values()), _check_lengths(arrays)


def _leaves(structure: Any) -> list[Any]:
    return [leaf for leaf in keras.tree.flatten(structure) if leaf is not None]


def _check_source(name: str, part: Any) -> None:
    if isinstance(part, tf.data.Dataset):
        kind = {-1: "infinite", -2: "of unknown length"}.get(int(part.cardinality()))
        raise ValueError(
            f"The dataset is {kind or 'a tf.data pipeline'}. {_SOURCES} For tensors of "
            "its first n examples write `x, y = next(iter(dataset.batch(n)))`, with "
            "`.unbatch()` before `.batch(n)` if it consists of batches."
        )
    leaves = _leaves(part)
    missing = name == "x" and not leaves
    if missing or not all(hasattr(leaf, "__array__") for leaf in leaves):
        raise ValueError(
            f"`{name}` must be arrays. Received: {type(part).__name__}. {_SOURCES}"
        )


def _to_numpy(part: Any) -> Any:
    """Returns NumPy arrays, floats as `floatx`, in tuples, as Keras' own `fit` does."""

    def convert(leaf: Any) -> np.ndarray | None:
        if leaf is None:
            return None
        array = np.asarray(leaf)
        if array.dtype.name.startswith(("float", "bfloat")):
            array = array.astype(keras.config.floatx(), copy=False)
        return array

    # tf.data would stack a list into one tensor.
    return keras.tree.lists_to_tuples(keras.tree.map_structure(convert, part))


def _check_lengths(arrays: dict[str, Any]) -> int:
    lengths = [
        (name, len(leaf) if leaf.ndim else 0)
        for name, part in arrays.items()
        for leaf in _leaves(part)
    ]
    first, n = lengths[0]
    for other, length in lengths:
        if length != n:
            raise ValueError(
                f"{first} has {n} examples but {other} has {length}. All arrays must "
                "have the same length: check how they were cut or joined."
            )
    if n == 0:
        raise ValueError(
            "The training data has 0 examples. Check the filter or path that "
            "produced it."
        )
    return n


def _check_weights(sample_weight: Any, y: Any) -> None:
    if keras.tree.is_nested(sample_weight):
        try:
            keras.tree.assert_same_structure(y, sample_weight)
        except (ValueError, TypeError) as error:
            raise ValueError(
                "`sample_weight` must be one array, or nested as y is. Received: "
                f"{type(sample_weight).__name__} of {len(sample_weight)} where y is "
                f"{type(y).__name__} of {len(y)}. Pass one array for each target."
            ) from error
    for leaf in _leaves(sample_weight):
        bad = ~(leaf >= 0) | ~np.isfinite(leaf)
        if bad.any():
            index = int(np.argwhere(bad)[0][0])
            raise ValueError(
                "`sample_weight` must be finite and not negative. Received: "
                f"sample_weight[{index}]={leaf[index]}. Drop such examples or give "
                "them weight 0."
            )


def _with_class_weight(y, sample_weight, class_weight) -> np.ndarray:
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
        warnings.warn(
            f"`class_weight` has no entry for {missing[:10]}: such examples get weight "
            "1, as in Keras.",
            stacklevel=4,
        )
    table = [class_weight.get(int(label), 1.0) for label in classes]
    weights = np.asarray(table, keras.config.floatx())[positions.reshape(labels.shape)]
    _check_weights(weights, y)
    if sample_weight is None:
        return weights
    fewer, more = sorted((weights, sample_weight), key=np.ndim)
    return more * fewer.reshape(fewer.shape + (1,) * (more.ndim - fewer.ndim))
