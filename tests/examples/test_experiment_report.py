"""The experiments' report says what its records say, and hides nothing."""

import collections
import dataclasses
import json

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from examples.common.estimates import t_interval
from examples.common.records import Records
from examples.experiments import studies
from examples.experiments.reporting import curves, write
from examples.experiments.reporting.comparison import _matched, compare, ratio
from examples.experiments.reporting.runs import group_runs
from examples.experiments.studies import Contender

pytestmark = pytest.mark.examples

STEPS = 100  # in an epoch of uniform training: n = 6400, m = 64
LENGTHS = (4, 6, 8, 12)


@dataclasses.dataclass(frozen=True)
class Study(studies.Study):
    """A study of few trials, with the same seeds on all data."""

    trials: int = 3
    seeds: tuple = (0, 1, 2, 3, 4)

    def seeds_of(self, contender):
        return self.seeds


def curve(steps):
    """Test error of uniform training, in percent: a + b / steps."""
    return 8.0 + 1200.0 / steps


def record(contender, purpose="error", rate=0.04, seed=0, **figures):
    steps = figures.pop("steps", contender.epochs * STEPS)
    error = figures.pop("error", curve(steps))
    milliseconds = figures.pop("milliseconds", 2.0)
    parameter = figures.pop("parameter", None)
    key = dict(rate=rate, parameter=parameter, seed=seed, purpose=purpose)
    marks = np.arange(1, int(contender.epochs) + 1) / int(contender.epochs)
    made = {
        "key": {**dataclasses.asdict(contender), **key},
        "steps": steps,
        "gradients": steps * 64,
        "forward": 3200,
        "epochs_processed": steps / STEPS,
        "effective_epochs": contender.epochs,
        "seconds": steps * milliseconds / 1000,
        "first_step_seconds": 1.5,
        "validation": {"error": error - 0.5, "balanced_error": 2 * error - 0.5},
        "history": {
            "steps": (marks * steps).tolist(),
            "validation_error": (error + 3 * (1 - marks)).tolist(),
        },
        "n": 6400,
        "failed": None,
        "measures": {},
        "environment": {},
    }
    if purpose == "error":
        made["test"] = {"error": error, "balanced_error": 2 * error}
    return made | figures


