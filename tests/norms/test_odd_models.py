"""Odd but legal models: their exact norms are those of single examples."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.data import training_data
from keras_osgd.losses import described as losses
from keras_osgd.norms import calls, last_layer
from keras_osgd.norms import scorer as scoring
from keras_osgd.norms.verification import verify

L = keras.layers


def functional(shape, *layers, dtype="float32"):
    outputs = inputs = keras.Input(shape, dtype=dtype)
    for layer in layers:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def values(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(4, *shape)).astype("float32")


def tokens(*shape, low=0, high=9):
    return np.random.default_rng(0).integers(low, high, (4, *shape)).astype("int32")


def assert_exact(model, x, mode, loss="mse"):
    """Compares `gradient_norms` with single examples, biases apart from 0."""
    shape, rng = model(x).shape, np.random.default_rng(1)
    for weight in model.trainable_weights:
        weight.assign(weight + 0.1 * rng.normal(size=weight.shape))
    model.compile("sgd", loss, run_eagerly=mode == "eager")
    y = rng.normal(size=shape).astype("float32")
    norms = keras_osgd.gradient_norms(model, x, y, batch_size=4)
    expected = norms_one_by_one(model, x, y)
    assert expected.min() > 0
    np.testing.assert_allclose(norms, expected, rtol=1e-5)


def norms_one_by_one(model, x, y):
    found = []
    for i in range(4):
        one = keras.tree.map_structure(lambda a, i=i: tf.constant(a[i : i + 1]), x)
        with tf.GradientTape() as tape:
            y_pred = model(one, training=False)
            loss = model.compute_loss(one, tf.constant(y[i : i + 1]), y_pred)
            loss -= sum(tf.reduce_sum(term) for term in model.losses)
        gradients = tape.gradient(loss, [v.value for v in model.trainable_weights])
        dense = [tf.convert_to_tensor(g).numpy() for g in gradients if g is not None]
        found.append(np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in dense)))
    return np.array(found)


def _in_another_thread(function, *args):
    found = []
    thread = threading.Thread(target=lambda: found.append(function(*args)))
    thread.start()
    thread.join()
    return found[0]


def test_calls_in_another_thread_are_not_recorded_and_are_what_they_were():
    model = functional((3,), L.Dense(4, "tanh"), L.Dense(2, "softmax"))
    x, other = values(3), values(3, seed=1)
    expected = model(other).numpy()
    with calls.recording(model) as frames, last_layer.recording(model) as heads:
        before = _in_another_thread(model, other)
        y_pred = model(x)
        after = _in_another_thread(model, other)
    for found in (before, after):
        np.testing.assert_array_equal(found, expected)
    assert [frame.layer for frame in frames] == [model]
    dense = [f for f in frames[0].everything() if type(f.layer) is L.Dense]
    assert len(dense) == 2
    np.testing.assert_array_equal(dense[0].args[0], x)
    np.testing.assert_array_equal(heads.of(y_pred).inputs, dense[1].args[0])
    assert len(heads.of(y_pred).inputs) == 4


def test_an_activation_taken_off_stays_on_in_other_threads():
    layer = L.Dense(4, "tanh")
    x = values(3)
    expected = layer(x).numpy()
    with calls.without_activation(layer) as activation:
        np.testing.assert_array_equal(_in_another_thread(layer, x), expected)
        z = layer(x)
    assert np.abs(z - expected).max() > 1e-3
    np.testing.assert_array_equal(activation(z), expected)
    np.testing.assert_array_equal(layer(x), expected)


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


class Scale(L.Layer):
    """Scales; no rule is known."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.scale


class WithConstant(Scale):
    """Adds what a constant, of as many rows as examples, makes of the weight."""

    def call(self, x, constant):
        return x + keras.ops.sum(constant * self.scale, axis=0)


class Counting(Scale):
    def build(self, shape):
        super().build(shape)
        self.count = self.add_weight(shape=(), trainable=False)

    def call(self, x):
        self.count.assign_add(1.0)
        return super().call(x)


class Several(Scale):
    """Returns a nest of tensors, one of which is used."""

    def build(self, shape):
        super().build(shape)
        self.dense, self.spare = L.Dense(3), L.Dense(3)
        self.dense.build(shape)
        self.spare.build(shape)

    def call(self, x):
        scaled = super().call(x)
        return {"a": scaled, "b": (self.dense(x), keras.ops.sum(scaled, axis=-1))}


