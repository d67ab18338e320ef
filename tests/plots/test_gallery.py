"""Galleries of examples: what they show, and what they refuse."""

import numpy as np
import pytest

from keras_osgd import plots
from keras_osgd.scores.most_sampled import MostSampled
from tests.helpers.figures import is_saved


def most(k: int) -> MostSampled:
    index, label = np.arange(k) + 10, np.arange(k) % 3
    return MostSampled(index, label, np.full(k, 0.0125), np.ones(k, int), np.ones(k))


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3)])
def test_a_gallery_shows_every_image_with_label_prediction_and_share(shape):
    x = np.random.default_rng(0).uniform(-1, 3, (4, *shape))
    figure = plots.gallery(x, most(4), [0, 2, 2, 1], ["a", "b", "c"], columns=3)
    assert len(figure.axes) == 4
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "10: a\n1.25 % of draws"
    assert titles[1] == "11: b ✗ c\n1.25 % of draws"
    scaled = (x - x.min()) / (x.max() - x.min())
    for axes, image in zip(figure.axes, scaled, strict=True):
        np.testing.assert_allclose(axes.images[0].get_array(), image.squeeze())
    widths = [axes.spines["top"].get_linewidth() for axes in figure.axes]
    assert widths[1] == widths[3] > widths[0] == widths[2]
    assert "label ✗ prediction" in figure.get_suptitle()
    assert is_saved(figure)


def test_shares_in_a_gallery_have_equal_decimals():
    shares = np.array([0.1, 0.0123456, 0.005])
    figure = plots.gallery(np.zeros((3, 2, 2)), most(3)._replace(share_of_draws=shares))
    told = [axes.get_title().split("\n")[1] for axes in figure.axes]
    assert told == ["10.000 % of draws", "1.235 % of draws", "0.500 % of draws"]


def test_a_gallery_of_rows_is_a_table():
    x = np.arange(21.0).reshape(3, 7)
    found = plots.gallery(
        x, most(3)._replace(label=np.array([0.5, 1.25, 2])), [0.5, 1.0, 2.0]
    )
    (table,) = found.axes[0].tables
    cells = table.get_celld()
    text = [
        [cells[row, column].get_text().get_text() for column in range(11)]
        for row in range(4)
    ]
    assert text[0][:4] == ["index", "label", "prediction", "of draws"]
    assert text[1] == ["10", "0.5", "0.5", "1.25 %", *map(str, range(6)), "…"]
    assert "1 more columns" in found.get_suptitle()
    assert text[2][:3] == ["11", "1.25", "✗ 1"]
    unlabelled = plots.gallery(x, most(3)._replace(label=None))
    assert is_saved(unlabelled)


def test_a_gallery_refuses_what_does_not_belong_to_its_examples():
    x = np.zeros((3, 4, 4))
    with pytest.raises(ValueError, match=r"Pass x\[most.index\]"):
        plots.gallery(x[:2], most(3))
    with pytest.raises(ValueError, match=r"\(3, 10\).*argmax\(axis=-1\)"):
        plots.gallery(x, most(3), np.zeros((3, 10)))
    with pytest.raises(ValueError, match=r"\(3, 1\).*Take \[:, 0\]"):
        plots.gallery(x, most(3), np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"each of the 3 examples.*\(2,\)"):
        plots.gallery(x, most(3), [1, 2])
    for label, predictions in (([0, 1, 2], None), ([0, 1, 0], [0, 2, 1])):
        chosen = most(3)._replace(label=np.array(label))
        with pytest.raises(ValueError, match="2 names, and classes from 0 to 2"):
            plots.gallery(x, chosen, predictions, ["a", "b"])
    with pytest.raises(ValueError, match="1 names, x.shape="):
        plots.gallery(x[0, :3], most(3), feature_names=["a"])
