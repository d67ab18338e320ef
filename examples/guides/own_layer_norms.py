"""
Title: Exact gradient norms of your own layer
Description: A rule of three lines makes the norms of a layer of your own fast.
Accelerator: None
Needs: nothing beyond keras_osgd; 10 seconds on two CPU cores.
"""

"""
## Introduction

RAIS needs no exact gradient norms: it takes those of the last layer, which cost nothing
and work for every model. `keras_osgd.gradient_norms`, `RAIS(norm="exact")` and
`sampling="oracle"` take the norm of each example's whole gradient, from one backward
pass. For that they must know each layer's formula. For a layer of your own they work
the examples out one by one, which is right but slow, unless you give them a rule.
"""

"""
## Setup
"""

import time

import guide_data
import keras
import numpy as np
import tensorflow as tf

import keras_osgd

n = guide_data.size(20_000, smoke=60)
(x, y), _, _ = guide_data.images(n)


@keras.saving.register_keras_serializable("guides")
class ScaleAndShift(keras.layers.Layer):
    """y = x * scale + shift, with a scale and a shift for each feature."""

    def build(self, shape):
        self.scale = self.add_weight(shape[-1:], "ones", name="scale")
        self.shift = self.add_weight(shape[-1:], "zeros", name="shift")

    def call(self, x):
        return x * self.scale + self.shift


keras.utils.set_random_seed(0)
model = keras_osgd.Sequential(
    [
        keras.Input(x.shape[1:]),
        keras.layers.Flatten(),
        keras.layers.Dense(64, "relu"),
        ScaleAndShift(),
        keras.layers.Dense(10),
    ]
)
model.compile(
    keras.optimizers.SGD(0.05),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
)

"""
## Without a rule

It works, and says once that it is slow. Of the seconds one or two go into tracing, with
a rule or without.
"""


def timed_norms():
    began = time.perf_counter()
    norms = keras_osgd.gradient_norms(model, x, y)
    return norms, time.perf_counter() - began


slow_norms, slow_seconds = timed_norms()
print(f"{n} norms, one example at a time: {slow_seconds:.2f} s")

"""
## The rule

The function gets a call of the layer: `call.inputs`, `[m, ..., features]`;
`call.delta`, the loss's gradient with respect to the layer's output; `call.layer`. It
returns, beside each weight, the gradient of every example with respect to it.

Here d loss / d scale = delta * x and d loss / d shift = delta, for each example.
`PerExample` holds such gradients as they are, `[m, *weight.shape]`. For weights that
are multiplied with the input, as a kernel, `Products` takes inputs and deltas, and
never makes the m gradients; for tables, as an embedding, there is `Gathered`.
"""


@keras_osgd.norms.register(ScaleAndShift)
def scale_and_shift(call):
    return [
        (call.layer.scale, keras_osgd.norms.PerExample(call.delta * call.inputs)),
        (call.layer.shift, keras_osgd.norms.PerExample(call.delta)),
    ]


norms, seconds = timed_norms()
print(f"With the rule: {seconds:.2f} s")
print(f"Largest relative difference: {np.abs(norms / slow_norms - 1).max():.0e}")

"""
## Is it right?

You need not take its word for it. This is the definition: one gradient for each
example.
"""


def norm_of(i):
    with tf.GradientTape() as tape:
        loss = model.compute_loss(y=y[i : i + 1], y_pred=model(x[i : i + 1]))
    gradients = tape.gradient(loss, model.trainable_variables)
    return np.sqrt(sum(np.sum(np.square(gradient)) for gradient in gradients))


expected = np.array([norm_of(i) for i in range(10)])
print(f"Against single gradients: {np.abs(norms[:10] / expected - 1).max():.0e}")

"""
Each time before training, three examples are compared in this way. So a rule with a
wrong sign or factor does not pass:
"""


@keras_osgd.norms.register(ScaleAndShift)
def wrong(call):
    return [
        (call.layer.scale, keras_osgd.norms.PerExample(2 * call.delta * call.inputs)),
        (call.layer.shift, keras_osgd.norms.PerExample(call.delta)),
    ]


try:
    keras_osgd.gradient_norms(model, x, y)
except ValueError as error:
    print(f"Refused: {error}")
keras_osgd.norms.register(ScaleAndShift)(scale_and_shift)

"""
## Train with it

Exact norms are taken in the backward pass of training, as scores of RAIS.
"""

model.compile(
    keras.optimizers.SGD(0.05),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
    sampling=keras_osgd.sampling.RAIS(norm="exact"),
)
history = model.fit(x, y, batch_size=64, epochs=3, verbose=0)
print("Accuracy in training:", [round(a, 3) for a in history.history["accuracy"]])
