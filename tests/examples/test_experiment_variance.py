"""The variance on frozen weights: enumerated, and by single examples."""

import itertools

import keras
import numpy as np
import pytest

from examples.experiments import variance
from tests.helpers.small import X as x
from tests.helpers.small import Y as y
from tests.helpers.small import fit, flat, model

pytestmark = pytest.mark.examples

_rng = np.random.default_rng(0)
GRADIENTS = _rng.normal(size=(4, 3)) * [[0.1], [1], [2], [5]]
NORMS = np.linalg.norm(GRADIENTS, axis=1)
FULL = GRADIENTS.mean(axis=0)
SQUARED = float(FULL @ FULL)
P = np.array([0.1, 0.2, 0.3, 0.4])
UNIFORM = np.full(4, 0.25)
OPTIMUM = NORMS / NORMS.sum()


def enumerated(p: np.ndarray, size: int, centre: np.ndarray) -> float:
    """Returns E||g - centre||^2 over all batches of independent draws."""
    total = 0.0
    for draws in itertools.product(range(4), repeat=size):
        chosen = list(draws)
        g = (GRADIENTS[chosen] / (4 * p[chosen, None])).mean(axis=0)
        total += p[chosen].prod() * ((g - centre) ** 2).sum()
    return total


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("p", [P, UNIFORM, OPTIMUM])
def test_traces_and_gains_are_those_of_all_batches_that_could_be_drawn(p, size):
    trace = variance.covariance_trace(NORMS, p, SQUARED, size)
    np.testing.assert_allclose(trace, enumerated(p, size, FULL), rtol=1e-12)
    uniform = enumerated(UNIFORM, size, FULL)
    ratio = variance.variance_ratio(NORMS, p, SQUARED)
    np.testing.assert_allclose(ratio, uniform / trace, rtol=1e-12)
    best = enumerated(OPTIMUM, size, FULL)
    share = variance.attained_share(NORMS, p)
    expected = (uniform - trace) / (uniform - best)
    np.testing.assert_allclose(share, expected, rtol=1e-12, atol=1e-12)
    gain = variance.true_gain_ratio(NORMS, p, SQUARED, size)
    expected = enumerated(UNIFORM, size, 0 * FULL) / enumerated(p, size, 0 * FULL)
    np.testing.assert_allclose(gain, expected, rtol=1e-12)


def test_the_ess_is_that_of_the_weighted_norms_and_1_at_the_optimum():
    products = NORMS / (4 * P)
    expected = (P @ products) ** 2 / (P @ products**2)
    np.testing.assert_allclose(variance.gradient_ess(NORMS, P), expected, rtol=1e-12)
    np.testing.assert_allclose(variance.gradient_ess(NORMS, OPTIMUM), 1, rtol=1e-12)


def test_examples_without_a_gradient_need_no_probability():
    norms, optimum = np.array([0.0, 1.0, 3.0]), np.array([0, 0.25, 0.75])
    assert variance.second_moment(norms, optimum) == pytest.approx((4 / 3) ** 2)
    assert variance.attained_share(norms, optimum) == 1
    assert variance.attained_share(np.ones(3), np.full(3, 1 / 3)) == 1


def small_network() -> keras.Model:
    keras.utils.set_random_seed(0)
    regularizer = keras.regularizers.L2(0.1)  # belongs to no example
    layers = [
        keras.layers.Dense(5, "tanh", kernel_regularizer=regularizer),
        keras.layers.Dense(3, kernel_regularizer=regularizer),
    ]
    made = keras.Sequential([keras.Input((4,)), *layers])
    made.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return made


