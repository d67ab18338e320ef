"""What the sampling methods share: their serialization, and checks of arguments."""

from __future__ import annotations

import numbers
from typing import Any, Literal

__all__ = [
    "PACKAGE",
    "Sampling",
    "check",
    "check_choice",
    "check_count",
    "check_floor",
]

PACKAGE = "keras_osgd"


class Sampling:
    """Base of the sampling methods; serializable like an optimizer."""

    norm: Literal["last_layer", "exact"] = "last_layer"

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return dict(vars(self))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Sampling:
        """Returns an object with the arguments that `get_config` returned."""
        return cls(**config)

    def __repr__(self) -> str:
        """Returns the call that makes this object."""
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


def check_floor(floor: float) -> None:
    """Raises unless `floor` is a share."""
    must = "in [0, 1]: it is the share of uniform sampling mixed in"
    check("floor", floor, 0 <= floor <= 1, must)


def check_choice(name: str, value: str, *choices: str) -> None:
    """Raises unless `value` is one of `choices`."""
    check(name, value, value in choices, f"one of {choices}")


def check_count(name: str, value: int, least: int) -> None:
    """Raises unless `value` is a whole number and at least `least`."""
    whole = isinstance(value, numbers.Integral) and value >= least
    check(name, value, whole, f"a whole number and at least {least}")


def check(name: str, value: Any, met: bool, must: str) -> None:
    """Raises, saying what `name` must be, unless that is `met`."""
    if not met:
        raise ValueError(
            f"`{name}` must be {must}. Received: {name}={value!r}. "
            "Leave it out for the default."
        )
