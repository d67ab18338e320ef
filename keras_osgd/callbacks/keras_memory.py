"""State of Keras' own callbacks, which they would lose when training resumes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from keras_osgd.base import keras_compat
from keras_osgd.gain.learning_rate import inner_optimizer

__all__ = ["altered", "load_state_dict", "state_dict"]

_NUMBERS = {
    keras.callbacks.EarlyStopping: ("wait", "best", "best_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: ("best",),
    # Whether averages and weights are swapped: the model has the averages.
    keras.callbacks.SwapEMAWeights: (keras_compat.AVERAGES_SWAPPED,),
}
_WEIGHTS = "best_weights"


def state_dict(
    callbacks: Iterable[keras.callbacks.Callback],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns the callbacks' memory of earlier epochs: numbers and best weights.

    Returns:
        A list with the class and the numbers of each callback in `_NUMBERS`, for JSON;
        and a dictionary of best weights, by the callback's place in that list.
    """
    numbers, weights = [], {}
    for callback, names in _known(callbacks):
        best = getattr(callback, _WEIGHTS, None)
        if best is not None:
            weights[str(len(numbers))] = {str(i): w for i, w in enumerate(best)}
        values = {name: getattr(callback, name, None) for name in names}
        values = {k: None if v is None else float(v) for k, v in values.items()}
        numbers.append({"class": type(callback).__name__, **values})
    return numbers, weights


def altered(
    model: keras.Model,
    callbacks: Iterable[keras.callbacks.Callback],
    epochs: int,
) -> str:
    """Returns in words how the end of training would replace the weights, or "".

    Args:
        model: in training.
        callbacks: of the `fit`.
        epochs: number trained so far.
    """
    if getattr(inner_optimizer(model.optimizer), "use_ema", False):
        return "the end of training took averages for weights"
    for callback in callbacks:
        stops = isinstance(callback, keras.callbacks.EarlyStopping)
        if stops and callback.best_weights and callback.best_epoch + 1 != epochs:
            return "the end of training brought back the best weights"
    return ""


def load_state_dict(
    callbacks: Iterable[keras.callbacks.Callback],
    numbers: list[dict[str, Any]],
    weights: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Restores the numbers and weights of `state_dict`, if the classes are the same."""
    known = _known(callbacks)
    if [type(c).__name__ for c, _ in known] != [saved["class"] for saved in numbers]:
        return
    for order, ((callback, names), saved) in enumerate(
        zip(known, numbers, strict=True)
    ):
        for name in names:
            value = saved[name]
            whole = name != "best" and value is not None
            setattr(callback, name, int(value) if whole else value)
        best = weights.get(str(order))
        if best is not None:
            setattr(callback, _WEIGHTS, [best[str(i)] for i in range(len(best))])


def _known(
    callbacks: Iterable[keras.callbacks.Callback],
) -> list[tuple[keras.callbacks.Callback, tuple[str, ...]]]:
    return [
        (callback, names)
        for callback in callbacks
        for kind, names in _NUMBERS.items()
        if isinstance(callback, kind)
    ]
