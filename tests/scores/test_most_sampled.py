import copy
import csv
import pickle

import keras
import numpy as np
import pytest

import keras_osgd
from keras_osgd.data.identity import Identity
from keras_osgd.sampling import RAIS, Oracle, get
from keras_osgd.scores import most_sampled
from keras_osgd.scores.state import SamplingState
from keras_osgd.scores.table import ScoreTable
from tests.helpers import small

N = len(small.X)


class Drawn(keras.callbacks.Callback):
    """Keeps the index of every draw that is trained on."""

    def on_train_begin(self, logs=None):
        self.index = []

    def on_train_batch_end(self, batch, logs=None):
        run = self.model.sampling_run
        row = (run.clock.step - 1) % run.buffers.rows
        self.index.append(run.buffers.index.numpy()[row])


@pytest.fixture(scope="module")
def trained():
    model = small.model(run_eagerly=True, metrics=["accuracy"])
    found = Drawn()
    history = small.fit(model, epochs=small.EPOCHS, callbacks=[found])
    return model, np.concatenate(found.index), history


def test_every_draw_that_was_trained_on_is_counted_once(trained):
    model, index, _ = trained
    times = model.sampling_state.times_drawn
    np.testing.assert_array_equal(times, np.bincount(index, minlength=N))
    assert times.dtype == np.int32 and len(np.unique(times)) > 1


def test_the_most_drawn_come_first_with_label_share_and_norm(trained):
    model, index, _ = trained
    found = model.sampling.most_sampled(10)
    times = np.bincount(index, minlength=N)
    np.testing.assert_array_equal(found.times_seen, np.sort(times)[::-1][:10])
    np.testing.assert_array_equal(found.times_seen, times[found.index])
    np.testing.assert_allclose(found.share_of_draws, times[found.index] / len(index))
    np.testing.assert_array_equal(found.label, small.Y[found.index])
    norms = model.sampling_state.table.last_norms()
    np.testing.assert_array_equal(found.last_norm, norms[found.index])
    everything = model.sampling.most_sampled(10 * N)
    assert sorted(everything.index) == list(range(N))
    np.testing.assert_allclose(everything.share_of_draws.sum(), 1.0)


def test_of_examples_drawn_equally_often_the_larger_norm_comes_first():
    state = SamplingState()
    state.allocate(ScoreTable(5, None), Identity(), 0, "last_layer")
    state.table.observe([0, 1, 3], np.ones(3), [1.0, 3.0, 2.0], 0)
    state.times_drawn[:] = [2, 2, 0, 2, 1]
    found = most_sampled.most_sampled(state, None, 5)
    assert found.index.tolist() == [1, 3, 0, 4, 2]
    assert found.label is None and np.isnan(found.last_norm[3:]).all()
    assert most_sampled.most_sampled(state, None, 2).index.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("targets", "label"),
    [
        (np.array([[2.5], [1.0], [0.0]]), [0.0, 2.5]),
        (np.eye(3), [2, 0]),
        (np.array([[0.0, 2.0], [1.0, 1.0], [3.0, 3.0]]), None),
        ({"a": np.zeros(3), "b": np.zeros(3)}, None),
        (None, None),
    ],
)
def test_labels_are_numbers_or_classes_of_y(targets, label):
    found = most_sampled.labels_of(targets, np.array([2, 0]))
    assert (found if label is None else found.tolist()) == label


def test_the_table_is_saved_with_a_line_of_names(trained, tmp_path):
    model, _, _ = trained
    found = model.sampling.most_sampled(3)
    found.to_csv(tmp_path / "most.csv")
    found._replace(label=None).to_csv(str(tmp_path / "unlabelled.csv"))
    rows = list(csv.DictReader((tmp_path / "most.csv").open()))
    assert list(rows[0]) == list(found._fields)
    for name, column in found._asdict().items():
        read = np.array([row[name] for row in rows], column.dtype)
        np.testing.assert_array_equal(read, column)
    rows = list(csv.DictReader((tmp_path / "unlabelled.csv").open()))
    assert [row["label"] for row in rows] == [""] * 3


