"""Exact per-example gradient norms of a whole model, from one backward pass."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base import keras_compat
from keras_osgd.norms import one_by_one, rules
from keras_osgd.norms.calls import Axes, Frame, numbered
from keras_osgd.norms.forms import PerExample, combined
from keras_osgd.norms.normalization import coupling

__all__ = ["Measured", "Uses", "refusal"]

_PACKAGE = __name__.split(".")[0]


class Measured(NamedTuple):
    """Norms and gradients of a batch, summed over the uses of all weights.

    Attributes:
        squared_norms: `[m]`, squared gradient-norm units, float32 or float64.
        gradients: variable reference -> the batch's gradient, where a rule of this
            package gave it at no extra cost.
        by_weight: variable reference -> its part of `squared_norms`.
        forms: variable reference -> its per-example gradients.
        worked_out: names of layers whose gradients were taken one example at a time.
        obstacles: why some weights have no per-example gradients; they are left out.
        left_out: references of those weights.
    """

    squared_norms: tf.Tensor
    gradients: dict[Any, tf.Tensor]
    by_weight: dict[Any, tf.Tensor]
    forms: dict[Any, rules.Form]
    worked_out: list[str]
    obstacles: list[str]
    left_out: set[Any]

    def of_all_weights(self) -> Measured:
        """Returns this.

        Raises:
            ValueError: listing every layer that has no per-example gradients.
        """
        if self.obstacles:
            raise ValueError(refusal(self.obstacles))
        return self


class Uses:
    """The recorded calls that the gradient of each weight comes from.

    A layer's rule gives the gradients of the weights that its call read. Calls without
    a rule are worked out one example at a time, for the weights they read themselves.
    Calls without a batch axis, or inside loops, count as part of their callers.

    Args:
        frames: outermost calls, from `recording`.
        variables: trainable weights of the model.
        size: m, number of examples.
        batch_axes: from `calls.batch_axes`.
        training: whether the forward pass was in training mode.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        variables: Sequence[keras.Variable],
        size: int,
        batch_axes: dict[tuple[int, int], Axes],
        training: bool,
    ) -> None:
        """Finds the uses; raises nothing."""
        self._variables = {keras_compat.tensor_of(v).ref(): v for v in variables}
        self._size, self._training = size, training
        self._axes = {
            id(frame): batch_axes.get(key, Axes()) for key, frame in numbered(frames)
        }
        self._obstacles = [
            text for root in frames for f in root.everything() if (text := coupling(f))
        ]
        self._refused: set[Any] = set()
        self.frames: list[tuple[Frame, dict[Any, keras.Variable]]] = []
        for frame in frames:
            self._resolve(frame)

    def _trainable(self, references: Iterable[Any]) -> dict[Any, keras.Variable]:
        return {r: self._variables[r] for r in references if r in self._variables}

    def _resolve(self, frame: Frame) -> None:
        own = self._trainable(v.ref() for v in frame.read)
        reachable = [inner for inner in frame.inner if self._is_open(inner)]
        for inner in frame.inner:
            if inner not in reachable:
                own |= self._trainable(inner.read_anywhere)
        if frame.rule is None and own:
            entangled = any(own.keys() & inner.read_anywhere for inner in reachable)
            if entangled:
                own |= self._trainable(frame.read_anywhere)
                reachable = []
        for inner in reachable:
            self._resolve(inner)
        if own:
            self.frames.append((frame, own))

    def _is_open(self, frame: Frame) -> bool:
        """Returns whether the output is a tensor of this graph with a batch axis."""
        tensors = [x for x in keras.tree.flatten(frame.output) if tf.is_tensor(x)]
        if tf.executing_eagerly():
            here = all(hasattr(x, "numpy") for x in tensors)
        else:
            graph = tf.compat.v1.get_default_graph()
            here = all(getattr(x, "graph", None) is graph for x in tensors)
        return here and self._axes[id(frame)].outputs

    @property
    def outputs(self) -> list[list[tf.Tensor]]:
        """Tensors of each call that the loss's gradient is needed with respect to."""
        return [_floats(frame.output) for frame, _ in self.frames]

    def measure(
        self, deltas: Sequence[Sequence[Any]], gradients: dict[Any, Any]
    ) -> Measured:
        """Returns the norms and gradients of the batch.

        Args:
            deltas: the loss's gradient with respect to `outputs`.
            gradients: variable reference -> gradient, or `None` where the loss does
                not depend on the weight. A weight with a gradient must have a use.
        """
        found, worked_out = collections.defaultdict(list), []
        self._theirs: set[Any] = set()
        obstacles = list(self._obstacles)
        for (frame, own), own_deltas in zip(self.frames, deltas, strict=True):
            if all(delta is None for delta in own_deltas):
                continue
            frame.delta = _with_deltas(frame.output, own_deltas)
            try:
                for reference, form in self._forms(frame, own, worked_out):
                    found[reference].append(form.folded(self._size))
            except rules.Obstacle as obstacle:
                obstacles.append(str(obstacle))
                self._refused |= own.keys()
        for reference, variable in self._variables.items():
            lost = gradients.get(reference) is not None and reference not in found
            if lost and reference not in self._refused:
                obstacles.append(_lost(variable))
                self._refused.add(reference)
        if self._obstacles:  # mixed examples are in every weight's gradient
            self._refused |= self._variables.keys()
        return self._measured(found, worked_out)._replace(obstacles=obstacles)

    def _forms(
        self, frame: Frame, own: dict[Any, keras.Variable], worked_out: list[str]
    ) -> Iterator[tuple[Any, rules.Form]]:
        by_rule = [] if frame.rule is None else frame.rule.forms(frame)
        known = [  # with LoRA, `kernel` is a sum of weights, not a weight
            (keras_compat.tensor_of(weight).ref(), form)
            for weight, form in by_rule
            if isinstance(weight, keras.Variable)
        ]
        if own.keys() <= {reference for reference, _ in known}:
            # A function that was compiled or partly applied may name no module.
            module = getattr(frame.rule.forms, "__module__", None) or ""
            if not module.startswith(f"{_PACKAGE}."):
                self._theirs |= own.keys()
            yield from (
                (reference, self._checked(frame, reference, form))
                for reference, form in known
                if reference in own
            )
            return
        self._theirs |= own.keys()
        worked_out.append(frame.layer.name)
        yield from one_by_one.forms(
            frame, own, self._size, self._training, self._axes[id(frame)].arguments
        ).items()

    def _checked(self, frame: Frame, reference: Any, form: rules.Form) -> rules.Form:
        """Returns the form; raises unless its gradients have the weight's shape."""
        shape = tuple(self._variables[reference].shape)
        if not isinstance(form, PerExample):
            return form
        if form.gradient.shape[1:].num_elements() != np.prod(shape, dtype=int):
            raise rules.Obstacle(
                f"the rule registered for {frame.layer.name} "
                f"({type(frame.layer).__name__}) must return gradients of shape "
                f"{(self._size, *shape)} for {self._variables[reference].path}, but "
                f"returned {tuple(form.gradient.shape)}"
            )
        return form

    def _measured(self, found: dict, worked_out: list[str]) -> Measured:
        by_weight, totals, before, whole = {}, {}, [], {}
        for reference, uses in reversed(found.items()):  # the backward pass's order
            shape = self._variables[reference].shape
            whole[reference] = combined(uses, shape)
            with tf.control_dependencies(before):  # one after another: less memory
                own, total = whole[reference].measured(shape)
            by_weight[reference], before = own, [own]
            if total is not None and reference not in self._theirs:
                totals[reference] = total
        parts = [*by_weight.values(), tf.zeros([self._size])]
        wide = tf.float64 if any(s.dtype == tf.float64 for s in parts) else tf.float32
        norms = tf.add_n([tf.cast(s, wide) for s in parts])
        left_out = self._refused
        return Measured(norms, totals, by_weight, whole, worked_out, [], left_out)


