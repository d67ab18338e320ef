"""The arguments of `fit`, under the names that Keras gives them."""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ["FitArguments"]


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

    def for_keras(self) -> dict[str, Any]:
        """Returns the keyword arguments of Keras' `fit`; nothing in them is copied."""
        return dict(vars(self))
