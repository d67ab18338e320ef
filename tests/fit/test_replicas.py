"""Training on several replicas in one process; `test_workers.py` takes two."""

import contextlib
import functools
import threading
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.base import placement, replicas
from keras_osgd.callbacks import Checkpoint
from keras_osgd.data import training_data
from keras_osgd.fit import strategies
from keras_osgd.norms import last_layer
from keras_osgd.sampling import RAIS
from keras_osgd.tools import label_errors
from tests.helpers import checkpoints, documents, keras_metrics, replayed, small

pytestmark = pytest.mark.long

ROW = 5  # whose loss is not finite: on one replica, then on the other
EPOCHS = 8  # of 8 steps: into the second block, which follows the scores
FIT = {"batch_size": replayed.BATCH_SIZE, "verbose": 0}


@functools.cache  # two strategies in one process would share their collectives' keys
def _mirrored():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def _in_scope(make, strategy=None):
    with (strategy or _mirrored()).scope():
        return make()


def _rais(cls=keras_osgd.Sequential, **options):
    options = {"sampling": RAIS(seed=5, retreat_below=0), **options}
    return replayed.model(cls, **options)


def _exact(**options):
    return _rais(sampling=RAIS(seed=5, retreat_below=0, norm="exact"), **options)


def _trained(model, x=replayed.X, y=replayed.Y, epochs=EPOCHS, **options):
    model.fit(x, y, **FIT, epochs=epochs, **options)
    return model


def _on_two(make):
    """Returns a model trained on two replicas, its draws and what it started from."""
    model, draws = _in_scope(make), replayed.Draws()
    start = model.get_weights()
    _trained(model, callbacks=[draws])
    return model, draws.arrays(), start


@pytest.fixture(scope="module")
def on_two():
    return _on_two(_rais)


@pytest.mark.parametrize("kind", ["default", "exact", "own"])
def test_two_replicas_train_as_one_on_the_same_draws(on_two, kind):
    others = {"exact": _exact, "own": lambda: _rais(replayed.Own)}
    model, drawn, start = _on_two(others[kind]) if kind in others else on_two
    index, p = drawn["index"], drawn["probability"]
    expected = replayed.replay(start, index, p, exact=kind == "exact")
    np.testing.assert_allclose(small.flat(model), expected.weights, rtol=0, atol=2e-5)
    np.testing.assert_allclose(drawn["norms"], expected.norms, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(drawn["gains"], expected.gains, rtol=1e-4)
    assert expected.gains.max() > (1.02 if kind != "exact" else 1.005)
    if kind == "own":  # of the same draws
        shown, by_ours = (m.history.history["accuracy"] for m in (model, on_two[0]))
        np.testing.assert_allclose(shown, by_ours, rtol=1e-5)


def _with_terms(*layers, optimizer=None):
    """Returns a model with exact norms, whose loss has other terms than examples'."""
    keras.utils.set_random_seed(0)
    shapes = [keras.Input((4,)), keras.layers.Reshape((2, 2, 1))]
    options = {"kernel_regularizer": keras.regularizers.L2(0.1), "activation": "tanh"}
    shapes += [keras.layers.Conv2D(3, 2, **options), *layers, keras.layers.Flatten()]
    dense = [keras.layers.Dense(5, **options), keras.layers.Dense(3)]
    model = keras_osgd.Sequential([*shapes, *dense])
    optimizer = optimizer or keras.optimizers.SGD(0.3, momentum=0.9, clipnorm=0.2)
    sampling = RAIS(norm="exact", seed=0, retreat_below=0)
    model.compile(optimizer, small.crossentropy(), sampling=sampling)
    return model


def _on_one_and_two(make):
    """Returns the models trained on one replica and on two, and their norms."""
    draws = [replayed.Draws(), replayed.Draws()]
    models = make(), _in_scope(make)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for model, own in zip(models, draws, strict=True):
            _trained(model, epochs=1, callbacks=[own])
    return models, [own.arrays()["norms"] for own in draws]


@pytest.mark.parametrize("terms", ["of weights", "of the batch"])
def test_exact_norms_know_terms_of_the_loss_and_clipping_as_on_one_replica(terms):
    def make():
        activity = [keras.layers.ActivityRegularization(0.1)]
        return _with_terms(*(activity if terms == "of the batch" else []))

    (one, two), norms = _on_one_and_two(make)
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-4)
    np.testing.assert_allclose(small.flat(two), small.flat(one), rtol=1e-4, atol=1e-6)
    moments = [model.sampling_run.gain.averages for model in (one, two)]
    np.testing.assert_allclose(moments[1], moments[0], rtol=1e-4)


