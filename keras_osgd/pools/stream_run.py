"""A `fit` with importance sampling within pools of a stream."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_osgd.base.placement import step_variable
from keras_osgd.base.replicas import Share
from keras_osgd.base.warn import warn, warn_once
from keras_osgd.gain import learning_rate
from keras_osgd.gain.clock import Progress, steps_for
from keras_osgd.gain.gain_ratio import MAX_GAIN
from keras_osgd.losses.described import OutputLoss
from keras_osgd.pools.pool import Batch, drawing, joined, plain, size_of
from keras_osgd.pools.pool_gain import PoolGain
from keras_osgd.sampling import Presample
from keras_osgd.scores.bad_examples import MOST_IN_A_ROW
from keras_osgd.scores.state import SamplingState
from keras_osgd.step.metrics import Shown
from keras_osgd.step.recovery import LAST_FINITE, Recovery
from keras_osgd.step.skipping import Skips
from keras_osgd.step.state import StepState

__all__ = ["StreamClock", "StreamRun"]

_LOOK = 10  # steps between two decisions whether pools pay
_OBSERVED = 50  # observed steps before pools may begin
_MARGIN = 1.05  # factor by which the gain must exceed the cost to begin


class StreamClock(Progress):
    """Counts steps and effective iterations; an epoch ends when those reach its share.

    Nothing is read ahead of the steps, so the end need not be known beforehand: the
    clock looks for it whenever the epoch may be complete.

    Args:
        lead: as in `Progress`.
    """

    def __init__(self, lead: tf.Variable) -> None:
        """Starts at step 0 with no epoch begun."""
        super().__init__(lead)
        self.restart()

    def restart(self) -> None:
        """Starts counting the steps of a new `fit`."""
        self.step = self.first_step = self.pooled = self._granted = self._poll_at = 0
        self._remaining.assign(0.0)
        self.gain.assign(1.0)

    def advance(self, gain: tf.Tensor, applied: tf.Tensor) -> None:
        """Counts one step, inside the training step; see `Clock.advance`."""
        gain, counted = tf.cast(gain, tf.float64), tf.cast(applied, tf.float64)
        self.lead.assign_add((gain - 1.0) * counted)
        self._remaining.assign_sub(gain * counted)
        self.gain.assign(gain)

    def begin_epoch(self, effective_iterations: int) -> None:
        """Begins an epoch; surplus iterations of the last one count for this one."""
        self._granted += effective_iterations
        self._remaining.assign_add(effective_iterations)
        self.first_step, self.pooled, self._poll_at = self.step, 0, self.step

    def complete(self) -> bool:
        """Returns whether the epoch is complete; all counted steps must be done."""
        if self.step < self._poll_at:
            return False
        remaining = float(self._remaining)
        if remaining <= 0:
            return True
        self._poll_at = self.step + max(1, int(remaining / MAX_GAIN))
        return False

    def steps_left(self) -> int:
        """Returns the steps to the epoch's end, at the gain of the last one."""
        return max(0, steps_for(self._remaining, self.gain))

    def share_pooled(self) -> float:
        """Returns the share of the epoch's steps that drew from a pool."""
        return self.pooled / max(1, self.step - self.first_step)


class SkipCount:
    """Counts steps that their examples spoiled; nothing else of them is logged."""

    def __init__(self) -> None:
        """Starts with none."""
        self.skipped = step_variable(0, tf.int64)

    def write(self, row: Any, observed: tf.Tensor) -> None:
        """Counts a skipped step, whose gain ratio is NaN; part of the step."""
        self.skipped.assign_add(tf.cast(tf.math.is_nan(observed[-1]), tf.int64))


