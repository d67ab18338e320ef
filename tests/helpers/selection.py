"""Which cases of a test the default run takes; the others are marked `long`."""

from collections.abc import Collection, Iterable

import pytest


def long_but(kept: Collection[str], cases: Iterable[str]) -> list:
    """Returns the cases, marked `long` unless they are `kept`."""
    cases = list(cases)
    assert set(kept) <= set(cases), set(kept) - set(cases)
    marks = {True: (), False: (pytest.mark.long,)}
    return [pytest.param(case, marks=marks[case in kept]) for case in cases]
