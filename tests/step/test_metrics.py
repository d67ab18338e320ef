"""Metrics shown in training estimate those of `evaluate`, for every metric of Keras."""

import contextlib
import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.data import training_data
from keras_osgd.draws.pipeline import Sample
from keras_osgd.sampling import RAIS, Presample
from keras_osgd.step import metrics, sampled_step
from keras_osgd.step.metrics import Importance
from tests.helpers import keras_metrics, small
from tests.helpers.keras_metrics import (
    AS_IN_KERAS,
    BATCH_SIZE,
    CLASSES,
    FAMILIES,
    ROWS,
    UNWEIGHTED,
    WEIGHTED,
    N,
    how_shown,
    model_for,
)
from tests.helpers.replayed import Draws
from tests.helpers.selection import long_but
from tests.helpers.steps import step_state

STEPS, EPOCHS = 30, 20
COUNTS = ("true_pos", "true_neg", "false_pos", "false_neg", "close")


def rows_of(family):
    rows = {name: row for name, row in ROWS.items() if row.family == family}
    return {name: row for name, row in rows.items() if row.how != AS_IN_KERAS}


def updates_of(model, rows, importance):
    """Returns the state that an update with some rows gives each metric."""
    x, y, *_ = FAMILIES[model.family]
    model.reset_metrics()
    metrics.update(model, importance, y[rows], model(x[rows]))
    return [[np.array(v) for v in m.variables] for m in holder(model).metrics]


def holder(model):
    return next(m for m in model.metrics if m.name == "compile_metrics")


def tried(family, given, **options):
    model = model_for(family, given, **options)
    vars(model)["family"] = family
    x, y, *_ = FAMILIES[family]
    data = training_data.prepare(x, y, None, None, BATCH_SIZE, None)
    return model, metrics.try_out(model, data)


def test_every_metric_class_of_keras_has_its_place_in_the_table():
    assert set(CLASSES) == keras_metrics.classes_of_keras()


@pytest.mark.parametrize("name", ["MeanIoU", "Mean", "Sum", "Metric", "function, []"])
def test_one_metric_is_shown_as_the_table_says(name):
    row = ROWS[name]
    assert how_shown(row.make(), row.family) == row.how
    assert bool(row.reason) == (row.how != WEIGHTED)


@pytest.mark.parametrize(
    "family", long_but(["binary", "numbers", "one-hot masks"], FAMILIES)
)
def test_sums_expected_over_all_draws_are_those_of_the_data(family):
    made = [row.make() for row in rows_of(family).values() if row.how == WEIGHTED]
    model, shown = tried(family, made)
    p = np.array([0.1, 0.2, 0.3, 0.4])
    one = Importance(tf.ones([4]), None, [metrics.Shown()] * len(shown), tf.ones([]))
    assert all(how.weighted for how in shown)
    expected = updates_of(model, np.arange(4), one)
    sums = [[0.0 * v for v in state] for state in expected]
    for row, probability in enumerate(p):
        weight = 1 / (4 * probability)
        drawn = Importance(tf.constant([weight], tf.float32), None, shown, tf.ones([]))
        states = updates_of(model, [row], drawn)
        assert_rounded(states, updates_of(model, [row], one), weight, shown)
        for total, state in zip(sums, states, strict=True):
            for place, value in enumerate(state):
                total[place] = total[place] + 4 * probability * value
    assert any(np.any(v) for state in expected for v in state)
    for total, state, how in zip(sums, expected, shown, strict=True):
        for found, right in zip(total, state, strict=True):
            if not how.whole:  # at random
                np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)


def assert_rounded(states, of_one, weight, shown):
    """Asserts that whole numbers, and they alone, count each example by a rounding."""
    for state, plain, how in zip(states, of_one, shown, strict=True):
        whole = [np.issubdtype(value.dtype, np.integer) for value in state]
        assert how.whole == any(whole)
        for value, one in zip(state, plain, strict=True):
            if how.whole:
                assert (np.floor(weight) * one <= value).all()
                assert (value <= np.ceil(weight) * one).all()


@pytest.mark.parametrize(
    ("given", "weighted"),
    [
        (keras_metrics.Several(), True),
        (keras_metrics.Several(ignores=True), False),
        (keras_metrics.Ignoring(), False),
    ],
    ids=["weighted", "ignored", "ignored, nothing counted"],
)
def test_examples_that_are_all_alike_tell_whether_weights_are_ignored(given, weighted):
    model = model_for("numbers", [given])
    x, y = np.ones((20, 4), "float32"), np.full((20, 3), 9.0, "float32")
    with pytest.warns() if not weighted else contextlib.nullcontext():
        found = metrics.try_out(model, training_data.prepare(x, y, None, None, 4, None))
    assert [how.weighted for how in found] == [weighted]


