"""`fit` from end to end, on a task small enough to train in a second."""

import copy
import functools
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.callbacks import SamplingMonitor
from keras_osgd.data import rows
from keras_osgd.data.identity import Identity
from keras_osgd.data.rows import Rows
from keras_osgd.draws import pipeline
from keras_osgd.draws.blocks import Blocks
from keras_osgd.draws.pipeline import PlanBuffers
from keras_osgd.sampling import RAIS
from keras_osgd.scores.state import SamplingState
from keras_osgd.scores.table import ScoreTable
from tests.helpers import small

N, M = 1000, 16
STEPS = -(-N // M)
LONG = 5  # epochs, until the gain is well above 1


def _task(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, 8)).astype("float32")
    y = (x[:, 0] + x[:, 1] ** 2 > 0.5).astype("int64") + (x[:, 2] > 1)
    return x, y


X, Y = _task()


def _layers(activation=None):
    return [
        keras.Input((8,)),
        keras.layers.Dense(16, "relu"),
        keras.layers.Dense(3, activation),
    ]


def _compiled(base=keras_osgd.Sequential, seed=1, rate=0.1, **compile_arguments):
    keras.utils.set_random_seed(seed)
    model = base(_layers())
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **compile_arguments,
    )
    return model


def _fit(model, **arguments):
    keras.utils.set_random_seed(2)
    return model.fit(X, Y, **{"batch_size": M, "epochs": 3, "verbose": 0, **arguments})


def _same_weights(a, b):
    return all(
        (p == q).all() for p, q in zip(a.get_weights(), b.get_weights(), strict=True)
    )


class _Drawn(keras.callbacks.Callback):
    """Keeps what each batch was drawn with, and the progress at each epoch's end."""

    def on_train_begin(self, logs=None):
        self.plans, self.ends = [], []

    def on_train_batch_end(self, batch, logs=None):
        plan = self.model.sampling_run.planner.last_plan
        if not self.plans or self.plans[-1] is not plan:
            self.plans.append(plan)

    def on_epoch_end(self, epoch, logs=None):
        clock = self.model.sampling_run.clock
        self.ends.append((clock.step, clock.effective_iterations()))


@pytest.fixture(scope="module")
def trained():
    """A model after a long `_fit`, to look at, its history, and what was drawn."""
    model, drawn = _compiled(), _Drawn()
    return model, _fit(model, epochs=LONG, callbacks=[drawn]).history, drawn


def test_the_sampling_seed_alone_decides_the_draws(trained, unadapted):
    drawn = _Drawn()
    model = _compiled(seed=2, sampling=RAIS(seed=trained[0].sampling_state.seed))
    _fit(model, epochs=2, callbacks=[drawn])
    # The first block depends on the seed alone, later ones on what was observed.
    first, second = trained[2].plans[0], unadapted[2].plans[0]
    np.testing.assert_array_equal(drawn.plans[0].index, first.index)
    assert (second.index != first.index).any()
    last = len(drawn.plans) - 1
    assert (drawn.plans[last].index != trained[2].plans[last].index).any()


def test_one_seed_gives_the_same_to_the_bit_however_the_steps_and_arrays_are_read(
    trained, monkeypatch
):
    monkeypatch.setattr(rows, "_IN_PLACE_BYTES", 0)
    (one, history, _), other = trained, _compiled(steps_per_execution=10)
    assert _fit(other, epochs=LONG).history == history
    assert _same_weights(one, other)
    assert one.optimizer.iterations.numpy() == other.optimizer.iterations.numpy()
    assert one.sampling_run.planner.last_plan.importance


def test_a_longer_read_ahead_than_planned_for_is_refused_not_trained_on():
    buffers = pipeline.PlanBuffers(block_steps=4, batch_size=2)
    rows = Rows((np.zeros((3, 1), "float32"), np.zeros(3), None))
    with pytest.raises(tf.errors.InvalidArgumentError, match="further ahead"):
        next(iter(pipeline.batches(buffers, rows)))


