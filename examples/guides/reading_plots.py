"""
Title: Reading the plots
Description: What a run leaves behind, what each picture says, and one page with all.
Accelerator: None
Needs: matplotlib (`pip install 'keras_osgd[plot]'`); a minute on two CPU cores.
"""

"""
## Introduction

`SamplingMonitor(log_dir=...)` writes a run's files, for uniform training too.
`keras_osgd.plots` draws them, and `python -m keras_osgd report` makes one page of it
all.
"""

"""
## Setup
"""

import math

import guide_data
import keras

import keras_osgd
from keras_osgd import plots, report

n, epochs = guide_data.size(20_000, smoke=400), guide_data.size(8, smoke=3)
batch_size, seeds = guide_data.size(64, smoke=16), guide_data.size(2, smoke=1)
(x_train, y_train), (x_test, y_test), class_names = guide_data.images(n)

"""
## Train, with files

Two seeds in each way. Event files for TensorBoard are written beside the others unless
`tensorboard=False`.
"""


def train(sampling, seed):
    keras.utils.set_random_seed(seed)
    model = keras_osgd.Sequential(
        [
            keras.Input(x_train.shape[1:]),
            keras.layers.Flatten(),
            keras.layers.Dense(128, "relu"),
            keras.layers.Dense(10, "softmax"),
        ]
    )
    total = epochs * math.ceil(n / batch_size)
    rate = keras.optimizers.schedules.CosineDecay(0.05, total)
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        sampling=sampling,
    )
    directory = f"runs/{sampling}-{seed}"
    monitor = keras_osgd.callbacks.SamplingMonitor(directory, tensorboard=False)
    model.fit(
        x_train,
        y_train,
        batch_size=batch_size,
        epochs=epochs,
        validation_data=(x_test, y_test),
        callbacks=[monitor],
        verbose=0,
    )
    return model, directory


runs = {"RAIS": [], "uniform": []}
for seed in range(seeds):
    runs["uniform"].append(train("uniform", seed)[1])
    model, directory = train("rais", seed)
    runs["RAIS"].append(directory)

"""
## Did it pay?

Learning curves against all that one may count. Against *steps* and *seconds* the lower
curve is the better one; the seconds have the first step's tracing in them, and whatever
else the machine was doing. Against *effective epochs* the two should end near each
other, since an epoch means equal progress; on the way they may differ. If RAIS ends
clearly above there, its learning rate is raised too far. The panels *epochs* and
*effective epochs* show the same here, since with RAIS an epoch ends when its progress
is made. Bands go from one seed to the other.
"""

plots.learning_curves(runs, "val_loss").savefig("curves.png")

"""
![Learning curves](curves.png)

## The gain ratio

How much progress a step makes, in steps of uniform training. It is 1 in the first
epoch, and grows while the easy examples are learned. A ratio that stays near 1 says
that all examples are equally hard, or change too fast to know.

Early in training, right after the first epoch, a notice may say that the gain ratio is
below 1.03 and importance sampling does not pay at this moment. That is no fault: draws
are uniform until it pays, and then follow the scores again.
"""

plots.gain_ratio({"RAIS": runs["RAIS"]}).savefig("gain_ratio.png")

"""
![Gain ratio](gain_ratio.png)

## Who is drawn

How often examples are drawn, beside uniform draws, by the last plan. The bars at the
left are the examples that the network knows. Two things keep them from 0: the sampler
adds to each predicted norm what it is unsure by; and a share of the draws, `floor`, by
default 0.05, goes to all examples alike. So n p never falls below `floor`, and here
stays above it. At the right are the hard ones. A bar at 1 alone would mean uniform
draws.
"""

plots.probabilities(model.sampling.probabilities()).savefig("probabilities.png")

"""
![Probabilities](probabilities.png)

The same over time, as percentiles. It widens while the network learns. If the uppermost
goes on climbing while the others stay, look at these examples: they may be mislabelled.
"""

plots.probabilities_over_time(directory).savefig("over_time.png")

"""
![Probabilities over time](over_time.png)

The share of the draws that the most drawn examples took, the first epoch's uniform
draws among them: the further from the diagonal, the less uniform the draws were.
"""

plots.share_of_draws({"RAIS": runs["RAIS"]}).savefig("share_of_draws.png")

"""
![Share of draws](share_of_draws.png)

## Is the sampler right about them?

Each point is a draw: the gradient norm that was predicted, and the one observed. The
closer the points are to a rising line, the better the sampler knows whom to draw. That
line is a little steeper than the diagonal: large norms lie above it, small ones below.
For a prediction mixes what was last seen of an example, which is partly chance, with
means over its past, its class and all examples. So it leans towards the middle, as is
right for noisy values: regression to the mean.

The band shows how unsure the sampler is, by the size of the prediction. It is no
interval for each point: the uncertainty set bounds a weighted mean, over all draws, of
squared errors in units of the squared band, by 1. Many points outside at one place are
made up for by points well inside elsewhere.
"""

plots.predicted_norms(directory).savefig("predicted_norms.png")

"""
![Predicted norms](predicted_norms.png)

## The hardest examples

Those drawn most. Each has its row, its label and its share of all draws; uniform draws
would give each 0.005 %. Where the network now predicts something else than the label,
that stands behind a cross, and the picture is framed: here, all twelve.
"""

most = model.sampling.most_sampled(12)
predicted = model.predict(x_train[most.index], verbose=0).argmax(axis=1)
plots.gallery(x_train[most.index], most, predicted, class_names).savefig("hardest.png")

"""
![The hardest examples](hardest.png)

## All of it on one page

It opens without a network, and has tables of runs, alarms and settings beside the
pictures. In a shell: `python -m keras_osgd report runs/* --output report.html`.
"""

everything = [directory for group in runs.values() for directory in group]
report.write(everything, "report.html")
print("Wrote report.html")
