"""A user's own `train_step`, as Keras' guides write it, is importance-sampled too."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.pools import stream_run
from keras_osgd.sampling import RAIS, Presample
from keras_osgd.step.own_train_step import own_train_step
from tests.helpers import documents, small
from tests.helpers.selection import long_but

unpacked = keras.utils.unpack_x_y_sample_weight
WEIGHTS = np.random.default_rng(0).uniform(0.5, 2, len(small.X)).astype("float32")


def guide(model, data):
    """The step of Keras' guide "Customizing what happens in `fit()`"."""
    x, y, sample_weight = unpacked(data)
    with tf.GradientTape() as tape:
        y_pred = model(x, training=True)
        loss = model.compute_loss(y=y, y_pred=y_pred, sample_weight=sample_weight)
    trainable = model.trainable_weights
    gradients = tape.gradient(loss, trainable)
    model.optimizer.apply(gradients, trainable)
    for metric in model.metrics:
        if metric.name == "loss":
            metric.update_state(loss)
        else:
            metric.update_state(y, y_pred, sample_weight=sample_weight)
    return {m.name: m.result() for m in model.metrics}


def scaled(model, data):
    """The same for float16, by another of the optimizer's names, data by position."""
    x, y, sample_weight = data
    with tf.GradientTape() as tape:
        y_pred = model(x, training=True)
        loss = model.compute_loss(x, y, y_pred, sample_weight)
        loss = model.optimizer.scale_loss(loss)
    gradients = tape.gradient(loss, model.trainable_weights)
    pairs = zip(gradients, model.trainable_weights, strict=True)
    model.optimizer.apply_gradients(pairs)
    return model.compute_metrics(x, y, y_pred, sample_weight)


def extended(model, data):
    logs = super(type(model), model).train_step(data)
    return {**logs, "one": tf.ones([])}


def made(step=None, of=keras_osgd, layers=(), optimizer=None, **options):
    keras.utils.set_random_seed(0)
    base = of.Model
    if step is not None:
        base = type("Own", (base,), {"train_step": step})
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5, "tanh")(inputs)
    outputs = keras.layers.Dense(3, "softmax")(hidden)
    for layer in layers:
        outputs = layer(outputs)
    model = base(inputs, outputs)
    options = {"metrics": ["accuracy"], **options}
    if of is keras_osgd:
        options = {"sampling": RAIS(seed=0, retreat_below=0.0), **options}
    optimizer = optimizer or keras.optimizers.SGD(0.1, momentum=0.5)
    model.compile(optimizer, "sparse_categorical_crossentropy", **options)
    return model


def fit(model, epochs=4, x=small.X, **options):
    """Trains until well into the second block, by then with weights."""
    options = {"sample_weight": WEIGHTS, **options}
    return small.fit(model, x, epochs=epochs, **options).history


@pytest.fixture(scope="module")
def reference():
    model = made(weighted_metrics=["accuracy"])
    history = fit(model)
    assert model.sampling_run.planner.last_plan.importance
    assert model.sampling_run.logged()["effective_epochs"] > 4 * 1.001
    return model, history


def assert_same(model, other, tolerance=1e-6):
    np.testing.assert_allclose(small.flat(model), small.flat(other), atol=tolerance)
    norms = [each.sampling_state.table.last_norms() for each in (model, other)]
    np.testing.assert_allclose(*norms, rtol=10 * tolerance)
    assert float(model.sampling_state.lead) == pytest.approx(
        float(other.sampling_state.lead), abs=1e-4
    )


@pytest.mark.long
def test_an_accelerated_model_s_step_of_keras_guide_trains_as_ours(reference):
    # Decorated, as a user may have done.
    model = made(tf.function(guide), of=keras, weighted_metrics=["accuracy"])
    keras_osgd.accelerate(model, RAIS(seed=0, retreat_below=0.0))
    history = fit(model)
    expected, shown = reference
    assert_same(model, expected)
    for name in ("accuracy", "weighted_accuracy"):
        np.testing.assert_allclose(history[name], shown[name], rtol=1e-5)
    # Keras' guide takes the mean over steps, we the weighted one over examples.
    np.testing.assert_allclose(history["loss"], shown["loss"], rtol=0.2)
    left = {"train_step", "compute_loss"} & vars(model).keys()
    assert not left and "apply" not in vars(model.optimizer)


def of_page(model, data):
    """The step that the page of `fit` shows."""
    names = {"keras": keras, "keras_osgd": keras_osgd, "tf": tf}
    page = "keras_osgd/fit/README.md"
    exec(documents.code(page, "Your own `train_step`"), names)
    return names["Own"].train_step(model, data)


