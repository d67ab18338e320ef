"""Train Keras models in less time by drawing the examples that matter most."""

from keras_osgd import callbacks, sampling
from keras_osgd.model import Model, Sequential, accelerate, release

__all__ = [
    "Model",
    "Sequential",
    "accelerate",
    "callbacks",
    "release",
    "sampling",
]

__version__ = "0.1.0"
