"""Records every layer's call in a forward pass and the weights that each call read."""

from __future__ import annotations

import collections
import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_osgd.base import keras_compat
from keras_osgd.base.replacing import wrapped
from keras_osgd.norms import rules
from keras_osgd.norms.forms import rows_from

__all__ = [
    "Axes",
    "Frame",
    "batch_axes",
    "numbered",
    "recording",
    "replaced_calls",
    "without_activation",
]


class Frame(rules.Call):
    """A call, the weights it read itself and the calls that it made.

    Attributes:
        args, kwargs: arguments of the call, as given.
        rule: the layer's rule, or `None`.
        read: variables that the call itself read, without those of `inner` calls.
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
        """Yields this frame and all frames inside it."""
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

    Each call runs under its own tape, which watches the variables that the call reads;
    it pauses while an inner call runs. Calls inside a layer whose rule is `whole` are
    not recorded.

    Args:
        model: any Keras model; its outputs stay the same, bit for bit.

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
    """Returns the call's output, and keeps in the frame what the rule needs."""
    rule, layer, activation = frame.rule, frame.layer, None
    with contextlib.ExitStack() as scopes:
        if rule is not None and rule.during is not None:
            frame.kept = scopes.enter_context(rule.during(layer))
        if rule is not None and rule.pre_activation:
            activation = scopes.enter_context(without_activation(layer))
        frame.output = _apart(original(*args, **kwargs))
    return frame.output if activation is None else activation(frame.output)


def _apart(output: Any) -> Any:
    """Returns the outputs as tensors none of which is computed from another.

    Otherwise the loss's gradient with respect to a hidden state that is returned twice,
    or to a carry that makes an output, would include what passes through the other.
    """
    if sum(map(rules.is_float, keras.tree.flatten(output))) < 2:
        return output
    return keras.tree.map_structure(
        lambda leaf: keras_compat.copied(leaf) if rules.is_float(leaf) else leaf, output
    )


@contextlib.contextmanager
def without_activation(layer: keras.Layer) -> Iterator[Any]:
    """Removes a layer's activation during the block, and yields it.

    Calls from other threads keep the activation.
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
    """Replaces each layer's `call` by `wrap(layer, call)`, in this thread's block.

    Calls from other threads still go to the layer's own `call`: they do not belong to
    this forward pass, and tapes of two threads must not be nested.
    """
    with contextlib.ExitStack() as blocks:
        for layer in layers:
            own = functools.partial(wrap, layer)
            blocks.enter_context(wrapped(layer, "call", own))
        yield


class Axes(NamedTuple):
    """Whether the outputs and arguments of a call have a batch axis.

    Attributes:
        outputs: whether the outputs have one.
        arguments: whether each leaf of the arguments has one; `None` if not known.
    """

    outputs: bool = True
    arguments: tuple[bool, ...] | None = None


def batch_axes(model: keras.Model, x: Any) -> dict[tuple[int, int], Axes]:
    """Returns the batch axes of every layer's calls, found by two trial runs.

    An embedding of positions, added to every example alike, has no batch axis, though
    its length may equal the batch size.

    Args:
        model: built.
        x: at least 3 examples.

    Raises:
        ValueError: if the model takes batches of one size only.

    Returns:
        (`id` of the layer, number of its earlier calls) -> the call's `Axes`: whether
        the length of a first axis is a multiple of the number of examples.
    """
    lengths = []
    for size in (2, 3):
        rows = keras.tree.map_structure(lambda leaf, m=size: rows_from(leaf, 0, m), x)
        with recording(model) as frames, keras.StatelessScope():
            try:
                keras_compat.call_model(model, rows, training=False)
            except (ValueError, tf.errors.InvalidArgumentError) as error:
                raise ValueError(
                    "Exact gradient norms need a model that takes any number of "
                    f"examples at once. Received: {str(error).splitlines()[0]} with "
                    f"{size}. Leave the batch size open and layers not `stateful`, or "
                    'use the last layer\'s norms, `sampling.RAIS(norm="last_layer")`.'
                ) from error
        _refuse_ragged(frames)
        lengths.append({key: _lengths(frame, size) for key, frame in numbered(frames)})
    two, three = lengths
    return {key: _axes(two[key], three[key]) for key in two if key in three}


def _refuse_ragged(frames: Sequence[Frame]) -> None:
    names = [
        frame.layer.name
        for _, frame in numbered(frames)
        if any(isinstance(t, tf.RaggedTensor) for t in keras.tree.flatten(frame.output))
    ]
    if names:
        raise ValueError(
            "Exact gradient norms need layers with dense outputs. Received: ragged "
            f"ones of {names}. Call `.to_tensor()` on the input in a layer of its own, "
            'or use the last layer\'s norms, `sampling.RAIS(norm="last_layer")`.'
        )


def _axes(two: list[int | None], three: list[int | None]) -> Axes:
    outputs, *arguments = (
        a is not None and a == b for a, b in zip(two, three, strict=False)
    )
    return Axes(outputs, tuple(arguments) if len(two) == len(three) else None)


def _lengths(frame: Frame, size: int) -> list[int | None]:
    """Returns the rows per example of the outputs and of each argument."""
    arguments = keras.tree.flatten((frame.args, frame.kwargs))
    leaves = [keras.tree.flatten(frame.output), *([leaf] for leaf in arguments)]
    return [_length([x for x in own if tf.is_tensor(x)], size) for own in leaves]


def _length(tensors: list[tf.Tensor], size: int) -> int | None:
    """Returns the number of rows per example; `None` if unclear."""
    rows = {x.shape[0] if x.shape.rank else 0 for x in tensors}
    only = rows.pop() if len(rows) == 1 else 0
    return only // size if only and only % size == 0 else None


def numbered(frames: Sequence[Frame]) -> Iterator[tuple[tuple[int, int], Frame]]:
    """Yields ((`id` of the layer, number of its earlier calls), call) for each call."""
    calls: collections.Counter = collections.Counter()
    for root in frames:
        for frame in root.everything():
            number = id(frame.layer)
            yield (number, calls[number]), frame
            calls[number] += 1