def runs_of(contender, seeds=range(5), noise=None, rates=(0.02, 0.04, 0.08), **figures):
    """Everything a study asks of a contender; the rate in the middle is the best."""
    made = [
        record(contender, "tune", rate, 100, error=9 + abs(i - len(rates) // 2))
        for i, rate in enumerate(rates)
    ]
    best = rates[len(rates) // 2]
    for i, seed in enumerate(seeds):
        run = record(contender, "error", best, seed, **figures)
        if noise is not None:
            run["test"]["error"] += noise[i]
            run["validation"]["error"] += noise[i]
        made.append(run)
    return [*made, *(record(contender, "seconds", best, i, **figures) for i in (0, 1))]


def world(methods, data="fashion", name="main"):
    """Returns a study of uniform training and `methods`, and its records."""
    uniform = [Contender(data, "cnn", "uniform", epochs) for epochs in LENGTHS]
    others = {Contender(data, "cnn", *of): figures for of, figures in methods.items()}
    made = [run for contender in uniform for run in runs_of(contender)]
    for contender, figures in others.items():
        made += runs_of(contender, **figures)
    study = Study(name, name.title(), "What for?", (*uniform, *others))
    return study, made


def records_of(tmp_path, made):
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(run) + "\n" for run in made))
    return Records(path)


def report(tmp_path, study, made, metric="error", **options):
    write(
        records_of(tmp_path, made),
        {study.name: study},
        tmp_path,
        lambda data: metric,
        lambda name: {"rais": "RAIS"}.get(name, name),
        **options,
    )
    return (tmp_path / "report.md").read_text()


def first_paragraph(text):
    return text.split("\n\n")[1]


def only_comparison(study, made, metric="error", **options):
    (group,) = group_runs(made, [study], lambda data: metric)
    (comparison,) = compare(group, **options)
    return comparison


# Uniform training of T = 8 has the same error; each step costs 1.1 times as much.
SIX_TENTHS = {"steps": 480, "error": curve(800), "milliseconds": 2.2}
SLOW = {"steps": 720, "error": curve(800)}


def test_a_contender_at_a_known_ratio_gets_exactly_that_ratio():
    comparison = only_comparison(*world({("rais", 8): SIX_TENTHS}), resamples=50)
    for steps in (comparison.steps, comparison.steps_by_validation):
        assert steps.sign == "="
        np.testing.assert_allclose([steps.value, steps.low, steps.high], 0.6)
    seconds = [comparison.seconds, comparison.seconds_by_validation]
    np.testing.assert_allclose([x.value for x in seconds], 0.6 * 1.1)
    assert comparison.difference.value == pytest.approx(curve(800) - curve(480))


def test_balanced_error_is_compared_where_it_is_the_metric(tmp_path):
    study, made = world({("rais", 8): SIX_TENTHS})
    for run in made:
        run["validation"]["error"] = 5.0
        if "test" in run:
            run["test"]["error"] = 7.77
    comparison = only_comparison(study, made, "balanced_error", resamples=5)
    assert comparison.steps.value == pytest.approx(0.6)
    text = report(tmp_path, study, made, "balanced_error")
    assert "test balanced error, %" in text and "7.77" in text
    assert f"{2 * curve(800):.2f}" in text


@pytest.mark.parametrize("seeds", [5, 10])
def test_intervals_cover_the_truth_as_often_as_they_claim(seeds):
    rng, covered, trials = np.random.default_rng(0), 0, 100
    contender = Contender("fashion", "cnn", "rais", 8)
    uniform = [Contender("fashion", "cnn", "uniform", epochs) for epochs in LENGTHS]
    study = Study("main", "", "", (*uniform, contender), 1, tuple(range(seeds)))
    for _ in range(trials):
        shared = rng.normal(0, 0.1, seeds)  # what a seed does to every method alike
        made = []
        for item in study.contenders:
            figures = SIX_TENTHS if item is contender else {}
            noise = shared + rng.normal(0, 0.1, seeds)
            given = {"seeds": study.seeds, "noise": noise, "rates": (0.04,)}
            made += runs_of(item, **given, **figures)
        steps = only_comparison(study, made, resamples=200).steps
        covered += steps.low <= 0.6 <= steps.high
    # Two standard errors of 95 % in 100 trials are 4 %.
    assert covered / trials > 0.9


@pytest.mark.parametrize("count", [9, 10])
def test_one_run_of_ten_that_diverges_does_not_move_the_ratio(tmp_path, count):
    uniform = [Contender("fashion", "cnn", "uniform", epochs) for epochs in LENGTHS]
    contender = Contender("fashion", "cnn", "rais", 8)
    study = Study("main", "", "", (*uniform, contender), seeds=tuple(range(count)))
    made = runs_of(contender, seeds=study.seeds, **SIX_TENTHS)
    for item in uniform:
        noise = np.where(np.arange(count) == item.epochs // 2, 20.0, 0.0)
        made += runs_of(item, seeds=study.seeds, noise=noise)
    moved = only_comparison(study, made, resamples=20).steps.value
    assert (moved == pytest.approx(0.6)) == (count == 10)
    assert (f"{curve(600):.2f} (" in report(tmp_path, study, made)) == (count == 10)


def test_a_mean_without_its_ends_has_the_interval_of_tukey_and_mclaughlin():
    values = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 100])
    winsorised = np.array([2.0, 2, 3, 4, 5, 6, 7, 8, 9, 9])
    error = np.std(winsorised, ddof=1) / (0.8 * np.sqrt(10))
    half = scipy.stats.t.ppf(0.975, 7) * error
    assert t_interval(values) == pytest.approx([5.5 - half, 5.5 + half])
    assert scipy.stats.trim_mean(values, 0.1) == 5.5


def test_intervals_pair_the_seeds_that_methods_share():
    noise = np.array([-0.3, 0.2, 0.1, 0.4, -0.4])
    uniform = [Contender("fashion", "cnn", "uniform", epochs) for epochs in LENGTHS]
    contender = Contender("fashion", "cnn", "rais", 8)
    study = Study("main", "", "", (*uniform, contender))
    made = [run for item in uniform for run in runs_of(item, noise=noise)]
    paired = only_comparison(
        study, made + runs_of(contender, noise=noise, **SIX_TENTHS)
    )
    np.testing.assert_allclose([paired.steps.low, paired.steps.high], 0.6)
    crossed = runs_of(contender, noise=noise[::-1], **SIX_TENTHS)
    assert only_comparison(study, made + crossed).steps.high > 0.65


