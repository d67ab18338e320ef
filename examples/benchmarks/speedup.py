"""Compares `keras_osgd.estimate_speedup` with what training did in the experiments.

    python -m examples.benchmarks.speedup            # some minutes
    python -m examples.benchmarks.speedup --smoke    # two sets, a short probe, no file

Missing sets are left out. Run `python -m examples.experiments.run main` before, or take
the runs that came with it.
"""

import argparse
import collections
import json
import math
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_osgd
from examples.experiments import runner, sets
from examples.experiments.setting import Setting

_FOLDER = pathlib.Path(__file__).parents[1]
_RUNS = _FOLDER / "experiments" / "results" / "runs.jsonl"
_REPORT = _RUNS.with_name("report.md")
RESULTS = _FOLDER / "results" / "speedup.md"
# Data, network, batch size, T. The constants of `estimate_speedup` are from these.
_CASES = [
    ("fashion", "cnn", 64, 10),
    ("fashion", "mlp", 64, 10),
    ("fashion", "mlp", 32, 10),
    ("fashion", "mlp", 512, 10),
    ("rotated-50k", "cnn", 64, 10),
    ("rotated-200k", "cnn", 64, 6),
    ("letter", "table", 64, 30),
    ("shuttle", "table", 64, 20),
    ("descriptions", "text", 64, 10),
    ("words", "word", 512, 2),
]
_HELD_OUT = [
    ("fashion", "mlp", 128, 10),
    ("fashion", "mlp", 256, 10),
    ("fashion-5k", "mlp", 64, 20),
    ("fashion-10k", "mlp", 64, 15),
    ("fashion-25k", "mlp", 64, 10),
    ("fashion-25k", "resnet", 64, 10),
    ("fashion-25k", "transformer", 64, 10),
    ("noise-20", "mlp", 64, 10),
    ("words", "word", 128, 2),
]


def main() -> None:
    """Estimates case after case and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--smoke", action="store_true", help="does it run?")
    options = parser.parse_args()
    steps = 60 if options.smoke else options.steps
    runs, text = _measured_runs(), _HEAD.format(steps=steps)
    for title, cases in {_FITTED: _CASES, _OTHERS: _HELD_OUT}.items():
        lines = [f"## {title}", "", f"| {' | '.join(_COLUMNS)} |"]
        lines.append("|---" * len(_COLUMNS) + "|")
        for case in cases[1:2] if options.smoke else cases:
            try:
                data = sets.load(case[0], options.smoke)
            except sets.Missing as error:
                print(f"{case[0]} is left out: {error}")
                continue
            lines.append(_line(case, data, runs, steps))
            print(lines[-1], flush=True)
        text += "\n".join([*lines, "", ""])
    if not options.smoke:
        RESULTS.write_text(text.rstrip("\n") + "\n")


_FITTED = "Sets that the two constants of the range were taken from"
_OTHERS = "Sets that they were not taken from"
_HEAD = """# What an estimate before training is worth

`keras_osgd.estimate_speedup`, with a probe of {steps} steps, on untrained models of the
experiments, against what training then did (their runs: steps over those of T epochs,
means of three to five seeds; a step's time alone on the machine). "At equal test error"
is the report's comparison with tuned uniform training, "-" where the report has none.
Bold: outside of the range. That it holds the sets of the first table is no proof.
`python -m examples.benchmarks.speedup`.

"""
_COLUMNS = (
    "data, network, m, T",
    "r attainable",
    "verdict",
    "steps, estimated",
    "measured",
    "a step's time, estimated",
    "of planning beside it",
    "measured",
    "seconds, estimated",
    "measured",
    "at equal test error",
    "took, s",
)


def _line(case: tuple, data: sets.Data, runs: dict, steps: int) -> str:
    name, network, batch_size, epochs = case
    found, rate = runs["rais", "error", case], runs["rate", case]
    x, y = data.train
    planned = epochs * math.ceil(runs["n", name] / batch_size)
    by_steps = np.mean([run["steps"] for run in found]) / planned
    overhead = _step_time(runs, "rais", case) / _step_time(runs, "uniform", case)
    keras.backend.clear_session()
    setting = Setting(
        data=name,
        network=network,
        method="uniform",
        epochs=epochs,
        rate=rate,
        batch_size=batch_size,
        seed=0,
    )
    model = runner.build(setting, keras.Sequential, data)
    model.compile(**runner.compile_options(setting, data))
    begun = time.perf_counter()
    estimate = keras_osgd.estimate_speedup(model, x, y, batch_size, steps)
    took = time.perf_counter() - begun
    planning = estimate.planning_milliseconds / estimate.step_milliseconds
    (low, high), (fast, slow) = estimate.steps, estimate.seconds
    return (
        f"| {name}, {network}, {batch_size}, {epochs} "
        f"| {estimate.attainable_gain:.2f} | {estimate.verdict} "
        f"| {low:.2f}-{high:.2f} | {_marked(by_steps, low, high)} "
        f"| {estimate.overhead:.2f} | {planning:.2f} "
        f"| {_marked(overhead, 0, math.inf)} "
        f"| {fast:.2f}-{slow:.2f} | {_marked(by_steps * overhead, fast, slow)} "
        f"| {_reported(case)} | {took:.0f} |"
    )


def _marked(value: float, low: float, high: float) -> str:
    """Returns a figure, in bold outside of the range, and "-" for one not measured."""
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if low <= value <= high else f"**{value:.2f}**"


def _measured_runs() -> dict:
    """Returns runs by (method, purpose, case), and RAIS' rates and the sets' sizes."""
    found: dict = collections.defaultdict(list)
    for line in _RUNS.read_text().splitlines():
        run = json.loads(line)
        key = run["key"]
        kept = key["optimizer"] == "momentum" and not run.get("failed")
        if not kept or key["purpose"] not in ("error", "seconds"):
            continue
        case = (key["data"], key["network"], key["batch_size"], key["epochs"])
        found[key["method"], key["purpose"], case].append(run)
        found[key["method"], key["purpose"], case[:3]].append(run)
        found["n", key["data"]] = run["n"]
        if (key["method"], key["purpose"]) == ("rais", "error"):
            found["rate", case] = key["rate"]
    return found


def _step_time(runs: dict, method: str, case: tuple) -> float:
    timed = runs[method, "seconds", case[:3]]
    if not timed:
        return math.nan
    return float(np.median([run["seconds"] / (run["steps"] - 1) for run in timed]))


def _reported(case: tuple) -> str:
    """Returns the report's ratio of seconds at equal test error."""
    name, network, batch_size, epochs = case
    inside = False
    for line in _REPORT.read_text().splitlines():
        if line.startswith("#"):
            words = line.lstrip("# ").split(", ")
            size = next((w for w in words if w.startswith("batch size")), None)
            listed = int(size.split()[-1]) if size else 64
            inside = words[:2] == [name, network] and listed == batch_size
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if inside and len(cells) == 7 and cells[:2] == ["RAIS", str(epochs)]:
            return cells[3]
    return "-"


if __name__ == "__main__":
    main()
