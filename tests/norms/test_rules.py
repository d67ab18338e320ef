"""The registry of rules, and the refusals: each names everything that is at fault."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd import norms
from keras_osgd.data import training_data
from keras_osgd.losses import described
from keras_osgd.norms import rules
from keras_osgd.norms import scorer as scoring
from keras_osgd.norms.verification import verify
from keras_osgd.sampling import RAIS

L = keras.layers
MODES = ["eager", "graph"]


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Forgets what a test registers."""
    keras.utils.set_random_seed(0)
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))


def values(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(4, *shape)).astype("float32")


def functional(shape, *layers, mode="graph", loss="mse"):
    outputs = inputs = keras.Input(shape)
    for layer in layers:
        outputs = layer(outputs)
    model = keras.Model(inputs, outputs)
    model.compile("sgd", loss, run_eagerly=mode == "eager")
    return model


def scorer_of(model, x, y):
    data = training_data.prepare(x, y, None, None, 4, None)
    return scoring.Scorer(model, described.describe(model, data), data)


def assert_exact(model, x, y, worked_out=()):
    """Compares with single examples; `worked_out`: layers taken without a rule."""
    scorer = scorer_of(model, x, y)
    found = scorer(tf.constant(x), tf.constant(y))
    expected = []
    for i in range(4):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(None, y[i : i + 1], model(x[i : i + 1]))
        gradients = tape.gradient(loss, [v.value for v in model.trainable_weights])
        expected.append(np.sqrt(sum(np.sum(np.square(g)) for g in gradients)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert scorer.worked_out == [layer.name for layer in worked_out]


class Scale(L.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones")

    def call(self, x):
        return x * self.scale


def scale_rule(call):
    return [(call.layer.scale, norms.PerExample(call.delta * call.inputs))]


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_of_one_s_own_needs_a_few_lines(mode):
    def model():
        return functional((5,), L.Dense(4, "tanh"), Scale(), L.Dense(3), mode=mode)

    x, y, unknown = values(5), values(3), model()
    assert_exact(unknown, x, y, worked_out=[unknown.layers[2]])
    norms.register(Scale)(scale_rule)
    assert_exact(model(), x, y)


class Cubed(L.Dense):
    """Has a `call` of its own."""

    def call(self, inputs):
        return super().call(inputs) ** 3


class Renamed(L.Dense):
    """Has none."""


def test_a_subclass_with_a_call_of_its_own_is_not_taken_for_its_parent():
    own, parent_s = Cubed(4, "tanh"), Renamed(3, "tanh")
    model = functional((5,), own, parent_s, Cubed(2))
    assert_exact(model, values(5), values(2), worked_out=[own, model.layers[3]])


def test_a_rule_holds_for_subclasses_without_a_call_of_their_own():
    class Plain(Scale):
        pass

    class Own(Scale):
        def call(self, x):
            return x * self.scale**2

    norms.register(Scale)(scale_rule)
    own = Own()
    assert_exact(functional((5,), Plain(), own), values(5), values(5), [own])


def test_a_rule_that_names_no_module_is_taken_for_the_user_s_own():
    def rule(call):
        return scale_rule(call)

    rule.__module__ = None
    norms.register(Scale)(rule)
    assert_exact(functional((5,), Scale()), values(5), values(5))


class Activated(Scale):
    def __init__(self, activation):
        super().__init__()
        self.activation = keras.activations.get(activation)

    def call(self, x):
        x = x * self.scale
        return x if self.activation is None else self.activation(x)


@pytest.mark.parametrize(
    "activation, mode", [("tanh", "graph"), ("softmax", "eager"), (None, "eager")]
)
def test_a_rule_may_leave_the_activation_to_the_recording(activation, mode):
    norms.register(Activated, pre_activation=True)(scale_rule)
    layer = Activated(activation)
    model = functional((5,), L.Dense(4), layer, L.Dense(3), mode=mode)
    assert_exact(model, values(5), values(3))
    assert layer.activation is keras.activations.get(activation)


class Around(L.Layer):
    def __init__(self):
        super().__init__()
        self.inner = Scale()

    def call(self, x):
        return 2.0 * self.inner(x)


def test_a_rule_may_speak_for_the_layers_inside_as_well():
    @norms.register(Around, whole=True)
    def around(call):
        own = norms.PerExample(2 * call.delta * call.inputs)
        return [(call.layer.inner.scale, own)]

    assert_exact(functional((5,), Around(), L.Dense(2)), values(5), values(2))


def test_each_use_of_a_weight_may_be_listed_by_itself():
    @norms.register(Scale)
    def twice(call):
        return 2 * [(call.layer.scale, norms.PerExample(call.delta * call.inputs / 2))]

    assert_exact(functional((5,), Scale(), L.Dense(2)), values(5), values(2))


# A rule that is wrong


@pytest.mark.parametrize("factor", [0.0, 0.99, 2.0])
def test_a_wrong_formula_is_found_out_and_its_weight_named(factor):
    norms.register(Scale)(
        lambda call: [
            (call.layer.scale, norms.PerExample(factor * call.delta * call.inputs))
        ]
    )
    model = functional((5,), L.Dense(4, name="right"), Scale(name="wrong"), L.Dense(2))
    weight = model.get_layer("wrong").scale.path
    with pytest.raises(ValueError, match=f"did not, for \\['{weight}'\\]") as error:
        verify(scorer_of(model, values(5), values(2)), in_training=True)
    assert "right" not in str(error.value)


def test_a_formula_that_is_right_but_for_the_order_of_examples_is_found_out():
    norms.register(Scale)(
        lambda call: [
            (call.layer.scale, norms.PerExample((call.delta * call.inputs)[::-1]))
        ]
    )
    model = functional((5,), Scale(), L.Dense(2))
    with pytest.raises(ValueError, match="used in a way that no layer's rule sees"):
        keras_osgd.gradient_norms(model, values(5), values(2))


def test_examples_that_depend_on_each_other_are_found_out():
    centre = L.Lambda(lambda x: x - keras.ops.mean(x, axis=0))
    model = functional((5,), L.Dense(4), centre, L.Dense(2))
    with pytest.raises(ValueError, match="must equal those of single-example"):
        keras_osgd.gradient_norms(model, values(5), values(2))


# Refusals


def refusal(function, *args, **kwargs):
    with pytest.raises(ValueError, match="Exact gradient norms need every") as error:
        function(*args, **kwargs)
    return str(error.value)


def test_all_batch_normalization_layers_are_named_at_once():
    layers = [L.BatchNormalization(name=name) for name in ("one", "two")]
    layers.append(L.BatchNormalization(name="frozen", trainable=False))
    model = functional(
        (5,), layers[0], L.Dense(4), *layers[1:], L.Dense(2), mode="eager"
    )
    text = refusal(
        keras_osgd.gradient_norms, model, values(5), values(2), training=True
    )
    assert "\n- one (BatchNorm" in text and "\n- two (BatchNorm" in text
    assert "frozen" not in text and "`training=False` holds them" in text
    assert (keras_osgd.gradient_norms(model, values(5), values(2)) > 0).all()


class Noisy(Scale):
    """Draws random numbers, and no rule is known."""

    def __init__(self, **options):
        super().__init__(**options)
        self.generator = keras.random.SeedGenerator(0)

    def call(self, x, training=False):
        noise = keras.random.normal(keras.ops.shape(x), seed=self.generator)
        return (x + noise if training else x) * self.scale


def test_layers_that_draw_random_numbers_without_a_rule_are_named_at_once():
    model = functional(
        (5,), Noisy(name="first"), L.Dense(4), Noisy(name="last"), mode="eager"
    )
    text = refusal(
        keras_osgd.gradient_norms, model, values(5), values(4), training=True
    )
    assert "first (Noisy) draws random numbers" in text
    assert "last (Noisy) draws random numbers" in text and "register" in text
    assert (keras_osgd.gradient_norms(model, values(5), values(4)) > 0).all()


def test_fit_refuses_them_too():
    keras_model = functional((5,), Noisy(name="mine"), L.Dense(3))
    model = keras_osgd.Model(keras_model.inputs, keras_model.outputs)
    model.compile("sgd", "mse", sampling=RAIS(norm="exact", seed=0))
    text = refusal(model.fit, values(5), values(3), batch_size=2, verbose=0)
    assert "mine (Noisy) draws random numbers" in text and "last_layer" in text


class Hidden(L.Layer):
    """Calls a Dense layer under `tf.custom_gradient`."""

    def __init__(self, wrap, **options):
        super().__init__(**options)
        self.dense, self.wrap = L.Dense(4, name=f"in_{self.name}"), wrap

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.wrap(self.dense)(x)


def with_custom_gradient(layer):
    @tf.custom_gradient
    def function(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)

        def gradient(dy, variables=()):
            found = tape.gradient(y, [x, *variables], output_gradients=dy)
            return found[0], found[1:]

        return y, gradient

    return function


WRAPPERS = {
    "tf.custom_gradient": with_custom_gradient,
    "tf.recompute_grad": lambda layer: tf.recompute_grad(lambda x: layer(x)),
    "keras.remat": lambda layer: keras.remat(lambda x: layer(x)),
}


@pytest.mark.parametrize(
    "name, mode", zip(WRAPPERS, ["graph", "eager", "graph"], strict=True)
)
def test_a_layer_called_out_of_sight_is_left_to_the_layer_that_calls_it(name, mode):
    hidden = Hidden(WRAPPERS[name], name="first")
    model = functional((5,), hidden, L.Dense(4), mode=mode)
    assert_exact(model, values(5), values(4), worked_out=[hidden])


class Beside(keras.Model):
    """Uses weights in the loss only."""

    def __init__(self):
        super().__init__()
        self.dense = L.Dense(4)
        self.scale = self.add_weight(shape=(4,), initializer="ones", name="scale")
        self.shift = self.add_weight(shape=(4,), initializer="ones", name="shift")

    def call(self, x):
        return self.dense(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        moved = y_pred * self.scale + self.shift
        return super().compute_loss(x, y, moved, sample_weight)


@pytest.mark.parametrize("mode", MODES)
def test_weights_that_no_layer_reads_are_named_at_once(mode):
    model = Beside()
    model.compile("sgd", "mse", run_eagerly=mode == "eager")
    text = refusal(keras_osgd.gradient_norms, model, values(5), values(4))
    assert "/scale does not pass" in text and "/shift does not pass" in text
    assert "tf.custom_gradient" in text and "dense" not in text


def test_examples_that_weigh_nothing_prove_nothing():
    centre = L.Lambda(lambda x: x - keras.ops.mean(x, axis=0))
    model = functional((5,), L.Dense(4), centre, L.Dense(2))
    x, y = (np.concatenate([values(k), values(k, seed=1)]) for k in (5, 2))
    weights = np.array([0, 0, 0, 1, 1, 1, 1, 1], "float32")
    with pytest.raises(ValueError, match="must equal those of single-example"):
        keras_osgd.gradient_norms(model, x, y, weights)


def test_a_call_that_fails_on_one_example_is_an_obstacle_that_says_why():
    class Picky(Scale):
        def call(self, x):
            if x.shape[0] == 1:
                raise ValueError("one is none")
            return super().call(x)

    model = functional((5,), Picky(name="picky"), L.Dense(2))
    scorer = scorer_of(model, values(5), values(2))
    with pytest.raises(ValueError, match="- picky \\(Picky\\).*one is none"):
        scorer(tf.constant(values(5)), tf.constant(values(2)))


class Secret(keras.Model):
    """Uses weights where no layer's output is on the way."""

    def __init__(self):
        super().__init__()
        self.one, self.two = L.Dense(4, name="one"), L.Dense(4, name="two")

    def call(self, x):
        return self.two(self.one(x))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        mixed = keras.ops.matmul(y_pred, self.one.kernel[:4] + self.two.kernel)
        return super().compute_loss(x, y, mixed, sample_weight)


@pytest.mark.parametrize("mode", MODES)
def test_weights_used_by_the_loss_itself_are_named_at_once(mode):
    model = Secret()
    model.compile("sgd", "mse", run_eagerly=mode == "eager")
    with pytest.raises(ValueError, match="Exact gradient norms must equal") as error:
        keras_osgd.gradient_norms(model, values(5), values(4))
    assert "one/kernel" in str(error.value) and "two/kernel" in str(error.value)


def test_a_loss_that_gives_a_number_is_refused():
    model = functional(
        (5,), L.Dense(2), loss=lambda y, y_pred: tf.reduce_mean((y - y_pred) ** 2)
    )
    with pytest.raises(ValueError, match="must return one value per example"):
        keras_osgd.gradient_norms(model, values(5), values(2))


def test_a_model_without_a_loss_is_refused():
    model = functional((5,), L.Dense(2), loss=None)
    with pytest.raises(ValueError, match="`compile` must be given a `loss`"):
        keras_osgd.gradient_norms(model, values(5), values(2))
