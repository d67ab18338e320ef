"""
Title: Exact gradient norms of your own layer
Description: A rule of a few lines makes the norms of a layer of your own fast.
Accelerator: None
Needs: nothing beyond keras_osgd; 20 seconds on two CPU cores.
"""

"""
## Introduction

Most users need none of this: RAIS takes the gradient norms of the last layer, which
cost nothing and work for every model. `keras_osgd.gradient_norms`, `RAIS(norm="exact")`
and `sampling="oracle"` take exact norms, of each example's gradient with respect to all
weights. One backward pass gives them for all layers whose formula is known. For a layer
of your own the examples are worked out one by one, which is exact but slow. This guide
gives such a layer a rule, which makes it fast.
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
    """y = (x @ kernel) * scale, with a scale for each unit."""

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

A warning says, once, that no rule is known for the layer. Without one, each example's
gradient with respect to the kernel is computed, which is as large as the kernel. The
first call is on few examples: TensorFlow traces its functions then, and that shall not
count in the seconds.
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

A rule is a function of one call of the layer with m examples. The call has the inputs
`call.inputs`, `[m, features]`; the loss's gradient with respect to the output,
`call.delta`, `[m, units]`; and the layer, `call.layer`. The rule returns a list of
pairs: a weight, and the gradients of all m examples with respect to it. They take one
of three forms.

- `PerExample` holds the gradients themselves, `[m, *weight.shape]`. For the scale, the
  gradient of an example is `delta * (x @ kernel)`.
- `Products` is for a weight that multiplies the inputs, such as the kernel. It takes
  the inputs, and the gradient with respect to the products, here `delta * scale`. Both
  are `[m, positions, ...]`, here with one position. The m gradients are never computed:
  each is an outer product, whose norm is the product of two norms. `split` and `order`
  say how these products lie in the weight: as (units, features), transposed.
- `Gathered` is for tables whose rows are looked up, such as an embedding.
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

By definition the norm is that of a single example's gradient. Here it is computed so,
for ten examples.
"""


def norm_of(i):
    with tf.GradientTape() as tape:
        loss = model.compute_loss(y=y[i : i + 1], y_pred=model(x[i : i + 1]))
    gradients = tape.gradient(loss, model.trainable_variables)
    return np.sqrt(sum(np.sum(np.square(gradient)) for gradient in gradients))


expected = np.array([norm_of(i) for i in range(10)])
print(f"Against single gradients: {np.abs(norms[:10] / expected - 1).max():.0e}")

"""
You need not compare by hand. Every call of `gradient_norms`, and every `fit` with exact
norms, first makes this comparison on three examples. Where the norms differ, a
`ValueError` names the weights, before anything is trained. The next rule is wrong,
since it forgets the scale:
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
A mistake is found only with weights that show it. Had all scales been 1, as such
weights often are before training, the wrong rule would have given the same norms.

## Train with it

`RAIS(norm="exact")` takes the exact norms in the backward pass of training.
"""

model.compile(
    keras.optimizers.SGD(0.05),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
    sampling=keras_osgd.sampling.RAIS(norm="exact"),
)
history = model.fit(x, y, batch_size=64, epochs=3, verbose=0)
print("Accuracy in training:", [round(a, 3) for a in history.history["accuracy"]])
