"""Exact norms of recurrent layers, by weight, beside those of single examples."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_osgd.base import keras_compat
from keras_osgd.norms import calls, exact
from keras_osgd.norms.calls import recording
from tests.helpers import oracles_norms
from tests.helpers.selection import one_in

layers = keras.layers
EXAMPLES, STEPS, FEATURES, UNITS = 3, 3, 5, 2
MASK = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]])
STATES = {layers.SimpleRNN: 1, layers.GRU: 1, layers.LSTM: 2}
KINDS = list(STATES)


def model_of(layer, mask=False, initial=0, dtype="float32", steps=STEPS):
    """Returns a model whose weights also lie before the layer, in one or more heads."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((steps, FEATURES), dtype=dtype)
    hidden = layers.Masking(dtype=dtype)(inputs) if mask else inputs
    hidden = layers.Dense(FEATURES, use_bias=False, dtype=dtype)(hidden)
    first = layers.GlobalAveragePooling1D(dtype=dtype)(inputs)
    given = [layers.Dense(UNITS, dtype=dtype)(first) for _ in range(initial)]
    outputs = layer(hidden) if not given else None
    if given:  # beside which Keras does not pass on the mask of the inputs by itself
        said = keras.ops.any(keras.ops.not_equal(inputs, 0), axis=-1)
        options = {"mask": said} if mask else {}
        outputs = layer(hidden, initial_state=given, **options)
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(1)
    for weight in model.trainable_variables:
        weight.assign(weight + rng.normal(size=weight.shape, scale=0.3))
    return model


def data(model, mask=False, steps=STEPS):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(EXAMPLES, steps, FEATURES))
    x = x * MASK[..., np.newaxis] if mask else x
    outputs = keras.tree.flatten(model(x, training=False))
    targets = [rng.normal(size=output.shape) for output in outputs]
    return [tf.constant(array, model.inputs[0].dtype) for array in (x, *targets)]


def loss_of(model, x, targets, training):
    outputs = keras.tree.flatten(model(x, training=training))
    return tf.add_n(
        [
            tf.reduce_sum(tf.square(tf.cast(a, b.dtype) - b))
            for a, b in zip(outputs, targets, strict=True)
        ]
    )


def measuring(model, training, multiples, also, worked_out):
    """Returns a function from data to norms by weight, and what `also` returns."""
    variables = model.trainable_variables
    watched = [keras_compat.tensor_of(v) for v in variables]

    def measured(x, *targets):
        with tf.GradientTape() as tape, recording(model) as frames:
            loss = loss_of(model, x, targets, training)
        uses = exact.Uses(frames, variables, x.shape[0], multiples, training)
        gradients, deltas = tape.gradient(loss, (watched, uses.outputs))
        by_reference = {v.ref(): g for v, g in zip(watched, gradients, strict=True)}
        found = uses.measure(deltas, by_reference).of_all_weights()
        worked_out[:] = found.worked_out
        return [tf.sqrt(found.by_weight[v.ref()]) for v in watched], also()

    return measured


def norms(
    model, x, *targets, mode="eager", training=False, batched=None, also=lambda: ()
):
    """Returns {path of a weight: norms}, layers without a rule, what `also` returns."""
    multiples, worked_out = batched, []
    if multiples is None:
        multiples = calls.batch_axes(model, x)
    measured = measuring(model, training, multiples, also, worked_out)
    if mode != "eager":
        measured = tf.function(measured, autograph=False, jit_compile=mode == "jit")
    found, extra = measured(x, *targets)
    paths = [v.path for v in model.trainable_variables]
    by_path = {p: n.numpy() for p, n in zip(paths, found, strict=True)}
    return by_path, worked_out, extra


def norms_one_by_one(model, x, *targets, training=False):
    """Returns {path of a weight: norms}: a gradient for the loss of each example."""
    variables = [keras_compat.tensor_of(v) for v in model.trainable_variables]
    with tf.GradientTape(persistent=True) as tape:
        outputs = keras.tree.flatten(model(x, training=training))
        losses = [
            tf.add_n(
                [
                    tf.reduce_sum(tf.square(tf.cast(a[i], b.dtype) - b[i]))
                    for a, b in zip(outputs, targets, strict=True)
                ]
            )
            for i in range(EXAMPLES)
        ]
    rows = [tape.gradient(loss, variables) for loss in losses]
    return {
        v.path: np.array([tf.norm(tf.cast(g, tf.float64)) for g in gradients])
        for v, *gradients in zip(model.trainable_variables, *rows, strict=True)
    }


