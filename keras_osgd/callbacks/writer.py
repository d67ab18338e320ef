"""The thread that writes checkpoints, their schedule, and interruption by signals."""

from __future__ import annotations

import concurrent.futures
import datetime
import pathlib
import secrets
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import tensorflow as tf

from keras_osgd.base.replicas import share_of
from keras_osgd.base.warn import warn
from keras_osgd.base.workers import first_failure, told_by_all
from keras_osgd.callbacks import checkpoint_files

__all__ = ["Interruption", "Schedule", "Writer"]

_MOST_FAILURES = 3  # in a row
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Writer:
    """Writes one checkpoint at a time, in a thread of its own.

    Several workers write one together: each its part, in a thread, and once all parts
    are on the disk the first worker makes them a checkpoint by the marker.

    Args:
        directory: exists.
        keep: number of checkpoints kept.
        newest: path of the newest intact one, or `None`.
        require_own: raises if the directory has become another writer's.
        passed_over: paths of later ones that cannot be used, which `keep` leaves out.
        strategy: of the model.

    Attributes:
        newest: likewise; set once a new one is written, as the old one may be deleted.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        keep: int,
        newest: pathlib.Path | None,
        require_own: Callable[[], None],
        passed_over: Sequence[pathlib.Path] = (),
        strategy: tf.distribute.Strategy | None = None,
    ) -> None:
        """Starts the thread."""
        self._strategy = strategy or tf.distribute.get_strategy()
        self._share = share_of(self._strategy)
        # The numbers that several workers give are the first one's.
        first = checkpoint_files.next_number(directory), secrets.token_hex(8)
        number, self._token = told_by_all(self._strategy, first)[0]
        self._number = number - 1
        self._written: checkpoint_files.Written | None = None
        self._require_own = require_own
        self._directory, self._keep, self.newest = directory, keep, newest
        self._passed_over = passed_over
        self._failures, self._told = 0, set()  # since one was written
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "keras_osgd_checkpoint")
        self._writing: concurrent.futures.Future | None = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written, by this worker."""
        return self._writing is not None and not self._writing.done()

    @property
    def under_way(self) -> bool:
        """Whether a checkpoint was begun that `wait` has not ended."""
        return self._writing is not None

    def write(self, captured: Callable[[], tuple[dict, dict]]) -> None:
        """Starts to write what `captured` returns, after the write under way.

        Args:
            captured: raises FloatingPointError where the state must not be written.

        Raises:
            RuntimeError: if the last three could not be written.
        """
        self.wait()
        self._number, self._written = self._number + 1, None
        self._writing = self._thread.submit(self._write, captured)

    def _write(self, captured: Callable[[], tuple[dict, dict]]) -> None:
        arrays, details = captured()
        if self._share.workers > 1:
            part = self._number, self._share.rank
            path = checkpoint_files.place_of(self._directory, *part)
            same = {"together": f"{self._token} {self._number}"}
            details = {**details, **same, "workers": self._share.workers}
            self._written = checkpoint_files.put_arrays(path, arrays, details)
            if self._share.rank:
                checkpoint_files.complete(self._written)
            return
        given = self._directory, arrays, details, self._keep
        self.newest = checkpoint_files.write(
            *given, self._require_own, self._passed_over
        )

    def wait(self) -> None:
        """Waits for the write under way; warns if it failed.

        Each cause is told once, until a checkpoint is written again.

        Raises:
            RuntimeError: if the last three could not be written, or the directory has
                become another writer's.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            self._together(writing.exception())
            self._failures, self._told = 0, set()
        except (OSError, FloatingPointError) as error:
            self._failures += 1
            line = f"No checkpoint was written into {self._directory}: {error}. "
            line += self.where_saved() or "There is no earlier one."
            of_disk = isinstance(error, OSError)
            if of_disk and self._failures >= _MOST_FAILURES:
                raise RuntimeError(
                    f"{line} That was the failure number {self._failures} in a row. "
                    "Make room, or mend the disk, and start again."
                ) from error
            cause = f"{error.errno} {error.strerror}" if of_disk else str(error)
            if cause not in self._told:
                self._told.add(cause)
                more = " Training goes on: make room, or mend the disk."
                warn(line + more * of_disk)

    def _together(self, error: BaseException | None) -> None:
        """Makes the parts of all workers a checkpoint, or raises the first error."""
        if self._share.workers == 1:
            if error is not None:
                raise error
            return
        failure = first_failure(self._strategy, error)
        if failure is None:
            try:
                self._complete()
            except Exception as own:
                error = own
            failure = first_failure(self._strategy, error)
        if failure is not None:
            if self._written is not None:
                checkpoint_files.discard(self._written.path)
            raise failure
        self.newest = checkpoint_files.place_of(self._directory, self._number)

    def _complete(self) -> None:
        if self._share.rank == 0:
            self._require_own()
            checkpoint_files.complete(self._written)
            given = self._number, self._keep, self._passed_over
            checkpoint_files.delete_old(self._directory, *given)

    def where_saved(self) -> str:
        """Returns a sentence on the last good checkpoint, or ""."""
        path = self.newest
        return "" if path is None else f"The last good checkpoint is {path}."

    def close(self) -> None:
        """Ends the thread, after the write under way."""
        self._thread.shutdown()


class Interruption:
    """Notes the first Ctrl-C or SIGTERM; a second one is obeyed at once.

    It works only in the main thread, where Python handles signals. Signals that are
    ignored stay ignored.

    Attributes:
        noted: number of the signal that came, or `None`.
    """

    def __init__(self) -> None:
        """Listens to nothing yet."""
        self.noted: int | None = None
        self._asked = self._adopted = False
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Replaces the present signal handlers."""
        self.noted, self._asked, self._adopted = None, False, False
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            before = signal.getsignal(number)
            if before not in (None, signal.SIG_IGN) and number not in self._before:
                self._before[number] = signal.signal(number, self._note)

    def is_new(self) -> bool:
        """Returns whether a signal came; True in one call only."""
        new = self.noted is not None and not self._asked
        self._asked |= new
        return new

    def adopt(self, number: int) -> None:
        """Notes a signal that another worker got, unless one was noted here."""
        if self.noted is None:
            self.noted, self._adopted = number, True

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.noted is None or self._adopted:
            self.noted, self._adopted = number, False
            return
        self.noted = None
        self.ignore()
        signal.raise_signal(number)

    def end(self) -> None:
        """Stops listening; obeys a signal that came after the last checkpoint."""
        if self.noted is not None:
            self.obey()
        self.ignore()

    def ignore(self) -> None:
        """Puts the former handlers back."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    def obey(self, line: str = "") -> None:
        """Does what the signal would have done: ends training, or calls its handler.

        Args:
            line: printed first, after the name of the signal.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            SystemExit: after SIGTERM, which would end the process without clean-up.
        """
        number, self.noted = self.noted, None
        if line:
            print(f"\n{signal.Signals(number).name}: {line}")
        self.ignore()
        if signal.getsignal(number) == signal.SIG_DFL:
            raise SystemExit(128 + number)
        signal.raise_signal(number)
        self.listen()  # a handler of the user's own lets training go on


class Schedule:
    """Counts steps and time since the last checkpoint, and tells when one is due.

    Args:
        every: "epoch", a number of steps, or a `datetime.timedelta`.
        keep: number of checkpoints kept.

    Raises:
        ValueError: if an argument is anything else, or not above 0.
    """

    def __init__(self, every: Any, keep: int) -> None:
        """Checks the arguments and starts counting."""
        steps = isinstance(every, int) and not isinstance(every, bool) and every > 0
        lasting = isinstance(every, datetime.timedelta) and every.total_seconds() > 0
        if not (every == "epoch" or steps or lasting):
            raise ValueError(
                '`every` must be "epoch", a number of steps or a `datetime.timedelta`, '
                f"above 0. Received: every={every!r}. Leave it out for every epoch."
            )
        if not isinstance(keep, int) or keep < 1:
            raise ValueError(
                "`keep`, the number of checkpoints that stay, must be at least 1. "
                f"Received: keep={keep!r}. 2 survive a damaged one."
            )
        self._every, self.keep = every, keep
        self.restart()

    def restart(self) -> None:
        """Starts counting anew."""
        self._steps, self._epoch_over, self._at = 0, False, time.monotonic()

    def count(self, steps: int, epoch_over: bool = False) -> None:
        """Counts steps, and the end of an epoch."""
        self._steps += steps
        self._epoch_over |= epoch_over

    @property
    def by_steps(self) -> bool:
        """Whether steps alone decide when a checkpoint is due, alike on all workers."""
        return not isinstance(self._every, datetime.timedelta)

    @property
    def due(self) -> bool:
        """Whether a checkpoint is due; stays so until `restart`."""
        if self._every == "epoch":
            return self._epoch_over
        if isinstance(self._every, datetime.timedelta):
            return time.monotonic() - self._at >= self._every.total_seconds()
        return self._steps >= self._every
