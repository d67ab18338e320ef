import gc
import hashlib
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_osgd.data import rows
from keras_osgd.data.training_data import prepare, split
from keras_osgd.sampling import RAIS
from tests.helpers import small

X = np.arange(40.0).reshape(20, 2)
Y = np.arange(20) % 3


def prepared(x=X, y=Y, sample_weight=None, class_weight=None, batch=None, steps=None):
    return prepare(x, y, sample_weight, class_weight, batch, steps)


class Seen(keras.Model):
    """Keeps what Keras' own `fit` and `evaluate` pass on, in order."""

    def __init__(self):
        super().__init__()
        self.trained, self.tested = [], []
        self.compile(run_eagerly=True)

    def call(self, x):
        return x

    def train_step(self, data):
        self.trained.append(keras.utils.unpack_x_y_sample_weight(data))
        return {"loss": tf.zeros([])}

    def test_step(self, data):
        self.tested.append(keras.utils.unpack_x_y_sample_weight(data))
        return {"loss": tf.zeros([])}


def by_keras(x, y, **options):
    """Returns (x, y, sample_weight) as trained on, and as validated on, by Keras."""
    model = Seen()
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0, **options)

    def joined(batches):
        parts = zip(*batches, strict=True)
        return [None if p[0] is None else np.concatenate(p) for p in parts]

    return joined(model.trained), joined(model.tested)


# Splitting


@pytest.mark.parametrize(
    ("share", "weights"),
    [(0.05, None), (0.27, np.arange(20.0)), (0.33, None), (0.95, np.arange(20.0))],
)
def test_the_split_is_at_the_row_of_keras(share, weights):
    mine = split(X, Y, weights, share)
    keras_rows = by_keras(X, Y, sample_weight=weights, validation_split=share)
    for own, theirs in zip(mine, keras_rows, strict=True):
        for a, b in zip(own, theirs, strict=False):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype
    assert len(mine[1]) == (2 if weights is None else 3)


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_a_split_that_leaves_nothing_on_one_side_raises_as_in_keras(share):
    n = 20 if share > 0.5 else 1
    with pytest.raises(ValueError, match="not sufficient to split"):
        by_keras(X[:n], Y[:n], validation_split=share)
    with pytest.raises(ValueError, match=rf"split={share} with {n} examples. Change"):
        split(X[:n], Y[:n], None, share)


def test_nested_data_are_split_leaf_by_leaf():
    (x, y, _), (x_held_out, y_held_out) = split(
        {"a": X, "b": [X + 1]}, (Y, None), None, 0.25
    )
    np.testing.assert_array_equal(x["b"][0], X[:15] + 1)
    np.testing.assert_array_equal(x_held_out["a"], X[15:])
    np.testing.assert_array_equal(y_held_out[0], Y[15:])
    assert y[1] is y_held_out[1] is None


@pytest.mark.long
def test_large_parts_held_out_are_validated_on_as_small_ones(monkeypatch):
    figures = []
    for limit in (2**28, 100):
        monkeypatch.setattr(rows, "_IN_PLACE_BYTES", limit)
        model = small.model(sampling=RAIS(seed=0), metrics=["accuracy"])
        weights = np.linspace(0.5, 1.5, 60)
        options = {"validation_split": 0.35, "validation_batch_size": 8}
        history = small.fit(model, sample_weight=weights, **options).history
        figures.append([history["val_loss"], history["val_accuracy"]])
    np.testing.assert_array_equal(*figures)


