"""Sampled training in other precisions: by `floatx`, and by dtype policies."""

import functools

import keras
import numpy as np
import pytest

from keras_osgd.data import training_data
from keras_osgd.sampling import RAIS
from tests.helpers import small
from tests.helpers.selection import long_but

STEPS, M = 3, small.BATCH_SIZE
OWN = np.random.default_rng(5).uniform(0.5, 2.0, 60)


@pytest.fixture(scope="module")
def learned():
    """Returns weights, and the state of a table that draws far from uniformly."""
    trained = small.model()
    small.fit(trained, epochs=small.EPOCHS, sample_weight=OWN)
    return trained.get_weights(), trained.sampling_state.state_dict()


class Plan(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.first = self.model.sampling_run.planner.last_plan


def continued(learned, name, steps, norm="last_layer"):
    """Returns a model after some steps, its weights before, the plan, the history."""
    sampling, plan = RAIS(seed=0, norm=norm, adapt_learning_rate=False), Plan()
    model = small.model(optimizer=OPTIMIZERS[name](), sampling=sampling)
    model.set_weights(learned[0])
    model.sampling_state.load_state_dict(learned[1])
    before = model.get_weights()
    data = training_data.prepare(small.X, small.Y, OWN, None, M, None)
    state = model.sampling_state  # whose scores serve for any norm and precision
    state.norm, state.identity = norm, data.identity()
    given = {"steps_per_epoch": steps, "callbacks": [plan], "sample_weight": OWN}
    history = small.fit(model, **given).history
    assert plan.first.importance and plan.first.probability.std() > 1e-3
    return model, before, plan.first, history


def gradient_by_hand(weights, rows, importance):
    """Returns that of the mean of w u f in float64, for the kernel and the bias."""
    x, (kernel, bias) = small.X[rows].astype(np.float64), weights
    exponent = np.exp(x @ kernel + bias)
    delta = exponent / exponent.sum(axis=1, keepdims=True) - np.eye(3)[small.Y[rows]]
    delta *= (importance * OWN[rows] / len(rows))[:, np.newaxis]
    return x.T @ delta, delta.sum(axis=0)


def adam_by_hand(state, gradient, step):
    state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * gradient
    state["v"] = 0.999 * state.get("v", 0.0) + 0.001 * gradient**2
    rate = 0.1 * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    return -rate * state["m"] / (np.sqrt(state["v"]) + 1e-7)


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.5),
    "adam": lambda: keras.optimizers.Adam(0.1),
}


def test_steps_in_float64_are_those_by_hand_in_float64(learned):
    with small.precision("float64"):
        model, weights, plan, _ = continued(learned, "adam", STEPS)
    assert {w.dtype for w in weights} == {np.dtype("float64")}
    states = {}, {}
    for step in range(STEPS):
        drawn = slice(step * M, (step + 1) * M)
        p = plan.probability[drawn].astype(np.float32)  # as it travels to the step
        gradients = gradient_by_hand(
            weights, plan.index[drawn], 1 / (np.float32(60) * p)
        )
        pairs = zip(states, weights, gradients, strict=True)
        weights = [w + adam_by_hand(state, g, step + 1) for state, w, g in pairs]
    for found, expected in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-11)


SETTINGS = {
    "policy of float64": (("float32", "float64"), "sgd", 1e-4),
    "float16": (("float16",), "sgd", 0.02),
    "mixed_bfloat16": (("float32", "mixed_bfloat16"), "adam", 0.1),
}


@pytest.fixture(scope="module")
def with_exact_norms(learned):
    """Returns a function that trains a few steps by one of the optimizers."""
    return functools.cache(lambda name: continued(learned, name, 15, "exact"))


@pytest.mark.parametrize("name", long_but(["mixed_bfloat16"], SETTINGS))
def test_steps_on_the_same_draws_are_those_of_float32_up_to_rounding(
    name, learned, with_exact_norms
):
    of_keras, optimizer, error = SETTINGS[name]
    expected, before, plan, shown = with_exact_norms(optimizer)
    with small.precision(*of_keras):
        found, _, own_plan, own_shown = continued(learned, optimizer, 15, "exact")
    np.testing.assert_array_equal(own_plan.index, plan.index)
    change = small.flat(expected) - np.concatenate([w.ravel() for w in before])
    off = small.flat(found).astype(np.float64) - small.flat(expected)
    assert np.linalg.norm(off) < error * np.linalg.norm(change)
    np.testing.assert_allclose(own_shown["loss"], shown["loss"], rtol=error)
