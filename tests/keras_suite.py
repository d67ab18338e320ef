"""Keras' own tests, with our classes in the place of Keras'.

`python -m tests.keras_suite` copies the tests in the installed Keras wheel that name a
model class, and runs them twice, in two processes: with subclasses of Keras' classes
that add nothing, and with ours. It prints the tests that pass with the first and fail
with the second, and exits with 1 if there are any but `EXPECTED`. So a difference that
any subclass makes does not count. `--sampling uniform` trains by Keras' own `fit`
wherever a test does not say otherwise.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from typing import Any

import keras
import pytest

import keras_osgd
from keras_osgd.base import keras_compat
from keras_osgd.fit import trainer

ROOT = pathlib.Path(__file__).parents[1]
INSTALLED = pathlib.Path(keras.__file__).parent / "src"
FOLDERS = ("trainers", "models", "saving", "callbacks", "export")
NAMES = ("Model", "Functional", "Sequential")
KERAS = {
    "Model": keras.Model,
    "Functional": keras_compat.Functional,
    "Sequential": keras.Sequential,
}
# What in model.py makes subclasses of Keras' classes ours, and what to put there.
_PLAIN = {
    "from keras_osgd.fit.trainer import ImportanceSampled": (
        "class ImportanceSampled: pass"
    ),
    "class Model(_Compiled, keras.Model)": (
        "class Model(ImportanceSampled, keras.Model)"
    ),
    '_PACKAGE = "keras_osgd"': '_PACKAGE = "plain"',
}
# Tests that fail with ours for a good reason: a part of the name -> the reason.
EXPECTED: dict[str, str] = {}

_classes: dict[str, type] = {}  # that stand for Keras' in this process


class _Stand:
    """A module as it is, but for the model classes in it."""

    def __init__(self, module: types.ModuleType) -> None:
        vars(self)["_module"] = module

    def __getattr__(self, name: str) -> Any:
        return _stand_for(getattr(self._module, name))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._module, name, value)


def _stand_for(value: Any) -> Any:
    """Returns what a test sees in the place of a module or class of Keras."""
    for name, cls in KERAS.items():
        if value is cls:
            return _classes[name]
    models = (
        keras,
        keras.models,
        sys.modules[keras_compat.Functional.__module__.rsplit(".", 1)[0]],
    )
    return _Stand(value) if any(value is module for module in models) else value


def use(classes: dict[str, type]) -> None:
    """Lets classes stand for Keras' in this process.

    Args:
        classes: one for each of `NAMES`.
    """
    _classes.update(classes)


def replace(namespace: dict[str, Any]) -> None:
    """Puts the classes of this process in the place of Keras' in a test's globals."""
    for name, value in list(namespace.items()):
        namespace[name] = _stand_for(value)


def copy(folder: pathlib.Path) -> list[pathlib.Path]:
    """Copies the tests that name a model class; each calls `replace` after its imports.

    Args:
        folder: that receives `models/model_test.py` and so on.
    """
    copies = []
    for path in [p for name in FOLDERS for p in (INSTALLED / name).rglob("*_test.py")]:
        text = path.read_text().replace(
            "from conftest import", "from tests.keras_suite import"
        )
        text = re.sub(r"^import jax$", "jax = None", text, flags=re.MULTILINE)
        if not re.search(rf"\b({'|'.join(NAMES)})\b", text):
            continue
        imports = [n for n in ast.parse(text).body if "Import" in type(n).__name__]
        lines = text.splitlines()
        at = imports[-1].end_lineno
        lines.insert(at, "import tests.keras_suite as s; s.replace(globals())")
        copies.append(folder / path.relative_to(INSTALLED))
        copies[-1].parent.mkdir(parents=True, exist_ok=True)
        copies[-1].write_text("\n".join(lines) + "\n")
    return copies


def plain() -> dict[str, type]:
    """Returns subclasses of Keras' classes, made as ours are, that add nothing."""
    text = pathlib.Path(keras_osgd.model.__file__).read_text()
    for ours, instead in _PLAIN.items():
        if ours not in text:
            raise RuntimeError(f"model.py must hold {ours!r}. Mend `_PLAIN`.")
        text = text.replace(ours, instead)
    module = sys.modules["plain_model"] = types.ModuleType("plain_model")
    exec(text, vars(module))
    return {name: getattr(module, name) for name in NAMES}