def test_whole_weights_have_the_importance_weights_as_their_mean():
    given = [keras.metrics.MeanIoU(2, sparse_y_pred=False)]
    model, shown = tried("masks", given)
    count, rng = 40_000, np.random.default_rng(0)
    weights = rng.uniform(0, 3, count).astype("float32")
    y, predicted = rng.integers(0, 2, (2, count))
    importance = Importance(tf.constant(weights), None, shown, tf.ones([]))
    expected = np.zeros((2, 2))
    np.add.at(expected, (y, predicted), weights)
    found = []
    for _ in range(2):  # the same again
        model.reset_metrics()
        metrics.update(model, importance, tf.constant(y), tf.one_hot(predicted, 2))
        found.append(np.array(given[0].total_cm))
    error = np.sqrt(count / 4 * (weights % 1 * (1 - weights % 1)).mean())
    assert error < 0.01 * expected.min()
    assert np.abs(found[0] - expected).max() < 4 * error
    np.testing.assert_array_equal(*found)


def test_totals_over_an_epoch_are_those_of_the_data_whatever_the_gain_ratio():
    """An epoch of 60 has ceil(60/8) = 8 effective iterations, of 8 visits each."""
    state = step_state(60, [])
    state.gain.averages.assign([2.0, 1.0, 1.0, 0.5])
    gain = float(state.gain.current(8.0))
    assert gain == pytest.approx(1.25)  # by equation (4): 1 + (2 - 1) / (8 * 0.5)
    p = tf.fill([8], 1 / 60)
    drawn, uniform = Sample.of(p, p), Sample.of(p, 2 * p)
    adapting = dataclasses.replace(state, adapt=True)
    stream = dataclasses.replace(adapting, n=1)  # of unknown length
    for at, sample, expected in (
        (state, drawn, 60 / 64),
        (adapting, uniform, 60 / 64),
        (adapting, drawn, gain * 60 / 64),
        (stream, drawn, gain),
    ):
        visits = sampled_step.importance_of(at, sample).visits
        assert float(visits) == pytest.approx(expected)


def flat(name, value):
    return value if isinstance(value, dict) else {name: value}


def trained(model, x, y, **options):
    """Trains long epochs; returns logs after the first, which is uniform, and draws."""
    draws = Draws()
    options = {"batch_size": BATCH_SIZE, "verbose": 0, "callbacks": [draws], **options}
    options |= {"steps_per_epoch": STEPS, "epochs": EPOCHS + 1}
    told = small.warned(model.fit, x, y, **options)
    assert model.sampling_run.planner.last_plan.importance
    shown = {name: values[1:] for name, values in model.history.history.items()}
    return shown, draws, [text for text in told if "drawn examples" in text]


def right_values(model, x, y, sample_weight=None):
    """Returns what `evaluate` does, which takes longer."""
    model.reset_metrics()
    model.compute_metrics(x, y, model(x), sample_weight)
    found = {}
    for name, value in model.get_metrics_result().items():
        found |= {k: np.array(v) for k, v in flat(name, value).items()}
    return found


def assert_near(found, right, name):
    """Compares the mean over epochs with the right value, by its standard error."""
    if name.startswith(COUNTS):  # an epoch has several times the data
        right = right * STEPS / np.ceil(N / BATCH_SIZE)
    found = np.array(found)
    error = np.std(found, axis=0, ddof=1) / np.sqrt(EPOCHS)
    off = np.abs(np.mean(found, axis=0) - right)
    assert np.all(off <= 5 * error + 1e-3 * np.abs(right)), (name, off, error)
    assert np.all(error < 0.1 * np.abs(right) + 0.02), (name, error, right)


@pytest.mark.long
def test_what_training_shows_estimates_the_data_or_one_warning_says_it_does_not():
    # The other families have none of whose weights the sums above do not tell.
    assert {row.family for row in ROWS.values() if row.how == UNWEIGHTED} == {"numbers"}
    rows, (x, y, *_) = rows_of("numbers"), FAMILIES["numbers"]
    model = model_for("numbers", [row.make() for row in rows.values()])
    shown, draws, told = trained(model, x, y)
    right = right_values(model, x, y)
    results, unweighted = holder(model).result(), []
    for row, metric, name in zip(
        rows.values(), holder(model).metrics, results, strict=True
    ):
        if row.how == WEIGHTED:
            for each in flat(name, results[name]):
                assert_near(shown[each], right[each], each)
            continue
        unweighted.append(repr(metric.name))
        for batch in last_epoch(model, draws):
            metric.update_state(y[batch], model(x[batch]))
        for each, value in flat(name, metric.result()).items():
            np.testing.assert_allclose(shown[each][-1], value, rtol=1e-4, err_msg=each)
    [message] = told
    assert message.startswith(f"During training {', '.join(unweighted)} will be of")


