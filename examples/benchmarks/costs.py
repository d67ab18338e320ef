"""Measures what sampling costs over plain Keras' `fit`, and what the cost consists of.

    python -m examples.benchmarks.costs

Plain Keras and RAIS take the same number of steps on the same data, in turn, in this
one process; threads of any library are left as they are set. Every round is written to
`examples/results/costs_runs.jsonl` when it ends and is not repeated; `report` makes
`costs.md` from that file. It takes some nine minutes on two cores. Times are only
worth something on a machine that does nothing else.

Parts, in the order in which all are run where none is named:
    steps    steps of several networks, and what comes before the first of a `fit`
    first    the first step of a fresh model, which TensorFlow traces
    plans    plans without training, for several numbers of examples
    parts    what the processor's time of a step is spent on
    report   the tables
"""

import gc
import os
import statistics
from collections.abc import Sequence

from examples.benchmarks import (
    command_line,
    costs_parts,
    costs_report,
    costs_steps,
    synthetic_planner,
)
from examples.benchmarks.costs_steps import EXACT, PLAIN, SAMPLED, Case
from examples.common import models
from examples.common.records import Records

PARTS = ("steps", "first", "plans", "parts", "report")
_IMAGES, _ROWS, _WORDS = 50_000, 50_000, 1_270_000
_ALL = (PLAIN, SAMPLED, EXACT)
_HALF_AN_EPOCH_OF_WORDS = 1240
_SIZES = (50_000, 1_000_000, 10_000_000)
_HUGE = 100_000_000
_ROUNDS, _PARTS_ROUNDS, _PARTS_STEPS = 4, 3, 400
_WARM_UP = 2  # fits: past tracing, and past the draws that are uniform at the start
_PLANS, _PLANS_BEFORE = 7, 3


def cases(smoke: bool) -> list[Case]:
    """Returns what is trained."""
    if smoke:
        mlp = Case("mlp", "mlp", costs_steps.images, 2000, methods=_ALL)
        word = Case("words", "text", costs_steps.words, 5000, 64, steps=20)
        return [mlp, word]
    half = _HALF_AN_EPOCH_OF_WORDS
    return [
        Case("cnn", "cnn", costs_steps.images, _IMAGES, methods=_ALL),
        Case("mlp", "mlp", costs_steps.images, _IMAGES, methods=_ALL),
        Case("table", "table", costs_steps.columns, _ROWS),
        Case("words", "text", costs_steps.words, _WORDS, 512, steps=half),
    ]


def main() -> None:
    """Runs the parts named on the command line."""
    smoke = "few examples and one round, kept apart: does it run at all?"
    parser = command_line.parser(__doc__, PARTS, smoke, default="all")
    parser.add_argument(
        "--huge", action="store_true", help=f"also a plan of {_HUGE:,}, in 16 GB"
    )
    options = command_line.parsed(parser, "costs")
    records = Records(options.results / "costs_runs.jsonl")
    trained, rounds = cases(options.smoke), 1 if options.smoke else _ROUNDS
    sizes = (5000,) if options.smoke else (*_SIZES, *[_HUGE] * options.huge)
    images = [case for case in trained if case.load is costs_steps.images]
    within = (1, 15) if options.smoke else (_PARTS_ROUNDS, _PARTS_STEPS)
    parts = {
        "steps": lambda: measure_steps(records, trained, rounds),
        "first": lambda: measure_first(records, trained[0], rounds),
        "plans": lambda: measure_plans(records, sizes),
        "parts": lambda: measure_parts(records, images, *within),
        "report": lambda: costs_report.write(records, options.results),
    }
    for part in PARTS if options.part == "all" else (options.part,):
        print(f"== {part}", flush=True)
        parts[part]()
        gc.collect()


def measure_steps(records: Records, trained: Sequence[Case], rounds: int) -> None:
    """Times a `fit` of each method, there and back, in every round."""
    for case in trained:
        keys = _missing(records, "steps", case, rounds)
        if not keys:
            continue
        given = case.load(case.examples)
        built = {m: costs_steps.build(case, m, given) for m in case.methods}
        for model in built.values():
            for _ in range(_WARM_UP):
                costs_steps.timed_fit(model, case, given)
        for key in keys:
            found = costs_steps.in_turn(
                case.methods,
                lambda m: costs_steps.timed_fit(built[m], case, given),  # noqa: B023
            )
            plans = [built[m].sampling_run.planner.last_plan for m in case.methods[1:]]
            by_importance = all(plan.importance for plan in plans)
            more = {"by_importance": by_importance, "threads": _threads()}
            records.append(key, {"fits": found, **more})
            print(f"{case.name}: {_walls(found)}", flush=True)


def measure_first(records: Records, case: Case, rounds: int) -> None:
    """Times the beginning of a `fit` of fresh models."""
    keys = _missing(records, "first", case, rounds)
    given = case.load(case.examples) if keys else None

    def fresh(method: str) -> dict:
        return costs_steps.timed_fit(
            costs_steps.build(case, method, given), case, given, steps=2
        )

    if keys:
        fresh(PLAIN)  # what TensorFlow itself takes, once in a process
    for key in keys:
        found = costs_steps.in_turn((PLAIN, SAMPLED), fresh)
        records.append(key, {"fits": found})
        starts = {m: [fit["start"] for fit in fits] for m, fits in found.items()}
        print(f"{case.name}, first step, s: {starts}", flush=True)


def measure_plans(records: Records, sizes: Sequence[int]) -> None:
    """Times plans, of norms that are made up."""
    for examples in sizes:
        key = {"part": "plans", "examples": examples}
        if key in records:
            continue
        norms = synthetic_planner.synthetic_norms(examples, seed=0)
        made = synthetic_planner.synthetic(norms, models.BATCH_SIZE, seed=0)
        synthetic_planner.seconds_of_plans(made.plan_block, _PLANS_BEFORE)
        plans = 3 if examples >= _HUGE else _PLANS
        seconds = synthetic_planner.seconds_of_plans(made.plan_block, plans)
        records.append(key, {"seconds": seconds, "draws": made.draws})
        del made
        gc.collect()
        print(f"{examples:,}: {statistics.median(seconds):.4f} s a plan", flush=True)


def measure_parts(
    records: Records, trained: Sequence[Case], rounds: int, steps: int
) -> None:
    """Times planning, pipeline and training function alone."""
    for case in trained:
        key = {"part": "parts", "case": case.name, "examples": case.examples}
        if key not in records:
            given = case.load(case.examples)
            records.append(key, costs_parts.measure(case, given, rounds, steps))
            print(f"{case.name}: taken to pieces", flush=True)


def _missing(records: Records, part: str, case: Case, rounds: int) -> list[dict]:
    same = {"part": part, "case": case.name, "examples": case.examples}
    keys = [{**same, "round": number} for number in range(rounds)]
    return [key for key in keys if key not in records]


def _threads() -> str | None:
    return os.environ.get("OPENBLAS_NUM_THREADS")


def _walls(found: dict) -> str:
    return ", ".join(
        f"{method} {statistics.fmean(fit['wall'] for fit in fits):.3f} ms"
        for method, fits in found.items()
    )


if __name__ == "__main__":
    main()
