"""The quickstart runs as a script, and its comparison does not flatter."""

import os
import re
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

pytestmark = pytest.mark.examples


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Returns what it prints on a few examples, from whatever folder it is called."""
    finished = subprocess.run(
        [sys.executable, ROOT / "examples" / "quickstart.py", "--smoke"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path_factory.mktemp("elsewhere"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished.stdout


def test_the_table_has_the_figures_of_every_run(printed):
    pattern = r"^(RAIS|uniform, \d+ epochs) +(\S+) % +(\S+) +(\S+) +(\d+)$"
    found = re.findall(pattern, printed, flags=re.M)
    rows = {name: tuple(map(float, figures)) for name, *figures in found}
    assert {"RAIS", "uniform, 2 epochs"} <= set(rows)
    error, _, seconds, steps = rows.pop("RAIS")
    for other, difference, *_ in rows.values():
        assert 0 < other < 60 and 0 < error < 60  # chance is 90
        assert abs(difference - (error - other)) < 0.011  # each is rounded
    # Among them is uniform training that had as much time, and as many steps.
    assert any(
        longer >= 0.5 * seconds and count >= steps
        for _, _, longer, count in rows.values()
    )


def test_the_luck_of_a_seed_is_named_and_where_many_seeds_are(printed):
    assert re.search(r"Luck of one seed: 0\.\d points", printed)
    path = re.search(r"examples/\S+\.md", printed)[0]
    assert (ROOT / path).exists()
