"""Short descriptions of Debian's packages, to be told by their archive section."""

import collections
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from examples.experiments import debian
from examples.experiments.sets.data import Arrays, Data, cached, split_indices

NAMES = ("descriptions",)

LENGTH = 16  # 99 % of the texts have at most 13 words
PADDING, UNKNOWN = 0, 1
_WORDS = 10_000
_SHARES = (0.1, 0.1)
_SEED = 5
# Sections of fewer texts are left out: they could not be learnt. 51 remain.
_FEWEST = 80


def load(name: str) -> Data:
    """Returns the set of that name.

    Raises:
        Missing: if apt is not there or its lists are empty.
    """
    arrays = cached(f"{name}-1", lambda: prepared(debian.available(), _FEWEST))
    splits = (
        (arrays[f"{part}_x"].astype("int32"), arrays[f"{part}_y"])
        for part in ("train", "validation", "test")
    )
    classes = len(arrays["sections"])
    vocabulary = int(arrays["vocabulary"])
    return Data(name, "text", *splits, classes=classes, vocabulary=vocabulary)


def parse(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields (section, text) of each package of `apt-cache dumpavail`.

    The text is the first line of the description. The name of the package is not
    read: it often contains the section ("libdevel": "-dev"). Nor is the area of the
    archive ("contrib/libs": "libs").
    """
    fields: dict[str, str] = {}
    for line in [*lines, ""]:
        if not line.strip():
            if {"Section", "Description"} <= fields.keys():
                section = fields["Section"].rpartition("/")[2]
                yield section, fields["Description"]
            fields = {}
        else:  # a line that goes on starts with a space, and so matches no field
            name, _, value = line.partition(":")
            # A translated description is "Description-en".
            fields[name.removesuffix("-en")] = value.strip()


def words_of(text: str) -> tuple[str, ...]:
    """Returns the words and numbers of a text, in small letters."""
    return tuple(re.findall(r"[^\W_]+", text.lower()))


def distinct(
    pairs: Iterable[tuple[str, str]], fewest: int
) -> list[tuple[str, tuple[str, ...]]]:
    """Returns (section, words), sorted, no words twice.

    Words that stand in two sections ("transitional package") are dropped, and then
    sections of fewer than `fewest` texts.
    """
    sections: dict[tuple[str, ...], set[str]] = collections.defaultdict(set)
    for section, text in pairs:
        sections[words_of(text)[:LENGTH]].add(section)
    sections.pop((), None)
    clear = [(next(iter(s)), words) for words, s in sections.items() if len(s) == 1]
    sizes = collections.Counter(section for section, _ in clear)
    return sorted(pair for pair in clear if sizes[pair[0]] >= fewest)


def vocabulary_of(texts: Iterable[Sequence[str]], size: int) -> dict[str, int]:
    """Returns the numbers of the `size` most frequent words, from 2 on."""
    counts = collections.Counter(word for text in texts for word in text)
    ordered = sorted(counts, key=lambda word: (-counts[word], word))[:size]
    return {word: number for number, word in enumerate(ordered, start=UNKNOWN + 1)}


def tokens(texts: Sequence[Sequence[str]], vocabulary: dict[str, int]) -> np.ndarray:
    """Returns the numbers of the words, `[n, LENGTH]` uint16, padded at the end."""
    found = np.full((len(texts), LENGTH), PADDING, np.uint16)
    for row, text in zip(found, texts, strict=True):
        numbers = [vocabulary.get(word, UNKNOWN) for word in text[:LENGTH]]
        row[: len(numbers)] = numbers
    return found


def prepared(lines: Iterable[str], fewest: int) -> Arrays:
    """Returns the arrays of the three parts, the sections and the vocabulary's size.

    Args:
        lines: of `apt-cache dumpavail`.
        fewest: texts of a section that is kept.
    """
    pairs = distinct(parse(lines), fewest)
    sections, y = np.unique([section for section, _ in pairs], return_inverse=True)
    parts = split_indices(y, _SHARES, _SEED)
    vocabulary = vocabulary_of((pairs[row][1] for row in parts[0]), _WORDS)
    arrays: Arrays = {
        "sections": sections,
        "vocabulary": np.array(len(vocabulary) + UNKNOWN + 1),
    }
    for part, rows in zip(("train", "validation", "test"), parts, strict=True):
        arrays[f"{part}_x"] = tokens([pairs[row][1] for row in rows], vocabulary)
        arrays[f"{part}_y"] = y[rows].astype("int32")
    return arrays
