"""Large data are read where they are: no step of `fit` makes a copy of them."""

import contextlib
import pathlib

import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

import keras_osgd
from keras_osgd.data.training_data import prepare

_STATUS = pathlib.Path("/proc/self/status")
ROWS, WIDTH = 20_000, 4096  # 328 MB as float32, above the limit of what is copied
SIZE = 4 * ROWS * WIDTH
Y = np.arange(ROWS) % 3

pytestmark = pytest.mark.skipif(
    not pathlib.Path("/proc/self/clear_refs").exists(), reason="measured through /proc"
)


def memory(name):
    (line,) = [t for t in _STATUS.read_text().splitlines() if t.startswith(name + ":")]
    return 1024 * int(line.split()[1])


@contextlib.contextmanager
def at_most(share):
    """Raises if the process's memory grows by more, at its peak, within the block."""
    before = memory("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    yield
    grown = memory("VmHWM") - before
    assert grown < share * SIZE, f"{grown / SIZE:.2f} of the data"


class Stop(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = batch >= 8


def fit(x, **options):
    inputs = keras.tree.map_structure(
        lambda leaf: keras.Input((leaf.shape[1],), dtype=leaf.dtype.name), x
    )
    flat = keras.tree.flatten(inputs)
    joined = keras.layers.Concatenate()(flat) if len(flat) > 1 else flat[0]
    model = keras_osgd.Model(inputs, keras.layers.Dense(3)(joined))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    y = Y[: len(keras.tree.flatten(x)[0])]
    model.fit(x, y, batch_size=16, callbacks=[Stop()], verbose=0, **options)


def untouched(*shape, dtype="float32"):
    """Returns zeros that take no memory until somebody writes, or copies them."""
    return np.zeros(shape, dtype)


@pytest.fixture(scope="module", autouse=True)
def warm():
    fit(untouched(160, WIDTH))  # what TensorFlow takes once


def in_a_file(folder):
    return np.memmap(folder / "x", "float32", "w+", shape=(ROWS, WIDTH))


@pytest.mark.long
@pytest.mark.parametrize(
    "x",
    [
        lambda _: untouched(ROWS, WIDTH),
        lambda _: untouched(ROWS, 4 * WIDTH, dtype="uint8"),
        lambda _: (untouched(ROWS, WIDTH // 2), untouched(ROWS, WIDTH // 2)),
        in_a_file,
    ],
    ids=["floats", "bytes", "two inputs", "a file"],
)
def test_training_on_large_arrays_makes_no_copy(x, tmp_path):
    given = x(tmp_path)
    with at_most(0.25):
        fit(given)


def test_training_on_a_large_tensor_makes_no_copy():
    tensor = tf.zeros([ROWS, WIDTH])
    with at_most(0.25):
        fit(tensor)


def test_what_is_held_out_is_not_copied_either():
    x = untouched(ROWS, WIDTH)
    with at_most(0.25):
        fit(x, validation_split=0.9, validation_steps=1)


def test_looking_for_classes_takes_no_memory_beside_the_targets():
    data = prepare(Y, untouched(ROWS, WIDTH), None, None, 16, None)
    with at_most(0.1):
        assert data.classes() is None


def test_looking_at_large_weights_takes_no_memory_beside_them():
    with at_most(0.1):
        prepare(Y, Y, untouched(ROWS, WIDTH), None, 16, None)


def test_large_sparse_columns_are_not_copied():
    values, rows = untouched(SIZE // 4), np.arange(ROWS + 1) * (SIZE // 4 // ROWS)
    columns = untouched(SIZE // 4, dtype="int32")
    matrix = scipy.sparse.csr_array((values, columns, rows), shape=(ROWS, 4))
    matrix.has_sorted_indices = True
    with at_most(0.1):
        data = prepare(matrix, Y, None, None, 16, None)
        assert data.arrays[0].take(np.array([3, 1]))[1].shape == (2 * WIDTH,)
