"""What the loss and the data may be: exact norms are those of single examples."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd

L = keras.layers
N = 7  # in batches of 3: the last has one example


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


def values(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(N, *shape)).astype("float32")


def labels(*shape, classes=3):
    return np.random.default_rng(1).integers(0, classes, (N, *shape))


def one_by_one(model, x, y, sample_weight=None, training=False):
    """Returns `[n]`, norms by passes over one example each; terms beside left out."""
    norms = []
    for i in range(len(keras.tree.flatten(x)[0])):
        own = keras.tree.map_structure(
            lambda a, i=i: None if a is None else tf.constant(a[i : i + 1]),
            (x, y, sample_weight),
        )
        with tf.GradientTape() as tape:
            y_pred = model(own[0], training=training)
            loss = model.compute_loss(own[0], own[1], y_pred, own[2])
            loss -= sum(tf.reduce_sum(term) for term in model.losses)
        gradients = tape.gradient(loss, [v.value for v in model.trainable_weights])
        dense = [tf.convert_to_tensor(g).numpy() for g in gradients if g is not None]
        norms.append(np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in dense)))
    return np.array(norms)


def assert_exact(model, x, y, sample_weight=None, rtol=1e-5, batch_size=3):
    norms = keras_osgd.gradient_norms(model, x, y, sample_weight, batch_size)
    expected = one_by_one(model, x, y, sample_weight)
    assert expected.min() > 0 and np.ptp(expected) > 0
    np.testing.assert_allclose(norms, expected, rtol=rtol)


def functional(shape, *layers, dtype="float32"):
    outputs = inputs = keras.Input(shape, dtype=dtype)
    for layer in layers:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def two_outputs(reduction):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    hidden = L.Dense(5, "tanh")(inputs)
    outputs = {"b": L.Dense(3, name="b")(hidden), "a": L.Dense(2, name="a")(hidden)}
    model = keras.Model(inputs, outputs)
    loss = {
        "b": keras.losses.SparseCategoricalCrossentropy(True, reduction=reduction),
        "a": keras.losses.MeanSquaredError(reduction=reduction),
    }
    model.compile("sgd", loss, loss_weights={"b": 2.0, "a": 0.3})
    return model


@pytest.mark.parametrize(
    ("reduction", "weighted"), [("sum", False), ("sum_over_batch_size", True)]
)
def test_losses_of_several_outputs_count_by_their_loss_weights(reduction, weighted):
    y = {"a": values(2, seed=2), "b": labels()}
    rng = np.random.default_rng(3)
    weights = {k: rng.uniform(0.5, 2, N).astype("float32") for k in y}
    assert_exact(two_outputs(reduction), values(4), y, weights if weighted else None)


def test_an_output_without_loss_counts_for_nothing():
    inputs = keras.Input((4,))
    hidden = L.Dense(5, "tanh")(inputs)
    model = keras.Model(inputs, [L.Dense(3)(hidden), L.Dense(1)(hidden)])
    model.compile("sgd", [keras.losses.SparseCategoricalCrossentropy(True), None])
    assert_exact(model, values(4), [labels(), values(1)])


LOSSES = {
    "binary": (
        keras.losses.BinaryCrossentropy(True, label_smoothing=0.2),
        labels(3, classes=2).astype("float32"),
    ),
    "a function": (lambda y, z: tf.reduce_sum(tf.abs(y - z) ** 1.5, -1), values(3)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_have_the_norms_of_single_examples(name):
    loss, y = LOSSES[name]
    model = functional((4,), L.Dense(6, "gelu"), L.Dense(3))
    model.compile("sgd", loss)
    assert_exact(model, values(4), y)


def test_sample_weights_of_each_position_are_part_of_the_loss():
    model = functional((5, 4), L.Dense(6, "tanh"), L.Dense(3))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    weights = np.random.default_rng(0).uniform(0.5, 2, (N, 5)).astype("float32")
    assert_exact(model, values(5, 4), labels(5), weights)


def test_a_weight_of_zero_makes_a_norm_of_zero():
    model = functional((4,), L.Dense(3))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    norms = keras_osgd.gradient_norms(
        model, values(4), labels(), np.arange(N).astype("float32") % 2
    )
    assert (norms[::2] == 0).all() and (norms[1::2] > 0).all()


class Adding(L.Layer):
    """Adds a loss of its own: a number, or one for each example."""

    def __init__(self, each):
        super().__init__()
        self.each = each

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        x = x * self.scale
        squares = keras.ops.mean(keras.ops.square(x), axis=-1)
        self.add_loss(squares if self.each else keras.ops.sum(squares))
        return x


REGULARISED = {
    "add_loss of a number": lambda: [Adding(False), L.Dense(3)],
    "all": lambda: [Adding(True), L.Dense(3, "tanh", True, "he_normal", "ones", "l2")],
}


@pytest.mark.parametrize(
    ("name", "mode"), [*((n, "eager") for n in REGULARISED), ("all", "graph")]
)
def test_regularisation_is_left_out_of_the_norms(name, mode):
    model = functional((4,), L.Dense(6, "tanh"), *REGULARISED[name]())
    model.compile("sgd", "mse", run_eagerly=mode == "eager")
    model(values(4))
    assert float(sum(tf.reduce_sum(term) for term in model.losses)) > 1e-3
    assert_exact(model, values(4), values(3, seed=2))


def masked_model_and_tokens(**options):
    tokens = labels(6, classes=8) + 1
    lengths = np.array([3, 3, 3, *range(1, N - 2)])  # those tried first are alike
    tokens[np.arange(6) >= lengths[:, None]] = 0
    model = functional(
        (6,),
        L.Embedding(9, 4, mask_zero=True),
        L.Dense(3, "tanh"),
        L.Dense(2),
        dtype="int32",
    )
    model.compile("sgd", keras.losses.MeanSquaredError(**options))
    return model, tokens.astype("int32")


def test_masked_positions_have_no_gradient():
    model, tokens = masked_model_and_tokens(reduction="sum")
    assert_exact(model, tokens, values(6, 2))


def test_masked_positions_count_as_zeros_whatever_else_is_in_the_batch():
    model, tokens = masked_model_and_tokens()
    weights = np.linspace(0.5, 2, N).astype("float32")
    y = values(6, 2)
    norms = keras_osgd.gradient_norms(model, tokens, y, weights, batch_size=4)
    bare = tokens > 0
    expected = []
    for i in range(N):
        with tf.GradientTape() as tape:
            y_pred = model(tokens[i : i + 1])
            values_ = tf.reduce_mean(tf.square(y_pred[0] - y[i]), axis=-1)
            loss = weights[i] * tf.reduce_sum(values_[bare[i]]) / 6
        gradients = tape.gradient(loss, [v.value for v in model.trainable_weights])
        squares = [np.sum(tf.convert_to_tensor(g).numpy() ** 2) for g in gradients]
        expected.append(np.sqrt(np.sum(squares)))
    np.testing.assert_allclose(norms, expected, rtol=1e-5)


def test_labels_that_are_ignored_in_a_mean_are_refused():
    model = functional((4,), L.Dense(3))
    loss = keras.losses.SparseCategoricalCrossentropy(True, ignore_class=2)
    model.compile("sgd", loss)
    with pytest.raises(ValueError, match="`sample_weight` of 0 instead"):
        keras_osgd.gradient_norms(model, values(4), labels())


def test_sums_beside_means_are_refused():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, [L.Dense(2)(inputs), L.Dense(2)(inputs)])
    model.compile("sgd", ["mse", keras.losses.MeanSquaredError(reduction="sum")])
    with pytest.raises(ValueError, match="must have the same `reduction`"):
        keras_osgd.gradient_norms(model, values(4), [values(2), values(2)])


@pytest.fixture
def mixed_float16():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(before)


def test_mixed_precision_gives_float32_norms_near_those_of_float32(mixed_float16):
    layers = [
        L.Conv1D(8, 2, activation="relu"),
        L.LayerNormalization(),
        L.Dense(6, "tanh"),
        L.Flatten(),
        L.Dense(3, dtype="float32"),
    ]
    mixed = functional((6, 4), *layers)
    keras.config.set_dtype_policy("float32")
    full = functional(
        (6, 4),
        L.Conv1D(8, 2, activation="relu"),
        L.LayerNormalization(),
        L.Dense(6, "tanh"),
        L.Flatten(),
        L.Dense(3),
    )
    full.set_weights(mixed.get_weights())
    x, y = values(6, 4), labels()
    for model in (mixed, full):
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    norms = keras_osgd.gradient_norms(mixed, x, y, batch_size=3)
    assert norms.dtype == np.float32
    np.testing.assert_allclose(norms, one_by_one(full, x, y), rtol=5e-3)


class Subclassed(keras.Model):
    """Takes a dict, owns a weight, and leaves the layers to be built by a call."""

    def __init__(self):
        super().__init__()
        self.first, self.second = L.Dense(5, "tanh"), L.Dense(3)
        self.scale = self.add_weight(shape=(5,), initializer="ones")

    def call(self, inputs):
        return self.second(self.first(inputs["a"]) * self.scale + inputs["b"])


def test_a_subclassed_model_with_a_dict_of_inputs_and_a_weight_of_its_own():
    keras.utils.set_random_seed(0)
    model = ours(Subclassed)()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    assert not model.first.built
    assert_exact(model, {"a": values(4), "b": values(5, seed=2)}, labels())


def ours(cls):
    return type(cls.__name__, (cls, keras_osgd.Model), {})


def test_the_class_of_the_model_changes_nothing():
    x, y, found = values(4), labels(), []
    for change in (lambda m: m, keras_osgd.accelerate, _rebuilt):
        keras.utils.set_random_seed(0)
        model = change(functional((4,), L.Dense(6, "tanh"), L.Dense(3)))
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
        found.append(keras_osgd.gradient_norms(model, x, y))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def _rebuilt(model):
    return keras_osgd.Model(model.inputs, model.outputs)


@pytest.mark.parametrize("batch_size", [1, 100])
def test_the_batch_size_changes_no_norm(batch_size):
    model = functional((5, 4), L.Conv1D(6, 2, activation="tanh"), L.Dense(3))
    loss = keras.losses.SparseCategoricalCrossentropy(True)
    model.compile("sgd", loss, run_eagerly=True)
    assert_exact(model, values(5, 4), labels(4), batch_size=batch_size)


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_examples_than_are_tried_out_will_do(n):
    model = functional((4,), L.Dense(3))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    norms = keras_osgd.gradient_norms(model, values(4)[:n], labels()[:n])
    np.testing.assert_allclose(norms, one_by_one(model, values(4)[:n], labels()[:n]))


def test_frozen_layers_have_no_part_in_the_norms():
    model = functional((4,), L.Dense(6, "tanh"), L.Dense(5, "tanh"), L.Dense(3))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    x, y = values(4), labels()
    whole = keras_osgd.gradient_norms(model, x, y)
    model.layers[2].trainable = False
    model.compile("sgd", model.loss)
    assert_exact(model, x, y)
    assert (keras_osgd.gradient_norms(model, x, y) < whole).all()


def test_lora_has_the_norms_of_its_two_small_matrices():
    layer = L.Dense(5, "tanh")
    model = functional((4,), layer, L.Dense(3))
    layer.enable_lora(2)
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:  # one of which starts at 0
        weight.assign(weight + 0.3 * rng.normal(size=weight.shape))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    assert len(model.trainable_weights) == 5
    assert_exact(model, values(4), labels())


def test_terms_of_a_compute_loss_of_one_s_own_are_part_of_the_norms():
    class Own(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            loss = super().compute_loss(x, y, y_pred, sample_weight)
            return 3.0 * loss

    inputs = keras.Input((4,))
    keras.utils.set_random_seed(0)
    model = Own(inputs, L.Dense(3)(L.Dense(5, "tanh")(inputs)))
    loss = keras.losses.SparseCategoricalCrossentropy(True)
    model.compile("sgd", loss)
    assert_exact(model, values(4), labels())
    plain = keras.Model(model.inputs, model.outputs)
    plain.compile("sgd", loss)
    norms = [keras_osgd.gradient_norms(m, values(4), labels()) for m in (model, plain)]
    np.testing.assert_allclose(norms[0], 3 * norms[1], rtol=1e-5)
