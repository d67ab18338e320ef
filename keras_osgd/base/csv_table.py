"""Tables for users: CSV files, and their first lines as text."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from keras_osgd.base.files import write_whole

__all__ = ["first_lines", "read_table", "write_rows", "write_table"]

_SHOWN = 10
# Beginnings that make a spreadsheet run a cell as a formula.
_RUNS = "[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]"
_PLAIN, _MARKED = re.compile(f"'*{_RUNS}"), re.compile(f"'+{_RUNS}")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def write_table(
    path: str | os.PathLike, names: Iterable[str], columns: Iterable[Iterable]
) -> None:
    """Writes a line of names and one for each row; columns have equal lengths."""
    write_rows(path, names, zip(*columns, strict=True))


def write_rows(
    path: str | os.PathLike, names: Iterable[str], rows: Iterable[Iterable]
) -> None:
    """Writes a line of names and then rows, as a whole; `None` stays empty.

    A text that a spreadsheet would run, such as "=1+1", gets an apostrophe in front,
    which `read_table` takes away; numbers stay as they are.

    Raises:
        OSError: if the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(map(_harmless, names))
    writer.writerows(map(_harmless, row) for row in rows)
    write_whole(path, text.getvalue())


def _harmless(cell: Any) -> Any:
    runs = isinstance(cell, str) and _PLAIN.match(cell) and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if runs else cell


def read_table(path: str | os.PathLike) -> tuple[list[str], list[list[str]], int]:
    """Returns the names, the rows that are whole, and how many are not.

    Args:
        path: file that `write_rows` or an earlier version wrote, or what is left of it.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no table.
    """
    with open(path, newline="", encoding="utf-8") as file:
        text = file.read()
    try:
        lines = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise ValueError(f"it is no table: {error}") from error
    whole = lines if text.endswith("\n") else lines[:-1]  # a cut number lacks digits
    if not whole:
        raise ValueError("it is cut off in its first line" if text else "it is empty")
    names, *rows = [[_own(cell) for cell in line] for line in whole]
    kept = [row for row in rows if len(row) == len(names)]
    return names, kept, len(lines) - 1 - len(kept)


def _own(cell: str) -> str:
    return cell[1:] if _MARKED.match(cell) else cell


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
