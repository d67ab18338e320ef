"""Tables that users keep, as comma-separated values."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable

__all__ = ["write_table"]


def write_table(
    path: str | os.PathLike, names: Iterable[str], columns: Iterable[Iterable]
) -> None:
    """Writes a line of names and one for each row; the columns are of one length."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(zip(*columns, strict=True))
