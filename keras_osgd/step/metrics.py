"""The metrics of `compile`, importance-weighted during training."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base import keras_compat
from keras_osgd.base.keras_compat import MetricUpdate
from keras_osgd.base.replacing import wrapped
from keras_osgd.base.warn import warn_once
from keras_osgd.data.training_data import TrainingData
from keras_osgd.losses.described import metric_weights

__all__ = ["Importance", "Shown", "try_out", "update", "weighted"]

# Shapes of weights: one for each example, or that of targets or outputs, all of it or
# without an axis, which may be that of the classes.
_SHAPES = (None, *((of, axis) for of in (0, 1) for axis in (None, -1, 1)))
_COUNTS = (1, 3, 1, 2, 1)  # whole weights, tried out on as many examples
_NEAR = 1e-3  # relative, far above float32's rounding


class Shown(NamedTuple):
    """The way in which sampled steps update a metric.

    Attributes:
        weighted: whether it gets importance weights; else it shows the drawn examples.
        shape: of its weights, one of `_SHAPES`.
        whole: whether it cuts weights to whole numbers, as integer sums do.
        total: whether it grows with the number of examples, as counts do.
    """

    weighted: bool = False
    shape: tuple[int, int | None] | None = None
    whole: bool = False
    total: bool = False


class Importance(NamedTuple):
    """The weights of a sampled step's metrics.

    Attributes:
        weights: `[m]`, importance weights.
        users: the user's weights for `weighted_metrics`, or `None`.
        shown: from `try_out`.
        visits: `[]`, factor that makes the weights' sum over an epoch n. The epoch has
            fewer steps than in Keras where the gain ratio is above 1.
    """

    weights: tf.Tensor
    users: Any
    shown: Sequence[Shown]
    visits: tf.Tensor


def update(model: keras.Model, importance: Importance, y: Any, y_pred: Any) -> None:
    """Updates the metrics of `compile`, each in its way.

    Args:
        model: compiled.
        importance: of the step.
        y: targets.
        y_pred: outputs.
    """
    updates = keras_compat.compiled_metrics(model, y, y_pred, importance.users)
    for made, shown in zip(updates, importance.shown, strict=True):
        weights = importance.weights
        if shown.total:
            weights = weights * tf.cast(importance.visits, weights.dtype)
        weight = _weight(made, shown, weights)
        made.metric.update_state(made.target, made.output, sample_weight=weight)


@contextlib.contextmanager
def weighted(model: keras.Model, importance: Importance) -> Iterator[None]:
    """Weights every update of the metrics of `compile`, of this thread, in the block.

    Keras, and a user's own `train_step`, update them by the single metric that holds
    them.
    """
    held = keras_compat.compile_metrics(model)

    def update_state(y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        update(model, importance, y_true, y_pred)

    if held is None:
        yield
        return
    with wrapped(held, "update_state", lambda own: update_state):
        yield


def _weight(made: MetricUpdate, shown: Shown, weights: tf.Tensor) -> Any:
    """Returns the `sample_weight` of an update: the product with the user's."""
    user = made.sample_weight
    if not shown.weighted:
        return user
    if shown.whole and user is not None:  # as the metric itself cuts them
        user = tf.floor(tf.cast(user, weights.dtype))
    weight = metric_weights(weights, user, made.output)
    if shown.shape is not None:
        of, axis = shown.shape
        shape = tf.unstack(tf.shape((made.target, made.output)[of]))
        if axis is not None:
            del shape[axis]
        weight = _broadcast(weight, shape)
    return _whole(weight) if shown.whole else weight


def _broadcast(weight: tf.Tensor, shape: list) -> tf.Tensor:
    missing = [1] * (len(shape) - weight.shape.rank)
    weight = tf.reshape(weight, tf.concat([tf.shape(weight), missing], 0))
    return tf.broadcast_to(weight, tf.stack(shape))


def _whole(weight: tf.Tensor) -> tf.Tensor:
    """Returns whole numbers at random whose means are the weights; int32.

    The weights are the seed, so that a resumed training shows the same.

    Example:
        >>> _whole(tf.constant([0.0, 2.0, 3.0])).numpy()
        array([0, 2, 3], dtype=int32)
    """
    weight = tf.cast(weight, tf.float32)
    bits = tf.bitcast(weight, tf.int32)
    seed = tf.stack([tf.reduce_sum(bits), tf.size(bits)])
    added = tf.random.stateless_uniform(tf.shape(weight), seed)
    return tf.cast(tf.floor(weight + added), tf.int32)


