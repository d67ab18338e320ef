"""The report's first page: time to target, worst ratio first, and the control."""

import dataclasses
import math
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from examples.common import markdown
from examples.common.estimates import centred, t_interval
from examples.common.records import Record, Records
from examples.experiments import target
from examples.experiments.reporting import curves, plots, wording
from examples.experiments.reporting.comparison import (
    RESAMPLES,
    Draws,
    Estimate,
    ratio,
)
from examples.experiments.reporting.runs import Group, Runs
from examples.experiments.workloads import Workload

_MISS = 4.0
"""Times uniform training's seconds that a miss counts as, in means and profile."""

_UNITS = {
    "error": "error, %",
    "balanced_error": "balanced error, %",
    "bits": "bits a byte",
    "deviation": "deviation, %",
}
_CONTROLS = {
    "rais": "RAIS",
    "at_its_rates": "uniform, at the rates of RAIS",
    "own_schedule": "uniform, own schedule",
}
_LEGEND = """\
AlgoPerf-style, self-reported, not an AlgoPerf result. The target is a validation \
value that tuned uniform training alone decided, at a length from which longer \
training still helps. Each method trains at the shortest length at which its own \
tuned runs say that it reaches the target, on seeds that decided nothing, alone on \
the machine and in turn. Seconds are medians over those runs, with tracing and \
compilation and without evaluation; a run that misses the target counts as infinite, \
and "of" says how many reached it. Ratios are to uniform training, below 1 is a gain. \
They are read off curves a + b/steps^c through each method's validation values at all \
its lengths and seeds, at the target, times the seconds of a step; 95 % intervals are \
a bootstrap over seeds."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one workload.

    Attributes:
        workload: which.
        metric: that it is judged by.
        goal: the target.
        timed: runs alone on the machine, by method.
        steps: by method but uniform training: its steps at the target over those of
            uniform training.
        seconds: likewise with tracing and compilation; `None` before they are timed.
    """

    workload: Workload
    metric: str
    goal: float
    timed: Mapping[str, list[Record]]
    steps: Mapping[str, Estimate]
    seconds: Mapping[str, Estimate | None]

    def times(self, method: str) -> list[float]:
        """Returns seconds to the target of each run, infinite where it misses."""
        return [
            run["first_step_seconds"] + run["seconds"]
            if not run["failed"] and run["validation"][self.metric] <= self.goal
            else math.inf
            for run in self.timed[method]
        ]

    def median(self, method: str) -> float:
        """Returns the median time to the target; infinite for a method not timed."""
        times = self.times(method)
        return statistics.median(times) if times else math.inf


def outcomes(
    records: Records, workloads: Sequence[Workload], resamples: int = RESAMPLES
) -> list[Outcome]:
    """Returns those whose runs at all lengths are there, the worst of RAIS first."""
    found = []
    for workload in workloads:
        group = target.group_of(records.select(), workload)
        if target.target(group) is not None and group.complete("rais"):
            found.append(_outcome(records, workload, group, resamples))
    return sorted(found, key=_of_rais, reverse=True)


def _of_rais(outcome: Outcome) -> float:
    return (outcome.seconds.get("rais") or outcome.steps["rais"]).value


def _outcome(
    records: Records, workload: Workload, group: Group, resamples: int
) -> Outcome:
    goal, timed = target.target(group), {}
    settings = target.timed_settings(group, workload)
    for method in workload.lengths:
        wanted = settings.get(method, [])
        timed[method] = [records[x.key] for x in wanted if x.key in records]
    uniform, steps, seconds = group.uniform, {}, {}
    for method in workload.lengths:
        runs = group.of(method)
        if method == "uniform" or not group.complete(method):
            continue
        draws = Draws([*runs, *uniform], resamples)
        own, theirs = (_at(draws, items, group, goal) for items in (runs, uniform))
        side = np.sign(own[1] - theirs[1])
        steps[method] = ratio(own[0] / theirs[0], side, draws.has_interval)
        seconds[method] = None
        if timed[method] and timed["uniform"]:
            ours = _seconds(draws, timed[method], own[0])
            quotient = ours / _seconds(draws, timed["uniform"], theirs[0])
            seconds[method] = ratio(quotient, side, draws.has_interval)
    return Outcome(workload, group.metric, goal, timed, steps, seconds)


