"""Figures are tested by the data that they draw."""

import re
import sys

import keras
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from keras_osgd import plots
from keras_osgd.plots.style import STYLES, in_words, shortened
from keras_osgd.run_directory import (
    PERCENTILES,
    RunFiles,
    RunRecord,
    percentile_name,
)
from keras_osgd.scores.most_sampled import MostSampled
from tests.helpers.figures import EPOCHS, drawn, is_saved, rows


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    made = []
    for seed in range(3):
        files = RunFiles(tmp_path_factory.mktemp("runs") / f"run-{seed}")
        files.write_history(rows(seed))
        files.write_arrays({"share_of_draws": np.linspace(0, 1, 101) ** 0.5})
        made.append(files.directory)
    return made


def names(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].texts]


def test_learning_curves_are_means_and_bands_over_seeds_against_all_costs(directories):
    figure = plots.learning_curves({"RAIS": directories})
    labels = ["steps", "epochs", "effective epochs", "seconds of training"]
    assert [axes.get_xlabel() for axes in figure.axes] == labels
    history = [rows(seed) for seed in range(3)]
    columns = ("steps", "epoch", "effective_epochs", "seconds")
    losses = np.array([[row["loss"] for row in run] for run in history])
    for axes, column in zip(figure.axes, columns, strict=True):
        costs = np.array([[row[column] for row in run] for run in history])
        x, y = drawn(axes, "RAIS")
        np.testing.assert_allclose(x, costs.mean(axis=0))
        np.testing.assert_allclose(y, losses.mean(axis=0))
        (band,) = axes.collections
        corners = {tuple(np.round(v, 9)) for v in band.get_paths()[0].vertices}
        for place, low, high in zip(
            costs.mean(axis=0), losses.min(axis=0), losses.max(axis=0), strict=True
        ):
            assert {tuple(np.round((place, end), 9)) for end in (low, high)} <= corners
    assert names(figure) == ["RAIS"] and is_saved(figure)


def test_epochs_without_validation_are_left_out(directories):
    figure = plots.learning_curves(directories[0], "val_loss", "epoch")
    x, y = drawn(figure.axes[0], "run-0")
    assert x.tolist() == [2, 4]
    expected = [row["val_loss"] for row in rows(0) if "val_loss" in row]
    np.testing.assert_allclose(y, expected)
    assert figure.axes[0].get_ylabel() == "validation loss"


def test_history_objects_arrays_and_paths_can_be_mixed(directories):
    history = keras.callbacks.History()
    history.epoch, history.history = [5, 6], {"loss": [0.5, 0.25], "val_loss": [1.0]}
    runs = {"a": history, "b": {"loss": [3.0, 2.0]}, "c": str(directories[0])}
    figure = plots.learning_curves(runs)  # epochs are all that the three have
    (axes,) = figure.axes
    assert axes.get_xlabel() == "epochs"
    for against in ("epochs", "epoch"):  # as on the axis, and as in the history
        (same,) = plots.learning_curves(runs, against=against).axes
        assert drawn(same, "a")[0].tolist() == [6, 7]
    assert drawn(axes, "a")[0].tolist() == [6, 7]
    assert drawn(axes, "b")[0].tolist() == [1, 2]
    assert drawn(axes, "b")[1].tolist() == [3, 2]
    assert len(drawn(axes, "c")[0]) == EPOCHS
    assert names(plots.learning_curves([directories[0]] * 2)) == ["run-0", "run-0 (2)"]


def test_lines_differ_in_more_than_colour():
    runs = {f"run {i}": {"loss": [i, i + 1.0]} for i in range(14)}
    lines = plots.learning_curves(runs).axes[0].lines
    looks = {(str(x._dash_pattern), x.get_marker()) for x in lines}
    assert len(looks) == 14
    palette = {to_rgb(color) for color, _, _ in STYLES}
    assert len(palette) == 7 and {to_rgb(x.get_color()) for x in lines} == palette


