"""Every kind of layer: exact norms are those of single-example gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_osgd.data import training_data
from keras_osgd.losses.described import describe
from keras_osgd.norms.scorer import Scorer
from tests.helpers import norm_cases
from tests.helpers.selection import long_but

GEOMETRIES = ["valid", "same, strided", "valid, strided", "same, dilated"]
# How many spatial axes a kind has, at most. Its rule does not know how many there are:
# each geometry is looked at with one number of them, and each number with a geometry.
RANKS = {"Conv": 3, "DepthwiseConv": 2, "SeparableConv": 2, "Transpose": 3}
OTHER_RANKS = {
    f"{kind.removesuffix('Transpose') or 'Conv'}{rank}D"
    f"{'Transpose' * (kind == 'Transpose')}, {geometry}"
    for kind, ranks in RANKS.items()
    for number, geometry in enumerate(GEOMETRIES)
    for rank in {1, 2, 3} - {1 + number % ranks}
}
LEFT_OUT = OTHER_RANKS | {
    "Conv1D, one channel",
    "Conv3D, one channel",
    # On CPU, Keras has XLA compile each single pass of a grouped convolution, which
    # takes seconds.
    "Conv2D, grouped",
    "Conv3D, grouped",
    # Recurrent layers have a module of their own, which looks at each of their weights.
    "SimpleRNN",
    "SimpleRNN, masked",
    "GRU",
    "GRU, sequences, backwards",
    "GRU, reset before",
    "LSTM, sequences, backwards",
    "LSTM, masked",
}
CASES = [case for case in norm_cases.CASES if case not in LEFT_OUT]
# Convolutions forth and back, each form, shared weights, and unknown layers.
COMPILED = [
    "Conv2D, same, strided",
    "Conv2DTranspose, valid, strided",
    "Dense on sequences",
    "Embedding, masked",
    "LayerNormalization",
    "BatchNormalization, statistics held",
    "EinsumDense, heads",
    "a table used as kernel as well",
    "an unknown layer around known ones",
    "examples folded into positions",
]
# What those leave out of the rules, and what dtypes could make different.
OTHERS_IN_GRAPHS = [
    "Conv1D, causal",
    "SeparableConv1D, valid",
    "Conv3D, same, dilated",
    "Conv2D twice, gram form",
    "Conv1DTranspose, same, dilated",
    "Conv2DTranspose, same, dilated",
    "DepthwiseConv2D, same, strided",
    "Embedding",
    "GroupNormalization, axis 1",
    "RMSNormalization",
    "EinsumDense, a kernel for each position",
    "MultiHeadAttention",
    "PReLU, shared axes",
    "positions without a batch axis",
]
# TensorFlow itself has no such convolution in float64 on CPU.
WITHOUT_FLOAT64 = {
    "Conv1DTranspose, same, dilated",
    "Conv2DTranspose, same, dilated",
}


@pytest.fixture
def float64():
    policy = keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy(policy)


def assert_exact(case, number, mode, tolerance):
    """Compares with single examples; four numbers see all reductions and weights."""
    reduction = norm_cases.REDUCTIONS[number % 2]
    made = norm_cases.model_and_data(case, reduction, number % 4 > 1, mode)
    model, x, y, weights = made
    data = training_data.prepare(x, y, weights, None, len(x), None)
    scorer = Scorer(model, describe(model, data), data)
    examples = data.batch(slice(0, len(x)))
    expected = norm_cases.norms_one_by_one(*made)
    if mode == "eager":
        measured, gradients = scorer.measured(*examples)
        norms = np.sqrt(measured.squared_norms)
        assert_sums(model, measured.forms, gradients, tolerance)
    else:
        norms = scorer(*examples)
    np.testing.assert_allclose(norms, expected, rtol=tolerance)


def assert_sums(model, forms, gradients, tolerance):
    """Asserts that per-example gradients add up to the batch's, weight by weight."""
    total = tf.linalg.global_norm(gradients)
    for variable, gradient in zip(model.trainable_weights, gradients, strict=True):
        form = forms.get(variable.value.ref())
        assert (form is None) == (gradient is None), variable.path
        if form is not None:
            errors = form.summed(variable.shape) - tf.convert_to_tensor(gradient)
            assert tf.norm(errors) <= tolerance * total, variable.path


# One of each kind of form; the others take the same ways through other layers.
DAILY = (
    "Conv2D, same, strided",
    "Conv2DTranspose, output padding",
    "DepthwiseConv2D, same, strided",
    "Dense on sequences",
    "EinsumDense, heads",
    "Embedding",
    "Embedding, masked",
    "GroupNormalization, axis 1",
    "LayerNormalization",
    "MultiHeadAttention",
    "PReLU, shared axes",
    "a table used as kernel as well",
    "an unknown layer around known ones",
)


@pytest.mark.parametrize(
    "case", long_but(DAILY, [c for c in CASES if c not in WITHOUT_FLOAT64])
)
def test_norms_of_every_kind_of_layer_are_those_of_single_examples(case, float64):
    # In float64, where they agree to ten digits.
    assert_exact(case, CASES.index(case), "eager", 1e-10)


@pytest.mark.long
@pytest.mark.parametrize("number, case", enumerate(OTHERS_IN_GRAPHS))
def test_in_float32_and_graphs_they_are_too(number, case):
    assert_exact(case, number, "graph", 1e-5)


@pytest.mark.long
@pytest.mark.parametrize("number, case", enumerate(COMPILED))
def test_every_form_has_the_same_norms_in_compiled_graphs(number, case):
    assert_exact(case, number, "jit", 1e-5)


@pytest.mark.parametrize("reduction", norm_cases.REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_neither_reduction_nor_weights_change_what_is_right(reduction, weighted):
    case = "Dense on sequences"
    assert norm_cases.relative_error(case, reduction, weighted, "eager") <= 1e-5


def test_the_table_of_cases_has_an_error_to_find():
    model, x, y, _ = norm_cases.model_and_data(CASES[0], "sum", False, "eager")
    expected = norm_cases.norms_one_by_one(model, x, y)
    assert np.ptp(expected) > 0.1 * expected.mean()  # no constant would pass