def _at(
    draws: Draws, items: list[Runs], group: Group, goal: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps to the target, and on which side of the curve it lies."""
    values = draws.table(items, "validation", group.metric)
    curve = curves.fitted(draws.table(items, "steps"), values)
    return curve.steps(np.full(len(values), goal))


def _seconds(draws: Draws, timed: list[Record], steps: np.ndarray) -> np.ndarray:
    first = draws.medians([run["first_step_seconds"] for run in timed])
    return first + steps * draws.medians(
        [run["seconds"] / run["steps"] for run in timed]
    )


def sections(
    records: Records,
    workloads: Sequence[Workload],
    folder: pathlib.Path,
    title_of: Callable[[str], str],
) -> list[str]:
    """Returns the first page, and saves its figure; empty before any target is known.

    Args:
        records: of all runs.
        workloads: of the study.
        folder: of the report.
        title_of: from a method's name to its title.
    """
    found = outcomes(records, workloads)
    if not found:
        return []
    missing = [x.name for x in workloads if x not in [y.workload for y in found]]
    parts = ["## Time to target", _table(found), _LEGEND]
    if missing:
        parts.append(f"Not run yet: {'; '.join(missing)}.")
    if any(any(x.timed.values()) for x in found):
        folder.mkdir(parents=True, exist_ok=True)
        _save_profile(folder / "profile.png", found, title_of)
        parts += [
            "### All methods",
            _of_methods(found, title_of),
            "![Share of workloads within a factor of the fastest](profile.png)",
        ]
    return [*parts, *_control(records, workloads)]


def _table(found: Sequence[Outcome]) -> str:
    columns = [
        "workload",
        "target (validation)",
        "seconds, uniform",
        "seconds, RAIS",
        "ratio of seconds",
        "ratio of steps",
        "test, uniform",
        "test, RAIS",
    ]
    rows = [
        [
            item.workload.name,
            f"{item.goal:.2f} ({_UNITS[item.metric]})",
            *(_time(item, method) for method in ("uniform", "rais")),
            wording.estimate(item.seconds["rais"]),
            wording.estimate(item.steps["rais"]),
            *(_test(item, method) for method in ("uniform", "rais")),
        ]
        for item in found
    ]
    return markdown.table(columns, rows)


def _time(item: Outcome, method: str) -> str:
    times = item.times(method)
    if not times:
        return "-"
    reached = sum(map(math.isfinite, times))
    median = item.median(method)
    text = f"{median:.1f}" if math.isfinite(median) else "missed"
    return f"{text} ({reached} of {len(times)})"


def _test(item: Outcome, method: str) -> str:
    values = [run["test"][item.metric] for run in item.timed[method]]
    if not values:
        return "-"
    return markdown.with_interval(centred(values)[0], t_interval(values))


def _of_methods(found: Sequence[Outcome], title_of: Callable[[str], str]) -> str:
    """Returns seconds to the target of every method, and the geometric mean."""
    methods = list(found[0].workload.lengths)
    timed = [item for item in found if item.timed["uniform"]]
    rows = [
        [item.workload.name, *(_time(item, method) for method in methods)]
        for item in timed
    ]
    means = ["geometric mean of the ratios"]
    for method in methods:
        ratios = [_over_uniform(item, method) for item in timed]
        means.append(f"{statistics.geometric_mean(ratios):.2f}")
    rows.append(means)
    table = markdown.table(["workload", *map(title_of, methods)], rows)
    return f"{table}\n\nIn the mean a miss counts as {_MISS:g}."


def _over_uniform(item: Outcome, method: str) -> float:
    if method == "uniform":
        return 1.0
    found = item.seconds.get(method)
    if found is None or not math.isfinite(item.median(method)):
        return _MISS
    return found.value


def _save_profile(
    path: pathlib.Path, found: Sequence[Outcome], title_of: Callable[[str], str]
) -> None:
    """Saves the share of workloads that a method solves within a factor of the best."""
    methods = list(found[0].workload.lengths)
    timed = [item for item in found if item.timed["uniform"]]
    times = np.array([[item.median(method) for method in methods] for item in timed])
    with np.errstate(invalid="ignore"):
        factors = times / times.min(axis=1, keepdims=True)
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes, style_of = figure.subplots(), plots.styles(methods)
    for method, own in zip(methods, factors.T, strict=True):
        solved = np.sort(own[own <= _MISS])
        share = np.arange(len(solved) + 1) / len(timed)
        color, _, dashes = style_of[method]
        axes.step(
            [1.0, *solved, _MISS],
            [0.0, *share[1:], share[-1]],
            where="post",
            color=color,
            linestyle=dashes,
            label=title_of(method),
        )
    axes.set_xlabel("seconds to the target, over those of the fastest method")
    axes.set_ylabel("share of the workloads")
    axes.set_xlim(1, _MISS)
    axes.set_ylim(0, 1.02)
    axes.grid(color="0.9")
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path)


def _control(records: Records, workloads: Sequence[Workload]) -> list[str]:
    """Returns the table of the control, empty before its first run."""
    rows = []
    for workload in workloads:
        group = target.group_of(records.select(), workload)
        settings = target.control_settings(group, workload)
        runs = [records[x.key]["measures"] for x in settings if x.key in records]
        if not runs:
            continue
        values = {
            name: np.array([run[name][group.metric] for run in runs])
            for name in _CONTROLS
        }
        row = [workload.name, str(len(runs))]
        row.append(f"{statistics.fmean(run['steps'] for run in runs):.0f}")
        row += [f"{centred(own)[0]:.2f}" for own in values.values()]
        for name in ("at_its_rates", "own_schedule"):
            off = values["rais"] - values[name]
            ends = t_interval(off)
            text = f"{centred(off)[0]:+.2f}"
            row.append(text + (f" ({ends[0]:+.2f} to {ends[1]:+.2f})" if ends else ""))
        rows.append(row)
    if not rows:
        return []
    columns = ["workload", "seeds", "steps", *_CONTROLS.values()]
    columns += ["RAIS minus uniform at its rates", "RAIS minus uniform, own schedule"]
    return [
        "## The control: only the draws differ",
        "Test errors at the same number of steps from the same weights. *At the rates "
        "of RAIS*: plain Keras, with the learning rate of the RAIS run at every step. "
        "*Own schedule*: plain Keras, its own tuned schedule shortened to as many "
        "steps. Differences are paired by seed, with 95 % intervals.",
        markdown.table(columns, rows),
    ]
