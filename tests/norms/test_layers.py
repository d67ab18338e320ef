"""Every kind of layer: exact norms are those of single-example gradients."""

import keras
import numpy as np
import pytest

from tests.helpers import norm_cases

CASES = list(norm_cases.CASES)
# A convolution in each of its ways, each form, shared weights, and unknown layers.
DOZEN = [
    "Conv2D, same, strided",
    "Conv1D, grouped",
    "Conv2DTranspose, valid, strided",
    "SeparableConv1D, valid",
    "Dense on sequences",
    "Embedding, masked",
    "LayerNormalization",
    "BatchNormalization, statistics held",
    "EinsumDense, heads",
    "a table used as kernel as well",
    "an unknown layer around known ones",
    "examples folded into positions",
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


def error(case, number, mode):
    reduction = norm_cases.REDUCTIONS[number % 2]
    return norm_cases.relative_error(case, reduction, number % 4 > 1, mode)


@pytest.mark.parametrize("case", CASES)
def test_norms_of_every_kind_of_layer_are_those_of_single_examples(case):
    assert error(case, CASES.index(case), "graph") <= 1e-5


@pytest.mark.parametrize("case", [c for c in CASES if c not in WITHOUT_FLOAT64])
def test_in_float64_they_agree_to_ten_digits(case, float64):
    assert error(case, CASES.index(case) + 1, "eager") <= 1e-10


@pytest.mark.parametrize("mode", ["eager", "jit"])
@pytest.mark.parametrize("number, case", enumerate(DOZEN))
def test_a_dozen_kinds_have_the_same_norms_in_every_mode(number, case, mode):
    # Each mode sees all four pairs of reduction and weights three times.
    assert error(case, number, mode) <= 1e-5


@pytest.mark.parametrize("reduction", norm_cases.REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", ["Conv2D, same, strided", "Dense on sequences"])
def test_neither_reduction_nor_weights_change_what_is_right(case, reduction, weighted):
    assert norm_cases.relative_error(case, reduction, weighted, "eager") <= 1e-5


def test_the_table_of_cases_has_an_error_to_find():
    model, x, y, _ = norm_cases.model_and_data(CASES[0], "sum", False, "eager")
    expected = norm_cases.norms_one_by_one(model, x, y)
    assert np.ptp(expected) > 0.1 * expected.mean()  # no constant would pass
