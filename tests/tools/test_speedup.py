import itertools
import random
import re
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.data import training_data
from keras_osgd.tools import speedup
from tests.helpers import small

pytestmark = pytest.mark.long

STEPS = 35


@pytest.mark.parametrize("m", [1, 4, 64])
def test_the_attainable_gain_is_that_of_the_moments_of_whole_batches(m):
    rng = np.random.default_rng(m)
    gradients = rng.normal(size=(200, 5)) * rng.exponential(size=(200, 1)) + 0.2
    norms = np.linalg.norm(gradients, axis=1)
    full = np.sum(gradients.mean(axis=0) ** 2)
    uniform, best = (  # by equation (2)
        np.mean(norms * norms / (200 * p)) / m + (1 - 1 / m) * full
        for p in (np.full(200, 1 / 200), norms / norms.sum())
    )
    ratio, gain = speedup.attainable_gain(norms, uniform, m)
    np.testing.assert_allclose(gain, uniform / best, rtol=1e-12)
    np.testing.assert_allclose(ratio, np.mean(norms**2) / np.mean(norms) ** 2)


def test_equal_norms_and_none_gain_nothing_and_the_gain_is_bounded():
    assert speedup.attainable_gain(np.ones(9), 0.5, 4) == (1.0, 1.0)
    assert speedup.attainable_gain(np.zeros(9), 0.0, 4) == (1.0, 1.0)
    one = np.eye(100)[0]
    ratio, gain = speedup.attainable_gain(one, np.mean(one**2), 1)
    assert (ratio, gain) == (pytest.approx(100.0), 8.0)


def _unmoved():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.0), small.crossentropy())
    return model


_WEIGHTS = np.random.default_rng(2).uniform(0.5, 2.0, len(small.X)).astype("float32")


def _records():
    rows = list(zip(small.X, small.Y, _WEIGHTS, strict=True))
    return keras_osgd.data.records(rows, lambda row: row, labels=small.Y)


def _dataset():
    examples = tf.data.Dataset.from_tensor_slices((small.X, small.Y, _WEIGHTS))
    return examples.batch(6)


def _indexed():
    return keras_osgd.data.indexed(_dataset(), map=lambda x, y, w: (x, y, w))


_FORMS = {  # of data, and whether they have weights
    "arrays": (lambda: {"x": small.X, "y": small.Y}, False),
    "indexed": (lambda: {"x": _indexed(), "batch_size": None}, True),
    "dataset": (lambda: {"x": _dataset(), "batch_size": None}, True),
    "records": (lambda: {"x": _records()}, True),
}


@pytest.fixture
def in_two_rounds(monkeypatch):
    """What is found of gradients does not depend on how often steps are timed."""
    monkeypatch.setattr(speedup, "_ROUNDS", 2)


@pytest.mark.parametrize("form", _FORMS)
def test_an_estimate_is_the_closed_form_for_known_norms(form, in_two_rounds):
    data, weighted = _FORMS[form]
    model = _unmoved()  # in training either, so that its norms are known
    given = {"batch_size": 6, "steps": STEPS} | data()
    found = keras_osgd.estimate_speedup(model, **given)
    outputs = keras.ops.softmax(model(small.X)).numpy() - np.eye(3)[small.Y]
    if weighted:
        outputs *= _WEIGHTS[:, np.newaxis]
    inputs = np.c_[small.X, np.ones(len(small.X))]  # of kernel and bias
    gradients = np.einsum("ni,nj->nij", inputs, outputs).reshape(len(inputs), -1)
    norms = np.linalg.norm(gradients, axis=1)
    order = np.random.default_rng([0, 1]).permutation(len(norms)).reshape(10, 6)
    squared = np.mean([np.sum(gradients[rows].mean(0) ** 2) for rows in order])
    reduction = np.mean(norms**2) - np.mean(norms) ** 2
    gain = squared / (squared - reduction / 6)
    ratio = np.mean(norms**2) / np.mean(norms) ** 2
    np.testing.assert_allclose(found.variance_ratio, ratio, rtol=1e-5)
    np.testing.assert_allclose(found.attainable_gain, gain, rtol=1e-5)
    assert (found.rows, found.batch_size, found.probe_steps) == (60, 6, STEPS)


def test_an_estimate_touches_nothing_and_one_seed_gives_one_estimate(in_two_rounds):
    def arrays(model):
        tables = model.sampling_state.state_dict()
        return [*model.get_weights(), *map(np.array, model.optimizer.variables)], tables

    def start():
        model = small.model(optimizer=keras.optimizers.SGD(0.05, momentum=0.9))
        small.fit(model, epochs=4)  # into the second block, drawn by the scores
        return model

    model, twin = start(), start()
    before, tables = arrays(model)
    run, history = model.sampling_run, model.history
    seeds = random.getstate(), np.random.get_state()[1].tolist()
    given = model, small.X, small.Y, small.BATCH_SIZE, STEPS
    one = keras_osgd.estimate_speedup(*given, seed=2)
    assert seeds == (random.getstate(), np.random.get_state()[1].tolist())
    assert model.sampling_run is run and model.history is history
    after, tables_after = arrays(model)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    assert tables.keys() == tables_after.keys()
    for name, old in tables.items():
        np.testing.assert_array_equal(old, tables_after[name])
    again = keras_osgd.estimate_speedup(*given, seed=2)
    assert 1 <= one.attainable_gain <= one.variance_ratio
    for name in ("steps", "variance_ratio", "attainable_gain"):  # but not times
        assert getattr(one, name) == getattr(again, name)
    for trained in (model, twin):
        small.fit(trained, epochs=2)
    np.testing.assert_array_equal(small.flat(model), small.flat(twin))


