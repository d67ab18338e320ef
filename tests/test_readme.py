"""The README's examples, run as they stand on data of their shapes."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.fit.trainer import ImportanceSampled

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text("utf-8")
_rng = np.random.default_rng(0)
IMAGES = _rng.uniform(size=(192, 28, 28, 1)).astype("float32")
LABELS = _rng.integers(0, 10, 192)


def _classifier():
    layers = [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras_osgd.Sequential([*layers, keras.layers.Softmax()])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def _batches():
    return tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(64)


def _with_model(**given):
    return {"model": _classifier(), **given}


CASES = {
    "## In your code": lambda: {"x": IMAGES, "y": LABELS},
    "## Datasets": lambda: _with_model(dataset=_batches()),
    "### Streams": lambda: _with_model(stream=_batches().repeat()),
    "## Going on after a kill": lambda: _with_model(x=IMAGES, y=LABELS),
}


@pytest.mark.long
@pytest.mark.parametrize("section", CASES)
def test_an_example_runs_as_it_stands(section, tmp_path, monkeypatch):
    code = README.split(f"{section}\n")[1].split("```python\n")[1].split("```")[0]
    fit = ImportanceSampled.fit

    def quiet(model, *args, **kwargs):  # the same calls, in less time
        kwargs |= {"verbose": 0, "epochs": min(2, kwargs.get("epochs", 1))}
        if kwargs.get("steps_per_epoch"):
            kwargs["steps_per_epoch"] = 5
        return fit(model, *args, **kwargs)

    monkeypatch.setattr(ImportanceSampled, "fit", quiet)
    monkeypatch.chdir(tmp_path)
    names = {"keras": keras, "keras_osgd": keras_osgd, "tf": tf, "np": np}
    names |= CASES[section]()
    exec(code, names)
    trained = names["model"]
    assert trained.sampling_run.clock.step > 0
    assert all(np.isfinite(w).all() for w in trained.get_weights())
