"""Tables for users: CSV files, and their first lines as text."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence

__all__ = ["first_lines", "write_table"]

_SHOWN = 10


def write_table(
    path: str | os.PathLike, names: Iterable[str], columns: Iterable[Iterable]
) -> None:
    """Writes a line of names and one for each row; columns have equal lengths."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(zip(*columns, strict=True))


def first_lines(names: Sequence[str], columns: Sequence[Sequence | None]) -> str:
    """Returns the names and the first ten rows as text, for a screen.

    Example:
        >>> print(first_lines(["index", "share"], [[12, 7], [0.25, 1 / 3]]))
          index   share
             12    0.25
              7  0.3333
    """
    filled = [(n, c) for n, c in zip(names, columns, strict=True) if c is not None]
    rows = len(filled[0][1])
    lines = [[name for name, _ in filled]]
    for row in range(min(rows, _SHOWN)):
        values = [column[row] for _, column in filled]
        lines.append([f"{v:.4g}" if isinstance(v, float) else str(v) for v in values])
    widths = [max(map(len, cells)) + 2 for cells in zip(*lines, strict=True)]
    text = ["".join(map(str.rjust, line, widths)) for line in lines]
    return "\n".join(text + [f"  and {rows - _SHOWN} more"] * (rows > _SHOWN))
