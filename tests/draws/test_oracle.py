"""Exact O-SGD: draws by the exact norms of all examples, scored as often as asked."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd import sampling
from keras_osgd.callbacks import SamplingMonitor
from keras_osgd.data import training_data
from keras_osgd.data.rows import Rows
from keras_osgd.draws import oracle, pipeline
from keras_osgd.fit import checks
from keras_osgd.norms.scorer import Scorer
from keras_osgd.sampling import RAIS, Oracle
from tests.helpers import small

N, M = 30, 4
STEPS = math.ceil(N / M)
X, Y = small.X[:N], small.Y[:N]


def _model(rate=0.1, **options):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((4,)), keras.layers.Dense(5, "tanh"), keras.layers.Dense(3)]
    model = keras_osgd.Sequential(layers)
    options = {"sampling": Oracle(seed=0), **options}
    model.compile(keras.optimizers.SGD(rate), small.crossentropy(), **options)
    return model


def _fit(model, x=X, y=Y, **options):
    return model.fit(x, y, **{"batch_size": M, "verbose": 0, **options})


def _gradients(weights, x=X, y=Y):
    """Returns `[n, weights]` float64, each example's gradient, by hand."""
    kernel, bias, head, head_bias = (w.astype(np.float64) for w in weights)
    hidden = np.tanh(x @ kernel + bias)
    exponents = np.exp(hidden @ head + head_bias)
    at_logits = exponents / exponents.sum(axis=1, keepdims=True) - np.eye(3)[y]
    at_hidden = (at_logits @ head.T) * (1 - hidden**2)
    parts = [
        np.einsum("ni,nj->nij", x, at_hidden),
        at_hidden,
        np.einsum("ni,nj->nij", hidden, at_logits),
        at_logits,
    ]
    return np.concatenate([part.reshape(len(x), -1) for part in parts], axis=1)


class _Watch(keras.callbacks.Callback):
    """Keeps each execution's first weights, and what it was planned with."""

    def on_train_begin(self, logs=None):
        self.steps = []

    def on_train_batch_begin(self, batch, logs=None):
        run = self.model.sampling_run
        self.before = run.clock.step, self.model.get_weights()

    def on_train_batch_end(self, batch, logs=None):
        planner = self.model.sampling_run.planner
        self.steps.append((*self.before, planner.last_plan, planner.candidate))


@pytest.fixture
def scorings(monkeypatch):
    """Returns a list with an entry for each scoring of all examples."""
    calls, of_all = [], Scorer.of_all

    def counted(self, *args):
        calls.append(of_all(self, *args))
        return calls[-1]

    monkeypatch.setattr(Scorer, "of_all", counted)
    return calls


def _assert_p_is_that_of_the_plans_first_step(watch, refresh):
    starts = []
    for step, weights, plan, p in watch.steps:
        assert plan.start <= step < plan.start + refresh
        if step != plan.start:
            continue
        starts.append(step)
        norms = np.linalg.norm(_gradients(weights), axis=1)
        np.testing.assert_allclose(p, norms / norms.sum(), rtol=2e-5)
        np.testing.assert_allclose(plan.probability, plan.credit * p[plan.index])
    return starts


def test_p_is_in_proportion_to_the_norms_at_the_weights_before_the_step(scorings):
    method = Oracle(1, 0.0, adapt_learning_rate=False, seed=0)
    model, watch = _model(rate=1.0, sampling=method), _Watch()
    # With fresh norms w v is the same for all: there is no weight to bound.
    assert small.warned(_fit, model, epochs=2, callbacks=[watch]) == []
    starts = _assert_p_is_that_of_the_plans_first_step(watch, 1)
    assert starts == list(range(2 * STEPS))
    assert len(scorings) == len(starts)  # none after the last step


def test_with_one_example_a_step_moves_by_the_mean_norm_whichever_is_drawn():
    method = Oracle(adapt_learning_rate=False, draws="reshuffled", seed=0)
    model, watch = _model(sampling=method), _Watch()
    x, y = X[:7], Y[:7]
    _fit(model, x, y, batch_size=1, epochs=2, callbacks=[watch])
    after = [weights for _, weights, _, _ in watch.steps[1:]] + [model.get_weights()]
    for (_, weights, plan, _), new in zip(watch.steps, after, strict=True):
        gradients = _gradients(weights, x, y)
        norms = np.linalg.norm(gradients, axis=1)
        drawn = plan.index[0]
        moved = np.concatenate(
            [(a - b).ravel() for a, b in zip(new, weights, strict=True)]
        )
        direction = gradients[drawn] / norms[drawn]
        expected = -0.1 / plan.credit * norms.mean() * direction
        np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=3e-7)


