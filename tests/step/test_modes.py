"""Eager, graph, XLA and several steps at once: the same draws from the same table."""

import functools

import keras
import numpy as np
import pytest

from keras_osgd.callbacks import SamplingMonitor
from keras_osgd.sampling import RAIS
from tests.helpers import small

MODES = {  # with whether they adapt the rate: epochs end where executions do
    "eager": ({"run_eagerly": True}, True),
    "five steps": ({"steps_per_execution": 5}, False),
    "five steps, jit": ({"steps_per_execution": 5, "jit_compile": True}, False),
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


def one_block(path, adapt, **options):
    """Trains on from a file; returns model, plan, the table before, and the logs."""
    sampling = RAIS(seed=0, adapt_learning_rate=adapt)
    model, plans = small.model(sampling=sampling, **options), Plans()
    model.load_weights(path)
    state = model.sampling_state
    before = {**state.table.state_dict(), "lead": state.lead.numpy()}
    callbacks = [plans, SamplingMonitor()]
    history = small.fit(model, steps_per_epoch=BLOCK, callbacks=callbacks).history
    return model, plans.first, before, history


@pytest.fixture(scope="module")
def reference(learned):
    """In graphs, one step at a time; by whether the rate is adapted."""
    return functools.cache(lambda adapt: one_block(learned, adapt))


@pytest.fixture(scope="module")
def trained(learned):
    return functools.cache(
        lambda mode: one_block(learned, MODES[mode][1], **MODES[mode][0])
    )


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
def test_modes_draw_and_learn_the_same_from_the_same_table(mode, trained, reference):
    model, plan, before, shown = trained(mode)
    expected, expected_plan, expected_before, expected_shown = reference(MODES[mode][1])
    assert plan.importance and plan.start == 0
    for key in ("loss", "gain_ratio", "effective_epochs"):
        np.testing.assert_allclose(shown[key], expected_shown[key], rtol=1e-4)
    gained = model.sampling_state.lead.numpy() - before["lead"]
    assert gained > 0.5 if MODES[mode][1] else gained == 0
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
    model, *_ = trained("five steps")
    other = reference(False)[0].sampling_state.table.state_dict()
    for name, value in model.sampling_state.table.state_dict().items():
        np.testing.assert_array_equal(value, other[name])
