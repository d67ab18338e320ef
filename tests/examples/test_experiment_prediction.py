"""What could be predicted: shares of the reduction, and what was known when."""

import numpy as np
import pytest

from examples.common.records import Records
from examples.experiments import prediction
from examples.experiments.prediction import Seen, attained, shares_of
from examples.experiments.variance import attained_share

pytestmark = pytest.mark.examples


def test_the_share_from_weighted_draws_is_that_of_all_examples():
    rng = np.random.default_rng(0)
    norms, q = rng.exponential(size=50), rng.exponential(size=50) + 0.1
    p = np.round(rng.exponential(size=50) * 100) + 1
    drawn = np.repeat(np.arange(50), p.astype(int))  # exactly in proportion to p
    weights = p.sum() / (50 * p[drawn])
    found = attained(weights, norms[drawn], q[drawn])
    assert found == pytest.approx(attained_share(norms, q / q.sum()), rel=1e-9)


def test_a_draw_comes_with_what_was_known_when_it_was_planned():
    seen, ones = Seen(3), np.ones(2)
    seen.plan(0)
    seen.observe_classes(np.array([5, 6, 7]))
    seen.observe(np.array([0, 1]), ones, np.array([2.0, 4.0]), ones, batch_size=1)
    seen.observe_losses(np.array([0, 1]), np.array([0.2, 0.4]))
    seen.plan(3)  # the step before it belongs to the first plan
    seen.observe(np.array([1, 1]), ones, np.array([8.0, 1.0]), ones, batch_size=1)
    seen.observe_losses(np.array([1, 1]), np.array([0.8, 0.1]))
    seen.plan(4)
    seen.observe(np.array([1, 0]), ones, np.array([0.0, 0.0]), ones, batch_size=1)
    first, second, third = seen.draws
    assert first[:, 6].tolist() == [0, 0] and np.isnan(first[:, 7:]).all()
    assert second[:, :5].tolist() == [[2, 1, 8, 1, 1], [3, 1, 1, 1, 1]]
    nan = np.nan
    assert second[0, 6] == 0 and np.isnan(second[0, 7:]).all()
    # class, visits, steps since, last norm, the one before, last loss, the one before
    np.testing.assert_array_equal(second[1, 5:12], [6, 1, 2, 4, nan, 0.4, nan])
    np.testing.assert_array_equal(third[0, 5:10], [6, 3, 1, 1, 4])
    np.testing.assert_array_equal(third[1, 5:12], [5, 1, 5, 2, nan, 0.2, nan])
    np.testing.assert_array_equal(third[1, 12:], [2.0, 2.0])


def test_trees_find_what_the_last_norm_does_not_tell():
    rng, k = np.random.default_rng(0), 20_000
    classes, last = rng.integers(0, 3, k), rng.exponential(size=k) + 0.1
    norms = np.where(classes == 1, last, 1.0 / last)
    known = np.zeros([k, 9])
    known[:, 0], known[:, 3] = classes, last
    columns = [np.arange(k), np.ones(k), norms, np.ones(k), np.arange(k)]
    found = shares_of(np.concatenate([np.stack(columns, axis=1), known], axis=1))
    assert found["rais"] == pytest.approx(0.0)  # uniform draws
    assert found["trees"] > 0.9 and found["last_norm"] < 0.3


@pytest.mark.long
def test_a_smoke_run_measures_each_epoch_from_the_second_on(tmp_path):
    setting = prediction.SETTINGS["MLP, m = 64"]
    record = prediction.measure(setting, smoke=True)
    records = Records(tmp_path / "prediction_runs.jsonl")
    records.append(setting.key | {"seed": 103}, record)
    assert [epoch["epoch"] for epoch in record["epochs"]] == [2, 3, 4, 5, 6]
    assert all(0 < epoch["rais"] <= 1 for epoch in record["epochs"])
    text = prediction.report(records)
    assert "## MLP, m = 64" in text and "| 6 | " in text
