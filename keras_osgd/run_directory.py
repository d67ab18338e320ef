"""The directory of a run: `SamplingMonitor` writes it, plots and reports read it.

| file | content |
|---|---|
| history.csv | a row for each epoch: all logs, steps, effective epochs, seconds, n p |
| run.json | model, optimizer, sampling, data, versions, alarms |
| examples.csv | the most drawn examples |
| sampling.npz | arrays for plots: shares of draws, predicted and observed norms |

Every file is replaced as a whole: a kill leaves the earlier version. What is damaged
all the same is left out by `load`, which names the file.
"""

from __future__ import annotations

import io
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_osgd.base.csv_table import read_table, write_rows
from keras_osgd.base.files import write_whole

__all__ = [
    "LOGGED_ONLY",
    "PERCENTILES",
    "RunFiles",
    "RunRecord",
    "load",
    "percentile_name",
    "runs_in",
    "share_curve",
]

LOGGED_ONLY = frozenset(
    (
        "candidate_gain_ratio",
        "gain_ratio_exact",
        "gain_ratio_last_layer",
        "gradient_ess",
        "largest_weight",
        "learning_rate_applied",
        "sampling_share",
        "scoring_seconds",
        "share_pooled",
        "share_unseen",
    )
)
"""Numbers that `SamplingMonitor` logs and no bar shows."""

PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)  # of n p, in every row of the history
_HISTORY, _SETTINGS = "history.csv", "run.json"
_EXAMPLES, _ARRAYS = "examples.csv", "sampling.npz"
_COLUMNS = {  # of examples.csv, with what a cell must be
    "index": int,
    "label": str,
    "share_of_draws": float,
    "times_seen": int,
    "last_norm": float,
    "probability": float,
}
_ALIKE = ("predicted", "variance", "observed")  # arrays of one length
_COUNTS = ("epochs", "n", "batch_size", "parameters")  # in run.json

Row = Mapping[str, float]


def percentile_name(percentile: float) -> str:
    """Returns the name of the history's column for a percentile of n p.

    Example:
        >>> percentile_name(50)
        'n_p_50'
    """
    return f"n_p_{percentile:g}"


def share_curve(counts: np.ndarray) -> np.ndarray:
    """Returns `[101]`, the share of draws that the most drawn 0 %, 1 %, ... take.

    Args:
        counts: `[n]`, how often each example was drawn, in any order.

    Example:
        >>> share_curve(np.array([1, 3]))[[0, 25, 50, 100]]
        array([0.   , 0.375, 0.75 , 1.   ])
    """
    counts = np.sort(counts)[::-1]
    total = np.concatenate([[0.0], np.cumsum(counts, dtype=np.float64)])
    places = np.linspace(0, len(counts), 101)
    return np.interp(places, np.arange(len(total)), total) / max(total[-1], 1.0)


class RunRecord(NamedTuple):
    """Contents of a run's directory.

    Attributes:
        name: name of the directory.
        history: `[epochs]` for each logged number; NaN where an epoch has none.
        settings: contents of run.json.
        examples: columns of examples.csv, as texts; empty without importance sampling.
        arrays: arrays of sampling.npz; likewise empty.
        faults: sentences on what was left out as damaged, each with its file.
    """

    name: str
    history: dict[str, np.ndarray]
    settings: dict[str, Any]
    examples: dict[str, list[str]]
    arrays: dict[str, np.ndarray]
    faults: tuple[str, ...] = ()


class RunFiles:
    """Writes the files of a run.

    Args:
        directory: made if it is missing.

    Raises:
        ValueError: if the directory cannot be made.

    Example:
        >>> import tempfile
        >>> files = RunFiles(tempfile.mkdtemp())
        >>> files.write_history([{"epoch": 1, "loss": 0.5}])
        >>> load(files.directory).history["loss"]
        array([0.5])
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        """Makes the directory."""
        try:
            self.directory = pathlib.Path(directory)
            self.directory.mkdir(parents=True, exist_ok=True)
        except (OSError, TypeError) as error:
            raise ValueError(
                "`log_dir` must be a directory to write into. Received: "
                f"{directory} ({error}). Name one that exists or can be made."
            ) from error

    def read(self) -> tuple[list[dict[str, float]], dict[str, Any], list[str]]:
        """Returns rows of the history, settings, and sentences on what is damaged."""
        return _read(self.directory)

    def clear(self) -> None:
        """Deletes the files of an earlier run, and what a kill left half-written."""
        for name in (_HISTORY, _SETTINGS, _EXAMPLES, _ARRAYS):
            for path in (self.directory / name, *self.directory.glob(f"{name}*.part")):
                path.unlink(missing_ok=True)

    def write_history(self, rows: Sequence[Row]) -> None:
        """Writes history.csv; a row may lack columns that others have."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = [[row.get(name) for name in names] for row in rows]
        write_rows(self.directory / _HISTORY, names, table)

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Writes run.json; values that JSON does not know become text."""
        text = json.dumps(settings, indent=2, default=str, ensure_ascii=False)
        write_whole(self.directory / _SETTINGS, text)

    def write_examples(self, columns: Mapping[str, Sequence[Any] | None]) -> None:
        """Writes examples.csv; a column that is `None` stays empty."""
        size = max(len(values) for values in columns.values() if values is not None)
        filled = [[None] * size if v is None else v for v in columns.values()]
        write_rows(self.directory / _EXAMPLES, columns, zip(*filled, strict=True))

    def write_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes sampling.npz."""
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        write_whole(self.directory / _ARRAYS, file.getvalue())


