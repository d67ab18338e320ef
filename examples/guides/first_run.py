"""
Title: Your first run
Description: Train a network on Fashion-MNIST in fewer steps, by one changed word.
Accelerator: None
Needs: nothing beyond keras_osgd; a minute or two on two CPU cores.
"""

"""
## Introduction

After a few epochs a network knows most of its training examples: their gradients are
small, and steps spent on them teach it little. keras_osgd draws examples in proportion
to how much they still have to teach, and weights each by the inverse of how often it is
expected to be drawn, so that the gradient stays right on average. What is gained is
lower variance, and that is turned into a larger learning rate: as much progress in
fewer steps.

This guide trains the same network in Keras' way and in this one, and compares them.
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

n, epochs, batch_size = guide_data.size(50_000, smoke=400), guide_data.size(8, 2), 64
(x_train, y_train), (x_test, y_test), class_names = guide_data.images(n)
steps_per_epoch = math.ceil(n / batch_size)

"""
## The model

The class is the only difference: `keras_osgd.Sequential` for `keras.Sequential`, or
`keras_osgd.Model` for `keras.Model`. A model that you have already becomes one by
`keras_osgd.accelerate(model)`.

`sampling` is RAIS unless something else is said. `"uniform"` is Keras' own training,
bit for bit.
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

`check` names everything that would stand in the way, each with its remedy. `fit` asks
the same questions; here you get the answers without it.
"""

model = make_model("rais")
findings = keras_osgd.check(model, x_train, y_train, batch_size=batch_size)
print(f"{len(findings)} findings, {sum(f.kind == 'error' for f in findings)} errors")

"""
`estimate_speedup` trains a copy for a moment and says what importance sampling may save
here; the model stays as it is.
"""

print(keras_osgd.estimate_speedup(model, x_train, y_train, batch_size=batch_size))

"""
## Train

`fit` is called as always. `epochs` means epochs' worth of progress: while examples are
drawn well, an epoch ends after fewer steps. The callbacks are optional: one measures
the time, the other puts what the sampler does into `history`.
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
The first epoch is Keras' own: nothing is known of the examples yet. From then on the
gain ratio says how much progress a step makes, in steps of uniform training. At 2 an
epoch takes half of the steps.

## Compare

The same network, trained by Keras' own code: for as many epochs, and for as many steps
as RAIS took, rounded up to whole epochs, with a schedule of that length. The second is
the fair comparison: whoever wants to save steps can shorten uniform training as well.
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
Alone on the machine a step of RAIS takes 1.1 to 1.4 times as long as one of Keras, so
that not all that is saved in steps is saved in time. Where other programs run beside
it, the seconds of a single run may differ by more than that. Differences of accuracy
below 0.003 are the luck of one seed, in either direction. Many seeds, on several
networks and data, are in `examples/experiments/results/report.md`.

## Keep it

Files and exports know nothing of the sampling: what loads them needs Keras alone.
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
