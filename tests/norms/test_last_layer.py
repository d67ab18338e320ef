import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.data import training_data
from keras_osgd.draws.pipeline import Sample
from keras_osgd.losses import described
from keras_osgd.norms import last_layer
from keras_osgd.step import sampled_step
from tests.helpers import oracles_norms
from tests.helpers.selection import one_in
from tests.helpers.steps import step_state

_LAYERS = keras.layers
_M, _CLASSES = 5, 3


def _x(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(_M, *shape)).astype(np.float32)


def _targets(kind, shape, seed=1):
    rng = np.random.default_rng(seed)
    if kind == "labels":
        return rng.integers(0, shape[-1], shape[:-1])
    if kind == "one-hot":
        return np.eye(shape[-1], dtype=np.float32)[
            rng.integers(0, shape[-1], shape[:-1])
        ]
    if kind == "bits":
        return rng.integers(0, 2, shape).astype(np.float32)
    return rng.normal(size=shape).astype(np.float32)


def _per_example(values):
    return tf.reduce_mean(tf.reshape(values, [tf.shape(values)[0], -1]), axis=1)


def _pseudo_huber(y, y_pred):
    return tf.reduce_sum(tf.sqrt(1.0 + tf.square(y_pred - y)) - 1.0, axis=-1)


def _squared_error(y, y_pred):
    return tf.square(y_pred - y)


def _loss(name, **options):
    return getattr(keras.losses, name)(reduction=None, **options)


def _recorded(model, loss, x, y, weights=1.0, mode="eager"):
    """Returns norms `[m]`, ||sum of gradients||^2, outputs and the head's kind."""
    kinds = []

    def compute(x, y):
        with tf.GradientTape() as tape, last_layer.recording(model) as heads:
            y_pred = model(x, training=True)
            total = tf.reduce_sum(weights * _per_example(loss(y, y_pred)))
            total += sum(model.losses)
        head = heads.of(y_pred)
        kinds.append((head.inputs is not None, head.bias))
        delta = tape.gradient(total, head.pre_activation)
        squared = last_layer.squared_norms(head, delta)
        return tf.sqrt(squared), last_layer.squared_gradient(head, delta), y_pred

    if mode != "eager":
        compute = tf.function(compute, jit_compile=mode == "xla", autograph=False)
    return *compute(tf.constant(x), tf.constant(y)), kinds[-1]


def _gradients(model, loss, x, y, variables, weights=None):
    weights = np.ones(len(x), np.float32) if weights is None else weights

    def loss_of(i):
        one = slice(i, i + 1)
        y_pred = model(tf.constant(x[one]))
        return weights[i] * tf.reduce_mean(loss(tf.constant(y[one]), y_pred))

    return oracles_norms.gradients_one_by_one(loss_of, variables, len(x))


def _check(model, loss, x, y, variables, dense=True, weights=None, mode="eager"):
    gradients = _gradients(model, loss, x, y, variables, weights)
    given = 1.0 if weights is None else tf.constant(weights)
    norms, squared, _, kind = _recorded(model, loss, x, y, given, mode)
    assert kind == (dense, dense and len(variables) == 2)
    expected = np.sqrt((gradients**2).sum(axis=1))
    assert expected.min() > 0
    np.testing.assert_allclose(norms, expected, rtol=5e-5)
    np.testing.assert_allclose(
        squared, (gradients.sum(axis=0) ** 2).sum(), rtol=1e-4, atol=1e-7
    )
    assert norms.dtype == squared.dtype == tf.float32


_HEADS = [
    ("softmax", _loss("SparseCategoricalCrossentropy"), "labels"),
    ("softmax", _loss("CategoricalCrossentropy", label_smoothing=0.1), "one-hot"),
    ("softmax", _loss("MeanSquaredError"), "one-hot"),
    ("log_softmax", _loss("SparseCategoricalCrossentropy", from_logits=True), "labels"),
    (None, _loss("SparseCategoricalCrossentropy", from_logits=True), "labels"),
    (None, _loss("CategoricalCrossentropy", from_logits=True), "one-hot"),
    ("sigmoid", _loss("BinaryCrossentropy"), "bits"),
    ("sigmoid", _loss("BinaryCrossentropy", label_smoothing=0.2), "bits"),
    (None, _loss("BinaryCrossentropy", from_logits=True), "bits"),
    (None, _loss("MeanSquaredError"), "values"),
    ("tanh", _loss("MeanSquaredError"), "values"),
    ("relu", _loss("MeanAbsoluteError"), "values"),
    ("softplus", _loss("Huber", delta=0.5), "values"),
    ("tanh", _pseudo_huber, "values"),
]


