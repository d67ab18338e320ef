"""What fails here has been changed by Keras; the message says what it breaks."""

import ast
import contextlib
import functools
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from keras_osgd.base import keras_compat
from keras_osgd.base.model_state import seeds_kept
from tests.helpers import small

schedules = keras.optimizers.schedules


def functional(**options) -> keras.Model:
    inputs = keras.Input((4,))
    hidden = keras.layers.Dropout(0.5)(inputs)
    return keras.Model(inputs, keras.layers.Dense(3)(hidden), **options)


@functools.cache
def compiled() -> keras.Model:
    """Returns a plain model whose losses and metrics have been built."""
    keras.utils.set_random_seed(0)
    model = functional()
    accuracy = {"metrics": ["accuracy"], "weighted_metrics": ["accuracy"]}
    model.compile("sgd", small.crossentropy(), run_eagerly=True, **accuracy)
    model.evaluate(small.X, small.Y, verbose=0)
    return model


# Private names


def _loss(model):
    return model._compile_loss._flat_losses[0]


def dataset():
    return tf.data.Dataset.range(7).batch(3).map(lambda i: i)


NAMES = {  # name: (where it is looked for, what breaks without it)
    "_call_has_training_arg": (compiled, "call_model: layers with a training mode"),
    "_get_call_context": (compiled, "calling: layers called again in training mode"),
    "_maybe_reset_call_context": (compiled, "calling: modes of later calls"),
    "_compute_loss": (compiled, "compute_loss: every training step"),
    "_loss_tracker": (compiled, "track_loss: the `loss` that is shown"),
    "_flatten_layers": (compiled, "layers_of: the last layer is not found"),
    "_keras_logits": (
        lambda: keras.activations.softmax(tf.zeros((2, 3))),
        "logits: norms of models that end in a softmax or sigmoid",
    ),
    "_value": (lambda: compiled().weights[0], "tensor_of: every exact norm"),
    "_seed_generators": (compiled, "draws_random_numbers: layers without a rule"),
    "_keras_mask": (
        lambda: keras.layers.Masking()(tf.zeros((2, 3, 4))),
        "copied: masks of layers with several outputs, in exact norms",
    ),
    "_compile_loss": (compiled, "compiled_losses: losses are not described"),
    "_compile_config": (compiled, "compile_arguments: another loss on resuming"),
    "_ema_weights_in_model": (
        keras.callbacks.SwapEMAWeights,
        "AVERAGES_SWAPPED: averages and weights are exchanged after going on",
    ),
    "_flat_losses": (
        lambda: compiled()._compile_loss,
        "compiled_losses: losses are not described",
    ),
    "_metrics": (
        lambda: compiled()._compile_loss,
        "untracked_loss: scorings count in the losses shown of several outputs",
    ),
    "_fn_kwargs": (
        lambda: _loss(compiled()).loss,
        "loss_options: the axis of the classes and the ignored class",
    ),
    "_compile_metrics": (
        lambda: compiled(),
        "compiled_metrics: metrics during training",
    ),
    **{
        name: (
            lambda: compiled()._compile_metrics,
            "compiled_metrics: metrics during training",
        )
        for name in ("_flatten_y", "_flat_metrics", "_flat_weighted_metrics")
    },
    **{
        name: (keras.optimizers.SGD, "reading_rate: the gain ratio has no effect")
        for name in ("_get_current_learning_rate", "_learning_rate")
    },
    "_initial_epoch": (
        lambda: compiled(),
        "forget_initial_epoch: Checkpoint beside BackupAndRestore",
    ),
    **{
        name: (keras.Model, "UnderStrategy: training with several workers")
        for name in (
            "_distribute_strategy",
            "_make_function",
            "_maybe_symbolic_build",
            "_symbolic_build",
        )
    },
    "_all_reduce_sum_gradients": (
        keras.optimizers.SGD,
        "unsummed: gradients are summed twice, graphs of models are kept for ever",
    ),
    "_rng": (
        lambda: (tf.random.set_seed(0), context.context())[1],
        "global_seeds_kept: numbers that TensorFlow draws outside of graphs",
    ),
    "_iterations": (
        keras.optimizers.SGD,
        "reading_rate: schedules; steps_taken: where effective iterations begin",
    ),
    **{
        name: (dataset, "draws_at_random: augmentation in a dataset, before reading")
        for name in ("_functions", "_inputs")
    },
    "_batch_size": (
        lambda: dataset()._inputs()[0],
        "batch_size_of: datasets that are too large, before reading",
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_keras_still_has_the_private_name(name):
    make, broken = NAMES[name]
    assert hasattr(make(), name), f"Keras has no {name!r} any more. Broken: {broken}."


def test_every_private_name_in_the_module_is_looked_for_here():
    tree = ast.parse(pathlib.Path(keras_compat.__file__).read_text())
    attributes = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    strings = {s for s in strings if isinstance(s, str) and s.isidentifier()}
    private = {s for s in attributes | strings if s.startswith("_") and s[1] != "_"}
    assert private == set(NAMES)


GENERATOR = tf.random.Generator.from_seed(0)
DROPOUT = keras.layers.Dropout(0.5)
RANDOM = {
    "random_uniform": (lambda i: tf.random.uniform([], seed=1), True),
    "random_shuffle": (lambda i: tf.random.shuffle(tf.range(3)), True),
    "in a branch": (
        lambda i: tf.cond(i > 1, lambda: tf.random.normal([]), lambda: 0.0),
        True,
    ),
    "a generator": (
        lambda i: GENERATOR.normal([]),
        True,
    ),
    "a layer": (
        lambda i: DROPOUT(tf.ones([2]), training=True),
        True,
    ),
    "stateless": (lambda i: tf.random.stateless_normal([], [i, 0]), False),
    "no numbers": (lambda i: 2 * i, False),
}


@pytest.mark.parametrize("kind", RANDOM)
def test_a_dataset_that_draws_at_random_is_known_before_it_is_read(kind):
    function, expected = RANDOM[kind]
    drawn = tf.data.Dataset.range(4).map(function)
    assert keras_compat.draws_at_random(drawn.batch(2).prefetch(1)) == expected
    assert not keras_compat.draws_at_random(drawn.cache().batch(2))


def test_the_size_of_batches_is_known_before_they_are_read():
    assert keras_compat.batch_size_of(dataset()) == 3
    assert keras_compat.batch_size_of(tf.data.Dataset.range(7)) is None


def test_a_loss_knows_its_path_and_its_loss():
    item = _loss(compiled())
    assert item.path == () and isinstance(item.loss, keras.losses.Loss)


# What the functions do


def test_functional_is_the_class_of_a_model_with_inputs_and_outputs():
    assert type(functional()) is keras_compat.Functional


class Plain(keras.Model):
    def call(self, x):
        return 2 * x


def test_call_model_passes_training_where_it_is_taken():
    model, ones = functional(), tf.ones((50, 4))
    outputs = [keras_compat.call_model(model, ones, mode) for mode in (False, True)]
    assert np.ptp(outputs[0].numpy(), axis=0).max() == 0.0
    assert np.ptp(outputs[1].numpy(), axis=0).max() > 0.0  # Dropout
    np.testing.assert_array_equal(
        keras_compat.call_model(Plain(), ones, True), 2 * ones
    )


class Old(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return 3.0 * super().compute_loss(x, y, y_pred, sample_weight)


class New(keras.Model):
    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        assert training
        return 3.0 * super().compute_loss(x, y, y_pred, sample_weight)


@pytest.mark.parametrize("cls", [Old, New])
def test_compute_loss_calls_that_of_the_user_in_either_signature(cls):
    model = cls()
    model.compile(loss="mse")
    y, y_pred = tf.constant([[1.0], [2.0]]), tf.constant([[0.0], [0.0]])
    loss = keras_compat.compute_loss(model, None, y, y_pred, tf.constant([1.0, 0.5]))
    assert float(loss) == 3.0 * (1.0 + 0.5 * 4.0) / 2


@pytest.mark.parametrize("eagerly", [True, False])
@pytest.mark.parametrize("built", [True, False])
def test_an_untracked_loss_is_the_same_and_leaves_no_count(eagerly, built):
    inputs = keras.Input((4,))
    outputs = [keras.layers.Dense(1, name=name)(inputs) for name in "ab"]
    model = keras.Model(inputs, outputs)
    model.compile(loss=["mse", "mae"])
    ones = tf.ones((3, 1))
    y, y_pred = [5.0 * ones, 5.0 * ones], [ones, 2.0 * ones]

    def untracked():
        return keras_compat.untracked_loss(model, None, y, y_pred, None)

    def counts():
        return [float(v) for v in model._compile_loss.variables]

    if built:
        keras_compat.compute_loss(model, None, y, y_pred, None)
        model.reset_metrics()
    function = untracked if eagerly else tf.function(untracked, autograph=False)
    assert float(function()) == 16.0 + 3.0
    assert counts() == [0.0] * 4
    keras_compat.compute_loss(model, None, y, y_pred, None)
    assert counts() == [48.0, 3.0, 9.0, 3.0]


def test_track_loss_weights_each_batch_by_its_size():
    model = compiled()
    model.reset_metrics()
    keras_compat.track_loss(model, tf.constant(1.0), tf.constant(3.0))
    keras_compat.track_loss(model, tf.constant(5.0), tf.constant(1.0))
    assert float(model.get_metrics_result()["loss"]) == 2.0


@pytest.mark.parametrize("weights", [None, [0.5, 3.0]])
def test_loss_weights_are_those_of_compile_or_1(weights):
    inputs = keras.Input((4,))
    outputs = [keras.layers.Dense(1)(inputs) for _ in range(2)]
    model = keras.Model(inputs, outputs)
    model.compile("sgd", ["mse", "mae"], loss_weights=weights)
    model.train_on_batch(np.ones((2, 4)), [np.ones((2, 1))] * 2)
    assert keras_compat.loss_weights(model) == (weights or [1.0, 1.0])


def test_compile_arguments_are_the_objects_that_compile_was_given():
    optimizer, loss = keras.optimizers.SGD(), small.crossentropy()
    model = functional()
    assert keras_compat.compile_arguments(model) == {}
    model.compile(optimizer, [loss], loss_weights=[0.5], weighted_metrics=["mse"])
    found = keras_compat.compile_arguments(model)
    assert found["optimizer"] is optimizer and found["loss"] == [loss]
    assert (found["loss_weights"], found["metrics"]) == ([0.5], None)
    assert found["weighted_metrics"] == ["mse"]


def test_layers_of_finds_nested_layers():
    inner = keras.Sequential([keras.layers.Dense(2, name="deep")])
    outer = keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(1)])
    layers = keras_compat.layers_of(outer)
    assert "deep" in {layer.name for layer in layers} and outer not in layers


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_logits_are_what_an_activation_was_taken_of(name):
    z = tf.constant([[0.5, -1.0]])
    assert keras_compat.logits(keras.activations.get(name)(z)) is z
    assert keras_compat.logits(z) is z


def test_no_losses_are_compiled_without_a_loss_or_before_a_call():
    model = functional()
    model.compile("sgd")
    assert keras_compat.compiled_losses(model) == []
    model.compile("sgd", "mse")
    assert keras_compat.compiled_losses(model) == []


def test_loss_options_are_the_arguments_of_the_function():
    expected = {"from_logits": True, "ignore_class": 7, "axis": 1}
    options = keras_compat.loss_options(small.crossentropy(ignore_class=7, axis=1))
    assert {**options, **expected} == options  # Keras 3.16 has one more
    assert keras_compat.loss_options(keras.losses.Loss()) == {}


# Metrics


def two_outputs():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    outputs = {
        name: keras.layers.Dense(units, name=name)(inputs)
        for name, units in (("b", 3), ("a", 1))
    }
    model = keras.Model(inputs, outputs)
    model.compile(
        "sgd",
        {"b": small.crossentropy(), "a": "mse"},
        metrics={"a": ["mae"], "b": ["accuracy"]},
        weighted_metrics={"a": ["mse"], "b": ["accuracy"]},
        run_eagerly=True,
    )
    return model, {"a": small.X[:, :1], "b": small.Y}


def one_output():
    return compiled(), small.Y


def test_the_holder_of_metrics_is_what_keras_updates():
    model, y = two_outputs()
    held, calls = keras_compat.compile_metrics(model), []
    held.update_state(y, model(small.X))
    assert held.result().keys() < model.get_metrics_result().keys()
    vars(held)["update_state"] = lambda *given: calls.append(given)
    model.compute_metrics(small.X, y, model(small.X))
    assert len(calls) == 1


def updated(model, y, sample_weight, otherwise=None):
    made = keras_compat.compiled_metrics(model, y, model(small.X), sample_weight)
    shown = set(model.get_metrics_result()) - {"loss", "a_loss", "b_loss"}
    assert {update.name for update in made} <= shown
    for update in made:
        own = update.sample_weight
        own = otherwise if own is None else own
        update.metric.update_state(update.target, update.output, sample_weight=own)


@pytest.mark.parametrize("make", [one_output, two_outputs])
def test_metrics_without_weights_are_those_of_keras(make):
    model, y = make()
    expected = model.evaluate(small.X, y, batch_size=60, verbose=0, return_dict=True)
    model.reset_metrics()
    updated(model, y, None)
    found = model.get_metrics_result()
    for name in expected:
        if "loss" not in name:
            np.testing.assert_allclose(float(found[name]), expected[name], rtol=1e-6)


@pytest.mark.parametrize("make", [one_output, two_outputs])
def test_weighted_metrics_are_those_of_keras_and_the_others_follow_their_weight(make):
    model, y = make()
    of_output = np.random.default_rng(0).uniform(0.5, 3.0, (2, 60)).astype("float32")
    weights = {"a": of_output[0], "b": of_output[1]}
    expected = model.evaluate(
        small.X,
        y,
        sample_weight=weights if isinstance(y, dict) else of_output[0],
        batch_size=60,
        verbose=0,
        return_dict=True,
    )
    model.reset_metrics()

    updated(model, y, weights if isinstance(y, dict) else of_output[0], np.eye(60)[0])
    found = model.get_metrics_result()
    weighted = [name for name in expected if "weighted" in name or name == "a_mse"]
    assert len(weighted) == (2 if isinstance(y, dict) else 1)
    for name in weighted:
        np.testing.assert_allclose(float(found[name]), expected[name], rtol=1e-6)
    alone = "b_accuracy" if isinstance(y, dict) else "accuracy"
    assert float(found[alone]) in (0.0, 1.0)  # of the first example, which has it all


def test_a_model_without_metrics_has_none_to_update():
    model = functional()
    model.compile("sgd", "mse")
    assert keras_compat.compile_metrics(model) is None
    assert keras_compat.compiled_metrics(model, small.Y, model(small.X), None) == []


# The learning rate


class Scaled(schedules.LearningRateSchedule):
    """A schedule read ahead, times a factor, as one would write it by hand."""

    def __init__(self, schedule, factor, lead):
        self._schedule, self._factor, self._lead = schedule, factor, lead

    def __call__(self, step):
        step = tf.cast(tf.cast(step, tf.float64) + self._lead, tf.float32)
        return self._schedule(step) * self._factor


RATE, GAIN, LEAD = np.float32(0.01), np.float32(2.7), 12.34
OPTIMIZERS = {
    "sgd": lambda rate: keras.optimizers.SGD(rate),
    "momentum": lambda rate: keras.optimizers.SGD(
        rate, momentum=0.9, nesterov=True, weight_decay=0.01
    ),
    "adam": lambda rate: keras.optimizers.Adam(rate),
    "adamw": lambda rate: keras.optimizers.AdamW(rate, weight_decay=0.1),
    "rmsprop": lambda rate: keras.optimizers.RMSprop(rate, momentum=0.5),
    "nadam": lambda rate: keras.optimizers.Nadam(rate),
}
RATES = {
    "float": (lambda: float(RATE), lambda: float(RATE * GAIN)),
    "callable": (lambda: lambda: RATE, lambda: lambda: RATE * GAIN),
    **{
        type(schedule).__name__: (
            lambda s=schedule: s,
            lambda s=schedule: Scaled(s, GAIN, LEAD),
        )
        for schedule in (
            schedules.ExponentialDecay(0.01, 3, 0.5),
            schedules.PiecewiseConstantDecay([13, 15], [0.01, 0.003, 0.001]),
            schedules.CosineDecay(0.01, 20, warmup_target=0.1, warmup_steps=14),
        )
    },
}


def trained(optimizer, scope, compiled: bool) -> list[np.ndarray]:
    """Returns variables and optimizer state after a few steps within `scope`."""
    rng = np.random.default_rng(0)
    values = [rng.normal(size=shape).astype("float32") for shape in [(3, 2), (2,)]]
    variables = [keras.Variable(value) for value in values]
    optimizer.build(variables)

    def step(gradients):
        with scope(optimizer):
            optimizer.apply(gradients, variables)

    step = tf.function(step) if compiled else step
    for _ in range(4):
        step([tf.constant(rng.normal(size=v.shape), tf.float32) for v in values])
    return [v.numpy() for v in (*variables, *optimizer.variables[2:])]


def reading(optimizer):
    return keras_compat.reading_rate(
        optimizer, tf.constant(GAIN), tf.constant(LEAD, tf.float64)
    )


def assert_same(name, rate, graph):
    own, by_hand = RATES[rate]
    ours = trained(OPTIMIZERS[name](own()), reading, graph)
    plain = lambda optimizer: contextlib.nullcontext()  # noqa: E731
    theirs = trained(OPTIMIZERS[name](by_hand()), plain, graph)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        *((name, "float") for name in OPTIMIZERS),
        *(("momentum", rate) for rate in RATES if rate != "float"),
    ],
)
def test_an_optimizer_in_the_scope_is_one_with_the_rate_times_r_bit_for_bit(name, rate):
    assert_same(name, rate, graph=False)


