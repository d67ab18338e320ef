"""Datasets in `fit`: read once, drawn from, and transformed anew at every visit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.data import from_dataset, indexed
from keras_osgd.sampling import RAIS
from tests.helpers import small
from tests.helpers.small import BATCH_SIZE, X, Y

EXAMPLES = tf.data.Dataset.from_tensor_slices((X, Y))
BATCHES = EXAMPLES.batch(BATCH_SIZE)
N = len(X)


class Sequence(keras.utils.PyDataset):
    """Batches of three, the last one smaller, that note when they are read."""

    def __init__(self):
        super().__init__()
        self.read = []

    def __len__(self):
        return 15

    def __getitem__(self, index):
        self.read.append(index)
        rows = slice(4 * index, 4 * index + 4)
        return X[rows], Y[rows]


def counted(read: list[int]) -> tf.data.Dataset:
    """Returns a dataset that notes how often it is begun."""

    def examples():
        read.append(1)
        yield from zip(X, Y, strict=True)

    specs = tf.TensorSpec([4], tf.float32), tf.TensorSpec([], tf.int64)
    return tf.data.Dataset.from_generator(examples, output_signature=specs)


def noisy(x, y, seed):
    """Augments an example or a batch by numbers of the seed alone."""
    return x + tf.random.stateless_normal(tf.shape(x), seed, stddev=0.1), y


def trained(data, **options):
    model = small.model()
    model.fit(data, **{"verbose": 0, "epochs": 5, **options})
    return small.flat(model)


@pytest.fixture(scope="module")
def as_arrays():
    """The weights after training on the arrays, as `trained` does on datasets."""
    model = small.model()
    small.fit(model, epochs=5)
    return small.flat(model)


# In `fit`


def test_a_dataset_of_batches_trains_as_its_arrays_do(as_arrays):
    np.testing.assert_array_equal(trained(Sequence()), as_arrays)


def test_batch_size_changes_no_batches_of_a_dataset_as_in_keras(as_arrays):
    np.testing.assert_array_equal(trained(BATCHES, batch_size=7), as_arrays)
    examples = indexed(BATCHES, verbose=False)  # those have none of their own
    assert not np.array_equal(trained(examples, batch_size=7), as_arrays)


@pytest.mark.parametrize(
    "source",
    [
        BATCHES,
        BATCHES.prefetch(2),
        EXAMPLES.batch(BATCH_SIZE, drop_remainder=True),
        EXAMPLES.filter(lambda x, y: True).batch(BATCH_SIZE),  # of unknown length
    ],
    ids=["batches", "prefetched", "of fixed size", "of unknown length"],
)
def test_batches_of_all_kinds_are_read_as_their_arrays(source):
    found, _ = from_dataset(source, None, verbose=False)
    assert found.batch_size == BATCH_SIZE
    for own, expected in zip(found.arrays[:2], (X, Y), strict=True):
        np.testing.assert_array_equal(own, expected)
        assert own.dtype == expected.dtype


def test_the_weights_of_a_dataset_and_of_classes_are_multiplied_beside_any_map():
    weights = np.array([0.5, 2.0, 1.0], "float32")[Y]
    product = {0: 0.5, 1: 6.0, 2: 0.5}
    examples = tf.data.Dataset.from_tensor_slices(({"a": X}, Y, weights))
    bare = examples.map(lambda x, y, w: (x, y)).batch(4)
    mapped = indexed(bare, map=lambda x, y: ({"a": x["a"] + 0.0}, y), verbose=False)
    given = [
        {"x": examples.batch(4), "class_weight": {0: 1.0, 1: 3.0, 2: 0.5}},
        {"x": mapped, "class_weight": product},
        {"x": {"a": X}, "y": Y, "class_weight": product, "batch_size": 4},
    ]
    models = []
    for data in given:
        keras.utils.set_random_seed(0)
        inputs = {"a": keras.Input((4,), name="a")}
        made = keras_osgd.Model(inputs, keras.layers.Dense(3)(inputs["a"]))
        made.compile("sgd", small.crossentropy(), sampling=RAIS(seed=0))
        made.fit(**data, verbose=0)
        models.append(made)
    norms = [made.sampling_state.table.last_norms() for made in models]
    for made, own in zip(models[:2], norms[:2], strict=True):
        np.testing.assert_array_equal(small.flat(made), small.flat(models[2]))
        np.testing.assert_array_equal(own, norms[2])


def test_the_same_dataset_is_read_once_however_often_it_is_trained_on():
    read = []
    dataset, model = counted(read).batch(4), small.model()
    model.fit(dataset, verbose=0)
    first = len(read)
    scores = model.sampling_state.table
    model.fit(dataset, verbose=0)
    assert len(read) == first
    assert model.sampling_state.table is scores
    model.fit(dataset.take(15), verbose=0)
    assert len(read) > first


def test_a_shuffled_dataset_is_taken_in_the_order_it_came_in():
    shuffled = EXAMPLES.shuffle(N, seed=1).batch(4)
    x, y, _ = from_dataset(shuffled, None, verbose=False)[0].arrays
    places = [int(np.flatnonzero((row == X).all(axis=1))[0]) for row in x]
    assert sorted(places) == list(range(N)) != places
    np.testing.assert_array_equal(y, Y[places])


def test_uniform_training_is_keras_own_on_the_same_examples():
    examples = indexed(BATCHES, verbose=False)
    ours, plain = small.model(sampling="uniform"), small.model(sampling="uniform")
    ours.fit(examples, epochs=3, shuffle=False, verbose=0)
    keras.Model.fit(plain, X, Y, batch_size=4, epochs=3, shuffle=False, verbose=0)
    np.testing.assert_array_equal(*map(small.flat, (ours, plain)))
    ours.fit(examples, verbose=0)  # shuffled
    assert not np.array_equal(*map(small.flat, (ours, plain)))


def test_a_plain_dataset_has_every_example_once_in_an_order_of_its_own():
    examples = indexed(EXAMPLES, verbose=False)
    batches = examples.dataset(7, seed=0)
    epochs = [np.concatenate([x for x, _ in batches]) for _ in range(2)]
    assert not np.array_equal(*epochs)
    for epoch in epochs:
        np.testing.assert_array_equal(*(a[np.lexsort(a.T)] for a in (epoch, X)))
    unshuffled = np.concatenate([x for x, _ in examples.dataset(7, shuffle=False)])
    np.testing.assert_array_equal(unshuffled, X)


def test_norms_and_checks_take_what_fit_takes():
    model = small.model()
    expected = keras_osgd.gradient_norms(model, X, Y)
    found = keras_osgd.gradient_norms(model, indexed(EXAMPLES, verbose=False))
    np.testing.assert_array_equal(found, expected)
    shifted = indexed(EXAMPLES, map=lambda x, y: (x + 1.0, y), verbose=False)
    np.testing.assert_allclose(
        keras_osgd.gradient_norms(model, shifted),
        keras_osgd.gradient_norms(model, X + 1.0, Y),
        rtol=1e-6,
    )
    assert keras_osgd.check(model, BATCHES, print_fn=None) == []
    wrong = tf.data.Dataset.from_tensor_slices((X, Y + 7)).batch(4)
    [finding] = keras_osgd.check(model, wrong, print_fn=None)
    assert "y has label" in finding.text
    [finding] = keras_osgd.check(model, BATCHES.repeat(), print_fn=None)
    assert "infinite" in finding.text


def test_statistics_are_recalibrated_on_what_the_map_makes():
    def model():
        layers = [keras.Input((4,)), keras.layers.BatchNormalization()]
        return keras.Sequential(layers)

    models = model(), model()
    doubled = indexed(EXAMPLES, map=lambda x, y: (2 * x, y), verbose=False)
    keras_osgd.recalibrate_batch_normalization(models[0], doubled)
    keras_osgd.recalibrate_batch_normalization(models[1], 2 * X)
    np.testing.assert_allclose(*map(small.flat, models), rtol=1e-6)


# At every visit


class Seen(keras.layers.Layer):
    """Notes what it is called with while training."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def call(self, inputs, training=False):
        if training and not tf.is_symbolic_tensor(inputs):
            self.rows.append(inputs.numpy())
        return inputs


