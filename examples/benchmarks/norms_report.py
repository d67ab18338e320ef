"""The tables and the figure of exact norms and O-SGD, from recorded runs alone."""

import collections
import json
import pathlib

import numpy as np

from examples.benchmarks import error_plot
from examples.common import markdown
from examples.common.records import Record, Records, tuned_rate

_TARGETS = {
    "MLP 784-256-256-10": 1.10,
    "CNN 16c5-p-32c5-p-64-10": 1.5,
    "transformer encoder, 2 blocks, 64 wide, length 64": 1.6,
}
_PLOTTED = ("uniform", "rais", "rais, exact norms", "oracle")


def write(records: Records, folder: pathlib.Path) -> None:
    """Writes `norms.json`, `norms.md` and `osgd.png` into `folder`."""
    summary = {
        "accuracy": _accuracy(records.select(part="accuracy")),
        "time": _time(records.select(part="time")),
        "memory": _memory(records.select(part="memory")),
        "osgd": _osgd(_tuned_runs(records)),
        "draws": _osgd(records.select(part="draws")),
        "stale": _osgd(records.select(part="stale")),
        "gain": _gain(records.select(part="gain")),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "norms.json").write_text(json.dumps(summary, indent=1) + "\n")
    text = "\n\n".join(
        f"### {title}\n\n{markdown.table_of(summary[name])}"
        for name, title in (
            ("time", "A step with exact norms over a plain step, batch 128"),
            ("memory", "Peak memory of a step, MB above the model"),
            ("accuracy", "Relative error against single-example gradients"),
            ("osgd", "5000 images of Fashion-MNIST, MLP 784-256-10"),
            ("draws", "O-SGD by independent and by reshuffled draws, cosine schedule"),
            ("stale", "O-SGD with scores of different ages, at a constant rate"),
            ("gain", "Gain ratio by exact norms and by the last layer's, 50k images"),
        )
        if summary[name]
    )
    (folder / "norms.md").write_text(text + "\n")
    rows = _curves(_tuned_runs(records))
    if rows:
        error_plot.save(folder / "osgd.png", rows)
    print(text)


def _tuned_runs(records: Records) -> list[Record]:
    """Returns the runs with the rate that tuning chose, should it have chosen anew."""
    chosen = []
    for record in records.select(part="osgd"):
        names = ("method", "epochs", "examples")
        setting = {name: record["key"][name] for name in names}
        if record["key"]["rate"] == tuned_rate(records.select(part="tune", **setting)):
            chosen.append(record)
    return chosen


def _accuracy(records: list[Record]) -> list[Record]:
    groups = collections.defaultdict(list)
    for record in records:
        kind = record["key"]["case"].split(",")[0]
        groups[kind, record["key"]["floatx"]].append(record["relative_error"])
    kinds = dict.fromkeys(kind for kind, _ in groups)
    return [
        {
            "layer": kind,
            "runs": sum(len(groups[kind, f]) for f in ("float32", "float64")),
            "worst in float32": f"{max(groups[kind, 'float32'], default=np.nan):.1e}",
            "worst in float64": f"{max(groups[kind, 'float64'], default=np.nan):.1e}",
        }
        for kind in kinds
    ]


def _time(records: list[Record]) -> list[Record]:
    rows = []
    for record in records:
        ratios = np.divide(record["exact"], record["plain"])
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        network = record["key"]["network"]
        rows.append(
            {
                "network": network,
                "plain, ms": f"{np.median(record['plain']):.1f}",
                "exact norms, ms": f"{np.median(record['exact']):.1f}",
                "ratio": f"{middle:.2f}",
                "quartiles": f"{low:.2f}-{high:.2f}",
                "target": f"{_TARGETS[network]:.2f}" if network in _TARGETS else "-",
            }
        )
    return rows


def _memory(records: list[Record]) -> list[Record]:
    groups = collections.defaultdict(list)
    for record in records:
        groups[record["key"]["network"]].append((record["plain"], record["exact"]))
    rows = []
    for network, pairs in groups.items():
        plain, exact = np.median(pairs, axis=0)
        ratio = f"{exact / plain:.2f}"
        rows.append(
            {
                "network": network,
                "plain": f"{plain:.0f}",
                "exact norms": f"{exact:.0f}",
                "ratio": ratio,
            }
        )
    return rows


def _osgd(records: list[Record]) -> list[Record]:
    groups = collections.defaultdict(list)
    for record in records:
        groups[record["key"]["epochs"], record["key"]["method"]].append(record)
    rows = []
    for (epochs, method), runs in sorted(groups.items(), key=lambda item: item[0][0]):
        errors = [run["test_error"] for run in runs]
        scoring = [_scoring(run)[-1] for run in runs]
        seconds = np.mean([run["seconds"] for run in runs])
        rows.append(
            {
                "method": method,
                "T": epochs,
                "rate": f"{runs[0]['key']['rate']:g}",
                "seeds": len(runs),
                "test error, %": f"{np.mean(errors):.2f} "
                f"({min(errors):.2f}-{max(errors):.2f})",
                "steps": f"{np.mean([run['steps'] for run in runs]):.0f}",
                "seconds": f"{seconds:.1f}",
                "of which scoring": f"{np.mean(scoring):.1f}",
            }
        )
    return rows


def _gain(records: list[Record]) -> list[Record]:
    rows = []
    for record in records:
        history = record["history"]
        for name, label in (
            ("gain_ratio_exact", "exact"),
            ("gain_ratio_last_layer", "last layer"),
        ):
            rows.append(
                {
                    "network": record["key"]["model"],
                    "norms": label,
                    "gain ratio at the end of each epoch": " ".join(
                        f"{value:.2f}" for value in history[name]
                    ),
                }
            )
    return rows


def _scoring(run: Record) -> list[float]:
    history = run["history"]
    return history.get("scoring_seconds", [0.0] * len(history["seconds"]))


def _curves(records: list[Record]) -> dict[str, dict[str, error_plot.Curve]]:
    rows: dict = {}
    for epochs in sorted({record["key"]["epochs"] for record in records}):
        curves = rows.setdefault(f"5000 images, T = {epochs}", {})
        for method in _PLOTTED:
            runs = [
                record
                for record in records
                if (record["key"]["epochs"], record["key"]["method"])
                == (epochs, method)
            ]
            if not runs:
                continue
            mean = {
                name: np.mean([run["history"][name] for run in runs], axis=0)
                for name in ("steps", "seconds", "test_error")
            }
            scoring = np.mean([_scoring(run) for run in runs], axis=0)
            passes = mean["steps"] * 64 / runs[0]["key"]["examples"]
            curves[method] = error_plot.Curve(
                passes, mean["seconds"], mean["test_error"]
            )
            if method == "oracle":
                curves["oracle, scoring left out"] = error_plot.Curve(
                    passes, mean["seconds"] - scoring, mean["test_error"]
                )
    return rows
