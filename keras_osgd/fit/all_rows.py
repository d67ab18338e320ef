"""What several workers know together, brought to each of them at the ends of epochs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base.replicas import Share
from keras_osgd.base.workers import gathered, told_by_all
from keras_osgd.data.identity import Identity
from keras_osgd.data.training_data import TrainingData
from keras_osgd.fit.run import Run
from keras_osgd.scores.dealt import dealt, interleaved, names_of_rows
from keras_osgd.scores.state import SamplingState

__all__ = ["gather", "own_rows"]


def gather(
    model: keras.Model, run: Run, whole: TrainingData, identity: Identity
) -> None:
    """Gives each worker the state, p and logged numbers of all rows.

    All workers call it at the same step. The state of all rows becomes what the
    worker's own returns as `known`, and is saved in its place.

    Args:
        model: in training.
        run: of the `fit`.
        whole: the data of all workers.
        identity: of `whole`.
    """
    strategy = model.distribute_strategy
    run.settle()
    own = run.state.state_dict()
    found = dealt(_states(strategy, own), Share(), whole.classes())
    state = SamplingState()
    state.load_state_dict({**found, **identity.state_dict()})
    run.state.know(state)
    candidate = run.planner.candidate
    q = gathered(strategy, np.zeros(0) if candidate is None else candidate)
    known = all(map(len, q))
    p = interleaved(q) / len(q) if known else None
    run.of_all_rows(p, _logged(strategy, run.own_logged()))


def _states(
    strategy: tf.distribute.Strategy, own: Mapping[str, np.ndarray]
) -> list[dict[str, np.ndarray]]:
    """Returns each worker's state, without the identity."""
    of_rows = names_of_rows(own)
    others = {
        name: [str(value.dtype), value.tolist()]
        for name, value in ((n, np.asarray(v)) for n, v in own.items())
        if name not in of_rows and name not in Identity.NAMES
    }
    states = [
        {name: np.array(value, dtype) for name, (dtype, value) in told.items()}
        for told in told_by_all(strategy, others)
    ]
    for name in of_rows:
        for state, values in zip(states, gathered(strategy, own[name]), strict=True):
            state[name] = values
    return states


def _logged(
    strategy: tf.distribute.Strategy, own: Mapping[str, float]
) -> dict[str, float]:
    """Returns the means of what the workers log, and the largest weight of all."""
    told = told_by_all(strategy, dict(own))
    found = {name: float(np.mean([of[name] for of in told])) for name in own}
    if "largest_weight" in found:
        found["largest_weight"] = max(of["largest_weight"] for of in told)
    return found


def own_rows(
    share: Share, data: TrainingData, whole: TrainingData, state: Mapping[str, Any]
) -> dict[str, np.ndarray] | None:
    """Returns the state of a worker's rows, from one of all rows; else `None`.

    Args:
        share: of the worker.
        data: the worker's rows.
        whole: all rows.
        state: from `SamplingState.state_dict`, or the store of a file.
    """
    state = {name: np.array(state[name]) for name in state.keys()}  # noqa: SIM118
    if len(state["table.last"]) != whole.n or "bad_index" not in state:  # an early one
        return None
    changed = Identity.of(state).changed(whole.identity())
    if changed is None:
        return None
    found = dealt([state], share, data.classes())
    mask = np.isin(np.arange(whole.n)[share.rows], changed)
    return found | data.identity().with_other(mask).state_dict()
