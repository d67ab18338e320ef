"""A training step with exact norms: what it observes, and what it does to weights."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.callbacks import SamplingMonitor
from keras_osgd.data import training_data
from keras_osgd.draws.pipeline import Sample
from keras_osgd.losses import described as losses
from keras_osgd.norms import scorer as scoring
from keras_osgd.norms.verification import verify
from keras_osgd.sampling import RAIS
from keras_osgd.step import sampled_step
from tests.helpers import oracles_norms, small
from tests.helpers.selection import one_in
from tests.helpers.steps import step_state

L = keras.layers
M, N = 5, 20
MODES = {"eager": {"run_eagerly": True}, "graph": {}, "jit": {"jit_compile": True}}


def values(*shape, seed=0, size=M):
    return np.random.default_rng(seed).normal(size=(size, *shape)).astype("float32")


def labels(*shape, size=M):
    return np.random.default_rng(1).integers(0, 3, (size, *shape))


def functional(shape, *layers, cls=keras_osgd.Model, dtype="float32"):
    outputs = inputs = keras.Input(shape, dtype=dtype)
    for layer in layers:
        outputs = layer(outputs)
    return cls(inputs, outputs)


def images():
    """Returns a model whose gradients come free as sums, as products and as rows."""
    return functional(
        (5, 5, 2),
        L.Conv2D(4, 3, activation="relu"),
        L.LayerNormalization(),
        L.DepthwiseConv2D(2, activation="tanh"),
        L.Flatten(),
        L.Dense(3, "softmax"),
    )


def gradients_one_by_one(model, x, y, weights=None):
    """Returns `[m, parameters]` float64, regularisation left out."""

    def loss_of(i):
        one = slice(i, i + 1)
        weight = None if weights is None else tf.constant(weights[one])
        y_pred = model(tf.constant(x[one]), training=False)
        loss = model.compute_loss(x[one], tf.constant(y[one]), y_pred, weight)
        return loss - sum(model.losses)

    variables = model.trainable_weights
    return oracles_norms.gradients_one_by_one(loss_of, variables, len(x))


def step(model, x, y, norm, sample_weight=None):
    """Makes one step; returns norms, moments, last layer's moments and weights w."""
    data = training_data.prepare(x, y, sample_weight, None, len(x), None)
    described = losses.describe(model, data)
    model.optimizer.build(model.trainable_weights)
    scorer = None
    if norm == "exact":
        scorer = scoring.Scorer(model, described, data)
        verify(scorer, in_training=False)
    state = step_state(N, described, scorer)
    probability = np.random.default_rng(0).uniform(0.5, 2.0, len(x)) / N
    p = tf.constant(probability, tf.float32)
    rows = [tf.constant(a) for a in (x, y)]
    sample = Sample.of(p, p, data.arrays[2])
    core = sampled_step.make_core(model, state, model.jit_compile)
    if not model.run_eagerly and not model.jit_compile:
        core = tf.function(core, autograph=False)
    norms = core((*rows, sample))[1][: len(x)]
    gains = state.gain, state.last_layer_gain
    moments = [gain.averages.numpy() / 0.02 for gain in gains]
    return norms.numpy(), *moments, 1 / (N * probability)


def compiled(build, optimizer=None, reduction="sum_over_batch_size", **options):
    keras.utils.set_random_seed(0)
    model = build()
    for weight in model.trainable_weights:  # biases and scales apart from 0 and 1
        rng = np.random.default_rng(len(weight.shape))
        weight.assign(weight + 0.1 * rng.normal(size=weight.shape))
    loss = keras.losses.SparseCategoricalCrossentropy(reduction=reduction)
    model.compile(optimizer or keras.optimizers.SGD(0.1), loss, **options)
    return model


def scaled(rate=0.1):
    inner = keras.optimizers.SGD(rate)
    return keras.optimizers.LossScaleOptimizer(inner, initial_scale=64.0)


X, Y = values(5, 5, 2), labels()


def assert_observed(found, gradients):
    norms, moments, _, w = found
    squared = (gradients**2).sum(axis=1)
    assert np.ptp(squared) > 0
    np.testing.assert_allclose(norms, np.sqrt(squared), rtol=1e-4)
    expected = [(w * squared).mean(), (w**2 * squared).mean()]
    np.testing.assert_allclose(moments[:2], expected, rtol=1e-4)
    batch = ((w[:, None] * gradients).mean(axis=0) ** 2).sum()
    np.testing.assert_allclose(moments[3], batch, rtol=1e-4)