def test_exact_norms_with_statistics_held_are_those_on_one_replica():
    def make():
        held = keras.layers.BatchNormalization(momentum=1.0)
        return _with_terms(held, optimizer=keras.optimizers.SGD(0.0))

    _, norms = _on_one_and_two(make)
    assert (norms[0] > 0).all()
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-4)


def test_the_first_block_is_drawn_as_without_a_strategy(on_two):
    run = _trained(_rais(), epochs=1).sampling_run
    block = run.planner.last_plan.index.reshape(-1, replayed.BATCH_SIZE)
    steps = run.buffers.block_steps
    assert len(block) == steps
    np.testing.assert_array_equal(block, on_two[1]["index"][:steps])


def test_the_page_s_example_runs_as_it_stands(monkeypatch):
    strategy = _mirrored()  # not another one: see there
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda: strategy)
    code = documents.code("keras_osgd/fit/README.md", "Several devices")
    code = code.replace("epochs=10", "verbose=0")
    x = np.zeros((256, 28, 28, 1), "float32")
    names = {"keras": keras, "keras_osgd": keras_osgd, "tf": tf}
    exec(code, {**names, "x": x, "y": np.arange(256) % 10})


def test_the_loss_shown_is_that_of_all_examples_on_several_replicas():
    model = _in_scope(_rais)
    model.optimizer.learning_rate = 0.0
    shown = model.fit(replayed.X, replayed.Y, **FIT, epochs=EPOCHS + 2).history["loss"]
    assert model.sampling_run.clock.step > 60  # well into the second block
    alone = replayed.model(keras.Sequential)
    alone.set_weights(model.get_weights())
    expected = alone.evaluate(replayed.X, replayed.Y, verbose=0)[0]
    np.testing.assert_allclose(shown[-1], expected, rtol=1e-5)


