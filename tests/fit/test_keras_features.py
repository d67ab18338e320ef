"""Each feature of Keras' models and of `compile`: against Keras and done by hand."""

import types
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from keras import ops

import keras_osgd
from keras_osgd.sampling import RAIS
from tests.helpers import oracles_steps
from tests.helpers.selection import long_but

L, SGD = keras.layers, keras.optimizers.SGD
N, M = 12, 4
PLAIN = types.SimpleNamespace(Model=keras.Model, Sequential=keras.Sequential)
EAGER, GRAPH = {"run_eagerly": True}, {}
SPARSE = "sparse_categorical_crossentropy"


def values(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(N, *shape)).astype("float32")


def labels(*shape, seed=1, classes=3):
    return np.random.default_rng(seed).integers(0, classes, (N, *shape))


def positive(*shape, seed=2):
    return np.exp(values(*shape, seed=seed) / 2)


def absolute(y, y_pred):
    return ops.mean(ops.abs(y - y_pred), axis=-1)


class Case(NamedTuple):
    """A model, how it is compiled and what it is trained on.

    Attributes:
        build: makes the model, of the classes it is given.
        options: makes the arguments of `compile`.
        data: x, y and `sample_weight`.
        heads: names of the layers that make the outputs.
        summed: whether the loss is the sum over the batch.
        tolerance: of weights and logs, relative and absolute.
    """

    build: Callable
    options: Callable[[], dict[str, Any]]
    data: tuple
    heads: tuple = ("head",)
    summed: bool = False
    tolerance: float = 1e-5


def dict_of_outputs(of):
    """Pixels and numbers go in by name; outputs, losses, weights, metrics by name."""
    one = keras.Input((3, 2), name="one", dtype="uint8")
    other = keras.Input((2,), name="other")
    pixels = L.Flatten()(L.Rescaling(1 / 255)(one))
    hidden = L.Dense(5, "tanh")(L.Concatenate()([pixels, other]))
    outputs = {"b": L.Dense(3, "softmax", name="b"), "a": L.Dense(2, name="a")}
    outputs = {name: layer(hidden) for name, layer in outputs.items()}
    return of.Model({"one": one, "other": other}, outputs)


def dense(units, activation=None, name="head", **options):
    return L.Dense(units, activation, name=name, **options)


def three_outputs(of):
    """A list; the first has no loss, and the second's loss is a function."""
    inputs = keras.Input((4,))
    hidden = L.Dense(5, "tanh", kernel_regularizer="l2")(inputs)
    heads = [dense(3, "softmax", "c"), dense(2, name="a"), dense(1, name="b")]
    return of.Model(inputs, [head(hidden) for head in heads])


def nested_outputs(of):
    """Models within a model, and outputs within outputs."""
    inner = keras.Sequential([keras.Input((4,)), dense(5, "tanh"), dense(4, name="z")])
    inputs = keras.Input((4,))
    heads = [dense(3, name="a")(inputs), dense(2, name="b")(inputs)]
    last = keras.Model(inputs, heads, name="last")
    inputs = keras.Input((4,))
    between = inner(inputs)
    return of.Model(inputs, {"p": last(between), "q": dense(1, name="c")(between)})


def with_terms(of):
    """Subclassed, without `training` in its `call`; its losses depend on the batch."""

    class Own(of.Model):
        def __init__(self, **options):
            super().__init__(**options)
            self.hidden = L.Dense(5, "tanh", activity_regularizer="l2")
            self.head = L.Dense(3, "softmax", name="head", bias_regularizer="l1")

        def call(self, x):
            hidden = self.hidden(x)
            self.add_loss(0.1 * ops.mean(ops.square(hidden[:, :1] * x)))
            return self.head(hidden)

    return Own()


def layers(shape=(4,), policy="float32"):
    def build(of):
        last = L.Activation("softmax", dtype="float32")
        hidden, head = dense(5, "tanh", "z", dtype=policy), dense(3, dtype=policy)
        model = of.Sequential([keras.Input(shape), hidden, head, last])
        model.dtype_policy = keras.dtype_policies.get(policy)
        return model

    return build


def classified(*metrics, **options):
    """Returns what makes the arguments of `compile`, an optimizer each time."""

    def make():
        made = {"loss": SPARSE, "optimizer": lambda: SGD(0.1, momentum=0.5), **options}
        return {**made, "optimizer": made["optimizer"](), "metrics": list(metrics)}

    return make


