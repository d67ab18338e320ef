"""Warnings that a model gives once, however often it is trained."""

from __future__ import annotations

import warnings

import keras

__all__ = ["warn_once"]


def warn_once(model: keras.Model, key: str, message: str) -> None:
    """Warns, unless this model has already warned of the same."""
    warned = vars(model).setdefault("_keras_osgd_warned", set())
    if key not in warned:
        warned.add(key)
        warnings.warn(message, stacklevel=3)
