"""The experiments: what is tuned and chosen, what is taken away, and who runs it."""

import contextlib
import dataclasses
import math
import os
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from examples.common.records import Records
from examples.experiments import (
    ablations,
    choice,
    cleaning,
    networks,
    run,
    runner,
    sets,
    studies,
    tuning,
)
from examples.experiments.methods import METHODS, Parameter
from examples.experiments.setting import Setting
from keras_osgd.draws.planner import RAISPlanner
from keras_osgd.gain import gain_ratio
from keras_osgd.sampling import RAIS
from keras_osgd.scores.table import ScoreTable
from keras_osgd.scores.uncertainty_set import UncertaintySet
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.examples

N = 1200


def trained(without, n=N, epochs=6, steps_per_epoch=None, **options):
    """Returns a small network trained by RAIS with a part taken away, and its table."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 5)).astype("float32")
    y = (x[:, 0] + 0.3 * rng.normal(size=n) > 0).astype("int32")
    keras.utils.set_random_seed(0)
    model = keras_osgd.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
    sampling = RAIS(seed=0, retreat_below=0.0, **options)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, sampling=sampling)
    with without():
        model.fit(x, y, 20, epochs, verbose=0, steps_per_epoch=steps_per_epoch)
    return model


def test_trials_begin_with_the_defaults_and_fill_the_space():
    parameter = Parameter("r", 0.5, 0.2, 0.8, False)
    found = tuning.trials("momentum", parameter, 8)
    assert found == tuning.trials("momentum", parameter, 8)
    assert found[0] == {"rate": 0.04, "parameter": 0.5}
    low, high = tuning.RATES["momentum"]
    rates = np.log([trial["rate"] / low for trial in found]) / np.log(high / low)
    own = (np.array([trial["parameter"] for trial in found]) - 0.2) / 0.6
    for values in (rates, own):
        assert ((values >= 0) & (values <= 1)).all()
        assert np.diff(np.sort([0, *values, 1])).max() < 0.35


@pytest.mark.parametrize("optimizer", tuning.RATES)
def test_methods_without_a_parameter_tune_the_rate_alone(optimizer):
    found = tuning.trials(optimizer, None, 6)
    assert len({trial["rate"] for trial in found}) == 6
    assert {trial["parameter"] for trial in found} == {None}


def tried(records, contender, errors, count=3):
    """Answers every trial asked for by `errors` of its rate; returns their rates."""
    rates = []
    while True:
        setting = choice.next_trial(records, contender, count, "error")
        if setting is None:
            return rates
        assert choice.chosen(records, contender, count, "error") is None
        assert setting.purpose == "tune" and (setting.seed,) == studies.TUNING_SEEDS
        error = errors(setting.rate)
        record = {"validation": {"error": error, "balanced_error": -error}}
        records.append(setting.key, record)
        rates.append(setting.rate)


def test_the_choice_is_the_lowest_validation_error_once_all_trials_are_in(tmp_path):
    records = Records(tmp_path / "runs.jsonl")
    contender = studies.Contender("fashion", "mlp", "uniform", 4)
    rates = tried(records, contender, lambda rate: abs(np.log(rate / 0.04)))
    assert len(rates) == 3
    best = choice.chosen(records, contender, 3, "error")
    assert best == {"rate": 0.04, "parameter": None}
    balanced = choice.chosen(records, contender, 3, "balanced_error")
    assert balanced is None  # the worst by this error lies at an edge
    final = choice.final_settings(contender, best, (0, 1), "error")
    assert [(s.seed, s.rate, s.purpose) for s in final] == [
        (seed, 0.04, "error") for seed in (0, 1)
    ]


def test_the_mean_over_its_seeds_chooses_a_rate_and_each_trial_has_all(tmp_path):
    records, seeds = Records(tmp_path / "runs.jsonl"), (101, 102)
    contender = studies.Contender("fashion", "mlp", "uniform", 4)
    luck = {(0.04, 101): 0.0}  # a lucky seed; by the mean, 0.0527 is better
    while setting := choice.next_trial(records, contender, 3, "error", seeds):
        error = luck.get((setting.rate, setting.seed), 10 + abs(setting.rate - 0.05))
        if (setting.rate, setting.seed) == (0.04, 102):
            error = 30.0
        records.append(setting.key, {"validation": {"error": error}})
    made = [(r["key"]["rate"], r["key"]["seed"]) for r in records.select()]
    assert {made.count((rate, seed)) for rate, _ in made for seed in seeds} == {1}
    best = choice.chosen(records, contender, 3, "error", seeds)
    assert best == {"rate": 0.0527, "parameter": None}


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_choice_at_the_edge_extends_the_range_six_times_at_most(sign, tmp_path):
    records = Records(tmp_path / "runs.jsonl")
    contender = studies.Contender("fashion", "mlp", "uniform", 4)
    rates = tried(records, contender, lambda rate: -sign * rate)
    edge = max(rates[:3]) if sign > 0 else min(rates[:3])
    beyond = [edge * 2.0 ** (sign * further) for further in range(1, 7)]
    np.testing.assert_allclose(rates[3:], beyond, rtol=0.02)
    assert choice.chosen(records, contender, 3, "error")["rate"] == rates[-1]


def test_studies_that_share_trials_of_a_contender_ask_for_the_same_number():
    trials = {}
    for study in studies.STUDIES.values():
        for contender in study.contenders:
            count, seeds = study.tuning_of(contender)
            assert trials.setdefault((contender, seeds), count) == count


def test_no_seed_chooses_a_rate_and_measures_it():
    tuned = {s for study in studies.STUDIES.values() for s in study.tuning_seeds}
    final = {s for study in studies.STUDIES.values() for s in study.seeds}
    assert not tuned & final


@pytest.mark.parametrize(
    "study", studies.STUDIES.values(), ids=lambda study: study.name
)
def test_every_study_names_what_exists_and_none_of_it_twice(study):
    assert len(set(study.contenders)) == len(study.contenders)
    for contender in study.contenders:
        assert contender.data in sets.NAMES
        assert contender.network in networks.NAMES
        assert contender.method in (*METHODS, "overhead")
        assert contender.optimizer in tuning.RATES
        if contender.method == "infobatch":  # it prunes neither first nor last epoch
            assert int(0.875 * contender.epochs) >= 2
    smoke = studies.smoke(study)
    methods = {contender.method for contender in study.contenders}
    assert {contender.method for contender in smoke.contenders} == methods


def test_without_robustness_p_is_proportional_to_the_predicted_norms():
    table = ScoreTable(4, None, ("constant", "last"))
    table.observe(np.arange(4), np.ones(4), np.array([1.0, 2.0, 3.0, 4.0]), 0)
    fitted = UncertaintySet(np.array([0.5, 1.0]), np.array([0.4, 0.0]), 9.0, 1, True)
    state = types.SimpleNamespace(
        table=table, uncertainty_set=fitted, drawn=4, armed=True
    )
    planner = types.SimpleNamespace(
        _state=state,
        _sampling=RAIS(floor=0.1),
        _n=4,
        _blocks=None,
        _share=lambda: 1.0,
    )

    def candidate():
        return RAISPlanner._candidate(planner)[0]

    predicted = table.combine(fitted.mean)
    with ablations.without_robustness():
        taken_away = candidate()
    expected = 0.9 * predicted / predicted.sum() + 0.1 / 4
    np.testing.assert_allclose(taken_away, expected, rtol=1e-6)
    assert np.ptp(candidate()) < 0.8 * np.ptp(expected)


def test_the_point_estimate_follows_the_norm_last_seen_and_the_floor():
    model = trained(ablations.point_estimate, floor=0.1, features=("constant", "last"))
    last = model.sampling_state.table.combine(np.array([0.0, 1.0]))
    p = model.sampling_run.probabilities()
    expected = 0.9 * last / last.sum() + 0.1 / N
    agreeing = np.isclose(p, expected, rtol=0.05).mean()
    assert agreeing > 0.4  # the others were drawn again after the last plan
    assert p.min() * N == pytest.approx(0.1, rel=0.3)


def test_without_the_start_the_second_block_is_drawn_by_importance():
    def second_block_follows_the_scores(without):
        model = trained(without, n=20_000, epochs=1, steps_per_epoch=200)
        return model.sampling_run.planner.last_plan.importance

    assert not second_block_follows_the_scores(contextlib.nullcontext)
    assert second_block_follows_the_scores(ablations.without_start)


def test_suspects_are_taken_out_and_the_precision_counted():
    x, true = np.arange(2000.0).reshape(-1, 1), np.zeros(2000, "int32")
    y = true.copy()
    y[:400] = 1
    data = sets.Data("made", "table", (x, y), (x, y), (x, y), 2, true_labels=true)
    scores = np.zeros(2000)
    scores[100:500] = 2.0 - np.arange(400) / 400  # 300 of the 400 flipped, and 100
    kept, measures = cleaning.cleaned(data, scores)
    assert len(kept.train[0]) == 1600
    assert measures["precision"] == pytest.approx(0.75)
    assert measures["flipped_share_left"] == pytest.approx(100 / 1600)
    np.testing.assert_array_equal(kept.train[0][:100, 0], np.arange(100.0))


def test_a_line_cut_off_by_a_kill_costs_that_run_alone(tmp_path):
    path = tmp_path / "runs.jsonl"
    records = Records(path)
    records.append({"seed": 0}, {"steps": 1})
    records.append({"seed": 1}, {"steps": 2})
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    resumed = Records(path)
    assert {"seed": 0} in resumed and {"seed": 1} not in resumed
    resumed.append({"seed": 1}, {"steps": 3})
    assert [record["steps"] for record in Records(path).select()] == [1, 3]


def test_bits_and_deviations_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    x = rng.integers(5, size=(1200, 3)).astype("int32")
    y = rng.integers(5, size=(1200, 3)).astype("int32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Embedding(5, 5)])
    p = np.exp(model.predict(x, verbose=0).astype(float))
    p /= p.sum(axis=-1, keepdims=True)
    bits = [-np.log2(p[i, t, y[i, t]]) for i in range(1200) for t in range(3)]
    loaded = types.SimpleNamespace(kind="sequence")
    found = runner.errors(model, (x, y), loaded)
    assert found == {"bits": pytest.approx(np.mean(bits), rel=1e-5)}

    numbers = rng.normal(size=(1200, 1)).astype("float32")
    line = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    missed = (line.predict(x, verbose=0) - numbers)[:, 0]
    found = runner.errors(line, (x, numbers), types.SimpleNamespace(kind="regression"))
    expected = 100 * math.sqrt(sum(missed.tolist()[i] ** 2 for i in range(1200)) / 1200)
    assert found == {"deviation": pytest.approx(expected, rel=1e-5)}


def test_errors_are_those_of_a_slow_count():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2500, 4)).astype("float32")
    y = rng.choice(3, p=[0.9, 0.08, 0.02], size=2500).astype("int32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    predicted = model.predict(x, verbose=0).argmax(axis=1)
    loaded = types.SimpleNamespace(kind="table", classes=3)
    found = runner.errors(model, (x, y), loaded)
    wrong = [int(a != b) for a, b in zip(predicted, y, strict=True)]
    within = [
        np.mean([w for w, b in zip(wrong, y, strict=True) if b == k]) for k in range(3)
    ]
    assert found["error"] == pytest.approx(100 * sum(wrong) / 2500)
    assert found["balanced_error"] == pytest.approx(100 * np.mean(within))


def test_the_test_part_is_never_read_in_tuning(monkeypatch):
    unreadable = dataclasses.replace(_small(), test=None)
    monkeypatch.setattr(runner, "_load", lambda name, smoke: unreadable)
    setting = Setting("letter", "table", "uniform", 2, 0.05, purpose="tune")
    measured = runner.run(setting, True)
    monkeypatch.setattr(runner, "_load", lambda name, smoke: _small())
    assert "test" not in measured and not measured["history"]["validation_error"]
    assert "test" not in runner.run(
        dataclasses.replace(setting, purpose="seconds"), True
    )
    final = runner.run(dataclasses.replace(setting, purpose="error"), True)
    assert 0 <= final["test"]["error"] <= 100
    assert len(final["history"]["validation_error"]) == 2
    assert final["steps"] == 2 * 10 and final["failed"] is None


def _small():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(640, 4)).astype("float32")
    y = (x[:, 0] > 0).astype("int32")
    split = (x[:100], y[:100])
    return sets.Data("small", "table", (x, y), split, split, 2)


@pytest.mark.parametrize("method", ["uniform", "rais", "reshuffled"])
def test_a_run_that_diverges_says_so_in_a_record_that_is_whole(
    method, monkeypatch, tmp_path
):
    monkeypatch.setattr(runner, "_load", lambda name, smoke: _small())
    setting = Setting("letter", "table", method, 3, 1e30, optimizer="sgd")
    measured = runner.run(setting, True)
    assert "finite" in measured["failed"]
    records = Records(tmp_path / "runs.jsonl")
    records.append(setting.key, measured)
    kept = Records(tmp_path / "runs.jsonl")[setting.key]
    whole = runner.run(dataclasses.replace(setting, rate=0.01), True)
    assert whole["failed"] is None
    assert kept.keys() - {"key", "environment"} == whole.keys()
    assert kept["history"].keys() == whole["history"].keys()
    assert 0 <= kept["test"]["error"] <= 100


def test_the_variance_clock_is_the_ratio_of_the_traces_of_covariance():
    rng, m = np.random.default_rng(0), 64
    gradients, p = rng.normal(1.0, 1.0, (5, 3)), rng.dirichlet(np.full(5, 3.0))
    mean, squared = gradients.mean(0), np.sum(gradients**2, axis=1)
    second_uniform, second = squared.mean(), np.sum(squared / p) / 25

    def variance(p):
        estimates = gradients / (5 * p[:, None])
        return p @ np.sum((estimates - mean) ** 2, axis=1) / m

    observed = second / m + (1 - 1 / m) * mean @ mean
    averages = tf.constant([second_uniform, second, second, observed], tf.float64)
    with ablations.variance_clock():
        found = gain_ratio.ratio(averages, tf.constant(m, tf.float64))
    expected = variance(np.full(5, 0.2)) / variance(p)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert abs(gain_ratio.ratio(averages, tf.constant(64.0, tf.float64)) - 1) < abs(
        expected - 1
    )


def test_a_study_runs_whole_and_is_not_repeated(tmp_path, monkeypatch, capsys):
    arguments = ["oracle", "--smoke", "--results", str(tmp_path)]
    finished = subprocess.run(
        [sys.executable, "-m", "examples.experiments.run", *arguments],
        cwd=ROOT,
        env={**os.environ, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert "FAILED" not in finished.stdout, finished.stdout
    first = (tmp_path / "runs.jsonl").read_text()
    assert first
    report = (tmp_path / "report.md").read_text()
    monkeypatch.setattr(sys, "argv", ["run", *arguments])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 0
    assert "FAILED" not in capsys.readouterr().out
    assert (tmp_path / "runs.jsonl").read_text() == first
    assert (tmp_path / "report.md").read_text() == report
