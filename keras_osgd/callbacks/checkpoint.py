"""The `Checkpoint` callback: saves a training run and resumes it."""

from __future__ import annotations

import datetime
import functools
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base import keras_compat
from keras_osgd.base.directory_lock import DirectoryLock
from keras_osgd.base.replicas import Share, share_of
from keras_osgd.base.workers import agreed, gathered
from keras_osgd.callbacks import (
    checkpoint_files,
    keras_memory,
    method,
    snapshot,
    together,
)
from keras_osgd.callbacks.writer import Interruption, Schedule, Writer
from keras_osgd.data.training_data import TrainingData
from keras_osgd.fit.fit_callback import Resumed, ResumingCallback
from keras_osgd.fit.run import RunVariables

__all__ = ["Checkpoint"]

_LOOK = 8  # steps after which several workers tell each other of signals


class Checkpoint(ResumingCallback):
    """Saves a training run, so that the same `fit` resumes where it ended.

    `fit` resumes from the newest intact checkpoint in the directory. With importance
    sampling it resumes bit for bit, in the middle of an epoch as well; with "uniform"
    and `Presample` the interrupted epoch starts over. A checkpoint holds the model, the
    optimizer, seeds, metrics, all that was learned and planned about the examples, and
    the state of `EarlyStopping`, `ReduceLROnPlateau` and `ModelCheckpoint`. The
    training thread only copies variables; another thread writes the files. Ctrl-C and
    SIGTERM end training after the current execution, with a checkpoint. Once training
    is complete, the same `fit` trains no further; one with more `epochs` goes on.

    Under `MultiWorkerMirroredStrategy` all workers share one directory. The first one
    writes the model, each one what it knows of its own rows, all at the same step. If a
    worker dies, `fit` of the others ends with a `RuntimeError`; started again on all,
    it goes on bit for bit. A signal to one of them ends training on all. With another
    number of workers the rows' scores go to the rows' new owners.

    Args:
        directory: of the checkpoints, one for each training run; made if missing.
        every: "epoch", a number of steps, or a `datetime.timedelta`. A checkpoint that
            falls due while another is being written is saved after it.
        keep: number of checkpoints kept; a damaged one is skipped if one is intact.
            Weights, statistics or optimizer slots that are not finite are never saved.
        scores: "keep" starts those of rows that changed afresh, and refuses data of
            which more than half of the rows did; "reset" starts all of them afresh,
            once, to train on other data with the weights of a checkpoint.

    Raises:
        ValueError: if an argument is none of the above; in `fit`, before any step, if
            the checkpoints belong to another model, optimizer or data, if all are
            damaged, or if the workers do not share the directory.
        RuntimeError: in `fit`, before any step, if another `fit`, of this process or
            another, writes into the directory: the file in_use.lock there tells which.
            A process that was killed is noticed, one of another host after two minutes.
            Also after three failed writes in a row (earlier ones warn), and if another
            worker is lost.

    Example:
        >>> import tempfile
        >>> import keras_osgd
        >>> import numpy as np
        >>> model = keras_osgd.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> x, y = np.ones([8, 2]), np.ones([8])
        >>> checkpoint = Checkpoint(tempfile.mkdtemp(), every=100)
        >>> history = model.fit(x, y, epochs=2, verbose=0, callbacks=[checkpoint])
        >>> checkpoint.newest.name
        'checkpoint-00000001.npz'
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        every: Literal["epoch"] | int | datetime.timedelta = "epoch",
        keep: int = 2,
        scores: Literal["keep", "reset"] = "keep",
    ) -> None:
        """Checks and keeps the configuration."""
        super().__init__()
        if scores not in ("keep", "reset"):
            raise ValueError(
                f'`scores` must be "keep" or "reset". Received: scores={scores!r}. '
                '"reset" is for training on with other data.'
            )
        if not isinstance(directory, str | os.PathLike):
            raise ValueError(
                f"`directory` must be a path. Received: directory={directory!r}. Name "
                "the directory to write checkpoints into."
            )
        self.directory = pathlib.Path(directory)
        self.scores = scores
        self._schedule = Schedule(every, keep)
        self._interruption = Interruption()
        self._saved: checkpoint_files.Saved | None = None
        self._data: TrainingData | None = None
        self._about: dict[str, Any] = {}
        self._probes = np.zeros(0)
        self._writer: Writer | None = None
        self._lock: DirectoryLock | None = None
        self._strategy, self._share = tf.distribute.get_strategy(), Share()
        self._batches = 0  # of training and validation, alike on all workers
        self._epoch, self._exact = 0, False
        self._infinite: list[int] = []
        self._others: list[keras.callbacks.Callback] = []

    @property
    def newest(self) -> pathlib.Path | None:
        """Path of the newest checkpoint known to be written, or `None`."""
        return None if self._writer is None else self._writer.newest

    def where_saved(self) -> str:
        """Returns a sentence on the last good checkpoint, or nothing."""
        return "" if self._writer is None else self._writer.where_saved()

    def begin(
        self,
        model: keras.Model,
        variables: RunVariables | None,
        data: TrainingData | None,
        epochs: int,
        initial_epoch: int,
        steps: int | None = None,
        whole: TrainingData | None = None,
    ) -> Resumed:
        """Finds where a `fit` resumes; called by `fit` before its run is made.

        All workers of a strategy call it together.

        Args:
            model: compiled; it need not be built without importance sampling.
            variables: the run's; `None` without importance sampling.
            data: the training data, this worker's rows; `None` likewise.
            epochs: as in `fit`.
            initial_epoch: as in `fit`.
            steps: effective iterations of an epoch; `None` likewise.
            whole: the training data of all workers; `None` likewise.

        Returns:
            The epoch to begin with, and the saved state to go on from, or `None`.
        """
        strategy = self._strategy = model.distribute_strategy
        self._share, self._data, self._epoch = share_of(strategy), data, initial_epoch
        agreed(strategy, self._claim)
        together.require_shared(strategy, self.directory)
        self._saved = saved = self._newest(model)
        path, passed_over = (saved.path, saved.passed_over) if saved else (None, ())
        own = self._lock.require if self._lock else bool  # it is the first worker's
        given = self.directory, self._schedule.keep, path, own, passed_over, strategy
        self._writer = Writer(*given)
        self._about = dict(epochs=epochs, n=None, n_of_all=None, scores=self.scores)
        self._about["workers"] = self._share.workers
        self._about["method"] = method.described(model)
        if model.built:
            self._about["method"] |= method.layers_of(model)
        if data is not None:
            usual = math.ceil(whole.n / whole.batch_size)
            self._about |= dict(n=data.n, n_of_all=whole.n, columns=data.columns())
            self._about["steps_per_epoch"] = None if steps == usual else steps
            self._probes = data.probes()
        if saved is not None and model.built:  # else `on_train_begin` does
            snapshot.require_same(model, saved)
        resumed = agreed(strategy, self._resumed, variables, whole)
        self._epoch, self._exact = resumed.epoch, resumed.saved is not None
        return resumed

    def _claim(self) -> None:
        """Takes the directory, for all workers, if this is the first of them."""
        if self._share.rank == 0:
            self._lock = checkpoint_files.claimed(self.directory)
        else:
            self.directory.mkdir(parents=True, exist_ok=True)

    def _resumed(
        self, variables: RunVariables | None, whole: TrainingData | None
    ) -> Resumed:
        """Returns where to begin; makes the checkpoint one of this worker's rows."""
        if self._saved is None:
            return Resumed(self._epoch)
        identity = None if variables is None else variables.state.identity
        given = self._share, self._data, whole, identity
        self._saved = saved = together.of_worker(self._saved, *given)
        setter = method.rate_setter(self._others)
        resumed = snapshot.resume(variables, self._data, saved, self._about, setter)
        method.keep_rate(self._about["method"], saved.details)
        return resumed

    def after(self, callbacks: list[keras.callbacks.Callback]) -> None:
        """Takes the last place: changes that others make to the model are saved too."""
        self._others = [callback for callback in callbacks if callback is not self]
        callbacks[:] = [*self._others, self]

    def set_model(self, model: keras.Model) -> None:
        """Takes the model; refuses one that is not of keras_osgd and cannot resume."""
        if not hasattr(model, "sampling_held"):
            raise ValueError(
                "`Checkpoint` must train a model of keras_osgd. Received: "
                f"{type(model).__name__}. Call `keras_osgd.accelerate(model)` first, "
                "or use `keras.callbacks.BackupAndRestore`."
            )
        super().set_model(model)

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Restores the checkpoint, after the other callbacks have begun."""
        if "layers" not in self._about["method"]:  # now the model is built
            self._about["method"] |= method.layers_of(self.model)
        if self._saved is not None:
            keras_compat.forget_initial_epoch(self.model)  # `BackupAndRestore` sets one
            self._restore()
        self._infinite = snapshot.infinite(self.model)
        self._interruption.listen()
        self._schedule.restart()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Restores a mid-epoch state again, as the epoch's beginning has changed it."""
        self._epoch = epoch
        saved, data = self._saved, self._data
        if saved is not None and data is not None and saved.details["mid_epoch"]:
            snapshot.load_metrics(self.model, data, saved)
            self._restore()  # last: metrics are built by a call, which may move seeds
        self._saved = None

    def _restore(self) -> None:
        saved = self._saved
        snapshot.load_state_dict(self.model, saved)
        if self._exact:  # `BackupAndRestore` may have loaded earlier scores
            self.model.sampling_state.load_state_dict(saved.arrays["state"])
        weights = saved.arrays.get("callbacks", {})
        keras_memory.load_state_dict(self._others, saved.details["callbacks"], weights)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Saves if it is time, and ends training if it was interrupted."""
        self._schedule.count(self.model.steps_per_execution)
        self._batches += 1
        if not self.model.stop_training:  # else `on_epoch_end` decides
            self._save_or_end(mid_epoch=True)

    def on_test_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Saves if interrupted: the user may not wait for the end of validation."""
        self._batches += 1
        if self._share.workers > 1 and (self._batches % _LOOK or not self._told()[0]):
            return
        if self._interruption.is_new():
            self._epoch += 1
            self._save(mid_epoch=False)
            self._writer.wait()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Saves if it is time, and ends training if it was interrupted."""
        self._epoch = epoch + 1
        self._schedule.count(0, epoch_over=True)
        if not self.model.stop_training:  # else `on_train_end` saves
            self._save_or_end(mid_epoch=False)

    def on_train_end(self, logs: dict | None = None) -> None:
        """Saves the last checkpoint, and waits until it is written."""
        if self._saved is None:  # else nothing was trained
            self._save(mid_epoch=False, finished=True)
            self._writer.wait()

    def close(self) -> None:
        """Ends writing and signal handling; called by `fit`, however it ended."""
        self._saved = self._data = None
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            if self._lock is not None:
                self._lock.release()
            self._lock = None
        self._interruption.end()

    def restore(self, model: keras.Model) -> pathlib.Path:
        """Loads weights, optimizer and scores of the newest intact checkpoint.

        Args:
            model: built, and compiled as in training.

        Returns:
            The path it was loaded from.

        Raises:
            ValueError: if there is no checkpoint, or it belongs to another model.
        """
        saved = self._newest(model)
        if saved is None:
            raise ValueError(
                f"There must be a checkpoint to restore. Received: {self.directory} "
                "with none. Train with this callback first."
            )
        saved = together.of_worker(saved, share_of(model.distribute_strategy))
        snapshot.load_state_dict(model, saved)
        state = getattr(model, "sampling_state", None)
        if state is not None:
            state.load_state_dict(saved.arrays.get("state", {}))
        return saved.path

    def _newest(self, model: keras.Model) -> checkpoint_files.Saved | None:
        fault_of = functools.partial(snapshot.fault_of, model)
        given = self.directory, fault_of, model.distribute_strategy
        return checkpoint_files.newest(*given)

    def _save(self, mid_epoch: bool, finished: bool = False) -> None:
        """Copies the state of training, and hands it to the writing thread."""
        sampled = self.model.sampling_run
        if sampled is not None and sampled.active:
            sampled.look()  # what is not finite is not saved
        model, constants = self.model, self._infinite
        about = {**self._about, "epoch": self._epoch, "finished": finished}
        about["callbacks"], best = keras_memory.state_dict(self._others)
        about["altered"] = keras_memory.altered(self.model, self._others, self._epoch)
        # Uniform training and streams have no run to resume.
        run = None if self._data is None else sampled
        captured = snapshot.state_dict(model, run, mid_epoch, self._share.rank == 0)

        def all_of_it() -> tuple[dict[str, Any], dict[str, Any]]:
            arrays, details = captured()
            bad = snapshot.not_finite(model, arrays["variables"], constants)
            if bad:
                raise FloatingPointError(f"NaN or infinity in {', '.join(bad)}")
            details["infinite"] = constants
            arrays = {**arrays, "probes": self._probes}
            if self._share.rank == 0:
                arrays["callbacks"] = best
            return arrays, {**about, **details}

        self._writer.write(all_of_it)
        self._schedule.restart()

    def _save_or_end(self, mid_epoch: bool) -> None:
        ends, saves = self._decided(mid_epoch)
        if ends or saves:
            self._save(mid_epoch)
        if ends:
            self._writer.wait()
            line = f"training ends. {self._writer.where_saved()}"
            self._interruption.obey(line)

    def _decided(self, mid_epoch: bool) -> tuple[bool, bool]:
        """Returns whether training ends here, and whether a checkpoint is due.

        Several workers decide together, after some steps, and complete the checkpoint
        that all have written.
        """
        due, writer = self._schedule.due, self._writer
        if self._share.workers == 1:
            return self._interruption.noted is not None, due and not writer.busy
        at_once = due and self._schedule.by_steps or not mid_epoch
        if not at_once and self._batches % _LOOK:
            return False, False
        written = writer.under_way and not writer.busy
        ends, told = self._told([due, written])
        if told[:, 1].all():
            writer.wait()
        return ends, bool(told[:, 0].all()) and not writer.under_way

    def _told(self, more: Sequence[bool] = ()) -> tuple[bool, np.ndarray]:
        """Returns whether any worker got a signal, and what else each of them told."""
        own = np.array([self._interruption.noted or 0, *more], np.int64)
        told = np.stack(gathered(self._strategy, own))
        signal = int(told[:, 0].max())
        if signal:
            self._interruption.adopt(signal)
        return signal > 0, told[:, 1:]
