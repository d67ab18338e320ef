"""A figure of the examples that are drawn most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_osgd.plots.style import DARK, STYLES, new_figure, note, shortened
from keras_osgd.scores.most_sampled import MostSampled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["gallery"]

_FEATURES = 6  # shown in a table
_CHARACTER = 0.064  # inches of a letter in a title
_LETTERS = 60  # of a name that are shown
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

    Each is shown with its index, its label, the prediction, and its share of all draws.

    Args:
        x: `[k, height, width]`, `[k, height, width, 1 or 3]` or `[k, features]`, the
            rows `most.index` of the data.
        most: these examples, as `model.sampling.most_sampled(k)` returns them.
        predictions: `[k]`, classes, numbers or names; those that differ from the label
            are marked by a frame and a cross.
        class_names: names of the classes 0, 1, ...
        feature_names: names of a table's columns; the first six are shown.
        columns: number of images in a row.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if an argument does not have the length or shape given above.

    Example:
        >>> ones, rows = np.ones(2), np.arange(2)
        >>> most = MostSampled(rows, rows, ones / 2, ones, ones)
        >>> figure = gallery(np.zeros([2, 8, 8]), most, predictions=[0, 0])
        >>> [axes.get_title() for axes in figure.axes]
        ['0: 0\n50.0 % of draws', '1: 1 ✗ 0\n50.0 % of draws']
    """
    x = np.asarray(x)
    if len(x) != len(most.index) or x.ndim not in (2, 3, 4) or not len(x):
        raise ValueError(
            "`x` must be the examples of `most`, images or rows of a table. Received: "
            f"x.shape={x.shape} and {len(most.index)} examples. Pass x[most.index]."
        )
    predictions = _checked(predictions, len(x))
    for values in (most.label, predictions):
        _check_names(class_names, values)
    words = [_words(most, i, predictions, class_names) for i in range(len(most.index))]
    if x.ndim == 2:
        return _table(x, words, feature_names)
    figure = _images(x, words, min(columns, len(x)))
    note(figure, _meaning(most.label is not None, predictions is not None))
    return figure


def _checked(predictions: Any, length: int) -> np.ndarray | None:
    if predictions is None:
        return None
    found = np.asarray(predictions)
    if found.shape == (length,):
        return found
    advice = "Pass those of x, in its order."
    if found.ndim == 2 and found.shape[1] > 1:
        advice = "Of probabilities, take argmax(axis=-1)."
    elif found.ndim == 2:
        advice = "Take [:, 0]; of probabilities, whether it is above 0.5."
    raise ValueError(
        f"`predictions` must have one number or name for each of the {length} "
        f"examples. Received: shape {found.shape}. {advice}"
    )


def _check_names(class_names: Sequence[str] | None, values: Any) -> None:
    values = np.asarray([] if values is None else values)
    if class_names is None or values.dtype.kind not in "biuf" or not values.size:
        return
    if not 0 <= values.min() <= values.max() < len(class_names):
        raise ValueError(
            "`class_names` must have a name for every class from 0 on. Received: "
            f"{len(class_names)} names, and classes from {values.min()} to "
            f"{values.max()}. Add the missing names, or leave out `class_names`."
        )


def _meaning(labelled: bool, predicted: bool) -> str:
    """Returns the meaning of the words above an image."""
    shown = "label" if labelled else "prediction" if predicted else ""
    if labelled and predicted:
        shown = "label (framed: label ✗ prediction, where they differ)"
    return f"Index{': ' * bool(shown)}{shown}, and its share of all draws."


def _decimals(shares: np.ndarray) -> int:
    """Returns the decimals that show three digits of the least share, in per cent."""
    known = shares[shares > 0]
    return int(np.clip(-np.floor(np.log10(known.min())), 0, 4)) if known.size else 0


def _words(
    most: MostSampled, i: int, predictions: Any, class_names: Any
) -> tuple[str, str, str, str, bool]:
    """Returns index, label, prediction, share, and whether the prediction is wrong."""

    def name(value: Any) -> str:
        if class_names is not None and not isinstance(value, str):
            value = str(class_names[int(value)])
        number = isinstance(value, float | np.floating)
        return f"{value:.4g}" if number else shortened(f"{value}", _LETTERS)

    label = "" if most.label is None else name(most.label[i])
    predicted = "" if predictions is None else name(predictions[i])
    share = f"{100 * most.share_of_draws[i]:.{_decimals(most.share_of_draws)}f} %"
    wrong = bool(label and predicted) and label != predicted
    return str(most.index[i]), label, predicted, share, wrong


def _images(x: np.ndarray, words: Any, columns: int) -> Figure:
    rows = -(-len(x) // columns)
    longest = max(len(f"{word[0]}: {word[1]} ✗ {word[2]}") for word in words)
    width = max(1.55, _CHARACTER * longest)
    figure = new_figure(max(width * columns, 3.0), 1.95 * rows + 0.3)
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
        title = f"{index}: {shown}\n{share} of draws"
        axes.set_title(title, fontsize=8, parse_math=False)
        for spine in axes.spines.values():
            spine.set(color=_WRONG if wrong else "0.8", linewidth=2.0 if wrong else 0.8)
    for axes in list(panels.flat)[len(x) :]:
        axes.remove()
    return figure


def _table(x: np.ndarray, words: Any, feature_names: Any) -> Figure:
    shown = x[:, :_FEATURES]
    names = [f"x{i}" for i in range(x.shape[1])]
    if feature_names is not None:
        names = [shortened(str(name), _LETTERS) for name in feature_names]
    if len(names) != x.shape[1]:
        raise ValueError(
            "`feature_names` must have one name for each column of x. Received: "
            f"{len(names)} names, x.shape={x.shape}. Pass all of them, in their order."
        )
    left_out = x.shape[1] - shown.shape[1]
    more = ["…"] if left_out else []
    header = ["index", "label", "prediction", "of draws", *names[:_FEATURES], *more]
    lines = [
        [index, label, f"✗ {predicted}" if wrong else predicted, share]
        + [f"{value:.4g}" for value in row]
        + ["…" for _ in more]
        for (index, label, predicted, share, wrong), row in zip(
            words, shown, strict=True
        )
    ]
    figure = new_figure(1.05 * len(header), 0.27 * (len(lines) + 1) + 0.3)
    axes = figure.subplots()
    axes.axis("off")
    place = {"bbox": [0, 0, 1, 1], "cellLoc": "right", "colLoc": "right"}
    table = axes.table(lines, colLabels=header, **place)
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    _frame(table, [wrong for *_, wrong in words])
    told = "Of draws: its share of all. ✗: the prediction differs from the label."
    hidden = f" x has {left_out} more columns than are shown." if left_out else ""
    note(figure, told + hidden)
    return figure


def _frame(table: Any, wrong: Sequence[bool]) -> None:
    for (row, column), cell in table.get_celld().items():
        cell.set(edgecolor="0.85", linewidth=0.6)
        cell.set_text_props(parse_math=False)
        if row == 0:
            cell.set_text_props(weight="bold", color=DARK)
        elif wrong[row - 1] and column == 2:
            cell.set_text_props(color=_WRONG, weight="bold")
