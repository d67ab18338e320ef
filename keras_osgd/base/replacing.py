"""Attributes and methods of an object, replaced for a while."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["replaced", "wrapped"]


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


@contextlib.contextmanager
def wrapped(
    owner: Any, method: str, wrap: Callable[[Callable], Callable]
) -> Iterator[None]:
    """Replaces a method by `wrap(method)` for this thread's calls during the block.

    Replicas are threads that take turns, so their blocks overlap: each has a wrapper
    of its own. Calls from other threads go to the method itself.

    Args:
        owner: the object.
        method: name of the method.
        wrap: takes the bound method.

    Example:
        >>> class Owner:
        ...     def name(self):
        ...         return "own"
        >>> owner = Owner()
        >>> with wrapped(owner, "name", lambda own: lambda: "no longer " + own()):
        ...     owner.name()
        'no longer own'
        >>> owner.name()
        'own'
    """
    thread, original = threading.get_ident(), getattr(owner, method)
    ours = wrap(original)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        own = threading.get_ident() == thread
        return (ours if own else original)(*args, **kwargs)

    call.replaces, call.ended = vars(owner).get(method), False
    vars(owner)[method] = call
    try:
        yield
    finally:
        call.ended = True
        _take_off_ended(owner, method)


def _take_off_ended(owner: Any, method: str) -> None:
    """Removes wrappers whose blocks have ended, and restores the method before them.

    The block begun first may end first.
    """
    own = vars(owner)
    while getattr(own.get(method), "ended", False):
        before = own.pop(method).replaces
        if before is not None:
            own[method] = before
