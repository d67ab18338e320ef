"""The networks of the experiments, by name."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import models

from experiments.augmentation import ShiftAndFlip

_PATCH = 7  # pixels
_WIDTH = 32  # of the transformer
_HEADS = 2


class _Bases(NamedTuple):
    sequential: type[keras.Sequential]
    model: type[keras.Model]


def build(name: str, base: type[keras.Model], data: Any, seed: int) -> keras.Model:
    """Returns an untrained network, not compiled, that fits the data.

    Args:
        name: one of `NAMES`. "mlp", "cnn", "resnet", "resnet_bn" and "transformer" are
            for images, "table", "text" and "word" for data of the kind of their name.
        base: `keras.Sequential` or `keras_osgd.Sequential`, or the two `Model`s; the
            same seed gives the same initial weights with all of them.
        data: `experiments.sets.Data`, or what has its `kind`, `train`, `classes`,
            `shift`, `flip` and `vocabulary`.
        seed: of the initial weights and of the augmentation's draws.

    Returns:
        A model whose outputs are logits, `[m, classes]`; with L2 1e-4 on kernels.

    Raises:
        ValueError: for an unknown name, a network for another kind of data, or a base
            that is none of the four.
    """
    if name not in _BUILDERS:
        raise ValueError(
            f"`name` must be one of {', '.join(NAMES)}. Received: {name!r}."
        )
    kind, builder = _BUILDERS[name]
    if data.kind != kind:
        fitting = [n for n in NAMES if _BUILDERS[n][0] == data.kind]
        raise ValueError(
            f"The network {name!r} is for data of kind {kind!r}. Received: "
            f"{data.kind!r}, for which there are: {', '.join(fitting) or 'none'}."
        )
    # Room for the seeds of all layers of one network.
    return builder(_bases(base), data, 1000 * seed)


def _bases(base: type[keras.Model]) -> _Bases:
    if base in (keras.Sequential, keras.Model):
        return _Bases(keras.Sequential, keras.Model)
    # Plain Keras must be measurable where the add-on is not even imported.
    import keras_osgd

    if base in (keras_osgd.Sequential, keras_osgd.Model):
        return _Bases(keras_osgd.Sequential, keras_osgd.Model)
    raise ValueError(
        "`base` must be `Sequential` or `Model`, of keras or keras_osgd. Received: "
        f"{base}. Compile what `build` returned instead of deriving from it."
    )


def _augmentation(data: Any, seed: int) -> list[keras.layers.Layer]:
    if not (data.shift or data.flip):
        return []
    return [ShiftAndFlip(data.shift, data.flip, seed + 999)]


def _mlp(bases: _Bases, data: Any, seed: int) -> keras.Model:
    return _of_examples(models.mlp, bases, data, seed)


def _cnn(bases: _Bases, data: Any, seed: int) -> keras.Model:
    return _of_examples(models.cnn, bases, data, seed)


def _of_examples(builder, bases: _Bases, data: Any, seed: int) -> keras.Model:
    return builder(
        bases.sequential,
        data.train[0],
        seed,
        classes=data.classes,
        augmentation=_augmentation(data, seed),
    )


def _resnet(bases: _Bases, data: Any, seed: int) -> keras.Model:
    return _residual(bases, data, seed, normalise=False)


def _resnet_bn(bases: _Bases, data: Any, seed: int) -> keras.Model:
    return _residual(bases, data, seed, normalise=True)


def _residual(bases: _Bases, data: Any, seed: int, normalise: bool) -> keras.Model:
    """Returns three residual blocks of 8, 16 and 32 filters (He et al. 2016).

    Each halves the image, the first one too: a step then takes about as long as three
    of the CNN, and not five.
    """
    inputs, x = _images(data, seed)
    x = _convolution(8, 3, 2, seed)(x)
    if normalise:
        x = keras.layers.BatchNormalization()(x)
    x = keras.layers.ReLU()(x)
    for stage, filters in enumerate((8, 16, 32)):
        x = _block(x, filters, seed + 10 * stage, normalise)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = models.dense(data.classes, seed + 100)(x)
    name = "resnet_bn" if normalise else "resnet"
    return bases.model(inputs, outputs, name=name)


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


def _transformer(bases: _Bases, data: Any, seed: int) -> keras.Model:
    """Returns two encoder blocks on 7x7 patches (Dosovitskiy et al. 2021)."""
    inputs, x = _images(data, seed)
    x = _patches(x)
    # A bias for each position and unit is a learned embedding of positions.
    x = keras.layers.EinsumDense(
        "mtp,pw->mtw",
        output_shape=(x.shape[1], _WIDTH),
        bias_axes="tw",
        kernel_initializer=keras.initializers.GlorotUniform(seed),
        bias_initializer=keras.initializers.RandomNormal(stddev=0.02, seed=seed + 1),
        kernel_regularizer=keras.regularizers.L2(models.L2),
    )(x)
    attentions = []
    for block in range(2):
        first = seed + 10 * (block + 1)
        attention = keras.layers.MultiHeadAttention(
            _HEADS,
            _WIDTH // _HEADS,
            kernel_regularizer=keras.regularizers.L2(models.L2),
        )
        attentions.append((attention, first))
        normalised = keras.layers.LayerNormalization()(x)
        x = keras.layers.Add()([x, attention(normalised, normalised)])
        y = keras.layers.LayerNormalization()(x)
        y = models.dense(2 * _WIDTH, first + 5, activation="relu")(y)
        x = keras.layers.Add()([x, models.dense(_WIDTH, first + 6)(y)])
    x = keras.layers.LayerNormalization()(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    outputs = models.dense(data.classes, seed + 100)(x)
    model = bases.model(inputs, outputs, name="transformer")
    for attention, first in attentions:
        _seed_kernels(attention, first)
    return model


def _patches(x):
    height, width, channels = x.shape[1:]
    rows, columns = height // _PATCH, width // _PATCH
    x = keras.layers.Reshape((rows, _PATCH, columns, _PATCH * channels))(x)
    x = keras.layers.Permute((1, 3, 2, 4))(x)
    return keras.layers.Reshape((rows * columns, _PATCH * _PATCH * channels))(x)


def _seed_kernels(attention: keras.layers.MultiHeadAttention, seed: int) -> None:
    """Draws the kernels of an attention layer, each from a seed of its own.

    A seeded initialiser given to the layer would make queries, keys and values equal:
    it is cloned with its seed. Fans are those of the square matrices that these are.
    """
    kernels = [w for w in attention.trainable_weights if w.name == "kernel"]
    for number, kernel in enumerate(kernels):
        initial = keras.initializers.GlorotUniform(seed + number)
        kernel.assign(keras.ops.reshape(initial((_WIDTH, _WIDTH)), kernel.shape))


def _images(data: Any, seed: int) -> tuple:
    """Returns the input of a network on images, and what follows: standardised."""
    inputs, *layers = models.image_input(data.train[0], _augmentation(data, seed))
    x = inputs
    for layer in layers:
        x = layer(x)
    return inputs, x


def _table(bases: _Bases, data: Any, seed: int) -> keras.Model:
    layers = [
        keras.Input(data.train[0].shape[1:]),
        models.dense(128, seed, activation="relu"),
        models.dense(128, seed + 1, activation="relu"),
        models.dense(data.classes, seed + 2),
    ]
    return bases.sequential(layers, name="table")


def _text(bases: _Bases, data: Any, seed: int) -> keras.Model:
    """Returns a network on the mean embedding of the tokens; token 0 is padding."""
    layers = [
        keras.Input(data.train[0].shape[1:], dtype="int32"),
        _embedding(data, 32, seed, mask_zero=True),
        MeanOfTokens(),
        models.dense(64, seed + 1, activation="relu"),
        models.dense(data.classes, seed + 2),
    ]
    return bases.sequential(layers, name="text")


def _word(bases: _Bases, data: Any, seed: int) -> keras.Model:
    layers = [
        keras.Input(data.train[0].shape[1:], dtype="int32"),
        _embedding(data, 16, seed),
        keras.layers.Conv1D(
            64,
            3,
            padding="same",
            activation="relu",
            kernel_initializer=keras.initializers.GlorotUniform(seed + 1),
            kernel_regularizer=keras.regularizers.L2(models.L2),
        ),
        keras.layers.GlobalMaxPooling1D(),
        models.dense(64, seed + 2, activation="relu"),
        models.dense(data.classes, seed + 3),
    ]
    return bases.sequential(layers, name="word")


def _embedding(
    data: Any, width: int, seed: int, mask_zero: bool = False
) -> keras.layers.Embedding:
    # No regularisation: it would reach every row at each step, also those not seen.
    return keras.layers.Embedding(
        data.vocabulary,
        width,
        embeddings_initializer=keras.initializers.RandomUniform(-0.05, 0.05, seed),
        mask_zero=mask_zero,
    )


@keras.saving.register_keras_serializable(package="experiments")
class MeanOfTokens(keras.layers.Layer):
    """The mean over the positions that are not masked; 0 where all are.

    The mask ends here. Keras' own pooling would divide by 0 where a text is empty.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs, mask=None):
        """Returns `[m, units]` for inputs `[m, positions, units]`."""
        if mask is None:
            return keras.ops.mean(inputs, axis=1)
        kept = keras.ops.cast(mask, inputs.dtype)[..., None]
        count = keras.ops.maximum(keras.ops.sum(kept, axis=1), 1)
        return keras.ops.sum(inputs * kept, axis=1) / count

    def compute_mask(self, inputs, previous_mask=None):
        """Returns no mask."""
        return None

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the shape without positions."""
        return input_shape[0], input_shape[2]


_BUILDERS: dict[str, tuple[str, Callable[[_Bases, Any, int], keras.Model]]] = {
    "mlp": ("image", _mlp),
    "cnn": ("image", _cnn),
    "resnet": ("image", _resnet),
    "resnet_bn": ("image", _resnet_bn),
    "transformer": ("image", _transformer),
    "table": ("table", _table),
    "text": ("text", _text),
    "word": ("word", _word),
}
NAMES = tuple(_BUILDERS)
