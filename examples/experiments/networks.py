"""The networks of the experiments, by name."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras

from examples.common import models
from examples.experiments import image_networks, transformers
from examples.experiments.augmentation import ShiftAndFlip


class _Bases(NamedTuple):
    sequential: type[keras.Sequential]
    model: type[keras.Model]


def build(name: str, base: type[keras.Model], data: Any, seed: int) -> keras.Model:
    """Returns an untrained network, not compiled, that fits the data.

    Args:
        name: one of `NAMES`. "mlp", "cnn", "resnet", "resnet_bn" and "transformer" are
            for images, "text_transformer" for texts, "decoder" for sequences, and
            "table", "text", "word" and "regression" for data of the kind of their name.
        base: `keras.Sequential` or `keras_osgd.Sequential`, or the two `Model`s; the
            same seed gives the same initial weights with all of them.
        data: `experiments.sets.Data`, or what has its `kind`, `train`, `classes`,
            `shift`, `flip` and `vocabulary`.
        seed: of the initial weights and of the augmentation's draws.

    Returns:
        A model with L2 1e-4 on kernels. Its outputs are logits, `[m, classes]`, of a
        decoder `[m, length, classes]`, and numbers, `[m, 1]`, for a regression.

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


def _first(data: Any, seed: int) -> list:
    return models.image_input(data.train[0], _augmentation(data, seed))


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
    first = _first(data, seed)
    return image_networks.residual(bases.model, first, data.classes, seed)


def _resnet_bn(bases: _Bases, data: Any, seed: int) -> keras.Model:
    first = _first(data, seed)
    return image_networks.residual(bases.model, first, data.classes, seed, True)


def _transformer(bases: _Bases, data: Any, seed: int) -> keras.Model:
    first = _first(data, seed)
    return image_networks.transformer(bases.model, first, data.classes, seed)


def _table(bases: _Bases, data: Any, seed: int) -> keras.Model:
    layers = [
        keras.Input(data.train[0].shape[1:]),
        models.dense(128, seed, activation="relu"),
        models.dense(128, seed + 1, activation="relu"),
        models.dense(data.classes, seed + 2),
    ]
    return bases.sequential(layers, name="table")


def _regression(bases: _Bases, data: Any, seed: int) -> keras.Model:
    layers = [
        keras.Input(data.train[0].shape[1:]),
        models.dense(128, seed, activation="relu"),
        models.dense(128, seed + 1, activation="relu"),
        models.dense(1, seed + 2),
    ]
    return bases.sequential(layers, name="regression")


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


def _text_transformer(bases: _Bases, data: Any, seed: int) -> keras.Model:
    """Returns two encoder blocks on the tokens; padding is a token like others."""
    inputs = keras.Input(data.train[0].shape[1:], dtype="int32")
    x = _tokens_in_place(inputs, data, seed)
    return transformers.encoder(
        bases.model, inputs, x, data.classes, seed, "text_transformer"
    )


def _decoder(bases: _Bases, data: Any, seed: int) -> keras.Model:
    """Returns a language model: at each position the logits of the next token."""
    inputs = keras.Input(data.train[0].shape[1:], dtype="int32")
    x = _tokens_in_place(inputs, data, seed)
    return transformers.decoder(bases.model, inputs, x, data.classes, seed)


def _tokens_in_place(inputs, data: Any, seed: int):
    embedded = _embedding(data, transformers.WIDTH, seed)(inputs)
    return transformers.placed(embedded, seed + 1)


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
    "text_transformer": ("text", _text_transformer),
    "word": ("word", _word),
    "decoder": ("sequence", _decoder),
    "regression": ("regression", _regression),
}
NAMES = tuple(_BUILDERS)
