"""Checks of the names and numbers that go into a score table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

__all__ = [
    "AVERAGE",
    "DEFAULT_FEATURES",
    "LARGE_FEATURES",
    "require_coefficients",
    "require_features",
    "require_loaded",
    "require_observations",
    "decay_of",
]

AVERAGE = "average_"
DEFAULT_FEATURES = ("constant", "last", "average_0.75", "class_mean")
LARGE_FEATURES = (*DEFAULT_FEATURES, "unseen", "age")
_NAMES = ("constant", "last", "class_mean", "unseen", "age")
_LARGEST = float(np.finfo(np.float32).max)  # norms are stored in float32
_LARGEST_WEIGHT = 1e200  # sums of weights times norms stay finite
_LAST_BLOCK = np.iinfo(np.int32).max  # blocks are stored in int32
_LOOK = "Look for a loss that overflowed, or a learning rate too high."


def require_features(features: Sequence[str]) -> tuple[str, ...]:
    """Returns `features` as a tuple.

    Raises:
        ValueError: if a name is unknown or repeated, or "constant" is not the first.

    Example:
        >>> require_features(["constant", "last", "average_0.9"])
        ('constant', 'last', 'average_0.9')
    """
    single = isinstance(features, str) or not isinstance(features, Iterable)
    features = (features,) if single else tuple(features)
    known = all(map(_is_known, features))
    if not known or len(set(features)) < len(features) or features[:1] != _NAMES[:1]:
        raise ValueError(
            "`features` must begin with 'constant' (it keeps every radius of the "
            f"uncertainty set above 0) and hold each name once, out of {_NAMES} and "
            f"'average_DECAY' with 0 < DECAY < 1. Received: features={features}. "
            f"Leave it at `None` for {DEFAULT_FEATURES}."
        )
    return features


def _is_known(name: str) -> bool:
    return isinstance(name, str) and (name in _NAMES or decay_of(name) is not None)


def decay_of(name: str) -> float | None:
    """Returns DECAY of "average_DECAY", or `None` for other names."""
    try:
        decay = float(name.removeprefix(AVERAGE))
    except ValueError:
        return None
    return decay if name.startswith(AVERAGE) and 0 < decay < 1 else None


def require_observations(
    index: np.ndarray, weights: np.ndarray, norms: np.ndarray, size: int
) -> None:
    """Raises unless rows exist, weights are > 0 and norms >= 0, all of them finite."""
    if not index.shape == weights.shape == norms.shape:
        raise ValueError(
            "`index`, `weights` and `norms` must have one entry for each draw. "
            f"Received: shapes {index.shape}, {weights.shape} and {norms.shape}."
            " Pass the rows of one and the same batch."
        )
    _check("index", index, (index >= 0) & (index < size), f"in [0, {size})")
    # In this form NaN fails too.
    met = (weights > 0.0) & (weights <= _LARGEST_WEIGHT)
    _check("weights", weights, met, "finite and > 0")
    _check("norms", norms, (norms >= 0.0) & (norms <= _LARGEST), "finite and >= 0")


def require_coefficients(coefficients: np.ndarray) -> None:
    """Raises unless coefficients are finite and not negative."""
    values = np.asarray(coefficients, np.float64)
    _check("coefficients", values, (values >= 0.0) & (values < np.inf), "finite, >= 0")


def require_loaded(
    arrays: dict[str, np.ndarray], present: dict[str, np.ndarray]
) -> None:
    """Raises unless a table whose state is `present` could have the state `arrays`.

    Args:
        arrays: arrays to load, by name.
        present: the table's own arrays, by name.
    """
    for name, own in present.items():
        values = np.asarray(arrays[name])
        if values.shape != own.shape:
            raise ValueError(
                f"`{name}` of a score table must have shape {own.shape}. Received: "
                f"{values.shape}. Load what was saved for the same training set."
            )
        met = (values >= 0) & (values < np.inf)
        if name == "seen_at":
            met = (values >= 0) & (values <= np.asarray(arrays["block"]))
            met = np.where(np.asarray(arrays["last"]) == -1, values == -1, met)
        elif name == "block":
            met &= values < _LAST_BLOCK
        elif name == "classes":
            met &= values < len(present["sums"]) - 1
        elif name == "last" or name.startswith(AVERAGE):
            met = (met & (values <= _LARGEST)) | (values == -1)
            met &= (values == -1) == (np.asarray(arrays["last"]) == -1)
        elif name == "sums":
            met = _means_are_norms(values)
        _check(name, values, met, "what a score table holds")


def _means_are_norms(sums: np.ndarray) -> np.ndarray:
    """Returns a mask of the sums of (w v, w) whose mean v can be a norm."""
    summed, weights = sums.T
    fine = (summed >= 0) & (weights >= 0) & np.isfinite(summed) & np.isfinite(weights)
    with np.errstate(over="ignore"):
        fine[fine] = summed[fine] <= weights[fine] * _LARGEST * (1 + 1e-6)
    return np.stack([fine, fine], axis=1)


def _check(name: str, values: np.ndarray, met: np.ndarray, must: str) -> None:
    if not met.all():
        place = tuple(np.argwhere(~met)[0].tolist())
        raise ValueError(
            f"`{name}` must be {must}. Received: {values[place]} at index "
            f"{', '.join(map(str, place))}. {_LOOK}"
        )
