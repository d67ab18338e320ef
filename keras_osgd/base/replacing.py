"""Attributes of an object, replaced for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["replaced"]


@contextlib.contextmanager
def replaced(owner: Any, attributes: Mapping[str, Any]) -> Iterator[None]:
    """Replaces attributes of an object during the block.

    Bypasses its `__setattr__`, by which Keras tracks the parts of a model.

    Example:
        >>> class Owner:
        ...     name = "own"
        >>> owner = Owner()
        >>> with replaced(owner, {"name": "other"}):
        ...     owner.name
        'other'
        >>> owner.name
        'own'
    """
    before = {name: vars(owner)[name] for name in attributes if name in vars(owner)}
    try:
        vars(owner).update(attributes)
        yield
    finally:
        for name in attributes:
            vars(owner).pop(name, None)
        vars(owner).update(before)
