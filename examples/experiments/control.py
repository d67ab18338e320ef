"""The control: the same steps at the same rates, and only the draws differ.

RAIS trains, and leaves the gain ratio of each of its steps. Plain Keras then trains the
same initial weights for as many steps, twice: with those ratios in place of its own, so
that its rate is that of RAIS at every step (and so are the decays of Adam's averages);
and with its own schedule, shortened to so many steps.
"""

import contextlib
import math
from collections.abc import Iterator
from unittest import mock

import keras
import tensorflow as tf

from keras_osgd.gain import learning_rate


class Trajectory:
    """Gain ratio and lead of every step of a run.

    Args:
        most: steps that the run may take.
    """

    def __init__(self, most: int) -> None:
        self._values = tf.Variable(tf.zeros([most, 2]), trainable=False)

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Keeps what `learning_rate.adapted` is given while RAIS trains."""
        adapted = learning_rate.adapted

        @contextlib.contextmanager
        def keeping(optimizer, gain, lead):
            values = tf.stack([tf.cast(gain, tf.float32), tf.cast(lead, tf.float32)])
            place = tf.convert_to_tensor(optimizer.iterations)[None, None]
            self._values.scatter_nd_update(place, values[None])
            with adapted(optimizer, gain, lead):
                yield

        with mock.patch.object(learning_rate, "adapted", keeping):
            yield

    def replay(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Makes plain training with a fresh optimizer take the steps that were kept."""
        apply = optimizer.apply

        def replayed(gradients, variables=None):
            gain, lead = tf.unstack(
                self._values[tf.cast(optimizer.iterations, tf.int32)]
            )
            with learning_rate.adapted(optimizer, gain, lead):
                return apply(gradients, variables)

        optimizer.apply = replayed


class EndAfter(keras.callbacks.Callback):
    """Ends training after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._steps = steps

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Stops at the last step."""
        if int(self.model.optimizer.iterations) >= self._steps:
            self.model.stop_training = True


def fit_for(
    model: keras.Model, x: object, y: object, batch_size: int, steps: int
) -> None:
    """Trains uniformly, by Keras' own `fit`, for so many steps."""
    epochs = math.ceil(steps / math.ceil(len(y) / batch_size))
    model.fit(
        x,
        y,
        batch_size=batch_size,
        epochs=epochs,
        verbose=0,
        callbacks=[EndAfter(steps)],
    )
