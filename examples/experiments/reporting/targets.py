"""What was to be shown, what was measured, and whether it holds."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from examples.common import markdown
from examples.experiments.reporting import wording
from examples.experiments.reporting.comparison import Comparison, Estimate
from examples.experiments.reporting.verdicts import OURS, best_rival, distinct
from examples.experiments.reporting.wording import Titles


@dataclasses.dataclass(frozen=True)
class Target:
    """What was to be shown.

    Attributes:
        data: name of the data set, `None` for all of every study.
        network: `None` for any.
        figure: "steps" or "seconds" at equal test error, relative to uniform training;
            "rival": RAIS's seconds relative to the best rival's.
        limit: highest value that meets the target.
        study: whose comparisons count, `None` for all.
    """

    data: str | None
    network: str | None
    figure: str
    limit: float
    study: str | None = None


TARGETS = (
    Target("fashion", "cnn", "steps", 0.55, "main"),
    Target("fashion", "cnn", "seconds", 0.6, "main"),
    Target("fashion", "mlp", "steps", 0.55, "main"),
    Target("fashion", "mlp", "seconds", 0.6, "main"),
    Target("rotated-200k", None, "steps", 0.65),
    Target("rotated-200k", None, "seconds", 0.7),
    Target("descriptions", None, "seconds", 0.7),
    Target("words", None, "seconds", 0.7),
    Target("shuttle", None, "seconds", 0.7),
    Target(None, None, "seconds", 1.03),
    Target("fashion", None, "rival", 1.0, "main"),
)


def targets_table(
    targets: Iterable[Target],
    comparisons: Sequence[Comparison],
    rivals: Iterable[str],
    titles: Titles,
) -> str:
    """Returns every target with what was measured, met or missed and by how much."""
    ours = [item for item in comparisons if item.runs.method == OURS]
    rows = []
    for target in targets:
        measure = (
            _against_rival(comparisons, rivals)
            if target.figure == "rival"
            else (_against_uniform(target.figure))
        )
        matching = [x for x in ours if _concerns(target, x)]
        measured = [
            (item, measure(item)) for item in distinct(matching) if measure(item)
        ]
        if target.data is None and measured:
            measured = [max(measured, key=lambda pair: pair[1].value)]
        rows += [
            _target_row(target, titles.comparison(item), figure, titles)
            for item, figure in measured
        ] or [_target_row(target, None, None, titles)]
    return markdown.table(["target", "at most", "where", "measured", ""], rows)


def _concerns(target: Target, item: Comparison) -> bool:
    data, network = item.group.name[:2]
    return (
        target.data in (None, data)
        and target.network in (None, network)
        and target.study in (None, item.group.study.name)
    )


def _against_uniform(figure: str) -> Callable[[Comparison], Estimate | None]:
    return lambda item: getattr(item, figure)


def _against_rival(
    comparisons: Sequence[Comparison], rivals: Iterable[str]
) -> Callable[[Comparison], Estimate | None]:
    def measure(item: Comparison) -> Estimate | None:
        rival = best_rival(item, comparisons, rivals)
        if rival is None or item.seconds is None:
            return None
        value = item.seconds.value / rival.seconds.value
        # A rival that needs at least so much, or RAIS at most: the quotient is a bound.
        signs = {
            item.seconds.sign,
            {"<=": ">=", ">=": "<=", "=": "="}[rival.seconds.sign],
        }
        signs = signs - {"="} or {"="}
        return Estimate(value, signs.pop() if len(signs) == 1 else "?", None, None)

    return measure


def _target_row(
    target: Target, where: str | None, figure: Estimate | None, titles: Titles
) -> list[str]:
    kind = {
        "steps": "steps at equal test error",
        "seconds": "seconds at equal test error",
        "rival": "seconds relative to the best rival's",
    }[target.figure]
    place = "anywhere (the highest)" if target.data is None else titles.of(target.data)
    if target.network is not None:
        place += f", {titles.of(target.network)}"
    row = [f"{place}: {kind}", f"{target.limit:.2f}"]
    if figure is None:
        return [*row, "-", "-", "not measured"]
    excess = figure.value - target.limit
    if excess <= 0:
        # A lower bound under the limit settles nothing.
        state = "met" if figure.sign in ("=", "<=") else "open"
    else:
        state = "**missed**" if figure.sign in ("=", ">=") else "open"
    if state != "open":
        state += f" by {abs(excess):.3f}"
    shown = wording.estimate(figure).removesuffix(" (one seed)")
    return [*row, where, shown, state]
