"""A user's own `train_step`: finding it, trying it out, and hooking into it."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base.warn import warn_once
from keras_osgd.data.training_data import TrainingData
from keras_osgd.losses.described import OutputLoss, weights_for
from keras_osgd.norms.calls import state_kept
from keras_osgd.step.metrics import Importance, Shown, weighted

__all__ = ["own_train_step", "replaced", "taking_part", "verify"]

_CHANGED = 1e-2  # relative change of a gradient, above half precision's rounding
_OTHERWISE = re.compile("unpack|indices")  # errors from unpacking `data` otherwise


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
def replaced(owner: Any, attributes: Mapping[str, Any]) -> Iterator[None]:
    """Replaces attributes of an object during the block.

    Bypasses its `__setattr__`, by which Keras tracks the parts of a model.
    """
    before = {name: vars(owner)[name] for name in attributes if name in vars(owner)}
    try:
        vars(owner).update(attributes)
        yield
    finally:
        for name in attributes:
            del vars(owner)[name]
        vars(owner).update(before)


@contextlib.contextmanager
def taking_part(
    model: keras.Model,
    sample_weight: Any,
    at_loss: Callable[[Any, tf.Tensor], None],
    at_update: Callable[[Callable[[], Any], list, list | None], None],
) -> Iterator[None]:
    """Hooks into a user's step, where it computes the loss and applies the gradients.

    Args:
        model: whose step runs in the block.
        sample_weight: weights that were handed to the step.
        at_loss: called with outputs and loss, after `compute_loss`.
        at_update: called with a function that applies the gradients, the gradients
            and their variables, instead of `optimizer.apply`.

    Raises:
        ValueError: unless the step computes the loss once, with these weights, and
            then applies gradients once.
    """
    compute_loss, apply = model.compute_loss, model.optimizer.apply
    signature, done = inspect.signature(compute_loss), []

    def computing(*args: Any, **kwargs: Any) -> tf.Tensor:
        given = signature.bind(*args, **kwargs).arguments
        if done:
            raise _refused(model, "which calls `compute_loss` more than once")
        if given.get("sample_weight") is None:
            raise _refused(model, "which calls `compute_loss` without `sample_weight`")
        if not _same(given["sample_weight"], sample_weight):
            raise _refused(model, "which changes `sample_weight`")
        done.append("loss")
        loss = compute_loss(*args, **kwargs)
        at_loss(given.get("y_pred"), loss)
        return loss

    def applying(grads: Any, trainable_variables: Any = None) -> None:
        if not done:
            raise _refused(model, "which applies gradients without `compute_loss`")
        if len(done) > 1:
            raise _refused(model, "which applies gradients more than once")
        done.append("update")
        variables = None if trainable_variables is None else list(trainable_variables)
        grads = list(grads)
        at_update(lambda: apply(grads, variables), grads, variables)

    with (
        replaced(model, {"compute_loss": computing}),
        replaced(model.optimizer, {"apply": applying}),
    ):
        yield
    if not done:
        raise _refused(model, "which never calls `compute_loss`")
    if len(done) < 2:
        raise _refused(model, "which never lets `self.optimizer` apply gradients")


def _same(found: Any, handed: Any) -> bool:
    pairs = keras.tree.flatten(found), keras.tree.flatten(handed)
    alike = len(pairs[0]) == len(pairs[1])
    return alike and all(a is b for a, b in zip(*pairs, strict=True))


def _refused(model: keras.Model, what: str) -> ValueError:
    cls = type(model).__name__
    return ValueError(
        "A `train_step` of your own must take `x, y, sample_weight = "
        "keras.utils.unpack_x_y_sample_weight(data)`, hand this `sample_weight`, which "
        "carries the importance weights, to one call of `self.compute_loss`, and apply "
        f"its gradients by one call of `self.optimizer`. Received: {cls}.train_step, "
        f"{what}. Change that, or override `compute_loss` instead, or compile with "
        'sampling="uniform".'
    )


def verify(
    model: keras.Model,
    described: list[OutputLoss],
    metrics: Sequence[Shown],
    data: TrainingData,
    norm: str,
) -> None:
    """Tries a user's own step on a batch, without changing the model's state.

    Args:
        model: compiled and built.
        described: its losses.
        metrics: how each of `compile` is shown.
        data: the first `batch_size` examples are tried.
        norm: the norm asked for.

    Raises:
        ValueError: if importance sampling cannot work with the step.
    """
    step = own_train_step(model)
    if step is None:
        return
    if norm == "exact":
        raise ValueError(
            "Exact gradient norms are taken in Keras' own training step. Received: "
            f"{type(model).__name__}.train_step. Use the last layer's, "
            '`sampling.RAIS(norm="last_layer")`, or override `compute_loss` instead.'
        )
    others = _other_optimizers(model)
    if others:
        raise _refused(model, f"beside which the model has other optimizers, {others}")
    known = {id(v) for v in model.metrics_variables}
    x, y, users = data.batch(np.resize(np.arange(data.n), data.batch_size))
    ones = tf.ones([data.batch_size], keras.config.floatx())
    weights = weights_for(described, ones, users)
    importance = Importance(ones, users, metrics, tf.ones([]))
    try:
        with state_kept(model), tf.GradientTape() as tape:
            hooks = _trial(model, tape)
            noted = _metrics_watched(model, data.batch_size)
            with (
                taking_part(model, weights, *hooks),
                noted,
                weighted(model, importance),
            ):
                step(model, (x, y, weights))
    except (ValueError, TypeError, IndexError, KeyError) as error:
        if not _OTHERWISE.search(str(error)):
            raise
        raise _refused(model, f"which raised {error!r}") from error
    finally:
        for metric in model.metrics:
            if not known.issuperset(id(v) for v in metric.variables):
                metric.reset_state()


def _other_optimizers(model: keras.Model) -> list[str]:
    kind = keras.optimizers.Optimizer
    found = {id(v): v for v in vars(model).values() if isinstance(v, kind)}
    found.pop(id(model.optimizer), None)
    return [type(optimizer).__name__ for optimizer in found.values()]


def _trial(model: keras.Model, tape: tf.GradientTape) -> tuple[Callable, Callable]:
    """Returns the hooks of a trial: they compare gradients and update nothing."""
    watched, expected = model.trainable_weights, []

    def at_loss(y_pred: Any, loss: tf.Tensor) -> None:
        if tf.inside_function():
            raise _refused(model, "which calls it inside a `tf.function` of its own")
        scaled = model.optimizer.scale_loss(loss)
        expected.extend(tape.gradient(scaled, [v.value for v in watched]))

    def at_update(apply: Callable, gradients: list, variables: list | None) -> None:
        by_variable = dict(zip(map(id, watched), expected, strict=True))
        pairs = [
            (by_variable.get(id(variable)), gradient)
            for variable, gradient in zip(variables or watched, gradients, strict=True)
        ]
        if any(_differ(own, gradient) for own, gradient in pairs):
            warn_once(
                model,
                "own gradients",
                "The gradients that your `train_step` applies are not those of "
                "`compute_loss`: terms that it adds are not importance-weighted, and "
                "what it clips is the weighted gradient. Add terms in `compute_loss`.",
            )

    return at_loss, at_update


@contextlib.contextmanager
def _metrics_watched(model: keras.Model, size: int) -> Iterator[None]:
    """Warns of metrics that the step itself updates with a batch but no weights."""
    unweighted: dict[str, None] = {}

    def watched(metric: keras.Metric) -> Callable:
        update_state = metric.update_state
        signature = inspect.signature(update_state)

        def updating(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            shapes = [getattr(v, "shape", ()) for v in keras.tree.flatten(given)]
            batch = any(len(shape) and shape[0] == size for shape in shapes)
            if batch and given.get("sample_weight") is None:
                unweighted[metric.name] = None
            return update_state(*args, **kwargs)

        return updating

    own = [metric for metric in model.metrics if metric.name != "compile_metrics"]
    with contextlib.ExitStack() as stack:
        for metric in own:
            stack.enter_context(replaced(metric, {"update_state": watched(metric)}))
        yield
    if unweighted:
        names = ", ".join(map(repr, unweighted))
        warn_once(
            model,
            "unweighted metrics of the step",
            f"During training {names} will be of the drawn examples, not of the data: "
            "your `train_step` updates them without `sample_weight`. Pass it on, or "
            "give them to `compile`.",
        )


def _differ(expected: Any, applied: Any) -> bool:
    if expected is None or applied is None:
        return (expected is None) != (applied is None)
    expected, applied = (
        tf.cast(tf.convert_to_tensor(g), tf.float32) for g in (expected, applied)
    )
    return bool(tf.norm(expected - applied) > _CHANGED * tf.norm(expected))
