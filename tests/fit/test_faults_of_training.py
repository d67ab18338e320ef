"""Models, optimizers and ways of running that are not the plain one."""

import keras
import numpy as np
import pytest

import keras_osgd
from keras_osgd.base import warn
from keras_osgd.callbacks import SamplingMonitor
from keras_osgd.fit import checks
from keras_osgd.sampling import RAIS
from tests.helpers import small

EPOCHS = 5  # well into the second block


class Unbuilt(keras_osgd.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, inputs):
        return self.dense(inputs)


@pytest.fixture
def policy():
    """Sets a dtype policy; the one before is put back."""
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


@pytest.fixture
def mixed_float16(policy):
    policy("mixed_float16")


# Row 25


@pytest.mark.parametrize(
    ("make", "backup"),
    [(Unbuilt, True), (lambda: keras_osgd.Sequential([keras.layers.Dense(3)]), False)],
)
def test_a_model_that_is_not_built_is_built_by_fit(make, backup, tmp_path):
    model = make()
    model.compile("sgd", small.crossentropy())
    assert not model.built
    callbacks = [keras.callbacks.BackupAndRestore(tmp_path)] if backup else None
    small.fit(model, callbacks=callbacks)
    assert [w.shape for w in model.get_weights()] == [(4, 3), (3,)]


# Row 26


def test_adam_trains_by_the_square_root_rule_and_a_line_says_so_once_a_process(
    capsys, monkeypatch
):
    monkeypatch.setattr(warn, "_SAID", set())
    adam = keras.optimizers.Adam(0.01)
    model = small.model(optimizer=adam)
    line = "Adam: the learning rate is multiplied by the root of the gain ratio. "
    assert small.warned(small.fit, model, epochs=EPOCHS) == []
    assert line not in capsys.readouterr().out  # `verbose=0`
    other = small.model(optimizer="adam")
    assert small.warned(small.fit, other, epochs=1, verbose=2) == []
    assert capsys.readouterr().out.count(line) == 1
    assert small.warned(small.fit, model, epochs=1, verbose=2) == []
    assert line not in capsys.readouterr().out
    assert model.sampling_state.lead.numpy() != 0.0  # the gain was counted
    assert (float(adam.learning_rate), adam.beta_1) == (np.float32(0.01), 0.9)


def test_an_optimizer_without_a_rule_keeps_its_rate_and_says_so():
    model = small.model(optimizer="lion", run_eagerly=True)
    messages = small.warned(small.fit, model, batch_size=20)
    assert len(messages) == 1 and "Lion: no rule is known" in messages[0]
    assert model.sampling_state.lead.numpy() == 0.0
    assert not model.sampling_run.step_state.adapt


def test_a_rate_that_is_not_to_be_adapted_needs_no_rule():
    for optimizer in ("adam", "lion"):
        method = RAIS(adapt_learning_rate=False)
        model = small.model(optimizer=optimizer, sampling=method)
        assert small.warned(checks.rate_can_follow, model, method) == []
        assert not checks.rate_can_follow(model, method)


def test_a_model_without_trainable_weights_is_refused():
    model = small.model()
    model.trainable = False
    with pytest.raises(ValueError, match="must have trainable weights.*none. Set `tra"):
        small.fit(model)


# Row 27


def test_gradient_clipping_is_warned_of_once():
    model = small.model(optimizer=keras.optimizers.SGD(0.1, clipnorm=1.5))
    [message] = small.warned(small.fit, model)
    assert "Gradient clipping ({'clipnorm': 1.5})" in message
    assert "biases the gradient" in message
    assert small.warned(small.fit, model) == []
    for name in ("clipvalue", "global_clipnorm"):
        model = small.model(optimizer=keras.optimizers.SGD(0.1, **{name: 1.5}))
        [message] = small.warned(checks.rate_can_follow, model, model.sampling)
        assert f"Gradient clipping ({{'{name}': 1.5}})" in message


# Row 28


def test_a_rate_set_by_a_callback_is_read_back_and_logged_beside_the_gain():
    model = small.model(sampling=RAIS(seed=0, retreat_below=0.0))
    halved = keras.callbacks.LearningRateScheduler(lambda epoch: 0.9 ** (epoch + 20))
    callbacks = [halved, SamplingMonitor()]
    logs = small.fit(model, epochs=2 * EPOCHS, callbacks=callbacks).history
    expected = np.float32(0.9 ** (np.arange(2 * EPOCHS) + 20))
    np.testing.assert_allclose(logs["learning_rate"], expected, rtol=1e-6)
    assert float(model.optimizer.learning_rate) == pytest.approx(expected[-1])
    assert logs["gain_ratio"][-1] != 1.0


