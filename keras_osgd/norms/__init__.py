"""Per-example gradient norms: of the last layer, and exact ones of the whole model."""

from keras_osgd.norms import convolution, dense, normalization, recurrent
from keras_osgd.norms.forms import Gathered, PerExample, Products
from keras_osgd.norms.rules import Call, Obstacle, register

__all__ = ["Call", "Gathered", "Obstacle", "PerExample", "Products", "register"]

_KNOWN = (convolution, dense, normalization, recurrent)  # importing registers layers