@pytest.mark.parametrize(
    ("name", "rate"), [("momentum", "float"), ("adam", "CosineDecay")]
)
def test_so_it_is_in_a_compiled_step(name, rate):
    assert_same(name, rate, graph=True)


def test_the_rate_and_the_optimizer_are_the_users_again_after_the_scope():
    optimizer = keras.optimizers.SGD(float(RATE))
    before = dict(vars(optimizer))
    with reading(optimizer):
        assert float(optimizer.learning_rate) == RATE * GAIN
    assert vars(optimizer) == before
    assert float(optimizer.learning_rate) == RATE
    with pytest.raises(RuntimeError, match="inside"), reading(optimizer):
        raise RuntimeError("inside")
    assert float(optimizer.learning_rate) == RATE


def test_a_rate_set_between_steps_is_the_one_that_is_multiplied():
    optimizer = keras.optimizers.SGD(1.0)
    variable = keras.Variable(0.0)
    for rate, expected in [(1.0, -2.7), (10.0, -29.7)]:
        optimizer.learning_rate = rate
        with reading(optimizer):
            optimizer.apply([tf.constant(1.0)], [variable])
        np.testing.assert_allclose(float(variable), expected, rtol=1e-6)


def test_steps_taken_are_batches_also_where_gradients_are_accumulated():
    for accumulated in (None, 2):
        optimizer = keras.optimizers.SGD(gradient_accumulation_steps=accumulated)
        variable = keras.Variable(0.0)
        for step in range(5):
            assert int(keras_compat.steps_taken(optimizer)) == step
            optimizer.apply([tf.constant(1.0)], [variable])


