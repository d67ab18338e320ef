"""Cells of tables as texts: one format for all of a column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["column", "number"]

_FIGURES = 4  # of the largest number of a column


def number(value: Any) -> str:
    """Returns a number or text on its own.

    Example:
        >>> number(0.05000000074), number(1234), number(None)
        ('0.05', '1,234', '–')
    """
    if _is_missing(value):
        return "–"
    if isinstance(value, float | np.floating):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def column(cells: Sequence[Any]) -> list[str]:
    """Returns cells with equal decimals: four figures of the largest number.

    Example:
        >>> column([1.5, 12.25, None, "text"])
        ['1.50', '12.25', '–', 'text']
    """
    numbers = [float(x) for x in cells if _is_float(x) and np.isfinite(x)]
    largest = max(map(abs, numbers), default=0.0)
    decimals = 0
    if any(x != round(x) for x in numbers):
        decimals = int(np.clip(_FIGURES - 1 - np.floor(np.log10(largest)), 1, 8))
    return [f"{x:,.{decimals}f}" if _is_float(x) else number(x) for x in cells]


def _is_float(cell: Any) -> bool:
    return isinstance(cell, float | np.floating) and not _is_missing(cell)


def _is_missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float | np.floating) and np.isnan(cell))
