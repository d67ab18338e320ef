"""Plans blocks of draws from what was observed, beside the training steps."""

from __future__ import annotations

import concurrent.futures
import functools
import time
from typing import Any

import numpy as np

from keras_osgd import distributions, draws
from keras_osgd.observations import NOTHING_OBSERVED, ObservationLog, Window, figures
from keras_osgd.pipeline import READ_AHEAD, Plan, PlanBuffers
from keras_osgd.sampling import RAIS
from keras_osgd.state import SamplingState

__all__ = ["Planner", "lead_steps"]

_REARM_MARGIN = 0.02  # above `retreat_below`, so that the two do not alternate
_LEAD_STEPS = 26  # a plan begins so many steps before its block, or a quarter of it
_LEAST_FLOOR = 1e-12  # each example must have a chance of the visits it is owed
_LEAST_CREDIT = 0.5  # bounds weights by 2/floor, however abruptly p moves
_GAIN_STEPS = 50  # the gain that decides on a retreat is averaged over so many


class Planner:
    """Makes each block's `Plan` in a thread of its own, from one defined step on.

    The plan of a block starts from what the steps up to `lead_steps` before it left
    behind, and is waited for before the pipeline can ask for it. So neither the timing
    of threads nor how far the pipeline reads ahead changes a single draw.

    Args:
        sampling: configuration.
        state: what is learned; only the planning thread changes it while `fit` runs.
        buffers: where plans go.
        log: where observations come from.
        steps_per_execution: of the model.
    """

    def __init__(
        self,
        sampling: RAIS,
        state: SamplingState,
        buffers: PlanBuffers,
        log: ObservationLog,
        steps_per_execution: int,
    ) -> None:
        """Plans nothing yet; `start` makes the first plan."""
        self._sampling, self._state = sampling, state
        self._buffers, self._log = buffers, log
        self._n = state.table.size
        self._join_steps = steps_per_execution + READ_AHEAD
        self._lead_steps = lead_steps(buffers.block_steps, steps_per_execution)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "keras_osgd_planner")
        self._submit = functools.partial(self._thread.submit, state.undivided)
        self._pending: concurrent.futures.Future | None = None
        self._plans: list[Plan] = []
        self._window = Window(sampling.window)
        self._ingested = 0
        self._next_event = 0
        self._begun = time.perf_counter()
        self._planning_seconds = self._waiting_seconds = 0.0
        self.candidate: np.ndarray | None = None
        self.notices: list[str] = []
        self._told_of_zeros = False
        self._newest = dict(NOTHING_OBSERVED)
        # Taken over where a plan is waited for, so at a step that no timing moves.
        self.figures = dict(NOTHING_OBSERVED)

    def start(self) -> None:
        """Plans the first block; training cannot begin before."""
        self._submit(self.plan, 0, 0).result()
        self._next_event = self._buffers.block_steps - self._lead_steps

    def advance(self, step: int) -> None:
        """Starts or awaits a plan, if `step` steps done make it time for that."""
        if step < self._next_event:
            return
        entered = time.perf_counter()
        block_end = self._plans[-1].start + self._buffers.block_steps
        if self._pending is None:
            observed_until = block_end - self._lead_steps
            self._pending = self._submit(self.plan, block_end, observed_until)
            self._next_event = block_end - self._join_steps
        if step >= self._next_event:
            self._pending.result()
            self._pending, self.figures = None, dict(self._newest)
            end = self._plans[-1].start + self._buffers.block_steps
            self._next_event = end - self._lead_steps
        self._waiting_seconds += time.perf_counter() - entered

    def finish(self, step: int) -> None:
        """Takes in the last observations; undoes the credit and debit of no draws."""
        if self._pending is not None:
            self._pending.exception()
        self._submit(self._finish, step).result()
        self._thread.shutdown()
        self.figures = dict(self._newest)

    def _finish(self, step: int) -> None:
        self._ingest(step)
        m = self._buffers.batch_size
        for plan in self._plans:
            used = int(np.clip(step - plan.start, 0, self._buffers.block_steps)) * m
            unused = plan.index[used:]
            self._state.drawn -= len(unused)
            if self._sampling.draws == "reshuffled":
                probability = np.ones(self._n)
                probability[unused] = plan.probability[used:] / plan.credit
                self._state.owed = draws.refund(self._state.owed, probability, unused)
                self._state.owed -= plan.mass * len(unused) / len(plan.index)

    @property
    def last_plan(self) -> Plan:
        """The plan made last."""
        return self._plans[-1]

    def plan(self, start: int, observed_until: int) -> None:
        """Makes the plan of the block at `start`; runs in the planning thread."""
        begun = time.perf_counter()
        self._ingest(observed_until)
        uniform = distributions.uniform(self._n).numpy()
        candidate, importance = self._candidate(uniform)
        probability = candidate if importance else uniform
        size = self._buffers.block_steps * self._buffers.batch_size
        index, drawn_credit = self._draw(probability, size)
        credit = max(drawn_credit, _LEAST_CREDIT)
        plan = Plan(
            start,
            index,
            credit * probability[index],
            credit * candidate[index],
            self._state.table.features_of(index),
            importance,
            float(1.0 / (self._n * credit * probability.min())),
            credit,
            drawn_credit * size / self._n,
        )
        self._buffers.write(plan)
        self.candidate = candidate
        # The plan before last is over: `observed_until` lies within the last one.
        self._plans = [*self._plans[-1:], plan]
        self._state.blocks += 1
        self._state.drawn += size
        self._planning_seconds += time.perf_counter() - begun

    def _draw(self, probability: np.ndarray, size: int) -> tuple[np.ndarray, float]:
        """Returns the block's examples, and its credit over size/n."""
        state = self._state
        rng = np.random.default_rng([state.seed, state.blocks])
        if self._sampling.draws == "independent":
            return draws.independent(probability, size, rng), 1.0
        drawn = draws.reshuffled(state.owed, probability, size, rng)
        state.owed = drawn.owed
        return drawn.index, drawn.credit

    def _candidate(self, uniform: np.ndarray) -> tuple[np.ndarray, bool]:
        """Returns p by the scores (equation 6 and the floor) and whether to use it."""
        state = self._state
        started = state.drawn >= self._sampling.uniform_draws(self._n)
        fitted = state.uncertainty_set
        if not started or fitted is None:
            return uniform, False
        mean = state.table.combine(fitted.mean)
        variance = fitted.objective * state.table.combine(fitted.spread)
        robust = distributions.robust(mean, variance)
        if not (fitted.objective > 0 or fitted.mean.any()) and not self._told_of_zeros:
            self._told_of_zeros = True
            self.notices.append("All gradient norms are 0: draws are uniform.")
        floor = max(self._sampling.floor, _LEAST_FLOOR)
        candidate = distributions.with_floor(robust, floor).numpy()
        return candidate, state.armed

    def _ingest(self, until: int) -> None:
        """Brings table, window, uncertainty set and mode up to date with the steps."""
        first = self._ingested
        if until <= first:
            return
        norms, gains = self._log.read(first, until)
        index, probability, features, importance = self._drawn(first, until)
        weights = 1.0 / (self._n * probability)
        finite = np.isfinite(norms)
        index, weights, norms = index[finite], weights[finite], norms[finite]
        self._ingested = until
        self._state.observed += len(index)
        self._state.table.observe(index, weights, norms, self._state.blocks)
        self._window.add(features[finite], weights, norms)
        self._fit()
        self._decide(gains[-max(_GAIN_STEPS, len(gains) // 2) :], importance)
        self._newest = figures(gains, weights, norms, importance) | {
            "largest_weight": self._plans[-1].largest_weight,
            "share_unseen": self._state.table.share_unseen,
        }

    def _drawn(self, first: int, until: int) -> tuple[Any, ...]:
        """Returns index, p and features of the draws of some steps, and how drawn."""
        m, parts, importance = self._buffers.batch_size, [], False
        for plan in self._plans:
            steps = np.array([first, until]) - plan.start
            rows = slice(*(np.clip(steps, 0, self._buffers.block_steps) * m))
            columns = (plan.index, plan.probability, plan.features)
            parts.append([column[rows] for column in columns])
            importance = plan.importance
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return (*columns, importance)

    def _fit(self) -> None:
        """Fits equation (7) to the window; the last good fit stays if this fails."""
        state = self._state
        try:
            state.uncertainty_set = self._window.fit(
                state.uncertainty_set, state.table.mean_features()
            )
        except (ValueError, ArithmeticError, np.linalg.LinAlgError):
            state.fit_failures += 1

    def _decide(self, gains: np.ndarray, importance: bool) -> None:
        """Retreats to uniform draws where they no longer pay, and comes back."""
        state, gain = self._state, float(gains.mean())
        threshold = self._sampling.retreat_below
        if state.armed and importance and gain < threshold:
            state.armed = False
            cause = (
                "the scores are worse than uniform sampling"
                if gain < 1
                else "importance sampling no longer pays"
            )
            self.notices.append(
                f"Gain ratio {gain:.3f} is below {threshold}: {cause}. Training goes "
                "on with uniform, reshuffled draws until the gain rises again."
            )
        elif not state.armed and gain > threshold + _REARM_MARGIN:
            state.armed = True

    def sampling_share(self) -> float:
        """Returns the seconds spent on planning and waiting over those of training."""
        total = time.perf_counter() - self._begun
        return (self._planning_seconds + self._waiting_seconds) / total


def lead_steps(block_steps: int, steps_per_execution: int) -> int:
    """Returns how many steps before a block its plan starts.

    The same for every `steps_per_execution` up to 11, so that numbers are too.
    """
    needed = 2 * steps_per_execution + READ_AHEAD + 1
    return max(_LEAD_STEPS, needed, block_steps // 4)
