"""
Title: Resuming after a crash
Description: Kill a run in the middle of an epoch, and go on as if nothing had happened.
Accelerator: None
Needs: nothing beyond keras_osgd; 20 seconds on two CPU cores.
"""

"""
## Introduction

To go on after a crash, training by importance needs more than the weights: the scores
of all examples, the draws that are planned, and the place in the plan. The callback
`keras_osgd.callbacks.Checkpoint` saves all of it. The same call of `fit` then goes on
from the last checkpoint, on a CPU bit for bit.
"""

"""
## Setup
"""

import shutil

import guide_data
import keras
import numpy as np

import keras_osgd

n, epochs = guide_data.size(10_000, smoke=400), guide_data.size(6, smoke=3)
(x_train, y_train), (x_test, y_test), class_names = guide_data.images(n)
every, crash = guide_data.size(100, smoke=5), guide_data.size(450, smoke=12)

"""
The function `script` stands for your whole training script. After a crash you run it
again, unchanged: nothing in it asks whether it is the first time.
"""


def script(directory, *more_callbacks):
    keras.utils.set_random_seed(0)
    model = keras_osgd.Sequential(
        [
            keras.Input(x_train.shape[1:]),
            keras.layers.Flatten(),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10, "softmax"),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.03, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        sampling=keras_osgd.sampling.RAIS(seed=0),
    )
    checkpoint = keras_osgd.callbacks.Checkpoint(directory, every=every, keep=2)
    callbacks = [checkpoint, *more_callbacks]
    model.fit(
        x_train, y_train, batch_size=64, epochs=epochs, callbacks=callbacks, verbose=0
    )
    return model


"""
`every` is a number of steps, `"epoch"`, or a `datetime.timedelta`. Training waits only
while the variables are copied; a second thread writes them to the disk.

## A crash

A callback that raises an error takes the place of the crash. `kill -9` leaves the same
files behind.
"""


class Crash(keras.callbacks.Callback):
    steps = 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if self.steps == crash:
            raise RuntimeError("the power fails")


for directory in ("resuming/crashed", "resuming/whole"):
    shutil.rmtree(directory, ignore_errors=True)  # of an earlier run of this guide
try:
    script("resuming/crashed", Crash())
except RuntimeError as error:
    print(f"Training ended at step {crash}: {error}")

"""
## Going on

The same script again. It goes on from the last checkpoint, in the middle of an epoch. A
second run, which nothing interrupts, is there for comparison.
"""


class Count(keras.callbacks.Callback):
    steps = 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1


remaining, whole = Count(), Count()
resumed = script("resuming/crashed", remaining)
uninterrupted = script("resuming/whole", whole)
repeated = crash + remaining.steps - whole.steps
print(
    f"{whole.steps} steps, {remaining.steps} after the crash, {repeated} of them again."
)

"""
## Is it the same?

The weights and the draws of every example are compared with those of the uninterrupted
run.
"""

pairs = zip(resumed.get_weights(), uninterrupted.get_weights(), strict=True)
same_weights = all(np.array_equal(a, b) for a, b in pairs)
drawn = [m.sampling.most_sampled(n) for m in (resumed, uninterrupted)]
same_draws = all(np.array_equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
print(f"Equal bit for bit: weights {same_weights}, draws {same_draws}.")

"""
## More to know

- Ctrl-C and SIGTERM end training after the present step, with a checkpoint.
- The same script with more `epochs` goes on where the shorter run ended.
- Other data are refused, since the scores belong to these examples.
  `Checkpoint(directory, scores="reset")` keeps the weights alone.
- With `keep=2` the last two checkpoints are kept. If the newest one is damaged, a
  warning says so, and training goes on from the other.
- `checkpoint.restore(model)` loads the newest checkpoint without training.
"""
