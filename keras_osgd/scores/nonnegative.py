"""A quadratic's minimum over numbers that are not negative."""

import numpy as np
from scipy import optimize

__all__ = ["nonnegative_minimum"]


def nonnegative_minimum(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Returns the x >= 0 that minimises x^T G x / 2 - b^T x: a tiny NNLS.

    With G = V L V^T that is |L^(1/2) V^T x - L^(-1/2) V^T b|^2. Eigenvalues of 0,
    as for the difference of duplicated features, count as next to 0.

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
    # Rounding, which a division by a next to zero eigenvalue would blow up.
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
