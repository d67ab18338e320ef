"""A planner with synthetic norms in place of a model: what a refresh costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_osgd.data.identity import Identity
from keras_osgd.draws import blocks, planner
from keras_osgd.draws.observations import ObservationLog, Window
from keras_osgd.draws.pipeline import PlanBuffers
from keras_osgd.draws.planner import RAISPlanner
from keras_osgd.sampling import RAIS
from keras_osgd.scores.state import SamplingState
from keras_osgd.scores.table import ScoreTable

_AT_ONCE = 1_000_000  # observations, or copies of them would count as memory
# Where the time of a refresh goes: every public function that it consists of.
_STAGES = (
    ("observe", ScoreTable, "observe"),
    ("mean features", ScoreTable, "mean_features"),
    ("fit", Window, "fit"),
    ("p", planner, "by_scores"),
    ("draw", blocks, "reshuffled"),
    ("features drawn", ScoreTable, "features_of"),
    ("write", PlanBuffers, "write"),
)


class Synthetic(NamedTuple):
    """A planner under way.

    Attributes:
        plan_block: leaves norms of the last block's draws and plans the next.
        draws: of a block.
        state_bytes: of score table, owed mass and counts of draws.
    """

    plan_block: Callable[[], None]
    draws: int
    state_bytes: int


def synthetic_norms(examples: int, seed: int) -> np.ndarray:
    """Returns `[n]` float32, log-normal."""
    return np.random.default_rng(seed).lognormal(size=examples).astype(np.float32)


def synthetic(
    norms: np.ndarray, batch_size: int, seed: int, block_steps: int | None = None
) -> Synthetic:
    """Prepares a planner that observes `norms`, past its uniform start.

    Args:
        norms: `[n]`, of every example.
        batch_size: m.
        seed: of classes and draws.
        block_steps: of a block; `None` for the length that `fit` chooses.
    """
    examples = len(norms)
    sampling = RAIS(seed=seed, retreat_below=0.0)
    classes = np.random.default_rng(seed).integers(0, 10, examples, np.int32)
    table = ScoreTable(examples, classes, sampling.features_for(examples))
    state = SamplingState()
    state.allocate(table, Identity("synthetic"), seed, "last_layer")
    steps = block_steps or sampling.block_steps(examples, batch_size)
    buffers = PlanBuffers(steps, batch_size)
    log = ObservationLog(buffers)
    made = RAISPlanner(sampling, state, buffers, log, steps_per_execution=1)
    made.start()
    state.drawn += sampling.uniform_draws(examples)  # from here on by importance

    def plan_block() -> None:
        plan = made.last_plan
        step = plan.start + buffers.block_steps
        rows = (plan.start + np.arange(steps)) % buffers.rows
        at_once = max(1, _AT_ONCE // batch_size)
        for first in range(0, steps, at_once):
            part = slice(first, first + at_once)
            seen = norms[plan.index.reshape(steps, batch_size)[part]]
            gains = np.full([len(seen), 1], 2.0, np.float32)
            observed = np.concatenate([seen, seen, gains], axis=1)
            log.write(tf.constant(rows[part]), tf.constant(observed))
        made.plan(step, step)

    state_bytes = int(table.bytes_per_example * examples)
    arrays = state.owed, state.times_drawn, state.last_losses
    state_bytes += sum(array.nbytes for array in arrays)
    return Synthetic(plan_block, steps * batch_size, state_bytes)


def seconds_of_plans(plan_block: Callable[[], None], plans: int) -> list[float]:
    """Returns the seconds of each of several refreshes, by the clock."""
    seconds = []
    for _ in range(plans):
        started = time.perf_counter()
        plan_block()
        seconds.append(time.perf_counter() - started)
    return seconds


def seconds_by_stage(plan_block: Callable[[], None]) -> dict[str, float]:
    """Returns the processor's seconds of one refresh, in all and by stage."""
    seconds = dict.fromkeys([name for name, _, _ in _STAGES], 0.0)
    originals = [getattr(owner, function) for _, owner, function in _STAGES]

    def timed(name: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[name] += time.process_time() - started

        return call

    try:
        for (name, owner, function), original in zip(_STAGES, originals, strict=True):
            setattr(owner, function, timed(name, original))
        started = time.process_time()
        plan_block()
        total = time.process_time() - started
    finally:
        for (_, owner, function), original in zip(_STAGES, originals, strict=True):
            setattr(owner, function, original)
    rest = total - sum(seconds.values())
    return {**seconds, "rest": rest, "in all": total}
