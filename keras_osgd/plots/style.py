"""The look that all figures share, and the only place that writes texts of users.

These are shown as they are: "$" begins no formula, and a first "_" hides nothing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "DARK",
    "GREY",
    "STYLES",
    "finish",
    "in_words",
    "legend",
    "new_figure",
    "note",
    "shortened",
    "style",
]

# Okabe and Ito's palette without its yellow, which print loses.
STYLES: tuple[tuple[str, str, Any], ...] = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", (0, (5, 1.5))),
    ("#009E73", "^", (0, (5, 1.5, 1, 1.5))),
    ("#CC79A7", "D", (0, (1, 1.2))),
    ("#56B4E9", "v", (0, (3, 1, 1, 1, 1, 1))),
    ("#E69F00", "P", (0, (7, 2))),
    ("#000000", "X", (0, (9, 1.5, 1, 1.5, 1, 1.5))),
)
DARK, GREY = "#222222", "#8A8A8A"
_LETTER, _HANDLE = 0.072, 0.75  # inches of a legend's entry
_ROW = 0.19  # inches
_LONGEST, _LABEL = 120, 60  # letters of a name, and of an axis
_SMALL = 0.064  # inches of a note's letter
_WORDS = {"val": "validation", "acc": "accuracy", "lr": "learning rate"}


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure of a size in inches, outside of pyplot.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "`keras_osgd.plots` needs matplotlib. Received: an installation without "
            "it. pip install 'keras_osgd[plot]'"
        ) from error
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def style(order: int, points: int) -> dict[str, Any]:
    """Returns colour, dashes and marker of the line number `order`.

    Args:
        order: from 0 on; after seven, the dashes change with the colours.
        points: of the line; about a dozen of them are marked.
    """
    color, marker, dashes = STYLES[order % len(STYLES)]
    if order >= len(STYLES):
        dashes = STYLES[(order // len(STYLES) + order) % len(STYLES)][2]
    return {
        "color": color,
        "linestyle": dashes,
        "marker": marker,
        "markevery": max(1, points // 12),
        "linewidth": 1.6,
        "markersize": 5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    }


def finish(axes: Axes, horizontal: str, vertical: str) -> None:
    """Labels the axes, adds a grid, and removes the top and right borders."""
    axes.set_xlabel(shortened(horizontal, _LABEL), parse_math=False)
    axes.set_ylabel(shortened(vertical, _LABEL), parse_math=False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def in_words(name: str) -> str:
    """Returns the name of a history's column in words, for a reader.

    Example:
        >>> in_words("val_loss")
        'validation loss'
    """
    return " ".join(_WORDS.get(word, word) for word in name.split("_")).strip() or name


def note(figure: Figure, text: str) -> None:
    """Writes a note above the panels, in lines that fit the figure."""
    letters = max(20, int(figure.get_figwidth() / _SMALL))
    told = textwrap.fill(text, letters)
    figure.suptitle(told, fontsize=8, color=DARK, parse_math=False)


def shortened(text: str, most: int = _LONGEST) -> str:
    r"""Returns a text in one line, without its middle if it is too long.

    Example:
        >>> shortened("run\n1"), shortened("abcdefghi", 5)
        ('run 1', 'ab…hi')
    """
    text = "".join(c if c.isprintable() else " " for c in text)
    side = (most - 1) // 2
    return text if len(text) <= most else f"{text[:side]}…{text[-side:]}"


def legend(figure: Figure, entries: Sequence[tuple[Artist, str]]) -> None:
    """Adds a legend below the panels, where it hides nothing, in rows that fit.

    The figure grows with the rows, and in width for a long name: panels keep their
    size.

    Args:
        figure: complete but for the legend.
        entries: artists and their names, of which long ones lose their middle.
    """
    if not entries:
        return
    names = [shortened(name) for _, name in entries]
    inches = [_LETTER * len(name) + _HANDLE for name in names]
    width, height = figure.get_size_inches()
    columns = len(names) if sum(inches) < width else max(1, int(width / max(inches)))
    rows = -(-len(names) // columns)
    figure.set_size_inches(max(width, max(inches) + 0.2), height + _ROW * (rows - 1))
    made = figure.legend(
        [artist for artist, _ in entries],
        ["name"] * len(names),  # matplotlib may leave out those that begin with "_"
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
        handlelength=3.2,
        columnspacing=1.2,
    )
    for text, name in zip(made.get_texts(), names, strict=True):
        text.set(text=name, parse_math=False)
