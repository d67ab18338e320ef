"""Each alarm against a closed form: where it sounds, and where it does not."""

import numpy as np
import pytest

from keras_osgd.data.identity import Identity
from keras_osgd.draws.alarms import (
    Alarms,
    Steps,
    may_take_share,
    mean_weight_is_off,
    share_of_top,
)
from keras_osgd.sampling import RAIS
from keras_osgd.scores.state import SamplingState
from keras_osgd.scores.table import ScoreTable
from tests.helpers import small

N, M = 1000, 20  # 50 steps an epoch, the shortest part that is judged
UNIFORM = np.full(N, 1 / N)


def _alarms(floor=0.05, draws="reshuffled"):
    state = SamplingState()
    state.allocate(ScoreTable(N, None), Identity(), 0, "last_layer")
    return Alarms(state, floor, M), state


def _part(alarms, weight=1.0, norms=1.0, gain=2.0, importance=True, p=UNIFORM):
    """Takes in an epoch of 50 steps."""
    weights, norms = np.broadcast_to(weight, N), np.broadcast_to(norms, N)
    return alarms.take_in(weights, norms, np.full(50, gain), importance, p)


def _told(alarms, times, **part):
    return [text for _ in range(times) for text in _part(alarms, **part)]


def test_healthy_steps_are_not_warned_of():
    alarms, state = _alarms()
    state.table.observe(np.arange(N), np.ones(N), np.ones(N), 0)
    rng = np.random.default_rng(0)
    for _ in range(100):
        norms = rng.lognormal(size=N)
        v = rng.permutation(norms)  # of all examples; drawn by p in proportion to them
        p = 0.95 * v / v.sum() + 0.05 / N
        index = rng.choice(N, N, p=p)
        state.times_drawn += np.bincount(index, minlength=N).astype(np.int32)
        assert _part(alarms, 1 / (N * p[index]), v[index], p=p) == []


def test_a_mean_weight_off_1_sounds_once_after_ten_parts():
    alarms, _ = _alarms()
    assert _told(alarms, 9, weight=1.2) == []
    (text,) = _told(alarms, 20, weight=1.2)
    assert text.startswith("The mean importance weight must be 1. Received: 1.200 ov")
    for floor in (0.0, None):  # without a bound on weights their mean tells nothing
        assert _told(_alarms(floor)[0], 20, weight=1.2) == []


@pytest.mark.parametrize(("mean", "sd", "off"), [(1.0, 0.4, 0), (1.3, 0.03, 1)])
def test_the_mean_weight_is_judged_by_its_standard_error(mean, sd, off):
    rng = np.random.default_rng(0)
    found = [mean_weight_is_off(rng.normal(mean, sd, k)) for k in 200 * [10, 40]]
    assert np.mean(found) == pytest.approx(off, abs=0.003)
    assert all(mean_weight_is_off(np.array([*np.ones(9), x])) for x in (np.nan, np.inf))


def test_effective_sizes_are_those_of_the_two_estimators():
    rng = np.random.default_rng(0)
    v, p = rng.lognormal(size=50), rng.uniform(0.2, 2.0, 50)
    p /= p.sum()
    index = rng.choice(50, 400_000, p=p)
    steps = Steps()
    for part in np.split(index, 4):
        steps.add(50, 1 / (50 * p[part]), v[part])
    own, uniform = steps.effective_sizes()
    mean, second = v.mean(), ((v / 50) ** 2 / p).sum()  # E(w v), E(w v)^2
    assert own == pytest.approx(mean**2 / second, rel=0.02)
    assert uniform == pytest.approx(mean**2 / (v**2).mean(), rel=0.02)
    zero = Steps()
    zero.add(50, np.ones(4), np.zeros(4))
    assert zero.effective_sizes() == (1.0, 1.0)