def test_a_callback_that_sets_the_rate_it_has_changes_nothing():
    models = [small.model(optimizer=keras.optimizers.SGD(0.125)) for _ in range(2)]
    same = keras.callbacks.LearningRateScheduler(lambda epoch: 0.125)
    small.fit(models[0], epochs=EPOCHS, callbacks=[same])
    small.fit(models[1], epochs=EPOCHS)
    np.testing.assert_array_equal(*map(small.flat, models))


def test_reducing_the_rate_on_a_plateau_starts_from_the_rate_of_the_user():
    model = small.model(optimizer=keras.optimizers.SGD(0.5))
    plateau = keras.callbacks.ReduceLROnPlateau(
        "loss", factor=0.5, patience=1, min_delta=1e9
    )
    callbacks = [plateau, SamplingMonitor()]
    logs = small.fit(model, epochs=EPOCHS, callbacks=callbacks).history
    # Halved after every epoch but the first, which is the best so far.
    expected = 0.5 ** np.maximum(np.arange(EPOCHS), 1)
    np.testing.assert_array_equal(logs["learning_rate"], expected)
    assert {"gain_ratio", "effective_epochs", "largest_weight"} <= set(logs)


def test_a_schedule_stays_the_one_of_the_user():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 20, 0.5)
    model = small.model(optimizer=keras.optimizers.SGD(schedule))
    logs = small.fit(model, epochs=EPOCHS, callbacks=[SamplingMonitor()]).history
    optimizer = model.optimizer
    assert optimizer.iterations == model.sampling_run.clock.step  # true steps
    rate = float(schedule(int(optimizer.iterations)))
    np.testing.assert_allclose(float(optimizer.learning_rate), rate, rtol=1e-6)
    assert len(logs["gain_ratio"]) == EPOCHS
    assert optimizer.get_config()["learning_rate"]["class_name"] == "ExponentialDecay"


# Row 29


def trained(name, norm):
    """Returns a model trained under a dtype policy, to look at."""
    keras.config.set_dtype_policy(name)
    model = small.model(sampling=RAIS(seed=0, norm=norm), run_eagerly=True)
    small.fit(model, batch_size=20)  # in which each example is drawn
    return model


@pytest.mark.parametrize("norm", ["last_layer", "exact"])
@pytest.mark.usefixtures("policy")  # puts back the one before
def test_half_precision_observes_finite_norms_in_float32(norm):
    half, full = trained("mixed_float16", norm), trained("float32", norm)
    assert half.layers[0].compute_dtype == "float16"
    norms = [m.sampling_state.table.last_norms() for m in (half, full)]
    assert norms[0].dtype == np.float32
    assert np.isfinite(norms[0]).all() and (norms[1] > 0).all()
    np.testing.assert_allclose(norms[0], norms[1], rtol=0.05)


def test_steps_that_float16_skips_do_not_advance_the_clock(mixed_float16):
    scaled = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1), initial_scale=2.0**40
    )
    model = small.model(optimizer=scaled)
    logs = small.fit(model, epochs=EPOCHS, callbacks=[SamplingMonitor()]).history
    applied, steps = int(scaled.iterations), model.sampling_run.clock.step
    assert steps > applied + 10  # the first ones overflowed
    effective = applied + float(model.sampling_state.lead)
    assert EPOCHS * 15 <= effective < EPOCHS * 15 + 8  # one step's worth, at most
    np.testing.assert_allclose(logs["effective_epochs"][-1], effective / 15, rtol=1e-6)


def test_accumulated_steps_keep_their_rate_and_count_unless_float16_skips_them(
    mixed_float16,
):
    accumulating = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    scaled = keras.optimizers.LossScaleOptimizer(accumulating, 2.0**40)
    model = small.model(optimizer=scaled, sampling=RAIS(seed=0, retreat_below=0.0))
    messages = small.warned(small.fit, model, epochs=EPOCHS)
    assert len(messages) == 1 and "SGD accumulates gradients" in messages[0]
    clock = model.sampling_run.clock
    assert clock.effective_iterations() == EPOCHS * 15
    assert int(scaled.iterations) == EPOCHS * 15 // 2  # updates, of two batches each
    assert clock.step - EPOCHS * 15 > 10  # the first ones overflowed
    assert model.sampling_run.planner.last_plan.importance
    assert model.sampling_state.lead.numpy() == 0.0
