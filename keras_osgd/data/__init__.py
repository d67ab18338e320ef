"""Data, the start of the flow: arguments of `fit` become n rows to score and draw."""

from keras_osgd.data.datasets import from_dataset, indexed
from keras_osgd.data.indexed_examples import Indexed
from keras_osgd.data.record_columns import records

__all__ = ["Indexed", "from_dataset", "indexed", "records"]
