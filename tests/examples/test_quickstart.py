"""The examples run, from their own folder's scripts, on a few real examples."""

import importlib
import os
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT


def test_the_quickstart_trains_plots_exports_and_checks_the_export(tmp_path):
    command = [sys.executable, ROOT / "examples" / "quickstart.py", "--smoke"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    finished = subprocess.run(
        [*command, "--output", tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert "outputs agree with the model's" in finished.stdout
    assert "In this run RAIS was" in finished.stdout
    rows = [line.split() for line in finished.stdout.splitlines()]
    errors = {row[0].strip(","): float(row[-6]) for row in rows if row[-5:-4] == ["%"]}
    assert set(errors) == {"uniform", "RAIS"}
    assert all(0 < error < 60 for error in errors.values())  # chance is 90
    assert (tmp_path / "test_error.png").stat().st_size > 10_000
    assert (tmp_path / "saved_model" / "saved_model.pb").exists()


def _result(error, seconds, epochs):
    history = dict.fromkeys(("steps", "seconds", "test_error"), [1.0] * epochs)
    spent = {"seconds": seconds, "steps": epochs, "epochs_processed": epochs}
    return {"test_error": error, "history": history, **spent}


def test_the_quickstart_ends_with_a_comparison_that_does_not_flatter():
    quickstart = importlib.import_module("quickstart")
    rais = _result(10.61, 18.3, 10)
    results = {
        "u10": _result(10.99, 38.1, 10),
        "u6": _result(10.43, 18.6, 6),
        "r": rais,
    }
    nearest, figures, equal, *_ = quickstart._comparison(rais, results).splitlines()
    assert "no better than uniform training of 6 epochs (about as much time)" in nearest
    assert "10.61 against 10.43 % test error in 18.3 and 18.6 s" in figures
    assert (
        "RAIS was better than uniform training of 10 epochs (as many epochs)" in equal
    )
    assert quickstart._in_words(-0.2) == "not clearly better than"
    assert quickstart._in_words(0.4) == "worse than"


def test_the_quickstart_says_what_a_plot_needs(monkeypatch, tmp_path):
    quickstart = importlib.import_module("quickstart")
    monkeypatch.delitem(sys.modules, "error_plot", raising=False)
    for name in ("matplotlib", "matplotlib.axes", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    said = quickstart._plot(tmp_path / "a.png", "Title", {"r": _result(1.0, 1.0, 2)})
    assert "pip install 'keras_osgd[plot]'" in said
    assert not list(tmp_path.iterdir())


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
    importlib.import_module(name).main()
    written = capsys.readouterr().out.splitlines()
    last = [line for line in written if line.startswith(_LAST_ROWS[name])]
    assert last and "nan" not in last[-1]
    assert before == {path: path.stat().st_mtime_ns for path in results.iterdir()}
