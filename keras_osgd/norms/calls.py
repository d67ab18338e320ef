"""Records every layer's call in a forward pass, and which weights each one read."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_osgd.base import keras_compat
from keras_osgd.norms import rules

__all__ = ["Frame", "recording", "replaced_calls", "state_kept", "without_activation"]


class Frame(rules.Call):
    """A call, the weights it read itself and the calls that it made.

    Attributes:
        args, kwargs: as the call got them.
        rule: that the layer has, or `None`.
        read: variables that the call read, those read by `inner` calls left out.
        inner: `Frame`s of the calls made inside this one.
    """

    def __init__(self, layer: keras.Layer, args: tuple, kwargs: dict) -> None:
        """Starts with nothing read."""
        super().__init__(layer, rules.bound(type(layer).call, layer, args, kwargs))
        self.args, self.kwargs = args, kwargs
        self.rule = rules.rule_of(layer)
        self.read: list[tf.Variable] = []
        self.inner: list[Frame] = []

    def everything(self) -> Iterator[Frame]:
        """Yields this frame and all that it contains."""
        yield self
        for frame in self.inner:
            yield from frame.everything()

    @property
    def read_anywhere(self) -> dict[Any, tf.Variable]:
        """All variables read by this call and those inside it, by reference."""
        return {v.ref(): v for frame in self.everything() for v in frame.read}


@contextlib.contextmanager
def recording(model: keras.Model) -> Iterator[list[Frame]]:
    """Records the calls of all layers during the block.

    Each call runs under a tape of its own, whose list of watched variables tells what
    it read; while an inner call runs, the outer one's tape pauses.

    Args:
        model: any Keras model; its outputs stay bit for bit what they were.

    Returns:
        The outermost calls, complete when the block ends.

    Example:
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        >>> with recording(model) as frames:
        ...     y_pred = model(tf.ones([5, 3]))
        >>> [type(frame.layer).__name__ for frame in frames[0].everything()][-1]
        'Dense'
    """
    roots: list[Frame] = []
    stack: list[tuple[Frame, tf.GradientTape]] = []

    def wrap(layer: keras.Layer, original: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            if stack and stack[-1][0].rule is not None and stack[-1][0].rule.whole:
                return original(*args, **kwargs)
            frame = Frame(layer, args, kwargs)
            (stack[-1][0].inner if stack else roots).append(frame)
            with contextlib.ExitStack() as scopes:
                if stack:
                    scopes.enter_context(stack[-1][1].stop_recording())
                tape = scopes.enter_context(tf.GradientTape())
                stack.append((frame, tape))
                scopes.callback(stack.pop)
                output = _called(frame, original, args, kwargs)
                frame.read = list(tape.watched_variables())
            return output

        return call

    layers = {id(x): x for x in [model, *keras_compat.layers_of(model)]}
    with replaced_calls(layers.values(), wrap):
        yield roots


def _called(frame: Frame, original: Callable, args: tuple, kwargs: dict) -> Any:
    """Returns what the call returns, and keeps what its rule needs."""
    rule, layer, activation = frame.rule, frame.layer, None
    with contextlib.ExitStack() as scopes:
        if rule is not None and rule.during is not None:
            frame.kept = scopes.enter_context(rule.during(layer))
        if rule is not None and rule.pre_activation:
            activation = scopes.enter_context(without_activation(layer))
        frame.output = _apart(original(*args, **kwargs))
    return frame.output if activation is None else activation(frame.output)


def _apart(output: Any) -> Any:
    """Returns outputs none of which is computed from another.

    The loss's gradient with respect to a hidden state that was returned twice, or to a
    carry that an output was computed from, would count what passes through the other.
    """
    if sum(map(rules.is_float, keras.tree.flatten(output))) < 2:
        return output
    return keras.tree.map_structure(
        lambda leaf: keras_compat.copied(leaf) if rules.is_float(leaf) else leaf, output
    )


@contextlib.contextmanager
def without_activation(layer: keras.Layer) -> Iterator[Any]:
    """Takes a layer's activation off during the block, and returns it.

    Other threads' calls keep it.
    """
    activation, thread = vars(layer).get("activation"), threading.get_ident()

    def put_off(x: Any) -> Any:
        return x if threading.get_ident() == thread else activation(x)

    vars(layer)["activation"] = None if activation is None else put_off
    try:
        yield activation
    finally:
        vars(layer)["activation"] = activation


@contextlib.contextmanager
def replaced_calls(
    layers: Any, wrap: Callable[[keras.Layer, Callable], Callable]
) -> Iterator[None]:
    """Lets each layer's `call` be `wrap(layer, call)` in this thread's block.

    Calls made meanwhile by other threads go to the layer's own `call`: they are no part
    of this forward pass, and tapes of two threads must not be nested.
    """
    thread = threading.get_ident()

    def replaced(layer: keras.Layer) -> Callable:
        original = layer.call
        wrapped = wrap(layer, original)

        def call(*args: Any, **kwargs: Any) -> Any:
            ours = threading.get_ident() == thread
            return (wrapped if ours else original)(*args, **kwargs)

        call.replaces, call.ended = vars(layer).get("call"), False
        return call

    calls = []
    try:
        for layer in layers:
            calls.append((layer, replaced(layer)))
            vars(layer)["call"] = calls[-1][1]
        yield
    finally:
        for layer, call in calls:
            call.ended = True
            _take_off_ended(layer)


def _take_off_ended(layer: keras.Layer) -> None:
    """Gives a layer the call back that it had before those that have ended.

    Replicas are threads whose blocks may overlap: the one begun first ends first.
    """
    own = vars(layer)
    while getattr(own.get("call"), "ended", False):
        before = own.pop("call").replaces
        if before is not None:
            own["call"] = before


@contextlib.contextmanager
def state_kept(model: keras.Model) -> Iterator[None]:
    """Undoes what calls in the block do to weights, seeds, statistics and metrics.

    Weights as well, since SpectralNormalization assigns its layer's kernel. In a
    `keras.StatelessScope` Keras 3.15 hands `None` to the regularizers.
    """
    layers = [model, *keras_compat.layers_of(model)]
    metrics = [v for layer in layers for v in layer.metrics_variables]
    variables = {id(v): v for v in [*model.variables, *metrics]}
    held = [(v, tf.identity(v)) for v in variables.values()]
    try:
        yield
    finally:
        for variable, value in held:
            variable.assign(value)
