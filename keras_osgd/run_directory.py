"""The directory of a run: `SamplingMonitor` writes it, plots and reports read it.

| file | content |
|---|---|
| history.csv | a row for each epoch: all logs, steps, effective epochs, seconds, n p |
| run.json | model, optimizer, sampling, data, versions, alarms |
| examples.csv | the most drawn examples |
| sampling.npz | arrays for plots: shares of draws, predicted and observed norms |

Every file is replaced as a whole: a kill leaves the earlier version.
"""

from __future__ import annotations

import csv
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

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
    """

    name: str
    history: dict[str, np.ndarray]
    settings: dict[str, Any]
    examples: dict[str, list[str]]
    arrays: dict[str, np.ndarray]


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

    def read(self) -> tuple[list[dict[str, float]], dict[str, Any]]:
        """Returns the rows of the history and the settings, as far as they exist."""
        rows, path = [], self.directory / _HISTORY
        if path.exists():
            with open(path, newline="") as file:
                for row in csv.DictReader(file):
                    rows.append({k: float(v) for k, v in row.items() if v})
        path = self.directory / _SETTINGS
        return rows, json.loads(path.read_text()) if path.exists() else {}

    def clear(self) -> None:
        """Deletes the files of an earlier run."""
        for name in (_HISTORY, _SETTINGS, _EXAMPLES, _ARRAYS):
            (self.directory / name).unlink(missing_ok=True)

    def write_history(self, rows: Sequence[Row]) -> None:
        """Writes history.csv; a row may lack columns that others have."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        self._replace(
            _HISTORY, _table(names, [[r.get(x) for x in names] for r in rows])
        )

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Writes run.json; values that JSON does not know become text."""
        text = json.dumps(settings, indent=2, default=str, ensure_ascii=False)
        self._replace(_SETTINGS, text)

    def write_examples(self, columns: Mapping[str, Sequence[Any] | None]) -> None:
        """Writes examples.csv; a column that is `None` stays empty."""
        size = max(len(values) for values in columns.values() if values is not None)
        filled = [[None] * size if v is None else v for v in columns.values()]
        self._replace(_EXAMPLES, _table(columns, zip(*filled, strict=True)))

    def write_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes sampling.npz."""
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        self._replace(_ARRAYS, file.getvalue())

    def _replace(self, name: str, content: str | bytes) -> None:
        path = self.directory / name
        part = path.with_name(f"{name}.part")
        data = content.encode() if isinstance(content, str) else content
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)


def _table(names: Any, rows: Any) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return text.getvalue()


def runs_in(path: str | os.PathLike) -> list[pathlib.Path]:
    """Returns `path` if it is a run's directory, else those in it, sorted."""
    path = pathlib.Path(path)
    if (path / _HISTORY).exists():
        return [path]
    return sorted(found.parent for found in path.glob(f"*/{_HISTORY}"))


def load(directory: str | os.PathLike) -> RunRecord:
    """Returns the record that `SamplingMonitor(log_dir=directory)` wrote.

    Raises:
        ValueError: if there is no history of a run.
    """
    path = pathlib.Path(directory)
    if not (path / _HISTORY).exists():
        raise ValueError(
            f"A run's directory must have a {_HISTORY}. Received: {directory} without. "
            "Train with `SamplingMonitor(log_dir=...)` and pass that directory."
        )
    rows, settings = RunFiles(path).read()
    names = dict.fromkeys(name for row in rows for name in row)
    history = {x: np.array([row.get(x, np.nan) for row in rows]) for x in names}
    examples, arrays = {}, {}
    if (path / _EXAMPLES).exists():
        with open(path / _EXAMPLES, newline="") as file:
            names, *lines = list(csv.reader(file))
            examples = {x: [line[i] for line in lines] for i, x in enumerate(names)}
    if (path / _ARRAYS).exists():
        with np.load(path / _ARRAYS, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    name = path.resolve().name
    return RunRecord(name, history, settings, examples, arrays)
