"""Whatever the numbers: a distribution above its floor, or a refusal that says why."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from keras_osgd.draws import reshuffled
from keras_osgd.scores import distributions, uncertainty_set
from keras_osgd.scores.checks import LARGE_FEATURES
from keras_osgd.scores.table import ScoreTable
from tests.helpers import planned

LARGEST = np.finfo(np.float32).max  # that a score table holds

SETTINGS = settings(derandomize=True, max_examples=100)
EXTREMES = [0.0, -0.0, 5e-324, 1e-310, 1e-300, 1e-30, 1.0, 3e38, 1e39, 1e300, 1e308]
BAD = [np.nan, np.inf, -np.inf, -1.0, -5e-324, -1e-2, -1e308]
GOOD = st.one_of(st.sampled_from(EXTREMES), st.floats(0.0, 1.797e308))
ANY = st.one_of(GOOD, st.sampled_from(BAD), st.floats())
FLOOR = st.one_of(st.just(1.0), st.floats(1e-6, 1.0))
MOSTLY_GOOD = st.sampled_from([GOOD, GOOD, ANY])  # or nothing but refusals is seen


def rows(width, largest=20):
    """Returns a strategy of arrays [1 to `largest`, width], all good or not."""
    shape = st.integers(1, largest).map(lambda k: (k, width))
    return MOSTLY_GOOD.flatmap(
        lambda numbers: arrays_of.arrays(np.float64, shape, elements=numbers)
    )


def refusal(function, *args):
    """Returns (result, None), or (None, message) of a refusal in the house's style."""
    try:
        with np.errstate(all="ignore"):
            return function(*args), None
    except ValueError as error:
        assert "must" in str(error) and "Received: " in str(error), error
        return None, str(error)


def is_bad(*numbers):
    return not all((np.asarray(a) >= 0).all() and np.isfinite(a).all() for a in numbers)


def assert_above_floor(p, floor):
    p = np.asarray(p)
    np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-12)
    assert p.min() >= floor / len(p) * (1 - 1e-15)
    weights = distributions.importance_weights(tf.constant(p), len(p)).numpy()
    assert weights.max() <= (1 + 1e-14) / floor


# Distributions


@SETTINGS
@given(rows(2), FLOOR)
def test_any_scores_give_a_distribution_above_its_floor_or_are_refused(scores, floor):
    norms = scores[:, 0]
    p, refused = refusal(distributions.oracle, tf.constant(norms))
    assert (refused is not None) == is_bad(norms)
    if refused is None:
        np.testing.assert_allclose(p.numpy().sum(), 1.0, rtol=1e-12)
        assert_above_floor(distributions.with_floor(p, floor), floor)
    if not is_bad(scores):
        mean, variance = np.minimum(scores, LARGEST).astype(np.float32).T
        p = planned.robust(mean, variance)
        np.testing.assert_allclose(p.numpy().sum(), 1.0, rtol=1e-12)
        assert_above_floor(distributions.with_floor(p, floor), floor)


@SETTINGS
@given(rows(1), FLOOR)
def test_a_floor_under_what_is_no_distribution_is_refused(scores, floor):
    p = scores[:, 0]
    _, refused = refusal(distributions.with_floor, tf.constant(p), floor)
    with np.errstate(over="ignore", invalid="ignore"):
        distribution = not is_bad(p) and abs(p.sum() - 1) < 1e-4
    assert (refused is None) == distribution


