"""
Title: Tables with a million rows
Description: What a million rows cost in memory and time, and when so many pay.
Accelerator: None
Needs: nothing beyond keras_osgd; two minutes on two CPU cores.
"""

"""
## Introduction

This guide trains on a million rows of a table, and looks at what importance sampling
costs and gains with so many. The cost is memory and time for each row. The gain is
smaller than elsewhere, as so much data is mostly trained on in few passes, and a row's
score is only known after its first visit. It is worth it where most rows are easy, as
in this table, in which few labels are positive.
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
Each row has twenty random numbers and a label, which depends on products of columns and
is rarely positive. Your own table may be a NumPy file larger than memory, which is read
from the disk: `x = np.load("x.npy", mmap_mode="r")`.
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

`estimate_speedup` takes some seconds to say what to expect, which is little beside a
run on a million rows.
"""

print(keras_osgd.estimate_speedup(make_model("rais", 4), x, y, batch_size=batch_size))

"""
## Train

The first draws are uniform. With more than 100,000 rows that is so for 20,000 draws,
and not for a whole pass: from then on, a row that was not seen yet counts as the
average row of its class.
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
RAIS of six epochs takes fewer steps here than uniform training of three, and ends at a
far lower loss. It ends somewhat above uniform training of six epochs, which takes three
times its steps. Seconds include compiling, and whatever else the machine did.

A warning says that a hundredth of the rows take a quarter of all draws, and that their
labels may be wrong. Where a hundredth of the rows are positive, that is to be expected.
Look at some of them once, and go on.

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

- Scores and plans take 58 bytes of memory for each row, beside the table itself, and
  more while they are made: `examples/results/README.md` has the measurements.
- The draws are planned in a second thread, for many steps at a time, so that a step
  does not wait for them.
- A step takes a fraction of a millisecond more. Where a step of Keras takes only one or
  two, as with a small network, that may be all that is gained.
- Two passes gain little, since in the first one nearly all rows are new. If one or two
  passes are all that you can afford, train uniformly.
- `steps_per_epoch` sets shorter epochs, for validation and callbacks in between.
- For rows on the disk that are not in a NumPy file there is `keras_osgd.data.records`.
"""
