"""The score table cut into shards, one a worker: what it costs, by computation.

Worker w of W holds the examples of its shard and draws its part of each batch from
them alone, with p_i = s_i / (W S_w), S_w the sum of its scores.

Unbiased, however the shards are cut. With weights 1/(n p_i) the mean of one draw is
sum_w (1/W) sum_i (s_i/S_w) grad f_i W S_w/(n s_i) = (1/n) sum_i grad f_i.

Its second moment, v_i the gradient norms, is (1/n^2) sum_i v_i^2/p_i =
(W/n^2) sum_w S_w Q_w, with Q_w the shard's sum of q_i = v_i^2/s_i; in one piece it is
S Q/n^2. Where the scores are the norms, q = s = v, and the ratio is W sum_w S_w^2/S^2.
A batch that takes as many draws of every worker has a variance no larger than that of
a batch whose workers are chosen at random, to which these moments belong.
"""

import numpy as np


def moment_ratio(scores: np.ndarray, norms: np.ndarray, shard: np.ndarray) -> float:
    """Returns the second moment of a draw from shards over one in one piece.

    Args:
        scores: `[n]`, > 0. p is in proportion to them within a shard.
        norms: `[n]`, >= 0.
        shard: `[n]`, 0..W-1, each there.
    """
    q = norms**2 / scores
    sums = np.bincount(shard, scores)
    return len(sums) * sums @ np.bincount(shard, q) / (scores.sum() * q.sum())


def expected_ratio(scores: np.ndarray, norms: np.ndarray, workers: int) -> float:
    """Returns the mean of `moment_ratio` over all cuts into W shards of n/W.

    S_w and Q_w are sums over n/W examples drawn without replacement, so their
    covariance is (n/W) (1 - 1/W) n/(n-1) cov(s, q), cov over all n examples. Hence
    W sum_w E[S_w Q_w] / (S Q) = 1 + (W - 1)/(n - 1) cov(s, q)/(mean s mean q).
    """
    q = norms**2 / scores
    covariance = np.mean((scores - scores.mean()) * (q - q.mean()))
    relative = covariance / (scores.mean() * q.mean())
    return 1 + (workers - 1) / (len(scores) - 1) * relative


def shares(examples: int, workers: int, rng: np.random.Generator) -> np.ndarray:
    """Returns `[n]`, the shard of each example: random, of equal sizes to within 1."""
    return rng.permutation(np.arange(examples) % workers)


def heavy_tailed(kind: str, examples: int, rng: np.random.Generator) -> np.ndarray:
    """Returns `[n]` gradient norms of a known distribution."""
    if kind.startswith("log-normal"):
        return rng.lognormal(sigma=float(kind.split()[-1]), size=examples)
    return 1.0 + rng.pareto(float(kind.split()[-1]), size=examples)
