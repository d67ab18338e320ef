"""Strings, ragged and sparse tensors, tables of pandas' as x: as Keras takes them."""

import keras
import numpy as np
import pandas
import pytest
import scipy.sparse
import tensorflow as tf

import keras_osgd
from keras_osgd.data import indexed
from keras_osgd.data.rows import Rows
from keras_osgd.data.training_data import prepare
from keras_osgd.data.uneven_columns import uneven
from keras_osgd.sampling import RAIS
from tests.helpers import small
from tests.helpers.small import BATCH_SIZE, Y

N, WIDTH = len(Y), 4
_rng = np.random.default_rng(1)
X = (small.X * (_rng.uniform(size=small.X.shape) < 0.5)).astype("float32")
LENGTHS = _rng.integers(0, WIDTH + 1, N)
PADDED = np.where(np.arange(WIDTH) < LENGTHS[:, np.newaxis], small.X, 0)
WORDS = np.array(["a", "b", "c", "d"])[_rng.integers(0, 4, N)]
ONE_HOT = (np.array(["a", "b", "c", "d"]) == WORDS[:, np.newaxis]).astype("float32")
RAGGED = tf.RaggedTensor.from_tensor(PADDED, lengths=LENGTHS)
FRAME = pandas.DataFrame(X, columns=list("abcd"))


def unordered(dense):
    """Returns a sparse tensor whose entries are not in the order of their rows."""
    sparse = tf.sparse.from_dense(dense)
    order = np.random.default_rng(0).permutation(len(sparse.values))
    indices, values = sparse.indices.numpy()[order], sparse.values.numpy()[order]
    return tf.SparseTensor(indices, values, sparse.dense_shape)


class ToDense(keras.layers.Layer):
    """Makes `[m, 4]` of whatever comes in."""

    def call(self, x):
        if isinstance(x, tf.RaggedTensor):
            return x.to_tensor(shape=[None, WIDTH])
        if isinstance(x, tf.SparseTensor):
            return tf.sparse.to_dense(x)
        return x

    def compute_output_shape(self, shape):
        return (shape[0], WIDTH)


def looked_up():
    words = keras.Input((), dtype="string", name="words")
    lookup = keras.layers.StringLookup(vocabulary=list("abcd"), num_oov_indices=0)
    encoded = keras.layers.CategoryEncoding(WIDTH, "one_hot")
    return words, encoded(lookup(words))


def made_dense():
    given = keras.Input((None,))
    return given, ToDense()(given)


def of_sparse():
    given = keras.Input((WIDTH,), sparse=True)
    return given, given


def plain():
    given = keras.Input((WIDTH,))
    return given, given


# Kind of input: what Keras is given, what the model begins with, what it amounts to.
KINDS = {
    "text of Python's": (WORDS.astype(object), looked_up, ONE_HOT),
    "text of TensorFlow's": (tf.constant(WORDS), looked_up, ONE_HOT),
    "ragged": (RAGGED, made_dense, PADDED),
    "ragged in float64": (tf.cast(RAGGED, tf.float64), made_dense, PADDED),
    "sparse": (tf.sparse.from_dense(X), made_dense, X),
    "sparse, last layer": (tf.sparse.from_dense(X), of_sparse, X),
    "sparse, not ordered": (unordered(X), made_dense, X),
    "sparse of SciPy's": (scipy.sparse.csr_array(X), made_dense, X),
    "coordinates of SciPy's": (scipy.sparse.coo_matrix(X), made_dense, X),
    "pandas": (FRAME, plain, X),
    "pandas in float64": (FRAME.astype("float64"), plain, X),
}


def model(front, base=keras_osgd.Model, **options):
    keras.utils.set_random_seed(0)
    given, dense = front()
    made = base(given, keras.layers.Dense(3)(dense))
    made.compile("sgd", small.crossentropy(), **options)
    return made


def fitted(made, x, y=Y, **options):
    """Returns weights and losses after training, with a part held out."""
    options = {
        "batch_size": BATCH_SIZE,
        "validation_split": 0.25,
        "epochs": 5,
        **options,
    }
    keras.utils.set_random_seed(1)
    history = made.fit(x, y, verbose=0, **options)
    return small.flat(made), history.history["loss"], history.history.get("val_loss")


