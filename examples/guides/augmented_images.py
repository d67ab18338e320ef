"""
Title: Augmented images
Description: Random flips and shifts, in layers or in the dataset; what is left to gain.
Accelerator: None
Needs: nothing beyond keras_osgd; two minutes on two CPU cores.
"""

"""
## Introduction

With augmentation no version of an image is seen twice. The gradient of its last version
predicts the gradient of the next one less well, so importance sampling gains less. This
guide shows the two places for augmentation, and measures the steps that are still
saved.
"""

"""
## Setup
"""

import math

import guide_data
import keras
import tensorflow as tf
from keras import layers

import keras_osgd

n, epochs, batch_size = guide_data.size(15_000, smoke=400), guide_data.size(8, 2), 64
(x_train, y_train), (x_test, y_test), class_names = guide_data.images(n)


def make_model(sampling, augmentation=()):
    keras.utils.set_random_seed(0)
    model = keras_osgd.Sequential(
        [
            keras.Input(x_train.shape[1:]),
            *augmentation,
            layers.Conv2D(16, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(64, "relu"),
            layers.Dense(10, "softmax"),
        ]
    )
    steps = epochs * math.ceil(n / batch_size)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.002, steps)),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        sampling=sampling,
    )
    return model


def train(sampling, data, augmentation=()):
    """Returns the steps it took, and the test error in %."""
    model = make_model(sampling, augmentation)
    model.fit(*data, batch_size=batch_size, epochs=epochs, verbose=0)
    accuracy = model.evaluate(x_test, y_test, verbose=0)[1]
    return int(model.optimizer.iterations), 100 - 100 * accuracy


"""
## In layers

Keras' preprocessing layers are part of the model and act in training only. Prefer them,
since they need nothing else.
"""


def flips_and_shifts():
    return [
        layers.RandomFlip("horizontal"),
        layers.RandomTranslation(0.07, 0.07, fill_mode="constant"),
    ]


arrays = x_train, y_train
results = {
    "none, uniform": train("uniform", arrays),
    "none, RAIS": train("rais", arrays),
    "in layers, uniform": train("uniform", arrays, flips_and_shifts()),
    "in layers, RAIS": train("rais", arrays, flips_and_shifts()),
}

"""
## In the dataset

`fit` reads a dataset once and keeps its examples to draw from. Random operations in it
would be frozen by that. So a dataset with random operations trains as in Keras, after a
line that says so. Take them out of the dataset, and pass them to `indexed` as `map`:
then they run at every visit of an example.
"""


def augment(image, label, seed):
    """Flips and shifts an image by a `seed` that differs at each visit."""
    seeds = tf.unstack(tf.random.split(seed))
    wide = tf.pad(image, [[2, 2], [2, 2], [0, 0]])
    shifted = tf.image.stateless_random_crop(wide, image.shape, seeds[0])
    return tf.image.stateless_random_flip_left_right(shifted, seeds[1]), label


dataset = tf.data.Dataset.from_tensor_slices(arrays)
examples = keras_osgd.data.indexed(dataset, map=augment)
results["in the dataset, uniform"] = train("uniform", [examples])
results["in the dataset, RAIS"] = train("rais", [examples])

"""
The argument `seed` may be left out. With it, two runs with the same seed see the same
images, and an interrupted run goes on with those that it would have seen. As in Keras,
the threads of `tf.data` augment beside the training step.

## What is left to gain
"""

print("augmentation, method      steps  test error, %")
for name, (steps, error) in results.items():
    print(f"{name:24}{steps:7}{error:15.2f}")

"""
Compare the steps of each pair: RAIS saves fewer of them with augmentation than without.
The errors are those of one seed, which is partly luck. Eight epochs are too few here
for augmentation to lower them.

## More to know

- Mixing examples (mixup, CutMix) makes the loss of an example depend on the others of
  its batch, so it has no importance of its own. Such data train as in Keras, and
  `keras_osgd.check` says so.
- The stronger the augmentation, the smaller the gain. `keras_osgd.estimate_speedup`
  tells what to expect of your own model and data before a long run.
"""
