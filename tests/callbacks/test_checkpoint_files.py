"""Checkpoints on disk survive kills, damage and full disks."""

import json
import os
import pathlib
import resource
import shutil
import signal
import warnings

import ml_dtypes
import numpy as np
import pytest

from keras_osgd.callbacks import checkpoint_files

RNG = np.random.default_rng(0)


def content(number=0):
    """Arrays of many dtypes and shapes, nested, none of them like another's."""
    return {
        "number": np.int64(number),
        "text": "a text",
        "empty": np.zeros([0, 3]),
        "nested": {
            "floats": np.full([40, 5], number + 0.5, np.float32),
            "deeper": {"flag": np.bool_(True), "ids": np.arange(6).reshape(2, 3)},
        },
        "half": np.array([[1.5, number], [0.25, -2]], ml_dtypes.bfloat16),
        "half scalar": np.asarray(1.5, ml_dtypes.bfloat16),
    }


def write(directory, number, keep=2):
    return checkpoint_files.write(directory, content(number), {"is": number}, keep)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_same(found[name], value)
        else:
            value = np.asarray(value)
            assert found[name].dtype == value.dtype
            assert found[name].shape == value.shape
            np.testing.assert_array_equal(found[name], value)


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_workers_go_on_from_a_checkpoint_that_all_can_use(tmp_path, monkeypatch):
    one, two, _ = (write(tmp_path, number, keep=3) for number in (1, 2, 3))
    others = iter([[2, 1], "damaged, torn", ""])  # of the first worker: 3 is unseen yet

    def told_by_all(strategy, own):
        return [next(others), own]

    monkeypatch.setattr(checkpoint_files, "told_by_all", told_by_all)
    with pytest.warns(UserWarning, match="00000002.npz: damaged, torn"):
        saved = checkpoint_files.newest(tmp_path)
    assert saved.path == one and saved.passed_over == (two,)


def test_what_is_written_is_read_back_and_the_oldest_ones_go(tmp_path):
    assert checkpoint_files.newest(tmp_path) is None
    for number in range(4):
        path = write(tmp_path, number, keep=3)
        saved = checkpoint_files.newest(tmp_path)
        assert saved.path == path
        assert saved.details == {"is": number, "version": checkpoint_files.VERSION}
        assert_same(saved.arrays, content(number))
    names = [f"checkpoint-0000000{n}.{s}" for n in (2, 3, 4) for s in ("json", "npz")]
    assert sorted(files(tmp_path)) == names


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_a_truncated_newest_one_gives_way_to_the_one_before(tmp_path, suffix):
    older = write(tmp_path, 1)
    newer = write(tmp_path, 2)
    damaged = newer.with_suffix(suffix)
    whole = damaged.read_bytes()
    for sixteenths in range(16):
        damaged.write_bytes(whole[: len(whole) * sixteenths // 16])
        with pytest.warns(UserWarning, match="damaged") as caught:
            saved = checkpoint_files.newest(tmp_path)
        assert saved.path == older
        assert_same(saved.arrays, content(1))
        text = str(caught[0].message)
        assert str(newer) in text
        assert str(older) in text
    damaged.write_bytes(whole + b"0")
    with pytest.warns(UserWarning, match="damaged"):
        assert checkpoint_files.newest(tmp_path).path == older


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_no_flipped_byte_goes_unnoticed(tmp_path, suffix):
    older = write(tmp_path, 1)
    newer = write(tmp_path, 2)
    damaged = newer.with_suffix(suffix)
    whole = damaged.read_bytes()
    places = (
        range(len(whole)) if suffix == ".json" else RNG.integers(len(whole), size=60)
    )
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(RNG.integers(8))
        damaged.write_bytes(flipped)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            saved = checkpoint_files.newest(tmp_path)
        if saved.path == newer:  # a space, say, in the marker: it says the same
            assert json.loads(flipped) == json.loads(whole)
            continue
        assert saved.path == older
        assert "damaged" in str(caught[0].message)


def test_if_none_is_intact_all_that_were_tried_are_named(tmp_path):
    paths = [write(tmp_path, 1), write(tmp_path, 2)]
    for path in paths:
        path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="must be intact") as raised:
        checkpoint_files.newest(tmp_path)
    for path in paths:
        assert str(path) in str(raised.value)


class Killed(BaseException):
    """Stands for a kill, after which no line of Python runs."""


CALLS = ("open", "fsync", "replace", "close")


@pytest.mark.parametrize("name", CALLS)
def test_a_kill_between_any_two_calls_of_the_system_leaves_the_one_before(
    tmp_path, monkeypatch, name
):
    older = write(tmp_path, 1)
    before = files(tmp_path)
    real = getattr(os, name)
    for last in range(10):
        calls = iter(range(100))

        def call(*args, last=last, calls=calls, **kwargs):
            if next(calls) == last:
                raise Killed
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, call)
            # What a kill leaves undone is undone here too.
            patch.setattr(pathlib.Path, "unlink", lambda *args, **kwargs: None)
            try:
                write(tmp_path, 2)
            except Killed:
                killed = True
            else:
                killed = False
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing that was promised is missing
            saved = checkpoint_files.newest(tmp_path)
        assert_same(saved.arrays, content(1 if saved.path == older else 2))
        if not killed:
            assert saved.path != older
            assert last > 0
            break
        for path in tmp_path.iterdir():  # to begin the next time as this one
            if path.name not in before:
                path.unlink()
    else:
        raise AssertionError("there was no end to the calls")


