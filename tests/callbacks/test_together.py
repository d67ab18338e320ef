"""Checkpoints of several workers, as another number of them takes them over."""

import pathlib

import numpy as np
import pytest

from keras_osgd.base.replicas import Share
from keras_osgd.callbacks import together, writer
from keras_osgd.callbacks.checkpoint_files import Saved
from keras_osgd.data import training_data
from keras_osgd.data.identity import Identity
from keras_osgd.fit import all_rows
from keras_osgd.fit.strategies import part_of
from keras_osgd.scores.state import SamplingState
from keras_osgd.scores.table import ScoreTable

N = 10
X, Y = np.arange(2.0 * N).reshape(N, 2).astype("float32"), np.arange(N) % 3


def _whole(x):
    return training_data.prepare(x, Y, None, None, 6, None)


def _saved(workers, x=X):
    """Returns what so many workers wrote, each with the metric 1 + rank twice."""
    parts = []
    for rank in range(workers):
        data, state = part_of(_whole(x), Share(workers, rank)), SamplingState()
        table = ScoreTable(data.n, data.classes(), ("constant", "last"))
        state.allocate(table, data.identity(), 0, "last_layer")
        state.times_drawn[:] = np.arange(N)[Share(workers, rank).rows]
        metrics = {"0": np.float32(1 + rank)}
        arrays = {
            "state": state.state_dict(),
            "variables": {"metrics": metrics, "model": {"0": np.zeros(2)}},
            "replicas": {"metrics": {"0": np.float32([1 + rank])}},
            "probes": np.array([rank]),
        }
        details = {"n": data.n, "workers": workers}
        parts.append(Saved(pathlib.Path("checkpoint-00000001.npz"), arrays, details))
    return parts[0]._replace(parts=dict(enumerate(parts[1:], start=1)))


def _taken_over(saved, workers, x=X):
    whole = _whole(x)
    for rank in range(workers):
        share = Share(workers, rank)
        data = part_of(whole, share)
        given = share, data, whole, data.identity()
        yield share, data, together.of_worker(saved, *given)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3), (3, 2)])
def test_rows_keep_what_is_known_of_them_and_metrics_their_sums(before, after):
    total = sum(2.0 * (1 + rank) for rank in range(before))
    metrics = []
    for share, data, found in _taken_over(_saved(before), after):
        state = found.arrays["state"]
        rows = np.arange(N)[share.rows]
        np.testing.assert_array_equal(state["times_drawn"], rows)
        assert found.details["n"] == data.n
        assert list(Identity.of(state).changed(data.identity())) == []
        metrics.append(found.arrays["variables"]["metrics"]["0"])
    assert sum(metrics) == total and found.arrays["replicas"] == {}


def test_rows_that_changed_are_found_by_their_new_owners():
    changed = X.copy()
    changed[[3, 5]] += 1
    for share, data, found in _taken_over(_saved(2), 3, changed):
        rows = Identity.of(found.arrays["state"]).changed(data.identity())
        expected = [i for i, row in enumerate(range(N)[share.rows]) if row in (3, 5)]
        assert list(rows) == expected


def test_other_data_are_other_data_for_every_worker():
    for _, data, found in _taken_over(_saved(2, X + 1), 3):
        assert Identity.of(found.arrays["state"]).changed(data.identity()) is None


def test_the_same_number_of_workers_has_its_own_parts():
    saved = _saved(2)
    found = together.of_worker(saved, Share(2, 1))
    assert found.arrays["state"] is saved.parts[1].arrays["state"]
    assert found.arrays["variables"]["metrics"] == {"0": 2.0}
    assert found.arrays["replicas"]["metrics"] == {"0": [2.0]}
    assert found.arrays["probes"] == [1]
    assert found.arrays["variables"]["model"] is not None
    assert found.details["n"] == N // 2


def test_a_single_worker_needs_no_directory_that_is_shared(tmp_path):
    import tensorflow as tf

    together.require_shared(tf.distribute.get_strategy(), tmp_path / "missing")


def test_rows_that_changed_are_found_in_scores_of_all_rows_too():
    changed, state = X.copy(), _saved(1).arrays["state"]
    changed[[3, 5]] += 1
    whole, share = _whole(changed), Share(2, 1)
    data = part_of(whole, share)
    found = all_rows.own_rows(share, data, whole, state)
    np.testing.assert_array_equal(found["times_drawn"], [1, 3, 5, 7, 9])
    assert list(Identity.of(found).changed(data.identity())) == [1, 2]


def test_a_marker_that_the_first_worker_cannot_write_makes_no_checkpoint_anywhere(
    tmp_path, monkeypatch
):
    faults = iter([None, OSError(28, "worker 0: full")])  # of the parts, the marker
    monkeypatch.setattr(writer, "share_of", lambda strategy: Share(2, 1))
    monkeypatch.setattr(writer, "told_by_all", lambda strategy, own: [own, own])
    monkeypatch.setattr(writer, "first_failure", lambda strategy, own: next(faults))
    ours = writer.Writer(tmp_path, 2, None, bool)
    ours.write(lambda: ({"a": np.zeros(2)}, {}))
    with pytest.warns(UserWarning, match="worker 0: full"):
        ours.wait()
    ours.close()
    assert ours.newest is None and not list(tmp_path.iterdir())
