import numpy as np
import pytest
from scipy import optimize

from keras_osgd.scores import uncertainty_set
from keras_osgd.scores.uncertainty_set import UncertaintySet
from tests.helpers import oracles

# 0/0 gives NaN, which every comparison takes for no improvement: say so.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def _window(k=400, seed=0, noise=0.4):
    """Returns features {constant, last, EMA, class mean}, weights, norms and means.

    Norms are lognormal and the features noisy versions of them; the window is
    drawn from 20,000 examples with the probability an earlier fit might give.
    """
    rng, n = np.random.default_rng(seed), 20_000
    true = rng.lognormal(0.0, 1.5, n)
    label = rng.integers(0, 10, n)
    of_class = np.array([true[label == j].mean() for j in range(10)])
    last = true * np.exp(1.5 * noise * rng.normal(size=n))
    average = true * np.exp(noise * rng.normal(size=n))
    of_class = (of_class * rng.uniform(0.5, 2.0, 10))[label]
    features = np.stack([np.ones(n), last, average, of_class], axis=1)
    score = average + 0.3 * average.mean()
    p = 0.9 * score / score.sum() + 0.1 / n
    index = rng.choice(n, k, p=p)
    norms = true[index] * np.exp(0.2 * rng.normal(size=k))
    return features[index], 1 / (n * p[index]), norms, features.mean(axis=0)


def _objective(fitted, features, weights, norms):
    error = features @ fitted.mean - norms
    return (weights * error**2 / (features @ fitted.spread)).mean()


def _assert_feasible(fitted, mean_features):
    assert (fitted.mean >= 0).all()
    assert (fitted.spread >= 0).all()
    np.testing.assert_allclose(fitted.spread @ mean_features, 1.0, rtol=1e-12)


