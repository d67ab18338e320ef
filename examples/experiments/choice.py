"""What tuning chose: by validation error alone, for each contender on its own."""

import dataclasses

from examples.common.records import Record, Records
from examples.experiments import tuning
from examples.experiments.methods import METHODS
from examples.experiments.setting import Setting
from examples.experiments.studies import Contender

_FEWEST = 3  # trials, of which one is not at the edge
_FURTHER = 6  # trials beyond the range, where the best lies at its edge


def next_trial(
    records: Records, contender: Contender, count: int, metric: str
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
    """
    settings = first_trials(contender, count)
    for _ in range(_FURTHER + 1):
        for setting in settings:
            if setting.key not in records:
                return setting
        if count < _FEWEST:
            return None
        best = _best(records, settings, metric)
        rates = [setting.rate for setting in settings]
        if best.rate not in (min(rates), max(rates)):
            return None
        beyond = best.rate / 2 if best.rate == min(rates) else best.rate * 2
        settings = [*settings, dataclasses.replace(best, rate=tuning.rounded(beyond))]
    return None


def first_trials(contender: Contender, count: int) -> list[Setting]:
    """Returns the trials within the range."""
    parameter = METHODS[contender.method].parameter
    return [
        _setting(contender, trial, seed=tuning.SEED, purpose="tune")
        for trial in tuning.trials(contender.optimizer, parameter, count)
    ]


def _best(records: Records, settings: list[Setting], metric: str) -> Setting:
    return min(settings, key=lambda s: records[s.key]["validation"][metric])


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
    records: Records, contender: Contender, count: int, metric: str
) -> Record | None:
    """Returns the rate and parameter of the lowest validation error.

    Args:
        records: of all runs.
        contender: whose trials.
        count: number of trials within the range.
        metric: "error" or "balanced_error".

    Returns:
        "rate" and "parameter"; `None` while a trial has not been run.
    """
    if count == 0 or next_trial(records, contender, count, metric) is not None:
        return None
    wanted = dataclasses.asdict(contender) | {"purpose": "tune"}
    tried = [Setting(**record["key"]) for record in records.select(**wanted)]
    best = _best(records, tried, metric)
    return {"rate": best.rate, "parameter": best.parameter}


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
