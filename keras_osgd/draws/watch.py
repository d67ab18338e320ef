"""Looks through the observations for examples at fault and for reasons to warn."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np

from keras_osgd.data.training_data import TrainingData
from keras_osgd.data.uneven_columns import Uneven
from keras_osgd.draws.alarms import Alarms
from keras_osgd.sampling import RAIS, Oracle
from keras_osgd.scores.bad_examples import (
    MOST_IN_A_ROW,
    culprits,
    most_are_not_finite,
)
from keras_osgd.scores.state import SamplingState

__all__ = ["Watch", "rows_finite_in", "watch_over"]

_TOLD = 3  # skipped steps told one by one; the others are summed up
_NAMED = 10  # examples that a message names


class Watch:
    """Examines the observations of a planner, in the order of the steps.

    Where the data of a skipped step is finite, its examples get their strikes only once
    a later step goes well. Until then the model may have diverged, and none is blamed.

    Args:
        state: whose `bad_examples` are kept up to date.
        floor: no p is below floor/n; `None` where no p is too small.
        batch_size: m.
        row_is_finite: `[k]` rows -> `[k]`, whether all data of a row is finite.
        may_overflow: whether a step that counts may be one that a loss scaler skipped,
            so that norms that are not finite are no fault.

    Attributes:
        warnings: texts for the training thread, which `publish` hands over.
        error: why training must stop; "" while it need not.
    """

    def __init__(
        self,
        state: SamplingState,
        floor: float | None,
        batch_size: int,
        row_is_finite: Callable[[np.ndarray], np.ndarray] | None = None,
        may_overflow: bool = False,
    ) -> None:
        """Has seen nothing yet."""
        self._state, self._batch_size, self._n = state, batch_size, state.table.size
        self._row_is_finite = row_is_finite or (lambda rows: np.ones(len(rows), bool))
        self._alarms = Alarms(state, floor, batch_size)
        self._pending: list[str] = []
        self._fault = ""
        self._skipped = self._told = 0
        self._held: list[tuple[int, np.ndarray, bool]] = []
        self._may_overflow = may_overflow
        self._without_norm: set[int] = set()
        self._data_finite = False  # of the last skipped step
        self._diverged = False  # likewise: finite data, but most norms are not
        self.warnings: list[str] = []
        self.error = ""
        aside = state.bad_examples.set_aside.tolist()
        if aside:
            self.warnings.append(
                f"{_named(aside)} of earlier training are set aside, as their loss or "
                "gradient was not finite. Once they are repaired, "
                "`model.sampling_state.bad_examples.clear()` lets them be drawn again."
            )

    def fail(self, error: str) -> None:
        """Ends training with this error."""
        self._fault = error
        self.publish()

    def publish(self) -> None:
        """Hands over warnings and error; called at steps that timing cannot change."""
        self.warnings += self._pending
        self._pending.clear()
        self.error = self._fault

    def look(
        self,
        first: int,
        drawn: tuple[np.ndarray, np.ndarray, np.ndarray, bool],
        norms: np.ndarray,
        gains: np.ndarray,
        candidate: np.ndarray,
    ) -> None:
        """Looks at some steps, which follow those of the last call.

        Args:
            first: number of the first step.
            drawn: index, p and features of all draws, `[k * m, ...]`, and whether they
                followed the scores.
            norms: `[k * m]`, as observed.
            gains: `[k]`, gain ratio of each step; NaN where it was skipped, infinite
                where that was no fault of its examples.
            candidate: `[n]`, p by the scores as last planned.
        """
        index, probability, _, importance = drawn
        self._look_for_bad_examples(first, index, norms, gains)
        self._look_for_lost_norms(index, norms, gains)
        weights = 1.0 / (self._n * probability)
        self._pending += self._alarms.take_in(
            weights, norms, gains, importance, candidate
        )

    def _look_for_bad_examples(self, first, index, norms, gains) -> None:
        bad = self._state.bad_examples
        if np.isfinite(gains).all() and not (bad.suspected or self._held):
            return
        index, norms = (a.reshape(len(gains), -1) for a in (index, norms))
        for k, gain in enumerate(gains):
            if np.isnan(gain):
                self._look_at_skipped(first + k, index[k], norms[k])
            elif np.isfinite(gain):
                for held in self._held:
                    self._strike(*held)
                self._held.clear()
                bad.acquit(index[k])
        affected = bad.affected
        # One example may always be affected, unless there is no other.
        if len(affected) > min(max(1, self._n // 100), self._n - 1):
            self._fault = (
                "At most 1 % of the examples may have a loss or gradient that is not "
                f"finite. Received: {len(affected)} of {self._n}, "
                f"{_named(affected)}. {self._advice()}"
            )

    def _look_for_lost_norms(self, index, norms, gains) -> None:
        """Warns of norms that are not finite though the step's gradient is."""
        if self._may_overflow:
            return
        counted = np.repeat(np.isfinite(gains), self._batch_size)
        lost = np.unique(index[counted & ~np.isfinite(norms)]).tolist()
        if lost and not self._without_norm:
            self._pending.append(
                f"The gradient norm of {_named(lost)} is not finite, though the loss "
                "and gradient of the step are: the earlier score is kept, or the mean. "
                "Look for a division by 0 in a rule of `keras_osgd.norms.register`, or "
                "for norms too large to be squared in float32."
            )
        self._without_norm.update(lost)

    def _look_at_skipped(self, step: int, index: np.ndarray, norms: np.ndarray) -> None:
        row_is_finite = self._row_is_finite(index)
        found, sure = culprits(index, norms, row_is_finite)
        self._data_finite = bool(row_is_finite.all())
        self._diverged = self._data_finite and most_are_not_finite(norms)
        self._skipped += 1
        if self._data_finite:
            self._held.append((step, found, sure))
        else:
            self._strike(step, found, sure)

    def _strike(self, step: int, found: np.ndarray, sure: bool) -> None:
        self._state.bad_examples.strike(found, sure)
        if self._told == _TOLD:
            return
        self._told += 1
        one_of = "" if sure else "one or more of "
        self._pending.append(
            f"Skipped step {step}: the loss of {one_of}{_named(found.tolist())} or its "
            f"gradient is not finite. {self._set_aside()} of {self._n} set aside. See "
            "`model.sampling_state.bad_examples`."
        )

    def _set_aside(self) -> int:
        return len(self._state.bad_examples.set_aside)

    def finish(self, steps: int, error: str = "") -> None:
        """Publishes, with the number of skipped steps out of all `steps` of a `fit`.

        Lets go of the data; nothing is looked at afterwards.

        Args:
            steps: made.
            error: why training must stop, unless another reason is known.
        """
        self._row_is_finite = None
        if len(self._without_norm) > 1:
            self._pending.append(
                "In all, gradient norms were not finite, and left out, of "
                f"{len(self._without_norm)} of {self._n}, "
                f"{_named(sorted(self._without_norm))}."
            )
        self._fault = self._fault or error
        if self._skipped > self._told:
            aside = self._state.bad_examples.set_aside.tolist()
            named = f", {_named(aside)}," if aside else ""
            blamed = "No example is blamed for the last of them. " if self._held else ""
            self._pending.append(
                f"{self._skipped} of {steps} steps were skipped, as their loss or "
                f"gradient was not finite. {len(aside)} of {self._n}{named} set aside. "
                "See `model.sampling_state.bad_examples`. " + blamed + self._advice()
            )
        self._held.clear()
        self.publish()

    def too_many_in_a_row(self, step: int) -> str:
        """Returns why training ends after `MOST_IN_A_ROW` skipped steps.

        Args:
            step: number of steps done.
        """
        bad = self._state.bad_examples
        blamed = (
            f"{_named(bad.affected or sorted(bad.strikes))} are at fault or suspected"
        )
        return (
            "The loss and its gradient must be finite. Received: they were not in "
            f"{MOST_IN_A_ROW} steps in a row before step {step}, which were skipped; "
            f"{'no example is blamed' if self._held else blamed}. {self._advice()}"
        )

    def _advice(self) -> str:
        if self._diverged:
            return (
                "Most norms of the last skipped step are not finite, while its data "
                "is: the model has most likely diverged. Lower the learning rate, or "
                "look for logarithms and divisions of 0 in the loss."
            )
        if self._data_finite:
            return (
                "Data and weights of the last skipped step are finite. Lower the "
                "learning rate, at which the model may diverge, or look for logarithms "
                "and divisions of 0 in the loss."
            )
        return (
            "Look for NaN and infinities in x, y and sample_weight of these examples, "
            "and for logarithms and divisions of 0 in the loss."
        )


