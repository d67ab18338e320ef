"""Time to target: the target, what is run for it, and the control, on made runs."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from examples.common import models
from examples.common.records import Records
from examples.experiments import (
    conduct,
    control,
    runner,
    sets,
    target,
    tuning,
    workloads,
)
from examples.experiments.reporting import time_to_target
from examples.experiments.setting import Setting
from keras_osgd.sampling import RAIS
from tests.examples.test_experiment_report import runs_of

pytestmark = pytest.mark.examples

LENGTHS = {"uniform": (4, 6, 9, 13), "rais": (4, 6)}
SEEDS = tuple(range(10))
SPREAD = np.array([-1.0, -0.8, -0.5, -0.2, 0.0, 0.1, 0.3, 0.4, 0.7, 1.0])


def workload(**changes):
    made = workloads.Workload(
        name="made",
        place=("fashion", "cnn", "momentum", 64),
        lengths=LENGTHS,
        trials=3,
        tuning_seeds=(100,),
        seeds=SEEDS,
        timed_seeds=(50, 51, 52),
        is_control=True,
    )
    return dataclasses.replace(made, **changes)


def records(of, errors, spread=0.1):
    """Runs of each (method, epochs), whose validation error is `errors[...]` - 0.5."""
    return [
        run
        for (method, epochs), error in errors.items()
        for run in runs_of(
            of.contender(method, epochs),
            seeds=of.seeds,
            noise=spread * SPREAD,
            error=error,
        )
    ]


UNIFORM = {
    ("uniform", t): e for t, e in zip((4, 6, 9, 13), (12, 11, 10.5, 10.49), strict=True)
}
FAST = {("rais", 4): 11.3, ("rais", 6): 10.2}


def test_the_target_is_where_training_longer_still_lowers_the_error():
    made = workload()
    group = target.group_of(records(made, UNIFORM | FAST), made)
    # From 9 to 13 epochs it falls by 0.01, a quarter of a standard error.
    assert target.target(group) == pytest.approx(11 + 0.1 * 0.05 - 0.5)
    steeper = UNIFORM | {("uniform", 13): 10.3}
    group = target.group_of(records(made, steeper | FAST), made)
    assert target.target(group) == pytest.approx(10.5 + 0.1 * 0.05 - 0.5)


def test_there_is_no_target_before_uniform_training_is_complete():
    made = workload()
    found = [r for r in records(made, UNIFORM) if r["key"]["seed"] != 9]
    group = target.group_of(found, made)
    assert target.target(group) is None
    assert target.timed_settings(group, made) == {}
    assert target.control_settings(group, made) == []


def test_a_method_is_timed_at_the_first_length_at_which_seven_of_ten_reach_it():
    made = workload()
    group = target.group_of(records(made, UNIFORM | FAST), made)
    found = target.timed_settings(group, made)
    # RAIS, by 1/T from 11.3 at 4 to 10.2 at 6: 10.64 at 5, below 11 by far.
    assert {name: runs[0].epochs for name, runs in found.items()} == {
        "uniform": 7,
        "rais": 5,
    }
    assert [run.seed for run in found["rais"]] == [50, 51, 52]
    assert {run.purpose for runs in found.values() for run in runs} == {"target"}


def test_lengths_go_on_until_the_target_lies_between_two_and_twice_at_most():
    made = workload()
    slow = {("rais", 4): 12.5, ("rais", 6): 11.6}
    lengths = [9, 14]
    for number, error in enumerate((11.3, 11.2)):
        group = target.group_of(records(made, UNIFORM | slow), made)
        wanted = [r.contender.epochs for r in group.runs if r.method == "rais"]
        assert wanted == [4, 6, *lengths[: number + 1]]
        slow[("rais", lengths[number])] = error
    group = target.group_of(records(made, UNIFORM | slow), made)
    assert [r.contender.epochs for r in group.runs if r.method == "rais"] == [
        4,
        6,
        9,
        14,
    ]
    # It never reaches the target, and is not timed: its time is infinite.
    assert "rais" not in target.timed_settings(group, made)
    quick = {("rais", 4): 10.2, ("rais", 6): 10.1}
    group = target.group_of(records(made, UNIFORM | quick), made)
    assert [r.contender.epochs for r in group.runs if r.method == "rais"] == [4, 6, 2]


def test_the_control_gets_the_rates_of_both_methods():
    made = workload()
    found = records(made, UNIFORM | FAST)
    for run in found:
        if run["key"]["method"] == "uniform" and run["key"]["epochs"] == 6:
            run["key"]["rate"] *= 4
    group = target.group_of(found, made)
    (first, *_) = target.control_settings(group, made)
    # RAIS took 600 steps, as uniform training of 6 epochs did.
    assert (first.method, first.epochs) == ("rais_controlled", 6)
    assert (first.rate, first.parameter) == (0.04, 0.16)
    assert target.control_settings(group, workload(is_control=False)) == []
    unrun = target.group_of(records(made, UNIFORM), made)
    assert target.control_settings(unrun, made) == []


def test_workloads_have_the_rates_that_tuning_tries_and_data_that_there_is():
    found = workloads.load()
    assert len(found) >= 10 and len({made.key for made in found}) == len(found)
    for item, made in zip(workloads.contents()["workloads"], found, strict=True):
        assert tuple(item["rates"]) == tuning.RATES[item["optimizer"]]
        assert made.place[0] in sets.NAMES
        assert not set(made.seeds) & {*made.timed_seeds, *made.tuning_seeds}
        assert all(list(x) == sorted(set(x)) for x in made.lengths.values())
    assert {made.name for made in found if made.is_control} == set(
        workloads.contents()["control"]
    )


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_plain_keras_takes_the_steps_of_rais_where_the_draws_are_equal(optimizer):
    """With one example in all, whatever is drawn is the same."""
    x = np.ones((64, 3), "float32")
    y = np.zeros((64, 1), "float32")

    def build(base, **options):
        layers = [keras.Input((3,)), models.dense(1, 0)]
        made = base(layers)
        rate = keras.optimizers.schedules.CosineDecay(0.01, 16)
        made.compile(runner.optimizer(optimizer, rate), "mse", **options)
        return made

    def rais():
        import keras_osgd

        model = build(keras_osgd.Sequential, sampling=RAIS(seed=0))
        model.fit(x, y, batch_size=8, epochs=2, verbose=0)
        return model

    trajectory = control.Trajectory(100)
    with trajectory.recorded():
        trained = rais()
    steps = int(trained.optimizer.iterations)
    gains = np.array([1.0, 2.0, 0.5, 3.0] + [1.5] * 96)
    for values in (trajectory._values.numpy(), None):
        replayed = build(keras.Sequential)
        if values is None:  # another trajectory gives other weights
            trajectory._values[:, 0].assign(gains)
        trajectory.replay(replayed.optimizer)
        control.fit_for(replayed, x, y, 8, steps)
        assert int(replayed.optimizer.iterations) == steps
        pairs = zip(trained.get_weights(), replayed.get_weights(), strict=True)
        same = all(np.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)
        assert same == (values is not None)
    within_an_epoch = build(keras.Sequential)
    control.fit_for(within_an_epoch, x, y, 8, 11)
    assert int(within_an_epoch.optimizer.iterations) == 11


def test_a_run_with_its_control_measures_all_three():
    setting = Setting(
        "letter", "table", "rais_controlled", 2, 0.04, 0.08, seed=1, purpose="error"
    )
    made = runner.run(setting, smoke=True)["measures"]
    assert set(made) == {"steps", "rais", "at_its_rates", "own_schedule"}
    assert 0 < made["steps"] <= 64
    assert all(0 < made[name]["error"] < 100 for name in list(made)[1:])


def test_timed_runs_are_in_turn_and_go_back_and_forth(tmp_path):
    made = workload()
    path = tmp_path / "runs.jsonl"
    found = conduct.Records(path)
    for run in records(made, UNIFORM | FAST):
        found.append(run["key"], {k: v for k, v in run.items() if k != "key"})

    class Pool:
        def __init__(self):
            self.made = []

        def run(self, setting):
            self.made.append((setting.method, setting.seed))
            return "done", {"validation": {"error": 10.0}, "steps": 3, "failed": None}

    pool = Pool()
    conductor = conduct.Conductor(found, pool, smoke=False)
    assert conductor.timed_to_target(made)
    order = [("uniform", 50), ("rais", 50), ("rais", 51), ("uniform", 51)]
    assert pool.made == [*order, ("uniform", 52), ("rais", 52)]
    assert conductor.timed_to_target(made) and len(pool.made) == 6


def stored(tmp_path, runs):
    path = tmp_path / "runs.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(run) + "\n" for run in runs))
    return Records(path)


def of_curve(made, method, lengths, factor):
    """Runs whose error is 9 + 12/(steps/100), in `factor` of the usual steps."""
    return [
        run
        for epochs in lengths
        for run in runs_of(
            made.contender(method, epochs),
            seeds=made.seeds,
            noise=0.05 * SPREAD,
            error=9 + 12 / epochs,
            steps=round(100 * factor * epochs),
        )
    ]


def timed(made, records, validation, seconds):
    """Adds the timed runs: seconds and validation errors of each seed, by method."""
    group = target.group_of(records.select(), made)
    for method, settings in target.timed_settings(group, made).items():
        for setting, value in zip(settings, validation[method], strict=True):
            records.append(
                setting.key,
                {
                    "first_step_seconds": 1.0,
                    "seconds": seconds[method],
                    "steps": 100 * setting.epochs,
                    "failed": None,
                    "validation": {"error": value},
                    "test": {"error": value + 0.5},
                },
            )


def world(tmp_path):
    made = workload()
    runs = of_curve(made, "uniform", LENGTHS["uniform"], 1.0)
    runs += of_curve(made, "rais", (4, 6, 9, 13), 0.6)
    made = workload(lengths={"uniform": LENGTHS["uniform"], "rais": (4, 6, 9, 13)})
    return made, stored(tmp_path, runs)


def test_a_method_of_six_tenths_of_the_steps_has_that_ratio_at_the_target(tmp_path):
    made, found = world(tmp_path)
    (outcome,) = time_to_target.outcomes(found, [made], resamples=200)
    steps = outcome.steps["rais"]
    assert steps.value == pytest.approx(0.6, rel=1e-6)
    assert steps.low < 0.6 < steps.high and steps.high - steps.low < 0.1
    assert outcome.seconds["rais"] is None


def test_a_workload_waits_for_all_lengths_of_rais(tmp_path):
    made, found = world(tmp_path)
    kept = [run for run in found.select() if run["key"]["epochs"] != 13]
    kept += [run for run in found.select(method="uniform") if run not in kept]
    partly = stored(tmp_path / "partly", kept)
    text = "\n".join(time_to_target.sections(partly, [made], tmp_path, str))
    assert time_to_target.outcomes(partly, [made], 5) == [] and text == ""


def test_a_run_that_misses_takes_for_ever_and_the_median_counts(tmp_path):
    made, found = world(tmp_path)
    goal = target.target(target.group_of(found.select(), made))
    low, high = goal - 0.01, goal + 0.01
    validation = {"uniform": [low, high, low], "rais": [high, low, high]}
    timed(made, found, validation, {"uniform": 9.0, "rais": 3.0})
    (outcome,) = time_to_target.outcomes(found, [made], resamples=50)
    assert outcome.times("uniform") == [10.0, np.inf, 10.0]
    assert outcome.median("uniform") == 10.0 and outcome.median("rais") == np.inf
    text = "\n".join(time_to_target.sections(found, [made], tmp_path, str))
    assert "| 10.0 (2 of 3) | missed (1 of 3) |" in text
    # Of methods that miss, the mean knows no more than that.
    assert "| geometric mean of the ratios | 1.00 | 4.00 |" in text
    assert (tmp_path / "profile.png").stat().st_size > 5000


def test_the_ratio_of_seconds_counts_tracing_and_the_seconds_of_a_step(tmp_path):
    made, found = world(tmp_path)
    goal = target.target(target.group_of(found.select(), made))
    validation = dict.fromkeys(("uniform", "rais"), [goal] * 3)
    timed(made, found, validation, {"uniform": 9.0, "rais": 3.0})
    (outcome,) = time_to_target.outcomes(found, [made], resamples=20)
    at_target = 100 * 9  # epochs of the target
    epochs = {name: runs[0]["key"]["epochs"] for name, runs in outcome.timed.items()}
    own = 1 + 0.6 * at_target * 3.0 / (100 * epochs["rais"])
    theirs = 1 + at_target * 9.0 / (100 * epochs["uniform"])
    assert outcome.seconds["rais"].value == pytest.approx(own / theirs, rel=0.02)


def test_the_control_is_paired_by_seed(tmp_path):
    made, found = world(tmp_path)
    group = target.group_of(found.select(), made)
    luck = dict(zip((50, 51, 52), (0.0, 3.0, -2.0), strict=True))
    for setting in target.control_settings(group, made):
        error = 10 + luck[setting.seed]
        found.append(
            setting.key,
            {
                "measures": {
                    "steps": 700,
                    "rais": {"error": error},
                    "at_its_rates": {"error": error + 0.4},
                    "own_schedule": {"error": error + 0.3},
                }
            },
        )
    text = "\n".join(time_to_target.sections(found, [made], tmp_path, str))
    assert "| made | 3 | 700 | 10.33 | 10.73 | 10.63 | -0.40 (-0.40 to -0.40) |" in text


class Learning:
    """A pool whose runs end at 9 + 12/T, RAIS at 9 + `slow`/T."""

    def __init__(self, slow):
        self.slow, self.made = slow, []

    def run(self, setting):
        self.made.append(setting)
        luck = 0.05 * SPREAD[setting.seed % 10]
        scale = 12 if setting.method == "uniform" else self.slow
        error = 9 + scale / setting.epochs + luck + abs(setting.rate - 0.04)
        found = {"validation": {"error": error}, "test": {"error": error}}
        return "done", {**found, "steps": 100 * setting.epochs, "failed": None}


def test_a_workload_s_lengths_are_run_until_the_target_lies_between_two(tmp_path):
    made, pool = workload(), Learning(slow=18)
    conductor = conduct.Conductor(conduct.Records(tmp_path / "runs.jsonl"), pool, False)
    assert conductor.to_target(made, jobs=2)
    # The target is that of 9 epochs of uniform training; RAIS needs half as many more.
    lengths = {x.epochs for x in pool.made if x.method == "rais"}
    assert lengths == {4, 6, 9, 14}
    before = len(pool.made)
    assert conductor.to_target(made, jobs=2) and len(pool.made) == before


def test_a_smoke_run_of_a_workload_ends_soon(tmp_path):
    pool = Learning(slow=12)
    conductor = conduct.Conductor(conduct.Records(tmp_path / "runs.jsonl"), pool, True)
    assert conductor.to_target(workload(), jobs=1)
    assert len(pool.made) <= 2 * 2  # a trial and a run of each method
