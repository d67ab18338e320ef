"""What the experiments' data sets are made by: from small made-up files, anywhere."""

import numpy as np
import pytest
from scipy import ndimage

from examples.experiments.sets import data, images, tables, texts, words

pytestmark = pytest.mark.examples

DUMP = """Package: secretname-dev
Section: libdevel
Description: Development files
 secretname in the long part
Tag: a::b,
 Section: not a field

Package: other
Section: contrib/libs
Description-en: Shared library, of C++

Package: nameless
Section: libs
"""


def test_labels_are_flipped_to_every_other_class_alike():
    y = np.repeat(np.arange(4, dtype="int32"), 30_000)
    flipped = images.flipped_labels(y, 50, 4, seed=0)
    moved = flipped != y
    assert moved.sum() == 60_000 and flipped.dtype == "int32"
    steps = np.bincount((flipped - y)[moved] % 4, minlength=4)
    # Binomial, n = 60,000, p = 1/3: five standard errors are 577.
    assert np.abs(steps[1:] - 20_000).max() < 577
    np.testing.assert_array_equal(flipped, images.flipped_labels(y, 50, 4, seed=0))


def test_rotation_is_that_of_scipy():
    rng = np.random.default_rng(0)
    x = rng.random((40, 28, 28)).astype("float32")
    degrees = rng.uniform(0, 360, len(x))
    expected = [
        ndimage.rotate(image, angle, reshape=False, order=1)
        for image, angle in zip(x, degrees, strict=True)
    ]
    np.testing.assert_allclose(images.rotated(x, degrees), expected, atol=1e-6)


def test_every_copy_of_an_image_is_turned_by_an_angle_of_its_own():
    x = np.tile(
        np.random.default_rng(0).random((1, 28, 28, 1), "float32"), (9, 1, 1, 1)
    )
    assert len(np.unique(images._turned(x, (2, 0)), axis=0)) == 9


def test_standardising_leaves_a_constant_column_at_0_and_does_not_see_the_rest():
    x = np.array([[1, 7], [3, 7], [100, 9]])
    found = tables.standardised(x, np.array([0, 1]))
    np.testing.assert_array_equal(found, [[-1, 0], [1, 0], [98, 0]])


def test_a_split_by_class_is_disjoint_complete_and_has_every_class_everywhere():
    y = np.repeat([0, 1, 2], [1000, 50, 3])
    split = data.split_indices(y, (0.2, 0.1), seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(len(y)))
    counts = [np.bincount(y[part]).tolist() for part in split]
    assert counts == [[700, 35, 1], [200, 10, 1], [100, 5, 1]]


def test_a_description_is_read_without_the_name_of_the_package():
    pairs = list(texts.parse(DUMP.split("\n")))
    assert pairs == [
        ("libdevel", "Development files"),
        ("libs", "Shared library, of C++"),
    ]
    assert texts.words_of(pairs[1][1]) == ("shared", "library", "of", "c")


def test_texts_of_two_sections_and_small_sections_are_dropped_and_copies_merged():
    pairs = [("a", "One two"), ("a", "one, two"), ("a", "three"), ("b", "four")]
    pairs += [("a", "both"), ("b", "Both"), ("a", "")]
    found = texts.distinct(pairs, fewest=2)
    assert found == [("a", ("one", "two")), ("a", ("three",))]


def test_the_vocabulary_of_texts_comes_from_the_training_part():
    lines = [f"Section: s{k % 2}\nDescription: common own{k}\n" for k in range(100)]
    arrays = texts.prepared("\n".join(lines).split("\n"), fewest=2)
    assert arrays["vocabulary"] == 80 + 1 + 2
    assert [len(arrays[f"{p}_y"]) for p in ("train", "validation", "test")] == [
        80,
        10,
        10,
    ]
    # "common" is the most frequent; a word of another part alone is unknown.
    np.testing.assert_array_equal(arrays["test_x"][:, :3], [[2, 1, 0]] * 10)
    assert arrays["train_x"][:, 1].min() == 3
    assert arrays["train_x"].shape == (80, 16)


def test_a_word_list_is_read_in_either_encoding_and_in_small_letters(tmp_path):
    lines = "Äpfel\näpfel\ndon't\na\nstraße\n" + "x" * 17 + "\n"
    for encoding in ("utf-8", "latin-1"):
        path = tmp_path / encoding
        path.write_bytes(lines.encode(encoding))
        assert words.read(path) == {"äpfel", "straße"}


def test_words_of_two_languages_are_dropped_and_large_languages_capped():
    lists = {
        "x": {"both", *(f"a{c}" for c in "bcdefghijk")},
        "y": {"both", "third", "ü"},
        "z": {"third", "zz", "zzz"},
    }
    assert words.of_one_language(lists)["y"] == ["ü"]
    arrays = words.prepared(lists, most=4, held_out=2)
    labels = np.concatenate([arrays[f"{p}_y"] for p in ("train", "validation", "test")])
    assert np.bincount(labels).tolist() == [4, 1, 2]


def test_letters_are_numbered_by_the_training_part_and_others_are_unknown():
    known = words.code_points(["ab", "éa"])
    letters = words.letters_of(known)
    found = words.tokens(words.code_points(["éab", "zaß"]), letters)
    np.testing.assert_array_equal(found[:, :4], [[4, 2, 3, 0], [1, 2, 1, 0]])
    assert found.shape == (2, words.LENGTH)
    arrays = words.prepared({"x": {"ab", "cd", "ef"}}, most=3, held_out=1)
    assert len(arrays["letters"]) == 2
    np.testing.assert_array_equal(arrays["train_x"][0, :3], [2, 3, 0])
    for part in ("validation", "test"):
        np.testing.assert_array_equal(arrays[f"{part}_x"][0, :3], [1, 1, 0])


def test_what_is_prepared_is_kept_and_a_torn_file_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_OSGD_CACHE", str(tmp_path))
    calls = []

    def prepare():
        calls.append(1)
        return {"x": np.arange(5)}

    for _ in range(2):
        np.testing.assert_array_equal(data.cached("n-1", prepare)["x"], np.arange(5))
    assert len(calls) == 1
    kept = tmp_path / "prepared" / "n-1.npz"
    kept.write_bytes(kept.read_bytes()[:50])
    np.testing.assert_array_equal(data.cached("n-1", prepare)["x"], np.arange(5))
    assert len(calls) == 2
    assert [p.name for p in kept.parent.iterdir()] == ["n-1.npz"]
