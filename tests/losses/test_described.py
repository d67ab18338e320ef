import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_osgd.base import keras_compat
from keras_osgd.data.training_data import prepare
from keras_osgd.losses import described as losses
from keras_osgd.losses import shares

N, STEPS = 6, 5
_rng = np.random.default_rng(0)
X = _rng.normal(size=(N, STEPS, 4)).astype("float32")
LABELS = _rng.integers(0, 3, (N, STEPS))
REALS = _rng.normal(size=(N, STEPS, 1)).astype("float32")
ONE_HOT = np.eye(3, dtype="float32")[LABELS]
WEIGHTS = tf.constant(_rng.uniform(0.2, 5.0, N).astype("float32"))
OWN = _rng.uniform(0.5, 2.0, N).astype("float32")
OWN_STEPS = _rng.uniform(0.5, 2.0, (N, STEPS)).astype("float32")

CE, MSE = keras.losses.SparseCategoricalCrossentropy, keras.losses.MeanSquaredError


def hinge_of_mine(y_true, y_pred):
    return keras.ops.mean(keras.ops.relu(1.0 - y_true * y_pred), axis=(1, 2))


def column(y_true, y_pred):
    return keras.ops.abs(y_pred - y_true)


def compiled(loss, outputs="last", **options) -> keras.Model:
    """Returns a model with outputs kind `[m, T, 3]` and size `[m, T, 1]`, or one."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((STEPS, 4))
    kind = keras.layers.Dense(3, name="kind")(inputs)
    size = keras.layers.Dense(1, name="size")(inputs)
    first = keras.layers.Lambda(lambda z: z[:, 0], name="first")
    chosen = {
        "steps": kind,
        "last": first(kind),
        "one": first(size),
        "size": size,
        "[one]": [first(size)],
        "list": [size, kind],  # not in the order of their names
        "dict": {"size": size, "kind": kind},
    }[outputs]
    model = keras.Model(inputs, chosen)
    model.compile("sgd", loss, **options)
    return model


def described(loss, outputs, y, sample_weight=None):
    model = compiled(loss, outputs)
    return model, losses.describe(model, prepared(y, sample_weight))


def prepared(y, sample_weight=None):
    return prepare(X, y, sample_weight, None, 2, None)


BOTH = {"size": REALS, "kind": LABELS}
ONE = [  # loss, outputs, y, expected rank, expected number of values
    (CE(from_logits=True), "last", LABELS[:, 0], 1, 1),
    (CE(from_logits=True), "last", LABELS[:, :1], 1, 1),
    (
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        "last",
        ONE_HOT[:, 0],
        1,
        1,
    ),
    (keras.losses.BinaryCrossentropy(True), "one", LABELS[:, 0] == 1, 1, 1),
    ("binary_focal_crossentropy", "one", LABELS[:, :1] == 1, 1, 1),
    (keras.losses.Huber(), "one", REALS[:, 0, 0], 1, 1),
    (hinge_of_mine, "size", REALS, 1, 1),
    (column, "one", REALS[:, 0], 2, 1),
    (CE(from_logits=True), "steps", LABELS, 2, STEPS),
    ("mse", "size", REALS, 2, STEPS),
    (column, "size", REALS, 3, STEPS),
    (["mse"], "[one]", REALS[:, 0], 1, 1),
    (MSE(reduction="sum"), "size", REALS, 2, STEPS),
    (MSE(reduction="none"), "size", REALS, 2, STEPS),
    (CE(from_logits=True, reduction="sum"), "last", LABELS[:, 0], 1, 1),
]


@pytest.mark.parametrize(("loss", "outputs", "y", "rank", "values"), ONE)
def test_a_loss_is_described_by_what_it_returns(loss, outputs, y, rank, values):
    _, (found,) = described(loss, outputs, y)
    mean = getattr(loss, "reduction", "mean") not in ("sum", "none")
    assert found == losses.OutputLoss((), rank, values, mean, target=0)
    coefficient = float(found.coefficient(tf.constant(8)))
    assert coefficient == (1 / 8 if mean else values)


def batch_loss(model, x, y, sample_weight):
    y_pred = model(x)
    loss = keras_compat.compute_loss(model, x, y, y_pred, sample_weight)
    return float(tf.reduce_sum(loss))


def loss_of_each(model, y, sample_weight=None):
    """Returns Keras' own loss of every example, alone in its batch."""
    rows = (X, y, sample_weight)
    each = []
    for i in range(N):
        alone = keras.tree.map_structure(
            lambda a, i=i: None if a is None else tf.convert_to_tensor(a[i : i + 1]),
            rows,
        )
        each.append(batch_loss(model, *alone))
    return np.array(each)