def seeing():
    keras.utils.set_random_seed(0)
    layers = [keras.Input((4,)), Seen(), keras.layers.Dense(3)]
    model = keras_osgd.Sequential(layers)
    loss, sampling = small.crossentropy(), RAIS(seed=7)
    model.compile("sgd", loss, sampling=sampling, run_eagerly=True)
    return model


def seeds_as_x(x, y, seed):
    return tf.zeros_like(x) + tf.cast(seed[1], x.dtype), y


def test_each_visit_of_an_example_has_a_seed_of_its_own_across_fits():
    model = seeing()
    examples = indexed(EXAMPLES, map=seeds_as_x, verbose=False)
    for _ in range(2):
        model.fit(examples, batch_size=4, verbose=0)
    drawn = np.concatenate(model.layers[0].rows)[:, 0]
    np.testing.assert_array_equal(drawn, np.arange(len(drawn)))
    assert len(drawn) == 4 * int(model.optimizer.iterations)


def test_each_batch_has_a_seed_of_its_own():
    model = seeing()
    model.fit(indexed(BATCHES, map=seeds_as_x, verbose=False), epochs=4, verbose=0)
    drawn = np.stack(model.layers[0].rows)[:, :, 0]
    steps = np.arange(len(drawn))[:, None]
    np.testing.assert_array_equal(drawn, np.broadcast_to(4 * steps, drawn.shape))


