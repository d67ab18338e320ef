"""A user's own `train_step`: finding it, trying it out, and hooking into it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base import keras_compat
from keras_osgd.base.model_state import state_kept
from keras_osgd.base.refusals import NOT_REASONS, Refused, line_of
from keras_osgd.base.replacing import wrapped
from keras_osgd.base.replicas import on_one
from keras_osgd.base.warn import warn_once
from keras_osgd.data.training_data import TrainingData
from keras_osgd.losses import coupling, own_metrics
from keras_osgd.losses.described import OutputLoss, weights_for
from keras_osgd.losses.own_loss import has_own
from keras_osgd.norms.calls import replaced_calls
from keras_osgd.norms.normalization import couples_examples
from keras_osgd.norms.rules import is_float
from keras_osgd.step.metrics import Importance, Shown, weighted

__all__ = ["own_train_step", "require_compute_loss", "taking_part", "verify"]

_CHANGED = 1e-2  # relative change of a gradient, above half precision's rounding
_COUPLED = 1e-4  # share of a gradient that goes to other examples, above rounding


def own_train_step(model: keras.Model) -> Callable[[keras.Model, Any], Any] | None:
    """Returns the function that a user put in place of Keras' `train_step`, or `None`.

    For a `tf.function` this is the Python function inside, since an existing trace may
    be older than the hooks that must be part of it.

    Example:
        >>> class Own(keras.Model):
        ...     def train_step(self, data):
        ...         return super().train_step(data)
        >>> own_train_step(Own()) is Own.train_step, own_train_step(keras.Model())
        (True, None)
    """
    assigned = vars(model).get("train_step")
    if assigned is not None:
        return lambda _, data: assigned(data)
    for cls in type(model).__mro__:
        step = vars(cls).get("train_step")
        if step is None:
            continue
        own = step is not keras.Model.train_step
        return getattr(step, "python_function", step) if own else None
    return None


@contextlib.contextmanager
def taking_part(
    model: keras.Model,
    sample_weight: Any,
    at_loss: Callable[[Any, tf.Tensor, Callable[[Any], tf.Tensor]], None],
    at_update: Callable[[Callable[[list], Any], list, list | None], None],
    handed: bool = True,
    with_masks: Callable[[Any, Any], Any] | None = None,
) -> Iterator[None]:
    """Hooks into a user's step, where it computes the loss and applies the gradients.

    Args:
        model: whose step runs in the block, in this thread.
        sample_weight: weights of the batch.
        at_loss: called after `compute_loss` with outputs, loss, and a function that
            returns the loss for other weights.
        at_update: called with a function that applies gradients, the step's gradients
            and their variables, instead of `optimizer.apply`.
        handed: whether the weights were handed to the step; else they are given to
            `compute_loss` here.
        with_masks: returns the weights to compute the loss with for targets and
            outputs; `None` for `sample_weight` as it is.

    Raises:
        ValueError: unless the step computes the loss once, with these weights, and
            then applies gradients once.
    """
    done, refusals = [], []

    def computing(compute_loss: Callable, *args: Any, **kwargs: Any) -> tf.Tensor:
        if done:
            raise _refused(model, "which calls `compute_loss` more than once")
        call = _signature_of(compute_loss, model).bind(*args, **kwargs)
        _require_weights(model, call.arguments, sample_weight if handed else None)
        done.append("loss")

        def weighted(weights: Any) -> tf.Tensor:
            call.arguments["sample_weight"] = weights
            return compute_loss(*call.args, **call.kwargs)

        y, y_pred = (call.arguments.get(name) for name in ("y", "y_pred"))
        loss = weighted(with_masks(y, y_pred) if with_masks else sample_weight)
        at_loss(y_pred, loss, weighted)
        return loss

    def applying(apply: Callable, grads: Any, trainable_variables: Any = None) -> None:
        if not done:
            raise _refused(model, "which applies gradients without `compute_loss`")
        if len(done) > 1:
            raise _refused(model, "which applies gradients more than once")
        done.append("update")
        variables = None if trainable_variables is None else list(trainable_variables)
        at_update(lambda grads: apply(grads, variables), list(grads), variables)

    with (
        wrapped(model, "compute_loss", _noting(computing, refusals)),
        wrapped(model.optimizer, "apply", _noting(applying, refusals)),
        _raised_as_noted(refusals),
    ):
        yield
    if not done:
        raise _refused(model, "which never calls `compute_loss`")
    if len(done) < 2:
        raise _refused(model, "which never lets `self.optimizer` apply gradients")


def _noting(function: Callable, refusals: list[Refused]) -> Callable:
    """Returns a wrapper of methods for `function`, which notes what it refuses."""

    def wrap(method: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(method, *args, **kwargs)
            except Refused as refusal:
                refusals.append(refusal)
                raise

        return call

    return wrap


@contextlib.contextmanager
def _raised_as_noted(refusals: list[Refused]) -> Iterator[None]:
    """Raises the first refusal, if any, in place of what came of it.

    In a user's own `tf.function`, AutoGraph raises an error of its own.
    """
    try:
        yield
    except Exception:
        if refusals:
            raise refusals[0] from None
        raise


def _signature_of(compute_loss: Callable, model: keras.Model) -> inspect.Signature:
    """Returns the arguments of `compute_loss`, Keras' where it passes them all on."""
    own = inspect.signature(compute_loss)
    keras_own = inspect.signature(keras.Model.compute_loss.__get__(model))
    return own if "sample_weight" in own.parameters else keras_own


