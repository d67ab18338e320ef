import numpy as np
import pytest
import tensorflow as tf

from keras_osgd.gain import gain_ratio
from tests.helpers import oracles_norms

_M = 2


def _problem(seed=0, n=4):
    """Gradients of n examples in 3 dimensions, and two distributions to draw them."""
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(n, 3)) * rng.lognormal(0.0, 1.0, (n, 1))
    return gradients, rng.dirichlet(np.full(n, 3.0)), rng.dirichlet(np.full(n, 3.0))


def _gain(averages, size=float(_M)):
    averages = tf.constant(np.asarray(averages), tf.float64)
    return float(gain_ratio.ratio(averages, tf.constant(size, tf.float64)))


def _enumerated(gradients, p, candidate):
    return oracles_norms.expected_moments(
        gain_ratio.moments, gradients, p, candidate, _M
    )


def _unbounded(averages, size=_M):
    """Returns equation 4 as it stands; infinite where noise leaves no denominator."""
    uniform, drawn, candidate, squared = averages
    moment = squared + (candidate - drawn) / size
    return (squared + (uniform - drawn) / size) / moment if moment > 0 else np.inf


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_second_moment_of_equation_2_is_that_over_all_batches(size):
    gradients, p, _ = _problem()
    n, squared_norms = len(gradients), (gradients**2).sum(axis=1)
    one = (squared_norms / p).sum() / n**2
    full = (gradients.mean(axis=0) ** 2).sum()
    np.testing.assert_allclose(
        oracles_norms.expected_squared_gradient(gradients, p, size),
        one / size + (1 - 1 / size) * full,
        rtol=1e-12,
    )


def test_no_distribution_has_a_smaller_second_moment_than_p_in_proportion_to_norms():
    gradients, _, _ = _problem()
    norms = np.sqrt((gradients**2).sum(axis=1))
    osgd, rng = norms / norms.sum(), np.random.default_rng(1)
    least = oracles_norms.expected_squared_gradient(gradients, osgd, _M)
    for step in rng.normal(size=(50, 4)) * [[0.003]]:
        other = osgd * np.exp(step)
        other /= other.sum()
        moment = oracles_norms.expected_squared_gradient(gradients, other, _M)
        assert moment > least


def test_the_expected_moments_are_those_of_the_three_estimators():
    gradients, p, candidate = _problem()
    n, squared_norms = len(gradients), (gradients**2).sum(axis=1)
    np.testing.assert_allclose(
        _enumerated(gradients, p, candidate),
        [
            squared_norms.mean(),
            (squared_norms / p).sum() / n**2,
            (squared_norms / candidate).sum() / n**2,
            oracles_norms.expected_squared_gradient(gradients, p, _M),
        ],
        rtol=1e-12,
    )


@pytest.mark.parametrize("drawn_with", ["the candidate", "uniform", "another p"])
@pytest.mark.parametrize("seed", range(5))
def test_the_ratio_is_that_of_the_enumerated_second_moments(drawn_with, seed):
    gradients, p, candidate = _problem(seed)
    uniform = np.full(4, 0.25)
    if seed == 0:  # exact O-SGD
        candidate = np.sqrt((gradients**2).sum(axis=1))
        candidate /= candidate.sum()
    drawn = {"the candidate": candidate, "uniform": uniform, "another p": p}[drawn_with]
    expected = oracles_norms.expected_squared_gradient(gradients, uniform, _M)
    expected /= oracles_norms.expected_squared_gradient(gradients, candidate, _M)
    gain = _gain(_enumerated(gradients, drawn, candidate))
    np.testing.assert_allclose(gain, expected, rtol=1e-12)
    assert abs(gain - 1) > 0.02  # else nothing was tested


def test_the_ratio_of_the_distribution_drawn_with_is_equation_4():
    second_uniform, second, squared, size = 7.0, 3.0, 2.5, 4
    expected = 1 + (second_uniform - second) / (size * squared)
    gain = _gain([second_uniform, second, second, squared], size)
    np.testing.assert_allclose(gain, expected, rtol=1e-14)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e9])
def test_rescaling_all_gradients_leaves_the_ratio_as_it_is(scale):
    averages = _enumerated(*_problem(2))
    np.testing.assert_allclose(_gain(scale * averages), _gain(averages), rtol=1e-12)