def assert_each(model, found, data, alone):
    """Asserts what `shares.each` gives; `alone` are Keras' losses of single examples.

    A sum is shown as m times the mean over the examples, where m is the batch size.
    """
    _, y, own = data.batch(slice(N))
    each = shares.each(model, found, (y, model(X), own), tf.constant(7.0))
    sums = not found[0].batch_mean
    np.testing.assert_allclose(each, alone * (7 if sums else 1), rtol=1e-5)


@pytest.mark.parametrize(("loss", "outputs", "y", "rank", "values"), ONE)
def test_the_weighted_loss_is_the_sum_over_examples_of_weight_times_loss(
    loss, outputs, y, rank, values
):
    model = compiled(loss, outputs)
    # As a user gives them, and with an axis for each of the values, as Keras needs.
    of_examples = OWN.reshape((N,) + (1,) * (rank - 1))
    of_values = OWN_STEPS if values == STEPS else OWN[:, np.newaxis]
    with_axis = of_values[..., np.newaxis] if rank == 3 else of_values
    for own, shaped in [(None, None), (OWN, of_examples), (of_values, with_axis)]:
        data = prepared(y, own)
        found = losses.describe(model, data)
        weights = losses.weights_for(found, WEIGHTS, data.arrays[2])
        weighted = batch_loss(model, X, y, weights)
        alone = loss_of_each(model, y, shaped)
        assert_each(model, found, data, alone)
        expected = (WEIGHTS.numpy() * alone).sum()
        expected /= N if found[0].batch_mean else 1
        np.testing.assert_allclose(weighted, expected, rtol=1e-5)


LISTS = [CE(from_logits=True), MSE()][::-1]
DICTS = {"size": MSE(), "kind": CE(from_logits=True)}  # leaves are sorted by name


@pytest.mark.parametrize(
    ("loss", "outputs", "y", "targets"),
    [
        (LISTS, "list", (REALS, LABELS), [0, 1]),
        (DICTS, "list", (REALS, LABELS), [0, 1]),
        (DICTS, "list", BOTH, [1, 0]),
        (DICTS, "dict", BOTH, [1, 0]),
        (DICTS, "dict", [LABELS, REALS], [1, 0]),  # Keras sorts outputs by name too
        ({"kind": None, "size": MSE()}, "dict", BOTH, [1]),
        ([None, CE(from_logits=True)], "list", (REALS, LABELS), [1]),
        ([None, CE(from_logits=True)], "list", LABELS, [0]),
    ],
)
def test_several_losses_are_weighted_together(loss, outputs, y, targets):
    several = isinstance(loss, list) and None not in loss
    model = compiled(loss, outputs, loss_weights=[0.5, 3.0] if several else None)
    of_target = {id(REALS): OWN_STEPS, id(LABELS): OWN_STEPS[::-1].copy()}
    each = keras.tree.map_structure(lambda leaf: of_target[id(leaf)], y)
    column = OWN[:, np.newaxis]
    for own, of_size, of_kind in [
        (None, None, None),
        (OWN, column, column),
        (each, of_target[id(REALS)], of_target[id(LABELS)]),
    ]:
        data = prepared(y, own)
        found = losses.describe(model, data)
        assert [item.target for item in found] == targets
        weights = losses.weights_for(found, WEIGHTS, data.arrays[2])
        weighted = batch_loss(model, X, y, weights)
        for_keras = {"size": of_size, "kind": of_kind}
        if outputs == "list":
            for_keras = [of_size, of_kind]
        alone = loss_of_each(model, y, for_keras)
        assert_each(model, found, data, alone)
        expected = (WEIGHTS.numpy() * alone).mean()
        np.testing.assert_allclose(weighted, expected, rtol=1e-5)


