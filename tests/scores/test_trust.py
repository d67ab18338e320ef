"""The share of p that follows the scores: by its closed form, and in plans."""

import numpy as np
import pytest

from keras_osgd.data.identity import Identity
from keras_osgd.draws.blocks import Blocks
from keras_osgd.draws.observations import Observed
from keras_osgd.draws.pipeline import PlanBuffers
from keras_osgd.draws.planner import RAISPlanner
from keras_osgd.sampling import RAIS
from keras_osgd.scores import state as states
from keras_osgd.scores import trust
from keras_osgd.scores.state import SamplingState
from keras_osgd.scores.table import ScoreTable

N, M, STEPS = 400, 8, 60


@pytest.fixture(autouse=True)
def _as_it_is(monkeypatch):
    """Trust begins as for users; elsewhere tests begin with the scores followed."""
    monkeypatch.setattr(states, "untrusted", trust.untrusted)


def test_the_moments_are_those_of_equation_4_whatever_was_drawn():
    v, p = np.array([1.0, 4.0, 2.0]), np.array([0.2, 0.7, 0.1])
    for times in ([1, 1, 1], [3, 2, 1], [1, 5, 2]):  # draws in proportion to q
        index, q = np.repeat(np.arange(3), times), np.array(times) / np.sum(times)
        weights = 1 / (3 * q[index])
        sums = trust.measured(trust.untrusted(), weights, 3 * p[index], v[index])
        for s, moment in zip(trust.SHARES, sums[:-1] / sums[-1], strict=True):
            mixture = trust.mixed(p, s)
            expected = (v**2 / mixture).sum() / 9 / (v**2).mean()
            assert moment == pytest.approx(expected, rel=1e-12)
    again = trust.measured(sums, weights, 3 * p[index], v[index])
    np.testing.assert_allclose(again, 1.5 * sums, rtol=1e-12)  # older ones count half
    assert trust.share(sums) == trust.SHARES[np.argmin(sums[:-1])] == 0.5


def test_what_was_not_planned_by_scores_or_has_no_norm_tells_nothing():
    sums = trust.trusted()
    for relative, norms in ((np.ones(3), np.ones(3)), (np.arange(1, 4), np.zeros(3))):
        assert trust.measured(sums, np.ones(3), relative, norms) is sums


class _Log:
    """Norms of draws as a function of example and step, in place of training."""

    def __init__(self, norm):
        self.norm, self.planner = norm, None
        self.gain = lambda step: 2.0

    def read(self, first, until):
        index = self.planner._blocks.drawn(first, until)[0]
        steps = np.repeat(np.arange(first, until), M)
        norms = self.norm(index, steps).astype(np.float32)
        gains = np.array([self.gain(step) for step in range(first, until)])
        return Observed(norms, gains, np.ones(len(index)))


def _shares(norm, blocks=8):
    """Returns the share of each plan, where norms are what `norm` returns."""
    state, log = SamplingState(), _Log(norm)
    state.allocate(ScoreTable(N, None), Identity(), 0, "last_layer")
    planner = RAISPlanner(RAIS(), state, PlanBuffers(STEPS, M), log, 1)
    log.planner, shares = planner, []
    planner.start()
    for step in range(1, blocks * STEPS):
        planner.advance(step)
        if step % STEPS == STEPS - 1:
            shares.append(planner.last_plan.share)
            p = planner.candidate
            floor = 1 - shares[-1] * (1 - 0.05)
            assert p.min() >= floor / N - 1e-15
    planner.finish(step)
    assert state.state_dict()["trust"].shape == (9,)
    return shares


def test_scores_that_predict_are_followed_more_from_block_to_block():
    hard = np.where(np.arange(N) < 40, 10.0, 0.1)
    shares = _shares(lambda index, _: hard[index])
    assert shares == [0.1, 0.35, *6 * [1.0]]


def test_scores_that_predict_nothing_or_age_within_a_block_are_not_followed():
    rng = np.random.default_rng(0)
    assert max(_shares(lambda index, _: rng.lognormal(0, 1.5, len(index)))) <= 0.35

    def turning(index, step):  # those that were easy become hard, and the reverse
        return np.where((index < N // 2) == (step // STEPS % 2 == 0), 3.0, 0.3)

    assert max(_shares(turning)) == 0.1


def test_what_is_measured_is_p_by_the_scores_alone():
    state, p = SamplingState(), np.random.default_rng(0).dirichlet(np.ones(N))
    state.allocate(ScoreTable(N, None), Identity(), 0, "last_layer")
    blocks = Blocks(RAIS(), state, PlanBuffers(STEPS, M))
    blocks.make(0, trust.mixed(p, 0.35), True, share=0.35)
    drawn = blocks.last_plan.index[2 * M : 5 * M]
    np.testing.assert_allclose(blocks.relative(2, 5), N * p[drawn], atol=1e-12)


def test_files_from_before_it_was_measured_follow_the_scores_as_they_did():
    state = SamplingState()
    state.allocate(ScoreTable(3, None), Identity(), 0, "last_layer")
    state.trust = np.arange(9.0)
    saved, other = state.state_dict(), SamplingState()
    other.load_state_dict(saved)
    np.testing.assert_array_equal(other.trust, np.arange(9.0))
    del saved["trust"]
    other.load_state_dict(saved)
    assert trust.share(other.trust) == 1.0


def test_a_share_that_has_not_been_measured_is_no_reason_to_retreat():
    hard = np.where(np.arange(N) < 40, 10.0, 0.1)
    state, log = SamplingState(), _Log(lambda index, _: hard[index])
    log.gain = lambda step: 1.01 if step < 2 * STEPS else 1.2
    state.allocate(ScoreTable(N, None), Identity(), 0, "last_layer")
    planner = RAISPlanner(RAIS(), state, PlanBuffers(STEPS, M), log, 1)
    log.planner = planner
    planner.start()
    for step in range(1, 6 * STEPS):
        planner.advance(step)
        planner.settle()
        assert state.armed, step
    log.gain = lambda step: 1.01
    for step in range(6 * STEPS, 8 * STEPS):
        planner.advance(step)
    planner.finish(step)
    assert not state.armed
