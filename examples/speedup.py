"""Compares `keras_osgd.estimate_speedup` with what training did in the experiments.

    python examples/speedup.py             # some minutes; missing sets are left out
    python examples/speedup.py --smoke     # two of them, a short probe, nothing written

Run `examples/experiments/run.py main` before, or take the runs that came with it.
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
from experiments import sets, training
from experiments.setting import Setting

import keras_osgd

_FOLDER = pathlib.Path(__file__).parent
_RUNS = _FOLDER / "experiments" / "results" / "runs.jsonl"
_REPORT = _RUNS.with_name("report.md")
RESULTS = _FOLDER / "results" / "speedup.md"
_CASES = [  # data, network, batch size, T
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


def main() -> None:
    """Estimates case after case and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--smoke", action="store_true", help="does it run?")
    options = parser.parse_args()
    cases, steps = (_CASES[1:2], 60) if options.smoke else (_CASES, options.steps)
    runs, lines = _measured_runs(), []
    for case in cases:
        try:
            data = sets.load(case[0], options.smoke)
        except sets.Missing as error:
            print(f"{case[0]} is left out: {error}")
            continue
        lines.append(_line(case, data, runs, steps))
        print(lines[-1], flush=True)
    header = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    text = _HEAD.format(steps=steps) + "\n".join([*header, *lines]) + "\n"
    if not options.smoke:
        RESULTS.write_text(text)


_HEAD = """# What an estimate before training is worth

`keras_osgd.estimate_speedup`, with a probe of {steps} steps, on untrained models of the
experiments, against what training then did (their runs: steps over those of T epochs,
means of three to five seeds; a step's time alone on the machine). "At equal test error"
is the report's comparison with tuned uniform training. The two constants of the range
were taken from these same sets, so that it holds them is no proof. Bold: outside of it.
Times were estimated beside many other jobs. `python examples/speedup.py`.

"""
_COLUMNS = (
    "data, network, m, T",
    "r attainable",
    "verdict",
    "steps, estimated",
    "measured",
    "a step's time, estimated",
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
    model = training.build(setting, keras.Sequential, data)
    model.compile(**training.compile_options(setting, len(x)))
    begun = time.perf_counter()
    estimate = keras_osgd.estimate_speedup(model, x, y, batch_size, steps)
    took = time.perf_counter() - begun
    (low, high), (fast, slow) = estimate.steps, estimate.seconds
    return (
        f"| {name}, {network}, {batch_size}, {epochs} "
        f"| {estimate.attainable_gain:.2f} | {estimate.verdict} "
        f"| {low:.2f}-{high:.2f} | {_marked(by_steps, low, high)} "
        f"| {estimate.overhead:.2f} | {overhead:.2f} "
        f"| {fast:.2f}-{slow:.2f} | {_marked(by_steps * overhead, fast, slow)} "
        f"| {_reported(case)} | {took:.0f} |"
    )


def _marked(value: float, low: float, high: float) -> str:
    """Returns a figure, in bold where it lies outside of the range."""
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