def _require_weights(model: keras.Model, given: Mapping, handed: Any) -> None:
    """Raises unless `compute_loss` got the weights that were handed to the step."""
    found = given.get("sample_weight")
    if handed is None and found is not None:
        raise _refused(model, "which gives `compute_loss` weights of its own")
    if handed is not None and found is None:
        what = "which calls `compute_loss` without `sample_weight`"
        raise _refused(model, what, _WithoutWeights)
    if handed is not None and not _same(found, handed):
        raise _refused(model, "which changes `sample_weight`")


def _same(found: Any, handed: Any) -> bool:
    pairs = keras.tree.flatten(found), keras.tree.flatten(handed)
    alike = len(pairs[0]) == len(pairs[1])
    return alike and all(a is b for a, b in zip(*pairs, strict=True))


class _WithoutWeights(Refused):
    """The step does not use the weights in its data."""


def _refused(model: keras.Model, what: str, kind: type = Refused) -> Refused:
    cls = type(model).__name__
    return kind(
        [
            "A `train_step` of your own must take `x, y, sample_weight = "
            "keras.utils.unpack_x_y_sample_weight(data)`, hand this `sample_weight`, "
            "which carries the importance weights, to one call of `self.compute_loss`, "
            "and apply its gradients by one call of `self.optimizer`. Without weights "
            "of your own, `x, y = data` will do, and no weights in that call. "
            f"Received: {cls}.train_step, {what}. Change that, or override "
            '`compute_loss` instead, or compile with sampling="uniform".'
        ]
    )


def verify(
    model: keras.Model,
    described: list[OutputLoss],
    metrics: Sequence[Shown],
    data: TrainingData,
    norm: str,
    weights_given: bool,
) -> bool:
    """Tries a user's own step on a batch, without changing the model's state.

    Args:
        model: compiled and built.
        described: its losses.
        metrics: how each of `compile` is shown.
        data: the first `batch_size` examples are tried.
        norm: the norm asked for.
        weights_given: whether examples or classes have weights of the user's.

    Returns:
        Whether a step's weights go to it with its data; else it takes (x, y), and they
        go to `compute_loss`.

    Raises:
        ValueError: if importance sampling cannot work with the step.
    """
    step = own_train_step(model)
    if step is None:
        return True
    if norm == "exact":
        raise ValueError(
            "Exact gradient norms are taken in Keras' own training step. Received: "
            f"{type(model).__name__}.train_step. Use the last layer's, "
            '`sampling.RAIS(norm="last_layer")`, or override `compute_loss` instead.'
        )
    others = _other_optimizers(model)
    if others:
        raise _refused(model, f"beside which the model has other optimizers, {others}")
    rows = np.resize(np.arange(data.n), data.batch_size)
    batch = data.batch(rows)
    try:
        _try_out(model, step, (described, metrics), batch, handed=True)
    except (_WithoutWeights, _Unpacking):
        if weights_given:
            raise
        _try_out(model, step, (described, metrics), batch, handed=False)
        return False
    return True


def require_compute_loss(model: keras.Model) -> None:
    """Raises for a user's own step of a model for which Keras can compute no loss.

    Args:
        model: compiled without a loss.
    """
    if own_train_step(model) is not None and not has_own(model):
        what = "which has a loss of its own: `compile` was given none"
        raise _refused(model, what)


class _Unpacking(Refused):
    """The step takes its data apart in another way."""


def _try_out(model, step, found: tuple, batch: tuple, handed: bool) -> None:
    (described, metrics), (x, y, users) = found, batch
    known = {id(v) for v in model.metrics_variables}
    size = tf.shape(keras.tree.flatten(y)[0])[:1]
    ones = tf.ones(size, keras.config.floatx())
    weights = weights_for(described, ones, users)
    importance = Importance(ones, users, metrics, tf.ones([]))
    try:
        with (
            on_one(model.distribute_strategy),
            state_kept(model),
            tf.GradientTape(persistent=True) as tape,
        ):
            trial = _Trial(model, described, batch, tape)
            with (
                replaced_calls(keras_compat.layers_of(model), trial.called),
                taking_part(model, weights, trial.at_loss, trial.at_update, handed),
                own_metrics.watched(model, int(size[0]), "train_step"),
                weighted(model, importance),
            ):
                step(model, (x, y, weights) if handed else (x, y))
    except (Refused, *NOT_REASONS):
        raise
    except Exception as error:
        kind = _Unpacking if "unpack" in str(error) else Refused
        raise _refused(model, f"which raised {line_of(error)}", kind) from error
    finally:
        for metric in model.metrics:
            if not known.issuperset(id(v) for v in metric.variables):
                metric.reset_state()


