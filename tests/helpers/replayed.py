"""Weighted SGD written out for one replica: what training on any draws must equal."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

import keras_osgd
from tests.helpers import small

RATE, MOMENTUM, DECAY, N, BATCH_SIZE = 0.3, 0.9, 0.98, 61, 8
_rng = np.random.default_rng(1)
X = _rng.normal(size=(N, 4)).astype("float32")
Y = (np.abs(X).argmax(axis=1) % 3).astype("int64")


def model(cls, **options):
    """Returns a compiled model; the same weights each time."""
    keras.utils.set_random_seed(0)
    dense = [keras.layers.Dense(5, "tanh"), keras.layers.Dense(3)]
    made = cls([keras.Input((4,)), *dense])
    optimizer = keras.optimizers.SGD(RATE, momentum=MOMENTUM)
    made.compile(optimizer, small.crossentropy(), metrics=["accuracy"], **options)
    return made


class Own(keras_osgd.Sequential):
    """Has a `train_step` as Keras' guides write it."""

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x, y, y_pred, sample_weight)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply(gradients, self.trainable_weights)
        return self.compute_metrics(x, y, y_pred, sample_weight)


class Draws(keras.callbacks.Callback):
    """Keeps index, p and gain ratio of each step, and the norms that it left."""

    def on_train_begin(self, logs=None):
        self.index, self.probability, self.norms, self.gains = [], [], [], []

    def on_train_batch_end(self, batch, logs=None):
        run = self.model.sampling_run
        row = (run.clock.step - 1) % run.buffers.rows
        self.index.append(run.buffers.index.numpy()[row])
        self.probability.append(run.buffers.columns.numpy()[row, 0])
        self.norms.append(run.log.read(run.clock.step - 1, run.clock.step)[0])
        self.gains.append(float(run.clock.gain))

    def arrays(self):
        """Returns what was kept, an array each."""
        return {name: np.array(kept) for name, kept in self._kept()}

    def _kept(self):
        return (
            (n, getattr(self, n)) for n in ("index", "probability", "norms", "gains")
        )


class Replayed(NamedTuple):
    """What comes of draws, in float64.

    Attributes:
        weights: all of them as one vector, after the last step.
        norms: `[steps, m]`, of the gradient of the last layer, or of all weights.
        gains: `[steps]`, by which each step's rate is multiplied.
    """

    weights: np.ndarray
    norms: np.ndarray
    gains: np.ndarray


def replay(start, index, probability, exact=False) -> Replayed:
    """Trains on the draws given, one example at a time.

    Args:
        start: weights of `model`.
        index: `[steps, m]`, rows of X.
        probability: `[steps, m]`, p of each among all N.
        exact: whether norms are over all weights, not those of the last layer alone.
    """
    first = 0 if exact else 2
    weights = [tf.Variable(w, dtype=tf.float64) for w in start]
    velocity = [np.zeros(w.shape) for w in start]
    averages, norms, gains = np.zeros(4), [], []
    for rows, p in zip(index, probability, strict=True):
        m, w = len(rows), 1 / (N * p.astype(np.float64))
        each = [_gradient([w.value() for w in weights], row) for row in rows]
        each = [[g.numpy() for g in gradient] for gradient in each]
        mean = [
            sum(a * g for a, g in zip(w, parts, strict=True)) / m
            for parts in zip(*each, strict=True)
        ]
        v = np.array([np.sqrt(_squared(g[first:])) for g in each])
        gains.append(_ratio(averages, m))
        squared = (w * v**2).mean(), (w**2 * v**2).mean(), _squared(mean[first:])
        moments = [*squared[:2], np.nan, squared[2]]
        averages = averages + (1 - DECAY) * (np.array(moments) - averages)
        norms.append(v)
        for k, g in enumerate(mean):
            velocity[k] = MOMENTUM * velocity[k] - RATE * gains[-1] * g
            weights[k].assign_add(velocity[k])
    flat = np.concatenate([w.numpy().ravel() for w in weights])
    return Replayed(flat, np.array(norms), np.array(gains))


def _squared(gradients) -> float:
    return sum((g**2).sum() for g in gradients)


def _gradient(weights, row) -> list[tf.Tensor]:
    return _gradient_of(weights, tf.constant(X[row], tf.float64), tf.constant(Y[row]))


@tf.function
def _gradient_of(weights, x, label) -> list[tf.Tensor]:
    with tf.GradientTape() as tape:
        tape.watch(weights)
        hidden = tf.tanh(tf.tensordot(x, weights[0], 1) + weights[1])
        logits = tf.tensordot(hidden, weights[2], 1) + weights[3]
        loss = -tf.gather(tf.nn.log_softmax(logits), label)
    return tape.gradient(loss, weights)


def _ratio(averages, m) -> float:
    """Returns 1 + (A_U - A) / (m ||g||^2), at most A_U/A where above 1 (equation 4)."""
    uniform, second, _, squared = averages
    if second == 0:
        return 1.0
    gain = 1 + (uniform - second) / (m * squared)
    return float(np.clip(min(gain, uniform / second) if gain > 1 else gain, 1 / 8, 8))
