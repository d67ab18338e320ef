"""Losses that couple the examples of a batch are told from those that do not."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.base import keras_compat
from keras_osgd.data.training_data import prepare
from keras_osgd.losses import described as losses
from keras_osgd.losses import probe
from keras_osgd.sampling import RAIS
from tests.helpers.keras_losses import OF_THE_BATCH, TRIALS, N, X
from tests.helpers.selection import one_in

ops = keras.ops
SAMPLED = [name for name, trial in TRIALS.items() if trial.refused is None]
REFUSED = [name for name, trial in TRIALS.items() if trial.refused is not None]
WEIGHTS = np.random.default_rng(1).uniform(0.2, 5.0, N).astype("float32")


def test_every_loss_of_keras_has_its_place():
    found = {n: v for n, v in vars(keras.losses).items() if not n.startswith("_")}
    classes = {n for n, v in found.items() if isinstance(v, type)} - {"Loss"}
    functions = {n for n in found if n.islower()} - {"deserialize", "get", "serialize"}
    tried = [trial.loss for trial in TRIALS.values()]
    assert classes == {type(loss).__name__ for loss in tried}
    assert functions == {loss.fn.__name__ for loss in tried}


def described(trial):
    model = trial.model()
    return model, losses.describe(model, prepare(X, trial.y, None, None, 4, None))


def loss_of(model, rows, y, weights=None):
    y_pred = model(X[rows])
    found = keras_compat.compute_loss(model, None, tf.constant(y), y_pred, weights)
    return float(found)


@pytest.mark.parametrize("name", one_in(4, SAMPLED))
def test_a_loss_of_keras_is_the_weighted_sum_of_those_of_single_examples(name):
    model, found = described(TRIALS[name])
    y = TRIALS[name].y
    carried = losses.weights_for(found, tf.constant(WEIGHTS), None)
    weighted = loss_of(model, slice(None), y, carried)
    each = [loss_of(model, slice(i, i + 1), y[i : i + 1]) for i in range(N)]
    count = np.sum(y != 0) if "ignore_class" in name else N  # Keras divides so
    np.testing.assert_allclose(weighted, WEIGHTS @ each / count, rtol=2e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_a_loss_of_keras_without_a_loss_for_each_example_is_refused(name):
    reason = re.escape(TRIALS[name].refused).replace(r"\.\*", ".*")
    with pytest.raises(ValueError, match=reason):
        described(TRIALS[name])


def test_the_remedy_for_a_loss_of_one_number_trains_with_norms_of_its_own():
    name = "Tversky(axis=(1, 2, 3))"
    with pytest.raises(ValueError, match=re.escape(f"`keras.losses.{name}`")):
        described(TRIALS[name.split("(")[0] + "()"])
    options = {"sampling": RAIS(seed=0), "optimizer": keras.optimizers.SGD(0.0)}
    trial = TRIALS[name]
    model = trial.model(keras_osgd.Model)
    model.compile(loss=trial.loss, **options)
    model.fit(X, trial.y, batch_size=4, verbose=0)
    z = keras.Model(model.inputs, model.layers[2].output)(X)
    with tf.GradientTape() as tape:
        tape.watch(z)
        total = tf.reduce_sum(trial.loss.call(tf.constant(trial.y), tf.sigmoid(z)))
    gradient = tape.gradient(total, z).numpy().reshape(N, -1)
    norms = model.sampling_state.table.last_norms()
    np.testing.assert_allclose(norms, np.linalg.norm(gradient, axis=1), rtol=1e-5)


# Losses of a user's own


def in_batch(y, z):
    places = ops.arange(ops.shape(z)[0])
    scores = z[:, :2] @ ops.transpose(z[:, 2:])
    return keras.losses.sparse_categorical_crossentropy(places, scores, True)


def of_a_moment(y, z):
    return ops.mean((z - y[:, :4] / ops.std(y)) ** 2, axis=-1)


def of_pairs(y, z):
    return ops.sum(ops.abs(z[:, None] - z[None]), axis=-1)  # `[m, m]`


def of_one_class(y, z):
    """Differs from 0 only for an example with another of its class."""
    same = ops.cast(y == ops.transpose(y), "float32") - ops.eye(ops.shape(y)[0])
    return ops.sum(same * ops.abs(z[:, :1] - 2.0), axis=1)


def alone(y, z):
    return ops.mean((z - y) ** 2, axis=-1)


def small(y, z):  # where rounding is as large as the loss
    return ops.mean(ops.log(ops.cosh(1e-4 * z)), axis=-1) + 1e-9


def random(y, z):
    return ops.mean((z + keras.random.normal(ops.shape(z)) - y) ** 2, axis=-1)


def tried(loss, y, outputs=4, n=64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 4)).astype("float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(outputs)])
    model.compile("sgd", loss)
    return losses.describe(
        model, prepare(x, x if y is None else y, None, None, 4, None)
    )


SORTED = np.repeat([0, 1], 32)[:, None]
COUPLED = {in_batch: None, of_a_moment: None, of_pairs: None, of_one_class: SORTED}


@pytest.mark.parametrize("loss", COUPLED, ids=lambda loss: loss.__name__)
def test_a_loss_that_compares_examples_is_refused_by_its_name(loss):
    with pytest.raises(
        ValueError, match=f"{OF_THE_BATCH}.*loss {loss.__name__}, whose"
    ):
        tried(loss, COUPLED[loss])


@pytest.mark.parametrize("loss", [alone, small, random])
def test_other_losses_are_not(loss):
    assert len(tried(loss, None)) == 1
    assert len(tried(loss, np.zeros((1, 4)), n=1)) == 1


def test_a_model_sure_of_what_is_wrong_is_not_taken_for_one_that_compares_examples():
    """Keras' softmax leaves its logits on an output, and none on a part of one."""
    data = prepare(1e4 * X, np.arange(N) % 4, None, None, 4, None)
    model = keras.Sequential(
        [keras.Input(X.shape[1:]), keras.layers.Dense(4, "softmax")]
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    assert len(losses.describe(model, data)) == 1


class Towers(keras.Model):
    def call(self, x):
        return x @ ops.transpose(x)


def test_outputs_as_many_as_examples_are_refused_and_five_by_chance_are_not():
    data = prepare(X, np.arange(N) % 4, None, None, 4, None)
    model = Towers()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    with pytest.raises(ValueError, match=rf"{OF_THE_BATCH}.*\(5, 5\) for 5 examples"):
        losses.describe(model, data)
    assert len(probe.rows(data)) == 5
    assert len(tried(alone, np.zeros((64, 5)), outputs=5)) == 1


def test_the_examples_tried_have_different_targets_and_pairs_of_the_same():
    y = np.zeros(1000)
    y[900:] = 1
    rows = probe.rows(prepare(y, y, None, None, 4, None))
    assert len(set(y[rows])) == 2 and len(set(rows)) == 3 and len(rows) == 5
