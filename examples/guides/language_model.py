"""
Title: A language model
Description: A small decoder on Python source; what is drawn is a window of the text.
Accelerator: None
Needs: nothing beyond keras_osgd; two minutes on two CPU cores.
"""

"""
## Introduction

A language model has a loss at each position of a text. The examples that are drawn are
windows of the text, and the importance of a window is the gradient norm of all its
positions together. A window that the model can foretell is drawn rarely, and one that
still surprises it is drawn often. This guide shows how to train a decoder in this way,
and how to find out whether a text pays. The text of this guide does not.
"""

"""
## Setup
"""

import math
import pathlib
import sysconfig

import guide_data
import keras
import numpy as np
from keras import layers

import keras_osgd

"""
The text is on every machine with Python: the source files of the standard library, as
bytes. They are cut into windows, and each window predicts its next byte at each
position.
"""

length, width, batch_size = 64, guide_data.size(64, smoke=16), 32
n, tests = guide_data.size(6000, smoke=200), guide_data.size(1000, smoke=20)
files = sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"))
text = np.frombuffer(b"".join(file.read_bytes() for file in files), "uint8")
windows = text[: len(text) // (length + 1) * (length + 1)].reshape(-1, length + 1)
windows = np.random.default_rng(0).permutation(windows).astype("int32")
x, y = windows[:n, :-1], windows[:n, 1:]
x_test, y_test = windows[-tests:, :-1], windows[-tests:, 1:]

"""
## The model

The model has two blocks of causal attention. The loss is a mean over windows and
positions. Masks are taken as in Keras, and so are weights of positions, by a
`sample_weight` of shape `[n, length]`.
"""


def block(x):
    attended = layers.LayerNormalization()(x)
    heads = layers.MultiHeadAttention(4, width // 4)
    x = x + heads(attended, attended, use_causal_mask=True)
    hidden = layers.Dense(4 * width, "gelu")(layers.LayerNormalization()(x))
    return x + layers.Dense(width)(hidden)


def make_model(sampling, epochs):
    keras.utils.set_random_seed(0)
    tokens = keras.Input((length,), dtype="int32")
    positions = keras.ops.cumsum(keras.ops.ones_like(tokens), axis=1) - 1
    z = layers.Embedding(256, width)(tokens)
    z = z + layers.Embedding(length, width)(positions)
    z = layers.LayerNormalization()(block(block(z)))
    model = keras_osgd.Model(tokens, layers.Dense(256)(z))
    steps = epochs * math.ceil(n / batch_size)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=0.003, warmup_steps=steps // 10
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, sampling=sampling)
    return model


"""
## Ask first

`estimate_speedup` trains a copy of the model for some seconds, and says whether
importance sampling may save time.
"""

epochs = guide_data.size(6, smoke=2)
model = make_model("rais", epochs)
print(keras_osgd.estimate_speedup(model, x, y, batch_size=batch_size))

"""
## Train

The model is trained uniformly and by importance, for as many epochs.
"""

for sampling in "uniform", "rais":
    model = make_model(sampling, epochs)
    model.fit(x, y, batch_size=batch_size, epochs=epochs, verbose=0)
    bits = model.evaluate(x_test, y_test, batch_size=250, verbose=0) / math.log(2)
    steps = int(model.optimizer.iterations)
    print(f"{sampling}, {epochs} epochs: {steps} steps, {bits:.3f} bits a byte")

"""
Importance sampling saves no steps here, as the estimate foretold: look at its gain
ratio of the best draws, which is hardly above 1. All windows are about equally hard, so
RAIS keeps to uniform draws, and little is lost. A text pays if many of its windows
become easy, and if there are several passes over it.

## Which windows are hard

`most_sampled(n)` also returns the last gradient norm of each window. Here are the three
windows with the largest norms, and the three with the smallest.
"""

known = model.sampling.most_sampled(n)
rows = known.index[np.argsort(known.last_norm)]
for title, some in (("largest", rows[:-4:-1]), ("least", rows[:3])):
    for row in some:
        print(f"{title:8}{bytes(x[row].astype('uint8'))}")

"""
## Write on

The trained model is a Keras model like any other.
"""

written = b"def __init__(self, "
for _ in range(guide_data.size(60, smoke=3)):
    shown = np.frombuffer(written[-length:], "uint8").astype("int32")
    padded = np.pad(shown, (0, length - len(shown)))[np.newaxis]
    logits = model(padded)[0, len(shown) - 1]
    written += bytes([int(keras.ops.argmax(logits))])
print(written.decode(errors="replace"))

"""
## More to know

- Cut longer documents into windows, as here. Each window has its own score.
- A text that is read only once, as a stream, has no windows to come back to. Train on
  it uniformly, or with `sampling="presample"`.
- The guide `fine_tuning_keras_hub.py` trains a model of KerasHub.
"""
