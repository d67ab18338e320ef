"""Plans blocks of draws from the observations, beside the training steps."""

from __future__ import annotations

import concurrent.futures
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from keras_osgd.base.refusals import line_of
from keras_osgd.draws.blocks import LEAST_FLOOR, Blocks, lead_steps
from keras_osgd.draws.observations import (
    NOTHING_OBSERVED,
    ObservationLog,
    Window,
    floats,
)
from keras_osgd.draws.pipeline import READ_AHEAD, Plan, PlanBuffers
from keras_osgd.draws.watch import Watch
from keras_osgd.sampling import RAIS
from keras_osgd.scores import distributions, trust
from keras_osgd.scores.distributions import by_scores
from keras_osgd.scores.state import SamplingState

__all__ = ["Planner", "RAISPlanner"]

_GAIN_STEPS = 50  # a retreat is decided by the mean gain ratio of this many or more


class Planner(Protocol):
    """Plans the draws of a run, ahead of its steps.

    The run calls these methods between two executions, in the training thread.
    A planner writes plans into `PlanBuffers`. From the log it brings the
    `SamplingState` up to date (table, `observed`, `times_drawn`), under its
    `undivided`, and it shows what it took in to the `Watch`.

    Attributes:
        read_ahead: how many batches the pipeline may read ahead of the steps.
        notices: lines to print; the run takes them out.
        failures: causes of failures in planning; the run takes them out too.
    """

    read_ahead: int
    notices: list[str]
    failures: list[str]

    def start(self) -> None:
        """Makes the first plan; training cannot begin before."""

    def prepare(self, step: int) -> None:
        """Makes the plan for the next execution; `step` steps are done."""

    def advance(self, step: int) -> None:
        """Takes note of the execution just made; `step` steps are done."""

    def settle(self) -> None:
        """Awaits a plan in the making, so that timing does not change what is read."""

    def catch_up(self, step: int) -> None:
        """Takes in all observations; only before training stops."""

    def finish(self, step: int) -> None:
        """Takes in the last observations; undoes credit and debit of unused draws."""

    def state_dict(self) -> Callable[[], dict[str, Any]]:
        """Returns a function that collects all that `load_state_dict` needs.

        The sampling state is in it as "state". Call the function in any thread.
        """

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was called, in place of `start`."""

    @property
    def last_plan(self) -> Plan | None:
        """The plan made last; `None` before the first."""

    @property
    def candidate(self) -> np.ndarray | None:
        """`[n]`, p by the scores as last planned, or `None`."""

    @property
    def unbounded(self) -> bool:
        """Whether importance weights have no bound."""

    @property
    def logged(self) -> dict[str, float]:
        """The numbers `SamplingMonitor` logs of the last block."""

    def sampling_share(self) -> float:
        """Returns the share of the training time that planning takes."""


class RAISPlanner:
    """Makes the `Plan` of each block in a thread of its own, begun at a fixed step.

    A plan uses the observations of all steps up to `lead_steps` before its block. It is
    waited for before the pipeline can ask for it. So neither the timing of threads nor
    how far the pipeline reads ahead changes a single draw.

    A failure in the thread is counted and told of in `failures`, and training goes on:
    with p by the last good fit; if there is none, by the norms last observed; and
    uniformly where p or its draws fail.

    Args:
        sampling: configuration.
        state: scores and visits owed; only the planning thread changes them in a `fit`.
        buffers: where plans go.
        log: where observations come from.
        steps_per_execution: of the model.
        watch: looks for faults in the observations.
    """

    read_ahead = READ_AHEAD

    def __init__(
        self,
        sampling: RAIS,
        state: SamplingState,
        buffers: PlanBuffers,
        log: ObservationLog,
        steps_per_execution: int,
        watch: Watch | None = None,
    ) -> None:
        """Plans nothing yet; `start` makes the first plan."""
        self._sampling, self._state = sampling, state
        self._buffers, self._log = buffers, log
        self._watch = watch or Watch(state, sampling.floor, buffers.batch_size)
        self._n = state.table.size
        self._join_steps = steps_per_execution + READ_AHEAD
        self._lead_steps = lead_steps(buffers.block_steps, steps_per_execution)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "keras_osgd_planner")
        self._submit = functools.partial(self._thread.submit, state.undivided)
        self._pending: concurrent.futures.Future | None = None
        self._blocks = Blocks(sampling, state, buffers)
        self.window = Window(sampling.window)
        self._ingested = 0
        self._observed = np.zeros(0, np.int64)  # the examples last taken in
        self._judged_from = 0  # first step whose gain is judged
        self._next_event = 0
        self._begun = time.perf_counter()
        self._planning_seconds = self._waiting_seconds = 0.0
        self.notices, self.failures = self._blocks.notices, self._blocks.failures
        self._newest = dict(NOTHING_OBSERVED)
        # Updated where a plan is waited for: at a step that timing cannot change.
        self.logged = dict(NOTHING_OBSERVED)

    def start(self) -> None:
        """Plans the first block; training cannot begin before."""
        self._submit(self.plan, 0, 0).result()
        self._next_event = self._buffers.block_steps - self._lead_steps

    def advance(self, step: int) -> None:
        """Starts or awaits a plan when that is due; `step` steps are done."""
        if step < self._next_event:
            return
        entered = time.perf_counter()
        block_end = self.last_plan.start + self._buffers.block_steps
        if self._pending is None:
            observed_until = block_end - self._lead_steps
            self._pending = self._submit(self.plan, block_end, observed_until)
            self._next_event = block_end - self._join_steps
        if step >= self._next_event:
            self._pending.result()
            self._pending, self.logged = None, dict(self._newest)
            self._watch.publish()
            end = self.last_plan.start + self._buffers.block_steps
            self._next_event = end - self._lead_steps
        self._waiting_seconds += time.perf_counter() - entered

    def settle(self) -> None:
        """Awaits a plan in the making, so that timing does not change what is read."""
        if self._pending is not None:
            self._pending.exception()

    def catch_up(self, step: int) -> None:
        """Takes in all observations; only before training stops."""
        self.settle()
        self._submit(self._ingest, step).result()

    def state_dict(self) -> Callable[[], dict[str, Any]]:
        """Returns a function that waits for all that `load_state_dict` needs.

        The planning thread collects it after the plan in hand, so that the training
        thread need not wait.
        """
        taken = dict(pending=self._pending is not None, figures=dict(self.logged))
        collected = self._submit(self._collect, taken)
        return lambda: collected.result() or taken  # `result` waits, returns `None`

    def _collect(self, taken: dict[str, Any]) -> None:
        taken["state"] = self._state.state_dict()
        taken["blocks"] = self._blocks.state_dict()
        taken["window"] = self.window.state_dict()
        taken["ingested"] = self._ingested
        taken["judged_from"] = self._judged_from
        taken["newest"] = dict(self._newest)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was called, in place of `start`."""
        self._blocks.load_state_dict(saved["blocks"])
        self.window.load_state_dict(saved["window"])
        self._ingested = int(saved["ingested"])
        self._judged_from = int(saved.get("judged_from", 0))  # early ones have none
        self.logged, self._newest = map(floats, (saved["figures"], saved["newest"]))
        end = self.last_plan.start + self._buffers.block_steps
        self._next_event = end - self._lead_steps
        if saved["pending"]:  # the pending plan is the last one, made already
            self._pending = concurrent.futures.Future()
            self._pending.set_result(None)
            self._next_event = self.last_plan.start - self._join_steps

    def finish(self, step: int) -> None:
        """Takes in the last observations; undoes credit and debit of unused draws."""
        self.settle()
        self._submit(self._finish, step).result()
        self._thread.shutdown()
        self.logged = dict(self._newest)

    def _finish(self, step: int) -> None:
        self._tried(self._ingest, step)
        self._tried(self._blocks.give_back, step)

    @property
    def last_plan(self) -> Plan | None:
        """The plan made last; `None` before the first."""
        return self._blocks.last_plan

    @property
    def candidate(self) -> np.ndarray | None:
        """`[n]`, p by the scores as last planned."""
        return self._blocks.candidate

    @property
    def unbounded(self) -> bool:
        """Whether importance weights have no bound."""
        return self._sampling.floor == 0

    def prepare(self, step: int) -> None:
        """Has nothing to do before an execution: plans are made beside the steps."""

    def plan(self, start: int, observed_until: int) -> None:
        """Makes the plan of the block at `start`; runs in the planning thread."""
        begun = time.perf_counter()
        self._observed = self._observed[:0]
        self._tried(self._ingest, observed_until)
        # Moves on also where that failed: the log keeps no more than two blocks.
        self._ingested = max(self._ingested, observed_until)
        if not self._tried(self._make, start):
            self._blocks.make_uniform(start)
        self._planning_seconds += time.perf_counter() - begun

    def _make(self, start: int) -> bool:
        """Makes a plan and returns True."""
        uniform = np.full(self._n, 1.0 / self._n), False
        found = self._tried(self._candidate) or uniform
        if not trust.is_measured(self._state.trust):
            self._judged_from = start + self._buffers.block_steps
        self._blocks.make(start, *found, self._observed, self._share())
        return True

    def _tried(self, function: Callable, *args: Any) -> Any:
        """Returns the result of `function`, or `None` if it fails; training goes on."""
        try:
            return function(*args)
        except Exception as error:
            self._state.fit_failures += 1
            self.failures.append(line_of(error))
            return None

    def _candidate(self) -> tuple[np.ndarray, bool]:
        """Returns p by the scores, as far as trusted, and whether to use it."""
        state, found = self._state, None
        if state.drawn >= self._sampling.uniform_draws(self._n):
            found = by_scores(state, max(self._sampling.floor, LEAST_FLOOR))
        if found is None:
            return distributions.uniform(self._n).numpy(), False
        candidate, all_zero = found
        if all_zero:
            self._blocks.tell_of_zeros()
        return trust.mixed(candidate, self._share()), state.armed

    def _share(self) -> float:
        """Returns the share of p by the scores in the next plan."""
        last = self.last_plan
        return trust.share(self._state.trust, 1.0 if last is None else last.share)

    def _ingest(self, until: int) -> None:
        """Brings table, window, uncertainty set and mode up to date with the steps."""
        first = self._ingested
        if until <= first:
            return
        norms, gains, losses = self._log.read(first, until)
        drawn = self._blocks.drawn(first, until)
        index, probability, features, importance = drawn
        weights = 1.0 / (self._n * probability)
        finite = np.isfinite(norms)
        seen = norms, gains
        gains = gains[np.isfinite(gains)]  # of steps that were not skipped
        index, weights, norms = index[finite], weights[finite], norms[finite]
        self._ingested, self._observed = until, index
        relative = self._blocks.relative(first, until)[finite]
        self._state.trust = trust.measured(self._state.trust, weights, relative, norms)
        self._state.count(drawn[0])
        counted = np.repeat(np.isfinite(seen[1]), self._buffers.batch_size)
        self._state.observe_losses(drawn[0][counted], losses[counted])
        self._state.table.observe(index, weights, norms, self._state.blocks)
        self._state.observed += len(index)
        self.window.add(features[finite], weights, norms)
        self._fit()
        judged = seen[1][max(self._judged_from - first, 0) :]
        judged = judged[np.isfinite(judged)]
        if len(judged) and until - self._judged_from >= _GAIN_STEPS:
            recent = judged[-max(_GAIN_STEPS, len(judged) // 2) :]
            self._blocks.decide(recent, importance, self._sampling.retreat_below)
        if len(gains):
            self._newest = self._blocks.logged(gains, weights, norms, importance)
        self._watch.look(first, drawn, *seen, self._blocks.candidate)

    def _fit(self) -> None:
        """Fits equation (7) to the window; the last good fit stays if this fails."""
        state = self._state
        means = state.table.mean_features()
        if state.observed and not means.any():
            self._blocks.tell_of_zeros()
        elif state.observed:
            earlier = state.uncertainty_set
            fitted = self._tried(self.window.fit, earlier, means)
            state.uncertainty_set = fitted or earlier

    def sampling_share(self) -> float:
        """Returns the share of the training time spent on planning and waiting."""
        total = time.perf_counter() - self._begun
        return (self._planning_seconds + self._waiting_seconds) / total