def _read(
    directory: pathlib.Path,
) -> tuple[list[dict[str, float]], dict[str, Any], list[str]]:
    faults: list[str] = []
    rows = _tried(faults, directory / _HISTORY, _history, [])
    return rows, _tried(faults, directory / _SETTINGS, _settings, {}), faults


def _tried(
    faults: list[str], path: pathlib.Path, read: Callable[..., Any], nothing: Any
) -> Any:
    """Returns what `read` finds in a file, without what is damaged.

    Args:
        faults: gets a sentence for each fault.
        path: of the file.
        read: called with the path; returns what it finds, and faults.
        nothing: returned if there is no file, or none that can be read.
    """
    try:
        found, told = read(path)
    except FileNotFoundError:
        return nothing
    # Damage has many faces: a cut .npz alone raises four kinds of errors.
    except Exception as error:
        found, told = nothing, [f"cannot be read ({type(error).__name__}: {error})"]
    faults += [f"{path} {text}." for text in told]
    return found


def _history(path: pathlib.Path) -> tuple[list[dict[str, float]], list[str]]:
    names, lines, damaged = read_table(path)
    rows = []
    for line in lines:
        try:
            cells = zip(names, line, strict=True)
            row = {name: float(cell) for name, cell in cells if cell}
        except ValueError:
            row = {}
        rows += [row] if "epoch" in row else []
    damaged += len(lines) - len(rows)
    return rows, _of_lines(damaged, len(rows))


def _of_lines(damaged: int, whole: int) -> list[str]:
    return [f"has {damaged} damaged lines beside {whole} whole ones"] * bool(damaged)


def _settings(path: pathlib.Path) -> tuple[dict[str, Any], list[str]]:
    found = json.loads(path.read_text("utf-8"))
    if not isinstance(found, dict):
        raise ValueError("it must have names")
    odd = {
        name: found.pop(name)
        for name in _COUNTS
        if not isinstance(found.get(name), int | float | None)
    }
    alarms = found.get("alarms", [])
    found["alarms"] = list(map(str, alarms if isinstance(alarms, list) else [alarms]))
    return found, [f"has {k}={v!r}, which is no number" for k, v in odd.items()]


def _examples(path: pathlib.Path) -> tuple[dict[str, list[str]], list[str]]:
    names, lines, damaged = read_table(path)
    if set(names) != set(_COLUMNS):
        raise ValueError(f"its columns are {names}")
    rows = [dict(zip(names, line, strict=True)) for line in lines]
    whole = [row for row in rows if all(_is(_COLUMNS[k], v) for k, v in row.items())]
    columns = {name: [row[name] for row in whole] for name in _COLUMNS if whole}
    return columns, _of_lines(damaged + len(rows) - len(whole), len(whole))


def _is(kind: Callable[[str], Any], cell: str) -> bool:
    try:
        kind(cell)
    except ValueError:
        return False
    return True


def _arrays(path: pathlib.Path) -> tuple[dict[str, np.ndarray], list[str]]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    sizes = {arrays[name].shape for name in _ALIKE if name in arrays}
    odd = [
        name
        for name, array in arrays.items()
        if array.ndim != 1
        or not array.size
        or array.dtype.kind not in "fiu"
        or not np.isfinite(array).all()
        or (name in _ALIKE and len(sizes) > 1)
    ]
    if any(name in odd or name not in arrays for name in _ALIKE):
        odd += [name for name in _ALIKE if name in arrays and name not in odd]
    told = [f"has damaged arrays: {', '.join(odd)}"] * bool(odd)
    return {name: array for name, array in arrays.items() if name not in odd}, told


def runs_in(path: str | os.PathLike) -> list[pathlib.Path]:
    """Returns `path` if it is a run's directory, else those in it, sorted.

    A directory that cannot be looked into counts as one: `load` says why it is not.
    """
    path = pathlib.Path(path)
    if _may_be_run(path):
        return [path]
    return sorted(filter(_may_be_run, path.iterdir())) if path.is_dir() else []


def _may_be_run(path: pathlib.Path) -> bool:
    try:
        known = path.is_dir() and (path / _HISTORY).exists()
        return known or (path.is_dir() and not os.access(path, os.R_OK | os.X_OK))
    except OSError:
        return True


def load(directory: str | os.PathLike) -> RunRecord:
    """Returns the record that `SamplingMonitor(log_dir=directory)` wrote.

    What is damaged is left out, and named in `faults`.

    Raises:
        ValueError: if there is no history of a run, or nothing is left of it.
    """
    path = pathlib.Path(directory)
    rows, settings, faults = _read(path)
    if not rows:
        found = faults[0] if faults else f"{directory} without."
        raise ValueError(
            f"A run's directory must have a {_HISTORY} with epochs. Received: {found} "
            "Train with `SamplingMonitor(log_dir=...)` and pass that directory."
        )
    names = dict.fromkeys(name for row in rows for name in row)
    history = {x: np.array([row.get(x, np.nan) for row in rows]) for x in names}
    examples = _tried(faults, path / _EXAMPLES, _examples, {})
    arrays = _tried(faults, path / _ARRAYS, _arrays, {})
    # A name that is no UTF-8 could not be shown.
    name = os.fsencode(path.resolve().name).decode("utf-8", "replace")
    return RunRecord(name, history, settings, examples, arrays, tuple(faults))