def test_the_pipeline_reads_three_batches_ahead_and_no_more():
    buffers = pipeline.PlanBuffers(block_steps=50, batch_size=2)
    count = 2 * 50
    ones = np.ones(count)
    plan = pipeline.Plan(
        0, np.zeros(count, np.int64), ones, ones, ones[:, None], False, 1.0, 1.0, 1.0
    )
    buffers.write(plan)
    rows = Rows((np.arange(3), np.zeros(3), None))
    iterator = iter(pipeline.batches(buffers, rows))
    for _ in range(10):
        next(iterator)
        time.sleep(0.05)  # lets it read as far ahead as it will
    buffers.index.assign(tf.ones_like(buffers.index))
    old = [int(next(iterator)[0][0]) == 0 for _ in range(10)]
    assert pipeline.READ_AHEAD - 1 <= sum(old) <= pipeline.READ_AHEAD
    assert all(old[: sum(old)])


def test_an_epoch_is_an_epochs_worth_of_progress(trained):
    steps, progress = np.array(trained[2].ends).T
    largest = 8.0  # what a single step may add
    assert (progress >= STEPS * np.arange(1, LONG + 1) - largest).all()
    assert (progress < STEPS * np.arange(1, LONG + 1) + largest).all()
    assert steps[-1] < LONG * STEPS - largest  # it did pay
    assert trained[0].optimizer.iterations.numpy() == steps[-1]


@pytest.fixture(scope="module")
def unadapted(tmp_path_factory):
    """A model after ordinary epochs, drawn by another seed, and what was seen."""
    model, drawn = _compiled(sampling=RAIS(adapt_learning_rate=False, seed=7)), _Drawn()
    log = tmp_path_factory.mktemp("unadapted") / "log.csv"
    monitor, csv = SamplingMonitor(), keras.callbacks.CSVLogger(log)
    history = _fit(model, callbacks=[drawn, csv, monitor]).history
    return model, history, drawn, monitor.probabilities(), log.read_text()


def test_without_adaptation_epochs_are_ordinary_ones_and_p_has_its_floor(unadapted):
    _, history, drawn, p, log = unadapted
    assert drawn.ends[-1][0] == 3 * STEPS
    header = log.splitlines()[0].split(",")
    for key in ("gain_ratio", "gradient_ess", "largest_weight", "sampling_share"):
        assert key in history and key in header
    np.testing.assert_allclose(history["effective_epochs"], [1, 2, 3], rtol=0.01)
    assert p.shape == (N,)
    assert p.sum() == pytest.approx(1.0)
    assert p.min() >= 0.05 / N


def test_steps_per_epoch_and_initial_epoch_mean_what_they_mean_in_keras(unadapted):
    model, before = unadapted[0], int(unadapted[0].optimizer.iterations)
    history = _fit(model, epochs=5, initial_epoch=2, steps_per_epoch=10)
    assert history.epoch == [2, 3, 4]
    assert model.optimizer.iterations.numpy() == before + 30


def test_the_schedule_is_read_at_effective_iterations():
    schedule = keras.optimizers.schedules.PolynomialDecay(0.1, 6 * STEPS, 0.0)
    model = _compiled(rate=schedule)
    _fit(model, epochs=6, callbacks=[SamplingMonitor()])
    rate_now = model.history.history["learning_rate_applied"][-1]
    gain = model.history.history["gain_ratio"][-1]
    # All effective iterations are over, so the schedule has ended, although fewer
    # steps were taken than it is long.
    steps = int(model.optimizer.iterations.numpy())
    assert steps < 6 * STEPS - 10
    assert rate_now <= 0.1 * 8 / (6 * STEPS) * 2 * gain
    assert rate_now < float(schedule(steps)) / 3


