"""Records that are read when they are drawn: files, sources and map-style datasets."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.callbacks import Checkpoint
from keras_osgd.data import indexed, record_columns, records
from keras_osgd.data.record_columns import Records
from tests.helpers import small
from tests.helpers.small import BATCH_SIZE, X, Y

N = len(X)


class Dicts:
    """A map-style dataset as Hugging Face's: dicts by number, or many at once."""

    def __init__(self, together=True):
        self.read = []
        if together:
            self.__getitems__ = self._many

    def __len__(self):
        return N

    def __getitem__(self, i):
        self.read.append(int(i))
        return {"image": X[i], "label": int(Y[i])}

    def _many(self, rows):
        return [self[i] for i in rows]


def parse(record):
    return record["image"], record["label"]


@pytest.fixture(scope="module")
def expected():
    model = small.model()
    small.fit(model, epochs=5)
    return small.flat(model)


def trained(data):
    model = small.model()
    model.fit(data, batch_size=BATCH_SIZE, epochs=5, verbose=0)
    return small.flat(model)


def test_a_map_style_dataset_trains_as_its_arrays_do(expected):
    data = records(Dicts(), parse, verbose=False)
    np.testing.assert_array_equal(trained(data), expected)


def assert_read(data):
    x, y, weights = data.arrays
    np.testing.assert_array_equal(x[np.arange(N)], X)
    np.testing.assert_array_equal(y, Y)
    assert y.dtype == Y.dtype and weights is None


@pytest.mark.skipif(sys.platform != "linux", reason="array_record is for Linux")
def test_array_records_on_disk_are_read_as_their_arrays(tmp_path):
    from array_record.python import array_record_data_source, array_record_module

    path = str(tmp_path / "examples.array_record")
    writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
    for x, y in zip(X, Y, strict=True):
        writer.write(x.tobytes() + np.int64(y).tobytes())
    writer.close()

    def decode(record):
        return np.frombuffer(record[:16], "float32"), np.frombuffer(record[16:], int)[0]

    with array_record_data_source.ArrayRecordDataSource(path) as source:
        assert_read(records(source, decode, verbose=False))


def test_a_folder_of_files_is_read_as_its_arrays(tmp_path):
    paths = [tmp_path / f"{i}.npy" for i in range(N)]
    for path, x in zip(paths, X, strict=True):
        np.save(path, x)
    assert_read(records(paths, lambda path: (np.load(path), 0), labels=Y))


def test_with_labels_given_nothing_but_the_first_record_is_read():
    source = Dicts()
    data = records(source, parse, labels=Y)
    assert source.read == [0]
    np.testing.assert_array_equal(data.arrays[1], Y)


def test_a_batch_reads_its_records_once_whatever_the_leaves_of_x():
    source = Dicts(together=False)

    def two(record):
        return {"a": record["image"][:2], "b": record["image"][2:]}, record["label"]

    data = records(source, two, labels=Y)
    source.read.clear()
    batch = next(iter(data.dataset(10, shuffle=False)))
    np.testing.assert_array_equal(batch[0]["a"], X[:10, :2])
    np.testing.assert_array_equal(batch[0]["b"], X[:10, 2:])
    # The dataset reads ahead: each record once, for all that.
    assert len(source.read) == len(set(source.read))


def test_columns_are_indexed_as_arrays_are():
    column, _ = Records(Dicts(), parse).columns()
    assert (len(column), column.ndim, column.dtype) == (N, 2, np.float32)
    assert column.nbytes == X.nbytes
    for rows in (3, -1, slice(2, 9, 3), np.array([5, 5, 0]), np.arange(N) % 7 == 0):
        np.testing.assert_array_equal(column[rows], X[rows])
    np.testing.assert_array_equal(np.asarray(column), X)


@pytest.mark.long
def test_a_run_with_augmentation_is_gone_on_with_bit_for_bit(tmp_path, expected):
    def noisy(x, y, seed):
        return x + tf.random.stateless_normal(tf.shape(x), seed, stddev=0.1), y

    dataset = tf.data.Dataset.from_tensor_slices((X, Y))
    whole = trained(indexed(dataset, map=noisy, verbose=False))
    data = records(Dicts(), parse, noisy, verbose=False)
    for epochs in (2, 5):
        model = small.model()
        callbacks = [Checkpoint(tmp_path)]
        options = {"batch_size": BATCH_SIZE, "verbose": 0, "callbacks": callbacks}
        model.fit(data, epochs=epochs, **options)
    np.testing.assert_array_equal(small.flat(model), whole)
    assert not np.array_equal(whole, expected)


