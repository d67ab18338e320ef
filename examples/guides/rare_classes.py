"""
Title: Rare classes
Description: Ten rows of one class among 35,000: how often are they drawn?
Accelerator: None
Needs: matplotlib; two minutes on two CPU cores.
"""

"""
## Introduction

Uniform training sees a rare class rarely, and forgets it in between. Its examples keep
large gradients, so that importance sampling draws them more often, without being told
which class is rare, and weights them down again: the loss that is minimised is the
same.

The Shuttle data have seven classes; four fifths of the rows belong to one of them. They
are a Debian package: `python examples/experiments/sets/debian.py` brings it. Without it
this guide makes classes of images rare.
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
print(f"{name}: {n} rows, by class {counts.tolist()}")

"""
## The right measure

Whoever always says "the most frequent class" is right four times out of five. The
balanced error is the mean of the classes' own error rates: each class counts the same.
"""


def balanced_error(model):
    predicted = model.predict(x_test, batch_size=1024, verbose=0).argmax(axis=1)
    wrong = predicted != y_test
    return np.mean(
        [wrong[y_test == c].mean() for c in range(classes) if (y_test == c).any()]
    )


"""
## Train in both ways
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
rais = [train("rais", 3 * epochs, seed) for seed in seeds]
steps = int(np.mean([model.sampling.history["steps"][-1] for model in rais]))

"""
RAIS was given three times the epochs, and took its steps for them. It is compared with
uniform training of a third of the epochs, and with one of about equal steps.
"""

whole = [train("uniform", epochs, seed) for seed in seeds]
per_epoch = math.ceil(n / batch_size)
few = math.ceil(steps / per_epoch)
short = [train("uniform", few, seed) for seed in seeds]

print("                  steps  balanced error, %, of each seed")
for title, models, taken in (
    (f"uniform, {epochs} epochs", whole, epochs * per_epoch),
    (f"uniform, {few} epochs", short, few * per_epoch),
    (f"RAIS, {3 * epochs} epochs", rais, steps),
):
    errors = "  ".join(f"{100 * balanced_error(model):.1f}" for model in models)
    print(f"{title:18}{taken:5}  {errors}")

"""
With the Shuttle data uniform training ended at 32.5, 32.1 and 26.0 % after 10 epochs,
at 42.8, 33.1 and 31.7 % after 6, and RAIS at 37.5, 20.7 and 19.0 % in fewer steps than
those 6. The seeds differ widely: the test part has two or three rows of each of the two
rarest classes, and one row more or less moves the balanced error by points.

Of equal *epochs* RAIS is not better: at 10 it ended at 34.2, 39.7 and 45.6 %, in 1,468
steps. Epochs count the progress of the loss, in which rare classes hardly count. So
give it more of them; they are short.

RAIS warns that one in a hundred examples takes a quarter of all draws, and that their
labels may be wrong. Here they are rare rows; `label_errors.py` tells how to look at
them.

## Who was drawn

`most_sampled(n)` has the draws of all rows. Summed by class and divided by what uniform
draws would have given, they say how much more often than that a class was seen.
"""

drawn = rais[0].sampling.most_sampled(n)
share = np.zeros(classes)
np.add.at(share, drawn.label, drawn.share_of_draws)
with np.errstate(invalid="ignore"):
    factor = share / (counts / n)
for c in np.argsort(counts):
    if counts[c]:
        print(f"class {c}: {counts[c]:6} rows, drawn {factor[c]:5.1f} times as often")

figure, axes = plt.subplots(figsize=(5.6, 3.8), layout="constrained")
there = counts > 0
axes.loglog(counts[there], factor[there], "o", markersize=8)
for c in np.flatnonzero(there):
    axes.annotate(
        f"class {c}", (counts[c], factor[c]), textcoords="offset points", xytext=(4, 4)
    )
axes.axhline(1, linestyle=(0, (4, 2)), color="0.4", linewidth=1)
axes.margins(0.15)
axes.spines[["top", "right"]].set_visible(False)
for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_formatter("{x:g}")
axes.set(xlabel="training rows of the class", ylabel="times as often as uniform draws")
figure.savefig("rare_classes.png", dpi=120)

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
