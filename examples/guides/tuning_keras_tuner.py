"""
Title: Tuning with Keras Tuner
Description: Search the learning rate and the floor of RAIS with Keras Tuner.
Accelerator: None
Needs: keras-tuner (`pip install 'keras_osgd[tuning]'`); a minute on two CPU cores.
"""

"""
## Introduction

Keras Tuner tunes a model of keras_osgd like any other Keras model. Tune the learning
rate first, since the best one for RAIS need not be the best one for uniform training.
The arguments of RAIS itself are meant to stay at their defaults; `floor` is tuned here
to show how.

Every trial makes the same progress, that of `epochs`, so trials can be compared by
their validation accuracy. Those by RAIS take fewer steps for it.
"""

"""
## Setup
"""

import math

import guide_data
import keras

try:
    import keras_tuner
    import tensorboard  # noqa: F401, in which Keras Tuner notes its trials
except ImportError as error:
    raise SystemExit("This guide takes: pip install keras-tuner tensorboard") from error

import keras_osgd

n, epochs = guide_data.size(10_000, smoke=300), guide_data.size(6, smoke=2)
batch_size = 64
(x, y), (x_test, y_test), _ = guide_data.images(n)
x_train, y_train, x_val, y_val = x[n // 5 :], y[n // 5 :], x[: n // 5], y[: n // 5]

"""
## What is searched

`sampling` is an argument of `compile`, so it can be searched as well: Keras' own
training takes part as `"uniform"`. With the same seed, all trials begin with the same
weights and differ only in what is searched.
"""


def build(hp):
    keras.utils.set_random_seed(0)
    model = keras_osgd.Sequential(
        [
            keras.Input(x.shape[1:]),
            keras.layers.Flatten(),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dense(10, "softmax"),
        ]
    )
    sampling = hp.Choice("sampling", ["rais", "uniform"])
    if sampling == "rais":
        with hp.conditional_scope("sampling", ["rais"]):
            floor = hp.Choice("floor", [0.05, 0.1, 0.2])
        sampling = keras_osgd.sampling.RAIS(floor=floor, seed=0)
    rate = hp.Float("rate", 0.01, 0.3, sampling="log")
    steps = epochs * math.ceil(len(x_train) / batch_size)
    rate = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        sampling=sampling,
    )
    return model


"""
## Search
"""

tuner = keras_tuner.RandomSearch(
    build,
    objective="val_accuracy",
    max_trials=guide_data.size(8, smoke=1),
    seed=1,  # Keras Tuner takes 0 for none
    directory="tuning",
    project_name="rais",
    overwrite=True,
)
tuner.search(
    x_train,
    y_train,
    batch_size=batch_size,
    epochs=epochs,
    validation_data=(x_val, y_val),
    verbose=0,
)

"""
## What was found
"""

trials = tuner.oracle.get_best_trials(8)
print("validation accuracy   sampling  floor   rate")
for trial in trials:
    values = trial.hyperparameters.values
    method, rate = values["sampling"], values["rate"]
    floor = values["floor"] if method == "rais" else "-"
    print(f"{trial.score:19.3f}   {method:8}  {floor!s:5}  {rate:.3f}")

found = tuner.get_best_hyperparameters()[0]
best = build(found)
best.fit(x_train, y_train, batch_size=batch_size, epochs=epochs, verbose=0)
accuracy = best.evaluate(x_test, y_test, verbose=0)[1]
print("Best:", found.values)
print(f"Test accuracy of the best, trained again: {accuracy:.3f}")

"""
The validation accuracy of the best trial is the highest of several, and therefore too
good. The test images took no part in the search.

Eight trials of one seed show how to search, and no more. To find out which method is
better, give each the same number of trials, and the best of each several seeds.
"""
