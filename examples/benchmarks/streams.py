"""Trains on a stream, uniformly and by sampling within pools, and counts what it took.

    python -m examples.benchmarks.streams

The images come from files of records on the disk, in order, as from any stream.
"""

import argparse
import gc
import math
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import keras_osgd
from examples.common import data, models, training
from keras_osgd.sampling import Presample

_RATIO = 4
_SMOKE_EXAMPLES = 4000


def main() -> None:
    """Trains all methods seed after seed, and prints their means."""
    options = _options()
    _, splits = data.load()
    if options.smoke:
        splits = tuple((x[:_SMOKE_EXAMPLES], y[:_SMOKE_EXAMPLES]) for x, y in splits)
    methods = {
        f"uniform, T = {options.short}": ("uniform", options.short),
        f"uniform, T = {options.epochs}": ("uniform", options.epochs),
        "pools while they pay": (Presample(_RATIO), options.epochs),
        "pools, at any cost": (Presample(_RATIO, cost=1.0), options.epochs),
    }
    results: dict[str, list] = {name: [] for name in methods}
    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder) / "train.tfrecord")
        write(path, splits[0])
        for seed in range(options.seeds):
            for name, (sampling, epochs) in methods.items():
                result = train(path, splits, sampling, epochs, seed, options.model)
                results[name].append(result)
                print(f"{name}, seed {seed}: {np.round(result, 2)}", flush=True)
    print(
        f"\n{options.model}, means of {options.seeds} seeds\n"
        f"{'':22}{'test error':>12}{'steps':>8}{'pools':>8}"
        f"{'forward passes, n':>19}{'seconds':>9}{'r at the end':>14}"
    )
    for name, rows in results.items():
        error, steps, pools, passes, seconds, gain = np.mean(rows, axis=0)
        print(
            f"{name:22}{error:>10.2f} %{steps:>8.0f}{pools:>8.0%}{passes:>19.1f}"
            f"{seconds:>9.1f}{gain:>14.2f}"
        )


def write(path: str, split: data.Split) -> None:
    """Writes examples as records: the label, and the image's bytes."""
    with tf.io.TFRecordWriter(path) as writer:
        for image, label in zip(*split, strict=True):
            image = np.round(255 * image).astype(np.uint8)
            writer.write(bytes([label]) + image.tobytes())


def stream(path: str, shape: tuple[int, ...], seed: int) -> tf.data.Dataset:
    """Returns batches of the records in a file, for ever."""

    def parse(records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        rows = tf.io.decode_raw(records, tf.uint8, fixed_length=1 + math.prod(shape))
        images = tf.cast(rows[:, 1:], tf.float32) / 255
        return tf.reshape(images, [-1, *shape]), tf.cast(rows[:, 0], tf.int32)

    records = tf.data.TFRecordDataset(path).shuffle(10_000, seed).repeat()
    return records.batch(models.BATCH_SIZE).map(parse).prefetch(tf.data.AUTOTUNE)


def train(
    path: str,
    splits: data.Splits,
    sampling: object,
    epochs: int,
    seed: int,
    network: str,
) -> tuple[float, ...]:
    """Trains one network on the stream.

    Returns:
        Test error in percent, steps, share of them that drew from a pool, forward
        passes over n examples, seconds in `fit` after its first step, and r.
    """
    keras.backend.clear_session()
    gc.collect()
    keras.utils.set_random_seed(seed)
    x, _ = splits[0]
    model = models.BUILDERS[network](keras_osgd.Sequential, x, 1000 * seed)
    rate = models.schedule(models.LEARNING_RATES[network], epochs, len(x))
    model.compile(models.optimizer("sgd", rate), models.loss(), sampling=sampling)
    stopwatch = training.Stopwatch(splits[2])
    logs = model.fit(
        stream(path, x.shape[1:], seed),
        steps_per_epoch=math.ceil(len(x) / models.BATCH_SIZE),
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[stopwatch, keras_osgd.callbacks.SamplingMonitor()],
    ).history
    history = stopwatch.history
    steps = history["steps"][-1]
    shares = logs.get("share_pooled", [0.0] * epochs)
    pooled = sum(shares * np.diff(history["steps"], prepend=0))
    passes = (steps + _RATIO * pooled) * models.BATCH_SIZE / len(x)
    gain = logs.get("candidate_gain_ratio", [1.0])[-1]
    error, seconds = history["test_error"][-1], history["seconds"][-1]
    return error, steps, pooled / steps, passes, seconds, gain


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--short", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", choices=tuple(models.BUILDERS), default="mlp")
    parser.add_argument(
        "--smoke", action="store_true", help="a small subset, one seed: does it run?"
    )
    options = parser.parse_args()
    if options.smoke:
        options.epochs, options.short, options.seeds = 2, 1, 1
    return options


if __name__ == "__main__":
    main()