class StreamRun:
    """Takes one batch or a pool of several from the stream, and trains a step on it.

    Kept from one `fit` to the next.

    Args:
        model: compiled and built.
        sampling: configuration.
        state: sampling state, whose effective iterations go on.
        described: the model's losses.
        metrics: how each of the model's is shown.
        adapt: whether the learning rate follows the gain ratio.
        seed: of all draws.
        handed: whether a user's own step gets the weights with its data.
    """

    def __init__(
        self,
        model: keras.Model,
        sampling: Presample,
        state: SamplingState,
        described: list[OutputLoss],
        metrics: Sequence[Shown],
        adapt: bool,
        seed: int,
        handed: bool = True,
    ) -> None:
        """Starts without pools."""
        self.model, self.sampling = model, sampling
        self.active, self.pooling = False, False
        self.told: list[str] = []  # it has no alarms
        self.gain = PoolGain(sampling.ratio, sampling.floor)
        self.clock, self.skips, self.log = StreamClock(state.lead), Skips(), SkipCount()
        self.step_state = StepState(
            n=1,  # `Sample` carries B p
            share=Share(),
            losses=described,
            metrics=metrics,
            adapt=adapt,
            scorer=None,
            gain=self.gain,
            last_layer_gain=None,
            clock=self.clock,
            skips=self.skips,
            log=self.log,
            handed=handed,
        )
        self.recovery = Recovery(self.clock, self.skips)
        self.steps, self.batch_size = 1, 1
        self._seed, self._drawn, self._decide_at = seed, 0, 0
        self._draw = drawing(model, described, sampling.floor)
        self._largest_weight = tf.constant(1.0)

    def serves(self, described: list[OutputLoss], adapt: bool, handed: bool) -> bool:
        """Returns whether a `fit` with these arguments can use this run again."""
        step = self.step_state
        return (step.losses, step.adapt, step.handed) == (described, adapt, handed)

    def start(self, steps: int, batch_size: int, ends_on_nan: bool = False) -> None:
        """Begins a `fit` with epochs of `steps` effective iterations.

        Args:
            steps: effective iterations.
            batch_size: m.
            ends_on_nan: whether a callback of Keras ends training at a loss that is not
                finite; else such steps are skipped.
        """
        self.steps, self.batch_size, self._decide_at = steps, batch_size, 0
        self.clock.restart()
        self.skips.restart(ends_on_nan)
        self.recovery.restart()
        self.log.skipped.assign(0)
        self.active = True

    def execution(self, function: Callable[[Any], Any], data: Any) -> tuple[Any, bool]:
        """Trains for one execution.

        Args:
            function: Keras' training function, which takes any iterator.
            data: iterator of the stream's batches.

        Returns:
            Its logs, and whether the epoch is complete.

        Raises:
            StopIteration: where the stream ends, as Keras' own function does.
        """
        self.recovery.begin(self.model, self.clock.step)
        steps = self._steps(data)
        first = next(steps, None)
        if first is None:
            raise StopIteration
        logs = function(itertools.chain([first], steps))
        logs = self.skips.logs(self.model, logs)
        complete = self.clock.complete()
        if complete or self.recovery.due(self.clock.step):
            self.look(complete)
            complete = self.clock.complete()
        self._end_if_too_many(self.clock.step)
        return logs, complete

    def look(self, epoch_over: bool = False) -> None:
        """Takes training back where an update left anything that is not finite."""
        text = self.recovery.look(self.clock.step, epoch_over)
        if text:
            warn(text)

    def _steps(self, data: Iterator) -> Iterator[tuple]:
        """Yields the batch of each step, until the epoch is complete."""
        while not self.clock.complete():
            if self.clock.step >= self._decide_at:
                self.decide()
            count = self.sampling.ratio if self.pooling else 1
            batches = [_unpacked(batch) for batch in itertools.islice(data, count)]
            if not batches:
                return
            self.clock.step += 1
            yield self._drawn_from(batches) if self.pooling else plain(*batches)

    def decide(self) -> None:
        """Begins to draw from pools if the gain exceeds the cost, or ends it if not."""
        self._decide_at = self.clock.step + _LOOK
        gain, cost = self.current_gain(), self.sampling.cost_of_a_step
        enough = int(self.gain.observed) >= _OBSERVED
        self.pooling = enough and gain > cost * (1.0 if self.pooling else _MARGIN)

    def _drawn_from(self, batches: list[Batch]) -> tuple:
        """Draws as many as the pool's largest batch, from a stream's last pool too."""
        self._drawn += 1
        seed = tf.constant([self._seed, self._drawn], tf.int64)
        size = tf.constant(max(map(size_of, batches)))
        drawn = self._draw(joined(batches), size, seed)
        batch, self._largest_weight = drawn
        self.clock.pooled += 1
        return batch

    def current_gain(self) -> float:
        """Returns the r that drawing from pools has, or would have."""
        return float(self.gain.current(float(self.batch_size)))

    def _end_if_too_many(self, step: int | None) -> None:
        if not self.skips.too_many(step) or self.skips.end_fit:
            return
        self.look()
        error = (
            "The loss and its gradient must be finite. Received: they were not in "
            f"{MOST_IN_A_ROW} steps in a row before step {self.clock.step}, which "
            "were skipped. Look for NaN and infinities in the data, and for "
            "logarithms and divisions of 0 in the loss, or lower the learning rate."
        )
        if self.recovery.at_fault:
            error = self.recovery.too_many_in_a_row(self.clock.step)
        raise RuntimeError(f"{error} {LAST_FINITE}")

    def finish(self) -> None:
        """Ends a `fit`, however it ended."""
        self.look()
        self.recovery.restart()
        self.active = False
        skipped = int(self.log.skipped)
        if skipped:
            warn_once(
                self.model,
                "skipped",
                f"{skipped} of {self.clock.step} steps were skipped, as their loss or "
                "gradient was not finite. Look for NaN and infinities in the data.",
            )

    def logged(self) -> dict[str, float]:
        """Returns the numbers that `SamplingMonitor` logs."""
        gain, clock = self.current_gain(), self.clock
        return {
            "gain_ratio": gain if self.pooling else 1.0,
            "candidate_gain_ratio": gain,
            "share_pooled": clock.share_pooled(),
            "largest_weight": float(self._largest_weight),
            "effective_epochs": clock.effective_iterations() / self.steps,
            "learning_rate_applied": learning_rate.applied_rate(
                self.model.optimizer, clock.gain, clock.lead
            ),
        }

    def settle(self) -> None:
        """Has nothing to wait for."""

    def probabilities(self) -> None:
        """Returns `None`: a stream's examples have no p."""


def _unpacked(batch: Any) -> Batch:
    return keras.utils.unpack_x_y_sample_weight(batch)