def test_a_small_negative_score_is_not_hidden_by_the_floor():
    with pytest.raises(ValueError, match="`norms` must be finite and >= 0. Received"):
        distributions.oracle(tf.constant([-0.01, 1.0]))
    with pytest.raises(ValueError, match="`probability` must .* smallest -0.01"):
        distributions.with_floor(tf.constant([-0.01, 1.01], tf.float64), 0.1)
    with pytest.raises(ValueError, match="and sum to 1. Received: .* sum 1.5"):
        distributions.with_floor(tf.constant([0.5, 1.0]), 0.1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scores_up_to_the_largest_number_keep_their_proportions(dtype):
    largest = np.finfo(dtype).max
    scores = tf.constant([largest, largest / 2, 0.0, largest / 4] * 50, dtype)
    expected = np.array([4, 2, 0, 1] * 50) / 350
    p = distributions.oracle(scores)
    np.testing.assert_allclose(p, expected, rtol=1e-5 if dtype == "float32" else 1e-12)


def test_scores_within_the_usual_range_are_divided_by_their_sum_to_the_bit():
    scores = np.random.default_rng(0).lognormal(0.0, 5.0, 1000)
    p = distributions.oracle(tf.constant(scores)).numpy()
    np.testing.assert_array_equal(p, scores / tf.reduce_sum(scores).numpy())


# Draws


@SETTINGS
@given(rows(2), st.integers(-1, 50), st.booleans())
def test_any_probability_and_visits_owed_give_draws_that_exist_or_are_refused(
    numbers, size, normalized
):
    owed, p = numbers.T
    if normalized and not is_bad(p) and p.max() > 0:
        p = p / p.max()
        p = p / p.sum()
    rng = np.random.default_rng(0)
    index, refused = refusal(reshuffled.independent, p, size, rng)
    if refused is None:
        assert len(index) == size and (p[index] > 0).all()
    owed = np.clip(owed, -1e6, 1e6)  # visits: beyond every training run
    drawn, refused = refusal(reshuffled.reshuffled, owed, p, size, rng)
    if refused is None:
        assert len(drawn.index) == size and (p[drawn.index] > 0).all()
        assert np.isfinite(drawn.owed).all() and np.isfinite(drawn.credit)


@SETTINGS
@given(rows(2), FLOOR, st.integers(1, 50))
def test_draws_from_any_scores_above_a_floor_are_never_refused(scores, floor, size):
    if is_bad(scores):
        return
    mean, variance = np.minimum(scores, LARGEST).astype(np.float32).T
    p = distributions.with_floor(planned.robust(mean, variance), floor).numpy()
    n, rng, owed = len(p), np.random.default_rng(0), np.zeros(len(p))
    total = np.zeros(n)
    for _ in range(5):
        assert len(reshuffled.independent(p, size, rng)) == size
        drawn = reshuffled.reshuffled(owed, p, size, rng)
        total += drawn.credit * size * p
        total -= np.bincount(drawn.index, minlength=n)
        owed = drawn.owed
        np.testing.assert_allclose(owed, total, atol=1e-6)
        assert abs(owed).max() <= 1 + 1e-9
        assert drawn.credit >= 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_visits_owed_that_are_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match=f"`owed` must be finite. Received: {bad}"):
        reshuffled.reshuffled(
            np.array([0.0, bad]), np.full(2, 0.5), 2, np.random.default_rng(0)
        )


@pytest.mark.parametrize("least", [5e-324, 1e-310])
def test_a_probability_whose_weight_is_no_number_is_refused(least):
    with pytest.raises(ValueError, match=f"above 0 .* Received: {least} at index 1"):
        reshuffled.reshuffled(np.zeros(2), np.array([1.0, least]), 2, None)


# The score table


@settings(SETTINGS, max_examples=60)
@given(st.data(), MOSTLY_GOOD, MOSTLY_GOOD)
def test_no_score_that_is_not_finite_is_ever_written(data, norms_of, weights_of):
    n = data.draw(st.integers(1, 6))
    table = ScoreTable(n, np.arange(n) % 2, LARGE_FEATURES)
    for block in range(data.draw(st.integers(1, 12))):
        k = data.draw(st.integers(0, 5))
        index = data.draw(st.lists(st.integers(0, n - 1), min_size=k, max_size=k))
        weights = data.draw(st.lists(weights_of, min_size=k, max_size=k))
        norms = data.draw(st.lists(norms_of, min_size=k, max_size=k))
        before = table.state_dict()
        _, refused = refusal(table.observe, index, weights, norms, block)
        bad = is_bad(norms, weights) or 0 in weights
        assert refused is not None if bad else True
        if refused is not None:
            for name, value in table.state_dict().items():
                np.testing.assert_array_equal(value, before[name])
        for values in (table.features_of(np.arange(n)), table.mean_features()):
            assert not is_bad(values)
    coefficients = data.draw(st.lists(ANY, min_size=6, max_size=6))
    scores, refused = refusal(table.combine, np.array(coefficients))
    assert (refused is not None) == is_bad(coefficients)
    if refused is None:
        p, refused = refusal(distributions.oracle, tf.constant(scores))
        if refused is None:
            assert_above_floor(distributions.with_floor(p, 0.05), 0.05)
        else:
            assert max(coefficients) > 1e260  # times a norm, above every number


