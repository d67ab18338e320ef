"""The clock of training counts from the second execution on, without pauses."""

import math

import pytest

from examples.common import clock

pytestmark = pytest.mark.examples


@pytest.fixture
def now(monkeypatch):
    times = [100.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: times[0])
    return times


def test_the_first_execution_and_pauses_are_left_out(now):
    watch = clock.Clock()
    now[0] = 101.0
    watch.execution_begins()
    assert math.isnan(watch.seconds())
    now[0] = 104.0
    watch.execution_begins()
    assert watch.seconds() == 0 and watch.first_step_seconds == 4
    now[0] = 106.0
    watch.stop()
    now[0] = 109.0
    watch.stop()  # once more says nothing new
    assert watch.seconds() == 2
    watch.go_on()
    now[0] = 110.0
    watch.leave_out(0.5)
    assert watch.seconds() == 2.5


def test_another_training_is_added_without_its_first_execution(now):
    watch = clock.Clock()
    watch.start()
    now[0] = 103.0
    watch.begin_another()
    now[0] = 110.0
    watch.execution_begins()
    assert watch.seconds() == 3
    now[0] = 111.0
    watch.execution_begins()
    now[0] = 115.0
    assert watch.seconds() == 3 + 4 and watch.executions == 2
    assert watch.first_step_seconds == 0