def test_a_step_observes_the_norms_and_moments_before_it():
    weights = np.array([0.5, 2, 1, 3, 0.1], np.float32)
    model = compiled(images, reduction="sum", **MODES["eager"])
    gradients = gradients_one_by_one(model, X, Y, weights)
    assert_observed(step(model, X, Y, "exact", weights), gradients)


class Penalised(L.Layer):
    """Adds a loss that depends on the batch and on a weight of its own."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        x = x * self.scale
        self.add_loss(keras.ops.mean(keras.ops.square(x), axis=(1, 2, 3)))
        return x


def shared():
    conv = L.Conv2D(2, 3, padding="same", activation="tanh", kernel_regularizer="l2")
    return functional((5, 5, 2), conv, conv, L.Flatten(), L.Dense(3, "softmax"))


def looked_up():
    return functional(
        (5, 5, 2),
        L.Lambda(lambda x: keras.ops.cast(keras.ops.abs(2 * x), "int32")),
        L.Embedding(9, 3, embeddings_regularizer="l2"),
        L.Flatten(),
        L.Dense(3, "softmax"),
    )


class WithoutRegularisation(keras_osgd.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        loss = super().compute_loss(x, y, y_pred, sample_weight)
        return loss - sum(self.losses)


def own_loss():
    return functional(
        (5, 5, 2),
        L.Conv2D(4, 3, kernel_regularizer=keras.regularizers.L2(1e-3)),
        L.Flatten(),
        L.Dense(3, "softmax"),
        cls=WithoutRegularisation,
    )


KINDS = {
    "plain": images,
    "L2, activity and add_loss of a vector": lambda: functional(
        (5, 5, 2),
        L.Conv2D(3, 2, kernel_regularizer="l2", activity_regularizer="l2"),
        Penalised(),
        L.Flatten(),
        L.Dense(3, "softmax"),
    ),
    "a shared layer": shared,
    "an embedding": looked_up,
    "a compute_loss without regularisation": own_loss,
    "a frozen layer": lambda: functional(
        (5, 5, 2),
        L.Conv2D(3, 2, trainable=False, kernel_regularizer="l2"),
        L.Conv2D(3, 2),
        L.Flatten(),
        L.Dense(3, "softmax"),
    ),
}


OF_THE_BATCH = "L2, activity and add_loss of a vector"
# Of each branch one is compiled by XLA or run eagerly, not in a graph.
OTHERWISE = {"a frozen layer": "jit", "a compute_loss without regularisation": "eager"}
CASES = [(kind, OTHERWISE.get(kind, "graph")) for kind in KINDS]


@functools.cache
def stepped(kind, norm, mode, with_scaling):
    """Returns what a step of this kind of model observed, and the weights after it."""
    optimizer = scaled() if with_scaling else None
    model = compiled(KINDS[kind], optimizer, **MODES[mode])
    return step(model, X, Y, norm), small.flat(model)


@pytest.mark.parametrize(
    "kind, mode, with_scaling",
    [
        *one_in(3, [(*case, False) for case in CASES]),
        (OF_THE_BATCH, "graph", True),
    ],
)
def test_regularisation_and_loss_scaling_enter_neither_norms_nor_moments(
    kind, mode, with_scaling
):
    gradients = _without_vector_terms(compiled(KINDS[kind]))
    found, _ = stepped(kind, "exact", mode, with_scaling)
    assert_observed(found, gradients)


def _without_vector_terms(model):
    plain = keras.Model(model.inputs, model.outputs)
    plain.compile("sgd", model.loss)
    rows = []
    for i in range(M):
        with tf.GradientTape() as tape:
            loss = model.loss(Y[i : i + 1], plain(X[i : i + 1], training=False))
        found = tape.gradient(loss, [v.value for v in model.trainable_weights])
        rows.append(np.concatenate([np.ravel(tf.convert_to_tensor(g)) for g in found]))
    return np.stack(rows).astype(np.float64)


@pytest.mark.parametrize("kind, mode", one_in(2, [*CASES, ("an embedding", "eager")]))
def test_a_step_changes_the_weights_as_one_without_exact_norms_does(kind, mode):
    before = small.flat(compiled(KINDS[kind]))
    exact, with_exact = stepped(kind, "exact", mode, False)
    last, without = stepped(kind, "last_layer", "graph", False)
    scale = np.abs(without - before).max()
    assert scale > 1e-3
    np.testing.assert_allclose(
        with_exact - before, without - before, atol=2e-6 * max(scale, 1.0)
    )
    assert np.isfinite([exact[2], last[1]]).all()


def test_loss_scaling_changes_no_step():
    after = [
        stepped(OF_THE_BATCH, "exact", "graph", with_scaling)[1]
        for with_scaling in (True, False)
    ]
    np.testing.assert_allclose(*after, atol=1e-6)


def test_the_last_layer_s_moments_are_kept_beside_the_exact_ones():
    exact, last = (
        stepped("plain", norm, "graph", False)[0] for norm in ("exact", "last_layer")
    )
    np.testing.assert_allclose(exact[2], last[1], rtol=1e-4)
    assert (exact[1][:2] > 1.05 * last[1][:2]).all()


def normalised():
    return functional(
        (5, 5, 2),
        L.Conv2D(4, 3, activation="relu"),
        L.BatchNormalization(),
        L.Flatten(),
        L.Dense(3, "softmax"),
    )


def test_with_batch_normalization_norms_are_those_with_statistics_held():
    """The moment of the gradient is that of the batch's own, in training."""
    model = compiled(normalised, keras.optimizers.SGD(1.0))
    moving = model.layers[2].moving_mean
    gradients, before = gradients_one_by_one(model, X, Y), moving.numpy()
    weights = np.concatenate([np.ravel(v) for v in model.trainable_weights])
    norms, moments, _, w = step(model, X, Y, "exact")
    squared = (gradients**2).sum(axis=1)
    np.testing.assert_allclose(norms, np.sqrt(squared), rtol=1e-4)
    np.testing.assert_allclose(moments[0], (w * squared).mean(), rtol=1e-4)
    assert np.abs(moving.numpy() - before).max() > 1e-4  # which training still moves
    moved = np.concatenate([np.ravel(v) for v in model.trainable_weights]) - weights
    np.testing.assert_allclose(moments[3], (moved**2).sum(), rtol=1e-4)


