"""A `fit` with importance sampling, from its first plan to its last."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base.replicas import Share, share_of
from keras_osgd.base.warn import warn, warn_once
from keras_osgd.data.rows import Rows
from keras_osgd.data.training_data import TrainingData
from keras_osgd.draws.blocks import block_steps
from keras_osgd.draws.observations import ObservationLog
from keras_osgd.draws.oracle import OraclePlanner, refresh_steps
from keras_osgd.draws.pipeline import PlanBuffers, batches
from keras_osgd.draws.planner import Planner, RAISPlanner
from keras_osgd.draws.watch import watch_over
from keras_osgd.fit.checks import warn_of_floor
from keras_osgd.fit.logged import logged
from keras_osgd.gain.clock import Clock
from keras_osgd.gain.gain_ratio import GainRatio
from keras_osgd.gain.learning_rate import is_scaled
from keras_osgd.losses.described import OutputLoss
from keras_osgd.norms.scorer import Scorer, scoring_all
from keras_osgd.sampling import RAIS, Oracle
from keras_osgd.scores.state import SamplingState
from keras_osgd.step.metrics import Shown
from keras_osgd.step.recovery import LAST_FINITE, Recovery
from keras_osgd.step.skipping import Skips
from keras_osgd.step.state import StepState

__all__ = ["Run", "RunKey", "RunVariables"]


class RunKey(NamedTuple):
    """Sizes and settings that shapes and graph of a run's variables depend on.

    Attributes:
        n: number of examples, those of other workers included.
        batch_size: m, likewise.
        steps_per_execution: of the model.
        adapt: whether the learning rate follows the gain ratio.
        share: this process's part.
        handed: whether a user's own step gets the weights with its data.
    """

    n: int
    batch_size: int
    steps_per_execution: int
    adapt: bool
    share: Share
    handed: bool = True

    @classmethod
    def of(
        cls, model: keras.Model, data: TrainingData, adapt: bool, handed: bool
    ) -> RunKey:
        """Returns the key of a `fit` of this model on the data of all workers."""
        share, steps = share_of(model.distribute_strategy), model.steps_per_execution
        return cls(data.n, data.batch_size, steps, adapt, share, handed)


class RunVariables:
    """The variables of a run, kept from one `fit` to the next while the key stays.

    The traced step refers to them, so that nothing is traced anew.

    Args:
        sampling: configuration.
        state: the sampling state.
        key: sizes and settings.
        losses: the model's, described.
        metrics: how each of the model's is shown.
        scorer: takes exact norms, or `None`.
        losses_known: see `StepState`.

    Attributes:
        buffers: plans, which the pipeline reads.
        step_state: state that the training step reads and updates.
        recovery: looks at what the steps leave.
    """

    def __init__(
        self,
        sampling: RAIS | Oracle,
        state: SamplingState,
        key: RunKey,
        losses: Sequence[OutputLoss],
        metrics: Sequence[Shown],
        scorer: Scorer | None,
        losses_known: bool = False,
    ) -> None:
        """Allocates."""
        self.sampling, self.state, self.key = sampling, state, key
        length = refresh_steps if isinstance(sampling, Oracle) else block_steps
        block = length(sampling, key.n, key.batch_size, key.steps_per_execution)
        self.buffers = PlanBuffers(block, key.batch_size // key.share.workers)
        self.step_state = StepState(
            n=key.n,
            share=key.share,
            losses=losses,
            metrics=metrics,
            adapt=key.adapt,
            scorer=scorer,
            gain=state.gain,
            last_layer_gain=GainRatio(),
            clock=Clock(state.lead, self.buffers.end, key.steps_per_execution),
            skips=Skips(),
            log=ObservationLog(self.buffers, key.share.replicas),
            losses_known=losses_known,
            handed=key.handed,
        )
        self.recovery = Recovery(self.step_state.clock, self.step_state.skips)

    def serves(self, key: RunKey, losses: Sequence[OutputLoss]) -> bool:
        """Returns whether a `fit` with this key and losses can use these variables."""
        return self.key == key and self.step_state.losses == losses


class Run:
    """One `fit` with importance sampling: plans draws and counts steps.

    Args:
        model: in training.
        variables: of the run.
        data: this process's examples.
        verbose: as in `fit`.
        where_saved: returns a sentence on the last checkpoint, for errors.

    Attributes:
        step_state: state that the training step reads and updates.
        clock, gain, skips, log: of the step state.
        recovery: of the variables.
        planner: makes the plans of blocks.
        watch: looks for faults in the observations.
        told: alarms and notices of this `fit`.
        active: whether it is under way.
    """

    def __init__(
        self,
        model: keras.Model,
        variables: RunVariables,
        data: TrainingData,
        verbose: int | str = "auto",
        where_saved: Callable[[], str] = str,
    ) -> None:
        """Prepares; `start` begins the `fit`."""
        self._model, self._data = model, data
        self.variables, self.verbose, self.where_saved = variables, verbose, where_saved
        self.sampling, self.state = variables.sampling, variables.state
        self.buffers, step = variables.buffers, variables.step_state
        self.step_state, self.clock, self.gain = step, step.clock, step.gain
        self.skips, self.log = step.skips, step.log
        self.recovery = variables.recovery
        self.n, self.batch_size = variables.key.n, variables.key.batch_size
        sizes = self.buffers.batch_size, self.buffers.block_steps
        scaled = is_scaled(model.optimizer)
        self.watch = watch_over(self.state, self.sampling, *sizes, data, scaled)
        self.planner: Planner = self._planner()
        self.told: list[str] = []
        self.active = False
        self._of_all_rows: tuple[np.ndarray | None, dict[str, float]] | None = None

    def _planner(self) -> Planner:
        common = (self.sampling, self.state, self.buffers, self.log)
        steps = self.variables.key.steps_per_execution
        if not isinstance(self.sampling, Oracle):
            return RAISPlanner(*common, steps, self.watch)
        size = self.sampling.score_batch_size
        scored = scoring_all(self.step_state.scorer, self._data, size, self.verbose)

        def score() -> np.ndarray:
            self.look()
            return scored()

        return OraclePlanner(*common, steps, score, self.watch)

    def start(
        self,
        saved: Mapping[str, Any] | None = None,
        done: float = 0.0,
        ends_on_nan: bool = False,
    ) -> tf.data.Dataset:
        """Plans the first block and returns the dataset of an epoch.

        Args:
            saved: from `state_dict`, to go on there; the sampling state has been
                restored by the caller.
            done: part of the first epoch that was trained already, without `saved`.
            ends_on_nan: whether a callback of Keras ends training at a loss that is not
                finite; else such steps are skipped.
        """
        self.skips.restart(ends_on_nan)
        self.recovery.restart()
        self.active = self.state.in_use = True
        if saved is None:
            self.clock.restart(done)
            self.planner.start()
        else:
            self._load_state_dict(saved)
        self.buffers.start.assign(self.clock.step)
        share, data = self.step_state.share, self._data
        # The iterator of several replicas reads ahead by itself, no further than ours.
        ahead = self.planner.read_ahead if share.all_replicas == 1 else 0
        # With one step an execution `fit` is stopped where the epoch is complete.
        ends = self.variables.key.steps_per_execution > 1 or share.all_replicas > 1
        others = data.transform, self.state.seed, share.replicas, ends
        return batches(self.buffers, Rows(data.arrays), ahead, *others)

    def execution(self, function: Callable[[Any], Any], data: Any) -> tuple[Any, bool]:
        """Trains for one execution.

        Args:
            function: Keras' training function.
            data: its argument.

        Returns:
            Its logs, and whether the epoch is complete.
        """
        self.recovery.begin(self._model, self.clock.step)
        self.planner.prepare(self.clock.step)
        logs = self.skips.logs(self._model, function(data))
        return logs, self.after_execution()

    def after_execution(self) -> bool:
        """Counts the steps done, plans ahead; returns whether the epoch is complete."""
        complete = self.clock.count_execution()
        if complete or self.recovery.due(self.clock.step):
            self.look(complete)
        self.planner.advance(self.clock.step)
        if complete:
            self.buffers.start.assign(self.clock.step)
        if self.skips.too_many(self.clock.step):
            self.planner.catch_up(self.clock.step)
            self.watch.fail(self._too_many_in_a_row())
        self._tell()
        self._raise()
        return complete

    def look(self, epoch_over: bool = False) -> None:
        """Takes training back where an update left anything that is not finite."""
        text = self.recovery.look(self.clock.step, epoch_over)
        if text:
            self.told.append(text)
            warn(text)

    def _too_many_in_a_row(self) -> str:
        at_fault = self.recovery if self.recovery.at_fault else self.watch
        return at_fault.too_many_in_a_row(self.clock.step)

    def _raise(self) -> None:
        if self.watch.error and not self.skips.end_fit:
            self.look()
            parts = (self.watch.error, LAST_FINITE, self.where_saved())
            raise RuntimeError(" ".join(filter(None, parts)))

    def state_dict(self, mid_epoch: bool) -> Callable[[], dict[str, Any]]:
        """Returns a function that collects all that `start` needs, and the state.

        Called between executions. The variables that the training thread changes are
        copied at once. The function waits for the planning thread; call it in any
        thread.

        Args:
            mid_epoch: whether an epoch is under way.
        """
        here = {
            "clock": self.clock.state_dict(mid_epoch),
            "log": self.log.state_dict(),
            "last_layer_gain": np.array(self.step_state.last_layer_gain.averages),
        }
        gain, lead = np.array(self.gain.averages), np.array(self.clock.lead)
        planned = self.planner.state_dict()

        def collect() -> dict[str, Any]:
            planner = planned()
            state = planner.pop("state") | {"gain": gain, "lead": lead}
            return here | {"state": state, "planner": planner}

        return collect

    def _load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self.clock.load_state_dict(saved["clock"])
        self.log.load_state_dict(saved["log"])
        self.step_state.last_layer_gain.averages.assign(saved["last_layer_gain"])
        self.planner.load_state_dict(saved["planner"])

    def _tell(self) -> None:
        while self.watch.warnings:
            self.told.append(self.watch.warnings.pop(0))
            warn(self.told[-1])
        while self.planner.notices:
            self.told.append(self.planner.notices.pop(0))
            self.say(self.told[-1], amid_bar=True)
        plan = self.planner.last_plan
        if plan is not None and plan.importance and self.planner.unbounded:
            warn_of_floor(self._model, self.sampling, plan.largest_weight)
        self._warn_of_failures()

    def _warn_of_failures(self) -> None:
        while self.planner.failures:
            cause = self.planner.failures.pop(0)
            warn_once(
                self._model,
                "planning",
                "Draws must be planned from the gradient norms observed. Received: "
                f"{cause} Training goes on, by the last good fit or else the norms "
                "last observed or else uniformly; `sampling_state.fit_failures` counts "
                "such failures. Look for a loss that overflows; if there is none, "
                "report it.",
            )

    def finish(self) -> None:
        """Ends a `fit`, also a failed one; nothing learned is lost."""
        self.active = self.state.in_use = False
        self.look()
        self.planner.finish(self.clock.step)
        self._warn_of_failures()
        error = self._too_many_in_a_row() if self.skips.too_many() else ""
        self.watch.finish(self.clock.step, error)
        self.recovery.restart()
        self._tell()
        self._data = None  # nor do planner and watch keep it
        if sys.exc_info()[0] is None:  # else this would hide why `fit` ended
            self._raise()

    def of_all_rows(self, p: np.ndarray | None, logged: dict[str, float]) -> None:
        """Takes what several workers know together, to show it from now on.

        Args:
            p: `[n]`, of the rows of all workers, or `None`.
            logged: see the method of this name.
        """
        self._of_all_rows = p, logged

    def own_logged(self) -> dict[str, float]:
        """Returns the numbers of this worker's draws, as `logged`."""
        return logged(self, self._model.optimizer)

    def logged(self) -> dict[str, float]:
        """Returns the numbers `SamplingMonitor` logs; several workers' as gathered."""
        return dict(self._of_all_rows[1]) if self._of_all_rows else self.own_logged()

    def settle(self) -> None:
        """Awaits a plan in the making, so that timing does not change what is read."""
        self.planner.settle()

    def probabilities(self) -> np.ndarray | None:
        """Returns `[n]`, p by the scores as last planned, or `None`.

        That of several workers is of the end of the last epoch.
        """
        if self._of_all_rows:
            return self._of_all_rows[0]
        self.settle()
        return self.planner.candidate

    def say(self, line: str, amid_bar: bool = False) -> None:
        """Prints a line of information, as Keras' callbacks do, unless silent."""
        if self.verbose:
            print("\n" * (amid_bar and self.verbose in (1, "auto")) + line)