def test_a_file_has_its_name_only_once_it_is_on_the_disk_and_a_marker_goes_first(
    tmp_path, monkeypatch
):
    flushed, deleted, fsync, unlink = [], [], os.fsync, pathlib.Path.unlink

    def noted_fsync(number):
        flushed.append(sorted(path.suffix for path in tmp_path.iterdir()))
        fsync(number)

    def noted_unlink(path, missing_ok=False):
        deleted.extend([path.name] if path.exists() else [])
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(pathlib.Path, "unlink", noted_unlink)
    write(tmp_path, 1)
    assert flushed == [[".part"], [".npz"], [".npz", ".part"], [".json", ".npz"]]
    write(tmp_path, 2, keep=1)
    assert deleted == ["checkpoint-00000001.json", "checkpoint-00000001.npz"]


def test_what_a_kill_left_half_written_goes_with_the_next_one(tmp_path):
    (tmp_path / "checkpoint-00000001.npz").write_bytes(b"no marker")
    (tmp_path / "checkpoint-00000002.npz.part").write_bytes(b"half")
    (tmp_path / "mine.txt").write_text("not a checkpoint")
    path = write(tmp_path, 3)
    kept = ["checkpoint-00000003.json", "checkpoint-00000003.npz", "mine.txt"]
    assert sorted(files(tmp_path)) == kept
    assert checkpoint_files.newest(tmp_path).path == path


def test_a_full_disk_leaves_the_earlier_ones_and_nothing_half_written(tmp_path):
    write(tmp_path, 1)
    before = files(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit in (0, 10, 300, 1000):  # bytes a file
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            with pytest.raises(OSError, match="File too large"):
                write(tmp_path, 2)
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert files(tmp_path) == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_an_error_at_any_call_leaves_no_part_of_a_checkpoint(
    tmp_path, monkeypatch, name
):
    write(tmp_path, 1)
    before, real = files(tmp_path), getattr(os, name)
    for last in range(4 if name == "fsync" else 2):
        calls = iter(range(100))

        def call(*args, last=last, calls=calls):
            if next(calls) == last:
                raise OSError(5, "Input/output error")
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, call)
            with pytest.raises(OSError, match="Input/output"):
                write(tmp_path, 2)
        assert files(tmp_path) == before


def test_a_directory_that_cannot_be_written_into_is_refused_before_training(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    user = os.geteuid()
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    if user == 0:
        os.seteuid(65534)  # permissions are nothing to root
    try:
        with pytest.raises(ValueError, match="Take another, or change"):
            checkpoint_files.claimed(locked / "below")
        with pytest.raises(ValueError, match="Take another, or change"):
            checkpoint_files.claimed(locked)
    finally:
        os.seteuid(user)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="must be one to write into"):
        checkpoint_files.claimed(file)
    checkpoint_files.claimed(tmp_path / "new" / "one").release()
    assert list((tmp_path / "new" / "one").iterdir()) == []


def test_files_of_a_later_version_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "VERSION", 2)
    write(tmp_path, 1)
    monkeypatch.setattr(checkpoint_files, "VERSION", 1)
    with pytest.raises(ValueError, match="Received: 2 .* Install a newer keras_osgd"):
        checkpoint_files.newest(tmp_path)


def test_what_is_mangled_on_the_way_to_the_disk_is_noticed(tmp_path, monkeypatch):
    older = write(tmp_path, 1)
    real = checkpoint_files._Hashed.write

    def mangled(self, data):
        size = real(self, data)
        if self.size > 500 and not self._file.closed:
            self._file.seek(100)
            self._file.write(b"?")
            self._file.seek(0, 2)
        return size

    monkeypatch.setattr(checkpoint_files._Hashed, "write", mangled)
    write(tmp_path, 2)
    with pytest.warns(UserWarning, match="not those that were written"):
        assert checkpoint_files.newest(tmp_path).path == older
    shutil.rmtree(tmp_path)
