"""The arrays given to `fit`: checked, split and described before the first step."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base.refusals import NO_EXAMPLES, Refusals, refuse
from keras_osgd.data.arrays import as_array, parts_of
from keras_osgd.data.identity import Identity, in_memory
from keras_osgd.data.indexed_examples import Indexed
from keras_osgd.data.record_columns import Column
from keras_osgd.data.row_hashes import row_hashes
from keras_osgd.data.rows import Rows
from keras_osgd.data.uneven_columns import Uneven, is_uneven, uneven
from keras_osgd.data.weights import (
    checked_weights,
    leaves_of,
    require_weights,
    with_class_weight,
)

__all__ = [
    "PROBES",
    "TrainingData",
    "checked",
    "held_out",
    "inputs",
    "prepare",
    "refuse_beside_dataset",
    "sizes",
    "split",
    "targets_held_out",
]

PROBES = 64
_MOST_CLASSES = 10_000
_SOURCES = (
    "Importance sampling needs random access to a finite set: pass arrays or "
    "tensors (lists, tuples and dicts of them too), a finite `tf.data.Dataset` or "
    "`PyDataset`, what `keras_osgd.data.indexed` or `.records` return, or compile with "
    "`sampling=keras_osgd.sampling.Presample(ratio=4)`, which draws from what a stream "
    'gives next, or with sampling="uniform" for Keras\' own training.'
)


class TrainingData(NamedTuple):
    """Arrays, batch size and augmentation that `fit` trains with.

    Attributes:
        arrays: (x, y, sample_weight) as NumPy arrays or columns in tuples and dicts;
            `None` for missing weights.
        n: number of examples.
        batch_size: m.
        transform: see `data.Indexed.transform`.
    """

    arrays: tuple[Any, Any, Any]
    n: int
    batch_size: int
    transform: Callable | None = None

    def batch(self, rows: slice | np.ndarray) -> tuple[Any, Any, Any]:
        """Returns examples as tensors; `transform` gets the same seeds every time."""
        taken = keras.tree.map_structure(
            lambda a: None if a is None else _tensor(a[rows]), self.arrays
        )
        if self.transform is None:
            return taken
        order = np.arange(self.n)[rows]
        return self.transform(taken, tf.stack([tf.zeros_like(order), order], axis=1))

    def classes(self) -> np.ndarray | None:
        """Returns each example's class from 0 on, or `None` where y has no classes.

        Classes are integer labels `[n]` or `[n, 1]`, zeros and ones of any type, and
        one-hot rows.
        """
        y, *others = keras.tree.flatten(self.arrays[1])
        if others or y is None or y.dtype.kind not in "iubf":
            return None
        binary = _all(y, lambda part: (part == 0) | (part == 1))
        if y.ndim == 2 and y.shape[1] > 1:
            one_hot = binary and _all(y, lambda part: part.sum(axis=1) == 1)
            return y.argmax(axis=1) if one_hot else None
        if y.size != len(y) or (y.dtype.kind == "f" and not binary):
            return None
        low = int(y.min())
        few = int(y.max()) - low < min(_MOST_CLASSES, max(2, len(y)))
        return y.ravel().astype(np.int64) - low if few else None

    def fingerprint(self) -> str:
        """Returns a hash of n, shapes, dtypes and 64 fixed rows."""
        digest = hashlib.sha256(str(self.n).encode())
        probes = _probed(self.n)
        for leaf in leaves_of(self.arrays):
            digest.update(f"{leaf.shape[1:]}{leaf.dtype}".encode())
            digest.update(_bytes(leaf, probes))
        return digest.hexdigest()

    def identity(self) -> Identity:
        """Returns what the data are known by; a thread hashes all rows in memory.

        The data must not be changed before the identity's `wait` has returned.
        """
        leaves, read = leaves_of(self.arrays), []
        kind = hashlib.sha256(str(self.n).encode())
        for leaf in leaves:
            kind.update(f"{leaf.shape[1:]}{leaf.dtype}".encode())
            if in_memory(leaf):
                read.append(leaf)
            else:  # as where they are on a disk: 64 rows tell
                kind.update(_bytes(leaf, _probed(self.n)))

        def hashes() -> np.ndarray:
            if not read:
                return np.zeros(self.n, np.uint32)
            return (row_hashes(read) >> np.uint64(32)).astype(np.uint32)

        whole = len(read) == len(leaves)
        return Identity(self.fingerprint(), kind.hexdigest(), hashes, whole)

    def columns(self) -> dict[str, str]:
        """Returns each column's type and the shape of its rows, if that is not ()."""
        found = {}
        for name, part in zip(("x", "y", "sample_weight"), self.arrays, strict=True):
            leaves = leaves_of(part)
            for order, leaf in enumerate(leaves):
                key = name if len(leaves) == 1 else f"{name} {order}"
                shape = tuple(leaf.shape[1:])
                found[key] = f"{leaf.dtype} {shape}" if shape else f"{leaf.dtype}"
        return found

    def probes(self) -> np.ndarray:
        """Returns `[64]` uint64: hashes of fixed rows, to tell how many changed."""
        leaves, hashes = leaves_of(self.arrays), []
        for row in _probed(self.n):
            digest = hashlib.sha256()
            for leaf in leaves:
                digest.update(_bytes(leaf, row))
            hashes.append(int.from_bytes(digest.digest()[:8], "big"))
        return np.array(hashes, np.uint64)