def gradients_by_hand(made: keras.Model) -> tuple[np.ndarray, np.ndarray]:
    """Returns each example's gradient `[n, parameters]`, and the last layer's part."""
    kernel, bias, last, last_bias = (w.astype(np.float64) for w in made.get_weights())
    whole, of_last = [], []
    for row, label in zip(x.astype(np.float64), y, strict=True):
        a = np.tanh(row @ kernel + bias)
        z = np.exp(a @ last + last_bias)
        delta = z / z.sum() - np.eye(3)[label]
        inner = (last @ delta) * (1 - a**2)
        of_last.append(np.concatenate([np.outer(a, delta).ravel(), delta]))
        first = np.concatenate([np.outer(row, inner).ravel(), inner])
        whole.append(np.concatenate([first, of_last[-1]]))
    return np.array(whole), np.array(of_last)


def test_what_is_measured_agrees_with_a_loop_over_examples():
    made, n = small_network(), len(x)
    p = np.random.default_rng(1).uniform(0.5, 2, n)
    p /= p.sum()
    found = variance.measure(made, x, y, p, batch_size=8, estimated_gain=1.5)
    gradients, last = gradients_by_hand(made)
    full = gradients.mean(axis=0)

    def trace(p):
        weighted = gradients / (n * p[:, None])
        return p @ ((weighted - full) ** 2).sum(axis=1) / 8

    v, u = (np.linalg.norm(g, axis=1) for g in (gradients, last))
    uniform, oracle = trace(np.full(n, 1 / n)), trace(v / v.sum())
    squared = full @ full
    ranks = [np.argsort(np.argsort(norms)) for norms in (u, v)]
    expected = {
        "variance_ratio_rais": uniform / trace(p),
        "variance_ratio_oracle": uniform / oracle,
        "variance_ratio_last_layer": uniform / trace(u / u.sum()),
        "attained_share": (uniform - trace(p)) / (uniform - oracle),
        "attained_share_last_layer": (uniform - trace(u / u.sum()))
        / (uniform - oracle),
        "rank_correlation": np.corrcoef(ranks)[0, 1],
        "true_gain": (uniform + squared) / (trace(p) + squared),
        "oracle_gain": (uniform + squared) / (oracle + squared),
        "estimated_gain": 1.5,
        "gradient_ess": v.mean() ** 2 / (v**2 / p).sum() * n**2,
        "squared_full_gradient": squared,
        "rows": n,
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)


def test_of_many_examples_a_seeded_part_is_measured(monkeypatch):
    monkeypatch.setattr(variance, "_MOST_ROWS", 30)
    p = np.full(60, 1 / 60)
    found = variance.measure(small_network(), x, y, p, 8)
    assert found["rows"] == 30
    assert found["variance_ratio_rais"] == pytest.approx(1, rel=1e-9)
    assert found == variance.measure(small_network(), x, y, p, 8)
    assert found != variance.measure(small_network(), x, y, p, 8, seed=1)


def test_the_callback_measures_at_its_epochs_and_leaves_training_as_it_is():
    watch = variance.FrozenVariance(x, y, 4, at=(0.2, 0.5, 1))
    watched, alone = model(), model()
    fit(watched, epochs=8, callbacks=[watch])
    fit(alone, epochs=8)
    np.testing.assert_array_equal(flat(watched), flat(alone))
    assert [found["epoch"] for found in watch.measured] == [2, 4, 8]
    p, last = watched.sampling_run.probabilities(), watch.measured[-1]
    again = variance.measure(watched, x, y, p, 4, last["estimated_gain"])
    assert {name: last[name] for name in again} == pytest.approx(again)
    assert last["attained_share"] > 0 and last["estimated_gain"] > 0


def test_of_uniform_training_the_share_is_0():
    watch = variance.FrozenVariance(x, y, 4, at=(1,))
    fit(model(sampling="uniform"), callbacks=[watch])
    (found,) = watch.measured
    assert found["attained_share"] == pytest.approx(0, abs=1e-9)
    assert found["true_gain"] == 1 and found["estimated_gain"] is None


def test_fractions_outside_the_training_are_refused():
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        variance.FrozenVariance(x, y, 4, at=(0, 1))
