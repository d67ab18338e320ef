"""Features of every training example, kept in `tf.Variable`s on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

__all__ = ["DEFAULT_FEATURES", "LARGE_FEATURES", "ScoreTable", "check_features"]

DEFAULT_FEATURES = ("constant", "last", "average_0.75", "class_mean")
LARGE_FEATURES = (*DEFAULT_FEATURES, "unseen", "age")
_AVERAGE = "average_"
_NAMES = ("constant", "last", "class_mean", "unseen", "age")
_MEMORY = 0.7  # of the running means, a block; 0.5 to 0.9 made no difference
_UNSEEN = -1


def check_features(features: Sequence[str]) -> tuple[str, ...]:
    """Returns `features` as a tuple.

    Raises:
        ValueError: if a name is unknown or twice there, or "constant" is not the first.

    Example:
        >>> check_features(["constant", "last", "average_0.9"])
        ('constant', 'last', 'average_0.9')
    """
    features = tuple(features)
    known = all(name in _NAMES or _decay(name) is not None for name in features)
    if not known or len(set(features)) < len(features) or features[:1] != _NAMES[:1]:
        raise ValueError(
            "`features` must begin with 'constant' (it keeps every radius of the "
            f"uncertainty set above 0) and hold each name once, out of {_NAMES} and "
            f"'average_DECAY' with 0 < DECAY < 1. Received: features={features}. "
            f"Leave it at `None` for {DEFAULT_FEATURES}."
        )
    return features


def _decay(name: str) -> float | None:
    try:
        decay = float(name.removeprefix(_AVERAGE))
    except ValueError:
        return None
    return decay if name.startswith(_AVERAGE) and 0 < decay < 1 else None


class ScoreTable:
    """What is known of each example's gradient norm, s_i >= 0 in gradient-norm units.

    | feature | value for example i |
    |---|---|
    | constant | running importance-weighted mean of all norms |
    | last | the norm last observed; the class mean while there is none |
    | average_DECAY | exponential moving average of its norms; likewise |
    | class_mean | running mean of its class; the constant without classes |
    | unseen | the constant while it has not been observed, then 0 |
    | age | the constant times the epochs since it was observed |

    Args:
        size: n, number of examples.
        classes: `[n]` integers from 0, or `None` where y has no classes.
        features: names, see `check_features`.

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
        self.features = check_features(features)
        self._decays = [d for d in map(_decay, self.features) if d is not None]
        n_classes = 1 if classes is None else int(np.max(classes)) + 1
        # Sums of w v and of w, decayed: the last row is over all classes.
        self.sums = np.zeros((n_classes + 1, 2))
        self.unseen = self.size
        self.block = 0
        self._classes = None
        self._variables: dict[str, tf.Variable] = {}
        _outside_any_strategy(self._allocate, classes)

    def _allocate(self, classes: np.ndarray | None) -> None:
        with tf.device("CPU:0"):
            if classes is not None and "class_mean" in self.features:
                self._classes = tf.Variable(np.asarray(classes, np.int32))
            unseen = np.full(self.size, _UNSEEN, np.float32)
            self._variables["last"] = tf.Variable(unseen)
            for decay in self._decays:
                self._variables[f"{_AVERAGE}{decay}"] = tf.Variable(unseen)
            if "age" in self.features:
                seen_at = np.full(self.size, _UNSEEN, np.int32)
                self._variables["seen_at"] = tf.Variable(seen_at)

    @property
    def bytes_per_example(self) -> float:
        """Bytes of the variables that hold the table, over n."""
        held = [*self._variables.values()]
        held += [] if self._classes is None else [self._classes]
        return sum(v.dtype.size * v.shape.num_elements() for v in held) / self.size

    @property
    def share_unseen(self) -> float:
        """Share of the examples whose norm was never observed."""
        return self.unseen / self.size

    @property
    def observed(self) -> bool:
        """Whether any norm has been observed."""
        return self.sums[-1, 1] > 0

    def observe(self, index, weights, norms, block: int) -> None:
        """Adds norms in the order in which they were observed.

        An example drawn more than once since the last call keeps its latest norm.

        Args:
            index: `[k]` integers. Rows.
            weights: `[k]`, > 0. Importance weights of the draws.
            norms: `[k]`, >= 0, finite, gradient-norm units. Not checked here; the
                planner drops what is not finite.
            block: number of the block the observations were made in.
        """
        index, norms = np.asarray(index, np.int64), np.asarray(norms, np.float64)
        weights = np.asarray(weights, np.float64)
        self._update_means(index, weights, norms)
        latest = len(index) - 1 - np.unique(index[::-1], return_index=True)[1]
        index, norms = index[latest], norms[latest].astype(np.float32)
        unseen = self._gather("last", index) == _UNSEEN
        for decay in self._decays:
            name = f"{_AVERAGE}{decay}"
            old = np.where(unseen, norms, self._gather(name, index))
            self._scatter(name, index, decay * old + (1 - decay) * norms)
        self._scatter("last", index, norms)
        if "seen_at" in self._variables:
            self._scatter("seen_at", index, np.full(len(index), block, np.int32))
        self.unseen -= int(np.count_nonzero(unseen))
        self.block = block

    def _update_means(self, index, weights, norms) -> None:
        new = np.zeros_like(self.sums)
        if self._classes is not None:
            classes = tf.gather(self._classes, index).numpy()
            rows = len(new) - 1
            new[:-1, 0] = np.bincount(classes, weights * norms, minlength=rows)
            new[:-1, 1] = np.bincount(classes, weights, minlength=rows)
        new[-1] = (weights * norms).sum(), weights.sum()
        self.sums = _MEMORY * self.sums + new

    def _gather(self, name: str, index: np.ndarray) -> np.ndarray:
        return tf.gather(self._variables[name], index).numpy()

    def _scatter(self, name: str, index: np.ndarray, values: np.ndarray) -> None:
        self._variables[name].scatter_update(tf.IndexedSlices(values, index))

    def _means(self) -> tuple[float, np.ndarray]:
        """Returns the mean of all norms, and of each class (of all, where none seen)."""
        sums, weights = self.sums.T
        mean = sums[-1] / weights[-1] if weights[-1] > 0 else 0.0
        known = weights[:-1] > 0
        classes = np.where(known, sums[:-1] / np.where(known, weights[:-1], 1), mean)
        return float(mean), classes.astype(np.float32)

    def _columns(self, names: Sequence[str], index=None) -> list[tf.Tensor | float]:
        """Returns the named features of all examples, or of rows `index`; float32."""
        rows = (lambda v: v) if index is None else (lambda v: tf.gather(v, index))
        mean, by_class = self._means()
        last = rows(self._variables["last"])
        unseen = last < 0
        if self._classes is None:
            class_mean = tf.fill(tf.shape(last), np.float32(mean))
        else:
            class_mean = tf.gather(by_class, rows(self._classes))

        def column(name: str) -> tf.Tensor:
            if name == "constant":
                return tf.fill(tf.shape(last), np.float32(mean))
            if name == "class_mean":
                return class_mean
            if name == "unseen":
                return np.float32(mean) * tf.cast(unseen, tf.float32)
            if name == "age":
                blocks = self.block - rows(self._variables["seen_at"])
                return np.float32(mean / 8) * tf.cast(blocks, tf.float32)
            values = last if name == "last" else rows(self._variables[name])
            return tf.where(unseen, class_mean, values)

        return [column(name) for name in names]

    def features_of(self, index) -> np.ndarray:
        """Returns `[k, F]`, >= 0: the features of rows `index` as they are now."""
        index = np.asarray(index, np.int64)
        return tf.stack(self._columns(self.features, index), axis=1).numpy()

    def mean_features(self) -> np.ndarray:
        """Returns `[F]`, >= 0: the mean of each feature over all n examples."""
        columns = self._columns(self.features)
        means = [tf.reduce_mean(tf.cast(column, tf.float64)) for column in columns]
        return tf.stack(means).numpy()

    def combine(self, coefficients: np.ndarray) -> tf.Tensor:
        """Returns `[n]` float64: <coefficients, s_i> of every example.

        Args:
            coefficients: `[F]`, >= 0. Features with coefficient 0 are not even read.
        """
        used = [
            (name, value)
            for name, value in zip(self.features, coefficients, strict=True)
            if value > 0
        ]
        total = tf.zeros([self.size], tf.float64)
        columns = self._columns([name for name, _ in used])
        for column, (_, value) in zip(columns, used, strict=True):
            total += value * tf.cast(column, tf.float64)
        return total

    def last_norms(self) -> np.ndarray:
        """Returns `[n]` float32: the norms last observed; NaN where there is none."""
        last = self._variables["last"].numpy()
        return np.where(last < 0, np.nan, last)

    def state(self) -> dict[str, np.ndarray]:
        """Returns all that `load` needs, as arrays."""
        arrays = {name: v.numpy() for name, v in self._variables.items()}
        if self._classes is not None:
            arrays["classes"] = self._classes.numpy()
        return arrays | {"sums": self.sums, "block": np.int64(self.block)}

    def holds(self, arrays: dict[str, np.ndarray], features: Sequence[str]) -> bool:
        """Returns whether `arrays`, from `state`, have this table's n and features."""
        same_classes = ("classes" in arrays) == (self._classes is not None)
        same_sums = np.shape(arrays["sums"]) == self.sums.shape
        same_size = len(arrays["last"]) == self.size
        same_features = tuple(features) == self.features
        return same_classes and same_sums and same_size and same_features

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes over what `state` returned for a table that `holds` the same."""
        for name, variable in self._variables.items():
            variable.assign(arrays[name])
        if self._classes is not None:
            self._classes.assign(arrays["classes"])
        self.sums = np.array(arrays["sums"])
        self.block = int(arrays["block"])
        self.unseen = int(np.count_nonzero(np.asarray(arrays["last"]) < 0))


def _outside_any_strategy(function, *args) -> None:
    """Calls `function` in a fresh thread.

    A variable made inside a MirroredStrategy's scope silently loses the writes of every
    replica but the first.
    """
    failures: list[BaseException] = []

    def call() -> None:
        try:
            function(*args)
        except BaseException as failure:  # handed on to the caller's thread
            failures.append(failure)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
