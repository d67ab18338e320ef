"""Plans of blocks: made from p, kept while they are trained on, undone if unused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from keras_osgd.base.chunks import chunks
from keras_osgd.draws.observations import logged_of
from keras_osgd.draws.pipeline import READ_AHEAD, Plan, PlanBuffers
from keras_osgd.draws.reshuffled import (
    Reshuffled,
    credited,
    in_phase,
    independent,
    refund,
    rescaled,
    reshuffled,
)
from keras_osgd.sampling import RAIS, Sampling
from keras_osgd.scores.state import SamplingState

__all__ = [
    "Blocks",
    "LEAST_FLOOR",
    "block_steps",
    "estimate_of_loss",
    "lead_steps",
    "without",
]

_LEAD_STEPS = 26  # planning begins this many steps ahead, or a quarter of a block
LEAST_FLOOR = 1e-12  # each example must have a chance of a visit
_LEAST_SCALE = 0.5  # least factor of p: bounds weights by 2/floor even if p jumps
_LARGEST_FACTOR = 4.0  # of a weight, in the mean loss that is shown
_REARM_MARGIN = 0.02  # above the threshold, so that the modes do not alternate


def block_steps(
    sampling: RAIS, n: int, batch_size: int, steps_per_execution: int
) -> int:
    """Returns the number of steps of a block, long enough to plan the next one."""
    shortest = 2 * lead_steps(0, steps_per_execution)
    return max(sampling.block_steps(n, batch_size), shortest)


def lead_steps(block_steps: int, steps_per_execution: int) -> int:
    """Returns how many steps before a block its planning starts.

    The same for every `steps_per_execution` up to 11, and so are the draws.
    """
    needed = 2 * steps_per_execution + READ_AHEAD + 1
    return max(_LEAD_STEPS, needed, block_steps // 4)


class Blocks:
    """The blocks of one `fit`: draws them by the p of a planner and keeps their plans.

    Args:
        sampling: configuration.
        state: the sampling state; every block updates visits owed and counters.
        buffers: where plans go.

    Attributes:
        plans: the last two, oldest first.
        candidate: `[n]`, p by the scores as last planned, or `None`.
        notices: lines to print.
        failures: causes of failures in planning, to warn of.
    """

    def __init__(
        self, sampling: Sampling, state: SamplingState, buffers: PlanBuffers
    ) -> None:
        """Starts without a plan."""
        self._sampling, self._state, self._buffers = sampling, state, buffers
        self._n = state.table.size
        self.plans: list[Plan] = []
        self.candidate: np.ndarray | None = None
        self.notices: list[str] = []
        self.failures: list[str] = []
        self._told: set[str] = set()

    def make(
        self,
        start: int,
        candidate: np.ndarray,
        importance: bool,
        observed: np.ndarray | None = None,
        share: float = 1.0,
    ) -> None:
        """Draws a block and hands it to the pipeline.

        Args:
            start: its first step.
            candidate: `[n]` float64, > 0, sums to 1. p by the scores, before examples
                are set aside.
            importance: whether to draw by `candidate`, or uniformly.
            observed: `[k]` integers. The examples whose norms have come in since the
                plan before; `None` where p does not follow from their visits.
            share: of p by the scores in the candidate.
        """
        state = self._state
        aside = state.bad_examples.set_aside
        n = self._n - len(aside)
        candidate = without(candidate, aside)
        probability = candidate
        if not importance:
            probability = without(np.full(self._n, 1.0 / self._n), aside)
        size = self._buffers.block_steps * self._buffers.batch_size
        owed = self._rescaled(probability, observed)
        index, drawn_credit, owed, visits = self._draw(owed, probability, size, aside)
        credit = max(drawn_credit, _LEAST_SCALE)
        scale = credit * n / self._n  # weights are 1/(n p) with the n of all data
        # The mean of uniform draws is shown as it is, as in Keras.
        shown = np.full(size, np.float32(credit)), np.zeros(size, np.float32)
        if candidate.max() > _least(candidate, aside):
            relative = n * probability[index]
            shown = estimate_of_loss(
                state.last_losses, aside, index, relative, credit, visits
            )
        plan = Plan(
            start,
            index,
            scale * probability[index],
            scale * candidate[index],
            state.table.features_of(index),
            importance,
            float(1.0 / (n * credit * _least(probability, aside))),
            credit,
            drawn_credit * size / n,
            state.drawn,
            *shown,
            probability if importance or len(aside) else np.zeros(0),
            share,
        )
        self._hand_over(plan, candidate, owed)

    def make_uniform(self, start: int) -> None:
        """Draws a block where `make` failed; needs little more than n and the seed.

        The draws are uniform and independent; they are debited all the same.
        """
        n, state = self._n, self._state
        size = self._buffers.block_steps * self._buffers.batch_size
        rng = np.random.default_rng([state.seed, state.blocks])
        rest = np.delete(np.arange(n), state.bad_examples.set_aside)
        index = rest[rng.integers(len(rest), size=size)]
        probability = np.full(size, 1.0 / n)
        try:
            features = state.table.features_of(index)
        except Exception:  # the table itself may have failed
            features = np.zeros([size, len(state.table.features)])
        owed = state.owed
        if self._sampling.draws == "reshuffled":
            owed = np.where(np.isfinite(owed), owed, 0.0) + size / n
            owed -= np.bincount(index, minlength=n)
        drawn = index, probability, probability, features
        plan = Plan(start, *drawn, False, 1.0, 1.0, size / n, state.drawn)
        self._hand_over(plan, np.full(n, 1.0 / n), owed)

    def _hand_over(self, plan: Plan, candidate: np.ndarray, owed: np.ndarray) -> None:
        """Takes a plan into use; a failure before this call has changed nothing."""
        self._buffers.write(plan)
        self.candidate = candidate
        # The plan before last is over: every block is planned within the one before.
        self.plans = [*self.plans[-1:], plan]
        self._state.owed = owed
        self._state.blocks += 1
        self._state.drawn += len(plan.index)

    def _rescaled(
        self, probability: np.ndarray, observed: np.ndarray | None
    ) -> np.ndarray:
        """Returns `[n]`, a copy of the visits owed, with p changed by those observed.

        The first p by scores is changed by all visits so far.
        """
        owed, last = self._state.owed, self.last_plan
        if self._sampling.draws == "independent":
            return owed
        after = owed.copy()
        if observed is None or last is None:
            return after
        over_all = _over_all(last, self._n)
        for part in chunks(len(observed) if last.importance else self._n):
            # An example may be observed twice: what is computed for it is the same.
            rows: Any = observed[part] if last.importance else part
            now, before = probability[rows], over_all[rows]
            factor = np.divide(now, before, out=np.ones_like(now), where=before > 0)
            after[rows] = rescaled(owed[rows], factor)
        return after

    def _draw(
        self, owed: np.ndarray, probability: np.ndarray, size: int, aside: np.ndarray
    ) -> tuple[np.ndarray, float, np.ndarray, np.ndarray]:
        """Returns examples, credit over size/n, visits owed, and those expected."""
        state = self._state
        rng = np.random.default_rng([state.seed, state.blocks])
        if self._sampling.draws == "independent":
            index = independent(probability, size, rng)
            return index, 1.0, owed, size * probability[index]
        if not len(aside):
            drawn = _permuted(owed, probability, size, rng)
            return drawn.index, drawn.credit, drawn.owed, drawn.visits
        rest, left = np.delete(np.arange(self._n), aside), np.zeros(self._n)
        drawn = _permuted(owed[rest], probability[rest], size, rng)
        left[rest] = drawn.owed
        return rest[drawn.index], drawn.credit, left, drawn.visits

    def drawn(self, first: int, until: int) -> tuple[Any, ...]:
        """Returns some steps' draws: index, p, features, and whether by the scores."""
        parts, importance = [], False
        for plan, rows in self._rows(first, until):
            columns = (plan.index, plan.probability, plan.features)
            parts.append([column[rows] for column in columns])
            importance = plan.importance
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return (*columns, importance)

    def relative(self, first: int, until: int) -> np.ndarray:
        """Returns n p of some steps' draws, p by the scores alone as planned."""
        parts = []
        for plan, rows in self._rows(first, until):
            mixture = self._n * plan.candidate[rows] / plan.credit
            parts.append(1.0 + (mixture - 1.0) / plan.share)
        return np.concatenate(parts)

    def _rows(self, first: int, until: int) -> Iterator[tuple[Plan, slice]]:
        """Yields each plan, and where the draws of some steps are in it."""
        for plan in self.plans:
            steps = np.array([first, until]) - plan.start
            steps = np.clip(steps, 0, self._buffers.block_steps)
            yield plan, slice(*(steps * self._buffers.batch_size))

    @property
    def last_plan(self) -> Plan | None:
        """The plan made last; `None` before the first."""
        return self.plans[-1] if self.plans else None

    def logged(
        self,
        gains: np.ndarray,
        weights: np.ndarray,
        norms: np.ndarray,
        importance: bool,
    ) -> dict[str, float]:
        """Returns the numbers `SamplingMonitor` logs of some steps; see `logged_of`."""
        return logged_of(gains, weights, norms, importance) | {
            "largest_weight": self.last_plan.largest_weight,
            "share_unseen": self._state.table.share_unseen,
        }

    def give_back(self, step: int) -> None:
        """Undoes the credit and debit of all draws from `step` on."""
        m = self._buffers.batch_size
        for plan in self.plans:
            used = int(np.clip(step - plan.start, 0, self._buffers.block_steps)) * m
            unused = plan.index[used:]
            self._state.drawn -= len(unused)
            if self._sampling.draws == "reshuffled":
                over_all = _over_all(plan, self._n)
                due = credited(over_all, plan.mass, np.count_nonzero(over_all))
                size = len(plan.index)
                self._state.owed = refund(self._state.owed, due, unused, size)

    def state_dict(self) -> dict[str, Any]:
        """Returns all that `load_state_dict` needs; no array is changed in place."""
        plans = {str(order): plan._asdict() for order, plan in enumerate(self.plans)}
        told = " ".join(sorted(self._told))
        candidate = np.zeros(0) if self.candidate is None else self.candidate
        return {"plans": plans, "told": told, "candidate": candidate}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was called; hands the plans to the pipeline."""
        self.plans = []
        for order in sorted(saved.get("plans", ())):
            fields = saved["plans"][order]
            fields = {name: v if v.ndim else v.item() for name, v in fields.items()}
            self.plans.append(Plan(**fields))
            self._buffers.write(self.plans[-1])
        self._told = set(saved["told"].item().split())
        candidate = saved["candidate"]
        self.candidate = candidate if len(candidate) else None

    def decide(self, gains: np.ndarray, importance: bool, threshold: float) -> None:
        """Retreats to uniform draws while importance sampling does not pay.

        Args:
            gains: gain ratio of each of the last steps.
            importance: whether their draws followed the scores.
            threshold: mean gain ratio below which to retreat.
        """
        state, gain = self._state, float(gains.mean())
        if state.armed and importance and gain < threshold:
            state.armed = False
            about, cause = "gain", "drawing by the scores does not pay"
            if gain < 2 - threshold:
                about, cause = "harm", "the scores are worse than uniform sampling"
            self.tell_once(
                f"Gain ratio {gain:.3f} is below {threshold}: {cause}. Draws are "
                f"uniform and {self._sampling.draws} until the scores promise more. "
                "Nothing need be done.",
                about,
            )
        elif not state.armed and gain > threshold + _REARM_MARGIN:
            state.armed = True
            self.tell_once(f"Gain ratio {gain:.3f}: draws follow the scores.", "back")

    def tell_once(self, line: str, about: str) -> None:
        """Adds a notice unless there was one about the same in this `fit`."""
        if about not in self._told:
            self._told.add(about)
            self.notices.append(line)

    def tell_of_zeros(self) -> None:
        """Says once that all gradient norms are 0."""
        self.tell_once("All gradient norms are 0: draws are uniform.", "zeros")


def _over_all(plan: Plan, n: int) -> np.ndarray:
    """Returns `[n]`, p of all examples by a plan."""
    return plan.over_all if len(plan.over_all) else np.full(n, 1.0 / n)


def _permuted(
    owed: np.ndarray, probability: np.ndarray, size: int, rng: np.random.Generator
) -> Reshuffled:
    """Returns reshuffled draws, which are permutations while p is uniform.

    Where p becomes uniform, as after a retreat, the visits that examples were owed
    under the p before are forgotten: they would keep some out of the next epochs. Each
    example then expects the same weight in every block, whatever was drawn before.

    Args:
        owed: `[n]`, overwritten.
        probability: `[n]`, p of the block.
        size: number of draws.
        rng: source of all randomness.
    """
    largest = probability.max()
    is_uniform = probability[0] == largest and probability.min() == largest
    if is_uniform and not in_phase(owed):
        owed = np.zeros_like(owed)
    return reshuffled(owed, probability, size, rng, in_place=True)


def estimate_of_loss(
    losses: np.ndarray,
    aside: np.ndarray,
    index: np.ndarray,
    relative: np.ndarray,
    credit: float,
    visits: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what makes of each draw of a block an estimate of the mean loss.

    Let h_i be the last loss of example i as the block is planned, or the mean of those
    known; f its loss in the step that draws it, w the draw's weight, and e_i how often
    the block was to visit it on average, given all draws before. The mean over all k
    draws of

        mean(h) + k / (n e_i) (f - h_i) = baseline + factor w f

    is then an unbiased estimate of the mean of f over all examples that the block can
    visit, and of h over the others: those have just had their visit. It varies by f - h
    only, and not by f. With independent draws e_i = k p_i > 0: all can be drawn, and
    the factor is 1. A factor above 4, of examples that could hardly be drawn, is cut.

    Args:
        losses: `[n]`, the last losses; NaN where unknown.
        aside: the examples left out, which do not count.
        index: `[k]`, the draws.
        relative: `[k]`, > 0. n p of each draw, without those left out.
        credit: by which the weights are divided.
        visits: `[k]`, > 0. Expected visits e of the examples drawn.

    Returns:
        Factor and baseline, `[k]` float32 each.

    Example:
        >>> half = np.array([0.5, 0.5])
        >>> draws, nothing = np.array([1, 0]), np.array([], int)
        >>> losses = np.float32([3.0, 1.0])
        >>> estimate_of_loss(losses, nothing, draws, 2 * half, 1.0, 2 * half)
        (array([1., 1.], dtype=float32), array([ 1., -1.], dtype=float32))
    """
    mean, n = _mean_of_known(losses, aside), len(losses) - len(aside)
    with np.errstate(over="ignore"):
        factor = relative * (len(index) / n / visits)
    factor = np.minimum(factor, _LARGEST_FACTOR)  # and times w = 1 / (n p credit):
    known = losses[index]
    baseline = mean - factor / relative * np.where(np.isnan(known), mean, known)
    return (credit * factor).astype(np.float32), baseline.astype(np.float32)


