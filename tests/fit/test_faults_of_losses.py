"""Losses, norms and floors that are out of the ordinary."""

import keras
import numpy as np
import pytest

import keras_osgd
from keras_osgd.fit import checks
from keras_osgd.sampling import RAIS
from tests.helpers import small
from tests.helpers.small import BATCH_SIZE, X, Y

EPOCHS = 4  # into the second block

# Row 15


def test_norms_thirty_orders_apart_keep_every_probability_above_the_floor():
    monitor = keras_osgd.callbacks.SamplingMonitor()
    still = keras.optimizers.SGD(0.0)
    model = small.model(optimizer=still, sampling=RAIS(floor=0.1, seed=0))
    scales = np.geomspace(1e-15, 1e15, 60)
    small.fit(model, epochs=EPOCHS, callbacks=[monitor], sample_weight=scales)
    probabilities = monitor.probabilities()
    np.testing.assert_allclose(probabilities.sum(), 1.0, rtol=1e-12)
    assert probabilities.min() >= 0.1 / 60 * (1 - 1e-12)
    assert probabilities.argmax() == 59 and probabilities[59] > 3 / 60


# Row 16


def test_no_floor_trains_with_a_warning_that_names_the_largest_weight():
    model = small.model(sampling=RAIS(floor=0.0, retreat_below=0.0, seed=0))
    scales = np.geomspace(0.01, 100, 60)
    messages = small.warned(small.fit, model, epochs=EPOCHS, sample_weight=scales)
    (message,) = [m for m in messages if "`floor` is 0" in m]
    assert float(message.split("now ")[1].split(". ")[0]) > 1.5
    assert np.isfinite(small.flat(model)).all()


def test_the_warning_of_no_floor_comes_once_and_only_then():
    model = small.model()
    assert small.warned(checks.warn_of_floor, model, RAIS(floor=0.1), 9.0) == []
    messages = small.warned(checks.warn_of_floor, model, RAIS(floor=0), 1234.5)
    assert len(messages) == 1 and "largest weight is now 1.23e+03." in messages[0]
    assert small.warned(checks.warn_of_floor, model, RAIS(floor=0), 9.0) == []
    [message] = small.warned(checks.warn_of_floor, small.model(), RAIS(floor=0))
    assert "undo much training. Use 0.05." in message


@pytest.mark.parametrize("floor", [-0.01, 1.01, float("nan")])
def test_a_floor_that_is_no_share_raises(floor):
    with pytest.raises(
        ValueError, match=rf"`floor` must be in \[0, 1\].*floor={floor}"
    ):
        small.model(sampling=RAIS(floor=floor))


# Row 17


def test_a_loss_with_a_value_for_each_output_raises_with_its_shape():
    def lumped(y_true, y_pred):
        return keras.ops.mean(y_pred, axis=0)

    # Two outputs: over two examples a mean over axis 0 has the right shape by chance.
    remedy = "Use a mean over all axes but the first in lumped"
    with pytest.raises(
        ValueError, match=rf"value per example; lumped got shape \(2,\). {remedy}"
    ):
        small.fit(small.model(lumped, units=2), X, X[:, :2])


# Row 18


@pytest.fixture(scope="module")
def mean():
    """A model trained with the mean loss, to look at."""
    model = small.model(optimizer=keras.optimizers.SGD(0.2))
    small.fit(model, epochs=EPOCHS)
    return model


@pytest.mark.parametrize("reduction", ["sum", None])
def test_a_summed_loss_trains_as_the_mean_at_the_rate_times_the_batch_size(
    reduction, mean
):
    summed = small.model(
        small.crossentropy(reduction=reduction),
        optimizer=keras.optimizers.SGD(0.2 / BATCH_SIZE),
    )
    small.fit(summed, epochs=EPOCHS)
    np.testing.assert_allclose(small.flat(summed), small.flat(mean), rtol=2e-4)
    scores = [m.sampling_state.table.last_norms() for m in (summed, mean)]
    np.testing.assert_allclose(*scores, rtol=2e-4)


# Row 24


def two_outputs(losses: dict):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    names = {"kind": 3, "size": 1}
    outputs = {
        n: keras.layers.Dense(units, name=n)(inputs) for n, units in names.items()
    }
    model = keras_osgd.Model(inputs, outputs)
    model.compile("sgd", losses, sampling=RAIS(seed=0))
    return model


def test_the_squared_norms_of_several_outputs_are_summed():
    model = two_outputs({"kind": small.crossentropy(), "size": "mse"})
    model.optimizer.learning_rate = 0.0
    small.fit(model, X, {"kind": Y, "size": X[:, :1]})
    found = model(X)
    at_kind = keras.ops.softmax(found["kind"]) - np.eye(3)[Y]
    at_size = 2 * (found["size"] - X[:, :1])
    squares = np.sum(np.square(at_kind), 1) + np.sum(np.square(at_size), 1)
    expected = squares * (1 + np.sum(X**2, 1))  # by the kernels and the biases
    norms = model.sampling_state.table.last_norms()
    np.testing.assert_allclose(norms**2, expected, rtol=1e-5)


def test_all_bad_losses_among_several_are_named_with_their_outputs():
    def scalar(y_true, y_pred):
        return keras.ops.mean(y_pred)

    y = {"kind": Y, "size": X[:, :1]}
    model = two_outputs({"kind": small.crossentropy(), "size": scalar})
    with pytest.raises(ValueError, match=r"; scalar of output size got shape \(\)\."):
        small.fit(model, X, y)
    model = two_outputs({"kind": scalar, "size": scalar})
    kind, size = (rf"scalar of output {name} got shape \(\)" for name in y)
    with pytest.raises(ValueError, match=f"one value per example; {kind}, {size}. Use"):
        small.fit(model, X, y)


# Row 23


class Noisy(keras.layers.Layer):
    """Neither a rule nor a second pass over one example gives its gradients."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dropout = keras.layers.Dropout(0.5)

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones")

    def call(self, inputs):
        return self.dropout(inputs * self.scale)


def noisy(norm: str, loss=None):
    layers = [Noisy(name="first"), Noisy(name="second"), keras.layers.Dense(3)]
    model = keras_osgd.Sequential([keras.Input((4,)), *layers])
    model.compile("sgd", loss or small.crossentropy(), sampling=RAIS(norm=norm))
    return model


@pytest.mark.parametrize("bad", ["label", "loss"])
def test_layers_without_exact_norms_are_listed_beside_errors_of_the_losses(bad):
    def scalar(y_true, y_pred):
        return keras.ops.mean(y_pred)

    model = noisy("exact", scalar if bad == "loss" else None)
    y = Y if bad == "loss" else np.where(np.arange(60) == 3, 7, Y)
    text = "one value per example" if bad == "loss" else "label 7 at index 3"
    with pytest.raises(ValueError, match=rf"2 things.*\n1\..*{text}.*\n2\.") as raised:
        small.fit(model, X, y)
    for name in ("first (Noisy)", "second (Noisy)"):
        assert name in str(raised.value)


def test_exact_norms_are_tried_out_once_for_fits_of_the_same_shape(monkeypatch):
    tried = []
    monkeypatch.setattr(checks, "verify", lambda *args, **kwargs: tried.append(args))
    model = small.model(sampling=RAIS(norm="exact", seed=0))
    for _ in range(2):
        small.fit(model)
    assert len(tried) == 1
