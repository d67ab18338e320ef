"""The table of what `fit` takes is complete, and is what a trial of each row gives."""

import inspect
import itertools

import keras
import pytest

from tests import feature_table

PASSED = ("RemoteMonitor", "OrbaxCheckpoint")  # need a server, or another package
INSIDE = ("LossScaleOptimizer", "MultiOptimizer", "OptimizerMap")  # hold another one


def _names():
    for function in keras.Model.fit, keras.Model.compile:
        yield from list(inspect.signature(function).parameters)[1:]
    of = keras.callbacks, keras.callbacks.Callback
    yield from (c.__name__ for c in feature_table.classes(*of))
    of = keras.optimizers, keras.optimizers.Optimizer
    yield from (c.__name__ for c in feature_table.classes(*of))


def test_every_argument_callback_and_optimizer_of_keras_has_a_row():
    text = feature_table.committed()
    for name in set(_names()) - {*PASSED, *INSIDE}:
        assert f"| `{name}`" in text, name


@pytest.mark.auto
@pytest.mark.long
def test_some_rows_of_every_section_are_what_a_trial_gives(tmp_path):
    """All of them are tried by `python -m tests.feature_table`, in two minutes."""
    text = feature_table.committed()
    with feature_table.few_are_enough():
        for rows in feature_table.sections(tmp_path).values():
            for row in itertools.islice(rows, 2, None, 6):
                line = f"| {row.name} | {feature_table.outcome(row)} |"
                assert line in text.splitlines(), line
