"""The benchmark's numbers, and whether they are what was to be shown."""

import statistics

import numpy as np

from examples.benchmarks.main_studies import TITLES, summarize_studies
from examples.common.records import Record, Records

TARGET_STEPS = 0.60
TARGET_SECONDS = 0.67
TARGET_OVERHEAD = {"mlp": 1.05, "cnn": 1.02}
TARGET_SCALE = 2.0


def summarize(records: Records) -> Record:
    """Returns everything that the report shows, as it is written to JSON."""
    summary = {
        "environments": _environments(records),
        "studies": summarize_studies(records),
        "overhead": _overhead(records),
        "scale": _scale(records),
    }
    return {**summary, "targets": _targets(summary)}


def _overhead(records: Records) -> list[Record]:
    """Returns, for each network, step times relative to plain Keras' of the minute."""
    runs = records.select(part="overhead")
    rows = []
    for model in dict.fromkeys(run["key"]["model"] for run in runs):
        times = [
            run["step_milliseconds"] for run in runs if run["key"]["model"] == model
        ]
        row = {
            "model": model,
            "repetitions": len(times),
            "plain_milliseconds": statistics.median(time["plain"] for time in times),
        }
        for method in ("uniform", "rais"):
            ratios = [time[method] / time["plain"] for time in times]
            quartiles = np.percentile(ratios, [25, 50, 75]).tolist()
            row[method] = {"ratio": quartiles[1], "quartiles": quartiles[::2]}
        rows.append(row)
    return rows


def _scale(records: Records) -> list[Record]:
    runs = sorted(records.select(part="scale"), key=lambda run: run["key"]["examples"])
    return [
        {
            name: value
            for name, value in {**run["key"], **run}.items()
            if name not in ("key", "part", "environment")
        }
        for run in runs
    ]


def _targets(summary: Record) -> list[Record]:
    """Returns what was to be shown, what was measured, and whether it holds."""
    targets = []

    def add(name: str, limit: float, measured: float) -> None:
        targets.append(
            {
                "name": name,
                "limit": limit,
                "measured": measured,
                "met": measured <= limit,
            }
        )

    for study in summary["studies"]:
        equal = study.get("equal_error")
        if equal is None or study["optimizer"] != "sgd":
            continue
        title = TITLES[study["model"]]
        add(f"{title}: steps at equal error", TARGET_STEPS, equal["steps_ratio"])
        add(f"{title}: seconds at equal error", TARGET_SECONDS, equal["seconds_ratio"])
    for row in summary["overhead"]:
        title, limit = TITLES[row["model"]], TARGET_OVERHEAD[row["model"]]
        add(f"{title}: step time of RAIS", limit, row["rais"]["ratio"])
        # None measurable: the ratios of single repetitions fall on both sides of 1.
        add(
            f'{title}: step time of sampling="uniform" (lower quartile)',
            1.0,
            row["uniform"]["quartiles"][0],
        )
    if len(summary["scale"]) > 1:
        times = [row["step_milliseconds"] for row in summary["scale"]]
        smallest, largest = (summary["scale"][end]["examples"] for end in (0, -1))
        add(
            f"planning a step, n up to {largest:,} against {smallest:,}",
            TARGET_SCALE,
            max(times) / times[0],
        )
    return targets


def _environments(records: Records) -> list[Record]:
    """Returns every distinct set of versions the runs were made with."""
    environments = []
    for record in records.select():
        versions = {**record["environment"]}
        versions.pop("load")
        if versions not in environments:
            environments.append(versions)
    return environments
