"""Which recorded runs belong to which contender of a study."""

import collections
import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable

from examples.common.records import Record
from examples.experiments import choice
from examples.experiments.studies import Contender, Study

_NAMES = ("data", "network", "method", "epochs", "optimizer", "batch_size")
# Records keep six significant digits.
_SAME = 2e-5


@dataclasses.dataclass(frozen=True)
class Runs:
    """What has been recorded of one contender.

    Attributes:
        contender: whose runs these are.
        metric: the error in percent that choices and comparisons are made by.
        chosen: a tuning run at the rate and parameter of the lowest validation error,
            mean over its seeds; `None` before tuning.
        edges: "rate" and "parameter" where the chosen one is the lowest or the highest
            that was tried, so that the best may lie outside.
        trials: tuning runs done, of `wanted_trials`.
        errors: final runs at the chosen rate and parameter, by seed.
        wanted: number of final runs that the study asks for.
        timed: runs alone on the machine, at the same rate and parameter; for uniform
            training those of the whole group, as its step costs the same at all T.
        measured: all runs that carry further figures.
    """

    contender: Contender
    metric: str
    chosen: Record | None
    edges: tuple[str, ...]
    trials: int
    wanted_trials: int
    errors: dict[int, Record]
    wanted: int
    timed: list[Record]
    measured: list[Record]

    @property
    def method(self) -> str:
        """The name of the contender's method."""
        return self.contender.method

    @property
    def failures(self) -> int:
        """Number of final runs that diverged."""
        return sum(bool(run["failed"]) for run in self.errors.values())

    @property
    def complete(self) -> bool:
        """Whether no run that the study asks for is missing."""
        return len(self.errors) == self.wanted and self.trials >= self.wanted_trials

    def values(self, part: str, name: str | None = None) -> list[float]:
        """Returns a figure of every final run: of "test", "validation", or its own."""
        return [
            run[part] if name is None else run[part][name]
            for run in self.errors.values()
        ]

    @property
    def step_seconds(self) -> list[float]:
        """Seconds a step of each timed run, without the first step's tracing."""
        return [run["seconds"] / run["steps"] for run in self.timed]

    @property
    def seconds(self) -> float | None:
        """Median seconds a step of the timed runs x mean steps of the final runs."""
        if not self.timed or not self.errors:
            return None
        steps = statistics.fmean(self.values("steps"))
        return statistics.median(self.step_seconds) * steps


# Compared by identity: records cannot be hashed.
@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Contenders of one study that are held against each other.

    Attributes:
        study: that it belongs to.
        name: data, network, optimizer and batch size.
        runs: of each contender, in the study's order.
    """

    study: Study
    name: tuple[str, str, str, int]
    runs: tuple[Runs, ...]

    @property
    def metric(self) -> str:
        """The error that the group is compared by."""
        return self.runs[0].metric

    @property
    def uniform(self) -> list[Runs]:
        """Uniform training that has been run, by increasing length."""
        return self.of("uniform")

    def complete(self, method: str) -> bool:
        """Returns whether a method has been run at all its lengths, with all seeds."""
        own = [runs for runs in self.runs if runs.method == method]
        return bool(own) and all(runs.complete for runs in own)

    def of(self, method: str) -> list[Runs]:
        """Returns what has been run of a method, by increasing length."""
        found = [runs for runs in self.runs if runs.method == method and runs.errors]
        return sorted(found, key=lambda runs: runs.contender.epochs)


def group_runs(
    records: Iterable[Record],
    studies: Iterable[Study],
    metric_of: Callable[[str], str],
) -> list[Group]:
    """Returns every group of every study, also those of which no run is recorded.

    Args:
        records: all of them; those that no study asks for are passed over.
        studies: in the report's order.
        metric_of: from a data set's name to "error" or "balanced_error".
    """
    index = collections.defaultdict(list)
    for record in records:
        index[tuple(record["key"][name] for name in _NAMES)].append(record)
    groups = []
    for study in studies:
        members: dict[tuple, list[Runs]] = {}
        for item in dict.fromkeys(study.contenders):
            found = index[tuple(getattr(item, name) for name in _NAMES)]
            runs = _runs(study, item, found, metric_of(item.data))
            members.setdefault(item.place, []).append(runs)
        groups += [
            Group(study, name, tuple(_share_timing(runs)))
            for name, runs in members.items()
        ]
    return groups


def _share_timing(members: list[Runs]) -> list[Runs]:
    """Returns the runs; all lengths of a method have the timed runs of its shortest."""
    timed = collections.defaultdict(list)
    for runs in members:
        timed[runs.method] += runs.timed
    return [dataclasses.replace(runs, timed=timed[runs.method]) for runs in members]


def _runs(
    study: Study, contender: Contender, records: list[Record], metric: str
) -> Runs:
    _, tuning_seeds = study.tuning_of(contender)
    tuned = [
        record
        for record in records
        if record["key"]["purpose"] == "tune" and record["key"]["seed"] in tuning_seeds
    ]
    chosen = _chosen(tuned, metric)
    own = [run for run in records if chosen is not None and _is_same(run, chosen)]
    seeds = study.seeds_of(contender)
    errors = {
        run["key"]["seed"]: run
        for run in own
        if run["key"]["purpose"] == "error" and run["key"]["seed"] in seeds
    }
    # A study without tuning has nothing to choose by.
    kept = records if study.trials == 0 else own
    return Runs(
        contender=contender,
        metric=metric,
        chosen=chosen,
        edges=tuple(
            name for name in ("rate", "parameter") if _at_edge(chosen, tuned, name)
        ),
        trials=len(tuned),
        wanted_trials=study.tuning_runs_of(contender),
        errors=dict(sorted(errors.items())),
        wanted=len(seeds),
        timed=[run for run in own if run["key"]["purpose"] == "seconds"],
        measured=[run for run in kept if run.get("measures")],
    )


def _chosen(tuned: list[Record], metric: str) -> Record | None:
    """Returns a tuning run with the rate and parameter of the lowest mean error."""
    if not tuned:
        return None
    best = choice.best_of(tuned, metric)
    return next(
        run for run in tuned if (run["key"]["rate"], run["key"]["parameter"]) == best
    )


def _is_same(run: Record, chosen: Record) -> bool:
    """Returns whether a run has the chosen rate and parameter."""
    pairs = [(run["key"][name], chosen["key"][name]) for name in ("rate", "parameter")]
    return all(
        first is second
        or (
            first is not None
            and second is not None
            and math.isclose(first, second, rel_tol=_SAME)
        )
        for first, second in pairs
    )


def _at_edge(chosen: Record | None, tuned: list[Record], name: str) -> bool:
    tried = {run["key"][name] for run in tuned} - {None}
    # Of two values each is an edge.
    if len(tried) < 3:
        return False
    return chosen["key"][name] in (min(tried), max(tried))