def test_weights_travel_with_their_records():
    weights = np.linspace(0.5, 1.5, N).astype("float32")
    numbered = [(x, y, w) for x, y, w in zip(X, Y, weights, strict=True)]
    data = records(numbered, verbose=False)
    np.testing.assert_array_equal(data.arrays[2], weights)
    assert data.arrays[2].dtype == np.float32
    models = small.model(), small.model()
    models[0].fit(data, batch_size=BATCH_SIZE, verbose=0)
    small.fit(models[1], sample_weight=weights)
    np.testing.assert_array_equal(*map(small.flat, models))


def test_norms_of_records_are_those_of_arrays():
    model = small.model()
    data = records(Dicts(), parse, verbose=False)
    found = keras_osgd.gradient_norms(model, data)
    np.testing.assert_array_equal(found, keras_osgd.gradient_norms(model, X, Y))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ([], "has 0 examples"),
        (X, r"must be \(x, y\).*Received: ndarray.*Pass `parse`"),
        ([{"x": 1}], r"must be \(x, y\).*Received: dict.*Pass `parse`"),
        ([(np.zeros(2), 0), (np.zeros(3), 0)], r"\(2,\), then \(3,\) in record 1"),
        ([(np.zeros(2), 0), (np.zeros(2), [0])], "nested in one way.*Let `parse`"),
        ([({"a": 0}, 0), ({"b": 0}, 0)], "nested in one way.*Let `parse`"),
    ],
)
def test_what_is_no_record_of_one_shape_is_refused(source, text):
    with pytest.raises(ValueError, match=text):
        np.asarray(records(source, verbose=False).arrays[0])


class Endless(Dicts):
    """As grain's `MapDataset.repeat()`."""

    def __len__(self):
        return sys.maxsize


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            iter([(X[0], 0)]),
            "`__len__` and `__getitem__`. Received: list_iterator.*grain",
        ),
        (Endless(), r"must be finite. Received.*Leave `\.repeat\(\)` out"),
    ],
)
def test_what_cannot_be_read_by_number_is_refused(source, text):
    with pytest.raises(ValueError, match=text):
        records(source, parse, verbose=False)


def test_all_records_are_read_in_order_whatever_is_read_at_once(monkeypatch):
    monkeypatch.setattr(record_columns, "_AT_ONCE", 7)
    for together in (True, False):
        column = Records(Dicts(together), parse).columns()[0]
        np.testing.assert_array_equal(np.asarray(column), X)


class Failing(Dicts):
    """Raises as CPython does, whenever it is read but the last of so many times."""

    def __init__(self, tries):
        super().__init__(together=False)
        self.left = dict.fromkeys(range(N), tries - 1)

    def __getitem__(self, i):
        self.left[int(i)] -= 1
        if self.left[int(i)] >= 0:
            raise SystemError("AST constructor recursion depth mismatch")
        return super().__getitem__(i)


def test_a_record_is_read_again_where_the_interpreter_fails():
    source, parsed = Failing(3), set()

    def failing(record):
        if record["image"].tobytes() not in parsed:
            parsed.add(record["image"].tobytes())
            raise SystemError("AST constructor recursion depth mismatch")
        return parse(record)

    column = Records(source, failing).columns()[0]
    np.testing.assert_array_equal(np.asarray(column), X)
    with pytest.raises(SystemError, match="recursion depth"):
        Records(Failing(9), parse)


def test_records_are_read_beside_training_and_no_more_than_is_drawn():
    source = Dicts()
    data = records(source, parse, labels=Y)
    model = small.model()
    source.read.clear()
    seen = []
    note = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: source.read.clear(),
        on_train_batch_end=lambda batch, logs: seen.append(len(source.read)),
    )
    model.fit(data, batch_size=4, callbacks=[note], verbose=0)
    steps = 1 + np.arange(len(seen))
    # Three batches ahead, and one for Keras to look at.
    assert (np.array(seen) <= 4 * (steps + 4)).all()
