"""Warnings name the line that called Keras or us."""

import inspect
import warnings

import keras
import pytest

import keras_osgd
from keras_osgd.fit import checks
from tests.helpers import small
from tests.helpers.selection import long_but


def _line() -> int:
    return inspect.currentframe().f_back.f_lineno


def _ours():
    return small.model(optimizer=keras.optimizers.SGD(clipnorm=1.0))


def _accelerated():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(clipnorm=1.0), small.crossentropy())
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
    assert "Gradient clipping" in texts and "no entry for [1, 2]" in texts
    assert places == {(__file__, line)}


_K = keras.callbacks


@pytest.mark.parametrize(
    ("callback", "monitor"),
    [
        (lambda: _K.EarlyStopping("loss"), "loss"),
        (lambda: _K.ReduceLROnPlateau("accuracy"), "accuracy"),
        (lambda: _K.ModelCheckpoint("m.keras", "loss", save_best_only=True), "loss"),
        (lambda: _K.ModelCheckpoint("m.keras", "loss"), None),
        (lambda: _K.EarlyStopping("val_loss"), None),
    ],
)
def test_callbacks_that_act_on_a_training_quantity_are_named_once(callback, monitor):
    made, acting = small.model(metrics=["accuracy"]), callback()
    told = small.warned(checks.warn_of_monitors, made, [acting, acting])
    assert len(told) == (monitor is not None)
    for text in told:
        assert text.startswith(f"{type(acting).__name__} monitors '{monitor}'.")
        assert f"Monitor 'val_{monitor}'" in text


@pytest.mark.parametrize(
    "sampling",
    long_but(["rais", "uniform"], ["rais", "oracle", "presample", "uniform"]),
)
def test_fit_names_them_wherever_draws_follow_the_scores(sampling):
    model = small.model(sampling=sampling)
    stopping = _K.EarlyStopping("loss")
    told = small.warned(small.fit, model, steps_per_epoch=2, callbacks=[stopping])
    named = [text for text in told if "EarlyStopping monitors" in text]
    assert len(named) == (sampling != "uniform")
