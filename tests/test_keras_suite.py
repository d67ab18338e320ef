"""The comparison of our classes with Keras' by Keras' own tests."""

import ast
import contextlib

import keras
import pytest

import keras_osgd
from tests import keras_suite

FILE = "models/sequential_test.py"


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite") / "tests_of_keras"
    return folder, keras_suite.copy(folder)


def test_the_tests_of_the_installed_keras_are_found(copies):
    folder, files = copies
    names = {str(file.relative_to(folder)) for file in files}
    assert len(names) > 25
    assert names > {FILE, "models/functional_test.py", "trainers/trainer_test.py"}
    tests = [
        node
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert len(tests) > 400


def test_whatever_way_a_test_names_a_class_it_gets_ours():
    plain = keras_suite.plain()
    ours = keras_suite.ours(None)
    assert ours["Model"] is keras_osgd.Model
    for classes in (plain, ours):
        keras_suite.use(classes)
        names = {"keras": keras, "models": keras.models, "Model": keras.Model, "a": 1}
        keras_suite.replace(names)
        found = [names["Model"], names["models"].Model, names["keras"].Model]
        found.append(names["keras"].models.Model)
        assert found == 4 * [classes["Model"]]
        assert names["keras"].models.Sequential is classes["Sequential"]
        assert names["keras"].layers is keras.layers and names["a"] == 1
    for name in keras_suite.NAMES:
        assert not issubclass(plain[name], keras_suite.trainer.ImportanceSampled)
        registered = keras.saving.get_registered_object(f"keras_osgd>{name}")
        assert registered is ours[name]


def test_a_broken_class_is_seen(copies):
    class Broken(keras_osgd.Sequential):
        def add(self, *args, **kwargs):
            with contextlib.suppress(ValueError):
                super().add(*args, **kwargs)

    folder, _ = copies
    chosen = str(folder / FILE), "-k", "test_errors or test_nested_sequential"
    ours = keras_suite.ours(None)
    sound = keras_suite.outcomes(ours, folder, *chosen)
    broken = keras_suite.outcomes({**ours, "Sequential": Broken}, folder, *chosen)
    assert list(sound.values()) == ["", ""]
    ((name, error),) = keras_suite.regressions(sound, broken)
    assert (
        name.endswith("test_errors")
        and error == "AssertionError: ValueError not raised"
    )
    ((name, error),) = keras_suite.regressions({"a": "", "b": "failed"}, {"b": ""})
    assert (name, error) == ("a", "did not run")