def test_gain_ratios_are_told_apart_by_how_they_were_found():
    gains = {
        "gain_ratio": [1.0, 1.5],
        "gain_ratio_exact": [1.1, 1.6],
        "gain_ratio_last_layer": [1.05, 1.4],
        "effective_epochs": [1.0, 2.5],
    }
    figure = plots.gain_ratio(gains)
    (axes,) = figure.axes
    words = ["estimated", "by exact norms", "by the last layer's norms"]
    one = "uniform draws, no gain"
    assert names(figure) == [*words, one]
    assert set(drawn(axes, one)[1]) == {1.0}
    for label, values in zip(words, gains.values(), strict=False):
        assert [a.tolist() for a in drawn(axes, label)] == [[1.0, 2.5], values]
    two = plots.gain_ratio({"a": gains, "b": {"gain_ratio": [1.0, 2.0]}})
    assert names(two) == [*(f"a, {x}" for x in words), "b", one]
    assert is_saved(two)


def test_no_gain_ratio_of_uniform_runs_is_called_estimated(tmp_path):
    files = RunFiles(tmp_path / "plain")
    files.write_history(rows(0))
    files.write_settings({"sampling": "uniform"})
    one = "uniform draws, no gain"
    assert names(plots.gain_ratio(files.directory)) == ["plain", one]
    both = plots.gain_ratio({"U": files.directory, "R": {"gain_ratio": [1, 2]}})
    assert names(both) == ["U", "R", one]


def test_percentiles_over_time_are_bands_named_at_their_ends(directories):
    figure = plots.probabilities_over_time(directories[0])
    (axes,) = figure.axes
    median = np.asarray(axes.lines[0].get_ydata())
    np.testing.assert_allclose(median, [row["n_p_50"] for row in rows(0)])
    for band, (low, high) in zip(
        axes.collections, [(0, 100), (1, 99), (5, 95), (25, 75)], strict=True
    ):
        found = {tuple(np.round(v, 9)) for v in band.get_paths()[0].vertices}
        for row in rows(0):
            for q in (low, high):
                point = row["effective_epochs"], row[percentile_name(q)]
                assert tuple(np.round(point, 9)) in found
    named = {text.get_text(): text.xy[1] for text in axes.texts}
    assert {"least", "median", "largest", "75th percentile"} <= set(named)
    lines = {tuple(np.round(line.get_ydata(), 9)) for line in axes.lines[:-1]}
    columns = [[row[percentile_name(q)] for row in rows(0)] for q in PERCENTILES]
    assert lines == {tuple(np.round(column, 9)) for column in columns}
    assert axes.get_xlim()[0] == 0
    assert axes.get_ylabel() == plots.probabilities(np.ones(3)).axes[0].get_xlabel()
    assert named["largest"] == pytest.approx(rows(0)[-1]["n_p_100"])


def test_shares_of_draws_are_those_of_the_run_or_of_counts(directories):
    figure = plots.share_of_draws({"a": directories[0], "counts": directories[1:]})
    x, y = drawn(figure.axes[0], "a")
    np.testing.assert_allclose(x, np.arange(101))
    np.testing.assert_allclose(y, 100 * np.linspace(0, 1, 101) ** 0.5)
    counts = np.array([0, 5, 1, 4])
    x, y = drawn(plots.share_of_draws(counts).axes[0], "draws")
    np.testing.assert_allclose(y[[0, 25, 50, 75, 100]], [0, 50, 90, 100, 100])
    assert names(figure)[-1] == "uniform draws" and is_saved(figure)


def test_panels_keep_their_size_however_many_runs_are_named():
    def panel(runs: int) -> tuple[np.ndarray, ...]:
        given = {f"run with a long name {i}": {"loss": [2.0, 1.0]} for i in range(runs)}
        figure = plots.learning_curves(given)
        figure.draw_without_rendering()
        return figure.axes[0].get_window_extent().size, figure.get_size_inches()

    (few, small), (many, large) = panel(2), panel(12)
    np.testing.assert_allclose(many, few, rtol=0.05)
    assert large[1] < 2 * small[1]
    named = plots.learning_curves({"x" * 120: {"loss": [2.0, 1.0]}})
    named.draw_without_rendering()
    box = named.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= named.bbox.width


