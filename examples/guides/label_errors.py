"""
Title: Finding label errors
Description: The examples drawn most often are hard, rare or mislabelled; look at them.
Accelerator: None
Needs: matplotlib (`pip install 'keras_osgd[plot]'`); 20 seconds on two CPU cores.
"""

"""
## Introduction

A mislabelled example keeps a large gradient: the network is sure of another class, and
no other example helps it to learn the label. So importance sampling draws it again and
again, and the number of its draws makes it a suspect.

This guide flips some labels of Fashion-MNIST and counts how many of them are found.
"""

"""
## Setup
"""

import guide_data
import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_osgd

n, epochs = guide_data.size(20_000, smoke=400), guide_data.size(8, smoke=2)
(x_train, y_true), _, class_names = guide_data.images(n)

"""
One label in twenty becomes another class, drawn at random.
"""

rng = np.random.default_rng(0)
is_wrong = np.zeros(n, bool)
is_wrong[rng.choice(n, n // 20, replace=False)] = True
shifted = (y_true + rng.integers(1, 10, n)) % 10
y_train = np.where(is_wrong, shifted, y_true).astype("int32")

"""
## Train

Train as always. A large network learns wrong labels by heart in the end. Few epochs and
Dropout make that less likely.
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

`most_sampled(k)` returns the rows, labels, shares of the draws and gradient norms of
the k examples that were drawn most.
"""

k = n // 20
most = model.sampling.most_sampled(k)
share = is_wrong[most.index].mean()
print(
    f"Of the {k} drawn most {share:.0%} are mislabelled; of all {is_wrong.mean():.0%}."
)

"""
The others are labelled rightly, and hard or rare, such as shirts that look like coats.
`find_label_errors` tells the two apart better, because it takes the draws together with
the network's predictions.
"""

suspects = keras_osgd.find_label_errors(model, x_train, y_train, k=k)

"""
The simplest ranking needs no draws at all: by the network's probability of the given
label, lowest first. Here are the three rankings side by side.
"""

probabilities = model.predict(x_train, verbose=0)
by_confidence = np.argsort(probabilities[np.arange(n), y_train])[:k]
print(f"Mislabelled among {k} rows, of {is_wrong.sum()} that there are:")
for name, rows in (
    ("drawn most", most.index),
    ("find_label_errors", suspects.index),
    ("least probable label", by_confidence),
):
    print(f"  {name:20}  {is_wrong[rows].sum():5}  {is_wrong[rows].mean():4.0%}")

wrong = is_wrong[suspects.index]
right = suspects.suggested[wrong] == y_true[suspects.index][wrong]
print(f"In {right.mean():.0%} of those found the suggestion is the true label.")

"""
Which of the last two finds more depends on the data, and on how much the network has
learned by heart. `examples/results/label_errors.md` compares them, and others, after
short and long trainings, with labels flipped to any class and to a similar one.

## Look at them

The picture has eighteen of the suspects, at equal distances from the first to the last.
Above each stand its row, its label and the class that the network suggests for it. A
thick red frame marks a flipped label, which nobody can mark in data of your own.
"""

figure, panels = plt.subplots(3, 6, figsize=(9.6, 6.5), layout="constrained")
for axes, place in zip(panels.flat, np.linspace(0, k - 1, 18).astype(int), strict=True):
    row, label = suspects.index[place], class_names[suspects.label[place]]
    suggested = class_names[suspects.suggested[place]]
    axes.imshow(x_train[row].squeeze(), cmap="gray_r", interpolation="nearest")
    axes.set_title(f"row {row}\nlabel: {label}\nrather: {suggested}?", fontsize=8)
    axes.set(xticks=[], yticks=[])
    look = ("tab:red", 2.5) if is_wrong[row] else ("0.6", 0.8)
    for spine in axes.spines.values():
        spine.set(color=look[0], linewidth=look[1])
figure.savefig("label_errors.png")

"""
![The most suspicious examples](label_errors.png)

## Keep the list

A CSV file with the rows is for the person who looks through the labels.
"""

suspects.to_csv("label_errors.csv")

"""
Leave the decision to that person. Training without all suspects would also leave out
hard examples that are labelled rightly.
"""