# Conversion


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "uint8", "int64", "bool"]
)
def test_arrays_have_the_types_and_values_that_keras_gives_them(dtype):
    x = (X % 2).astype(dtype)
    mine, (theirs, _) = prepared(x).arrays, by_keras(x, Y)
    for a, b in zip(mine[:2], theirs[:2], strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_tensors_and_bfloat16_become_arrays_of_floatx():
    for tensor in (tf.constant(X), tf.Variable(X), tf.cast(X, tf.bfloat16)):
        array = prepared(tensor).arrays[0]
        assert type(array) is np.ndarray and array.dtype == np.float32
        np.testing.assert_array_equal(array, X)


def test_an_array_of_the_right_type_is_not_copied():
    x = X.astype("float32")
    assert prepared(x).arrays[0] is x


def test_lists_of_arrays_become_tuples_which_tf_data_does_not_stack():
    x, y, weights = prepared([X, [X, X]], [Y, Y], [None, X[:, 0]]).arrays
    assert type(x) is type(x[1]) is type(y) is type(weights) is tuple
    assert weights[0] is None


@pytest.mark.parametrize(
    ("batch", "steps", "expected"), [(7, None, 7), (None, 3, 7), (None, None, 32)]
)
def test_the_batch_size_is_that_of_keras(batch, steps, expected):
    assert prepared(batch=batch, steps=steps).batch_size == expected


def test_the_first_rows_are_tensors_in_the_same_nesting():
    x, y, weights = prepared({"a": X}, Y, np.ones(20)).batch(slice(2))
    assert tf.is_tensor(x["a"]) and x["a"].dtype == tf.float32
    np.testing.assert_array_equal(y, Y[:2])
    assert weights.shape == [2]


# Refusals


@pytest.mark.parametrize("name", ["x", "y", "sample_weight"])
def test_a_list_of_numbers_is_no_array(name):
    with pytest.raises(ValueError, match=f"`{name}` must be arrays. Received: list"):
        prepared(**{name: [1.0] * 20})


def test_missing_x_or_y_raises():
    with pytest.raises(ValueError, match="`x` must be arrays. Received: NoneType"):
        prepared(x=None)
    with pytest.raises(ValueError, match="`y` must be given.*its own loss"):
        prepared(y=None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": (X, X[:7])}, "x has 20 examples but x has 7"),
        ({"y": Y[:7]}, "x has 20 examples but y has 7"),
        ({"sample_weight": X[:7, 0]}, "x has 20 examples but sample_weight has 7"),
        ({"x": np.float32(3.0)}, "x has 0 examples but y has 20"),
    ],
)
def test_lengths_that_differ_raise_with_both_of_them(arguments, message):
    with pytest.raises(ValueError, match=message):
        prepared(**arguments)


@pytest.mark.parametrize(
    ("y", "weights"),
    [
        (Y, (X[:, 0], X[:, 0])),
        ((Y, Y), (X[:, 0],)),
        ({"a": Y}, {"b": X[:, 0]}),
    ],
)
def test_weights_nested_in_another_way_than_y_raise(y, weights):
    with pytest.raises(
        ValueError, match="`sample_weight` must be one array, or nested"
    ):
        prepared(X, y, weights)


# Class weights


TABLE = {0: 0.5, 1: 4.0, 2: 3.0}


@pytest.mark.parametrize(
    "y",
    [
        Y,
        Y[:, np.newaxis],
        Y.astype("float32"),
        Y.astype("uint8"),
        np.eye(3)[Y],
        np.eye(3, dtype=bool)[Y],
        np.eye(3)[Y] * 0.8 + 0.1,  # smoothed
        Y == 1,
        np.where(Y > 1, Y, Y + 0.7),  # rounded by Keras
    ],
)
def test_class_weights_are_those_of_keras(y):
    mine = prepared(y=y, class_weight=TABLE).arrays[2]
    (*_, theirs), _ = by_keras(X, y, class_weight=TABLE)
    np.testing.assert_array_equal(mine, theirs)
    assert mine.dtype == theirs.dtype


def test_a_class_without_a_weight_has_that_of_keras_with_a_notice():
    table = {1: 4.0}
    with pytest.warns(UserWarning, match=r"no entry for \[0, 2\]: such.*as in Keras"):
        mine = prepared(class_weight=table).arrays[2]
    (*_, theirs), _ = by_keras(X, Y, class_weight=table)
    np.testing.assert_array_equal(mine, theirs)


MASKS = np.random.default_rng(3).integers(0, 3, [20, 5, 4])
PADDED = np.eye(3)[MASKS] * (MASKS > 0)[..., np.newaxis]  # rows of zeros: class 0
SPARSE = keras.losses.SparseCategoricalCrossentropy()


