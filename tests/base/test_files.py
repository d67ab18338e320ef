"""Files are written whole or not at all, and through no link."""

import os
import pathlib

import numpy as np
import pytest

from keras_osgd import report
from keras_osgd.base.csv_table import read_table, write_table
from keras_osgd.base.files import whole, write_whole
from keras_osgd.callbacks import checkpoint_files
from keras_osgd.data.stored_columns import on_disk
from keras_osgd.run_directory import RunFiles

ROWS = [{"epoch": 1, "loss": 0.5}]


def monitored(directory):
    files = RunFiles(directory)
    files.write_history(ROWS)
    files.write_settings({})
    files.write_examples({"index": [1]})
    files.write_arrays({"a": np.ones(1)})


def reported(directory):
    RunFiles(directory / "run").write_history(ROWS)
    report.write([directory / "run"], directory / "report.html")


def saved(directory):
    lock = checkpoint_files.claimed(directory)
    checkpoint_files.write(directory, {"a": np.ones(1)}, {}, 2, lock.require)
    lock.release()


WRITERS = {
    "monitor": (monitored, ("history.csv", "run.json", "examples.csv", "sampling.npz")),
    "report": (reported, ("report.html",)),
    "checkpoint": (saved, (f".probe-{os.getpid()}",)),
    "table": (lambda d: write_table(d / "t.csv", ["a"], [[1]]), ("t.csv",)),
    "cache": (lambda d: on_disk([[np.ones(2)]], d), ("column-0.raw", "examples.json")),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_links_that_another_user_planted_are_not_followed(writer, tmp_path):
    write, names = WRITERS[writer]
    shared, victim = tmp_path / "shared", tmp_path / "victim"
    shared.mkdir()
    victim.write_text("whole")
    names = [*names, "checkpoint-00000001.npz.part", *(f"{n}.part" for n in names)]
    for name in names:
        (shared / name).symlink_to(victim)
    write(shared)
    assert victim.read_text() == "whole"


def test_a_file_is_as_it_was_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, "before")
    with pytest.raises(KeyError), whole(path) as file:
        file.write(b"half")
        file.flush()
        assert path.read_text() == "before"
        assert len(list(tmp_path.iterdir())) == 2
        raise KeyError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    os.umask(before := os.umask(0o077))
    assert path.stat().st_mode & 0o777 == 0o666 & ~before


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "a.txt"
    with whole(path) as first:
        first.write(b"first")
        with whole(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


def test_a_pipe_or_device_is_written_to_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, "text")
    assert os.read(reader, 9) == b"text" and pipe.is_fifo()
    os.close(reader)
    write_whole("/dev/null", "text")
    assert pathlib.Path("/dev/null").is_char_device()


LABELS = ["=1+1", "+x", "-x", "@x", "\tx", "\rx", "\nx", "\uff1dx", "'=x", "''-x"]
AS_THEY_ARE = ["-1.5", "+2e-3", "'tis", "a=b", "x", "", "-.5", "a\rb", 'say "x"']


@pytest.mark.parametrize("label", LABELS + AS_THEY_ARE)
def test_a_spreadsheet_runs_no_label_and_reading_gives_it_back(label, tmp_path):
    path = tmp_path / "t.csv"
    numbers = [-1.5, np.float32(-2), np.int64(-3)]
    write_table(path, ["a", label], [numbers, [label, "y", label]])
    text = path.read_bytes().decode()
    assert [line.split(",")[0] for line in text.split("\r\n")[-4:-1]] == [
        "-1.5",
        "-2.0",
        "-3",
    ]
    names, rows, damaged = read_table(path)
    assert (names, damaged) == (["a", label], 0)
    assert rows == [["-1.5", label], ["-2.0", "y"], ["-3", label]]
    cell = text.split(",", 1)[1]
    assert cell.startswith(("'", "\"'")) == (label in LABELS or label == "'tis")
