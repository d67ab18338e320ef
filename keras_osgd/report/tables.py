"""Tables of runs, as HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_osgd.plots.style import in_words
from keras_osgd.run_directory import LOGGED_ONLY, RunRecord

__all__ = [
    "column",
    "examples",
    "metrics",
    "number",
    "reached",
    "runs",
    "settings_table",
    "status",
    "table",
]

_EXAMPLES = 20  # shown of each run
_MOST_METRICS = 4
_NO_METRICS = ("learning_rate", "lr")  # that Keras' callbacks log
_SETTINGS = (
    "status",
    "model",
    "parameters",
    "loss",
    "optimizer",
    "optimizer_options",
    "sampling",
    "n",
    "batch_size",
    "epochs",
    "seed",
    "started",
    "updated",
    "devices",
    "versions",
)
_FIGURES = 4  # digits of the largest number of a column


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a table; numbers have one format a column, texts are escaped.

    Example:
        >>> table(["a"], [[1.23456], ["<b>"]]).count("&lt;b&gt;")
        1
    """
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    columns = [column(cells) for cells in zip(*rows, strict=True)]
    lines = [
        "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        for row in zip(*columns, strict=True)
    ]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def metrics(records: Sequence[RunRecord]) -> list[str]:
    """Returns the metrics that all runs have; those of validation if there are any."""
    common = [x for x in records[0].history if all(x in r.history for r in records)]
    known = [x.removeprefix("val_") for x in common if x.startswith("val_")]
    if known:
        names = [f"val_{name}" for name in known]
    else:
        trained = {"loss", *(x for x in common if _is_trained(x))}
        names = [name for name in common if name in trained]
    names.sort(key=lambda name: not name.endswith("loss"))
    return names[:_MOST_METRICS]


def _is_trained(name: str) -> bool:
    """Returns whether a column is a metric, not one of progress or sampling."""
    ours = {"epoch", "steps", "seconds", "gain_ratio", "effective_epochs", *LOGGED_ONLY}
    return name not in {*ours, *_NO_METRICS} and not name.startswith("n_p_")


def _better(name: str) -> Any:
    """Returns NumPy's function for the better of two values of a metric."""
    low = ("loss", "error", "mse", "mae", "perplexity", "divergence")
    return np.fmin if any(word in name.lower() for word in low) else np.fmax


def runs(records: Sequence[RunRecord]) -> str:
    """Returns a table with a line for each run: its settings, cost and results."""
    names = metrics(records)
    header = ["run", "status", "sampling", "n", "batch size", "epochs done / planned"]
    header += ["effective epochs", "steps", "time (s)", "last gain ratio"]
    header += [f"best {in_words(name)}" for name in names]
    rows = []
    for record in records:
        known, history = record.settings, record.history
        method = str(known.get("sampling", "")).split("(")[0]
        row = [record.name, status(record), method, known.get("n")]
        row += [known.get("batch_size"), _epochs(record)]
        last = ("effective_epochs", "steps", "seconds", "gain_ratio")
        row += [_last(history, x) for x in last]
        row += [float(_better(name).reduce(history[name])) for name in names]
        rows.append(row)
    return table(header, rows)


def _epochs(record: RunRecord) -> str:
    done = _last(record.history, "epoch")
    return " / ".join(number(x) for x in (done, record.settings.get("epochs")))


def status(record: RunRecord) -> str:
    """Returns how a run ended; "complete" if it has all planned epochs.

    Example:
        >>> known = {"status": "training", "updated": "2026-01-02T03:04:05+00:00"}
        >>> status(RunRecord("", {}, known, {}, {}))
        'not ended; last written 2026-01-02 03:04:05 UTC'
    """
    known, done = record.settings, _last(record.history, "epoch")
    if known.get("status") == "training":
        moment = str(known.get("updated") or known.get("started") or "at no known time")
        moment = moment.replace("T", " ").replace("+00:00", " UTC")
        return f"not ended; last written {moment}"
    early = known.get("epochs") and done is not None and done < known["epochs"]
    if known.get("status") == "complete" and early:
        return "ended before the planned epochs"
    return number(known.get("status"))


