"""Source text at hand: the modules of Python's own standard library, as bytes."""

import pathlib
import sysconfig
from collections.abc import Sequence

import numpy as np

from examples.experiments.sets.data import Data, Split

NAMES = ("source",)

LENGTH = 32
_BYTES = 256
_EVERY = 10  # of so many files one is for validation, and one to test
_SIZES = (24_000, 4_000, 4_000)
_SEED = 7
_LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


def load(name: str) -> Data:
    """Returns windows of the text and, as labels, the byte after each of their bytes.

    The text is that of the Python that runs: other versions have slightly other ones.
    """
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    found = (path.relative_to(root) for path in root.rglob("*.py"))
    kept = sorted(path for path in found if not _LEFT_OUT & set(path.parts))
    texts = [(root / path).read_bytes() for path in kept]
    splits = prepared(texts, _SIZES)
    return Data(name, "sequence", *splits, _BYTES, metric="bits", vocabulary=_BYTES)


def prepared(texts: Sequence[bytes], sizes: Sequence[int]) -> list[Split]:
    """Returns windows of training, validation and test files, at most `sizes` of each.

    Args:
        texts: of the files; no file is in two parts.
        sizes: of training, validation and test.

    Returns:
        Three (x, y), `[windows, LENGTH]` int32 each, in random order.
    """
    rng = np.random.default_rng(_SEED)
    order = rng.permutation(len(texts))
    held = len(order) // _EVERY
    parts = order[2 * held :], order[:held], order[held : 2 * held]
    splits = []
    for files, size in zip(parts, sizes, strict=True):
        text = np.frombuffer(b"".join(texts[file] for file in files), np.uint8)
        count = len(text) // (LENGTH + 1)
        windows = text[: count * (LENGTH + 1)].reshape(count, LENGTH + 1)
        windows = windows[rng.permutation(count)[:size]].astype("int32")
        splits.append((windows[:, :-1], windows[:, 1:]))
    return splits
