"""The shape of the package: what may import what, and what importing it does."""

import ast
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "keras_osgd"
# A folder, or a module beside them, may import itself and those before it.
LAYERS = (
    "base",
    "versions",
    "run_directory",
    "gain",
    "data",
    "scores",
    "losses",
    "sampling",
    "norms",
    "plots",
    "draws",
    "step",
    "pools",
    "report",
    "fit",
    "callbacks",
    "model",
    "tools",
    "__main__",
)
DEPENDENCIES = {"keras", "keras_osgd", "numpy", "scipy", "tensorflow"}

FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]
TREES = [ast.parse(path.read_text()) for path in FILES]
CASES = list(zip(FILES, TREES, strict=True))
PUBLIC = [case for case in CASES if not case[0].name.startswith("keras_compat")]
PUBLIC_NAMES = [str(path.relative_to(PACKAGE)) for path, _ in PUBLIC]


def module_of(path: pathlib.Path) -> str:
    """Returns the first part of the name below the package, or "" for `__init__`."""
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if name == "__init__" else name


def imported(tree: ast.Module) -> set[str]:
    """Returns the full names of all that is imported, anywhere in a file."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports must be absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dotted(node: ast.AST) -> str:
    """Returns "a.b.c" for the expression that reads it, else ""."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def is_private(name: str) -> bool:
    return re.match(r"_[a-z]", name, re.IGNORECASE) is not None


def test_every_module_has_its_place_in_a_layer():
    assert {module_of(path) for path in FILES} == {*LAYERS, ""}


@pytest.mark.parametrize(("path", "tree"), CASES, ids=NAMES)
def test_imports_point_to_earlier_layers_only(path, tree):
    module = module_of(path)
    if not module:  # the face of the package may import all
        return
    names = {name for name in imported(tree) if name.split(".")[0] == "keras_osgd"}
    targets = {name.split(".")[1] for name in names}
    assert targets <= {*LAYERS[: LAYERS.index(module)], module}


@pytest.mark.parametrize(("path", "tree"), CASES, ids=NAMES)
def test_files_need_no_more_than_the_dependencies(path, tree):
    module_level = ast.Module(
        [n for n in tree.body if "Import" in type(n).__name__], []
    )
    names = {name.split(".")[0] for name in imported(module_level)}
    assert names <= DEPENDENCIES | sys.stdlib_module_names


@pytest.mark.parametrize(("path", "tree"), PUBLIC, ids=PUBLIC_NAMES)
def test_keras_and_tensorflow_are_used_by_their_public_names(path, tree):
    for name in imported(tree):
        assert not name.startswith(("keras.src", "tensorflow.python")), name
        assert not any(map(is_private, name.split("."))), name
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        name = dotted(node)
        assert not name.startswith(("keras.src", "tf.python", "tf.__")), name
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        ours = owner in ("self", "cls") or node.attr in ("_replace", "_asdict")
        assert ours or not is_private(node.attr), f"line {node.lineno}: {node.attr}"


@pytest.mark.parametrize(("path", "tree"), PUBLIC, ids=PUBLIC_NAMES)
def test_private_names_are_not_spelled_out_in_strings_either(path, tree):
    ours = re.compile(r"_keras_osgd\w*$")
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            private = node.value.isidentifier() and is_private(node.value)
            assert not private or ours.match(node.value), node.value


@pytest.mark.parametrize(("path", "tree"), CASES, ids=NAMES)
def test_functions_are_short(path, tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            body = node.body
            if ast.get_docstring(node) is not None:
                body = body[1:]  # which says what the equation is
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 40, f"{node.name} has {lines} lines"


SCRIPT = """
import json, os, pathlib, random, sys, threading, warnings
for name in ("tensorboard", "matplotlib"):
    sys.modules[name] = None  # importing it raises an ImportError
import keras, numpy as np, tensorflow as tf
def now():
    files = sorted(str(p) for p in pathlib.Path(".").rglob("*"))
    return [repr(x) for x in (
        random.getstate(), np.random.get_state()[1:], np.geterr(), files,
        warnings.filters, threading.active_count(), sorted(os.environ.items()),
        keras.config.floatx(), keras.config.dtype_policy().name,
        keras.utils.get_custom_objects().keys() - set(ours), os.getcwd())]
ours = []
before = now()
import keras_osgd
ours = [k for k in keras.utils.get_custom_objects() if k.startswith("keras_osgd>")]
changed = [(a, b) for a, b in zip(before, now()) if a != b]
# Fails once TensorFlow has been set up, as by a tensor made while importing.
cpu = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)
print(json.dumps([changed, len(tf.config.list_logical_devices("CPU"))]))
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """What a process says that has imported the package without what is optional."""
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(home)}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.long
def test_importing_needs_neither_tensorboard_nor_matplotlib(fresh):
    assert fresh.returncode == 0, fresh.stderr


@pytest.mark.long
def test_importing_changes_nothing_and_prints_nothing(fresh):
    assert fresh.returncode == 0, fresh.stderr
    changed, devices = json.loads(fresh.stdout)  # nothing else was printed
    assert changed == []
    assert devices == 2
