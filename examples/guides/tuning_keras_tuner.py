"""
Title: Tuning with Keras Tuner
Description: Search the learning rate and the floor of RAIS with Keras Tuner.
Accelerator: None
Needs: keras-tuner (`pip install 'keras_osgd[tuning]'`); a minute on two CPU cores.
"""

"""
## Introduction

A model of keras_osgd is a Keras model, so that Keras Tuner tunes it like any other.
Tune the learning rate first, since the best one for RAIS need not be the best one for
uniform training; then, if at all, RAIS' own arguments. Its defaults are meant to stay.

Every trial makes the same progress, `epochs`, whatever it draws; so trials can be
compared by their validation error, and those that draw well are over sooner.
"""

"""
## Setup
"""

import guide_data
import keras

try:
    import keras_tuner
    import tensorboard  # noqa: F401, in which Keras Tuner notes its trials
except ImportError as error:
    raise SystemExit("This guide takes: pip install keras-tuner tensorboard") from error

import keras_osgd

n, epochs = guide_data.size(10_000, smoke=300), guide_data.size(6, smoke=2)
(x, y), (x_test, y_test), _ = guide_data.images(n)
x_train, y_train, x_val, y_val = x[n // 5 :], y[n // 5 :], x[: n // 5], y[: n // 5]

"""
## What is searched

`sampling` goes into `compile`, so it can be a choice as well: Keras' own training takes
part in the search as `"uniform"`, and `"rais"` has to beat it. The seed makes trials
begin with the same weights, so that they differ only in what is searched.
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
    rate = hp.Float("rate", 0.003, 0.1, sampling="log")
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
    batch_size=64,
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
best.fit(x, y, batch_size=64, epochs=epochs, verbose=0)
accuracy = best.evaluate(x_test, y_test, verbose=0)[1]
print(f"Trained again on all rows with {found.values}")
print(f"Test accuracy: {accuracy:.3f}")

"""
The best trial's validation accuracy is the highest of several, and therefore too good;
the test images took no part in the search.

Six epochs of 8,000 images are too few for much to be gained: in the first all draws are
uniform, and in the second little is known. A few trials of one seed are a
demonstration. To claim that one method is better than another, give each the same
number of trials, and then several seeds.
"""
