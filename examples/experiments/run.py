"""Runs the experiments and writes their report.

    python -m examples.experiments.run target     time to target: all lengths, then
    python -m examples.experiments.run control    the control, and
    python -m examples.experiments.run seconds    the runs alone on the machine
    python -m examples.experiments.run NAME       another study, `all`, or `report`

A run is written to `results/runs.jsonl` when it ends and is not repeated: stop at any
time and start again. Errors and steps come from runs side by side, one to a core;
seconds from runs alone on the machine, interleaved with their baseline.
"""

import argparse
import os
import pathlib
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from examples.common.records import Records
from examples.experiments import reporting, sets, workloads
from examples.experiments.conduct import Conductor
from examples.experiments.methods import METHODS
from examples.experiments.pool import Pool
from examples.experiments.reporting import time_to_target
from examples.experiments.rivals import RIVALS
from examples.experiments.studies import STUDIES, Study, smoke

_OF_WORKLOADS = ("target", "control", "seconds")


def main() -> None:
    """Carries out what the command line names."""
    options = _options()
    studies = dict(STUDIES)
    if options.smoke:
        studies = {name: smoke(study) for name, study in studies.items()}
    records = Records(options.results / "runs.jsonl")
    names = {"all": list(studies), "report": []}.get(options.name, [options.name])
    if options.name in _OF_WORKLOADS:
        complete = _of_workloads(records, options)
    else:
        complete = all([_carry_out(studies[name], records, options) for name in names])
    reporting.write(
        records,
        studies,
        options.results,
        metric_of=sets.metric,
        title_of=_title,
        rivals=set(RIVALS) - {"reshuffled"},  # which is the control of their loop
        first=time_to_target.sections(
            records, workloads.load(), options.results, _title
        ),
    )
    print(f"Report: {options.results / 'report.md'}")
    sys.exit(0 if complete else "Some runs failed: see above. Start again to repeat.")


def _of_workloads(records: Records, options: argparse.Namespace) -> bool:
    """Makes the runs of the workloads at all lengths, the control's, or the timed."""
    jobs = 1 if options.name == "seconds" else options.jobs
    pool = Pool(jobs, options.smoke)
    conductor = Conductor(records, pool, options.smoke)
    chosen = [x for x in workloads.load() if options.only in (None, x.key)]
    part = {
        "target": lambda workload: conductor.to_target(workload, jobs),
        "control": lambda workload: conductor.controlled(workload, jobs),
        "seconds": conductor.timed_to_target,
    }[options.name]
    try:
        return all([part(workload) for workload in chosen])
    finally:
        pool.close()


def _title(name: str) -> str:
    """Returns how tables name a method; data, networks and optimizers keep theirs."""
    return METHODS[name].title if name in METHODS else name


def _carry_out(study: Study, records: Records, options: argparse.Namespace) -> bool:
    """Makes the runs that are missing; returns whether none of them failed."""
    pool = Pool(options.jobs, options.smoke)
    try:
        conductor = Conductor(records, pool, options.smoke)
        complete = conductor.side_by_side(study, options.jobs)
    finally:
        pool.close()
    if options.untimed:
        return complete
    pool = Pool(1, options.smoke)
    try:
        return Conductor(records, pool, options.smoke).alone(study) and complete
    finally:
        pool.close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = (*_OF_WORKLOADS, *STUDIES, "all", "report")
    parser.add_argument("name", choices=names)
    keys = [workload.key for workload in workloads.load()]
    parser.add_argument("--only", choices=keys, help="one workload of these")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="runs side by side"
    )
    parser.add_argument(
        "--untimed", action="store_true", help="leave out the runs alone on the machine"
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="small parts of the data, one trial, one seed, kept apart: does it run?",
    )
    parser.add_argument(
        "--results",
        type=pathlib.Path,
        help="folder of the runs and of the report made from them",
    )
    options = parser.parse_args()
    if options.results is None:
        folder = pathlib.Path(__file__).parent / "results"
        smoke = pathlib.Path(tempfile.gettempdir()) / "keras_osgd_smoke"
        options.results = smoke if options.smoke else folder
    return options


if __name__ == "__main__":
    main()