class Repeated(L.Layer):
    """Calls a Dense layer inside a loop of the graph."""

    def build(self, shape):
        self.dense = L.Dense(shape[-1], "tanh")
        self.dense.build(shape)

    def call(self, x):
        return tf.while_loop(
            lambda i, x: i < 3, lambda i, x: (i + 1, self.dense(x)), (0, x)
        )[1]


def constant_beside(shape):
    inputs = keras.Input(shape)
    outputs = WithConstant()(inputs, constant=tf.constant(values(*shape, seed=5)))
    return keras.Model(inputs, L.Dense(2)(outputs))


def nest(pick):
    inputs = keras.Input((5,))
    return keras.Model(inputs, L.Dense(2)(pick(Several()(inputs))))


def attention(make):
    a, b = keras.Input((5, 6)), keras.Input((4, 6))
    return keras.Model([a, b], L.Flatten()(make(L.Dense(6)(a), L.Dense(6)(b))))


PAIR = [values(5, 6), values(4, 6, seed=1)]
ODD = {
    "a Dense layer on integers": lambda: (
        functional((5,), L.Dense(4), L.Dense(2), dtype="int32"),
        tokens(5),
    ),
    "an EinsumDense layer on integers": lambda: (
        functional((5,), L.EinsumDense("ab,bc->ac", 3), dtype="int32"),
        tokens(5),
    ),
    "a constant of as many rows as examples": lambda: (
        constant_beside((5,)),
        values(5),
    ),
    "a dict of outputs, one used": lambda: (nest(lambda o: o["a"]), values(5)),
    "a dict of outputs, another": lambda: (nest(lambda o: o["b"][0]), values(5)),
    "a Dense layer in a loop": lambda: (
        functional((5,), Repeated(), L.Dense(2)),
        values(5),
    ),
    "spectral normalization": lambda: (
        functional((5,), L.SpectralNormalization(L.Dense(4)), L.Dense(2)),
        values(5),
    ),
    "a constraint and a normalization without weights": lambda: (
        functional(
            (5,),
            L.Dense(4, kernel_constraint="non_neg"),
            L.UnitNormalization(),
            L.Dense(2),
        ),
        values(5),
    ),
    "positions and values exchanged": lambda: (
        functional((4, 5), L.Dense(3), L.Permute((2, 1)), L.Dense(2), L.Flatten()),
        values(4, 5),
    ),
    "attention with a scale": lambda: (
        attention(lambda a, b: L.Attention(use_scale=True)([a, b])),
        PAIR,
    ),
    "additive attention": lambda: (
        attention(lambda a, b: L.AdditiveAttention()([a, b])),
        PAIR,
    ),
    "grouped queries": lambda: (
        attention(lambda a, b: L.GroupQueryAttention(3, 4, 2)(a, b)),
        PAIR,
    ),
    "query and value apart": lambda: (
        attention(lambda a, b: L.MultiHeadAttention(2, 3, 4, output_shape=5)(a, b)),
        PAIR,
    ),
    "sequences of unknown length": lambda: (
        functional(
            (None, 5),
            L.Conv1D(4, 2, padding="causal"),
            L.Dense(3, "tanh"),
            L.GlobalAveragePooling1D(),
        ),
        values(7, 5),
    ),
    "a masked, pooled embedding": lambda: (
        functional(
            (6,),
            L.Embedding(9, 4, mask_zero=True),
            L.GlobalAveragePooling1D(),
            L.Dense(2),
            dtype="int32",
        ),
        tokens(6) * (np.arange(6) < 4),
    ),
    "three models in one another": lambda: (
        keras.Sequential([keras.Sequential([L.Dense(4, "relu")]), L.Dense(2)]),
        values(5),
    ),
    "accelerated models in one another": lambda: (
        keras_osgd.accelerate(
            functional((5,), keras_osgd.accelerate(functional((5,), L.Dense(4))))
        ),
        values(5),
    ),
}


