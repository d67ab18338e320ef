"""Words of twelve languages of the Latin script, from Debian's word lists."""

import pathlib
from collections.abc import Mapping, Set

import numpy as np

from examples.experiments import debian
from examples.experiments.sets.data import Arrays, Data, cached

NAMES = ("words",)

LENGTH = 16  # longer words are left out: cut, some could no longer be told apart
PADDING, UNKNOWN = 0, 1
_FEWEST_LETTERS = 2
_HELD_OUT = 50_000  # validation, and as many to test
_SEED = 6
_FOLDER = "usr/share/dict"
_LISTS = {
    "catalan": "wcatalan",
    "danish": "wdanish",
    "dutch": "wdutch",
    "american-english-insane": "wamerican-insane",
    "french": "wfrench",
    "italian": "witalian",
    "ngerman": "wngerman",
    "bokmaal": "wnorwegian",
    "polish": "wpolish",
    "portuguese": "wportuguese",
    "spanish": "wspanish",
    "swedish": "wswedish",
}
# Polish has 3.8 million forms, more than all others together. 1.3 million words in
# all: a large set that is trained often enough in an hour.
_MOST = 125_000


def load(name: str) -> Data:
    """Returns the set of that name.

    Raises:
        Missing: if a word list is not on this machine.
    """
    arrays = cached(f"{name}-2", _prepare)
    splits = (
        (arrays.pop(f"{part}_x").astype("int32"), arrays[f"{part}_y"].astype("int32"))
        for part in ("train", "validation", "test")
    )
    vocabulary = len(arrays["letters"]) + UNKNOWN + 1
    classes = len(_LISTS)
    return Data(name, "word", *splits, classes=classes, vocabulary=vocabulary)


def read(path: pathlib.Path) -> set[str]:
    """Returns the words of a list, one a line, in small letters.

    Kept are those of 2 to `LENGTH` letters and nothing but letters: no "don't".
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:  # Norwegian and Swedish
        text = content.decode("latin-1")
    words = (line.strip().lower() for line in text.split("\n"))
    return {w for w in words if _FEWEST_LETTERS <= len(w) <= LENGTH and w.isalpha()}


def of_one_language(lists: Mapping[str, Set[str]]) -> dict[str, list[str]]:
    """Returns each language's own words, sorted: none that another one has too."""
    seen: set[str] = set()
    shared: set[str] = set()
    for words in lists.values():
        shared |= seen & words
        seen |= words
    return {language: sorted(words - shared) for language, words in lists.items()}


def letters_of(words: np.ndarray) -> np.ndarray:
    """Returns the letters that occur, as sorted code points, without padding.

    Args:
        words: `[n, LENGTH]` code points, as of `code_points`.
    """
    letters = np.unique(words)
    return letters[letters != PADDING]


def code_points(words: list[str]) -> np.ndarray:
    """Returns `[n, LENGTH]` uint32, 0 after the end of a word."""
    fixed = np.array(words, f"<U{LENGTH}")
    return fixed.view("<u4").reshape(len(words), LENGTH)


def tokens(words: np.ndarray, letters: np.ndarray) -> np.ndarray:
    """Returns the letters' numbers, `[n, LENGTH]` uint8: from 2 on, or 0, or 1.

    Args:
        words: `[n, LENGTH]` code points.
        letters: sorted code points of the vocabulary.
    """
    numbers = np.full(max(words.max(), letters.max()) + 1, UNKNOWN, np.uint8)
    numbers[letters] = np.arange(len(letters)) + UNKNOWN + 1
    numbers[0] = PADDING
    return numbers[words]


def prepared(lists: Mapping[str, Set[str]], most: int, held_out: int) -> Arrays:
    """Returns the arrays of the three parts and the letters of the training part.

    Args:
        lists: words by language; the order of the languages numbers the classes.
        most: words that are drawn of a language that has more of its own.
        held_out: size of the validation part, and of the test part.
    """
    rng = np.random.default_rng(_SEED)
    words, labels = [], []
    for label, own in enumerate(of_one_language(lists).values()):
        rows = np.sort(rng.permutation(len(own))[:most])
        words.append(code_points([own[row] for row in rows]))
        labels.append(np.full(len(rows), label, np.uint8))
    x, y = np.concatenate(words), np.concatenate(labels)
    order = rng.permutation(len(y))
    cuts = np.split(order, [held_out, 2 * held_out])
    letters = letters_of(x[cuts[2]])
    arrays: Arrays = {"letters": letters}
    for part, rows in zip(("validation", "test", "train"), cuts, strict=True):
        arrays[f"{part}_x"], arrays[f"{part}_y"] = tokens(x[rows], letters), y[rows]
    return arrays


def _prepare() -> Arrays:
    paths = {
        language: debian.find(package, f"{_FOLDER}/{language}")
        for language, package in _LISTS.items()
    }
    lists = {language: read(path) for language, path in paths.items()}
    return prepared(lists, _MOST, _HELD_OUT)
