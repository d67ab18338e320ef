"""When a checkpoint is due, and how many stay."""

from __future__ import annotations

import datetime
import time
from typing import Any

__all__ = ["Schedule"]


class Schedule:
    """Counts what has passed since the last checkpoint.

    Args:
        every: "epoch", a number of steps, or a `datetime.timedelta`.
        keep: how many checkpoints stay.

    Raises:
        ValueError: if an argument is anything else, or not above 0.
    """

    def __init__(self, every: Any, keep: int) -> None:
        """Nothing has passed yet."""
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
        """Counts anew, from a checkpoint on."""
        self._steps, self._epoch_over, self._at = 0, False, time.monotonic()

    def count(self, steps: int, epoch_over: bool = False) -> None:
        """Counts steps, and the end of an epoch."""
        self._steps += steps
        self._epoch_over |= epoch_over

    @property
    def due(self) -> bool:
        """Whether it is time; stays so until `restart`."""
        if self._every == "epoch":
            return self._epoch_over
        if isinstance(self._every, datetime.timedelta):
            return time.monotonic() - self._at >= self._every.total_seconds()
        return self._steps >= self._every
