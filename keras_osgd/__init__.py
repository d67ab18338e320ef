"""Train Keras models in less time by drawing the examples that matter most."""

from keras_osgd import callbacks, data, norms, plots, sampling
from keras_osgd.diagnosis import check
from keras_osgd.exact_norms import gradient_norms
from keras_osgd.model import Model, Sequential, accelerate, release
from keras_osgd.recalibration import recalibrate_batch_normalization
from keras_osgd.versions import __version__

__all__ = [
    "Model",
    "Sequential",
    "__version__",
    "accelerate",
    "callbacks",
    "check",
    "data",
    "gradient_norms",
    "norms",
    "plots",
    "recalibrate_batch_normalization",
    "release",
    "sampling",
]
