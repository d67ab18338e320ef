"""Fashion-MNIST: whole, in small parts, rotated, shifted, and with flipped labels."""

import dataclasses

import numpy as np

from examples.common.data import fashion_mnist
from examples.experiments.debian import Missing
from examples.experiments.sets.data import Arrays, Data, Split, cached

_SIZES = {"fashion-5k": 5_000, "fashion-10k": 10_000, "fashion-25k": 25_000}
_COPIES = {"rotated-50k": 1, "rotated-200k": 4}
_AUGMENTATION = {
    "shifted-weak": {"shift": 2, "flip": False},
    "shifted-strong": {"shift": 4, "flip": True},
}
_PERCENT_FLIPPED = {"noise-5": 5, "noise-20": 20}
NAMES = ("fashion", *_SIZES, *_COPIES, *_AUGMENTATION, *_PERCENT_FLIPPED)

_CLASSES = 10
_BATCH = 200  # images rotated at once: of 5000, the arrays leave the cache, 4x slower
_SUBSET_SEED, _ROTATION_SEED, _NOISE_SEED = 1, 2, 3


def load(name: str) -> Data:
    """Returns one of `NAMES`.

    Raises:
        Missing: if Fashion-MNIST is not on this machine.
    """
    if name in _COPIES:
        return _rotated(name, _COPIES[name])
    data = _fashion(name)
    if name in _SIZES:
        return _subset(data, _SIZES[name])
    if name in _PERCENT_FLIPPED:
        return _noisy(data, _PERCENT_FLIPPED[name])
    return dataclasses.replace(data, **_AUGMENTATION.get(name, {}))


def flipped_labels(y: np.ndarray, percent: int, classes: int, seed: int) -> np.ndarray:
    """Returns the labels, `percent` % of them changed to another class.

    Which ones (exactly that share, rounded) and to which class is uniformly random.
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(y))[: round(len(y) * percent / 100)]
    flipped = y.copy()
    flipped[rows] = (y[rows] + rng.integers(1, classes, len(rows))) % classes
    return flipped


def rotated(images: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """Returns each image rotated about its centre, by bilinear interpolation.

    The same as `scipy.ndimage.rotate(image, degrees[i], reshape=False, order=1)` for
    each, in a third of the time.

    Args:
        images: `[n, height, width]` float32; 0 outside.
        degrees: `[n]`, signed as scipy's.
    """
    (height, width), angle = images.shape[1:], np.radians(degrees)
    cosine, sine = (f(angle)[:, None, None] for f in (np.cos, np.sin))
    down = np.arange(height)[:, None] - (height - 1) / 2
    right = np.arange(width) - (width - 1) / 2
    row = cosine * down + sine * right + (height - 1) / 2
    column = -sine * down + cosine * right + (width - 1) / 2
    # Outside, scipy takes 0 without interpolating towards it.
    inside = (row >= 0) & (row <= height - 1) & (column >= 0) & (column <= width - 1)
    top = np.clip(np.floor(row), 0, height - 2).astype(np.int32)
    left = np.clip(np.floor(column), 0, width - 2).astype(np.int32)
    below, beside = (row - top).astype("float32"), (column - left).astype("float32")
    corner = top * width + left
    corner += np.arange(len(images), dtype=np.int32)[:, None, None] * (height * width)
    pixels = images.reshape(-1)
    upper = pixels[corner] * (1 - beside) + pixels[corner + 1] * beside
    corner += width
    lower = pixels[corner] * (1 - beside) + pixels[corner + 1] * beside
    return np.where(inside, upper * (1 - below) + lower * below, np.float32(0))


def _fashion(name: str) -> Data:
    try:
        train, validation, test = fashion_mnist()
    except RuntimeError as error:
        raise Missing(
            f"Fashion-MNIST must be on this machine. {error} On Debian: "
            "`apt-get install dataset-fashion-mnist`."
        ) from error
    return Data(name, "image", train, validation, test, _CLASSES)


def _subset(data: Data, size: int) -> Data:
    x, y = data.train
    # One order for all sizes: each part holds the smaller ones.
    rows = np.random.default_rng(_SUBSET_SEED).permutation(len(y))[:size]
    return dataclasses.replace(data, train=(x[rows], y[rows]))


def _noisy(data: Data, percent: int) -> Data:
    x, y = data.train
    flipped = flipped_labels(y, percent, data.classes, _NOISE_SEED)
    return dataclasses.replace(data, train=(x, flipped), true_labels=y)


def _rotated(name: str, copies: int) -> Data:
    """Returns each image turned by an angle of its own, fixed once for all."""

    def prepare() -> Arrays:
        data = _fashion(name)
        x, y = data.train
        train = np.concatenate([x] * copies), np.concatenate([y] * copies)
        parts = {"train": train, "validation": data.validation, "test": data.test}
        arrays: Arrays = {}
        for seed, (part, (x, y)) in enumerate(parts.items()):
            arrays[f"{part}_x"] = _turned(x, (_ROTATION_SEED, seed))
            arrays[f"{part}_y"] = y
        return arrays

    arrays = cached(f"{name}-1", prepare)

    def split(part: str) -> Split:
        images = arrays.pop(f"{part}_x") / np.float32(255)
        return images[..., np.newaxis], arrays[f"{part}_y"]

    parts = split("train"), split("validation"), split("test")
    return Data(name, "image", *parts, _CLASSES)


def _turned(x: np.ndarray, seed: tuple[int, int]) -> np.ndarray:
    """Returns the images, turned, in 0..255: a quarter of the size on disk."""
    degrees = np.random.default_rng(seed).uniform(0, 360, len(x))
    turned = np.empty(x.shape[:3], np.uint8)
    for start in range(0, len(x), _BATCH):
        rows = slice(start, start + _BATCH)
        turned[rows] = np.rint(255 * rotated(x[rows, ..., 0], degrees[rows]))
    return turned
