"""The long checks of `endurance.py`, begun: the whole of them is a command."""

import pytest

from tests import endurance

pytestmark = pytest.mark.examples


@pytest.mark.slow
def test_killed_runs_go_on_where_their_last_checkpoint_was():
    assert endurance.kills(2).startswith("2 kills: an intact checkpoint after each")


def test_many_epochs_leave_memory_and_sums_where_they_were():
    assert endurance.soak(20).startswith("20 effective epochs")


@pytest.mark.parametrize("growth", [0.05])
def test_a_leak_would_be_seen(growth, monkeypatch):
    sizes = iter(100 * (1 + growth * i / 10) for i in range(10))
    monkeypatch.setattr(endurance, "_resident", lambda: next(sizes))
    with pytest.raises(AssertionError, match="memory grew"):
        endurance.soak(10)
