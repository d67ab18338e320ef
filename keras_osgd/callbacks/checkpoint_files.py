"""Checkpoints on disk: written whole or not at all, and only read if intact."""

from __future__ import annotations

import hashlib
import io
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_osgd.base.directory_lock import DirectoryLock
from keras_osgd.base.files import whole
from keras_osgd.base.replicas import Share, share_of
from keras_osgd.base.warn import warn
from keras_osgd.base.workers import told_by_all

__all__ = [
    "VERSION",
    "Saved",
    "Written",
    "claimed",
    "complete",
    "delete_old",
    "discard",
    "newest",
    "next_number",
    "place_of",
    "put_arrays",
    "write",
]

VERSION = 1  # of the format; files of earlier versions load too
_NAME = re.compile(
    r"checkpoint-(\d{8})(?:\.worker-\d+)?\.(?:npz|json)(?:(?:\.[0-9a-f]{8})?\.part)?"
)
_DETAILS = "details"
_UNSEEN = "not every worker sees it"
_RAW = "raw:"  # prefix to the name of an array whose dtype NumPy cannot write


class Saved(NamedTuple):
    """The content of a checkpoint.

    Attributes:
        path: file of the arrays.
        arrays: nested dictionaries of arrays.
        details: numbers and texts, as JSON keeps them.
        passed_over: paths of later ones that are damaged or cannot be used.
        parts: those of the other workers, by rank, as far as they were wanted.
    """

    path: pathlib.Path
    arrays: dict[str, Any]
    details: dict[str, Any]
    passed_over: tuple[pathlib.Path, ...] = ()
    parts: Mapping[int, Saved] = {}

    @property
    def workers(self) -> int:
        """Number of workers that wrote it together."""
        return self.details.get("workers", 1)


class Written(NamedTuple):
    """Arrays on the disk, which are no checkpoint before `complete`.

    Attributes:
        path: of the arrays.
        marker: size and SHA-256 of the file.
    """

    path: pathlib.Path
    marker: dict[str, Any]


class _Hashed(io.RawIOBase):
    """A file hashed while it is written, so that damage on the disk is noticed.

    It cannot seek; `zipfile` then writes without seeking.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest, self.size = file, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size += memoryview(data).nbytes
        return self._file.write(data)


def claimed(directory: pathlib.Path) -> DirectoryLock:
    """Makes the directory if it is missing, and takes it for one writer.

    Raises:
        ValueError: if no files can be written into it.
        RuntimeError: if another writer, of this process or another, has it.
    """
    lock = DirectoryLock(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise ValueError(
            "The directory of checkpoints must be one to write into. Received: "
            f"{directory} ({error}). Take another, or change its permissions."
        ) from error
    return lock


def write(
    directory: pathlib.Path,
    arrays: Mapping[str, Any],
    details: Mapping[str, Any],
    keep: int,
    require_own: Callable[[], None] = lambda: None,
    passed_over: Sequence[pathlib.Path] = (),
) -> pathlib.Path:
    """Writes a checkpoint and deletes all but the newest `keep`.

    The arrays go to a temporary file, which is flushed to the disk and renamed. A
    marker with their size and SHA-256 follows likewise. Arrays without a marker, or
    with another hash, are no checkpoint: a kill at any moment spares earlier ones.

    Args:
        directory: exists.
        arrays: in nested dictionaries, whose keys have no "/"; no objects.
        details: numbers and texts that JSON can keep.
        keep: number of checkpoints kept, this one included.
        require_own: raises if the directory has become another writer's, whose files
            are then left alone.
        passed_over: those that do not count, and go with the old ones.

    Returns:
        The path of the arrays.

    Raises:
        OSError: if it cannot be written; no part of it stays.
    """
    require_own()
    number = next_number(directory)
    path = place_of(directory, number)
    try:
        complete(put_arrays(path, arrays, details))
    except BaseException:
        require_own()  # nobody else has begun this number
        discard(path)
        raise
    require_own()
    delete_old(directory, number, keep, passed_over)
    return path


def next_number(directory: pathlib.Path) -> int:
    """Returns the number after those of all files in a directory."""
    return max(_numbers(directory), default=0) + 1


def place_of(directory: pathlib.Path, number: int, rank: int = 0) -> pathlib.Path:
    """Returns the path of the arrays of a checkpoint, or of a worker's part of it."""
    part = f".worker-{rank}" if rank else ""
    return directory / f"checkpoint-{number:08d}{part}.npz"


def put_arrays(
    path: pathlib.Path, arrays: Mapping[str, Any], details: Mapping[str, Any]
) -> Written:
    """Writes arrays and details whole, or raises an OSError."""
    content = {_DETAILS: _as_array(json.dumps(dict(details, version=VERSION)))}
    for name, value in _flat(arrays):
        if value.dtype.kind == "V":  # bfloat16 and float8 are no dtypes of NumPy's own
            raw = np.ascontiguousarray(value[..., np.newaxis]).view(np.uint8)
            content[f"{_RAW}{value.dtype.name}:{name}"] = raw
        else:
            content[name] = value
    hashed = _put(path, lambda file: np.savez(file, **content))
    return Written(path, {"size": hashed.size, "sha256": hashed.digest.hexdigest()})


def complete(written: Written) -> None:
    """Writes the marker, with which arrays are a checkpoint."""
    line = json.dumps(written.marker).encode()
    _put(written.path.with_suffix(".json"), lambda file: file.write(line))


