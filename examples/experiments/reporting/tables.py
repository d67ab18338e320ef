"""The report's tables of one group of contenders."""

import statistics
from collections.abc import Collection, Iterable

from examples.common import markdown
from examples.common.estimates import centred, t_interval
from examples.experiments.reporting import wording
from examples.experiments.reporting.comparison import Comparison
from examples.experiments.reporting.runs import Group, Runs
from examples.experiments.reporting.verdicts import best_rival
from examples.experiments.reporting.wording import Titles, optional

_AFTER_ERRORS = (
    "validation {metric}, %",
    "steps",
    "epochs processed",
    "effective epochs",
    "forward only / n",
    "seconds",
    "first step, s",
    "ms a step",
    "remarks",
)


def runs_table(group: Group, titles: Titles) -> str:
    """Returns a line for every contender, also for those that have not run."""
    metric = group.metric.replace("_", " ")
    columns = ["method", "T", "rate", "own parameter", "seeds", "test error, %"]
    if group.metric != "error":
        columns.append(f"test {metric}, %")
    columns += [name.format(metric=metric) for name in _AFTER_ERRORS]
    return markdown.table(columns, [_row(group, runs, titles) for runs in group.runs])


def _row(group: Group, runs: Runs, titles: Titles) -> list[str]:
    contender = runs.contender
    row = [titles.of(contender.method), f"{contender.epochs:g}"]
    for name in ("rate", "parameter"):
        value = None if runs.chosen is None else runs.chosen["key"][name]
        row.append("-" if value is None else f"{value:g}")
    row.append(str(len(runs.errors)))
    names = dict.fromkeys(("error", group.metric))
    if not runs.errors:
        row += ["-"] * (len(names) + len(_AFTER_ERRORS) - 1)
        return [*row, _remarks(runs)]
    for name in names:
        errors = runs.values("test", name)
        row.append(markdown.with_interval(centred(errors)[0], t_interval(errors)))
    timed = runs.timed
    first = statistics.median(x["first_step_seconds"] for x in timed) if timed else None
    step = 1000 * statistics.median(runs.step_seconds) if timed else None
    forward = [run["forward"] / run["n"] for run in runs.errors.values()]
    return [
        *row,
        f"{centred(runs.values('validation', group.metric))[0]:.2f}",
        f"{statistics.fmean(runs.values('steps')):.0f}",
        f"{statistics.fmean(runs.values('epochs_processed')):.2f}",
        f"{statistics.fmean(runs.values('effective_epochs')):.2f}",
        f"{statistics.fmean(forward):.2f}",
        optional(runs.seconds, 1),
        optional(first, 1),
        optional(step, 3),
        _remarks(runs),
    ]


def _remarks(runs: Runs) -> str:
    """Returns what a reader must know before believing the line."""
    remarks = []
    if runs.trials < runs.wanted_trials:
        remarks.append(f"{runs.trials} of {runs.wanted_trials} tuning runs done")
    if len(runs.errors) < runs.wanted:
        remarks.append(f"{len(runs.errors)} of {runs.wanted} runs done")
    if runs.failures:
        remarks.append(f"{runs.failures} of {len(runs.errors)} diverged")
    remarks += [f"edge: {name}" for name in runs.edges]
    return "; ".join(remarks)


def comparisons_table(comparisons: Iterable[Comparison], titles: Titles) -> str:
    """Returns what each contender takes relative to uniform of equal error."""
    columns = [
        "method",
        "T",
        "steps at equal test error",
        "seconds",
        "steps at equal validation error",
        "seconds",
        "test error minus uniform's at equal steps",
    ]
    rows = [
        [
            titles.of(item.runs.method),
            f"{item.runs.contender.epochs:g}",
            wording.estimate(item.steps),
            wording.estimate(item.seconds),
            wording.estimate(item.steps_by_validation),
            wording.estimate(item.seconds_by_validation),
            wording.estimate(item.difference),
        ]
        for item in comparisons
    ]
    return markdown.table(columns, rows)


def best_rival_line(
    comparisons: list[Comparison], rivals: Collection[str], titles: Titles
) -> str:
    """Returns a sentence on the best rival of a group, empty if none is timed."""
    rival = best_rival(comparisons[0], comparisons, rivals) if comparisons else None
    if rival is None:
        return ""
    return (
        f"Best rival: {titles.contender(rival.runs.contender)}, with "
        f"{wording.estimate(rival.seconds)} of uniform training's seconds at equal "
        "test error."
    )
