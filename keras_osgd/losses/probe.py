"""The few examples on which losses are tried out before training."""

from __future__ import annotations

import numpy as np

from keras_osgd.data.training_data import PROBES, TrainingData
from keras_osgd.data.weights import leaves_of

__all__ = ["KEPT", "rows"]

# More rows than outputs; else Keras takes the rows of a single y for their targets.
_ROWS = 5
KEPT = 3  # the first ones, which are the same in both batches


def rows(data: TrainingData, others: bool = False) -> np.ndarray:
    """Returns five rows: three, and two of these again or two `others`.

    The three have different targets, if there are such among 64 rows. Losses of pairs
    show themselves then, as there are pairs of one class and pairs of two.

    Example:
        >>> y = np.array([7, 7, 7, 8, 9])
        >>> data = TrainingData((y, y, None), 5, 2)
        >>> rows(data).tolist(), rows(data, others=True).tolist()
        ([0, 3, 4, 0, 3], [0, 3, 4, 1, 2])
    """
    spread = np.unique(np.linspace(0, data.n - 1, PROBES).astype(np.int64)).tolist()
    different: dict[bytes, int] = {}
    for row in spread:  # targets may be large, so no more are read than need be
        if len(different) < KEPT:
            different.setdefault(_target(data, row), row)
    chosen = [*different.values()]
    order = [*chosen, *(row for row in spread if row not in chosen)]
    kept = order[:KEPT]
    added = order[KEPT:_ROWS] if others else []
    return np.array([*kept, *np.resize([*added, *kept], _ROWS - len(kept))], np.int64)


def _target(data: TrainingData, row: int) -> bytes:
    return b"".join(
        np.asarray(leaf[row]).tobytes() for leaf in leaves_of(data.arrays[1])
    )
