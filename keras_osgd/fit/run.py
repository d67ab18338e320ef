"""What one `fit` with importance sampling consists of, from first plan to last."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base.replicas import Share, share_of
from keras_osgd.base.warn import warn
from keras_osgd.data.rows import Rows
from keras_osgd.data.training_data import TrainingData
from keras_osgd.draws.blocks import block_steps
from keras_osgd.draws.observations import ObservationLog
from keras_osgd.draws.oracle import OraclePlanner, refresh_steps
from keras_osgd.draws.pipeline import PlanBuffers, batches
from keras_osgd.draws.planner import Planner
from keras_osgd.draws.watch import watch_over
from keras_osgd.fit import logged
from keras_osgd.gain.clock import Clock
from keras_osgd.gain.gain_ratio import GainRatio
from keras_osgd.losses.described import OutputLoss
from keras_osgd.norms.scorer import Scorer, scoring_all
from keras_osgd.sampling import RAIS, Oracle
from keras_osgd.scores.state import SamplingState
from keras_osgd.step.skipping import Skips

__all__ = ["Run"]

_LAST_GOOD = "The model has the weights of its last good step, and its scores."


class Run:
    """The variables that a training step needs, and the planner that feeds it.

    Kept from one `fit` to the next while the sizes stay, so that nothing is traced
    anew.

    Args:
        sampling: configuration.
        state: what is learned about the examples.
        n: number of examples, those of other workers included.
        batch_size: m, likewise.
        steps_per_execution: of the model.
        adapt: whether the learning rate follows the gain ratio.
        share: this process's part.
    """

    def __init__(
        self,
        sampling: RAIS | Oracle,
        state: SamplingState,
        n: int,
        batch_size: int,
        steps_per_execution: int,
        adapt: bool,
        share: Share,
    ) -> None:
        """Allocates; `start` begins a `fit`."""
        self.key = (n, batch_size, steps_per_execution, adapt, share)
        self.n, self.batch_size, self.adapt, self.share = n, batch_size, adapt, share
        self.sampling, self.state = sampling, state
        self._steps_per_execution = steps_per_execution
        length = refresh_steps if isinstance(sampling, Oracle) else block_steps
        block = length(sampling, n, batch_size, steps_per_execution)
        self.buffers = PlanBuffers(block, batch_size // share.workers)
        self.log = ObservationLog(self.buffers)
        self.clock = Clock(state.lead, self.buffers.end, steps_per_execution)
        self.skips = Skips()
        self.gain = state.gain
        self.scorer: Scorer | None = None  # where norms are exact
        self.last_layer_gain = GainRatio()  # beside it, to check the approximation
        self.losses: list[OutputLoss] = []
        self.optimizer: keras.optimizers.Optimizer | None = None
        self.planner: Planner | OraclePlanner | None = None
        self.verbose: int | str = "auto"  # as in `fit`
        self.told: list[str] = []  # alarms and notices of this `fit`
        self.active = False
        self.warn_of_floor: Callable[[float], None] = lambda largest: None
        self.where_saved: Callable[[], str] = str  # the last checkpoint, for errors
        self.warn: Callable[[str, str], None] = lambda key, message: None

    def serves(
        self,
        model: keras.Model,
        data: TrainingData,
        described: list[OutputLoss],
        adapt: bool,
    ) -> bool:
        """Returns whether a `fit` of these can use this run again."""
        share = share_of(model.distribute_strategy)
        key = (data.n, data.batch_size, model.steps_per_execution, adapt, share)
        return self.key == key and self.losses == described

    def start(
        self,
        data: TrainingData,
        saved: Mapping[str, Any] | None = None,
        done: float = 0.0,
    ) -> tf.data.Dataset:
        """Plans the first block and returns the dataset of an epoch.

        Args:
            data: this process's examples.
            saved: what a `snapshot` returned, to go on there; the state holds what
                belongs to it.
            done: part of the first epoch that was trained already, without `saved`.
        """
        self.skips.restart()
        self.told = []
        sizes = self.buffers.batch_size, self.buffers.block_steps
        self.watch = watch_over(self.state, self.sampling, *sizes, data)
        self.planner = self._planner(data)
        self.active = self.state.in_use = True
        if saved is None:
            self.clock.restart(done)
            self.planner.start()
        else:
            self.clock.resume(saved["clock"])
            self.log.resume(saved["log"])
            self.last_layer_gain.averages.assign(saved["last_layer_gain"])
            self.planner.resume(saved["planner"])
        self.buffers.start.assign(self.clock.step)
        # Several replicas' iterator reads ahead by itself, no further than we would.
        ahead = self.planner.read_ahead if self.share.all_replicas == 1 else 0
        rows = Rows(data.arrays)
        others = data.transform, self.state.seed, self.share.replicas
        return batches(self.buffers, rows, ahead, *others)

    def _planner(self, data: TrainingData) -> Planner | OraclePlanner:
        given = (self.sampling, self.state, self.buffers, self.log)
        if not isinstance(self.sampling, Oracle):
            return Planner(*given, self._steps_per_execution, self.watch)
        size = self.sampling.score_batch_size
        score = scoring_all(self.scorer, data, size, self.verbose)
        return OraclePlanner(*given, self._steps_per_execution, score, self.watch)

    def execution(self, function: Callable[[Any], Any], data: Any) -> tuple[Any, bool]:
        """Trains for one execution.

        Args:
            function: Keras' training function.
            data: its argument.

        Returns:
            Its logs, and whether the epoch is complete.
        """
        self.planner.prepare(self.clock.step)
        logs = function(data)
        return logs, self.after_execution()

    def after_execution(self) -> bool:
        """Counts the steps done, plans ahead; returns whether the epoch is complete."""
        complete = self.clock.count_execution()
        self.planner.advance(self.clock.step)
        if complete:
            self.buffers.start.assign(self.clock.step)
        if self.skips.too_many(self.clock.step):
            self.planner.catch_up(self.clock.step)
            self.watch.too_many_in_a_row(self.clock.step)
        self._tell()
        self._raise()
        return complete

    def _raise(self) -> None:
        if self.watch.error:
            parts = (self.watch.error, _LAST_GOOD, self.where_saved())
            raise RuntimeError(" ".join(filter(None, parts)))

    def snapshot(self, mid_epoch: bool) -> Callable[[], dict[str, Any]]:
        """Returns what returns all that `start` needs to go on, and the state.

        Called between executions. What the training thread changes is copied at once,
        what the planning thread does is waited for by the function returned.

        Args:
            mid_epoch: whether an epoch is under way.
        """
        here = {
            "clock": self.clock.snapshot(mid_epoch),
            "log": self.log.snapshot(),
            "last_layer_gain": np.array(self.last_layer_gain.averages),
        }
        gain, lead = np.array(self.gain.averages), np.array(self.clock.lead)
        clock = {"gain": gain, "lead": lead}
        planned = self.planner.snapshot()

        def wait() -> dict[str, Any]:
            planner = planned()
            return here | {"state": planner.pop("state") | clock, "planner": planner}

        return wait

    def _tell(self) -> None:
        while self.watch.warnings:
            self.told.append(self.watch.warnings.pop(0))
            warn(self.told[-1])
        while self.planner.notices:
            self.told.append(self.planner.notices.pop(0))
            self.say(self.told[-1], amid_bar=True)
        plan = self.planner.last_plan
        if plan is not None and plan.importance and self.planner.unbounded:
            self.warn_of_floor(plan.largest_weight)
        self._warn_of_failures()

    def _warn_of_failures(self) -> None:
        while self.planner.failures:
            cause = self.planner.failures.pop(0)
            self.warn(
                "planning",
                "Draws must be planned from the gradient norms observed. Received: "
                f"{cause} Training goes on, by the last good fit or else the norms "
                "last observed or else uniformly; `sampling_state.fit_failures` counts "
                "such failures. Look for a loss that overflows; if there is none, "
                "report it.",
            )

    def finish(self) -> None:
        """Ends a `fit`, however it ended; nothing learned is lost."""
        self.active = self.state.in_use = False
        if self.planner is not None:
            self.planner.finish(self.clock.step)
            self._warn_of_failures()
            self.watch.finish(self.clock.step, self.skips.too_many())
            self._tell()
            if sys.exc_info()[0] is None:  # or the reason why `fit` ends would be lost
                self._raise()

    def figures(self) -> dict[str, float]:
        """Returns what `SamplingMonitor` shows."""
        return logged.figures(self)

    def settle(self) -> None:
        """Waits for a plan in the making: what is read then, no timing moves."""
        if self.planner is not None:
            self.planner.settle()

    def probabilities(self) -> np.ndarray | None:
        """Returns `[n]`, p by the scores as last planned, or `None`."""
        self.settle()
        return None if self.planner is None else self.planner.candidate

    def say(self, line: str, amid_bar: bool = False) -> None:
        """Prints a line of information, as Keras' callbacks do, unless silent."""
        if self.verbose:
            print("\n" * (amid_bar and self.verbose in (1, "auto")) + line)
