"""Train Keras models in less time by drawing the examples that matter most."""

from keras_osgd import callbacks, norms, sampling
from keras_osgd.model import Model, Sequential, accelerate, release
from keras_osgd.scoring import gradient_norms

__all__ = [
    "Model",
    "Sequential",
    "accelerate",
    "callbacks",
    "gradient_norms",
    "norms",
    "release",
    "sampling",
]

__version__ = "0.1.0"
