"""The page of what sampling costs over plain Keras, made from the records."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
from collections.abc import Callable, Sequence

import numpy as np

from examples.benchmarks.costs_steps import EXACT, PLAIN, SAMPLED
from examples.common.markdown import table
from examples.common.records import Record, Records

_NAMES = {PLAIN: "Keras", SAMPLED: "RAIS", EXACT: "RAIS, exact norms"}
_CASES = {
    "cnn": "CNN",
    "mlp": "MLP",
    "table": "a table's network",
    "words": "words",
}
_INTRODUCTION = """\
Plain Keras is `keras.Model.fit(shuffle=True)`. RAIS trains the same layers from the
same weights on the same data, with `adapt_learning_rate=False`, so that both take the
same number of steps. They are timed in one process in turn, there and back (Keras,
RAIS, RAIS, Keras); so is RAIS with exact norms, where it stands. A ratio is that of the
two times of such a round; the figures are the median of the rounds' ratios and, in
brackets, their quartiles."""
_EXPLANATIONS = """\
- *A step*: the mean time of a step of `fit`, by the clock, from its second step to its
  end: end of epochs, planning and waiting included. CNN and MLP are the two networks of
  the benchmarks on 50,000 images of Fashion-MNIST, batches of 64; the table is made up,
  50,000 rows of 16 columns, with two Dense layers of 128. A timed `fit` is an epoch, in
  which RAIS plans eight times.
- *Processor time of a step*: the same by the processor's clock, all threads together.
  RAIS plans in a second thread, which costs no time by the clock where a core is idle,
  but does so here.
- *To the first batch of a second `fit`*: seconds from the call of `fit` to the end of
  its first step, less those of Keras. Nothing is traced any more; RAIS looks whether
  the data are those it knows, and plans the first block.
- *Words*: 1.27 million rows of 16 tokens, batches of 512, the mean of an embedding and
  Dense layers: half an epoch at a time, with four plans. Data and labels are made up.
- *A plan*: what one block of n/8 draws takes, without a model, by the clock: to take in
  the norms of the last block, fit, compute p and draw. It happens beside the steps.
- *The first step of a fresh model*: seconds from the call of its first `fit` to the end
  of its first step: tracing and compiling, and RAIS's examination of data and losses.
- *Exact norms*: `RAIS(norm="exact")`, which takes the norm of each example's whole
  gradient, where the default takes that of the last layer's."""

_ONE_BY_ONE = """\
Milliseconds of a step of `fit` by the clock, from when it begins to when the next one
does: medians over all timed `fit`s. The ratios above are those of the means. Chance is
a second `fit` of plain Keras over the first in the same round, by the mean step
(quartiles): what a ratio of 1 looks like on this machine."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: what was measured.
        goal: at most.
        values: returns one figure for each round, or none.
        unit: written behind a figure; empty for a ratio.
        scale: of the figures as they are shown.
    """

    name: str
    goal: float
    values: Callable[[Records], Sequence[float]]
    unit: str = ""
    scale: float = 1.0

    def shown(self, value: float, signed: bool = False) -> str:
        """Returns a figure as it is written."""
        plus = "+" if signed else ""
        return f"{value * self.scale:{plus}.3g}{self.unit}"


def ratios(
    records: Records, case: str, method: str, measure: str, part: str = "steps"
) -> list[float]:
    """Returns that of a method over plain Keras', for each round."""
    return [
        _sum(fits, method, measure) / _sum(fits, PLAIN, measure)
        for fits in _rounds(records, case, part, method)
    ]


def differences(records: Records, case: str, method: str, measure: str) -> list[float]:
    """Returns that of a method less plain Keras', for each round."""
    return [
        (_sum(fits, method, measure) - _sum(fits, PLAIN, measure)) / 2
        for fits in _rounds(records, case, "steps", method)
    ]


def chance(records: Records, case: str, measure: str) -> list[float]:
    """Returns the second `fit` of plain Keras over the first, for each round."""
    return [
        fits[PLAIN][1][measure] / fits[PLAIN][0][measure]
        for fits in _rounds(records, case, "steps", PLAIN)
    ]


