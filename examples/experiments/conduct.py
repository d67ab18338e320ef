"""Carries out a study: tuning, final runs side by side, timed runs alone."""

import concurrent.futures
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator

from benchmark_records import Record, Records

from experiments import choice, sets
from experiments.pool import Pool
from experiments.progress import Progress
from experiments.setting import Setting
from experiments.studies import Contender, Study


class Conductor:
    """Runs what is missing of a study.

    Args:
        progress: shows what is done.
        records: what was measured so far; every run is added when it ends.
        jobs: runs side by side.
        smoke: whether on small parts of the data.
    """

    def __init__(
        self, progress: Progress, records: Records, jobs: int, smoke: bool
    ) -> None:
        self._records, self._progress = records, progress
        self._jobs, self._smoke = jobs, smoke
        self._lock = threading.Lock()
        self._missing: dict[str, str] = {}

    def side_by_side(self, study: Study) -> None:
        """Tunes every contender and makes its final runs."""
        pool = Pool(self._jobs, self._smoke)
        try:
            with concurrent.futures.ThreadPoolExecutor(self._jobs) as threads:
                for _ in threads.map(
                    lambda contender: self._settle(pool, study, contender),
                    [c for c in study.contenders if c.method != "overhead"],
                ):
                    pass
        finally:
            pool.close()

    def alone(self, study: Study) -> None:
        """Makes the timed runs: one contender of a group after the other, again."""
        pool = Pool(1, self._smoke)
        try:
            for contender in study.contenders:
                if contender.method == "overhead":
                    setting = choice.overhead_setting(contender)
                    self._run(setting, pool.measure_overhead)
            groups = itertools.groupby(study.contenders, _group)
            for _, members in itertools.islice(groups, 1 if self._smoke else None):
                timed = list(_timed(members))
                for repetition in range(study.timed):
                    for contender in timed:
                        found = self._chosen(study, contender)
                        if found is not None:
                            (setting,) = choice.final_settings(
                                contender, found, (repetition,), "seconds"
                            )
                            self._run(setting, pool.submit)
        finally:
            pool.close()

    def _settle(self, pool: Pool, study: Study, contender: Contender) -> None:
        metric = sets.metric(contender.data)
        given = contender, study.trials, metric
        while (setting := choice.next_trial(self._records, *given)) is not None:
            if not self._run(setting, pool.submit):
                return
        found = self._chosen(study, contender)
        if found is not None:
            seeds = study.seeds_of(contender)
            for setting in choice.final_settings(contender, found, seeds, "error"):
                self._run(setting, pool.submit)

    def _chosen(self, study: Study, contender: Contender) -> Record | None:
        metric = sets.metric(contender.data)
        return choice.chosen(self._records, contender, study.trials, metric)

    def _run(self, setting: Setting, submit: Callable) -> bool:
        """Makes a run that is missing; returns whether its record is there."""
        with self._lock:
            if setting.key in self._records:
                self._progress.skip(setting)
                return True
            if setting.data in self._missing:
                self._progress.skip(setting)
                return False
        self._progress.begin(setting)
        outcome, found = submit(setting).result()
        with self._lock:
            if outcome == "done":
                self._records.append(setting.key, found)
            if outcome == "missing":
                self._missing[setting.data] = found
        self._progress.end(setting, outcome, found)
        return outcome == "done"


def _group(contender: Contender) -> tuple[object, ...]:
    return (
        contender.data,
        contender.network,
        contender.optimizer,
        contender.batch_size,
    )


def _timed(members: Iterable[Contender]) -> Iterator[Contender]:
    """Yields who is timed: of uniform training, whose step does not change, one T."""
    seen = set()
    for contender in members:
        if contender.method == "uniform" and contender.method in seen:
            continue
        seen.add(contender.method)
        yield contender
