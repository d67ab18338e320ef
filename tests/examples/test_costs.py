"""What sampling costs over plain Keras is measured in turn, once, and written down."""

import sys
import tempfile

import numpy as np
import pytest
import tensorflow as tf

from examples.benchmarks import costs, costs_parts, costs_report, costs_steps
from examples.benchmarks import synthetic_planner
from examples.common.records import Records
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.examples


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
    record = Records(folder / "costs_runs.jsonl").select(part="parts")[0]
    counted = record["operations"]
    assert 50 < counted["plain"] < counted["rais"]
    stages = dict(record["planning"])
    assert min(stages.values()) >= 0 and stages["draw"] > 0
