"""The tables of `scale.py`, from recorded measurements alone."""

import json
import pathlib

import numpy as np

from examples.common import markdown
from examples.common.records import Record, Records

_CLAIMED = {False: 28, True: 32}  # bytes of state; from 200,000 examples on
_LARGE = 200_000
_OURS = ("RAIS", "block draws")
_BILLION = 1_000_000_000
_WORKER_BYTES = 16 * 2**30
_WINDOW = 6400
_WINDOW_ROW_BYTES = 8 * 8  # six features, weight and norm in float64
_STEP_BYTES = 4 * 8  # moments of the gain ratio, with the gradient's own exchange


def write(records: Records, folder: pathlib.Path) -> None:
    """Writes `scale.json` and `scale.md` into `folder`."""
    memory, refresh = (records.select(part=part) for part in ("memory", "refresh"))
    sections = {
        "Memory, bytes per example": _memory(memory),
        "A refresh, milliseconds of one core (medians)": _refresh(refresh),
        "Draws a second with updates, one core": _draws(records.select(part="draws")),
        "RAIS by length of block": _blocks(records.select(part="blocks")),
        "Second moment by random shards over that in one piece": _shards(
            records.select(part="shards")
        ),
        "Beyond one machine's memory (computed)": _beyond(memory, refresh),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scale.json").write_text(json.dumps(sections, indent=1) + "\n")
    text = "\n\n".join(
        f"### {title}\n\n{markdown.table_of(rows)}"
        for title, rows in sections.items()
        if rows
    )
    (folder / "scale.md").write_text(text + "\n")
    print(text)


def _memory(records: list[Record]) -> list[Record]:
    rows = []
    for record in _by_size(records):
        n = record["key"]["examples"]
        rows.append(
            {
                "examples": f"{n:,}",
                "claimed state": _CLAIMED[n >= _LARGE],
                "state": f"{record['state'] / n:.1f}",
                "held, two blocks of plans included": f"{record['held'] / n:.0f}",
                "peak of a refresh": f"{record['peak'] / n:.0f}",
            }
        )
    return rows


def _refresh(records: list[Record]) -> list[Record]:
    rows = []
    for record in _by_size(records):
        n, seconds = record["key"]["examples"], record["seconds"]
        stages = {
            stage: f"{1000 * np.median(values):.1f}"
            for stage, values in seconds.items()
        }
        total = np.median(seconds["in all"])
        each = {"ns per example": f"{1e9 * total / n:.0f}"}
        rows.append({"examples": f"{n:,}", **stages, **each})
    return rows


def _draws(records: list[Record]) -> list[Record]:
    rows = []
    for record in _by_size(records):
        rates = {k: np.array(v) for k, v in record["draws_a_second"].items()}
        rivals = [name for name in rates if name not in _OURS]
        best = max(rivals, key=lambda name: np.median(rates[name]), default=None)
        for name, values in rates.items():
            against = "-"
            if best is not None and name in _OURS:
                against = _spread(values / rates[best], ".2f")
            rows.append(
                {
                    "examples": f"{record['key']['examples']:,}",
                    "sampler": name,
                    "draws a second (range)": _spread(values, ",.0f"),
                    f"over the fastest other ({best})": against,
                }
            )
    return rows


def _blocks(records: list[Record]) -> list[Record]:
    return [
        {
            "examples": f"{record['key']['examples']:,}",
            "draws of a block": f"{int(draws):,}",
            "draws a second (range)": _spread(np.array(values), ",.0f"),
        }
        for record in _by_size(records)
        for draws, values in record["draws_a_second"].items()
    ]


def _shards(records: list[Record]) -> list[Record]:
    return [
        {"norms": record["key"]["norms"], "examples": f"{record['key']['examples']:,}"}
        | {
            f"W = {workers}": f"{ratio['found']:.5f} ({ratio['expected']:.5f})"
            for workers, ratio in record["ratios"].items()
        }
        for record in records
    ]


def _beyond(memory: list[Record], refresh: list[Record]) -> list[Record]:
    """Returns workers of 16 GiB for 1e9 to 1e11 examples, from the largest measured."""
    if not memory or not refresh:
        return []
    heaviest, slowest = _by_size(memory)[-1], _by_size(refresh)[-1]
    per_example = heaviest["peak"] / heaviest["key"]["examples"]
    seconds = np.median(slowest["seconds"]["in all"]) / slowest["key"]["examples"]
    rows = []
    for n in (_BILLION, 10 * _BILLION, 100 * _BILLION):
        workers = int(np.ceil(n * per_example / _WORKER_BYTES))
        rows.append(
            {
                "examples": f"{n:.0e}",
                "bytes in all": f"{n * per_example:.1e}",
                "workers of 16 GiB": workers,
                "bytes a worker": f"{n * per_example / workers:.1e}",
                "seconds a refresh": f"{n / workers * seconds:.0f}",
                "network bytes a worker, a step": _STEP_BYTES,
                "and a refresh": f"{_WINDOW * _WINDOW_ROW_BYTES:,}",
            }
        )
    return rows


def _by_size(records: list[Record]) -> list[Record]:
    return sorted(records, key=lambda record: record["key"]["examples"])


def _spread(values: np.ndarray, form: str) -> str:
    low, middle, high = values.min(), np.median(values), values.max()
    return f"{middle:{form}} ({low:{form}}-{high:{form}})"
