"""Exact O-SGD: plans by the exact gradient norms of all examples (equation 3)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_osgd.draws.blocks import LEAST_FLOOR, Blocks
from keras_osgd.draws.observations import NOTHING_OBSERVED, ObservationLog, floats
from keras_osgd.draws.pipeline import Plan, PlanBuffers
from keras_osgd.draws.watch import Watch
from keras_osgd.sampling import Oracle
from keras_osgd.scores import distributions
from keras_osgd.scores.state import SamplingState

__all__ = ["OraclePlanner", "refresh_steps"]

_RETREAT_BELOW = 1.03  # as in RAIS; fresh norms have nothing to retreat from
_RECENT_STEPS = 50  # gain ratio and logged numbers are averaged over this many
_RECENT = ("gains", "weights", "norms")
_NOTHING_RECENT = [np.zeros(0)] * len(_RECENT)  # never changed in place
_ONLY_LAST = np.array([0.0, 1.0])  # coefficients of ("constant", "last")


class OraclePlanner:
    """Scores all examples between two executions and plans the block that follows.

    All steps of a block draw by the p of the model's weights at its start. The block
    ends early where the next execution would run past its end, as after an epoch whose
    length is no multiple of `steps_per_execution`.

    Draws are independent by default. Exact p moves abruptly from block to block.
    Reshuffled draws withhold an example until its last weight is worked off, so they
    are then far from p. On 5,000 images, scored every 5 steps, the training loss after
    an epoch was 0.84 with reshuffled draws and 0.55 with independent ones.

    Args:
        sampling: configuration.
        state: the sampling state.
        buffers: where plans go.
        log: where observations come from.
        steps_per_execution: of the model.
        score: returns `[n]`, the exact norms at the current weights.
        watch: looks for faults in the observations.
    """

    read_ahead = 0  # a batch is planned from the weights right before it

    def __init__(
        self,
        sampling: Oracle,
        state: SamplingState,
        buffers: PlanBuffers,
        log: ObservationLog,
        steps_per_execution: int,
        score: Callable[[], np.ndarray],
        watch: Watch,
    ) -> None:
        """Plans nothing yet."""
        self._state, self._buffers, self._log = state, buffers, log
        self._watch = watch
        self._steps_per_execution, self._score = steps_per_execution, score
        self._n, self._fresh = state.table.size, buffers.block_steps == 1
        floor = sampling.floor_for(self._n, buffers.batch_size)
        self._floor, self.unbounded = floor, floor == 0 and not self._fresh
        self._blocks = Blocks(sampling, state, buffers)
        self._end = self._observed_until = 0
        self._recent = _NOTHING_RECENT
        self._begun = time.perf_counter()
        self._scoring_seconds = self._planning_seconds = 0.0
        self._newest = dict(NOTHING_OBSERVED)
        self.notices, self.failures = self._blocks.notices, self._blocks.failures

    def start(self) -> None:
        """Lets Keras look at a batch; `prepare` plans those that are trained on."""
        self._buffers.planned_until.assign(self._buffers.block_steps)

    def prepare(self, step: int) -> None:
        """Scores and plans if the next execution needs it; `step` steps are done."""
        if step + self._steps_per_execution <= self._end:
            return
        begun = time.perf_counter()
        norms = self._score()
        scored = time.perf_counter()
        self._state.undivided(self._plan, step, norms)
        self._scoring_seconds += scored - begun
        self._planning_seconds += time.perf_counter() - scored

    def advance(self, step: int) -> None:
        """Takes in the observations of a block once it is over."""
        if step >= self._end:
            self._observe(step)

    def settle(self) -> None:
        """Has nothing to wait for."""

    def catch_up(self, step: int) -> None:
        """Takes in all observations; only before training stops."""
        self._state.undivided(self._observe, step)

    def state_dict(self) -> Callable[[], dict[str, Any]]:
        """Returns a function that returns all that `load_state_dict` needs."""
        taken = {
            "state": self._state.state_dict(),
            "blocks": self._blocks.state_dict(),
            "recent": dict(zip(_RECENT, self._recent, strict=True)),
            "steps": np.array([self._end, self._observed_until]),
            "newest": dict(self._newest),
        }
        return lambda: taken

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was called, in place of `start`."""
        self.start()
        self._blocks.load_state_dict(saved["blocks"])
        self._recent = [saved["recent"][name] for name in _RECENT]
        self._end, self._observed_until = saved["steps"].tolist()
        self._newest = floats(saved["newest"])

    def finish(self, step: int) -> None:
        """Takes in the last observations; undoes credit and debit of unused draws."""
        self._state.undivided(self._close, step)
        self._score = None  # which keeps the data

    def _close(self, step: int) -> None:
        self._observe(step)
        self._blocks.give_back(step)

    def _plan(self, step: int, norms: np.ndarray) -> None:
        """Ends the block before `step` and plans the one that begins there."""
        self._close(step)
        self._blocks.plans.clear()
        self._store(norms)
        scores = self._state.table.combine(_ONLY_LAST)
        if not scores.any():
            self._blocks.tell_of_zeros()
        p = distributions.oracle(tf.convert_to_tensor(scores))
        candidate = distributions.with_floor(p, max(self._floor, LEAST_FLOOR)).numpy()
        self._blocks.make(step, candidate, self._state.armed)
        self._end = step + self._buffers.block_steps

    def _store(self, norms: np.ndarray) -> None:
        """Puts norms into the table; where one is not finite, the old one stays.

        Without an old one, the table's feature "last" is the mean of all norms.
        """
        finite = np.abs(norms) <= np.finfo(np.float32).max  # false for NaN too
        index = np.flatnonzero(finite)
        if len(index) < self._n:
            self._blocks.tell_once(
                f"The gradient norms of {self._n - len(index)} of {self._n} examples "
                f"are not finite, first that of example {np.argmin(finite)}: they keep "
                "their last score, or the mean. Look for NaN in the data or the loss.",
                "scores",  # one word, as `Blocks.state_dict` joins by spaces
            )
        table, ones = self._state.table, np.ones(len(index))
        table.observe(index, ones, norms[index], self._state.blocks)
        self._state.observed += len(index)

    def _observe(self, step: int) -> None:
        """Brings logged numbers and mode up to date with the steps done."""
        first = self._observed_until
        if step <= first:
            return
        norms, gains, _ = self._log.read(first, step)
        drawn = self._blocks.drawn(first, step)
        _, probability, _, importance = drawn
        finite, counted = np.isfinite(norms), np.isfinite(gains)
        weights = 1.0 / (self._n * probability)
        self._observed_until = step
        self._state.count(drawn[0])
        draws = _RECENT_STEPS * self._buffers.batch_size
        lengths = (_RECENT_STEPS, draws, draws)
        new = (gains[counted], weights[finite], norms[finite])
        self._recent = [
            np.concatenate([old, added])[-length:]
            for old, added, length in zip(self._recent, new, lengths, strict=True)
        ]
        if len(self._recent[0]):
            self._newest = self._blocks.logged(*self._recent, importance)
        if not self._fresh and len(self._recent[0]) == _RECENT_STEPS:
            self._decide(importance)
        self._watch.look(first, drawn, norms, gains, self._blocks.candidate)
        self._watch.publish()

    def _decide(self, importance: bool) -> None:
        armed = self._state.armed
        self._blocks.decide(self._recent[0], importance, _RETREAT_BELOW)
        if self._state.armed != armed:
            self._recent = _NOTHING_RECENT

    @property
    def last_plan(self) -> Plan | None:
        """The plan made last; `None` before the first."""
        return self._blocks.last_plan

    @property
    def candidate(self) -> np.ndarray | None:
        """`[n]`, p by the scores as last planned, or `None`."""
        return self._blocks.candidate

    @property
    def logged(self) -> dict[str, float]:
        """The numbers `SamplingMonitor` logs of the last block."""
        return self._newest | {"scoring_seconds": self._scoring_seconds}

    def sampling_share(self) -> float:
        """Returns the share of the training time spent on scoring and planning."""
        total = time.perf_counter() - self._begun
        return (self._scoring_seconds + self._planning_seconds) / total


def refresh_steps(
    sampling: Oracle, n: int, batch_size: int, steps_per_execution: int
) -> int:
    """Returns the steps of a block: from one scoring to the next.

    Raises:
        ValueError: if they are no multiple of `steps_per_execution`, as nothing can be
            scored within an execution. A default above 1 is rounded up instead.
    """
    steps = sampling.block_steps(n, batch_size)
    multiple = -(-steps // steps_per_execution) * steps_per_execution
    if sampling.refresh is None and steps > 1 or multiple == steps:
        return multiple
    raise ValueError(
        "`refresh`, the steps between two scorings, must be a multiple of "
        f"`steps_per_execution`. Received: refresh={steps} with "
        f"steps_per_execution={steps_per_execution}. Set `Oracle(refresh={multiple})`, "
        "or `compile(steps_per_execution=1)`."
    )
