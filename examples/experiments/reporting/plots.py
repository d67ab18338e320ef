"""Figures of one group: test error against what it cost, and learning curves."""

import pathlib
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from examples.common.estimates import centred, t_interval
from examples.common.palette import STYLES
from examples.experiments.reporting.runs import Group, Runs
from examples.experiments.reporting.wording import Titles

Style = tuple[str, str, str]

_UNIFORM, _OURS = STYLES[4], STYLES[0]
_DPI = 150
_HEADROOM = 0.25  # of the axis above uniform training's highest error

_COSTS: dict[str, Callable[[Runs], float | None]] = {
    "steps": lambda runs: statistics.fmean(runs.values("steps")),
    "epochs of data processed": lambda runs: statistics.fmean(
        runs.values("epochs_processed")
    ),
    "effective epochs": lambda runs: statistics.fmean(runs.values("effective_epochs")),
    "seconds of training": lambda runs: runs.seconds,
}


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """Returns a colour, marker and dashes for every method, the same in all figures."""
    others = [style for style in STYLES if style not in (_UNIFORM, _OURS)]
    names = [x for x in dict.fromkeys(methods) if x not in ("uniform", "rais")]
    # A second round turns the dashes solid: only then do two methods share a marker.
    rounds = others + [(color, marker, (0, (1, 3))) for color, marker, _ in others]
    chosen = {name: rounds[i % len(rounds)] for i, name in enumerate(names)}
    return {"uniform": _UNIFORM, "rais": _OURS, **chosen}


def save_errors(
    path: pathlib.Path, group: Group, titles: Titles, style_of: Mapping[str, Style]
) -> None:
    """Saves a PNG of test error against steps, epochs, effective epochs and seconds."""
    figure = Figure(figsize=(10, 7), dpi=_DPI, layout="constrained")
    methods = list(dict.fromkeys(x.method for x in group.runs if x.errors))
    ceiling = _ceiling(group)
    for axes, (label, cost) in zip(
        figure.subplots(2, 2).flat, _COSTS.items(), strict=True
    ):
        for method in methods:
            runs = [x for x in group.runs if x.method == method and x.errors]
            points = [
                (cost(x), *_error(x, group.metric)) for x in runs if cost(x) is not None
            ]
            _draw(axes, sorted(points), style_of[method], ceiling)
        axes.set_ylim(top=ceiling)
        _finish(axes, label, f"test {group.metric.replace('_', ' ')} (%)")
    handles = [_handle(style_of[method]) for method in methods]
    labels = [_legend(group, method, titles, ceiling) for method in methods]
    _save(figure, path, titles.group(group), handles, labels)


def _error(runs: Runs, metric: str) -> tuple[float, float]:
    """Returns the mean test error and half of its 95 % interval, 0 for one seed."""
    errors = runs.values("test", metric)
    mean, interval = centred(errors)[0], t_interval(errors)
    return mean, 0.0 if interval is None else mean - interval[0]


def _ceiling(group: Group) -> float:
    """Returns the highest error shown: runs that diverged must not flatten the rest."""
    errors = [_error(runs, group.metric)[0] for runs in group.uniform]
    lowest = min(_error(x, group.metric)[0] for x in group.runs if x.errors)
    return max(errors) + _HEADROOM * max(max(errors) - lowest, 0.1 * lowest)


def _draw(
    axes: Axes, points: Sequence[tuple[float, float, float]], style: Style, top: float
) -> None:
    if not points:
        return
    color, marker, dashes = style
    cost, error, half = np.array(points).T
    shown = np.minimum(error, top)
    axes.errorbar(
        cost,
        shown,
        # Those off the scale lie on its upper edge, without an interval.
        yerr=np.where(error > top, 0.0, np.minimum(half, 0.5 * top)),
        color=color,
        marker=marker,
        linestyle=dashes,
        linewidth=1.2,
        markersize=6.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        elinewidth=0.9,
        capsize=2,
        clip_on=False,
        zorder=4 if style == _OURS else 3,
    )


def _legend(group: Group, method: str, titles: Titles, ceiling: float) -> str:
    runs = [x for x in group.runs if x.method == method and x.errors]
    lengths = ", ".join(f"{x.contender.epochs:g}" for x in runs)
    text = f"{titles.of(method)}, T = {lengths}"
    off = [_error(x, group.metric)[0] for x in runs]
    off = [f"{error:.1f}" for error in off if error > ceiling]
    return f"{text}\n(off the scale: {', '.join(off)} %)" if off else text


def save_learning_curves(
    path: pathlib.Path, group: Group, titles: Titles, style_of: Mapping[str, Style]
) -> None:
    """Saves a PNG of validation error against steps, means over seeds.

    Uniform training at all lengths, every other method at its longest.
    """
    figure = Figure(figsize=(10, 5), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    longest = {}
    for runs in sorted(group.runs, key=lambda x: x.contender.epochs):
        if runs.errors:
            key = runs.contender if runs.method == "uniform" else runs.method
            longest[key] = runs
    histories = [(runs, *_history(runs)) for runs in longest.values()]
    lowest = min(errors.min() for _, _, errors in histories)
    first = np.median([errors[0] for _, _, errors in histories])
    top = first + 0.1 * (first - lowest)
    labels: dict[str, str] = {}
    for runs, steps, errors in histories:
        color, marker, dashes = style_of[runs.method]
        look = {"color": color, "marker": marker, "linestyle": dashes}
        look["zorder"] = 4 if runs.method == "rais" else 3
        axes.plot(steps, errors, **look, linewidth=1.2, markersize=4.5)
        before = labels.get(runs.method, f"{titles.of(runs.method)}, T =")
        comma = "," if runs.method in labels else ""
        labels[runs.method] = f"{before}{comma} {runs.contender.epochs:g}"
        if errors.min() > top:
            labels[runs.method] += " (off the scale)"
    axes.set_ylim(lowest - 0.05 * (first - lowest), top)
    _finish(axes, "steps", "validation error (%)")
    handles = [_handle(style_of[method]) for method in labels]
    _save(figure, path, titles.group(group), handles, list(labels.values()))


def _history(runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean steps and validation errors at each epoch of progress."""
    histories = [run["history"] for run in runs.errors.values()]
    # A run that diverged ends early.
    length = min(len(history["steps"]) for history in histories)
    steps, errors = (
        np.mean([history[name][:length] for history in histories], axis=0)
        for name in ("steps", "validation_error")
    )
    return steps, errors


def _handle(style: Style) -> Line2D:
    color, marker, dashes = style
    return Line2D([], [], color=color, marker=marker, linestyle=dashes, markersize=6.5)


def _finish(axes: Axes, horizontal: str, vertical: str) -> None:
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    axes.set_xlim(left=0)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def _save(
    figure: Figure,
    path: pathlib.Path,
    title: str,
    handles: Sequence[Line2D],
    labels: Sequence[str],
) -> None:
    figure.suptitle(title, fontsize=12)
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(path)
