"""Tables of Markdown, and intervals in them."""

from collections.abc import Mapping, Sequence


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of texts."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table_of(rows: Sequence[Mapping[str, object]]) -> str:
    """Returns a table of rows by column, at least one."""
    return table(list(rows[0]), [[*map(str, row.values())] for row in rows])


def with_interval(value: float, bounds: Sequence[float] | None) -> str:
    """Returns a figure with its interval, if it has one."""
    return f"{value:.2f}" + (f" ({interval(bounds)})" if bounds else "")


def interval(bounds: Sequence[float], digits: int = 2) -> str:
    """Returns both ends of an interval."""
    return f"{bounds[0]:.{digits}f}-{bounds[1]:.{digits}f}"