# Through fit


def dense(**options):
    return functional((4,), L.Dense(6, "tanh"), L.Dense(3, "softmax"), **options)


def fitted(norm="exact", **options):
    model = compiled(
        dense,
        sampling=RAIS(norm=norm, seed=0, adapt_learning_rate=False),
        **options,
    )
    history = small.fit(model, callbacks=[SamplingMonitor()])
    return model, history.history


def test_fit_s_observations_of_the_first_step_are_exact():
    model, _ = fitted(optimizer=keras.optimizers.SGD(0.0))  # so every step's are
    norms = keras_osgd.gradient_norms(model, small.X, small.Y)
    last = model.sampling_state.table.last_norms()
    seen = last > 0
    assert seen.sum() > 30
    np.testing.assert_allclose(last[seen], norms[seen], rtol=1e-4)


@pytest.fixture(scope="module")
def monitored():
    """A model trained with exact norms, its history, and what it warned of."""
    found = []
    told = small.warned(lambda: found.extend(fitted()))
    return *found, told


def test_training_with_exact_norms_draws_and_warns_of_nothing_it_need_not(monitored):
    assert monitored[2] == []


def test_the_monitor_shows_the_gain_ratio_of_the_last_layer_beside_the_exact_one(
    monitored,
):
    history = monitored[1]
    assert (
        history["gain_ratio_last_layer"]
        and np.isfinite(history["gain_ratio_last_layer"]).all()
    )
    assert "scoring_seconds" not in history  # which the oracle has
    assert "gain_ratio_last_layer" not in fitted(norm="last_layer")[1]


def test_batch_normalization_is_warned_of_once():
    def build():
        return functional(
            (4,), L.Dense(6), L.BatchNormalization(), L.Dense(3, "softmax")
        )

    options = {"sampling": RAIS(norm="exact", seed=0), "run_eagerly": True}
    model = compiled(build, **options)
    statistics, norms = small.warned(small.fit, model, batch_size=20)
    assert "recalibrate_batch_normalization" in statistics
    assert "held at their moving averages" in norms
    assert small.warned(small.fit, model, batch_size=20) == []


def test_an_accelerated_model_s_steps_are_those_of_our_own(monitored):
    model = compiled(lambda: dense(cls=keras.Model))
    keras_osgd.accelerate(model, RAIS(norm="exact", seed=0, adapt_learning_rate=False))
    small.fit(model)
    np.testing.assert_allclose(small.flat(model), small.flat(monitored[0]), rtol=1e-6)
