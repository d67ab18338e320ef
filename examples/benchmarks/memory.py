"""Measures the memory that `fit` takes beside large arrays.

    python -m examples.benchmarks.memory all

Every `fit` runs in a process of its own, which makes the data, trains for some steps
and notes its peak; plain Keras needs a machine with five times the memory of the data.
Every measurement is written to `examples/results/memory_runs.jsonl` when it ends and is
not repeated; `report` makes `memory.md` from that file.

Parts, in the order in which `all` runs them:
    measure   plain Keras and RAIS on every kind of data
    report    the table
"""

import concurrent.futures
import multiprocessing
import pathlib
import tempfile
import threading
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from examples.benchmarks import command_line
from examples.benchmarks.process_memory import memory_bytes
from examples.common.records import Record, Records

PARTS = ("measure", "report")
METHODS = ("plain Keras", "RAIS")
GIGABYTES = 2.5
_COLUMNS = 1024
_STEPS, _BATCH_SIZE = 120, 64  # into the third block of draws
_AT_ONCE = 10_000


def _filled(array: np.ndarray) -> np.ndarray:
    """Writes every page, in parts that need no memory of note."""
    rng = np.random.default_rng(0)
    for first in range(0, len(array), _AT_ONCE):
        part = array[first : first + _AT_ONCE]
        part[:] = rng.integers(0, 256, part.shape, np.uint8)
    return array


def _float32(rows: int, _: pathlib.Path) -> np.ndarray:
    return _filled(np.empty([rows, _COLUMNS], "float32"))


def _uint8(rows: int, _: pathlib.Path) -> np.ndarray:
    return _filled(np.empty([4 * rows, _COLUMNS], "uint8"))


def _tensor(rows: int, _: pathlib.Path) -> tf.Tensor:
    return tf.random.uniform([rows, _COLUMNS])


def _memmap(rows: int, folder: pathlib.Path) -> np.ndarray:
    path = folder / "x.npy"
    written = np.lib.format.open_memmap(path, "w+", "float32", (rows, _COLUMNS))
    _filled(written).flush()
    return np.load(path, mmap_mode="r")


def _two_inputs(rows: int, folder: pathlib.Path) -> dict[str, np.ndarray]:
    return {name: _float32(rows // 2, folder) for name in ("a", "b")}


DATA: dict[str, Callable] = {
    "float32 array": _float32,
    "uint8 array": _uint8,
    "TensorFlow tensor": _tensor,
    "memory-mapped file": _memmap,
    "two inputs, a tenth held out": _two_inputs,
    "x as the target (autoencoder)": _float32,
}


def main() -> None:
    """Runs the parts named on the command line."""
    smoke = "0.3 GB, kept apart: does it run at all?"
    parser = command_line.parser(__doc__, PARTS, smoke)
    options = command_line.parsed(parser, "memory")
    records = Records(options.results / "memory_runs.jsonl")
    gigabytes = 0.3 if options.smoke else GIGABYTES
    if options.part != "report":
        measure(records, gigabytes)
    if options.part != "measure":
        report(records, gigabytes, options.results)


def measure(records: Records, gigabytes: float) -> None:
    """Trains on every kind of data by both methods."""
    for kind in DATA:
        for method in METHODS:
            key = {"data": kind, "method": method, "gigabytes": gigabytes}
            if key in records:
                continue
            context = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
                measured = pool.submit(_measured, kind, method, gigabytes).result()
            records.append(key, measured)
            print(f"{kind}, {method}: {measured['ratio']:.2f}x", flush=True)


def _measured(kind: str, method: str, gigabytes: float) -> Record:
    rows = int(gigabytes * 1e9 / 4 / _COLUMNS)
    with tempfile.TemporaryDirectory() as folder:
        _fit(
            method, np.zeros([640, _COLUMNS], "float32"), ""
        )  # all that is loaded once
        before = memory_bytes("RssAnon")
        x = DATA[kind](rows, pathlib.Path(folder))
        size = sum(leaf.nbytes for leaf in map(np.asarray, keras.tree.flatten(x)))
        with _Peak() as peak:
            _fit(method, x, kind)
        return {
            "data_bytes": size,
            "peak_bytes": peak.bytes - before,
            "ratio": (peak.bytes - before) / size,
        }


def _fit(method: str, x: object, kind: str) -> None:
    leaves = keras.tree.flatten(x)
    inputs = keras.tree.map_structure(
        lambda leaf: keras.Input((_COLUMNS,), dtype=leaf.dtype.name), x
    )
    flat = keras.tree.flatten(inputs)
    joined = keras.layers.Concatenate()(flat) if len(flat) > 1 else flat[0]
    joined = keras.layers.Rescaling(1 / 255)(joined)
    itself = "target" in kind
    y = x if itself else np.arange(len(leaves[0])) % 10
    options = {"validation_split": 0.1, "validation_steps": 2} if "held" in kind else {}
    outputs = keras.layers.Dense(_COLUMNS if itself else 10)(joined)
    if method == "RAIS":
        import keras_osgd  # plain Keras is measured without

        model = keras_osgd.Model(inputs, outputs)
    else:
        model = keras.Model(inputs, outputs)
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", "mse" if itself else crossentropy)
    steps = min(_STEPS, len(leaves[0]) // _BATCH_SIZE)
    counted = _Stop(steps)
    model.fit(x, y, batch_size=_BATCH_SIZE, callbacks=[counted], verbose=0, **options)


class _Stop(keras.callbacks.Callback):
    """Ends training after some steps, as an epoch of such data would take long."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._left -= 1
        if self._left == 0:
            self.model.stop_training = True


class _Peak:
    """Watches this process's memory, without what is mapped from files."""

    def __enter__(self) -> "_Peak":
        self.bytes, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.002):
            self.bytes = max(self.bytes, memory_bytes("RssAnon"))


def report(records: Records, gigabytes: float, folder: pathlib.Path) -> None:
    """Writes the table."""
    lines = [
        f"# Memory of `fit` beside {gigabytes:g} GB of data",
        "",
        "Peak of the process's own memory during `fit`, over the size of the data. The "
        "data themselves are counted where they are in memory, not where they are "
        "mapped from a file.",
        "",
        "| data | " + " | ".join(METHODS) + " |",
        "|---|" + "---|" * len(METHODS),
    ]
    for kind in DATA:
        keys = [
            {"data": kind, "method": method, "gigabytes": gigabytes}
            for method in METHODS
        ]
        if all(key in records for key in keys):
            ratios = " | ".join(f"{records[key]['ratio']:.2f}x" for key in keys)
            lines.append(f"| {kind} | {ratios} |")
    (folder / "memory.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
