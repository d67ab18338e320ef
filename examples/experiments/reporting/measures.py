"""Further figures that runs carry, as tables, whatever their names."""

import statistics
from collections.abc import Iterable

from examples.common import markdown
from examples.experiments.reporting.runs import Group, Runs
from examples.experiments.reporting.wording import Titles

_DIGITS = 4


def measures_section(groups: Iterable[Group], titles: Titles) -> str:
    """Returns tables of `record["measures"]`, means over seeds; empty without any.

    Figures that are numbers or texts make one table with a line for each contender; a
    dictionary or a list of dictionaries (in the order of training) makes a table of its
    own.
    """
    measured = [
        (f"{titles.group(group)}: {titles.contender(runs.contender)}", runs)
        for group in groups
        for runs in group.runs
        if runs.measured
    ]
    single = {title: _scalars(runs) for title, runs in measured}
    single = {title: row for title, row in single.items() if row}
    parts = []
    if single:
        parts.append(_table("run", single))
    for title, runs in measured:
        for name in _names(runs):
            values = [run["measures"].get(name) for run in runs.measured]
            rows = _rows([value for value in values if value is not None])
            if rows:
                words = name.replace("_", " ")
                parts.append(f"{title}: {words}\n\n{_table('', rows)}")
    return "\n\n".join(parts)


def _names(runs: Runs) -> list[str]:
    return list(dict.fromkeys(name for x in runs.measured for name in x["measures"]))


def _scalars(runs: Runs) -> dict[str, str]:
    merged = _merged([run["measures"] for run in runs.measured])
    return {name: text for name, text in merged.items() if text is not None}


def _rows(values: list[object]) -> dict[str, dict[str, str]]:
    """Returns table lines of nested figures of several seeds, empty if not nested."""
    lists = [value for value in values if isinstance(value, list)]
    if lists and all(isinstance(item, dict) for value in lists for item in value):
        # Seeds may have been measured at different numbers of times.
        return {
            str(number): _texts(_merged(list(items)))
            for number, items in enumerate(zip(*lists, strict=False), start=1)
        }
    tables = [value for value in values if isinstance(value, dict)]
    rows = {}
    for name in dict.fromkeys(name for table in tables for name in table):
        entries = [table[name] for table in tables if name in table]
        inner = [entry for entry in entries if isinstance(entry, dict)]
        rows[name] = (
            _texts(_merged(inner))
            if inner
            else _texts(_merged([{"value": entry} for entry in entries]))
        )
    return rows


def _merged(items: list[dict[str, object]]) -> dict[str, str | None]:
    """Returns the mean over `items` of every figure, `None` for what is nested.

    A list of two numbers is an interval, and means are those of its ends.
    """
    merged = {}
    for name in dict.fromkeys(name for item in items for name in item):
        values = [item[name] for item in items if item.get(name) is not None]
        if values and all(_is_interval(value) for value in values):
            ends = [
                f"{statistics.fmean(end):.{_DIGITS}g}"
                for end in zip(*values, strict=True)
            ]
            merged[name] = "-".join(ends)
        elif any(isinstance(value, dict | list) for value in values):
            merged[name] = None
        elif values and all(isinstance(value, int | float) for value in values):
            merged[name] = f"{statistics.fmean(values):.{_DIGITS}g}"
        else:
            merged[name] = ", ".join(dict.fromkeys(map(str, values))) or "-"
    return merged


def _is_interval(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(end, int | float) for end in value)
    )


def _texts(merged: dict[str, str | None]) -> dict[str, str]:
    return {name: text for name, text in merged.items() if text is not None}


def _table(corner: str, rows: dict[str, dict[str, str]]) -> str:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [
        [title, *(row.get(name, "-") for name in columns)]
        for title, row in rows.items()
    ]
    return markdown.table([corner, *(x.replace("_", " ") for x in columns)], lines)
