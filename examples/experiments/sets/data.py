"""What a data set is, how it is split, and where prepared arrays are kept."""

import dataclasses
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Callable

import numpy as np

from examples.experiments import debian

Split = tuple[np.ndarray, np.ndarray]
Arrays = dict[str, np.ndarray]

_SMOKE_SIZES = (2000, 500, 500)


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set in three parts; the test part is used for nothing but the end.

    Attributes:
        name: as `load` takes it.
        kind: "image": x `[n, height, width, 1]` float32 in [0, 1]; "table": `[n, d]`
            float32, standardised by the training part; "text" and "word":
            `[n, length]` int32, numbers of words and of characters in the training
            part's vocabulary, 0 = padding at the end, 1 = unknown.
        train: `(x, y)`, y `[n]` int32 in 0..classes - 1.
        validation: likewise.
        test: likewise.
        classes: number of classes, 1 of a regression.
        metric: "error", "balanced_error" (mean over classes of the error within),
            "bits" a byte, or "deviation" (root of the mean squared error), in percent
            of that of the training part's mean.
        shift: random shifts of up to so many pixels are drawn at every visit.
        flip: whether random horizontal flips are drawn at every visit.
        vocabulary: for tokens: one more than the largest possible one.
        true_labels: `[n]`, of the training part before labels were flipped.
    """

    name: str
    kind: str
    train: Split
    validation: Split
    test: Split
    classes: int
    metric: str = "error"
    shift: int = 0
    flip: bool = False
    vocabulary: int | None = None
    true_labels: np.ndarray | None = None


def split_indices(
    y: np.ndarray, shares: tuple[float, float], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns disjoint indices of training, validation and test, class by class.

    Args:
        y: `[n]` labels.
        shares: of validation and of test, of each class, rounded, but at least one
            row. A class of fewer than three rows leaves nothing to train on.
        seed: of the draw.

    Returns:
        Three arrays whose union is 0..n - 1, each in random order.
    """
    rng = np.random.default_rng(seed)
    parts: tuple[list, list, list] = ([], [], [])
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        validation, test = (max(1, round(share * len(rows))) for share in shares)
        cuts = np.split(rows, [validation, validation + test])
        for part, cut in zip(parts, (cuts[2], cuts[0], cuts[1]), strict=True):
            part.append(cut)
    train, validation, test = (rng.permutation(np.concatenate(part)) for part in parts)
    return train, validation, test


def smaller(data: Data) -> Data:
    """Returns a small seeded part of each part, with each of its classes in it."""
    parts = [data.train, data.validation, data.test]
    chosen = [
        _some(y, size, seed)
        for seed, ((_, y), size) in enumerate(zip(parts, _SMOKE_SIZES, strict=True))
    ]
    train, validation, test = (
        (x[rows], y[rows]) for (x, y), rows in zip(parts, chosen, strict=True)
    )
    labels = None if data.true_labels is None else data.true_labels[chosen[0]]
    return dataclasses.replace(
        data, train=train, validation=validation, test=test, true_labels=labels
    )


def cached(name: str, prepare: Callable[[], Arrays]) -> Arrays:
    """Returns prepared arrays, from the cache folder or prepared and then kept there.

    Args:
        name: of the file, with a number that changes whenever `prepare` does.
        prepare: returns the arrays by name.
    """
    path = debian.cache_folder() / "prepared" / f"{name}.npz"
    if path.exists():
        try:
            with np.load(path) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            path.unlink(missing_ok=True)  # torn by a full disk: made again below
    arrays = prepare()
    _write(path, arrays)
    return arrays


def _write(path: pathlib.Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may prepare the same set at once: each writes a file of its
    # own, and the last renaming wins.
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def _some(y: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Returns `size` rows in random order; of classes at least one each."""
    order = np.random.default_rng(seed).permutation(len(y))
    if y.ndim > 1:
        return order[:size]
    _, first = np.unique(y[order], return_index=True)
    late = np.ones(len(order), bool)
    late[first] = False
    rows = np.concatenate([first, np.flatnonzero(late)[:size]])[:size]
    return order[np.sort(rows)]
