"""What a step's time consists of is measured without tracing or a first plan."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from examples.experiments import overhead

pytestmark = pytest.mark.examples

_rng = np.random.default_rng(0)
DATA = types.SimpleNamespace(
    kind="table",
    train=(
        _rng.normal(size=(6400, 4)).astype("float32"),
        _rng.integers(0, 3, 6400).astype("int32"),
    ),
    classes=3,
    shift=0,
    flip=False,
    vocabulary=None,
)


@pytest.mark.slow
def test_every_part_is_measured_and_nothing_is_traced_meanwhile(monkeypatch):
    traced = []
    compute_loss = keras.Model.compute_loss

    def counted(self, *args, **kwargs):
        if not tf.executing_eagerly():  # at the start of a `fit` losses are looked at
            traced.append(self)
        return compute_loss(self, *args, **kwargs)

    monkeypatch.setattr(keras.Model, "compute_loss", counted)
    segments = overhead._segments
    before = []

    def warmed(*args):
        made = segments(*args)
        assert traced
        before.append(len(traced))
        traced.clear()
        return made

    monkeypatch.setattr(overhead, "_segments", warmed)
    summary = overhead._summary
    monkeypatch.setattr(overhead, "_summary", lambda v: [summary(v), len(traced)])
    found = overhead.measure("table", DATA, repetitions=2, steps=100)
    assert found["n"] == 6400 and len(before) == 2
    parts = {*overhead.TRAINED, "planning", "planning_cpu", "waiting"}
    assert found["1"].keys() == {*parts, "pipeline"}
    assert found["10"].keys() == parts
    for step_parts in (found["1"], found["10"]):
        for part, (figures, traces) in step_parts.items():
            assert traces == 0, part
            assert len(figures["all"]) == 2
            lower, upper = figures["quartiles"]
            assert 0 < lower <= figures["median"] <= upper < 1000


@pytest.mark.parametrize(
    ("steps", "message"), [(15, "multiple of 10"), (200, "at most 100")]
)
def test_segments_that_do_not_fit_executions_or_data_are_refused(steps, message):
    with pytest.raises(ValueError, match=message):
        overhead.measure("table", DATA, steps=steps)
