"""Writes checkpoints beside the training thread."""

from __future__ import annotations

import concurrent.futures
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_osgd.base.warn import warn
from keras_osgd.callbacks import checkpoint_files

__all__ = ["Writer"]

_MOST_FAILURES = 3  # one after the other


class Writer:
    """Writes one checkpoint at a time, in a thread of its own.

    Args:
        directory: exists.
        keep: number of checkpoints that stay.
        newest: path of the newest intact one, or `None`.

    Attributes:
        newest: likewise; set as soon as one is written, for its predecessor may go.
    """

    def __init__(
        self, directory: pathlib.Path, keep: int, newest: pathlib.Path | None
    ) -> None:
        """Starts the thread."""
        self._directory, self._keep, self.newest = directory, keep, newest
        self._failures = 0
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "keras_osgd_checkpoint")
        self._writing: concurrent.futures.Future | None = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._writing is not None and not self._writing.done()

    def write(self, captured: Callable[[], tuple[dict, dict]]) -> None:
        """Begins to write what `captured` returns; ends first what it is writing.

        Raises:
            RuntimeError: if the last three could not be written.
        """
        self.wait()
        self._writing = self._thread.submit(self._write, captured)

    def _write(self, captured: Callable[[], tuple[dict, dict]]) -> None:
        arrays, details = captured()
        if not _finite(arrays["variables"]["model"].values()):
            raise FloatingPointError("the model's variables are not finite")
        write = checkpoint_files.write
        self.newest = write(self._directory, arrays, details, self._keep)

    def wait(self) -> None:
        """Waits until everything is written; warns of what was not.

        Raises:
            RuntimeError: if the last three could not be written.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            writing.result()
            self._failures = 0
        except (OSError, FloatingPointError) as error:
            self._failures += 1
            line = f"No checkpoint was written into {self._directory}: {error}. "
            line += self.where_saved() or "There is no earlier one."
            if isinstance(error, FloatingPointError):
                warn(line)
            elif self._failures < _MOST_FAILURES:
                warn(f"{line} Training goes on: make room, or mend the disk.")
            else:
                raise RuntimeError(
                    f"{line} That was the failure number {self._failures} in a row. "
                    "Make room, or mend the disk, and start again."
                ) from error

    def where_saved(self) -> str:
        """Returns a sentence on the last good checkpoint, or nothing."""
        path = self.newest
        return "" if path is None else f"The last good checkpoint is {path}."

    def close(self) -> None:
        """Ends the thread, after what it is writing."""
        self._thread.shutdown()


def _finite(arrays: Any) -> bool:
    """Returns whether no weight is NaN; those that are infinite may be meant so."""
    return not any(np.isnan(a).any() for a in arrays if a.dtype.kind in "fV")
