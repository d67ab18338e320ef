"""An example's features, by what is stored of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

__all__ = ["LARGEST", "features", "last_places"]

LARGEST = np.finfo(np.float32).max


def features(
    names: Iterable[str],
    held: Mapping[str, np.ndarray],
    classes: np.ndarray | None,
    means: tuple[np.float32, np.ndarray],
    block: int,
) -> Iterator[np.ndarray]:
    """Yields the named features of k examples, `[k]` float32 each, >= 0.

    Args:
        names: as in `RAIS`; those of averages are in `held`.
        held: `[k]` each, "last", below 0 for examples never observed, and what else is
            stored under the names; "seen_at", blocks, for "age".
        classes: `[k]`, or `None` without classes.
        means: of all norms, and `[C]` of each class.
        block: now.

    Example:
        >>> held = {"last": np.float32([2.0, -1.0])}
        >>> means = np.float32(3.0), np.float32([4.0])
        >>> [f.tolist() for f in features(["constant", "last"], held, None, means, 0)]
        [[3.0, 3.0], [2.0, 3.0]]
    """
    mean, by_class = means
    last = held["last"]
    unseen = last < 0
    some_unseen = unseen.any()
    constant = np.broadcast_to(mean, last.shape)
    class_mean = constant
    if classes is not None and (some_unseen or "class_mean" in names):
        class_mean = by_class.take(classes)
    for name in names:
        if name == "constant":
            yield constant
        elif name == "class_mean":
            yield class_mean
        elif name == "unseen":
            yield mean * unseen
        elif name == "age":
            age = np.float64(mean) / 8 * (block - held["seen_at"])
            yield np.minimum(age, LARGEST).astype(np.float32)
        else:
            values = held[name]
            yield np.where(unseen, class_mean, values) if some_unseen else values


def last_places(index: np.ndarray, n: int) -> np.ndarray:
    """Returns where in `index`, `[k]` of 0..n-1, a row comes for the last time.

    Example:
        >>> last_places(np.array([2, 0, 2]), n=3)
        array([1, 2])
    """
    last = np.zeros(n, np.int32)
    order = np.arange(len(index), dtype=np.int32)
    np.maximum.at(last, index, order)
    return np.flatnonzero(last[index] == order)