def _probed(n: int) -> np.ndarray:
    return np.linspace(0, n - 1, PROBES).astype(np.int64)


def held_out(arrays: tuple, beside: TrainingData, batch_size: int) -> Any:
    """Returns the validation data of `split` in a form that Keras takes.

    Keras copies arrays, so if they and the training data are large together, they
    become batches that are read in place. Strings become tensors, since Keras takes no
    arrays of strings.
    """
    leaves = leaves_of(arrays)
    dense = all(isinstance(leaf, np.ndarray) for leaf in leaves)
    if dense and Rows.reads_in_place((beside.arrays, arrays)):
        take = tf.autograph.experimental.do_not_convert(Rows(arrays, in_place=True))
        return tf.data.Dataset.range(len(leaves[0])).batch(batch_size).map(take)
    return keras.tree.map_structure(
        lambda leaf: _tensor(leaf) if _is_text(leaf) else leaf, arrays
    )


def targets_held_out(validation_data: Any) -> Any:
    """Returns y of validation arrays as NumPy's; `None` for data that must be read.

    Args:
        validation_data: as in `keras.Model.fit`.
    """
    if not isinstance(validation_data, tuple | list) or len(validation_data) < 2:
        return None
    y = validation_data[1]
    leaves = leaves_of(y)
    if not leaves or not all(hasattr(leaf, "__array__") for leaf in leaves):
        return None
    return _as_columns(y)


def _all(array: np.ndarray, test: Callable[[np.ndarray], np.ndarray]) -> bool:
    return all(test(part).all() for _, part in parts_of(array))


