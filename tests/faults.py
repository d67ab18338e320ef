"""Bad inputs and faults, each tried, with what must come of it.

python -m tests.faults [NUMBER ...]    all of them in a minute or two, or some

Prints a line for each and exits with the number of those that are not met. "Survived"
means that training goes on, and that nothing learned or stored is lost.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import keras_osgd  # noqa: E402
from keras_osgd.base import warn  # noqa: E402
from keras_osgd.base.refusals import line_of  # noqa: E402
from keras_osgd.callbacks import (  # noqa: E402
    Checkpoint,
    SamplingMonitor,
    checkpoint_files,
)
from keras_osgd.draws.observations import Window  # noqa: E402
from keras_osgd.norms import PerExample, register  # noqa: E402
from keras_osgd.sampling import RAIS, Oracle  # noqa: E402
from tests.helpers import small  # noqa: E402
from tests.helpers.small import X, Y  # noqa: E402

L, NAN, INF = keras.layers, np.nan, np.inf
N = len(X)
FEW = {"batch_size": 20, "verbose": 0}  # three steps an epoch
SHOWN = 70  # characters of what was received


class Unmet(Exception):
    """What was received is not what must come."""


class Row(NamedTuple):
    """An input or a fault.

    Attributes:
        number: of the row.
        fault: what is given or done.
        must: what must come of it.
        tried: tries it; returns what was received, or raises `Unmet`.
    """

    number: int
    fault: str
    must: str
    tried: Callable[[], str]


ROWS: list[Row] = []


def row(fault: str, must: str) -> Callable:
    """Makes a function the next row."""

    def add(tried: Callable[[], str]) -> Callable[[], str]:
        ROWS.append(Row(len(ROWS) + 1, fault, must, tried))
        return tried

    return add


def require(what: str, met: Any) -> None:
    """Raises unless it is met."""
    if not met:
        raise Unmet(f"not met: {what}")


def refused(call: Callable[[], Any], *words: str, error: type = ValueError) -> str:
    """Returns what a call raises, which must be such an error with these words."""
    try:
        call()
    except Exception as caught:
        missing = [word for word in words if word not in str(caught)]
        if not isinstance(caught, error) or missing:
            raise Unmet(f"{line_of(caught)}; missing: {missing}") from caught
        return line_of(caught)
    raise Unmet("no error")


def said(call: Callable[[], Any], *words: str) -> str:
    """Returns the warning, or the printed line, that has these words; but one does."""
    out = io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        call()
    told = [f"warning: {w.message}" for w in caught] + out.getvalue().splitlines()
    found = [line for line in told if all(word in line for word in words)]
    if len(found) != 1:
        raise Unmet(f"{len(found)} lines with {words} among {told}")
    return found[0]


def quiet(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Returns the result of a call, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args, **options)


def model(*layers: L.Layer, **options: Any) -> keras.Model:
    """Returns a compiled model whose steps are run eagerly: few are made."""
    keras.utils.set_random_seed(0)
    made = keras_osgd.Sequential([keras.Input((4,)), *layers, L.Dense(3)])
    options = {"sampling": RAIS(seed=0), "run_eagerly": True, **options}
    made.compile(**{"optimizer": "sgd", "loss": small.crossentropy(), **options})
    return made


def fit(trained: keras.Model, x: Any = X, y: Any = Y, **options: Any) -> Any:
    """Trains for an epoch of three steps, unless said otherwise."""
    return trained.fit(x, y, **{**FEW, **options})


def finite(trained: keras.Model) -> None:
    """Requires that all weights are."""
    require("finite weights", np.isfinite(small.flat(trained)).all())


def same(a: keras.Model, b: keras.Model, tolerance: float = 0.0) -> None:
    """Requires that two models have the same weights."""
    close = np.allclose(small.flat(a), small.flat(b), rtol=tolerance, atol=tolerance)
    require("equal weights", close)


@contextlib.contextmanager
def folder() -> Iterator[pathlib.Path]:
    """Makes a folder for the block."""
    with tempfile.TemporaryDirectory() as path:
        yield pathlib.Path(path)


# Data


@row("x with no examples", "ValueError: 0 examples, and where to look")
def _() -> str:
    return refused(lambda: fit(model(), X[:0], Y[:0]), "has 0 examples. Check the fil")


@row("one example", "trains: p and weight 1; one warning for all fits")
def _() -> str:
    trained, monitor = model(), SamplingMonitor()

    def twice() -> None:
        for _ in range(2):
            fit(trained, X[:1], Y[:1], batch_size=1, callbacks=[monitor])

    found = said(twice, "has 1 example:")
    require("p of 1", monitor.probabilities().tolist() == [1.0])
    history = trained.sampling.history
    require("a weight of 1", set(history["largest_weight"]) == {1.0})
    return found


@row(
    "fewer examples than a batch",
    "trains on full batches, with a line; an error by choice",
)
def _() -> str:
    strict = RAIS(require_full_batches=True)
    refused(
        lambda: fit(model(sampling=strict), X[:7], Y[:7], batch_size=8),
        "7 examples with batch_size=8. Lower",
    )
    few = {"batch_size": 8, "verbose": 2}
    return said(lambda: fit(model(), X[:7], Y[:7], **few), "7 examples are fewer than")


@row("n not divisible by the batch", "trains on full batches, as many as in Keras")
def _() -> str:
    sizes = []

    def loss(y_true, y_pred):
        sizes.append(len(y_pred))
        return keras.ops.mean(y_pred**2, axis=-1)

    trained = model(loss=loss, sampling=RAIS(adapt_learning_rate=False))
    fit(trained, X[:50], Y[:50])
    require("3 steps", int(trained.optimizer.iterations) == 3)
    require("full batches", set(sizes[-3:]) == {20})
    return "3 batches of 20 for 50 examples"


@row("x and y of different lengths", "ValueError: both lengths")
def _() -> str:
    return refused(lambda: fit(model(), X, Y[:5]), "x has 60 examples but y has 5. All")


def _dataset() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(20)


def _as_in_keras(x: Any, **options: Any) -> str:
    """Requires that the default trains on what cannot be sampled, and says so."""
    trained = model(sampling=keras_osgd.sampling.Auto())
    told = said(lambda: trained.fit(x, verbose=2, **options), "as in Keras")
    require("three steps", int(trained.optimizer.iterations) == 3)
    return told


@row(
    "an infinite dataset; a finite one of unknown length",
    "ValueError with remedies, by default Keras' own training and a line; sampled",
)
def _() -> str:
    endless = _dataset().repeat()
    remedy = "random access", "Presample(ratio=4)"
    refused(lambda: model().fit(endless, verbose=0), "dataset is infinite", *remedy)
    trained = model()
    trained.fit(_dataset().filter(lambda x, y: True), verbose=0)
    require("the finite one sampled", trained.sampling_run.n == N)
    return _as_in_keras(endless, steps_per_epoch=3)


@row("a dataset of batches", "trains as on its arrays")
def _() -> str:
    batches, arrays = model(), model()
    batches.fit(_dataset(), verbose=0)
    fit(arrays)
    same(batches, arrays)
    return "sampled; equal weights"


class Batches(keras.utils.PyDataset):
    """The data in three batches."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple:
        return X[20 * index : 20 * index + 20], Y[20 * index : 20 * index + 20]


