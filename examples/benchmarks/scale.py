"""Measures what the sampling costs as the training set grows, beside other samplers.

    python -m examples.benchmarks.scale all

Norms are synthetic and no model is trained. Everything runs on one core, in processes
of their own, and seconds are the processor's, so that other programs disturb less.
Every measurement is written to `examples/results/scale_runs.jsonl` when it ends and is
not repeated; `report` makes `scale.json` and `scale.md` from that file.

Parts, in the order in which `all` runs them:
    memory    bytes per example: state, held, and at the peak of a refresh
    refresh   seconds of a refresh, by stage
    draws     draws a second, priorities updated, beside torchrl and cpprb, in turn
    blocks    the same of RAIS alone, for blocks of several lengths
    shards    what it costs to cut the score table into shards, by computation
    report    the tables

The other samplers are optional: `pip install torchrl cpprb`, here or in an environment
whose Python `--rivals` names.
"""

import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from examples.benchmarks import (
    command_line,
    scale_contenders,
    scale_report,
    scale_shards,
    synthetic_planner,
)
from examples.benchmarks.process_memory import memory_bytes, reset_peak
from examples.common.records import Record, Records
from keras_osgd.sampling import RAIS

PARTS = ("memory", "refresh", "draws", "blocks", "shards", "report")
SIZES = (1_000_000, 10_000_000)
HUGE = 100_000_000
BATCH_SIZE = 128
_OURS = ("RAIS", "block draws")
RIVALS = tuple(name for name in scale_contenders.CONTENDERS if name not in _OURS)
WORKERS = (8, 64, 256, 1024)
TAILS = ("log-normal 1", "log-normal 1.5", "log-normal 2", "Pareto 2.5")
_REFRESHES = 7
_ROUNDS = 9
_BLOCK_ROUNDS = 7
_DRAWS = 250_000  # of a contender in a round, at least
_BLOCKS = (32, 8, 2, 1)  # draws of a block: n over these
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def main() -> None:
    """Runs the parts named on the command line."""
    smoke = "few examples, kept apart: does it run at all?"
    parser = command_line.parser(__doc__, PARTS, smoke)
    parser.add_argument(
        "--huge", action="store_true", help=f"also {HUGE:,} examples, in 16 GB"
    )
    parser.add_argument(
        "--rivals", default=sys.executable, help="Python with torchrl and cpprb"
    )
    options = command_line.parsed(parser, "scale")
    os.environ.update(_ONE_THREAD)
    records = Records(options.results / "scale_runs.jsonl")
    sizes = (*SIZES, HUGE) if options.huge else SIZES
    n, rounds = SIZES[0], _ROUNDS
    if options.smoke:
        sizes, n, rounds = (20_000,), 20_000, 1
    parts = {
        "memory": lambda: measure_memory(records, sizes),
        "refresh": lambda: measure_refreshes(records, sizes),
        "draws": lambda: compare_draws(records, n, rounds, options.rivals),
        "blocks": lambda: compare_blocks(records, n, rounds),
        "shards": lambda: compute_shards(records, n),
        "report": lambda: scale_report.write(records, options.results),
    }
    for part in PARTS if options.part == "all" else (options.part,):
        print(f"== {part}", flush=True)
        parts[part]()


def measure_memory(records: Records, sizes: Sequence[int]) -> None:
    """Weighs a planner and its refreshes."""
    _measure(records, "memory", sizes, _bytes_of)


def measure_refreshes(records: Records, sizes: Sequence[int]) -> None:
    """Times the stages of refreshes."""
    _measure(records, "refresh", sizes, _seconds_of)


def _measure(
    records: Records, part: str, sizes: Sequence[int], measure: Callable
) -> None:
    for examples in sizes:
        key = {"part": part, "examples": examples}
        if key in records:
            continue
        # A process of its own: memory that was freed once hides the next peak.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(
            1, context, initializer=_on_one_core
        ) as pool:
            found = pool.submit(measure, examples).result()
        records.append(key, found)
        print(f"{examples:,} examples: {json.dumps(found)}", flush=True)


def _on_one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def _bytes_of(examples: int) -> Record:
    """Returns bytes above those of the process with the norms alone."""
    synthetic_planner.synthetic(np.ones(100, np.float32), 1, 0, 50).plan_block()
    norms = synthetic_planner.synthetic_norms(examples, seed=0)
    bare = memory_bytes("VmRSS")
    made = synthetic_planner.synthetic(norms, BATCH_SIZE, seed=0)
    for _ in range(2):
        made.plan_block()
    held = memory_bytes("VmRSS") - bare
    reset_peak()
    for _ in range(2):
        made.plan_block()
    peak = memory_bytes("VmHWM") - bare
    return {"state": made.state_bytes, "held": held, "peak": peak}


