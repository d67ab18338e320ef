"""Epochs that end when the effective iterations reach their share (equation 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_osgd.base.placement import step_variable

__all__ = ["Clock", "Progress", "steps_for"]

_FAR = tf.int64.max
_AHEAD = 40  # steps: an epoch's end is decided this early, before it is read
_POLL = 8  # steps between two looks at the decision


class Progress:
    """Effective iterations: those of all epochs begun, and those that they still lack.

    Args:
        lead: `tf.Variable` float64, effective iterations minus the optimizer's own;
            kept across fits.

    Attributes:
        gain: `[]` float64, effective iterations of the last step, which sets it.
    """

    def __init__(self, lead: tf.Variable) -> None:
        """Starts with no epoch begun."""
        self.lead = lead
        self.gain = step_variable(1.0, tf.float64)
        self._remaining = step_variable(0.0, tf.float64)
        self._granted = 0.0  # in earlier fits too

    def count_earlier(self, effective_iterations: float) -> None:
        """Adds those trained before `fit`, after `restart`; epochs stay as they are."""
        self._granted += effective_iterations

    def effective_iterations(self) -> float:
        """Returns the effective iterations of this `fit` and those counted before."""
        return self._granted - float(self._remaining)

    @property
    def counts(self) -> tuple[tf.Variable, tf.Variable]:
        """Variables of effective iterations: `lead`, and those still lacking."""
        return self.lead, self._remaining

    @property
    def granted(self) -> float:
        """Effective iterations of all epochs begun, and those counted before."""
        return self._granted

    def take_back(self, lead: tf.Tensor, remaining: tf.Tensor, granted: float) -> None:
        """Goes back to the counts of an earlier step.

        Args:
            lead: the value of `lead` then.
            remaining: effective iterations that the epoch lacked then.
            granted: `granted` then.
        """
        self.lead.assign(lead)
        self._remaining.assign(remaining + (self._granted - granted))


class Clock(Progress):
    """Counts steps and effective iterations and decides where an epoch ends.

    The decision is made with the training step, a fixed number of steps ahead, so that
    neither prefetching nor `steps_per_execution` changes it. The pipeline learns of it
    when the training thread looks, well before it can have read so far.

    Args:
        lead: as in `Progress`.
        end: `tf.Variable` int64, the first step that no longer belongs to the epoch;
            the pipeline stops there.
        steps_per_execution: of the model.
    """

    def __init__(
        self, lead: tf.Variable, end: tf.Variable, steps_per_execution: int
    ) -> None:
        """Starts at step 0 with no epoch begun."""
        super().__init__(lead)
        self._end = end
        self._ahead = max(_AHEAD, 4 * steps_per_execution)
        self._steps_per_execution = steps_per_execution
        self._steps = step_variable(0, tf.int64)
        self._decided = step_variable(_FAR, tf.int64)  # `end`, beside the model
        self.step = 0
        self._known_end: int | None = None
        self._poll_at = 0
        self._share = 1.0  # effective iterations of the epoch
        self._done = 0.0  # part of the epoch done before `fit`, at another batch size
        self._under_way = False  # whether the epoch was begun before `fit`

    def advance(self, gain: tf.Tensor, applied: tf.Tensor | None) -> None:
        """Counts one step, and decides on the end once it is near; part of the step.

        Args:
            gain: `[]`, effective iterations of the step if its gradient was applied.
            applied: `[]`, whether the gradient was applied; `None` where it always is.
        """
        gain = tf.cast(gain, tf.float64)
        progress, lead = gain, gain - 1.0
        if applied is not None:
            counted = tf.cast(applied, tf.float64)
            progress, lead = gain * counted, lead * counted
        remaining = self._remaining.read_value() - progress
        steps = self._steps.read_value() + 1
        self.lead.assign_add(lead)
        self.gain.assign(gain)
        self._remaining.assign(remaining)
        self._steps.assign(steps)
        left = tf.cast(tf.math.ceil(remaining / gain), tf.int64)
        # The lower bound keeps the end beyond what the pipeline may have read.
        left, decided = tf.maximum(left, self._ahead // 2), self._decided.read_value()
        decide = (left <= self._ahead) & (decided == _FAR)
        self._decided.assign(tf.where(decide, steps + left, decided))

    def _set_end(self, end: int) -> None:
        """Sets the end for the steps and for the pipeline."""
        self._decided.assign(end)
        self._end.assign(end)

    def restart(self, done: float = 0.0) -> None:
        """Starts counting the steps of a new `fit`.

        Args:
            done: part of its first epoch that was trained already, in [0, 1).
        """
        self.step, self._known_end = 0, None
        self._done, self._under_way = done, False
        self._granted = 0.0
        self._steps.assign(0)
        self._remaining.assign(0.0)
        self.gain.assign(1.0)
        self._set_end(_FAR)

    def steps_left(self) -> int:
        """Returns the steps to the epoch's end, at the gain of the last one."""
        if self._known_end is not None:
            return self._known_end - self.step
        return max(0, steps_for(self._remaining, self.gain))

    def state_dict(self, mid_epoch: bool) -> dict[str, Any]:
        """Returns the state for `load_state_dict`.

        Args:
            mid_epoch: whether an epoch is under way.
        """
        end = -1 if self._known_end is None else self._known_end
        counts = (self.step, end, self._poll_at)
        remaining = float(self._remaining)
        return {
            "counts": np.array(counts, np.int64),
            "iterations": np.array([float(self.gain), remaining, self._granted]),
            "end": np.int64(self._decided.numpy()),
            "share": np.float64(self._share),
            "done": np.float64(1 - remaining / self._share if mid_epoch else 0.0),
            "under_way": np.bool_(mid_epoch),
        }

    def load_state_dict(self, saved: Mapping[str, np.ndarray]) -> None:
        """Restores the state that `state_dict` returned."""
        self.step, end, self._poll_at = saved["counts"].tolist()
        self._known_end = None if end < 0 else end
        gain, remaining, self._granted = saved["iterations"].tolist()
        self.gain.assign(gain)
        self._remaining.assign(remaining)
        self._steps.assign(self.step)
        self._set_end(saved["end"])
        self._share, self._done = float(saved["share"]), 0.0
        self._under_way = bool(saved["under_way"])

    def begin_epoch(self, effective_iterations: int) -> None:
        """Begins an epoch; surplus iterations of the last one count for this one."""
        if self._under_way:
            self._under_way = False
            return
        self._share = effective_iterations
        effective_iterations *= 1 - self._done
        self._done = 0.0
        self._granted += effective_iterations
        remaining = float(self._remaining.assign_add(effective_iterations))
        left = max(1, steps_for(remaining, self.gain))
        self._known_end = self.step + left if left <= self._ahead else None
        self._set_end(_FAR if self._known_end is None else self._known_end)
        self._poll_at = self.step + _POLL

    def count_execution(self) -> bool:
        """Counts the steps of one execution; returns whether the epoch is complete."""
        self.step += self._steps_per_execution
        if self._known_end is None and self.step >= self._poll_at:
            end = int(self._decided)
            if end != _FAR:
                self._known_end = end
                self._end.assign(end)
            self._poll_at = self.step + _POLL
        if self._known_end is None:
            return False
        self.step = min(self.step, self._known_end)
        return self.step == self._known_end


def steps_for(effective_iterations: Any, gain: Any) -> int:
    """Returns the steps that so many effective iterations take, at that gain.

    Example:
        >>> steps_for(7.0, 2.0)
        4
    """
    return -int(-float(effective_iterations) // float(gain))
