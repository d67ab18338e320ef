"""Data that are not as they should be: what is said, and what goes on."""

import keras
import numpy as np
import pytest
import small
import tensorflow as tf
from small import BATCH_SIZE, EPOCHS, X, Y

import keras_osgd
from keras_osgd.sampling import RAIS

ORDINARY = RAIS(adapt_learning_rate=False)


def counted_rows(sizes: list[int], **options):
    """Returns a model that notes the size of every batch it is trained on."""

    def loss(y_true, y_pred):
        sizes.append(len(y_pred))
        return keras.ops.mean(keras.ops.square(y_pred - y_true), axis=-1)

    return small.model(loss, units=1, run_eagerly=True, **options)


# Row 1


def test_no_examples_raise_where_keras_trains_on_nothing_without_a_word():
    with pytest.raises(ValueError, match="training data has 0 examples. Check the fil"):
        small.fit(small.model(), X[:0], Y[:0])


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


def test_fewer_examples_than_a_batch_raise_on_request():
    model = small.model(sampling=RAIS(require_full_batches=True))
    with pytest.raises(ValueError, match=r"7 examples with batch_size=8\. Lower"):
        small.fit(model, X[:7], Y[:7], batch_size=8)


# Row 4


def test_every_batch_is_full_and_an_ordinary_epoch_has_the_steps_of_keras():
    sizes, looked_at = [], 3  # calls of the loss before training
    small.fit(counted_rows(sizes, sampling=ORDINARY), X[:50], Y[:50], epochs=2)
    steps = -(-50 // BATCH_SIZE)
    assert sizes[looked_at:] == [BATCH_SIZE] * (2 * steps)


# Row 5


def test_lengths_that_differ_raise_with_both_of_them():
    with pytest.raises(ValueError, match="x has 60 examples but y has 5. All arrays"):
        small.fit(small.model(), X, Y[:5])


# Rows 6 to 8


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return X[:20], Y[:20]


DATASET = tf.data.Dataset.from_tensor_slices((X, Y))


@pytest.mark.parametrize(
    ("source", "received"),
    [
        (DATASET.repeat(), "dataset is infinite"),
        (DATASET.filter(lambda x, y: True), "dataset is of unknown length"),
        (DATASET.batch(20), "dataset is a tf.data pipeline"),
        (iter([(X, Y)]), "`x` must be arrays. Received: list_iterator"),
        (((X, Y) for _ in range(3)), "`x` must be arrays. Received: generator"),
        (Batches(), "`x` must be arrays. Received: Batches"),
        (X.tolist(), "`x` must be arrays. Received: list"),
    ],
)
def test_what_cannot_be_read_at_random_raises_and_names_the_sources(source, received):
    with pytest.raises(ValueError, match=f"{received}.*random access.*pass NumPy arr"):
        small.model().fit(source, verbose=0)


def test_the_remedy_for_a_dataset_of_batches_trains_as_its_arrays_do():
    with pytest.raises(
        ValueError, match=r"next\(iter\(dataset.batch\(n\)\)\).*unbatch"
    ):
        small.model().fit(DATASET.batch(20), verbose=0)
    x, y = next(iter(DATASET.batch(20).unbatch().batch(60)))
    models = small.model(), small.model()
    small.fit(models[0], x, y)
    small.fit(models[1])
    np.testing.assert_array_equal(*map(small.flat, models))


# Row 12


@pytest.mark.parametrize("label", [-1, 14])
def test_a_label_outside_the_classes_raises_before_a_step_is_made(label):
    y = Y.copy()
    y[53] = label
    model = small.model()
    before = small.flat(model)
    with pytest.raises(
        ValueError, match=f"label {label} at index 53 but the model has 3 outputs"
    ):
        small.fit(model, X, y)
    np.testing.assert_array_equal(small.flat(model), before)


# Row 13


def test_norms_that_are_all_zero_leave_the_draws_uniform_with_weight_one():
    monitor = keras_osgd.callbacks.SamplingMonitor()
    model = small.model(lambda y, pred: 0.0 * keras.ops.mean(pred, axis=-1), units=1)
    history = small.fit(model, epochs=EPOCHS, callbacks=[monitor]).history
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


def test_a_class_without_a_weight_has_weight_one_with_a_notice():
    models = small.model(), small.model()
    messages = small.warned(small.fit, models[0], class_weight={0: 2.0, 1: 0.5})
    assert len(messages) == 1 and "no entry for [2]: such examples get" in messages[0]
    assert small.warned(small.fit, models[1], class_weight={0: 2.0, 1: 0.5, 2: 1}) == []
    np.testing.assert_array_equal(*map(small.flat, models))


def test_examples_of_weight_zero_have_no_part_in_the_gradient():
    weights = np.repeat([1.0, 0.0], 30)
    x = X.copy()
    x[30:] *= 100.0  # would be felt
    models = small.model(), small.model()
    small.fit(models[0], X, Y, epochs=EPOCHS, sample_weight=weights)
    small.fit(models[1], x, Y, epochs=EPOCHS, sample_weight=weights)
    assert np.isfinite(small.flat(models[0])).all()
    np.testing.assert_allclose(*map(small.flat, models), rtol=1e-4)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_a_weight_that_is_negative_or_not_finite_raises_with_its_index(bad):
    weights = np.ones(60)
    weights[17] = bad
    with pytest.raises(ValueError, match=rf"sample_weight\[17\]={bad}\. Drop"):
        small.fit(small.model(), sample_weight=weights)
