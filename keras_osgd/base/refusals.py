"""Reasons against training, collected so that one error names them all."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow as tf

__all__ = [
    "NOT_REASONS",
    "NO_EXAMPLES",
    "Refusals",
    "Refused",
    "line_of",
    "refuse",
    "tried_out",
]

# Errors that say nothing of the model, and would stop Keras' own training too.
NOT_REASONS = (MemoryError, tf.errors.ResourceExhaustedError)

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


@contextlib.contextmanager
def tried_out(what: str) -> Iterator[None]:
    """Turns any error of the user's code in the block into a reason to refuse.

    Args:
        what: names the code, as the beginning of a sentence.

    Raises:
        Refused: caused by the error. `Refused` itself and `NOT_REASONS` pass.
    """
    try:
        yield
    except (Refused, *NOT_REASONS):
        raise
    except Exception as error:
        raise _reason(what, error) from error


def _reason(what: str, error: Exception) -> Refused:
    text = (
        f"{what} must run on a few examples, as it is tried out before training. "
        f"Received: {line_of(error).rstrip('.')}. Mend that, or compile with "
        'sampling="uniform" if it cannot run so.'
    )
    reason = Refused([text])
    reason.__cause__ = error
    return reason


class Refusals:
    """Calls one function after another and collects their reasons to refuse.

    Any exception is a reason but `NOT_REASONS` and those that are no `Exception`, such
    as KeyboardInterrupt.

    Attributes:
        texts: the reasons so far, in order.

    Example:
        >>> refusals = Refusals()
        >>> refusals.tried(int, "7"), refusals.tried(int, "seven")
        (7, None)
        >>> refusals.texts
        ["invalid literal for int() with base 10: 'seven'"]
    """

    def __init__(self) -> None:
        """Starts without a reason."""
        self.texts: list[str] = []
        self._errors: list[Exception] = []

    def tried(self, function: Callable, *args: Any) -> Any:
        """Returns the result of `function`, or the `found` of its `Refused`."""
        try:
            return function(*args)
        except NOT_REASONS:
            raise
        except Refused as error:
            self.texts += error.texts
            self._errors.append(error)
            return error.found
        except Exception as error:
            known = isinstance(error, ValueError)
            reason = error if known else _reason("The model", error)
            self.texts.append(str(reason))
            self._errors.append(reason)
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
        causes = [e.__cause__ if isinstance(e, Refused) else e for e in self._errors]
        raise Refused(self.texts, found) from next(filter(None, causes), None)


def line_of(error: BaseException) -> str:
    """Returns an error's class and first informative line, without colours."""
    text = re.sub(r"\x1b\[[0-9;]*m|\{\{.*?\}\}", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(_SAYING_NOTHING)]
    return f"{type(error).__name__}: {[*said, *lines, 'no message'][0]}"
