"""A block that fails leaves the sampling state as it was."""

import numpy as np
import pytest

from keras_osgd.data.identity import Identity
from keras_osgd.draws import blocks
from keras_osgd.draws.pipeline import PlanBuffers
from keras_osgd.sampling import RAIS
from keras_osgd.scores.state import SamplingState
from keras_osgd.scores.table import ScoreTable


def test_a_plan_that_fails_after_its_draws_leaves_what_was_owed(monkeypatch):
    n, state = 40, SamplingState()
    state.allocate(ScoreTable(n, None), Identity(), 0, "last_layer")
    made = blocks.Blocks(RAIS(), state, PlanBuffers(2, 5))
    made.make(0, np.full(n, 1 / n), importance=False)
    before = state.owed.copy()
    assert before.any()
    monkeypatch.setattr(blocks, "estimate_of_loss", None)
    with pytest.raises(TypeError, match="not callable"):
        made.make(2, np.arange(1.0, n + 1) / (n * (n + 1) / 2), importance=False)
    np.testing.assert_array_equal(state.owed, before)