def _is_text(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind in "OSU"


def _tensor(rows: Any) -> Any:
    return tf.convert_to_tensor(rows) if isinstance(rows, np.ndarray) else rows


def _bytes(leaf: Any, rows: Any) -> bytes:
    """Returns the rows' content; `tobytes` of strings would give their addresses."""
    if isinstance(leaf, Uneven):
        return b"".join(part.tobytes() for part in leaf.take(np.atleast_1d(rows)))
    rows = np.asarray(leaf[rows])
    return repr(rows.tolist()).encode() if rows.dtype.hasobject else rows.tobytes()


def prepare(
    x: Any,
    y: Any,
    sample_weight: Any,
    class_weight: Mapping[int, float] | None,
    batch_size: int | None,
    steps_per_epoch: int | None,
    loss: Any = None,
) -> TrainingData:
    """Returns checked training data; class weights become sample weights.

    Args:
        x: nested arrays or tensors, as in `keras.Model.fit`, or `Indexed`.
        y: nested arrays; `None` with `Indexed`, which holds its own.
        sample_weight: likewise.
        class_weight: weight of each class; 1 where a class is missing. Multiplies
            `sample_weight`; Keras itself refuses both together.
        batch_size: m; `None` means 32, or n / `steps_per_epoch`.
        steps_per_epoch: as in `keras.Model.fit`.
        loss: as compiled: it tells how to read the classes of `class_weight` in y.

    Raises:
        ValueError: if the data are not arrays, have no example or no y, or differ in
            length, or if weights are not nested as y is, are negative or not finite.
            If only weights are at fault, `Refused.found` holds the data.
    """
    transform = None
    if isinstance(x, Indexed):
        refuse_beside_dataset(y, sample_weight)
        transform, batch_size = x.transform, batch_size or x.batch_size
        x, y, sample_weight = x.arrays
    arrays, n = checked(x, y, sample_weight)
    if y is None:
        raise ValueError(
            "`y` must be given: an example's importance comes from its own loss. "
            'Received: y=None. Pass targets; sampling="uniform" trains without.'
        )
    refusals = Refusals()
    x, y, weights = arrays
    require_weights(x, y, weights)
    weights = refusals.tried(checked_weights, weights, y)
    if class_weight is not None:
        weights = refusals.tried(with_class_weight, y, weights, class_weight, loss)
    if not batch_size:
        batch_size = math.ceil(n / steps_per_epoch) if steps_per_epoch else 32
    data = TrainingData((x, y, weights), n, int(batch_size), transform)
    refusals.end(found=data)
    return data


def inputs(x: Any) -> TrainingData:
    """Returns inputs, arrays or `Indexed`, as data to run through a model."""
    if isinstance(x, Indexed):
        return TrainingData(x.arrays, len(x), 1, x.transform)
    arrays, n = checked(x, None, None)
    return TrainingData(arrays, n, 1)


def sizes(
    x: Any, size: int | None, validation_split: float
) -> tuple[int | None, int | None]:
    """Returns n and m of a `fit` by Keras alone; `None` where a dataset decides.

    Args:
        x: as in `fit`.
        size: `batch_size`, as in `fit`.
        validation_split: as in `fit`.
    """
    if isinstance(x, Indexed):
        return len(x), size or x.batch_size or 32
    leaf = (keras.tree.flatten(x) or [None])[0]
    n = leaf.shape[0] if len(getattr(leaf, "shape", ())) else None
    if n is None:  # as in Keras, `batch_size` does not count there
        return None, None
    return math.floor(n * (1.0 - (validation_split or 0.0))), size or 32


def refuse_beside_dataset(
    y: Any = None, sample_weight: Any = None, validation_split: float | None = None
) -> None:
    """Raises for what is given with a dataset, or with examples read from one."""
    problems = [
        f"`{name}` must not be given with a dataset, which has it in itself, or with "
        f"examples read from one. Received: {name} of type {type(other).__name__}. "
        "Leave it out."
        for name, other in (("y", y), ("sample_weight", sample_weight))
        if other is not None
    ]
    if validation_split:
        problems.append(
            "`validation_split` must be of arrays. Received: it with a dataset. Split "
            "the dataset by `take` and `skip` and pass `validation_data`."
        )
    refuse(problems)


def split(
    x: Any, y: Any, sample_weight: Any, validation_split: float
) -> tuple[tuple[Any, Any, Any], tuple]:
    """Splits off the last examples for validation, at the row where Keras does.

    Returns:
        ((x, y, sample_weight), validation data in the form that `fit` takes).
    """
    if isinstance(x, Indexed | tf.data.Dataset | keras.utils.PyDataset | Iterator):
        refuse_beside_dataset(validation_split=validation_split)
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
    refuse(_problem_of_source(name, part) for name, part in parts.items())
    arrays = {name: _as_columns(part) for name, part in parts.items()}
    return tuple(arrays.values()), _check_lengths(arrays)


def _problem_of_source(name: str, part: Any) -> str | None:
    leaves = leaves_of(part)
    missing = name == "x" and not leaves
    columns = [leaf for leaf in leaves if is_uneven(leaf)]
    if missing or not all(is_uneven(a) or hasattr(a, "__array__") for a in leaves):
        return f"`{name}` must be arrays. Received: {type(part).__name__}. {_SOURCES}"
    if columns and name != "x":
        return (
            f"`{name}` must be dense. Received: {type(columns[0]).__name__}. Only x "
            "may be ragged or sparse: pad it with `.to_tensor()` or make it dense."
        )
    return None


def _as_columns(part: Any) -> Any:
    """Returns NumPy arrays or columns in tuples, which Keras' own `fit` takes."""

    def convert(leaf: Any) -> np.ndarray | Column | Uneven | None:
        if leaf is None or isinstance(leaf, Column):
            return leaf
        column = uneven(leaf)
        return as_array(leaf) if column is None else column

    # tf.data would stack a list into one tensor.
    return keras.tree.lists_to_tuples(keras.tree.map_structure(convert, part))


def _check_lengths(arrays: dict[str, Any]) -> int:
    lengths = [
        (name, len(leaf) if leaf.ndim else 0)
        for name, part in arrays.items()
        for leaf in leaves_of(part)
    ]
    first, n = lengths[0]
    refuse(
        f"{first} has {n} examples but {other} has {length}. All arrays must have the "
        "same length: check how they were cut or joined."
        for other, length in lengths
        if length != n
    )
    if n == 0:
        raise ValueError(NO_EXAMPLES)
    return n
