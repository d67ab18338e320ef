"""The training step and the scoring pass of all rivals, as TensorFlow graphs."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from examples.experiments.rivals.rival import Observed
from keras_osgd.base import keras_compat
from keras_osgd.data.rows import Rows
from keras_osgd.norms import last_layer

_LARGEST = 1024  # examples passed forward at once when scoring


def training_step(
    model: keras.Model, rows: Rows, schedule: Callable, batch_size: int
) -> Callable[[np.ndarray, np.ndarray, float, float], Observed]:
    """Returns a step on (index, weights, position on the schedule, rate factor).

    Its gradient is that of (1/m) sum_i w_i f_i + regularisation. Rows are gathered
    beside the part that XLA compiles, as in Keras, where the pipeline does it.

    Args:
        model: compiled with a loss object; its optimizer's rate is replaced for good.
        rows: of (x, y).
        schedule: from a position, `[]` float32, to a rate; called in the graph.
        batch_size: m; one trace.
    """
    model.optimizer.learning_rate = rate = _Rate()
    core = _compiled(model, lambda x, y, weights: _train(model, x, y, weights))

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([batch_size], tf.int64),
            tf.TensorSpec([batch_size], tf.float32),
            tf.TensorSpec([], tf.float32),
            tf.TensorSpec([], tf.float32),
        ],
    )
    def step(index, weights, position, factor):
        rate.value.assign(factor * tf.cast(schedule(position), tf.float32))
        return core(*rows(index), weights)

    return lambda *inputs: _observed(step(*inputs).numpy())


def scoring(model: keras.Model, rows: Rows) -> Callable[[np.ndarray], Observed]:
    """Returns a function from indices to what a forward pass says of them.

    In inference mode: no state changes, and neither Dropout nor augmentation acts.
    Beyond 1024 examples it takes them in parts, the last one filled up: one trace.
    """

    def forward(x, y):
        _, measured, _ = _measured(model, x, y, tf.ones(tf.shape(y)[:1]), False)
        return measured

    core = _compiled(model, forward)
    score = tf.function(lambda index: core(*rows(index)), autograph=False)

    def call(index: np.ndarray) -> Observed:
        size = min(len(index), _LARGEST)
        parts = [index[i : i + size] for i in range(0, len(index), size)]
        found = [score(tf.constant(np.resize(part, size))).numpy() for part in parts]
        observed = [_observed(values) for values in found]
        columns = list(zip(*observed, strict=True))
        joined = [np.concatenate(column)[: len(index)] for column in columns[:3]]
        return Observed(*joined, squared_gradient=np.nan)

    return call


class _Rate(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that is set from outside; as a schedule it may replace one."""

    def __init__(self) -> None:
        self.value = tf.Variable(0.0, trainable=False)

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the rate that was set."""
        return self.value.read_value()


def _compiled(model: keras.Model, function: Callable) -> Callable:
    """Returns `function` compiled by XLA where Keras would compile its own step."""
    return tf.function(
        function, jit_compile=bool(model.jit_compile) or None, autograph=False
    )


def _train(model, x, y, weights) -> tf.Tensor:
    gradients, measured, squared_gradient = _measured(model, x, y, weights, True)
    model.optimizer.apply_gradients(
        zip(gradients, model.trainable_weights, strict=True)
    )
    return tf.concat([measured, squared_gradient[None]], axis=0)


def _measured(model, x, y, weights, training: bool):
    """Returns gradients (none of weights unless training), `[3 m]` and ||g||^2 `[]`."""
    variables = model.trainable_weights if training else []
    with tf.GradientTape() as tape, last_layer.recording(model) as heads:
        y_pred = keras_compat.call_model(model, x, training=training)
        # One value an example: `call` leaves the reduction out, and the weights.
        losses = _by_example(tf.reduce_mean, model.loss.call(y, y_pred))
        loss = tf.reduce_mean(weights * losses)
        if training:
            loss = tf.add_n([loss, *model.losses])
        head = heads.of(y_pred)
    gradients, delta = tape.gradient(loss, (variables, head.pre_activation))
    squared_gradient = last_layer.squared_gradient(head, delta)
    # Of f_i alone; no method gives a weight of 0.
    unit = tf.cast(tf.size(weights), tf.float32) / weights
    delta *= tf.reshape(unit, [-1] + [1] * (delta.shape.rank - 1))
    norms = tf.sqrt(last_layer.squared_norms(head, delta))
    pre_activation_norms = tf.sqrt(_by_example(tf.reduce_sum, tf.square(delta)))
    measured = tf.concat([losses, norms, pre_activation_norms], axis=0)
    return gradients, measured, squared_gradient


def _by_example(reduce: Callable, values: tf.Tensor) -> tf.Tensor:
    """Returns `[m]` from `[m, ...]`: one value for all positions of an example."""
    return reduce(values, axis=list(range(1, values.shape.rank)))


def _observed(values: np.ndarray) -> Observed:
    m = len(values) // 3
    losses, norms, pre_activation_norms = values[: 3 * m].reshape(3, m)
    squared = float(values[-1]) if len(values) > 3 * m else np.nan
    return Observed(losses, norms, pre_activation_norms, squared)