def test_a_copy_has_the_same_mask_and_logits():
    probabilities = keras.activations.softmax(tf.constant([[1.0, 2.0]]))
    masked = keras.layers.Masking()(tf.constant([[[1.0], [0.0]]]))
    for tensor in (probabilities, masked, tf.constant(1.0)):
        copy = keras_compat.copied(tensor)
        assert copy is not tensor and keras.ops.all(copy == tensor)
        for name in ("_keras_logits", "_keras_mask"):
            assert getattr(copy, name, None) is getattr(tensor, name, None)


def test_rows_of_an_output_have_those_of_its_mask():
    masked = keras.layers.Masking()(tf.constant([[[1.0], [0.0]], [[0.0], [2.0]]]))
    taken = keras_compat.rows_of(masked, [1, 1, 0])
    np.testing.assert_array_equal(taken[..., 0], [[0, 2], [0, 2], [1, 0]])
    expected = [[False, True], [False, True], [True, False]]
    np.testing.assert_array_equal(keras_compat.mask_of(taken), expected)
    assert keras_compat.mask_of(keras_compat.rows_of(tf.zeros([2, 1]), [0])) is None


@pytest.mark.parametrize(
    ("layer", "draws"),
    [
        (keras.layers.RNN([keras.layers.LSTMCell(2)]), False),
        (keras.layers.RNN([keras.layers.LSTMCell(2, dropout=0.1)]), True),
        (keras.layers.ConvLSTM1D(2, 2, recurrent_dropout=0.1), True),
        (keras.layers.Dropout(0.1), True),
        (keras.layers.GaussianNoise(0.1), True),
        (keras.layers.Dense(2), False),
    ],
)
def test_cells_draw_random_numbers_only_with_a_rate(layer, draws):
    assert keras_compat.draws_random_numbers(layer) == draws


