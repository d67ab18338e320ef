"""Keras' own progress bar, with what the sampling makes of an epoch while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import keras

from keras_osgd.gain.clock import Clock, EpochEnds
from keras_osgd.run_directory import LOGGED_ONLY

__all__ = ["ProgressBar", "callback_list"]

_SECONDS = 0.05  # figures are read no more often, as the bar is drawn no more often


class ProgressBar(keras.callbacks.ProgbarLogger):
    """`ProgbarLogger` that shows figures after what the training step logs.

    Only the bar shows them: the logs of other callbacks, and `History`, stay as they
    are. Of what `SamplingMonitor` adds to these the bar shows no more, lest a line be
    wider than the screen. The number of steps is what the epoch will come to.

    Args:
        figures: returns what to show, by name.
        steps_left: returns how many steps the epoch still has, as far as is known.
    """

    async_safe = True

    def __init__(
        self,
        figures: Callable[[], dict[str, float]],
        steps_left: Callable[[], int],
    ) -> None:
        """Shows nothing yet."""
        super().__init__()
        self._figures, self._steps_left = figures, steps_left
        self._shown: dict[str, float] = {}
        self._read_at = -_SECONDS

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Shows logs and figures, as they were a moment ago at most."""
        if self.verbose == 1:
            now = time.monotonic()
            if now - self._read_at >= _SECONDS:
                self._shown, self._read_at = self._figures(), now
                self.progbar.target = batch + 1 + self._steps_left()
            logs = {**(logs or {}), **self._shown}
        super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Shows logs and figures at the end of an epoch, validation last."""
        logs = logs or {}
        logs = {k: v for k, v in logs.items() if k not in LOGGED_ONLY}
        trained = {k: v for k, v in logs.items() if not k.startswith("val_")}
        super().on_epoch_end(epoch, {**trained, **self._figures(), **logs})


def callback_list(
    model: keras.Model,
    given: Any,
    clock: Clock,
    verbose: Any,
    epochs: int,
    steps: int,
    figures: Callable[[], dict[str, float]] = dict,
    record: Callable[[], None] = lambda: None,
) -> keras.callbacks.CallbackList:
    """Returns the callbacks of one `fit`, with `EpochEnds` before all others.

    Args:
        model: in training.
        given: what the user passed as `callbacks`.
        clock: of the model.
        verbose: as in `fit`.
        epochs: as in `fit`.
        steps: effective iterations of an epoch.
        figures: see `ProgressBar`.
        record: see `EpochEnds`.
    """
    callbacks = given
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        flat = keras.tree.flatten(given) if given else []
        # Those that add to the logs come before those that read them.
        flat.sort(key=lambda c: not getattr(c, "before_other_callbacks", False))
        if verbose != 0 and not any(map(_is_bar, flat)):
            flat.append(ProgressBar(figures, clock.steps_left))
        callbacks = keras.callbacks.CallbackList(
            flat,
            add_history=True,
            verbose=verbose,
            epochs=epochs,
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