@pytest.mark.parametrize(
    ("y", "loss", "labels"),
    [
        (MASKS, SPARSE, MASKS),
        (MASKS, None, MASKS),
        (MASKS.astype("float32"), "binary_crossentropy", MASKS),
        (MASKS[..., np.newaxis], None, MASKS),
        (MASKS[:, 0], {"out": "sparse_categorical_crossentropy"}, MASKS[:, 0]),
        (MASKS[:, 0], None, MASKS[:, 0]),
        (np.eye(3, dtype=int)[Y], [keras.losses.sparse_categorical_crossentropy], "y"),
        (np.eye(3, dtype=int)[MASKS], None, MASKS),
        (np.eye(3)[MASKS] * 0.7 + 0.1, None, MASKS),
        (PADDED, keras.losses.CategoricalCrossentropy(), MASKS),
    ],
)
def test_class_indices_have_one_weight_each_whatever_their_axes(y, loss, labels):
    labels = y if isinstance(labels, str) else labels
    mine = prepare(X, y, None, TABLE, None, None, loss).arrays[2]
    np.testing.assert_array_equal(mine, np.vectorize(TABLE.get)(labels))


@pytest.mark.parametrize("loss", [None, "binary_crossentropy"])
@pytest.mark.parametrize("dtype", [bool, "int32", "float32"])
def test_of_several_labels_in_a_row_the_first_counts_as_in_keras(dtype, loss):
    y = (np.random.default_rng(4).uniform(size=[20, 3]) < 0.6).astype(dtype)
    mine = prepare(X, y, None, TABLE, None, None, loss).arrays[2]
    (*_, theirs), _ = by_keras(X, y, class_weight=TABLE)
    np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("table", [[0.5, 4.0, 3.0], np.ones(3)])
def test_class_weights_that_are_no_dict_are_refused_with_the_remedy(table):
    with pytest.raises(ValueError, match=r"must be a dict.*Received: (list|ndarray)\."):
        prepared(class_weight=table)
    (*_, weights) = prepared(class_weight=dict(enumerate(table))).arrays
    np.testing.assert_array_equal(weights, np.asarray(table)[Y])


def test_one_warning_names_keys_that_are_no_class_and_the_classes():
    table = {0: 1.0, "1": 2.0, 3: 1.0, 2: 1.0}
    messages = small.warned(prepared, class_weight=table)
    assert messages == [
        "`class_weight` has no entry for [1]: such examples get weight 1, as in Keras. "
        "`class_weight` has entries for ['1', 3], which have no effect: y has only the "
        "classes [0, 1, 2]."
    ]


@pytest.mark.parametrize("shape", [(20,), (20, 1), (20, 5)])
def test_class_weights_multiply_the_sample_weights_of_any_shape(shape):
    own = np.random.default_rng(0).uniform(size=shape)
    both = prepared(sample_weight=own, class_weight=TABLE).arrays[2]
    expected = own * np.array([TABLE[label] for label in Y]).reshape(
        20, *[1] * (len(shape) - 1)
    )
    np.testing.assert_allclose(both, expected, rtol=1e-6)
    assert both.shape == shape


def test_class_weights_of_each_step_of_a_sequence_multiply_weights_of_examples():
    steps = np.stack([Y, (Y + 1) % 3], axis=1)
    both = prepared(
        y=np.eye(3)[steps], sample_weight=np.arange(20), class_weight=TABLE
    ).arrays[2]
    for i in range(20):
        expected = [i * TABLE[label] for label in steps[i]]
        np.testing.assert_allclose(both[i], expected)


def test_class_weights_for_several_outputs_raise_as_in_keras():
    with pytest.raises(ValueError, match="`class_weight` must go with a single output"):
        prepared(y=(Y, Y), class_weight=TABLE)


def test_a_negative_class_weight_raises():
    with pytest.raises(ValueError, match=r"must be finite and not negative.*\[1\]=-4"):
        prepared(class_weight={0: 1, 1: -4.0, 2: 1})


# Classes


@pytest.mark.parametrize(
    "y",
    [
        Y,
        Y[:, np.newaxis],
        Y.astype("uint8"),
        Y - 7,
        np.eye(3)[Y],
        np.eye(3, dtype="uint8")[Y],
        np.eye(3, dtype=bool)[Y],
        (Y,),
    ],
)
def test_classes_are_numbered_from_zero(y):
    np.testing.assert_array_equal(prepared(y=y).classes(), Y)


@pytest.mark.parametrize("dtype", ["float32", "bool", "int64"])
def test_zeros_and_ones_of_any_type_are_two_classes(dtype):
    for y in (Y == 1, (Y == 1)[:, np.newaxis]):
        classes = prepared(y=y.astype(dtype)).classes()
        np.testing.assert_array_equal(classes, (Y == 1).astype(int))


