"""The `Checkpoint` callback: saves a training run and resumes it."""

from __future__ import annotations

import datetime
import functools
import math
import os
import pathlib
from typing import Any, Literal

import keras
import numpy as np

from keras_osgd.base import keras_compat
from keras_osgd.base.directory_lock import DirectoryLock
from keras_osgd.callbacks import checkpoint_files, keras_memory, method, snapshot
from keras_osgd.callbacks.writer import Interruption, Schedule, Writer
from keras_osgd.data.training_data import TrainingData
from keras_osgd.fit.fit_callback import Resumed, ResumingCallback
from keras_osgd.fit.run import RunVariables

__all__ = ["Checkpoint"]


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
            the checkpoints belong to another model, optimizer or data, or if all are
            damaged.
        RuntimeError: in `fit`, before any step, if another `fit`, of this process or
            another, writes into the directory: the file in_use.lock there tells which.
            A process that was killed is noticed, one of another host after two minutes.
            Also after three failed writes in a row; earlier ones warn.

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
    ) -> Resumed:
        """Finds where a `fit` resumes; called by `fit` before its run is made.

        Args:
            model: compiled; it need not be built without importance sampling.
            variables: the run's; `None` without importance sampling.
            data: the training data; `None` likewise.
            epochs: as in `fit`.
            initial_epoch: as in `fit`.
            steps: effective iterations of an epoch; `None` likewise.

        Returns:
            The epoch to begin with, and the saved state to go on from, or `None`.
        """
        self._lock = lock = checkpoint_files.claimed(self.directory)
        self._saved = saved = self._newest(model)
        self._data, self._epoch = data, initial_epoch
        self._about = dict(epochs=epochs, n=None, scores=self.scores)
        path, passed_over = (saved.path, saved.passed_over) if saved else (None, ())
        self._writer = Writer(
            self.directory, self._schedule.keep, path, lock.require, passed_over
        )
        self._about["method"] = as_compiled = method.described(model)
        if model.built:
            as_compiled |= method.layers_of(model)
        if data is not None:
            own = None if steps == math.ceil(data.n / data.batch_size) else steps
            found = dict(n=data.n, columns=data.columns(), steps_per_epoch=own)
            self._about |= found
            self._probes = data.probes()
        resumed = Resumed(initial_epoch)
        if saved is not None:
            if model.built:  # else `on_train_begin` does
                snapshot.require_same(model, saved)
            setter = method.rate_setter(self._others)
            resumed = snapshot.resume(variables, data, saved, self._about, setter)
            method.keep_rate(as_compiled, saved.details)
        self._epoch, self._exact = resumed.epoch, resumed.saved is not None
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
        if not self.model.stop_training:  # else `on_epoch_end` decides
            self._save_or_end(mid_epoch=True)

    def on_test_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Saves if interrupted: the user may not wait for the end of validation."""
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
        snapshot.load_state_dict(model, saved)
        state = getattr(model, "sampling_state", None)
        if state is not None:
            state.load_state_dict(saved.arrays.get("state", {}))
        return saved.path

    def _newest(self, model: keras.Model) -> checkpoint_files.Saved | None:
        fault_of = functools.partial(snapshot.fault_of, model)
        return checkpoint_files.newest(self.directory, fault_of)

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
        captured = snapshot.state_dict(model, run, mid_epoch)

        def all_of_it() -> tuple[dict[str, Any], dict[str, Any]]:
            arrays, details = captured()
            bad = snapshot.not_finite(model, arrays["variables"], constants)
            if bad:
                raise FloatingPointError(f"NaN or infinity in {', '.join(bad)}")
            details["infinite"] = constants
            arrays = {**arrays, "probes": self._probes, "callbacks": best}
            return arrays, {**about, **details}

        self._writer.write(all_of_it)
        self._schedule.restart()

    def _save_or_end(self, mid_epoch: bool) -> None:
        if self._interruption.noted is None:
            if self._schedule.due and not self._writer.busy:
                self._save(mid_epoch)
            return
        self._save(mid_epoch)
        self._writer.wait()
        self._interruption.obey(f"training ends. {self._writer.where_saved()}")
