"""The figure of the benchmarks: test error against epochs and against seconds."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.common.palette import STYLES

_HIGHEST_ERROR = 1.7  # of the axis at most, in units of the lowest error


@dataclasses.dataclass(frozen=True)
class Curve:
    """One training run: an entry for each time its test error was measured.

    Attributes:
        epochs: epochs of data processed, steps times batch size over n.
        seconds: of training.
        errors: test error in percent.
    """

    epochs: Sequence[float]
    seconds: Sequence[float]
    errors: Sequence[float]


def save(
    path: pathlib.Path,
    rows: Mapping[str, Mapping[str, Curve]],
    styles: Sequence[tuple] = STYLES,
) -> None:
    """Saves a PNG with two panels for every row: a title and its named curves.

    Args:
        path: of the PNG.
        rows: by title, the curves by name.
        styles: colour, marker and dashes of the first curve, the second, ...
    """
    figure = Figure(figsize=(9, 3.7 * len(rows)), dpi=200, layout="constrained")
    axes = figure.subplots(len(rows), 2, sharey="row", squeeze=False)
    for (left, right), (title, curves) in zip(axes, rows.items(), strict=True):
        _draw(left, right, curves, styles)
        lowest = min(min(curve.errors) for curve in curves.values())
        highest = max(max(curve.errors) for curve in curves.values())
        left.set_ylim(0.97 * lowest, min(1.03 * highest, _HIGHEST_ERROR * lowest))
        left.set_ylabel("test error (%)")
        left.set_title(title, loc="left", fontsize=11)
        left.set_xlabel("epochs of data processed")
        right.set_xlabel("seconds of training")
        for panel in (left, right):
            panel.set_xlim(left=0)
            panel.grid(color="0.9")
            panel.spines[["top", "right"]].set_visible(False)
        right.legend(frameon=False)
    figure.savefig(path)


def _draw(
    left: Axes, right: Axes, curves: Mapping[str, Curve], styles: Sequence[tuple]
) -> None:
    for (name, curve), style in zip(curves.items(), styles, strict=False):
        color, marker, dashes = style
        look = {
            "color": color,
            "marker": marker,
            "linestyle": dashes,
            "label": name,
            "markersize": 5,
            "linewidth": 1.6,
        }
        left.plot(curve.epochs, curve.errors, **look)
        right.plot(curve.seconds, curve.errors, **look)