@row(
    "a generator, an iterator, a list; a PyDataset",
    "ValueError with remedies; the default trains as in Keras; PyDataset is sampled",
)
def _() -> str:
    for x, name in (((X, Y) for _ in [0]), "generator"), (iter([X]), "list_iterator"):
        words = f"`x` must be arrays. Received: {name}", "Presample(ratio=4)"
        refused(lambda x=x: model().fit(x, verbose=0), *words)
    refused(lambda: model().fit(X.tolist(), verbose=0), "must be arrays", "list")
    trained = model()
    trained.fit(Batches(), verbose=0)
    require("sampling", trained.sampling_run is not None)
    parts = ((X[i : i + 20], Y[i : i + 20]) for i in (0, 20, 40))
    return _as_in_keras(parts)


def _spoiled(value: float, *rows: int) -> np.ndarray:
    x = X.copy()
    x[list(rows), 2] = value
    return x


def _survived(trained: keras.Model, x: Any, y: Any) -> str:
    """Requires that example 17 is skipped, named and set aside."""
    told = said(lambda: fit(trained, x, y, epochs=4), "Skipped step", "1 of 60 set asi")
    require("its name", "[17]" in told)
    bad = trained.sampling_state.bad_examples
    require("17 set aside", bad.set_aside.tolist() == [17])
    finite(trained)
    return told


