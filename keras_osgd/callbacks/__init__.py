"""Callbacks for watching and for going on later; training needs none of them."""

from keras_osgd.callbacks.checkpoint import Checkpoint
from keras_osgd.callbacks.monitor import SamplingMonitor

__all__ = ["Checkpoint", "SamplingMonitor"]
