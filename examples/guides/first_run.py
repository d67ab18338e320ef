"""
Title: Your first run
Description: Train a network on Fashion-MNIST in fewer steps, by one changed word.
Accelerator: None
Needs: nothing beyond keras_osgd; a minute or two on two CPU cores.
"""

"""
## Introduction

This guide trains one network by importance sampling (RAIS) and by Keras' own training.
RAIS draws the examples with large gradients more often, and each counts for less, so
that the gradient stays the same on average. At the end stands a table of steps, seconds
and test accuracy.
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

n, epochs = guide_data.size(50_000, smoke=400), guide_data.size(8, smoke=2)
batch_size = 64
(x_train, y_train), (x_test, y_test), class_names = guide_data.images(n)
steps_per_epoch = math.ceil(n / batch_size)

"""
`guide_data.py`, beside this script, loads Fashion-MNIST for all guides. Its `size` is
the first number, or `smoke` if you set `KERAS_OSGD_SMOKE=1` to see a guide run in
seconds.

## The model

The class is the only difference: `keras_osgd.Sequential` for `keras.Sequential`, or
`keras_osgd.Model` for `keras.Model`. A model that you have already joins by
`keras_osgd.accelerate(model)`.

The argument `sampling` is here for the comparison. `"rais"` draws by importance, and
`"uniform"` is Keras' own training, bit for bit. Without the argument, `fit` draws by
importance where it can and where it may pay.
"""


def make_model(sampling, epochs=epochs):
    keras.utils.set_random_seed(0)
    model = keras_osgd.Sequential(
        [
            keras.Input(x_train.shape[1:]),
            keras.layers.Flatten(),
            keras.layers.Dense(256, "relu"),
            keras.layers.Dense(10, "softmax"),
        ]
    )
    # The schedule is read at the progress made, not at the steps taken.
    rate = keras.optimizers.schedules.CosineDecay(0.05, epochs * steps_per_epoch)
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        sampling=sampling,
    )
    return model


"""
## Ask before training

`check` names everything that would stand in the way of importance sampling, each with
its remedy. `fit` makes the same checks before its first step.
"""

model = make_model("rais")
findings = keras_osgd.check(model, x_train, y_train, batch_size=batch_size)
print(f"{len(findings)} findings, {sum(f.kind == 'error' for f in findings)} errors")

"""
`estimate_speedup` trains a copy of the model for some seconds, and says how many steps
and seconds importance sampling may save.
"""

print(keras_osgd.estimate_speedup(model, x_train, y_train, batch_size=batch_size))

"""
## Train

`fit` is called as always. An epoch means an epoch's worth of progress, and ends after
fewer steps where each step makes more progress. Both callbacks are optional: `Seconds`
measures the time, and `SamplingMonitor` adds the gain ratio and more to `history`.
"""


class Seconds(keras.callbacks.Callback):
    """Training time from the second step on; in the first the model is traced."""

    begun = taken = 0.0

    def on_train_batch_begin(self, batch, logs=None):
        self.begun = self.begun or (time.perf_counter() if batch else 0.0)

    def on_train_end(self, logs=None):
        self.taken = time.perf_counter() - self.begun


rais_seconds = Seconds()
history = model.fit(
    x_train,
    y_train,
    batch_size=batch_size,
    epochs=epochs,
    callbacks=[rais_seconds, keras_osgd.callbacks.SamplingMonitor()],
    verbose=0,
)
steps = np.diff(model.sampling.history["steps"], prepend=0).astype(int)
print("epoch  steps  gain ratio  accuracy")
for epoch, taken in enumerate(steps):
    ratio, accuracy = (
        history.history[key][epoch] for key in ("gain_ratio", "accuracy")
    )
    print(f"{epoch + 1:5}  {taken:5}  {ratio:10.2f}  {accuracy:8.3f}")

"""
The gain ratio is the progress of a step, in steps of uniform training. At a gain ratio
of 2 the learning rate is twice yours, and an epoch takes half of the steps. In the
first epoch nothing is known of the examples yet: the draws are uniform, and the ratio
is 1.

## Compare

Now Keras' own training of the same network, twice: for as many epochs as RAIS, and for
about as many steps as RAIS took, with a schedule of that length. The second is the fair
comparison, since uniform training can be shortened as well.
"""

results = [("RAIS", model, steps.sum(), rais_seconds.taken)]
for shortened in (epochs, math.ceil(steps.sum() / steps_per_epoch)):
    uniform, seconds = make_model("uniform", shortened), Seconds()
    uniform.fit(
        x_train,
        y_train,
        batch_size=batch_size,
        epochs=shortened,
        callbacks=[seconds],
        verbose=0,
    )
    name, taken = f"uniform, {shortened} epochs", shortened * steps_per_epoch
    results.append((name, uniform, taken, seconds.taken))

print("method             steps  seconds  ms a step  test accuracy")
for name, trained, taken, seconds in results:
    accuracy = trained.evaluate(x_test, y_test, verbose=0)[1]
    each = 1000 * seconds / taken
    print(f"{name:17}  {taken:5}  {seconds:7.1f}  {each:9.2f}  {accuracy:13.4f}")

"""
A step of RAIS takes longer than one of Keras, so that the saving in time is smaller
than the saving in steps. Seconds also depend on what else the machine does, and the
accuracy of one seed depends on luck: take neither from a single run.
`examples/compare.py` trains three seeds of each, and `examples/experiments/README.md`
has the results of many seeds, networks and data sets.

## Keep it

The file holds an ordinary Keras model. Loading it needs Keras alone.
"""

model.save("first_run.keras")
loaded = keras.models.load_model("first_run.keras")
same = np.allclose(
    loaded.predict(x_test[:5], verbose=0), model.predict(x_test[:5], verbose=0)
)
print(f"Loaded again as {type(loaded).__name__}; same predictions: {same}")

"""
## Where to go on

- `reading_plots.py`: what went on in a run, as pictures.
- `label_errors.py`: which examples were drawn most, and why.
- `resuming.py`: going on after a crash.
"""
