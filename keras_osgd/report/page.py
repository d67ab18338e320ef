"""The page about runs: their settings, their results, their draws."""

from __future__ import annotations

import base64
import html
import io
import os
import pathlib
import re
import string
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from keras_osgd import plots
from keras_osgd.base.files import write_whole
from keras_osgd.plots.style import in_words
from keras_osgd.report import tables
from keras_osgd.report.tables import number
from keras_osgd.run_directory import RunRecord, load, percentile_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["page", "write"]

_PIXELS, _SHOWN = 150, 92  # pixels of an inch: drawn, and shown
_WIDTH = 7.8  # inches, of every figure
TEMPLATE = string.Template("""<!DOCTYPE html>
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
img { display: block; max-width: 100%; height: auto; margin: 0.5rem auto; }
/* Shadows at the edges where a table goes on: white covers move with the table. */
.wide { display: inline-block; max-width: 100%; overflow-x: auto;
  margin: 0.6rem 2rem 1rem 0; background:
  linear-gradient(to right, white 30%, transparent) left / 3rem 100% no-repeat local,
  linear-gradient(to left, white 30%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to right, #0005, transparent) left / 1rem 100% no-repeat scroll,
  linear-gradient(to left, #0005, transparent) right / 1rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: 0.87rem; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right;
  vertical-align: top; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
.words td + td { text-align: left; min-width: 9rem; max-width: 22rem;
  white-space: normal; overflow-wrap: anywhere; }
.words th { text-align: left; }
.runs :is(td, th):nth-child(2) { text-align: left; min-width: 8rem;
  white-space: normal; }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
h1, h3 { overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


def write(
    directories: Sequence[str | os.PathLike], path: str | os.PathLike
) -> list[str]:
    """Writes a page about runs into one file that needs no other.

    What is damaged is left out, and named on the page and in what is returned.

    Args:
        directories: of `SamplingMonitor(log_dir=...)`. Runs with the same
            settings count as seeds of one; a directory given twice counts once.
        path: file for the page, in a directory that exists.

    Returns:
        Sentences on what was left out, each with its file.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if no directory has a run, or `path` can be no file.

    Example:
        >>> import tempfile
        >>> from keras_osgd.run_directory import RunFiles
        >>> home = pathlib.Path(tempfile.mkdtemp())
        >>> RunFiles(home / "a run").write_history([{"epoch": 1}])
        >>> write([home / "a run"], home / "report.html")
        []
        >>> "a run" in (home / "report.html").read_text()
        True
    """
    target = pathlib.Path(path)
    if target.is_dir() or not target.parent.is_dir():
        what = f"{path}, a directory" if target.is_dir() else path
        raise ValueError(
            "The page must be a file in a directory that exists. Received: "
            f"{what}. Make the directory {target.parent}, or name another file."
        )
    records, left_out = [], []
    for directory in dict.fromkeys(pathlib.Path(x).resolve() for x in directories):
        try:
            records.append(load(directory))
        except ValueError as error:
            left_out.append(str(error))
    if not records and left_out:
        raise ValueError("\n".join(left_out))
    text = _page(records, left_out)
    write_whole(target, text.encode("utf-8", "replace"))
    return left_out


def page(records: Sequence[RunRecord]) -> str:
    """Returns the page as a text.

    Args:
        records: runs, as `run_directory.load` returns them.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there is no run.
    """
    return _page(records, [])


def _page(records: Sequence[RunRecord], left_out: list[str]) -> str:
    """Returns the page; adds to `left_out` what could not be shown."""
    groups = _groups(records)
    title = "Training runs: " + ", ".join(groups)
    left_out += [fault for record in records for fault in record.faults]
    parts = (_runs, _curves, _draws, _norms, _examples, _alarms, _settings)
    shown = [_shown(part, records, groups, left_out) for part in parts]
    body = "\n".join(text for part in (shown, _left_out(left_out)) for text in part)
    return TEMPLATE.substitute(title=html.escape(title), body=body)


def _shown(
    part: Callable[..., Iterator[_Piece]],
    records: Sequence[RunRecord],
    groups: _Groups,
    left_out: list[str],
) -> str:
    """Returns a part of the page; pieces that fail are left out, and named."""
    texts, pieces, piece = [], part(records, groups), ""
    while piece is not None:
        what = part.__name__.strip("_")
        try:
            piece = next(pieces, None)
            if isinstance(piece, tuple):
                what, make = piece
                piece = make()
            texts.append(piece or "")
        except ImportError:
            raise
        except Exception as error:  # of damage that `load` does not know
            cause = f"{type(error).__name__}: {error}"
            left_out.append(f"{what} of {_names(records)} cannot be shown ({cause}).")
            texts.append(_paragraph(left_out[-1]))
    return "\n".join(texts)


def _left_out(left_out: Sequence[str]) -> Iterator[str]:
    if left_out:
        yield "<h2>Left out</h2>"
        lines = "".join(f"<li>{html.escape(line)}</li>\n" for line in left_out)
        yield f"<ul>{lines}</ul>"


_Groups = dict[str, list[RunRecord]]
# A text, or what it shows and a function that makes it.
_Piece = str | tuple[str, Callable[[], str]]


def _groups(records: Sequence[RunRecord]) -> _Groups:
    """Returns runs by name; runs that differ only in their seeds share a name."""
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
    # Runs that all figures show come first, so that each keeps its colour.
    return dict(sorted(named.items(), key=lambda item: not _is_sampled(item[1][0])))


def _runs(records: Sequence[RunRecord], groups: _Groups) -> Iterator[_Piece]:
    yield "<h2>Runs</h2>"
    yield f'<div class="runs">{tables.runs(records)}</div>'
    for name, group in groups.items():
        if len(group) > 1:
            yield _paragraph(f"{name} is {_names(group)}: they differ in their seeds.")
    if len(records) > 1 and tables.metrics(records):
        yield from _compared(records, groups)


def _compared(records: Sequence[RunRecord], groups: _Groups) -> Iterator[_Piece]:
    means = ", means over seeds" if len(groups) < len(records) else ""
    yield _paragraph(
        "What it took to be as good as the least good run ever became, looked at after "
        f"each epoch{means}:"
    )
    yield tables.reached(groups)
    begun = [r for r in records if r.settings.get("status", "complete") != "complete"]
    if begun:
        yield _paragraph(
            f"Not all of these runs ended: {_names(begun)} may have become better yet, "
            "and what is compared here would be another value."
        )
    sizes = {k: number(v[0].settings.get("parameters")) for k, v in groups.items()}
    if len(set(sizes.values()) - {number(None)}) > 1:
        told = ", ".join(f"{name} {size}" for name, size in sizes.items())
        yield _paragraph(
            f"The models differ in their number of parameters ({told}): what differs "
            "between these runs is not due to the sampling alone."
        )


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _names(records: Sequence[RunRecord]) -> str:
    return ", ".join(record.name for record in records)


def _first(group: Sequence[RunRecord]) -> str:
    """Returns the name of a group's first run, which stands for all."""
    of = f", the first of {len(group)}" if len(group) > 1 else ""
    return f"{group[0].name}{of}"


def _curves(records: Sequence[RunRecord], groups: _Groups) -> Iterator[_Piece]:
    names = tables.metrics(records)
    if names:
        yield "<h2>Learning curves</h2>"
    if names and len(groups) < len(records):
        yield "<p>Means over seeds; bands from least to largest.</p>"
    for name in names:
        words = f"{in_words(name)} against its cost"
        yield _image(words, plots.learning_curves, groups, name)
    importance = {k: v for k, v in groups.items() if _is_sampled(v[0])}
    if importance:
        yield "<h2>Gain ratio</h2>"
        yield _paragraph(
            "The mean square of a batch's gradient with uniform draws over that with "
            "the draws made, as estimated when draws were last planned; 1 is no gain. "
            "Where there are values by exact norms as well, these are of the epoch's "
            "end, and the estimate lags them. Where the learning rate is adapted, r "
            "multiplies the rate of SGD, and its root that of Adam and its like."
        )
        yield _image("Gain ratio", plots.gain_ratio, importance)


def _is_sampled(record: RunRecord) -> bool:
    sampled = record.settings.get("sampling") != "uniform"
    return sampled and "gain_ratio" in record.history


def _draws(records: Sequence[RunRecord], groups: _Groups) -> Iterator[_Piece]:
    drawn = {k: [r for r in v if r.arrays] for k, v in groups.items()}
    drawn = {k: v for k, v in drawn.items() if v}
    if not drawn:
        return
    yield "<h2>What was drawn</h2>"
    yield _image("Share of draws", plots.share_of_draws, drawn)
    for group in drawn.values():
        if percentile_name(50) in group[0].history:
            name = _first(group)
            yield f"<h3>Probabilities over time: {html.escape(name)}</h3>"
            yield _image(f"n p of {name}", plots.probabilities_over_time, group[0])


def _norms(records: Sequence[RunRecord], groups: _Groups) -> Iterator[_Piece]:
    known = [group for group in groups.values() if "predicted" in group[0].arrays]
    if known:
        yield "<h2>Predicted and observed gradient norms</h2>"
    for group in known:
        name = _first(group)
        yield f"<h3>{html.escape(name)}</h3>"
        yield _image(f"Norms of {name}", plots.predicted_norms, group[0])


def _examples(records: Sequence[RunRecord], groups: _Groups) -> Iterator[_Piece]:
    known = [group for group in groups.values() if group[0].examples]
    if known:
        yield "<h2>Hardest examples</h2>"
        yield (
            "<p>Those drawn most often: hard, rare, or wrongly labelled. More of them "
            "are in examples.csv.</p>"
        )
    for group in known:
        yield f"<h3>{html.escape(_first(group))}</h3>"
        yield f"Examples of {group[0].name}", partial(tables.examples, group[0])


def _alarms(records: Sequence[RunRecord], groups: _Groups) -> Iterator[_Piece]:
    yield "<h2>Alarms and notices</h2>"
    told = [(r.name, text) for r in records for text in r.settings.get("alarms", [])]
    if not told:
        yield "<p>None.</p>"
    else:
        lines = (f"<b>{html.escape(a)}</b>: {html.escape(b)}" for a, b in told)
        yield "<ul>" + "".join(f"<li>{line}</li>\n" for line in lines) + "</ul>"


def _settings(records: Sequence[RunRecord], groups: _Groups) -> Iterator[_Piece]:
    yield "<h2>Settings</h2>"
    yield f'<div class="words">{tables.settings_table(records)}</div>'


def _image(alternative: str, draw: Callable[..., Any], *arguments: Any) -> _Piece:
    """Returns an image to be drawn, and its words for who does not see it."""
    return alternative, lambda: _drawn(alternative, draw(*arguments))


def _drawn(alternative: str, figure: Figure) -> str:
    file = io.BytesIO()
    figure.set_figwidth(_WIDTH)
    figure.savefig(file, format="png", dpi=_PIXELS)
    width = round(_SHOWN * _WIDTH)
    data = base64.b64encode(file.getvalue()).decode()
    words = html.escape(alternative, quote=True)
    place = f"data:image/png;base64,{data}"
    return f'<img alt="{words}" width="{width}" src="{place}">'
