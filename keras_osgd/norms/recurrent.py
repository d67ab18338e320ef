"""Per-example gradients of SimpleRNN, GRU and LSTM, by running their steps again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_osgd.base.replacing import replaced
from keras_osgd.norms.dense import bias_form
from keras_osgd.norms.forms import PerExample, Products, sizes, widened
from keras_osgd.norms.rules import Call, Uses, register

__all__ = ["KINDS", "masked", "product"]

_LAYERS = keras.layers
ByGate = tf.Tensor | list[tf.Tensor]  # one for all gates, or one for each
States = tuple[tf.Tensor, ...]  # the hidden state first
Step = Callable[[States, tf.Tensor], States]
_LOOPS = {layer.inner_loop for layer in (_LAYERS.RNN, _LAYERS.GRU, _LAYERS.LSTM)}
_DROPOUT, _RECURRENT_DROPOUT = "get_dropout_mask", "get_recurrent_dropout_mask"


class Cell(NamedTuple):
    """The weights and dropout masks of a cell, in float32 or wider.

    Attributes:
        layer: the cell.
        kernel: `[P, G U]`, for G gates of U units.
        recurrent_kernel: `[U, G U]`.
        bias: `[G U]`, added to the inputs' products, or 0.
        recurrent_bias: `[G U]`, added to the hidden state's products, or 0.
        masks: `[m, U]`, dropout of the hidden state, or `None`.
    """

    layer: keras.Layer
    kernel: tf.Tensor
    recurrent_kernel: tf.Tensor
    bias: tf.Tensor | float
    recurrent_bias: tf.Tensor | float
    masks: ByGate | None


def masked(tensor: tf.Tensor, masks: ByGate | None, *axis: Any) -> ByGate:
    """Returns each gate's inputs: `[m, k]` masked, or `[m, T, k]` with `tf.newaxis`."""
    if masks is None:
        return tensor
    return keras.tree.map_structure(
        lambda mask: tensor * mask[(slice(None), *axis)], masks
    )


def product(inputs: ByGate, kernel: tf.Tensor) -> tf.Tensor:
    """Returns `[..., G U]`, the products with the kernel of each gate."""
    if not isinstance(inputs, list):
        return tf.tensordot(inputs, kernel, axes=1)
    kernels = tf.split(kernel, len(inputs), axis=1)
    pairs = zip(inputs, kernels, strict=True)
    return tf.concat([tf.tensordot(x, k, axes=1) for x, k in pairs], axis=-1)


def _simple_step(cell: Cell) -> Step:
    def step(states: States, now: tf.Tensor) -> States:
        hidden = masked(states[0], cell.masks)
        return (cell.layer.activation(now + product(hidden, cell.recurrent_kernel)),)

    return step


def _lstm_step(cell: Cell) -> Step:
    own = cell.layer

    def step(states: States, now: tf.Tensor) -> States:
        hidden = masked(states[0], cell.masks)
        gates = tf.split(now + product(hidden, cell.recurrent_kernel), 4, axis=-1)
        entering, kept, shown = (own.recurrent_activation(gates[i]) for i in (0, 1, 3))
        carry = kept * states[1] + entering * own.activation(gates[2])
        return shown * own.activation(carry), carry

    return step


def _gru_step(cell: Cell) -> Step:
    """Returns a step of states (hidden, reset gate); `_gru_gates` needs the latter."""
    own = cell.layer

    def step(states: States, now: tf.Tensor) -> States:
        hidden = masked(states[0], cell.masks)
        update, reset, candidate = tf.split(now, 3, axis=-1)
        if own.reset_after:
            given = product(hidden, cell.recurrent_kernel) + cell.recurrent_bias
            of_update, of_reset, of_candidate = tf.split(given, 3, axis=-1)
            reset = own.recurrent_activation(reset + of_reset)
            candidate += reset * of_candidate
        else:
            of_update, of_reset, kernel = tf.split(cell.recurrent_kernel, 3, axis=1)
            hidden = _each(hidden)
            of_update = hidden[0] @ of_update
            reset = own.recurrent_activation(reset + hidden[1] @ of_reset)
            candidate += (reset * hidden[2]) @ kernel
        update = own.recurrent_activation(update + of_update)
        new = update * states[0] + (1 - update) * own.activation(candidate)
        return new, reset

    return step


