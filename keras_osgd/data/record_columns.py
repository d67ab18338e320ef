"""Records that are read only when drawn, in columns that look like arrays."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_osgd.base.refusals import NO_EXAMPLES
from keras_osgd.data.arrays import row_numbers, type_kept
from keras_osgd.data.indexed_examples import Indexed

__all__ = ["Column", "Records", "records"]

_THREADS = 8
_TRIES = 5
_AT_ONCE = 1024  # records in a part, where all are read
_MOST = 2**48  # a longer source counts as infinite


class Records:
    """Random access to examples that are not in memory.

    Args:
        source: as in `records`.
        parse: as in `records`.

    Raises:
        ValueError: if the source is empty, infinite or cannot be indexed, or its first
            record gives no such tuple.
    """

    def __init__(self, source: Any, parse: Callable[[Any], Any] | None) -> None:
        """Reads the first record."""
        self._source, self._parse = source, parse
        self._n = _length_of(source)
        self._last = threading.local()  # tf.data may map batches in parallel
        self._threads = concurrent.futures.ThreadPoolExecutor(
            _THREADS, "keras_osgd_records"
        )
        self._structure = self._example(_called(source.__getitem__, 0))
        first = [np.asarray(leaf) for leaf in keras.tree.flatten(self._structure)]
        self._flat = not any(map(keras.tree.is_nested, self._structure))
        self._specs = [(type_kept(leaf.dtype), leaf.shape) for leaf in first]

    def __len__(self) -> int:
        """Returns n."""
        return self._n

    def columns(self) -> tuple:
        """Returns (x, y, ...), each leaf a `Column`."""
        leaves = [Column(self, i, *spec) for i, spec in enumerate(self._specs)]
        return keras.tree.pack_sequence_as(self._structure, leaves)

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """Returns the leaves of some records, `[k, ...]` each.

        The rows that a thread read last are kept, since columns ask for the same rows
        one after the other.

        Args:
            rows: `[k]`, integers.
        """
        last, key = self._last, rows.tobytes()
        if getattr(last, "key", None) != key:
            last.leaves = self._read(rows.tolist())
            last.key = key
        return last.leaves

    def all_of(
        self, orders: Sequence[int], progress: Callable[[int], None] = lambda done: None
    ) -> list[np.ndarray]:
        """Returns some leaves of all records, `[n, ...]` each.

        Args:
            orders: places of the leaves in a record.
            progress: called with the number of records read so far.
        """
        parts = []
        for first in range(0, self._n, _AT_ONCE):
            rows = range(first, min(first + _AT_ONCE, self._n))
            read = self._read(list(rows))
            parts.append([read[order] for order in orders])
            progress(rows.stop)
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _read(self, rows: list[int]) -> list[np.ndarray]:
        examples = list(self._examples(rows))
        columns = []
        for order, (dtype, shape) in enumerate(self._specs):
            leaves = [np.asarray(leaves[order]) for leaves in examples]
            for row, leaf in zip(rows, leaves, strict=True):
                if leaf.shape != shape:
                    raise ValueError(
                        f"All examples must have one shape. Received: {shape}, then "
                        f"{leaf.shape} in record {row}. Pad or crop them in `parse`."
                    )
            columns.append(np.array(leaves, dtype).reshape(len(rows), *shape))
        return columns

    def _examples(self, rows: list[int]) -> Iterator[list[Any]]:
        """Yields the leaves of each record; every thread reads several records."""
        if hasattr(self._source, "__getitems__"):
            wanted = list(self._source.__getitems__(rows))
        else:
            wanted = rows
        size = -(-len(wanted) // _THREADS)
        parts = (wanted[i : i + size] for i in range(0, len(wanted), size or 1))
        for part in self._threads.map(self._part, parts):
            yield from part

    def _part(self, wanted: list[Any]) -> list[Sequence[Any]]:
        """Returns leaves of records, given themselves or by number."""
        if not hasattr(self._source, "__getitems__"):
            wanted = (_called(self._source.__getitem__, row) for row in wanted)
        return [self._leaves(record) for record in wanted]

    def _leaves(self, record: Any) -> Sequence[Any]:
        example = self._example(record)
        nested = any(isinstance(leaf, list | tuple | dict) for leaf in example)
        if self._flat and len(example) == len(self._specs) and not nested:
            return example  # comparing structures takes 6 us a record
        try:
            keras.tree.assert_same_structure(self._structure, example)
        except (ValueError, TypeError) as error:
            raise ValueError(
                "All records must be nested in one way. Received: one unlike the "
                f"first: {error} Let `parse` give the same dicts and tuples always."
            ) from error
        return keras.tree.flatten(example)

    def _example(self, record: Any) -> tuple:
        example = record if self._parse is None else _called(self._parse, record)
        if not isinstance(example, tuple) or not 2 <= len(example) <= 3:
            raise ValueError(
                "A record must be (x, y) or (x, y, sample_weight). Received: "
                f"{type(example).__name__}. Pass `parse`, which makes that of it, for "
                "example `lambda record: (record['image'], record['label'])`."
            )
        return example


def _called(function: Callable[[Any], Any], given: Any) -> Any:
    """Returns `function(given)`; calls it again where CPython raises a SystemError.

    CPython 3.11 counts the depth of its parser for all threads together, so that
    `ast.literal_eval`, and with it `np.load`, now and then raises a SystemError
    (python/cpython, issue 106905).
    """
    for _ in range(_TRIES - 1):
        with contextlib.suppress(SystemError):
            return function(given)
    return function(given)


def _length_of(source: Any) -> int:
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise ValueError(
            "Records must be read by number: `source` must have `__len__` and "
            f"`__getitem__`. Received: {type(source).__name__}. Pass what it was made "
            "from before it became a stream (of a grain pipeline the `MapDataset`, of "
            "Hugging Face's the `Dataset`)."
        )
    n = len(source)
    if n == 0:
        raise ValueError(NO_EXAMPLES)
    if n > _MOST:
        raise ValueError(
            f"`source` must be finite. Received: a length of {n}. Leave `.repeat()` "
            "out: `fit` goes over the records as often as `epochs` says."
        )
    return n


class Column:
    """One leaf of all records, indexed like an array `[n, ...]` along its first axis.

    Attributes:
        order: place among the leaves of a record.
        dtype: NumPy's type of the leaf.
        shape: with n first.
    """

    def __init__(self, records: Records, order: int, dtype: Any, shape: tuple) -> None:
        """Reads nothing yet."""
        self._records, self.order = records, order
        self.dtype, self.shape = dtype, (len(records), *shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the whole column would take."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __len__(self) -> int:
        """Returns n."""
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Returns rows by number, slice or array of numbers."""
        index = row_numbers(rows, len(self))
        found = self._records.read(np.atleast_1d(index))[self.order]
        return found if index.ndim else found[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Returns the whole column, read into memory."""
        return np.asarray(self._records.all_of([self.order])[0], dtype)


def records(
    source: Any,
    parse: Callable[[Any], tuple] | None = None,
    map: Callable | None = None,
    labels: Any = None,
    verbose: bool = True,
) -> Indexed:
    """Lets `fit` draw from records with random access, and read only those drawn.

    For data larger than memory: array_record and grain sources, Hugging Face datasets,
    a list of paths, or anything with `__len__` and `__getitem__`. Reading runs beside
    the training step, in several threads.

    Args:
        source: has `__len__` and `__getitem__`. If it has `__getitems__`, which takes a
            list of numbers, that is called instead.
        parse: function from a record to (x, y) or (x, y, sample_weight), as arrays of
            one shape; called at every visit. `None` if records are such tuples already.
        map: as in `indexed`, for one example; of TensorFlow's operations, to augment.
        labels: y of all records, `[n, ...]`. `None` reads all records once for them.
        verbose: whether that reading shows a progress bar.

    Returns:
        Examples that `fit` takes in place of x.

    Raises:
        ValueError: if there is no record, or a record is not as described above.

    Example:
        >>> source = [{"image": np.ones([2, 2]), "label": i % 2} for i in range(5)]
        >>> train = records(source, lambda r: (r["image"], r["label"]), verbose=False)
        >>> len(train), train.arrays[1]
        (5, array([0, 1, 0, 1, 0]))
    """
    found = Records(source, parse)
    x, *others = found.columns()
    if labels is not None:
        others[0] = np.asarray(labels)
    orders = [c.order for c in keras.tree.flatten(others) if type(c) is Column]
    if orders:
        read = dict(zip(orders, _read_all(found, orders, verbose), strict=True))
        others = keras.tree.map_structure(
            lambda leaf: read[leaf.order] if type(leaf) is Column else leaf, others
        )
    return Indexed((x, *others, None, None)[:3], map)


def _read_all(found: Records, orders: list[int], verbose: bool) -> list[np.ndarray]:
    if not verbose:
        return found.all_of(orders)
    print("Reading all records once, for their labels")
    return found.all_of(
        orders, keras.utils.Progbar(len(found), unit_name="record").update
    )
