"""One HTML page about training runs, which opens from disk without a network."""

from keras_osgd.report.page import page, write

__all__ = ["page", "write"]
