"""The rivals' rules by enumeration, and the loop against Keras."""

import itertools

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from examples.experiments import rivals
from examples.experiments.rivals import (
    effective_minibatch,
    exponential_average,
    infobatch,
    loop,
    online_batch_selection,
    presampling,
    selective_backprop,
)
from examples.experiments.rivals.rival import Observed, Rival

pytestmark = pytest.mark.examples

M = 32


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).astype("float32"), y[order].astype("int32")
    return (x[:1200], y[:1200]), (x[1200:], y[1200:])


def network(rate=0.1, name="sgd"):
    regularizer = keras.regularizers.L2(1e-3)
    layers = [
        keras.layers.Dense(
            units,
            activation=activation,
            kernel_initializer=keras.initializers.GlorotUniform(seed),
            kernel_regularizer=regularizer,
        )
        for units, activation, seed in ((32, "relu", 1), (10, None, 2))
    ]
    made = keras.Sequential([keras.Input((64,)), *layers])
    optimizers = {
        "sgd": lambda: keras.optimizers.SGD(rate, momentum=0.9),
        "adam": lambda: keras.optimizers.Adam(rate),
    }
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile(optimizers[name](), loss)
    return made


def schedule(rate, steps):
    return keras.optimizers.schedules.CosineDecay(rate, steps)


def train(data, name="reshuffled", epochs=2, seed=0, rate=0.1, **options):
    made = network()
    steps = epochs * -(-len(data[0]) // M)
    counts = rivals.train(
        made,
        data,
        rivals.RIVALS[name](),
        schedule(rate, steps),
        M,
        epochs,
        seed,
        **options,
    )
    return made, counts


def flat(model):
    return np.concatenate([weight.ravel() for weight in model.get_weights()])


class Given(Rival):
    """Prescribed batches, weights and rate factor."""

    rate_factor = 0.5

    def __init__(self, batches):
        super().__init__()
        self.batches, self.seen = batches, []

    def next(self, score):
        return self.batches[self.steps] if self.steps < len(self.batches) else None

    def observe(self, index, observed):
        super().observe(index, observed)
        self.seen.append(observed)


@pytest.mark.parametrize("name, factor", [("sgd", 0.5), ("adam", 0.5**0.5)])
@pytest.mark.parametrize("compiled_with_schedule", [False, True])
def test_steps_are_those_of_train_on_batch(
    digits, name, factor, compiled_with_schedule
):
    (x, y), _ = digits
    x, y, rng = x[:100], y[:100], np.random.default_rng(1)
    batches = [
        (rng.integers(0, 100, M), rng.uniform(0.2, 3, M).astype("float32"))
        for _ in range(6)
    ]
    mine = network(schedule(9.0, 5) if compiled_with_schedule else 9.0, name)
    rivals.train(mine, (x, y), Given(batches), schedule(0.01, 8), M, 2, 0)
    reference = network(schedule(0.01 * factor, 8), name)
    for index, weights in batches:
        reference.train_on_batch(x[index], y[index], sample_weight=weights)
    np.testing.assert_allclose(flat(mine), flat(reference), rtol=0, atol=1e-6)
    assert np.abs(flat(mine) - flat(network())).max() > 1e-3  # it moved at all


def test_what_a_step_shows_is_what_a_scoring_pass_and_the_definition_say(digits):
    (x, y), _ = digits
    index, weights = np.arange(M), np.linspace(0.5, 2, M).astype("float32")
    given = Given([(index, weights)])
    model = network()
    hidden, head = model.layers
    a = keras.ops.convert_to_numpy(hidden(x[index])).astype(np.float64)
    z = keras.ops.convert_to_numpy(model(x[index])).astype(np.float64)
    rivals.train(model, (x, y), given, lambda position: 0.0 * position, M, 1, 0)
    softmax = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    delta = softmax - np.eye(10)[y[index]]
    each = np.einsum("ik,ic->ikc", np.c_[a, np.ones(M)], delta)
    mean = (weights[:, None, None] * each).mean(0)
    (observed,) = given.seen
    expected = {
        "losses": -np.log(softmax[index, y[index]]),
        "norms": np.sqrt((each**2).sum((1, 2))),
        "pre_activation_norms": np.linalg.norm(delta, axis=1),
    }
    scored = loop.steps.scoring(model, loop.Rows((x, y)))(index)
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(observed, name), values, rtol=1e-4)
        np.testing.assert_allclose(getattr(scored, name), values, rtol=1e-4)
    np.testing.assert_allclose(observed.squared_gradient, (mean**2).sum(), rtol=1e-4)