def assert_equal(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for path, own in expected.items():
        assert own.max() > 0.01, path
        zero = 1e-3 * tolerance * own.max()
        np.testing.assert_allclose(found[path], own, tolerance, zero, err_msg=path)


SEQUENCES, STATE = {"return_sequences": True}, {"return_state": True}
ZEROS = {"zero_output_for_mask": True}
OPTIONS = {  # name: (options, whether there is a mask, whether initial states)
    "last output": ({}, False, False),
    "unrolled, its output a state": ({**STATE, "unroll": True}, False, True),
    "no activation": ({**SEQUENCES, "activation": None}, False, False),
    "no bias": ({**SEQUENCES, "use_bias": False}, False, False),
    "masked, last output": (STATE, True, True),
    "masked, sequences": (SEQUENCES, True, True),
    "masked, backwards": ({**SEQUENCES, "go_backwards": True}, True, False),
    "zeros, unrolled": ({**SEQUENCES, **ZEROS, "unroll": True}, True, False),
}
# What a kind has of its own, a step, its states and its gates, meets each way of being
# called; that kinds share what comes before and after the steps, two or one show.
CALLED = {
    layers.SimpleRNN: ["no activation", "no bias", "masked, sequences"],
    layers.GRU: ["unrolled, its output a state", "no bias", "masked, backwards"],
    layers.LSTM: ["last output", "no bias", "masked, last output", "zeros, unrolled"],
}
CASES = [(kind, *OPTIONS[way]) for kind, ways in CALLED.items() for way in ways]
GATES_ACTIVATION = {"recurrent_activation": "tanh", "activation": "softplus"}
CASES += [
    (layers.LSTM, {"implementation": 1, **SEQUENCES}, False, False),
    (layers.LSTM, GATES_ACTIVATION, False, False),
    (layers.GRU, {"recurrent_activation": None, **STATE}, False, False),
]
CASES += [
    (layers.GRU, {**SEQUENCES, "reset_after": False}, False, True),
    (layers.GRU, {**SEQUENCES, "reset_after": False, **ZEROS}, True, False),
    (layers.GRU, {"reset_after": False, "implementation": 1}, False, False),
    (layers.GRU, {"reset_after": False, "use_bias": False}, False, False),
]
EVERYTHING = {**SEQUENCES, **STATE, **ZEROS, "go_backwards": True}
CASES += [(kind, EVERYTHING, True, True) for kind in KINDS]


def name_of(case):
    kind, options, mask, initial = case
    said = [f"{name}={value}" for name, value in options.items()]
    return "-".join([kind.__name__, *said, *["mask"] * mask, *["initial"] * initial])


def check(kind, options, mask, initial, mode, dtype="float32", tolerance=1e-5):
    layer = kind(UNITS, dtype=dtype, **options)
    model = model_of(layer, mask, STATES[kind] * initial, dtype)
    examples = data(model, mask)
    found, worked_out, _ = norms(model, *examples, mode=mode)
    assert worked_out == []
    assert_equal(found, norms_one_by_one(model, *examples), tolerance)


@pytest.mark.parametrize("case", one_in(3, [(case,) for case in CASES]), ids=name_of)
def test_norms_are_those_of_single_examples_to_double_precision(case):
    check(*case, "eager", "float64", 1e-10)


# One kind each, and another with dropout below: the steps are loops alike.
@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "mode"), [(layers.GRU, "graph"), (layers.LSTM, "jit")]
)
def test_norms_are_the_same_in_graphs_compiled_or_not(kind, mode):
    check(kind, EVERYTHING, True, True, mode)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_widened_before_the_steps_are_run_back(kind):
    model = model_of(kind(UNITS, dtype="mixed_float16"))
    plain = model_of(kind(UNITS, dtype="float64"), dtype="float64")
    for wide, own in zip(plain.weights, model.weights, strict=True):
        wide.assign(keras.ops.cast(own, "float16" if "cell" in own.path else None))
    x, y = data(plain)
    delta = 2.0**-21 * tf.sign(y)  # which float16 has, but has not its product with 0.3
    expected = norms_one_by_one(plain, x, plain(x) + delta)
    half = tf.cast(model(x), tf.float32) + tf.cast(delta, tf.float32)
    found, _, _ = norms(model, tf.cast(x, tf.float32), half)
    for (path, own), wide in zip(found.items(), expected.values(), strict=True):
        if "cell" in path:
            np.testing.assert_allclose(own, wide, rtol=0.005)


