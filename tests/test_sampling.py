"""The sampling methods refuse wrong arguments, each by its name."""

import inspect

import numpy as np
import pytest

from keras_osgd import sampling
from keras_osgd.sampling import RAIS, Auto, Oracle, Presample, Uniform

NAN = float("nan")
WRONG = {
    "floor": ("0.1", [0.1], NAN, -0.1, 1.1),
    "window": ("6400", 99, 640.5),
    "features": ("last", 5, ["constant", 1], ["last"]),
    "adapt_learning_rate": ("no", None, 2),
    "draws": ("all", ["reshuffled"], 1),
    "seed": ("1", 1.5),
    "retreat_below": ("1.03", None, NAN),
    "require_full_batches": ("no", None, 2),
    "norm": ("first_layer", None),
    "refresh": ("5", 0, 2.5),
    "score_batch_size": ("256", 0),
    "ratio": ("4", 1, 2.5),
    "cost": ("2", 0.5, NAN),
}
CASES = [
    (method, name, value)
    for method in (RAIS, Oracle, Presample)
    for name in inspect.signature(method).parameters
    for value in WRONG[name]
]


@pytest.mark.parametrize(("method", "name", "value"), CASES)
def test_a_wrong_argument_is_named_with_what_was_received(method, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must .*Received: {name}="):
        method(**{name: value})


def test_numbers_of_numpy_and_of_python_are_taken():
    numbers = {"floor": np.float32(0.5), "window": np.int64(200), "seed": np.int32(3)}
    flags = {"adapt_learning_rate": np.False_, "require_full_batches": 1}
    found = RAIS(**numbers, **flags, retreat_below=0).get_config()
    assert found["floor"] == 0.5 and found["window"] == 200 and found["seed"] == 3
    assert found["adapt_learning_rate"] is False
    assert found["require_full_batches"] is True


@pytest.mark.parametrize("method", [Auto, Oracle, Presample, RAIS, Uniform])
def test_a_class_in_place_of_an_object_is_told_to_be_called(method):
    call = rf"sampling=keras_osgd.sampling.{method.__name__}\(\)"
    with pytest.raises(ValueError, match=f"the class {method.__name__}. .*{call}"):
        sampling.get(method)