def test_scoring_more_than_fit_one_pass_keeps_the_order(digits):
    (x, y), _ = digits
    model = network()
    score = loop.steps.scoring(model, loop.Rows((x, y)))
    index = np.random.default_rng(0).permutation(1200)
    z = model.predict(x[index], verbose=0).astype(np.float64)
    losses = np.log(np.exp(z).sum(1)) - z[np.arange(1200), y[index]]
    np.testing.assert_allclose(score(index).losses, losses, rtol=1e-4)


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_every_rival_learns_digits_and_two_runs_are_equal(digits, name):
    training, (x, y) = digits
    entries = []
    model, counts = train(training, name, 6, on_epoch=entries.append)
    error = np.mean(model.predict(x, verbose=0).argmax(-1) != y)
    assert error < 0.08  # 0.03 to 0.06 each; chance is 0.9
    runs = [flat(train(training, name, 2, seed=seed)[0]) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.abs(runs[0] - runs[2]).max() > 1e-3
    assert len(entries) == 6 and counts.effective_epochs == 6
    assert counts.gradients == counts.steps * M
    steps = [entry["steps"] for entry in entries]
    assert steps == sorted(steps) and steps[-1] == counts.steps


def test_the_control_has_keras_steps_and_visits_every_example_once_an_epoch():
    rival = rivals.RIVALS["reshuffled"]()
    rival.begin(70, M, 2, 0)
    seen = []
    while (draw := rival.next(None)) is not None:
        seen.append(draw[0])
        rival.observe(draw[0], None)
    assert len(seen) == 2 * 3
    visits = np.concatenate(seen)
    for start in (0, 70):
        np.testing.assert_array_equal(np.sort(visits[start : start + 70]), range(70))


def test_a_loss_that_is_not_finite_ends_the_run(digits):
    with pytest.raises(rivals.Diverged, match="must stay finite"):
        train(digits[0], rate=1e12, epochs=3)


# Presampling


def test_presampling_is_unbiased_within_the_pool():
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(6, 3))
    g = presampling.pool_probability(np.linalg.norm(gradients, axis=1))
    weights = 1 / (6 * g)
    expected = (g * weights) @ gradients
    np.testing.assert_allclose(expected, gradients.mean(0), rtol=1e-12)

    rival = presampling.Presampling(0.5)  # on as soon as tau = 1 is averaged often
    rival.begin(6, 2, 100, 0)
    rival._tau = 2.0
    norms = np.linalg.norm(gradients, axis=1)
    pools = []

    def score(index):
        pools.append(index)
        return rivals.Observed(None, None, norms[index], np.nan)

    index, found = rival.next(score)  # a pool of 3 * 2 is all six examples
    assert sorted(pools[0]) == list(range(6))
    np.testing.assert_allclose(found, weights[index], rtol=1e-5)


@pytest.mark.parametrize("biased", [False, True])
def test_exponential_averages_follow_the_norms_and_weigh_by_their_probability(biased):
    kind = (
        exponential_average.Biased if biased else exponential_average.ExponentialAverage
    )
    rival, norms = kind(0.25), np.array([1.0, 2.0, 3.0, 6.0])
    rival.begin(4, 2, 4, seed=0)
    seen = []
    for _ in range(2):  # the first pass visits each once, at weight 1
        index, weights = rival.next(None)
        assert weights.tolist() == [1.0, 1.0]
        seen += index.tolist()
        observe(rival, index, norms[index])
    assert sorted(seen) == [0, 1, 2, 3]
    averages = norms.copy()
    while (drawn := rival.next(None)) is not None:
        index, weights = drawn
        p = averages + 1e-3 * averages.mean()
        p /= p.sum()
        expected = np.ones(2) if biased else 1 / (4 * p[index])
        np.testing.assert_allclose(weights, expected, rtol=1e-5)
        moved = 0.25 * averages[index] + 0.75 * 2 * norms[index]
        averages[index] = moved
        observe(rival, index, 2 * norms[index])
    assert rival.steps == rival.total == 8


def observe(rival, index, norms):
    rival.observe(index, Observed(norms, norms, norms, np.nan))


