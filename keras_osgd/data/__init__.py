"""Training data: what `fit` is given becomes n rows of columns."""

from keras_osgd.data.datasets import from_dataset, indexed
from keras_osgd.data.indexed_examples import Indexed
from keras_osgd.data.record_columns import records

__all__ = ["Indexed", "from_dataset", "indexed", "records"]