def test_counts_go_on_in_a_loaded_model_and_probabilities_are_there(trained, tmp_path):
    model, index, _ = trained
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    before = loaded.sampling.most_sampled(N)
    assert before.label is None  # the data is not saved
    np.testing.assert_array_equal(before.index, model.sampling.most_sampled(N).index)
    p = loaded.sampling.probabilities()
    np.testing.assert_allclose(p.sum(), 1.0)
    assert p.min() >= 0.05 / N and p.max() > 1.2 / N
    small.fit(loaded)
    times = loaded.sampling_state.times_drawn
    assert (
        times.sum()
        == len(index) + small.BATCH_SIZE * loaded.sampling.history["steps"].sum()
    )


def test_a_file_from_before_draws_were_counted_loads_with_none_counted(trained):
    store = dict(trained[0].sampling_state.state_dict())
    del store["times_drawn"]
    state = SamplingState()
    state.load_own_variables(store)
    np.testing.assert_array_equal(state.times_drawn, np.zeros(N, np.int32))


def test_state_takes_thirty_two_bytes_an_example(trained):
    held = trained[0].sampling_state.state_dict().values()
    # The bytes of averages, of the last norm, classes, owed mass, counts and hashes.
    assert sum(a.nbytes for a in held if a.shape == (N,)) == 32 * N


def test_history_has_the_figures_of_every_epoch_and_keras_has_only_its_own(trained):
    _, _, history = trained
    model, gains = small.model(), []
    see = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: gains.append(
            model.sampling_run.planner.logged["gain_ratio"]
        )
    )
    small.fit(model, epochs=10, callbacks=[see])
    found = model.sampling.history
    assert set(history.history) == {"loss", "accuracy"}
    assert {len(values) for values in found.values()} == {10}
    assert found["steps"][-1] == model.optimizer.iterations
    assert list(found["gain_ratio"]) == gains and gains[-1] > 1
    model.compile("sgd", small.crossentropy(), sampling="uniform")
    small.fit(model)
    assert model.sampling.history == {} and model.sampling.probabilities() is not None


def test_the_oracle_counts_draws_and_not_its_scorings():
    model = small.model(sampling=Oracle(refresh=1, seed=0), run_eagerly=True)
    found = Drawn()
    small.fit(model, epochs=2, callbacks=[found])
    times = np.bincount(np.concatenate(found.index), minlength=N)
    np.testing.assert_array_equal(model.sampling_state.times_drawn, times)
    probabilities = model.sampling.probabilities()
    np.testing.assert_array_equal(probabilities, model.sampling_run.probabilities())


def test_what_is_asked_too_early_or_wrongly_is_refused():
    model = small.model()
    assert model.sampling.probabilities() is None and model.sampling.history == {}
    with pytest.raises(ValueError, match="must have been a `fit`.*RAIS.*Train it"):
        model.sampling.most_sampled()
    with pytest.raises(ValueError, match="compiled with RAIS. Train it"):
        model.sampling.most_sampled()
    model.sampling_held.leave(model, (None, None), ("Few rows.",))
    with pytest.raises(ValueError, match="trained as in Keras. Few rows. Train it"):
        model.sampling.most_sampled()
    with pytest.raises(ValueError, match="at least 1. Received: k=0"):
        model.sampling.most_sampled(0)


def test_the_view_is_the_method_to_all_who_ask_and_models_do_not_share_it():
    method = RAIS(floor=0.2, seed=3)
    one, other = small.model(sampling=method), small.model(sampling=method)
    assert isinstance(one.sampling, RAIS) and not isinstance(one.sampling, Oracle)
    assert repr(one.sampling) == repr(method) and one.sampling.floor == 0.2
    assert one.sampling.configuration is method
    small.fit(one)
    assert one.sampling.history and not other.sampling.history
    for twin in (
        copy.copy(one.sampling),
        copy.deepcopy(one.sampling),
        pickle.loads(pickle.dumps(one.sampling)),
        keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(one.sampling)
        ),
    ):
        assert type(twin) is RAIS and repr(twin) == repr(method)
    assert type(get(one.sampling)) is RAIS
    keras_osgd.accelerate(other, one.sampling)
    assert other.sampling.configuration is method and not other.sampling.history
    with pytest.raises(AttributeError, match="no_such"):
        _ = one.sampling.no_such
    assert "times_drawn" not in str(one.sampling.get_config())
