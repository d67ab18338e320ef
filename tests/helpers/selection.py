"""Which cases of a test the default run takes; the others are marked `long`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def long_but(kept: Collection[str], cases: Iterable[str]) -> list:
    """Returns the cases, marked `long` unless they are `kept`."""
    cases = list(cases)
    assert set(kept) <= set(cases), set(kept) - set(cases)
    return [_marked(case, case in kept) for case in cases]


def one_in(count: int, cases: Iterable[Any]) -> list:
    """Returns the cases, values or tuples; of each `count` all but one are `long`."""
    return [_marked(case, i % count == 0) for i, case in enumerate(cases)]


def _marked(case: Any, kept: bool) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=() if kept else (pytest.mark.long,))