def test_the_account_says_what_was_found_and_where_it_will_not_help():
    none = speedup._estimate((0.001, 0.0014, 0.0), np.ones(50), 1.0, 8, 300)
    assert none.verdict == "will not help"
    assert none.steps == (1.0, 1.0) and none.seconds == pytest.approx((1.4, 1.4))
    assert "will not help here" in str(none) and "after 300 steps" in str(none)
    norms = np.r_[np.zeros(30), np.ones(10)]
    found = speedup._estimate((0.002, 0.0021, 0.0004), norms, 0.25 / 4, 4, 300)
    assert found.attainable_gain == pytest.approx(4.0)  # A_U = 1/4, A_O = 1/16
    low, high = found.steps
    assert low < 1 / 4 < high < 1 and found.verdict == "likely"
    assert found.seconds == pytest.approx((1.05 * low, 1.25 * high))
    assert re.search(r"1.05 times 2.00 ms.*0.40 ms of planning", str(found))
    assert len(str(found).splitlines()) <= 6


def test_weights_train_the_copy_as_a_rate_that_is_as_much_larger(in_two_rounds):
    def ratio(rate, **weights):
        model = _unmoved()
        model.compile(keras.optimizers.SGD(rate), small.crossentropy())
        given = (model, small.X, small.Y, 6, STEPS)
        return keras_osgd.estimate_speedup(*given, **weights).variance_ratio

    doubled = ratio(0.1, sample_weight=np.full(len(small.X), 2.0, "float32"))
    np.testing.assert_allclose(doubled, ratio(0.2), rtol=1e-5)
    assert abs(doubled / ratio(0.1) - 1) > 1e-3


def test_several_steps_at_once_are_timed_as_single_ones():
    model = small.model(steps_per_execution=4)
    least = speedup.least_steps(4)
    found = keras_osgd.estimate_speedup(model, small.X, small.Y, 4, least)
    assert found.overhead >= 1 and found.step_milliseconds > 0


@pytest.mark.parametrize("labels", [small.Y, None])
def test_planning_is_spread_over_the_steps_of_a_block(labels, monkeypatch):
    model, seconds = small.model(), itertools.count(step=3)
    if labels is None:  # all norms are 0, and nothing is fitted
        model.compile("sgd", keras.losses.MeanSquaredError())
        model.set_weights([np.zeros_like(w) for w in model.get_weights()])
        labels = np.zeros([len(small.X), 3], "float32")
    model.fit(small.X, labels, batch_size=6, epochs=2, verbose=0)
    data = training_data.prepare(small.X, labels, None, None, 6, None)
    clock = types.SimpleNamespace(perf_counter=lambda: next(seconds))
    monkeypatch.setattr(speedup, "time", clock)
    # A block is n/8 draws, and no fewer than 52 steps.
    assert speedup.planning_seconds(model, data) == 3 / 52


def test_an_estimate_is_refused_where_norms_are_not_finite(in_two_rounds):
    x = np.where(np.arange(60)[:, np.newaxis] == 7, np.nan, small.X)
    with pytest.raises(ValueError, match="must be finite to tell.*60 of 60 that are"):
        keras_osgd.estimate_speedup(small.model(), x, small.Y, 4, STEPS)


def test_what_cannot_be_estimated_is_refused():
    estimate, model = keras_osgd.estimate_speedup, small.model(run_eagerly=True)
    with pytest.raises(ValueError, match="`steps` must be at least 35.*steps=5"):
        estimate(model, small.X, small.Y, steps=5)
    with pytest.raises(ValueError, match="`steps` must be at least 750.*steps=500"):
        estimate(small.model(steps_per_execution=50), small.X, small.Y)
    with pytest.raises(ValueError, match="dataset is infinite.*Presample"):
        estimate(model, _dataset().repeat())
    with pytest.raises(ValueError, match="must be arrays. Received: generator"):
        estimate(model, (batch for batch in _dataset()))
    with pytest.raises(ValueError, match="has label 7 at index 3"):
        labels = np.where(np.arange(60) == 3, 7, small.Y)
        estimate(model, small.X, labels, 4, STEPS)

    class Own(keras.Model):
        def __init__(self, given):  # which a copy would not know
            super().__init__()
            self.head = keras.layers.Dense(3)

        def call(self, x):
            return self.head(x)

    own = Own(object())
    own.compile("sgd", small.crossentropy())
    own(small.X)
    with pytest.raises(ValueError, match="loaded.*Own, and NotImpl.*Register"):
        estimate(own, small.X, small.Y, 4, STEPS)