def _floats(output: Any) -> list[tf.Tensor]:
    return [x for x in keras.tree.flatten(output) if rules.is_float(x)]


def _with_deltas(output: Any, deltas: Sequence[Any]) -> Any:
    """Returns the gradients in the nesting of the output, with zeros for `None`."""
    given = iter(deltas)

    def delta(leaf: Any) -> Any:
        if not rules.is_float(leaf):
            return None
        own = next(given)
        return tf.zeros_like(leaf) if own is None else tf.convert_to_tensor(own)

    return keras.tree.map_structure(delta, output)


def _lost(variable: keras.Variable) -> str:
    return (
        f"the gradient of {variable.path} does not pass through the output of a layer "
        "that was called: it is used under `tf.custom_gradient` (or "
        "`tf.recompute_grad`), or by the loss itself"
    )


def refusal(obstacles: Sequence[str]) -> str:
    """Returns the message that lists all `Measured.obstacles`."""
    listed = "".join(f"\n- {obstacle}" for obstacle in dict.fromkeys(obstacles))
    return (
        "Exact gradient norms need every trainable weight's gradient to be a sum over "
        f"examples, in the open. Received a model where it is not:{listed}\nUse the "
        'last layer\'s norms, `sampling.RAIS(norm="last_layer")`, freeze the layers, '
        "or take the norms with `training=False`."
    )