@pytest.mark.parametrize(
    "y",
    [
        np.linspace(0, 1, 20),  # regression
        Y.astype("float32"),
        np.eye(3)[Y] * 0.8,  # no one-hot rows
        np.eye(3)[Y] * 0.25 + 0.25,  # smoothed
        np.ones((20, 3)),  # several labels
        np.stack([Y, Y], axis=1),  # sequences
        (np.arange(20) * 100),  # far more classes than examples
        (Y, Y),
        {"a": Y, "b": Y},
    ],
)
def test_other_targets_have_no_classes(y):
    assert prepared(y=y).classes() is None


# Fingerprint


def test_the_fingerprint_is_that_of_the_same_data_in_another_process():
    words = np.array([f"word {i}" for i in range(20)], object)
    same = [np.array([f"word {i}" for i in range(20)], object) for _ in range(2)]
    for x in (X, {"a": X, "b": X.astype("int8")}, words):
        assert prepared(x).fingerprint() == prepared(x).fingerprint()
    assert prepared(same[0]).fingerprint() == prepared(same[1]).fingerprint()
    # By hand, so that it changes neither with the process nor with the version.
    digest = hashlib.sha256(b"3")
    probes = np.linspace(0, 2, 64).astype(int)
    for array in (X[:3].astype("float32"), Y[:3]):
        digest.update(f"{array.shape[1:]}{array.dtype}".encode())
        digest.update(array[probes].tobytes())
    assert prepared(X[:3], Y[:3]).fingerprint() == digest.hexdigest()


def test_the_fingerprint_changes_with_n_type_shape_and_rows():
    x, y = np.zeros((100, 4), "float32"), np.zeros(100, int)
    touched = x.copy()
    touched[99, 3] = 1e-30
    others = [
        (x[:99], y[:99], None),
        (x.astype(int), y, None),
        (x.reshape(100, 2, 2), y, None),
        (touched, y, None),
        (x, y.astype("int32"), None),
        (x, y, np.zeros(100)),
        (np.array(["a"] * 100, object), y, None),
        (np.array(["b"] * 100, object), y, None),
    ]
    found = [prepared(*data).fingerprint() for data in [(x, y, None), *others]]
    assert len(set(found)) == len(found)


def test_the_fingerprint_changes_when_rows_change_places():
    x = np.random.default_rng(0).normal(size=(1000, 2))
    y = np.zeros(1000)
    order = np.random.default_rng(1).permutation(1000)
    assert prepared(x, y).fingerprint() != prepared(x[order], y).fingerprint()


# What may be taken for weights

IMAGES = np.random.default_rng(0).uniform(size=(6, 4, 4, 3)).astype("float32")
VECTORS = np.random.default_rng(1).normal(size=(6, 4)).astype("float32")


@pytest.mark.parametrize(
    ("x", "y", "third"),
    [
        (IMAGES, IMAGES, IMAGES[::-1].copy()),
        (IMAGES, np.arange(6), IMAGES[::-1].copy()),
        (VECTORS, VECTORS, VECTORS[::-1].copy()),
        (VECTORS**2, np.arange(6), VECTORS[::-1].copy() ** 2),
    ],
)
def test_the_third_of_a_triplet_is_not_taken_for_weights(x, y, third):
    with pytest.raises(ValueError, match="third part.*as x is.*positive, negative"):
        prepared(x, y, third)


@pytest.mark.parametrize(
    ("x", "y", "weights"),
    [
        (np.ones((6, 4), int), np.ones((6, 4), int), np.ones((6, 4))),  # of tokens
        (IMAGES[..., :1], IMAGES[..., :1], IMAGES[..., :1]),  # of pixels
        (VECTORS[:, :1], VECTORS[:, 0], np.ones((6, 1))),
    ],
)
def test_weights_that_have_the_shape_of_x_are_taken(x, y, weights):
    np.testing.assert_array_equal(prepared(x, y, weights).arrays[2], weights)


def test_data_read_in_place_are_kept_by_the_dataset_alone():
    x = np.arange(6.0).reshape(3, 2)

    def made(x):
        taken = rows.Rows((x, None), in_place=True)
        indices = tf.data.Dataset.range(3).batch(2)
        return indices.map(tf.autograph.experimental.do_not_convert(taken))

    def read(dataset):
        return np.concatenate([batch[0] for batch in dataset])

    dataset, kept = made(x), weakref.ref(x)
    gc.collect()
    np.testing.assert_array_equal(read(dataset), x)
    del x, dataset
    gc.collect()
    assert kept() is None