def test_a_step_and_a_compute_loss_that_extend_those_of_keras_train_as_ours(reference):
    def passing_on(model, *args, **kwargs):
        return keras.Model.compute_loss(model, *args, **kwargs)

    model = made(extended, weighted_metrics=["accuracy"], steps_per_execution=3)
    type(model).compute_loss = passing_on
    assert "one" in fit(model)
    assert_same(model, reference[0])


class Pair(keras.metrics.SparseCategoricalAccuracy):
    """Two results in one."""

    def result(self):
        return {"right": super().result(), "wrong": 1 - super().result()}


@pytest.mark.parametrize("step", [guide, of_page])
def test_a_step_trains_as_ours_and_weights_metrics_of_the_model_as_it_does(
    step, reference
):
    model = made(step, metrics=["accuracy", Pair(name="pair")])
    model.own = keras.metrics.SparseCategoricalAccuracy(name="own")
    told = [t for t in small.warned(fit, model) if "drawn examples" in t]
    shown, expected = model.history.history, reference[1]
    assert_same(model, reference[0])
    wrong = 1 - np.array(expected["accuracy"])
    np.testing.assert_allclose(shown["right"], expected["accuracy"], rtol=1e-5)
    np.testing.assert_allclose(shown["wrong"], wrong, rtol=1e-5)
    if step is guide:
        assert not told
        expected = expected["weighted_accuracy"]
        np.testing.assert_allclose(shown["own"], expected, rtol=1e-5)
    else:
        assert [t[:29] for t in told] == ["During training 'own' will be"]


@pytest.mark.long
def test_a_scaled_loss_and_xla_change_neither_steps_nor_norms(reference):
    def optimizer():
        inner = keras.optimizers.SGD(0.1, momentum=0.5)
        return keras.optimizers.LossScaleOptimizer(inner, initial_scale=64.0)

    model = made(scaled, optimizer=optimizer(), jit_compile=True)
    fit(model)
    assert_same(model, reference[0], 1e-5)


def test_a_row_with_nan_changes_nothing_and_is_set_aside():
    x = small.X.copy()
    x[7] = np.nan
    plain, own = made(run_eagerly=True), made(guide)
    for model in (plain, own):
        fit(model, 3, x=x, batch_size=20)
    assert np.isfinite(small.flat(own)).all()
    assert list(own.sampling_state.bad_examples.set_aside) == [7]
    assert_same(own, plain)


def test_uniform_training_and_single_batches_run_it_as_keras_does():
    eager = {"run_eagerly": True}
    models = made(guide, sampling="uniform", **eager), made(guide, of=keras, **eager)
    logs = []
    for model in models:
        keras.utils.set_random_seed(1)
        logs.append(
            [
                fit(model, 1, batch_size=20),
                model.train_on_batch(small.X[:4], small.Y[:4]),
            ]
        )
    assert logs[0] == logs[1]
    np.testing.assert_array_equal(*map(small.flat, models))


@pytest.mark.parametrize("step", [None, guide])
def test_single_batches_before_and_between_fits_are_keras_own(step):
    x, y = small.X[:6], small.Y[:6]
    sampling = RAIS(seed=0, adapt_learning_rate=False)
    ours = made(step, sampling=sampling, run_eagerly=True)
    plain = made(step, of=keras, run_eagerly=True)
    for _ in range(2):
        logs = []
        plain.set_weights(ours.get_weights())
        for own, other in zip(
            plain.optimizer.variables, ours.optimizer.variables, strict=True
        ):
            own.assign(other)
        for model in (ours, plain):
            model.reset_metrics()
            trained = model.train_on_batch(x, y, WEIGHTS[:6])
            model.reset_metrics()
            tested = model.test_on_batch(x, y, WEIGHTS[:6])
            logs.append((trained, tested, model.predict_on_batch(x).tolist()))
        assert logs[0] == logs[1]
        np.testing.assert_array_equal(small.flat(ours), small.flat(plain))
        fit(ours, 1, batch_size=20)
    assert ours.sampling_state.observed == 2 * len(small.X)


def gradients_of(model, x, y, *weights):
    """Returns the gradients of `compute_loss`, with weights or without."""
    with tf.GradientTape() as tape:
        y_pred = model(x, training=True)
        loss = model.compute_loss(x, y, y_pred, *weights)
    return tape.gradient(loss, model.trainable_weights)


def unweighted(model, data):
    x, y, _ = unpacked(data)
    gradients = gradients_of(model, x, y)
    model.optimizer.apply(gradients, model.trainable_weights)


def changed(model, data):
    x, y, w = unpacked(data)
    gradients = gradients_of(model, x, y, w / tf.reduce_mean(w))
    model.optimizer.apply(gradients, model.trainable_weights)


