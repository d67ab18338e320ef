"""What exact norms cost: time and memory of one step, with them and without.

`python -m examples.benchmarks.norm_steps NETWORK KIND` takes a few steps and prints the
peak memory that they needed: `norms.py` starts it as a process of its own.
"""

import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.data import training_data
from keras_osgd.losses import described
from keras_osgd.norms import scorer as scoring
from keras_osgd.norms.calls import recording
from keras_osgd.step import exact_step

BATCH_SIZE = 128
KINDS = ("plain", "exact")
_STEPS_AT_ONCE = 8
_WARMUP = 5
_TOKENS = 1000
_LENGTH = 64
_ROOT = pathlib.Path(__file__).parents[2]
L = keras.layers


def _mlp() -> keras.Model:
    layers = [L.Dense(256, "relu"), L.Dense(256, "relu"), L.Dense(10)]
    return keras.Sequential([keras.Input((784,)), *layers])


def _cnn(padding: str = "valid") -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            L.Conv2D(16, 5, activation="relu", padding=padding),
            L.MaxPool2D(),
            L.Conv2D(32, 5, activation="relu", padding=padding),
            L.MaxPool2D(),
            L.Flatten(),
            L.Dense(64, "relu"),
            L.Dense(10),
        ]
    )


def _transformer() -> keras.Model:
    inputs = keras.Input((_LENGTH,), dtype="int32")
    hidden = L.Embedding(_TOKENS, 64)(inputs)
    for _ in range(2):
        attended = L.MultiHeadAttention(4, 16)(hidden, hidden)
        hidden = L.LayerNormalization()(hidden + attended)
        fed = L.Dense(64)(L.Dense(256, "relu")(hidden))
        hidden = L.LayerNormalization()(hidden + fed)
    pooled = L.GlobalAveragePooling1D()(hidden)
    return keras.Model(inputs, L.Dense(10)(pooled))


def _lstm() -> keras.Model:
    inputs = keras.Input((_LENGTH,), dtype="int32")
    hidden = L.LSTM(64)(L.Embedding(_TOKENS, 64)(inputs))
    return keras.Model(inputs, L.Dense(10)(hidden))


def _small() -> keras.Model:
    layers = [L.Conv2D(2, 3), L.Flatten(), L.Dense(10)]
    return keras.Sequential([keras.Input((8, 8, 1)), *layers])


_SMALL = "small", "plain"
NETWORKS = {
    "MLP 784-256-256-10": _mlp,
    "CNN 16c5-p-32c5-p-64-10": _cnn,
    'CNN, padding "same"': lambda: _cnn("same"),
    "transformer encoder, 2 blocks, 64 wide, length 64": _transformer,
    "embedding-LSTM 64-10, length 64": _lstm,
}


def make_step(network: str, kind: str) -> Callable[[], None]:
    """Returns a compiled training step on one random batch, "plain" or "exact"."""
    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    model = _small() if network == _SMALL[0] else NETWORKS[network]()
    shape = (BATCH_SIZE, *model.input_shape[1:])
    tokens = rng.integers(0, _TOKENS, shape).astype("int32")
    values = rng.normal(size=shape).astype("float32")
    x = tokens if model.inputs[0].dtype == "int32" else values
    y = rng.integers(0, 10, BATCH_SIZE)
    model.compile(
        keras.optimizers.SGD(1e-4, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.optimizer.build(model.trainable_variables)
    data = training_data.prepare(x, y, None, None, BATCH_SIZE, None)
    scorer = scoring.Scorer(model, described.describe(model, data), data)

    def plain(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True))
        weights = model.trainable_variables
        gradients = tape.gradient(loss, [v.value for v in weights])
        model.optimizer.apply(gradients, weights)
        return loss

    def exact(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape(persistent=True) as tape, recording(model) as frames:
            loss = model.compute_loss(x, y, model(x, training=True))
        both = loss, loss
        found = exact_step.backward(model, scorer, tape, frames, both, [], None)
        model.optimizer.apply(found.gradients, model.trainable_variables)
        return loss, tf.sqrt(found.squared_norms)

    step = tf.function({"plain": plain, "exact": exact}[kind], autograph=False)
    batch = tf.constant(x), tf.constant(y)
    return lambda: keras.tree.map_structure(lambda t: t.numpy(), step(*batch))


def timed(network: str, repetitions: int) -> dict[str, list[float]]:
    """Returns the milliseconds of plain steps and of steps with norms, in turn."""
    steps = {kind: make_step(network, kind) for kind in KINDS}
    for step in steps.values():
        for _ in range(_WARMUP):
            step()
    milliseconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(repetitions):
        for kind, step in steps.items():
            started = time.perf_counter()
            for _ in range(_STEPS_AT_ONCE):
                step()
            elapsed = time.perf_counter() - started
            milliseconds[kind].append(1000 * elapsed / _STEPS_AT_ONCE)
    return milliseconds


def peak_megabytes(network: str, kind: str) -> float:
    """Returns the memory that steps needed above the model's, in a fresh process."""
    command = [sys.executable, "-m", "examples.benchmarks.norm_steps", network, kind]
    finished = subprocess.run(
        command, cwd=_ROOT, capture_output=True, text=True, check=False
    )
    if finished.returncode:
        raise RuntimeError(
            f"The process that measures memory must end well. Received: exit code "
            f"{finished.returncode} from {command}: {finished.stderr[-500:]}"
        )
    return float(finished.stdout.split()[-1])


def _peak() -> float:
    """Returns the most megabytes that this process has had in memory."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # `ru_maxrss` would be that of the process before, if larger
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    make_step(*_SMALL)()  # what TensorFlow itself takes on its first step
    taken = make_step(sys.argv[1], sys.argv[2])
    before = _peak()
    for _ in range(_WARMUP):
        taken()
    print(_peak() - before)
