"""A figure of the examples that are drawn most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_osgd.most_sampled import MostSampled
from keras_osgd.plots.style import DARK, STYLES, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["gallery"]

_FEATURES = 6  # that a table shows
_CHARACTER = 0.064  # inches, of a title
_WRONG = STYLES[1][0]


def gallery(
    x: np.ndarray,
    most: MostSampled,
    predictions: Sequence[Any] | None = None,
    class_names: Sequence[str] | None = None,
    feature_names: Sequence[str] | None = None,
    columns: int = 6,
) -> Figure:
    r"""Returns a figure of examples: images, or the rows of a table.

    Each with its index, its label, what was predicted in its place, and its share of
    all draws.

    Args:
        x: `[k, height, width]`, `[k, height, width, 1 or 3]` or `[k, features]`, the
            rows `most.index` of the data.
        most: of these, as `model.sampling.most_sampled(k)` returns them.
        predictions: `[k]`, classes or numbers; those that differ from the label are
            marked by a frame and a cross.
        class_names: names of the classes 0, 1, ...
        feature_names: of a table's columns.
        columns: of images.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if x and `most` are not of the same length, or of no such shape.

    Example:
        >>> ones, rows = np.ones(2), np.arange(2)
        >>> most = MostSampled(rows, rows, ones / 2, ones, ones)
        >>> figure = gallery(np.zeros([2, 8, 8]), most, predictions=[0, 0])
        >>> [axes.get_title() for axes in figure.axes]
        ['0: 0\n50 % of draws', '1: 1 ✗ 0\n50 % of draws']
    """
    x = np.asarray(x)
    if len(x) != len(most.index) or x.ndim not in (2, 3, 4) or not len(x):
        raise ValueError(
            "`x` must be the examples of `most`, images or rows of a table. Received: "
            f"x.shape={x.shape} and {len(most.index)} examples. Pass x[most.index]."
        )
    words = [_words(most, i, predictions, class_names) for i in range(len(most.index))]
    if x.ndim == 2:
        return _table(x, words, feature_names)
    return _images(x, words, min(columns, len(x)))


def _words(
    most: MostSampled, i: int, predictions: Any, class_names: Any
) -> tuple[str, str, str, str, bool]:
    """Returns index, label, prediction and share of an example, and if it is wrong."""

    def name(value: Any) -> str:
        if class_names is not None:
            return str(class_names[int(value)])
        return f"{value:.4g}" if isinstance(value, float | np.floating) else f"{value}"

    label = "" if most.label is None else name(most.label[i])
    predicted = "" if predictions is None else name(predictions[i])
    share = f"{100 * most.share_of_draws[i]:.3g} %"
    wrong = bool(label and predicted) and label != predicted
    return str(most.index[i]), label, predicted, share, wrong


def _images(x: np.ndarray, words: Any, columns: int) -> Figure:
    rows = -(-len(x) // columns)
    longest = max(len(f"{word[0]}: {word[1]} ✗ {word[2]}") for word in words)
    width = max(1.55, _CHARACTER * longest)
    figure = new_figure(max(width * columns, 3.0), 1.95 * rows)
    panels = figure.subplots(rows, columns, squeeze=False)
    low, high = float(x.min()), float(x.max())
    for axes, image, (index, label, predicted, share, wrong) in zip(
        panels.flat, x, words, strict=False
    ):
        image = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
        scaled = (image - low) / max(high - low, 1e-12)
        axes.imshow(scaled, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        shown = f"{label} ✗ {predicted}" if wrong else label or predicted
        axes.set_title(f"{index}: {shown}\n{share} of draws", fontsize=8)
        for spine in axes.spines.values():
            spine.set(color=_WRONG if wrong else "0.8", linewidth=2.0 if wrong else 0.8)
    for axes in list(panels.flat)[len(x) :]:
        axes.remove()
    return figure


def _table(x: np.ndarray, words: Any, feature_names: Any) -> Figure:
    shown = x[:, :_FEATURES]
    names = [f"x{i}" for i in range(x.shape[1])]
    names = [str(name) for name in feature_names or names][:_FEATURES]
    header = ["index", "label", "prediction", "of draws", *names]
    lines = [
        [index, label, f"✗ {predicted}" if wrong else predicted, share]
        + [f"{value:.4g}" for value in row]
        for (index, label, predicted, share, wrong), row in zip(
            words, shown, strict=True
        )
    ]
    figure = new_figure(1.05 * len(header), 0.27 * (len(lines) + 1))
    axes = figure.subplots()
    axes.axis("off")
    place = {"bbox": [0, 0, 1, 1], "cellLoc": "right", "colLoc": "right"}
    table = axes.table(lines, colLabels=header, **place)
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    _frame(table, [wrong for *_, wrong in words])
    return figure


def _frame(table: Any, wrong: Sequence[bool]) -> None:
    for (row, column), cell in table.get_celld().items():
        cell.set(edgecolor="0.85", linewidth=0.6)
        if row == 0:
            cell.set_text_props(weight="bold", color=DARK)
        elif wrong[row - 1] and column == 2:
            cell.set_text_props(color=_WRONG, weight="bold")