def twice(model, data):
    x, y, w = unpacked(data)
    gradients_of(model, x, y, w)
    gradients_of(model, x, y, w)


def applied_twice(model, data):
    x, y, w = unpacked(data)
    gradients = gradients_of(model, x, y, w)
    model.optimizer.apply(gradients, model.trainable_weights)
    model.optimizer.apply(gradients, model.trainable_weights)


def never(model, data):
    return {"loss": tf.zeros([])}


def own_loss(model, data):
    x, _, _ = unpacked(data)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(x, training=True) ** 2)
    gradients = tape.gradient(loss, model.trainable_weights)
    model.optimizer.apply(gradients, model.trainable_weights)


def by_hand(model, data):
    x, y, w = unpacked(data)
    gradients = gradients_of(model, x, y, w)
    for gradient, variable in zip(gradients, model.trainable_weights, strict=True):
        variable.assign_sub(0.1 * gradient)
    return {}


def two_parts(model, data):
    x, y = data
    return guide(model, data)


def inside(model, data):
    return tf.function(lambda: guide(model, data))()


REFUSED = {
    "without `sample_weight`": unweighted,
    "changes `sample_weight`": changed,
    "calls `compute_loss` more than once": twice,
    "applies gradients more than once": applied_twice,
    "never calls `compute_loss`": never,
    "applies gradients without `compute_loss`": own_loss,
    "never lets `self.optimizer` apply": by_hand,
    "raised ValueError: too many values to unpack": two_parts,
    "inside a `tf.function` of its own": inside,
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_step_that_cannot_be_sampled_is_refused_before_training(message):
    model = made(REFUSED[message], metrics=None)
    before = small.flat(model)
    with pytest.raises(ValueError, match=f"Own.train_step, which .*{message}") as info:
        fit(model)
    assert 'sampling="uniform"' in str(info.value)
    np.testing.assert_array_equal(small.flat(model), before)
    arguments = model, small.X, small.Y, WEIGHTS, 4
    [found] = keras_osgd.check(*arguments, print_fn=None)[:1]
    assert found.kind == "error" and found.text == str(info.value)


def test_a_step_with_a_loss_of_its_own_is_not_told_that_compile_lacks_one():
    own = type("Own", (keras_osgd.Model,), {"train_step": own_loss})
    inputs = keras.Input((4,))
    model = own(inputs, keras.layers.Dense(3)(inputs))
    model.compile("adam")
    with pytest.raises(ValueError, match="of your own must take .*a loss of its own"):
        fit(model)
    model.compute_loss = lambda x, y, y_pred, sample_weight, **_: 0.0
    with pytest.raises(ValueError, match="`compile` must be given a `loss`"):
        fit(model)


def test_a_second_optimizer_and_exact_norms_are_refused():
    model = made(guide)
    model.other_optimizer = keras.optimizers.Adam()
    with pytest.raises(ValueError, match=r"other optimizers, \['Adam'\]"):
        fit(model)
    model = made(guide, sampling=RAIS(norm="exact"))
    with pytest.raises(ValueError, match="Received: Own.train_step. Use the last"):
        fit(model)


def test_trying_a_step_out_changes_no_state_and_no_metric():
    layers = [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    model = made(guide, layers=[*layers, keras.layers.Softmax()])
    before = [np.array(v) for v in model.variables]
    assert own_train_step(model) is guide
    keras_osgd.check(model, small.X, small.Y, batch_size=4, print_fn=None)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    assert not any(np.any(v) for v in model.metrics_variables)


def test_what_a_step_adds_beside_compute_loss_is_warned_of():
    def changed(change):
        def step(model, data):
            x, y, w = unpacked(data)
            gradients = map(change, gradients_of(model, x, y, w))
            model.optimizer.apply(list(gradients), model.trainable_weights)
            return {}

        return step

    def told(step, x=small.X):
        found = keras_osgd.check(made(step), x, small.Y, None, 4, print_fn=None)
        return [f.kind for f in found if "not those of `compute_loss`" in f.text]

    assert told(changed(lambda g: tf.clip_by_value(g, -1e-3, 1e-3))) == ["warning"]
    assert told(changed(lambda g: g * np.nan)) == ["warning"]
    assert told(guide) == []
    assert told(guide, np.where(np.arange(60)[:, None], small.X, np.nan)) == []


# Steps that take (x, y), as the first one of Keras' guide


def first(model, data):
    x, y = data
    with tf.GradientTape() as tape:
        y_pred = model(x, training=True)
        loss = model.compute_loss(y=y, y_pred=y_pred)
    gradients = tape.gradient(loss, model.trainable_weights)
    model.optimizer.apply(gradients, model.trainable_weights)
    for metric in model.metrics:
        if metric.name == "loss":
            metric.update_state(loss)
        else:
            metric.update_state(y, y_pred)
    return {m.name: m.result() for m in model.metrics}


def seeded(function, *args, **kwargs):
    keras.utils.set_random_seed(1)  # also of the order in which a stream is read
    return function(*args, **kwargs)


METHODS = {
    "rais": lambda: RAIS(seed=0, retreat_below=0.0),
    "presample": lambda: Presample(ratio=2, cost=1.0, seed=0),
}


LENGTHS = {"rais": 4, "presample": 2}  # in epochs


@pytest.fixture(scope="module")
def without_weights():
    """Returns a function that trains a model of ours by one of the methods."""

    def trained(method):
        model = made(sampling=METHODS[method]())
        return model, seeded(fit, model, LENGTHS[method], sample_weight=None)

    return functools.cache(trained)


@pytest.mark.parametrize("method", long_but(["rais"], METHODS))
def test_steps_without_weights_in_their_data_train_as_ours(
    method, without_weights, monkeypatch
):
    monkeypatch.setattr(stream_run, "_OBSERVED", 1)
    monkeypatch.setattr(stream_run, "_MARGIN", 0.0)
    (expected, shown), own = without_weights(method), made(first)
    options = {"metrics": ["accuracy"], "sampling": METHODS[method]()}
    own.compile(own.optimizer, own.loss, **options)
    found = seeded(fit, own, LENGTHS[method], sample_weight=None)
    np.testing.assert_allclose(small.flat(own), small.flat(expected), atol=1e-6)
    np.testing.assert_allclose(found["accuracy"], shown["accuracy"], rtol=1e-5)
    np.testing.assert_allclose(found["loss"], shown["loss"], rtol=0.2)
    if method == "presample":
        assert own.sampling_run.clock.pooled
    else:
        assert_same(own, expected)
        assert own.sampling_run.planner.last_plan.importance
        with pytest.raises(ValueError, match="too many values to unpack"):
            fit(own)  # with weights of the user's, which Keras would refuse too
        fit(own, 1, sample_weight=None)


def test_a_step_that_leaves_its_weights_unused_trains_as_ours(without_weights):
    def dropping(model, data):
        return first(model, data[:2])

    own = made(dropping)
    fit(own, sample_weight=None)
    assert_same(own, without_weights("rais")[0])


def test_weights_that_a_step_makes_itself_are_refused():
    def weighing(model, data):
        x, y = data
        gradients_of(model, x, y, tf.ones(tf.shape(y)))

    with pytest.raises(ValueError, match="`compute_loss` weights of its own"):
        fit(made(weighing), sample_weight=None)


def test_a_compute_loss_of_the_instance_that_drops_the_weights_is_refused():
    model = made(guide)
    of_keras = model.compute_loss

    def dropping(x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return of_keras(x, y, y_pred)

    model.compute_loss = dropping
    [found] = [f.text for f in told_of(model) if f.kind == "error"]
    assert "Received: the same loss for weights 1 and 2" in found


def told_of(model, x=small.X):
    return keras_osgd.check(model, x, small.Y, None, 4, print_fn=None)


# Steps that couple the examples of a batch


def mixup(model, data):
    x, y, w = unpacked(data)
    order = tf.random.shuffle(tf.range(tf.shape(x)[0]))
    return guide(model, (0.7 * x + 0.3 * tf.gather(x, order), y, w))


def compared(model, data):
    x, _, w = unpacked(data)
    with tf.GradientTape() as tape:
        z = model(x, training=True)
        places = tf.range(tf.shape(z)[0])
        scores = tf.matmul(z, z, transpose_b=True)
        loss = model.compute_loss(x, places, scores, w)
    gradients = tape.gradient(loss, model.trainable_weights)
    model.optimizer.apply(gradients, model.trainable_weights)
    return {}


def numbers(step):
    """Returns a model of whole numbers, and these."""
    inputs = keras.Input((2,), dtype="int32")
    outputs = keras.layers.Embedding(60, 5)(inputs)
    outputs = keras.layers.Dense(3, "softmax")(keras.layers.Flatten()(outputs))
    model = type("Own", (keras_osgd.Model,), {"train_step": step})(inputs, outputs)
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model, np.arange(120).reshape(60, 2) % 60


def normed(step):
    return made(step, layers=[keras.layers.BatchNormalization()]), small.X


@pytest.mark.parametrize(("step", "of"), [(mixup, normed), (compared, numbers)])
def test_a_step_that_couples_examples_is_refused(step, of):
    [found, *_] = told_of(*of(step))
    assert found.kind == "error"
    assert "must not depend on the other examples of its batch" in found.text
    assert "Received: Own.train_step" in found.text
    assert not [f for f in told_of(*of(guide)) if f.kind == "error"]
