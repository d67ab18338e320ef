"""Every bad input and fault gets what it must get; see `tests.faults`."""

import pytest

from tests import faults

ROWS = {str(row.number): row for row in faults.ROWS}
# What no other test states; `python -m tests.faults` tries all, in four minutes.
QUICK = ["1", "3", "5", "6", "8", "12", "17", "18", "20", "21", "23"]


def test_there_are_as_many_rows_as_inputs_and_faults():
    assert list(ROWS) == [str(number) for number in range(1, 43)]


@pytest.mark.auto
@pytest.mark.parametrize("number", QUICK)
def test_a_row_is_met(number, capsys):
    assert faults.main([number]) == 0, capsys.readouterr().out


def test_a_row_that_is_not_met_is_said_and_counted(capsys, monkeypatch):
    wrong = faults.Row(43, "nothing", "an error", lambda: faults.refused(lambda: None))
    monkeypatch.setattr(faults, "ROWS", [*faults.ROWS[:1], wrong])
    assert faults.main([]) == 1
    said = capsys.readouterr().out
    assert "43 nothing: no error -- NOT MET, must be: an error" in said
    assert said.endswith("1 of 2 met\n")
