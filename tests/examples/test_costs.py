"""What sampling costs over plain Keras is measured in turn, once, and written down."""

import sys
import tempfile

import pytest
import tensorflow as tf

from examples.benchmarks import (
    costs,
    costs_parts,
    costs_report,
    costs_steps,
    synthetic_planner,
)
from examples.common.records import Records
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.examples


@pytest.mark.slow
def test_all_parts_run_once_and_the_page_has_their_figures(tmp_path, monkeypatch):
    results = ROOT / "examples" / "results"
    before = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["costs", "--smoke"])
    costs.main()
    folder = tmp_path / "keras_osgd_costs_smoke"
    written = (folder / "costs.md").read_text()
    runs = (folder / "costs_runs.jsonl").read_text()
    monkeypatch.setattr(costs_steps, "build", None)  # nothing is measured again
    monkeypatch.setattr(synthetic_planner, "synthetic", None)
    costs.main()
    assert runs == (folder / "costs_runs.jsonl").read_text()
    assert "nan" not in written
    lines = written.splitlines()
    for row in costs_report.ROWS:
        (line,) = [each for each in lines if each.startswith(f"| {row.name} |")]
        small = "CNN" in line or "table" in line or "a plan" in line
        assert ("not measured" in line) == small, line
    assert "| MLP | planning | 0.000 | " in written
    assert "| words | RAIS | " in written and "| MLP | draw | " in written
    assert before == {path: path.stat().st_mtime_ns for path in results.iterdir()}
    records = Records(folder / "costs_runs.jsonl")
    for record in records.select(part="steps"):
        fits = [fit for each in record["fits"].values() for fit in each]
        assert len({fit["steps"] for fit in fits}) == 1  # all take the same
        assert min(fit["start"] for fit in fits) > 0
    (record,) = records.select(part="parts")
    assert 50 < record["operations"]["plain"] < record["operations"]["rais"]
    stages = record["planning"]
    assert min(stages.values()) >= 0 and stages["draw"] > 0


def test_operations_are_those_of_all_functions_called_and_of_no_constants():
    """Five: two of `inner` each time, and one of `outer`; a call is one as well."""
    with costs_parts.functions_made() as made:

        @tf.function
        def inner(x):
            return tf.sin(tf.cos(x)) if x.shape == (2,) else x

        @tf.function
        def outer(x):
            return tf.exp(inner(inner(x) + tf.constant(0.0)))

    assert made == [inner, outer] and tf.function is not made
    x = tf.ones(2)
    calls, add, exp = 2, 1, 1
    assert costs_parts.operations(inner, x) == 2
    assert costs_parts.operations(outer, x) == 2 * 2 + calls + add + exp
    branches = tf.function(lambda x: tf.cond(x[0] > 0, lambda: tf.exp(x), lambda: -x))
    slice_, greater, cond = 1, 1, 1
    assert costs_parts.operations(branches, x) == slice_ + greater + cond + 2


def test_a_step_lasts_until_the_next_and_the_first_is_left_out(monkeypatch):
    wall, processor = [100.0], [7.0]
    monkeypatch.setattr(costs_steps.time, "perf_counter", lambda: wall[0])
    monkeypatch.setattr(costs_steps.time, "process_time", lambda: processor[0])
    times = costs_steps.StepTimes()
    for step, begins in enumerate([101.0, 104.0, 105.0, 108.0]):
        wall[0], processor[0] = begins, 10.0 + 2 * step
        times.on_train_batch_begin(step)
    wall[0], processor[0] = 110.0, 18.0
    times.on_train_end()
    assert times.found() == {
        "steps": 3,
        "wall": 2000.0,
        "processor": 2000.0,
        "quantiles": [2000.0, 2800.0, pytest.approx(2980.0)],
        "start": 4.0,
    }


def test_a_drift_of_the_machine_takes_no_part_in_ratios():
    """Times rise by 1 a `fit` and more from method to method: 2, 3 and 6 without it."""
    at = iter(range(6))
    own = {"plain": 2.0, "rais": 3.0, "exact": 6.0}
    found = costs_steps.in_turn(tuple(own), lambda m: own[m] + next(at))
    assert found == {"plain": [2, 7], "rais": [4, 7], "exact": [8, 9]}
    assert {m: sum(each) - 5 for m, each in found.items()} == {
        m: 2 * value for m, value in own.items()
    }


def _fits(plain, rais, start=0.0):
    return {
        method: [
            {
                "wall": time,
                "processor": 2 * time,
                "quantiles": [time] * 3,
                "start": begin,
            }
            for time in times
        ]
        for method, times, begin in (("plain", plain, 1.0), ("rais", rais, 1.0 + start))
    }


def test_figures_are_medians_of_the_rounds_ratios_and_misses_are_told(tmp_path):
    records = Records(tmp_path / "runs.jsonl")
    rounds = [([1, 3], [2, 2.4]), ([1, 1], [1.2, 1.2]), ([2, 2], [2.4, 2.4])]
    for number, (plain, rais) in enumerate(rounds):  # 1.1, 1.2, 1.2
        key = {"part": "steps", "case": "mlp", "round": number}
        fits = _fits(plain, rais, start=0.04)
        more = {"by_importance": number != 1, "threads": None}
        records.append(key, {"fits": fits, **more})
    records.append({"part": "plans", "examples": 50_000}, {"seconds": [0.002] * 3})
    whole = {"plain": 4.0, "rais": 4.4}  # medians of the processor's milliseconds
    taken = {
        "operations": {"plain": 10, "rais": 30},
        "planning": {"draw": 0.05, "in all": 0.1},
        "pipeline": {"plain": [0.2, 0.3, 9.0], "rais": [0.1, 0.1, 0.1]},
        "graph": {"plain": [3.0] * 3, "rais": [3.25] * 3},
    }
    record = records.append({"part": "parts", "case": "mlp"}, taken)
    costs_report.write(records, tmp_path)
    lines = (tmp_path / "costs.md").read_text().splitlines()
    assert "| a step, MLP | 1.2 (1.15 to 1.2) | 1.05 |" in lines
    start = "to the first batch of a second `fit`, images"
    assert f"| {start} | +0.04 s (0.04 to 0.04) | +0.05 s |" in lines
    assert "| a plan, n = 50,000 | 2 ms (2 to 2) | 4 ms |" in lines
    missed = "a step, MLP, 1.2 for 1.05; processor time of a step, MLP, 1.2 for 1.15"
    assert f"Missed: {missed}." in lines
    assert any("drawn uniformly" in line for line in lines)
    parts = {
        name: figures
        for name, *figures in costs_report.parts_of(records, "mlp", record)
    }
    assert parts == {
        "planning": ["0.000", "0.100", "+0.100"],
        "pipeline": ["0.300", "0.100", "-0.200"],
        "training function": ["3.000", "3.250", "+0.250"],
        "rest": ["0.700", "0.950", "+0.250"],
        "a step of `fit`": [*(f"{value:.3f}" for value in whole.values()), "+0.400"],
        "operations": [10, 30, "+20"],
    }
