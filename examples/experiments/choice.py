"""What tuning chose: by validation error alone, for each contender on its own."""

from benchmark_records import Record, Records
from experiments import tuning
from experiments.methods import METHODS
from experiments.setting import Setting
from experiments.studies import Contender


def trial_settings(contender: Contender, count: int) -> list[Setting]:
    """Returns the settings that are tried."""
    parameter = METHODS[contender.method].parameter
    return [
        _setting(contender, trial, seed=tuning.SEED, purpose="tune")
        for trial in tuning.trials(contender.optimizer, parameter, count)
    ]


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
    return [
        _setting(contender, chosen, seed=seed, purpose=purpose) for seed in seeds
    ]


def chosen(
    records: Records, contender: Contender, count: int, metric: str
) -> Record | None:
    """Returns the rate and parameter of the lowest validation error.

    Args:
        records: of all runs.
        contender: whose trials.
        count: number of trials.
        metric: "error" or "balanced_error".

    Returns:
        "rate" and "parameter"; `None` while a trial has not been run.
    """
    settings = trial_settings(contender, count)
    if any(setting.key not in records for setting in settings):
        return None
    found = [records[setting.key]["validation"][metric] for setting in settings]
    best = settings[found.index(min(found))]
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