@row("NaN in a row of x", "survived: steps skipped, the row named and set aside")
def _() -> str:
    return _survived(model(), _spoiled(NAN, 17), Y)


@row(
    "NaN in more than 1 % of the rows, or in 10 batches in a row",
    "RuntimeError that names rows, and the path of the last good checkpoint",
)
def _() -> str:
    with folder() as at:
        good = model()
        fit(good, callbacks=[Checkpoint(at)])
        before = small.flat(good)

        def spoil(x: np.ndarray, **options: Any) -> None:
            callbacks = [Checkpoint(at, scores="reset")]
            quiet(fit, good, x, callbacks=callbacks, **options)

        path = f"The last good checkpoint is {at}"
        words, all_of_them = ("in 10 steps in a row", path), np.full_like(X, NAN)
        refused(lambda: spoil(all_of_them, epochs=20), *words, error=RuntimeError)
        quiet(Checkpoint(at).restore, good)
        require("weights as they were saved", (small.flat(good) == before).all())
        words, two = ("2 of 60, example(s) [17, 40]", path), _spoiled(NAN, 17, 40)
        told = refused(lambda: spoil(two, epochs=20), *words, error=RuntimeError)
        quiet(Checkpoint(at).restore, good)
        finite(good)
    return told


@row("an infinite target", "as NaN in a row of x")
def _() -> str:
    y = X[:, :3].copy()
    y[17, 1] = INF
    return _survived(model(loss="mae"), X, y)


@row("a label outside the classes", "ValueError before a step: label, index, outputs")
def _() -> str:
    for label in (-1, 14, NAN):
        y = Y.astype(float if label != label else int)
        y[53] = label
        trained = model()
        before = small.flat(trained)
        words = f"label {label} at index 53 but the model has 3 outputs"
        told = refused(lambda t=trained, y=y: fit(t, X, y), words)
        require("weights unchanged", (small.flat(trained) == before).all())
    return told


@row("gradient norms that are all 0", "uniform p, weights 1, a line")
def _() -> str:
    trained = small.model(lambda y, pred: 0.0 * keras.ops.mean(pred, -1), 1)
    options = {"epochs": 4, "verbose": 2}  # into the second block
    told = said(lambda: small.fit(trained, **options), "All gradient norms are 0")
    p = trained.sampling.probabilities()
    require("uniform p", np.allclose(p, 1 / N, rtol=1e-12))
    return told


class Halved(L.Layer):
    """Its rule fails for inputs of 0 alone."""

    def build(self, shape: tuple) -> None:
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones")

    def call(self, x: Any) -> Any:
        return x * self.scale


@register(Halved)
def _halved(call: Any) -> list:
    one = call.inputs / call.inputs  # NaN at 0
    return [(call.layer.scale, PerExample(call.delta * call.inputs * one))]