def of_dict():
    return {
        "optimizer": keras.optimizers.AdamW(0.01),
        "loss": {"a": keras.losses.Huber(), "b": SPARSE},
        "loss_weights": {"a": 0.3, "b": 2.0},
        "metrics": {"a": ["mae"], "b": ["accuracy"]},
        "weighted_metrics": {"a": ["mse"], "b": ["accuracy"]},
        **EAGER,
    }


def of_three():
    metrics = [["accuracy"], ["mae"], [absolute]]
    return {
        "optimizer": SGD(0.1, weight_decay=0.01),
        "loss": [None, absolute, "mse"],
        "metrics": metrics,
        "weighted_metrics": metrics,
        **EAGER,
    }


def of_nested():
    loss = keras.losses.SparseCategoricalCrossentropy(True, reduction="mean")
    return {
        "optimizer": SGD(0.1),
        "loss": {"p": [loss, "mse"], "q": "mae"},
        "loss_weights": {"p": [1.0, 0.5], "q": 2.0},
        "steps_per_execution": 2,
        **EAGER,
    }


SUM = keras.losses.SparseCategoricalCrossentropy(reduction="sum")
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 3, 2)).astype("uint8")
ONE = values(4), labels(), None
AVERAGED = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3}
AVERAGED["gradient_accumulation_steps"] = 2

CASES = {
    "outputs by name, adamw": Case(
        dict_of_outputs,
        of_dict,
        (
            {"one": PIXELS, "other": values(2, seed=3)},
            {"a": values(2, seed=4), "b": labels()},
            {"a": positive(), "b": positive(seed=5)},
        ),
        ("a", "b"),
    ),
    "an output without loss": Case(
        three_outputs,
        of_three,
        (
            values(4),
            [labels(), values(2, seed=4), values(1, seed=5)],
            [positive(seed=6), positive(seed=7), positive(seed=8)],
        ),
        ("a", "b"),
    ),
    "nested models and outputs": Case(
        nested_outputs,
        of_nested,
        (
            values(4),
            {"p": [labels(), values(2, seed=4)], "q": values(1, seed=5)},
            positive(),
        ),
        ("a", "b", "c"),
    ),
    "terms of the batch, summed": Case(
        with_terms,
        classified("accuracy", loss=SUM, optimizer=lambda: SGD(0.02), **EAGER),
        ONE,
        summed=True,
    ),
    "positions with weights": Case(
        layers((6, 4)),
        classified("accuracy", weighted_metrics=["accuracy"], **EAGER),
        (values(6, 4), labels(6), positive(6)),
    ),
    "float16": Case(
        layers(policy="mixed_float16"),
        classified("accuracy", **EAGER),
        ONE,
        tolerance=3e-3,
    ),
    "float16, not scaled": Case(
        layers(policy="mixed_float16"),
        classified(auto_scale_loss=False, loss_weights=0.5, **EAGER),
        ONE,
        tolerance=3e-3,
    ),
    "accumulated and averaged": Case(
        layers(), classified(optimizer=lambda: SGD(0.1, **AVERAGED), **GRAPH), ONE
    ),
}


def compiled(case, of, **options):
    keras.utils.set_random_seed(0)
    model = case.build(of)
    model.compile(**case.options(), **options)
    return model


def fitted(model, data, **options):
    """Returns the logs of an epoch."""
    x, y, sample_weight = data
    options = {"batch_size": M, "verbose": 0, **options}
    return model.fit(x, y, sample_weight=sample_weight, **options).history


def state(model):
    """Returns all weights, statistics, averages and momenta as one vector."""
    variables = [*model.weights, *model.optimizer.variables]
    return np.concatenate([np.ravel(v).astype(np.float64) for v in variables])


class Draws(keras.callbacks.Callback):
    """Keeps the rows that an epoch draws, and their importance weights."""

    def on_train_begin(self, logs=None):
        plan = self.model.sampling_run.planner.last_plan
        self.importance = plan.importance
        self.rows = plan.index[:N].reshape(-1, M)
        self.weights = 1 / (N * plan.probability[:N].reshape(-1, M))


