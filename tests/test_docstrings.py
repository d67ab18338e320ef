import doctest
import importlib
import pkgutil

import pytest

import keras_osgd

_MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(keras_osgd.__path__, "keras_osgd.")
    if not module.name.endswith("__main__")
)


@pytest.mark.long
@pytest.mark.parametrize("name", ["keras_osgd", *_MODULES])
def test_every_example_in_a_docstring_runs_and_prints_what_it_says(name):
    module = importlib.import_module(name)
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert found.failed == 0, f"{name}: {found.failed} of {found.attempted} failed"


def test_the_examples_are_found():
    module = importlib.import_module("keras_osgd.scores.distributions")
    assert doctest.testmod(module).attempted >= 4
