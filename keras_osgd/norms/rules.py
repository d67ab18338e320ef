"""The registry: how each kind of layer turns its calls into per-example gradients."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_osgd.norms.forms import Gathered, PerExample, Products

__all__ = [
    "Call",
    "Form",
    "Obstacle",
    "Rule",
    "Uses",
    "bound",
    "is_float",
    "register",
    "rule_of",
]

Form = Gathered | PerExample | Products
Uses = list[tuple[keras.Variable, Form]]


@dataclasses.dataclass(eq=False)
class Call:
    """One call of a layer in a forward pass, and what the loss makes of its output.

    Attributes:
        layer: that was called.
        arguments: of `layer.call` by name, those left out among them.
        output: what `layer.call` returned; its value before the activation, where the
            layer was registered with `pre_activation=True`.
        delta: the loss's gradient with respect to `output`, in the same nesting.
        kept: what the rule's `during` yielded.
    """

    layer: keras.Layer
    arguments: dict[str, Any]
    output: Any = None
    delta: Any = None
    kept: Any = None

    @property
    def inputs(self) -> Any:
        """The first argument."""
        return next(iter(self.arguments.values()))


class Obstacle(Exception):
    """A layer has no per-example gradients, for the reason that this says."""


class Rule(NamedTuple):
    """What is registered for a layer class.

    Attributes:
        forms: from a `Call` to the per-example gradients beside each of its weights.
        pre_activation: whether `layer.activation` is applied after the recorded call.
        whole: whether the rule speaks for the layers inside the layer as well.
        during: from the layer to a context manager that the call is made in.
    """

    forms: Callable[[Call], Uses]
    pre_activation: bool = False
    whole: bool = False
    during: Callable[[keras.Layer], AbstractContextManager] | None = None


_RULES: dict[Any, Rule] = {}


def register(
    *layers: type[keras.Layer],
    pre_activation: bool = False,
    whole: bool = False,
    during: Callable[[keras.Layer], AbstractContextManager] | None = None,
) -> Callable:
    """Registers how exact gradient norms are taken of layers of your own.

    The decorated function gets a `Call` and returns, beside each weight that the call
    uses, the per-example gradients: as they are (`PerExample`), as sums of products of
    inputs and deltas (`Products`), or as rows of a table (`Gathered`). It holds for
    subclasses too, unless they have a `call` of their own. Layers that are not
    registered are worked out one example at a time, which is right but slow.

    Args:
        *layers: classes.
        pre_activation: whether `layer.activation` is to be applied after the recorded
            call, so that `output` and `delta` are those before it.
        whole: whether the function speaks for the layers inside the layer too.
        during: from the layer to a context manager that the recorded call is made in;
            what it yields is the `Call`'s `kept`, such as random numbers drawn.

    Example:
        >>> class Scale(keras.layers.Layer):
        ...     def build(self, shape):
        ...         self.scale = self.add_weight(shape=shape[-1:])
        ...     def call(self, x):
        ...         return x * self.scale
        >>> @register(Scale)
        ... def scale_norms(call):
        ...     return [(call.layer.scale, PerExample(call.delta * call.inputs))]
    """

    def decorate(forms: Callable) -> Callable:
        for layer in layers:
            _RULES[layer.call] = Rule(forms, pre_activation, whole, during)
        return forms

    return decorate


def rule_of(layer: keras.Layer) -> Rule | None:
    """Returns the rule for the layer's `call`, or `None` where it is not known."""
    return _RULES.get(type(layer).call)


def bound(
    call: Callable, layer: keras.Layer, args: tuple, kwargs: dict
) -> dict[str, Any]:
    """Returns the arguments of a call by name, with defaults; `**kwargs` unpacked."""
    signature = inspect.signature(call)
    given = signature.bind(layer, *args, **kwargs)
    given.apply_defaults()
    flat: dict[str, Any] = {}
    for name, value in list(given.arguments.items())[1:]:
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            flat.update(value)
        else:
            flat[name] = value
    return flat


def is_float(tensor: Any) -> bool:
    """Returns whether a loss can have a gradient with respect to this."""
    return tf.is_tensor(tensor) and tensor.dtype.is_floating
