"""The benchmark's memory: one JSON line for every measurement that has ended."""

import collections
import json
import math
import os
import pathlib
import platform
import sys
from collections.abc import Iterable

import keras
import numpy as np
import tensorflow as tf

Record = dict


class Records:
    """Measurements in a file of JSON lines, appended to and never rewritten.

    Each record has a `"key"`, a flat dictionary that says what was measured; a
    measurement is not repeated while the file holds its key. To have it repeated,
    delete its line.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._records: dict[str, Record] = {}
        if path.exists():
            lines = _whole_lines(path)
            for number, line in enumerate(lines, start=1):
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(
                        f"{path}, line {number} is not valid JSON: {error}. Delete "
                        "this line; what it measured will be measured again."
                    ) from error
                self._records[_text(record["key"])] = record

    def __contains__(self, key: Record) -> bool:
        """Returns whether `key` has been measured."""
        return _text(key) in self._records

    def __getitem__(self, key: Record) -> Record:
        """Returns the record of `key`."""
        return self._records[_text(key)]

    def append(self, key: Record, measured: Record) -> Record:
        """Adds one record to the file and returns it."""
        record = _rounded({"key": key, **measured, "environment": environment()})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._records[_text(key)] = record
        return record

    def select(self, **wanted: object) -> list[Record]:
        """Returns the records whose keys have all the given entries."""
        return [
            record
            for record in list(self._records.values())  # others may add meanwhile
            if all(record["key"].get(name) == value for name, value in wanted.items())
        ]


def _whole_lines(path: pathlib.Path) -> list[str]:
    """Returns the lines; cuts off a last one whose writing was interrupted."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return whole.decode().splitlines()


def mean_validation_errors(records: Iterable[Record]) -> dict[float, float]:
    """Returns the mean validation error, in percent, for every learning rate."""
    errors: dict[float, list[float]] = collections.defaultdict(list)
    for record in records:
        errors[record["key"]["rate"]].append(record["validation_error"])
    return {rate: float(np.mean(errors[rate])) for rate in sorted(errors)}


def tuned_rate(records: Iterable[Record]) -> float:
    """Returns the learning rate of the lowest mean validation error.

    Raises:
        ValueError: if `records` is empty.
    """
    errors = mean_validation_errors(records)
    if not errors:
        raise ValueError("There are no tuning runs to choose a learning rate from.")
    return min(errors, key=errors.__getitem__)


def environment() -> Record:
    """Returns what a measurement depends on beside its key."""
    # Plain Keras is measured without importing the add-on.
    add_on = sys.modules.get("keras_osgd")
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "keras_osgd": getattr(add_on, "__version__", None),
        "machine": f"{platform.machine()} {platform.system()}",
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _text(key: Record) -> str:
    return json.dumps(key, sort_keys=True)


def _rounded(value: object) -> object:
    if isinstance(value, float):
        # JSON knows neither NaN nor infinities, which diverged runs may leave.
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return value
