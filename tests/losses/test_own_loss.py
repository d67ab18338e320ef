"""A user's own `compute_loss` is sampled where every term takes the weights."""

import keras
import numpy as np
import pytest

from keras_osgd.data.training_data import prepare
from keras_osgd.losses import described as losses
from tests.helpers import small

ops = keras.ops
X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
Y = np.random.default_rng(1).normal(size=(32, 3)).astype("float32")


class Own(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        loss = super().compute_loss(x, y, y_pred, sample_weight)
        weights = 1.0 if sample_weight is None else sample_weight
        self.seen.update_state(loss)
        return self.own(loss, x, y_pred, weights)


def described(own, layers=(), regularizer=None, n=32, metric=None):
    inputs = outputs = keras.Input((4,))
    for layer in layers:
        outputs = layer(outputs)
    dense = keras.layers.Dense(3, kernel_regularizer=regularizer)
    model = Own(inputs, dense(outputs))
    model.own = own
    model.seen, model.metric = keras.metrics.Sum(), metric
    model.compile("sgd", "mse")
    found = losses.describe(model, prepare(X[:n], Y[:n], None, None, 4, None))
    assert float(model.seen.result()) == 0.0
    return found


def teacher(x, z):
    return ops.mean((ops.tanh(x[:, :3]) - z) ** 2, axis=-1)


def distilled(loss, x, z, w):
    return 0.1 * loss + 0.9 * ops.mean(w * teacher(x, z))


def unweighted(loss, x, z, w):
    return 0.1 * loss + 0.9 * ops.mean(teacher(x, z))


def normalized(loss, x, z, w):
    w = ops.ones(ops.shape(z)[0]) * w
    return loss + ops.sum(w * teacher(x, z)) / (ops.sum(w) + 1e-6)


def ignoring(loss, x, z, w):
    return ops.mean(teacher(x, z))


def coupled(loss, x, z, w):
    return loss + ops.mean(w * ops.mean((z - ops.mean(z, axis=0)) ** 2, axis=-1))


def by_a_count(loss, x, z, w):  # as Keras divides by what is not masked
    return ops.sum(w * teacher(x, z)) / ops.sum(ops.cast(x > 0, "float32"))


def decayed(loss, x, z, w):
    return by_a_count(loss, x, z, w) + 1e4  # where little is left of the shares


REFUSED = {
    unweighted: "Received: a term without weights",
    normalized: "Received: a loss that is not linear in the weights",
    ignoring: "Received: the same loss for weights 1 and 2",
    coupled: "other examples of its batch.*Received: a `compute_loss` in which",
}


@pytest.mark.parametrize("own", REFUSED, ids=lambda own: own.__name__)
def test_a_loss_that_weights_do_not_make_unbiased_is_refused(own):
    with pytest.raises(ValueError, match=REFUSED[own]):
        described(own)


ACCEPTED = [distilled, by_a_count, decayed]


@pytest.mark.parametrize("own", ACCEPTED, ids=lambda own: own.__name__)
def test_terms_with_weights_and_terms_of_the_weights_alone_are_accepted(own):
    layers = [
        keras.layers.BatchNormalization(),
        keras.layers.ActivityRegularization(l2=3.0),  # warned of by itself
        keras.layers.Dropout(0.5),
    ]
    assert len(described(own, layers, regularizer="l2")) == 1
    assert len(described(own, n=1)) == 1


def test_an_error_in_it_is_a_refusal():
    def broken(loss, x, z, w):
        return loss.no_such_attribute

    with pytest.raises(ValueError, match="Received: AttributeError: .*no_such_attr"):
        described(broken)


def test_metrics_that_it_updates_with_a_batch_but_no_weights_are_named_once():
    def own(loss, x, y_pred, weights):
        given = weights if times == 0 else None
        updated.update_state(y_pred[:, :1], y_pred[:, 1:2], sample_weight=given)
        return loss

    for times in (0, 1):
        updated = keras.metrics.MeanSquaredError(name="updated")
        warned = small.warned(described, own, metric=updated)
        assert sum("'updated' will be of the drawn" in text for text in warned) == times
