"""By what training data are known again, and which of their rows changed."""

from __future__ import annotations

import concurrent.futures
import mmap
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_osgd.base import texts
from keras_osgd.data.uneven_columns import Uneven

__all__ = ["Identity", "in_memory"]


class Identity:
    """A fingerprint of 64 rows, and a hash of every row as far as it is in memory.

    Args:
        fingerprint: hash of n, shapes, types and 64 fixed rows; "" of no data.
        kind: hash of shapes and types, and of which columns the rows' hashes cover;
            "" without hashes, as in files of early versions.
        hashes: `[n]` uint32, or a function that returns them, called in a thread;
            `None` without.
        whole: whether the hashes cover all columns; else 64 rows of the others, which
            are on a disk, are all that is known.

    Example:
        >>> before = Identity("a", "kind", np.uint32([5, 6, 7]))
        >>> before.changed(Identity("b", "kind", np.uint32([5, 9, 7])))
        array([1])
    """

    NAMES = ("fingerprint", "hashed", "row_hashes")  # of the arrays of `state_dict`

    def __init__(
        self,
        fingerprint: str = "",
        kind: str = "",
        hashes: np.ndarray | Callable[[], np.ndarray] | None = None,
        whole: bool = True,
    ) -> None:
        """Starts to make the hashes, if they are not made yet."""
        self.fingerprint, self.kind, self.whole = fingerprint, kind, whole
        self._hashes: concurrent.futures.Future[np.ndarray]
        hashes = np.zeros(0, np.uint32) if hashes is None else hashes
        if callable(hashes):
            thread = concurrent.futures.ThreadPoolExecutor(1, "keras_osgd_hashes")
            self._hashes = thread.submit(hashes)
            thread.shutdown(wait=False)
        else:
            self._hashes = concurrent.futures.Future()
            self._hashes.set_result(hashes)

    @property
    def hashes(self) -> np.ndarray:
        """`[n]` uint32, or empty; waits until they are made."""
        return self._hashes.result()

    def wait(self) -> None:
        """Waits until the hashes are made: from then on the data may be changed."""
        concurrent.futures.wait([self._hashes])

    def differing(self, now: Identity) -> np.ndarray | None:
        """Returns `[k]`, the rows whose hashes differ; `None` if that is not known."""
        if self.kind and self.kind == now.kind:
            return np.flatnonzero(self.hashes != now.hashes)
        return None

    def changed(self, now: Identity) -> np.ndarray | None:
        """Returns `[k]` int64, the rows that differ, or `None` for other data.

        Data are others if more than half of their rows differ. Where the hashes do not
        cover the same columns, any difference in the fingerprint makes them others.
        """
        rows = self.differing(now)
        if rows is None:
            same = self.fingerprint == now.fingerprint
            return np.zeros(0, np.int64) if same else None
        return rows if 2 * len(rows) <= len(self.hashes) else None

    def with_other(self, rows: np.ndarray) -> Identity:
        """Returns the identity of data that differ in some rows, a mask `[n]`.

        Example:
            >>> now = Identity("a", "kind", np.uint32([5, 6]))
            >>> now.with_other(np.array([False, True])).changed(now)
            array([1])
        """
        if not rows.any():
            return self
        hashes = np.where(rows, self.hashes ^ np.uint32(1), self.hashes)
        return Identity("", self.kind, hashes, self.whole)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Returns arrays for `of`; waits for the hashes."""
        arrays = {"fingerprint": texts.as_array(self.fingerprint)}
        if self.kind:
            arrays |= {"hashed": texts.as_array(self.kind), "row_hashes": self.hashes}
        return arrays

    @classmethod
    def of(cls, store: Mapping[str, Any]) -> Identity:
        """Returns the identity whose `state_dict` went into a store."""
        fingerprint = texts.as_text(store["fingerprint"])
        if "row_hashes" not in store.keys():  # noqa: SIM118  (a Keras store)
            return cls(fingerprint)
        hashes = np.array(store["row_hashes"], np.uint32)
        return cls(fingerprint, texts.as_text(store["hashed"]), hashes)


def in_memory(leaf: Any) -> bool:
    """Returns whether a column is in memory: no records, no file that is mapped."""
    if not isinstance(leaf, np.ndarray):
        return isinstance(leaf, Uneven)
    owner = leaf
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    return not isinstance(owner, mmap.mmap)
