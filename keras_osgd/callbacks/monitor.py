"""The `SamplingMonitor` callback: numbers about the sampling, in logs and files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_osgd.base.replicas import share_of
from keras_osgd.base.warn import warn
from keras_osgd.callbacks.events import Events, require_tensorboard
from keras_osgd.callbacks.run_log import RunLog, probabilities_of, run_of
from keras_osgd.fit.fit_callback import FitCallback
from keras_osgd.sampling import require_flag

__all__ = ["SamplingMonitor"]


class SamplingMonitor(FitCallback):
    """Adds numbers about the sampling to each epoch's logs, and writes a run's files.

    History, CSVLogger and every tracker then show them; the progress bar shows the gain
    ratio and the effective epochs. Planning computes the first five from the steps that
    the last plan took in, so they lag the epoch's end by up to a block. Before a
    plan took in any, gain_ratio is that of the last step:

    | key | meaning |
    |---|---|
    | gain_ratio | mean of r, a step's effective iterations; 1 for uniform draws |
    | candidate_gain_ratio | the same for draws by the scores, used or not |
    | gradient_ess | (sum w v)^2 / (k sum (w v)^2) of the last k draws, in (0, 1] |
    | largest_weight | largest importance weight that could be drawn |
    | share_unseen | share of the examples without an observed norm so far |
    | gain_ratio_exact | current r by exact norms, where the run takes these |
    | gain_ratio_last_layer | current r by the last layer's norms, to check them |
    | effective_epochs | progress so far, in epochs of uniform training |
    | sampling_share | share of time for planning (beside the steps) and waiting |
    | share_pooled | only with `Presample`: share of the steps that drew from a pool |
    | scoring_seconds | only with the oracle: seconds of scoring since `fit` began |
    | learning_rate_applied | in the last step: the rate set, times r or its root |

    `log_dir` adds files for `keras_osgd.plots`, for `python -m keras_osgd report` and
    for TensorBoard: history.csv (a row for each epoch, with steps, percentiles of n p,
    and seconds without validation but with TensorFlow's tracing), run.json (settings
    and alarms), examples.csv (the most drawn), sampling.npz and event files. They are
    updated after every epoch, and a kill leaves them whole. A `fit` that `Checkpoint`
    resumes, or one with `initial_epoch`, continues the files; a `fit` from epoch 0
    starts them afresh, and warns. Uniform training and plain Keras models can be logged
    too. Of several workers the first one writes the files; numbers are means over all.

    Args:
        log_dir: directory of the run, made if it is missing; `None` writes nothing.
        tensorboard: whether to write event files too.

    Raises:
        ImportError: if event files are to be written and TensorBoard is not installed.
        ValueError: if `log_dir` is not a directory to write into.

    Example:
        >>> monitor = SamplingMonitor()
        >>> monitor.probabilities() is None  # before training
        True
    """

    async_safe = True
    adds_to_logs = True

    def __init__(
        self, log_dir: str | os.PathLike | None = None, tensorboard: bool = True
    ) -> None:
        """Makes the directory."""
        super().__init__()
        require_flag("tensorboard", tensorboard)
        self._events: Events | None = None
        self._tensorboard = tensorboard and log_dir is not None
        if self._tensorboard:
            require_tensorboard()
        self._log = None if log_dir is None else RunLog(log_dir)
        self._begun = self._failed = False

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Lets the first epoch begin the files."""
        self._begun = self._failed = False

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Begins the files in the first epoch, and keeps the rows of earlier epochs."""
        first = share_of(self.model.distribute_strategy).rank == 0
        if self._log is not None and not self._begun and first:
            self._begun = True
            self._tried(self._begin, epoch)

    def _begin(self, epoch: int) -> None:
        self._log.begin(self.model, epoch, self.params)
        if self._tensorboard:
            self._events = Events(self._log.files.directory, self._log.fresh)

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Stops the clock during validation."""
        if self._log is not None:
            self._log.pause()

    def on_test_end(self, logs: dict | None = None) -> None:
        """Starts the clock again."""
        if self._log is not None:
            self._log.go_on()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Adds the numbers to the logs, and writes the files."""
        run = run_of(self.model)
        if logs is not None and run is not None:
            logs.update(run.logged())
        if self._begun:
            self._tried(self._write, epoch, logs or {})

    def _write(self, epoch: int, logs: dict) -> None:
        row = self._log.end_epoch(self.model, epoch, logs)
        if self._events is not None:
            self._events.write(epoch + 1, row, self.probabilities())

    def on_train_end(self, logs: dict | None = None) -> None:
        """Notes in the files that training is complete."""
        self._end("complete")

    def close(self) -> None:
        """Adds alarms and draws of the last steps, however the `fit` ended."""
        error = sys.exc_info()[1]
        cause = f"ended by {type(error).__name__}: {error}".removesuffix(": ")
        self._end("" if error is None else cause)
        if self._begun:
            self._tried(self._log.close, self.model)

    def _end(self, status: str) -> None:
        if self._begun:
            self._tried(self._log.end, self.model, status)
        if self._events is not None:
            self._events.close()
        self._events = None

    def _tried(self, function: Callable[..., None], *args: Any) -> None:
        """Calls a function that writes; a full disk only warns, once in a `fit`."""
        try:
            function(*args)
        except OSError as error:
            if not self._failed:
                warn(
                    "The run's files must be written into "
                    f"{self._log.files.directory}. Received: {error}. Training goes "
                    "on: make room, or mend the disk."
                )
            self._failed = True

    def probabilities(self) -> np.ndarray | None:
        """Returns `[n]`, p by the scores at the last plan, or `None`."""
        return probabilities_of(self.model)
