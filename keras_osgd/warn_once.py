"""Warnings that a model gives once, however often it is trained."""

from __future__ import annotations

import warnings

import keras

__all__ = ["warn_once", "warned_of"]


def warn_once(model: keras.Model, key: str, message: str) -> None:
    """Warns, unless this model has already warned of the same."""
    warned = vars(model).setdefault("_keras_osgd_warned", {})
    if key not in warned:
        warned[key] = message
        warnings.warn(message, stacklevel=3)


def warned_of(model: keras.Model) -> list[str]:
    """Returns the texts of all that `warn_once` has warned of."""
    return list(vars(model).get("_keras_osgd_warned", {}).values())
