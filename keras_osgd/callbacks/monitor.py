"""Puts what the sampler does into Keras' logs, and into files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_osgd.base.warn import warn
from keras_osgd.callbacks.events import Events, require_tensorboard
from keras_osgd.callbacks.run_log import RunLog, probabilities_of, run_of
from keras_osgd.fit.fit_callback import FitCallback

__all__ = ["SamplingMonitor"]


class SamplingMonitor(FitCallback):
    """Adds figures of the sampling to the logs of each epoch, and writes a run's files.

    History, CSVLogger and every tracker then show them, and the progress bar the gain
    ratio and the effective epochs. What planning works out (the first five) is of the
    steps that the last plan took in, so older than the epoch's end by up to a block:

    | key | meaning |
    |---|---|
    | gain_ratio | mean of r, by which steps count; 1 while draws are uniform |
    | candidate_gain_ratio | the same for draws by the scores, drawn so or not |
    | gradient_ess | (sum w v)^2 / (k sum (w v)^2) of the last k draws, in (0, 1] |
    | largest_weight | largest importance weight that could be drawn |
    | share_unseen | share of the examples of which no norm was taken in yet |
    | gain_ratio_exact | r right now by exact norms, where those are taken |
    | gain_ratio_last_layer | the same by the last layer's, to check these |
    | effective_epochs | progress so far, in epochs of uniform training |
    | sampling_share | seconds of planning (beside the steps) and waiting, over all |
    | share_pooled | only with `Presample`: share of the steps that drew from a pool |
    | scoring_seconds | only with the oracle: spent on scoring since `fit` began |
    | learning_rate_applied | of the last step: the rate set times r, or its root |

    With `log_dir` there are files as well, for `keras_osgd.plots`, for `python -m
    keras_osgd report` and for TensorBoard: history.csv (a row for each epoch, with
    steps, seconds without validation but with TensorFlow's tracing, and percentiles of
    n p), run.json (settings and alarms), examples.csv (the most drawn), sampling.npz
    and event files. They are brought up to date after every epoch, and whole after a
    kill. A `fit` that `Checkpoint` resumes, or one with `initial_epoch`, goes on with
    them; one from epoch 0 on starts them afresh, and warns. Uniform training and plain
    Keras models can be logged too.

    Args:
        log_dir: directory of the run, made if it is missing; `None` writes nothing.
        tensorboard: whether event files are among what is written.

    Raises:
        ImportError: if there are to be event files and TensorBoard is not installed.
        ValueError: if `log_dir` is no directory to write into.

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
        self._events: Events | None = None
        self._tensorboard = tensorboard and log_dir is not None
        if self._tensorboard:
            require_tensorboard()
        self._log = None if log_dir is None else RunLog(log_dir)
        self._begun = self._failed = False

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Begins the files anew with the first epoch."""
        self._begun = self._failed = False

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Takes over what there is of the epochs before."""
        if self._log is not None and not self._begun:
            self._begun = True
            self._tried(self._begin, epoch)

    def _begin(self, epoch: int) -> None:
        self._log.begin(self.model, epoch, self.params)
        if self._tensorboard:
            self._events = Events(self._log.files.directory, self._log.fresh)

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Lets validation take none of the seconds."""
        if self._log is not None:
            self._log.pause()

    def on_test_end(self, logs: dict | None = None) -> None:
        """Lets seconds count again."""
        if self._log is not None:
            self._log.go_on()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Adds the figures, and writes them."""
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
        """Says in the files that training is complete."""
        self._end("complete")

    def close(self) -> None:
        """Adds alarms and draws of the last steps, however a `fit` ended."""
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
        """Lets training outlive a full disk, and warns of it once in a `fit`."""
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
        """Returns `[n]`, the probabilities of the scores as last planned, or `None`."""
        return probabilities_of(self.model)
