"""The examples that were drawn most often."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_osgd.base.csv_table import first_lines, write_table
from keras_osgd.scores.state import SamplingState

__all__ = ["MostSampled", "are_labels", "labels_of", "most_sampled"]

_FIRST = 100  # rows that are looked at


class MostSampled(NamedTuple):
    """Examples, the most drawn first; `to_csv` saves them as a table.

    Attributes:
        index: `[k]` int64, rows of the data.
        label: `[k]`, from y; `None` if y is not one number or class per example.
        share_of_draws: `[k]` float64, share of all draws so far; 1/n if uniform.
        times_seen: `[k]` int64, how often each example was trained on.
        last_norm: `[k]` float32, gradient norm when last seen; NaN if never seen.
    """

    index: np.ndarray
    label: np.ndarray | None
    share_of_draws: np.ndarray
    times_seen: np.ndarray
    last_norm: np.ndarray

    def to_csv(self, path: str | os.PathLike) -> None:
        """Writes a table with a line of names and one line for each example."""
        label = [""] * len(self.index) if self.label is None else self.label
        write_table(path, self._fields, self._replace(label=label))

    def __str__(self) -> str:
        """Returns the first lines of the table."""
        return first_lines(self._fields, self)


def most_sampled(state: SamplingState, targets: Any, k: int) -> MostSampled:
    """Returns the examples drawn most often; larger norms first among equals.

    Call it in any thread; it waits for a plan in the making. Draws count once a plan
    has used their observations, and at the end of `fit`.

    Args:
        state: sampling state with a table.
        targets: y of the training data, or `None`.
        k: number of examples; all of them if there are fewer.
    """
    taken: list[np.ndarray] = []
    state.undivided(
        lambda: taken.extend((state.times_drawn.copy(), state.table.last_norms()))
    )
    times, norms = taken
    known = np.nan_to_num(norms.astype(np.float64))
    order = times + 0.5 * known / max(known.max(), np.finfo(np.float64).tiny)
    k = min(k, len(times))
    index = np.argpartition(-order, k - 1)[:k]
    index = index[np.lexsort((index, -order[index]))]
    seen = times[index].astype(np.int64)
    share = seen / max(int(times.sum(dtype=np.int64)), 1)
    return MostSampled(index, labels_of(targets, index), share, seen, norms[index])


def are_labels(targets: Any) -> bool:
    """Returns whether `labels_of` finds labels, as far as the first rows tell.

    Example:
        >>> are_labels(np.array([3, 1, 2])), are_labels(np.array([[0.5, 0.7]]))
        (True, False)
    """
    sizes = [len(leaf) for leaf in keras.tree.flatten(targets) if leaf is not None]
    rows = np.arange(min([_FIRST, *sizes]))
    return len(rows) > 0 and labels_of(targets, rows) is not None


def labels_of(targets: Any, index: np.ndarray) -> np.ndarray | None:
    """Returns `[k]`, the labels of some rows, or `None` where there are none.

    Example:
        >>> labels_of(np.array([[0, 1], [1, 0], [0, 1]]), np.array([0, 1]))
        array([1, 0])
    """
    leaves = keras.tree.flatten(targets)
    if len(leaves) != 1 or not isinstance(leaves[0], np.ndarray):
        return None
    rows = leaves[0][index]
    if rows.size == len(index):
        return rows.ravel()
    one_hot = rows.ndim == 2 and ((rows == 0) | (rows == 1)).all()
    return rows.argmax(axis=1) if one_hot and (rows.sum(axis=1) == 1).all() else None
