"""Reasons against training, collected so that one error names them all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["NO_EXAMPLES", "Refusals", "Refused", "line_of", "refuse"]

NO_EXAMPLES = (
    "The training data has 0 examples. Check the filter or path that produced it."
)

_SAYING_NOTHING = ("Exception encountered", "in user code", "Traceback", "File ")


class Refused(ValueError):
    """One error for all reasons against training; a single one is the whole message.

    Args:
        texts: the reasons, each with what must hold, what was received and what to do.
        found: result that can be used nevertheless, or `None`.
    """

    def __init__(self, texts: Iterable[str], found: Any = None) -> None:
        """Numbers the reasons if there are several."""
        self.texts, self.found = tuple(dict.fromkeys(texts)), found
        numbered = [f"{i}. {text}" for i, text in enumerate(self.texts, start=1)]
        title = f"{len(numbered)} things stand in the way of importance sampling:"
        one = len(numbered) == 1
        super().__init__(self.texts[0] if one else "\n".join([title, *numbered]))


def refuse(texts: Iterable[str | None], found: Any = None) -> None:
    """Raises `Refused` if any of `texts` is a reason.

    Example:
        >>> refuse([None, "`y` must be given."])
        Traceback (most recent call last):
        keras_osgd.base.refusals.Refused: `y` must be given.
    """
    reasons = [text for text in texts if text]
    if reasons:
        raise Refused(reasons, found)


class Refusals:
    """Calls one function after another and collects their reasons to refuse.

    Args:
        all_kinds: whether errors other than ValueErrors count even as the first reason.
            After another reason they always count, as they may follow from it.

    Attributes:
        texts: the reasons so far, in order.

    Example:
        >>> refusals = Refusals()
        >>> refusals.tried(int, "7"), refusals.tried(int, "seven")
        (7, None)
        >>> refusals.texts
        ["invalid literal for int() with base 10: 'seven'"]
    """

    def __init__(self, all_kinds: bool = False) -> None:
        """Starts without a reason."""
        self.texts: list[str] = []
        self._errors: list[Exception] = []
        self._all_kinds = all_kinds

    def tried(self, function: Callable, *args: Any) -> Any:
        """Returns the result of `function`, or the `found` of its `Refused`."""
        try:
            return function(*args)
        except Refused as error:
            self.texts += error.texts
            self._errors.append(error)
            return error.found
        except Exception as error:
            known = isinstance(error, ValueError)
            if not (known or self.texts or self._all_kinds):
                raise
            self.texts.append(str(error) if known else line_of(error))
            self._errors.append(error)
        return None

    def end(self, found: Any = None) -> None:
        """Raises one error for all reasons, if there are any; a single one unchanged.

        Args:
            found: result that can be used nevertheless, or `None`.
        """
        if not self._errors:
            return
        if found is None and len(set(self.texts)) == 1:
            raise self._errors[0]
        foreign = [e for e in self._errors if not isinstance(e, Refused)]
        raise Refused(self.texts, found) from (foreign[0] if foreign else None)


def line_of(error: BaseException) -> str:
    """Returns an error's class and first informative line, without colours."""
    text = re.sub(r"\x1b\[[0-9;]*m|\{\{.*?\}\}", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(_SAYING_NOTHING)]
    return f"{type(error).__name__}: {[*said, *lines, 'no message'][0]}"
