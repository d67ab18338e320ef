"""What the training runs of one network say: means, equal test error, intervals."""

import statistics

import numpy as np

from examples.common.estimates import equal_error_length, t_interval
from examples.common.records import Record, Records, mean_validation_errors

TITLES = {"mlp": "MLP 784-256-10", "cnn": "CNN 8-16-64-10"}
_OPTIMIZERS = {"sgd": "SGD, momentum 0.9", "adam": "Adam"}
_RESAMPLES = 2000


def summarize_studies(records: Records) -> list[Record]:
    """Returns one summary for every network and optimizer that was compared."""
    names = dict.fromkeys(
        (record["key"]["model"], record["key"]["optimizer"])
        for record in records.select(part="error")
    )
    return [_study(records, *name) for name in names]


def _study(records: Records, model: str, optimizer: str) -> Record:
    """Returns the table of one network and what equal test error costs."""
    runs = records.select(part="error", model=model, optimizer=optimizer)
    groups: dict[tuple[str, int], dict[int, Record]] = {}
    for run in runs:
        key = run["key"]
        groups.setdefault((key["method"], key["epochs"]), {})[key["seed"]] = run
    seeds = sorted(set.intersection(*(set(group) for group in groups.values())))
    rows = [
        _row(method, epochs, [groups[method, epochs][seed] for seed in seeds])
        for method, epochs in sorted(groups)
    ]
    study = {
        "model": model,
        "optimizer": optimizer,
        "title": f"{TITLES[model]}, {_OPTIMIZERS[optimizer]}",
        "seeds": seeds,
        "rows": rows,
        "tuning": _tuning(records, model, optimizer),
    }
    lengths = sorted(epochs for method, epochs in groups if method == "uniform")
    rais = [group for (method, _), group in groups.items() if method == "rais"]
    if rais and lengths and seeds:
        uniform = [groups["uniform", length] for length in lengths]
        study["equal_error"] = _equal_error(rais[0], uniform, lengths, seeds)
    return study


def _row(method: str, epochs: int, runs: list[Record]) -> Record:
    errors = [run["test_error"] for run in runs]
    histories = [run["history"] for run in runs]
    per_step = runs[0]["epochs_processed"] / runs[0]["steps"]
    return {
        "method": method,
        "epochs": epochs,
        "rate": runs[0]["key"]["rate"],
        "test_error": statistics.fmean(errors),
        "test_error_interval": t_interval(errors),
        "validation_error": statistics.fmean(r["validation_error"] for r in runs),
        "steps": statistics.fmean(run["steps"] for run in runs),
        "epochs_processed": statistics.fmean(run["epochs_processed"] for run in runs),
        "seconds": statistics.median(run["seconds"] for run in runs),
        "first_step_seconds": statistics.median(r["first_step_seconds"] for r in runs),
        "gain": statistics.fmean(run["gain"] for run in runs),
        "load": statistics.median(run["environment"]["load"] or 0.0 for run in runs),
        "curve": {
            "epochs": [per_step * steps for steps in _mean(histories, "steps")],
            "seconds": _mean(histories, "seconds"),
            "test_error": _mean(histories, "test_error"),
        },
    }


def _equal_error(
    rais: dict[int, Record],
    uniform: list[dict[int, Record]],
    lengths: list[int],
    seeds: list[int],
) -> Record:
    """Returns what RAIS costs relative to uniform training of equal test error.

    The intervals are percentiles of a bootstrap that draws seeds, the same ones for
    every method.
    """

    def table(name: str) -> tuple[np.ndarray, np.ndarray]:
        return (
            np.array([rais[seed][name] for seed in seeds]),
            np.array([[group[seed][name] for seed in seeds] for group in uniform]),
        )

    errors, steps, seconds = table("test_error"), table("steps"), table("seconds")
    first_step = table("first_step_seconds")

    def ratios(chosen: np.ndarray) -> tuple[str, list[float]]:
        length, sign = equal_error_length(
            np.array(lengths, float),
            errors[1][:, chosen].mean(axis=1),
            errors[0][chosen].mean(),
        )
        uniform_steps = np.interp(length, lengths, steps[1].mean(axis=1))
        seconds_ratios = [
            float(
                np.median(rais_seconds[chosen])
                / np.interp(
                    length, lengths, np.median(uniform_seconds[:, chosen], axis=1)
                )
            )
            for rais_seconds, uniform_seconds in (
                seconds,
                (seconds[0] + first_step[0], seconds[1] + first_step[1]),
            )
        ]
        steps_ratio = float(steps[0][chosen].mean() / uniform_steps)
        return sign, [length, steps_ratio, *seconds_ratios]

    sign, values = ratios(np.arange(len(seeds)))
    rng = np.random.default_rng(0)
    resampled = [
        ratios(rng.integers(len(seeds), size=len(seeds)))[1] for _ in range(_RESAMPLES)
    ]
    intervals = np.percentile(resampled, [2.5, 97.5], axis=0).T.tolist()
    names = (
        "uniform_epochs",
        "steps_ratio",
        "seconds_ratio",
        "seconds_ratio_with_first_step",
    )
    return {
        "uniform_epochs_sign": sign,
        **dict(zip(names, values, strict=True)),
        **{
            f"{name}_interval": interval
            for name, interval in zip(names, intervals, strict=True)
        },
    }


def _tuning(records: Records, model: str, optimizer: str) -> list[Record]:
    """Returns the mean validation error of every learning rate tried."""
    runs = records.select(part="tune", model=model, optimizer=optimizer)
    settings = {(run["key"]["method"], run["key"]["epochs"]) for run in runs}
    return [
        {
            "method": method,
            "epochs": epochs,
            "validation_errors": {
                f"{rate:g}": error
                for rate, error in mean_validation_errors(
                    run
                    for run in runs
                    if run["key"]["method"] == method and run["key"]["epochs"] == epochs
                ).items()
            },
        }
        for method, epochs in sorted(settings)
    ]


def _mean(histories: list[Record], name: str) -> list[float]:
    return np.mean([history[name] for history in histories], axis=0).tolist()