def test_the_pipeline_reads_nothing_ahead():
    buffers = pipeline.PlanBuffers(block_steps=8, batch_size=2)
    buffers.planned_until.assign(8)
    rows = Rows((np.arange(20), np.zeros(20), None))
    iterator = iter(pipeline.batches(buffers, rows, read_ahead=0))
    for step in range(6):
        buffers.index.assign(tf.fill(buffers.index.shape, tf.cast(step, tf.int64)))
        assert next(iterator)[0].numpy().tolist() == [step, step]


def test_a_second_fit_scores_at_the_weights_it_begins_with(scorings):
    model, watch = _model(sampling=Oracle(refresh=50, floor=1e-9, seed=0)), _Watch()
    _fit(model)
    weights = [w + 0.5 for w in model.get_weights()]

    class Load(keras.callbacks.Callback):  # as BackupAndRestore does
        def on_train_begin(self, logs=None):
            self.model.set_weights(weights)

    blocks, drawn = model.sampling_state.blocks, model.sampling_state.drawn
    assert drawn == model.optimizer.iterations.numpy() * M  # unused ones undone
    _fit(model, callbacks=[Load(), watch])
    assert _assert_p_is_that_of_the_plans_first_step(watch, 50) == [0]
    assert model.sampling_state.blocks == blocks + 1
    assert model.sampling_state.drawn == model.optimizer.iterations.numpy() * M
    assert len(scorings) == 2


def test_what_ends_a_fit_in_its_first_scoring_is_what_is_raised(monkeypatch):
    def interrupted(self, *args):
        raise KeyboardInterrupt("by hand")

    monkeypatch.setattr(Scorer, "of_all", interrupted)
    model = _model(sampling=Oracle(refresh=5, floor=0.0, seed=0))
    with pytest.raises(KeyboardInterrupt, match="by hand"):
        _fit(model)
    assert not model.sampling_state.in_use


def _two_outputs(**options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5, "tanh")(inputs)
    hidden = keras.layers.BatchNormalization()(hidden)
    outputs = {name: keras.layers.Dense(1, name=name)(hidden) for name in "ab"}
    model = keras_osgd.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.0), {"a": "mse", "b": "mae"}, **options)
    return model


Y_AB = {"a": X[:, :1] * 3.0, "b": X[:, 1:2]}


def test_scorings_do_not_count_in_the_losses_shown_of_several_outputs():
    method = RAIS(1.0, norm="exact", seed=0)  # which scores each batch apart
    model = _two_outputs(sampling=method)  # drawn uniformly: all weights are 1
    history = _fit(model, y=Y_AB).history
    shown = history["a_loss"][0] + history["b_loss"][0]
    np.testing.assert_allclose(history["loss"], shown, rtol=1e-5)
    [tracker] = [m for m in model.metrics if m.name == "a_loss"]
    assert float(tracker.count) == STEPS * M
    model.reset_metrics()
    keras_osgd.gradient_norms(model, X, Y_AB)  # as the oracle scores all examples
    assert all(float(v) == 0.0 for v in model.metrics_variables)


def test_a_saved_model_trains_on_as_the_one_that_was_not_saved(tmp_path):
    model = _model(sampling=Oracle(refresh=3, seed=0))
    _fit(model, epochs=2)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert repr(loaded.sampling) == repr(model.sampling)
    norms = model.sampling_state.table.last_norms()
    assert (norms > 0).all()
    np.testing.assert_array_equal(loaded.sampling_state.table.last_norms(), norms)
    for each in (model, loaded):
        _fit(each, epochs=2)
    np.testing.assert_array_equal(small.flat(model), small.flat(loaded))
    assert loaded.sampling_state.blocks == model.sampling_state.blocks