def _rounds(records: Records, case: str, part: str, method: str) -> list[Record]:
    found = [each["fits"] for each in records.select(part=part, case=case)]
    return [fits for fits in found if method in fits]


def _sum(fits: Record, method: str, measure: str) -> float:
    return sum(fit[measure] for fit in fits[method])


def _ratio(case: str, measure: str, method: str = SAMPLED, part: str = "steps"):
    return lambda records: ratios(records, case, method, measure, part)


def _start(case: str):
    return lambda records: differences(records, case, SAMPLED, "start")


def _plan(examples: int):
    return lambda records: [
        seconds
        for each in records.select(part="plans", examples=examples)
        for seconds in each["seconds"]
    ]


ROWS = (
    Row("a step, CNN", 1.03, _ratio("cnn", "wall")),
    Row("a step, MLP", 1.05, _ratio("mlp", "wall")),
    Row("a step, table", 1.10, _ratio("table", "wall")),
    Row("processor time of a step, CNN", 1.10, _ratio("cnn", "processor")),
    Row("processor time of a step, MLP", 1.15, _ratio("mlp", "processor")),
    Row("to the first batch of a second `fit`, images", 0.05, _start("mlp"), " s"),
    Row("to the first batch of a second `fit`, words", 0.05, _start("words"), " s"),
    Row("seconds at equal steps, words", 1.03, _ratio("words", "wall")),
    Row("a plan, n = 50,000", 0.004, _plan(50_000), " ms", 1000),
    Row("a plan, n = 1 million", 0.025, _plan(10**6), " ms", 1000),
    Row("a plan, n = 10 million", 0.25, _plan(10**7), " s"),
    Row("a plan, n = 100 million", 3.0, _plan(10**8), " s"),
    Row("first step of a fresh model, CNN", 1.15, _ratio("cnn", "start", part="first")),
    Row("a step with exact norms, MLP", 1.05, _ratio("mlp", "wall", EXACT)),
    Row("a step with exact norms, CNN", 1.3, _ratio("cnn", "wall", EXACT)),
)


def write(records: Records, folder: pathlib.Path) -> None:
    """Writes `costs.md`."""
    sections = [
        "# What sampling costs over plain Keras",
        _INTRODUCTION,
        _machine(records),
        *goals(records),
        _EXPLANATIONS,
        "## Steps one by one",
        _ONE_BY_ONE,
        _distribution(records),
        "## Where the processor's time goes",
        *_attribution(records),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "costs.md").write_text("\n\n".join(filter(None, sections)) + "\n")


def goals(records: Records) -> list[str]:
    """Returns the table of all rows, and a sentence on those that miss their goal."""
    rows, missed = [], []
    for row in ROWS:
        values, signed = row.values(records), row.name.startswith("to the first batch")
        goal = row.shown(row.goal, signed)
        if not len(values):
            rows.append([row.name, "not measured", goal])
            continue
        low, middle, high = np.percentile(values, (25, 50, 75))
        shown = row.shown(middle, signed)
        rows.append([row.name, f"{shown} ({_span(row, low, high)})", goal])
        if middle > row.goal:
            missed.append(f"{row.name}, {shown} for {goal}")
    text = "Missed: " + "; ".join(missed) + "." if missed else "Every goal is met."
    return [table(["", "measured now", "goal"], rows), text]


def _span(row: Row, low: float, high: float) -> str:
    """Returns both quartiles; those of differences may be negative."""
    return f"{low * row.scale:.3g} to {high * row.scale:.3g}"


