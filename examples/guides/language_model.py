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
positions together. So windows that the model can foretell, such as runs of spaces, are
drawn rarely, and windows that still surprise it are drawn often.
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
## Train

The model is trained uniformly, for two lengths, and by importance.
"""


def train(sampling, epochs):
    model = make_model(sampling, epochs)
    model.fit(x, y, batch_size=batch_size, epochs=epochs, verbose=0)
    bits = model.evaluate(x_test, y_test, batch_size=250, verbose=0) / math.log(2)
    steps = int(model.optimizer.iterations)
    print(
        f"{sampling + f', {epochs} epochs':19}{steps:5} steps {bits:6.3f} bits a byte"
    )
    return model


for epochs in guide_data.size(4, smoke=1), guide_data.size(6, smoke=2):
    train("uniform", epochs)
model = train("rais", epochs)

"""
Compare RAIS with uniform training of as many epochs, which takes more steps, and of
fewer epochs. The gain depends on how many windows become easy, and on the number of
passes over the text. `keras_osgd.estimate_speedup` tells what to expect before a long
run.

## What is drawn

The three windows that were drawn most, and the three that were drawn least.
"""

drawn = model.sampling.most_sampled(n)
for title, rows in (("most", drawn.index[:3]), ("least", drawn.index[-3:])):
    for row in rows:
        print(f"{title:6}{bytes(x[row].astype('uint8'))}")

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
