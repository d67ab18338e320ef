"""The two networks of the benchmarks, their learning-rate schedule and optimizer."""

import math
from collections.abc import Sequence

import keras
import numpy as np

BATCH_SIZE = 64
LEARNING_RATES = {"mlp": 0.05, "cnn": 0.04}
L2 = 1e-4  # on kernels
_WARMUP_STEPS = 200


def mlp(
    base: type[keras.Sequential],
    images: np.ndarray,
    seed: int,
    classes: int = 10,
    augmentation: Sequence[keras.layers.Layer] = (),
) -> keras.Sequential:
    """Returns an untrained 784-256-10 network (on 28x28 images).

    Args:
        base: `keras.Sequential` or `keras_osgd.Sequential`. The same seed gives
            both the same initial weights.
        images: `[n, height, width, channels]`, all training images. The first layer
            standardises by their mean image and overall standard deviation: without
            it the test error is about half a percentage point higher.
        seed: of the initial weights.
        classes: number of outputs.
        augmentation: layers before all others.
    """
    layers = [
        keras.layers.Flatten(),
        dense(256, seed, activation="relu"),
        dense(classes, seed + 1),
    ]
    return base([*image_input(images, augmentation), *layers], name="mlp")


def cnn(
    base: type[keras.Sequential],
    images: np.ndarray,
    seed: int,
    classes: int = 10,
    augmentation: Sequence[keras.layers.Layer] = (),
) -> keras.Sequential:
    """Returns an untrained small convolutional network; arguments as for `mlp`."""
    layers = [
        _convolution(8, 5, seed),
        _convolution(16, 3, seed + 1),
        keras.layers.Flatten(),
        dense(64, seed + 2, activation="relu"),
        dense(classes, seed + 3),
    ]
    return base([*image_input(images, augmentation), *layers], name="cnn")


BUILDERS = {"mlp": mlp, "cnn": cnn}


def schedule(
    rate: float, epochs: float, examples: int, batch_size: int = BATCH_SIZE
) -> keras.optimizers.schedules.CosineDecay:
    """Returns a linear warm-up of 200 steps to `rate`, then a cosine down to 0.

    It ends after `epochs * ceil(examples / batch_size)` steps: steps taken in
    uniform training, effective iterations in importance sampling. A run too short
    for 200 steps of warm-up spends a fifth of its steps on it.
    """
    steps = round(epochs * math.ceil(examples / batch_size))
    warmup = min(_WARMUP_STEPS, steps // 5)
    return keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=rate, warmup_steps=warmup
    )


def optimizer(
    name: str, learning_rate: float | keras.optimizers.schedules.LearningRateSchedule
) -> keras.optimizers.Optimizer:
    """Returns SGD with momentum 0.9 for `"sgd"`, Adam for `"adam"`."""
    if name == "sgd":
        return keras.optimizers.SGD(learning_rate, momentum=0.9)
    if name == "adam":
        return keras.optimizers.Adam(learning_rate)
    raise ValueError(f"`name` must be 'sgd' or 'adam'. Received: {name!r}.")


def loss() -> keras.losses.Loss:
    """Returns the crossentropy of logits, which the networks return."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def image_input(
    images: np.ndarray, augmentation: Sequence[keras.layers.Layer] = ()
) -> list:
    """Returns the first layers of a network on images, as `mlp` says."""
    mean_image = images.mean(axis=0)
    variance = np.full_like(mean_image, np.mean(np.square(images - mean_image)))
    standardise = keras.layers.Normalization(
        axis=(1, 2, 3), mean=mean_image, variance=variance
    )
    return [keras.Input(mean_image.shape), *augmentation, standardise]


def dense(units: int, seed: int, activation: str | None = None) -> keras.layers.Dense:
    """Returns a Dense layer with a seeded kernel and the examples' regularisation."""
    return keras.layers.Dense(
        units,
        activation=activation,
        kernel_initializer=keras.initializers.GlorotUniform(seed),
        kernel_regularizer=keras.regularizers.L2(L2),
    )


def _convolution(filters: int, size: int, seed: int) -> keras.layers.Conv2D:
    return keras.layers.Conv2D(
        filters,
        size,
        strides=2,
        padding="same",
        activation="relu",
        kernel_initializer=keras.initializers.GlorotUniform(seed),
        kernel_regularizer=keras.regularizers.L2(L2),
    )
