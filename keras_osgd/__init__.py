"""Train Keras models in less time by drawing the examples that matter most."""

from keras_osgd import callbacks, data, norms, plots, sampling
from keras_osgd.fit.check import check
from keras_osgd.model import Model, Sequential, accelerate, release
from keras_osgd.norms.gradient_norms import gradient_norms
from keras_osgd.tools.label_errors import LabelSuspects, find_label_errors
from keras_osgd.tools.recalibration import recalibrate_batch_normalization
from keras_osgd.tools.speedup import SpeedupEstimate, estimate_speedup
from keras_osgd.versions import __version__

__all__ = [
    "LabelSuspects",
    "Model",
    "Sequential",
    "SpeedupEstimate",
    "__version__",
    "accelerate",
    "callbacks",
    "check",
    "data",
    "estimate_speedup",
    "find_label_errors",
    "gradient_norms",
    "norms",
    "plots",
    "recalibrate_batch_normalization",
    "release",
    "sampling",
]