def last_epoch(model, draws):
    """Returns the rows of its steps, one array a step."""
    model.reset_metrics()
    return draws.index[int(model.sampling.history["steps"][-2]) :]


def test_weights_of_the_user_and_several_outputs():
    """As in Keras, an integer metric cuts the user's own weights to whole numbers."""
    (x, y, *_), (pixels, masks, *_) = FAMILIES["numbers"], FAMILIES["masks"]
    inputs = {"x": keras.Input((4,), name="x"), "p": keras.Input((3, 3, 2), name="p")}
    keras.utils.set_random_seed(0)
    outputs = {
        "a": keras.layers.Dense(3, "softplus", name="a")(inputs["x"]),
        "b": keras.layers.Dense(2, "softmax", name="b")(inputs["p"]),
    }
    model = keras_osgd.Model(inputs, outputs)

    def given(**options):
        iou = keras.metrics.MeanIoU(2, name="iou", sparse_y_pred=False)
        errors = keras_metrics.of_examples, keras.metrics.R2Score(name="r2")
        return {"a": [*errors, *options.get("a", [])], "b": [iou, "accuracy"]}

    losses = {"a": "mse", "b": "sparse_categorical_crossentropy"}
    model.compile(
        keras.optimizers.SGD(0.0),
        losses,
        metrics=given(a=[keras_metrics.scalar]),
        weighted_metrics=given(),
        sampling=RAIS(seed=0, floor=0.2, retreat_below=0.0),
    )
    data = {"x": x, "p": pixels}, {"a": y, "b": masks}
    rng = np.random.default_rng(1)
    weights = {"a": rng.uniform(0.2, 2, N), "b": rng.uniform(0.2, 3, (N, 3, 3))}
    shown, _, told = trained(model, *data, sample_weight=weights)
    right = right_values(model, *data, weights)
    assert len(told) == 1 and told[0].startswith("During training 'a_scalar' will be")
    names = set(right) - {"loss", "a_loss", "b_loss", "a_scalar"}
    assert len(names) == 8
    for name in names:
        assert_near(shown[name], right[name], name)


def test_a_metric_of_a_model_sure_of_what_is_wrong_is_weighted():
    """Keras' softmax leaves its logits on an output, and none on repeated examples."""
    layers = [keras.Input((4,)), keras.layers.Dense(3, "softmax")]
    model = keras_osgd.Sequential(layers)
    of_wrong = keras.metrics.SparseCategoricalCrossentropy()
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=[of_wrong])
    x = 1e4 * small.X
    model.compute_metrics(x, small.Y, model(x))
    data = training_data.prepare(x, small.Y, None, None, 4, None)
    assert [how.weighted for how in metrics.try_out(model, data)] == [True]


def test_trying_metrics_out_leaves_them_as_they_were():
    x, y, *_ = FAMILIES["one-hot"]
    given = [keras.metrics.F1Score(), keras.metrics.OneHotMeanIoU(3), "mse"]
    model = model_for("one-hot", given)
    model.evaluate(x, y, verbose=0)
    before = [np.array(v) for v in model.metrics_variables]
    assert sum(map(np.any, before)) > 4
    assert small.warned(keras_osgd.check, model, x, y, print_fn=None) == []
    for value, variable in zip(before, model.metrics_variables, strict=True):
        np.testing.assert_array_equal(value, np.array(variable))


def test_a_metric_that_keras_cannot_update_fails_as_in_keras():
    x, y, *_ = FAMILIES["numbers"]
    model = model_for("numbers", [keras.metrics.Mean(name="mean")])
    before = small.flat(model)
    with pytest.raises(TypeError, match="sample_weight"):
        small.warned(model.fit, x, y, batch_size=BATCH_SIZE, verbose=0)
    np.testing.assert_array_equal(small.flat(model), before)


def test_metrics_of_a_stream_are_shown_by_the_same_rules():
    x, y, *_ = FAMILIES["numbers"]
    given = [keras_metrics.of_examples, keras_metrics.scalar]
    model = model_for("numbers", given, sampling=Presample())
    told = small.warned(model.fit, x, y, batch_size=BATCH_SIZE, epochs=2, verbose=0)
    assert [text[:32] for text in told] == ["During training 'scalar' will be"]
    right = right_values(model, x, y)
    shown = model.history.history["of_examples"][-1]  # of one pass, without pools
    assert shown == pytest.approx(right["of_examples"], rel=0.3)
