"""Eager, graph, XLA and several steps at once: the same draws from the same table."""

import functools

import keras
import numpy as np
import pytest

from keras_osgd.sampling import RAIS
from tests.helpers import small

MODES = {
    "eager": {"run_eagerly": True},
    "jit": {"jit_compile": True},
    "five steps": {"steps_per_execution": 5},
    "five steps, jit": {"steps_per_execution": 5, "jit_compile": True},
}
BLOCK = 50


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Returns a file of weights and of a table that draws far from uniformly."""
    path = tmp_path_factory.mktemp("modes") / "learned.weights.h5"
    model = small.model()
    small.fit(model, epochs=small.EPOCHS)
    p = model.sampling_run.probabilities()
    assert model.sampling_state.armed and p.max() > 1.5 * p.min()
    model.save_weights(path)
    return path


class Plans(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.first = self.model.sampling_run.planner.last_plan


def one_block(path, steps=BLOCK, **options):
    """Trains on from a file; returns model, plan and what the table held before."""
    sampling = RAIS(seed=0, adapt_learning_rate=False)
    model, plans = small.model(sampling=sampling, **options), Plans()
    model.load_weights(path)
    before = model.sampling_state.table.state_dict()
    small.fit(model, steps_per_epoch=steps, callbacks=[plans])
    return model, plans.first, before


@pytest.fixture(scope="module")
def reference(learned):
    """In graphs, one step at a time."""
    return one_block(learned)


@pytest.fixture(scope="module")
def trained(learned):
    return functools.cache(lambda mode: one_block(learned, **MODES[mode]))


@pytest.mark.parametrize("mode", MODES)
def test_the_same_table_gives_the_same_draws_and_the_same_table_a_block_later(
    mode, trained, reference
):
    model, plan, before = trained(mode)
    expected, expected_plan, expected_before = reference
    assert plan.importance and plan.start == 0
    for name in plan._fields:  # draws, probabilities, features: to the bit
        np.testing.assert_array_equal(getattr(plan, name), getattr(expected_plan, name))
    for name, value in model.sampling_state.table.state_dict().items():
        np.testing.assert_array_equal(before[name], expected_before[name])
        other = expected.sampling_state.table.state_dict()[name]
        # Norms are float32, by kernels that add in another order: 50 steps of 1e-6.
        np.testing.assert_allclose(value, other, rtol=1e-4, err_msg=name)
    changed = model.sampling_state.table.last_norms() != before["last"]
    assert changed.sum() > 30  # as the block's steps observed them
    np.testing.assert_allclose(
        small.flat(model), small.flat(expected), rtol=1e-4, atol=1e-6
    )
    owed = [each.sampling_state.owed for each in (model, expected)]
    np.testing.assert_allclose(*owed, atol=1e-9)  # with the next plan's draws undone
    assert model.sampling_state.observed == expected.sampling_state.observed


def test_in_one_mode_steps_at_once_change_no_bit(trained, reference):
    model, _, _ = trained("five steps")
    other = reference[0].sampling_state.table.state_dict()
    for name, value in model.sampling_state.table.state_dict().items():
        np.testing.assert_array_equal(value, other[name])