def discard(path: pathlib.Path) -> None:
    """Deletes arrays and their marker, the marker first."""
    path.with_suffix(".json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _put(path: pathlib.Path, write_to: Any) -> _Hashed:
    """Writes a file whole, and returns what its bytes must hash to."""
    with whole(path) as file:
        hashed = _Hashed(file)
        write_to(hashed)
    return hashed


def newest(
    directory: pathlib.Path,
    fault_of: Callable[[Saved], str] = lambda saved: "",
    strategy: tf.distribute.Strategy | None = None,
) -> Saved | None:
    """Returns the newest checkpoint that can be used, or `None` where there is none.

    Warns of newer ones that are damaged or have a fault. Several workers call it
    together, and all use the same one.

    Args:
        directory: of the checkpoints.
        fault_of: returns why an intact one cannot be used, "" if it can.
        strategy: of the model.

    Raises:
        ValueError: if there are checkpoints and none can be used, or the newest intact
            one was written by a later version.
    """
    strategy = strategy or tf.distribute.get_strategy()
    share, faults = share_of(strategy), {}
    numbers = told_by_all(strategy, sorted(_numbers(directory), reverse=True))[0]
    for number in numbers:
        path = place_of(directory, number)
        saved, fault = _tried(path, share, fault_of)
        if saved is not None:
            _check_version(saved)
        told = told_by_all(strategy, fault)
        if all(other is None for other in told):
            continue  # it was still being written: no checkpoint yet
        fault = next(filter(None, told), "" if None not in told else _UNSEEN)
        if fault:
            faults[path] = f"{path}: {fault}"
            continue
        if faults:
            warn(
                "A checkpoint must be as it was written, and its weights finite. "
                f"Received: {'; '.join(faults.values())}. Training goes on from {path}."
            )
        return saved._replace(passed_over=tuple(faults))
    if faults:
        raise ValueError(
            "At least one checkpoint must be intact and finite. Tried: "
            f"{'; '.join(faults.values())}. Delete the directory {directory} to start "
            "afresh, or bring back a copy of it."
        )
    return None


def _tried(
    path: pathlib.Path, share: Share, fault_of: Callable[[Saved], str]
) -> tuple[Saved | None, str | None]:
    """Returns a checkpoint and its fault, which is `None` where it has no marker."""
    if not path.with_suffix(".json").exists():
        return None, None
    try:
        saved = _with_parts(_read(path), share)
    except (OSError, ValueError, TypeError, KeyError) as error:
        return None, f"damaged, {error}"
    return saved, fault_of(saved)


def _with_parts(saved: Saved, share: Share) -> Saved:
    """Returns a checkpoint with the other workers' parts that a worker goes on from.

    It is its own part, or all of them if their number is another.

    Raises:
        OSError, ValueError, KeyError: if a part is missing, damaged or of another one.
    """
    workers, parts = saved.workers, {}
    for rank in range(1, workers):
        if workers != share.workers or rank == share.rank:
            number = int(saved.path.stem[-8:])
            part = parts[rank] = _read(place_of(saved.path.parent, number, rank))
            if part.details["together"] != saved.details["together"]:
                raise ValueError(f"{part.path.name} is of another checkpoint")
    return saved._replace(parts=parts)


def _read(path: pathlib.Path) -> Saved:
    marker = json.loads(path.with_suffix(".json").read_text())
    size = path.stat().st_size
    if size != marker["size"]:
        raise ValueError(f"{size} bytes of {marker['size']}")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != marker["sha256"]:
        raise ValueError("its bytes are not those that were written")
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    details = json.loads(arrays.pop(_DETAILS).tobytes())
    for name in [name for name in arrays if name.startswith(_RAW)]:
        _, dtype, own = name.split(":", 2)
        raw = arrays.pop(name)
        arrays[own] = raw.view(np.dtype(dtype))[..., 0]
    return Saved(path, _nested(arrays), details)


def _flat(arrays: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in arrays.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}/")
        else:
            yield above + name, np.asarray(value)


def _nested(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in arrays.items():
        *above, own = name.split("/")
        place = nested
        for part in above:
            place = place.setdefault(part, {})
        place[own] = value
    return nested


def _check_version(saved: Saved) -> None:
    version = saved.details["version"]
    if version > VERSION:
        raise ValueError(
            f"The checkpoint must have format {VERSION} or an earlier one. Received: "
            f"{version} in {saved.path}. Install a newer keras_osgd."
        )


def delete_old(
    directory: pathlib.Path,
    number: int,
    keep: int,
    passed_over: Sequence[pathlib.Path],
) -> None:
    """Deletes all but the last `keep` checkpoints of use, and half-written files.

    Args:
        directory: of the checkpoints.
        number: of the one that was just written.
        keep: number of checkpoints kept, that one included.
        passed_over: paths of those that are of no use.
    """
    useless = {int(path.stem[-8:]) for path in passed_over}
    found = _numbers(directory) - useless
    ended = [n for n in found if place_of(directory, n).with_suffix(".json").exists()]
    kept = set(sorted(ended)[-keep:]) | {number}
    for old in found | useless:
        if old not in kept:
            discard(place_of(directory, old))  # first: parts alone are no checkpoint
    for path in directory.iterdir():
        match = _NAME.fullmatch(path.name)
        if match and int(match[1]) not in kept:
            path.unlink(missing_ok=True)


def _numbers(directory: pathlib.Path) -> set[int]:
    names = [_NAME.fullmatch(path.name) for path in directory.glob("checkpoint-*")]
    return {int(match[1]) for match in names if match}


def _as_array(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)
