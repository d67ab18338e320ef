"""Features of every training example, kept in `tf.Variable`s on the host."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from keras_osgd.base.chunks import chunks
from keras_osgd.base.placement import host_variable
from keras_osgd.scores.checks import (
    AVERAGE,
    DEFAULT_FEATURES,
    decay_of,
    require_coefficients,
    require_features,
    require_loaded,
    require_observations,
)

__all__ = [
    "ScoreTable",
    "features",
]

LARGEST = np.finfo(np.float32).max
_MEMORY = 0.7  # decay of running means per block; 0.5 to 0.9 made no difference
_FORGOTTEN = 1e-200  # a class mean of less weight is rounding error
_UNSEEN = -1
_MANY = 64  # to copy so many numbers takes less time than to gather one


def features(
    names: Iterable[str],
    held: Mapping[str, np.ndarray],
    classes: np.ndarray | None,
    means: tuple[np.float32, np.ndarray],
    block: int,
) -> Iterator[np.ndarray | np.float32]:
    """Yields the named features of k examples, >= 0, in float32.

    Each is `[k]`, or one number where it is the same for all of them.

    Args:
        names: as in `RAIS`; averages must be in `held`.
        held: `[k]` each: "last", below 0 for examples never observed; averages, by
            name; and "seen_at", in blocks, for "age".
        classes: `[k]`, or `None` without classes.
        means: mean of all norms, and `[C]`, mean of each class.
        block: number of the current block.

    Example:
        >>> held = {"last": np.float32([2.0, -1.0])}
        >>> means = np.float32(3.0), np.float32([4.0])
        >>> [f.tolist() for f in features(["constant", "last"], held, None, means, 0)]
        [3.0, [2.0, 3.0]]
    """
    mean, by_class = means
    unseen = held["last"] < 0
    some_unseen = unseen.any()
    class_mean = mean
    if classes is not None and (some_unseen or "class_mean" in names):
        class_mean = by_class.take(classes)
    for name in names:
        if name == "constant":
            yield mean
        elif name == "class_mean":
            yield class_mean
        elif name == "unseen":
            yield mean * unseen if some_unseen else np.float32(0.0)
        elif name == "age":
            yield _age(mean, block, held["seen_at"])
        else:
            values = held[name]
            yield np.where(unseen, class_mean, values) if some_unseen else values


def _age(mean: np.float32, block: int, seen_at: np.ndarray) -> np.ndarray:
    age = np.subtract(block, seen_at, dtype=np.float64)
    age *= np.float64(mean) / 8
    return np.minimum(age, LARGEST, out=age).astype(np.float32)


def last_places(index: np.ndarray, n: int) -> np.ndarray:
    """Returns the places in `index`, `[k]` of 0..n-1, where a row occurs last.

    Example:
        >>> last_places(np.array([2, 0, 2]), n=3)
        array([1, 2])
    """
    last = np.empty(n, np.int32)  # only the rows of `index` are ever touched
    order = np.arange(len(index), dtype=np.int32)
    last[index] = order  # of repeated rows, the last
    return np.flatnonzero(last[index] == order)


class ScoreTable:
    """Features s_i >= 0 of each example's gradient norm, in gradient-norm units.

    | feature | value for example i |
    |---|---|
    | constant | running importance-weighted mean of all norms |
    | last | the norm last observed; the class mean while there is none |
    | average_DECAY | exponential moving average of its norms; likewise |
    | class_mean | running mean of its class; the constant without classes |
    | unseen | the constant while it has not been observed, then 0 |
    | age | the constant times the blocks since it was observed, over 8 |

    Args:
        size: n, number of examples.
        classes: `[n]` integers from 0, or `None` where y has no classes.
        features: names, see `require_features`.

    Example:
        >>> table = ScoreTable(3, None, ("constant", "last"))
        >>> table.observe([2], [1.0], [5.0], block=0)
        >>> table.features_of([0, 2]).tolist()  # unseen: as the mean
        [[5.0, 5.0], [5.0, 5.0]]
    """

    def __init__(
        self,
        size: int,
        classes: np.ndarray | None,
        features: Sequence[str] = DEFAULT_FEATURES,
    ) -> None:
        """Allocates the table; nothing is observed yet."""
        self.size = int(size)
        self.features = require_features(features)
        self._decays = [d for d in map(decay_of, self.features) if d is not None]
        self._classes = self._needed(classes)
        # Decayed sums of w v and of w; the last row is over all classes.
        self.sums = self._no_sums()
        self.block = 0
        self._forget_sums()
        self._variables = self._allocate()

    def _needed(self, classes: np.ndarray | None) -> np.ndarray | None:
        used = classes is not None and "class_mean" in self.features
        return np.array(classes, np.int32) if used else None

    def _no_sums(self) -> np.ndarray:
        n_classes = 1 if self._classes is None else int(self._classes.max()) + 1
        return np.zeros((n_classes + 1, 2))

    def _allocate(self) -> dict[str, tf.Variable]:
        """Returns the stored variables by name; nothing is observed yet."""
        names = {"last": tf.float32}
        names |= {f"{AVERAGE}{decay}": tf.float32 for decay in self._decays}
        if "age" in self.features:
            names["seen_at"] = tf.int32
        return {
            name: host_variable(
                functools.partial(tf.fill, [self.size], tf.cast(_UNSEEN, dtype))
            )
            for name, dtype in names.items()
        }

    @property
    def bytes_per_example(self) -> float:
        """Bytes that the table takes for each example."""
        classes = 0 if self._classes is None else self._classes.itemsize
        return classes + sum(v.dtype.size for v in self._variables.values())

    @property
    def classes(self) -> np.ndarray | None:
        """`[n]` int32, a copy of each row's class; `None` where none is needed."""
        return None if self._classes is None else self._classes.copy()

    @property
    def share_unseen(self) -> float:
        """Share of the examples whose norm was never observed."""
        if self._share_unseen is None:
            unseen = np.count_nonzero(self._read("last") < 0)
            self._share_unseen = unseen / self.size
        return self._share_unseen

    def observe(self, index, weights, norms, block: int) -> None:
        """Adds norms in the order in which they were observed.

        An example drawn more than once since the last call keeps its latest norm.

        Args:
            index: `[k]` integers. Rows.
            weights: `[k]`, > 0. Importance weights of the draws.
            norms: `[k]`, >= 0, finite, gradient-norm units.
            block: number of the block the observations were made in.

        Raises:
            ValueError: if an argument is not so; nothing is written then. The planner
                drops norms that are not finite.
        """
        index, norms = np.asarray(index, np.int64), np.asarray(norms, np.float64)
        weights = np.asarray(weights, np.float64)
        require_observations(index, weights, norms, self.size)
        self._update_means(index, weights, norms)
        latest = last_places(index, self.size)
        index, norms = index[latest], norms[latest].astype(np.float32)
        unseen = self._read("last", index) < 0
        for decay in self._decays:
            name = f"{AVERAGE}{decay}"
            old = np.where(unseen, norms, self._read(name, index))
            self._write(name, index, decay * old + (1 - decay) * norms)
        self._write("last", index, norms)
        if "seen_at" in self._variables:
            self._write("seen_at", index, np.full(len(index), block, np.int32))
        self.block = block
        self._mean_features = None
        self._share_unseen = self._share_unseen and None  # 0 for good once it is

    def forget(self, index: np.ndarray, classes: np.ndarray | None) -> None:
        """Makes rows as they were before they were observed; the others' norms stay.

        Running means stay too, each with the class that its examples have now.

        Args:
            index: `[k]` distinct integers. Rows.
            classes: `[n]`, as in the constructor: of all rows as they are now.
        """
        for name, variable in self._variables.items():
            unseen = np.full(len(index), _UNSEEN, variable.dtype.as_numpy_dtype)
            self._write(name, index, unseen)
        before, sums = self._classes, self.sums
        self._classes = self._needed(classes)
        self.sums = self._no_sums()
        self.sums[-1] = sums[-1]
        if before is not None and self._classes is not None:
            # Numbers of classes move where the lowest label came or went.
            same = np.delete(np.arange(self.size), index)
            self.sums[self._classes[same]] = sums[before[same]]
        self._forget_sums()

    def _forget_sums(self) -> None:
        """Has all that is summed over the examples computed anew when asked for."""
        self._mean_features: np.ndarray | None = None  # until the next observation
        self._share_unseen: float | None = None  # likewise, unless it is 0
        self._class_sizes: np.ndarray | None = None

    def _read(self, name: str, index: np.ndarray | None = None) -> np.ndarray:
        """Returns a copy of a variable, or of some of its rows; do not write to it."""
        variable = self._variables[name]
        if index is not None and len(index) * _MANY < self.size:
            return np.asarray(tf.gather(variable, index))
        values = np.asarray(variable.read_value())
        return values if index is None else values.take(index)

    def _write(self, name: str, index: np.ndarray, values: np.ndarray) -> None:
        self._variables[name].scatter_update(tf.IndexedSlices(values, index))

    def _update_means(self, index, weights, norms) -> None:
        new = np.zeros_like(self.sums)
        if self._classes is not None:
            classes, rows = self._classes[index], len(new) - 1
            new[:-1, 0] = np.bincount(classes, weights * norms, minlength=rows)
            new[:-1, 1] = np.bincount(classes, weights, minlength=rows)
        new[-1] = (weights * norms).sum(), weights.sum()
        self.sums = _MEMORY * self.sums + new

    def _means(self) -> tuple[np.float32, np.ndarray]:
        """Returns the mean of all norms, and of each class (of all if it is unseen)."""
        sums, weights = self.sums.T
        mean = sums[-1] / weights[-1] if weights[-1] > 0 else 0.0
        known = weights[:-1] > _FORGOTTEN
        classes = np.where(known, sums[:-1] / np.where(known, weights[:-1], 1), mean)
        mean, classes = min(mean, LARGEST), np.minimum(classes, LARGEST)
        return np.float32(mean), classes.astype(np.float32)

    def _columns(
        self, names: Iterable[str], means: tuple, index: np.ndarray | None = None
    ) -> Iterator[tuple[slice, list[np.ndarray]]]:
        """Yields the named features of all examples, or of some, a part at a time.

        Each variable is read once, as every read is a copy.
        """
        stored = {"age": "seen_at"}
        needed = {"last", *(stored.get(name, name) for name in names)}
        held = {k: self._read(k, index) for k in self._variables if k in needed}
        classes = self._classes
        if classes is not None and index is not None:
            classes = classes[index]
        for rows in chunks(len(held["last"])):
            part = {name: values[rows] for name, values in held.items()}
            of_part = None if classes is None else classes[rows]
            yield rows, list(features(names, part, of_part, means, self.block))

    def features_of(self, index) -> np.ndarray:
        """Returns `[k, F]`, >= 0: the features of rows `index` as they are now."""
        rows = np.asarray(index, np.int64)
        features = np.empty([len(rows), len(self.features)], np.float32)
        for part, columns in self._columns(self.features, self._means(), rows):
            for place, column in enumerate(columns):
                features[part, place] = column  # an array or one number
        return features

    def mean_features(self) -> np.ndarray:
        """Returns `[F]`, >= 0: the mean of each feature over all n examples."""
        if self._mean_features is None:
            means, unseen = self._means(), self._unseen_by_class()
            self._share_unseen = unseen.sum() / self.size
            totals = [self._total(name, means, unseen) for name in self.features]
            self._mean_features = np.array(totals) / self.size
        return self._mean_features.copy()

    def _unseen_by_class(self) -> np.ndarray:
        """Returns `[C]`, how many examples of each class were never observed."""
        unseen = self._read("last") < 0
        if self._classes is None or not unseen.any():
            return np.full(len(self.sums) - 1, np.count_nonzero(unseen))
        return self._by_class(unseen)

    def _by_class(self, chosen: np.ndarray) -> np.ndarray:
        """Returns `[C]`, how many examples of each class a mask `[n]` chooses."""
        return sum(
            np.bincount(self._classes[rows][chosen[rows]], minlength=len(self.sums) - 1)
            for rows in chunks(self.size)
        )

    def _total(self, name: str, means: tuple, unseen: np.ndarray) -> float:
        """Returns the sum of a feature over all n examples."""
        mean, by_class = means[0], means[1].astype(np.float64)
        if name == "constant" or (name == "class_mean" and self._classes is None):
            return self.size * float(mean)
        if name == "class_mean":
            if self._class_sizes is None:
                self._class_sizes = self._by_class(np.ones(self.size, bool))
            return (self._class_sizes * by_class).sum()
        if name == "unseen":
            return unseen.sum() * float(mean)
        if name == "age":
            seen_at = self._read("seen_at")
            parts = (seen_at[rows] for rows in chunks(self.size))
            ages = (_age(mean, self.block, part) for part in parts)
            return sum(age.sum(dtype=np.float64) for age in ages)
        values = self._read(name)
        if unseen.any():
            values = np.maximum(values, 0.0)
        return values.sum(dtype=np.float64) + (unseen * by_class).sum()

    def combine(self, coefficients: np.ndarray) -> np.ndarray:
        """Returns `[n]` float64: <coefficients, s_i> of every example.

        Args:
            coefficients: `[F]`, >= 0. Features with coefficient 0 are not even read.

        Raises:
            ValueError: if a coefficient is negative or not finite.
        """
        require_coefficients(coefficients)
        used = {
            name: np.float64(value)
            for name, value in zip(self.features, coefficients, strict=True)
            if value > 0
        }
        total = np.empty(self.size)
        for rows, columns in self._columns(used, self._means()):
            part = total[rows]
            part.fill(0.0)
            for value, column in zip(used.values(), columns, strict=True):
                part += value * column
        return total

    def last_norms(self) -> np.ndarray:
        """Returns `[n]` float32: the norms last observed; NaN where there is none."""
        last = self._read("last")
        return np.where(last < 0, np.float32(np.nan), last)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Returns copies of all arrays that `load_state_dict` needs."""
        arrays = {name: self._read(name).copy() for name in self._variables}
        if self._classes is not None:
            arrays["classes"] = self._classes.copy()
        return arrays | {"sums": self.sums.copy(), "block": np.int64(self.block)}

    def holds(self, arrays: dict[str, np.ndarray], features: Sequence[str]) -> bool:
        """Returns whether `arrays`, of `state_dict`, have this n and these features."""
        same_classes = ("classes" in arrays) == (self._classes is not None)
        same_sums = np.shape(arrays["sums"]) == self.sums.shape
        same_size = len(arrays["last"]) == self.size
        same_features = tuple(features) == self.features
        return same_classes and same_sums and same_size and same_features

    def load_state_dict(self, arrays: dict[str, np.ndarray]) -> None:
        """Loads the arrays of a `state_dict`, for which `holds` must be true.

        Raises:
            ValueError: if a number cannot come from `state_dict`; nothing is changed.
        """
        require_loaded(arrays, self.state_dict())
        for name, variable in self._variables.items():
            variable.assign(arrays[name])
        if self._classes is not None:
            self._classes[:] = arrays["classes"]
        self.sums = np.array(arrays["sums"], np.float64)
        self.block = int(arrays["block"])
        self._forget_sums()