@pytest.mark.parametrize(
    ("error", "sign", "value", "low", "high"),
    [
        (curve(1100), "=", 480 / 1100, 480 / 1100, 480 / 1100),
        (curve(1300), "<=", 480 / 1200, -np.inf, 480 / 1200),
        (curve(450), "=", 480 / 450, 480 / 450, 480 / 450),
        (curve(350), ">=", 480 / 400, 480 / 400, np.inf),
    ],
)
def test_errors_on_the_curve_are_read_off_it_and_others_give_bounds(
    error, sign, value, low, high
):
    figures = SIX_TENTHS | {"error": error}
    steps = only_comparison(*world({("rais", 8): figures}), resamples=20).steps
    assert steps.sign == sign
    np.testing.assert_allclose([steps.value, steps.low, steps.high], [value, low, high])


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("floor", [0.0, 8.0])
def test_curves_are_those_of_least_squares_over_all_exponents(floor, exponent):
    steps = np.array([[3.0, 4.0, 6.0, 9.0]]) * STEPS
    exact = floor + 3.0 * (steps / steps[0, 0]) ** -exponent
    made = curves.fitted(steps, exact)
    np.testing.assert_allclose(made.error(steps[0])[0], exact[0], rtol=1e-9)
    np.testing.assert_allclose(made.floor, floor, atol=1e-9)
    noisy = exact + np.random.default_rng(1).normal(0, 0.1, exact.shape)
    made = curves.fitted(steps, noisy)
    missed = ((made.error(steps[0])[0] - noisy[0]) ** 2).sum()

    def missed_by(x, power):
        columns = np.stack([np.ones(4), (x / x[0]) ** -power], axis=1)
        return scipy.optimize.nnls(columns, noisy[0])[1] ** 2

    slow = min(missed_by(steps[0], 2 ** (k / 4)) for k in range(-8, 7))
    assert missed == pytest.approx(slow, rel=1e-6)


def test_a_curve_says_nothing_beyond_the_lengths_that_were_run():
    steps = np.array([[300.0, 400.0, 600.0]] * 5)
    made = curves.fitted(steps, 8.0 + 1200.0 / steps)
    error, side = made.error(np.array([-20.0, 300.0, 450.0, 600.0, 650.0]))
    np.testing.assert_allclose(error, 8 + 1200 / np.array([300, 300, 450, 600, 600]))
    assert side.tolist() == [-1, 0, 0, 0, 1]


def test_a_length_that_has_the_error_counts_where_the_curve_does_not():
    """Where longer training does harm, the falling curve lies above the best length."""
    steps = np.array([[400.0, 600.0, 1200.0]])
    errors = np.array([[10.2, 9.9, 10.4]])
    assert fitted_end(steps, errors) > 10
    for wanted, matched, side in ((9.95, 600, 0), (9.8, 1200, 1), (10.25, 400, -1)):
        found = _matched(steps, errors, np.array([wanted]))
        assert (found[0][0], found[1][0]) == (matched, side)


def fitted_end(steps, errors):
    return curves.fitted(steps, errors).error(steps[:, -1])[0][0]


def test_a_curve_that_does_not_fall_gives_bounds():
    steps = np.array([[300.0, 400.0, 600.0]] * 2)
    curve_errors = np.array([[10.0, 10.0, 10.0], [9.0, 10.0, 11.0]])
    made = curves.fitted(steps, curve_errors)
    for error, side in ((9.5, 1), (10.5, -1)):
        assert made.steps(np.full(2, error))[1].tolist() == [side, side]


def test_the_first_table_names_what_loses_and_what_does_not_differ(tmp_path):
    win, made = world({("rais", 8): SIX_TENTHS})
    loss, lost = world({("rais", 8): SIX_TENTHS | {"steps": 960}}, data="words")
    draw, drawn = world(
        {("rais", 8): {"noise": [-0.02, -0.01, 0.0, 0.01, 0.02]}}, data="letter"
    )
    every = (*win.contenders, *loss.contenders, *draw.contenders)
    study = dataclasses.replace(win, contenders=every)
    text = report(tmp_path, study, made + lost + drawn)
    paragraph = first_paragraph(text)
    assert "in 3 comparisons" in paragraph
    assert "**Steps**: fewer in 1, not shown to differ in 1, more in 1." in paragraph
    table = text.split("\n\n")[2].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[0][:3] == ["words, cnn (T = 8)", "1.20 (1.20 to 1.20)", "**more**"]
    assert cells[0][3:5] == ["1.32 (1.32 to 1.32)", "**more**"]
    assert cells[1][0] == "letter, cnn (T = 8)" and cells[1][2] == "not shown to differ"
    assert cells[2][0] == "fashion, cnn (T = 8)" and cells[2][2] == "fewer"