def test_metrics_and_loss_shown_estimate_the_whole_training_set():
    # A higher floor than by default, and so smaller weights, shows it in fewer epochs.
    sampling = RAIS(draws="independent", floor=0.2)
    model = _compiled(sampling=sampling, steps_per_execution=10)
    _fit(model, epochs=4)
    model.optimizer.learning_rate = 0.0  # frozen: what is shown has one true value
    _fit(model, epochs=1)  # the momentum runs out
    shown = _fit(model, epochs=16).history
    loss, accuracy = model.evaluate(X, Y, verbose=0)
    assert model.sampling_run.planner.last_plan.importance
    for name, true in (("accuracy", accuracy), ("loss", loss)):
        standard_error = np.std(shown[name], ddof=1) / np.sqrt(16)
        assert standard_error < 0.02 * true  # or the test could not fail
        assert abs(np.mean(shown[name]) - true) < 5 * standard_error


CE = functools.partial(keras.losses.SparseCategoricalCrossentropy, from_logits=True)
SHOWN = {  # options of `compile` and of `fit`
    "compiled": ({"jit_compile": True}, {}),
    "sum, executions": ({"loss": CE(reduction="sum"), "steps_per_execution": 5}, {}),
    "weights, half": (
        {"optimizer": keras.optimizers.LossScaleOptimizer},
        {"sample_weight": np.linspace(0.0, 2.0, 60)},
    ),
}


def test_in_the_uniform_first_pass_the_loss_is_the_mean_of_the_steps_as_in_keras():
    x = np.random.default_rng(0).normal(size=(2048, 1))
    model = keras_osgd.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    error = keras.metrics.MeanSquaredError("same")
    rate = keras.optimizers.SGD(0.002)
    model.compile(rate, "mse", metrics=[error], sampling="rais")
    shown = model.fit(x, 5 * x, batch_size=8, epochs=1, verbose=0).history
    # Weights are 1: the metric is the mean over the draws, while the loss falls.
    assert shown["loss"] == pytest.approx(shown["same"])


@pytest.mark.parametrize("case", SHOWN)
def test_what_is_known_of_the_rows_not_drawn_makes_the_loss_exact(case):
    """At weights that stand still, once every example has been seen."""
    options, given = SHOWN[case]
    options = {"loss": CE(), **options}
    wrap = options.pop("optimizer", lambda optimizer: optimizer)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    dense = keras.layers.Dense(3, kernel_regularizer="l2")
    model = keras_osgd.Model(inputs, dense(inputs))
    model.compile(wrap(keras.optimizers.SGD(0.0)), **{"sampling": "rais", **options})
    shown = small.fit(model, epochs=7, **given).history["loss"]
    assert model.sampling_run.clock.step > 80  # well into the second block
    sizes = {"batch_size": small.BATCH_SIZE, "verbose": 0}
    expected = model.evaluate(small.X, small.Y, **given, **sizes)
    np.testing.assert_allclose(shown[-1], expected, rtol=1e-5)


@pytest.mark.parametrize(("n", "m", "steps"), [(104, 1, 1), (230, 4, 3), (61, 7, 1)])
def test_uniform_passes_visit_every_example_once_one_after_the_other(n, m, steps):
    x, y = np.arange(n, dtype="float32")[:, None], np.zeros([n, 1])
    model = keras_osgd.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.set_weights([np.zeros([1, 1]), np.zeros(1)])  # all norms are 0
    model.compile(keras.optimizers.SGD(), "mse", steps_per_execution=steps)
    for passes in (1, 2, 3):
        model.fit(x, y, batch_size=m, epochs=1, verbose=0)
        times = model.sampling_state.times_drawn
        assert times.min() == passes and times.max() <= passes + 1


