"""Callbacks for watching; training needs none of them."""

from keras_osgd.callbacks.monitor import SamplingMonitor

__all__ = ["SamplingMonitor"]
