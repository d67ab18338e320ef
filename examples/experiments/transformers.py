"""Transformers of two blocks: an encoder that classifies, a decoder that goes on."""

import keras

from examples.common import models

WIDTH = 32
_BLOCKS = 2
_HEADS = 2


def placed(x, seed: int):
    """Returns `[m, positions, WIDTH]`: each position's values projected, and its place.

    A bias for each position and unit is a learned embedding of positions.
    """
    return keras.layers.EinsumDense(
        "mtp,pw->mtw",
        output_shape=(x.shape[1], WIDTH),
        bias_axes="tw",
        kernel_initializer=keras.initializers.GlorotUniform(seed),
        bias_initializer=keras.initializers.RandomNormal(stddev=0.02, seed=seed + 1),
        kernel_regularizer=keras.regularizers.L2(models.L2),
    )(x)


def encoder(
    base: type[keras.Model], inputs, x, classes: int, seed: int, name: str
) -> keras.Model:
    """Returns a model of two encoder blocks, the mean over positions and logits.

    Args:
        base: `keras.Model` or `keras_osgd.Model`.
        inputs: of the model.
        x: `[m, positions, WIDTH]`, made from the inputs.
        classes: number of outputs.
        seed: of the initial weights.
        name: of the model.
    """
    x, attentions = _blocks(x, seed, causal=False)
    x = keras.layers.GlobalAveragePooling1D()(x)
    outputs = models.dense(classes, seed + 100)(x)
    return _seeded(base(inputs, outputs, name=name), attentions)


def decoder(base: type[keras.Model], inputs, x, classes: int, seed: int) -> keras.Model:
    """Returns a model of two causal blocks with logits at each position.

    Arguments as for `encoder`. Outputs are `[m, positions, classes]`; those of a
    position know of none after it.
    """
    x, attentions = _blocks(x, seed, causal=True)
    outputs = models.dense(classes, seed + 100)(x)
    return _seeded(base(inputs, outputs, name="decoder"), attentions)


def _blocks(x, seed: int, causal: bool) -> tuple:
    """Returns what the blocks make of x, and their attentions with a seed each."""
    attentions = []
    for block in range(_BLOCKS):
        start = seed + 10 * (block + 1)
        attention = keras.layers.MultiHeadAttention(
            _HEADS,
            WIDTH // _HEADS,
            kernel_regularizer=keras.regularizers.L2(models.L2),
        )
        attentions.append((attention, start))
        normalised = keras.layers.LayerNormalization()(x)
        attended = attention(normalised, normalised, use_causal_mask=causal)
        x = keras.layers.Add()([x, attended])
        y = keras.layers.LayerNormalization()(x)
        y = models.dense(2 * WIDTH, start + 5, activation="relu")(y)
        x = keras.layers.Add()([x, models.dense(WIDTH, start + 6)(y)])
    return keras.layers.LayerNormalization()(x), attentions


def _seeded(model: keras.Model, attentions: list) -> keras.Model:
    """Returns the model, each kernel of its attentions drawn from its own seed.

    A seeded initialiser given to the layer would make queries, keys and values equal:
    it is cloned with its seed. Fans are those of the square matrices that these are.
    """
    for attention, seed in attentions:
        kernels = [w for w in attention.trainable_weights if w.name == "kernel"]
        for number, kernel in enumerate(kernels):
            initial = keras.initializers.GlorotUniform(seed + number)
            kernel.assign(keras.ops.reshape(initial((WIDTH, WIDTH)), kernel.shape))
    return model
