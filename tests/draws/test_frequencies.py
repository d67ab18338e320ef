"""How often examples are drawn: of a hundred thousand, of ten million, over blocks."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from keras_osgd.draws import reshuffled
from keras_osgd.draws.reshuffled import search
from keras_osgd.scores import distributions


def _rng(seed):
    return np.random.default_rng(seed)


def _skewed(n, floor, rng):
    scores = tf.constant(rng.lognormal(0.0, 2.0, n))
    return distributions.with_floor(distributions.oracle(scores), floor).numpy()


def _ten_million(floor, rng):
    """Returns the same in place: 80 MB an array."""
    p = rng.lognormal(0.0, 3.0, 10_000_000)
    p *= (1 - floor) / p.sum()
    p += floor / len(p)
    return p


def _grouped(p, visits, least):
    """Returns visits and expected ones, rare examples put together up to `least`."""
    order, size = np.argsort(p), visits.sum()
    expected = np.cumsum(size * p[order])
    ends = np.searchsorted(expected, np.arange(1, expected[-1] // least) * least)
    starts = np.unique(np.concatenate([[0], ends + 1]))
    starts = starts[starts < len(p)]
    groups = [np.add.reduceat(a[order], starts) for a in (visits, size * p)]
    return groups[0], groups[1] * size / groups[1].sum()


def test_a_million_independent_draws_follow_skewed_scores_of_a_hundred_thousand():
    n, size = 100_000, 1_000_000
    p = _skewed(n, 0.05, _rng(0))
    assert p.max() > 1000 * p.min()
    visits = np.bincount(reshuffled.independent(p, size, _rng(1)), minlength=n)
    found, expected = _grouped(p, visits, least=20)
    assert len(found) > 5000 and expected.min() > 9
    assert stats.chisquare(found, expected).pvalue > 1e-3
    # And example by example, by the normal approximation of Pearson's sum.
    pearson = ((visits - size * p) ** 2 / (size * p)).sum()
    variance = 2 * (n - 1) + (1 / p).sum() / size
    assert abs(pearson - (n - 1)) < 4 * np.sqrt(variance)


def _moves(n, rng):
    def elsewhere(p, visited):
        return _skewed(n, 0.1, rng)

    def drifting(p, visited):
        p = p * np.exp(0.3 * rng.normal(size=n))
        return 0.9 * p / p.sum() + 0.1 / n

    def visited_become(factor):
        def move(p, visited):
            p = np.ones(n)
            p[visited] *= factor
            return 0.9 * p / p.sum() + 0.1 / n

        return move

    return {
        "elsewhere": elsewhere,
        "drifting": drifting,
        "visited become rare": visited_become(1e-3),
        "visited become frequent": visited_become(1e3),
    }


@pytest.mark.parametrize("name", _moves(1, _rng(0)))
def test_no_example_is_off_the_visits_it_is_due_by_more_than_one(name):
    n, rng = 600, _rng(2)
    move, size = _moves(n, rng)[name], n // 8
    p, owed, visits, due = _skewed(n, 0.1, rng), np.zeros(n), np.zeros(n), np.zeros(n)
    for block in range(300):
        drawn = reshuffled.reshuffled(owed, p, size, rng)
        owed, due = drawn.owed, due + drawn.credit * size * p
        visits += np.bincount(drawn.index, minlength=n)
        assert (abs(visits - due) <= 1 + 1e-9).all(), block
        p = move(p, np.unique(drawn.index))
    assert visits.min() > 0
    np.testing.assert_allclose(owed, due - visits, atol=1e-8)


@pytest.mark.parametrize("floor", [0.05, 1e-6])
def test_every_one_of_ten_million_examples_is_reached(floor):
    p = _ten_million(floor, _rng(3))
    n = len(p)
    assert p.min() < 1.1 * floor / n
    end = np.cumsum(p)  # in order, as `search` does
    end /= end[-1]
    end[1:] += end[:-1].copy()
    position = end / 2
    del end
    # A generator's numbers are multiples of 2^-53; systematic positions are coarser.
    np.floor(position * 2.0**53, out=position)
    position /= 2.0**53
    index = search(p, position)
    assert len(index) == n
    index -= np.arange(n)
    assert not index.any()


def test_systematic_positions_reach_every_one_of_ten_million_examples():
    size = 1_250_000  # draws of a first block: their density is size p
    density = size * _ten_million(0.05, _rng(4))
    n = len(density)
    ends = np.cumsum(density)
    ends *= size / ends[-1]
    ends[1:] += ends[:-1].copy()
    ends /= 2
    # Position k + offset, with an offset in the middle of one of 2^32 cells.
    number = np.floor(ends)
    offset = (np.floor((ends - number) * 2**32) + 0.5) / 2**32
    index = search(density, (number + offset) / size)
    index -= np.arange(n)
    assert not index.any()
