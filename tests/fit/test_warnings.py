"""Warnings name the line that called Keras or us."""

import inspect
import warnings

import keras
import pytest

import keras_osgd
from tests.helpers import small


def _line() -> int:
    return inspect.currentframe().f_back.f_lineno


def _ours():
    return small.model(optimizer=keras.optimizers.Adam())


def _accelerated():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.Adam(), small.crossentropy())
    return keras_osgd.accelerate(model)


@pytest.mark.parametrize("made", [_ours, _accelerated])
def test_a_warning_is_at_the_users_call_of_fit(made):
    model = made()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(small.X, small.Y, verbose=0, class_weight={0: 1.0})
        line = _line() - 1
    places = {(w.filename, w.lineno) for w in caught}
    texts = " ".join(str(w.message) for w in caught)
    assert "square-root rule" in texts and "no entry for [1, 2]" in texts
    assert places == {(__file__, line)}