def _plain_gates(
    cell: Cell, before: tf.Tensor, states: States, deltas: tf.Tensor
) -> tuple[ByGate, tf.Tensor]:
    """Returns the recurrent kernel's inputs and the loss's gradient at its products.

    Args:
        cell: the cell.
        before: `[m, T, U]`, the hidden state before each step.
        states: `[m, T, U]` each, all states after each step.
        deltas: `[m, T, G U]`, the loss's gradient with respect to the inputs' products.
    """
    return masked(before, cell.masks, tf.newaxis), deltas


def _gru_gates(
    cell: Cell, before: tf.Tensor, states: States, deltas: tf.Tensor
) -> tuple[ByGate, tf.Tensor]:
    """Returns the same for a GRU, whose reset gate follows or precedes the product."""
    hidden, reset = masked(before, cell.masks, tf.newaxis), states[1]
    if cell.layer.reset_after:
        *others, candidate = tf.split(deltas, 3, axis=-1)
        return hidden, tf.concat([*others, reset * candidate], axis=-1)
    *others, of_candidate = _each(hidden)
    return [*others, reset * of_candidate], deltas


def _each(hidden: ByGate) -> list[tf.Tensor]:
    return hidden if isinstance(hidden, list) else [hidden] * 3


class Kind(NamedTuple):
    """The functions that belong to a class of cells.

    Attributes:
        step: function from a cell to its step.
        gates: function like `_plain_gates`.
        unseen: number of states that the step has beside those of Keras.
    """

    step: Callable[[Cell], Step]
    gates: Callable[..., tuple[ByGate, tf.Tensor]]
    unseen: int = 0


KINDS = {  # by the class's `call`: a subclass with its own `call` is not found
    _LAYERS.SimpleRNNCell.call: Kind(_simple_step, _plain_gates),
    _LAYERS.LSTMCell.call: Kind(_lstm_step, _plain_gates),
    _LAYERS.GRUCell.call: Kind(_gru_step, _gru_gates, unseen=1),
}


@contextlib.contextmanager
def _kept(layer: keras.Layer) -> Iterator[dict[str, Any]]:
    """Keeps the states that a call starts from and the dropout that it draws."""
    cell, kept = layer.cell, {}
    if layer.stateful and layer.states is not None:
        kept["states"] = [tf.identity(state) for state in layer.states]

    def keeping(name: str, draw: Callable) -> Callable:
        def keep(step_input: tf.Tensor) -> Any:
            kept[name] = draw(step_input)
            return kept[name]

        return keep

    names = [name for name in (_DROPOUT, _RECURRENT_DROPOUT) if hasattr(cell, name)]
    with replaced(cell, {name: keeping(name, getattr(cell, name)) for name in names}):
        yield kept


@register(
    *(_LAYERS.RNN, _LAYERS.SimpleRNN, _LAYERS.GRU, _LAYERS.LSTM),
    whole=True,
    during=_kept,
)
def recurrent(call: Call) -> Uses:
    """Sums over steps of delta_t x_t' and delta_t h_{t-1}'; h is the hidden state.

    delta_t is the loss's gradient with respect to the gates before their activation. It
    comes from running the steps again under a tape that watches the inputs' products.
    """
    layer, own = call.layer, call.layer.cell
    kind = KINDS.get(type(own).call)
    if kind is None or type(layer).inner_loop not in _LOOPS:
        return []
    cell = _values(call)
    inputs = widened(tf.cast(call.inputs, own.compute_dtype))
    inputs = tf.reverse(inputs, [1]) if layer.go_backwards else inputs
    masks = _masks(call, _DROPOUT, own.dropout)
    inputs = masked(inputs, masks, tf.newaxis)
    initial = _initial(call)
    states, deltas = _run(call, kind.step(cell), inputs, cell, initial)
    before = tf.concat([initial[0][:, tf.newaxis], states[0][:, :-1]], axis=1)
    multiplied, recurrent_deltas = kind.gates(cell, before, states, deltas)
    found: Uses = [
        (own.kernel, _form(inputs, deltas)),
        (own.recurrent_kernel, _form(multiplied, recurrent_deltas)),
    ]
    if own.bias is None:
        return found
    sums = [bias_form(x).gradient for x in (deltas, recurrent_deltas)]
    bias = tf.stack(sums, axis=1) if len(own.bias.shape) == 2 else sums[0]
    return [*found, (own.bias, PerExample(bias))]