def test_weights_have_an_axis_for_each_axis_of_the_values():
    one = losses.OutputLoss((), 1, 1, True)
    two = losses.OutputLoss((), 2, STEPS, True)
    three = losses.OutputLoss(("a", 0), 3, STEPS, True)
    assert losses.weights_for([one], WEIGHTS, None).shape == [N]
    assert losses.weights_for([one], WEIGHTS, OWN[:, np.newaxis]).shape == [N]
    assert losses.weights_for([two], WEIGHTS, None).shape == [N, 1]
    assert losses.weights_for([two], WEIGHTS, OWN).shape == [N, 1]
    assert losses.weights_for([two], WEIGHTS, OWN_STEPS).shape == [N, STEPS]
    nested = losses.weights_for([three], WEIGHTS, OWN_STEPS)
    assert nested["a"][0].shape == [N, STEPS, 1]
    np.testing.assert_allclose(
        losses.weights_for([one], WEIGHTS, OWN), WEIGHTS * OWN, rtol=1e-7
    )


def test_of_several_losses_for_one_output_the_first_counts_as_in_keras():
    model, found = described(["mse", "mae"], "one", REALS[:, 0])
    assert len(found) == 1
    weighted = batch_loss(
        model, X, REALS[:, 0], losses.weights_for(found, WEIGHTS, None)
    )
    squares = ((model(X) - REALS[:, 0]) ** 2)[:, 0]
    np.testing.assert_allclose(weighted, np.mean(WEIGHTS * squares), rtol=1e-5)


def test_an_output_is_found_by_its_path_or_else_by_its_place():
    outputs = {"b": [1.0, 2.0], "a": 3.0}
    assert losses.output_of(outputs, ("b", 1), 0) == 2.0
    assert losses.output_of(4.0, (), 0) == 4.0
    assert losses.output_of([5.0, 6.0], ("b",), 1) == 6.0


# Refusals


def test_a_model_without_a_loss_is_refused():
    with pytest.raises(ValueError, match="must be given a `loss`.*Received: loss=None"):
        described(None, "one", REALS[:, 0])


@pytest.mark.parametrize(("axis", "shape"), [(None, r"\(\)"), (0, r"\(5, 1\)")])
def test_a_loss_without_a_value_for_each_example_is_refused(axis, shape):
    def lumped(y_true, y_pred):
        return keras.ops.mean(y_pred - y_true, axis=axis)

    with pytest.raises(ValueError, match=f"one value per example; lumped got.*{shape}"):
        described(lumped, "size", REALS)


def test_a_shape_that_is_right_by_chance_is_refused():
    def lumped(y_true, y_pred):
        return keras.ops.mean(y_pred, axis=(0, 2))  # `[T]`, and five are looked at

    with pytest.raises(ValueError, match=r"lumped got shape \(5,\)"):
        described(lumped, "steps", ONE_HOT)


@pytest.mark.parametrize(
    ("loss", "outputs", "y", "message"),
    [
        (CE(from_logits=True), "last", [0, 1, 2, 0, 3, 1], "label 3 at index 4"),
        (
            "sparse_categorical_crossentropy",
            "last",
            [0, 1, -2, 0, 0, 0],
            "-2 at index 2",
        ),
        (CE(from_logits=True, ignore_class=-1), "last", [0, -1, 9, 0, 0, 0], "label 9"),
        (
            CE(from_logits=True, axis=1),
            "size",
            [[0], [1], [5], [4], [0], [0]],
            "label 5",
        ),
    ],
)
def test_a_label_outside_the_classes_is_refused(loss, outputs, y, message):
    with pytest.raises(ValueError, match=message):
        described(loss, outputs, np.array(y))


def test_labels_along_another_axis_and_ignored_ones_are_accepted():
    described(CE(from_logits=True, ignore_class=-1), "last", np.array([0, -1, 2] * 2))
    described(CE(from_logits=True, axis=1), "size", np.full((N, 1), 4))


@pytest.mark.parametrize(
    ("outputs", "y", "shape"),
    [
        ("one", REALS[:, 0], (N, STEPS)),
        ("size", REALS, (N, STEPS - 1)),
        ("size", REALS, (N, STEPS, 2)),
    ],
)
def test_sample_weights_that_do_not_fit_the_values_are_refused(outputs, y, shape):
    with pytest.raises(ValueError, match=rf"Received: \({shape[1]}.*for each example"):
        described("mse", outputs, y, np.ones(shape))


# A `compute_loss` of one's own


