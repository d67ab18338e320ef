"""
Title: Reading the plots
Description: What a run leaves behind, what each picture says, and one page with all.
Accelerator: None
Needs: matplotlib (`pip install 'keras_osgd[plot]'`); a minute on two CPU cores.
"""

"""
## Introduction

The callback `SamplingMonitor` writes down what a run does, also a run of uniform
training. This guide draws its files with `keras_osgd.plots`, says how to read each
picture, and makes one page of them all.
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

Two seeds by RAIS and two by uniform training, each run with a directory of its own.
Without `tensorboard=False`, the directory gets event files for TensorBoard too.
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

The same learning curves, against four measures of how long a run took. A line is the
mean of the seeds, and its band goes from the lowest seed to the highest.

- *Steps* and *seconds*: the lower curve is the better one. The seconds include the
  first step, in which TensorFlow traces the model, and whatever else the machine did.
- *Effective epochs*: the progress made. Equal progress should mean about equal loss at
  the end; on the way the curves may differ. If RAIS ends clearly above uniform
  training here, its learning rate is too high: halve it.
- *Epochs*: as `fit` counts them. Here they equal the effective epochs, since with RAIS
  an epoch ends when its progress is made.
"""

plots.learning_curves(runs, "val_loss").savefig("curves.png")

"""
![Learning curves](curves.png)

## The gain ratio

The gain ratio is the progress of a step, in steps of uniform training. It is 1 in the
first epoch, whose draws are uniform, and grows while the easy examples are learned. If
it stays near 1, then all examples have gradients of about the same size, or their
gradients change too fast to be predicted.
"""

plots.gain_ratio({"RAIS": runs["RAIS"]}).savefig("gain_ratio.png")

"""
![Gain ratio](gain_ratio.png)

## Who is drawn

The picture shows the probabilities p of the last draws, for all n examples. The axis
has n p, which says how many times as often as by uniform draws an example is drawn. At
the left are the examples that the network knows, and at the right the hard ones. With
uniform draws there would be a single bar at 1.

No example is forgotten. A share of the draws, the argument `floor` of RAIS, goes to all
examples alike, so that n p is never below `floor`, which is 0.05 by default. The
sampler also adds its uncertainty to each predicted norm, which here keeps n p above
that.
"""

plots.probabilities(model.sampling.probabilities()).savefig("probabilities.png")

"""
![Probabilities](probabilities.png)

The next picture shows n p over time, as percentiles of the examples. They spread while
the network learns. If only the largest goes on climbing, look at the examples that are
drawn most: they may be mislabelled.
"""

plots.probabilities_over_time(directory).savefig("over_time.png")

"""
![Probabilities over time](over_time.png)

The last picture of the draws counts those of the whole run. Read it as "the 20 % of the
examples that were drawn most took this share of all draws". The further the curve is
from the diagonal, the less uniform the draws were.
"""

plots.share_of_draws({"RAIS": runs["RAIS"]}).savefig("share_of_draws.png")

"""
![Share of draws](share_of_draws.png)

## Is the sampler right about them?

Each point is a draw, with its predicted and its observed gradient norm. The closer the
points are to a rising line, the better the sampler knows which examples to draw. Large
norms lie a little above the diagonal and small ones below it: a prediction mixes the
last norm seen of an example with means over its past, its class and all examples. So it
lies nearer to the middle than the example's own norm.

The band shows how unsure the sampler is of a prediction of this size. It holds for the
average of all draws, not for each point: many points outside it at one place are made
up for by points well inside it elsewhere.
"""

plots.predicted_norms(directory).savefig("predicted_norms.png")

"""
![Predicted norms](predicted_norms.png)

## The hardest examples

The examples that were drawn most, each with its row, its label and its share of all
draws. Of 20,000 examples, uniform draws would give each 0.005 %. Where the network now
predicts another class than the label, that class stands behind a cross, and the picture
has a frame.
"""

most = model.sampling.most_sampled(12)
predicted = model.predict(x_train[most.index], verbose=0).argmax(axis=1)
plots.gallery(x_train[most.index], most, predicted, class_names).savefig("hardest.png")

"""
![The hardest examples](hardest.png)

## All of it on one page

The page is one file, which opens without a network. Beside the pictures it has tables
of runs, alarms and settings. The command for it is
`python -m keras_osgd report runs/* --output report.html`, and in Python:
"""

everything = [directory for group in runs.values() for directory in group]
report.write(everything, "report.html")
print("Wrote report.html")
