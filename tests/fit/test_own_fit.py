"""Models whose own `fit` prepares the data, as KerasHub's tasks do."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.sampling import RAIS
from tests.helpers.selection import long_but

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int64")
TEXTS = np.array([" ".join(map(str, row)) for row in X])  # exact for float32


class Reading:
    """Reads numbers from text, in `fit`, `evaluate` and `predict` alone."""

    def preprocess(self, text, *others):
        x = tf.strings.to_number(tf.strings.split(text).to_tensor())
        return (tf.ensure_shape(x, [None, 4]), *others)

    def _prepared(self, x, y, batch_size):
        if not isinstance(x, tf.data.Dataset):
            parts = (x,) if y is None else (x, y)
            x = tf.data.Dataset.from_tensor_slices(parts).batch(batch_size or 32)
        return x.map(self.preprocess)

    def fit(self, x=None, y=None, batch_size=None, validation_data=None, **kwargs):
        if validation_data is not None:
            validation_data = self._prepared(*validation_data, batch_size)
        x = self._prepared(x, y, batch_size)
        return super().fit(x, validation_data=validation_data, **kwargs)

    def evaluate(self, x=None, y=None, batch_size=None, **kwargs):
        if not kwargs.get("_use_cached_eval_dataset"):
            x = self._prepared(x, y, batch_size)
        return super().evaluate(x, **kwargs)

    def predict(self, x, batch_size=None, **kwargs):
        return super().predict(self._prepared(x, None, batch_size), **kwargs)


class Texts(Reading, keras.Model):
    """A functional model, or the class of one."""


class Weighed(Texts):
    """Makes targets and weights from the texts, as for a causal language model."""

    def preprocess(self, text, *_):
        (x,) = super().preprocess(text)
        return x, tf.cast(x[:, 0] > 0, "int64"), tf.abs(x[:, 1])


class Layers(Reading, keras.Model):
    """A subclass with a `call`."""

    def __init__(self):
        super().__init__()
        self.head = keras.layers.Dense(2, "softmax")

    def call(self, x):
        return self.head(x)


class LayersOfOurs(Layers, keras_osgd.Model):
    """The same for who writes `keras_osgd.Model` himself."""


def functional(cls):
    inputs = keras.Input((4,))
    return cls(inputs, keras.layers.Dense(2, "softmax")(inputs))


MAKERS = {
    "functional": lambda: functional(Texts),
    "with targets and weights of its own": lambda: functional(Weighed),
    "subclassed": Layers,
    "of ours": LayersOfOurs,
}


def trained(model, x, y, weight, held_out):
    """Returns the model's history after two eager fits from the same weights."""
    model(X[:1])
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
    keras_osgd.accelerate(model, RAIS(seed=0))
    given = {"x": x, "y": y, "sample_weight": weight, "validation_data": held_out}
    given = {name: value for name, value in given.items() if value is not None}
    model.fit(**given, batch_size=20, verbose=0)
    return model.fit(**given, batch_size=20, verbose=0).history


@functools.cache
def on_numbers(weighed):
    """Returns (model, history), trained on what is in the texts."""
    weight = np.abs(X[:, 1]) if weighed else None
    held_out = (X[:6], Y[:6]) if weight is None else (X[:6], Y[:6], weight[:6])
    model = functional(keras.Model)
    return model, trained(model, X, Y, weight, held_out)


@pytest.mark.parametrize("kind", long_but(["functional"], MAKERS))
def test_a_fit_that_prepares_data_does_so_before_the_sampling(kind):
    model, own = MAKERS[kind](), kind.startswith("with")
    cls, y = type(model), None if own else Y
    history = trained(model, TEXTS, y, None, (TEXTS[:6], None if own else Y[:6]))
    numbers, expected = on_numbers(own)
    assert model.sampling_state.observed > 0
    assert history == expected
    for a, b in zip(model.get_weights(), numbers.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    predicted = model.predict(TEXTS, verbose=0)
    np.testing.assert_array_equal(predicted, numbers.predict(X, verbose=0))
    loss = model.evaluate(TEXTS[:6], None if own else Y[:6], verbose=0)
    assert loss == pytest.approx(history["val_loss"][-1], rel=1e-6)
    if kind != "of ours":
        assert type(keras_osgd.release(model)) is cls
        model.fit(TEXTS, y, batch_size=20, verbose=0)


def test_models_made_by_the_class_of_an_accelerated_one_change_no_other():
    class Reset(keras.Model):
        """As in KerasHub: may be built with inputs and outputs, or without."""

        def __init__(self, *args):
            Reset.__bases__ = (keras.Model,)
            super().__init__(*args)

    model = keras_osgd.accelerate(functional(Reset))
    made = functional(type(model))  # Keras puts `Functional` among all bases again
    assert type(made) is type(model)
    other = keras_osgd.accelerate(Layers())
    functional_class = type(functional(keras.Model))
    found = [isinstance(each, functional_class) for each in (model, made, other)]
    assert found == [True, True, False]