class Passing(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return 2.0 * super().compute_loss(x, y, y_pred, sample_weight)


class Ignoring(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return super().compute_loss(x, y, y_pred)


class Own(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return keras.ops.mean(y_pred)


def with_compute_loss(cls, loss="mse"):
    inputs = keras.Input((STEPS, 4))
    model = cls(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", loss)
    return model, losses.describe(model, prepare(X, REALS, None, None, 2, None))


def test_a_compute_loss_that_passes_the_weights_on_is_accepted():
    assert len(with_compute_loss(Passing)[1]) == 1


def masked(loss):
    """Returns a model with masked outputs `[m, T, 3]`, and its described losses."""
    inputs = keras.Input((STEPS, 4))
    hidden = keras.layers.Masking()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(hidden))
    model.compile("sgd", loss)
    x = X * (np.arange(STEPS) < np.arange(1, N + 1)[:, None])[..., None]
    return model, losses.describe(model, prepare(x, LABELS, None, None, 2, None)), x


def test_masked_values_of_a_sum_are_no_part_of_an_example_s_loss():
    model, found, x = masked(CE(from_logits=True, reduction="sum"))
    assert shares.are_known(model, found)
    y_pred = model(x)
    each = shares.each(model, found, (LABELS, y_pred, None), tf.constant(1.0))
    assert float(tf.reduce_sum(each)) == pytest.approx(
        batch_loss(model, x, LABELS, None), rel=1e-5
    )


UNMASKED = np.arange(STEPS) < np.arange(1, N + 1)[:, None]
IGNORING = CE(from_logits=True, ignore_class=0)


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (lambda: masked(CE(from_logits=True)), UNMASKED),
        (lambda: (*described(IGNORING, "steps", LABELS), X), LABELS != 0),
        (lambda: masked(IGNORING), UNMASKED & (LABELS != 0)),
    ],
)
def test_a_masked_loss_is_divided_by_the_weights_of_the_values_left(make, left):
    model, found, x = make()
    y_pred = keras_compat.call_model(model, x, training=True)
    batch = (LABELS, y_pred), WEIGHTS
    factors, divisor = shares.factors_of_masks(model, found, *batch)
    weights = losses.weights_for(found, WEIGHTS, OWN, factors)
    own = CE(from_logits=True, reduction="none")(
        LABELS, tf.constant(np.array(y_pred))
    ).numpy()
    weighted = WEIGHTS.numpy()[:, None] * left
    expected = (weighted * OWN[:, None] * own).sum() / weighted.sum()
    assert batch_loss(model, x, LABELS, weights) == pytest.approx(expected, rel=1e-5)
    assert float(divisor) == pytest.approx(weighted.sum(), rel=1e-6)


def test_losses_without_masks_have_no_factors():
    model, found = described(["mse", CE(from_logits=True)], "list", [REALS, LABELS])
    factors = shares.factors_of_masks(
        model, found, ([REALS, LABELS], model(X)), WEIGHTS
    )
    assert factors == ([None, None], None)


@pytest.mark.parametrize(
    ("make", "known"),
    [
        (lambda: described("mse", "one", REALS[:, 0]), True),
        (lambda: described(MSE(reduction="none"), "one", REALS[:, 0]), False),
        (lambda: described(CE(True, ignore_class=-1), "last", LABELS[:, 0]), False),
        (lambda: masked(CE(from_logits=True))[:2], False),
        (lambda: with_compute_loss(Passing), False),
    ],
)
def test_losses_of_examples_are_known_unless_they_depend_on_the_batch(make, known):
    assert shares.are_known(*make()) == known


def test_a_compute_loss_is_not_refused_because_its_loss_is_zero():
    def zero(y_true, y_pred):
        return 0.0 * keras.ops.mean(y_pred, axis=(1, 2))

    assert len(with_compute_loss(Passing, zero)[1]) == 1


def test_a_compute_loss_that_ignores_the_weights_is_refused():
    with pytest.raises(ValueError, match="must multiply.*same loss for weights 1 and"):
        with_compute_loss(Ignoring)


def test_a_compute_loss_that_never_calls_the_loss_is_refused():
    with pytest.raises(ValueError, match="`compute_loss` of yours must call it"):
        with_compute_loss(Own)


# Models that cannot be tried out


class NoCall(keras.Model):
    def __init__(self):
        super().__init__()
        self.encoder = keras.layers.Dense(1)


def stateful():
    inputs = keras.Input(batch_shape=(2, STEPS, 4))
    return keras.Model(inputs, keras.layers.LSTM(1, stateful=True, name="mine")(inputs))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (NoCall, "must have a `call`.*Received: NoCall without one. Define `call`"),
        (stateful, r"may be `stateful`.*Received: stateful=\['mine'\]. Set"),
    ],
)
def test_a_model_without_outputs_or_with_states_is_refused(make, message):
    model = make()
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=message):
        losses.describe(model, prepared(REALS[:, 0]))
