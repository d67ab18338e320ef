"""Figures of probabilities and of gradient norms."""

import numpy as np
import pytest

from keras_osgd import plots
from keras_osgd.run_directory import RunFiles
from tests.helpers.figures import drawn, is_saved, rows


def test_a_histogram_of_n_p_has_all_examples_at_their_places():
    p = np.random.default_rng(0).lognormal(0, 0.7, 1000)
    p /= p.sum()
    p = np.append(p, 0.0)  # one set aside
    figure = plots.probabilities(p)
    bars = figure.axes[0].patches
    edges = [bar.get_x() for bar in bars] + [bars[-1].get_x() + bars[-1].get_width()]
    expected = np.array(
        [
            np.sum((len(p) * p >= a) & (len(p) * p < b))
            for a, b in zip(edges, edges[1:], strict=False)
        ]
    )
    assert expected.sum() == 1000
    np.testing.assert_allclose([bar.get_height() for bar in bars], expected / 10)


def test_norms_and_the_uncertainty_set_are_where_they_were_observed():
    rng = np.random.default_rng(1)
    predicted = rng.exponential(size=600)
    arrays = {
        "predicted": predicted,
        "observed": predicted + rng.uniform(0, 1, 600),
        "variance": 0.25 + predicted,
    }
    figure = plots.predicted_norms(arrays)
    (axes,) = figure.axes
    x, y = drawn(axes, "observations")
    np.testing.assert_array_equal(x, predicted)
    np.testing.assert_array_equal(y, arrays["observed"])
    order = np.sort(predicted)
    centres = order.reshape(12, 50).mean(axis=1)
    spread = np.sqrt(0.25 + centres)  # the variance is linear in the prediction
    low, high = (np.asarray(line.get_ydata()) for line in axes.lines[1:3])
    np.testing.assert_allclose(high, centres + spread)
    np.testing.assert_allclose(low, np.maximum(centres - spread, 0))
    assert "single points may lie outside" in figure.get_suptitle().replace("\n", " ")
    assert is_saved(figure)
    zeros = dict.fromkeys(arrays, np.zeros(3))
    assert is_saved(plots.predicted_norms(zeros))


@pytest.mark.parametrize(
    ("norm", "label"),
    [("last_layer", "observed last layer's gradient norm"), ("exact", "exact")],
)
def test_norms_say_whose_they_are_and_have_no_ticks_without_a_number(
    norm, label, tmp_path
):
    files = RunFiles(tmp_path)
    files.write_history(rows(0))
    files.write_settings({"sampling": f"RAIS(norm='{norm}', floor=0.05)"})
    column = np.linspace(0.1, 20, 50)
    files.write_arrays(dict.fromkeys(("predicted", "variance", "observed"), column))
    (axes,) = plots.predicted_norms([tmp_path]).axes  # a list of one is one
    assert label in axes.get_ylabel() and axes.get_xlabel().startswith("predicted")
    for axis in (axes.xaxis, axes.yaxis):
        assert len(axis.get_minorticklocs()) == 0 < len(axis.get_majorticklocs())
