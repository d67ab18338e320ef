import numpy as np
import pytest
import tensorflow as tf

from keras_osgd.data.identity import Identity
from keras_osgd.draws.observations import ObservationLog, Window, averaged
from keras_osgd.draws.pipeline import PlanBuffers
from keras_osgd.draws.planner import RAISPlanner
from keras_osgd.sampling import RAIS
from keras_osgd.scores.state import SamplingState
from keras_osgd.scores.table import ScoreTable
from keras_osgd.scores.uncertainty_set import UncertaintySet
from tests.helpers import oracles

MEANS = np.array([2.0, 1.0, 4.0])


def _set(seed):
    rng = np.random.default_rng(seed)
    spread = rng.uniform(size=3)
    spread /= spread @ MEANS
    return UncertaintySet(rng.uniform(size=3), spread, rng.uniform(1, 5), 3, True)


def _worst_norms(fitted, features):
    p = oracles.robust_in_decimals(
        features @ fitted.mean, fitted.objective * (features @ fitted.spread)
    )
    root = np.sqrt(fitted.objective)
    norms = features @ fitted.mean + root * (features @ fitted.spread)
    np.testing.assert_allclose(p, norms / norms.sum(), rtol=1e-9)
    return norms


def test_the_average_is_one_of_worst_case_norms():
    features = np.random.default_rng(0).uniform(size=(50, 3))
    features *= MEANS / features.mean(axis=0)
    old, new = _set(1), _set(2)
    both = averaged(old, new, MEANS)
    expected = 0.8 * _worst_norms(old, features) + 0.2 * _worst_norms(new, features)
    np.testing.assert_allclose(_worst_norms(both, features), expected, rtol=1e-12)
    np.testing.assert_allclose(both.spread @ MEANS, 1.0)


def test_the_average_begins_with_the_first_fit_and_stands_where_there_is_no_spread():
    new = _set(3)
    assert averaged(None, new, MEANS) is new
    zero = new._replace(objective=0.0)
    both = averaged(zero, zero, MEANS)
    assert both.objective == 0.0
    np.testing.assert_allclose(both.mean, new.mean)


def test_the_window_keeps_the_last_observations():
    rng = np.random.default_rng(4)
    features = rng.uniform(1, 2, size=(30, 2))
    norms = features @ [1.0, 0.5] + 0.1 * rng.normal(size=30)
    whole, last = Window(12), Window(12)
    for part in np.split(np.arange(30), [7, 20]):
        whole.add(features[part], np.ones(len(part)), norms[part])
    last.add(features[-12:], np.ones(12), norms[-12:])
    means = features.mean(axis=0)
    np.testing.assert_allclose(
        whole.fit(None, means).mean, last.fit(None, means).mean, rtol=1e-12
    )


def test_before_anything_was_known_the_features_are_the_mean_norm():
    window = Window(100)
    window.add(np.zeros((4, 2)), np.ones(4), np.array([1.0, 2.0, 3.0, 6.0]))
    fitted = window.fit(None, np.array([3.0, 3.0]))
    assert fitted.mean @ [3.0, 3.0] == pytest.approx(3.0)  # predicts the mean
    assert fitted.objective == pytest.approx(np.var([1.0, 2.0, 3.0, 6.0]), rel=1e-6)


def test_a_failed_fit_is_an_error_and_not_a_result():
    window = Window(100)
    window.add(np.ones((3, 1)), np.ones(3), np.array([1.0, np.nan, 1.0]))
    with pytest.raises(ValueError, match="must be finite"):
        window.fit(None, np.ones(1))


@pytest.mark.parametrize("parts", [1, 2])
def test_the_log_gives_back_what_steps_left_across_its_end(parts):
    buffers = PlanBuffers(block_steps=3, batch_size=2)
    log = ObservationLog(buffers, parts)
    for step in range(9):
        norms = np.float32([step, step + 0.5])
        for part, own in enumerate(np.split(norms, parts)):
            row = tf.constant(step % buffers.rows * parts + part, tf.int64)
            log.write(row, tf.constant([*own, *-own, 10.0 + step], tf.float32))
    again = ObservationLog(buffers, parts)
    again.load_state_dict(log.state_dict())
    expected = np.stack([np.arange(4, 9), np.arange(4, 9) + 0.5], axis=1).ravel()
    for one in (log, again):
        norms, gains, losses = one.read(4, 9)
        np.testing.assert_array_equal(gains, 10 + np.arange(4, 9))
        np.testing.assert_array_equal(norms, expected)
        np.testing.assert_array_equal(losses, -expected)


def test_the_last_losses_are_those_of_the_last_steps_that_counted():
    buffers, state = PlanBuffers(block_steps=52, batch_size=2), SamplingState()
    state.allocate(ScoreTable(6, None), Identity(), seed=0, norm="last_layer")
    log = ObservationLog(buffers)
    planner = RAISPlanner(RAIS(), state, buffers, log, steps_per_execution=1)
    planner.start()
    planner.last_plan.index[:8] = [0, 1, 0, 0, 2, 1, 3, 4]
    losses = [[5.0, 6.0], [7.0, 8.0], [9.0, 9.0], [np.inf, -1.0]]
    for step, gain in enumerate([1.0, 1.0, np.nan, 1.0]):  # NaN: it was skipped
        observed = tf.constant([1.0, 1.0, *losses[step], gain])
        log.write(tf.constant(step, tf.int64), observed)
    planner.catch_up(4)
    expected = [8.0, 6.0, np.nan, np.nan, -1.0, np.nan]
    np.testing.assert_array_equal(state.last_losses, expected)
    saved = state.state_dict()
    np.testing.assert_array_equal(saved["last_losses"], expected)
    del saved["last_losses"]  # as in files of the first version
    state.load_state_dict(saved)
    assert np.isnan(state.last_losses).all()
    planner.finish(4)


def test_only_features_that_are_all_zero_stand_for_an_unknown_example():
    window, norms = Window(100), np.array([2.0, 4.0])
    window.add(np.array([[1.0, 0.0], [0.0, 0.0]]), np.ones(2), norms)
    kept = window.state_dict()["features"]
    np.testing.assert_array_equal(kept, [[1.0, 0.0], [3.0, 3.0]])
