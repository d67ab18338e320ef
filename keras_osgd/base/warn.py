"""Warnings at the user's line, some once a model; lines that are printed once."""

from __future__ import annotations

import contextlib
import inspect
import types
import warnings
from collections.abc import Iterator

import keras

__all__ = ["say_once", "unless_it_fails", "warn", "warn_once", "warned_of"]

_INSIDE = ("keras_osgd", "keras", "tensorflow", "contextlib", "functools")
_SAID: set[str] = set()


def warn(message: str) -> None:
    """Warns at the user's line that called Keras or this package, at any depth."""
    frame, level = inspect.currentframe().f_back, 2
    while frame.f_back is not None and _package(frame) in _INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _package(frame: types.FrameType) -> str:
    return frame.f_globals.get("__name__", "").partition(".")[0]


def warn_once(model: keras.Model, key: str, message: str) -> None:
    """Warns, unless the model has already given the warning named `key`."""
    warned = vars(model).setdefault("_keras_osgd_warned", {})
    if key not in warned:
        warned[key] = message
        warn(message)


def warned_of(model: keras.Model) -> list[str]:
    """Returns the texts of all that `warn_once` has given for a model."""
    return list(vars(model).get("_keras_osgd_warned", {}).values())


def say_once(line: str | None) -> None:
    """Prints a line, if there is one that this process has not printed before."""
    if line and line not in _SAID:
        _SAID.add(line)
        print(line)


@contextlib.contextmanager
def unless_it_fails(model: keras.Model) -> Iterator[None]:
    """Gives the warnings of the block at its end; none of them if it raises."""
    before = dict(vars(model).get("_keras_osgd_warned", {}))
    try:
        with warnings.catch_warnings(record=True, action="always") as caught:
            yield
    except Exception:
        vars(model)["_keras_osgd_warned"] = before
        raise
    for told in caught:
        warnings.warn_explicit(told.message, told.category, told.filename, told.lineno)