def watch_over(
    state: SamplingState,
    sampling: RAIS | Oracle,
    batch_size: int,
    block_steps: int,
    data: TrainingData,
    may_overflow: bool,
) -> Watch:
    """Returns the `Watch` over a `fit` on `data`, in blocks of `block_steps`."""
    floor: float | None = sampling.floor
    if isinstance(sampling, Oracle):
        floor = sampling.floor_for(data.n, batch_size)
        # Fresh norms need no floor: a weight times its norm is the same for all.
        floor = None if block_steps == 1 and floor == 0 else floor
    return Watch(state, floor, batch_size, rows_finite_in(data), may_overflow)


def rows_finite_in(data: TrainingData) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that tells of each row whether all its values are finite.

    Example:
        >>> x, y = np.array([[0.0, np.inf], [1.0, 2.0]]), np.array([0, 1])
        >>> rows_finite_in(TrainingData((x, y, None), 2, 1))(np.array([1, 0, 1]))
        array([ True, False,  True])
    """
    leaves = [a for a in keras.tree.flatten(data.arrays) if a is not None]

    def row_is_finite(rows: np.ndarray) -> np.ndarray:
        finite = np.ones(len(rows), bool)
        for leaf in leaves:
            if leaf.dtype.kind in "fc" or "float" in leaf.dtype.name:
                if isinstance(leaf, Uneven):
                    finite &= leaf.finite(rows)
                    continue
                values = leaf[rows].reshape(len(rows), -1)
                finite &= np.isfinite(values.astype(np.float32)).all(axis=1)
        return finite

    return row_is_finite


def _named(examples: list[int]) -> str:
    more = f" and {len(examples) - _NAMED} more" if len(examples) > _NAMED else ""
    return f"example(s) {examples[:_NAMED]}{more}"