def test_a_refresh_that_is_a_multiple_of_steps_per_execution_trains():
    # Epochs of 8 effective iterations, which end inside executions and blocks.
    method = Oracle(refresh=4, floor=0.0, seed=0)
    model, watch = _model(sampling=method, steps_per_execution=2), _Watch()
    options = {"epochs": 4, "callbacks": [watch]}
    told = small.warned(_fit, model, X[:27], Y[:27], **options)
    assert any("`floor` is 0" in line for line in told)
    steps = [step for step, *_ in watch.steps]
    assert any(step % 2 for step in steps)  # or nothing was tested
    for i, (step, weights, plan, p) in enumerate(watch.steps):
        ends = (steps[1:] + [model.sampling_run.clock.step])[i]
        assert plan.start <= step < ends <= plan.start + 4
        if step == plan.start:
            norms = np.linalg.norm(_gradients(weights, X[:27], Y[:27]), axis=1)
            np.testing.assert_allclose(p, norms / norms.sum(), rtol=2e-5)
    assert model.sampling_state.drawn == model.optimizer.iterations.numpy() * M


@pytest.mark.parametrize(("refresh", "set_to"), [(None, 3), (4, 6), (1, 3)])
def test_another_refresh_is_refused_before_training(refresh, set_to):
    model = _model(sampling=Oracle(refresh=refresh), steps_per_execution=3)
    weights = small.flat(model)
    with pytest.raises(
        ValueError, match=rf"multiple of.*_execution=3.*Oracle\(refresh={set_to}\)"
    ):
        _fit(model)
    np.testing.assert_array_equal(small.flat(model), weights)


def test_the_default_refresh_follows_n_and_steps_per_execution():
    assert oracle.refresh_steps(Oracle(), 10_000, 64, 1) == 1
    assert oracle.refresh_steps(Oracle(), 10_001, 64, 1) == 50
    assert oracle.refresh_steps(Oracle(), 60_000, 64, 1) == 94
    assert oracle.refresh_steps(Oracle(), 60_000, 64, 10) == 100
    assert oracle.refresh_steps(Oracle(refresh=7), 60_000, 64, 7) == 7


def test_stale_scores_are_warned_of_once(monkeypatch):
    data = training_data.prepare(X, Y, None, None, M, None)

    def warned(method):
        model, method = _model(sampling=method), sampling.get(method)
        calls = [(checks.warn_of_staleness, model, method, data)] * 2
        return sum((small.warned(*call) for call in calls), [])

    monkeypatch.setattr(sampling, "_FRESH", N)
    assert warned("oracle") == []
    monkeypatch.setattr(sampling, "_FRESH", N - 1)
    assert warned(Oracle(refresh=1)) == []
    [message] = warned(Oracle(refresh=2))
    assert "30 examples are scored every 2 steps: in between" in message
    model = _model(sampling="oracle", run_eagerly=True)
    messages = small.warned(_fit, model, steps_per_epoch=1)
    assert len(messages) == 1
    assert "30 examples are scored every 50 steps by default: " in messages[0]
    assert "20.4 / 21.1 % every 5 / 20 steps" in messages[0]
    assert "about as much as 8 of them" in messages[0]
    p = model.sampling_run.probabilities()
    assert p.min() >= 0.1 / N  # the floor that goes with it


def _scores(monkeypatch, *each):
    """Makes the scorings return these, one after the other, and the last again."""
    queue = list(each)

    def of_all(self, data, batch_size, progress=None):
        return np.asarray(queue.pop(0) if len(queue) > 1 else queue[0])

    monkeypatch.setattr(Scorer, "of_all", of_all)


def test_scores_that_are_not_finite_keep_the_old_one_or_the_mean(monkeypatch, capsys):
    first, second = np.full(N, 2.0), np.full(N, 3.0)
    first[:3], first[5], second[0], second[7] = 8.0, np.nan, np.inf, np.nan
    _scores(monkeypatch, first, second)
    model, watch = _model(sampling=Oracle(floor=0, seed=0)), _Watch()
    model.fit(X, Y, batch_size=M, verbose=2, callbacks=[watch])
    mean = np.nanmean(first)
    expected = np.where(np.isnan(first), mean, first)
    found = [p for *_, p in watch.steps]
    np.testing.assert_allclose(found[0], expected / expected.sum(), rtol=1e-6)
    expected = np.where(np.isfinite(second), second, first)
    np.testing.assert_allclose(found[1], expected / expected.sum(), rtol=1e-6)
    out = capsys.readouterr().out
    assert out.count("not finite") == 1
    assert "norms of 1 of 30 examples are not finite, first that of example 5" in out


