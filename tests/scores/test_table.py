import numpy as np
import pytest

from keras_osgd.scores import table as score_table
from keras_osgd.scores.checks import DEFAULT_FEATURES, LARGE_FEATURES
from keras_osgd.scores.table import ScoreTable
from tests.helpers import oracles_norms

_ALL = ("constant", "unseen", "average_0.5", "last", "age", "class_mean", "average_0.9")


def _observations(rng, n, blocks, unseen=5):
    """Yields draws with replacement that never meet the last `unseen` examples."""
    for block in range(blocks):
        k = int(rng.integers(1, 2 * n))
        index = rng.integers(0, n - unseen, k)
        yield index, rng.uniform(0.1, 5.0, k), rng.lognormal(0.0, 2.0, k), block


def _filled(n=40, blocks=4, features=DEFAULT_FEATURES, seed=0, scale=1.0, classes=4):
    rng = np.random.default_rng(seed)
    labels = None if classes is None else rng.integers(0, classes, n)
    table = ScoreTable(n, labels, features)
    for index, weights, norms, block in _observations(rng, n, blocks):
        table.observe(index, weights, scale * norms, block)
    return table


@pytest.mark.parametrize("names", [DEFAULT_FEATURES, LARGE_FEATURES, _ALL])
@pytest.mark.parametrize("n_classes", [None, 1, 7])
def test_features_are_those_of_a_table_kept_example_by_example(names, n_classes):
    rng, n = np.random.default_rng(3), 30
    # Class 5 is never observed: its mean is that of all.
    classes = None if n_classes is None else np.arange(n) % n_classes
    table = ScoreTable(n, classes, names)
    slow = oracles_norms.SlowTable(n, classes, names)
    for index, weights, norms, block in _observations(rng, n, blocks=6):
        index = index[index % 7 != 5] if n_classes == 7 else index
        weights, norms = weights[: len(index)], norms[: len(index)]
        table.observe(index, weights, norms, 3 * block)
        slow.observe(index.tolist(), weights, norms, 3 * block)
        expected = slow.features()
        np.testing.assert_allclose(table.features_of(range(n)), expected, rtol=1e-6)
        some = rng.integers(0, n, 9)
        np.testing.assert_allclose(
            table.features_of(some), expected[some], rtol=1e-6, err_msg="of some rows"
        )
        assert table.share_unseen == pytest.approx(1 - len(slow.last) / n)
    assert 0 < table.share_unseen < 1


def test_the_latest_norm_of_an_example_drawn_twice_is_the_one_kept():
    table = ScoreTable(3, None, ("constant", "last", "average_0.75"))
    table.observe([1], [1.0], [4.0], 0)
    table.observe([1, 0, 1, 1], np.ones(4), [100.0, 3.0, 50.0, 8.0], 1)
    np.testing.assert_array_equal(
        table.features_of([0, 1])[:, 1:], [[3.0, 3.0], [8.0, 5.0]]
    )
    np.testing.assert_array_equal(table.last_norms(), [3.0, 8.0, np.nan])


def test_means_are_weighted_so_that_they_estimate_those_over_all_examples():
    rng, n = np.random.default_rng(5), 6
    norms, p = rng.lognormal(size=n), rng.dirichlet(np.ones(n))
    table = ScoreTable(n, np.arange(n) % 2, ("constant", "class_mean"))
    # One draw of each example stands for p_i of all draws: weight 1/(n p_i) times p_i.
    table.observe(np.arange(n), p * 1 / (n * p), norms, 0)
    features = table.features_of([0, 1])
    np.testing.assert_allclose(features[:, 0], norms.mean(), rtol=1e-6)
    np.testing.assert_allclose(
        features[:, 1], [norms[::2].mean(), norms[1::2].mean()], rtol=1e-6
    )


