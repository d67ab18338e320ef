"""The data sets of the experiments: three parts that share nothing, and true labels."""

import functools
import subprocess
import sys

import numpy as np
import pytest

from examples.experiments import debian, sets
from examples.experiments.sets import diamonds, images, source, tables
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.examples

SIZES = {
    "fashion": (50_000, 10_000, 10_000),
    "fashion-5k": (5_000, 10_000, 10_000),
    "fashion-10k": (10_000, 10_000, 10_000),
    "fashion-25k": (25_000, 10_000, 10_000),
    "rotated-50k": (50_000, 10_000, 10_000),
    "shuttle": (34_800, 11_600, 11_600),
    "letter": (11_996, 4_002, 4_002),
    "source": (24_000, 4_000, 4_000),
    "diamonds": (32_364, 10_788, 10_788),
}
FORM = {
    "image": (28, 28, 1),
    "text": (16,),
    "word": (16,),
    "sequence": (32,),
    "regression": (9,),
}


@pytest.fixture(scope="module", autouse=True)
def _read_once():
    """Keeps Fashion-MNIST as it is read; what is made of it is made each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "fashion_mnist", functools.cache(images.fashion_mnist))
        yield


def load(name: str, smoke: bool = False) -> sets.Data:
    try:
        return sets.load(name, smoke)
    except sets.Missing as error:
        pytest.skip(str(error))


def parts(loaded: sets.Data) -> tuple[sets.Split, sets.Split, sets.Split]:
    return loaded.train, loaded.validation, loaded.test


def rows(x: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in x}


# "rotated-200k" differs from "rotated-50k" by a number, and takes a gigabyte.
@pytest.mark.parametrize("name", [n for n in sets.NAMES if n != "rotated-200k"])
def test_every_set_has_the_form_that_its_kind_promises(name):
    loaded = load(name)
    for x, y in parts(loaded):
        assert len(x) == len(y)
        assert x.shape[1:] == FORM.get(loaded.kind, x.shape[1:])
        assert x.dtype == ("int32" if loaded.vocabulary else "float32")
        if loaded.kind == "regression":
            assert (y.dtype, y.shape[1:]) == ("float32", (1,))
        elif loaded.kind == "sequence":
            np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
        else:
            assert (y.dtype, y.min(), y.max()) == ("int32", 0, loaded.classes - 1)
        if loaded.kind == "image":
            assert 0 <= x.min() < 0.01 and 0.99 < x.max() <= 1
        if loaded.vocabulary:
            assert x.min() >= 0 and x.max() < loaded.vocabulary
    sizes = tuple(len(y) for _, y in parts(loaded))
    assert sizes == SIZES.get(name, sizes)
    assert loaded.metric == sets.metric(name)


@pytest.mark.parametrize("name", sets.NAMES)
def test_the_small_part_has_its_sizes_and_every_class_and_comes_from_the_set(name):
    small = load(name, smoke=True)
    assert [len(y) for _, y in parts(small)] == [2000, 500, 500]
    if small.kind not in ("regression", "sequence"):
        assert all(len(np.unique(y)) == small.classes for _, y in parts(small))
    if name != "rotated-200k":
        assert rows(small.test[0]) <= rows(load(name).test[0])
    again = load(name, smoke=True)
    np.testing.assert_array_equal(small.train[0], again.train[0])


@pytest.mark.parametrize("name", ["fashion", "shuttle", "words"])
def test_no_row_is_in_two_parts(name):
    train, validation, test = (rows(x) for x, _ in parts(load(name)))
    # Fashion-MNIST itself has one image in both of its files.
    allowed = 1 if name == "fashion" else 0
    assert len(train & test) + len(validation & test) + len(train & validation) <= (
        allowed
    )


def test_parts_of_the_training_part_are_nested_and_leave_the_others_alone():
    whole, large, small = map(load, ("fashion", "fashion-10k", "fashion-5k"))
    np.testing.assert_array_equal(large.train[0][:5000], small.train[0])
    assert rows(large.train[0]) <= rows(whole.train[0])
    assert np.bincount(small.train[1]).min() > 400  # drawn, not of one class
    np.testing.assert_array_equal(whole.test[0], small.test[0])


@pytest.mark.parametrize(("name", "percent"), [("noise-5", 5), ("noise-20", 20)])
def test_exactly_the_share_of_training_labels_is_flipped_and_no_other(name, percent):
    clean, noisy = load("fashion"), load(name)
    np.testing.assert_array_equal(noisy.true_labels, clean.train[1])
    assert (noisy.train[1] != noisy.true_labels).sum() == 500 * percent
    np.testing.assert_array_equal(noisy.train[0], clean.train[0])
    np.testing.assert_array_equal(noisy.validation[1], clean.validation[1])
    np.testing.assert_array_equal(noisy.test[1], clean.test[1])


def test_rotated_images_keep_their_labels_and_most_of_their_ink():
    plain, turned = load("fashion"), load("rotated-50k")
    for (x, y), (x_turned, y_turned) in zip(parts(plain), parts(turned), strict=True):
        np.testing.assert_array_equal(y, y_turned)
        ink, ink_turned = (v[:1000].sum(axis=(1, 2, 3)) for v in (x, x_turned))
        assert np.corrcoef(ink, ink_turned)[0, 1] > 0.95
        assert (x[:1000] != x_turned[:1000]).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(
    ("name", "shift", "flip"), [("shifted-weak", 2, False), ("shifted-strong", 4, True)]
)
def test_shifted_sets_are_told_what_the_network_draws(name, shift, flip):
    loaded = load(name)
    assert (loaded.shift, loaded.flip) == (shift, flip)


@pytest.mark.parametrize("name", tables.NAMES)
def test_tables_are_standardised_by_their_training_part_alone(name):
    loaded = load(name)
    x = loaded.train[0].astype("float64")
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(x.std(axis=0), 1, atol=1e-6)
    assert np.abs(loaded.test[0].mean(axis=0)).max() > 1e-4


@pytest.mark.parametrize(
    ("name", "package"), [("words", "wcatalan"), ("letter", "r-cran-mlbench")]
)
def test_a_missing_set_names_the_places_and_the_command(
    name, package, tmp_path, monkeypatch
):
    monkeypatch.setenv("KERAS_OSGD_CACHE", str(tmp_path))
    monkeypatch.setattr(debian, "_SYSTEM", tmp_path / "system")
    with pytest.raises(sets.Missing, match="examples.experiments.debian") as caught:
        sets.load(name)
    for part in (package, str(tmp_path / "system"), str(tmp_path / "debian")):
        assert part in str(caught.value)


def test_missing_images_lists_and_readers_name_their_commands(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_OSGD_CACHE", str(tmp_path))

    def fail():
        raise RuntimeError("Tried everything.")

    monkeypatch.setattr(images, "fashion_mnist", fail)
    with pytest.raises(sets.Missing, match="apt-get install dataset-fashion-mnist"):
        sets.load("rotated-50k")
    monkeypatch.setattr(debian, "_run", lambda command, folder: "\n")
    with pytest.raises(sets.Missing, match="apt-get update"):
        sets.load("descriptions")
    monkeypatch.setitem(sys.modules, "rdata", None)
    monkeypatch.setattr(debian, "find", lambda package, path: tmp_path)
    with pytest.raises(sets.Missing, match="pip install rdata"):
        sets.load("letter")


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="must be one of: fashion, .*Received: 'x'"):
        sets.load("x")


def test_the_command_that_fetches_runs_by_itself(tmp_path):
    # Without apt on the path it ends with the message, not with a failed import.
    done = subprocess.run(
        [sys.executable, "-m", "examples.experiments.debian"],
        cwd=ROOT,
        env={"PATH": str(tmp_path), "KERAS_OSGD_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("The program apt-get must be on this machine")


def test_windows_of_source_text_are_of_files_of_one_part_alone():
    texts = [bytes([file]) * 1000 for file in range(50)]
    splits = source.prepared(texts, (10**6, 10**6, 10**6))
    found = [set(np.unique(np.concatenate(split))) for split in splits]
    assert [len(files) for files in found] == [40, 5, 5]
    assert not (found[0] & found[1] or found[0] & found[2] or found[1] & found[2])


def test_prices_and_grades_are_those_of_the_first_diamonds_in_the_book():
    # Wickham, "ggplot2": 0.23 carat, Ideal, E, SI2, 61.5, 55, 326 dollars, 3.95 ...
    load("diamonds")
    table = diamonds._read()
    expected = [0.23, 4, 1, 1, 61.5, 55, 3.95, 3.98, 2.43]
    np.testing.assert_allclose(table["x"][0], expected, rtol=1e-6)
    assert (table["y"][0], len(table["y"])) == (326, 53_940)