def _values(call: Call) -> Cell:
    own = call.layer.cell

    def value(weight: keras.Variable) -> tf.Tensor:
        tensor = keras.ops.convert_to_tensor(weight)
        return widened(tf.cast(tensor, own.compute_dtype))

    biases = [0.0, 0.0]
    if own.bias is not None:
        bias = value(own.bias)
        biases = tf.unstack(bias) if bias.shape.rank == 2 else [bias, 0.0]
    masks = _masks(call, _RECURRENT_DROPOUT, own.recurrent_dropout)
    return Cell(own, value(own.kernel), value(own.recurrent_kernel), *biases, masks)


def _masks(call: Call, name: str, rate: float) -> ByGate | None:
    """Returns the dropout masks of a call, `[m, k]`; `None` if nothing was dropped."""
    simple = type(call.layer.cell).call is _LAYERS.SimpleRNNCell.call
    # Of the three, only SimpleRNN drops anything at a rate of 1.
    if not call.arguments["training"] or rate == 0 or (rate == 1 and not simple):
        return None
    return keras.tree.map_structure(widened, call.kept[name])


def _initial(call: Call) -> States:
    layer, given = call.layer, call.arguments["initial_state"]
    if given is None:
        given = call.kept.get("states")
    if given is None:
        given = layer.get_initial_state(batch_size=sizes(call.inputs)[0])
    dtype = layer.cell.compute_dtype
    states = [widened(tf.cast(state, dtype)) for state in keras.tree.flatten(given)]
    unseen = KINDS[type(layer.cell).call].unseen
    return (*states, *[tf.zeros_like(states[0])] * unseen)


def _run(
    call: Call, step: Step, inputs: ByGate, cell: Cell, initial: States
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Returns the states after each step, `[m, T, U]`, and the deltas `[m, T, G U]`."""
    layer, mask = call.layer, call.arguments["mask"]
    keep = None
    if mask is not None:
        keep = _by_time(tf.cast(keras.tree.flatten(mask)[0], tf.bool))
        keep = tf.reshape(keep, [*sizes(keep)[:2], 1])
        keep = tf.reverse(keep, [0]) if layer.go_backwards else keep

    def advance(states: States, now: list[tf.Tensor]) -> States:
        new = step(states, now[0])
        if keep is None:
            return new
        return tuple(tf.where(now[1], a, b) for a, b in zip(new, states, strict=True))

    products = product(inputs, cell.kernel) + cell.bias
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(products)
        each = [_by_time(products)] + ([] if keep is None else [keep])
        states = tf.scan(advance, each, initial)
        output, final = states[0], [state[-1] for state in states]
        if keep is not None and _fills_with_zeros(layer):
            output = tf.where(keep, output, 0)
        output = _by_time(output) if layer.return_sequences else output[-1]
    leaves = [widened(delta) for delta in keras.tree.flatten(call.delta)]
    targets = [output, *final][: len(leaves)]
    deltas = tape.gradient(targets, products, output_gradients=leaves)
    return [_by_time(state) for state in states], deltas


def _by_time(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the tensor with its first two axes exchanged."""
    return tf.transpose(tensor, [1, 0, *range(2, tensor.shape.rank)])


def _fills_with_zeros(layer: keras.Layer) -> bool:
    """Returns whether masked steps output zeros instead of the output before them.

    cuDNN does so in sequences; `supports_jit` is `False` where Keras may use cuDNN.
    """
    return layer.zero_output_for_mask if layer.supports_jit else layer.return_sequences


def _form(inputs: ByGate, deltas: tf.Tensor) -> Products:
    """Returns the gradients of a kernel `[P, G U]`."""
    if not isinstance(inputs, list):
        return Products(inputs, deltas, (deltas.shape[-1], inputs.shape[-1]), (1, 0))
    gates = tf.stack(tf.split(deltas, len(inputs), axis=-1), axis=1)
    split = (len(inputs), gates.shape[-1], inputs[0].shape[-1])
    return Products(tf.stack(inputs, axis=1), gates, split, (2, 0, 1))
