"""The comparisons that have no records run whole, on a few real examples."""

import importlib
import sys

import pytest

from tests.helpers.paths import ROOT

pytestmark = pytest.mark.examples

_LAST_ROWS = {
    "speedup": "| fashion, mlp, 256, 10 |",
    "label_errors": "| a class alike | 4 | cleanlab, normalized margin | 1 |",
    "streams": "pools, at any cost",
}


@pytest.mark.parametrize("name", _LAST_ROWS)
def test_a_comparison_runs_to_its_last_row(name, monkeypatch, capsys):
    results = ROOT / "examples" / "results"
    before = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    monkeypatch.setattr(sys, "argv", [name, "--smoke"])
    importlib.import_module(f"examples.benchmarks.{name}").main()
    written = capsys.readouterr().out.splitlines()
    last = [line for line in written if line.startswith(_LAST_ROWS[name])]
    assert last and "nan" not in last[-1]
    assert before == {path: path.stat().st_mtime_ns for path in results.iterdir()}
