"""Figures of results by epoch: learning curves and gain ratio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_osgd.plots.sources import grouped, require
from keras_osgd.plots.style import GREY, finish, in_words, legend, new_figure, style
from keras_osgd.run_directory import RunRecord

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["gain_ratio", "learning_curves"]

_AXES = {
    "steps": "steps",
    "epoch": "epochs",
    "effective_epochs": "effective epochs",
    "seconds": "seconds of training",
}
_COLUMNS = {label: name for name, label in _AXES.items()}
_NO_GAIN = "uniform draws, no gain"
_GAINS = {
    "gain_ratio": "estimated",
    "gain_ratio_exact": "by exact norms",
    "gain_ratio_last_layer": "by the last layer's norms",
}


def learning_curves(
    runs: Any, metric: str = "loss", against: str | Sequence[str] | None = None
) -> Figure:
    """Returns a figure of a metric against its cost, one panel for each kind of cost.

    For runs that differ only in their seed, the line is their mean at each epoch and
    the band goes from the least to the largest.

    Args:
        runs: a run, a list of runs, or a mapping of names to runs or lists of runs; a
            run is a directory of `SamplingMonitor(log_dir=...)`, a `History`, or a
            mapping of names to arrays.
        metric: name in the logs, such as "val_accuracy".
        against: one or several of the axes' labels "steps", "epochs", "effective
            epochs" and "seconds of training", or of the history's columns, such as
            "seconds"; `None` takes those of the four that every run has.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if a run has no such metric, or nothing to draw it against.

    Example:
        >>> runs = {"uniform": {"loss": [2.0, 1.0]}, "RAIS": {"loss": [2.0, 0.8]}}
        >>> figure = learning_curves(runs)
        >>> [line.get_ydata().tolist() for line in figure.axes[0].lines]
        [[2.0, 1.0], [2.0, 0.8]]
    """
    groups = grouped(runs)
    records = [record for group in groups.values() for record in group]
    require(groups, metric, "metric", "")
    chosen = [against] if isinstance(against, str) else against
    if chosen is None:
        chosen = [x for x in _AXES if all(x in r.history for r in records)]
    chosen = [_COLUMNS.get(name, name) for name in chosen]
    for name in chosen:
        require(groups, name, "against", "")
    if not chosen:
        raise ValueError(
            f"`against` must be one of {list(_COLUMNS)}, which every run has. "
            "Received: none. Name what to draw against, such as 'epochs'."
        )
    rows = 2 if len(chosen) > 3 else 1
    columns = -(-len(chosen) // rows)
    figure = new_figure(max(5.0, 3.9 * columns), 3.1 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for order, (axes, name) in enumerate(zip(panels.flat, chosen, strict=False)):
        entries = [
            (_draw(axes, _rows(group, name), _rows(group, metric), i, label), label)
            for i, (label, group) in enumerate(groups.items())
        ]
        vertical = in_words(metric) if order % columns == 0 else ""
        finish(axes, _AXES.get(name, in_words(name)), vertical)
        axes.set_xlim(left=0)
    for axes in list(panels.flat)[len(chosen) :]:
        axes.remove()
    legend(figure, entries)
    return figure


def _rows(group: Sequence[RunRecord], name: str) -> np.ndarray:
    """Returns `[runs, epochs]`, as many epochs as the shortest run has."""
    columns = [record.history[name] for record in group]
    length = min(map(len, columns))
    return np.array([column[:length] for column in columns])


def _draw(axes: Axes, x: np.ndarray, y: np.ndarray, order: int, label: str) -> Artist:
    """Draws the mean and the band of some runs; returns the line."""
    length = min(x.shape[1], y.shape[1])
    x, y = x[:, :length], y[:, :length]
    shown = ~np.isnan(y).any(axis=0)  # not every epoch has a validation
    x, y = x[:, shown].mean(axis=0), y[:, shown]
    look = style(order, len(x))
    (line,) = axes.plot(x, y.mean(axis=0), label=label, **look)
    if len(y) > 1:
        low, high = y.min(axis=0), y.max(axis=0)
        axes.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0)
    return line


def gain_ratio(runs: Any) -> Figure:
    """Returns a figure of the gain ratio against effective epochs.

    The ratio is the last plan's estimate. If the run took exact norms, two more curves
    show the current ratio by these and by the last layer's: how near the approximation
    is. The estimate lags both. Uniform runs have no estimate, only a name.

    Args:
        runs: as in `learning_curves`.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if a run has no gain ratio.

    Example:
        >>> figure = gain_ratio({"gain_ratio": [1.0, 1.5], "effective_epochs": [1, 2]})
        >>> figure.axes[0].lines[0].get_ydata().tolist()
        [1.0, 1.5]
    """
    groups = grouped(runs)
    records = [record for group in groups.values() for record in group]
    remedy = (
        "Fit with `callbacks=[SamplingMonitor()]`, which puts it into the logs, or "
        "pass `model.sampling.history`. "
    )
    require(groups, "gain_ratio", "metric", remedy)
    has = all("effective_epochs" in record.history for record in records)
    horizontal = "effective_epochs" if has else "epoch"
    figure = new_figure(6.4, 4.0)
    axes, entries = figure.subplots(), []
    for name, group in groups.items():
        for key, label in _gains(name, group, alone=len(groups) == 1).items():
            x, y = _rows(group, horizontal), _rows(group, key)
            entries.append((_draw(axes, x, y, len(entries), label), label))
    one = axes.axhline(1.0, color=GREY, linewidth=1.0, zorder=1, label=_NO_GAIN)
    finish(axes, _AXES[horizontal], "gain ratio r")
    axes.set_xlim(left=0)
    legend(figure, [*entries, (one, _NO_GAIN)])
    return figure


def _gains(name: str, group: Sequence[RunRecord], alone: bool) -> dict[str, str]:
    """Returns the gain ratios that all runs of a group have, with their labels."""
    if all(record.settings.get("sampling") == "uniform" for record in group):
        return {"gain_ratio": name}  # it is 1, and not estimated
    kept = [key for key in _GAINS if all(key in r.history for r in group)]
    if alone:
        return {key: _GAINS[key] for key in kept}
    return {k: name if len(kept) == 1 else f"{name}, {_GAINS[k]}" for k in kept}
