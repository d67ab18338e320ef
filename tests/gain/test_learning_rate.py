import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_osgd.gain import learning_rate
from tests.helpers import oracles_norms

_RULES = {
    "SGD": "linear",
    "Adam": "square_root",
    "AdamW": "square_root",
    "Adamax": "square_root",
    "Nadam": "square_root",
    "RMSprop": "square_root",
    "Adadelta": "none",
    "Adafactor": "none",
    "Adagrad": "none",
    "Ftrl": "none",
    "Lamb": "none",
    "Lion": "none",
    "Muon": "none",
    "ScheduleFreeAdamW": "none",
}
_WRAPPERS = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}
_ADAPTIVE = ["Adam", "AdamW", "Adamax", "Nadam", "RMSprop"]
_UNRULED = sorted(set(_RULES) - {"SGD", "Muon", *_ADAPTIVE})  # Muon: matrices only
_START = np.array([1.0, -2.0, 0.5], np.float32)


def _gradients(steps, seed=0):
    return np.random.default_rng(seed).normal(size=(steps, 3)).astype(np.float32)


def _run(optimizer, gradients, gains=None, lead=0.0):
    """Returns the weights after each step; `gains` of None applies plainly."""
    variable = keras.Variable(_START)
    optimizer.build([variable])
    path, lead = [], np.float64(lead)
    for step, gradient in enumerate(gradients):
        if gains is None:
            optimizer.apply([tf.constant(gradient)])
        else:
            gain = tf.constant(gains[step], tf.float32)
            with learning_rate.adapted(optimizer, gain, tf.constant(lead)):
                optimizer.apply([tf.constant(gradient)])
            lead += gains[step] - 1
        path.append(variable.numpy().copy())
    return np.array(path)


def test_every_optimizer_of_keras_has_a_rule():
    for name, optimizer in inspect.getmembers(keras.optimizers, inspect.isclass):
        if issubclass(optimizer, keras.optimizers.Optimizer) and name not in _WRAPPERS:
            expected = _RULES.get(name, "none")
            assert learning_rate.rule_for(optimizer()) == expected, name


def test_subclasses_and_loss_scaling_keep_the_rule_of_what_they_extend():
    class Mine(keras.optimizers.Adam):
        pass

    scaled = keras.optimizers.LossScaleOptimizer(Mine())
    assert learning_rate.rule_for(scaled) == "square_root"
    assert learning_rate.inner_optimizer(scaled) is scaled.inner_optimizer
    plain = keras.optimizers.SGD()
    assert learning_rate.inner_optimizer(plain) is plain


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"weight_decay": 0.01, "clipnorm": 0.5},
    ],
)
def test_sgd_under_gain_r_is_sgd_at_rate_times_r_bit_for_bit(options):
    rate, gains = np.float32(0.05), np.array([1.0, 3.7, 0.6, 8.0, 2.2], np.float32)
    gradients = _gradients(len(gains))
    adapted = _run(keras.optimizers.SGD(float(rate), **options), gradients, gains)
    plain = keras.optimizers.SGD(float(rate), **options)
    variable = keras.Variable(_START)
    plain.build([variable])
    for gradient, gain, expected in zip(gradients, gains, adapted, strict=True):
        plain.learning_rate = rate * gain
        plain.apply([tf.constant(gradient)])
        np.testing.assert_array_equal(variable.numpy(), expected)


@pytest.mark.parametrize("name", ["SGD", *_UNRULED])
def test_a_gain_of_one_changes_no_bit(name):
    make = getattr(keras.optimizers, name)
    np.testing.assert_array_equal(
        _run(make(0.05), _gradients(5), np.ones(5)), _run(make(0.05), _gradients(5))
    )


