"""Scores of several workers, dealt out to others."""

import numpy as np
import pytest

from keras_osgd.base.replicas import Share
from keras_osgd.data.identity import Identity
from keras_osgd.scores import dealt
from keras_osgd.scores.state import SamplingState
from keras_osgd.scores.table import ScoreTable

N = 11
LABELS = np.array([2, 0, 1, 1, 2, 0, 2, 1, 2, 1, 1])
FEATURES = ("constant", "last", "average_0.5", "class_mean", "age")
RNG = np.random.default_rng(0)
NORMS, WEIGHTS = RNG.uniform(1, 2, (2, N)), RNG.uniform(0.5, 2, (2, N))


def _classes(rows):
    return LABELS[rows] - LABELS[rows].min()  # as each worker numbers its own


def _state(rows, rank):
    """Returns what a worker with these rows knows after two blocks."""
    state = SamplingState()
    table = ScoreTable(len(rows), _classes(rows), FEATURES)
    state.allocate(table, Identity("a"), 5 + rank, "last_layer")
    for block in range(2):
        seen = np.flatnonzero(rows % 4 != 3)  # some are never seen
        state.table.observe(
            seen, WEIGHTS[block, rows[seen]], NORMS[block, rows[seen]], block
        )
    state.owed, state.times_drawn = rows / 10, rows.astype(np.int32)
    state.last_losses = rows.astype(np.float32)
    state.observed = state.drawn = 4 * len(rows)
    for row in np.flatnonzero(rows % 3 == 0):
        state.bad_examples.strike([row], sure=rows[row] > 3)
    return state.state_dict()


def _of(workers):
    rows = [np.arange(N)[Share(workers, rank).rows] for rank in range(workers)]
    return rows, [_state(own, rank) for rank, own in enumerate(rows)]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3), (3, 2)])
def test_dealt_scores_are_those_of_workers_that_had_the_rows_from_the_start(
    before, after
):
    _, states = _of(before)
    rows, expected = _of(after)
    for rank in range(after):
        share = Share(after, rank)
        found = dealt.dealt(states, share, _classes(rows[rank]))
        loaded = SamplingState()
        loaded.load_state_dict({**found, **Identity("a").state_dict()})
        for name, array in loaded.state_dict().items():
            if name in ("drawn", "observed"):
                assert array == 4 * N // after
            elif name == "trust":  # sums over draws, of which each worker has its share
                sums = states[0][name] * before / after
                np.testing.assert_allclose(array, sums)
            elif name != "table.sums":  # means over all workers
                np.testing.assert_array_equal(array, expected[rank][name], name)
        if after == 1:
            np.testing.assert_allclose(found["table.sums"], expected[0]["table.sums"])


def test_means_of_classes_follow_the_classes_and_not_their_numbers():
    rows, states = _of(2)
    assert LABELS[rows[0]].min() != LABELS[rows[1]].min()  # numbered in other ways
    whole = _state(np.arange(N), 0)
    for rank in range(2):
        back = dealt.dealt([whole], Share(2, rank), _classes(rows[rank]))
        known = np.unique(LABELS[rows[rank]])
        sums = back["table.sums"][known - known.min()]
        np.testing.assert_allclose(sums, whole["table.sums"][known])


def test_interleaved_rows_are_those_of_the_whole():
    whole = np.arange(10.0)
    parts = [whole[Share(3, rank).rows] for rank in range(3)]
    np.testing.assert_array_equal(dealt.interleaved(parts), whole)