def test_draws_are_uniform_where_no_norm_is_above_0(monkeypatch, capsys):
    _scores(monkeypatch, np.full(N, np.nan), np.zeros(N))
    model, watch = _model(), _Watch()
    model.fit(X, Y, batch_size=M, verbose=2, callbacks=[watch])
    for *_, p in watch.steps:
        np.testing.assert_allclose(p, 1 / N, rtol=1e-12)
    assert capsys.readouterr().out.count("All gradient norms are 0: draws are uni") == 1


def test_the_floor_bounds_the_weights(monkeypatch):
    _scores(monkeypatch, np.where(np.arange(N) == 0, 1e6, 1e-6))
    model, watch = _model(sampling=Oracle(refresh=2, seed=0)), _Watch()
    _fit(model, callbacks=[watch])
    for *_, plan, p in watch.steps:
        assert p.min() >= 0.1 / N
        assert plan.largest_weight * plan.credit <= 10 * (1 + 1e-9)
    assert [Oracle(k).floor_for(N, M) for k in (None, 1, 2)] == [0.0, 0.0, 0.1]
    assert [Oracle(k, 0.3).floor_for(N, M) for k in (None, 1, 2)] == [0.3] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refresh": 0}, "`refresh` must be a whole number and at least 1.*=0"),
        ({"refresh": 2.5}, "`refresh` must be a whole number.*=2.5"),
        ({"floor": 1.5}, r"`floor` must be in \[0, 1\].*floor=1.5"),
        ({"floor": math.nan}, r"`floor` must be in \[0, 1\].*floor=nan"),
        ({"draws": "all"}, r"`draws` must be one of \('resh.*'independent'\).*'all'"),
        ({"score_batch_size": 0}, "`score_batch_size` must be a whole number.*=0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Oracle(**options)


def test_it_is_named_and_serialized_like_the_others():
    assert isinstance(sampling.get("oracle"), Oracle)
    method = Oracle(4, 0.2, False, "independent", 32, 5, True)
    config = keras.saving.serialize_keras_object(method)
    assert sampling.get(config).get_config() == method.get_config()
    assert method.get_config() == {
        "refresh": 4,
        "floor": 0.2,
        "adapt_learning_rate": False,
        "draws": "independent",
        "score_batch_size": 32,
        "seed": 5,
        "require_full_batches": True,
    }


def test_the_monitor_tells_the_seconds_of_scoring_and_the_gain(monkeypatch, capsys):
    monkeypatch.setattr(oracle, "_RETREAT_BELOW", 7.9)  # of which fresh scores know not
    model = _model(rate=0.5)
    options = {"verbose": 2, "callbacks": [SamplingMonitor()]}
    history = _fit(model, epochs=8, **options).history
    out = capsys.readouterr().out
    assert out.count("Scoring 30 examples\n") == 1  # the first of many
    assert "Draws are uniform" not in out and model.sampling_state.armed
    assert model.sampling_run.clock.step > 50  # gains are averaged over so many
    seconds = np.array(history["scoring_seconds"])
    assert (np.diff(seconds, prepend=0.0) > 0).all()
    assert 0 < history["sampling_share"][-1] < 1
    assert history["gain_ratio"][-1] > 1.05
    assert history["gradient_ess"][-1] > 0.8
    # Epochs end by effective iterations.
    progress = np.array(history["effective_epochs"])
    np.testing.assert_allclose(progress, np.arange(1, 9), atol=8 / STEPS)
    assert model.optimizer.iterations.numpy() < 8 * STEPS


def test_stale_scores_that_do_not_pay_are_retreated_from(monkeypatch, capsys):
    monkeypatch.setattr(oracle, "_RETREAT_BELOW", 7.9)  # never reached
    model = _model(sampling=Oracle(5, adapt_learning_rate=False, seed=0))
    _fit(model, epochs=7, verbose=2)
    out = capsys.readouterr().out
    assert out.count("Draws are uniform and independent until") == 1
    plan = model.sampling_run.planner.last_plan
    assert not plan.importance
    np.testing.assert_allclose(plan.probability, plan.credit / N)
    monkeypatch.setattr(oracle, "_RETREAT_BELOW", 0.5)
    _fit(model, epochs=7)
    assert model.sampling_run.planner.last_plan.importance
    assert capsys.readouterr().out == ""