def test_draws_worse_than_uniform_ones_sound_after_three_parts_unless_retreated_from():
    weights = np.tile([0.5, 1.5], N // 2)
    worse, better = np.tile([1.0, 3.0], N // 2), np.tile([3.0, 1.0], N // 2)
    alarms, state = _alarms()
    assert _told(alarms, 5, weight=weights, norms=better) == []
    assert _told(alarms, 2, weight=weights, norms=worse) == []
    assert _told(alarms, 1, weight=weights, norms=better) == []
    assert _told(alarms, 2, weight=weights, norms=worse) == []
    (text,) = _told(alarms, 9, weight=weights, norms=worse)
    # (0.5 + 4.5)^2 / (2 (0.25 + 20.25)) and (0.5 + 4.5)^2 / (2 (0.5 + 13.5))
    assert "effective sample size is 0.61 of the batch and would be 0.89 with" in text
    alarms, state = _alarms()
    state.armed = False  # which Blocks has told
    assert _told(alarms, 9, weight=weights, norms=worse) == []


def test_one_per_cent_that_takes_too_many_draws_is_named():
    p = np.full(N, 0.7 / 990)
    odd = np.arange(7, N, 100)
    p[odd] = 0.3 / 10 * (1 + 0.1 * np.linspace(1, -1, 10))
    (text,) = _told(_alarms()[0], 5, p=p)
    assert "10 of 1000 examples take 30% of all draws" in text
    assert str(odd.tolist()) in text
    assert _told(_alarms()[0], 5, importance=False, p=p) == []
    np.testing.assert_array_equal(share_of_top(p)[0], odd)
    p[odd] = 0.19 / 10
    assert _told(_alarms()[0], 5, p=p / p.sum()) == []


def test_examples_not_drawn_for_long_or_never_seen_are_named_but_not_those_set_aside():
    def told(alarms, state, epochs):
        texts = []
        for _ in range(epochs):
            state.times_drawn += np.arange(N) != 5
            texts += _part(alarms)
        return texts

    alarms, state = _alarms()
    state.table.observe(np.arange(N), np.ones(N), np.ones(N), 0)
    assert told(alarms, state, 40) == []  # 1/0.05 epochs is when the last ones are due
    (text,) = told(alarms, state, 1)
    assert "1 of 1000 not drawn, or hardly, for 40 epochs' worth" in text
    assert "examples [5]" in text
    alarms, state = _alarms()
    state.table.observe(np.arange(N), np.ones(N), np.ones(N), 0)
    _told(alarms, 30)
    state.times_drawn += 1
    assert _told(alarms, 20) == []  # each was drawn in these 50 epochs
    assert len(_told(alarms, 40)) == 1  # and none in the next 40
    alarms, state = _alarms()
    for _ in range(3):
        state.bad_examples.strike([5], sure=True)
    state.table.observe(np.arange(N), np.ones(N), np.ones(N), 0)
    assert told(alarms, state, 60) == []
    alarms, state = _alarms()
    state.table.observe(np.arange(980), np.ones(980), np.ones(980), 0)
    state.times_drawn += 1
    assert _told(alarms, 40) == []
    (text,) = _told(alarms, 1)
    assert "Received: 20 of 1000" in text and "examples [980, 981," in text
    assert _told(_alarms(None)[0], 50) == []


def test_a_gain_ratio_at_its_cap_for_an_epoch_sounds():
    alarms, _ = _alarms()
    gains = np.full(50, 8.0)
    gains[30] = 7.9
    assert alarms.take_in(np.ones(N), np.ones(N), gains, True, UNIFORM) == []
    gains = np.full(30, 8.0)
    assert alarms.take_in(np.ones(600), np.ones(600), gains, True, UNIFORM) == []
    gains[0] = np.nan  # a skipped step
    (text,) = alarms.take_in(np.ones(600), np.ones(600), gains, True, UNIFORM)
    assert "at its cap of 8 for 78 steps" in text
    assert _told(_alarms()[0], 5, gain=7.99) == []
    assert _told(_alarms()[0], 5, gain=8.0, importance=False) == []


def test_training_warns_once_in_a_fit_and_not_where_all_is_well(monkeypatch):
    model = small.model(sampling=RAIS(seed=0, retreat_below=0.0))
    assert small.warned(small.fit, model, epochs=11) == []  # more than three parts
    take_in = Alarms.take_in

    def at_the_cap(self, weights, norms, gains, *others):
        return take_in(self, weights, norms, np.full_like(gains, 8.0), *others)

    monkeypatch.setattr(Alarms, "take_in", at_the_cap)
    found = small.warned(small.fit, model, epochs=11)
    assert len(found) == 1 and found[0].startswith("The gain ratio was at its cap")


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0, 2.0])
def test_no_share_that_is_taken_is_passed_over_by_the_glance_before(sigma):
    p = np.random.default_rng(0).lognormal(0.0, sigma, 5000)
    p /= p.sum()
    taken = share_of_top(p)[1]
    assert may_take_share(p, taken)
    assert not may_take_share(np.full(5000, 1 / 5000), 0.1001)
