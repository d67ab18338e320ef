"""Examples read once, batch after batch, into memory or into files."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, NamedTuple

import numpy as np

from keras_osgd.base.directory_lock import locked
from keras_osgd.base.files import created, write_whole
from keras_osgd.data.uneven_columns import Uneven

__all__ = ["Spec", "in_memory", "kept_in", "on_disk", "too_large"]

ColumnArray = np.ndarray | Uneven
_MANIFEST = "examples.json"
_VERSION = 1


class Spec(NamedTuple):
    """Type and shape of all rows of a column.

    Attributes:
        dtype: name of NumPy's type.
        shape: of one row.
    """

    dtype: str
    shape: tuple[int, ...]


def _spec_of(leaf: ColumnArray) -> Spec:
    return Spec(leaf.dtype.name, tuple(leaf.shape[1:]))


def in_memory(
    batches: Iterable[Sequence[ColumnArray]], limit: int
) -> list[ColumnArray]:
    """Returns the columns of all batches, each in one array.

    Args:
        batches: of columns, `[k, ...]` each, with any k.
        limit: most bytes that all columns may have together.

    Raises:
        ValueError: if they have more, or rows are not of one shape and type.

    Example:
        >>> in_memory([[np.zeros(2)], [np.ones(1)]], limit=100)
        [array([0., 0., 1.])]
    """
    held: list[Sequence[ColumnArray]] = []
    size = 0
    for leaves in _alike(batches):
        size += sum(leaf.nbytes for leaf in leaves)
        if size > limit:
            raise ValueError(too_large(limit))
        held.append(leaves)
    return [
        column[0].joined(column)
        if isinstance(column[0], Uneven)
        else np.concatenate(column)
        for column in zip(*held, strict=True)
    ]


def too_large(limit: int) -> str:
    """Returns the error for more than `limit` bytes of examples."""
    return (
        f"The examples must fit into memory_limit={limit} bytes. Received: more. Call "
        "`keras_osgd.data.indexed(dataset, cache=directory)`, which keeps them on disk "
        "and reads them from there, or raise `memory_limit`."
    )


def on_disk(
    batches: Iterable[Sequence[ColumnArray]], directory: pathlib.Path
) -> list[ColumnArray]:
    """Writes the columns into files, and returns them as arrays read from there.

    Args:
        batches: of columns, `[k, ...]` each, with any k.
        directory: made if missing. Its manifest is written last: after a kill,
            `kept_in` finds nothing.

    Raises:
        ValueError: if rows are not of one shape and type, not dense or not numbers.
        OSError: if a file cannot be written.
        RuntimeError: if another process is writing there.
    """
    with locked(directory):
        return _written(batches, directory)


def _written(
    batches: Iterable[Sequence[ColumnArray]], directory: pathlib.Path
) -> list[ColumnArray]:
    (directory / _MANIFEST).unlink(missing_ok=True)
    files: list[IO[bytes]] = []
    specs: list[Spec] = []
    n = 0
    try:
        for leaves in _alike(batches):
            specs = [_spec_of(leaf) for leaf in leaves]
            _refuse_on_disk(leaves)
            names = [_path(directory, order) for order in range(len(leaves))]
            files = files or [created(name) for name in names]
            for file, leaf in zip(files, leaves, strict=True):
                file.write(np.ascontiguousarray(leaf).data)
            n += len(leaves[0]) if leaves else 0
    finally:
        for file in files:
            file.close()
    manifest = {"version": _VERSION, "n": n, "columns": specs}
    write_whole(directory / _MANIFEST, json.dumps(manifest))
    return _read(directory, n, specs)


def _refuse_on_disk(leaves: Sequence[ColumnArray]) -> None:
    if any(isinstance(leaf, Uneven) for leaf in leaves):
        raise ValueError(
            "Columns on disk must be dense. Received: ragged or sparse tensors. Write "
            "`.to_tensor(shape=...)` or `tf.sparse.to_dense` in the dataset, or leave "
            "`cache` out."
        )
    if any(leaf.dtype.hasobject for leaf in leaves):
        raise ValueError(
            "Columns on disk must be numbers. Received: strings. Turn them into "
            "numbers in the dataset, or leave `cache` out."
        )


def kept_in(directory: pathlib.Path) -> list[ColumnArray] | None:
    """Returns the columns that `on_disk` wrote there, or `None` if there are none."""
    path = directory / _MANIFEST
    if not path.exists():
        return None
    manifest = json.loads(path.read_text())
    specs = [Spec(dtype, tuple(shape)) for dtype, shape in manifest["columns"]]
    return _read(directory, manifest["n"], specs)


def _read(directory: pathlib.Path, n: int, specs: Sequence[Spec]) -> list[ColumnArray]:
    return [
        # Nobody writes to them; mode "c" since TensorFlow asks for writable arrays.
        np.memmap(_path(directory, order), spec.dtype, "c", shape=(n, *spec.shape))
        if n
        else np.zeros((0, *spec.shape), spec.dtype)
        for order, spec in enumerate(specs)
    ]


def _path(directory: pathlib.Path, order: int) -> pathlib.Path:
    return directory / f"column-{order}.raw"


def _alike(batches: Iterable[Sequence[ColumnArray]]) -> Iterator[list[ColumnArray]]:
    """Yields the batches; raises at one that is unlike the first in type or shape."""
    first: list[Spec] | None = None
    for leaves in map(list, batches):
        specs = [_spec_of(leaf) for leaf in leaves]
        first = first or specs
        if specs != first:
            raise ValueError(
                "All examples must have one shape and type. Received: "
                f"{_listed(first)}, then {_listed(specs)}. Pad or crop them in the "
                "dataset."
            )
        yield leaves


def _listed(specs: Sequence[Spec]) -> str:
    return ", ".join(f"{spec.dtype}{list(spec.shape)}" for spec in specs)
