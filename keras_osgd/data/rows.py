"""Random access to the training data, from one copy of it."""

from __future__ import annotations

import weakref
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base.placement import host_variable
from keras_osgd.data.uneven_columns import Uneven, dtypes_of, taken_from

__all__ = ["Rows"]

_IN_PLACE_BYTES = 2**28  # larger arrays are read where they are, never copied


class Rows:
    """Random access to the examples of nested arrays, without a copy of large ones.

    Args:
        arrays: arrays or columns in any nesting of tuples, lists and dicts, `None`
            allowed; all with the same first dimension.
        in_place: whether even small arrays are read where they are.

    Example:
        >>> Rows((np.arange(6.0).reshape(3, 2), None))(tf.constant([2]))[0].numpy()
        array([[4., 5.]])
    """

    def __init__(self, arrays: Any, in_place: bool = False) -> None:
        """Copies small arrays into variables and refers to large ones."""
        self._structure = arrays
        leaves = [leaf for leaf in keras.tree.flatten(arrays) if leaf is not None]
        self._in_place = in_place or self.reads_in_place(arrays)
        self._leaves = leaves
        if not self._in_place:
            # Not captured tensors: each new iterator would copy those once more.
            self._leaves = [host_variable(leaf) for leaf in leaves]

    @staticmethod
    def reads_in_place(arrays: Any) -> bool:
        """Returns whether rows are read from the arrays where they are."""
        leaves = [leaf for leaf in keras.tree.flatten(arrays) if leaf is not None]
        # A leaf that is no NumPy array is a column, whose rows are taken by number.
        return sum(leaf.nbytes for leaf in leaves) > _IN_PLACE_BYTES or any(
            not isinstance(leaf, np.ndarray) for leaf in leaves
        )

    def __call__(self, index: tf.Tensor) -> Any:
        """Returns rows `index` of every array, in the same nesting."""
        if self._in_place:
            gathered = self._gather_in_place(index)
        else:
            gathered = [tf.gather(leaf, index) for leaf in self._leaves]
        rows = iter(gathered)
        return keras.tree.map_structure(
            lambda leaf: None if leaf is None else next(rows), self._structure
        )

    def _gather_in_place(self, index: tf.Tensor) -> list[Any]:
        # TensorFlow keeps the function for ever, a dataset keeps this object.
        take = weakref.WeakMethod(self._take)
        dtypes = [tf.as_dtype(d) for leaf in self._leaves for d in dtypes_of(leaf)]
        read = tf.numpy_function(lambda i: take()(i), [index], dtypes, stateful=False)
        taken = iter(read)
        gathered = []
        for leaf in self._leaves:
            tensors = [next(taken) for _ in dtypes_of(leaf)]
            if isinstance(leaf, Uneven):
                leaf.set_shapes(tensors, index.shape[0])
                gathered.append(leaf.tensor(tensors))
            else:
                tensors[0].set_shape([index.shape[0], *leaf.shape[1:]])
                gathered.append(tensors[0])
        return gathered

    def _take(self, index: np.ndarray) -> list[np.ndarray]:
        return [part for leaf in self._leaves for part in taken_from(leaf, index)]