def ours(sampling: str | None) -> dict[str, type]:
    """Returns our classes, with another default of `compile(sampling=...)` if given."""
    if sampling is not None:
        trainer.ImportanceSampled.compile.__kwdefaults__["sampling"] = sampling
    return {name: getattr(keras_osgd.model, name) for name in NAMES}


def skip_if_backend(*_: str) -> Any:
    """Stands for a decorator in a file of Keras that is not in its wheel."""
    return lambda test: test


class _Recorder:
    """A plugin of pytest that keeps each test's outcome, "" or how it failed."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keeps the first failure of a test, which has three phases."""
        told = self.outcomes.setdefault(report.nodeid, "")
        if report.failed and not told:
            self.outcomes[report.nodeid] = _first_line(report)
        if report.skipped:
            self.outcomes[report.nodeid] = "skipped"

    def pytest_collectreport(self, report: Any) -> None:
        """Keeps what hinders a file from being imported."""
        if report.failed:
            self.outcomes[report.nodeid] = str(report.longrepr)


def _first_line(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr)).split("\n")[0] or "failed"


def outcomes(
    classes: dict[str, type], folder: pathlib.Path, *arguments: str
) -> dict[str, str]:
    """Returns the outcome of each copied test, "" where it passed, run in this process.

    Args:
        classes: for `replace`.
        folder: of `copy`.
        *arguments: for pytest.
    """
    recorder = _Recorder()
    use(classes)
    for name, module in list(sys.modules.items()):  # of an earlier call
        if str(folder) in str(getattr(module, "__file__", "")):
            del sys.modules[name]
    options = ["-q", "--import-mode=importlib", f"--rootdir={folder}", "-p", "no:xdist"]
    options += ["--continue-on-collection-errors", "-W", "ignore::pytest.PytestWarning"]
    options += ["-p", "no:cacheprovider", "-o", "addopts=", "-c", os.devnull]
    pytest.main([*options, *(arguments or [str(folder)])], plugins=[recorder])
    return recorder.outcomes


def child(which: str, sampling: str, folder: str, file: str) -> None:
    """Writes the outcomes of one pass to a file."""
    classes = plain() if which == "plain" else ours(sampling or None)
    found = outcomes(classes, pathlib.Path(folder))
    pathlib.Path(file).write_text(json.dumps(found))


def _pass(which: str, sampling: str | None, folder: pathlib.Path) -> dict[str, str]:
    """Returns `outcomes` of a process of its own."""
    file = folder.parent / f"{which}.json"
    call = f"from tests import keras_suite as s; s.child(*{[which, sampling or '']}, "
    call += f"{str(folder)!r}, {str(file)!r})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    with open(folder.parent / f"{which}.txt", "w") as told:
        process = [sys.executable, "-c", call]
        subprocess.run(
            process, cwd=folder.parent, env=environment, stdout=told, stderr=told
        )
    if not file.exists():
        raise RuntimeError(f"The pass did not end. Received: {told.name}")
    return json.loads(file.read_text())


def regressions(
    plain: dict[str, str], ours: dict[str, str]
) -> Iterator[tuple[str, str]]:
    """Yields (test, error) of all that passes with the plain classes alone."""
    for name, error in plain.items():
        told = ours.get(name, "did not run")
        if not error and told:
            yield name, told


def main() -> int:
    """Runs both passes, and prints how they differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sampling", help="default of `compile` in our classes")
    parser.add_argument("--keep", help="folder for the copies and the output")
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(given.keep or scratch).absolute() / "tests_of_keras"
        files = copy(folder)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            passes = ("plain", None, folder), ("ours", given.sampling, folder)
            results = list(pool.map(lambda each: _pass(*each), passes))
    found = dict(regressions(*results))
    for name, error in found.items():
        reason = next((EXPECTED[part] for part in EXPECTED if part in name), None)
        print(
            f"{name}\n    {error}\n" + (f"    expected: {reason}\n" if reason else "")
        )
    unexpected = [n for n in found if not any(part in n for part in EXPECTED)]
    passed = sum(not error for error in results[0].values())
    print(
        f"{len(files)} files, {passed} tests pass with the plain subclasses; with ours "
        f"{len(found)} of them fail, {len(found) - len(unexpected)} as expected "
        f"({time.monotonic() - began:.0f} s)"
    )
    return bool(unexpected)


if __name__ == "__main__":
    sys.exit(main())