def test_tau_is_the_root_of_the_second_moments_ratio():
    norms = np.random.default_rng(0).uniform(0.1, 5, 20)
    g = presampling.pool_probability(norms)
    uniform, importance = (norms**2).mean(), (norms**2 / (20 * g)).sum() / 20
    tau = presampling.tau(g)
    np.testing.assert_allclose(tau**2, uniform / importance, rtol=1e-5)
    # The reduction of variance that the paper states: (mean v)^2 B ||g - u||^2.
    reduction = norms.mean() ** 2 * 20 * ((g - 1 / 20) ** 2).sum()
    np.testing.assert_allclose(uniform - importance, reduction, rtol=1e-5)
    assert presampling.tau(np.full(5, 0.2)) == pytest.approx(1)


def test_presampling_switches_on_by_its_threshold(digits):
    training, _ = digits
    made, on = network(), presampling.Presampling(1.05)
    counts = rivals.train(made, training, on, schedule(0.1, 200), M, 4, 0)
    assert 0 < counts.forward < 3 * counts.gradients
    assert counts.forward % (3 * M) == 0
    never = presampling.Presampling(10.0)
    off = rivals.train(network(), training, never, schedule(0.1, 200), M, 4, 0)
    assert off.forward == 0


# Online batch selection


def test_rank_probabilities_are_geometric_with_the_stated_pressure():
    p = online_batch_selection.rank_probability(50, 100.0)
    assert p.sum() == pytest.approx(1, rel=1e-12)
    assert p[0] / p[-1] == pytest.approx(100, rel=1e-12)
    np.testing.assert_allclose(p[1:] / p[:-1], p[1] / p[0], rtol=1e-12)


@pytest.mark.parametrize("pressure", [1.0, 1.0 + 1e-9, 3.0, 1e4])
def test_ranks_are_drawn_by_their_probabilities(pressure):
    cells = (np.arange(200_000) + 0.5) / 200_000
    ranks = online_batch_selection.draw_ranks(20, pressure, cells)
    found = np.bincount(ranks, minlength=20) / 200_000
    p = online_batch_selection.rank_probability(20, pressure)
    np.testing.assert_allclose(found, p, atol=1e-5)


def test_after_an_epoch_examples_of_large_loss_are_drawn_more_often():
    n, m = 64, 16
    rival = online_batch_selection.OnlineBatchSelection(1e4)
    rival.begin(n, m, 100, 0)
    losses, visits, scored = np.arange(n, dtype=float), np.zeros(n), 0

    def score(index):
        nonlocal scored
        scored += len(index)
        return rivals.Observed(losses[index], None, None, np.nan)

    for step in range(24):
        index, weights = rival.next(score)
        assert (weights == 1).all()
        if step == 3:
            assert scored == 0  # the first epoch
        if step > 3:
            visits += np.bincount(index, minlength=n)
        rival.observe(index, None)
    assert scored == 10 * n  # twice an epoch in five epochs
    assert visits[32:].sum() > 0.95 * visits.sum()


# Selective Backprop


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_with_losses_that_keep_their_distribution_the_stated_share_is_kept(beta):
    losses = np.random.default_rng(0).exponential(size=4096)
    rival = selective_backprop.SelectiveBackprop(beta)
    rival.begin(len(losses), 64, 10, 0)
    forward = 0

    def score(index):
        nonlocal forward
        forward += len(index)
        return rivals.Observed(losses[index], None, None, np.nan)

    while (draw := rival.next(score)) is not None:
        rival.observe(draw[0], None)
    assert forward == 10 * 4096 and rival.progress == 1
    share, error = rival.steps * 64 / forward, 0.5 / np.sqrt(forward)
    assert share == pytest.approx(1 / (beta + 1), abs=4 * error + 64 / forward + 2e-3)


def test_the_selection_probability_is_a_power_of_the_share_below():
    history = np.array([3.0, 1.0, 2.0, 4.0])
    found = selective_backprop.selection_probability(np.array([4.0, 1.0]), history, 2)
    np.testing.assert_allclose(found, [1, 1 / 16])


# InfoBatch


