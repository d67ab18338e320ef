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
import numpy as np

import keras_osgd
from keras_osgd.plots.style import DARK, STYLES, finish, legend, new_figure

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
Warnings of two kinds come here. One says that a hundredth of the rows take a quarter of
all draws and more, and that their labels may be wrong. With the Shuttle data the rows
drawn most have among them all those of the four rarest classes, as you will see below.
The other says that the gain ratio stayed at its cap of 8: a few examples make up almost
the whole gradient, since training is nearly done or since they are faulty. Neither ends
the training; look at the rows (`label_errors.py` tells how), and go on if they are
right.

RAIS was given as many epochs as uniform training, and three times as many. Uniform
training is also shortened to about as many steps as the latter took.
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
The seeds differ widely. The test part has few rows of the rarest classes, and one row
more or less moves the balanced error by points: three seeds prove little.

With the Shuttle data RAIS of 30 epochs ended below uniform training of about as many
steps with each of the three seeds, and with two of the three below that of 10 epochs,
which had more steps.

Of equal epochs RAIS is *not* better: at 10 it ended above uniform training with each
seed. For an epoch means progress with the loss over all rows, in which rare classes
hardly count, and RAIS ended its 10 epochs after about a quarter of the steps. Where
rare classes matter, give RAIS more epochs; they are short.

## Who was drawn

`most_sampled(n)` has the draws of all rows. Summed by class and divided by what uniform
draws would have given, they say how much more often than that a class was seen.
"""

drawn = longer[0].sampling.most_sampled(n)
share = np.zeros(classes)
np.add.at(share, drawn.label, drawn.share_of_draws)
with np.errstate(invalid="ignore"):
    factor = share / (counts / n)
for c in np.argsort(counts):
    if counts[c]:
        print(f"class {c}: {counts[c]:6} rows, drawn {factor[c]:5.1f} times as often")
most = np.bincount(drawn.label[: n // 100], minlength=classes)
print(f"The {n // 100} rows drawn most, by class: {most.tolist()}")

figure = new_figure(5.6, 4.2)
axes, there = figure.subplots(), counts > 0
axes.loglog(counts[there], factor[there], STYLES[0][1], color=STYLES[0][0])
for c in np.flatnonzero(there):
    place = {"xytext": (6, 4), "textcoords": "offset points", "fontsize": 8}
    axes.annotate(f"class {c}", (counts[c], factor[c]), color=DARK, **place)
look = {"color": DARK, "linestyle": (0, (4, 2)), "linewidth": 1.0}
one = axes.axhline(1, **look)
axes.margins(0.15)
for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")
finish(axes, "training rows of the class", "times as often as uniform draws")
legend(figure, [(one, "uniform draws")])
figure.savefig("rare_classes.png")

"""
![Rare classes are drawn more often](rare_classes.png)

## If a class is to count for more

Importance sampling changes how fast the loss is minimised, not the loss. To make rare
classes count for more, say so to Keras, as always; draws then follow the weighted
gradients:

```python
model.fit(x_train, y_train, class_weight={0: 0.3, 1: 10.0, ...})
```
"""
