"""Report: one HTML page about training runs, which opens from disk, offline."""

from keras_osgd.report.page import page, write

__all__ = ["page", "write"]
