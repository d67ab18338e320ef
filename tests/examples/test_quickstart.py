"""Quickstart and comparison run as scripts; the latter says what its table shows."""

import os
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.paths import ROOT

pytestmark = pytest.mark.examples

EXAMPLES = ROOT / "examples"


def _printed(name, folder):
    """Returns what a script prints on a few examples, called from another folder."""
    finished = subprocess.run(
        [sys.executable, EXAMPLES / name, "--smoke"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert "Warning" not in finished.stderr
    return finished.stdout


def test_the_quickstart_is_short_and_exports_what_plain_tensorflow_loads(tmp_path):
    assert len((EXAMPLES / "quickstart.py").read_text().splitlines()) <= 60
    printed = _printed("quickstart.py", tmp_path)
    assert "gain_ratio" in printed  # it was sampled
    accuracy = float(re.findall(r"val_accuracy: (\S+)", printed)[-1])
    (_, _), (x, y) = runpy.run_path(str(EXAMPLES / "quickstart.py"))["load"]()
    loaded = tf.saved_model.load(tmp_path / "quickstart_model")
    predicted = loaded.serve(tf.constant(x[:2000], "float32"))
    right = np.mean(predicted.numpy().argmax(axis=1) == y[:2000])
    assert right > 0.6 and abs(right - accuracy) < 0.06


@pytest.mark.slow
def test_the_comparison_prints_a_table_of_means_and_ranges_and_draws_them(tmp_path):
    printed = _printed("compare.py", tmp_path)
    each = re.findall(r"^(\w+), seed \d: (\S+) % test error$", printed, flags=re.M)
    cell = r" +(\S+) \((\S+)-(\S+)\)"
    rows = re.findall(rf"^(\w+), 2 epochs{3 * cell}$", printed, flags=re.M)
    assert [name for name, *_ in rows] == ["RAIS", "uniform"]
    assert [name for name, _ in each] == 3 * ["RAIS", "uniform"]  # in turn
    for name, *figures in rows:
        errors = [float(error) for method, error in each if method == name]
        assert all(0 < error < 60 for error in errors)  # chance is 90
        wanted = np.mean(errors), min(errors), max(errors)
        np.testing.assert_allclose(list(map(float, figures[:3])), wanted, atol=0.011)
    assert (tmp_path / "compare.png").stat().st_size > 5000
    assert re.search(r"test errors?.*, in \S+x the steps and \S+x the seconds", printed)


@pytest.fixture
def verdict(monkeypatch):
    """Returns the verdict on two lists of final test errors."""
    monkeypatch.syspath_prepend(EXAMPLES)
    compare = runpy.run_path(str(EXAMPLES / "compare.py"))

    def of(errors, steps, seconds):
        curve = compare["Curve"]()
        curve.errors, curve.seconds, curve.steps = [20.0, errors], [0.5, seconds], steps
        return curve

    return lambda rais, uniform: compare["verdict"](
        {
            "RAIS": [of(error, 80, 9.0) for error in rais],
            "uniform": [of(error, 100, 10.0) for error in uniform],
        }
    )


@pytest.mark.parametrize(
    ("rais", "uniform", "found"),
    [
        ([10.0, 10.3], [10.4, 10.9], "With each seed RAIS ends lower, by 0.50 points"),
        ([10.4, 10.9], [10.0, 10.3], "With each seed RAIS ends higher, by 0.50 points"),
        ([10.0, 10.5], [10.4, 10.9], "The ranges overlap: this shows no difference"),
        ([10.4, 10.4], [10.4, 10.9], "The ranges overlap: this shows no difference"),
    ],
)
def test_a_difference_is_said_only_where_the_ranges_lie_apart(
    rais, uniform, found, verdict
):
    said = verdict(rais, uniform)
    assert said.startswith(found)
    assert said.endswith(", in 0.80x the steps and 0.90x the seconds.")