def test_fit_begins_with_the_epoch_of_backup_and_restore_unless_it_is_forgotten():
    class Beginning(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model._initial_epoch = 2
            if self.forgotten:
                keras_compat.forget_initial_epoch(self.model)

    model, beginning = compiled(), Beginning()
    for beginning.forgotten, epochs in ((False, [2]), (True, [0, 1, 2])):
        inputs = np.zeros([2, *model.input_shape[1:]])
        targets = np.zeros([2, *model.output_shape[1:-1]])
        history = model.fit(inputs, targets, epochs=3, verbose=0, callbacks=[beginning])
        assert history.epoch == epochs


@pytest.mark.parametrize("drawn_before", [False, True])
def test_global_seeds_are_as_if_the_block_had_drawn_nothing(drawn_before):
    def drawn(between):
        keras.utils.clear_session()
        keras.utils.set_random_seed(0)
        numbers = [keras.random.normal([2])] if drawn_before else []
        between()
        later = [keras.random.normal([2]) for _ in range(2)]
        return np.array([*numbers, *later, tf.random.normal([2])])

    def tried():
        with seeds_kept():
            keras.random.normal([2])
            tf.random.normal([2])

    np.testing.assert_array_equal(drawn(tried), drawn(lambda: None))
    assert (drawn(lambda: keras.random.normal([2])) != drawn(lambda: None)).any()


def test_seeds_are_kept_where_none_was_set(monkeypatch):
    monkeypatch.delattr(context.context(), "_rng", raising=False)
    with seeds_kept():
        keras.random.normal([2])
    assert not hasattr(context.context(), "_rng")
