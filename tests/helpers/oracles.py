"""Slow second implementations, each of another make than the code it checks."""

import itertools
from collections.abc import Callable
from decimal import Decimal, localcontext

import cvxpy
import numpy as np
from scipy import optimize


def robust_in_decimals(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Returns p of equation (6), computed with 60 digits and no largest number."""
    n = len(mean)
    with localcontext(prec=60):
        means = [Decimal(float(x)) for x in mean]
        variances = [Decimal(float(x)) for x in variance]
        sum_of_variances = sum(variances)
        k = (n / sum_of_variances).sqrt() if sum_of_variances else Decimal(0)
        worst = [m + k * v for m, v in zip(means, variances, strict=True)]
        total = sum(worst)
        return np.array([float(x / total) if total else 1.0 / n for x in worst])


def expected_visits(
    draw: Callable[[np.ndarray, float], np.ndarray], density: np.ndarray
) -> np.ndarray:
    """Returns the mean visits of each example over all orders and all offsets.

    Exact: along one order the draws are constant in the offset between the
    fractional parts of the cumulative densities, so that one offset out of each
    piece stands for all of it.

    Args:
        draw: the indices drawn for a permutation and an offset.
        density: `[n]`, n <= 5. Where the pieces end.
    """
    n = len(density)
    visits, orders = np.zeros(n), list(itertools.permutations(range(n)))
    for order in orders:
        order = np.array(order)
        ends = np.unique(np.concatenate([[0.0, 1.0], np.cumsum(density[order]) % 1.0]))
        for left, right in itertools.pairwise(ends):
            index = draw(order, (left + right) / 2)
            visits += (right - left) * np.bincount(index, minlength=n)
    return visits / len(orders)


def block_credit(owed: np.ndarray, probability: np.ndarray, size: int) -> float:
    """Returns the credit at which the expected visits sum to `size`, by bisection."""

    def visits(due_before: float, chance: float, credit: float) -> float:
        due = credit * chance
        if due_before + due <= 0:
            return 0.0
        if due_before < 0 or due_before + due >= 1:
            return due_before + due
        return due / (1 - due_before)

    chances = len(owed) * probability

    def excess(credit: float) -> float:
        pairs = zip(owed, chances, strict=True)
        return sum(visits(o, chance, credit) for o, chance in pairs) - size

    high = (size + 1.0 - owed.min()) / chances.min()
    return optimize.brentq(excess, 0.0, high, xtol=1e-14, rtol=1e-14)


def smallest_uncertainty_set(
    features: np.ndarray,
    weights: np.ndarray,
    norms: np.ndarray,
    mean_features: np.ndarray,
) -> float:
    """Returns the least h of equation (7), as a cone program by interior points."""
    # Columns near 1, as the solver's tolerances are absolute.
    features, scale = features / mean_features, norms.mean()
    k, width = features.shape
    c = cvxpy.Variable(width, nonneg=True)
    d = cvxpy.Variable(width, nonneg=True)
    bound = cvxpy.Variable(k)
    error = cvxpy.multiply(np.sqrt(weights), features @ c - norms / scale)
    variance = features @ d
    # error^2 / variance <= bound, one rotated cone for each observation.
    cone = cvxpy.SOC(
        bound + variance, cvxpy.vstack([2 * error, bound - variance]), axis=0
    )
    problem = cvxpy.Problem(
        cvxpy.Minimize(cvxpy.sum(bound) / k), [cone, cvxpy.sum(d) == 1]
    )
    problem.solve(solver=cvxpy.CLARABEL)
    return float(problem.value * scale**2)
