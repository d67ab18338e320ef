"""A `fit` on data of which some rows are others than the scores were made for."""

import copy
import threading
import time

import keras
import numpy as np
import pytest

from keras_osgd.data import training_data
from keras_osgd.data.row_hashes import row_hashes
from keras_osgd.sampling import RAIS, Oracle
from tests.helpers import small

ROWS = np.array([3, 17, 58])
REST = np.delete(np.arange(60), ROWS)


@pytest.fixture(scope="module")
def trained():
    """A model in its third block or the next, with a strike; to be copied."""
    model = small.model()
    small.fit(model, epochs=9)
    assert model.sampling_state.blocks >= 3
    model.sampling_state.bad_examples.strike([3, 20], sure=False)
    return model


def per_row(state):
    """Returns copies of all arrays that have an entry for each row."""
    arrays = state.state_dict()
    found = {k: a for k, a in arrays.items() if np.shape(a) == (60,)}
    assert {"visits_owed", "times_drawn", "last_losses", "table.last"} < found.keys()
    return found


def changed_y():
    y = small.Y.copy()
    y[ROWS] = (y[ROWS] + 1) % 3
    return y


CHANGES = {
    "labels": lambda: (small.X, changed_y(), None),
    "inputs": lambda: (small.X + np.isin(np.arange(60), ROWS)[:, None], small.Y, None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_scores_of_changed_rows_start_afresh_and_the_others_go_on(
    change, trained, capsys
):
    model = copy.deepcopy(trained)
    before, means = per_row(trained.sampling_state), trained.sampling_state.table.sums
    x, y, weights = CHANGES[change]()
    small.fit(model, x, y, sample_weight=weights, epochs=0, verbose=2)
    assert "3 of 60 rows of the training data changed" in capsys.readouterr().out
    fresh, state = small.model(), model.sampling_state
    small.fit(fresh, x, y, epochs=0)
    fresh = per_row(fresh.sampling_state)
    for name, array in per_row(state).items():
        # The plan of the `fit` without a step was given back.
        close = {"rtol": 0, "atol": 1e-9 if name == "visits_owed" else 0}
        np.testing.assert_allclose(array[ROWS], fresh[name][ROWS], **close)
        if name != "row_hashes":
            np.testing.assert_allclose(array[REST], before[name][REST], **close)
    bad = state.bad_examples.state_dict()
    assert [bad["bad_index"], bad["bad_suspected"]] == [[20], [20]]
    np.testing.assert_array_equal(state.table.sums[-1], means[-1])
    assert state.table.classes.tolist() == y.tolist()
    small.fit(model, x, y, sample_weight=weights, verbose=2)  # known again
    assert "changed" not in capsys.readouterr().out


def test_data_changed_in_place_after_a_fit_are_noticed(trained, capsys):
    for n in (3, 0, 60):
        model, y = small.model(), small.Y.copy()
        small.fit(model, y=y)
        rows = ROWS[:n] if n < 60 else slice(None)
        y[rows] = (y[rows] + 1) % 3
        capsys.readouterr()
        small.fit(model, y=y, verbose=2)
        said = capsys.readouterr().out
        assert ("3 of 60 rows" in said) == (n == 3)
        assert ("or other rows): they start afresh" in said) == (n == 60)


def test_fit_returns_when_all_rows_are_hashed(monkeypatch):
    ended = threading.Event()

    def slow(leaves):
        assert ended.wait(60)
        time.sleep(0.2)
        return row_hashes(leaves)

    monkeypatch.setattr(training_data, "row_hashes", slow)
    model, y = small.model(), small.Y.copy()
    end = keras.callbacks.LambdaCallback(on_train_end=lambda logs: ended.set())
    small.fit(model, y=y, callbacks=[end])  # the steps do not wait
    y[0] += 1
    expected = training_data.prepare(small.X, small.Y, None, None, 4, None).identity()
    assert model.sampling_state.identity.changed(expected).tolist() == []


def test_another_weight_is_another_row(capsys):
    model, weights = small.model(), np.ones(60)
    small.fit(model, sample_weight=weights)
    weights[7] = 2.0
    small.fit(model, sample_weight=weights, verbose=2)
    assert "1 of 60 rows" in capsys.readouterr().out


def test_a_lowest_label_that_goes_moves_the_classes_of_the_others(trained):
    model, y = small.model(), small.Y + 1
    y[y == 1] = 2
    y[5] = 0  # alone in its class, the lowest
    small.fit(model, small.X, y % 3, epochs=6)
    model = small.model(units=4)
    small.fit(model, small.X, y, epochs=6)
    sums = model.sampling_state.table.sums
    assert len(sums) == 5
    y[5] = 2
    small.fit(model, small.X, y, epochs=0)
    np.testing.assert_array_equal(model.sampling_state.table.sums, sums[2:])
    assert model.sampling_state.table.classes.tolist() == (y - 2).tolist()


@pytest.mark.parametrize("change", ["labels", "all"])
def test_scores_loaded_during_fit_do_not_stand_for_rows_that_changed(
    change, trained, tmp_path
):
    rows = ROWS if change == "labels" else np.arange(60)
    x = small.X + 1 if change == "all" else small.X
    path = tmp_path / "w.weights.h5"
    trained.save_weights(path)
    found = {}

    def load(logs):
        model.load_weights(path)
        found.update(per_row(model.sampling_state))

    model = small.model()
    callbacks = [keras.callbacks.LambdaCallback(on_train_begin=load)]
    said = small.warned(small.fit, model, x, changed_y(), callbacks=callbacks)
    assert any(f"{len(rows)} of 60 rows differ" in text for text in said)
    expected = per_row(trained.sampling_state)["table.last"]
    expected[rows] = -1
    np.testing.assert_array_equal(found["table.last"], expected)
    assert small.warned(small.fit, model, x, changed_y()) == []


def test_an_oracle_scores_changed_rows_with_all_others(capsys):
    model = small.model(sampling=Oracle(refresh=15))
    small.fit(model)
    small.fit(model, y=changed_y(), verbose=2)
    assert "3 of 60 rows" in capsys.readouterr().out
    assert not np.isnan(model.sampling_state.table.last_norms()).any()


def test_other_features_start_all_afresh_whatever_rows_changed(capsys):
    model = small.model()
    small.fit(model)
    model.compile("sgd", model.loss, sampling=RAIS(features=("constant", "last")))
    small.fit(model, y=changed_y(), verbose=2)
    said = capsys.readouterr().out
    assert "with features" in said and "rows of the training" not in said