def test_a_second_fit_goes_on_with_the_same_rows_and_starts_afresh_with_others(
    capsys,
):
    model, drawn = _compiled(), _Drawn()
    _fit(model)
    blocks, function = model.sampling_state.blocks, model.train_function
    _fit(model, epochs=1, callbacks=[drawn])
    assert model.train_function is function
    assert model.sampling_state.blocks > blocks
    assert abs(drawn.plans[0].credit - 1) < 0.2  # credited as any other
    assert model.sampling_run.planner.last_plan.importance
    model.sampling_state.armed = False  # as after a retreat
    _fit(model, epochs=2)
    assert model.sampling_state.armed  # the gain is above the threshold again
    assert model.sampling_run.planner.last_plan.importance
    assert capsys.readouterr().out == ""
    # Other rows, as many as before; then fewer.
    assert model.sampling_state.blocks > 3
    for x, y in (_task(seed=5), (X[:500], Y[:500])):
        model.fit(x, y, batch_size=M, epochs=1, verbose=2)
        assert "start afresh" in capsys.readouterr().out
        assert model.sampling_state.table.size == len(x)
        assert model.sampling_state.blocks <= 3


def _lead(model):
    return float(model.sampling_state.lead)


def _lead_of_last_fit(model):
    clock = model.sampling_run.clock
    return clock.effective_iterations() - clock.step


SGD = keras.optimizers.SGD
OPTIMIZERS = {  # a plain one is below
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(SGD(), initial_scale=2.0),
    "accumulating": lambda: SGD(gradient_accumulation_steps=2),
}


def test_effective_iterations_go_on_with_an_optimizer_and_begin_with_a_new_one(trained):
    model = copy.deepcopy(trained[0])
    first = _lead(model)
    assert first > 10
    model.compile(model.optimizer, model.loss)
    _fit(model, epochs=1)
    np.testing.assert_allclose(_lead(model), first + _lead_of_last_fit(model))
    # A new one whose first steps are without sampling.
    model.compile(SGD(), model.loss, sampling="uniform")
    _fit(model, epochs=1)
    model.compile(model.optimizer, model.loss)
    _fit(model, epochs=1)
    assert model.optimizer.iterations > model.sampling_run.clock.step
    np.testing.assert_allclose(_lead(model), _lead_of_last_fit(model), atol=1e-9)
    for kind, make in OPTIMIZERS.items():
        assert _lead(model) > 1
        model.compile(make(), model.loss)
        _fit(model, epochs=1)
        np.testing.assert_allclose(_lead(model), _lead_of_last_fit(model), atol=1e-9)
        assert (_lead(model) == 0) == (kind == "accumulating")


@pytest.mark.long
@pytest.mark.parametrize("compiled_first", [True, False])
def test_so_they_do_on_weights_that_another_has_trained(
    compiled_first, trained, tmp_path, monkeypatch
):
    other, *_ = trained
    with monkeypatch.context() as patch:
        patch.setattr(other, "optimizer", None)  # the file has weights and scores alone
        other.save_weights(tmp_path / "w.weights.h5")
    model = _compiled() if compiled_first else keras_osgd.Sequential(_layers())
    model.load_weights(tmp_path / "w.weights.h5")
    assert _lead(model) == _lead(other) > 10
    if not compiled_first:
        model.compile(SGD(), other.loss)
    _fit(model, epochs=1)
    np.testing.assert_allclose(_lead(model), _lead_of_last_fit(model), atol=1e-9)


def test_scores_start_afresh_with_a_notice_where_the_norm_is_another(capsys):
    model = small.model(sampling=RAIS(seed=0))
    small.fit(model, epochs=2)
    assert model.sampling_state.norm == "last_layer"
    model.compile("sgd", model.loss, sampling=RAIS(norm="exact", seed=0))
    small.fit(model, verbose=2)
    assert "are now asked for in those of norm='exact'" in capsys.readouterr().out
    steps = len(small.X) // small.BATCH_SIZE
    assert model.sampling_state.observed <= steps * small.BATCH_SIZE
    small.fit(model, verbose=2)
    assert "afresh" not in capsys.readouterr().out


