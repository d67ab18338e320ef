"""
Title: Tables with a million rows
Description: What a million rows cost in memory and time, and when so many pay.
Accelerator: None
Needs: nothing beyond keras_osgd; two minutes on two CPU cores.
"""

"""
## Introduction

Draws need something known of every row. This guide trains on a million rows of a table
and looks at what that takes: memory, time beside the steps, and passes. Few passes are
the rule with so much data, and each score is then old when it is used. Importance
sampling pays there only where most rows are easy, as where few of them are positive.
"""

"""
## Setup
"""

import math
import time

import guide_data
import keras
import numpy as np

import keras_osgd

"""
Rows of twenty numbers, and a label that is rare and hidden in products of columns. They
are made here; yours may be a NumPy file, which is read where it lies:
`x = np.load("x.npy", mmap_mode="r")`.
"""

n, columns = guide_data.size(1_000_000, smoke=4000), 20
batch_size = guide_data.size(512, smoke=64)


def make_table(rows, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, columns), "float32")
    score = x[:, 0] * x[:, 1] + x[:, 2] * x[:, 3] + np.sin(3 * x[:, 4]) + 0.5 * x[:, 5]
    return x, (score > 4.0).astype("float32")


x, y = make_table(n, seed=0)
x_test, y_test = make_table(guide_data.size(200_000, smoke=1000), seed=1)
print(f"{n} rows, {y.mean():.1%} of them positive, {x.nbytes / 2**20:.0f} MiB")


def make_model(sampling, epochs):
    keras.utils.set_random_seed(0)
    model = keras_osgd.Sequential(
        [
            keras.Input((columns,)),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dense(1, "sigmoid"),
        ]
    )
    steps = epochs * math.ceil(n / batch_size)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.003, steps)),
        "binary_crossentropy",
        metrics=[keras.metrics.AUC(curve="PR", name="average_precision")],
        sampling=sampling,
    )
    return model


"""
## Ask first

`estimate_speedup` trains a copy for a moment, times uniform and sampled steps in turn,
and says what to expect. It is cheap beside a run on a million rows.
"""

print(keras_osgd.estimate_speedup(make_model("rais", 4), x, y, batch_size=batch_size))

"""
## Train

`fit` as always. The first draws are uniform, until something is known. With more than
100,000 rows that is after 20,000 draws, not after a whole pass; what was not seen yet
has the mean of its class as a prediction.
"""


def train(sampling, epochs):
    model = make_model(sampling, epochs)
    begun = time.perf_counter()
    model.fit(x, y, batch_size=batch_size, epochs=epochs, verbose=0)
    seconds = time.perf_counter() - begun
    loss, precision = model.evaluate(x_test, y_test, batch_size=8192, verbose=0)
    steps = int(model.optimizer.iterations)
    print(
        f"{f'{sampling}, {epochs} epochs':18}{steps:7}{seconds:9.1f}"
        f"{loss:12.4f}{precision:19.3f}",
        flush=True,
    )
    return model


print(f"{'':18}{'steps':>7}{'seconds':>9}{'test loss':>12}{'average precision':>19}")
for epochs in guide_data.size(3, smoke=1), guide_data.size(6, smoke=2):
    train("uniform", epochs)
model = train("rais", epochs)

"""
RAIS of six epochs took fewer steps here than three epochs of uniform training, and ends
far below them. It ends a little above uniform training of six, which took three times
its steps. Seconds include compiling, and whatever else the machine did.

A warning may say that a hundredth of the rows take a quarter of all draws, and that
their labels may be wrong. Where a hundredth of the rows are positive, that is to be
expected. Look at some of them once, and go on.

## Who is drawn

Positive rows are few, and most negative ones are soon easy.
"""

drawn = model.sampling.most_sampled(n)
positive = drawn.share_of_draws[drawn.label == 1].sum()
print(f"Positive: {y.mean():.1%} of the rows, {positive:.1%} of the draws")
tenth = np.sort(drawn.share_of_draws)[::-1][: n // 10].sum()
print(f"The tenth of the rows that was drawn most took {tenth:.0%} of the draws")

"""
## What it costs

Some 36 bytes a row are kept: 36 MB for a million rows, beside the table itself. Draws
are planned in a second thread, for many steps at a time, so that a step waits for
nothing: a plan for a million rows takes a fraction of a second, and comes rarely.

- Importance sampling adds a part of a millisecond to each step. Where a step takes one
  or two, as with a small network, that may be all that is gained.
- Two passes gain little: in the first one nearly all is new. If the table is so large
  that one or two are all you can afford, train uniformly.
- `steps_per_epoch` sets shorter epochs, for validation and callbacks in between.
- Rows that are larger than memory: `keras_osgd.data.records`, or a NumPy file opened
  with `mmap_mode="r"`.
"""
