"""Time to target: the target, and what each method is run at, from the runs so far.

The target is a validation value that uniform training alone decides. Each method then
trains at the shortest length at which its own curve says that it reaches the target.
`workloads.json` has the rules in words.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable

import numpy as np
import scipy.stats

from examples.common.estimates import centred
from examples.common.records import Record
from examples.experiments import choice, sets
from examples.experiments.reporting import curves
from examples.experiments.reporting.runs import Group, Runs, group_runs
from examples.experiments.setting import Setting
from examples.experiments.studies import Contender
from examples.experiments.workloads import Workload

_STEEP = 2.0  # standard errors by which a longer length must be better
_SHARE = 0.7  # of the runs that are to reach the target
_FURTHER = 1.5  # times the longest length, where the target is not reached
_MOST_FURTHER = 2  # such lengths
_CONTROLLED = 10  # seeds of the control


def group_of(records: Iterable[Record], workload: Workload) -> Group:
    """Returns the workload's runs, with the further lengths that the target takes.

    Args:
        records: of all runs.
        workload: whose.
    """
    study, records = workload.study(), list(records)
    while True:
        (group,) = group_runs(records, [study], sets.metric)
        added = tuple(_further(group, workload))
        if not added:
            return group
        study = dataclasses.replace(study, contenders=(*study.contenders, *added))


def target(group: Group) -> float | None:
    """Returns the validation value to be reached; `None` while a run is missing.

    It is the median of uniform training at its longest length from which the next one
    lowers it by more than two standard errors; of the shortest if there is none.
    """
    uniform = group.uniform
    if not group.complete("uniform"):
        return None
    steep = [
        before
        for before, after in itertools.pairwise(uniform)
        if _falls(before.values("validation", group.metric), _values(after, group))
    ]
    return float(np.median(_values((steep or uniform[:1])[-1], group)))


def timed_settings(group: Group, workload: Workload) -> dict[str, list[Setting]]:
    """Returns the runs alone on the machine by method, one for each seed.

    A method whose curve does not reach the target has none; nor has any as long as the
    target is not known.
    """
    goal = target(group)
    if goal is None:
        return {}
    settings = {}
    for method in workload.lengths:
        found = _at_target(group, method, goal)
        if found is not None:
            epochs, chosen = found
            settings[method] = choice.final_settings(
                workload.contender(method, epochs),
                chosen,
                workload.timed_seeds,
                "target",
            )
    return settings


def control_settings(group: Group, workload: Workload) -> list[Setting]:
    """Returns the runs of RAIS and its control, at the longest length that was planned.

    Plain Keras' own schedule gets the rate of uniform training at the nearest number of
    steps. Empty where the workload has no control, or a run is missing.
    """
    longest = workload.lengths["rais"][-1]
    found = [runs for runs in group.of("rais") if runs.contender.epochs == longest]
    if not (workload.is_control and found and found[0].complete and group.uniform):
        return []
    steps = centred(found[0].values("steps"))[0]

    def distance(runs: Runs) -> float:
        return abs(math.log(centred(runs.values("steps"))[0] / steps))

    chosen = {
        "rate": found[0].chosen["key"]["rate"],
        "parameter": min(group.uniform, key=distance).chosen["key"]["rate"],
    }
    contender = workload.contender("rais_controlled", longest)
    seeds = workload.timed_seeds[:_CONTROLLED]
    return choice.final_settings(contender, chosen, seeds, "error")


def _values(runs: Runs, group: Group) -> list[float]:
    return runs.values("validation", group.metric)


def _falls(before: list[float], after: list[float]) -> bool:
    errors = [
        np.std(values, ddof=1) / math.sqrt(len(values)) for values in (before, after)
    ]
    return centred(before)[0] - centred(after)[0] > _STEEP * math.hypot(*errors)


def _curve(runs: list[Runs], group: Group) -> tuple[curves.Curve, float]:
    """Returns validation values against epochs, and by how much a run is to be below.

    So many of the runs end below the curve plus that margin.
    """
    epochs = np.array([[item.contender.epochs for item in runs]], float)
    values = [_values(item, group) for item in runs]
    means = np.array([[centred(own)[0] for own in values]])
    # The median: at one length a run may have diverged.
    deviation = float(np.median([np.std(own, ddof=1) for own in values]))
    return curves.fitted(epochs, means), deviation * scipy.stats.norm.ppf(_SHARE)


def _reaches(curve: curves.Curve, margin: float, epochs: int, goal: float) -> bool:
    error, side = curve.error(np.array([float(epochs)]))
    return bool(side[0] == 0 and error[0] + margin <= goal)


def _at_target(group: Group, method: str, goal: float) -> tuple[int, Record] | None:
    """Returns a method's length for the target, and its rate and parameter there."""
    runs = group.of(method)
    if not group.complete(method):
        return None
    curve, margin = _curve(runs, group)
    shortest, longest = (runs[end].contender.epochs for end in (0, -1))
    fitting = (
        epochs
        for epochs in range(shortest, longest + 1)
        if _reaches(curve, margin, epochs, goal)
    )
    epochs = next(fitting, None)
    if epochs is None:
        return None
    nearest = min(runs, key=lambda x: abs(math.log(x.contender.epochs / epochs)))
    key = nearest.chosen["key"]
    return epochs, {name: key[name] for name in ("rate", "parameter")}


def _further(group: Group, workload: Workload) -> Iterable[Contender]:
    """Yields the lengths that a method still needs to have the target between two."""
    goal = target(group)
    if goal is None:
        return
    for method, planned in workload.lengths.items():
        if method == "uniform" or not group.complete(method):
            continue
        runs = group.of(method)
        lengths = [item.contender.epochs for item in runs]
        curve, margin = _curve(runs, group)
        added = len(lengths) - len(planned)
        longer, shorter = round(_FURTHER * lengths[-1]), int(lengths[0] / _FURTHER)
        if added >= _MOST_FURTHER:
            continue
        if not _reaches(curve, margin, lengths[-1], goal):
            yield workload.contender(method, longer)
        elif _reaches(curve, margin, lengths[0], goal) and shorter >= 1:
            yield workload.contender(method, shorter)