def test_the_best_rival_of_a_group_is_named(tmp_path):
    text = report(
        tmp_path,
        *world({("rais", 8): SIX_TENTHS, ("infobatch", 8): SLOW}),
        rivals={"infobatch"},
    )
    assert "Best rival: infobatch, T = 8, with 0.90 (0.90 to 0.90) of unif" in text


def test_a_ratio_that_resamples_below_0_has_no_lower_end():
    values, bounds = np.array([0.6, *np.linspace(-1, 2, 100)]), np.zeros(101)
    found = ratio(values, bounds, True)
    assert (found.value, found.low) == (0.6, -np.inf) and 1.9 < found.high < 2
    assert ratio(np.abs(values), bounds, True).low > 0


def test_what_was_planned_and_never_begun_takes_one_line(tmp_path):
    study, made = world({("rais", 8): SIX_TENTHS})
    unrun = Contender("words", "cnn", "rais", 8)
    study = dataclasses.replace(study, contenders=(*study.contenders, unrun))
    text = report(tmp_path, study, made)
    assert "Planned, not run: words, cnn." in text and "### words" not in text


def test_missing_runs_failures_and_edges_are_shown(tmp_path):
    study, made = world(
        {
            ("rais", 8): {"seeds": range(3)},
            ("diverging", 8): {"error": 90.0, "failed": "loss is not finite"},
            ("edgy", 8): {"rates": (0.04, 0.05, 0.03)},
        }
    )
    extra = Contender("fashion", "cnn", "never_run", 8)
    unrun = Contender("words", "cnn", "rais", 8)
    study = dataclasses.replace(study, contenders=(*study.contenders, extra, unrun))
    edge = record(study.contenders[-3], "tune", 0.16, 100, error=1.0)
    swapped = [edge if run is _last_trial(made) else run for run in made]
    text = report(tmp_path, study, swapped)
    rows = {line.split(" | ")[0]: line for line in reversed(text.splitlines())}
    table = text[text.index("### fashion, cnn") :]
    rows = {line.split(" | ")[0]: line for line in reversed(table.splitlines())}
    assert "2 diverged" not in rows["| uniform"]
    assert rows["| RAIS"].endswith("3 of 5 runs done |")
    assert rows["| diverging"].endswith("5 of 5 diverged |")
    assert rows["| edgy"].endswith("0 of 5 runs done; edge: rate |")
    assert rows["| never_run"].endswith("0 of 3 tuning runs done; 0 of 5 runs done |")
    paragraph = first_paragraph(text)
    assert "Runs are still missing in: fashion, cnn (T = 8)." in paragraph
    assert "Not compared yet: words, cnn (T = 8)." in paragraph


def _last_trial(made):
    return [run for run in made if run["key"]["purpose"] == "tune"][-1]


def test_runs_at_another_rate_or_of_another_study_do_not_count():
    study, made = world({("rais", 8): SIX_TENTHS})
    contender = study.contenders[-1]
    stray = [
        record(contender, "error", 0.02, seed=0, error=1.0),
        record(contender, "error", 0.04, seed=9, error=1.0),
        record(contender, "seconds", 0.02, milliseconds=99.0),
    ]
    comparison = only_comparison(study, made + stray, resamples=5)
    assert comparison.steps.value == pytest.approx(0.6)
    assert comparison.seconds.value == pytest.approx(0.66)


def test_uniform_training_timed_at_one_length_is_timed_at_all():
    study, made = world({("rais", 8): SIX_TENTHS})
    kept = [
        run
        for run in made
        if (run["key"]["purpose"], run["key"]["method"]) != ("seconds", "uniform")
        or run["key"]["epochs"] == 8
    ]
    assert len(kept) < len(made)
    comparison = only_comparison(study, kept, resamples=5)
    assert comparison.seconds.value == pytest.approx(0.66)