@pytest.mark.parametrize(
    "map",
    [
        lambda x, y: (x * 2.0, y),
        lambda x, y: (tf.concat([x, x[:2]], axis=-1), tf.one_hot(y, 3)),
        lambda x, y: ({"a": x}, (y, x)),
        noisy,
    ],
)
def test_a_map_of_examples_is_that_of_each_alone(map):
    examples = indexed(EXAMPLES, map=map, verbose=False)
    seeds = tf.constant([[5, i] for i in range(6)], tf.int64)
    taken = tf.constant(X[:6]), tf.constant(Y[:6]), None
    x, y, weight = examples.transform(taken, seeds)
    assert weight is None
    for i in range(6):
        more = {"seed": seeds[i]} if map is noisy else {}
        alone = map(tf.constant(X[i]), tf.constant(Y[i]), **more)
        keras.tree.map_structure(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6),
            (x, y),
            alone,
        )


def test_a_map_with_an_if_on_tensors_is_converted_as_in_tf_data():
    def sign(x, y):
        if tf.reduce_sum(x) > 0:
            return x, y
        return -x, y

    examples = indexed(EXAMPLES, map=sign, verbose=False)
    taken = tf.constant(X), tf.constant(Y), None
    x, _, _ = examples.transform(taken, tf.zeros([N, 2], tf.int64))
    assert (x.numpy().sum(axis=1) >= 0).all()


# On disk


def test_a_cache_is_written_once_read_in_place_and_trained_on(tmp_path, as_arrays):
    read = []
    first = indexed(counted(read), cache=tmp_path, verbose=False)
    begun = len(read)
    again = indexed(counted(read), cache=tmp_path, verbose=False)
    assert len(read) == begun + 1  # its first examples, to see that it is the same
    assert isinstance(again.arrays[0], np.memmap)
    for examples in (first, again):
        np.testing.assert_array_equal(examples.arrays[0], X)
        np.testing.assert_array_equal(examples.arrays[1], Y)
        assert len(examples) == N and examples.batch_size is None  # that of `fit`
    cached = trained(again, batch_size=BATCH_SIZE)
    np.testing.assert_array_equal(cached, as_arrays)


def test_a_cache_of_many_batches_holds_all_of_them(tmp_path):
    for _ in range(2):  # written, and read
        examples = indexed(BATCHES, cache=tmp_path, verbose=False)
        np.testing.assert_array_equal(examples.arrays[0], X)
        np.testing.assert_array_equal(examples.arrays[1], Y)


def test_a_cache_that_was_not_finished_is_written_anew(tmp_path):
    indexed(EXAMPLES, cache=tmp_path, verbose=False)
    (tmp_path / "examples.json").unlink()  # it comes last
    (tmp_path / "column-0.raw").write_bytes(b"half")
    again = indexed(EXAMPLES, cache=tmp_path, verbose=False)
    np.testing.assert_array_equal(again.arrays[0], X)


def test_a_cache_of_other_columns_is_refused(tmp_path):
    indexed(EXAMPLES, cache=tmp_path, verbose=False)
    other = EXAMPLES.map(lambda x, y: (x[:3], y))
    with pytest.raises(ValueError, match=r"`cache` must hold.*\(4,\).*\(3,\).*Delete"):
        indexed(other, cache=tmp_path, verbose=False)


def test_strings_are_kept_in_memory_and_refused_on_disk(tmp_path):
    words = tf.data.Dataset.from_tensor_slices((["a", "bc"], [0, 1]))
    assert indexed(words, verbose=False).arrays[0].tolist() == [b"a", b"bc"]
    with pytest.raises(ValueError, match="must be numbers. Received: strings"):
        indexed(words, cache=tmp_path, verbose=False)


