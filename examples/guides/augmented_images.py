"""
Title: Augmented images
Description: Random flips and shifts, in layers or in the dataset; what is left to gain.
Accelerator: None
Needs: nothing beyond keras_osgd; two minutes on two CPU cores.
"""

"""
## Introduction

With augmentation no image is seen twice. What was learned about an image comes from
other versions of it, and foretells the gradient of the next one less well: expect less
of importance sampling, though not nothing. This guide shows where augmentation may
stand, and measures what it leaves.
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

Keras' preprocessing layers are part of the model and act in training only. Prefer them:
nothing else is to be done.
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

A dataset is read once, so that its examples are at hand to be drawn. One that augments
gives other images when it is read again. This is found out, and such a dataset trains
as in Keras, after a line that says so. So take the augmentation out of the dataset:
`indexed` gets the examples, and as `map` what is to be done at each visit of one.
"""


def augment(image, label, seed):
    """Flips and shifts an image; `seed` is another one at each visit."""
    seeds = tf.unstack(tf.random.split(seed))
    wide = tf.pad(image, [[2, 2], [2, 2], [0, 0]])
    shifted = tf.image.stateless_random_crop(wide, image.shape, seeds[0])
    return tf.image.stateless_random_flip_left_right(shifted, seeds[1]), label


dataset = tf.data.Dataset.from_tensor_slices(arrays)
examples = keras_osgd.data.indexed(dataset, map=augment)
results["in the dataset, uniform"] = train("uniform", [examples])
results["in the dataset, RAIS"] = train("rais", [examples])

"""
`seed` may be left out, and the images are then drawn by TensorFlow's own generator.
With it, two runs with the same seed see the same images, and an interrupted run goes on
with those that it would have seen. The threads of `tf.data` augment beside the training
step, as they do in Keras.

## What is left to gain
"""

print("augmentation, method      steps  test error, %")
for name, (steps, error) in results.items():
    print(f"{name:24}{steps:7}{error:15.2f}")

"""
Eight epochs are short for augmented images: they need more passes than plain ones to
end below them. Look at the steps, in pairs: RAIS saves fewer of them with augmentation
than without. Differences of error below 0.5 points are the luck of one seed here.

## More to know

- Mixing examples (mixup, CutMix) makes the loss of one depend on the others of its
  batch. It has no importance of its own then: such data train as in Keras, and `check`
  says so.
- The stronger the augmentation, the less is gained. `estimate_speedup` looks at your
  own model and data for some seconds before a long run.
"""
