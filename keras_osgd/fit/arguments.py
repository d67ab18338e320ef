"""The arguments of `fit`, under the names that Keras gives them."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any

from keras_osgd.base.refusals import refuse

__all__ = ["FitArguments", "require_arguments", "require_known"]


@dataclasses.dataclass(frozen=True)
class FitArguments:
    """The arguments of `keras.Model.fit`, with its defaults.

    Example:
        >>> arguments = FitArguments(x=[1.0], epochs=3).replace(shuffle=False)
        >>> arguments.epochs, arguments.for_keras()["shuffle"]
        (3, False)
    """

    x: Any = None
    y: Any = None
    batch_size: int | None = None
    epochs: int = 1
    verbose: Any = "auto"
    callbacks: Any = None
    validation_split: float = 0.0
    validation_data: Any = None
    shuffle: bool = True
    class_weight: dict | None = None
    sample_weight: Any = None
    initial_epoch: int = 0
    steps_per_epoch: int | None = None
    validation_steps: int | None = None
    validation_batch_size: int | None = None
    validation_freq: int = 1

    def replace(self, **changes: Any) -> FitArguments:
        """Returns a copy with other values."""
        return dataclasses.replace(self, **changes)

    def with_examples(self, x: Any) -> FitArguments:
        """Returns a copy with the examples of a dataset, or itself for the same x.

        As in Keras, batches stay as they are: `batch_size` is for validation alone.
        """
        if x is self.x:
            return self
        size = self.validation_batch_size or self.batch_size
        return self.replace(x=x, batch_size=None, validation_batch_size=size)

    def for_keras(self) -> dict[str, Any]:
        """Returns the keyword arguments of Keras' `fit`; nothing in them is copied."""
        return dict(vars(self))


def require_known(others: Mapping[str, Any]) -> None:
    """Raises a TypeError for arguments that Keras' `fit` does not have.

    Args:
        others: such arguments, by name.
    """
    if others:
        remedy = "Pass `sampling` to `compile`." if "sampling" in others else ""
        raise TypeError(
            "`fit` must be given the arguments of Keras' `fit`. Received: "
            f"{', '.join(others)}. {remedy or 'Leave it out.'}"
        )


def require_arguments(arguments: FitArguments) -> None:
    """Refuses numbers that Keras fails on, or takes for others, or finds out too late.

    As in Keras, `None` and 0 stand for the defaults, and what concerns validation does
    not matter without it.

    Raises:
        ValueError: if numbers of `fit` are not as they must be; it names all of them.

    Example:
        >>> require_arguments(FitArguments(batch_size=2.5))
        Traceback (most recent call last):
        keras_osgd.base.refusals.Refused: `batch_size` must be a whole number above 0...
    """
    part, freq = arguments.validation_split or 0.0, arguments.validation_freq
    split = arguments.validation_data is None and part != 0.0
    validated = split or arguments.validation_data is not None
    counts, whole = ["batch_size", "steps_per_epoch"], ["epochs", "initial_epoch"]
    counts += ["validation_batch_size"] * validated
    problems = [
        _problem(arguments, name, "a whole number above 0, or None for the default")
        for name in counts
        if not (_is_whole(getattr(arguments, name) or 0, least=0))
    ]
    problems += [
        _problem(arguments, name, "a whole number")
        for name in whole
        if not _is_whole(getattr(arguments, name))
    ]
    if validated and not _is_whole(arguments.validation_steps or 0):
        must = "a whole number, or None for all of the data"
        problems.append(_problem(arguments, "validation_steps", must))
    if split and not (isinstance(part, numbers.Real) and 0 < part < 1):
        must = "a share of the examples, at least 0 and below 1"
        problems.append(_problem(arguments, "validation_split", must))
    if validated and not (isinstance(freq, list) or (isinstance(freq, int) and freq)):
        must = "a whole number above 0, of epochs, or a list of epochs"
        problems.append(_problem(arguments, "validation_freq", must))
    refuse(problems)


def _is_whole(value: Any, least: float = -math.inf) -> bool:
    return isinstance(value, numbers.Integral) and value >= least


def _problem(arguments: FitArguments, name: str, must: str) -> str:
    return (
        f"`{name}` must be {must}. Received: {name}={getattr(arguments, name)!r}. "
        "Change it, or leave it out."
    )
