"""Carries out a study: tuning, final runs side by side, timed runs alone."""

import collections
import concurrent.futures
import dataclasses
import itertools
import threading
from collections.abc import Iterable, Iterator

from examples.common.records import Record, Records
from examples.experiments import choice, sets, target
from examples.experiments.methods import METHODS
from examples.experiments.pool import Pool
from examples.experiments.progress import Progress
from examples.experiments.setting import Setting
from examples.experiments.studies import Contender, Study, smoke
from examples.experiments.workloads import Workload

_BASELINE_EVERY = 3  # contenders between two timed runs of uniform training


class Conductor:
    """Makes the runs of a study that are missing.

    Args:
        records: what was measured so far; every run is added when it ends.
        pool: what trains.
        smoke: whether it is enough to see that it runs.
    """

    def __init__(self, records: Records, pool: Pool, smoke: bool) -> None:
        self._records, self._pool, self._smoke = records, pool, smoke
        self._lock = threading.RLock()  # over records, which are read while they grow
        self._interrupted = threading.Event()
        self._missing: set[str] = set()

    def side_by_side(self, study: Study, jobs: int) -> bool:
        """Tunes every contender and makes its final runs; returns whether all went."""
        wanted = {
            contender: study.tuning_runs_of(contender) + len(study.seeds_of(contender))
            for contender in study.contenders
            if contender.method != "overhead"
        }
        with Progress(study.title, wanted, jobs) as progress:
            threads = concurrent.futures.ThreadPoolExecutor(jobs)
            settle = [
                threads.submit(self._settle, progress, study, contender)
                for contender in wanted
            ]
            try:
                for settled in concurrent.futures.as_completed(settle):
                    settled.result()
            except BaseException:
                self._interrupted.set()
                raise
            finally:
                threads.shutdown(cancel_futures=True)
        return not progress.failed

    def alone(self, study: Study) -> bool:
        """Makes the timed runs, one after the other; returns whether all went."""
        timed = [
            (contender, seed)
            for _, members in self._groups(study)
            for contender, seed in _in_turn(list(members), study)
        ]
        overhead = [c for c in study.contenders if c.method == "overhead"]
        wanted = {contender: 0 for contender in study.contenders}
        for contender in (*overhead, *(contender for contender, _ in timed)):
            wanted[contender] += 1
        with Progress(f"{study.title}: seconds", wanted) as progress:
            for contender in overhead:
                self._run(progress, contender, choice.overhead_setting(contender))
            for contender, seed in timed:
                found = self._chosen(study, contender)
                if found is None:
                    progress.skip(contender)
                    continue
                settings = choice.final_settings(contender, found, (seed,), "seconds")
                self._run(progress, contender, *settings)
        return not progress.failed

    def to_target(self, workload: Workload, jobs: int) -> bool:
        """Makes the runs at all lengths of a workload; returns whether all went."""
        study = workload.study()
        if self._smoke:
            return self.side_by_side(smoke(study), jobs)
        while True:
            if not self.side_by_side(study, jobs):
                return False
            with self._lock:
                group = target.group_of(self._records.select(), workload)
            wanted = tuple(runs.contender for runs in group.runs)
            if wanted == study.contenders:
                return True
            study = dataclasses.replace(study, contenders=wanted)

    def timed_to_target(self, workload: Workload) -> bool:
        """Makes a workload's timed runs, all methods in turn for each seed."""
        group = target.group_of(self._records.select(), workload)
        settings = list(target.timed_settings(group, workload).values())
        rounds = [
            batch if number % 2 == 0 else batch[::-1]
            for number, batch in enumerate(zip(*settings, strict=True))
        ]
        return self._all_of(f"{workload.name}: seconds", itertools.chain(*rounds))

    def controlled(self, workload: Workload, jobs: int) -> bool:
        """Makes the runs of the control, once those at all lengths are there."""
        group = target.group_of(self._records.select(), workload)
        settings = target.control_settings(group, workload)
        return self._all_of(f"{workload.name}: control", settings, jobs)

    def _all_of(self, title: str, settings: Iterable[Setting], jobs: int = 1) -> bool:
        wanted = [(_contender(setting), setting) for setting in settings]
        counts = collections.Counter(contender for contender, _ in wanted)
        threads = concurrent.futures.ThreadPoolExecutor(jobs)
        with Progress(title, counts, jobs) as progress, threads:
            made = threads.map(lambda item: self._run(progress, *item), wanted)
            return all(list(made))

    def _groups(self, study: Study) -> Iterator[tuple[object, Iterable[Contender]]]:
        members = [c for c in study.contenders if c.method != "overhead"]
        groups = itertools.groupby(members, lambda contender: contender.place)
        return itertools.islice(groups, 1 if self._smoke else None)

    def _settle(self, progress: Progress, study: Study, contender: Contender) -> None:
        seeds = study.seeds_of(contender)
        trials = choice.first_trials(contender, *study.tuning_of(contender))
        done = sum(setting.key in self._records for setting in trials)
        progress.skip(contender, done)
        left = study.tuning_runs_of(contender) - done + len(seeds)
        while (setting := self._next_trial(study, contender)) is not None:
            left -= 1
            if not self._run(progress, contender, setting):
                progress.skip(contender, max(left, 0))
                return
        found = self._chosen(study, contender)
        for setting in choice.final_settings(contender, found, seeds, "error"):
            self._run(progress, contender, setting)

    def _next_trial(self, study: Study, contender: Contender) -> Setting | None:
        metric = sets.metric(contender.data)
        with self._lock:
            count, seeds = study.tuning_of(contender)
            return choice.next_trial(self._records, contender, count, metric, seeds)

    def _chosen(self, study: Study, contender: Contender) -> Record | None:
        metric = sets.metric(contender.data)
        with self._lock:
            count, seeds = study.tuning_of(contender)
            return choice.chosen(self._records, contender, count, metric, seeds)

    def _run(self, progress: Progress, contender: Contender, setting: Setting) -> bool:
        """Makes a run if it is missing; returns whether its record is there."""
        with self._lock:
            known = setting.key in self._records
            if known or setting.data in self._missing or self._interrupted.is_set():
                progress.skip(contender)
                return known
            progress.begin(setting)
        outcome, found = self._pool.run(setting)
        with self._lock:
            if outcome == "done":
                self._records.append(setting.key, found)
            elif outcome == "missing":
                self._missing.add(setting.data)
            progress.end(contender, setting, outcome, found)
        return outcome == "done"


def _contender(setting: Setting) -> Contender:
    names = [field.name for field in dataclasses.fields(Contender)]
    return Contender(**{name: getattr(setting, name) for name in names})


def _in_turn(members: list[Contender], study: Study) -> Iterator[tuple[Contender, int]]:
    """Yields who is timed, with which seed: the baseline before every few others.

    A method's step costs the same at every T: its shortest is timed. Every other
    repetition goes backwards, so that a drift of the machine's speed favours none.
    """
    shortest: dict[str, Contender] = {}
    for contender in sorted(members, key=lambda contender: contender.epochs):
        if METHODS[contender.method].timed:
            shortest.setdefault(contender.method, contender)
    baseline = shortest.pop("uniform", None)
    others = [contender for contender in members if contender in shortest.values()]
    seeds = itertools.count()
    for repetition in range(study.timed_of(members[0])):
        order = others if repetition % 2 == 0 else others[::-1]
        for place, contender in enumerate(order):
            if baseline is not None and place % _BASELINE_EVERY == 0:
                yield baseline, next(seeds)
            yield contender, repetition
