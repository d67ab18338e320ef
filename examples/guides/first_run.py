"""
Title: Your first run
Description: Train a network on Fashion-MNIST in fewer steps, by one changed word.
Accelerator: None
Needs: nothing beyond keras_osgd; a minute on two CPU cores.
"""

"""
## Introduction

After a few epochs a network knows most of its training examples: their gradients are
small, and steps spent on them teach it little. keras_osgd draws examples in proportion
to how much they still have to teach, and weights each by how often it was to be drawn,
so that the gradient stays right on average. What is gained is lower variance, and that
is turned into a larger learning rate: as much progress in fewer steps.

This guide trains the same network in Keras' way and in this one, and compares them.
"""

"""
## Setup
"""

import math

import guide_data
import keras
import numpy as np

import keras_osgd

n, epochs, batch_size = guide_data.size(50_000, smoke=400), guide_data.size(8, 2), 64
(x_train, y_train), (x_test, y_test), class_names = guide_data.images(n)

"""
## The model

The class is the only difference: `keras_osgd.Sequential` for `keras.Sequential`, or
`keras_osgd.Model` for `keras.Model`. A model that you have already becomes one by
`keras_osgd.accelerate(model)`.

`sampling` is RAIS unless something else is said. `"uniform"` is Keras' own training,
bit for bit.
"""


def make_model(sampling):
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
    rate = keras.optimizers.schedules.CosineDecay(0.05, epochs * math.ceil(n / 64))
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
drawn well, an epoch ends after fewer steps. The callback is optional; it puts what the
sampler does into `history`.
"""

monitor = keras_osgd.callbacks.SamplingMonitor()
history = model.fit(
    x_train,
    y_train,
    batch_size=batch_size,
    epochs=epochs,
    callbacks=[monitor],
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

The same network, trained by Keras' own code for as many epochs.
"""

uniform = make_model("uniform")
uniform.fit(x_train, y_train, batch_size=batch_size, epochs=epochs, verbose=0)

print("method   steps  test accuracy")
uniform_steps = epochs * math.ceil(n / batch_size)
for name, trained, taken in (
    ("uniform", uniform, uniform_steps),
    ("RAIS", model, steps.sum()),
):
    accuracy = trained.evaluate(x_test, y_test, verbose=0)[1]
    print(f"{name:7}  {taken:5}  {accuracy:13.4f}")

"""
Differences below 0.003 are the luck of one seed. A step of RAIS takes about a tenth
longer than one of Keras, so that what is saved in steps is nearly saved in time.

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
