"""Equation (7): the uncertainty set of all gradient norms, fitted to a window of some.

`fit` learns two coefficient vectors: c, which predicts the gradient norm of an
example from its features s as <c, s>, and d, which says how far off that may be.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize

__all__ = ["UncertaintySet", "fit"]

# The constant feature keeps this share of d, so that <d, s> > 0 for every example.
# It costs the objective at most this much of its value.
_MINIMUM_SHARE = 1e-6
_PERFECT = 1e-12  # a root mean square error of 1e-6 mean norms cannot move p


class UncertaintySet(NamedTuple):
    """Gradient norms v with (1/n) sum_i (v_i - <c, s_i>)^2 / (h <d, s_i>) <= 1.

    Attributes:
        mean: c, `[F]`, >= 0, in gradient norms per unit of the feature.
        spread: d, `[F]`, >= 0, per unit of the feature, scaled so that the mean of
            <d, s_i> over all examples is 1.
        objective: h, >= 0, in squared gradient-norm units. h <d, s_i> and <c, s_i>
            are the variance and the mean of equation (6).
        iterations: number of steps; usually three to eight.
        converged: whether h is proven to be within `tolerance` of the smallest.
    """

    mean: np.ndarray
    spread: np.ndarray
    objective: float
    iterations: int
    converged: bool


# Features [F, k] divided by their means over all examples, importance weights [k]
# divided by k, and norms [k] by their mean: units in which numbers are near 1.
_Window = tuple[np.ndarray, np.ndarray, np.ndarray]


class _Point(NamedTuple):
    """A d, the best c for it, and the objective and its derivative there."""

    share: np.ndarray  # [F], >= 0, sums to 1: d in the units of the window
    mean: np.ndarray  # [F], >= 0: c in the units of the window
    variance: np.ndarray  # [k], > 0: <d, s>
    error: np.ndarray  # [k]: <c, s> - v
    objective: float  # h
    pull: np.ndarray  # [F]: -dh/dd over h, > 1 where d should grow; <d, pull> = 1


def fit(
    features: np.ndarray,
    weights: np.ndarray,
    norms: np.ndarray,
    mean_features: np.ndarray,
    start: UncertaintySet | None = None,
    max_iterations: int = 60,
    tolerance: float = 1e-5,
) -> UncertaintySet:
    """Returns the smallest uncertainty set that contains the observed norms.

    Minimises h(c, d) = (1/k) sum w (<c, s> - v)^2 / <d, s> over c, d >= 0 with
    <d, mean_features> = 1: equation (7) with d's scale taken out. Multiplying d
    by h puts the scale back. h is convex and falls with every step.

    Args:
        features: `[k, F]`, >= 0. s of each observation, as it stood when drawn.
            Feature 0 is the constant one: > 0 for every example.
        weights: `[k]`, >= 0, without unit. Importance weights 1/(n p).
        norms: `[k]`, >= 0. Observed gradient norms v.
        mean_features: `[F]`, >= 0. Means of the features over all n examples.
        start: result for an earlier window, to save steps.
        max_iterations: most steps; bounds the time.
        tolerance: relative error of h that must be proven before `fit` stops. Float64
            allows proofs down to about 1e-5; h itself is then within about 1e-10.

    Returns:
        Coefficients, 0 for features that are 0; they follow the inputs' units.

    Raises:
        ValueError: if shapes disagree, the window is empty, an entry is negative or
            not finite, the constant feature has a 0, or float64 overflows.

    Example:
        >>> constant, ones = np.ones((2, 1)), np.ones(2)
        >>> fit(constant, ones, np.array([1.0, 3.0]), np.ones(1)).mean
        array([2.])

    Reference: Johnson & Guestrin, NeurIPS 2018 (learning the uncertainty set).
    """
    arrays = _checked(features, weights, norms, mean_features)
    window, used, feature_scale, norm_scale = _rescaled(*arrays)
    share = _start_share(start, used, feature_scale)
    mean, spread = np.zeros((2, used.size))
    try:
        point, steps, converged = _minimise(window, share, max_iterations, tolerance)
        mean[used] = point.mean * norm_scale / feature_scale
        spread[used] = point.share / feature_scale
        objective = float(np.asarray_chkfinite(point.objective * norm_scale**2))
        np.asarray_chkfinite([mean, spread])
    except (ValueError, OverflowError) as error:  # also from solvers
        raise ValueError(
            "The window's numbers must not be so far apart that float64 overflows. "
            f"Received: largest {[float(a.max()) for a in arrays]}. "
            "Look for a loss that overflowed, or a learning rate too high."
        ) from error
    return UncertaintySet(mean, spread, objective, steps, converged)


def _minimise(
    window: _Window, share: np.ndarray, max_iterations: int, tolerance: float
) -> tuple[_Point, int, bool]:
    """Returns the best point, the number of steps to it, and whether it is proven.

    The proof: h is convex and of degree -1 in d, and c is best for d, so no other
    d with the same minimum share has an h below h / max_d <d, pull>.
    """
    point, iteration = _evaluate(window, share), 0
    while True:
        largest = point.pull.max()
        bound = largest + _MINIMUM_SHARE * (point.pull[0] - largest)
        proven = bool(bound <= 1.0 + tolerance or point.objective <= _PERFECT)
        stop = proven or iteration >= max_iterations
        following = None if stop else _step(window, point)
        if following is None:
            return point, iteration, proven
        point, iteration = following, iteration + 1


def _step(window: _Window, point: _Point) -> _Point | None:
    """Returns a point with a smaller h, or None if float64 holds none.

    It is Newton's point, or nearer where that overshoots. Failing these, it is
    d_j sqrt(pull_j), which minimises a separable upper bound on h and so cannot fail.
    """
    here = point.share
    move = _newton_share(window, point) - here
    cautious = here * np.sqrt(point.pull)
    for share in (here + move, here + move / 4, here + move / 16, cautious):
        proposal = _evaluate(window, _with_minimum_share(share))
        # A smaller decrease is rounding error, and steps would never end.
        if proposal.objective < (1.0 - 1e-14) * point.objective:
            return proposal
    return None


def _newton_share(window: _Window, point: _Point) -> np.ndarray:
    """Returns the d of Newton's method on the problem that includes d's scale.

    h(c, d) + sum_j d_j has the same minimiser as h with sum_j d_j = 1, except for
    d's scale, which becomes sqrt(h). So the model has no constraint but c, d >= 0.
    With r = (<c, s> - v) / <d, s>, its Hessian is the sum of the outer squares of
    (s, -r s) times 2 w / <d, s>, and its gradient by d is 1 - pull.
    """
    scale = np.sqrt(point.objective)
    features, weights, _ = window
    weights = 2.0 * weights / (scale * point.variance)
    ratio = point.error / (scale * point.variance)
    rows = np.concatenate([features, -ratio * features])
    hessian = (rows * weights) @ rows.T
    by_mean = features @ (weights * point.error)
    gradient = np.concatenate([by_mean, 1.0 - point.pull])
    here = np.concatenate([point.mean, scale * point.share])
    best = nonnegative_minimum(hessian, hessian @ here - gradient)
    spread = best[point.share.size :]
    return spread / spread.sum() if spread.any() else point.share


def _evaluate(window: _Window, share: np.ndarray) -> _Point:
    """Returns the best c for this d, h there, and h's derivative by d."""
    features, weights, norms = window
    variance = share @ features
    weights = weights / variance
    weighted = features * weights
    mean = nonnegative_minimum(weighted @ features.T, weighted @ norms)
    error = mean @ features - norms
    loss = weights * error**2
    objective = loss.sum()  # not a dot product, which BLAS splits among busy cores
    pull = features @ (loss / variance) / (objective or 1.0)
    return _Point(share, mean, variance, error, objective, pull)


