"""Who runs a study: in what order, what is repeated, and what happens to faults."""

import concurrent.futures
import dataclasses
import os
import threading
import time

import pytest

from examples.common.records import Records
from examples.experiments import choice, conduct, pool, progress
from examples.experiments.setting import Setting
from examples.experiments.studies import Contender, Study, group

pytestmark = pytest.mark.examples

STUDY = Study(
    "made",
    "Made",
    "What for?",
    (
        *group("fashion", "mlp", (("rais", 10), ("infobatch", 10)), (4, 8)),
        *group("letter", "table", (("rais", 10),), (4, 8)),
        Contender("fashion", "mlp", "overhead", 1),
    ),
    4,
    (0, 1),
    timed=3,
)


class FakePool:
    """Answers at once: the error is 10 at a rate of 0.04, and more elsewhere."""

    def __init__(self, missing=(), broken=()):
        self.made, self.missing, self.broken = [], missing, broken
        self._lock = threading.Lock()

    def run(self, setting):
        with self._lock:
            self.made.append(setting)
        if setting.data in self.missing:
            return "missing", "apt-get install it"
        if setting.method in self.broken:
            return "error", "out of memory"
        error = 10 + abs(setting.rate - 0.04)
        errors = {"error": error, "balanced_error": error}
        return "done", {"validation": errors, "steps": 3, "failed": None}


def conducted(tmp_path, fake, jobs=3):
    records = Records(tmp_path / "runs.jsonl")
    conductor = conduct.Conductor(records, fake, smoke=False)
    return conductor.side_by_side(STUDY, jobs), records


def test_every_contender_gets_its_trials_and_the_final_runs_of_the_best(tmp_path):
    fake = FakePool()
    complete, records = conducted(tmp_path, fake)
    assert complete
    assert len(fake.made) == len(set(fake.made)) == 7 * (4 + 2)
    final = [setting for setting in fake.made if setting.purpose == "error"]
    assert {setting.rate for setting in final} == {0.04}
    assert {setting.seed for setting in final} == {0, 1}
    again = FakePool()
    assert conducted(tmp_path, again)[0]
    assert again.made == []


def test_what_is_missing_is_asked_for_once_and_said(tmp_path, capsys):
    fake = FakePool(missing=("letter",))
    complete, records = conducted(tmp_path, fake, jobs=1)
    assert complete  # nothing failed, something is not here
    assert sum(setting.data == "letter" for setting in fake.made) == 1
    assert len(records.select(data="fashion")) == 4 * 6
    assert "apt-get install it" in capsys.readouterr().out


def test_a_run_that_fails_ends_its_contender_alone_and_is_tried_again(tmp_path):
    complete, records = conducted(tmp_path, FakePool(broken=("infobatch",)))
    assert not complete
    assert len(records.select(method="infobatch")) == 0
    assert len(records.select()) == 6 * 6
    assert conducted(tmp_path, FakePool())[0]


def test_an_interruption_ends_all_threads_after_the_run_under_way(tmp_path):
    class Interrupted(FakePool):
        def run(self, setting):
            if setting.epochs == 4:
                raise KeyboardInterrupt
            time.sleep(0.2)
            return super().run(setting)

    fake = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        conducted(tmp_path, fake, jobs=2)
    assert len(fake.made) <= 2  # of the six of the other thread


def test_timed_runs_alternate_with_their_baseline_and_change_direction(tmp_path):
    fake = FakePool()
    _, records = conducted(tmp_path, fake)
    fake.made.clear()
    assert conduct.Conductor(records, fake, smoke=False).alone(STUDY)
    assert fake.made[0].purpose == "overhead"
    timed = [s for s in fake.made[1:] if s.data == "fashion"]
    assert {setting.purpose for setting in timed} == {"seconds"}
    there, back = ["rais", "infobatch"], ["infobatch", "rais"]
    expected = [name for part in (there, back, there) for name in ("uniform", *part)]
    assert [setting.method for setting in timed] == expected
    assert len(set(fake.made)) == len(fake.made)
    assert {s.epochs for s in timed if s.method == "uniform"} == {4}


def test_of_each_method_the_shortest_is_timed_and_variants_of_rais_are_not(tmp_path):
    methods = ("rais", 10), ("rais", 6), ("rais_independent", 4), ("infobatch", 8)
    study = dataclasses.replace(STUDY, contenders=group("fashion", "mlp", methods))
    fake, records = FakePool(), Records(tmp_path / "runs.jsonl")
    conductor = conduct.Conductor(records, fake, smoke=False)
    conductor.side_by_side(study, 1)
    fake.made.clear()
    conductor.alone(study)
    timed = {(setting.method, setting.epochs) for setting in fake.made}
    assert timed == {("uniform", 5), ("rais", 6), ("infobatch", 8)}


def test_the_time_left_is_at_the_pace_of_the_same_network(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    small, large = STUDY.contenders[0], STUDY.contenders[4]
    with progress.Progress("made", {small: 3, large: 2}, jobs=2) as shown:
        for contender, pace in ((small, 5.0), (large, 1.0)):
            setting = choice.first_trials(contender, 1)[0]
            shown.begin(setting)
            now[0] += pace * contender.epochs
            outcome = {"validation": {"error": 1.0}, "steps": 1, "failed": None}
            shown.end(contender, setting, "done", outcome)
        # 2 runs of 4 epochs at 5 seconds each and 1 run of 4 epochs at 1, two at a time
        assert shown.seconds_left() == pytest.approx((2 * 4 * 5 + 4) / 2)
        shown.skip(small, 2)
        assert shown.seconds_left() == pytest.approx(2)


def _ends(setting, smoke):
    if setting.seed == 1:
        os._exit(1)
    return "done", setting.seed


def test_a_process_that_ends_costs_its_runs_and_not_the_study(monkeypatch):
    # Threads stand in for TensorFlow's slow start; the pool's own handling is real.
    monkeypatch.setattr(pool, "_work", _ends)
    monkeypatch.setattr(pool, "_prepare", len)
    monkeypatch.setattr(pool.Pool, "_fresh", _forked)
    made = pool.Pool(1, False)
    outcomes = [made.run(_setting(seed))[0] for seed in (0, 1, 2)]
    made.close()
    assert outcomes == ["done", "error", "done"]


def _forked(self):
    import multiprocessing

    context = multiprocessing.get_context("fork")
    return concurrent.futures.ProcessPoolExecutor(1, context)


def _setting(seed):
    return Setting("fashion", "mlp", "uniform", 4, 0.04, seed=seed)