@pytest.mark.parametrize("noise", [0.05, 0.4, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_no_set_is_smaller_than_the_one_an_interior_point_solver_finds(seed, noise):
    window = _window(300, seed, noise)
    fitted = uncertainty_set.fit(*window)
    assert fitted.converged
    best = oracles.smallest_uncertainty_set(*window)
    np.testing.assert_allclose(fitted.objective, best, rtol=1e-5)


@pytest.mark.parametrize("noise", [0.05, 0.4, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_constraints_hold_and_the_objective_is_the_one_stated(seed, noise):
    *window, mean_features = _window(6400, seed, noise)
    fitted = uncertainty_set.fit(*window, mean_features)
    assert fitted.converged
    _assert_feasible(fitted, mean_features)
    np.testing.assert_allclose(
        _objective(fitted, *window), fitted.objective, rtol=1e-12
    )


def test_scaled_by_its_objective_the_spread_meets_the_constraint_of_equation_seven():
    features, weights, norms, mean_features = _window()
    fitted = uncertainty_set.fit(features, weights, norms, mean_features)
    d = fitted.objective * fitted.spread
    worst = weights * (features @ fitted.mean - norms) ** 2 / (features @ d)
    np.testing.assert_allclose(worst.mean(), 1.0, rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_objective_falls_with_every_step(seed):
    window = _window(seed=seed)
    steps = [
        uncertainty_set.fit(*window, max_iterations=i, tolerance=0.0) for i in range(9)
    ]
    objectives = [step.objective for step in steps]
    assert (np.diff(objectives) <= 0).all()
    assert objectives[-1] < 0.95 * objectives[0]
    assert [step.iterations for step in steps[:3]] == [0, 1, 2]


def test_max_iterations_bounds_the_steps_and_what_is_not_proven_is_not_converged():
    window = _window()
    for limit in (0, 1):
        fitted = uncertainty_set.fit(*window, max_iterations=limit)
        assert fitted.iterations == limit
        assert not fitted.converged


@pytest.mark.parametrize("tolerance", [0.3, 0.1, 1e-2, 1e-3])
@pytest.mark.parametrize("seed", range(5))
def test_converged_means_within_the_tolerance_of_the_smallest(seed, tolerance):
    window = _window(seed=seed)
    best = uncertainty_set.fit(*window)
    rough = uncertainty_set.fit(*window, tolerance=tolerance)
    assert rough.converged
    assert rough.iterations <= best.iterations - (tolerance > 0.01)
    assert rough.objective <= (1 + tolerance) * best.objective


@pytest.mark.parametrize("seed", range(5))
def test_a_warm_start_is_no_worse_and_takes_fewer_steps(seed):
    old, new = _window(6400, seed), _window(6400, seed + 100)
    # A quarter of the window is new, as after a block.
    moved = [np.concatenate([new[i][:1600], old[i][1600:]]) for i in range(3)]
    start = uncertainty_set.fit(*old)
    cold = uncertainty_set.fit(*moved, 1.02 * old[3])
    warm = uncertainty_set.fit(*moved, 1.02 * old[3], start=start)
    assert warm.converged
    assert warm.objective <= cold.objective * (1 + 1e-9)
    assert warm.iterations <= cold.iterations
    again = uncertainty_set.fit(*old, start=start)
    assert again.iterations == 0
    np.testing.assert_allclose(again.objective, start.objective, rtol=1e-12)


@pytest.mark.parametrize("feature", range(4))
def test_a_start_that_gives_a_feature_nothing_finds_back_to_the_smallest_set(feature):
    window = _window(noise=1.0)
    spread = np.eye(4)[feature] / window[3]
    start = UncertaintySet(np.zeros(4), spread, 1.0, 0, True)
    cold, warm = (uncertainty_set.fit(*window, start=s) for s in (None, start))
    assert warm.converged
    np.testing.assert_allclose(warm.objective, cold.objective, rtol=1e-8)


def test_a_start_without_any_spread_is_as_good_as_none():
    window = _window()
    start = UncertaintySet(np.zeros(4), np.zeros(4), 0.0, 0, True)
    cold, warm = (uncertainty_set.fit(*window, start=s) for s in (None, start))
    assert warm.objective == cold.objective


@pytest.mark.parametrize("k", [400, 6400])
@pytest.mark.parametrize("noise", [0.05, 0.4, 1.0])
def test_a_cold_fit_of_a_usual_window_takes_a_dozen_steps_at_most(k, noise):
    for seed in range(5):
        assert uncertainty_set.fit(*_window(k, seed, noise)).iterations <= 12


def test_the_constant_feature_counts_however_small_its_mean():
    features, weights, norms, mean_features = _window()
    mean_features[0] = 1e-13
    fitted = uncertainty_set.fit(features, weights, norms, mean_features)
    assert fitted.spread[0] > 0
    _assert_feasible(fitted, mean_features)


@pytest.mark.parametrize("norm_unit", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("feature_unit", [1e-30, 1.0, 1e30])
def test_rescaled_norms_and_features_rescale_the_coefficients_and_nothing_else(
    norm_unit, feature_unit
):
    features, weights, norms, mean_features = _window()
    plain = uncertainty_set.fit(features, weights, norms, mean_features)
    units = np.array([1.0, feature_unit, 1.0, norm_unit])
    scaled = uncertainty_set.fit(
        features * units, weights, norms * norm_unit, mean_features * units
    )
    assert scaled.converged
    np.testing.assert_allclose(
        scaled.objective, norm_unit**2 * plain.objective, rtol=1e-8
    )
    np.testing.assert_allclose(
        scaled.mean * units / norm_unit, plain.mean, rtol=1e-3, atol=1e-6
    )
    np.testing.assert_allclose(
        scaled.spread * units, plain.spread, rtol=1e-3, atol=1e-6
    )


def test_features_that_are_zero_get_no_coefficients_and_change_nothing():
    features, weights, norms, mean_features = _window()
    plain = uncertainty_set.fit(features, weights, norms, mean_features)
    nothing, something = np.zeros((400, 1)), np.ones((400, 1))
    for column, mean in ((nothing, 0.0), (nothing, 1.0), (something, 0.0)):
        fitted = uncertainty_set.fit(
            np.hstack([features, column]),
            weights,
            norms,
            np.append(mean_features, mean),
        )
        assert fitted.mean[4] == fitted.spread[4] == 0.0
        np.testing.assert_array_equal(fitted.mean[:4], plain.mean)
        np.testing.assert_array_equal(fitted.spread[:4], plain.spread)


def test_duplicated_features_do_no_harm():
    features, weights, norms, mean_features = _window()
    plain = uncertainty_set.fit(features, weights, norms, mean_features)
    twice = np.hstack([features, features]), np.append(mean_features, mean_features)
    fitted = uncertainty_set.fit(twice[0], weights, norms, twice[1])
    assert fitted.converged
    _assert_feasible(fitted, twice[1])
    np.testing.assert_allclose(fitted.objective, plain.objective, rtol=1e-8)
    # Of all c that predict the same, the even one and not rounding times 1e14.
    np.testing.assert_allclose(fitted.mean[:4], fitted.mean[4:], atol=1e-7)
    np.testing.assert_allclose(fitted.mean[:4], plain.mean / 2, atol=1e-5)


def test_every_example_keeps_a_positive_variance():
    features, weights, norms, mean_features = _window(noise=0.05)
    norms = features[:, 1] * (1 + 0.1 * np.sin(np.arange(400)))
    fitted = uncertainty_set.fit(features, weights, norms, mean_features)
    assert fitted.spread[0] * mean_features[0] >= 0.999e-6  # as the constant has it
    assert fitted.spread[0] * mean_features[0] <= 1e-5  # and that is the bound


def test_norms_that_are_all_zero_give_a_set_of_zeros():
    features, weights, norms, mean_features = _window()
    fitted = uncertainty_set.fit(features, weights, 0 * norms, mean_features)
    assert fitted.objective == 0.0
    assert fitted.converged
    np.testing.assert_array_equal(fitted.mean, 0.0)
    _assert_feasible(fitted, mean_features)


def test_norms_that_the_features_predict_leave_no_spread():
    features, weights, _, mean_features = _window()
    c = np.array([0.5, 0.0, 2.0, 0.1])
    fitted = uncertainty_set.fit(features, weights, features @ c, mean_features)
    assert fitted.converged
    assert fitted.objective < 1e-12 * (features @ c).mean() ** 2
    np.testing.assert_allclose(fitted.mean, c, atol=1e-6)


def test_weights_that_are_all_zero_claim_nothing():
    features, weights, norms, mean_features = _window()
    fitted = uncertainty_set.fit(features, 0 * weights, norms, mean_features)
    assert fitted.objective == 0.0
    _assert_feasible(fitted, mean_features)


@pytest.mark.parametrize("k", [1, 3, 4, 5, 6, 12])
@pytest.mark.parametrize("seed", range(5))
def test_fewer_observations_than_coefficients_still_give_the_smallest_set(seed, k):
    *window, mean_features = _window(seed=seed)
    window = [array[:k] for array in window]
    fitted = uncertainty_set.fit(*window, mean_features)
    assert fitted.converged
    _assert_feasible(fitted, mean_features)
    best = oracles.smallest_uncertainty_set(*window, mean_features)
    unit = window[2].mean() ** 2  # the cone solver's own tolerance is absolute
    np.testing.assert_allclose(fitted.objective, best, rtol=1e-4, atol=1e-7 * unit)


@pytest.mark.parametrize("seed", range(40))
def test_windows_of_all_kinds_are_solved_to_a_proof(seed):
    rng = np.random.default_rng(seed)
    k, width = int(rng.integers(5, 500)), int(rng.integers(1, 8))
    features = rng.lognormal(0.0, rng.uniform(0.1, 3.0), (k, width))
    if seed % 3 == 0:
        features = np.round(features)  # sparse, with ties
    if seed % 4 == 0:
        features = features[rng.integers(0, max(2, k // 20), k)]  # few different rows
    features[:, 0] = 1.0
    norms = rng.lognormal(0.0, rng.uniform(0.0, 3.0), k) * (rng.random(k) < 0.7)
    weights = rng.lognormal(0.0, 1.0, k)
    fitted = uncertainty_set.fit(features, weights, norms, features.mean(axis=0))
    assert fitted.converged
    assert fitted.iterations <= 20
    _assert_feasible(fitted, features.mean(axis=0))


def test_a_newton_step_that_leads_nowhere_is_replaced_by_one_that_cannot_fail(
    monkeypatch,
):
    window = _window()
    plain = uncertainty_set.fit(*window)
    monkeypatch.setattr(uncertainty_set, "_newton_share", lambda *_: np.eye(4)[3])
    fitted = uncertainty_set.fit(*window, max_iterations=2000, tolerance=1e-3)
    assert fitted.converged
    assert plain.objective < fitted.objective <= (1 + 1e-3) * plain.objective


def test_a_solver_that_gives_up_on_the_inner_problem_is_replaced(monkeypatch):
    window = _window()
    plain, calls = uncertainty_set.fit(*window), []

    def gives_up(*args, **kwargs):
        calls.append(args)
        raise RuntimeError("Maximum number of iterations reached.")

    monkeypatch.setattr(optimize, "nnls", gives_up)
    fitted = uncertainty_set.fit(*window)
    assert calls
    np.testing.assert_allclose(fitted.objective, plain.objective, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("argument", range(4))
def test_entries_that_are_negative_or_not_finite_are_refused(argument, bad):
    window = _window()
    window[argument].flat[-1] = bad
    with pytest.raises(ValueError, match="must be finite and >= 0, and .* Received"):
        uncertainty_set.fit(*window)


@pytest.mark.parametrize("argument", range(4))
def test_arrays_that_do_not_belong_together_are_refused(argument):
    window = list(_window())
    window[argument] = window[argument][:-1]
    with pytest.raises(ValueError, match=r"`features` must be \[k, F\].*Received"):
        uncertainty_set.fit(*window)


def test_an_empty_window_is_refused():
    features, weights, norms, mean_features = _window()
    with pytest.raises(ValueError, match="once the window holds observations"):
        uncertainty_set.fit(features[:0], weights[:0], norms[:0], mean_features)


def test_a_constant_feature_of_zero_is_refused():
    features, weights, norms, mean_features = _window()
    features[3, 0] = 0.0
    with pytest.raises(
        ValueError, match="constant feature 0 be > 0. Received: smallest of it 0.0"
    ):
        uncertainty_set.fit(features, weights, norms, mean_features)


def test_a_start_for_other_features_is_refused():
    window = _window()
    start = UncertaintySet(np.ones(3), np.ones(3), 1.0, 0, True)
    with pytest.raises(ValueError, match="one coefficient per feature"):
        uncertainty_set.fit(*window, start=start)
