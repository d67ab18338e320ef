"""
Title: Resuming after a crash
Description: Kill a run in the middle of an epoch, and go on as if nothing had happened.
Accelerator: None
Needs: nothing beyond keras_osgd; 20 seconds on two CPU cores.
"""

"""
## Introduction

A run with importance sampling is more than weights: what is known of every example, the
draws that are planned, the place in the plan. `keras_osgd.callbacks.Checkpoint` saves
all of it, and the very same call of `fit` goes on from there: bit for bit on a CPU.
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
The whole script is one function. Calling it again is what you do after a crash: there
is no `if` for resuming in it.
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
`every` is a number of steps, `"epoch"`, or a `datetime.timedelta`. The training thread
only copies the variables; another one writes them, to a temporary file that is renamed
when it is complete.

## A crash

Power failures are hard to come by in a script, so a callback raises an error at some
step. `kill -9` leaves the same behind.
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

The same script again. It begins at the last checkpoint, in the middle of an epoch.
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

Compared with a run that nothing interrupted: the weights, and how often each example
was drawn.
"""

pairs = zip(resumed.get_weights(), uninterrupted.get_weights(), strict=True)
same_weights = all(np.array_equal(a, b) for a, b in pairs)
drawn = [m.sampling.most_sampled(n) for m in (resumed, uninterrupted)]
same_draws = all(np.array_equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
print(f"Equal bit for bit: weights {same_weights}, draws {same_draws}.")

"""
## More to know

- Ctrl-C and SIGTERM end training after the step that is under way, with a checkpoint.
- The same script with more `epochs` goes on where the shorter one ended.
- Other data are refused, since the scores are of these examples. To keep the weights
  alone: `Checkpoint(directory, scores="reset")`.
- A damaged checkpoint is warned of and passed over; that is what `keep=2` is for.
- To load the newest checkpoint without training: `checkpoint.restore(model)`.
"""
