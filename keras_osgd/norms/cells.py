"""The steps of SimpleRNN, GRU and LSTM, from what their inputs give to new states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

__all__ = ["KINDS", "ByGate", "Cell", "Kind", "States", "Step", "masked", "product"]

_LAYERS = keras.layers

ByGate = tf.Tensor | list[tf.Tensor]  # the same for all gates, or one for each
States = tuple[tf.Tensor, ...]  # the hidden state first
Step = Callable[[States, tf.Tensor], States]


class Cell(NamedTuple):
    """What a cell computes with, no narrower than float32.

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
    """Returns what each gate gets of `[m, k]`, or of `[m, T, k]` with a new axis."""
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
    """Of states (hidden, reset gate); the latter is kept for `_gru_gates`."""
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
    """Returns what the recurrent kernel multiplied, and the loss's gradient there.

    Args:
        cell: the cell.
        before: `[m, T, U]`, the hidden states that the steps begin with.
        states: `[m, T, U]`, those that they end with.
        deltas: `[m, T, G U]`, the loss's gradient with respect to the inputs' products.
    """
    return masked(before, cell.masks, tf.newaxis), deltas


def _gru_gates(
    cell: Cell, before: tf.Tensor, states: States, deltas: tf.Tensor
) -> tuple[ByGate, tf.Tensor]:
    """Returns the same: the reset gate comes after the product, or before it."""
    hidden, reset = masked(before, cell.masks, tf.newaxis), states[1]
    if cell.layer.reset_after:
        *others, candidate = tf.split(deltas, 3, axis=-1)
        return hidden, tf.concat([*others, reset * candidate], axis=-1)
    *others, of_candidate = _each(hidden)
    return [*others, reset * of_candidate], deltas


def _each(hidden: ByGate) -> list[tf.Tensor]:
    return hidden if isinstance(hidden, list) else [hidden] * 3


class Kind(NamedTuple):
    """What is known of a class of cells.

    Attributes:
        step: from a cell to one step of it.
        gates: as `_plain_gates`.
        unseen: how many states it has beside those of Keras.
    """

    step: Callable[[Cell], Step]
    gates: Callable[..., tuple[ByGate, tf.Tensor]]
    unseen: int = 0


KINDS = {  # by the class's `call`, so that subclasses with one of their own are not met
    _LAYERS.SimpleRNNCell.call: Kind(_simple_step, _plain_gates),
    _LAYERS.LSTMCell.call: Kind(_lstm_step, _plain_gates),
    _LAYERS.GRUCell.call: Kind(_gru_step, _gru_gates, unseen=1),
}
