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

Here we flip some labels of Fashion-MNIST and see how many of them are found.
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
the end; a few epochs, and Dropout, leave it less time and room for that.
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
The others are hard or rare: shirts that look like coats. `find_label_errors` is to tell
them apart. It puts together the draws, in which a wrong label leaves its trace even
when the network has learned it by heart, and the predictions, which are trusted as far
as they have not learned what is drawn most.
"""

suspects = keras_osgd.find_label_errors(model, x_train, y_train, k=k)

"""
Was that worth the trouble? The simplest ranking needs no draws at all: the model's
probability of the given label, least first.
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
learned by heart: `examples/results/label_errors.md` has both, and others, for short and
long trainings and for flips to any class and to a similar one.

## Look at them

Eighteen of the suspects, evenly from the first of the list to the last. Above each: its
row, the label that it has, and the class that the network suggests for it. A thick
frame marks what we flipped; with data of your own there is none to tell you.
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

For whoever looks through the labels: a table with the rows.
"""

suspects.to_csv("label_errors.csv")

"""
What to do with the suspects is for a person to decide. To leave out all of them also
leaves out hard examples that are labelled rightly.
"""
