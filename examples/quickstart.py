"""Compares importance sampling with uniform training; `--smoke` shows that it runs."""

import gzip
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import keras
import numpy as np
from keras.layers import Conv2D, Dense, Flatten, Normalization

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


def train(sampling, epochs, x, y, test):  # returns test error in %, seconds, steps
    keras.utils.set_random_seed(0)
    layers = [keras.Input((*x.shape[1:], 1)), Normalization(None, x.mean(), x.var())]
    layers += [Conv2D(n, 3, 2, "same", activation="relu") for n in (8, 16)]
    model = keras_osgd.Sequential([*layers, Flatten(), Dense(64, "relu"), Dense(10)])
    rate = keras.optimizers.schedules.CosineDecay(0.04, epochs * -(-len(x) // 64))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(rate, momentum=0.9)
    model.compile(optimizer, loss, metrics=["accuracy"], sampling=sampling)
    begun = []  # when each step began: the first, which TensorFlow traces, is left out
    tick = {"on_train_batch_begin": lambda batch, logs: begun.append(time.time())}
    model.fit(x, y, 64, epochs, callbacks=[keras.callbacks.LambdaCallback(**tick)])
    return 100 - 100 * model.evaluate(*test)[1], begun[-1] - begun[1], len(begun)


epochs, n = (2, 4000) if "--smoke" in sys.argv else (10, 50_000)
(x, y), test = load()
data = x[:n], y[:n], test
rais, uniform = train("rais", epochs, *data), train("uniform", epochs, *data)
as_long = int(np.ceil(epochs * max(rais[1] / uniform[1], rais[2] / uniform[2])))
runs = {"RAIS": rais, f"uniform, {epochs} epochs": uniform}
runs[f"uniform, {as_long} epochs"] = train("uniform", as_long, *data)
print(f"\n{'':22}{'test error':>10}{'RAIS minus it':>15}{'seconds':>10}{'steps':>8}")
for name, (error, seconds, steps) in runs.items():
    print(f"{name:22}{error:8.2f} %{rais[0] - error:+15.2f}{seconds:10.1f}{steps:8}")
print("Luck of one seed: 0.3 points. Many: examples/experiments/results/report.md")