def try_out(model: keras.Model, data: TrainingData) -> tuple[Shown, ...]:
    """Finds by trial how each metric of `compile` can be shown; changes none of them.

    A metric is weighted if a few examples with weights 1, 2 or 3 give what they give
    when they are repeated so often. Metrics of a whole batch, such as a correlation, do
    not. One warning names all that are not weighted.

    Args:
        model: compiled and built.
        data: training data.

    Returns:
        One for each metric, in the order of `keras_compat.compiled_metrics`.
    """
    if keras_compat.compile_metrics(model) is None:
        return ()
    rows = np.linspace(0, data.n - 1, len(_COUNTS)).astype(np.int64)
    x, y, users = data.batch(rows)
    y_pred = keras_compat.call_model(model, x, training=False)
    # Repeated examples have no logits, of which Keras' losses are not clipped.
    y_pred = keras.tree.map_structure(lambda a: keras_compat.copied(a, False), y_pred)
    updates = keras_compat.compiled_metrics(model, y, y_pred, users)
    with _quiet():
        shown = tuple(map(_shown, updates))
    pairs = zip(updates, shown, strict=True)
    names = [repr(made.name) for made, how in pairs if not how.weighted]
    if names:
        warn_once(
            model,
            "unweighted metrics",
            f"During training {', '.join(names)} will be of the drawn examples, not of "
            "the data: metrics of a whole batch, and those that ignore "
            "`sample_weight`, cannot be importance-weighted. Those of `evaluate` and "
            "of validation are right. A function that returns one value for each "
            "example is weighted.",
        )
    return shown


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to itself what metrics, and TensorFlow, say of a trial."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _shown(made: MetricUpdate) -> Shown:
    cases = [_Case.of(made)]
    if cases[0].repeated is None:
        return Shown()
    if not any(map(np.any, cases[0].repeated.results)):  # there was nothing to count
        cases += [_Case.of(other) for other in _constant(made)]
    cases = [case for case in cases if case.repeated is not None]
    for shape, whole in itertools.product(_SHAPES, (False, True)):
        how = Shown(True, shape, whole)
        if all(case.takes(how) for case in cases):
            return how._replace(total=any(case.doubles(how) for case in cases))
    return Shown()


def _constant(made: MetricUpdate) -> Iterator[MetricUpdate]:
    """Yields updates with all targets 0 or 1, and all outputs 0 or 1."""
    for like in itertools.product((tf.zeros_like, tf.ones_like), repeat=2):
        with contextlib.suppress(Exception):  # targets may be anything
            target, output = like[0](made.target), like[1](made.output)
            yield made._replace(target=target, output=output)


class _Outcome(NamedTuple):
    """The numbers of a metric after one update.

    Attributes:
        results: flat.
        state: values of its variables.
    """

    results: list[np.ndarray]
    state: list[np.ndarray]


class _Case(NamedTuple):
    """Examples that a metric is tried on, and its outcomes without weights.

    Attributes:
        made: update with each example once.
        once: outcome of that, or `None` where it fails.
        repeated: outcome with each example as often as `_COUNTS` says, or `None`.
    """

    made: MetricUpdate
    once: _Outcome | None
    repeated: _Outcome | None

    @classmethod
    def of(cls, made: MetricUpdate) -> _Case:
        """Returns the case of an update."""
        repeated = None
        with contextlib.suppress(Exception):  # targets may be anything
            rows = np.repeat(np.arange(len(_COUNTS)), _COUNTS)
            repeated = _tried(_rows(made, rows))
        return cls(made, _tried(made), repeated)

    def takes(self, how: Shown) -> bool:
        """Returns whether weighting does what repeating does."""
        weighted = _tried(self.made, how)
        if weighted is None or not _near(weighted.results, self.repeated.results):
            return False
        telling = self.once and not _near(self.once.results, self.repeated.results)
        # Where repeating changed no result, say all examples are alike, states decide.
        if not telling and not _near(weighted.state, self.repeated.state):
            return False
        halves = None if how.whole else _tried(self.made, how, 0.5)
        return how.whole or bool(halves and _halved(halves.state, weighted.state))

    def doubles(self, how: Shown) -> bool:
        """Returns whether twice the weights give twice a result."""
        one, two = _tried(self.made, how), _tried(self.made, how, 2.0)
        return any(
            not _near([a], [b]) and _near([2 * a], [b])
            for a, b in zip(one.results, two.results, strict=True)
        )


def _tried(
    made: MetricUpdate, how: Shown | None = None, factor: float = 1.0
) -> _Outcome | None:
    """Returns the outcome of an update alone, or `None` if it fails.

    Args:
        made: the update.
        how: with weights, `factor` times `_COUNTS`; without if `None`.
        factor: see `how`.
    """
    metric, weight = made.metric, made.sample_weight
    with keras.StatelessScope():
        try:
            if how is not None:
                counts = factor * np.array(_COUNTS, keras.config.floatx())
                weight = _weight(made, how, tf.constant(counts))
            metric.reset_state()
            metric.update_state(made.target, made.output, sample_weight=weight)
            found = keras.tree.flatten(metric.result()), metric.variables
            found = [[np.array(v, np.float64) for v in values] for values in found]
            metric.reset_state()  # of what is not a variable
        except Exception:  # a user's code may raise any
            return None
    return _Outcome(*found)


def _rows(made: MetricUpdate, rows: np.ndarray) -> MetricUpdate:
    user = made.sample_weight
    return made._replace(
        target=tf.gather(made.target, rows),
        output=keras_compat.rows_of(made.output, rows),
        sample_weight=None if user is None else tf.gather(user, rows),
    )


def _near(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    return len(some) == len(others) and all(
        a.shape == b.shape and np.allclose(a, b, _NEAR, 1e-6, equal_nan=True)
        for a, b in zip(some, others, strict=True)
    )


def _halved(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    """Returns whether every entry is the other's, or half of it."""
    return all(
        np.all(
            np.isclose(a, b, _NEAR, 1e-6, True)
            | np.isclose(2 * a, b, _NEAR, 1e-6, True)
        )
        for a, b in zip(some, others, strict=True)
    )
