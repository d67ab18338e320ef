"""Examples whose loss or gradient is not finite: strikes, and those set aside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

__all__ = [
    "MOST_IN_A_ROW",
    "STRIKES",
    "BadExamples",
    "culprits",
    "most_are_not_finite",
]

STRIKES = 3  # skipped steps that an example may spoil before it is set aside
MOST_IN_A_ROW = 10  # skipped steps, after which training stops


class BadExamples:
    """Strikes of each example that spoiled a step; saved with the sampling state.

    At three strikes an example is set aside: never drawn again. If a step does not tell
    which of its examples is at fault, all of them become suspects, with a strike each.
    A later step that goes well with a suspect acquits it.

    Example:
        >>> bad = BadExamples()
        >>> for _ in range(3):
        ...     bad.strike([17], sure=True)
        >>> bad
        BadExamples(strikes={17: 3}, set_aside=[17])
    """

    def __init__(self) -> None:
        """Starts with none."""
        self.strikes: dict[int, int] = {}
        self._suspected: set[int] = set()

    def __repr__(self) -> str:
        """Returns all strikes and the examples set aside."""
        aside = self.set_aside.tolist()
        return f"BadExamples(strikes={self.strikes}, set_aside={aside})"

    def __bool__(self) -> bool:
        """Returns whether there is any strike."""
        return bool(self.strikes)

    @property
    def set_aside(self) -> np.ndarray:
        """`[k]` int64, ascending: the examples that are never drawn again."""
        found = sorted(i for i, count in self.strikes.items() if count >= STRIKES)
        return np.array(found, np.int64)

    @property
    def affected(self) -> list[int]:
        """Examples known to be at fault: named by a step, or set aside."""
        aside = set(self.set_aside.tolist())
        return sorted(aside | (self.strikes.keys() - self._suspected))

    @property
    def suspected(self) -> bool:
        """Whether any example is suspected."""
        return bool(self._suspected)

    def clear(self) -> None:
        """Forgets everything."""
        self.strikes.clear()
        self._suspected.clear()

    def forget(self, index: Iterable[int]) -> None:
        """Takes all strikes from some examples, as from those whose data changed."""
        for example in self.strikes.keys() & {int(i) for i in index}:
            del self.strikes[example]
            self._suspected.discard(example)

    def strike(self, index: Iterable[int], sure: bool) -> None:
        """Gives each distinct example of a skipped step a strike.

        Args:
            index: examples held to be at fault.
            sure: whether they are known to be at fault.
        """
        for example in {int(i) for i in index}:
            if sure:
                self._suspected.discard(example)
            elif example not in self.strikes:
                self._suspected.add(example)
            count = self.strikes.get(example, 0)
            self.strikes[example] = min(count + 1, STRIKES)

    def acquit(self, index: Iterable[int]) -> None:
        """Clears the suspects among the examples of a step that went well."""
        for example in self._suspected.intersection(int(i) for i in index):
            if self.strikes[example] < STRIKES:
                del self.strikes[example]
                self._suspected.discard(example)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Returns all that `load_state_dict` needs."""
        index = np.array(sorted(self.strikes), np.int64)
        return {
            "bad_index": index,
            "bad_strikes": np.array([self.strikes[i] for i in index], np.int64),
            "bad_suspected": np.array(sorted(self._suspected), np.int64),
        }

    def load_state_dict(self, store: Mapping[str, Any]) -> None:
        """Loads the arrays of `state_dict`; without them, no example has a strike."""
        self.clear()
        if "bad_index" in store.keys():  # noqa: SIM118  (a Keras store)
            index, count = (np.array(store[f"bad_{k}"]) for k in ("index", "strikes"))
            self.strikes.update(zip(index.tolist(), count.tolist(), strict=True))
            self._suspected.update(np.array(store["bad_suspected"]).tolist())


def culprits(
    index: np.ndarray, norms: np.ndarray, row_is_finite: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Returns the examples held to have spoiled a step, and whether that is sure.

    They are the examples whose data are not finite. If there are none, they are those
    whose norms are not finite, unless most norms are not, as where BatchNormalization
    mixes a batch or the model has diverged. Otherwise any example may be at fault.

    Args:
        index: `[m]`, examples of the step.
        norms: `[m]`, their observed norms.
        row_is_finite: `[m]`, whether all their x, y and sample weights are finite.

    Example:
        >>> culprits(np.array([4, 7]), np.array([1.0, np.nan]), np.array([True, True]))
        (array([7]), True)
    """
    everyone, by_data = np.unique(index), np.unique(index[~row_is_finite])
    by_norm = np.unique(index[~np.isfinite(norms)])
    if len(by_data):
        return by_data, True
    if len(by_norm) and not most_are_not_finite(norms):
        return by_norm, True
    return everyone, len(everyone) == 1


def most_are_not_finite(norms: np.ndarray) -> bool:
    """Returns whether more than half of a step's norms `[m]` are not finite.

    Example:
        >>> most_are_not_finite(np.array([np.nan, 1.0])), most_are_not_finite(np.inf)
        (False, True)
    """
    return bool(np.mean(np.isfinite(norms)) < 0.5)
