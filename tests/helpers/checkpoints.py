"""Runs with checkpoints, for tests and for the endurance checks."""

import signal

import keras
import numpy as np
import pytest

import keras_osgd
from keras_osgd.callbacks import Checkpoint
from tests.helpers import small


class EveryState(Checkpoint):
    """Waits until each checkpoint is written, so that there is one of every state."""

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        self._writer.wait()


def net(sampling, steps_per_execution=1):
    """A model with all kinds of state: momentum, seeds, normalisation statistics."""
    keras.utils.set_random_seed(0)
    model = keras_osgd.Sequential(
        [
            keras.Input((4,)),
            keras.layers.GaussianNoise(0.1),
            keras.layers.Dense(8, "relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(3),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        small.crossentropy(),
        metrics=["accuracy"],
        sampling=sampling,
        steps_per_execution=steps_per_execution,
    )
    return model


def state_of(model):
    """All that a resumed run must share with the uninterrupted one."""
    state = model.sampling_state
    return [
        *(np.array(v) for v in model.variables + model.optimizer.variables),
        *(state.state_dict()[name] for name in sorted(state.state_dict())),
    ]


def saved_midway(directory, sampling, epochs=4, stop_after=20, callbacks=(), **options):
    """Trains until a step ends it like a kill, after a checkpoint of the one before."""

    class Killed(Exception):
        pass

    class Kill(keras.callbacks.Callback):
        steps = 0

        def on_train_batch_end(self, batch, logs=None):
            self.steps += 1
            if self.steps > stop_after:
                raise Killed

    model = net(sampling)
    every, keep = options.pop("every", stop_after), options.pop("keep", 2)
    scores = options.pop("scores", "keep")
    saving = EveryState(directory, every=every, keep=keep, scores=scores)
    given = [*callbacks, Kill(), saving]
    with pytest.raises(Killed):
        small.fit(model, epochs=epochs, callbacks=given, **options)
    return model


def going_on(directory, sampling, capsys, x=small.X, y=small.Y, **options):
    """Goes on from a directory and returns the model and what was printed."""
    model = options.pop("model", None) or net(sampling)
    capsys.readouterr()
    callback = Checkpoint(directory, scores=options.pop("scores", "keep"))
    options = {"epochs": 4, "verbose": 2, "callbacks": [callback], **options}
    small.fit(model, x, y, **options)
    return model, capsys.readouterr().out


ENDS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}