def test_a_class_not_met_for_a_thousand_blocks_falls_back_to_the_mean_of_all():
    table = ScoreTable(2, [0, 1], ("constant", "class_mean"))
    table.observe([0], [1.0], [1e6], 0)
    for block in range(1, 3000):
        table.observe([1], [1.0], [2.0], block)
        assert 1.9 < table.features_of([0])[0, 1] < 1.1e6
    np.testing.assert_allclose(table.features_of([0]), [[2.0, 2.0]], rtol=1e-6)


@pytest.mark.parametrize("classes", [None, 4])
def test_features_are_finite_and_not_negative_even_before_any_observation(classes):
    for blocks in (0, 1, 5):
        table = _filled(blocks=blocks, features=_ALL, classes=classes)
        features = table.features_of(range(40))
        assert np.isfinite(features).all() and (features >= 0).all()
    table = ScoreTable(4, None, _ALL)
    table.observe([0, 1], [1.0, 1.0], [0.0, 0.0], 0)
    np.testing.assert_array_equal(table.features_of(range(4)), 0.0)


@pytest.mark.parametrize("scale", [2.0**-60, 1e-3, 10.0, 2.0**60])
def test_rescaling_all_norms_rescales_all_features(scale):
    plain, scaled = _filled(features=_ALL), _filled(features=_ALL, scale=scale)
    rows = range(40)
    np.testing.assert_allclose(
        scaled.features_of(rows), scale * plain.features_of(rows), rtol=1e-6
    )
    assert (scaled.features_of(rows) > 0).sum() == (plain.features_of(rows) > 0).sum()


@pytest.mark.parametrize("classes", [None, 4])
@pytest.mark.parametrize("features", [DEFAULT_FEATURES, _ALL])
def test_combine_and_mean_features_are_those_of_the_feature_matrix(classes, features):
    table = _filled(features=features, classes=classes)
    matrix = table.features_of(range(40)).astype(np.float64)
    np.testing.assert_allclose(table.mean_features(), matrix.mean(axis=0), rtol=1e-12)
    for seed in range(4):
        coefficients = np.random.default_rng(seed).exponential(size=len(features))
        coefficients[seed] = 0.0
        combined = table.combine(coefficients)
        assert combined.dtype == np.float64
        np.testing.assert_allclose(combined, matrix @ coefficients, rtol=1e-12)


def test_a_table_of_many_examples_is_read_to_its_end():
    n = 40_000  # more than one part
    rng = np.random.default_rng(1)
    table = ScoreTable(n, rng.integers(0, 3, n), _ALL)
    for block in range(3):
        index = rng.integers(0, n - 5, n)
        table.observe(index, np.ones(n), rng.lognormal(size=n), block)
        matrix = table.features_of(range(n)).astype(np.float64)
        np.testing.assert_allclose(table.mean_features(), matrix.mean(0), rtol=1e-12)
    coefficients = rng.exponential(size=len(_ALL))
    combined = table.combine(coefficients)
    np.testing.assert_allclose(combined, matrix @ coefficients, rtol=1e-12)
    other = ScoreTable(n, rng.integers(0, 3, n), _ALL)
    other.mean_features()
    other.load_state_dict(table.state_dict())
    np.testing.assert_array_equal(other.mean_features(), table.mean_features())


def test_combine_refuses_coefficients_of_other_features():
    with pytest.raises(ValueError, match="shorter|longer"):
        _filled().combine(np.ones(3))


def test_the_table_takes_sixteen_bytes_an_example_and_with_owed_mass_twenty_four():
    table = ScoreTable(1000, np.arange(1000) % 10, DEFAULT_FEATURES)
    assert table.bytes_per_example <= 16
    assert table.bytes_per_example + np.zeros(1).nbytes <= 24
    held = {name: a for name, a in table.state_dict().items() if np.ndim(a) == 1}
    assert sum(a.nbytes for a in held.values()) == 1000 * table.bytes_per_example