def _machine(records: Records) -> str:
    found = [record["environment"] for record in records.select()]
    if not found:
        return "Nothing has been measured."
    last, steps = found[-1], records.select(part="steps")
    loads = [each["load"] for each in found if each["load"] is not None]
    threads = {each["threads"] for each in steps}
    lines = [
        f"Measured on {last['cpus']} cores ({last['machine']}), Python "
        f"{last['python']}, TensorFlow {last['tensorflow']}, Keras {last['keras']}, "
        f"keras_osgd {last['keras_osgd']}.",
        f"The machine's load was {statistics.median(loads):.1f} (median), the "
        "benchmark's own included." * bool(loads),
        "`OPENBLAS_NUM_THREADS` is left as the user has it: "
        + " and ".join(sorted("not set" if t is None else t for t in threads))
        + ".",
    ]
    if not all(each["by_importance"] for each in steps):
        lines.append(
            "**Some of RAIS's steps were drawn uniformly**, since its gain was small: "
            "their cost is not that of sampling."
        )
    return "\n".join(lines)


def _distribution(records: Records) -> str:
    columns = ["network", "method", "mean", "median", "90 %", "99 %", "chance"]
    rows = []
    for case, name in _CASES.items():
        for method, called in _NAMES.items():
            rounds = _rounds(records, case, "steps", method)
            fits = [fit for each in rounds for fit in each[method]]
            if not fits:
                continue
            figures = np.median([[f["wall"], *f["quantiles"]] for f in fits], axis=0)
            beside = ""
            if method == PLAIN:
                low, high = np.percentile(chance(records, case, "wall"), (25, 75))
                beside = f"{low:.2f} to {high:.2f}"
            rows.append([name, called, *[f"{f:.2f}" for f in figures], beside])
    return table(columns, rows) if rows else ""


def _attribution(records: Records) -> list[str]:
    """Returns a table of parts, and one of the stages of planning."""
    taken = {record["key"]["case"]: record for record in records.select(part="parts")}
    taken = {case: each for case, each in taken.items() if case in _CASES}
    parts, stages = [], []
    for case, each in taken.items():
        name = _CASES[case]
        parts += [[name, *map(str, row)] for row in parts_of(records, case, each)]
        stages += [
            [name, stage, f"{milliseconds:.3f}"]
            for stage, milliseconds in each["planning"].items()
        ]
    if not parts:
        return []
    return [
        "Milliseconds of the processor a step, all threads. Planning, pipeline and "
        "training function are timed alone: plans of made-up norms for as many "
        "examples; the batches of each one's own dataset, taken without training; the "
        "training function on one batch that comes again and again. The rest is what "
        "remains of the difference: the Python of the training thread, and what parts "
        "cost each other by running side by side.",
        table(["network", "part", "Keras", "RAIS", "difference"], parts),
        "Operations of the training function are the nodes of its graph and of the "
        "functions that it calls, without constants and copies, both branches of a "
        "condition among them.",
        "The stages of planning, likewise in milliseconds a step. To leave the norms "
        "that the plan takes in is part of the rest.",
        table(["network", "stage", "ms"], stages),
    ]


def parts_of(records: Records, case: str, taken: Record) -> list[list[object]]:
    """Returns a line for each part: its name, of Keras, of RAIS, and the difference."""
    rounds = _rounds(records, case, "steps", SAMPLED)
    whole = [
        statistics.median(_sum(each, method, "processor") / 2 for each in rounds)
        if rounds
        else float("nan")
        for method in (PLAIN, SAMPLED)
    ]
    lines = {"planning": [0.0, taken["planning"]["in all"]]}
    for part, name in (("pipeline", "pipeline"), ("graph", "training function")):
        lines[name] = [statistics.median(taken[part][m]) for m in (PLAIN, SAMPLED)]
    rest = np.subtract(whole, np.sum(list(lines.values()), axis=0))
    lines |= {"rest": rest.tolist(), "a step of `fit`": whole}
    shown: list[list[object]] = [
        [part, f"{keras:.3f}", f"{rais:.3f}", f"{rais - keras:+.3f}"]
        for part, (keras, rais) in lines.items()
    ]
    count = taken["operations"]
    more = count[SAMPLED] - count[PLAIN]
    return [*shown, ["operations", count[PLAIN], count[SAMPLED], f"{more:+d}"]]
