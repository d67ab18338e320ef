"""Keras' own progress bar, with numbers of the sampling while an epoch runs."""

from __future__ import annotations

import time
from collections.abc import Callable

import keras

from keras_osgd.fit.arguments import FitArguments
from keras_osgd.fit.fit_callback import FitCallback
from keras_osgd.gain.clock import Clock
from keras_osgd.pools.stream_run import StreamClock
from keras_osgd.run_directory import LOGGED_ONLY

__all__ = ["EpochEnds", "ProgressBar", "callback_list"]

_SECONDS = 0.05  # numbers are read no more often, as the bar is drawn no more often


class ProgressBar(keras.callbacks.ProgbarLogger):
    """`ProgbarLogger` that shows numbers of the sampling after the logs of the step.

    Only the bar shows them: the logs of other callbacks, and `History`, stay as they
    are. The bar leaves out the other numbers that `SamplingMonitor` adds, so that a
    line fits the screen. Its number of steps is the expected length of the epoch.

    Args:
        shown: returns the numbers to show, by name.
        steps_left: returns how many steps the epoch still has, as far as is known.
    """

    async_safe = True

    def __init__(
        self,
        shown: Callable[[], dict[str, float]],
        steps_left: Callable[[], int],
    ) -> None:
        """Shows nothing yet."""
        super().__init__()
        self._current, self._steps_left = shown, steps_left
        self._shown: dict[str, float] = {}
        self._read_at = -_SECONDS

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Shows logs, and numbers of the sampling that are at most `_SECONDS` old."""
        if self.verbose == 1:
            now = time.monotonic()
            if now - self._read_at >= _SECONDS:
                self._shown, self._read_at = self._current(), now
                self.progbar.target = batch + 1 + self._steps_left()
            logs = {**(logs or {}), **self._shown}
        super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Shows logs and numbers of the sampling after an epoch, validation last."""
        logs = logs or {}
        logs = {k: v for k, v in logs.items() if k not in LOGGED_ONLY}
        trained = {k: v for k, v in logs.items() if not k.startswith("val_")}
        super().on_epoch_end(epoch, {**trained, **self._current(), **logs})


class EpochEnds(keras.callbacks.Callback):
    """Begins and ends the epochs of one `fit`, before all other callbacks.

    Args:
        clock: of the run.
        effective_iterations: of an epoch, ordinarily ceil(n/m).
        progress_bar: Keras' own, or `None`; after each epoch it shows the true number
            of steps.
        record: called when an epoch has ended, before other callbacks.
    """

    async_safe = True

    def __init__(
        self,
        clock: Clock | StreamClock,
        effective_iterations: int,
        progress_bar: keras.callbacks.ProgbarLogger | None,
        record: Callable[[], None] = lambda: None,
    ) -> None:
        """Keeps the arguments."""
        super().__init__()
        self._clock = clock
        self._effective_iterations = effective_iterations
        self._progress_bar = progress_bar
        self._record = record
        self._first_step = 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Sets where the epoch ends."""
        self._first_step = self._clock.step
        self._clock.begin_epoch(self._effective_iterations)
        if self._progress_bar is not None:
            self._progress_bar.target = self._effective_iterations

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Lets training go on, and ends the bar at the epoch's last step."""
        self.model.sampling_held.begin_next_epoch()
        self._record()
        bar = self._progress_bar
        if bar is not None and bar.progbar is not None:
            bar.target = bar.progbar.target = self._clock.step - self._first_step


def callback_list(
    model: keras.Model,
    arguments: FitArguments,
    clock: Clock | StreamClock,
    steps: int,
    shown: Callable[[], dict[str, float]] = dict,
    record: Callable[[], None] = lambda: None,
) -> keras.callbacks.CallbackList:
    """Returns the callbacks of one `fit`, with `EpochEnds` before all others.

    Args:
        model: in training.
        arguments: of `fit`.
        clock: of the run.
        steps: effective iterations of an epoch.
        shown: see `ProgressBar`.
        record: see `EpochEnds`.
    """
    callbacks, verbose = arguments.callbacks, arguments.verbose
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        flat = keras.tree.flatten(callbacks) if callbacks else []
        # Those that add to the logs come before those that read them.
        flat.sort(key=lambda c: not (isinstance(c, FitCallback) and c.adds_to_logs))
        if verbose != 0 and not any(map(_is_bar, flat)):
            flat.append(ProgressBar(shown, clock.steps_left))
        callbacks = keras.callbacks.CallbackList(
            flat,
            add_history=True,
            verbose=verbose,
            epochs=arguments.epochs,
            steps=steps,
            model=model,
        )
    bars = list(filter(_is_bar, callbacks.callbacks))
    ends = EpochEnds(clock, steps, bars[0] if bars else None, record)
    ends.set_params(callbacks.params)
    ends.set_model(model)
    callbacks.callbacks.insert(0, ends)
    return callbacks


def _is_bar(callback: keras.callbacks.Callback) -> bool:
    return isinstance(callback, keras.callbacks.ProgbarLogger)
