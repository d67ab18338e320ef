"""The data of all guides, and how much of it they take.

With `KERAS_OSGD_SMOKE=1` in the environment a guide runs in seconds, on next to no
data. Its figures then mean nothing.
"""

import functools
import gzip
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

Split = tuple[np.ndarray, np.ndarray]

FASHION = (
    ["T-shirt", "trouser", "pullover", "dress", "coat"]
    + ["sandal", "shirt", "sneaker", "bag", "ankle boot"]
)  # fmt: skip
DIGITS = [str(digit) for digit in range(10)]
_DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"


def size(full: int, smoke: int) -> int:
    """Returns `full`, or `smoke` where `KERAS_OSGD_SMOKE` is set."""
    return smoke if os.environ.get("KERAS_OSGD_SMOKE") else full


def images(n: int) -> tuple[Split, Split, list[str]]:
    """Returns n training images, the test images, and the names of the classes.

    As `keras.datasets.fashion_mnist.load_data()`, but scaled to [0, 1] and looked for
    on this machine first; scikit-learn's digits where there is nothing else.
    """
    train, test, names = _loaded()
    tests = size(len(test[0]), 200)
    return (train[0][:n], train[1][:n]), (test[0][:tests], test[1][:tests]), names


@functools.cache
def _loaded() -> tuple[Split, Split, list[str]]:
    try:
        return *(_scaled(*part, 255) for part in _fashion_mnist()), FASHION
    except Exception as error:  # Keras raises no other where a download fails
        print(f"scikit-learn's digits in place of Fashion-MNIST: {error}")
    from sklearn.datasets import load_digits

    x, y = load_digits().images, load_digits().target
    return _scaled(x[:1500], y[:1500], 16), _scaled(x[1500:], y[1500:], 16), DIGITS


def _scaled(x: np.ndarray, y: np.ndarray, largest: int) -> Split:
    return x[..., np.newaxis] / np.float32(largest), y.astype("int32")


def _fashion_mnist() -> tuple[Split, Split]:
    """Reads the folder KERAS_OSGD_DATA or Debian's, or has Keras download it."""
    folder = pathlib.Path(os.environ.get("KERAS_OSGD_DATA", _DEBIAN_FOLDER))
    if not folder.exists():
        return keras.datasets.fashion_mnist.load_data()

    def read(name: str, header: int) -> np.ndarray:
        content = (folder / f"{name}-ubyte.gz").read_bytes()
        return np.frombuffer(gzip.decompress(content), np.uint8, offset=header)

    train, test = (
        (
            read(f"{part}-images-idx3", 16).reshape(-1, 28, 28),
            read(f"{part}-labels-idx1", 8),
        )
        for part in ("train", "t10k")
    )
    return train, test


def shuttle() -> tuple[str, Split, Split]:
    """Returns a table with rare classes: its name, training and test rows.

    The Shuttle data, where `python -m examples.experiments.debian` brought them and
    the project is installed in place (`pip install -e .`); else images of which class
    c is kept with a share of 0.4 ** c.
    """
    try:
        from examples.experiments.sets import tables

        data = tables.load("shuttle")
        found = "Shuttle", data.train, data.test
    except (ImportError, OSError, RuntimeError) as missing:
        print(f"Images with rare classes in place of Shuttle: {missing}")
        (x, y), test, _ = images(50_000)
        x, test = x.reshape(len(x), -1), (test[0].reshape(len(test[0]), -1), test[1])
        kept = np.random.default_rng(0).uniform(size=len(y)) < 0.4**y
        found = "images with rare classes", (x[kept], y[kept]), test
    name, (x, y), test = found
    n = size(len(y), 1500)
    return name, (x[:n], y[:n]), test
