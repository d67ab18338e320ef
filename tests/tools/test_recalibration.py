"""BatchNormalization's moving statistics, taken anew over given data."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd import recalibrate_batch_normalization
from keras_osgd.sampling import RAIS
from tests.helpers import small

L = keras.layers
_rng = np.random.default_rng(0)
X = (_rng.lognormal(0.0, 1.0, (103, 4)) * [1, 2, 5, 9] + 3).astype("float32")
IMAGES = _rng.normal(2.0, 3.0, (37, 5, 4, 3)).astype("float32")


def built(*layers, shape=(4,), base=keras.Sequential):
    keras.utils.set_random_seed(0)
    return base([keras.Input(shape), *layers])


def moments(layer):
    return layer.moving_mean.numpy(), layer.moving_variance.numpy()


def assert_moments(layer, values, rtol=1e-5):
    values = np.asarray(values, np.float64).reshape(-1, values.shape[-1])
    mean, variance = moments(layer)
    np.testing.assert_allclose(mean, values.mean(axis=0), rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(variance, values.var(axis=0), rtol=rtol)


@pytest.mark.parametrize("batch_size", [2, 10, 51, 102, 1000])
def test_a_first_layer_s_statistics_are_those_of_all_rows_whatever_the_batches(
    batch_size,
):
    model = built(L.BatchNormalization(), L.Dense(2))
    recalibrate_batch_normalization(model, X, batch_size)
    assert_moments(model.layers[0], X)


@pytest.mark.parametrize("axis", [-1, 1])
def test_statistics_of_images_are_over_places_too(axis):
    model = built(L.BatchNormalization(axis=axis), shape=IMAGES.shape[1:])
    recalibrate_batch_normalization(model, IMAGES, 8)
    assert_moments(model.layers[0], np.moveaxis(IMAGES, axis, -1))


def test_a_mean_far_above_the_spread_does_not_cost_the_variance_its_digits():
    x = X + np.float32(1e4)
    model = built(L.BatchNormalization())
    recalibrate_batch_normalization(model, x, 10)
    # E[x^2] - E[x]^2 in float32 would be off by several times the first variance.
    assert_moments(model.layers[0], x, rtol=1e-3)


def _stack_by_hand(model, x, batch_size, seed):
    """Returns the values that each normalization sees, batch by batch, in float64."""
    order = np.random.default_rng(seed).permutation(len(x))
    first, dense, second = (model.layers[i] for i in (0, 2, 3))
    seen = []
    for index in np.array_split(order, -(-len(x) // batch_size)):
        values = x[index].astype(np.float64)
        scaled = (values - values.mean(axis=0)) / np.sqrt(
            values.var(axis=0) + first.epsilon
        )
        hidden = np.maximum(scaled * first.gamma.numpy() + first.beta.numpy(), 0)
        seen.append(hidden @ dense.kernel.numpy() + dense.bias.numpy())
    assert second.momentum == 0.9
    return np.concatenate(seen)


@pytest.mark.parametrize("batch_size", [7, 40, 103])
def test_a_stack_agrees_with_a_second_implementation_batch_by_batch(batch_size):
    norms = L.BatchNormalization(), L.BatchNormalization(momentum=0.9)
    model = built(norms[0], L.ReLU(), L.Dense(3), norms[1], L.Dense(1))
    for weight in model.trainable_weights:
        weight.assign(weight + 0.3 * _rng.normal(size=weight.shape))
    recalibrate_batch_normalization(model, X, batch_size, seed=5)
    assert_moments(norms[0], X)
    assert_moments(norms[1], _stack_by_hand(model, X, batch_size, seed=5), rtol=1e-4)


def test_no_batch_is_left_with_a_few_rows():
    sizes = []

    class Watch(L.Layer):
        def call(self, x):
            sizes.append(x.shape[0])
            return x

    model = built(Watch(), L.BatchNormalization())
    sizes.clear()
    recalibrate_batch_normalization(model, X, 51)  # 103 rows: 51, 51 and 1 would be
    assert sorted(sizes) == [34, 34, 35]


def test_rows_sorted_by_class_do_not_make_batches_of_one_class():
    x = np.repeat([[-5.0], [5.0]], 500, axis=0).astype("float32")
    model = built(L.BatchNormalization(), L.BatchNormalization(), shape=(1,))
    recalibrate_batch_normalization(model, x, 100)
    mean, variance = moments(model.layers[1])
    assert abs(mean[0]) < 0.02 and abs(variance[0] - 1) < 0.05


def _all_but_moments(model):
    return [v for v in model.variables if not v.name.startswith("moving_")]


def test_weights_seeds_metrics_and_momenta_are_left_as_they_are():
    class Counted(L.Layer):
        def build(self, shape):
            self.calls = self.add_weight(initializer="zeros", trainable=False)

        def call(self, x, training=False):
            self.calls.assign_add(1.0)
            return x

    norm = L.BatchNormalization(momentum=0.8)
    spectral = L.SpectralNormalization(L.Dense(3))
    model = built(L.Dropout(0.5), Counted(), spectral, norm, L.GaussianNoise(1.0))
    model.compile("sgd", "mse", metrics=["mae"])
    model.evaluate(X, X[:, :3], verbose=0)
    variables = [*_all_but_moments(model), *model.metrics_variables]
    assert len(variables) >= 10
    before, old = [np.array(v) for v in variables], moments(norm)
    recalibrate_batch_normalization(model, X, 20)
    for value, variable in zip(before, variables, strict=True):
        np.testing.assert_array_equal(value, variable, err_msg=variable.path)
    assert norm.momentum == 0.8 and "call" not in vars(norm)
    assert (moments(norm)[0] != old[0]).all()
    assert not tf.config.functions_run_eagerly()


def test_dropout_is_as_in_training_and_the_same_each_time():
    norms, results = [], []
    for rate in (0.5, 0.5, 0.0):
        norms.append(L.BatchNormalization())
        model = built(L.Dropout(rate, seed=3), norms[-1])
        recalibrate_batch_normalization(model, X)
        results.append(moments(norms[-1])[1])
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] > 1.2 * results[2]).all()


def test_after_it_prediction_is_the_training_mode_s_of_all_rows_at_once():
    model = built(L.BatchNormalization(), L.Dense(3, "relu"), L.BatchNormalization())
    recalibrate_batch_normalization(model, X, len(X))
    expected = model(X, training=True).numpy()
    recalibrate_batch_normalization(model, X, len(X))
    np.testing.assert_allclose(model(X, training=False), expected, rtol=1e-3, atol=1e-4)


def test_nested_models_and_layers_inside_layers_are_found():
    class Block(L.Layer):
        def __init__(self):
            super().__init__()
            self.norms = [L.BatchNormalization(), L.BatchNormalization()]

        def call(self, x):
            return self.norms[1](self.norms[0](x) * 2.0 + 1.0)

    inner = keras.Sequential([keras.Input((4,)), L.BatchNormalization()])
    block, inputs = Block(), keras.Input((4,))
    model = keras.Model(inputs, block(inner(inputs)))
    recalibrate_batch_normalization(model, X, len(X))
    assert_moments(inner.layers[0], X)
    np.testing.assert_allclose(moments(block.norms[1])[0], 1.0, rtol=1e-5)
    np.testing.assert_allclose(moments(block.norms[1])[1], 4.0, rtol=2e-3)


def test_a_layer_called_twice_gets_the_statistics_of_both_inputs():
    norm, a, b = L.BatchNormalization(), keras.Input((4,)), keras.Input((4,))
    model = keras.Model([a, b], [norm(a), norm(b)])
    recalibrate_batch_normalization(model, [X, 2 * X + 1], 20)
    assert_moments(norm, np.concatenate([X, 2 * X + 1]))


def test_masked_positions_do_not_count():
    x = _rng.normal(size=(30, 6, 2)).astype("float32")
    lengths = np.arange(30) % 6 + 1
    x[np.arange(6) >= lengths[:, None]] = 0.0
    norm = L.BatchNormalization()
    model = built(L.Masking(), norm, shape=(6, 2))
    recalibrate_batch_normalization(model, x, 7)
    assert_moments(norm, x[np.arange(6) < lengths[:, None]])


class Subclassed(keras.Model):
    def __init__(self, functions=False):
        super().__init__()
        self.norm = L.BatchNormalization()
        self.dense = L.Dense(2)
        self.head = tf.function(self._head) if functions else self._head

    def _head(self, x, training):
        return self.dense(self.norm(x, training=training))

    def call(self, x, training=False):
        return self.head(x, training)


@pytest.mark.parametrize("make", [Subclassed, lambda: Subclassed(functions=True)])
@pytest.mark.parametrize("built_before", [False, True])
def test_a_subclassed_model_built_or_not_eager_or_not(make, built_before):
    model = make()
    if built_before:
        model(X, training=True)
    recalibrate_batch_normalization(model, X, 20)
    assert_moments(model.norm, X)


def test_an_unbuilt_sequential_model_is_built():
    model = keras.Sequential([L.BatchNormalization(), L.Dense(2)])
    recalibrate_batch_normalization(model, X)
    assert_moments(model.layers[0], X)


def test_a_layer_that_is_frozen_or_held_in_inference_is_left_alone():
    class Held(L.Layer):
        def __init__(self):
            super().__init__()
            self.norm = L.BatchNormalization()

        def call(self, x):
            return self.norm(x, training=False)

    frozen, held, norm = L.BatchNormalization(), Held(), L.BatchNormalization()
    frozen.trainable = False
    model = built(frozen, held, norm)
    for layer in (frozen, held.norm):
        layer.moving_mean.assign([1.0, 2.0, 3.0, 4.0])
    recalibrate_batch_normalization(model, X)
    for layer in (frozen, held.norm):
        np.testing.assert_array_equal(layer.moving_mean, [1.0, 2.0, 3.0, 4.0])
        np.testing.assert_array_equal(layer.moving_variance, 1.0)
    assert abs(moments(norm)[0]).max() > 1


def test_of_calls_in_both_modes_those_in_training_count():
    class Both(L.Layer):
        def __init__(self):
            super().__init__()
            self.norm = L.BatchNormalization()

        def call(self, x, training=False):
            return self.norm(x, training=False) + self.norm(x, training=training)

    both = Both()
    recalibrate_batch_normalization(built(both), X, 20)
    assert_moments(both.norm, X)


def test_renormalization_and_mixed_precision_are_covered():
    norm = L.BatchNormalization(renorm=True)
    recalibrate_batch_normalization(built(norm), X, 20)
    assert_moments(norm, X)
    expected = np.sqrt(moments(norm)[1] + norm.epsilon)
    np.testing.assert_allclose(norm.moving_stddev, expected, rtol=1e-6)
    np.testing.assert_array_equal(norm.renorm_mean, 0.0)
    half = L.BatchNormalization(dtype="mixed_float16")
    recalibrate_batch_normalization(built(half), X, 20)
    assert_moments(half, X.astype("float16"), rtol=1e-3)


def test_statistics_that_a_bad_batch_made_nan_are_mended():
    norm = L.BatchNormalization()
    model = built(norm)
    norm.moving_mean.assign(np.full(4, np.nan))
    recalibrate_batch_normalization(model, X, 20)
    assert_moments(norm, X)


def test_rows_that_are_not_finite_raise_and_change_nothing():
    first, second = L.BatchNormalization(), L.BatchNormalization(name="second")
    model = built(first, L.Dense(2), second)
    x = X.copy()
    x[50, 1] = np.nan
    with pytest.raises(ValueError, match="must be finite. Received: NaN or infinity"):
        recalibrate_batch_normalization(model, x, 20)
    for layer in (first, second):
        np.testing.assert_array_equal(layer.moving_mean, 0.0)
        assert layer.momentum == 0.99


def test_a_failure_in_the_model_leaves_everything_as_it_was():
    class Failing(L.Layer):
        def call(self, x, training=False):
            if training and len(x) < 8:
                raise RuntimeError("stop")
            return x

    norm = L.BatchNormalization()
    model = built(L.Dropout(0.5), norm, Failing())
    before = [np.array(v) for v in model.variables]
    with pytest.raises(RuntimeError, match="stop"):
        recalibrate_batch_normalization(model, X, 2)
    for value, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(value, variable)
    assert norm.momentum == 0.99 and "call" not in vars(norm)
    assert not tf.config.functions_run_eagerly()


def test_a_model_with_nothing_to_recalibrate_is_refused():
    with pytest.raises(ValueError, match="that is trained.*Received: none. Leave"):
        recalibrate_batch_normalization(built(L.Dense(2)), X)
    frozen = built(L.BatchNormalization(name="mine", trainable=False), L.Dense(2))
    with pytest.raises(ValueError, match=r"Received: only \['mine'\], not `trainable`"):
        recalibrate_batch_normalization(frozen, X)


def test_batches_of_one_and_what_is_no_array_are_refused():
    model = built(L.BatchNormalization())
    with pytest.raises(ValueError, match="at least 2: .* Received: batch_size=1"):
        recalibrate_batch_normalization(model, X, 1)
    with pytest.raises(ValueError, match="`x` must be arrays"):
        recalibrate_batch_normalization(model, iter([X]))
    with pytest.raises(ValueError, match="0 examples"):
        recalibrate_batch_normalization(model, X[:0])


# The notice


def _normalized(**options):
    made = built(L.BatchNormalization(), L.Dense(3), base=keras_osgd.Sequential)
    made.compile("sgd", small.crossentropy(), **options)
    return made


def test_training_says_once_what_to_call_and_then_statistics_are_those_of_the_data():
    model = _normalized(sampling=RAIS(seed=0))
    [found] = keras_osgd.check(model, small.X, small.Y, print_fn=None)[:1]
    assert found.kind == "warning" and "recalibrate_batch_normalization" in found.text
    x = small.X * np.exp(small.X[:, :1])  # so that hard examples are of their own kind
    options = {"x": x, "epochs": small.EPOCHS}
    told = small.warned(small.fit, model, **options)  # though `check` said so
    [text] = [t for t in told if "follow the drawn" in t]
    assert "`keras_osgd.recalibrate_batch_normalization(model, x)`" in text
    recalibrate_batch_normalization(model, x)
    assert_moments(model.layers[0], x)
    assert small.warned(small.fit, model, x) == []


def test_uniform_training_and_frozen_layers_give_no_notice():
    assert small.warned(small.fit, _normalized(sampling="uniform")) == []
    model = _normalized()
    model.layers[0].trainable = False
    model.compile("sgd", small.crossentropy(), sampling=RAIS(seed=0))
    assert small.warned(small.fit, model) == []
