"""The scores of several workers, dealt out anew to another number of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_osgd.base.replicas import Share
from keras_osgd.data.identity import Identity

__all__ = ["dealt", "interleaved", "names_of_rows"]

_OF_ROWS = ("visits_owed", "times_drawn", "last_losses")
_OF_TABLE = "table."
_OF_CLASSES = ("table.classes", "table.sums")
_SHARED = ("drawn", "observed", "trust")  # that grow with the number of rows


def interleaved(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Returns `[n]`, all rows' values, from those of each worker's own rows.

    Example:
        >>> interleaved([np.array([0, 2, 4]), np.array([1, 3])])
        array([0, 1, 2, 3, 4])
    """
    whole = np.empty(sum(map(len, parts)), np.asarray(parts[0]).dtype)
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole


def dealt(
    states: Sequence[Mapping[str, Any]], share: Share, classes: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Returns the state of one worker's rows, from those of other numbers of workers.

    Each row takes its scores, losses, visits owed and strikes along. What was learned
    over all rows, as the uncertainty set and the gain ratio, is that of the first
    worker; running means are added up.

    Args:
        states: of the former workers, each from `SamplingState.state_dict`.
        share: of the worker that goes on.
        classes: `[n]` of this worker's rows now, or `None`.

    Returns:
        Arrays for `SamplingState.load_state_dict`; the identity is left out.
    """
    first, workers = states[0], len(states)
    left_out = (*_OF_CLASSES, *Identity.NAMES)
    found = {k: np.array(v) for k, v in first.items() if k not in left_out}
    for name in set(names_of_rows(first)) - set(_OF_CLASSES):
        found[name] = interleaved([state[name] for state in states])[share.rows]
    for name in filter(first.__contains__, _SHARED):  # early files lack some
        total = sum(np.asarray(state[name]) for state in states)
        found[name] = (total / share.workers).astype(np.asarray(first[name]).dtype)
    known = states[share.rank]["seed"] if share.rank < workers else None
    found["seed"] = np.array(first["seed"] + share.rank if known is None else known)
    found |= _strikes(states, share)
    return found | _means(states, share, classes)


def names_of_rows(state: Mapping[str, Any]) -> list[str]:
    """Returns the names of a state's arrays that have a number for each row."""
    return [
        name
        for name, values in sorted(state.items())
        if name in _OF_ROWS
        or name.startswith(_OF_TABLE)
        and np.ndim(values) == 1  # sums have two axes, counters none
    ]


def _strikes(states: Sequence[Mapping[str, Any]], share: Share) -> dict[str, Any]:
    """Returns the strikes of one worker's rows, whose numbers are other ones now."""
    found = {}
    for name in ("bad_index", "bad_suspected"):
        rows = [r + len(states) * np.asarray(s[name]) for r, s in enumerate(states)]
        found[name] = np.concatenate(rows).astype(np.int64)
    strikes = np.concatenate([np.asarray(state["bad_strikes"]) for state in states])
    own = {name: rows % share.workers == share.rank for name, rows in found.items()}
    strikes = strikes[own["bad_index"]].astype(np.int64)
    found = {name: rows[own[name]] // share.workers for name, rows in found.items()}
    order = np.argsort(found["bad_index"])
    found["bad_index"], strikes = found["bad_index"][order], strikes[order]
    return found | {"bad_strikes": strikes}


def _means(
    states: Sequence[Mapping[str, Any]], share: Share, classes: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Returns the running means of classes, which workers may number in other ways."""
    used = classes is not None and "table.classes" in states[0]
    count = int(classes.max()) + 1 if used else 1
    sums = np.zeros((count + 1, 2))
    for rank, state in enumerate(states):
        before = np.asarray(state["table.sums"])
        sums[-1] += before[-1]
        if used:
            whole = np.full(sum(len(s["table.last"]) for s in states), -1)
            whole[rank :: len(states)] = np.asarray(state["table.classes"])
            pairs = np.stack([classes, whole[share.rows]], axis=1)
            for now, then in np.unique(pairs[pairs[:, 1] >= 0], axis=0):
                sums[now] += before[then]
    found = {"table.sums": sums}
    return found | ({"table.classes": np.asarray(classes, np.int32)} if used else {})
