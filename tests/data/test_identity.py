"""By what data are known again: which rows changed, and what is never read for it."""

import threading

import numpy as np
import pytest

from keras_osgd.data import records
from keras_osgd.data.identity import Identity, in_memory
from keras_osgd.data.training_data import prepare
from tests.helpers.small import X, Y

W = np.linspace(1.0, 2.0, 60)


def identity(x=X, y=Y, weights=None):
    return prepare(x, y, weights, None, 4, None).identity()


def with_rows(array, rows, values):
    array = array.copy()
    array[rows] = values
    return array


@pytest.mark.parametrize(
    ("before", "now", "rows"),
    [
        ({}, {"x": X.copy()}, []),
        ({}, {"y": with_rows(Y, [3, 58], 7)}, [3, 58]),
        ({}, {"x": with_rows(X, (31, 2), -0.0)}, [31]),
        ({"x": with_rows(X, 0, 0.0)}, {"x": with_rows(X, 0, -0.0)}, [0]),
        ({"weights": W}, {"weights": with_rows(W, 9, 3.0)}, [9]),
        ({}, {"y": with_rows(Y, slice(0, 30), 7)}, list(range(30))),  # half
        ({}, {"y": with_rows(Y, slice(0, 31), 7)}, None),
        ({}, {"x": X[:59], "y": Y[:59]}, None),
        ({}, {"x": X.reshape(60, 2, 2)}, None),
        ({}, {"weights": W}, None),
        ({}, {"x": {"a": X, "b": X}}, None),
        ({"x": X.astype("int64")}, {"x": X.astype("int64").view("uint64")}, None),
    ],
)
def test_rows_that_changed_are_found_unless_they_are_more_than_half(before, now, rows):
    changed = identity(**before).changed(identity(**now))
    assert rows is None and changed is None or changed.tolist() == rows


def test_rows_around_the_probes_of_the_fingerprint_do_not_pass():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2000, 2)), rng.integers(0, 9, 2000)
    others = np.delete(np.arange(2000), np.linspace(0, 1999, 64).astype(int))
    order = np.arange(2000)
    order[others] = rng.permutation(others)
    before, now = identity(x, y), identity(x[order], y[order])
    assert before.fingerprint == now.fingerprint
    assert before.changed(now) is None
    assert len(before.differing(now)) > 1900


def test_an_identity_is_the_same_after_it_was_saved():
    saved = Identity.of(identity().state_dict())
    assert saved.changed(identity()).tolist() == []
    assert saved.changed(identity(y=with_rows(Y, 5, 7))).tolist() == [5]


def test_data_of_early_files_are_known_by_their_fingerprint():
    early = Identity.of({"fingerprint": identity().state_dict()["fingerprint"]})
    assert early.changed(identity()).tolist() == []
    assert early.changed(identity(y=with_rows(Y, 0, 7))) is None  # a probe
    assert early.differing(identity()) is None


def test_columns_on_a_disk_are_known_by_their_probes_and_by_all_of_y(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(500, 2)).astype("float32"), rng.integers(0, 9, 500)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="c")
    known = identity(mapped, y)
    assert known.changed(identity(mapped, with_rows(y, 7, 99))).tolist() == [7]
    assert known.changed(identity(x, y)).tolist() == []  # now in memory
    mapped[1] += 1.0  # no probe
    assert known.changed(identity(mapped, y)).tolist() == []
    mapped[0] += 1.0
    assert known.changed(identity(mapped, y)) is None


def test_records_are_read_for_the_probes_alone():
    read = []

    class Source:
        def __len__(self):
            return 500

        def __getitem__(self, row):
            read.append(int(row))
            return np.full(2, row, "float32"), row % 3

    data = prepare(records(Source(), labels=np.arange(500) % 3), None, None, None, 4, 0)
    read.clear()
    found = data.identity()
    assert len(found.hashes) == 500
    assert set(read) == set(np.linspace(0, 499, 64).astype(int).tolist())


def test_what_is_in_memory_is_told_from_what_is_mapped(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    views = [mapped, np.asarray(mapped), np.asarray(mapped)[1:].T, memoryview(mapped)]
    assert not any(in_memory(np.asarray(view)) for view in views)
    assert all(in_memory(array) for array in (X, X[1:], np.array(mapped)))
    assert in_memory(np.frombuffer(X.tobytes(), "float32"))


def test_hashes_are_made_in_a_thread_and_awaited():
    go = threading.Event()

    def hashes():
        assert go.wait(60)
        return np.uint32([1, 2])

    known = Identity("f", "k", hashes)
    assert known.fingerprint == "f"  # at once
    go.set()
    known.wait()
    assert known.hashes.tolist() == [1, 2]
