"""Names of the features that a score table may keep of each example."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "AVERAGE",
    "DEFAULT_FEATURES",
    "LARGE_FEATURES",
    "check_features",
    "decay_of",
]

AVERAGE = "average_"
DEFAULT_FEATURES = ("constant", "last", "average_0.75", "class_mean")
LARGE_FEATURES = (*DEFAULT_FEATURES, "unseen", "age")
_NAMES = ("constant", "last", "class_mean", "unseen", "age")


def check_features(features: Sequence[str]) -> tuple[str, ...]:
    """Returns `features` as a tuple.

    Raises:
        ValueError: if a name is unknown or twice there, or "constant" is not the first.

    Example:
        >>> check_features(["constant", "last", "average_0.9"])
        ('constant', 'last', 'average_0.9')
    """
    features = tuple(features)
    known = all(name in _NAMES or decay_of(name) is not None for name in features)
    if not known or len(set(features)) < len(features) or features[:1] != _NAMES[:1]:
        raise ValueError(
            "`features` must begin with 'constant' (it keeps every radius of the "
            f"uncertainty set above 0) and hold each name once, out of {_NAMES} and "
            f"'average_DECAY' with 0 < DECAY < 1. Received: features={features}. "
            f"Leave it at `None` for {DEFAULT_FEATURES}."
        )
    return features


def decay_of(name: str) -> float | None:
    """Returns the decay in the name of a moving average, or `None`."""
    try:
        decay = float(name.removeprefix(AVERAGE))
    except ValueError:
        return None
    return decay if name.startswith(AVERAGE) and 0 < decay < 1 else None
