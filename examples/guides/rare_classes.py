"""
Title: Rare classes
Description: Six rows of a class among 34,800: how often are they drawn?
Accelerator: None
Needs: matplotlib; two minutes on two CPU cores.
"""

"""
## Introduction

Uniform training sees a rare class rarely. Importance sampling draws its rows more often
as long as their gradients are large, without being told which class is rare. Each draw
then counts for less, so that the same loss is minimised. This guide counts the draws of
each class, and measures what that does to the errors of the rare ones.

The Shuttle data have seven classes, and four fifths of the rows belong to one of them.
The command `python -m examples.experiments.debian` brings them from a Debian package.
Without them this guide takes images, and makes some classes of them rare.
"""

"""
## Setup
"""

import math

import guide_data
import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_osgd

name, (x_train, y_train), (x_test, y_test) = guide_data.shuttle()
n, classes = len(x_train), int(y_test.max()) + 1
epochs, batch_size = guide_data.size(10, smoke=2), 64
counts = np.bincount(y_train, minlength=classes)
tests = np.bincount(y_test, minlength=classes)
print(f"{name}: {n} rows, by class {counts.tolist()}, to test on {tests.tolist()}")

"""
## The right measure

Always predicting the most frequent class would be right for four of five Shuttle rows.
So the measure here is the balanced error: the mean of the error rates of the classes,
in which each class counts the same.
"""


def balanced_error(model):
    predicted = model.predict(x_test, batch_size=1024, verbose=0).argmax(axis=1)
    wrong = predicted != y_test
    return np.mean(
        [wrong[y_test == c].mean() for c in range(classes) if (y_test == c).any()]
    )


"""
## Train, uniformly and by importance
"""


def train(sampling, epochs, seed):
    keras.utils.set_random_seed(seed)
    model = keras_osgd.Sequential(
        [
            keras.Input(x_train.shape[1:]),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dense(classes, "softmax"),
        ]
    )
    total = epochs * math.ceil(n / batch_size)
    model.compile(
        keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(0.05, total), momentum=0.9
        ),
        "sparse_categorical_crossentropy",
        sampling=sampling,
    )
    model.fit(x_train, y_train, batch_size=batch_size, epochs=epochs, verbose=0)
    return model


seeds = range(guide_data.size(3, smoke=1))
longer = [train("rais", 3 * epochs, seed) for seed in seeds]
equal = [train("rais", epochs, seed) for seed in seeds]

"""
Warnings of two kinds come here with the Shuttle data. Neither ends the training. Look
at the rows that they name, and go on if their labels are right.

- A hundredth of the rows take a quarter of all draws. The cause is the rare classes:
  the last lines that this guide prints show that these rows have all of the four rarest
  ones among them.
- The gain ratio stayed at its cap of 8. A few examples make up almost the whole
  gradient by then, since all others are learned.

RAIS was trained for 10 epochs and for 30. Uniform training follows for 10 epochs, and
for about as many steps as RAIS took for its 30.
"""


def mean_steps(models):
    return int(np.mean([model.sampling.history["steps"][-1] for model in models]))


whole = [train("uniform", epochs, seed) for seed in seeds]
per_epoch = math.ceil(n / batch_size)
few = math.ceil(mean_steps(longer) / per_epoch)
short = [train("uniform", few, seed) for seed in seeds]

print("                  steps  balanced error, %, of each seed")
for title, models, taken in (
    (f"uniform, {epochs} epochs", whole, epochs * per_epoch),
    (f"uniform, {few} epochs", short, few * per_epoch),
    (f"RAIS, {3 * epochs} epochs", longer, mean_steps(longer)),
    (f"RAIS, {epochs} epochs", equal, mean_steps(equal)),
):
    errors = "  ".join(f"{100 * balanced_error(model):.1f}" for model in models)
    print(f"{title:18}{taken:5}  {errors}")

"""
With the Shuttle data RAIS of 30 epochs ends below uniform training of about as many
steps. At equal epochs it is *not* better: RAIS of 10 epochs takes about a quarter of
the steps of uniform training, and mostly ends above it. An epoch means equal progress
of the loss over all rows, in which rare classes hardly count. So give RAIS more epochs
where rare classes matter.

The seeds differ widely. The test rows have two or three of each of the rarest classes,
so that one row more or less moves the balanced error by points. Three seeds prove
little.

## Who was drawn

`most_sampled(n)` returns the share of the draws of each of the n rows. Here the shares
are summed by class, and divided by the class's share of the rows. The result says how
many times as often as by uniform draws a row of the class was drawn.
"""

drawn = longer[0].sampling.most_sampled(n)
share = np.bincount(drawn.label, drawn.share_of_draws, minlength=classes)
rarest_first = [c for c in np.argsort(counts) if counts[c]]
times = share[rarest_first] / (counts[rarest_first] / n)
names = [f"class {c}, {counts[c]} rows" for c in rarest_first]
for name, factor in zip(names, times, strict=True):
    print(f"{name:20} drawn {factor:5.1f} times as often")
most = np.bincount(drawn.label[: n // 100], minlength=classes)
print(f"The {n // 100} rows drawn most, by class: {most.tolist()}")

figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
axes.plot(times, names, "o")
axes.axvline(1, color="black", linestyle="--", label="uniform draws")
axes.set(xscale="log", xlabel="draws of a row, times those of uniform draws")
axes.xaxis.set_major_formatter("{x:g}")
axes.invert_yaxis()
axes.grid(color="0.92")
axes.legend(loc="lower right")
figure.savefig("rare_classes.png", dpi=150)

"""
![Rare classes are drawn more often](rare_classes.png)

## If a class is to count for more

Importance sampling does not change the loss that is minimised. To make rare classes
count for more, give `fit` a `class_weight`, as in Keras: the guide `class_weight.py`
does.
"""