@row(
    "a score that is NaN, infinite or negative, by a rule of norms or by hand",
    "refused with its index, or left out, named and counted; the others are kept",
)
def _() -> str:
    x, trained = X.copy(), model(Halved(), sampling=RAIS(seed=0, norm="exact"))
    x[5, 1] = 0.0
    told = said(lambda: fit(trained, x), "norm of example(s) [5] is not finite, though")
    table = trained.sampling_state.table
    norms = table.last_norms()
    require("all other norms", np.isfinite(norms).sum() == N - 1 and np.isnan(norms[5]))
    for bad in (NAN, INF, -1.0):
        observed = [5, 6], [1.0, 1.0], [1.0, bad]
        words = f"`norms` must be finite and >= 0. Received: {bad} at index 1"
        refused(lambda o=observed: table.observe(*o, block=1), words)
        saved = table.state_dict()
        saved["last"][5] = bad if bad != -1.0 else -2.0
        refused(lambda s=saved: table.load_state_dict(s), "`last` must be", "index 5")
    require("a table as before", np.array_equal(table.last_norms(), norms, True))
    return told


# Losses, weights, floors


@row("scores thirty orders apart", "every p at least floor / n")
def _() -> str:
    still = keras.optimizers.SGD(0.0)
    trained = small.model(optimizer=still, sampling=RAIS(floor=0.1, seed=0))
    scales = np.geomspace(1e-15, 1e15, N)
    quiet(small.fit, trained, epochs=4, sample_weight=scales)
    p = trained.sampling.probabilities()
    require("p >= floor / n", p.min() >= 0.1 / N * (1 - 1e-12))
    require("the largest p for the largest score", p.argmax() == N - 1)
    return f"p from {p.min() * N:.3g} / n to {p.max() * N:.3g} / n"


@row("a floor of 0, or outside [0, 1]", "a warning with the largest weight; ValueError")
def _() -> str:
    for floor in (-0.01, 1.01, NAN):
        words = "`floor` must be in [0, 1]", f"floor={floor}"
        refused(lambda f=floor: RAIS(floor=f), *words)
    trained = small.model(sampling=RAIS(floor=0.0, retreat_below=0.0, seed=0))
    words = "`floor` is 0", "The largest weight is now"
    return said(lambda: small.fit(trained, epochs=4), *words)


