"""What all guides share: their data, and how much of it they take.

With `KERAS_OSGD_SMOKE=1` in the environment a guide takes next to nothing: that shows
that it runs, and its figures mean nothing.
"""

import functools
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import datasets
import numpy as np

FASHION = (
    ["T-shirt", "trouser", "pullover", "dress", "coat"]
    + ["sandal", "shirt", "sneaker", "bag", "ankle boot"]
)  # fmt: skip
DIGITS = [str(digit) for digit in range(10)]


def size(full: int, smoke: int) -> int:
    """Returns `full`, or `smoke` if this is to show only that the guide runs."""
    return smoke if os.environ.get("KERAS_OSGD_SMOKE") else full


def images(n: int) -> tuple[datasets.Split, datasets.Split, list[str]]:
    """Returns n training images, the test images, and the names of the classes.

    As `keras.datasets.fashion_mnist.load_data()`, but scaled to [0, 1] and looked for
    on this machine first; scikit-learn's digits where there is nothing else.
    """
    name, (train, _, test) = _loaded()
    tests = size(len(test[0]), 200)
    names = FASHION if name == "Fashion-MNIST" else DIGITS
    return (train[0][:n], train[1][:n]), (test[0][:tests], test[1][:tests]), names


_loaded = functools.cache(datasets.load)


def shuttle() -> tuple[str, datasets.Split, datasets.Split]:
    """Returns a table with rare classes: its name, training and test rows.

    The Shuttle data, where `experiments/sets/debian.py` brought them; else images of
    which class c is kept with a share of 0.4 ** c.
    """
    from experiments.sets import debian, tables

    try:
        data = tables.load("shuttle")
        found = "Shuttle", data.train, data.test
    except (debian.Missing, OSError) as missing:
        print(f"Images with rare classes in place of Shuttle: {missing}")
        (x, y), test, _ = images(50_000)
        x, test = x.reshape(len(x), -1), (test[0].reshape(len(test[0]), -1), test[1])
        kept = np.random.default_rng(0).uniform(size=len(y)) < 0.4**y
        found = "images with rare classes", (x[kept], y[kept]), test
    name, (x, y), test = found
    n = size(len(y), 1500)
    return name, (x[:n], y[:n]), test