def test_the_ratio_is_never_above_that_of_the_estimators_with_minibatch_size_one():
    rng, bounded = np.random.default_rng(0), 0
    for averages in rng.lognormal(0.0, 1.0, (300, 4)):
        gain, (uniform, _, candidate, _) = _gain(averages), averages
        assert gain <= max(uniform / candidate, 1) * (1 + 1e-12)
        assert 1 / gain_ratio.MAX_GAIN <= gain <= gain_ratio.MAX_GAIN
        free = _unbounded(averages)
        if not np.isfinite(free):
            np.testing.assert_allclose(
                gain, np.clip(uniform / candidate, 1 / 8, 8), rtol=1e-12
            )
        elif 1 / gain_ratio.MAX_GAIN < free <= min(uniform / candidate, 8):
            np.testing.assert_allclose(gain, free, rtol=1e-12)
        elif free > uniform / candidate > 1:
            bounded += 1
            np.testing.assert_allclose(gain, min(uniform / candidate, 8), rtol=1e-12)
    assert bounded > 10


def test_the_ratio_is_capped_at_eight_and_at_an_eighth():
    assert gain_ratio.MAX_GAIN == 8
    assert _gain([100.0, 1.0, 1.0, 1.0]) == 8
    assert _gain([1.0, 100.0, 100.0, 60.0]) == pytest.approx(60.0**-1 * 10.5)
    assert _gain([1.0, 100.0, 100.0, 50.0]) == 1 / 8


@pytest.mark.parametrize(
    "averages",
    [
        [0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 1.0],
        [0.0, 1.0, 1.0, 0.0],
        [1.0, 1.0, 1.0, 0.0],
        [1.0, 2.0, 1.0, 0.5],
        [1e-38, 1e-38, 1e-38, 1e-38],
        [1e38, 1e30, 1e30, 1e37],
    ],
)
def test_zeros_and_extremes_give_a_ratio_within_its_bounds_and_no_nan(averages):
    for dtype in (tf.float32, tf.float64):
        gain = gain_ratio.ratio(tf.constant(averages, dtype), tf.constant(2.0, dtype))
        assert 1 / 8 <= float(gain) <= 8


def test_the_ratio_is_one_before_anything_is_observed():
    gain = gain_ratio.GainRatio()
    assert float(gain.current(64.0)) == 1.0
    assert _gain([0.0, 0.0, 0.0, 0.0]) == 1.0


def test_the_start_of_the_moving_averages_at_zero_does_not_bias_the_ratio():
    moments = tf.constant([7.0, 3.0, 3.0, 2.5])
    gain = gain_ratio.GainRatio()
    for _ in range(3):
        gain.update(moments)
        expected = float(gain_ratio.ratio(moments, 4.0))
        assert float(gain.current(4.0)) == pytest.approx(expected, rel=1e-6)


def test_the_averages_are_exponential_with_decay_0_98():
    rng, gain = np.random.default_rng(0), gain_ratio.GainRatio()
    batches = rng.lognormal(size=(30, 4))
    for batch in batches:
        gain.update(tf.constant(batch, tf.float32))
    weights = 0.02 * 0.98 ** np.arange(30)[::-1]
    np.testing.assert_allclose(gain.averages, weights @ batches, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", range(4))
def test_a_batch_that_is_not_finite_is_passed_over(bad, place):
    gain = gain_ratio.GainRatio()
    gain.update(tf.constant([7.0, 3.0, 3.0, 2.5]))
    before = gain.averages.numpy()
    gain.update(tf.tensor_scatter_nd_update(tf.ones(4), [[place]], [bad]))
    np.testing.assert_array_equal(gain.averages, before)
    gain.update(tf.ones(4))
    assert (gain.averages.numpy() != before).all()


def test_the_ratio_agrees_in_a_graph_and_under_xla():
    moments = tf.constant([[7.0, 3.0, 2.0, 2.5], [1.0, 5.0, 3.0, 0.1]])
    for compiled in (False, True):
        gain = gain_ratio.GainRatio()

        @tf.function(jit_compile=compiled)
        def step(row, gain=gain):
            before = gain.current(4.0)
            gain.update(row)
            return before

        eager = gain_ratio.GainRatio()
        for row in moments:
            expected = eager.current(4.0)
            eager.update(row)
            np.testing.assert_allclose(step(row), expected, rtol=1e-6)


def test_the_effective_sample_size_is_one_for_exact_o_sgd_alone():
    rng = np.random.default_rng(0)
    norms = rng.lognormal(size=64)
    p = norms / norms.sum()
    assert gain_ratio.gradient_ess(1 / (64 * p), norms) == pytest.approx(1.0, abs=1e-12)
    assert gain_ratio.gradient_ess(np.ones(64), norms) < 0.9
    # One example does it all: 1/m.
    assert gain_ratio.gradient_ess(np.ones(4), np.array([0.0, 3.0, 0.0, 0.0])) == 0.25


def test_the_effective_sample_size_of_norms_that_are_all_zero_is_one():
    assert gain_ratio.gradient_ess(np.ones(4), np.zeros(4)) == 1.0