# Refused


def test_what_is_larger_than_the_limit_names_the_cache():
    with pytest.raises(ValueError, match="memory_limit=100 bytes.*cache=directory"):
        indexed(EXAMPLES, memory_limit=100, verbose=False)


class Endless(Sequence):
    """Has no number of batches."""

    num_batches = None


def test_a_py_dataset_without_end_is_refused():
    with pytest.raises(ValueError, match="must be finite.*None. Define `__len__`"):
        small.model().fit(Endless(), verbose=0)


def test_floats_are_read_as_floatx():
    wide = EXAMPLES.map(lambda x, y: (tf.cast(x, tf.float64), y))
    x = indexed(wide, verbose=False).arrays[0]
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, X)


class Augmenting(Sequence):
    """Draws at random whenever it is read."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + np.random.default_rng().normal(size=x.shape), y


def test_a_py_dataset_that_augments_is_not_frozen_in_silence():
    with pytest.raises(ValueError, match="4 of 4 examples.*random part.*map=augment"):
        small.model().fit(Augmenting(), verbose=0)


def test_random_examples_are_not_frozen_in_silence():
    generator = tf.random.Generator.from_seed(0)
    random = EXAMPLES.map(lambda x, y: (x + generator.normal([4]), y))
    with pytest.raises(ValueError, match="functions that draw.*map=augment"):
        small.model().fit(random.batch(4), verbose=0)


def test_examples_that_a_python_function_draws_are_found_when_they_are_read():
    def drawn(x):
        return (x + np.random.default_rng().normal(size=4)).astype("float32")

    random = EXAMPLES.map(
        lambda x, y: (tf.ensure_shape(tf.numpy_function(drawn, [x], x.dtype), [4]), y)
    )
    with pytest.raises(ValueError, match="60 of 60 examples.*map=augment"):
        indexed(random, verbose=False)
    with pytest.raises(ValueError, match="4 of 4 examples.*map=augment"):
        small.model().fit(random.batch(4), verbose=0)


@pytest.mark.parametrize(
    ("dataset", "text"),
    [
        (EXAMPLES.repeat(), "is infinite.*`dataset.take"),
        (EXAMPLES.take(0), "has 0 examples"),
        (EXAMPLES.batch(20, drop_remainder=True), "Pass `batched=True`"),
    ],
)
def test_datasets_that_cannot_be_read_once_are_refused(dataset, text):
    with pytest.raises(ValueError, match=text):
        indexed(dataset, verbose=False)


def test_examples_of_several_shapes_are_refused():
    def examples():
        yield np.zeros([1, 3], "float32"), np.zeros([1])
        yield np.zeros([1, 4], "float32"), np.zeros([1])

    specs = tf.TensorSpec([None, None], tf.float32), tf.TensorSpec([None], tf.float64)
    dataset = tf.data.Dataset.from_generator(examples, output_signature=specs)
    with pytest.raises(ValueError, match=r"float32\[3\].*then float32\[4\].*Pad"):
        indexed(dataset, verbose=False)


def test_single_examples_in_fit_name_batch():
    with pytest.raises(ValueError, match=r"must consist of batches.*`\.batch"):
        small.model().fit(EXAMPLES, verbose=0)


@pytest.mark.parametrize("data", [BATCHES, indexed(BATCHES, verbose=False)])
def test_arguments_that_keras_refuses_with_a_dataset_are_refused(data):
    for name, value in (("y", Y), ("sample_weight", np.ones(N))):
        with pytest.raises(ValueError, match=f"`{name}` must not be given"):
            small.model().fit(data, verbose=0, **{name: value})
    with pytest.raises(ValueError, match="must be of arrays.*`validation_data`"):
        small.model().fit(data, verbose=0, validation_split=0.5)


def test_a_map_that_returns_something_else_is_refused():
    examples = indexed(EXAMPLES, map=lambda x, y: x, verbose=False)
    with pytest.raises(ValueError, match=r"must return \(x, y\)"):
        small.model().fit(examples, batch_size=4, verbose=0)


def test_a_dataset_without_targets_is_refused():
    with pytest.raises(ValueError, match="`y` must be given"):
        small.model().fit(tf.data.Dataset.from_tensor_slices(X).batch(4), verbose=0)
