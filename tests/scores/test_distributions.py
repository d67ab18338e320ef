import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_osgd.scores import distributions
from tests.helpers import oracles, planned

_ANY = st.floats(0.0, 1e300, allow_subnormal=True)
_SCORE = st.one_of(st.just(0.0), st.floats(1e-38, 3e38))  # what a table holds
# TensorFlow takes subnormal numbers for 0, so these are left out where digits count.
_NORMAL = st.one_of(st.just(0.0), st.floats(1e-300, 1e300))


def _pairs(number):
    return st.lists(st.tuples(number, number), min_size=1, max_size=30)


def _robust(mean, variance):
    return planned.robust(mean, variance).numpy()


def test_uniform_gives_every_example_the_same_probability_in_float64():
    p = distributions.uniform(7)
    assert p.dtype == tf.float64
    np.testing.assert_array_equal(p.numpy(), np.full(7, 1 / 7))


@pytest.mark.parametrize("n", [0, -3])
def test_uniform_refuses_an_empty_training_set(n):
    with pytest.raises(ValueError, match="at least 1. Received: n="):
        distributions.uniform(n)


@given(st.lists(_NORMAL, min_size=1, max_size=30))
def test_oracle_is_in_proportion_to_norms_of_any_size(norms):
    p = distributions.oracle(tf.constant(norms, tf.float64)).numpy()
    expected = oracles.robust_in_decimals(norms, np.zeros(len(norms)))
    np.testing.assert_allclose(p, expected, rtol=1e-12, atol=1e-307)


@given(st.lists(_ANY, min_size=1, max_size=30))
def test_oracle_is_a_distribution_whatever_the_norms(norms):
    p = distributions.oracle(tf.constant(norms, tf.float64)).numpy()
    assert (p >= 0).all()
    assert p.sum() == pytest.approx(1, abs=1e-12)


def test_robust_attains_its_saddle_value_and_no_norms_in_the_set_exceed_it():
    rng, n = np.random.default_rng(0), 5
    mean, variance = rng.uniform(0.1, 2.0, (2, n))
    p = _robust(mean, variance)
    value = (mean.sum() + np.sqrt(n * variance.sum())) ** 2  # saddle value, by hand
    worst = mean + np.sqrt(n / variance.sum()) * variance
    np.testing.assert_allclose((worst**2 / p).sum(), value, rtol=1e-12)
    z = rng.normal(size=(10_000, n))  # norms drawn on the boundary of the set
    v = mean + np.sqrt(n * variance) * z / np.linalg.norm(z, axis=1, keepdims=True)
    assert (v**2 / p).sum(axis=1).max() <= value * (1 + 1e-12)


def test_no_other_distribution_does_better_against_the_worst_norms():
    rng, n = np.random.default_rng(1), 6
    mean, variance = rng.uniform(0.1, 2.0, (2, n))
    worst = mean + np.sqrt(n / variance.sum()) * variance
    p = _robust(mean, variance)
    best = (worst**2 / p).sum()
    step = 1e-3 * rng.normal(size=(1000, n))  # near p, where a wrong k would show
    nearby = p + step - step.mean(axis=1, keepdims=True)
    others = np.concatenate([nearby, rng.dirichlet(np.ones(n), 1000)])
    assert (worst**2 / others).sum(axis=1).min() > best


def test_known_norms_give_the_smallest_second_moment_of_cauchy_and_schwarz():
    rng, n = np.random.default_rng(2), 8
    norms = rng.lognormal(0.0, 1.5, n)
    p = _robust(norms, np.zeros(n))
    moment = (norms**2 / p).sum() / n**2  # equation (2) for minibatch size 1
    np.testing.assert_allclose(moment, norms.mean() ** 2, rtol=1e-13)
    others = rng.dirichlet(np.ones(n), 10_000)
    assert ((norms**2 / others).sum(axis=1) / n**2).min() > moment


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 0.1, 1e10, 1e30])
def test_rescaling_all_gradients_leaves_the_distribution_as_it_is(scale):
    mean, variance = np.random.default_rng(3).uniform(0.1, 2.0, (2, 50))
    np.testing.assert_allclose(
        _robust(scale * mean, scale**2 * variance), _robust(mean, variance), rtol=1e-13
    )


