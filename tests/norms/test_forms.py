"""Per-example gradients in each form have the norms and sums of the gradients."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from keras_osgd.norms import forms
from keras_osgd.norms.forms import Gathered, PerExample, Products

M = 3


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def tensor(values):
    return tf.constant(values, tf.float64)


def squared(gradients):
    return (np.reshape(gradients, [len(gradients), -1]) ** 2).sum(axis=1)


def assert_measures(form, gradients, sums=None):
    """Compares with gradients `[m, *shape]`; `sums`: whether their sum is given."""
    shape = gradients.shape[1:]
    norms, total = form.measured(shape)
    np.testing.assert_allclose(norms, squared(gradients), rtol=1e-12)
    np.testing.assert_allclose(form.materialised(shape), gradients, atol=1e-12)
    if sums is not None:
        assert (total is not None) == sums
    if total is not None:
        assert tuple(total.shape) == shape
        np.testing.assert_allclose(total, gradients.sum(axis=0), atol=1e-12)


def products(positions, columns, rows, size=M, seed=0):
    """Returns products of a kernel `[columns, rows]` and their gradients."""
    a = normal(size, positions, columns, seed=seed)
    delta = normal(size, positions, rows, seed=seed + 1)
    form = Products(tensor(a), tensor(delta), (rows, columns), (1, 0))
    return form, np.einsum("mtp,mtq->mpq", a, delta)


@pytest.mark.parametrize("columns, rows", [(6, 3), (3, 6), (1, 1), (4, 4)])
@pytest.mark.parametrize("positions", [1, 2, 3, 4, 9])
def test_products_have_the_norms_of_their_sums(positions, columns, rows):
    # The Gram matrices are less work below P Q / (P + Q) positions, and give no sum.
    by_sums = positions > 1 and positions * (columns + rows) >= columns * rows
    assert_measures(*products(positions, columns, rows), sums=by_sums)


def test_gram_matrices_are_taken_on_the_cheaper_side_only():
    cheap, _ = products(2, 6, 6)
    dear, _ = products(3, 6, 6)  # 3 * 12 = 6 * 6
    assert cheap.measured([6, 6])[1] is None and dear.measured([6, 6])[1] is not None


@pytest.mark.parametrize("positions", [1, 2, 7])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_groups_have_kernels_of_their_own_in_whatever_order_of_axes(positions, order):
    a, delta = normal(M, 2, positions, 4), normal(M, 2, positions, 5, seed=1)
    gradients = np.einsum("mgtp,mgtq->mgqp", a, delta)
    gradients = np.transpose(gradients, [0, *(axis + 1 for axis in order)])
    assert_measures(Products(tensor(a), tensor(delta), (2, 5, 4), order), gradients)


def test_axes_are_taken_apart_before_they_are_put_in_order():
    a, delta = normal(M, 7, 6), normal(M, 7, 4, seed=1)
    gradients = np.einsum("mtp,mtq->mqp", a, delta).reshape(M, 2, 2, 3, 2)
    gradients = gradients.transpose(0, 3, 1, 4, 2).reshape(M, 6, 4)
    form = Products(tensor(a), tensor(delta), (2, 2, 3, 2), (2, 0, 3, 1))
    assert_measures(form, gradients, sums=True)


@pytest.mark.parametrize("positions", [1, 2, 9])
def test_an_unknown_number_of_positions_changes_no_norm(positions):
    form, gradients = products(positions, 6, 5)

    @tf.function(
        input_signature=[tf.TensorSpec([None, None, k], tf.float64) for k in (6, 5)],
        autograph=False,
    )
    def measured(inputs, deltas):
        return Products(inputs, deltas, (5, 6), (1, 0)).measured([6, 5])

    norms, total = measured(form.inputs, form.deltas)
    np.testing.assert_allclose(norms, squared(gradients), rtol=1e-12)
    np.testing.assert_allclose(total, gradients.sum(axis=0), atol=1e-12)


def table(indices, seed=0, rows=5, width=2):
    """Returns looked-up rows of a table and their gradients."""
    indices = np.array(indices)
    deltas = normal(*indices.shape, width, seed=seed)
    gradients = np.zeros([len(indices), rows, width])
    for example, position in np.ndindex(*indices.shape):
        gradients[example, indices[example, position]] += deltas[example, position]
    return Gathered(tf.constant(indices), tensor(deltas)), gradients


REPEATED = [[0, 4, 0, 4], [3, 3, 3, 3], [4, 0, 1, 2]]


@pytest.mark.parametrize("indices", [REPEATED, [[0], [0], [4]], [[2, 2]] * 3])
def test_rows_looked_up_repeatedly_are_summed_within_an_example_only(indices):
    form, gradients = table(indices)
    assert_measures(form, gradients)
    assert_measures(form.products([5, 2]), gradients)


def test_gradients_as_they_are_have_their_norms_and_sum():
    gradients = normal(M, 2, 3)
    assert_measures(PerExample(tensor(gradients)), gradients, sums=True)
    flat = PerExample(tensor(gradients.reshape(M, 6)))  # as rules may give them
    assert flat.measured([2, 3])[1].shape == [2, 3]


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("kind", ["products", "groups", "gathered", "as they are"])
def test_consecutive_rows_are_folded_into_one_example(kind, times):
    if kind == "products":
        form, gradients = products(4, 3, 2, size=M * times)
    elif kind == "groups":
        a, delta = normal(M * times, 2, 4, 3), normal(M * times, 2, 4, 5, seed=1)
        form = Products(tensor(a), tensor(delta), (2, 5, 3), (0, 1, 2))
        gradients = np.einsum("mgtp,mgtq->mgqp", a, delta)
    elif kind == "gathered":
        form, gradients = table(REPEATED * times)
    else:
        gradients = normal(M * times, 2, 3)
        form = PerExample(tensor(gradients))
    shape = gradients.shape[1:]
    folded = gradients.reshape(M, times, *shape).sum(axis=1)
    assert_measures(form.folded(M), folded)


KINDS = {
    "products": lambda seed: products(3, 5, 2, seed=seed),
    "few positions": lambda seed: products(1, 5, 2, seed=seed),
    "otherwise ordered": lambda seed: _transposed(seed),
    "gathered": lambda seed: table(REPEATED, seed),
    "as they are": lambda seed: _as_they_are(seed),
}


def _transposed(seed):
    a, delta = normal(M, 4, 2, seed=seed), normal(M, 4, 5, seed=seed + 1)
    form = Products(tensor(a), tensor(delta), (5, 2), (0, 1))
    return form, np.einsum("mtp,mtq->mqp", a, delta)


def _as_they_are(seed):
    gradients = normal(M, 5, 2, seed=seed)
    return PerExample(tensor(gradients)), gradients


@pytest.mark.parametrize(
    "kinds",
    [
        *itertools.combinations_with_replacement(KINDS, 2),
        ("products", "gathered", "few positions"),
        tuple(KINDS),
    ],
    ids="+".join,
)
def test_gradients_of_repeated_uses_are_added_before_the_norm_is_taken(kinds):
    made = [KINDS[kind](seed) for seed, kind in enumerate(kinds)]
    uses, gradients = zip(*made, strict=True)
    assert_measures(forms.combined(uses, [5, 2]), sum(gradients))


def test_uses_in_one_form_stay_in_it():
    for kind, form in [("products", Products), ("gathered", Gathered)]:
        uses = [KINDS[kind](seed)[0] for seed in (0, 1)]
        assert isinstance(forms.combined(uses, [5, 2]), form)


BIG = 300.0  # its square is not a float16


@pytest.mark.parametrize("positions", [1, 2, 9])
def test_squares_that_overflow_float16_do_not(positions):
    inputs = tf.fill([M, positions, 6], tf.constant(BIG, tf.float16))
    form = Products(inputs, inputs, (6, 6), (1, 0))
    norms, _ = form.measured([6, 6])
    assert norms.dtype == tf.float32
    np.testing.assert_allclose(norms, (positions * BIG**2) ** 2 * 36, rtol=1e-6)
    indices = tf.zeros([M, positions], tf.int32)
    norms, _ = Gathered(indices, inputs).measured([5, 6])
    np.testing.assert_allclose(norms, (positions * BIG) ** 2 * 6, rtol=1e-6)
    norms, total = PerExample(inputs).measured([positions, 6])
    np.testing.assert_allclose(norms, positions * 6 * BIG**2, rtol=1e-6)
    assert total.dtype == tf.float32


def test_bfloat16_is_summed_in_float32():
    ones = tf.ones([1, 1000, 1], tf.bfloat16)  # which counts to 256 by itself
    form = Products(ones, ones, (1, 1), (1, 0))
    np.testing.assert_allclose(form.measured([1, 1])[0], 1e6, rtol=1e-6)
    both = forms.combined([form, form], [1, 1])
    np.testing.assert_allclose(both.measured([1, 1])[0], 4e6, rtol=1e-6)