def _mean_of_known(losses: np.ndarray, aside: np.ndarray) -> float:
    """Returns the mean of the losses that are no NaN, without those left out."""
    left_out = losses[aside]
    left_out = left_out[~np.isnan(left_out)]
    total, known = -left_out.sum(dtype=np.float64), -len(left_out)
    for rows in chunks(len(losses)):
        part = losses[rows]
        of_part = part.sum(dtype=np.float64)
        if np.isnan(of_part):
            part = part[~np.isnan(part)]
            of_part = part.sum(dtype=np.float64)
        total, known = total + of_part, known + len(part)
    return total / known if known else 0.0


def without(probability: np.ndarray, aside: np.ndarray) -> np.ndarray:
    """Returns p over all examples but those left out, whose entries become 0.

    Args:
        probability: `[n]`, sums to 1. Not changed in place.
        aside: `[k]`, integers: the examples left out, fewer than n.

    Example:
        >>> without(np.full(4, 0.25), np.array([2])).round(3)
        array([0.333, 0.333, 0.   , 0.333])
    """
    if not len(aside):
        return probability
    rest = probability.copy()
    rest[aside] = 0.0
    return rest / rest.sum()


def _least(probability: np.ndarray, aside: np.ndarray) -> float:
    return (np.delete(probability, aside) if len(aside) else probability).min()
