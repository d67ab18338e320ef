"""Sources of figures: directories of runs, `History` objects, arrays."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_osgd.run_directory import RunRecord, load

__all__ = ["grouped", "one_record", "record_of", "require"]


def record_of(run: Any, name: str = "run") -> RunRecord:
    """Returns the record of a run.

    Args:
        run: directory that `SamplingMonitor(log_dir=...)` wrote, result of
            `run_directory.load`, `History` of a `fit`, or a mapping of names to arrays
            with an entry for each epoch, such as `model.sampling.history`.
        name: of a run that is not a directory.

    Raises:
        ValueError: if it is none of these.

    Example:
        >>> record_of({"loss": [2.0, 1.0]}).history["epoch"]
        array([1., 2.])
    """
    if isinstance(run, RunRecord):
        return run
    if isinstance(run, str | os.PathLike):
        return load(run)
    epochs = None
    if isinstance(run, keras.callbacks.History):
        epochs, run = [epoch + 1.0 for epoch in run.epoch], run.history
    if not isinstance(run, Mapping):
        raise ValueError(
            "A run must be a directory of `SamplingMonitor(log_dir=...)`, a `History` "
            f"or a mapping of names to arrays. Received: {type(run).__name__}. Pass "
            "one of these."
        )
    history = {name: np.asarray(values, float) for name, values in run.items()}
    length = max((len(values) for values in history.values()), default=0)
    # Validation may be rarer than epochs, and nothing tells where it took place.
    history = {name: v for name, v in history.items() if len(v) == length}
    history.setdefault("epoch", np.asarray(epochs or np.arange(1.0, length + 1)))
    return RunRecord(name, history, {}, {}, {})


def grouped(runs: Any) -> dict[str, list[RunRecord]]:
    """Returns the records of runs, by the name that figures show.

    Args:
        runs: one run, a list of them, or a mapping of names to runs or to lists of
            runs that differ in their seed alone.

    Raises:
        ValueError: if there is no run.
    """
    if isinstance(runs, Mapping) and not _is_history(runs):
        named = [(str(k), v if _is_list(v) else [v]) for k, v in runs.items()]
        found = {name: [record_of(run, name) for run in group] for name, group in named}
    else:
        records = [record_of(run) for run in (runs if _is_list(runs) else [runs])]
        found = {}
        for record in records:
            name, order = record.name, 2
            while name in found:
                name, order = f"{record.name} ({order})", order + 1
            found[name] = [record]
    if not found or not all(found.values()):
        raise ValueError("There must be at least one run. Received: none.")
    return found


def one_record(runs: Any, figure: str) -> RunRecord:
    """Returns the only run, for a figure that shows one.

    Args:
        runs: as in `grouped`.
        figure: name of the function that draws it, for the error.

    Raises:
        ValueError: if there are several, or none.
    """
    records = [record for group in grouped(runs).values() for record in group]
    if len(records) > 1:
        names = ", ".join(record.name for record in records)
        raise ValueError(
            f"`{figure}` must have one run: it shows one. Received: {len(records)} "
            f"runs ({names}). Call it for each of them."
        )
    return records[0]


def require(
    groups: Mapping[str, Sequence[RunRecord]], name: str, argument: str, remedy: str
) -> None:
    """Refuses runs without a column of the history.

    Args:
        groups: as `grouped` returns them.
        name: of the column.
        argument: name of the argument that gave it.
        remedy: advice in the error; "" suggests columns of similar names instead.

    Raises:
        ValueError: if a run has no such column.
    """
    for label, group in groups.items():
        for record in group:
            if name in record.history:
                continue
            own = record.name
            who = repr(label) if own in label else f"{label!r} ({own!r})"
            alike = difflib.get_close_matches(name, record.history, cutoff=0.5)
            advice = f"Did you mean {' or '.join(map(repr, alike))}? " if alike else ""
            raise ValueError(
                f"`{argument}` must be in the history of every run. Received: "
                f"{argument}={name!r}, which {who} lacks. {remedy or advice}It has "
                f"{sorted(record.history)}: take one of these."
            )


def _is_list(runs: Any) -> bool:
    return isinstance(runs, Sequence) and not isinstance(runs, str | RunRecord)


def _is_history(runs: Mapping) -> bool:
    """Returns whether a mapping has numbers by epoch, and not runs by name."""

    def is_numbers(values: Any) -> bool:
        if isinstance(values, str | os.PathLike | Mapping | RunRecord):
            return False
        if _is_list(values) and any(isinstance(x, RunRecord) for x in values):
            return False
        return np.ndim(values) == 1 and np.asarray(values).dtype.kind in "fiub"

    return bool(runs) and all(is_numbers(values) for values in runs.values())