def test_a_method_timed_at_one_length_is_timed_at_all():
    twice = {("rais", 8): SIX_TENTHS, ("rais", 4): SIX_TENTHS}
    study, made = world(twice)
    kept = [
        run
        for run in made
        if (run["key"]["purpose"], run["key"]["method"]) != ("seconds", "rais")
        or run["key"]["epochs"] == 4
    ]
    assert len(kept) < len(made)
    for records in (made, kept):
        [group] = group_runs(records, [study], lambda data: "error")
        own = {runs.contender.epochs: runs for runs in group.runs if runs.timed}
        seconds = [own[epochs].step_seconds for epochs in (4, 8)]
        assert seconds[0] == seconds[1]


def test_measures_become_tables_whatever_their_names(tmp_path):
    study, made = world({("rais", 8): SIX_TENTHS}, name="oracle")
    for run in made:
        key = run["key"]
        if key["method"] == "rais" and key["purpose"] == "error":
            shift = key["seed"] - 2.0
            run["measures"] = {
                "precision": 0.75 + shift,
                "variance": [{"true_gain": 2.5 + shift}, {"true_gain": 3.5, "late": 7}],
                "parts": {"drawing": 0.25 + shift, "planning": 0.5},
            }
    text = report(tmp_path, study, made)
    assert "| run | precision |" in text
    assert "| fashion, cnn: RAIS, T = 8 | 0.75 |" in text
    assert "|  | true gain | late |\n| --- | --- | --- |\n| 1 | 2.5 | - |" in text
    assert "| 2 | 3.5 | 7 |" in text
    assert "| drawing | 0.25 |\n| planning | 0.5 |" in text


def test_an_interval_is_shown_by_its_mean_ends_and_longer_lists_are_not(tmp_path):
    made = [
        {"step": {"keras": {"quartiles": [low, 3.0], "all": [1.0, 2.0, 7.125]}}}
        for low in (1.0, 2.0)
    ]
    contender = Contender("fashion", "cnn", "overhead", 1)
    study = Study("overhead", "Overhead", "What for?", (contender,), trials=0, seeds=())
    records = [
        record(contender, "seconds", seed=seed, measures=measures)
        for seed, measures in enumerate(made)
    ]
    text = report(tmp_path, study, records)
    assert "| keras | 1.5-3 |" in text and "7.125" not in text


def test_a_study_without_tuning_shows_its_measures(tmp_path):
    contender = Contender("fashion", "cnn", "overhead", 1)
    study = Study("overhead", "Overhead", "What for?", (contender,), trials=0, seeds=())
    made = [record(contender, "seconds", measures={"step": 1.25})]
    assert "| fashion, cnn: overhead, T = 1 | 1.25 |" in report(tmp_path, study, made)


def test_a_report_made_twice_is_the_same(tmp_path):
    noise = np.linspace(-0.2, 0.2, 5)
    study, made = world({("rais", 8): SIX_TENTHS | {"noise": noise}})
    first, again = (report(tmp_path, study, made) for _ in range(2))
    assert first == again


def test_every_figure_that_the_report_shows_is_written(tmp_path):
    methods = {("rais", 8): SIX_TENTHS, ("infobatch", 8): {"error": 90.0}}
    text = report(tmp_path, *world(methods))
    shown = collections.Counter(
        line[line.index("](") + 2 : -1]
        for line in text.splitlines()
        if line[:2] == "!["
    )
    assert set(shown) == {path.name for path in tmp_path.glob("*.png")}
    assert len(shown) == 3 and max(shown.values()) == 1
    assert all((tmp_path / name).stat().st_size < 200_000 for name in shown)


def test_nothing_recorded_is_still_a_report(tmp_path):
    study, _ = world({("rais", 8): {}})
    text = report(tmp_path, study, [])
    assert "in 0 comparisons" in first_paragraph(text)
    assert "Planned, not run: fashion, cnn." in text


def test_a_method_without_uniform_training_to_compare_with_is_still_shown(tmp_path):
    study, made = world({("rais", 8): SIX_TENTHS})
    kept = [run for run in made if run["key"]["method"] == "rais"]
    text = report(tmp_path, study, kept)
    assert f"| RAIS | 8 | 0.04 | - | 5 | {curve(800):.2f}" in text
    assert "Not compared yet: fashion, cnn (T = 8)." in first_paragraph(text)
