"""Data that are not as they should be: what is said, and what goes on.

`tests.faults` tries each kind once; the numbers of rows are those there.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_osgd
from keras_osgd.sampling import RAIS, Presample
from tests.helpers import small
from tests.helpers.small import BATCH_SIZE, X, Y

EPOCHS = 4  # into the second block
ORDINARY = RAIS(adapt_learning_rate=False)


def counted_rows(sizes: list[int], **options):
    """Returns a model that notes the size of every batch it is trained on."""

    def loss(y_true, y_pred):
        sizes.append(len(y_pred))
        return keras.ops.mean(keras.ops.square(y_pred - y_true), axis=-1)

    return small.model(loss, units=1, run_eagerly=True, **options)


# Row 2


def test_a_single_example_trains_with_probability_and_weight_one_and_one_warning():
    model, monitor = small.model(), keras_osgd.callbacks.SamplingMonitor()
    histories = []

    def train():
        options = {"batch_size": 1, "steps_per_epoch": 60, "epochs": 2}
        options["callbacks"] = [monitor]
        histories.append(small.fit(model, X[:1], Y[:1], **options))

    first, second = small.warned(train), small.warned(train)
    assert len(first) == 1 and "has 1 example:" in first[0]
    assert second == []
    logs = histories[1].history
    np.testing.assert_array_equal(monitor.probabilities(), [1.0])
    assert set(logs["largest_weight"]) == set(logs["gain_ratio"]) == {1.0}
    assert logs["loss"][-1] < histories[0].history["loss"][0]


# Row 3


@pytest.mark.parametrize(("verbose", "lines"), [(0, 0), (2, 1)])
def test_fewer_examples_than_a_batch_fill_it_and_are_mentioned_once(
    verbose, lines, capsys
):
    sizes = []
    model = counted_rows(sizes)
    small.fit(model, X[:7], Y[:7], batch_size=8, verbose=verbose, epochs=2)
    assert sizes[-2:] == [8, 8]
    text = "7 examples are fewer than batch_size=8: batches stay full"
    assert capsys.readouterr().out.count(text) == lines


# Row 4


def test_every_batch_is_full_and_an_ordinary_epoch_has_the_steps_of_keras():
    sizes, looked_at = [], 8  # calls of the loss before training
    small.fit(counted_rows(sizes, sampling=ORDINARY), X[:50], Y[:50])
    steps = -(-50 // BATCH_SIZE)
    # A step calls it twice: for the loss, and for that of each row.
    assert sizes[looked_at:] == [BATCH_SIZE] * (2 * steps)


def test_the_steps_of_an_epoch_are_printed(capsys):
    small.fit(small.model(), X[:50], Y[:50], verbose=1)
    assert "13/13" in capsys.readouterr().out


# Rows 6 to 8


DATASET = tf.data.Dataset.from_tensor_slices((X, Y))


def test_what_cannot_be_read_at_random_trains_by_that_remedy():
    trained = small.model(sampling=keras_osgd.sampling.Presample(ratio=4))
    trained.fit(((X, Y) for _ in range(9)), steps_per_epoch=3, verbose=0)
    assert int(trained.optimizer.iterations) == 3


# Row 13


def test_norms_that_are_all_zero_leave_the_draws_uniform_with_weight_one(capsys):
    monitor = keras_osgd.callbacks.SamplingMonitor()
    model = small.model(lambda y, pred: 0.0 * keras.ops.mean(pred, axis=-1), units=1)
    options = {"epochs": EPOCHS, "callbacks": [monitor], "verbose": 2}
    history = small.fit(model, **options).history
    note = "All gradient norms are 0: draws are uniform."
    assert capsys.readouterr().out.count(note) == 1
    assert model.sampling_state.fit_failures == 0
    assert model.sampling_state.table.last_norms().max() == 0.0
    np.testing.assert_allclose(monitor.probabilities(), 1 / 60, rtol=1e-12)
    np.testing.assert_allclose(history["largest_weight"], 1.0, rtol=1e-6)


# Rows 19 to 21


def test_class_weight_and_sample_weight_and_ours_are_all_multiplied():
    own, of_class = np.linspace(0.5, 1.5, 60), {0: 1.0, 1: 4.0, 2: 0.5}
    product = own * np.array([of_class[label] for label in Y])
    models = small.model(), small.model()
    small.fit(models[0], epochs=EPOCHS, sample_weight=own, class_weight=of_class)
    small.fit(models[1], epochs=EPOCHS, sample_weight=product)
    np.testing.assert_array_equal(*map(small.flat, models))
    assert models[0].sampling_state.uncertainty_set is not None  # ours were not all 1


def _tagger(sampling):
    keras.utils.set_random_seed(0)
    tagger = keras_osgd.Sequential([keras.Input((2, 4)), keras.layers.Dense(2)])
    options = {"sampling": sampling, "run_eagerly": True}
    tagger.compile("sgd", small.crossentropy(), **options)
    return tagger


def test_the_loss_tells_class_indices_from_rows_that_look_one_hot():
    x, y = np.stack([X, -X], axis=1), np.eye(2, dtype=int)[Y % 2]
    options, models = {"class_weight": {0: 1.0, 1: 5.0}, "batch_size": 20}, []
    for labels in (y, y[..., np.newaxis]):
        models.append(_tagger(RAIS(seed=0)))
        small.fit(models[-1], x, labels, **options)
    np.testing.assert_array_equal(*map(small.flat, models))


def test_class_indices_of_a_stream_that_keras_would_misread_are_refused():
    x, y = np.stack([X, -X], axis=1), np.eye(2, dtype=int)[Y % 2]
    streamed = tf.data.Dataset.from_tensor_slices((x, y)).batch(20)
    for table, expected in (
        ({0: 1.0, 1: 5.0}, "one-hot. Received: class indices"),
        ([1.0, 5.0], "must be a dict"),
    ):
        with pytest.raises(ValueError, match=expected):
            _tagger(Presample()).fit(streamed, class_weight=table, verbose=0)
    wide = streamed.map(lambda x, y: (x, y[..., tf.newaxis]))
    _tagger(Presample()).fit(wide, class_weight={0: 1.0, 1: 5.0}, verbose=0)


def test_examples_of_weight_zero_have_no_part_in_the_gradient():
    weights = np.repeat([1.0, 0.0], 30)
    x = X.copy()
    x[30:] *= 100.0  # would be felt
    models = small.model(), small.model()
    small.fit(models[0], X, Y, epochs=EPOCHS, sample_weight=weights)
    small.fit(models[1], x, Y, epochs=EPOCHS, sample_weight=weights)
    assert np.isfinite(small.flat(models[0])).all()
    np.testing.assert_allclose(*map(small.flat, models), rtol=1e-4)


# Several at once


def test_all_that_stands_in_the_way_is_one_error_and_what_check_finds():
    loss = small.crossentropy(reduction="mean_with_sample_weight")
    model = small.model(loss, sampling=RAIS(require_full_batches=True))
    y, weights = Y.copy(), np.ones(60)
    y[5], weights[17] = 9, -1.0
    given = {"sample_weight": weights, "class_weight": {0: -2.0, 1: 1.0, 2: 1.0}}
    before = small.flat(model)
    with pytest.raises(ValueError) as raised:
        small.fit(model, X, y, batch_size=64, **given)
    options = {"batch_size": 64, "print_fn": None, **given}
    found = [f.text for f in keras_osgd.check(model, X, y, **options)]
    found = [text for text in found if "no entry for [9]" not in text]  # a warning
    title, *lines = str(raised.value).splitlines()
    assert title == "5 things stand in the way of importance sampling:"
    assert lines == [f"{i}. {text}" for i, text in enumerate(found, start=1)]
    wanted = ["sample_weight[17]=-1.0", "class_weight[0]=-2.0", "mean_with_sample_w"]
    wanted += ["label 9 at index 5", "60 examples with batch_size=64"]
    for part, line in zip(wanted, lines, strict=True):
        assert part in line
    np.testing.assert_array_equal(small.flat(model), before)
    assert model.sampling_state.table is None


def test_a_split_for_validation_hides_no_other_error():
    y = Y.copy()
    y[5] = 9
    model = small.model()
    with pytest.raises(ValueError, match="2 things(.|\n)*must leave.*(.|\n)*label 9"):
        small.fit(model, X, y, validation_split=0.999)
    with pytest.raises(ValueError, match="^x has 60 examples but y has 5. All"):
        small.fit(model, X, y[:5], validation_split=0.5)  # not twice


def test_every_part_that_is_no_array_or_too_short_is_named():
    with pytest.raises(ValueError, match="1. `x` must.*list(.|\n)*2. `y` must.*list"):
        small.fit(small.model(), X.tolist(), Y.tolist())
    with pytest.raises(ValueError, match="y has 5(.|\n)*sample_weight has 7"):
        small.fit(small.model(), X, Y[:5], sample_weight=np.ones(7))


def test_warnings_are_given_once_although_the_first_fit_is_refused():
    model = small.model(optimizer=keras.optimizers.SGD(0.1, clipnorm=1.0))
    y = Y.copy()
    y[5] = 9

    def refused():
        with pytest.raises(ValueError, match="^y has label 9"):
            small.fit(model, X, y)

    [message] = small.warned(refused)
    assert "Gradient clipping" in message
    assert small.warned(small.fit, model) == []


def broken(error):
    class Broken(keras.layers.Layer):
        def call(self, inputs):
            if not tf.is_symbolic_tensor(inputs) and len(inputs):
                raise error
            return inputs

    model = keras_osgd.Sequential([keras.Input((4,)), Broken(), keras.layers.Dense(3)])
    model.compile("sgd", small.crossentropy(), run_eagerly=True)
    return model


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("not yet"),
        TypeError("not yet"),
        ValueError("Exception encountered\n\nnot yet\nand more"),
        tf.errors.InvalidArgumentError(None, None, "{{node a}} not yet\nat b"),
    ],
)
def test_any_error_in_a_user_s_own_layer_is_a_refusal_that_names_it(error):
    received = f"Received: {type(error).__name__}: not yet. M"
    text = f"The model must run on a few .* {received}"
    with pytest.raises(ValueError, match=f"^{text}.*so.$") as raised:
        small.fit(broken(error))
    assert type(raised.value.__cause__) is type(error)
    with pytest.raises(ValueError, match=rf"1. `sample_w(.|\n)*2. {text}"):
        small.fit(broken(error), sample_weight=-np.ones(60))


@pytest.mark.parametrize("error", [MemoryError("full"), KeyboardInterrupt("full")])
def test_what_is_no_fault_of_the_model_passes_unchanged(error):
    with pytest.raises(type(error), match="full"):
        small.fit(broken(error))