def _head(activation, **options):
    # A bias that keeps every relu alive somewhere.
    options = {"bias_initializer": "ones"} | options
    return _LAYERS.Dense(_CLASSES, activation, name="head", **options)


def _mlp(activation, shape=(4,), **options):
    keras.utils.set_random_seed(0)
    body = _LAYERS.Dense(6, "relu")
    return keras.Sequential([keras.Input(shape), body, _head(activation, **options)])


def _weights_of(model):
    return model.get_layer("head").trainable_weights


@pytest.mark.parametrize(
    "activation, loss, kind, mode",
    one_in(2, [(*head, "graph") for head in _HEADS])
    + [(*head, "eager") for head in _HEADS[::3]],
)
def test_norms_of_a_dense_head_are_those_of_single_example_gradients(
    activation, loss, kind, mode
):
    model, y = _mlp(activation), _targets(kind, (_M, _CLASSES))
    _check(model, loss, _x(4), y, _weights_of(model), mode=mode)


@pytest.mark.parametrize("activation, loss, kind", _HEADS[::3])
def test_norms_of_a_dense_head_without_bias_leave_the_bias_out(activation, loss, kind):
    model = _mlp(activation, use_bias=False, bias_initializer="zeros")
    assert len(_weights_of(model)) == 1
    _check(model, loss, _x(4), _targets(kind, (_M, _CLASSES)), _weights_of(model))


@pytest.mark.parametrize(
    "activation, loss, kind, shape, bias",
    [
        (*_HEADS[0], (1, 4), True),
        (*_HEADS[7], (4, 4), True),
        (*_HEADS[10], (4, 4), False),
        (*_HEADS[0], (9, 4), True),
        (*_HEADS[10], (9, 4), False),
        (*_HEADS[7], (3, 5, 4), True),
    ],
)
def test_norms_of_a_dense_head_on_sequences_are_of_the_gradient_summed_over_positions(
    activation, loss, kind, shape, bias
):
    # 6 inputs and 3 values: the Gram form up to 4 positions, the kernel itself above.
    model = _mlp(activation, shape, use_bias=bias)
    y = _targets(kind, (_M, *shape[:-1], _CLASSES))
    _check(model, loss, _x(*shape), y, _weights_of(model))


def test_sequences_of_unknown_length_have_the_norms_of_known_ones():
    model, loss = _mlp("softmax", (None, 4)), _HEADS[0][1]
    y = _targets("labels", (_M, 9, _CLASSES))
    expected = _recorded(model, loss, _x(9, 4), y)[0]

    @tf.function(input_signature=[tf.TensorSpec([None, None, 4])])
    def norms(x):
        with tf.GradientTape() as tape, last_layer.recording(model) as heads:
            y_pred = model(x)
            total = tf.reduce_sum(_per_example(loss(y, y_pred)))
        head = heads.of(y_pred)
        delta = tape.gradient(total, head.pre_activation)
        return tf.sqrt(last_layer.squared_norms(head, delta))

    np.testing.assert_allclose(norms(tf.constant(_x(9, 4))), expected, rtol=1e-5)


def _with_separate(layers):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), _head(None), *layers])


@pytest.mark.parametrize(
    "layers, head",
    [
        ([_LAYERS.Activation("softmax")], 0),
        ([_LAYERS.Softmax()], 0),
        ([_LAYERS.Activation("linear"), _LAYERS.Activation("softmax")], 0),
        ([keras.Sequential([_LAYERS.Softmax()])], 0),
        ([_LAYERS.Activation("sigmoid")], 6),
        ([_LAYERS.Activation("tanh")], 9),
        ([_LAYERS.ReLU(negative_slope=0.1)], 9),
        ([_LAYERS.LeakyReLU(), _LAYERS.ELU()], 9),
    ],
    ids=lambda value: str(len(value)) if isinstance(value, list) else str(value),
)
def test_activations_in_layers_of_their_own_are_seen_through(layers, head):
    model, (_, loss, kind) = _with_separate(layers), _HEADS[head]
    y = _targets(kind, (_M, _CLASSES))
    for mode in ("eager", "graph") if head == 0 else ("graph",):
        _check(model, loss, _x(4), y, _weights_of(model), mode=mode)


