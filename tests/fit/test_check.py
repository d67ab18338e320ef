"""`check` says before training what `fit` would say in the course of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.sampling import RAIS, Auto, Oracle, Presample

L = keras.layers
EXACT = RAIS(norm="exact")
X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
Y = np.random.default_rng(1).normal(size=(8, 1)).astype("float32")


def model(*layers, loss="mse", optimizer="sgd"):
    keras.utils.set_random_seed(0)
    made = keras.Sequential([keras.Input((4,)), *layers, L.Dense(1)])
    made.compile(optimizer, loss)
    return made


def findings(*args, kind=None, **options):
    options = {"batch_size": 4, "print_fn": None, **options}
    found = keras_osgd.check(*args, **options)
    return [text for own, text in found if kind in (None, own)]


class Scaled(L.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones")

    def call(self, x):
        return x * self.scale


class ScaledAndDropped(Scaled):
    def __init__(self, **options):
        super().__init__(**options)
        self.dropout = L.Dropout(0.5)

    def call(self, x):
        return self.dropout(x * self.scale)


def test_a_model_without_obstacles_has_no_findings():
    assert findings(model(L.Dense(3)), X, Y) == []
    assert findings(model(L.Dense(3)), X, Y, sampling=EXACT) == []


def test_obstacles_of_model_and_losses_are_found_at_once():
    class Own(keras.Sequential):
        def train_step(self, data):
            return {"loss": 0.0}

    made = Own([keras.Input((4,)), L.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(
        True, reduction="mean_with_sample_weight"
    )
    made.compile(keras.optimizers.SGD(clipnorm=1.0), loss)
    texts = findings(made, X, np.full(8, 5), kind="error")
    wanted = ("mean_with_sample_weight", "y has label 5 at index 0")
    for part in wanted:
        assert any(part in text for text in texts), part
    made.compile(keras.optimizers.SGD(clipnorm=1.0), "mse")
    assert "Own.train_step" in findings(made, X, Y, kind="error")[0]
    assert "Gradient clipping" in findings(made, X, Y, kind="warning")[0]


def test_data_that_fit_refuses_are_found_with_what_else_can_be_said():
    [text] = findings(model(), X, Y[:5], kind="error")
    assert "x has 8 examples but y has 5" in text
    [text] = findings(model(loss=lambda y, p: tf.reduce_mean(y - p)), X, Y)
    assert "must return one value per example" in text


def test_without_y_the_rows_are_told_too_and_that_the_loss_was_not_tried():
    found = keras_osgd.check(model(loss="dice"), X, sampling=Auto(), print_fn=None)
    assert [finding.kind for finding in found] == ["reason", "reason", "note"]
    wanted = "`y` must be given", "8 examples in 1 batches", "loss were not tried"
    for finding, part in zip(found, wanted, strict=True):
        assert part in finding.text
    both = [
        f.text
        for f in keras_osgd.check(
            model(loss="dice"), X, Y, sampling=Auto(), print_fn=None
        )
    ]
    assert any("dice got shape" in text for text in both)


def test_all_layers_without_exact_norms_are_listed_as_error_where_those_are_asked_for():
    made = model(ScaledAndDropped(name="first"), ScaledAndDropped(name="second"))
    [text] = findings(made, X, Y, sampling=EXACT, kind="error")
    assert "first (ScaledAndDropped)" in text and "second (ScaledAndDropped)" in text
    [text] = findings(made, X, Y, kind="note")
    assert text.startswith("With exact gradient norms, which are not asked for: ")
    assert "first (ScaledAndDropped)" in text and "second (ScaledAndDropped)" in text


def test_layers_worked_out_one_by_one_and_held_statistics_are_named():
    made = model(Scaled(name="mine"), L.BatchNormalization(name="norm"), L.Dense(2))
    texts = findings(made, X, Y, sampling=EXACT, kind="warning")
    assert any("['mine']" in text and "one example at a time" in text for text in texts)
    assert any("['norm']" in text and "second pass" in text for text in texts)
    [text] = findings(made, X, Y, kind="warning")
    assert "moving statistics follow the drawn examples" in text


@pytest.mark.parametrize("method", [RAIS, Presample])
def test_the_rate_of_an_adaptive_optimizer_is_noted_with_what_to_do(method):
    [text] = findings(model(optimizer="adam"), X, Y, sampling=method(), kind="note")
    kept = f"sampling=keras_osgd.sampling.{method.__name__}(adapt_learning_rate=False)"
    assert text.startswith("Adam: the learning rate") and f"{kept}." in text
    for adapts, optimizer in ((False, "adam"), (True, "sgd")):
        made = model(optimizer=optimizer)
        sampling = method(adapt_learning_rate=adapts)
        assert findings(made, X, Y, sampling=sampling, kind="note") == []


def test_the_method_is_the_model_s_own_unless_given():
    made = keras_osgd.Sequential([keras.Input((4,)), ScaledAndDropped(), L.Dense(1)])
    made.compile("sgd", "mse", sampling=EXACT)
    assert len(findings(made, X, Y, kind="error")) == 1
    assert findings(made, X, Y, sampling="rais", kind="error") == []
    [text] = findings(made, X, Y, sampling="uniform")
    assert "Keras' own training" in text


def test_a_refresh_that_fit_refuses_is_an_error():
    made = model()
    made.compile("sgd", "mse", steps_per_execution=2)
    [text] = findings(made, X, Y, sampling=Oracle(refresh=3), kind="error")
    assert text.startswith("`refresh`, the steps") and "Set `Oracle(refresh=4)`" in text
    assert findings(made, X, Y, sampling=Oracle(refresh=4), kind="error") == []


def test_weights_without_bound_are_warned_of_where_fit_warns():
    for method in (RAIS(floor=0.0), Oracle(refresh=2, floor=0.0)):
        texts = findings(model(), X, Y, sampling=method, kind="warning")
        [text] = [text for text in texts if text.startswith("`floor` is 0")]
        assert "largest" not in text
    for method in (RAIS(), Oracle(floor=0.0), Oracle(refresh=1), Oracle(floor=0.1)):
        assert findings(model(), X, Y, sampling=method) == []


def test_an_oracle_s_stale_scores_are_warned_of():
    [text] = findings(model(), X, Y, sampling=Oracle(refresh=2), kind="warning")
    assert "8 examples are scored every 2 steps" in text


def test_class_weights_are_checked_as_in_fit():
    made = model(loss=keras.losses.BinaryCrossentropy(True))
    y = np.arange(8) % 2
    assert findings(made, X, y, class_weight={0: 1.0, 1: 2.0}) == []
    [text] = findings(made, X, y, class_weight={0: 1.0, 1: -2.0}, kind="error")
    with pytest.raises(ValueError) as raised:
        keras_osgd.accelerate(made).fit(X, y, class_weight={0: 1.0, 1: -2.0}, verbose=0)
    assert text == str(raised.value)


class NotForThree(Scaled):
    def call(self, x):
        if tf.executing_eagerly() and len(x) == 3:
            text = "\n{{node a}} No such kernel.\nat b"
            raise tf.errors.InternalError(None, None, text)
        return x * self.scale


def test_an_error_of_tensorflow_in_what_is_only_noted_is_a_note_of_one_line():
    [text] = findings(model(NotForThree()), X, Y)
    assert text.startswith("With exact gradient norms, which are not asked for: ")
    assert "Received: InternalError: No such kernel. Mend" in text and "\n" not in text
    [same] = findings(model(NotForThree()), X, Y, sampling=EXACT, kind="error")
    assert text.endswith(same)


def test_a_model_that_is_not_compiled_is_an_error():
    made = keras.Sequential([keras.Input((4,)), L.Dense(1)])
    [text] = findings(made, X, Y, kind="error")
    assert text.endswith("Call `compile`.")


@pytest.mark.parametrize("first", [L.BatchNormalization, L.Flatten])
def test_nothing_is_changed_and_fit_warns_all_the_same(first):
    layers = [first(), L.Dropout(0.5), Scaled(), L.Dense(1)]
    made = keras_osgd.Sequential([keras.Input((4,)), *layers])
    optimizer = keras.optimizers.SGD(clipnorm=1.0)
    made.compile(optimizer, "mse", sampling=RAIS(norm="exact", seed=0))
    before = [np.array(v) for v in made.variables]
    findings(made, X, Y)
    after = [np.array(v) for v in made.variables]
    assert len(after) == len(before)
    for a, b in zip(after, before, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.warns(UserWarning, match="Gradient clipping"):
        made.fit(X, Y, batch_size=4, verbose=0)


class Counted(L.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.calls = keras.metrics.Sum(name="calls")

    def call(self, x, training=False):
        if training:
            self.calls.update_state(1.0)
        return x


def test_no_weight_that_a_layer_assigns_itself_is_changed_nor_a_metric_of_a_layer():
    spectral = L.SpectralNormalization(L.Dense(3))
    made = model(spectral, Counted(), L.Dense(2))
    variables = [*made.variables, *made.metrics_variables]
    before = [np.array(v) for v in variables]
    findings(made, X, Y, sampling=EXACT)
    assert spectral.layer.kernel.trainable and "calls" in [m.name for m in made.metrics]
    for a, v in zip(before, variables, strict=True):
        np.testing.assert_array_equal(np.array(v), a, err_msg=v.path)


def test_findings_are_printed_errors_first():
    printed = []
    made = model(ScaledAndDropped(), optimizer=keras.optimizers.SGD(clipnorm=1.0))
    found = keras_osgd.check(
        made, X, Y, batch_size=16, sampling=EXACT, print_fn=printed.append
    )
    assert [line.split(":")[0] for line in printed] == ["error", "warning", "note"]
    assert printed == [f"{kind}: {text}" for kind, text in found]
