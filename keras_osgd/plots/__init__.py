"""Figures of training runs, by matplotlib: `pip install 'keras_osgd[plot]'`.

Every function returns a `matplotlib.figure.Figure`; `.savefig(path)` saves it. Runs are
told apart by line style and marker as well as by colour (Okabe and Ito's, which
colour-blind readers can tell apart), so that grey print shows them too.
"""

from keras_osgd.plots.curves import gain_ratio, learning_curves
from keras_osgd.plots.images import gallery
from keras_osgd.plots.norms import predicted_norms
from keras_osgd.plots.shares import (
    probabilities,
    probabilities_over_time,
    share_of_draws,
)

__all__ = [
    "gain_ratio",
    "gallery",
    "learning_curves",
    "predicted_norms",
    "probabilities",
    "probabilities_over_time",
    "share_of_draws",
]
