"""What tuning chose: by validation error alone, for each contender on its own."""

import collections
import dataclasses
import statistics
from collections.abc import Iterable, Sequence

from examples.common.records import Record, Records
from examples.experiments import tuning
from examples.experiments.methods import METHODS
from examples.experiments.setting import Setting
from examples.experiments.studies import TUNING_SEEDS, Contender

_FEWEST = 3  # trials, of which one is not at the edge
_FURTHER = 6  # trials beyond the range, where the best lies at its edge


def next_trial(
    records: Records,
    contender: Contender,
    count: int,
    metric: str,
    seeds: Sequence[int] = TUNING_SEEDS,
) -> Setting | None:
    """Returns what is to be tried next, `None` where tuning is complete.

    After `count` trials the range of rates is extended, by factors of 2, for as long as
    the lowest or the highest one is the best, six times at most; a method's own
    parameter keeps to its range.

    Args:
        records: of all runs.
        contender: whose trials.
        count: number of trials within the range.
        metric: "error" or "balanced_error".
        seeds: that each trial is run with.
    """
    settings = first_trials(contender, count, seeds)
    for _ in range(_FURTHER + 1):
        for setting in settings:
            if setting.key not in records:
                return setting
        if count < _FEWEST:
            return None
        rate, parameter = best_of((records[s.key] for s in settings), metric)
        rates = [setting.rate for setting in settings]
        if rate not in (min(rates), max(rates)):
            return None
        beyond = tuning.rounded(rate / 2 if rate == min(rates) else rate * 2)
        settings += _trials(contender, {"rate": beyond, "parameter": parameter}, seeds)
    return None


def first_trials(
    contender: Contender, count: int, seeds: Sequence[int] = TUNING_SEEDS
) -> list[Setting]:
    """Returns the trials within the range, each with every seed."""
    parameter = METHODS[contender.method].parameter
    return [
        setting
        for trial in tuning.trials(contender.optimizer, parameter, count)
        for setting in _trials(contender, trial, seeds)
    ]


def _trials(contender: Contender, trial: Record, seeds: Sequence[int]) -> list[Setting]:
    return [_setting(contender, trial, seed=seed, purpose="tune") for seed in seeds]


def best_of(tried: Iterable[Record], metric: str) -> tuple[float, float | None]:
    """Returns the rate and parameter of the lowest validation error, mean over seeds.

    Args:
        tried: records of tuning runs.
        metric: "error" or "balanced_error".
    """
    errors = collections.defaultdict(list)
    for record in tried:
        place = record["key"]["rate"], record["key"]["parameter"]
        errors[place].append(record["validation"][metric])
    return min(errors, key=lambda place: statistics.fmean(errors[place]))


def final_settings(
    contender: Contender, chosen: Record, seeds: tuple[int, ...], purpose: str
) -> list[Setting]:
    """Returns the settings of the runs with what was chosen.

    Args:
        contender: whose runs.
        chosen: "rate" and "parameter", as `chosen` returned.
        seeds: one run each.
        purpose: "error" or "seconds".
    """
    return [_setting(contender, chosen, seed=seed, purpose=purpose) for seed in seeds]


def chosen(
    records: Records,
    contender: Contender,
    count: int,
    metric: str,
    seeds: Sequence[int] = TUNING_SEEDS,
) -> Record | None:
    """Returns the rate and parameter of the lowest validation error.

    Args:
        records: of all runs.
        contender: whose trials.
        count: number of trials within the range.
        metric: "error" or "balanced_error".
        seeds: that each trial was run with.

    Returns:
        "rate" and "parameter"; `None` while a trial has not been run.
    """
    if count == 0:
        return None
    if next_trial(records, contender, count, metric, seeds) is not None:
        return None
    wanted = dataclasses.asdict(contender) | {"purpose": "tune"}
    tried = [r for r in records.select(**wanted) if r["key"]["seed"] in seeds]
    return dict(zip(("rate", "parameter"), best_of(tried, metric), strict=True))


def overhead_setting(contender: Contender) -> Setting:
    """Returns the key under which the time of a step by part is kept."""
    rate = {"rate": 0.0, "parameter": None}
    return _setting(contender, rate, purpose="overhead")


def _setting(contender: Contender, trial: Record, **others: object) -> Setting:
    return Setting(
        contender.data,
        contender.network,
        contender.method,
        contender.epochs,
        trial["rate"],
        trial["parameter"],
        contender.optimizer,
        contender.batch_size,
        **others,
    )
