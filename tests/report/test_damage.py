"""A page about runs of which some are damaged, or have names made to break it."""

import json
import os
import tempfile
import warnings

import numpy as np
import pytest

from keras_osgd import plots, report
from keras_osgd.__main__ import main
from keras_osgd.run_directory import RunFiles, RunRecord, load, runs_in
from tests.helpers.pages import Page, write_run

NAMES = [
    r"x$\foo$y",
    "_hidden",
    "<script>alert(1)<",
    'it\'s "quoted"',
    "new\nline",
    "n" * 255,
    "日本 \u202e\x01",
    "100%s {x}",
    os.fsdecode(b"no utf-8 \xff"),
]


def cut(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


def of_objects(content: bytes) -> bytes:
    return content.replace(b"<f8", b"|O8")


def with_text(content: bytes) -> bytes:
    return content.replace(b"1234", b"many")


UNREAD = "cannot be read (ValueError: it"
# How a file is damaged, and what the page says of it; "" where the run is left out.
DAMAGE = {
    "a history cut in a number": ("history.csv", lambda b: b[:-4], "has 1 damaged"),
    "an empty history": ("history.csv", lambda b: b"", ""),
    "a history of other bytes": ("history.csv", lambda b: b"\xff\xfe" + b, ""),
    "settings cut off": ("run.json", cut, "cannot be read (JSONDecodeError"),
    "settings without names": (
        "run.json",
        lambda b: b"[1]",
        f"{UNREAD} must have names",
    ),
    "settings of another type": (
        "run.json",
        lambda b: json.dumps({"epochs": "four", "alarms": 3}).encode(),
        "has epochs='four', which is no number",
    ),
    "arrays cut off": ("sampling.npz", cut, "cannot be read (BadZipFile"),
    "examples without numbers": ("examples.csv", with_text, "has 1 damaged"),
    "examples cut in a column": (
        "examples.csv",
        lambda b: b[:12],
        f"{UNREAD} is cut off",
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "whole", 0, "uniform")


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_left_out_and_named_on_the_page_and_on_the_screen(
    damage, whole, tmp_path, capsys
):
    name, change, words = DAMAGE[damage]
    run, target = write_run(tmp_path / "hurt", 1, "uniform"), tmp_path / "page.html"
    with_draws = write_run(tmp_path / "other", 1, "RAIS()")
    for extra in ("examples.csv", "sampling.npz"):
        (run / extra).write_bytes((with_draws / extra).read_bytes())
    (run / name).write_bytes(change((run / name).read_bytes()))
    assert main(["report", str(run), str(whole), "--output", str(target)]) == 0
    told, page = capsys.readouterr().err, Page(target.read_text("utf-8"))
    for text in (told, page.text):
        assert f"{run / name} {words}" in text
    shown = [line[0] for line in page.tables[0][1:]]
    assert shown == (["hurt", "whole"] if words else ["whole"])
    assert page.images[0] == "validation loss against its cost"


def test_any_cut_or_flipped_byte_spares_what_is_whole(tmp_path):
    run, rng = write_run(tmp_path / "run", 0, "RAIS()"), np.random.default_rng(0)
    for name in ("history.csv", "run.json", "sampling.npz", "examples.csv"):
        content = (run / name).read_bytes()
        for place in rng.integers(len(content), size=40):
            flipped = bytearray(content)
            flipped[place] ^= 1 << int(rng.integers(8))
            for damaged in (content[:place], bytes(flipped)):
                (run / name).write_bytes(damaged)
                try:
                    record = load(run)
                except ValueError as error:
                    assert name == "history.csv" and str(run) in str(error)
                else:
                    assert all(name in fault for fault in record.faults)
                    # A flipped digit is another number; a lost line leaves no trace.
                    same = len(damaged) == len(content) or damaged.endswith(b"\n")
                    assert record.faults or same
        (run / name).write_bytes(content)
    assert load(run).faults == ()


def test_a_directory_that_cannot_be_looked_into_is_named(whole, tmp_path, capsys):
    closed, user = write_run(tmp_path / "closed", 1, "uniform"), os.geteuid()
    for parent in {tmp_path, *tmp_path.parents, *whole.parents}:
        if parent.is_relative_to(tempfile.gettempdir()) and os.access(parent, os.W_OK):
            parent.chmod(parent.stat().st_mode | 0o055)
    closed.chmod(0o000)
    if user == 0:
        os.seteuid(65534)  # permissions are nothing to root
    try:
        assert runs_in(tmp_path) == [closed]
        target = tmp_path / "page.html"
        found, left_out = load(whole), []
        with pytest.raises(ValueError, match=f"{closed}.*PermissionError"):
            load(closed)
        if user:
            left_out = report.write([closed, whole], target)
            assert str(closed) in left_out[0]
    finally:
        os.seteuid(user)
        closed.chmod(0o755)
    assert found.faults == ()


@pytest.fixture(scope="module")
def adversaries(tmp_path_factory):
    """Runs of one epoch, or without a number, whose names are made to break a page."""
    home = tmp_path_factory.mktemp("runs")
    names = [name.replace("/", "_") for name in NAMES]
    last = {"loss": float("nan"), "=1+1": float("inf"), r"val_$\x$": float("nan")}
    for order, name in enumerate(names):
        files = RunFiles(home / name)
        files.write_history([{"epoch": 1, "steps": order, **last}])
        files.write_settings({"n": order, "sampling": "uniform", "alarms": [name]})
    return home


def test_names_made_to_break_a_page_are_shown_as_they_are(adversaries, tmp_path):
    target = tmp_path / "page.html"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of matplotlib's font
        warnings.simplefilter("error", RuntimeWarning)
        assert report.write(runs_in(adversaries), target) == []
    page = Page(target.read_text("utf-8"))
    shown = {line[0] for line in page.tables[0][1:]}
    assert shown == {*NAMES[:-1], "no utf-8 \N{REPLACEMENT CHARACTER}"}
    assert page.images == [r"validation $\x$ against its cost"]
    assert "<script" not in target.read_text("utf-8")
    for name in NAMES[:-1]:
        assert f"{name}: {name}" in page.text


def test_a_piece_that_fails_spares_the_others(monkeypatch, tmp_path):
    def fails(*args):
        raise KeyError("n_p_0")

    monkeypatch.setattr(plots, "share_of_draws", fails)
    record = load(write_run(tmp_path / "a", 0, "RAIS()"))
    page = Page(report.page([record]))
    assert "Share of draws of a cannot be shown (KeyError: 'n_p_0')" in page.text
    assert page.images[-2:] == ["n p of a", "Norms of a"] and len(page.tables) == 3
    nothing = RunRecord("empty", {}, {}, {}, {})
    assert "Training runs: empty" in Page(report.page([nothing])).text