def _with_minimum_share(share: np.ndarray) -> np.ndarray:
    share = share / share.sum()
    if share[0] < _MINIMUM_SHARE:
        share *= (1.0 - _MINIMUM_SHARE) / share[1:].sum()
        share[0] = _MINIMUM_SHARE
    return share


def _start_share(
    start: UncertaintySet | None, used: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Returns the d to begin with, in the units of `_Window`."""
    if start is None:
        return np.full(scale.size, 1.0 / scale.size)
    if start.spread.shape != used.shape:
        raise ValueError(
            "`start` must have one coefficient per feature. Received: "
            f"start.spread.shape={start.spread.shape} for {used.size} features. "
            "Pass the result of an earlier fit to the same features, or None."
        )
    share = start.spread[used] * scale
    return _with_minimum_share(share if share.any() else share + 1.0)


def _rescaled(
    features: np.ndarray, weights: np.ndarray, norms: np.ndarray, means: np.ndarray
) -> tuple[_Window, np.ndarray, np.ndarray, float]:
    """Returns the window, a mask of used features, their units and the norms'."""
    largest = features.max(axis=0)
    # Else d could grow without bound along a feature that matters to no example.
    used = (largest > 0.0) & (means > 1e-12 * largest)
    used[0] = True
    # Divided by the largest first, as the sum itself may overflow.
    peak = norms.max()
    norm_scale = float(peak * np.mean(norms / peak)) if peak > 0.0 else 1.0
    rows = np.ascontiguousarray((features[:, used] / means[used]).T)
    window = (rows, weights / weights.size, norms / norm_scale)
    return window, used, means[used], norm_scale


def _checked(*arrays: np.ndarray) -> list[np.ndarray]:
    """Returns the arguments of `fit` as float64, or raises if they do not fit."""
    arrays = [np.asarray(a, np.float64) for a in arrays]
    features, _, norms, means = arrays
    k, width, shapes = norms.size, means.size, [a.shape for a in arrays]
    if not k * width or shapes != [(k, width), (k,), (k,), (width,)]:
        raise ValueError(
            "`features` must be [k, F], `weights` and `norms` [k], `mean_features` "
            f"[F], with k and F at least 1. Received: shapes {shapes}. "
            "Fit only once the window holds observations."
        )
    constant = min(means[0], features[:, 0].min())
    finite = all(a.min() >= 0.0 and a.max() < np.inf for a in arrays)
    if not (constant > 0.0 and finite):  # in this form NaN fails too
        raise ValueError(
            "`features`, `weights`, `norms` and `mean_features` must be finite and "
            ">= 0, and the constant feature 0 be > 0. Received: smallest of it "
            f"{constant}, smallest of each {[float(a.min()) for a in arrays]}, "
            f"largest {[float(a.max()) for a in arrays]}. "
            "Look for a loss that overflowed, or a learning rate too high."
        )
    return arrays


def nonnegative_minimum(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Returns the x >= 0 that minimises x^T G x / 2 - b^T x: a tiny NNLS.

    With G = V L V^T that is |L^(1/2) V^T x - L^(-1/2) V^T b|^2. Eigenvalues of 0,
    as for the difference of duplicated features, are replaced by tiny ones.

    Args:
        matrix: G, `[k, k]`, symmetric, no eigenvalue below 0.
        vector: b, `[k]`.

    Returns:
        `[k]`, >= 0; zeros where G is 0.

    Example:
        >>> nonnegative_minimum(np.eye(2), np.array([1.0, -1.0]))
        array([1., 0.])
    """
    eigenvalues, vectors = np.linalg.eigh(matrix)
    smallest = 1e-14 * eigenvalues[-1]
    if not smallest > 0.0:
        return np.zeros(vector.size)
    target = vectors.T @ vector
    # Rounding errors, which division by a tiny eigenvalue would blow up.
    target[np.abs(target) < 1e-13 * np.abs(target).max()] = 0.0
    eigenvalues = np.maximum(eigenvalues, smallest)
    unbounded = vectors @ (target / eigenvalues)
    if unbounded.min() >= 0.0:
        return unbounded
    roots = np.sqrt(eigenvalues)
    rows, target = roots[:, None] * vectors.T, target / roots
    try:
        return optimize.nnls(rows, target, maxiter=100 * vector.size)[0]
    except RuntimeError:  # rounding can make its active set cycle
        return optimize.lsq_linear(rows, target, (0.0, np.inf)).x