@pytest.mark.parametrize("classes", [None, 4])
def test_a_loaded_table_goes_on_as_the_saved_one(classes):
    table = _filled(features=_ALL, classes=classes)
    state = table.state_dict()
    other = ScoreTable(40, state.get("classes"), _ALL)
    assert other.holds(state, _ALL)
    other.load_state_dict(state)
    rows = range(40)
    np.testing.assert_array_equal(other.features_of(rows), table.features_of(rows))
    kept = {name: np.copy(value) for name, value in state.items()}
    for both in (table, other):
        both.observe([3, 39, 3], [1.0, 2.0, 3.0], [7.0, 8.0, 9.0], 12)
    for name, value in table.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], value, err_msg=name)
    for name, value in kept.items():  # neither table writes into what was saved
        np.testing.assert_array_equal(state[name], value, err_msg=name)
    assert table.share_unseen == other.share_unseen


def test_a_table_holds_only_states_of_its_own_size_classes_and_features():
    table = _filled()
    assert table.holds(table.state_dict(), DEFAULT_FEATURES)
    assert not table.holds(table.state_dict(), LARGE_FEATURES)
    assert not table.holds(_filled(n=41).state_dict(), DEFAULT_FEATURES)
    assert not table.holds(_filled(classes=None).state_dict(), DEFAULT_FEATURES)
    assert not table.holds(_filled(classes=9).state_dict(), DEFAULT_FEATURES)


def test_the_table_does_not_change_the_classes_it_was_given():
    classes = np.arange(4, dtype=np.int32)
    table = ScoreTable(4, classes)
    state = ScoreTable(4, [3, 2, 1, 0]).state_dict()
    table.load_state_dict(state)
    np.testing.assert_array_equal(classes, np.arange(4))


@pytest.mark.parametrize(
    "features",
    [
        ("last", "constant"),
        ("constant", "last", "last"),
        ("constant", "loss"),
        ("constant", "average_1.0"),
        ("constant", "average_"),
        ("0.5",),
        (),
    ],
)
def test_unknown_repeated_or_unordered_features_are_refused(features):
    with pytest.raises(ValueError, match="must begin with 'constant'.*Received"):
        score_table.require_features(features)


@pytest.mark.parametrize("names", [DEFAULT_FEATURES, _ALL])
@pytest.mark.parametrize("before", [None, 0, 1])
@pytest.mark.parametrize("after", [None, 0, 1])
def test_rows_that_are_forgotten_are_as_never_seen_and_the_others_as_before(
    names, before, after
):
    """With classes that get other numbers where the lowest label comes or goes."""
    rng, n = np.random.default_rng(3), 30
    labels = rng.integers(1, 5, n)
    rows = np.array([29, 4, 12])
    changed = labels.copy()
    changed[rows] = [0, 6, 1]  # no class so far, one so far not met, and one met

    def numbers(y, shift):
        return None if shift is None else y + shift

    table = ScoreTable(n, numbers(labels, before), names)
    slow = oracles_norms.SlowTable(n, numbers(labels, before), names)
    for index, weights, norms, block in _observations(rng, n, blocks=4, unseen=1):
        table.observe(index, weights, norms, block)
        slow.observe(index.tolist(), weights, norms, block)
    table.mean_features()
    table.forget(rows, numbers(changed, after))
    slow.classes = numbers(changed, after)
    moved = 0 if before is None or after is None else after - before
    known = before is not None and after is not None
    slow.means = {
        key if key == "all" else key + moved: value
        for key, value in slow.means.items()
        if key == "all" or (known and key is not None)
    }
    for row in rows:
        slow.seen_at.pop(row, None), slow.last.pop(row, None)
        for name in names:
            slow.averages.pop((name, row), None)
    np.testing.assert_allclose(table.features_of(range(n)), slow.features(), rtol=1e-6)
    np.testing.assert_allclose(table.mean_features(), slow.features().mean(axis=0))
    assert np.isnan(table.last_norms()[rows]).all()
    again = ScoreTable(n, numbers(changed, after), names)
    assert again.holds(table.state_dict(), names)
    again.load_state_dict(table.state_dict())
