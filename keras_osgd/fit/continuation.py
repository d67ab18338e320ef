"""State that a `fit` takes over from earlier ones: scores and effective iterations."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_osgd.base import keras_compat
from keras_osgd.base.replicas import share_of
from keras_osgd.data.identity import Identity
from keras_osgd.data.training_data import TrainingData
from keras_osgd.gain.learning_rate import inner_optimizer
from keras_osgd.sampling import RAIS, Oracle, Sampling
from keras_osgd.scores.state import SamplingState
from keras_osgd.scores.table import ScoreTable

__all__ = ["prepare_state", "restart_clock", "seed_of"]


def seed_of(sampling: Sampling) -> int:
    """Returns a method's seed, or else one that follows from Keras' own."""
    if sampling.seed is None:
        return random.randrange(2**31)  # which keras.utils.set_random_seed seeds
    return int(sampling.seed)


def restart_clock(model: keras.Model) -> None:
    """Forgets the lead of another optimizer, if this one has not made a step.

    Called by `compile`, before steps without sampling can hide that the optimizer is
    new, and by `fit`, as weights trained by another one may have been loaded.
    """
    lead = model.sampling_state.lead
    if lead is None or model.optimizer is None:
        return
    if int(keras_compat.steps_taken(inner_optimizer(model.optimizer))) == 0:
        lead.assign(0.0)


def prepare_state(
    model: keras.Model,
    sampling: RAIS | Oracle,
    data: TrainingData,
    own_rows: Callable[[Mapping[str, Any]], Mapping | None] | None = None,
) -> str | None:
    """Makes the state fit data and optimizer.

    Scores go on for the same rows, norms and features, and effective iterations for the
    same optimizer; else they start afresh. Where no more than half of the rows changed,
    the scores of the other rows go on.

    Args:
        model: whose state it is.
        sampling: configuration.
        data: the rows of this worker.
        own_rows: with several workers, see `SamplingState`; `None` with one.

    Returns:
        A line on earlier scores that were dropped, or on weights that were loaded
        without scores; else `None` or "".
    """
    state, rank = model.sampling_state, share_of(model.distribute_strategy).rank
    own = own_rows and state.table and own_rows(state.state_dict())
    if own:  # those of all rows were loaded
        state.load_state_dict(own)
    identity, features = data.identity(), sampling.features_for(data.n)
    state.start_clock()
    restart_clock(model)
    known, earlier = state.table, state.norm
    if known is None:  # all is afresh, and the rows are hashed beside training
        _allocate(state, sampling, data, identity, rank)
        loaded, state.loaded_without = state.loaded_without, False
        return "The weights were loaded without scores: they start afresh." * loaded
    changed = state.identity.changed(identity)
    other_norm = earlier != sampling.norm
    if changed is not None and not other_norm and known.features == features:
        classes = data.classes() if len(changed) else None
        state.undivided(state.forget, changed, classes, identity)
        return _line_on_rows(len(changed), data.n)
    _allocate(state, sampling, data, identity, rank)
    if changed is None:
        return (
            f"The training data is not what the scores were made for ({known.size} "
            f"examples then, {data.n} now, or other rows): they start afresh."
        )
    if other_norm:
        return (
            f"The scores were kept in units of norm={earlier!r} and are now asked for "
            f"in those of norm={sampling.norm!r}: they start afresh."
        )
    return (
        f"The scores were kept with features {known.features} and are now asked for "
        f"with {features}: they start afresh."
    )


def _line_on_rows(changed: int, n: int) -> str | None:
    if not changed:
        return None
    return (
        f"{changed} of {n} rows of the training data changed since their scores were "
        "made: their scores start afresh, those of the other rows go on."
    )


def _allocate(
    state: SamplingState,
    sampling: RAIS | Oracle,
    data: TrainingData,
    identity: Identity,
    rank: int,
) -> None:
    table = ScoreTable(data.n, data.classes(), sampling.features_for(data.n))
    # With one seed for all, workers would draw the same places of their rows.
    seed = seed_of(sampling) + rank
    state.undivided(state.allocate, table, identity, seed, sampling.norm)
