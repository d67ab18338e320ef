"""
Title: Finding label errors
Description: The examples drawn most often are hard, rare or mislabelled; look at them.
Accelerator: None
Needs: matplotlib (`pip install 'keras_osgd[plot]'`); 20 seconds on two CPU cores.
"""

"""
## Introduction

A mislabelled example keeps a large gradient: the network is sure of something else, and
no other example helps it to learn the label. So importance sampling draws it again and
again, and its counts are a list of suspects that costs nothing.

Here we falsify some labels of Fashion-MNIST and see how many of them are found.
"""

"""
## Setup
"""

import guide_data
import keras
import numpy as np

import keras_osgd
from keras_osgd import plots

n, epochs = guide_data.size(20_000, smoke=400), guide_data.size(8, smoke=2)
(x_train, y_true), _, class_names = guide_data.images(n)

"""
Every twentieth label becomes another class, drawn at random.
"""

rng = np.random.default_rng(0)
is_wrong = np.zeros(n, bool)
is_wrong[rng.choice(n, n // 20, replace=False)] = True
shifted = (y_true + rng.integers(1, 10, n)) % 10
y_train = np.where(is_wrong, shifted, y_true).astype("int32")

"""
## Train

Nothing is special here. A network that is large enough learns wrong labels by heart in
the end; a few epochs, and some regularisation, keep it from doing so.
"""

keras.utils.set_random_seed(0)
model = keras_osgd.Sequential(
    [
        keras.Input(x_train.shape[1:]),
        keras.layers.Flatten(),
        keras.layers.Dense(128, "relu"),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(10, "softmax"),
    ]
)
model.compile(
    keras.optimizers.SGD(0.03, momentum=0.9),
    "sparse_categorical_crossentropy",
    metrics=["accuracy"],
)
model.fit(x_train, y_train, batch_size=64, epochs=epochs, verbose=0)

"""
## The examples drawn most

`most_sampled(k)` has their rows, labels, shares of the draws, and gradient norms.
"""

k = n // 20
most = model.sampling.most_sampled(k)
share = is_wrong[most.index].mean()
print(
    f"Of the {k} drawn most {share:.0%} are mislabelled; of all {is_wrong.mean():.0%}."
)

"""
The others are hard or rare: shirts that look like coats. `find_label_errors` tells them
apart: it puts together how often an example was drawn and how surely the network
contradicts its label.
"""

suspects = keras_osgd.find_label_errors(model, x_train, y_train, k=k)
wrong = is_wrong[suspects.index]
print(f"Of the {len(wrong)} most suspicious {wrong.mean():.0%} are mislabelled:")
print(f"{wrong.sum()} of the {is_wrong.sum()} that there are.")
right = suspects.suggested[wrong] == y_true[suspects.index][wrong]
print(f"In {right.mean():.0%} of these the suggestion is the true label.")

"""
## Look at them

The number is the row; a frame and a cross mark what the network contradicts: the label
before the cross, the suggestion after it.
"""

top = suspects.index[:18]
drawn = model.sampling.most_sampled(n)
places = np.argsort(drawn.index)[top]
shown = type(drawn)(*(column[places] for column in drawn))
figure = plots.gallery(x_train[top], shown, suspects.suggested[:18], class_names)
figure.savefig("label_errors.png")

"""
![The most suspicious examples](label_errors.png)

## Keep the list

For whoever looks through the labels: a table with the rows.
"""

suspects.to_csv("label_errors.csv")

"""
What to do with the suspects is for a person to decide. To leave out all of them also
leaves out hard examples that are right, and those are worth most.
"""
