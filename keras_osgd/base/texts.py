"""Texts as arrays, in which Keras' files keep them."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["as_array", "as_text"]


def as_array(text: str) -> np.ndarray:
    """Returns the bytes of a text, `[k]` uint8.

    Example:
        >>> as_text(as_array("last_layer"))
        'last_layer'
    """
    return np.frombuffer(text.encode(), np.uint8)


def as_text(array: Any) -> str:
    """Returns the text whose `as_array` went into a store."""
    return bytes(np.array(array, np.uint8)).decode()