def test_importance_sampling_is_that_of_the_dense_form():
    x, front, dense = KINDS["sparse, last layer"]
    found = fitted(model(front, sampling=RAIS(seed=0)), x)
    expected = fitted(model(plain, sampling=RAIS(seed=0)), dense)
    for own, theirs in zip(found, expected, strict=True):
        # A sparse product may sum in another order.
        np.testing.assert_allclose(own, theirs, rtol=1e-5)


def test_uniform_training_is_that_of_keras():
    x, front, _ = KINDS["ragged in float64"]
    options = {"epochs": 1, "validation_split": 0.0}
    found = fitted(model(front, sampling="uniform"), x, **options)
    expected = fitted(model(front, keras.Model), x, **options)
    np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_drawn_are_those_of_the_index(kind):
    x, _, dense = KINDS[kind]
    index = np.array([7, 0, 59, 7, 3])
    column = prepare(x, Y, None, None, 4, None).arrays[0]
    _, y, same, nothing = Rows((X, Y, column, None))(tf.constant(index))
    np.testing.assert_array_equal(y, Y[index])
    assert nothing is None and same.shape[0] == 5
    if "text" in kind:
        assert same.numpy().astype("U").tolist() == WORDS[index].tolist()
        return
    assert same.dtype == tf.float32
    np.testing.assert_array_equal(ToDense()(same), dense[index])
    if "ragged" in kind:
        np.testing.assert_array_equal(same.row_lengths(), LENGTHS[index])


def test_rows_of_several_ragged_axes_and_of_vectors_are_those_of_the_index():
    nested = tf.ragged.constant([[[1], [2, 3]], [], [[4], [], [5, 6, 7]]] * 3)
    vectors = tf.RaggedTensor.from_row_splits(np.arange(10.0).reshape(5, 2), [0, 2, 5])
    for ragged in (nested, vectors, nested.with_row_splits_dtype(tf.int32)):
        lists = ragged.to_list()
        found = Rows(uneven(ragged))(tf.constant([1, 0, 1]))
        assert found.to_list() == [lists[1], lists[0], lists[1]]
        assert uneven(ragged)[1:2].to_list() == lists[1:2]
        assert uneven(ragged).shape == tuple(ragged.shape)
    cube = np.random.default_rng(0).integers(0, 2, [6, 3, 2])
    found = Rows(uneven(tf.sparse.from_dense(cube)))(tf.constant([5, 2]))
    np.testing.assert_array_equal(tf.sparse.to_dense(found), cube[[5, 2]])


def test_entries_of_scipy_s_rows_are_put_in_order():
    given = scipy.sparse.csr_array(
        ([1.0, 2.0, 3.0], [3, 0, 1], [0, 2, 3]), shape=(2, 4)
    )
    found = Rows(uneven(given))(tf.constant([0, 1]))
    assert found.indices.numpy().tolist() == [[0, 0], [0, 3], [1, 1]]
    np.testing.assert_array_equal(tf.sparse.to_dense(found), given.toarray())


def test_rows_with_a_value_that_is_not_finite_are_told():
    found = uneven(tf.ragged.constant([[1.0], [2.0, np.nan], [], [np.inf]]))
    expected = [True, False, True, False]
    np.testing.assert_array_equal(found.finite(np.arange(4)), expected)


def test_large_columns_are_not_copied():
    matrix = scipy.sparse.csr_array(X)
    matrix.sort_indices()
    for given, parts in (
        (matrix, (matrix.data, matrix.indices)),
        (RAGGED, (np.asarray(RAGGED.flat_values), np.asarray(RAGGED.row_splits))),
    ):
        column = prepare(given, Y, None, None, 4, None).arrays[0]
        held = [*column.splits, *column.entries]
        assert all(any(np.shares_memory(a, part) for a in held) for part in parts)


@pytest.mark.long
def test_several_kinds_train_together():
    x = {"words": tf.constant(WORDS), "steps": RAGGED, "bag": tf.sparse.from_dense(X)}

    def front():
        words, encoded = looked_up()
        inputs = {
            "words": words,
            "steps": keras.Input((None,), name="steps"),
            "bag": keras.Input((WIDTH,), sparse=True, name="bag"),
        }
        others = [ToDense()(inputs[name]) for name in ("steps", "bag")]
        joined = keras.layers.Concatenate()([encoded, *others])
        return inputs, joined

    def dense():
        given = keras.Input((3 * WIDTH,))
        return given, given

    found = fitted(model(front, sampling=RAIS(seed=0)), x)
    together = np.concatenate([ONE_HOT, PADDED, X], axis=1)
    expected = fitted(model(dense, sampling=RAIS(seed=0)), together)
    for own, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(own, theirs)


