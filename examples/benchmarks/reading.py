"""Measures what reading records from the disk costs beside a training step.

    python -m examples.benchmarks.reading all

A convolutional network is trained with RAIS on the same 3 KB images from each source
in turn, for a hundred steps at a time, so that all meet the same load of the machine.
Every round is written to `examples/results/reading_runs.jsonl` when it ends and is not
repeated; `report` makes `reading.md` from that file. Sources whose library is missing
(`pip install grain datasets array_record`) are left out.

Parts, in the order in which `all` runs them:
    cost      processor time of a batch, without training: hardly depends on other load
    measure   the steps of every source; on a machine that is otherwise idle
    report    the tables
"""

import contextlib
import importlib
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator

import keras
import numpy as np

import keras_osgd
from examples.benchmarks import command_line
from examples.common.clock import milliseconds_a_step
from examples.common.models import BATCH_SIZE
from examples.common.records import Records
from keras_osgd.sampling import RAIS

PARTS = ("cost", "measure", "report")
EXAMPLES = 100_000  # 307 MB, more than is ever copied into memory
SHAPE = (32, 32, 3)
_SIZE = 3072  # bytes
_STEPS, _ROUNDS, _BATCHES = 100, 11, 50
_IN_MEMORY = "arrays in memory"

Train = tuple
Images = np.ndarray


def _arrays(x: Images, y: np.ndarray, _: pathlib.Path) -> Train:
    return x, y


def _memory_mapped(x: Images, y: np.ndarray, folder: pathlib.Path) -> Train:
    np.save(folder / "x.npy", x)
    return np.load(folder / "x.npy", mmap_mode="c"), y


def _array_record(group_size: int) -> Callable:
    def source(x: Images, y: np.ndarray, folder: pathlib.Path) -> Train:
        from array_record.python import array_record_data_source as sources

        path = _written(x, folder, group_size)
        return (_records(sources.ArrayRecordDataSource(path), y, _decoded),)

    return source


def _written(x: Images, folder: pathlib.Path, group_size: int) -> str:
    from array_record.python import array_record_module

    path = folder / f"{group_size}.array_record"
    if not path.exists():
        options = f"group_size:{group_size}"
        writer = array_record_module.ArrayRecordWriter(str(path), options)
        for image in x:
            writer.write(image.tobytes())
        writer.close()
    return str(path)


def _decoded(record: bytes) -> tuple:
    return np.frombuffer(record, np.uint8).reshape(SHAPE), 0


def _records(source: object, y: np.ndarray, parse: Callable) -> keras_osgd.data.Indexed:
    return keras_osgd.data.records(source, parse, labels=y)


def _files(x: Images, y: np.ndarray, folder: pathlib.Path) -> Train:
    paths = [folder / f"{i}.npy" for i in range(len(x))]
    for path, image in zip(paths, x, strict=True):
        np.save(path, image)
    return (_records(paths, y, lambda path: (np.load(path), 0)),)


def _grain_array_record(x: Images, y: np.ndarray, folder: pathlib.Path) -> Train:
    import grain

    source = grain.sources.ArrayRecordDataSource(_written(x, folder, 1))
    return (_records(source, y, _decoded),)


def _grain_map(x: Images, y: np.ndarray, folder: pathlib.Path) -> Train:
    import grain

    source = grain.sources.ArrayRecordDataSource(_written(x, folder, 1))
    dataset = grain.MapDataset.source(source).map(_decoded)
    return (_records(dataset, y, None),)


def _hugging_face(x: Images, y: np.ndarray, folder: pathlib.Path) -> Train:
    import datasets

    features = datasets.Features({"image": datasets.Value("binary")})
    made = datasets.Dataset.from_dict({"image": [i.tobytes() for i in x]}, features)
    made.save_to_disk(str(folder / "arrow"))
    source = datasets.load_from_disk(str(folder / "arrow"))
    return (_records(source, y, lambda record: _decoded(record["image"])),)


# What it is called: how it is made, and the library that it needs.
SOURCES: dict[str, tuple[Callable, str]] = {
    _IN_MEMORY: (_arrays, "numpy"),
    "memory-mapped .npy": (_memory_mapped, "numpy"),
    "array_record, group_size:1": (_array_record(1), "array_record"),
    "array_record, group_size:256": (_array_record(256), "array_record"),
    "a .npy file for each": (_files, "numpy"),
    "grain's ArrayRecordDataSource": (_grain_array_record, "grain"),
    "grain's MapDataset of it": (_grain_map, "grain"),
    "Hugging Face, on disk": (_hugging_face, "datasets"),
}


