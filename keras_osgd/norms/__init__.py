"""Norms: from losses to per-example gradient norms, of the last layer or exact."""

from keras_osgd.norms import convolution, dense, normalization, recurrent
from keras_osgd.norms.forms import Gathered, PerExample, Products
from keras_osgd.norms.rules import Call, Obstacle, register

__all__ = ["Call", "Gathered", "Obstacle", "PerExample", "Products", "register"]

_KNOWN = (convolution, dense, normalization, recurrent)  # importing registers layers
