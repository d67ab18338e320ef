"""Trains a network on Fashion-MNIST by importance sampling, and exports it."""

import gzip
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import keras
import numpy as np
from keras import layers

import keras_osgd

FOLDER = pathlib.Path(os.getenv("KERAS_OSGD_DATA", "/usr/share/datasets/fashion-mnist"))


def load():  # Fashion-MNIST, to train and to test on; else scikit-learn's digits
    try:
        paths = sorted(FOLDER.glob("*-ubyte.gz"))  # t10k-images, t10k-labels, train-...
        if len(paths) != 4:
            return keras.datasets.fashion_mnist.load_data()
        files = [np.frombuffer(gzip.decompress(p.read_bytes()), "uint8") for p in paths]
        x_test, x = (images[16:].reshape(-1, 28, 28) for images in files[::2])
        return (x, files[3][8:]), (x_test, files[1][8:])
    except Exception as error:  # Keras raises no other where a download fails
        print(f"Digits in place of Fashion-MNIST: {error}")
    from sklearn.datasets import load_digits

    x, y = load_digits().images, load_digits().target
    return (x[:1500], y[:1500]), (x[1500:], y[1500:])


def build(x):
    return keras_osgd.Sequential(  # in place of keras.Sequential
        [
            keras.Input(x.shape[1:]),
            layers.Normalization(None, x.mean(), x.var()),
            layers.Flatten(),
            layers.Dense(256, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )


if __name__ == "__main__":
    n = 4000 if "--smoke" in sys.argv else 60_000  # --smoke: to see that it runs
    (x, y), (x_test, y_test) = load()
    x, y = x[:n], y[:n]
    keras.utils.set_random_seed(0)
    model = build(x)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, batch_size=64, epochs=5, validation_data=(x_test, y_test))
    # A SavedModel, which needs no keras_osgd.
    model.export("quickstart_model", verbose=False)