def test_what_cannot_be_drawn_is_refused_with_what_there_is(directories, tmp_path):
    with pytest.raises(ValueError, match="metric='los'.*'run-0' lacks.*mean 'loss'"):
        plots.learning_curves(directories[0], "los")
    with pytest.raises(ValueError, match="'loss', which 'b' lacks"):
        plots.learning_curves({"a": directories[0], "b": {"foo": [1, 2]}}, "loss")
    with pytest.raises(ValueError, match=r"which 'b' \('run-0'\) lacks"):
        plots.learning_curves({"b": directories}, "foo")
    with pytest.raises(ValueError, match=r"SamplingMonitor\(\)"):
        plots.gain_ratio({"loss": [1.0]})
    with pytest.raises(ValueError, match="against='watts'"):
        plots.learning_curves(directories[0], against=["steps", "watts"])
    with pytest.raises(ValueError, match="must be one of.*'epochs'.*none"):
        plots.learning_curves(directories[0], against=[])
    with pytest.raises(ValueError, match="at least one run"):
        plots.learning_curves([])
    with pytest.raises(ValueError, match="A run must be a directory.*int"):
        plots.learning_curves(3)
    with pytest.raises(ValueError, match="must have a history.csv"):
        plots.gain_ratio(tmp_path)
    with pytest.raises(ValueError, match="must have percentiles of n p"):
        plots.probabilities_over_time({"loss": [1.0]})
    with pytest.raises(ValueError, match="must have shares of draws"):
        plots.share_of_draws({"a": {"loss": [1.0]}})
    with pytest.raises(ValueError, match="must have observations"):
        plots.predicted_norms(directories[0])
    with pytest.raises(ValueError, match="probabilities of all examples"):
        plots.probabilities(np.zeros(3))
    with pytest.raises(ValueError, match="'runs/a'.*`probabilities_over_time`"):
        plots.probabilities(["runs/a"])
    for function in (plots.probabilities_over_time, plots.predicted_norms):
        with pytest.raises(ValueError, match=r"one run.*3 runs \(run-0, run-1, run-2"):
            function(directories)


def test_matplotlib_is_asked_for_only_where_it_is_used(monkeypatch, directories):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'keras_osgd\[plot\]'"):
        plots.learning_curves(directories[0])


NAMES = [r"x$\foo$y", "_hidden", "a\nb", "n" * 500, "100%s", "<b>", "$", ""]


@pytest.mark.parametrize("name", NAMES)
def test_texts_of_users_are_no_formulas_and_are_shown(name):
    shown = shortened(name)
    runs = {name: {"loss": [2.0, 1.0], "gain_ratio": [1.0, 1.5], name: [3.0, 2.0]}}
    both = {**runs, "_other": runs[name]}
    most = MostSampled(np.arange(2), np.array([name, "b"]), *[np.ones(2)] * 3)
    record = RunRecord(name, {}, {}, {}, {"share_of_draws": np.linspace(0, 1, 101)})
    figures = {
        plots.learning_curves(both, name): [shown, "_other"],
        plots.gain_ratio(both): [shown, "_other", "uniform draws, no gain"],
        plots.share_of_draws({name: record}): [shown, "uniform draws"],
        plots.gallery(np.zeros([2, 3, 3]), most, ["b", name]): [],
        plots.gallery(np.zeros([2, 2]), most, feature_names=[name, "_"]): [],
    }
    for figure, expected in figures.items():
        assert (names(figure) if figure.legends else []) == expected
        assert is_saved(figure)
        texts = [t for t in figure.findobj(Text) if re.search("[^−0-9.]", t.get_text())]
        assert texts and not any(text.get_parse_math() for text in texts)
    (axes,) = plots.learning_curves(runs, name).axes
    assert axes.get_ylabel() == shortened(in_words(name), 60)
