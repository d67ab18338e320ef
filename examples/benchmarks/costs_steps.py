"""What is trained to see what a step costs, and one timed `fit` of it."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np

import keras_osgd
from examples.common import data, models
from examples.common.records import Record
from examples.experiments import networks
from examples.experiments.sets.data import Data
from keras_osgd.sampling import RAIS

PLAIN, SAMPLED, EXACT = "plain", "rais", "exact"
_RATE = 0.01
_TOKENS, _LENGTH, _LANGUAGES = 100, 16, 12
_COLUMNS, _LETTERS = 16, 26
_SHARE_OF_NOISE = 0.1  # of the labels of made-up data


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and its data.

    Attributes:
        name: in records.
        network: one of `networks.NAMES`.
        load: returns the data, given the number of training examples.
        examples: number of training examples.
        batch_size: m.
        steps: of a timed `fit`, which is one epoch; `None` for all batches.
        methods: plain Keras, and what is compared with it.
    """

    name: str
    network: str
    load: Callable[[int], Data]
    examples: int
    batch_size: int = models.BATCH_SIZE
    steps: int | None = None
    methods: Sequence[str] = (PLAIN, SAMPLED)


def images(examples: int) -> Data:
    """Returns the first images of Fashion-MNIST."""
    x, y = data.fashion_mnist()[0]
    return _training("fashion", "image", x[:examples], y[:examples], 10)


def columns(examples: int) -> Data:
    """Returns made-up numbers in columns, and labels that can mostly be learnt."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, _COLUMNS)).astype(np.float32)
    y = np.argmax(x @ rng.normal(size=(_COLUMNS, _LETTERS)), axis=1)
    return _training("columns", "table", x, _noisy(y, _LETTERS, rng), _LETTERS)


def words(examples: int) -> Data:
    """Returns made-up words of `_LENGTH` tokens, and labels likewise."""
    rng = np.random.default_rng(0)
    x = rng.integers(2, _TOKENS, (examples, _LENGTH), np.int32)
    teacher = rng.normal(size=(_TOKENS, _LANGUAGES)).astype(np.float32)
    y = np.argmax(sum(teacher[x[:, place]] for place in range(_LENGTH)), axis=1)
    made = _training("words", "text", x, _noisy(y, _LANGUAGES, rng), _LANGUAGES)
    return dataclasses.replace(made, vocabulary=_TOKENS)


def _noisy(y: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    other = rng.integers(0, classes, len(y))
    return np.where(rng.random(len(y)) < _SHARE_OF_NOISE, other, y).astype(np.int32)


def _training(name: str, kind: str, x: np.ndarray, y: np.ndarray, classes: int) -> Data:
    return Data(name, kind, (x, y), (x[:0], y[:0]), (x[:0], y[:0]), classes)


def build(case: Case, method: str, given: Data) -> keras.Model:
    """Returns a compiled model, of the same initial weights by every method.

    RAIS does not adapt its learning rate, so that all methods take the same steps.
    """
    keras.utils.set_random_seed(0)
    base, options = keras.Sequential, {}
    if method != PLAIN:
        norm = "exact" if method == EXACT else "last_layer"
        base = keras_osgd.Sequential
        options = {"sampling": RAIS(adapt_learning_rate=False, seed=0, norm=norm)}
    model = networks.build(case.network, base, given, seed=0)
    optimizer = models.optimizer("sgd", _RATE)
    model.compile(optimizer, models.loss(), metrics=["accuracy"], **options)
    return model


def timed_fit(
    model: keras.Model, case: Case, given: Data, steps: int | None = None
) -> Record:
    """Trains once more and returns what it cost.

    Args:
        model: from `build`.
        case: which it was built for.
        given: its data.
        steps: of the epoch, in place of the case's.

    Returns:
        `steps`, those that were timed: all but the first; `wall` and `processor`, the
        mean milliseconds of one; `quantiles`, its median and its 90th and 99th
        percentile; `start`, the seconds from the call of `fit` to the end of its first
        step.
    """
    gc.collect()
    times = StepTimes()
    model.fit(
        *given.train,
        batch_size=case.batch_size,
        steps_per_epoch=steps or case.steps,
        callbacks=[times],
        verbose=0,
    )
    return times.found()


class StepTimes(keras.callbacks.Callback):
    """Notes when steps begin.

    It has no method for the end of a batch: Keras would wait for the logs of every
    step. A step lasts until the next one begins.
    """

    def __init__(self) -> None:
        super().__init__()
        self._called, self._processor = time.perf_counter(), 0.0
        self._begun: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Notes the time; that of the processor from the second step on."""
        if len(self._begun) == 1:
            self._processor = time.process_time()
        self._begun.append(time.perf_counter())

    def on_train_end(self, logs: dict | None = None) -> None:
        """Ends the last step."""
        self._begun.append(time.perf_counter())
        self._processor = time.process_time() - self._processor

    def found(self) -> Record:
        """Returns what `timed_fit` says."""
        milliseconds = 1000 * np.diff(self._begun[1:])
        return {
            "steps": len(milliseconds),
            "wall": float(milliseconds.mean()),
            "processor": 1000 * self._processor / len(milliseconds),
            "quantiles": np.percentile(milliseconds, (50, 90, 99)).tolist(),
            "start": self._begun[1] - self._called,
        }


def in_turn(methods: Sequence[str], timed: Callable[[str], Record]) -> Record:
    """Returns two measurements of each method, taken there and back.

    Whatever grows or shrinks evenly meanwhile, as the load of the machine, adds the
    same to the sum of each method's two.
    """
    found: dict[str, list[Record]] = {method: [] for method in methods}
    for method in (*methods, *reversed(methods)):
        found[method].append(timed(method))
    return found