def _seconds_of(examples: int) -> Record:
    """Returns the processor's seconds of every stage, of several refreshes each."""
    norms = synthetic_planner.synthetic_norms(examples, seed=0)
    made = synthetic_planner.synthetic(norms, BATCH_SIZE, seed=0)
    for _ in range(3):
        made.plan_block()
    refreshes = 3 if examples >= HUGE else _REFRESHES
    found = [
        synthetic_planner.seconds_by_stage(made.plan_block) for _ in range(refreshes)
    ]
    stages = {stage: [seconds[stage] for seconds in found] for stage in found[0]}
    return {"draws": made.draws, "seconds": stages}


class _Contender:
    """A sampler in a process of its own; see `scale_contenders`."""

    def __init__(self, name: str, examples: int, block_draws: int, python: str) -> None:
        numbers = map(str, (examples, BATCH_SIZE, block_draws))
        self._process = subprocess.Popen(
            [python, "-m", "examples.benchmarks.scale_contenders", name, *numbers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=pathlib.Path(__file__).parents[2],
        )
        lines = iter(self._process.stdout.readline, "")
        self.ready = any(line.strip() == "ready" for line in lines)
        self.error = "" if self.ready else self._process.stderr.read()

    def draws_a_second(self, draws: int) -> float:
        """Returns how many draws, with updates, a second of the processor gives."""
        self._process.stdin.write(f"{draws}\n")
        self._process.stdin.flush()
        done, seconds = self._process.stdout.readline().split()
        return float(done) / float(seconds)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def compare_draws(records: Records, examples: int, rounds: int, python: str) -> None:
    """Lets ours and the other samplers draw in turn."""
    block = RAIS().block_steps(examples, BATCH_SIZE) * BATCH_SIZE
    asked = {name: (name, block, python) for name in RIVALS}
    for name in _OURS:
        asked[name] = (name, block, sys.executable)
    _race(records, {"part": "draws", "examples": examples}, asked, rounds, _DRAWS)


def compare_blocks(records: Records, examples: int, rounds: int) -> None:
    """Lets RAIS draw in blocks of several lengths in turn."""
    # 50 steps are the least that `fit` takes.
    steps = {max(examples // part // BATCH_SIZE, 50) for part in _BLOCKS} | {50}
    asked = {
        str(count * BATCH_SIZE): ("RAIS", count * BATCH_SIZE, sys.executable)
        for count in sorted(steps)
    }
    # A refresh of any length of block takes about as long, so few draws are enough.
    rounds = min(rounds, _BLOCK_ROUNDS)
    _race(records, {"part": "blocks", "examples": examples}, asked, rounds, draws=1)


def _race(records: Records, key: Record, asked: dict, rounds: int, draws: int) -> None:
    """Records draws a second of every contender, at least `draws` in every round."""
    if key in records:
        return
    running = {}
    for label, (name, block, python) in asked.items():
        made = _Contender(name, key["examples"], block, python)
        if made.ready:
            running[label] = made
        else:
            made.close()
            cause = made.error.strip().splitlines()[-1:]
            print(f"{label} is left out: {cause}. `pip install torchrl cpprb`")
    found = {label: [] for label in running}
    for number in range(rounds):
        labels = list(running)
        turn = number % len(labels)
        for label in labels[turn:] + labels[:turn]:
            found[label].append(running[label].draws_a_second(draws))
    for made in running.values():
        made.close()
    records.append(key, {"draws_a_second": found})
    for label, rates in found.items():
        print(f"{label}: {np.median(rates):,.0f} draws a second", flush=True)


def compute_shards(records: Records, examples: int) -> None:
    """Computes the second moment by shards over that in one piece."""
    for tail in TAILS:
        key = {"part": "shards", "examples": examples, "norms": tail}
        if key in records:
            continue
        rng = np.random.default_rng(0)
        norms = scale_shards.heavy_tailed(tail, examples, rng)
        scores = (1 - 0.05) * norms + 0.05 * norms.mean()  # with a floor
        found = {}
        for workers in WORKERS:
            shard = scale_shards.shares(examples, workers, rng)
            found[str(workers)] = {
                "found": scale_shards.moment_ratio(scores, norms, shard),
                "expected": scale_shards.expected_ratio(scores, norms, workers),
            }
        records.append(key, {"ratios": found})


if __name__ == "__main__":
    main()
