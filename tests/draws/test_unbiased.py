"""Equation (1) exactly: the mean over every outcome of a draw is the full gradient."""

import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.base import keras_compat
from keras_osgd.base.replicas import Share
from keras_osgd.data import training_data
from keras_osgd.data.identity import Identity
from keras_osgd.data.rows import Rows
from keras_osgd.draws import reshuffled
from keras_osgd.draws import reshuffled as draws
from keras_osgd.draws.blocks import Blocks, estimate_of_loss
from keras_osgd.draws.observations import ObservationLog
from keras_osgd.draws.pipeline import Plan, PlanBuffers, batches
from keras_osgd.draws.planner import RAISPlanner
from keras_osgd.draws.reshuffled import systematic
from keras_osgd.fit.run import RunKey, RunVariables
from keras_osgd.losses import described
from keras_osgd.sampling import RAIS
from keras_osgd.scores import distributions
from keras_osgd.scores.distributions import by_scores
from keras_osgd.scores.state import SamplingState
from keras_osgd.scores.table import ScoreTable
from keras_osgd.scores.uncertainty_set import UncertaintySet
from keras_osgd.step import sampled_step
from tests.helpers import oracles, planned

M = 2  # draws in a minibatch
CLASS_WEIGHT = {0: 0.5, 1: 2.0, 2: 3.0}


@pytest.fixture
def float64():
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")  # one that was set hides floatx
    yield
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)


def _rng(n):
    return np.random.default_rng(n)


def _state(n):
    """Returns what is known of n examples: unequal norms, an uncertainty set."""
    state = SamplingState()
    table = ScoreTable(n, None, ("constant", "last"))
    table.observe(np.arange(n), np.ones(n), _rng(n).lognormal(0.0, 1.5, n), 0)
    state.allocate(table, Identity(), seed=0, norm="last_layer")
    mean, spread = np.array([0.2, 0.7]), np.array([0.3, 0.5])
    spread /= spread @ table.mean_features()
    state.uncertainty_set = UncertaintySet(mean, spread, 0.8, 0, True)
    state.drawn = state.observed = 10 * n
    return state


def _candidate(n):
    """Returns p as the planner makes it of table and uncertainty set."""
    buffers = PlanBuffers(60, M)
    sampling, log = RAIS(floor=0.2), ObservationLog(buffers)
    planner = RAISPlanner(sampling, _state(n), buffers, log, 1)
    planner.plan(0, 0)
    planner.finish(0)
    return planner.candidate


@pytest.mark.parametrize("objective", [0.0, 0.8, 1e6])
def test_the_planner_draws_by_equation_6(objective):
    n, state = 50, _state(50)
    state.table.observe([3, 4], [1.0, 2.0], [7.0, 0.1], 1)  # the means have moved on
    fitted = state.uncertainty_set._replace(objective=objective)
    state.uncertainty_set = fitted
    mean = state.table.combine(fitted.mean)
    variance = objective * state.table.combine(fitted.spread)
    expected = 0.8 * oracles.robust_in_decimals(mean, variance) + 0.2 / n
    p, all_zero = by_scores(state, 0.2)
    np.testing.assert_allclose(p, expected, rtol=1e-12)
    assert p.shape == (n,) and not all_zero


def _norms(n):
    return tf.constant(_rng(n).lognormal(0.0, 1.5, n))


def _robust(n):
    return planned.robust(_norms(n), _rng(n + 1).uniform(0, 2, n))


DISTRIBUTIONS = {
    "uniform": distributions.uniform,
    "oracle": lambda n: distributions.oracle(_norms(n)),
    "robust": _robust,
    "floor": lambda n: distributions.with_floor(_robust(n), 0.1),
    "candidate": _candidate,
}
WEIGHTS = {
    "unweighted": (False, False),
    "sample": (True, False),
    "class": (False, True),
    "both": (True, True),
}


