"""`python -m keras_osgd`: a report about runs, and a look at the installation."""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

from keras_osgd import report
from keras_osgd.run_directory import runs_in
from keras_osgd.versions import versions

_EXTRAS = {
    "matplotlib": ("plot", "keras_osgd.plots and the report"),
    "tensorboard": ("tensorboard", "event files of SamplingMonitor"),
}
_FASHION = ("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, or 1 if the command failed."""
    parser = argparse.ArgumentParser("python -m keras_osgd", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    reporting = commands.add_parser("report", help="write an HTML page about runs")
    reporting.add_argument(
        "directories",
        nargs="+",
        help="of SamplingMonitor(log_dir=...), or directories of these",
    )
    reporting.add_argument(
        "--output", default="report.html", help="of the page; report.html"
    )
    commands.add_parser("check", help="say what is installed and what is missing")
    given = parser.parse_args(arguments)
    if given.command == "check":
        print("\n".join(_checked()))
        return 0
    try:
        left_out = report.write(_runs(given.directories), given.output)
    except (ImportError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    for line in left_out:
        print(f"Left out: {line}", file=sys.stderr)
    print(f"Wrote {given.output}")
    return 0


def _runs(paths: Sequence[str]) -> list[pathlib.Path]:
    """Returns directories of runs; says on stderr which paths hold none."""
    found = {path: runs_in(path) for path in paths}
    if not any(found.values()):
        raise ValueError(
            "A run's directory must have a history.csv. Received: "
            f"{', '.join(paths)} without. Train with `SamplingMonitor(log_dir=...)` "
            "and pass that directory, or the one it is in."
        )
    for path, runs in found.items():
        if not runs:
            print(f"Left out {path}: no history.csv of a run.", file=sys.stderr)
    return [run for runs in found.values() for run in runs]


def _checked() -> Iterator[str]:
    """Yields lines: versions, devices, what is missing and how to get it."""
    for name, version in versions().items():
        yield f"{name:12} {version}"
    yield f"{'backend':12} {keras.backend.backend()}{_advice_on_backend()}"
    gpus = tf.config.list_physical_devices("GPU")
    yield f"{'GPU':12} {len(gpus) or 'none visible: training runs on the CPU'}"
    for name, (extra, purpose) in _EXTRAS.items():
        missing = f"missing, for {purpose}: pip install 'keras_osgd[{extra}]'"
        yield f"{name:12} {_version(name) or missing}"
    found = next(filter(None, map(_fashion_in, _places())), None)
    absent = "not found: the quickstart downloads it, or trains on digits"
    yield f"{'data':12} Fashion-MNIST {f'in {found}' if found else absent}"


def _advice_on_backend() -> str:
    if keras.backend.backend() == "tensorflow":
        return ""
    return ": must be tensorflow; set KERAS_BACKEND=tensorflow"


def _version(name: str) -> str:
    try:
        return importlib.import_module(name).__version__
    except ImportError:
        return ""


def _places() -> Iterator[pathlib.Path]:
    """Yields the directories where the examples look for Fashion-MNIST, in order."""
    if "KERAS_OSGD_DATA" in os.environ:
        yield pathlib.Path(os.environ["KERAS_OSGD_DATA"])
    yield pathlib.Path("/usr/share/datasets/fashion-mnist")
    home = os.environ.get("KERAS_HOME", pathlib.Path.home() / ".keras")
    yield pathlib.Path(home) / "datasets" / "fashion-mnist"


def _fashion_in(directory: pathlib.Path) -> pathlib.Path | None:
    return directory if any((directory / x).exists() for x in _FASHION) else None


if __name__ == "__main__":
    sys.exit(main())
