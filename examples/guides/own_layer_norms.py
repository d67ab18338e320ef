"""
Title: Exact gradient norms of your own layer
Description: A rule of a few lines makes the norms of a layer of your own fast.
Accelerator: None
Needs: nothing beyond keras_osgd; 20 seconds on two CPU cores.
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
class ScaledDense(keras.layers.Layer):
    """y = (x kernel) * scale, with a scale for each unit."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        around_one = keras.initializers.RandomUniform(0.5, 1.5)
        self.kernel = self.add_weight((shape[-1], self.units), name="kernel")
        self.scale = self.add_weight((self.units,), around_one, name="scale")

    def call(self, x):
        return keras.ops.matmul(x, self.kernel) * self.scale


keras.utils.set_random_seed(0)
model = keras_osgd.Sequential(
    [
        keras.Input(x.shape[1:]),
        keras.layers.Flatten(),
        ScaledDense(128),
        keras.layers.ReLU(),
        keras.layers.Dense(10),
    ]
)
model.compile(
    keras.optimizers.SGD(0.05),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
)

"""
## Without a rule

It works, and says once that it is slow: each example's gradient with respect to the
kernel is made, as large as the kernel itself. A first call on few examples keeps what
TensorFlow does but once out of the seconds.
"""


def timed_norms():
    began = time.perf_counter()
    norms = keras_osgd.gradient_norms(model, x, y)
    return norms, time.perf_counter() - began


keras_osgd.gradient_norms(model, x[:60], y[:60])
slow_norms, slow_seconds = timed_norms()
print(f"{n} norms, one example at a time: {slow_seconds:.2f} s")

"""
## The rule

The function gets a call of the layer: `call.inputs`, `[m, features]`; `call.delta`, the
loss's gradient with respect to the layer's output; `call.layer`. It returns, beside
each weight, the gradient of every example with respect to it, in one of three forms.

- `PerExample` holds the gradients as they are, `[m, *weight.shape]`. Here
  d loss / d scale = delta * (x kernel), for each example.
- `Products` is for weights that the input is multiplied with. It takes inputs and the
  gradient with respect to the products, here delta * scale, both `[m, positions, ...]`;
  there is one position. It never makes the m gradients: the norm of a product is the
  product of the norms. `split` and `order` say how the weight lies: deltas by inputs,
  transposed.
- `Gathered` is for tables, as an embedding.
"""


@keras_osgd.norms.register(ScaledDense)
def scaled_dense(call):
    layer, x = call.layer, call.inputs
    inputs, deltas = x[:, None], (call.delta * layer.scale)[:, None]
    split = (deltas.shape[-1], inputs.shape[-1])
    kernel = keras_osgd.norms.Products(inputs, deltas, split, order=(1, 0))
    scale = keras_osgd.norms.PerExample(call.delta * (x @ layer.kernel))
    return [(layer.kernel, kernel), (layer.scale, scale)]


norms, seconds = timed_norms()
print(f"With the rule: {seconds:.2f} s, {slow_seconds / seconds:.1f} times as fast")
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
You are not asked to make this comparison each time: every call of `gradient_norms`, and
every `fit` that takes exact norms, begins with it on three examples, and compares the
sum of their gradients with that of the batch. Where they differ, it ends with a
`ValueError` that names the weights, before anything is trained. Here the rule forgets
the scale:
"""


@keras_osgd.norms.register(ScaledDense)
def wrong(call):
    inputs, deltas = call.inputs[:, None], call.delta[:, None]
    split = (deltas.shape[-1], inputs.shape[-1])
    kernel = keras_osgd.norms.Products(inputs, deltas, split, order=(1, 0))
    scale = keras_osgd.norms.PerExample(call.delta * (call.inputs @ call.layer.kernel))
    return [(call.layer.kernel, kernel), (call.layer.scale, scale)]


try:
    keras_osgd.gradient_norms(model, x, y)
except ValueError as error:
    print(f"Refused: {error}")
keras_osgd.norms.register(ScaledDense)(scaled_dense)

"""
The weights must be such that the mistake shows: had all scales been 1, as they often
are before training, the wrong rule would have given the same numbers.

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
