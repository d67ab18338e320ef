import itertools

import numpy as np
import pytest
from scipy import stats

from keras_osgd.data.identity import Identity
from keras_osgd.draws import reshuffled
from keras_osgd.draws import reshuffled as draws
from keras_osgd.draws.blocks import Blocks
from keras_osgd.draws.pipeline import PlanBuffers
from keras_osgd.draws.reshuffled import systematic
from keras_osgd.sampling import RAIS
from keras_osgd.scores.state import SamplingState
from keras_osgd.scores.table import ScoreTable
from tests.helpers import oracles


def _rng(seed=0):
    return np.random.default_rng(seed)


def _random_distribution(rng, n, floor=0.1, sigma=1.5):
    p = rng.lognormal(0.0, sigma, n)
    return (1 - floor) * p / p.sum() + floor / n


class _Positions:
    """Stands for a generator and returns chosen numbers in [0, 1)."""

    def __init__(self, positions):
        self.positions = positions

    def random(self, size):
        assert size == len(self.positions)
        return self.positions


def _epochs(index, n):
    """Returns `[epochs, n]`, the draws of each whole epoch, sorted."""
    whole = len(index) // n
    return np.sort(index[: whole * n].reshape(whole, n), axis=1)


@pytest.mark.parametrize(
    "sizes", [[490], [70], [49], [10], [7], [1], [71], [69], [23], [160], [23, 1, 160]]
)
def test_with_uniform_p_blocks_of_any_size_join_to_permutations(sizes):
    n, rng = 70, _rng(sum(sizes))
    owed, p, drawn = np.zeros(n), np.full(n, 1 / n), []
    for size in itertools.islice(itertools.cycle(sizes), -(-30 * n // min(sizes))):
        index, owed, credit, _ = draws.reshuffled(owed, p, size, rng)
        assert credit == pytest.approx(1.0, rel=1e-9)
        drawn.append(index)
    epochs = _epochs(np.concatenate(drawn), n)
    assert len(epochs) >= 30
    np.testing.assert_array_equal(epochs, np.tile(np.arange(n), (len(epochs), 1)))


@pytest.mark.parametrize("aside", [0, 3])
def test_where_p_becomes_uniform_again_blocks_are_permutations_again(aside):
    state, n = SamplingState(), 60
    state.allocate(ScoreTable(n, None), Identity(), 0, "last_layer")
    buffers, drawn = PlanBuffers(4, 4), []
    blocks, candidate = Blocks(RAIS(), state, buffers), _random_distribution(_rng(1), n)
    for _ in range(3):  # three strikes
        state.bad_examples.strike(range(aside), sure=True)
    for number in range(40):
        blocks.make(4 * number, candidate, importance=number < 10)
        if number == 9:
            assert not reshuffled.in_phase(state.owed[aside:])
        drawn.append(blocks.last_plan.index)
    epochs = _epochs(np.concatenate(drawn[10:]), n - aside)
    assert len(epochs) == 8
    np.testing.assert_array_equal(epochs, np.tile(np.arange(aside, n), (8, 1)))
    before = _epochs(np.concatenate(drawn[:10]), n - aside)
    assert (before != np.arange(aside, n)).any(axis=1).all()


def test_examples_wait_for_the_same_mass_where_their_own_visits_have_moved_p():
    state, n, seen = SamplingState(), 60, np.arange(0, 60, 3)
    state.allocate(ScoreTable(n, None), Identity(), 0, "last_layer")
    blocks, old = (
        Blocks(RAIS(), state, PlanBuffers(4, 4)),
        _random_distribution(_rng(1), n),
    )
    blocks.make(0, old, True)
    owed, new = state.owed.copy(), _random_distribution(_rng(2), n)
    blocks.make(4, new, True, np.repeat(seen, 2))
    plan = blocks.last_plan
    before = state.owed - plan.mass * n * new + np.bincount(plan.index, minlength=n)
    waits = np.isin(np.arange(n), seen) & (owed < 0)
    assert 0 < waits.sum() < (owed < 0).sum()
    expected = np.where(waits, owed * new / old, owed)
    np.testing.assert_allclose(before, expected, atol=1e-12)


def test_a_visited_example_that_owes_a_rounding_error_is_not_drawn():
    n = 30
    owed = np.where(np.arange(n) < n // 3, 2 / 3, -1 / 3)
    owed += 1e-13 * _rng().normal(size=n)  # and the last third of an epoch remains
    for seed in range(200):
        index = draws.reshuffled(owed, np.full(n, 1 / n), n // 3, _rng(seed)).index
        np.testing.assert_array_equal(np.sort(index), np.arange(n // 3))


def test_the_order_depends_on_the_seed_alone():
    p, owed = _random_distribution(_rng(1), 50), _rng(2).normal(size=50)
    first = draws.reshuffled(owed, p, 20, _rng(3))
    np.random.seed(0)
    again = draws.reshuffled(owed.copy(), p.copy(), 20, _rng(3))
    other = draws.reshuffled(owed, p, 20, _rng(4))
    np.testing.assert_array_equal(first.index, again.index)
    np.testing.assert_array_equal(first.owed, again.owed)
    assert (first.index != other.index).any()
    same = draws.independent(p, 20, _rng(3)) == draws.independent(p, 20, _rng(3))
    assert same.all()


def test_the_state_passed_in_is_not_changed():
    owed, p = np.zeros(6), np.full(6, 1 / 6)
    drawn = draws.reshuffled(owed, p, 3, _rng())
    draws.refund(owed, 3 * p, drawn.index, 3)
    draws.rescaled(owed - 1, p)
    np.testing.assert_array_equal(owed, 0.0)


@pytest.mark.parametrize(("n", "size"), [(1, 3), (2, 1), (3, 2), (4, 6), (5, 3)])
def test_in_the_first_block_the_estimator_is_exactly_unbiased(n, size):
    rng = _rng(n)
    p, loss = _random_distribution(rng, n, sigma=1.0), rng.normal(size=n)
    density, credit = reshuffled.block_density(np.zeros(n), p, size)
    assert credit == size / n
    visits = oracles.expected_visits(
        lambda order, offset: systematic(density, size, order, offset),
        density,
    )
    np.testing.assert_allclose(visits, size * p, rtol=1e-10)
    estimate = (visits * loss / (n * p)).sum() / size
    np.testing.assert_allclose(estimate, loss.mean(), rtol=1e-10)


def _outcomes(owed, weight, credit):
    """Yields (chance, visits) of one example in a block."""
    visits, _ = reshuffled.cycle_density(
        np.array([owed]), 1 / np.array([weight]), credit
    )
    fewer = int(np.floor(visits[0] + 1e-12))
    more = min(max(visits[0] - fewer, 0.0), 1.0)
    return [(1 - more, fewer), (more, fewer + 1)]


def _by_part(times, owed, due, parts):
    """Returns `[parts]`, the expected visits in equal parts of a block."""
    index, owed, due = (np.full(times, value) for value in (0, owed, due))
    begin, end = (
        reshuffled.places(index, np.full(times, u), owed, due) for u in (0.0, 1.0)
    )
    edges = np.linspace(0.0, 1.0, parts + 1)[:, np.newaxis]
    inside = np.clip(edges, begin, end) - begin
    return np.diff(inside / np.maximum(end - begin, 1e-300), axis=0).sum(axis=1)


def _one_block(law, credit, parts, moved):
    """Follows the exact law of one example: every number of visits is a branch.

    Args:
        law: the chance of each (visits owed, weight of a visit).
        credit: of the block.
        parts: of the block.
        moved: returns the weight after some visits, from that before.

    Returns:
        The law after the block, and `[parts]`, the weight expected.
    """
    paid, after = np.zeros(parts), {}
    for (owed, weight), chance in law.items():
        for share, times in _outcomes(owed, weight, credit):
            if share < 1e-12:
                continue
            due = credit / weight
            paid += chance * share * weight * _by_part(times, owed, due, parts)
            left, following = owed + due - times, weight
            if times:
                following = moved(weight)
                (left,) = draws.rescaled(
                    np.array([left]), np.array([weight / following])
                )
            state = round(left, 9), following
            after[state] = after.get(state, 0.0) + chance * share
    return after, paid


@pytest.mark.parametrize("weight", [0.1, 0.3, 1.0, 2.5, 10.0])
@pytest.mark.parametrize("move", [0.0, 0.15, 1.0])
def test_however_p_moves_by_itself_every_part_of_a_block_expects_the_same_weight(
    weight, move
):
    credit, law, rng = 0.25, {(0.0, weight): 1.0}, _rng(1)
    for _ in range(60):
        law, paid = _one_block(law, credit, 5, lambda weight: weight)
        np.testing.assert_allclose(paid, credit / 5, rtol=1e-6)
        after = weight * np.exp(move * rng.normal())
        law = {(owed, after): chance for (owed, _), chance in law.items()}
    assert all(-1 - 1e-8 < owed < 1 for owed, _ in law)


@pytest.mark.parametrize("weights", [[2.5, 5.0], [4.0, 1.0], [0.75, 0.5, 2.0, 3.0]])
def test_where_each_visit_moves_p_every_block_expects_the_same_weight(weights):
    """Cycles are whole blocks here: p has moved before the next cycle begins."""
    following = dict(itertools.pairwise([*weights, weights[0]]))
    credit, law, seen = 0.25, {(0.0, weights[0]): 1.0}, set()
    for _ in range(40):
        law, paid = _one_block(law, credit, 1, following.get)
        np.testing.assert_allclose(paid, credit, rtol=1e-6)
        seen |= {weight for _, weight in law}
    assert seen == set(weights)


def _visits(owed, weight, credit):
    """Returns the expected visits of one example, case by case."""
    due = credit / weight
    if owed < 0:  # it had its visit
        return max(owed + due, 0.0)
    if owed + due < 1:  # the hazard of a uniform time
        return due / (1 - owed)
    return owed + due


@pytest.mark.parametrize("credit", [1e-3, 0.125, 2.0])
def test_the_density_is_the_one_case_that_holds_and_the_slope_its_own(credit):
    rng, n = _rng(22), 500
    owed, weight = rng.normal(0.0, 1.0, n), rng.lognormal(0.0, 1.0, n)
    owed[:4], weight[:4] = [0.0, 1.0, 1.0 - credit, 3.0], 1.0
    visits, slope = reshuffled.cycle_density(owed, 1 / weight, credit)
    expected = [_visits(*one, credit) for one in zip(owed, weight, strict=True)]
    np.testing.assert_allclose(visits, expected, rtol=1e-11)
    away = abs(1 - owed - credit / weight) > 1e-3  # from where the cases meet
    owed, rate = owed[away], 1 / weight[away]
    visits, slope = reshuffled.cycle_density(owed, rate, credit)
    step = 1e-6 * credit
    after, _ = reshuffled.cycle_density(owed, rate, credit + step)
    np.testing.assert_allclose((after - visits).sum() / step, slope, rtol=1e-5)


def test_where_more_is_owed_than_a_block_holds_it_is_shared_out_in_few_passes(
    monkeypatch,
):
    rng, n, size, passes = _rng(24), 40, 10, []
    p, owed = _random_distribution(rng, n), rng.uniform(1.0, 2.0, n)
    original = reshuffled._density_of_all

    def counted(*args):
        passes.append(args)
        return original(*args)

    monkeypatch.setattr(reshuffled, "_density_of_all", counted)
    found, credit = reshuffled.block_density(owed, p, size)
    assert 0 < credit < 1e-20 and found.sum() > size and len(passes) <= 3
    expected = [_visits(m, 1 / (n * q), credit) for m, q in zip(owed, p, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_density_of_many_examples_is_that_of_each_of_them():
    rng, n = _rng(23), 40_000  # more than one part
    p, owed = _random_distribution(rng, n), rng.normal(0.0, 0.3, n)
    density, credit = reshuffled.block_density(owed, p, n // 8)
    np.testing.assert_allclose(density.sum(), n // 8, rtol=1e-11)
    whole, _ = reshuffled.cycle_density(owed, n * p, credit)
    np.testing.assert_allclose(density, whole, rtol=1e-14)


def test_a_later_block_visits_each_example_as_often_as_its_density_says():
    rng, n, size = _rng(5), 5, 4
    p, owed = _random_distribution(rng, n, sigma=1.0), rng.normal(0.0, 1.0, n)
    density, credit = reshuffled.block_density(owed, p, size)
    assert credit != size / n
    visits = oracles.expected_visits(
        lambda order, offset: systematic(density, size, order, offset),
        density,
    )
    np.testing.assert_allclose(visits, density, atol=1e-10)


def test_frequent_and_rare_examples_get_the_same_weight_from_the_first_blocks_on():
    n, blocks, rng = 4000, 8, _rng(20)
    p = _random_distribution(rng, n)
    owed, weight = np.zeros(n), np.zeros(n)
    for _ in range(blocks):
        index, owed, *_ = draws.reshuffled(owed, p, n // 8, rng)
        weight += np.bincount(index, 1 / (n * p[index]), minlength=n)
    for group in np.array_split(np.argsort(p), 4):
        # Visits of one example in an epoch: at most binomial.
        variance = (1 / (n * p[group])).sum() / len(group) ** 2
        assert abs(weight[group].mean() - 1) < 4 * np.sqrt(variance)


def test_while_p_drifts_the_mean_weight_of_a_block_stays_at_1():
    n, rng, owed, credits = 2000, _rng(21), np.zeros(2000), []
    p = _random_distribution(rng, n)
    for _ in range(100):
        _, owed, credit, _ = draws.reshuffled(owed, p, n // 8, rng)
        credits.append(credit)
        p = p * np.exp(0.1 * rng.normal(size=n))
        p = 0.95 * p / p.sum() + 0.05 / n
    assert abs(np.mean(credits) - 1) < 0.005
    assert np.std(credits) < 0.03


@pytest.mark.long
def test_a_block_as_a_whole_is_drawn_with_the_density_it_states():
    n, size, trials = 6, 4, 20_000
    rng = _rng(6)
    p = _random_distribution(rng, n, sigma=1.0)
    visits = np.zeros(n)
    for _ in range(trials):
        index = draws.reshuffled(np.zeros(n), p, size, rng).index
        visits += np.bincount(index, minlength=n)
    # Visits are one of two neighbouring integers: standard deviation <= 1/2.
    assert abs(visits / trials - size * p).max() < 5 * 0.5 / np.sqrt(trials)


@pytest.mark.parametrize("seed", range(20))
def test_the_credit_is_the_root_that_bisection_finds(seed):
    rng = _rng(seed)
    n, size = int(rng.integers(1, 60)), int(rng.integers(1, 200))
    p = _random_distribution(rng, n, floor=0.01)
    owed = rng.normal([-5.0, 0.0, 5.0][seed % 3], 1.0, n)
    if seed % 3 == 2:
        owed = np.minimum(owed, 0.5 * size / n)  # else they are owed more than `size`
    density, credit = reshuffled.block_density(owed, p, size)
    np.testing.assert_allclose(density.sum(), size, rtol=1e-11)
    np.testing.assert_allclose(credit, oracles.block_credit(owed, p, size), rtol=1e-8)


def test_visits_are_the_density_rounded_down_or_up():
    rng, n, size = _rng(8), 40, 100
    density = size * _random_distribution(rng, n)
    assert density.max() > 2
    for offset in rng.random(50):
        index = systematic(density, size, rng.permutation(n), offset)
        visits = np.bincount(index, minlength=n)
        assert (np.abs(visits - density) < 1 + 1e-9).all()


@pytest.mark.parametrize("offset", [0.0, 0.5, np.nextafter(1.0, 0.0)])
def test_examples_of_density_zero_are_never_drawn_not_even_at_the_ends(offset):
    size = 1_000_000  # where size - 1 + offset is rounded up to size
    density = np.array([0.0, 0.5, 0.0, 0.5, 0.0]) * size
    index = systematic(density, size, np.arange(5), offset)
    np.testing.assert_array_equal(np.unique(index), [1, 3])


def test_the_order_within_a_block_is_uniform():
    n, trials, rng = 4, 24_000, _rng(9)
    orders = {}
    for _ in range(trials):
        index = tuple(draws.reshuffled(np.zeros(n), np.full(n, 1 / n), n, rng).index)
        orders[index] = orders.get(index, 0) + 1
    assert len(orders) == 24
    assert stats.chisquare(list(orders.values())).pvalue > 1e-4


def test_a_block_longer_than_an_epoch_is_a_sequence_of_reshuffled_epochs():
    n, epochs = 40, 10
    index = draws.reshuffled(np.zeros(n), np.full(n, 1 / n), n * epochs, _rng(9)).index
    rows = index.reshape(epochs, n)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(n), (10, 1)))
    assert (rows[1:] != rows[:-1]).any(axis=1).all()


def test_neighbours_in_the_file_meet_in_one_block_as_often_as_any_pair():
    n, size, trials, rng = 8, 4, 4000, _rng(10)
    together = np.zeros((n, n))
    for _ in range(trials):
        index = draws.reshuffled(np.zeros(n), np.full(n, 1 / n), size, rng).index
        together[np.ix_(index, index)] += 1 / trials
    chance = size * (size - 1) / (n * (n - 1))
    bound = 5 * np.sqrt(chance * (1 - chance) / trials)
    assert abs(together[~np.eye(n, dtype=bool)] - chance).max() < bound


def _in_cells(monkeypatch, run=2, cell=4):
    monkeypatch.setattr(reshuffled, "_SHUFFLED_AT_ONCE", 0)
    monkeypatch.setattr(reshuffled, "_RUN", run)
    monkeypatch.setattr(reshuffled, "_CELL", cell)


def test_many_examples_are_drawn_as_often_as_their_density_says(monkeypatch):
    """Also those at the ends of runs and cells, and those left over by both."""
    _in_cells(monkeypatch)
    rng, n, size, trials = _rng(31), 23, 9, 6000
    density = size * _random_distribution(rng, n, sigma=1.0)
    density[[0, 7, 22]] = 0.0
    density *= size / density.sum()
    assert density.max() > 1
    visits = np.zeros(n)
    for _ in range(trials):
        index = reshuffled._in_random_order(density, size, rng)
        times = np.bincount(index, minlength=n)
        assert (abs(times - density) < 1 + 1e-9).all()
        assert np.count_nonzero(np.diff(index)) == np.count_nonzero(times) - 1
        visits += times
    chance = density % 1
    error = np.sqrt(chance * (1 - chance) / trials)
    assert (abs(visits / trials - density) <= 5 * error).all()


@pytest.mark.parametrize("pattern", ["halves", "period 2", "period 8", "pairs"])
def test_no_pattern_of_the_order_of_many_examples_shows_in_the_draws(
    monkeypatch, pattern
):
    """Of systematic draws that are a random half, each pattern gets that of chance."""
    _in_cells(monkeypatch, run=4, cell=32)
    rng, n, size, trials = _rng(32), 256, 32, 4000
    number = np.arange(n)
    marked = {
        "halves": number < n // 2,
        "period 2": number % 2 == 0,
        "period 8": number % 8 < 4,
        "pairs": number // 2 % 2 == 0,
    }[pattern]
    density = np.full(n, size / n)
    drawn = np.array(
        [
            np.count_nonzero(marked[reshuffled._in_random_order(density, size, rng)])
            for _ in range(trials)
        ]
    )
    variance = size * 0.25 * (n - size) / (n - 1)  # of a random set
    assert abs(drawn.mean() - size / 2) < 5 * np.sqrt(variance / trials)
    # The square of a normal number has a variance of 2: 0.022 is one standard error.
    assert abs(drawn.var() / variance - 1) < 5 * np.sqrt(2 / trials)


def test_blocks_of_many_examples_join_to_permutations():
    n, owed, rng, seen = 100_000, np.zeros(100_000), _rng(33), []
    for _ in range(8):
        index, owed, *_ = draws.reshuffled(owed, np.full(n, 1 / n), n // 8, rng)
        seen.append(index)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(n))


def test_a_block_may_be_larger_than_the_training_set():
    index, owed, credit, _ = draws.reshuffled(np.zeros(4), np.full(4, 0.25), 12, _rng())
    np.testing.assert_array_equal(np.bincount(index), 3)
    np.testing.assert_allclose(owed, 0.0, atol=1e-15)
    assert credit == 1.0


def test_a_refund_of_all_visits_leaves_what_was_owed_before_the_draw():
    rng, n, size = _rng(11), 20, 60
    p, owed = _random_distribution(rng, n), rng.normal(size=n)
    drawn = draws.reshuffled(owed, p, size, rng)
    due = draws.credited(p, drawn.credit * size / n, n)
    np.testing.assert_allclose(due, drawn.credit * size * p, rtol=1e-14)
    used, unused = drawn.index[:25], drawn.index[25:]
    assert len(np.unique(unused)) < len(unused)  # some came more than once
    after = draws.refund(drawn.owed, due, unused, size)
    expected = owed + due * 25 / 60
    np.subtract.at(expected, used, 1)
    np.testing.assert_allclose(after, expected, atol=1e-12)


def test_indices_are_int64_and_visits_owed_float64():
    p = np.full(4, 0.25, np.float32)
    drawn = draws.reshuffled(np.zeros(4, np.float32), p, 2, _rng())
    assert drawn.index.dtype == np.int64
    assert drawn.owed.dtype == np.float64
    assert draws.independent(p, 2, _rng()).dtype == np.int64


def test_independent_draws_follow_p():
    p, size = _random_distribution(_rng(12), 20), 200_000
    visits = np.bincount(draws.independent(p, size, _rng(13)), minlength=20)
    assert stats.chisquare(visits, size * p).pvalue > 1e-4


def test_no_example_of_a_million_is_starved_by_the_cumulative_sum():
    n = 1_000_000
    p = _random_distribution(_rng(14), n, floor=0.05, sigma=2.0)
    end = np.cumsum(p.astype(np.longdouble))
    start = np.concatenate([[0.0], end[:-1]])
    for part in (0.001, 0.5, 0.999):  # just inside both ends of each true interval
        positions = ((start + part * (end - start)) / end[-1]).astype(np.float64)
        index = draws.independent(p, n, _Positions(positions))
        np.testing.assert_array_equal(index, np.arange(n))


def test_independent_draws_reach_the_first_and_last_example_and_none_beyond():
    p = np.array([0.0, 0.3, 0.3, 0.4, 0.0])
    ends = _Positions(np.array([0.0, 1 - 2.0**-53, 1.0]))
    np.testing.assert_array_equal(draws.independent(p, 3, ends), [1, 3, 3])
    p = np.full(10, 0.1)
    index = draws.independent(p, 3, ends)
    np.testing.assert_array_equal(index, [0, 9, 9])


@pytest.mark.parametrize("size", [0, -1])
def test_a_block_without_draws_is_refused(size):
    p = np.full(4, 0.25)
    with pytest.raises(ValueError, match="at least 1. Received: size="):
        draws.reshuffled(np.zeros(4), p, size, _rng())
    with pytest.raises(ValueError, match="at least 1. Received: size="):
        draws.independent(p, size, _rng())


@pytest.mark.parametrize(
    "p",
    [[0.5, 0.6], [1.5, -0.5], [np.nan, 1.0], [np.inf, 0.0], [[0.5, 0.5]], []],
    ids=["sum", "negative", "nan", "inf", "shape", "empty"],
)
def test_what_is_no_distribution_is_refused(p):
    p = np.array(p)
    with pytest.raises(ValueError, match="numbers >= 0 that sum to 1. Received"):
        draws.reshuffled(np.zeros(p.shape), p, 2, _rng())
    with pytest.raises(ValueError, match="numbers >= 0 that sum to 1. Received"):
        draws.independent(p, 2, _rng())


def test_visits_owed_to_another_training_set_are_refused():
    with pytest.raises(ValueError, match="one entry per training example"):
        draws.reshuffled(np.zeros(3), np.full(4, 0.25), 2, _rng())


def test_an_example_without_a_chance_is_refused_where_each_is_owed_visits():
    with pytest.raises(ValueError, match="above 0 .* Received: 0.0 at index 1"):
        draws.reshuffled(np.zeros(2), np.array([1.0, 0.0]), 2, _rng())


def test_independent_draws_stand_in_the_order_of_their_random_numbers():
    p, positions = np.array([0.2, 0.5, 0.3]), np.array([0.9, 0.1, 0.6, 0.15, 0.75])
    index = draws.independent(p, 5, _Positions(positions))
    np.testing.assert_array_equal(index, [2, 0, 1, 0, 2])
