"""Random shifts and horizontal flips, drawn for every visit of an image."""

import keras
import numpy as np


def shifted_and_flipped(images, down, right, mirrored, shift: int):
    """Returns every image moved, and then mirrored, by its own draws.

    Output[r, c] = input[r - down, c' - right] with c' = c, or width - 1 - c where
    mirrored; 0 where that lies outside.

    Args:
        images: `[m, height, width, channels]`.
        down: `[m]` int32, pixels, in [-shift, shift].
        right: `[m]` int32, likewise.
        mirrored: `[m]` bool.
        shift: largest shift, in pixels.

    Returns:
        Like `images`.
    """
    height, width, channels = images.shape[1:]
    tall, wide = height + 2 * shift, width + 2 * shift
    margin = (shift, shift)
    padded = keras.ops.pad(images, ((0, 0), margin, margin, (0, 0)))
    # One gather of pixels from the whole batch: resampling costs many times as much.
    pixels = keras.ops.reshape(padded, (-1, channels))
    size = keras.ops.shape(images)[0]
    first = keras.ops.arange(size, dtype="int32") * (tall * wide)
    first = first + (shift - down) * wide + shift - right
    rows = np.arange(height, dtype=np.int32) * wide
    columns = np.arange(width, dtype=np.int32)
    columns = keras.ops.where(mirrored[:, None], columns[::-1], columns)
    index = (first[:, None, None] + rows[:, None]) + columns[:, None, :]
    return keras.ops.take(pixels, index, axis=0)


@keras.saving.register_keras_serializable(package="experiments")
class ShiftAndFlip(keras.layers.Layer):
    """Moves and mirrors each image at random in training; identity in inference.

    Args:
        shift: an integer shift of each direction is drawn from [-shift, shift]; pixels
            from outside are 0.
        flip: whether half of the images are mirrored left to right.
        seed: of the draws.
    """

    def __init__(self, shift: int, flip: bool, seed: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.shift, self.flip, self.seed = shift, flip, seed
        self._generator = keras.random.SeedGenerator(seed)

    def draws(self, size) -> tuple:
        """Returns `down`, `right` and `mirrored` of `shifted_and_flipped`, `[size]`."""
        choices = 2 * self.shift + 1
        drawn = keras.random.randint(
            (size,), 0, 2 * choices**2, dtype="int32", seed=self._generator
        )
        mirrored = drawn % 2 == 1 if self.flip else keras.ops.zeros_like(drawn) == 1
        drawn = drawn // 2
        return drawn // choices - self.shift, drawn % choices - self.shift, mirrored

    def call(self, images, training=None):
        """Returns the images, moved and mirrored in training."""
        if not training:
            return images
        size = keras.ops.shape(images)[0]
        return shifted_and_flipped(images, *self.draws(size), self.shift)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the shape as it is."""
        return input_shape

    def get_config(self) -> dict:
        """Returns the arguments of the layer."""
        own = {"shift": self.shift, "flip": self.flip, "seed": self.seed}
        return {**super().get_config(), **own}
