"""Figures of how unequally examples are drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_osgd.plots.sources import grouped, one_record
from keras_osgd.plots.style import DARK, GREY, STYLES, finish, legend, new_figure, style
from keras_osgd.run_directory import PERCENTILES, percentile_name, share_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["probabilities", "probabilities_over_time", "share_of_draws"]

_BINS = 60
_BANDS = ((0, 100, 0.12), (1, 99, 0.16), (5, 95, 0.22), (25, 75, 0.34))
_ROOM = 0.055  # of the axis: space for a name
_UNIFORM = "uniform draws"
_N_P = "n p, times as often as uniform draws"
_NAMES = {0: "least", 50: "median", 100: "largest"}


def probabilities(p: np.ndarray) -> Figure:
    """Returns a histogram of n p, the frequency of draws over that of uniform draws.

    Args:
        p: `[n]`, >= 0, as `model.sampling.probabilities()`.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there are no probabilities.

    Example:
        >>> figure = probabilities(np.array([0.1, 0.1, 0.8]))
        >>> [bar.get_height() for bar in figure.axes[0].patches if bar.get_height()]
        [np.float64(66.6...), np.float64(33.3...)]
    """
    given, p = p, np.asarray(p)
    if p.dtype.kind not in "fiu" or p.ndim != 1 or not (p > 0).any():
        what = f"shape {p.shape}" if p.dtype.kind in "fiu" else repr(given)
        raise ValueError(
            "`p` must be the probabilities of all examples, [n]. Received: "
            f"{what}. Pass `model.sampling.probabilities()`, after an epoch; of a "
            "run's directory `probabilities_over_time` shows the percentiles."
        )
    p = p.astype(np.float64)
    n_p = len(p) * p
    n_p = n_p[n_p > 0]  # without the examples set aside
    low, high = min(n_p.min(), 0.9), max(n_p.max(), 1.1)
    figure = new_figure(6.0, 3.6)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.hist(
        n_p,
        bins=np.geomspace(low, high * (1 + 1e-9), _BINS + 1),
        weights=np.full(len(n_p), 100.0 / len(n_p)),
        color=STYLES[0][0],
        edgecolor="white",
        linewidth=0.3,
    )
    look = {"color": DARK, "linestyle": (0, (4, 2)), "linewidth": 1.2}
    one = axes.axvline(1.0, label=_UNIFORM, **look)
    finish(axes, _N_P, "share of the examples (%)")
    _plain_numbers(axes.xaxis)
    legend(figure, [(one, _UNIFORM)])
    return figure


def probabilities_over_time(run: Any) -> Figure:
    """Returns a figure of the percentiles of n p against effective epochs.

    Args:
        run: one directory of `SamplingMonitor(log_dir=...)`.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the run kept no percentiles, or there are several runs.

    Example:
        >>> history = {f"n_p_{q}": [1.0, 0.5 + q / 100] for q in PERCENTILES}
        >>> figure = probabilities_over_time(history)
        >>> figure.axes[0].lines[0].get_ydata().tolist()  # the median
        [1.0, 1.0]
    """
    history = one_record(run, "probabilities_over_time").history
    if percentile_name(50) not in history:
        raise ValueError(
            "The run must have percentiles of n p. Received: a history of "
            f"{sorted(history)}. Train it with importance sampling and "
            "`SamplingMonitor(log_dir=...)`, and pass that directory."
        )
    known = "effective_epochs" if "effective_epochs" in history else "epoch"
    x = history[known]
    figure = new_figure(6.6, 3.9)
    axes = figure.subplots()
    axes.set_yscale("log")
    color = STYLES[0][0]
    for low, high, alpha in _BANDS:
        ends = [history[percentile_name(q)] for q in (low, high)]
        axes.fill_between(x, *ends, color=color, alpha=alpha, linewidth=0)
    axes.plot(x, history[percentile_name(50)], color=DARK, linewidth=1.8)
    for q in PERCENTILES:
        axes.plot(x, history[percentile_name(q)], color=color, linewidth=0.6, zorder=1)
    look = {"color": DARK, "linestyle": (0, (4, 2)), "linewidth": 1.0}
    one = axes.axhline(1.0, label=_UNIFORM, **look)
    finish(axes, known.replace("_", " "), _N_P)
    axes.set_xlim(left=0, right=x.max() if len(x) > 1 else None)
    _plain_numbers(axes.yaxis)
    ends = {q: history[percentile_name(q)][-1] for q in PERCENTILES}
    _name_percentiles(axes, x[-1], ends)
    legend(figure, [(one, _UNIFORM)])
    return figure


def _name_percentiles(axes: Axes, x: float, ends: dict[float, float]) -> None:
    """Names percentiles at their right end, where earlier names leave room."""
    low, high = np.log(axes.get_ylim())
    taken: list[float] = []
    for q in (50, 0, 100, 75, 25, 95, 99, 5):
        place = (np.log(ends[q]) - low) / (high - low)
        if all(abs(place - other) >= _ROOM for other in taken):
            axes.annotate(
                _NAMES.get(q, f"{q}th percentile"),
                (x, ends[q]),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=DARK,
                annotation_clip=False,
            )
            taken.append(place)


def _plain_numbers(axis: Any) -> None:
    """Writes 0.1, 0.2, 0.5, 1 in place of powers of 10."""
    from matplotlib.ticker import LogLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: "")


def share_of_draws(runs: Any) -> Figure:
    """Returns a figure of the share of draws that the most drawn examples take.

    Args:
        runs: as in `learning_curves`, directories with importance sampling; or `[n]`
            counts of draws, as `model.sampling_state.times_drawn`.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if a run has no shares.

    Example:
        >>> figure = share_of_draws(np.array([3, 1, 0, 0]))
        >>> figure.axes[0].lines[1].get_ydata()[[0, 25, 50, 100]].tolist()
        [0.0, 75.0, 100.0, 100.0]
    """
    curves = _shares(runs)
    figure = new_figure(5.0, 4.9)
    axes = figure.subplots()
    ends, entries = [0, 100], []
    (even,) = axes.plot(ends, ends, color=GREY, linestyle=(0, (4, 2)), label=_UNIFORM)
    for order, (name, shares) in enumerate(curves.items()):
        x = np.linspace(0, 100, len(shares))
        look = style(order, len(x))
        entries += [(axes.plot(x, 100 * shares, label=name, **look)[0], name)]
    finish(axes, "share of the examples, most drawn first (%)", "share of draws (%)")
    axes.set(xlim=(0, 100), ylim=(0, 101), aspect="equal")
    legend(figure, [*entries, (even, _UNIFORM)])
    return figure


def _shares(runs: Any) -> dict[str, np.ndarray]:
    """Returns by name the shares of draws of the most drawn 0 %, 1 %, ... of rows."""
    if isinstance(runs, np.ndarray):
        return {"draws": share_curve(runs)}
    curves = {}
    for name, group in grouped(runs).items():
        arrays = [record.arrays.get("share_of_draws") for record in group]
        if any(array is None for array in arrays):
            raise ValueError(
                "Every run must have shares of draws. Received: "
                f"{name!r} without. Train it with importance sampling and "
                "`SamplingMonitor(log_dir=...)`, and pass that directory."
            )
        curves[name] = np.mean(arrays, axis=0)
    return curves