def test_series_of_targets_and_weights_are_columns_as_in_keras():
    weights = np.linspace(0.5, 1.5, N)
    series = pandas.Series(Y), pandas.Series(weights)
    data = prepare(FRAME, series[0], series[1], {0: 1.0, 1: 2.0, 2: 1.0}, 4, None)
    assert data.arrays[1].shape == (N, 1)
    options = {"epochs": 1, "validation_split": 0.0}
    found = fitted(model(plain), FRAME, series[0], sample_weight=series[1], **options)
    expected = fitted(model(plain), X, Y, sample_weight=weights, **options)
    np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.parametrize("kind", ["ragged", "sparse", "text of TensorFlow's"])
def test_datasets_of_them_are_read_as_they_are(kind):
    x, _, dense = KINDS[kind]
    dataset = tf.data.Dataset.from_tensor_slices((x, Y))
    for given in (dataset.batch(7), dataset):
        column = indexed(given, verbose=False).arrays[0]
        found = Rows(column)(tf.constant([59, 0, 8]))
        if "text" in kind:
            assert found.numpy().astype("U").tolist() == WORDS[[59, 0, 8]].tolist()
        else:
            np.testing.assert_array_equal(ToDense()(found), dense[[59, 0, 8]])
            assert len(column) == N and column.nbytes < 2 * X.nbytes + 8 * N + 1000


def test_datasets_of_them_are_not_frozen_where_they_are_random():
    generator = tf.random.Generator.from_seed(0)
    dataset = tf.data.Dataset.from_tensor_slices((RAGGED, Y)).batch(4)
    noisy = dataset.map(lambda x, y: (x + generator.normal([]), y))
    with pytest.raises(ValueError, match="functions that draw.*map=augment"):
        indexed(noisy, verbose=False)


def test_ragged_examples_are_refused_on_disk(tmp_path):
    dataset = tf.data.Dataset.from_tensor_slices((RAGGED, Y))
    with pytest.raises(ValueError, match="must be dense.*to_tensor.*leave `cache` out"):
        indexed(dataset, cache=tmp_path, verbose=False)


@pytest.mark.parametrize("name", ["y", "sample_weight"])
@pytest.mark.parametrize("part", [RAGGED, scipy.sparse.csr_array(X)])
def test_targets_and_weights_must_be_dense(name, part):
    given = {"x": X, "y": Y, name: part}
    with pytest.raises(ValueError, match=f"`{name}` must be dense. Received: .*Only x"):
        small.model().fit(**given, verbose=0)


def test_a_ragged_example_of_a_dataset_that_is_not_finite_is_found():
    x = tf.ragged.constant([[1.0], [2.0, np.nan]] + [[], [3.0]] * 29)
    dataset = tf.data.Dataset.from_tensor_slices((x, Y)).batch(BATCH_SIZE)
    made = model(made_dense, sampling=RAIS(seed=0))
    told = r"example\(s\) \[1\] or .* 1 of 60 set aside"
    with pytest.warns(UserWarning, match=told):
        made.fit(dataset, epochs=3, verbose=0)
    assert made.sampling_state.bad_examples.strikes == {1: 3}


def test_fingerprints_tell_ragged_and_sparse_rows_apart():
    changed = tf.RaggedTensor.from_tensor(PADDED, lengths=LENGTHS[::-1])
    swapped = np.concatenate([X[1:2], X[:1], X[2:]])
    kinds = [RAGGED, changed, tf.sparse.from_dense(X), tf.sparse.from_dense(swapped)]
    data = [prepare(kind, Y, None, None, 4, None) for kind in kinds]
    assert len({one.fingerprint() for one in data}) == 4
    again = prepare(RAGGED + 0, Y, None, None, 4, None)
    assert again.fingerprint() == data[0].fingerprint()
    np.testing.assert_array_equal(again.probes(), data[0].probes())
    assert np.count_nonzero(data[0].probes() != data[1].probes()) > 20


def test_norms_of_sparse_inputs_are_those_of_the_dense_form():
    found = keras_osgd.gradient_norms(model(of_sparse), tf.sparse.from_dense(X), Y)
    expected = keras_osgd.gradient_norms(model(plain), X, Y)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
