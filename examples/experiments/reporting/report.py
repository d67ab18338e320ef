"""Writes `report.md` and its figures."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence

from examples.common.records import Records
from examples.experiments.reporting import plots, summary_plot, verdicts
from examples.experiments.reporting.comparison import Comparison, compare
from examples.experiments.reporting.measures import measures_section
from examples.experiments.reporting.runs import Group, group_runs
from examples.experiments.reporting.tables import (
    best_rival_line,
    comparisons_table,
    runs_table,
)
from examples.experiments.reporting.wording import Titles
from examples.experiments.studies import Study

_PLOTTED = ("main",)
_LEGEND = """\
How to read the tables. T: epochs of the learning-rate schedule, as uniform training \
counts them. Every line has its own learning rate and own parameter: those of its \
tuning run with the lowest validation error; "edge" says that no lower or no higher \
value was tried. Errors are means over seeds with Student's 95 % interval, runs that \
diverged included, at the error of constant prediction. Seconds are the median time \
of a step of runs alone on the machine, times the mean number of steps, without the \
first step's tracing. Ratios are to uniform training of equal error, read off the \
curve a + b/steps^c through its errors at all its T; "at most" and "at least" stand \
where that curve ends too early. Their 95 % intervals are a bootstrap over seeds, \
paired; "below 0.86" says that no lower end could be found, because the curve says \
nothing beyond the lengths that were run, and "no bound" that there is neither."""


def write(
    records: Records,
    studies: Mapping[str, Study],
    folder: pathlib.Path,
    metric_of: Callable[[str], str],
    title_of: Callable[[str], str],
    *,
    rivals: Collection[str] | None = None,
    first: Sequence[str] = (),
) -> None:
    """Writes `report.md` and PNG figures into `folder`, from the records alone.

    Args:
        records: all that has been measured.
        studies: by name, in the report's order.
        folder: made if it does not exist.
        metric_of: from a data set's name to "error" or "balanced_error".
        title_of: from the name of a data set, network, method or optimizer to its
            title; must return names without a title as they are.
        rivals: names of the methods by others; all but uniform training and those whose
            names begin with "rais" if `None`.
        first: sections before all others.
    """
    groups = group_runs(records.select(), studies.values(), metric_of)
    methods = list(
        dict.fromkeys(runs.method for group in groups for runs in group.runs)
    )
    if rivals is None:
        rivals = [name for name in methods if not name.startswith(("uniform", "rais"))]
    look = _Look(folder, Titles(title_of), rivals, plots.styles(methods))
    compared = {group: compare(group) for group in groups}
    comparisons = [item for items in compared.values() for item in items]
    folder.mkdir(parents=True, exist_ok=True)
    sections = [
        "# Experiments",
        *first,
        *(["## Studies at equal test error"] if first else []),
        verdicts.headline(groups, comparisons, look.titles),
        verdicts.overview(comparisons, look.titles),
        _LEGEND,
        *_summary_figures(comparisons, look),
    ]
    for study in studies.values():
        members = {group: compared[group] for group in groups if group.study is study}
        sections += _study(study, members, look)
    text = "\n\n".join(section for section in sections if section) + "\n"
    (folder / "report.md").write_text(text)


@dataclasses.dataclass(frozen=True)
class _Look:
    """What all sections share."""

    folder: pathlib.Path
    titles: Titles
    rivals: Collection[str]
    style_of: Mapping[str, plots.Style]


def _summary_figures(comparisons: Sequence[Comparison], look: _Look) -> list[str]:
    if not comparisons:
        return []
    names = summary_plot.save(
        look.folder, comparisons, look.rivals, look.titles, look.style_of
    )
    return [f"![Ratios to uniform training]({name})" for name in names]


def _study(
    study: Study, groups: Mapping[Group, list[Comparison]], look: _Look
) -> list[str]:
    sections = [f"## {study.title}", study.question]
    is_plotted = study.name in _PLOTTED
    for group, comparisons in groups.items():
        if not any(runs.trials or runs.measured for runs in group.runs):
            sections.append(f"Planned, not run: {look.titles.group(group)}.")
            continue
        if any(runs.errors for runs in group.runs):
            sections += _group(group, comparisons, look)
        if is_plotted and group.uniform:
            sections += _figures(group, look)
    # Runs are shared, and their further figures belong to the special studies.
    if not is_plotted:
        sections.append(measures_section(groups, look.titles))
    return sections


def _group(group: Group, comparisons: list[Comparison], look: _Look) -> list[str]:
    titles = look.titles
    sections = [f"### {titles.group(group)}", runs_table(group, titles)]
    if comparisons:
        sections += [
            "Relative to uniform training (95 % interval):",
            comparisons_table(comparisons, titles),
            best_rival_line(comparisons, look.rivals, titles),
        ]
    return sections


def _figures(group: Group, look: _Look) -> list[str]:
    name = re.sub(r"[^a-z0-9]+", "-", "-".join(map(str, group.name)).lower())
    title, shared = look.titles.group(group), (group, look.titles, look.style_of)
    plots.save_errors(look.folder / f"error-{name}.png", *shared)
    plots.save_learning_curves(look.folder / f"curves-{name}.png", *shared)
    return [
        f"![Test error of {title}](error-{name}.png)",
        f"![Validation error while training, {title}](curves-{name}.png)",
    ]
