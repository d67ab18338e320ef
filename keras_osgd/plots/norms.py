"""A figure of predicted and observed gradient norms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_osgd.plots.sources import one_record
from keras_osgd.plots.style import DARK, STYLES, finish, legend, new_figure, note

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["predicted_norms"]

_BINS = 12
_LINEAR = 0.25  # of the mean prediction: the linear part of an axis
_POINTS, _LINE, _BAND = "observations", "as predicted", "uncertainty set"
_OF = {"last_layer": "last layer's", "exact": "exact"}
_NOTE = (
    "Both axes are linear near 0 and logarithmic above. The set bounds a mean over all "
    "examples: single points may lie outside."
)


def predicted_norms(run: Any) -> Figure:
    """Returns a figure of observed against predicted gradient norms.

    A point is one of the last observations: the norm <c, s> predicted from its features
    before the draw, and the norm observed. The band is the uncertainty set's
    <c, s> +- sqrt(h <d, s>), averaged over points of similar prediction. It bounds a
    mean over all examples, so that single points may lie outside.

    Args:
        run: one directory of `SamplingMonitor(log_dir=...)`, or a mapping with `[k]`
            arrays "predicted", "variance" and "observed", all >= 0.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the run kept no observations, or there are several runs.

    Example:
        >>> arrays = {"predicted": [1, 2], "observed": [1, 3], "variance": [0.1, 0.2]}
        >>> figure = predicted_norms({k: np.array(v) for k, v in arrays.items()})
        >>> figure.axes[0].lines[0].get_ydata().tolist()
        [1.0, 3.0]
    """
    given = isinstance(run, Mapping) and "predicted" in run
    record = None if given else one_record(run, "predicted_norms")
    arrays = run if given else record.arrays
    if "predicted" not in arrays:
        raise ValueError(
            "The run must have observations beside their predictions. Received: one "
            "without. Train it with `RAIS` and `SamplingMonitor(log_dir=...)`, and "
            "pass that directory."
        )
    names = ("predicted", "variance", "observed")
    predicted, variance, observed = (np.asarray(arrays[x], float) for x in names)
    # Linear up to a fraction of the typical norm, logarithmic above: norms may be 0.
    typical = float(np.mean(predicted)) or 1.0
    scale = {"value": "asinh", "linear_width": _LINEAR * typical}
    figure = new_figure(5.4, 5.5)
    axes = figure.subplots()
    axes.set_xscale(**scale)
    axes.set_yscale(**scale)
    color, band = STYLES[0][0], STYLES[1][0]
    look = {"marker": "o", "markersize": 2.6, "alpha": 0.4, "markeredgewidth": 0}
    (points,) = axes.plot(
        predicted, observed, linestyle="", color=color, label=_POINTS, **look
    )
    x, spread = _binned(predicted, variance)
    ends = [np.maximum(x + sign * spread, 0.0) for sign in (-1, 1)]
    area = axes.fill_between(x, *ends, color=band, alpha=0.22, linewidth=0, label=_BAND)
    for end in ends:
        axes.plot(x, end, color=band, linewidth=1.0, linestyle=(0, (5, 1.5)))
    top = 1.1 * max(predicted.max(), observed.max(), 1e-12)
    (line,) = axes.plot([0, top], [0, top], color=DARK, linewidth=1.2, label=_LINE)
    norm = _norm(str(record.settings.get("sampling")) if record else "")
    finish(axes, f"predicted {norm}", f"observed {norm}")
    axes.set(xlim=(0, top), ylim=(-0.01 * typical, top), aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(_ticks(top, typical))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_locator(_no_ticks())
    note(figure, _NOTE)
    legend(figure, [(points, _POINTS), (line, _LINE), (area, _BAND)])
    return figure


def _norm(sampling: str) -> str:
    """Returns the kind of norm that a run observed, by the sampling in run.json."""
    found = re.search(r"norm='(\w+)'", sampling)
    of = _OF.get(found[1], "") if found else ""
    return f"{of} gradient norm".strip()


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _ticks(top: float, typical: float) -> Any:
    """Returns the places of numbers on the axes: 0, and 1, 2, 5 times powers of 10."""
    from matplotlib.ticker import FixedLocator

    first = np.floor(np.log10(_LINEAR * typical))
    powers = 10.0 ** np.arange(first, np.log10(top) + 1)
    places = (powers[:, np.newaxis] * [1, 2, 5]).ravel()
    return FixedLocator(
        [0.0, *places[(places >= 0.7 * _LINEAR * typical) & (places <= top)]]
    )


def _binned(predicted: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns mean predictions and root mean variances of parts of equal size."""
    parts = np.array_split(np.argsort(predicted), min(_BINS, len(predicted)))
    x = np.array([predicted[part].mean() for part in parts])
    return x, np.sqrt([variance[part].mean() for part in parts])