def test_norms_up_to_1e38_give_scores_above_the_floor():
    table = ScoreTable(3, None, LARGE_FEATURES)
    for block in range(0, 200, 50):
        table.observe([0, 1], [2.0, 1e-3], [3.4e38, 1e-38], block)
    p = planned.robust(table.combine(np.ones(6)), table.combine(np.ones(6)))
    assert_above_floor(distributions.with_floor(p, 0.05), 0.05)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, 1e39])
def test_a_bad_norm_is_refused_with_its_place_and_the_old_one_kept(bad):
    table = ScoreTable(3, None)
    table.observe([0, 1], [1.0, 1.0], [2.0, 3.0], 0)
    with pytest.raises(ValueError, match="`norms` must be .* Received: .* at index 1"):
        table.observe([1, 0], [1.0, 1.0], [5.0, bad], 1)
    np.testing.assert_array_equal(table.last_norms(), [2.0, 3.0, np.nan])
    for index in (-1, 3):
        with pytest.raises(ValueError, match=r"`index` must be in \[0, 3\)"):
            table.observe([index], [1.0], [1.0], 1)
    with pytest.raises(ValueError, match="one entry for each draw"):
        table.observe([0, 1], [1.0], [1.0], 1)


@SETTINGS
@given(st.data(), ANY)
def test_a_table_with_any_number_put_into_its_file_loads_well_or_not_at_all(data, bad):
    n = 5
    table = ScoreTable(n, np.arange(n) % 2, LARGE_FEATURES)
    table.observe([0, 1, 0], [1.0, 0.5, 2.0], [3.0, 1e-3, 1e20], 4)
    before = table.state_dict()
    arrays = {name: np.array(value) for name, value in before.items()}
    name = data.draw(st.sampled_from(sorted(arrays)))
    values = arrays[name].reshape(-1)
    place = data.draw(st.integers(0, values.size - 1))
    with np.errstate(invalid="ignore", over="ignore"):
        values[place] = np.float64(bad).astype(values.dtype)
    arrays[name] = values.reshape(arrays[name].shape)
    other = ScoreTable(n, np.arange(n) % 2, LARGE_FEATURES)
    fresh = other.state_dict()
    _, refused = refusal(other.load_state_dict, arrays)
    if refused is None:
        assert not is_bad(other.features_of(np.arange(n)), other.mean_features())
        p = distributions.oracle(tf.constant(other.combine(np.full(6, 0.1))))
        assert_above_floor(distributions.with_floor(p, 0.05), 0.05)
    else:
        for key, value in other.state_dict().items():
            np.testing.assert_array_equal(value, fresh[key])


# The uncertainty set


@SETTINGS
@given(rows(5), arrays_of.arrays(np.float64, 3, elements=GOOD))
def test_any_window_gives_a_finite_uncertainty_set_or_is_refused(window, means):
    features, weights, norms = window[:, :3], window[:, 3], window[:, 4]
    fitted, refused = refusal(uncertainty_set.fit, features, weights, norms, means)
    if is_bad(window) or features[:, 0].min() == 0 or means[0] == 0:
        assert refused is not None
    if refused is None:
        assert not is_bad(fitted.mean, fitted.spread, fitted.objective)
        np.testing.assert_allclose((fitted.spread * means).sum(), 1.0, rtol=1e-9)


NUMBERS = st.floats(1e-30, 1e30)


@SETTINGS
@given(arrays_of.arrays(np.float64, (7, 5), elements=NUMBERS))
def test_windows_up_to_sixty_orders_apart_are_not_refused(window):
    features, weights, norms = window[:, :3], window[:, 3], window[:, 4]
    fitted = uncertainty_set.fit(features, weights, norms, features.mean(axis=0))
    mean, variance = features @ fitted.mean, fitted.objective * features @ fitted.spread
    p = planned.robust(mean, variance)
    assert_above_floor(distributions.with_floor(p, 0.05), 0.05)