def _last(history: dict[str, np.ndarray], name: str) -> float | None:
    return float(history[name][-1]) if len(history.get(name, ())) else None


def reached(groups: Mapping[str, Sequence[RunRecord]]) -> str:
    """Returns the costs of becoming as good as the least good run's best.

    Args:
        groups: runs by name; several under one name are averaged.
    """
    records, parts = [r for group in groups.values() for r in group], []
    for name in metrics(records):
        better = _better(name)
        bests = [float(better.reduce(record.history[name])) for record in records]
        bests = [best for best in bests if not np.isnan(best)]
        if not bests:
            continue
        target = max(bests) if better is np.fmin else min(bests)
        rows = []
        for label, group in groups.items():
            taken = np.array([_cost(record, name, better, target) for record in group])
            rows.append([label, *map(float, taken.mean(axis=0))])
        header = [f"until {in_words(name)} is {target:.4g}"]
        header += ["epochs", "steps", "time (s)"]
        parts.append(table(header, rows))
    return "\n".join(parts)


def _cost(record: RunRecord, name: str, better: Any, target: float) -> list[float]:
    """Returns epochs, steps and seconds until a metric first was `target` or better."""
    history, values = record.history, record.history[name]
    met = values <= target if better is np.fmin else values >= target
    if not met.any():  # it has no values
        return [np.nan] * 3
    first = int(np.flatnonzero(met)[0])
    unknown = np.full(len(values), np.nan)
    return [history.get(x, unknown)[first] for x in ("epoch", "steps", "seconds")]


def examples(record: RunRecord) -> str:
    """Returns a table of the most drawn examples of a run."""
    columns, n = record.examples, record.settings.get("n") or np.nan
    header = ["index", "label", "share of draws (%)", "times seen", "last norm", "n p"]
    rows = [
        [index, label, 100 * float(share), int(times), float(norm), n * float(p)]
        for index, label, share, times, norm, p in zip(
            *(columns[name][:_EXAMPLES] for name in columns), strict=True
        )
    ]
    return table(header, rows)


def settings_table(records: Sequence[RunRecord]) -> str:
    """Returns a table of settings, with a column for each run."""
    rows = [
        [name.replace("_", " "), *(_flat(name, r.settings.get(name)) for r in records)]
        for name in _SETTINGS
        if any(name in r.settings for r in records)
    ]
    return table(["", *(record.name for record in records)], rows)


def _flat(name: str, value: Any) -> str:
    if isinstance(value, dict) and {"class_name", "config"} <= set(value):
        return f"{value['class_name']} ({_flat(name, value['config'])})"  # of Keras
    if isinstance(value, dict):
        return ", ".join(f"{k} {_flat(k, v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    named = name == "seed" and value is not None  # a name, and no count
    return str(value) if named else number(value)


def number(value: Any) -> str:
    """Returns a single number or text as it is shown.

    Example:
        >>> number(0.05000000074), number(1234), number(None)
        ('0.05', '1,234', '–')
    """
    if _is_missing(value):
        return "–"
    if isinstance(value, float | np.floating):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def column(cells: Sequence[Any]) -> list[str]:
    """Returns cells with equal decimals: four digits of the largest number.

    Example:
        >>> column([1.5, 12.25, None, "text"])
        ['1.50', '12.25', '–', 'text']
    """
    numbers = [float(x) for x in cells if _is_float(x) and np.isfinite(x)]
    largest = max(map(abs, numbers), default=0.0)
    decimals = 0
    if any(x != round(x) for x in numbers):
        decimals = int(np.clip(_FIGURES - 1 - np.floor(np.log10(largest)), 1, 8))
    return [f"{x:,.{decimals}f}" if _is_float(x) else number(x) for x in cells]


def _is_float(cell: Any) -> bool:
    return isinstance(cell, float | np.floating) and not _is_missing(cell)


def _is_missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float | np.floating) and np.isnan(cell))