def main() -> None:
    """Runs the parts named on the command line."""
    smoke = "few examples and one round, kept apart: does it run at all?"
    parser = command_line.parser(__doc__, PARTS, smoke)
    options = command_line.parsed(parser, "reading")
    records = Records(options.results / "reading_runs.jsonl")
    examples, rounds = (2000, 1) if options.smoke else (EXAMPLES, _ROUNDS)
    parts = {
        "cost": lambda: cost(records, examples),
        "measure": lambda: measure(records, examples, rounds),
        "report": lambda: report(records, examples, options.results),
    }
    for part in PARTS if options.part == "all" else (options.part,):
        parts[part]()


def cost(records: Records, examples: int) -> None:
    """Measures the processor time in which each source gives a batch."""
    key = {"part": "cost", "examples": examples, "batch": BATCH_SIZE}
    if key in records:
        return
    found, rng = {}, np.random.default_rng(1)
    with contextlib.ExitStack() as stack:
        for name, train in _sources(examples, stack):
            column = train[0] if len(train) > 1 else train[0].arrays[0]
            seconds = []
            for _ in range(_BATCHES):
                rows = rng.integers(0, examples, BATCH_SIZE)
                begun = time.process_time()
                column[rows]
                seconds.append(time.process_time() - begun)
            found[name] = 1000 * float(np.median(seconds))
            print(f"{name}: {found[name]:.2f} ms", flush=True)
    records.append(key, {"processor_milliseconds": found})


def _sources(examples: int, stack: contextlib.ExitStack) -> Iterator[tuple[str, Train]]:
    """Yields the name of each source and what `fit` is given; files are in `stack`."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, [examples, *SHAPE], np.uint8)
    y = rng.integers(0, 10, examples)
    for name, (make, library) in SOURCES.items():
        if not _installed(library):
            print(f"{name}: left out, {library} is missing", flush=True)
            continue
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        yield name, make(x, y, pathlib.Path(folder))


def measure(records: Records, examples: int, rounds: int) -> None:
    """Times all sources in turn."""
    keys = [
        {"part": "measure", "examples": examples, "round": number}
        for number in range(rounds)
    ]
    missing = [key for key in keys if key not in records]
    if not missing:
        return
    with contextlib.ExitStack() as stack:
        trained = {}
        for name, train in _sources(examples, stack):
            trained[name] = _model(), train
            milliseconds_a_step(*trained[name], epochs=1, steps_per_epoch=_STEPS)
            print(f"{name}: ready", flush=True)
        for number, key in enumerate(missing, start=1):
            names = list(trained)
            turn = key["round"] % len(names)
            found = {
                name: milliseconds_a_step(
                    *trained[name], epochs=1, steps_per_epoch=_STEPS
                )
                for name in names[turn:] + names[:turn]
            }
            records.append(key, {"step_milliseconds": found})
            times = ", ".join(f"{name} {found[name]:.2f}" for name in names)
            print(f"[{number}/{len(missing)}] {times}", flush=True)


def _installed(library: str) -> bool:
    try:
        importlib.import_module(library)
    except ImportError:
        return False
    return True


def _model() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras_osgd.Sequential(
        [
            keras.Input(SHAPE, dtype="uint8"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(16, 5, 2, activation="relu"),
            keras.layers.Conv2D(32, 3, 2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dense(10, "softmax"),
        ]
    )
    sampling = RAIS(adapt_learning_rate=False, seed=0)
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    model.compile(optimizer, "sparse_categorical_crossentropy", sampling=sampling)
    return model


def report(records: Records, examples: int, folder: pathlib.Path) -> None:
    """Writes the tables of what was measured."""
    lines = [f"# Reading {examples} records of 3 KB at random", ""]
    for record in records.select(part="cost", examples=examples):
        lines += [
            f"Processor time of a batch of {BATCH_SIZE}, all threads, files cached.",
            "",
            "| source | ms |",
            "|---|---|",
        ]
        found = record["processor_milliseconds"].items()
        lines += [f"| {name} | {time:.2f} |" for name, time in found] + [""]
    selected = records.select(part="measure", examples=examples)
    rounds = [record["step_milliseconds"] for record in selected]
    if rounds:
        load = np.median([record["environment"]["load"] or 0 for record in selected])
        lines += [
            "A training step, read beside it: medians and quartiles over rounds of a "
            f"hundred steps, the sources in turn. The machine's load was {load:.1f} on "
            f"{selected[0]['environment']['cpus']} cores.",
            "",
            "| source | step, ms | step over that of arrays in memory |",
            "|---|---|---|",
        ]
    for name in SOURCES if rounds else ():
        times = [found[name] for found in rounds if name in found]
        ratios = [f[name] / f[_IN_MEMORY] for f in rounds if name in f]
        if times:
            low, middle, high = np.percentile(ratios, [25, 50, 75])
            ratio = f"{middle:.3f}x ({low:.3f}-{high:.3f})"
            lines.append(f"| {name} | {np.median(times):.2f} | {ratio} |")
    (folder / "reading.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