def test_many_of_the_largest_numbers_do_not_overflow():
    n = 50_000
    p = _robust(np.full(n, 1e38), np.full(n, 1e38))
    np.testing.assert_allclose(p, 1 / n, rtol=1e-12)
    p = _robust(np.zeros(n), np.where(np.arange(n) < n // 2, 2e38, 1e38))
    np.testing.assert_allclose(p[0], 2 * p[-1], rtol=1e-12)
    np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-12)


@settings(max_examples=200, derandomize=True)
@given(_pairs(_SCORE))
def test_robust_agrees_with_sixty_decimals_from_1e_minus_38_to_3e38(pairs):
    mean, variance = np.array(pairs).T
    expected = oracles.robust_in_decimals(mean, variance)
    # Entries that far below the largest one are rounding against it.
    np.testing.assert_allclose(
        _robust(mean, variance), expected, rtol=1e-12, atol=1e-300
    )


@settings(max_examples=200, derandomize=True)
@given(_pairs(_SCORE), st.floats(1e-6, 1.0))
def test_the_floor_bounds_every_weight_whatever_the_scores(pairs, floor):
    p = distributions.with_floor(planned.robust(*np.array(pairs).T), floor)
    weights = distributions.importance_weights(p, len(pairs)).numpy()
    np.testing.assert_allclose(p.numpy().sum(), 1.0, rtol=1e-12)
    assert p.numpy().min() >= floor / len(pairs)
    assert weights.max() <= (1 + 1e-15) / floor


@pytest.mark.parametrize("n", [1, 3, 1000])
def test_zero_scores_give_the_uniform_distribution(n):
    p = _robust(np.zeros(n), np.zeros(n))
    np.testing.assert_allclose(p, distributions.uniform(n).numpy(), rtol=1e-15)


@pytest.mark.parametrize("unit", [5e-324, 1e-310, 1e-308])
def test_subnormal_scores_give_a_distribution_whichever_thread_meets_them(unit):
    n = 100_000  # enough for TensorFlow to use its own threads, which see zeros
    scores = unit * np.random.default_rng(5).uniform(1.0, 2.0, n)
    p = distributions.oracle(tf.constant(scores)).numpy()
    assert p.min() >= 0.0
    np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-12)


def test_the_floor_is_the_share_of_uniform_draws():
    p = tf.constant([0.0, 0.25, 0.75], tf.float64)
    mixed = distributions.with_floor(p, 0.3).numpy()
    np.testing.assert_allclose(mixed, [0.1, 0.275, 0.625], rtol=1e-15)
    np.testing.assert_array_equal(distributions.with_floor(p, 0.0), p)
    np.testing.assert_allclose(distributions.with_floor(p, 1.0), 1 / 3, rtol=1e-15)


@pytest.mark.parametrize("floor", [-0.1, 1.1, float("nan")])
def test_a_floor_outside_zero_to_one_is_refused(floor):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]. Received: floor="):
        distributions.with_floor(distributions.uniform(3), floor)


def test_importance_weights_make_the_weighted_draw_unbiased():
    rng, n = np.random.default_rng(4), 9
    p, loss = rng.dirichlet(np.ones(n)), rng.normal(size=n)
    weights = distributions.importance_weights(tf.constant(p), n).numpy()
    np.testing.assert_allclose((p * weights * loss).sum(), loss.mean(), rtol=1e-12)


def test_importance_weights_of_a_batch_refer_to_the_whole_training_set():
    batch = tf.constant([0.25, 0.5], tf.float64)
    weights = distributions.importance_weights(batch, 8)
    np.testing.assert_array_equal(weights, [0.5, 0.25])


def test_importance_weights_refuse_an_empty_training_set():
    with pytest.raises(ValueError, match="at least 1. Received: n=0"):
        distributions.importance_weights(distributions.uniform(2), 0)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_every_distribution_keeps_the_dtype_it_is_given(dtype):
    p = distributions.oracle(tf.ones([3], dtype))
    assert p.dtype == dtype
    assert distributions.with_floor(p, 0.1).dtype == dtype
    assert distributions.importance_weights(p, 3).dtype == dtype