def test_infobatch_expects_the_full_gradient_and_the_stated_share():
    scores, r = np.array([0.1, 5.0, 0.2, 4.0, 0.3]), 0.4  # three below the mean
    gradients = np.random.default_rng(0).normal(size=(5, 2))
    total, kept_expected = np.zeros(2), 0.0
    for pruned in itertools.product([True, False], repeat=3):
        uniform = np.full(5, 0.0)  # would prune: those above the mean must stay
        uniform[[0, 2, 4]] = np.where(pruned, r / 2, (1 + r) / 2)
        probability = np.prod(np.where(pruned, r, 1 - r))
        kept, weights = infobatch.keep(scores, r, uniform)
        total += probability * (weights[:, None] * gradients[kept]).sum(0)
        kept_expected += probability * len(kept)
    np.testing.assert_allclose(total, gradients.sum(0), atol=1e-6)
    assert kept_expected == pytest.approx(2 + 3 * (1 - r))


def test_infobatch_prunes_from_the_second_epoch_to_the_last_eighth():
    n, epochs, r = 320, 8, 0.5
    rival = infobatch.InfoBatch(r)
    rival.begin(n, M, epochs, 0)
    losses = np.where(np.arange(n) < 240, 0.1, 2.0)  # three quarters low
    by_epoch = np.zeros(epochs)
    low_weights = set()
    while (draw := rival.next(None)) is not None:
        index, weights = draw
        assert (weights[losses[index] > 1] == 1).all()
        low_weights |= set(weights[losses[index] < 1].tolist())
        by_epoch[min(int(rival.progress * epochs + 1e-9), epochs - 1)] += M
        rival.observe(index, rivals.Observed(losses[index], None, None, 0.0))
    assert low_weights == {1.0, 2.0}
    assert by_epoch[0] == n and abs(by_epoch[-1] - n) <= M
    kept = 80 + 240 * (1 - r)
    error = np.sqrt(240 * r * (1 - r) / 6)
    assert abs(by_epoch[1:-1].mean() - kept) < 4 * error + M / 6


# Effective minibatch


def test_the_traces_of_the_covariances_are_unbiased():
    n, m, rng = 4, 3, np.random.default_rng(0)
    gradients, p = rng.normal(size=(n, 2)) + 1, np.array([0.1, 0.2, 0.3, 0.4])
    v, weights = np.linalg.norm(gradients, axis=1), 1 / (n * p)
    squared_mean = (gradients.mean(0) ** 2).sum()
    exact = [(v**2).mean(), (v**2 / p).sum() / n**2] - squared_mean
    expected = np.zeros(2)
    for drawn in map(list, itertools.product(range(n), repeat=m)):
        batch = (weights[drawn, None] * gradients[drawn]).mean(0)
        found = effective_minibatch.traces(weights[drawn], v[drawn], (batch**2).sum())
        expected += np.prod(p[drawn]) * found
    np.testing.assert_allclose(expected, exact, rtol=1e-12)


def test_moving_moments_give_the_root_of_the_mean_square():
    moments = effective_minibatch.MovingMoments(3, 0.5)
    assert (moments.scores() == 1).all()
    moments.update(np.array([0, 1]), np.array([1.0, 3.0]))
    moments.update(np.array([0]), np.array([2.0]))
    first = np.sqrt((0.25 * 1 + 0.5 * 4) / 0.75)
    np.testing.assert_allclose(moments.scores(), [first, 3, (first + 3) / 2])


def test_the_effective_minibatch_is_larger_where_norms_differ():
    n, m, rng = 1000, 50, np.random.default_rng(0)
    gradients = rng.normal(size=(n, 5)) * rng.exponential(size=(n, 1)) ** 2
    v = np.linalg.norm(gradients, axis=1)
    rival = effective_minibatch.EffectiveMinibatch()
    rival.begin(n, m, 60, 0)
    factors, norms_seen = [], np.zeros(n)
    while (draw := rival.next(None)) is not None:
        index, weights = draw
        batch = (weights[:, None] * gradients[index]).mean(0)
        rival.observe(index, rivals.Observed(None, v[index], None, (batch**2).sum()))
        norms_seen[index] = v[index]
        factors.append(rival.rate_factor)
    p = 0.9 * v / v.sum() + 0.1 / n
    squared_mean = (gradients.mean(0) ** 2).sum()
    uniform, importance = (v**2).mean(), (v**2 / p).sum() / n**2
    ratio = (uniform - squared_mean) / (importance - squared_mean)
    assert ratio > 1.5 and (norms_seen == v).all()
    assert factors[:19] == [1.0] * 19
    assert np.mean(factors[100:]) == pytest.approx(ratio, rel=0.1)
    assert sum(factors) == pytest.approx(60 * 20, abs=8)  # effective iterations
