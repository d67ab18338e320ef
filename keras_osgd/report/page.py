"""The page: what the runs were, what came of them, what was drawn."""

from __future__ import annotations

import base64
import html
import io
import os
import pathlib
import re
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from keras_osgd import plots
from keras_osgd.report import tables
from keras_osgd.run_files import RunRecord, load, percentile_name

__all__ = ["page", "write"]

_TEMPLATE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; margin-bottom: 0.3rem; }
img { max-width: 100%; height: auto; margin: 0.5rem 0; }
.wide { display: inline-block; max-width: 100%; overflow-x: auto;
  margin: 0.6rem 2rem 1rem 0; }
table { border-collapse: collapse; font-size: 0.87rem; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right;
  vertical-align: bottom; white-space: nowrap; }
th { white-space: normal; }
th:first-child, td:first-child { text-align: left; }
.words td + td { text-align: left; min-width: 9rem; max-width: 22rem;
  white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
.words th { text-align: left; }
p, li { max-width: 46rem; }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")
_PIXELS, _SHOWN = 150, 92  # of an inch: drawn, and shown


def write(directories: Sequence[str | os.PathLike], path: str | os.PathLike) -> None:
    """Writes a page about runs into one file that needs no other.

    Args:
        directories: of `SamplingMonitor(log_dir=...)`. Runs of the same settings are
            taken for seeds of one.
        path: of the page.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there is no directory, or one holds no run.

    Example:
        >>> import tempfile
        >>> from keras_osgd.run_files import RunFiles
        >>> home = pathlib.Path(tempfile.mkdtemp())
        >>> RunFiles(home / "a run").write_history([{"epoch": 1}])
        >>> write([home / "a run"], home / "report.html")
        >>> "a run" in (home / "report.html").read_text()
        True
    """
    pathlib.Path(path).write_text(page([load(x) for x in directories]), "utf-8")


def page(records: Sequence[RunRecord]) -> str:
    """Returns the page as a text.

    Args:
        records: runs, as `run_files.load` returns them.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there is no run.
    """
    groups = _groups(records)
    title = "Training runs: " + ", ".join(groups)
    parts = (_runs, _curves, _draws, _norms, _examples, _alarms, _settings)
    body = "\n".join(text for part in parts for text in part(records, groups))
    return _TEMPLATE.substitute(title=html.escape(title), body=body)


_Groups = dict[str, list[RunRecord]]


def _groups(records: Sequence[RunRecord]) -> _Groups:
    """Returns runs by name, those that differ in nothing but seeds together."""
    if not records:
        raise ValueError("There must be at least one run. Received: none.")
    same: dict[str, list[RunRecord]] = {}
    for record in records:
        known = record.settings
        names = ("parameters", "optimizer", "optimizer_options", "n", "batch_size")
        method = re.sub(r"seed=[^,)]*", "", str(known.get("sampling", record.name)))
        key = repr([method, known.get("epochs"), *(known.get(x) for x in names)])
        same.setdefault(key, []).append(record)
    named: _Groups = {}
    for group in same.values():
        name = os.path.commonprefix([r.name for r in group]).rstrip("-_. ")
        name = group[0].name if len(group) == 1 else f"{name or group[0].name} (all)"
        while name in named:
            name += "'"
        named[name] = group
    return named


def _runs(records: Sequence[RunRecord], groups: _Groups) -> Iterator[str]:
    yield "<h2>Runs</h2>"
    yield tables.runs(records)
    if len(records) > 1 and tables.metrics(records):
        yield (
            "<p>What it took to be as good as the least good run ever became, looked "
            "at after each epoch:</p>"
        )
        yield tables.reached(groups)


def _curves(records: Sequence[RunRecord], groups: _Groups) -> Iterator[str]:
    names = tables.metrics(records)
    if names:
        yield "<h2>Learning curves</h2>"
    if names and len(groups) < len(records):
        yield "<p>Means of runs of the same settings; bands from least to largest.</p>"
    for name in names:
        yield _image(f"{name} against its cost", plots.learning_curves, groups, name)
    importance = {k: v for k, v in groups.items() if _is_sampled(v[0])}
    if importance:
        yield "<h2>Gain ratio</h2>"
        yield (
            "<p>The variance of uniform draws' gradient over that of the draws made; 1 "
            "is no gain. It multiplies the learning rate.</p>"
        )
        yield _image("Gain ratio", plots.gain_ratio, importance)


def _is_sampled(record: RunRecord) -> bool:
    sampled = record.settings.get("sampling") != "uniform"
    return sampled and "gain_ratio" in record.history


def _draws(records: Sequence[RunRecord], groups: _Groups) -> Iterator[str]:
    drawn = {k: [r for r in v if r.arrays] for k, v in groups.items()}
    drawn = {k: v for k, v in drawn.items() if v}
    if not drawn:
        return
    yield "<h2>What was drawn</h2>"
    yield _image("Share of draws", plots.share_of_draws, drawn)
    for name, (first, *_) in drawn.items():
        if percentile_name(50) in first.history:
            yield f"<h3>Probabilities over time: {html.escape(first.name)}</h3>"
            yield _image(f"n p of {name}", plots.probabilities_over_time, first)


def _norms(records: Sequence[RunRecord], groups: _Groups) -> Iterator[str]:
    firsts = [group[0] for group in groups.values()]
    known = [record for record in firsts if "predicted" in record.arrays]
    if known:
        yield "<h2>Predicted and observed gradient norms</h2>"
    for record in known:
        yield f"<h3>{html.escape(record.name)}</h3>"
        yield _image(f"Norms of {record.name}", plots.predicted_norms, record)


def _examples(records: Sequence[RunRecord], groups: _Groups) -> Iterator[str]:
    known = [r for r in (group[0] for group in groups.values()) if r.examples]
    if known:
        yield "<h2>Hardest examples</h2>"
        yield (
            "<p>Those drawn most often: hard, rare, or wrongly labelled. More of them "
            "are in examples.csv.</p>"
        )
    for record in known:
        yield f"<h3>{html.escape(record.name)}</h3>"
        yield tables.examples(record)


def _alarms(records: Sequence[RunRecord], groups: _Groups) -> Iterator[str]:
    yield "<h2>Alarms</h2>"
    told = [(r.name, text) for r in records for text in r.settings.get("alarms", [])]
    if not told:
        yield "<p>None.</p>"
    else:
        lines = (f"<b>{html.escape(a)}</b>: {html.escape(b)}" for a, b in told)
        yield "<ul>" + "".join(f"<li>{line}</li>\n" for line in lines) + "</ul>"


def _settings(records: Sequence[RunRecord], groups: _Groups) -> Iterator[str]:
    yield "<h2>Settings</h2>"
    yield f'<div class="words">{tables.settings(records)}</div>'


def _image(alternative: str, draw: Callable[..., Any], *given: Any) -> str:
    figure, file = draw(*given), io.BytesIO()
    figure.savefig(file, format="png", dpi=_PIXELS)
    width = round(_SHOWN * figure.get_figwidth())
    data = base64.b64encode(file.getvalue()).decode()
    words = html.escape(alternative, quote=True)
    place = f"data:image/png;base64,{data}"
    return f'<img alt="{words}" width="{width}" src="{place}">'