IN_GRAPHS = [  # where TensorFlow does something else; what verifies them is eager
    "a constant of as many rows as examples",
    "a dict of outputs, another",
    "a Dense layer in a loop",
    "spectral normalization",
    "sequences of unknown length",
    "a masked, pooled embedding",
    "accelerated models in one another",
]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "mode"), [(n, "graph" if n in IN_GRAPHS else "eager") for n in ODD]
)
def test_odd_models_have_the_norms_of_single_examples(name, mode):
    keras.utils.set_random_seed(0)
    assert_exact(*ODD[name](), mode)


def test_a_model_called_again_in_its_loss_has_the_norms_of_single_examples():
    class Twice(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(2, "tanh")

        def call(self, x):
            return self.dense(x)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            first = super().compute_loss(x, y, y_pred, sample_weight)
            return first + super().compute_loss(x, y, self(0.5 * x), sample_weight)

    keras.utils.set_random_seed(0)
    assert_exact(Twice(), values(5), "graph")


def test_trying_a_model_out_and_taking_norms_in_training_change_no_state():
    model = functional((5,), Counting(), L.Dropout(0.5, seed=0), L.Dense(2))
    model.compile("sgd", "mse")
    x, y = values(5), values(2)
    model.predict(x, verbose=0)
    model.evaluate(x, y, verbose=0)
    scorer = made_scorer(model, x, y)
    before = [v.numpy() for v in model.non_trainable_variables]
    verify(scorer, in_training=True)
    made_scorer(model, x, y, describe=False, described=scorer.losses)
    for was, now in zip(before, model.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(was, now)


def made_scorer(model, x, y, describe=True, described=(), training=False):
    data = training_data.prepare(x, y, None, None, 4, None)
    described = losses.describe(model, data) if describe else described
    return scoring.Scorer(model, described, data, training)


class Tripling(L.Layer):
    def call(self, x, training=False):
        return 3.0 * x if training else x


def test_norms_in_training_mode_are_of_the_model_in_training_mode():
    keras.utils.set_random_seed(0)
    model = functional((5,), L.Dense(4), Tripling(), L.Dense(2))
    model.compile("sgd", "mse")
    x, y = values(5), values(2)
    found = keras_osgd.gradient_norms(model, x, y, training=True)
    model.layers[2].call = lambda x, training=False: 3.0 * x
    np.testing.assert_allclose(found, norms_one_by_one(model, x, y), rtol=1e-5)


def test_random_layers_are_active_in_training_mode_and_no_obstacle():
    keras.utils.set_random_seed(0)
    model = functional((5,), L.Dense(50), L.Dropout(0.5, seed=0), L.Dense(1))
    model.compile("sgd", "mse")
    x, y = values(5), values(1)
    rest, active = (
        keras_osgd.gradient_norms(model, x, y, training=mode) for mode in (False, True)
    )
    assert np.isfinite(active).all() and (np.abs(active / rest - 1) > 1e-3).all()


def test_a_long_sequence_s_positions_are_never_squared():
    positions = 4000  # squared, for 4 examples, 256 MB; the products below: 40 kB
    model = functional(
        (positions, 5), L.Dense(8, "tanh"), L.Dense(1), L.GlobalAveragePooling1D()
    )
    model.compile("sgd", "mse")
    x, y = values(positions, 5), values(1)
    scorer = made_scorer(model, x, y)
    traced = scorer._norms.get_concrete_function(*map(tf.constant, (x, y)), None)
    largest = max(
        output.shape.num_elements() or 0
        for operation in traced.graph.get_operations()
        for output in operation.outputs
        if output.shape.rank is not None
    )
    assert largest <= 4 * positions * 8
    np.testing.assert_allclose(scorer(x, y), norms_one_by_one(model, x, y), rtol=1e-4)


def test_no_table_is_copied_for_every_example():
    rows, width = 10_000, 8
    model = functional(
        (6,), L.Embedding(rows, width), L.Flatten(), L.Dense(2), dtype="int32"
    )
    model.compile("sgd", "mse")
    x, y = tokens(6, high=rows), values(2)
    scorer = made_scorer(model, x, y)
    traced = scorer._norms.get_concrete_function(*map(tf.constant, (x, y)), None)
    sizes = [
        output.shape.num_elements() or 0
        for operation in traced.graph.get_operations()
        for output in operation.outputs
        if output.shape.rank is not None
    ]
    assert max(sizes) <= rows * width
    np.testing.assert_allclose(scorer(x, y), norms_one_by_one(model, x, y), rtol=1e-5)
