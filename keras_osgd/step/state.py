"""The state of a training step: all that it reads and updates beside the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import tensorflow as tf

from keras_osgd.base.replicas import Share
from keras_osgd.gain.gain_ratio import GainRatio
from keras_osgd.losses.described import OutputLoss
from keras_osgd.norms.scorer import Scorer
from keras_osgd.step.metrics import Shown
from keras_osgd.step.skipping import Skips

__all__ = ["StepState"]


class Gain(Protocol):
    """Estimates the gain ratio from the moments of the steps before."""

    averages: tf.Variable

    def moments(self, *arrays: tf.Tensor) -> tf.Tensor:
        """Returns one batch's estimates of the moments."""

    def current(self, batch_size: tf.Tensor) -> tf.Tensor:
        """Returns the gain ratio r from the steps before this one."""

    def update(self, observed: tf.Tensor, counts: Any) -> None:
        """Adds one batch's moments, if its step `counts`."""


class StepClock(Protocol):
    """Counts steps and effective iterations, inside the step."""

    lead: tf.Variable
    gain: tf.Variable

    def advance(self, gain: tf.Tensor, applied: tf.Tensor | None) -> None:
        """Counts one step."""

    @property
    def counts(self) -> tuple[tf.Variable, tf.Variable]:
        """Variables of effective iterations: `lead`, and those still lacking."""

    @property
    def granted(self) -> float:
        """Effective iterations of all epochs begun."""

    def take_back(self, lead: tf.Tensor, remaining: tf.Tensor, granted: float) -> None:
        """Goes back to the counts of an earlier step."""


class StepLog(Protocol):
    """Records what each step leaves."""

    def write(self, row: tf.Tensor, observed: tf.Tensor) -> None:
        """Records `observed`, see `sampled_step.observed_of`; part of the step.

        Args:
            row: `[]`, of the step's `Sample`.
            observed: `[2 m + 1]` float32.
        """


@dataclasses.dataclass(frozen=True)
class StepState:
    """All that a sampled step reads and updates beside the model.

    The step knows neither who plans its draws nor what a `fit` is. The traced step
    refers to these variables, so they are kept from one `fit` to the next while the
    sizes stay.

    Attributes:
        n: number of examples that p is defined on, including those of other workers.
            It is 1 for pools: there `Sample` carries p times the pool's size.
        share: this process's part of the work.
        losses: the model's losses, described.
        metrics: how each metric of `compile` is shown.
        adapt: whether the learning rate follows the gain ratio.
        scorer: takes exact norms; `None` where those of the last layer serve.
        gain: estimates the gain ratio.
        last_layer_gain: estimates the gain ratio by the last layer, to compare with
            exact norms; `None` in runs that never take these.
        clock: counts effective iterations.
        skips: decides whether a step counts.
        log: takes norms, gain ratio and losses of each step.
        losses_known: whether the mean loss that is shown makes use of the last losses
            of the examples that were not drawn; see `blocks.estimate_of_loss`.
        handed: whether a user's own step gets the weights with its data.
    """

    n: int
    share: Share
    losses: Sequence[OutputLoss]
    metrics: Sequence[Shown]
    adapt: bool
    scorer: Scorer | None
    gain: Gain
    last_layer_gain: GainRatio | None
    clock: StepClock
    skips: Skips
    log: StepLog
    losses_known: bool = False
    handed: bool = True
