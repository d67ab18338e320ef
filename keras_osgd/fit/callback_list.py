"""The callbacks of one `fit`: the user's, the bar, and the ends of epochs."""

from __future__ import annotations

from collections.abc import Callable

import keras

from keras_osgd.fit.arguments import FitArguments
from keras_osgd.fit.checks import warn_of_monitors
from keras_osgd.fit.fit_callback import FitCallback
from keras_osgd.fit.progress_bar import ProgressBar
from keras_osgd.gain.clock import Clock
from keras_osgd.pools.stream_run import StreamClock

__all__ = ["EpochEnds", "callback_list", "ends_on_nan"]


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
    warn_of_monitors(model, callbacks.callbacks)
    bars = list(filter(_is_bar, callbacks.callbacks))
    ends = EpochEnds(clock, steps, bars[0] if bars else None, record)
    ends.set_params(callbacks.params)
    ends.set_model(model)
    callbacks.callbacks.insert(0, ends)
    return callbacks


def ends_on_nan(callbacks: keras.callbacks.CallbackList) -> bool:
    """Returns whether a callback ends training at a loss that is not finite."""
    kind = keras.callbacks.TerminateOnNaN
    return any(isinstance(callback, kind) for callback in callbacks.callbacks)


def _is_bar(callback: keras.callbacks.Callback) -> bool:
    return isinstance(callback, keras.callbacks.ProgbarLogger)
