"""Checkpoints that several workers write: one directory, and each one's own part."""

from __future__ import annotations

import pathlib
import secrets
import socket
import time
from typing import Any

import numpy as np
import tensorflow as tf

from keras_osgd.base.files import write_whole
from keras_osgd.base.replicas import Share, share_of
from keras_osgd.base.workers import told_by_all
from keras_osgd.callbacks.checkpoint_files import Saved
from keras_osgd.data.identity import Identity
from keras_osgd.data.training_data import TrainingData
from keras_osgd.fit.strategies import part_of
from keras_osgd.scores.dealt import dealt

__all__ = ["of_worker", "require_shared"]

_OF_PART = ("replicas", "probes")
_PATIENCE = 5.0  # seconds until a file must be seen on a file system that is shared
_OF_RUN = ("state", "clock", "log", "last_layer_gain", "planner")  # of `Run.state_dict`


def require_shared(strategy: tf.distribute.Strategy, directory: pathlib.Path) -> None:
    """Raises on all workers unless each sees what the others write into a directory.

    Args:
        strategy: of the model.
        directory: as this worker calls it; it exists.

    Raises:
        ValueError: if one cannot write, or does not see the files of another.
    """
    share = share_of(strategy)
    if share.workers == 1:
        return
    token = told_by_all(strategy, secrets.token_hex(8))[0]
    marks = [directory / f"worker-{r}.{token}" for r in range(share.workers)]
    fault = ""
    try:
        write_whole(marks[share.rank], socket.gethostname())
    except OSError as error:
        fault = f"cannot write ({error})"
    told_by_all(strategy, "written")
    until = time.monotonic() + _PATIENCE
    unseen = [rank for rank, mark in enumerate(marks) if not mark.exists()]
    while unseen and not fault and time.monotonic() < until:
        time.sleep(0.1)
        unseen = [rank for rank in unseen if not marks[rank].exists()]
    if unseen and not fault:
        fault = f"does not see the files of {', '.join(f'worker {r}' for r in unseen)}"
    about = f"worker {share.rank} on {socket.gethostname()}, in {directory}, {fault}"
    faults = list(filter(None, told_by_all(strategy, about if fault else "")))
    marks[share.rank].unlink(missing_ok=True)
    if faults:
        raise ValueError(
            "The directory of checkpoints must be one that all workers share. Received:"
            f" {'; '.join(faults)}. Take one on a file system that every worker sees, "
            "by the same path."
        )


def of_worker(
    saved: Saved,
    share: Share,
    data: TrainingData | None = None,
    whole: TrainingData | None = None,
    identity: Identity | None = None,
) -> Saved:
    """Returns a checkpoint of several workers as one would have it that wrote it alone.

    Where the number of workers has changed, the rows' scores are dealt out anew. The
    rows that are not what they were then differ in the identity as well.

    Args:
        saved: with the parts that this worker needs.
        share: of this worker.
        data: its rows; `None` without importance sampling, or to leave scores out.
        whole: all rows; `None` likewise.
        identity: of `data`; `None` likewise.
    """
    if saved.workers == share.workers == 1:
        return saved
    if saved.workers == share.workers:
        own = saved.parts.get(share.rank, saved)
        details = {**saved.details, "n": own.details["n"]}
        return saved._replace(arrays=_joined(saved, own), details=details)
    parts = [saved, *(saved.parts[rank] for rank in sorted(saved.parts))]
    arrays = {**saved.arrays, "replicas": {}}
    metrics = _summed_metrics(parts)  # they are added up again, over all workers
    if share.rank:
        metrics = {name: np.zeros_like(value) for name, value in metrics.items()}
    arrays["variables"] = {**arrays["variables"], "metrics": metrics}
    details = dict(saved.details)
    states = [part.arrays.get("state", {}) for part in parts]
    if details["n"] is not None and "features" in states[0]:
        total = sum(part.details["n"] for part in parts)
        details["n"] = len(range(total)[share.rows])
        arrays["state"] = {"lead": states[0]["lead"]}
        if data is not None and details["n"] == data.n:
            now = _identity(states, share, whole, identity)
            arrays["state"] = dealt(states, share, data.classes()) | now.state_dict()
    return saved._replace(arrays=arrays, details=details)


def _identity(
    states: list[dict[str, Any]], share: Share, whole: TrainingData, now: Identity
) -> Identity:
    """Returns the identity of a worker's rows, as the former workers' rows tell it."""
    workers, changed = len(states), np.zeros(whole.n, bool)
    for rank, state in enumerate(states):
        then, part = Identity.of(state), part_of(whole, Share(workers, rank))
        comparable = len(then.hashes) in (0, part.n)
        rows = then.changed(part.identity()) if comparable else None
        changed[rank::workers][slice(None) if rows is None else rows] = True
    return now.with_other(changed[share.rows])


def _joined(saved: Saved, own: Saved) -> dict[str, Any]:
    """Returns the first worker's arrays, with the own ones where there are any."""
    arrays = {k: v for k, v in saved.arrays.items() if k not in _OF_RUN}
    arrays |= {k: v for k, v in own.arrays.items() if k in (*_OF_RUN, *_OF_PART)}
    kinds = saved.arrays["variables"]
    others = own.arrays.get("variables", {})
    arrays["variables"] = {k: {**kinds[k], **others.get(k, {})} for k in kinds}
    return arrays


def _summed_metrics(parts: list[Saved]) -> dict[str, np.ndarray]:
    total: dict[str, np.ndarray] = {}
    for part in parts:
        others = part.arrays.get("replicas", {}).get("metrics", {})
        for order, value in part.arrays["variables"].get("metrics", {}).items():
            value = value + sum(others.get(order, np.zeros_like(value)[np.newaxis]))
            total[order] = total[order] + value if order in total else value
    return total
