"""The report's first paragraph: where RAIS wins, and by name where it does not."""

from collections.abc import Iterable, Sequence

from examples.common import markdown
from examples.experiments.reporting import wording
from examples.experiments.reporting.comparison import Comparison, Estimate
from examples.experiments.reporting.runs import Group
from examples.experiments.reporting.wording import Titles
from examples.experiments.studies import Contender

OURS = "rais"


def distinct(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Returns each contender's comparison in the first study that has it."""
    found: dict[Contender, Comparison] = {}
    for comparison in comparisons:
        found.setdefault(comparison.runs.contender, comparison)
    return list(found.values())


def best_rival(
    comparison: Comparison, comparisons: Iterable[Comparison], rivals: Iterable[str]
) -> Comparison | None:
    """Returns the rival of the same group of the fewest seconds at equal test error."""
    timed = [
        other
        for other in comparisons
        if other.group is comparison.group
        and other.runs.method in rivals
        and other.seconds is not None
    ]
    return min(timed, key=lambda other: other.seconds.value, default=None)


def headline(
    groups: Iterable[Group], comparisons: Sequence[Comparison], titles: Titles
) -> str:
    """Returns the first paragraph: how often RAIS wins, and what is missing."""
    ours = [item for item in distinct(comparisons) if item.runs.method == OURS]
    name = titles.of(OURS)
    text = (
        f"{name} against uniform training at equal test error, in {len(ours)} "
        f"comparison{'' if len(ours) == 1 else 's'} (a network on its data, at one "
        "length T). Lengths of one network share their baseline."
    )
    for figure in ("steps", "seconds"):
        text += " " + _counted(figure, ours)
    missing = _missing(groups, ours, titles)
    if missing:
        text += f" Not compared yet: {'; '.join(missing)}."
    partial = [titles.comparison(x) for x in ours if not _is_complete(x)]
    if partial:
        text += f" Runs are still missing in: {'; '.join(partial)}."
    failed = [titles.comparison(x) for x in ours if x.runs.failures]
    if failed:
        text += f" {name} diverged at least once in: {'; '.join(failed)}."
    return text


def overview(comparisons: Sequence[Comparison], titles: Titles) -> str:
    """Returns a table of all comparisons of RAIS, the most steps first.

    Empty before the first one.
    """
    ours = [item for item in distinct(comparisons) if item.runs.method == OURS]
    if not ours:
        return ""
    columns = ["where", "steps", "", "seconds", "", "points at equal steps"]
    rows = [
        [
            titles.comparison(item),
            wording.estimate(item.steps),
            _word(item.steps),
            wording.estimate(item.seconds),
            _word(item.seconds),
            wording.estimate(item.difference),
        ]
        for item in sorted(ours, key=lambda item: -item.steps.value)
    ]
    return markdown.table(columns, rows)


def _word(figure: Estimate | None) -> str:
    words = {"fewer": "fewer", "more": "**more**", "equal": "not shown to differ"}
    return "" if figure is None else words[verdict(figure)]


def _counted(figure: str, ours: Sequence[Comparison]) -> str:
    """Returns in how many comparisons fewer of `figure` are needed, or more."""
    measured = [getattr(item, figure) for item in ours]
    found = [verdict(value) for value in measured if value is not None]
    text = (
        f"**{figure.capitalize()}**: fewer in {found.count('fewer')}, not shown to "
        f"differ in {found.count('equal')}, more in {found.count('more')}."
    )
    untimed = len(measured) - len(found)
    return f"{text} Not timed: {untimed}." if untimed else text


def verdict(figure: Estimate) -> str:
    """Returns "fewer" or "more" if the interval is clear of 1, else "equal"."""
    if figure.low is None or figure.low <= 1 <= figure.high:
        return "equal"
    return "fewer" if figure.high < 1 else "more"


def _missing(
    groups: Iterable[Group], ours: Sequence[Comparison], titles: Titles
) -> list[str]:
    compared = {item.runs.contender for item in ours}
    return list(
        dict.fromkeys(
            f"{titles.group(group)} (T = {runs.contender.epochs:g})"
            for group in groups
            for runs in group.runs
            if runs.method == OURS and runs.contender not in compared
        )
    )


def _is_complete(comparison: Comparison) -> bool:
    return comparison.runs.complete and comparison.group.complete("uniform")