def _lumped(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean(y_pred)


@row("a loss that returns a scalar", "ValueError with the shape, and what it must be")
def _() -> str:
    words = "one value per example; _lumped got shape (). Use a mean over all axes but"
    return refused(lambda: fit(model(loss=_lumped)), words)


@row(
    'reduction="sum"; "mean_with_sample_weight"',
    "trains as the mean at the rate times m; ValueError with the remedy",
)
def _() -> str:
    summed = small.crossentropy(reduction="sum")
    two = model(optimizer=keras.optimizers.SGD(0.2)), None
    two = two[0], model(loss=summed, optimizer=keras.optimizers.SGD(0.2 / 20))
    for trained in two:
        fit(trained)
    same(*two, tolerance=1e-5)
    biased = small.crossentropy(reduction="mean_with_sample_weight")
    words = "divides by", "biases the gradient", "'sum_over_batch_size'"
    return refused(lambda: fit(model(loss=biased)), *words)


@row("class_weight, sample_weight and ours", "all multiplied")
def _() -> str:
    own, of_class = np.linspace(0.5, 1.5, N), {0: 1.0, 1: 4.0, 2: 0.5}
    product = own * np.array([of_class[label] for label in Y])
    two = model(), model()
    fit(two[0], sample_weight=own, class_weight=of_class)
    fit(two[1], sample_weight=product)
    same(*two)
    return "as their product"


@row("class_weight without one of the classes", "weight 1 as in Keras, and a warning")
def _() -> str:
    two, some = (model(), model()), {0: 2.0, 1: 0.5}
    told = said(lambda: fit(two[0], class_weight=some), "no entry for [2]: such examp")
    none = small.warned(fit, two[1], class_weight=some | {2: 1.0})
    require("no warning where none is missing", none == [])
    same(*two)
    return told


@row("sample_weight of 0; negative or not finite", "no part in the step; ValueError")
def _() -> str:
    x, weights = X.copy(), np.repeat([1.0, 0.0], N // 2)
    x[N // 2 :] *= 100.0
    two = model(), model()
    fit(two[0], sample_weight=weights)
    fit(two[1], x, sample_weight=weights)
    same(*two, tolerance=1e-6)
    for bad in (-1.0, NAN, INF):
        weights = np.ones(N)
        weights[17] = bad
        words = f"sample_weight[17]={bad}. Drop"
        told = refused(lambda w=weights: fit(model(), sample_weight=w), words)
    return told


# Models and optimizers


@row("BatchNormalization", "trains; one warning that names the recalibration")
def _() -> str:
    trained = model(L.BatchNormalization())
    told = said(lambda: [fit(trained) for _ in range(2)], "recalibrate_batch_norm")
    keras_osgd.recalibrate_batch_normalization(trained, X)
    mean = trained.layers[0].moving_mean.numpy()
    require("the mean of the data", np.allclose(mean, X.mean(0), atol=1e-6))
    return told


class Noisy(Halved):
    """Draws random numbers beside its weights, which no second pass repeats."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.dropout = L.Dropout(0.5)

    def call(self, x: Any) -> Any:
        return self.dropout(super().call(x))


@row("exact norms of layers that have none", "ValueError with all of them and a remedy")
def _() -> str:
    layers = Noisy(name="first"), Noisy(name="second")
    trained = model(*layers, sampling=RAIS(norm="exact"))
    words = "first (Noisy)", "second (Noisy)", 'RAIS(norm="last_layer")'
    told = refused(lambda: fit(trained), *words)
    require("nothing begun", trained.sampling_state.table is None)
    fit(model(Noisy()))
    return told


@row("several outputs", "squared norms summed; ValueError with the outputs at fault")
def _() -> str:
    inputs, y = keras.Input((4,)), {"kind": Y, "size": X[:, :1]}
    outputs = {n: L.Dense(u, name=n)(inputs) for n, u in (("kind", 3), ("size", 1))}
    trained = keras_osgd.Model(inputs, outputs)
    options = {"sampling": RAIS(seed=0), "run_eagerly": True, "optimizer": "sgd"}
    trained.compile(loss={"kind": _lumped, "size": _lumped}, **options)
    shape = "_lumped of output {} got shape ()"
    words = shape.format("kind"), shape.format("size")
    told = refused(lambda: trained.fit(X, y, **FEW), *words)
    trained.compile(loss={"kind": small.crossentropy(), "size": "mse"}, **options)
    trained.optimizer.learning_rate = 0.0
    trained.fit(X, y, **FEW)
    found = trained(X)
    deltas = keras.ops.softmax(found["kind"]) - np.eye(3)[Y], found["size"] - X[:, :1]
    squares = np.sum(np.square(deltas[0]), 1) + 4 * np.sum(np.square(deltas[1]), 1)
    expected = np.sqrt(squares * (1 + np.sum(X**2, 1)))
    norms = trained.sampling_state.table.last_norms()
    require("norms", np.allclose(norms, expected, rtol=1e-4))
    return told


@row("a model that is not built, with BackupAndRestore", "built by fit")
def _() -> str:
    trained = keras_osgd.Sequential([L.Dense(3)])
    trained.compile("sgd", small.crossentropy(), sampling="rais", run_eagerly=True)
    with folder() as at:
        fit(trained, callbacks=[keras.callbacks.BackupAndRestore(at)])
    require("weights", [w.shape for w in trained.get_weights()] == [(4, 3), (3,)])
    return "built and trained"


@row("Adam", "sampled; the rate follows by the rule of square roots; one line")
def _() -> str:
    warn._SAID.clear()
    trained = model(optimizer="adam")
    twice = lambda: [fit(trained, verbose=2) for _ in range(2)]  # noqa: E731
    return said(twice, "Adam: the learning rate is multiplied by the root")


@row("clipping of gradients", "one warning of the bias")
def _() -> str:
    trained = model(optimizer=keras.optimizers.SGD(0.1, clipnorm=1.5))
    twice = lambda: [fit(trained) for _ in range(2)]  # noqa: E731
    return said(twice, "Gradient clipping ({'clipnorm': 1.5})", "biases the gradient")


@row("schedules and callbacks that set the rate", "times r; the user's own stays")
def _() -> str:
    sgd = keras.optimizers.SGD(0.5)
    method = RAIS(seed=0, retreat_below=0.0)
    plateau = keras.callbacks.ReduceLROnPlateau("loss", 0.5, 1, min_delta=1e9)
    trained = small.model(optimizer=sgd, sampling=method)
    callbacks, rates = [plateau, SamplingMonitor()], 0.5 ** np.array([1, 1, 2, 3, 4])
    logs = quiet(small.fit, trained, epochs=5, callbacks=callbacks).history
    require("halved each epoch", np.array_equal(logs["learning_rate"], rates))
    applied = np.array(logs["learning_rate_applied"])
    require("a gain in the rate applied", applied[-1] != logs["learning_rate"][-1])
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 20, 0.5)
    trained = model(optimizer=keras.optimizers.SGD(schedule))
    fit(trained)
    config = trained.optimizer.get_config()["learning_rate"]
    require("the schedule", config["class_name"] == "ExponentialDecay")
    return f"set {rates[-1]:.3g}, applied {applied[-1]:.3g}"


@row("mixed_float16", "finite norms in float32")
def _() -> str:
    with small.precision("float32", "mixed_float16"):
        trained = model()
        fit(trained)
    norms = trained.sampling_state.table.last_norms()
    require("float32", norms.dtype == np.float32 and np.isfinite(norms).all())
    return f"{trained.layers[-1].compute_dtype} layers, {norms.dtype} norms"


# Ways of running


def _trained(**options: Any) -> keras.Model:
    trained = small.model(**options)
    small.fit(trained, epochs=4)
    return trained


def _alike(other: keras.Model) -> None:
    plain = _trained()
    drawn = [m.sampling_state.times_drawn for m in (plain, other)]
    require("the same draws", np.array_equal(*drawn))
    same(plain, other, tolerance=1e-5)


@row("jit_compile=True", "the same draws and weights as without")
def _() -> str:
    _alike(_trained(jit_compile=True))
    return "the same draws and weights"


@row("run_eagerly; steps_per_execution=10", "the same numbers as in a graph")
def _() -> str:
    _alike(_trained(run_eagerly=True))
    _alike(_trained(steps_per_execution=10))
    return "the same draws and weights"


@row("two replicas", "sampled; ValueError for what they cannot do")
def _() -> str:
    return _child("two replicas").stdout.strip().splitlines()[-1]


def _on_two_replicas() -> None:
    """Trains on two replicas, in a process of its own; prints what it received."""
    devices = tf.config.list_physical_devices("CPU")
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(devices[0], two)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        trained = model(run_eagerly=False)
        scored = model(run_eagerly=False, sampling=Oracle())
    fit(trained)
    finite(trained)
    require("sampling", trained.sampling_run is not None)
    print(refused(lambda: fit(scored), "replica"))


# Kills, disks, other data


def _child(*arguments: str, wait: bool = True) -> Any:
    """Runs this script, or begins to, in a process of its own."""
    command = [sys.executable, "-m", "tests.faults", "child", *arguments]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    if not wait:
        return subprocess.Popen(command, **options)
    done = subprocess.run(command, **options)
    if done.returncode:
        raise Unmet((done.stderr.strip().splitlines() or ["nothing said"])[-1])
    return done


def _endless(at: str) -> None:
    """Trains with a checkpoint as often as can be, until a signal comes."""
    small.fit(small.model(), epochs=10**6, callbacks=[Checkpoint(at, every=1)])


def _ended(at: pathlib.Path, number: int) -> int:
    """Sends the training a signal while it saves; returns its exit status."""
    child = _child("endless", str(at), wait=False)
    begun = time.monotonic()
    while len(list(at.glob("*.json"))) < 2 or not list(at.glob("*.part")):
        if child.poll() is not None or time.monotonic() - begun > 120:
            child.kill()
            raise Unmet(f"no checkpoints: {child.communicate()[1][-200:]}")
    child.send_signal(number)
    child.communicate()
    return child.returncode


def _resumed(at: pathlib.Path) -> str:
    """Returns what is said as training goes on, where nothing may be damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saved = checkpoint_files.newest(at)
    trained = small.model()
    options = {"epochs": saved.details["epoch"] + 2, "verbose": 2}
    callbacks = [Checkpoint(at)]
    words = "Resumed epoch", f"at step {saved.details['step']}"
    return said(lambda: small.fit(trained, callbacks=callbacks, **options), *words)


@row("kill -9 while a checkpoint is written", "the one before loads and goes on")
def _() -> str:
    with folder() as at:
        require("a kill", _ended(at, signal.SIGKILL) == -signal.SIGKILL)
        return _resumed(at)


@contextlib.contextmanager
def _two_checkpoints() -> Iterator[tuple[pathlib.Path, list[pathlib.Path]]]:
    with folder() as at:
        for epochs in (1, 2):
            fit(model(), epochs=epochs, callbacks=[Checkpoint(at)])
        yield at, sorted(at.glob("*.npz"))


@row(
    "a checkpoint cut short, or with a bit flipped",
    "the intact one before, and a warning with both paths; none left: ValueError",
)
def _() -> str:
    with _two_checkpoints() as (at, (older, newer)):
        whole = newer.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 4
        for damaged in (whole[: len(whole) // 3], bytes(flipped)):
            newer.write_bytes(damaged)
            words = str(newer), str(older)
            told = said(lambda: Checkpoint(at).restore(model()), *words)
        older.write_bytes(b"nothing")
        words = "must be intact", str(newer), str(older)
        refused(lambda: quiet(Checkpoint(at).restore, model()), *words)
    return told


@row("a full disk", "survived; an error after three failures in a row")
def _() -> str:
    full = OSError(errno.ENOSPC, "No space left on device")
    with folder() as at:
        fit(model(), callbacks=[Checkpoint(at)])
        trained, callback, fsync = model(), Checkpoint(at), os.fsync
        # The first file that is made is the mark of who writes here.
        effects = itertools.chain([mock.DEFAULT, full], itertools.repeat(mock.DEFAULT))
        once = {"wraps": fsync, "side_effect": effects}
        with mock.patch.object(os, "fsync", **once):
            told = said(
                lambda: fit(trained, epochs=2, callbacks=[callback]),
                "No space left",
                "Training goes on",
            )
        require("all epochs", int(trained.optimizer.iterations) >= 5)
        require("a later one, and no part", len(list(at.iterdir())) == 4)
        before = sorted(at.iterdir())
        effects = itertools.chain([mock.DEFAULT], itertools.repeat(full))
        always = mock.patch.object(os, "fsync", wraps=fsync, side_effect=effects)
        many = {"epochs": 60, "callbacks": [Checkpoint(at)]}
        words = "failure number 3 in a row"
        with always:
            refused(lambda: quiet(fit, model(), **many), words, error=RuntimeError)
        require("those before, and no part", sorted(at.iterdir()) == before)
    return told


@row("Ctrl-C; SIGTERM", "a checkpoint after the step, then the end; goes on from it")
def _() -> str:
    with folder() as at:
        ends = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            own = at / number.name
            own.mkdir()
            ends[number.name] = _ended(own, number)
            told = _resumed(own)
    expected = {"SIGINT": -signal.SIGINT, "SIGTERM": 128 + signal.SIGTERM}
    require(f"exits {expected}, received {ends}", ends == expected)
    return told


def _going_on(x: np.ndarray, y: np.ndarray, **options: Any) -> str:
    """Returns what is raised or said where a checkpoint of X and Y goes on."""
    words, sampling = options.pop("words"), options.pop("sampling", RAIS(seed=0))
    with folder() as at:
        fit(model(), callbacks=[Checkpoint(at)])
        again, goes_on = model(sampling=sampling), [Checkpoint(at)]
        given = {"epochs": 2, "callbacks": goes_on, "verbose": 2, **options}
        call = lambda: fit(again, x, y, **given)  # noqa: E731
        if len(x) == N and x is X:
            return said(call, *words)
        told = refused(call, *words)
        reset = [Checkpoint(at, scores="reset")]
        fit(again, x, y, epochs=2, callbacks=reset)
        finite(again)
    return told


@row("going on with another number of rows", "ValueError with the remedy, which works")
def _() -> str:
    words = "was made for 60 examples, the data has 59", 'scores="reset"'
    return _going_on(X[:59], Y[:59], words=words)


@row("going on with reordered rows", "ValueError with the remedy, which works")
def _() -> str:
    return _going_on(X[::-1], Y[::-1], words=("differ", "rows", 'scores="reset"'))


@row("going on with other settings", "goes on, and is said not to be bit-exact")
def _() -> str:
    other = RAIS(seed=0, floor=0.1, features=("constant", "last"))
    words = "not bit-exact", "batch_size 20", "floor", "features"
    return _going_on(X, Y, words=words, sampling=other, batch_size=12)


@row("weights made without the add-on", "loaded; fresh scores, and a line")
def _() -> str:
    plain = keras.Sequential([keras.Input((4,)), L.Dense(3)])
    trained = model()
    with folder() as at:
        plain.save_weights(at / "w.weights.h5")
        trained.load_weights(at / "w.weights.h5")
    same(plain, trained)
    return said(lambda: fit(trained, verbose=2), "loaded without scores: they start af")


@row("planning that fails", "survived: last norms, or uniform; counted, one warning")
def _() -> str:
    trained = small.model(sampling=RAIS(seed=0, retreat_below=0.0))
    failing = mock.patch.object(Window, "fit", side_effect=MemoryError("made to"))
    words = "Received: MemoryError: made to", "Training goes on"
    with failing:
        told = said(lambda: small.fit(trained, epochs=5), *words)
    require("failures counted", trained.sampling_state.fit_failures > 0)
    done = trained.sampling_run.clock.effective_iterations()
    require("all epochs", done >= 5 * 15 - 1e-6)
    return told


@row("TensorBoard or matplotlib missing", "ImportError where used, with the command")
def _() -> str:
    with folder() as at:
        without = {"tensorboard": None, "matplotlib.figure": None}
        with mock.patch.dict(sys.modules, without):
            words = "pip install 'keras_osgd[tensorboard]'"
            refused(lambda: SamplingMonitor(at / "run"), words, error=ImportError)
            fit(model(), callbacks=[SamplingMonitor()])
            curves = keras_osgd.plots.learning_curves
            words = "pip install 'keras_osgd[plot]'"
            return refused(lambda: curves({"loss": [1.0]}), words, error=ImportError)


# All of them


def met(each: Row) -> bool:
    """Tries a row, prints a line, and returns whether it is met."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            received, is_met = quiet(each.tried), True
    except Unmet as error:
        received, is_met = str(error), False
    except Exception as error:
        received, is_met = line_of(error), False
    line = f"{each.number:2} {each.fault}: {' '.join(received.split())[:SHOWN]}"
    print(line + ("" if is_met else f" -- NOT MET, must be: {each.must}"), flush=True)
    keras.backend.clear_session()
    return is_met


def main(numbers: list[str]) -> int:
    """Tries all rows, or some; returns how many are not met."""
    wanted = [each for each in ROWS if not numbers or str(each.number) in numbers]
    unmet = sum(not met(each) for each in wanted)
    print(f"{len(wanted) - unmet} of {len(wanted)} met")
    return unmet


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child = {"two replicas": _on_two_replicas, "endless": _endless}[sys.argv[2]]
        child(*sys.argv[3:])
    else:
        sys.exit(main(sys.argv[1:]))
