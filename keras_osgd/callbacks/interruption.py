"""Ctrl-C and SIGTERM, noted when they come and obeyed where nothing is lost."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["Interruption"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Notes the first Ctrl-C or SIGTERM; a second one is obeyed at once.

    Only in the main thread, where Python handles signals; signals that are ignored
    stay so.

    Attributes:
        noted: number of the signal that came, or `None`.
    """

    def __init__(self) -> None:
        """Listens to nothing yet."""
        self.noted: int | None = None
        self._asked = False
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Takes the place of the handlers that are there."""
        self.noted, self._asked = None, False
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            before = signal.getsignal(number)
            if before not in (None, signal.SIG_IGN) and number not in self._before:
                self._before[number] = signal.signal(number, self._note)

    def is_new(self) -> bool:
        """Returns whether a signal came; True only the first time."""
        new = self.noted is not None and not self._asked
        self._asked |= new
        return new

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.noted is None:
            self.noted = number
            return
        self.noted = None
        self.ignore()
        signal.raise_signal(number)

    def end(self) -> None:
        """Listens no more; obeys a signal that came after the last checkpoint."""
        if self.noted is not None:
            self.obey()
        self.ignore()

    def ignore(self) -> None:
        """Puts the handlers back that were there before."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    def obey(self, line: str = "") -> None:
        """Does what the signal would have done: ends training, or calls its handler.

        Args:
            line: to print before, after the name of the signal.

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
