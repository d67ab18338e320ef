"""The networks on images that are more than a row of layers."""

from collections.abc import Sequence

import keras

from examples.common import models
from examples.experiments import transformers

_PATCH = 7  # pixels


def residual(
    base: type[keras.Model],
    first: Sequence,
    classes: int,
    seed: int,
    normalise: bool = False,
) -> keras.Model:
    """Returns three residual blocks of 8, 16 and 32 filters (He et al. 2016).

    Each halves the image, the first one too: a step then takes about as long as three
    of the CNN, and not five.

    Args:
        base: `keras.Model` or `keras_osgd.Model`.
        first: the input and the layers that follow it, from `models.image_input`.
        classes: number of outputs.
        seed: of the initial weights.
        normalise: whether with BatchNormalization.
    """
    inputs, x = _applied(first)
    x = _convolution(8, 3, 2, seed)(x)
    if normalise:
        x = keras.layers.BatchNormalization()(x)
    x = keras.layers.ReLU()(x)
    for stage, filters in enumerate((8, 16, 32)):
        x = _block(x, filters, seed + 10 * stage, normalise)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = models.dense(classes, seed + 100)(x)
    name = "resnet_bn" if normalise else "resnet"
    return base(inputs, outputs, name=name)


def _block(x, filters: int, seed: int, normalise: bool):
    bias = not normalise
    # Pooled, not strided (He, T. et al., "Bag of tricks", 2019): TensorFlow 2.21
    # crashes on gradients of strided 1x1 convolutions of some even sizes on CPUs.
    shortcut = keras.layers.AveragePooling2D(2, padding="same")(x)
    shortcut = _convolution(filters, 1, 1, seed + 3)(shortcut)
    x = _convolution(filters, 3, 2, seed + 1, bias)(x)
    if normalise:
        x = keras.layers.BatchNormalization()(x)
    x = keras.layers.ReLU()(x)
    # Without normalisation each block starts as its shortcut (Zhang, Dauphin & Ma,
    # "Fixup initialization", 2019), so that no activation grows with the depth.
    initial = None if normalise else "zeros"
    x = _convolution(filters, 3, 1, seed + 2, bias, initial)(x)
    if normalise:
        x = keras.layers.BatchNormalization()(x)
    return keras.layers.ReLU()(keras.layers.Add()([x, shortcut]))


def _convolution(
    filters: int,
    size: int,
    strides: int,
    seed: int,
    bias: bool = True,
    initial: str | None = None,
) -> keras.layers.Conv2D:
    return keras.layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding="same",
        use_bias=bias,
        kernel_initializer=initial or keras.initializers.HeNormal(seed),
        kernel_regularizer=keras.regularizers.L2(models.L2),
    )


def transformer(
    base: type[keras.Model], first: Sequence, classes: int, seed: int
) -> keras.Model:
    """Returns two encoder blocks on 7x7 patches (Dosovitskiy et al. 2021).

    Arguments as for `residual`.
    """
    inputs, x = _applied(first)
    x = transformers.placed(_patches(x), seed)
    return transformers.encoder(base, inputs, x, classes, seed, "transformer")


def _patches(x):
    height, width, channels = x.shape[1:]
    rows, columns = height // _PATCH, width // _PATCH
    x = keras.layers.Reshape((rows, _PATCH, columns, _PATCH * channels))(x)
    x = keras.layers.Permute((1, 3, 2, 4))(x)
    return keras.layers.Reshape((rows * columns, _PATCH * _PATCH * channels))(x)


def _applied(layers: Sequence) -> tuple:
    """Returns the input, and what the layers after it make of it."""
    inputs, *others = layers
    x = inputs
    for layer in others:
        x = layer(x)
    return inputs, x
