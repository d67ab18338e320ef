"""The figure of all groups: steps and seconds relative to uniform training."""

import math
import pathlib
from collections.abc import Collection, Iterable, Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.experiments.reporting.comparison import Comparison, Estimate
from examples.experiments.reporting.plots import Style
from examples.experiments.reporting.verdicts import OURS, distinct
from examples.experiments.reporting.wording import Titles

_RANGE = (0.2, 4.0)
_TICKS = (0.25, 0.5, 1.0, 2.0)
_INCHES_PER_DOT = 0.17
_MOST_DOTS = 70
_GAP = 0.6  # between groups, in dots


def save(
    folder: pathlib.Path,
    comparisons: Iterable[Comparison],
    rivals: Collection[str],
    titles: Titles,
    style_of: Mapping[str, Style],
) -> list[str]:
    """Saves `ratios-1.png` and so on, as many as keep them readable; returns the names.

    Each group shows RAIS and the rivals, one below the other, with 95 % intervals.
    Arrows are ends that lie outside the figure, or that uniform training's curve does
    not bound; an open marker is such a bound itself.
    """
    groups: dict[tuple, list[Comparison]] = {}
    for item in distinct(comparisons):
        if item.runs.method == OURS or item.runs.method in rivals:
            groups.setdefault(item.group.name, []).append(item)
    pages: list[list[list[Comparison]]] = []
    dots = _MOST_DOTS
    for members in groups.values():
        if dots + len(members) + 1 > _MOST_DOTS:
            pages.append([])
            dots = 0
        pages[-1].append(sorted(members, key=lambda x: x.runs.method != OURS))
        dots += len(members) + 1
    names = [f"ratios-{number}.png" for number in range(1, len(pages) + 1)]
    for name, page in zip(names, pages, strict=True):
        _save_page(folder / name, page, titles, style_of)
    return names


def _save_page(
    path: pathlib.Path,
    groups: list[list[Comparison]],
    titles: Titles,
    style_of: Mapping[str, Style],
) -> None:
    rows = sum(1 + len(members) + _GAP for members in groups)
    figure = Figure(
        figsize=(10, 1.3 + max(1.7, _INCHES_PER_DOT * rows)),
        dpi=150,
        layout="constrained",
    )
    panels = figure.subplots(1, 2, sharey=True)
    labels: dict[float, str] = {}
    headings, row = [], 0.0
    for members in groups:
        headings.append(len(labels))
        labels[row] = titles.group(members[0].group)
        for item in members:
            row += 1
            labels[row] = titles.contender(item.runs.contender)
            style = style_of[item.runs.method]
            _dot(panels[0], row, item.steps, style)
            _dot(panels[1], row, item.seconds, style)
        row += 1 + _GAP
    panels[0].set_yticks(list(labels), list(labels.values()), fontsize=9)
    for position in headings:
        panels[0].get_yticklabels()[position].set_fontweight("bold")
    panels[0].set_ylim(row - _GAP, -1)
    for axes, name in zip(panels, ("steps", "seconds"), strict=True):
        _finish(axes, name)
    figure.suptitle("At equal test error, relative to uniform training", fontsize=12)
    figure.savefig(path)


def _dot(axes: Axes, row: float, figure: Estimate | None, style: Style) -> None:
    if figure is None:
        return
    color, marker, _ = style
    if figure.low is not None:
        for end, arrow in ((figure.low, "<"), (figure.high, ">")):
            shown = min(max(end, _RANGE[0]), _RANGE[1])
            axes.plot([figure.value, shown], [row, row], color=color, linewidth=1.2)
            if math.isinf(end) or shown != end:
                axes.plot(shown, row, arrow, color=color, markersize=4, clip_on=False)
    value = min(max(figure.value, _RANGE[0]), _RANGE[1])
    # Open where the value is only a bound.
    face = color if figure.sign == "=" else "white"
    axes.plot(value, row, marker, color=color, markersize=6, markerfacecolor=face)


def _finish(axes: Axes, name: str) -> None:
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(*_RANGE)
    axes.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(name)
    axes.grid(axis="x", color="0.9")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