def sampled(case):
    """Returns a model of ours, one of Keras' on the same first pass, draws and logs."""
    draws, sampling = Draws(), RAIS(seed=0, adapt_learning_rate=False)
    ours, plain = compiled(case, keras_osgd, sampling=sampling), compiled(case, PLAIN)
    logs = [fitted(ours, case.data, callbacks=[draws])]
    first = oracles_steps.rows_of(case.data, draws.rows.ravel())
    logs.append(fitted(plain, first, shuffle=False))
    return ours, plain, draws, logs


def test_uniform_training_is_keras_own_to_the_bit():
    case, models, logs = CASES["outputs by name, adamw"], [], []
    for of, options in ((keras_osgd, {"sampling": "uniform"}), (PLAIN, {})):
        models.append(compiled(case, of, **options))
        keras.utils.set_random_seed(1)
        logs.append(fitted(models[-1], case.data, validation_split=0.25))
    assert logs[0] == logs[1]
    np.testing.assert_array_equal(*map(state, models))


@pytest.mark.parametrize(
    "name", long_but(["outputs by name, adamw", "positions with weights"], CASES)
)
def test_sampled_steps_are_those_of_keras_and_then_the_weighted_ones_by_hand(name):
    case = CASES[name]
    near = {"rtol": case.tolerance, "atol": case.tolerance}
    ours, plain, draws, (shown, expected) = sampled(case)
    assert (draws.weights == 1).all()
    assert shown.keys() == expected.keys()
    for key in expected:
        np.testing.assert_allclose(shown[key], expected[key], **near, err_msg=key)
    np.testing.assert_allclose(state(ours), state(plain), **near)

    fitted(ours, case.data, callbacks=[draws])
    assert draws.importance and np.ptp(draws.weights) > 0.3
    norms = {}
    for rows, weights in zip(draws.rows, draws.weights, strict=True):
        squared = oracles_steps.weighted_step(
            plain, case.data, rows, weights, case.summed
        )
        heads = [v.path.split("/")[-2] in case.heads for v in plain.trainable_weights]
        norms |= dict(zip(rows, np.sqrt(squared[:, heads].sum(axis=1)), strict=True))
    plain.optimizer.finalize_variable_values(plain.trainable_weights)
    np.testing.assert_allclose(state(ours), state(plain), **near)
    found = ours.sampling_state.table.last_norms()[list(norms)]
    np.testing.assert_allclose(found, list(norms.values()), rtol=10 * case.tolerance)


def test_masked_positions_count_in_metrics_as_in_keras_and_weigh_by_their_example():
    def build(of):
        inputs = [keras.Input((6,), dtype="int32"), L.Embedding(5, 4, mask_zero=True)]
        return of.Sequential([*inputs, L.Dense(3, "softmax", name="head")])

    tokens = labels(6, classes=5)
    tokens[:, 0] = 1
    options = classified("accuracy", weighted_metrics=["accuracy"], **EAGER)
    case = Case(build, options, (tokens, labels(6), positive(6)))
    ours, plain, draws, (shown, expected) = sampled(case)
    for key in expected.keys() - {"loss"}:  # ours is of all positions alike
        np.testing.assert_allclose(shown[key], expected[key], rtol=1e-5, err_msg=key)
    np.testing.assert_allclose(state(ours), state(plain), atol=1e-5)
    shown = fitted(ours, case.data, callbacks=[draws])
    assert draws.importance
    # Keras divides by how many positions are left, and not by the sum of their weights.
    left = (tokens != 0).sum(axis=1)[draws.rows]
    sums, losses = (draws.weights * left).sum(axis=1), []
    factors = left.sum(axis=1) / sums
    weighted = keras.metrics.SparseCategoricalAccuracy()
    for rows, weights, factor in zip(draws.rows, draws.weights, factors, strict=True):
        x, y, own = oracles_steps.rows_of(case.data, rows)
        own *= weights[:, None]
        y_pred = plain(x)
        weighted.update_state(y, y_pred, sample_weight=own)
        losses.append(float(plain.compute_loss(x, y, y_pred, own * factor)))
        plain.train_on_batch(x, y, sample_weight=own * factor)
    np.testing.assert_allclose(state(ours), state(plain), atol=1e-5)
    expected = float(weighted.result())
    assert shown["weighted_accuracy"] == pytest.approx([expected], rel=1e-5)
    expected = np.average(losses, weights=sums)
    assert shown["loss"] == pytest.approx([expected], rel=1e-5)