@pytest.mark.parametrize("name", _ADAPTIVE)
def test_a_gain_of_one_changes_an_adaptive_optimizer_by_rounding_alone(name):
    make = getattr(keras.optimizers, name)
    np.testing.assert_allclose(
        _run(make(0.05), _gradients(10), np.ones(10)),
        _run(make(0.05), _gradients(10)),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", _UNRULED)
def test_an_optimizer_without_a_rule_keeps_its_rate(name):
    make = getattr(keras.optimizers, name)
    gradients = _gradients(5)
    np.testing.assert_array_equal(
        _run(make(0.05), gradients, np.full(5, 4.0)), _run(make(0.05), gradients)
    )


@pytest.mark.parametrize("gain", [0.5, 1.0, 2.5, 8.0])
def test_adam_under_a_gain_is_adam_at_the_square_root_rule(gain):
    gradients = _gradients(40)
    oracle = oracles_norms.NumpyAdam(_START, 0.01, 0.9, 0.999)
    expected = [oracle.step(g, gain).copy() for g in gradients.astype(np.float64)]
    adapted = _run(keras.optimizers.Adam(0.01), gradients, np.full(40, gain))
    np.testing.assert_allclose(adapted, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["Adam", "Adamax", "Nadam", "RMSprop"])
def test_a_lasting_gain_is_the_same_optimizer_made_with_the_rates_of_the_rule(name):
    gain, gradients = 2.5, _gradients(30)
    decays = {"rho": 0.9} if name == "RMSprop" else {"beta_1": 0.9, "beta_2": 0.99}
    make = getattr(keras.optimizers, name)
    ruled = {key: 1 - gain * (1 - value) for key, value in decays.items()}
    np.testing.assert_allclose(
        _run(make(0.01, **decays), gradients, np.full(30, gain)),
        _run(make(0.01 * np.sqrt(gain), **ruled), gradients),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("first, then", [(1.0, 8.0), (5.0, 1.0)])
@pytest.mark.parametrize("name, switch", [("Adam", 80), ("Nadam", 3)])
def test_a_gain_that_jumps_leaves_the_steps_unbiased(name, switch, first, then):
    gains = np.where(np.arange(switch + 40) < switch, first, then)
    gradients = _gradients(len(gains))
    oracle = getattr(oracles_norms, f"Numpy{name}")(_START, 0.01, 0.9, 0.999)
    expected = [oracle.step(g, r).copy() for g, r in zip(gradients, gains, strict=True)]
    adapted = _run(getattr(keras.optimizers, name)(0.01), gradients, gains)
    steps = np.linalg.norm(np.diff(expected, axis=0), axis=1)
    off = np.linalg.norm(np.diff(adapted - expected, axis=0), axis=1)
    # Keras' own correction makes Adam's step after the jump 1.9 times as large.
    assert (off / steps).max() < 0.02


@pytest.mark.parametrize("name", ["Adam", "Adamax"])
def test_a_steady_gradient_moves_every_weight_by_rate_times_root_r_a_step(name):
    gains = np.array([1.0] * 40 + [4.0] * 10 + [2.0] * 10)
    path = _run(getattr(keras.optimizers, name)(0.01), np.ones((60, 3)), gains)
    np.testing.assert_allclose(
        -np.diff(path, axis=0), 0.01 * np.sqrt(gains[1:, None] * [[1, 1, 1]]), rtol=0.02
    )


def test_the_bias_correction_leaves_weight_decay_alone():
    # Without a gradient only the decoupled decay is left: rate sqrt(r) decay, exactly.
    optimizer = keras.optimizers.AdamW(0.5, weight_decay=0.1)
    zeros = np.zeros((21, 3), np.float32)
    gains = np.where(np.arange(21) < 20, 1.0, 4.0)
    path = _run(optimizer, zeros, gains)
    np.testing.assert_allclose(path[0], _START * 0.95, rtol=1e-6)
    np.testing.assert_allclose(path[20], path[19] * 0.9, rtol=1e-6)


def test_effective_iterations_are_those_of_updates_under_gradient_accumulation():
    gradients = _gradients(60)
    expected = _run(
        keras.optimizers.Adam(0.01),
        gradients.reshape(30, 2, 3).mean(axis=1),
        np.where(np.arange(30) < 20, 1.0, 4.0),
    )
    accumulating = keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)
    adapted = _run(accumulating, gradients, np.where(np.arange(60) < 40, 1.0, 4.0))
    # The lead of the update's second half is a half step further on.
    np.testing.assert_allclose(adapted[1::2], expected, rtol=0.01)


@pytest.mark.parametrize("name", ["SGD", *_ADAPTIVE, "Lion"])
@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_before_after_the_block_also_after_an_exception(name, fails):
    optimizer = getattr(keras.optimizers, name)(0.05)
    variable = keras.Variable(_START)
    optimizer.build([variable])
    optimizer.apply([tf.ones(3)])
    before = dict(vars(optimizer))
    try:
        gain, lead = tf.constant(4.0), tf.constant(7.0, tf.float64)
        with learning_rate.adapted(optimizer, gain, lead):
            if name in _ADAPTIVE:
                assert vars(optimizer) != before
            if fails:
                raise KeyboardInterrupt
            optimizer.apply([tf.ones(3)])
    except KeyboardInterrupt:
        pass
    assert vars(optimizer).keys() == before.keys()
    assert all(vars(optimizer)[key] is value for key, value in before.items())
    assert float(optimizer.learning_rate) == np.float32(0.05)


def test_a_rate_set_by_a_callback_is_multiplied():
    optimizer = keras.optimizers.SGD(0.5)
    optimizer.learning_rate = 0.01
    np.testing.assert_array_equal(
        _run(optimizer, _gradients(5), np.full(5, 4.0)),
        _run(keras.optimizers.SGD(0.04), _gradients(5)),
    )
    assert float(optimizer.learning_rate) == np.float32(0.01)


def _schedules():
    schedules = keras.optimizers.schedules
    return [
        schedules.CosineDecay(0.1, 50, warmup_target=0.3, warmup_steps=5),
        schedules.CosineDecayRestarts(0.1, 20),
        schedules.ExponentialDecay(0.1, 10, 0.5),
        schedules.InverseTimeDecay(0.1, 10, 0.5),
        schedules.PiecewiseConstantDecay([3, 9, 11], [0.1, 0.2, 0.3, 0.4]),
        schedules.PolynomialDecay(0.1, 40),
    ]


@pytest.mark.parametrize("schedule", _schedules(), ids=lambda s: type(s).__name__)
def test_schedules_are_read_at_the_effective_iterations(schedule):
    gains, lead = np.array([1.0, 4.0, 2.5, 8.0]), 2.5
    path = _run(keras.optimizers.SGD(schedule), np.ones((4, 3)), gains, lead)
    moved = -np.diff(np.vstack([_START, path]), axis=0)[:, 0]
    effective = lead + np.concatenate([[0.0], np.cumsum(gains)[:-1]])
    rates = [float(schedule(tf.constant(t, tf.float32))) for t in effective]
    np.testing.assert_allclose(moved, gains * rates, rtol=1e-5)


def test_a_callable_rate_is_multiplied():
    path = _run(keras.optimizers.SGD(lambda: 0.25), np.ones((1, 3)), [2.0])
    np.testing.assert_allclose(path[0], _START - 0.5)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_loss_scaling_trains_as_without_it_and_skips_overflows(name):
    make = getattr(keras.optimizers, name)
    gradients, gains = _gradients(5), np.array([1.0, 4.0, 4.0, 4.0, 2.0])
    expected = _run(make(0.01), gradients, gains)
    scaled = keras.optimizers.LossScaleOptimizer(make(0.01), initial_scale=8.0)
    adapted = _run(scaled, 8 * gradients, gains)
    np.testing.assert_allclose(adapted, expected, rtol=1e-6)
    variable = scaled.inner_optimizer._trainable_variables[0]
    with learning_rate.adapted(scaled, tf.constant(4.0), tf.constant(0.0)):
        scaled.apply([tf.fill([3], np.float32(np.inf))])
    np.testing.assert_array_equal(variable.numpy(), adapted[-1])
    assert int(scaled.iterations) == 5


@pytest.mark.parametrize("name", ["SGD", "Adam", "Nadam"])
def test_compiled_graphs_apply_what_eager_execution_does(name):
    make = getattr(keras.optimizers, name)
    schedule = keras.optimizers.schedules.ExponentialDecay(0.05, 10, 0.5)
    gradients, gains = _gradients(6), np.array([1.0, 1.0, 4.0, 4.0, 2.0, 1.0])
    expected = _run(make(schedule), gradients, gains)
    optimizer, variable = make(schedule), keras.Variable(_START)
    optimizer.build([variable])

    @tf.function(jit_compile=True)
    def step(gradient, gain, lead):
        with learning_rate.adapted(optimizer, gain, lead):
            optimizer.apply([gradient])

    lead = 0.0
    for gradient, gain, weights in zip(gradients, gains, expected, strict=True):
        step(gradient, tf.constant(gain, tf.float32), tf.constant(lead, tf.float64))
        lead += gain - 1
        np.testing.assert_allclose(variable.numpy(), weights, rtol=1e-5, atol=1e-6)
