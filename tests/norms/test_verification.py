"""Nothing is trusted to exact norms that three examples show to be wrong."""

import re

import keras
import numpy as np
import pytest

import keras_osgd
from keras_osgd import norms
from keras_osgd.sampling import RAIS
from tests.helpers import small

L = keras.layers
X = np.random.default_rng(0).normal(size=(12, 5, 4)).astype("float32")
Y = np.random.default_rng(1).normal(size=(12, 2)).astype("float32")


class Scaled(L.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones")

    def call(self, x):
        return x * self.scale


class CentredOnTheBatch(Scaled):
    def call(self, x, training=False):
        return super().call(x - keras.ops.mean(x, axis=0) if training else x)


class Tripling(L.Layer):
    def call(self, x, training=False):
        return 3.0 * x if training else x


class AroundTripling(Scaled):
    """Takes no `training` of its own: Keras hands it to the layer inside."""

    def __init__(self):
        super().__init__()
        self.inner = Tripling()

    def call(self, x):
        return super().call(self.inner(x))


class OwnBatchNormalization(L.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=training, mask=mask)


class Mixed(L.Layer):
    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]))

    def call(self, x):
        return keras.ops.matmul(x, self.kernel)


class Negated(Scaled):
    def call(self, x):
        return x * self.scale


class TooLong(Scaled):
    def call(self, x):
        return x * self.scale


class Overflowing(Scaled):
    def call(self, x):
        return x * self.scale


@norms.register(Mixed)
def mixed(call):
    """Norms are right, gradients transposed."""
    form = norms.Products(call.inputs, call.delta, (4, 4), (0, 1))
    return [(call.layer.kernel, form)]


@norms.register(Negated)
def negated(call):
    gradient = -keras.ops.sum(call.delta * call.inputs, axis=1)
    return [(call.layer.scale, norms.PerExample(gradient))]


@norms.register(TooLong)
def too_long(call):
    return [(call.layer.scale, norms.PerExample(call.delta * call.inputs))]


@norms.register(Overflowing)
def overflowing(call):
    gradient = keras.ops.sum(call.delta * call.inputs, axis=1)
    huge = keras.ops.exp(1e4 + 0 * gradient)
    return [(call.layer.scale, norms.PerExample(gradient * huge / huge))]


class Noisy(Scaled):
    def __init__(self, **options):
        super().__init__(**options)
        self.dropout = L.Dropout(0.5)

    def call(self, x):
        return self.dropout(super().call(x))


class NeverAlone(Scaled):
    def call(self, x):
        if x.shape[0] == 1:
            raise ValueError("more than one, please")
        return super().call(x)


def model(*layers, optimizer="sgd", sampling=None):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((5, 4)), L.Dense(4, "tanh"), *layers, L.Flatten(), L.Dense(2)]
    made = keras_osgd.Sequential(layers)
    sampling = sampling or RAIS(norm="exact", seed=0)
    # The few steps of an epoch are made sooner than a graph of one.
    made.compile(optimizer, "mse", sampling=sampling, run_eagerly=True)
    return made


@pytest.mark.parametrize("layer", [Mixed, Negated])
def test_rules_whose_norms_are_right_but_not_their_sums_are_refused(layer):
    made = model(layer())
    [weight] = made.layers[1].weights
    with pytest.raises(ValueError, match="must add up to the batch's") as error:
        small.fit(made, X, Y)
    assert str([weight.path]) in str(error.value)
    with pytest.raises(ValueError, match="must add up to the batch's"):
        keras_osgd.gradient_norms(made, X, Y)


def test_a_rule_that_gives_nan_is_refused_and_nan_in_the_data_is_not_its_fault():
    made = model(Overflowing())
    for call in (small.fit, keras_osgd.gradient_norms):
        with pytest.raises(ValueError, match="must equal those.*/overflowing/variable"):
            call(made, X, Y)
    x = X.copy()
    x[:3] = np.nan  # all that are tried
    found = np.isfinite(keras_osgd.gradient_norms(model(L.LayerNormalization()), x, Y))
    assert found.tolist() == 3 * [False] + 9 * [True]


def test_all_layers_at_fault_in_either_mode_are_listed_at_once():
    # In turn: in inference mode, in training mode, sums in training mode, norms.
    layers = [NeverAlone(name="alone"), Noisy(name="noisy")]
    made = model(*layers, CentredOnTheBatch(name="centred"), Negated(name="negated"))
    with pytest.raises(ValueError, match="^2 things") as error:
        small.fit(made, X, Y)
    _, first, second = re.split(r"\n[12]\. ", str(error.value))
    assert "alone (NeverAlone)" in first and "noisy (Noisy)" in first
    assert "centred" not in first and "alone" not in second
    assert "/centred/" in second and "/negated/" in second and "Dense" not in second


def test_a_rule_that_forgets_to_sum_over_positions_is_told_the_shape():
    with pytest.raises(ValueError, match=r"of shape \(3, 4\) for .*\(3, 5, 4\)"):
        keras_osgd.gradient_norms(model(TooLong(name="long")), X, Y)


def test_an_unknown_layer_that_mixes_examples_in_training_is_refused_before_training():
    made = model(CentredOnTheBatch())
    before = small.flat(made)
    with pytest.raises(ValueError, match="a layer mixes examples in training"):
        small.fit(made, X, Y)
    np.testing.assert_array_equal(small.flat(made), before)
    assert keras_osgd.gradient_norms(made, X, Y).min() > 0  # in inference mode


@pytest.mark.parametrize("layer", [AroundTripling, OwnBatchNormalization])
def test_what_depends_on_training_trains_as_without_exact_norms(layer):
    trained, held = [], layer is OwnBatchNormalization
    for norm in ("exact", "last_layer"):
        # One epoch of uniform draws, and the gain ratio left out of the rate.
        method = RAIS(norm=norm, seed=0, adapt_learning_rate=False)
        made = model(layer(), sampling=method)
        told = small.warned(small.fit, made, X, Y)
        trained.append(small.flat(made))
        name = made.layers[1].name
        warned = any(f"statistics of ['{name}'] held" in message for message in told)
        assert warned == (held and norm == "exact")
    np.testing.assert_allclose(*trained, rtol=1e-4, atol=1e-6)
    if held:
        alone = rf"^Exact gradient norms(.|\n)*{name} \(.*\) in training mode"
        with pytest.raises(ValueError, match=alone):
            keras_osgd.gradient_norms(made, X, Y, training=True)


def test_layers_worked_out_one_by_one_are_named_once():
    made = model(Scaled(name="mine"))
    calls = [keras_osgd.gradient_norms, small.fit]
    messages = sum((small.warned(call, made, X, Y) for call in calls), [])
    [message] = [text for text in messages if "['mine']" in text]
    assert "one example at a time" in message and "Register one" in message
