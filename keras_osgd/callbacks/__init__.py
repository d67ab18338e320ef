"""Optional callbacks around `fit`: logs of the sampling, checkpoints to resume from."""

from keras_osgd.callbacks.checkpoint import Checkpoint
from keras_osgd.callbacks.monitor import SamplingMonitor

__all__ = ["Checkpoint", "SamplingMonitor"]