def _normalized(cls=keras_osgd.Sequential):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((4,)), keras.layers.Dense(5)]
    layers += [keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    model = cls(layers)
    metric = keras.metrics.SparseCategoricalCrossentropy(from_logits=True)
    options = {"metrics": [metric], "sampling": RAIS(seed=0)}
    model.compile("sgd", small.crossentropy(), **options)
    return model


def test_layers_that_meet_the_other_replicas_are_recorded_on_each():
    model, draws = _in_scope(_normalized), replayed.Draws()
    _trained(model, epochs=1, callbacks=[draws])
    assert (np.array(draws.norms) > 0).all()
    assert "call" not in vars(model.layers[-1])


def test_blocks_of_threads_that_overlap_leave_a_layer_its_own_call():
    layer = keras.layers.Dense(2)
    model = keras.Sequential([keras.Input((3,)), layer])
    begun, ended, seen = threading.Event(), threading.Event(), []

    def other():
        with last_layer.recording(model) as heads:
            begun.set()
            ended.wait()
            seen.append(heads.of(model(tf.ones([4, 3]))).inputs)

    thread = threading.Thread(target=other)
    with last_layer.recording(model) as heads:
        thread.start()
        begun.wait()
        assert heads.of(model(tf.ones([5, 3]))).inputs.shape == (5, 3)
    ended.set()
    thread.join()
    assert seen[0].shape == (4, 3)
    assert "call" not in vars(layer)


@pytest.mark.parametrize(
    "cls",
    [keras_osgd.Sequential, pytest.param(replayed.Own, marks=pytest.mark.slow)],
)
def test_a_step_that_is_not_finite_on_one_replica_changes_nothing_on_any(cls):
    x = replayed.X.copy()
    x[17, 2] = np.nan
    model = _in_scope(lambda: _normalized(cls))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _trained(model, x, epochs=1)
    assert list(model.sampling_state.bad_examples.strikes) == [17]
    for weight in (*model.weights, *model.metrics_variables):
        copies = [
            v.numpy() for v in _mirrored().experimental_local_results(weight.value)
        ]
        assert all(np.isfinite(copy).all() for copy in copies)


@keras.saving.register_keras_serializable("tests")
def _infinite_for_label_9(y_true, y_pred):
    """Is not finite for a label that no class has, while its gradient is."""
    known = keras.ops.minimum(y_true, 2)
    found = keras.losses.sparse_categorical_crossentropy(
        known, y_pred, from_logits=True
    )
    found += keras.ops.where(keras.ops.squeeze(y_true) == 9, np.inf, 0.0)
    return found


def test_a_loss_that_is_not_finite_on_one_replica_skips_the_step_on_all():
    y = replayed.Y.copy()
    y[ROW] = 9
    model = _in_scope(_rais)
    with _mirrored().scope():
        loss = _infinite_for_label_9
        model.compile(keras.optimizers.SGD(0.3), loss, sampling=RAIS(seed=0))
    draws, seen = replayed.Draws(), []

    class Copies(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            copies = _mirrored().experimental_local_results(self.model.weights[0].value)
            seen.append([copy.numpy() for copy in copies])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _trained(model, y=y, epochs=3, callbacks=[draws, Copies()])
    skipped = [k for k, rows in enumerate(draws.index) if ROW in rows]
    places = [draws.index[k].tolist().index(ROW) for k in skipped]
    assert {place // 4 for place in places} == {0, 1}  # now this replica, now that
    for step, copies in enumerate(seen):
        np.testing.assert_array_equal(*copies)
        if step:
            unchanged = (copies[0] == seen[step - 1][0]).all()
            assert unchanged == (step in skipped)


def test_half_precision_scales_its_loss_on_two_replicas():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = _trained(_in_scope(_rais), epochs=2)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.optimizer.dynamic_scale.numpy() >= 1
    assert model.optimizer.inner_optimizer.iterations.numpy() > 8
    assert model.sampling_state.observed == replayed.BATCH_SIZE * (
        model.sampling_run.clock.step
    )


def test_updates_that_leave_infinite_weights_are_taken_back_on_both_replicas():
    model = _in_scope(_rais)
    start, model.optimizer.learning_rate = small.flat(model), np.inf
    with (
        pytest.raises(RuntimeError, match="The learning rate is now inf"),
        warnings.catch_warnings(action="ignore"),
    ):
        _trained(model)
    for weight in model.weights:
        for copy in _mirrored().experimental_local_results(weight.value):
            assert np.isfinite(copy.numpy()).all()
    np.testing.assert_array_equal(small.flat(model), start)


def test_an_overflow_on_one_replica_lowers_the_scale_and_changes_nothing(on_two):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = _in_scope(_rais)
    finally:
        keras.config.set_dtype_policy("float32")
    row = on_two[1]["index"][0][-1]  # on the last replica
    assert row not in on_two[1]["index"][0][:4]
    users = np.where(np.arange(replayed.N) == row, 200.0, 1.0)  # for float16 too large
    start, seen = small.flat(model), []
    keep = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(small.flat(model))
    )
    scale = float(model.optimizer.initial_scale)
    _trained(model, epochs=1, callbacks=[keep], sample_weight=users)
    np.testing.assert_array_equal(seen[0], start)
    scale_after = model.optimizer.dynamic_scale.numpy()
    assert np.isfinite(seen).all() and scale_after < scale
    assert model.sampling_run.told == []


def test_metrics_on_two_replicas_are_those_on_one():
    def made():
        given = [keras.metrics.F1Score(), keras.metrics.TruePositives(name="hits")]
        given += [keras.metrics.OneHotMeanIoU(3, name="iou"), "accuracy"]
        return keras_metrics.model_for("one-hot", given)

    x, y, *_ = keras_metrics.FAMILIES["one-hot"]
    models = [_trained(m, x, y, epochs=2) for m in (made(), _in_scope(made))]
    one, two = (model.history.history for model in models)  # of the same draws
    assert one.keys() == two.keys() and len(one) == 5
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-5, err_msg=name)


def test_weights_of_examples_and_dicts_reach_each_replica():
    def made():
        keras.utils.set_random_seed(0)
        inputs = {"a": keras.Input((2,), name="a"), "b": keras.Input((2,), name="b")}
        joined = keras.layers.Concatenate()(list(inputs.values()))
        model = keras_osgd.Model(inputs, keras.layers.Dense(3)(joined))
        model.compile("sgd", small.crossentropy(), sampling=RAIS(seed=0))
        return model

    x = {"a": replayed.X[:, :2], "b": replayed.X[:, 2:]}
    options = {"sample_weight": np.linspace(0, 2, replayed.N), "epochs": 2}
    one, two = _trained(made(), x, **options), _trained(_in_scope(made), x, **options)
    np.testing.assert_allclose(small.flat(two), small.flat(one), rtol=1e-5)


def test_a_run_interrupted_inside_the_scope_goes_on_bit_for_bit_outside_of_it(
    tmp_path, on_two
):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.sampling_run.clock.step == 30:
                raise KeyboardInterrupt

    checkpoint, model = Checkpoint(tmp_path, every=5), _in_scope(_rais)
    with contextlib.suppress(KeyboardInterrupt), _mirrored().scope():
        _trained(model, callbacks=[checkpoint, Stop()])
    assert model.sampling_run.clock.step == 30
    again = _trained(_in_scope(_rais), callbacks=[Checkpoint(tmp_path, every=5)])
    assert again.sampling_run.clock.step > 60
    # That one was trained outside of the scope, to its end.
    np.testing.assert_array_equal(small.flat(again), small.flat(on_two[0]))


# Row 32: what several replicas cannot do is refused before the first step


@pytest.mark.parametrize(
    ("options", "batch_size", "told"),
    [
        ({"steps_per_execution": 2}, 8, "`steps_per_execution` must be 1.*=2"),
        ({"jit_compile": True}, 8, "`jit_compile` must be False.*=True"),
        ({"sampling": "oracle"}, 8, "The oracle needs one replica.*Oracle"),
        ({}, 7, "multiple of the number of replicas.*batch_size=7 for 2"),
    ],
)
def test_what_several_replicas_cannot_do_is_refused(options, batch_size, told):
    model = _in_scope(lambda: _rais(**options))
    before = small.flat(model)
    with pytest.raises(ValueError, match=told):
        model.fit(replayed.X, replayed.Y, batch_size=batch_size, verbose=0)
    np.testing.assert_array_equal(small.flat(model), before)


@pytest.mark.parametrize(
    "kind", [tf.distribute.OneDeviceStrategy, tf.distribute.MirroredStrategy]
)
def test_one_replica_trains_and_goes_on_as_without_a_strategy(kind, tmp_path):
    strategy = kind("CPU:0" if kind is tf.distribute.OneDeviceStrategy else ["CPU:0"])
    inside, outside = _in_scope(_rais, strategy), _trained(_rais(), epochs=2)
    _trained(inside, epochs=1, callbacks=[Checkpoint(tmp_path, every=5)])
    again = _in_scope(_rais, strategy)
    _trained(again, epochs=2, callbacks=[Checkpoint(tmp_path, every=5)])
    np.testing.assert_array_equal(small.flat(again), small.flat(outside))


def test_accumulated_gradients_are_refused_and_fail_in_keras_too():
    """Where Keras' part fails, Keras is mended: lift the refusal."""

    def accumulating(cls, **options):
        optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
        model = cls([keras.Input((4,)), keras.layers.Dense(3)])
        model.compile(optimizer, small.crossentropy(), **options)
        return model

    ours = _in_scope(lambda: accumulating(keras_osgd.Sequential, sampling="rais"))
    with pytest.raises(ValueError, match="`gradient_accumulation_steps` must be None"):
        _trained(ours)
    with pytest.raises(RuntimeError, match="merge_call"):
        _trained(_in_scope(lambda: accumulating(keras.Sequential)), epochs=1)


# The rows of each process


def test_records_of_others_are_never_read():
    read = []

    class Source:
        def __len__(self):
            return 9

        def __getitem__(self, row):
            read.append(int(row))
            return np.full(2, row, "float32"), row % 3

    records = keras_osgd.data.records(Source(), labels=np.arange(9) % 3)
    read.clear()
    data = training_data.prepare(records, None, None, None, 4, None)
    share = replicas.Share(workers=2, rank=1)
    part = strategies.part_of(data, share)
    assert (part.n, part.batch_size) == (4, 2)
    x, y, _ = part.batch(np.array([0, 3]))
    np.testing.assert_array_equal(x, [[1, 1], [7, 7]])
    np.testing.assert_array_equal(y, [1, 1])
    part.fingerprint()
    assert {row % 2 for row in read} == {1}


def test_shares_divide_all_rows():
    shares = [replicas.Share(workers=3, rank=rank) for rank in range(3)]
    rows = np.concatenate([np.arange(10)[share.rows] for share in shares])
    assert sorted(rows) == list(range(10))


# What a GPU would have: tables and draws on the host, scalars of a step with the model


@pytest.mark.parametrize("jit_compile", [False, True])
def test_tables_are_on_the_host_and_the_steps_scalars_with_the_model(jit_compile):
    with tf.device("CPU:1"):  # stands for a GPU
        model = _trained(_rais(jit_compile=jit_compile), epochs=2)
    state, run = model.sampling_state, model.sampling_run
    buffers, log = run.buffers, run.log
    held = [
        *(buffers.index, buffers.columns, buffers.number),
        *(buffers.planned_until, buffers.start, buffers.end, log._written),
        *state.table._variables.values(),
    ]
    assert {v.device[-5:] for v in held} == {placement.HOST}
    beside = [run.clock.gain, run.clock.lead, run.skips.in_a_row, run.gain.averages]
    beside += [run.clock._decided, *(weight.value for weight in model.weights)]
    assert {v.device[-5:] for v in beside} == {"CPU:1"}


# What differs between replicas goes on with a checkpoint too


@pytest.mark.slow
def test_moving_statistics_and_metrics_of_each_replica_go_on_bit_for_bit(tmp_path):
    def made():
        return checkpoints.net(RAIS(seed=3, retreat_below=0))

    def copies(model):
        variables = [*model.non_trainable_variables, *model.metrics_variables]
        strategy = model.distribute_strategy
        return [
            np.array(copy)
            for variable in variables
            for copy in strategy.experimental_local_results(variable.value)
        ]

    class Kill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.sampling_run.clock.step == 7:
                raise KeyboardInterrupt

    apart = _in_scope(made)
    small.fit(apart, epochs=1)
    with contextlib.suppress(KeyboardInterrupt):
        killed = [Kill(), checkpoints.EveryState(tmp_path, every=6)]
        small.fit(_in_scope(made), epochs=1, callbacks=killed)
    resumed = _in_scope(made)
    small.fit(resumed, epochs=1, callbacks=[Checkpoint(tmp_path)])
    for array, expected in zip(copies(resumed), copies(apart), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_class_probabilities_of_two_replicas_are_one_row_for_each_example(on_two):
    model = on_two[0]
    data = training_data.prepare(replayed.X, replayed.Y, None, None, 8, None)
    expected = tf.nn.softmax(model(replayed.X)).numpy()
    found = label_errors.class_probabilities(model, data)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
