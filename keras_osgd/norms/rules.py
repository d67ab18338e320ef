"""The registry of rules that turn a layer's calls into per-example gradients."""

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
    """One call of a layer in a forward pass, and the loss's gradient at its output.

    Attributes:
        layer: the layer that was called.
        arguments: of `layer.call`, by name, with defaults for those left out.
        output: of `layer.call`; its value before the activation if the layer was
            registered with `pre_activation=True`.
        delta: the loss's gradient with respect to `output`, in the same nesting.
        kept: value that the rule's `during` yielded.
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
    """A layer has no per-example gradients; the message is the reason."""


class Rule(NamedTuple):
    """The rule that is registered for a layer class.

    Attributes:
        forms: function from a `Call` to pairs of (weight, per-example gradients).
        pre_activation: whether `layer.activation` is applied after the recorded call.
        whole: whether the rule covers the layers inside the layer too.
        during: function from the layer to a context manager around the call.
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
    """Registers a rule that gives the per-example gradients of your own layers.

    The decorated function takes a `Call` and returns a pair (weight, per-example
    gradients) for each weight that the call uses. Gradients come as they are
    (`PerExample`), as sums of products of inputs and deltas (`Products`), or as rows of
    a table (`Gathered`). The rule holds for subclasses too, unless they have their own
    `call`. Other layers are worked out one example at a time: exact, but slow.

    Args:
        *layers: layer classes.
        pre_activation: whether `layer.activation` is applied after the recorded call,
            so that `output` and `delta` are those before the activation.
        whole: whether the rule covers the layers inside the layer too.
        during: function from the layer to a context manager around the recorded call.
            The value it yields, such as random numbers drawn, is the `Call`'s `kept`.

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
    """Returns the rule for the layer's `call`, or `None` if there is none."""
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
    """Returns whether a loss can have a gradient with respect to the tensor."""
    return tf.is_tensor(tensor) and tensor.dtype.is_floating