class Task:
    """n examples, a linear model, and its gradients by Keras and by hand."""

    def __init__(self, n, weighted, base=keras.Sequential):
        sample, by_class = WEIGHTS[weighted]
        rng, floatx = _rng(n), keras.config.floatx()
        self.n, self.x = n, rng.normal(size=(n, 3)).astype(floatx)
        self.y = np.arange(n) % 3
        own = rng.uniform(0.2, 3.0, n) if sample else None
        keras.utils.set_random_seed(0)
        self.model = base([keras.Input((3,)), keras.layers.Dense(3)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(keras.optimizers.SGD(1.0), loss)
        self.data = training_data.prepare(
            self.x, self.y, own, CLASS_WEIGHT if by_class else None, M, None
        )
        self.losses = described.describe(self.model, self.data)
        of_class = np.array([CLASS_WEIGHT[label] for label in self.y])
        self.own = np.ones(n) if own is None else own
        self.own = self.own * of_class if by_class else self.own
        self.gradient_of = tf.function(self._gradient_of, autograph=False)

    def full_gradient(self):
        """Returns that of F by hand: mean of u_i (softmax_i - onehot_i) [x_i, 1]^T."""
        kernel, bias = (np.array(w, np.float64) for w in self.model.get_weights())
        exponent = np.exp(self.x @ kernel + bias)
        delta = exponent / exponent.sum(axis=1, keepdims=True) - np.eye(3)[self.y]
        delta *= self.own[:, None] / self.n
        return np.concatenate([(self.x.T @ delta).ravel(), delta.sum(axis=0)])

    def mean_loss(self):
        """Returns F by hand: the mean of u_i -log softmax_i at its label."""
        kernel, bias = (np.array(w, np.float64) for w in self.model.get_weights())
        logits = self.x @ kernel + bias
        of_label = logits[np.arange(self.n), self.y]
        losses = np.log(np.exp(logits).sum(axis=1)) - of_label
        return (self.own * losses).mean()

    def _gradient_of(self, index, p):
        """Returns a minibatch's gradient, weighted as in the training step."""
        x, y, own = (
            None if a is None else tf.gather(a, index) for a in self.data.arrays
        )
        weights = distributions.importance_weights(tf.gather(p, index), self.n)
        combined = described.weights_for(self.losses, weights, own)
        with tf.GradientTape() as tape:
            y_pred = self.model(x, training=True)
            loss = keras_compat.compute_loss(self.model, x, y, y_pred, combined)
        return _flat(tape.gradient(loss, self.model.trainable_weights))


@functools.cache
def _task(n, weighted):
    """Returns the task in float64; cases share it, as its graph takes any p."""
    assert keras.config.floatx() == "float64"
    return Task(n, weighted)


def _flat(arrays):
    return tf.concat([tf.reshape(a, [-1]) for a in arrays], axis=0)


class _Positions:
    """Stands for a generator and returns chosen numbers in [0, 1)."""

    def __init__(self, positions):
        self.positions = positions

    def random(self, size):
        assert size == len(self.positions)
        return self.positions


def _law(p):
    """Returns the chance of each example in `draws.independent`, piece by piece."""
    ends = np.unique(np.concatenate([[0.0, 1.0], np.minimum(np.cumsum(p), 1.0)]))
    middles = (ends[1:] + ends[:-1]) / 2
    index = draws.independent(p, len(middles), _Positions(middles))
    return np.bincount(index, weights=np.diff(ends), minlength=len(p))


@pytest.mark.parametrize("weighted", WEIGHTS)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("n", [4, 5])
def test_independent_draws_have_the_full_gradient_for_mean(n, name, weighted, float64):
    task, p = _task(n, weighted), np.array(DISTRIBUTIONS[name](n))
    assert name == "uniform" or p.std() > 0.1 / n
    law, mean = _law(p), 0.0
    for outcome in itertools.product(range(n), repeat=M):
        gradient = task.gradient_of(tf.constant(outcome), tf.constant(p)).numpy()
        mean = mean + np.prod(law[list(outcome)]) * gradient
    np.testing.assert_allclose(mean, task.full_gradient(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_first_block_of_reshuffled_draws_has_it_too(name, float64):
    n, size = 4, 3
    task, p = _task(n, "both"), np.array(DISTRIBUTIONS[name](n))
    density, credit = reshuffled.block_density(np.zeros(n), p, size)
    mean, orders = 0.0, list(itertools.permutations(range(n)))
    for order in map(np.array, orders):
        ends = np.unique(np.concatenate([[0.0, 1.0], np.cumsum(density[order]) % 1.0]))
        for left, right in itertools.pairwise(ends):
            index = systematic(density, size, order, (left + right) / 2)
            gradient = task.gradient_of(tf.constant(np.sort(index)), tf.constant(p))
            mean = mean + (right - left) / len(orders) * gradient.numpy()
    assert credit == size / n
    np.testing.assert_allclose(mean, task.full_gradient(), rtol=0, atol=1e-10)


class _Script:
    """Stands for a generator: one order of the examples, one offset, one of places."""

    def __init__(self, order, offset, places):
        self.order, self.offset, self.places = order, offset, places

    def permutation(self, examples):
        return examples[list(self.order)]

    def integers(self, cells):
        return int(self.offset * cells)

    def random(self, size):
        return (np.array(self.places) + 0.5) / size


def _blocks_after(owed, p, size):
    """Yields (chance, block) of every outcome of `reshuffled`."""
    density, _ = reshuffled.block_density(np.array(owed), p, size)
    density = density[density > 0]
    orders = list(itertools.permutations(range(len(density))))
    places = list(itertools.permutations(range(size)))
    for order in orders:
        ends = np.cumsum(density[list(order)]) % 1.0
        ends = np.unique(np.concatenate([[0.0, 1.0], ends]).round(9))
        for left, right in itertools.pairwise(ends):
            chance = (right - left) / len(orders) / len(places)
            for place in places:
                rng = _Script(order, (left + right) / 2, place)
                yield chance, draws.reshuffled(np.array(owed), p, size, rng)


@pytest.mark.parametrize(("n", "size"), [(3, 2), (4, 3), (2, 3)])
def test_with_uniform_p_every_example_has_the_same_chance_at_every_draw(n, size):
    """Follows the law of the owed masses over blocks that do not divide the epoch."""
    p, law = np.full(n, 1 / n), {(0.0,) * n: 1.0}
    for _ in range(n + 1):  # until the blocks divide a number of epochs, and one more
        mean, after = np.zeros([size, n]), {}
        for owed, chance in law.items():
            for share, block in _blocks_after(owed, p, size):
                weights = 1 / (n * p[block.index]) / block.credit
                mean[np.arange(size), block.index] += chance * share * weights
                left = tuple(block.owed.round(9) + 0.0)
                after[left] = after.get(left, 0.0) + chance * share
        law = after
        np.testing.assert_allclose(mean, 1 / n, rtol=1e-8)
    assert n % size and len(law) > 1


@pytest.mark.parametrize(
    ("name", "weighted"), [("uniform", "both"), *(("candidate", w) for w in WEIGHTS)]
)
def test_the_steps_of_training_have_it_from_plan_to_weights(name, weighted):
    """Every outcome is a step of one block, planned, gathered and trained on."""
    task, p = Task(4, weighted, keras_osgd.Sequential), DISTRIBUTIONS[name](4)
    key = RunKey(4, M, 1, adapt=False, share=Share())
    variables = RAIS(), _state(4), key, task.losses, (), None
    p, run = np.array(p), RunVariables(*variables, losses_known=True)
    task.model.optimizer.build(task.model.trainable_weights)
    outcomes = np.array(list(itertools.product(range(4), repeat=M)))
    steps = run.buffers.block_steps
    index = np.resize(outcomes, (steps, M)).ravel()
    candidate = np.array(_candidate(4))[index]
    features = run.state.table.features_of(index)
    # Whatever the last losses are, the mean loss shown is that of all examples.
    last, visits = np.float32([3.0, np.nan, -1.0, 0.5]), len(index) * p[index]
    known = estimate_of_loss(last, [], index, 4 * p[index], 1.0, visits)
    parts = (index, p[index], candidate, features, True, 1.0, 1.0, 1.0, 0)
    plan = Plan(0, *parts, *known)
    run.buffers.write(plan)
    core = sampled_step.make_core(task.model, run.step_state, False)
    step = tf.function(core, autograph=False)
    before, mean, shown = task.model.get_weights(), 0.0, 0.0
    loss = task.mean_loss()
    full, dataset = task.full_gradient(), batches(run.buffers, Rows(task.data.arrays))
    for outcome, batch in zip(outcomes, dataset, strict=False):
        np.testing.assert_array_equal(batch[0], task.data.arrays[0][outcome])
        task.model.set_weights(before)
        task.model.reset_metrics()
        step(batch)
        shown += p[outcome].prod() * float(task.model.get_metrics_result()["loss"])
        change = _flat(before).numpy() - _flat(task.model.get_weights()).numpy()
        mean = mean + p[outcome].prod() * change.astype(np.float64)
    # Float32: a gradient of 1 taken off weights of 1 is rounded to 6e-8.
    np.testing.assert_allclose(mean, full, rtol=0, atol=1e-6)
    np.testing.assert_allclose(shown, loss, rtol=1e-6)


@pytest.mark.parametrize("aside", [[], [1]])
def test_given_what_was_drawn_the_loss_of_all_that_can_be_drawn_is_unbiased(aside):
    """Every outcome of a block whose examples are owed unequal masses."""
    n, size, rest = 5, 3, np.delete(np.arange(5), aside)
    owed = np.array([-1.5, 0.4, 0.0, 0.3, -0.2])[rest]
    p = np.array([0.2, 0.1, 0.25, 0.3, 0.15])[rest]
    p /= p.sum()
    density, credit = reshuffled.block_density(owed, p, size)
    visits = oracles.expected_visits(
        lambda order, offset: systematic(density, size, order, offset), density
    )
    now, last = _rng(0).uniform(1, 9, (2, n)).astype(np.float32)
    drawn = density > 0
    assert not drawn[0] and drawn[1:].all() and visits[1:].min() > 0
    index, relative = rest[drawn], len(rest) * p[drawn]
    # As `Blocks.make` calls it, for one draw of each; a block has `size` of them.
    credit *= len(rest) / size
    scaled = density[drawn] * len(index) / size
    factor, baseline = estimate_of_loss(last, aside, index, relative, credit, scaled)
    assert factor.max() < 4 * credit  # none is cut
    of_draw = baseline + factor / (relative * credit) * now[index]
    expected = np.where(drawn, now[rest], last[rest]).mean()
    assert visits[drawn] @ of_draw / size == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("aside", [[], [1, 4]])
@pytest.mark.parametrize("kind", ["reshuffled", "independent"])
def test_a_plan_has_what_its_losses_are_weighted_by(kind, aside):
    state, buffers, p = _state(9), PlanBuffers(50, M), np.array(_candidate(9))
    rest, size = np.delete(np.arange(9), aside), 50 * M
    state.bad_examples.strikes.update(dict.fromkeys(aside, 3))
    state.owed = _rng(1).normal(0, 9, 9)
    state.last_losses[:] = _rng(2).uniform(1, 9, 9)
    state.last_losses[[1, 3]] = np.nan
    of_rest = p[rest] / p[rest].sum()
    visits = np.zeros(9)
    visits[rest] = size * of_rest
    if kind == "reshuffled":
        visits[rest] = reshuffled.block_density(state.owed[rest], of_rest, size)[0]
    made = Blocks(RAIS(draws=kind), state, buffers)
    made.make(0, p, True)
    plan = made.last_plan
    assert set(np.unique(plan.index)) <= set(rest)
    weights = 1 / (9 * plan.probability)
    mean = np.nanmean(state.last_losses[rest])
    known = np.where(np.isnan(state.last_losses), mean, state.last_losses)[plan.index]
    # What a visit adds to the mean over the draws, for each unit of f - h.
    step = np.minimum(size / visits[plan.index], 4 / p[plan.index] * p[rest].sum())
    step /= len(rest)
    np.testing.assert_allclose(plan.loss_factor * weights, step, rtol=1e-5)
    np.testing.assert_allclose(plan.loss_baseline, mean - step * known, rtol=1e-4)


@pytest.mark.parametrize("aside", [[], [1, 4]])
def test_of_uniform_draws_the_mean_is_shown_whatever_their_last_losses(aside):
    state, buffers = _state(9), PlanBuffers(50, M)
    state.bad_examples.strikes.update(dict.fromkeys(aside, 3))
    state.owed = _rng(1).normal(0, 9, 9)
    state.last_losses[:] = _rng(2).uniform(1, 9, 9)
    made = Blocks(RAIS(), state, buffers)
    made.make(0, np.full(9, 1 / 9), False)
    plan = made.last_plan
    np.testing.assert_allclose(plan.loss_factor / (9 * plan.probability), 1, rtol=1e-6)
    np.testing.assert_array_equal(plan.loss_baseline, 0)


def test_a_factor_that_would_be_large_is_cut():
    draw, last = np.array([0]), np.float32([1.0, 2.0])
    factor, baseline = estimate_of_loss(last, [], draw, np.ones(1), 2.0, 1e-310)
    np.testing.assert_allclose([*factor, *baseline], [8.0, 1.5 - 4.0])