@pytest.mark.parametrize("sequences", [True, False])
def test_masked_outputs_are_those_of_cudnn_where_keras_may_use_it(sequences):
    layer = layers.LSTM(UNITS, return_sequences=sequences)
    model = model_of(layer, mask=True)
    loop = layer.inner_loop

    def as_cudnn(*args, **kwargs):  # zeros in sequences, else the last state
        layer.zero_output_for_mask = sequences
        outputs = loop(*args, **kwargs)
        layer.zero_output_for_mask = not sequences
        return outputs

    vars(layer)["inner_loop"], layer.supports_jit = as_cudnn, False
    examples = data(model, mask=True)
    found, worked_out, _ = norms(model, *examples)
    assert worked_out == []
    assert_equal(found, norms_one_by_one(model, *examples))


DROPOUT = {"dropout": 0.4}
RECURRENT_DROPOUT = {"recurrent_dropout": 0.4}
BOTH = {**DROPOUT, **RECURRENT_DROPOUT}
DROPPED = [(layers.GRU, {**BOTH, "reset_after": False})]
DROPPED += [(kind, {**SEQUENCES, **BOTH}) for kind in KINDS]
DROPPED += [(layers.LSTM, DROPOUT), (layers.GRU, RECURRENT_DROPOUT)]
DROPPED += [(layers.LSTM, {**DROPOUT, "implementation": 1, "use_cudnn": False})]
DROPPED += [(layers.GRU, {"dropout": 1.0})]
MODES = ["jit"] + ["eager"] * (len(DROPPED) - 1)


@pytest.mark.long
@pytest.mark.parametrize(("case", "mode"), zip(DROPPED, MODES, strict=True))
def test_dropout_is_that_of_the_call(case, mode):
    kind, options = case
    model = model_of(kind(UNITS, **options))
    cell, examples, drawn = model.layers[-1].cell, data(model), {}

    def watched(name, draw):
        def watch(step_input):
            drawn[name] = draw(step_input)
            return drawn[name]

        return watch

    names = ["get_dropout_mask", "get_recurrent_dropout_mask"]
    for name in names:
        vars(cell)[name] = watched(name, getattr(cell, name))
    found, worked_out, masks = norms(
        model, *examples, mode=mode, training=True, also=lambda: dict(drawn)
    )
    assert worked_out == [] and masks.keys() == set(names)
    for name, mask in masks.items():
        vars(cell)[name] = lambda step_input, mask=mask: mask
    assert_equal(found, norms_one_by_one(model, *examples, training=True))
    unaware, _, _ = norms(model, *examples)
    changed = [abs(found[path] / unaware[path] - 1).max() > 0.1 for path in found]
    assert any(changed) == (options.get("dropout") != 1.0)


def test_dropout_methods_of_the_cells_owner_are_there_after_the_call():
    model = model_of(layers.LSTM(UNITS, **BOTH))
    cell = model.layers[-1].cell
    own = vars(cell)["get_dropout_mask"] = cell.get_dropout_mask
    with recording(model):
        model(data(model)[0], training=True)
    assert vars(cell)["get_dropout_mask"] is own
    assert "get_recurrent_dropout_mask" not in vars(cell)


def test_dropout_is_off_outside_training():
    check(layers.LSTM, BOTH, False, False, "eager")


@pytest.mark.parametrize(
    ("kind", "mode"), [(layers.GRU, "eager"), (layers.LSTM, "graph")]
)
def test_stateful_layers_start_from_the_states_before_the_call(kind, mode):
    rng = np.random.default_rng(3)
    shape = (EXAMPLES, STEPS, FEATURES)
    inputs = keras.Input(batch_shape=shape)
    layer = kind(UNITS, stateful=True, name="layer")
    model = keras.Model(inputs, layer(inputs))
    x = tf.constant(rng.normal(size=shape), tf.float32)
    model(x)
    before = [tf.constant(state) for state in layer.states]
    y = tf.constant(rng.normal(size=(EXAMPLES, UNITS)), tf.float32)
    found, worked_out, _ = norms(model, x, y, mode=mode, batched={})
    assert worked_out == []
    assert abs(before[0] - layer.states[0]).numpy().max() > 0.01
    alone = kind(UNITS)
    alone(x)
    alone.set_weights(layer.get_weights()[: len(alone.weights)])

    def loss(i):
        states = [state[i : i + 1] for state in before]
        return tf.reduce_sum((alone(x[i : i + 1], initial_state=states) - y[i]) ** 2)

    rows = oracles_norms.gradients_one_by_one(loss, alone.weights, EXAMPLES)
    total = np.sqrt(sum(n**2 for n in found.values()))
    np.testing.assert_allclose(total, np.linalg.norm(rows, axis=1), rtol=1e-5)