def _other_optimizers(model: keras.Model) -> list[str]:
    kind = keras.optimizers.Optimizer
    found = {id(v): v for v in vars(model).values() if isinstance(v, kind)}
    found.pop(id(model.optimizer), None)
    return [type(optimizer).__name__ for optimizer in found.values()]


class _Trial:
    """Hooks of a trial, which compare gradients and update nothing.

    Args:
        model: whose step is tried.
        described: its losses.
        batch: (x, y, sample_weight).
        tape: persistent, around the step.
    """

    def __init__(
        self, model: keras.Model, described: list, batch: tuple, tape: tf.GradientTape
    ) -> None:
        """Watches what is float of x and y."""
        self._model, self._described, self._tape = model, described, tape
        x, y, self._users = batch
        leaves = keras.tree.flatten((x, y))
        leaves = [leaf for leaf in leaves if isinstance(leaf, tf.Tensor)]
        self._others = [leaf for leaf in leaves if not is_float(leaf)]
        self._sources = [leaf for leaf in leaves if is_float(leaf)]
        self._rows = len(keras.tree.flatten(y)[0])
        self._watched, self._expected = model.trainable_weights, []
        tape.watch(self._sources)

    def called(self, layer: keras.Layer, original: Callable) -> Callable:
        """Returns the layer's call, with statistics held, which couple examples.

        What a layer makes of integers, such as an embedding, is watched in their place.
        """

        def call(*args: Any, **kwargs: Any) -> Any:
            if couples_examples(layer):
                kwargs["training"] = False
            outputs = original(*args, **kwargs)
            given = list(filter(tf.is_tensor, keras.tree.flatten((args, kwargs))))
            if given and all(any(_equal(a, b) for b in self._others) for a in given):
                made = [leaf for leaf in keras.tree.flatten(outputs) if is_float(leaf)]
                self._tape.watch(made)
                self._sources += made
            return outputs

        return call

    def at_loss(
        self, y_pred: Any, loss: tf.Tensor, weighted: Callable[[Any], tf.Tensor]
    ) -> None:
        """Keeps the gradients of the loss, and looks at which examples it depends on.

        Raises:
            ValueError: if the weighted loss of an example depends on another one.
        """
        if tf.inside_function():
            what = "which calls it inside a `tf.function` of its own"
            raise _refused(self._model, what)
        scaled = self._model.optimizer.scale_loss(loss)
        tried = sorted({0, self._rows // 2, self._rows - 1})
        none = weighted(self._only([]))
        alone = [weighted(self._only([row])) - none for row in tried]
        with self._tape.stop_recording():
            watched = [v.value for v in self._watched]
            self._expected += self._tape.gradient(scaled, watched)
            for row, own in zip(tried, alone, strict=True):
                found = self._tape.gradient(own, self._sources)
                if any(_reaches_others(each, row, self._rows) for each in found):
                    name = f"{type(self._model).__name__}.train_step"
                    raise Refused([coupling.text(f"{name}, in which it does")])

    def _only(self, rows: list[int]) -> Any:
        ones = np.isin(np.arange(self._rows), rows).astype(keras.config.floatx())
        return weights_for(self._described, tf.constant(ones), self._users)

    def at_update(
        self, apply: Callable, gradients: list, variables: list | None
    ) -> None:
        """Warns of gradients that are not those of the loss."""
        own = dict(zip(map(id, self._watched), self._expected, strict=True))
        pairs = zip(variables or self._watched, gradients, strict=True)
        if any(_differ(own.get(id(variable)), given) for variable, given in pairs):
            warn_once(
                self._model,
                "own gradients",
                "The gradients that your `train_step` applies are not those of "
                "`compute_loss`: terms that it adds are not importance-weighted, and "
                "what it clips is the weighted gradient. Add terms in `compute_loss`.",
            )


def _equal(some: tf.Tensor, other: tf.Tensor) -> bool:
    if is_float(some) or some.shape != other.shape or tf.is_symbolic_tensor(some):
        return False
    return some is other or bool(np.array_equal(some.numpy(), other.numpy()))


def _reaches_others(gradient: Any, row: int, rows: int) -> bool:
    """Returns whether a gradient is not zero for other examples than `row`."""
    if gradient is None:
        return False
    gradient = np.abs(tf.convert_to_tensor(gradient).numpy().astype(np.float64))
    if gradient.shape[:1] != (rows,):
        return False
    return np.delete(gradient, row, axis=0).max(initial=0) > _COUPLED * gradient.max()


def _differ(expected: Any, applied: Any) -> bool:
    if expected is None or applied is None:
        return (expected is None) != (applied is None)
    expected, applied = (
        tf.cast(tf.convert_to_tensor(g), tf.float32) for g in (expected, applied)
    )
    size = tf.norm(expected)
    alike = tf.norm(expected - applied) <= _CHANGED * size  # false for NaN
    return bool(tf.math.is_finite(size) & ~alike)
