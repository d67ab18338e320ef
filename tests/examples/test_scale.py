"""What the sampling costs as the training set grows, and in shards."""

import itertools
import sys
import tracemalloc

import numpy as np
import pytest

from examples.benchmarks import scale, scale_report, scale_shards, synthetic_planner
from examples.common.records import Records

pytestmark = pytest.mark.examples

N = 6


def _cuts(workers):
    """Returns every cut of N examples into shards of equal sizes."""
    numbers = np.repeat(np.arange(workers), N // workers)
    return {shard for shard in itertools.permutations(numbers.tolist())}


def _scores_and_norms():
    rng = np.random.default_rng(0)
    norms = rng.lognormal(0.0, 1.5, N)
    return norms * rng.lognormal(0.0, 0.3, N), norms


@pytest.mark.parametrize("workers", [1, 2, 3, 6])
def test_the_mean_moment_of_random_shards_is_that_of_all_cuts(workers):
    scores, norms = _scores_and_norms()
    ratios = [
        scale_shards.moment_ratio(scores, norms, np.array(shard))
        for shard in _cuts(workers)
    ]
    expected = scale_shards.expected_ratio(scores, norms, workers)
    np.testing.assert_allclose(np.mean(ratios), expected, rtol=1e-12)
    if workers in (2, 3):  # and not the same for every cut
        assert max(ratios) > min(ratios) * 1.01


@pytest.mark.parametrize("shard", [[0, 1, 1, 0, 2, 2], [0, 0, 0, 0, 0, 1]])
def test_draws_from_shards_are_unbiased_and_have_the_moment_stated(shard):
    """Goes through every outcome of one draw, also from shards of unequal sizes."""
    scores, norms = _scores_and_norms()
    shard = np.array(shard)
    workers = shard.max() + 1
    chance, estimates = np.zeros(N), np.zeros(N)
    gradients = norms * np.array([1, -1, 1, 1, -1, 1])  # in one dimension
    for worker in range(workers):
        own = shard == worker
        chance[own] = 1 / workers * scores[own] / scores[own].sum()
    estimates = gradients / (N * chance)
    np.testing.assert_allclose(chance.sum(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(chance @ estimates, gradients.mean(), rtol=1e-12)
    p = scores / scores.sum()
    in_one_piece = p @ (gradients / (N * p)) ** 2
    np.testing.assert_allclose(
        chance @ estimates**2 / in_one_piece,
        scale_shards.moment_ratio(scores, norms, shard),
        rtol=1e-12,
    )


def test_shards_are_random_and_of_equal_sizes():
    shard = scale_shards.shares(1003, 10, np.random.default_rng(0))
    assert set(np.bincount(shard)) == {100, 101}
    assert (np.diff(shard) < 0).sum() > 300  # not in the file's order


# Bytes of a refresh per example beside the state and earlier plans, of which a share
# a <= 0.75 can be visited and an eighth is drawn: 8 of p, 8 of what is owed, 8 of it
# once visits have changed p, 8 of density, and in order 8 a each of numbers,
# permutation, density and running sum; 8 of 1/8 for each of positions, intervals,
# numbers, weights and features drawn.
_WORKING_BYTES = 8 + 8 + 8 + 8 + 4 * 8 * 0.75 + 10


def test_a_refresh_takes_no_more_memory_than_its_arrays_add_up_to():
    n = 1_000_000
    made = synthetic_planner.synthetic(synthetic_planner.synthetic_norms(n, 0), 128, 0)
    assert made.state_bytes == 32 * n
    for _ in range(3):  # until blocks follow the scores
        made.plan_block()
    tracemalloc.start()
    try:
        made.plan_block()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 8 * n < peak <= _WORKING_BYTES * n


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_benchmark_measures_once_and_leaves_out_what_is_not_installed(
    tmp_path, capsys
):
    n, records = 20_000, Records(tmp_path / "runs.jsonl")
    scale.compute_shards(records, n)
    for part, measure in (
        ("memory", scale._bytes_of),
        ("refresh", scale._seconds_of),
    ):
        records.append({"part": part, "examples": n}, measure(n))
    ours = {"block draws": ("block draws", n // 8, sys.executable)}
    missing = {"absent": ("cpprb", n // 8, sys.executable)}
    key = {"part": "draws", "examples": n}
    scale._race(records, key, ours | missing, 2, n)
    assert "absent is left out" in capsys.readouterr().out
    measured = dict(records[key])
    assert list(measured["draws_a_second"]) == ["block draws"]
    scale._race(records, key, ours, 2, n)  # it is there already
    assert records[key] == measured
    scale_report.write(Records(tmp_path / "runs.jsonl"), tmp_path)
    written = (tmp_path / "scale.md").read_text()
    assert written.count("### ") == 5 and "| 20,000 | 28 | 28.0 |" in written