def test_stopping_and_interrupts_lose_nothing_learned():
    class Stop(keras.callbacks.Callback):
        def __init__(self, how):
            super().__init__()
            self.how = how

        def on_train_batch_end(self, batch, logs=None):
            if batch == 20 and self.how == "stop":
                self.model.stop_training = True
            if batch == 20 and self.how == "interrupt":
                raise KeyboardInterrupt

    model = _compiled()
    assert len(_fit(model, callbacks=[Stop("stop")]).epoch) == 1
    state = model.sampling_state
    # The draws of the block that were not used are given back. In this uniform pass a
    # visit weighs 1: as much was credited as was visited.
    assert state.drawn == state.observed == 21 * M
    visits = 21 * M / N - state.owed
    np.testing.assert_allclose(visits, np.round(visits), atol=1e-9)
    assert visits.sum() == pytest.approx(21 * M)
    model.stop_training = False
    with pytest.raises(KeyboardInterrupt):
        _fit(model, callbacks=[Stop("interrupt")])
    # Keras counts an execution whose callback raised; so do we.
    assert model.sampling_state.observed == 42 * M
    assert len(_fit(model, epochs=1).epoch) == 1


def test_retreat_when_it_does_not_pay_says_so_once_and_keeps_observing(capsys):
    model = _compiled(sampling=RAIS(retreat_below=7.9))  # never reached
    model.fit(X, Y, batch_size=M, epochs=4, verbose=2)
    out = capsys.readouterr().out
    assert (
        out.count("Draws are uniform and reshuffled until the scores promise more") == 1
    )
    plan = model.sampling_run.planner.last_plan
    assert not plan.importance
    np.testing.assert_allclose(plan.probability, plan.credit / N)
    assert model.sampling_run.logged()["candidate_gain_ratio"] > 1.1
    assert model.optimizer.iterations.numpy() > 3.5 * STEPS  # no gain was applied


def test_retreats_are_told_once_for_each_of_their_causes_and_one_return():
    state = SamplingState()
    state.allocate(ScoreTable(8, None), Identity(), 0, "last_layer")
    made = Blocks(RAIS(), state, PlanBuffers(50, 4))
    for gain in (1.01, 2.0, 1.02, 2.0, 0.8, 2.0, 0.9, 1.0):
        made.decide(np.array([gain]), importance=True, threshold=1.03)
        assert state.armed == (gain == 2.0)
    first, back, second = made.notices
    assert first.startswith("Gain ratio 1.010 is below 1.03: drawing by the scores")
    assert first.endswith("Nothing need be done.")
    assert back == "Gain ratio 2.000: draws follow the scores."
    assert second.startswith("Gain ratio 0.800 is below 1.03: the scores are worse")
    state.armed = True
    made.decide(np.array([0.0]), importance=True, threshold=0.0)  # that is never
    assert state.armed


def test_train_on_batch_and_evaluate_and_predict_and_validation_are_keras_own():
    model, keras_own = _compiled(), _compiled(keras.Sequential)
    both = model, keras_own
    logs = [m.train_on_batch(X[:M], Y[:M], return_dict=True) for m in both]
    assert logs[0] == logs[1]
    assert _same_weights(*both)
    shown = _fit(model, epochs=1, validation_data=(X[:100], Y[:100])).history
    keras_own.set_weights(model.get_weights())
    loss, accuracy = keras_own.evaluate(X[:100], Y[:100], batch_size=M, verbose=0)
    assert shown["val_accuracy"] == [pytest.approx(accuracy, abs=1e-7)]
    assert shown["val_loss"] == [pytest.approx(loss, rel=1e-6)]
    assert model.evaluate(X, Y, verbose=0) == keras_own.evaluate(X, Y, verbose=0)
    np.testing.assert_array_equal(
        model.predict(X, verbose=0), keras_own.predict(X, verbose=0)
    )
    model.train_on_batch(X[:M], Y[:M])