WRAPPED = {
    "Bidirectional": lambda: layers.Bidirectional(
        layers.GRU(UNITS, **STATE), merge_mode="mul"
    ),
    "TimeDistributed": lambda: keras.Sequential(
        [
            layers.Reshape((STEPS, FEATURES, 1)),
            layers.TimeDistributed(layers.LSTM(UNITS)),
        ]
    ),
    "RNN": lambda: layers.RNN(layers.GRUCell(UNITS), **SEQUENCES),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_layers_and_cells_have_the_same_rule(name):
    mask = name != "TimeDistributed"
    model = model_of(WRAPPED[name](), mask)
    examples = data(model, mask)
    found, worked_out, _ = norms(model, *examples)
    assert worked_out == []
    assert_equal(found, norms_one_by_one(model, *examples))


def test_a_layer_called_twice_has_the_sum_of_both_gradients():
    layer = layers.GRU(FEATURES, **SEQUENCES, reset_after=False)
    model = model_of(keras.Sequential([layer, layer]))
    examples = data(model)
    found, worked_out, _ = norms(model, *examples)
    assert worked_out == []
    assert_equal(found, norms_one_by_one(model, *examples))


def test_rows_of_one_example_are_summed():
    inputs = keras.Input((2, STEPS, FEATURES))
    apart = layers.Lambda(lambda t: keras.ops.reshape(t, (-1, STEPS, FEATURES)))
    joined = layers.Lambda(lambda t: keras.ops.reshape(t, (-1, 2 * UNITS)))
    layer = layers.LSTM(UNITS)
    model = keras.Model(inputs, joined(layer(apart(inputs))))
    rng = np.random.default_rng(0)
    shapes = (EXAMPLES, 2, STEPS, FEATURES), (EXAMPLES, 2 * UNITS)
    examples = [tf.constant(rng.normal(size=s), tf.float32) for s in shapes]
    found, worked_out, _ = norms(model, *examples)
    assert worked_out == []
    assert_equal(found, norms_one_by_one(model, *examples))


class Doubled(layers.SimpleRNN):
    def inner_loop(self, *args, **kwargs):
        return keras.tree.map_structure(
            lambda x: 2 * x, super().inner_loop(*args, **kwargs)
        )


class Minimal(layers.Layer):
    state_size = UNITS

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], UNITS))

    def call(self, inputs, states):
        output = keras.ops.tanh(inputs @ self.kernel + states[0] / 2)
        return output, [output]


class HiddenCell(layers.SimpleRNNCell):
    def call(self, inputs, states, training=False):
        output, states = super().call(inputs, states, training)
        return output**2, states


OTHERS = {
    "own loop": lambda: Doubled(UNITS, unroll=True, **STATE),
    "own cell": lambda: layers.RNN(Minimal(), **SEQUENCES, **STATE),
    "cell of a subclass": lambda: layers.RNN(HiddenCell(UNITS), unroll=True),
    "stacked": lambda: layers.RNN(
        [layers.LSTMCell(3), layers.SimpleRNNCell(UNITS)], unroll=True
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS)
def test_other_cells_are_worked_out_one_by_one_in_training_too(name):
    model = model_of(OTHERS[name](), steps=2)
    examples = data(model, steps=2)
    mode = "graph" if name == "own cell" else "eager"
    found, worked_out, _ = norms(model, *examples, mode=mode, training=True)
    assert worked_out
    assert_equal(found, norms_one_by_one(model, *examples))


def test_dropout_of_other_cells_is_refused():
    model = model_of(layers.RNN([layers.LSTMCell(UNITS, dropout=0.5)], name="mine"))
    with pytest.raises(ValueError, match="mine .RNN. draws random numbers"):
        norms(model, *data(model), training=True)


class Carried(layers.Layer):
    """Returns a carry, and an output computed from it."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],))

    def call(self, x):
        carry = x * self.scale
        return carry, keras.ops.tanh(carry), carry


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_outputs_computed_from_each_other_are_counted_once(mode):
    model = model_of(Carried())
    examples = data(model)
    found, _, _ = norms(model, *examples, mode=mode)
    assert_equal(found, norms_one_by_one(model, *examples))


def test_the_graph_of_a_long_sequence_is_no_larger():
    nodes = []
    for steps in (5, 200):
        model = model_of(layers.GRU(UNITS), steps=steps)
        given = [tf.TensorSpec((EXAMPLES, steps, FEATURES))]
        given += [tf.TensorSpec((EXAMPLES, UNITS))]
        measured = measuring(model, False, {}, lambda: (), [])
        measured = tf.function(measured, autograph=False)
        graph = measured.get_concrete_function(*given).graph.as_graph_def()
        inner = sum(len(function.node_def) for function in graph.library.function)
        nodes.append(len(graph.node) + inner)
    assert nodes[0] == nodes[1] < 3000
