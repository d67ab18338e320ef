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

from keras_osgd.base.directory_lock import DirectoryLock
from keras_osgd.base.files import whole
from keras_osgd.base.warn import warn

__all__ = ["VERSION", "Saved", "claimed", "newest", "write"]

VERSION = 1  # of the format; files of earlier versions load too
_NAME = re.compile(r"checkpoint-(\d{8})\.(?:npz|json)(?:(?:\.[0-9a-f]{8})?\.part)?")
_DETAILS = "details"
_RAW = "raw:"  # prefix to the name of an array whose dtype NumPy cannot write


class Saved(NamedTuple):
    """The content of a checkpoint.

    Attributes:
        path: file of the arrays.
        arrays: nested dictionaries of arrays.
        details: numbers and texts, as JSON keeps them.
        passed_over: paths of later ones that are damaged or cannot be used.
    """

    path: pathlib.Path
    arrays: dict[str, Any]
    details: dict[str, Any]
    passed_over: tuple[pathlib.Path, ...] = ()


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
    number = max(_numbers(directory), default=0) + 1
    path = _path(directory, number, "npz")
    content = {_DETAILS: _as_array(json.dumps(dict(details, version=VERSION)))}
    for name, value in _flat(arrays):
        if value.dtype.kind == "V":  # bfloat16 and float8 are no dtypes of NumPy's own
            raw = np.ascontiguousarray(value[..., np.newaxis]).view(np.uint8)
            content[f"{_RAW}{value.dtype.name}:{name}"] = raw
        else:
            content[name] = value
    try:
        hashed = _put(path, lambda file: np.savez(file, **content))
        marker = {"size": hashed.size, "sha256": hashed.digest.hexdigest()}
        line = json.dumps(marker).encode()
        _put(path.with_suffix(".json"), lambda file: file.write(line))
    except BaseException:
        require_own()  # nobody else has begun this number
        for suffix in ("json", "npz"):  # marker first
            _path(directory, number, suffix).unlink(missing_ok=True)
        raise
    require_own()
    _delete_old(directory, number, keep, {int(p.stem[-8:]) for p in passed_over})
    return path


def _put(path: pathlib.Path, write_to: Any) -> _Hashed:
    """Writes a file whole, and returns what its bytes must hash to."""
    with whole(path) as file:
        hashed = _Hashed(file)
        write_to(hashed)
    return hashed


def newest(
    directory: pathlib.Path, fault_of: Callable[[Saved], str] = lambda saved: ""
) -> Saved | None:
    """Returns the newest checkpoint that can be used, or `None` where there is none.

    Warns of newer ones that are damaged or have a fault.

    Args:
        directory: of the checkpoints.
        fault_of: returns why an intact one cannot be used, "" if it can.

    Raises:
        ValueError: if there are checkpoints and none can be used, or the newest intact
            one was written by a later version.
    """
    faults: dict[pathlib.Path, str] = {}
    for number in sorted(_numbers(directory), reverse=True):
        path = _path(directory, number, "npz")
        if not path.with_suffix(".json").exists():
            continue  # it was still being written: no checkpoint yet
        try:
            saved = _read(path)
        except (OSError, ValueError, TypeError, KeyError) as error:
            faults[path] = f"{path}: damaged, {error}"
            continue
        _check_version(saved)
        fault = fault_of(saved)
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


def _delete_old(
    directory: pathlib.Path, number: int, keep: int, useless: set[int]
) -> None:
    """Deletes all but the last `keep` checkpoints of use, and half-written files."""
    found = _numbers(directory) - useless
    ended = [n for n in found if _path(directory, n, "json").exists()]
    kept = set(sorted(ended)[-keep:]) | {number}
    for path in directory.iterdir():
        match = _NAME.fullmatch(path.name)
        if match and int(match[1]) not in kept:
            # The marker first: arrays without one are no checkpoint.
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)


def _numbers(directory: pathlib.Path) -> set[int]:
    names = [_NAME.fullmatch(path.name) for path in directory.glob("checkpoint-*")]
    return {int(match[1]) for match in names if match}


def _path(directory: pathlib.Path, number: int, suffix: str) -> pathlib.Path:
    return directory / f"checkpoint-{number:08d}.{suffix}"


def _as_array(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)