class Subclassed(keras.Model):
    """Calls its head in one of the ways in which people write models."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.body = _LAYERS.Dense(6, "relu")
        self.last = _head("softmax" if way in ("plain", "nested") else None)
        if way == "nested":
            self.inner = keras.Sequential([self.body, self.last])

    def call(self, x):
        if self.way == "nested":
            return self.inner(x)
        z = self.last(self.body(x))
        if self.way == "keras.ops":
            return keras.ops.softmax(z)
        return z if self.way == "plain" else tf.nn.softmax(z)


@pytest.mark.parametrize(
    "way, mode",
    [
        ("plain", "eager"),
        ("plain", "graph"),
        ("nested", "eager"),
        ("nested", "graph"),
        ("keras.ops", "eager"),
        ("keras.ops", "graph"),
        ("tf.nn", "graph"),  # described, too, know such a softmax in graphs only
    ],
)
def test_subclassed_models_have_the_norms_of_single_example_gradients(way, mode):
    keras.utils.set_random_seed(0)
    model, (_, loss, kind) = Subclassed(way), _HEADS[0]
    x, y = _x(4), _targets(kind, (_M, _CLASSES))
    model(x)
    _check(model, loss, x, y, model.last.trainable_weights, mode=mode)


def test_a_functional_model_within_a_functional_model_is_looked_into():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    inner = keras.Model(inputs, _head("softmax")(_LAYERS.Dense(6, "relu")(inputs)))
    outer = keras.Model(inputs, inner(_LAYERS.Dense(4)(inputs)))
    _, loss, kind = _HEADS[0]
    y = _targets(kind, (_M, _CLASSES))
    _check(outer, loss, _x(4), y, inner.get_layer("head").trainable_weights)


def _value_heads():
    """Yields a model up to z, what makes the output of z, and input and loss."""
    image, vector = keras.Input((5, 5, 2)), keras.Input((4,))
    mse, softmax = _loss("MeanSquaredError"), keras.activations.softmax
    crossentropy = _loss("SparseCategoricalCrossentropy")
    conv = _LAYERS.Conv2D(3, 3, activation="softmax")
    yield "conv", image, conv, softmax, crossentropy, "labels"
    conv = _LAYERS.Conv2DTranspose(2, 3, activation="tanh")
    yield "conv transpose", image, conv, keras.activations.tanh, mse, "values"
    einsum = _LAYERS.EinsumDense("ab,bc->ac", 3, bias_axes="c", activation="softmax")
    yield "einsum", vector, einsum, softmax, crossentropy, "labels"
    normal = _LAYERS.UnitNormalization()
    both = keras.Sequential([_LAYERS.Dense(3, "tanh"), normal])
    yield "post-processed", vector, both, keras.activations.linear, mse, "values"
    flat = keras.Sequential([_LAYERS.Dense(1), _LAYERS.Reshape(())])
    yield "a number", vector, flat, keras.activations.linear, _squared_error, "values"


@pytest.mark.parametrize("case", range(5))
def test_other_heads_have_the_norm_of_one_bias_for_each_output_value(case):
    keras.utils.set_random_seed(0)
    name, inputs, layer, activation, loss, kind = list(_value_heads())[case]
    model = keras.Model(inputs, layer(inputs))
    x = _x(*inputs.shape[1:])
    if "activation" in vars(layer):  # z is the layer without its activation
        layer.activation = None
        z_of = keras.Model(inputs, layer(inputs))
        z = z_of(x)
        layer.activation = activation
    else:
        z_of, z = model, model(x)
    bias = tf.Variable(tf.zeros([1, *z.shape[1:]]))
    y = _targets(kind, tuple(z.shape))

    def loss_of(i):
        return tf.reduce_mean(loss(y[i : i + 1], activation(z[i : i + 1] + bias)))

    holder = types.SimpleNamespace(value=bias)
    gradients = oracles_norms.gradients_one_by_one(loss_of, [holder], _M)
    norms, squared, _, kind = _recorded(model, loss, x, y)
    assert kind == (False, False), name
    np.testing.assert_allclose(norms, np.sqrt((gradients**2).sum(axis=1)), rtol=5e-5)
    expected = (gradients.sum(axis=0) ** 2).sum()
    np.testing.assert_allclose(squared, expected, rtol=1e-4)


def test_sample_weights_are_part_of_each_example_s_loss():
    model, (_, loss, kind) = _mlp("softmax"), _HEADS[0]
    weights = np.array([0.5, 2.0, 1.0, 7.0, 0.1], np.float32)
    y = _targets(kind, (_M, _CLASSES))
    _check(model, loss, _x(4), y, _weights_of(model), weights=weights)


def test_regularisation_of_the_last_layer_enters_neither_norms_nor_gradient():
    model = _mlp("softmax", kernel_regularizer=keras.regularizers.L2(10.0))
    assert float(sum(model.losses)) > 1
    _, loss, kind = _HEADS[0]
    _check(model, loss, _x(4), _targets(kind, (_M, _CLASSES)), _weights_of(model))


def test_eager_graph_and_xla_agree():
    softmax = _LAYERS.Activation("softmax")
    model = keras.Sequential([_mlp(None, (6, 4)), softmax])
    loss = _loss("SparseCategoricalCrossentropy")
    x, y = _x(6, 4), _targets("labels", (_M, 6, _CLASSES))
    eager = _recorded(model, loss, x, y)
    for mode in ("graph", "xla"):
        other = _recorded(model, loss, x, y, mode=mode)
        assert other[-1] == eager[-1] == (True, True)
        for one, two in zip(other[:3], eager[:3], strict=True):
            np.testing.assert_allclose(one, two, rtol=2e-5)


@pytest.mark.parametrize(
    "recipe, mode",
    [("float32 head", "xla"), ("float32 softmax", "eager"), ("float16 head", "eager")],
)
def test_mixed_precision_gives_float32_norms_near_those_of_float32(recipe, mode):
    def layers(body, softmax):
        yield from (keras.Input((4,)), _LAYERS.Dense(6, "relu", dtype=body))
        if recipe == "float32 softmax":
            yield _head(None, dtype=body)
            yield _LAYERS.Activation("softmax", dtype="float32")
        else:
            yield _head("softmax", dtype=softmax)

    _, loss, kind = _HEADS[0]
    head = "mixed_float16" if recipe == "float16 head" else "float32"
    model = keras.Sequential(list(layers("mixed_float16", head)))
    full = keras.Sequential(list(layers("float32", "float32")))
    full.set_weights(model.get_weights())
    x, y = _x(4), _targets(kind, (_M, _CLASSES))
    norms, squared, _, found = _recorded(model, loss, x, y, mode=mode)
    assert norms.dtype == squared.dtype == tf.float32
    assert found == (True, True)
    gradients = _gradients(full, loss, x, y, _weights_of(full))
    np.testing.assert_allclose(norms, np.sqrt((gradients**2).sum(axis=1)), rtol=1e-2)
    expected = (gradients.sum(axis=0) ** 2).sum()
    np.testing.assert_allclose(squared, expected, rtol=2e-2)


class _Tempered(_LAYERS.Dense):
    """A Dense layer that goes on after its activation."""

    def call(self, inputs):
        return super().call(inputs) ** 2


class _Doubled(_LAYERS.Activation):
    def call(self, inputs):
        return super().call(inputs) * 2


@pytest.mark.parametrize("jit_compile", [None, False])
def test_outputs_and_gradients_are_bit_identical_with_and_without_recording(
    jit_compile,
):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 1))
    hidden = _LAYERS.Conv2D(4, 3, activation="gelu")(inputs)
    hidden = _LAYERS.Conv2DTranspose(2, 2, activation="elu")(hidden)
    hidden = _LAYERS.Dense(3, "swish")(_LAYERS.Flatten()(hidden))
    hidden = _Doubled("tanh")(_Tempered(5, "sigmoid")(hidden))
    model = keras.Model(inputs, _LAYERS.Softmax()(_LAYERS.Dense(4, "relu")(hidden)))
    x, y = tf.constant(_x(6, 6, 1)), tf.constant([0, 1, 2, 3, 0])
    loss = keras.losses.SparseCategoricalCrossentropy()

    def plain(x):
        with tf.GradientTape() as tape:
            y_pred = model(x)
            value = loss(y, y_pred)
        return [y_pred, *tape.gradient(value, model.trainable_weights)]

    def recorded(x):
        with last_layer.recording(model):
            return plain(x)

    if jit_compile is not None:
        plain = tf.function(plain, jit_compile=jit_compile, autograph=False)
        recorded = tf.function(recorded, jit_compile=jit_compile, autograph=False)
    for one, two in zip(plain(x), recorded(x), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_layer_that_goes_on_after_its_activation_is_taken_as_a_whole():
    model = keras.Sequential([keras.Input((4,)), _Tempered(_CLASSES, "sigmoid")])
    loss, y = _HEADS[9][1], _targets("values", (_M, _CLASSES))
    norms, _, y_pred, kind = _recorded(model, loss, _x(4), y)
    assert kind == (False, False)
    delta = 2 * (y_pred.numpy() - y) / _CLASSES  # with respect to the output itself
    np.testing.assert_allclose(norms, np.linalg.norm(delta, axis=1), rtol=1e-5)


@pytest.mark.parametrize("fails", ["in the block", "in a layer", "never"])
def test_layers_are_as_before_after_recording_also_after_an_exception(fails):
    model = keras.Sequential([keras.Input((4,)), _mlp("tanh"), _LAYERS.Softmax()])
    layers = [*model.layers[0].layers, model.layers[1]]
    own = layers[1].call  # as a layer with a `call` of its own would have it
    vars(layers[1])["call"] = own
    before = [dict(vars(layer)) for layer in layers]
    if fails == "in a layer":
        before[0]["activation"] = layers[0].activation = lambda x: 1 / 0
    try:
        with last_layer.recording(model):
            if fails == "in the block":
                raise KeyboardInterrupt
            model(_x(4))
    except (KeyboardInterrupt, ZeroDivisionError):
        assert fails != "never"
    for layer, attributes in zip(layers, before, strict=True):
        assert vars(layer).keys() == attributes.keys()
        assert (
            vars(layer)["activation" if layer is not layers[2] else "axis"]
            is (attributes["activation" if layer is not layers[2] else "axis"])
        )
    assert vars(layers[1])["call"] is own


def test_a_loss_that_does_not_depend_on_the_output_is_refused():
    head = last_layer.Head(tf.zeros([2, 3]), None, False)
    with pytest.raises(ValueError, match="must depend on the model's output.*Received"):
        last_layer.squared_norms(head, None)


def test_gradients_that_gather_rows_count_like_any_other():
    head = last_layer.Head(tf.zeros([3, 2]), tf.ones([3, 2]), True)
    sparse = tf.IndexedSlices(tf.constant([[3.0, 4.0]]), tf.constant([1]), [3, 2])
    squared = last_layer.squared_norms(head, sparse)
    np.testing.assert_allclose(squared, [0.0, 75.0, 0.0])
    np.testing.assert_allclose(last_layer.squared_gradient(head, sparse), 75.0)


def _sampled_step(build, reduction, x, y, n=20, sample_weight=None, **options):
    """Returns the norms and the averaged moments of one step of training."""
    keras.utils.set_random_seed(0)
    model = build()
    loss = keras.losses.SparseCategoricalCrossentropy(reduction=reduction)
    optimizer = keras.optimizers.SGD(0.0)
    if options.pop("scaled", False):
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
    model.compile(optimizer, loss, **options)
    model.optimizer.build(model.trainable_weights)
    data = training_data.prepare(x, y, sample_weight, None, len(x), None)
    state = step_state(n, described.describe(model, data))
    probability = np.random.default_rng(0).uniform(0.5, 2.0, len(x)) / n
    p = tf.constant(probability, tf.float32)
    sample = Sample.of(p, p, data.arrays[2])
    rows = (tf.constant(x), tf.constant(y), sample)
    core = sampled_step.make_core(model, state, model.jit_compile)
    norms = core(rows)[1][: len(x)]
    moments = state.gain.averages.numpy() / 0.02
    return norms.numpy(), moments, 1 / (n * probability), model


def _classifier(shape=(4,)):
    return keras_osgd.Sequential(
        [keras.Input(shape), _LAYERS.Dense(6, "relu"), _head("softmax")]
    )


@pytest.mark.parametrize(
    ("reduction", "shape", "scaled"),
    [
        ("sum", (4,), False),
        ("sum", (7, 4), True),
        ("sum_over_batch_size", (4,), True),
        ("sum_over_batch_size", (7, 4), False),
        ("mean", (7, 4), True),
    ],
)
def test_a_step_s_norms_depend_on_neither_reduction_nor_batch_size_nor_weights(
    reduction, shape, scaled
):
    x, y = _x(*shape), _targets("labels", (_M, *shape[:-1], _CLASSES))
    norms, moments, weights, model = _sampled_step(
        lambda: _classifier(shape), reduction, x, y, scaled=scaled
    )
    loss = _loss("SparseCategoricalCrossentropy")
    gradients = _gradients(model, loss, x, y, _weights_of(model))
    expected = (gradients**2).sum(axis=1)
    np.testing.assert_allclose(norms, np.sqrt(expected), rtol=1e-4)
    np.testing.assert_allclose(moments[0], (weights * expected).mean(), rtol=1e-4)
    np.testing.assert_allclose(moments[1], (weights**2 * expected).mean(), rtol=1e-4)
    batch = ((weights[:, None] * gradients).mean(axis=0) ** 2).sum()
    np.testing.assert_allclose(moments[3], batch, rtol=1e-4)
    fewer = _sampled_step(lambda: _classifier(shape), reduction, x[:2], y[:2])[0]
    np.testing.assert_allclose(fewer, norms[:2], rtol=1e-5)


def test_an_eager_step_observes_what_one_in_a_graph_does():
    x, y = _x(4), _targets("labels", (_M, _CLASSES))
    weights = np.array([0.5, 2.0, 1.0, 7.0, 0.1], np.float32)
    expected = _sampled_step(_classifier, "sum", x, y, sample_weight=weights)
    options = {"run_eagerly": True}
    found = _sampled_step(_classifier, "sum", x, y, sample_weight=weights, **options)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
    gradients = _gradients(
        expected[3],
        _loss("SparseCategoricalCrossentropy"),
        x,
        y,
        _weights_of(expected[3]),
        weights,
    )
    np.testing.assert_allclose(
        expected[0], np.sqrt((gradients**2).sum(axis=1)), rtol=1e-4
    )


def test_losses_of_several_outputs_add_their_squared_norms():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    hidden = _LAYERS.Dense(6, "relu")(inputs)
    one, two = _LAYERS.Dense(3, "softmax")(hidden), _LAYERS.Dense(3, "softmax")(hidden)
    both, x = keras.Model(inputs, [one, two]), _x(4)
    y = _targets("labels", (2, _M, _CLASSES))
    loss = _loss("SparseCategoricalCrossentropy")
    with tf.GradientTape() as tape, last_layer.recording(both) as heads:
        outputs = both(x)
        total = sum(tf.reduce_sum(loss(y[k], outputs[k])) for k in (0, 1))
    found = [heads.of(output) for output in outputs]
    deltas = tape.gradient(total, [head.pre_activation for head in found])
    squared = sum(map(last_layer.squared_norms, found, deltas))

    def loss_of(i):
        outputs = both(x[i : i + 1])
        return sum(loss(y[k, i : i + 1], outputs[k])[0] for k in (0, 1))

    variables = [v for layer in both.layers[-2:] for v in layer.trainable_weights]
    gradients = oracles_norms.gradients_one_by_one(loss_of, variables, _M)
    np.testing.assert_allclose(squared, (gradients**2).sum(axis=1), rtol=1e-4)
