r"""The chi-bar-squared distribution: squared length of the projection of a normal vector onto a cone.

A likelihood ratio that tests variances at zero is distributed, in large samples, as the sum of
:math:`\chi^2_d` (parameters tested in the interior of their range) and of

.. math:: \|\Pi_K(z)\|_H^2, \qquad z \sim N(0, H^{-1}),

with :math:`K` the cone of values that the tested variances may take (positive semidefinite matrices; of order
one, numbers that are not negative) and H their information, that on all other parameters projected out. It is
a mixture of chi-squared distributions with 0 to m degrees of freedom, m the dimension of the cone.

References
----------
Self & Liang (1987), JASA 82, 605-610; Shapiro (1988), International Statistical Review 56, 49-62; Silvapulle
& Sen (2005), Constrained Statistical Inference, chapter 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from jaxmixed._distributions import chi2_p_values
from jaxmixed.covariance import lower_triangle

DRAWS = 20_000
"""Directions of z over which the distribution is averaged where it has no closed form."""

CONVERGED = 1e-7
"""A projection is found when a further step changes no coordinate by more, in standard deviations."""

REGULAR = 1e-9
"""Information with an eigenvalue below this share of the largest does not tell the tested variances apart."""

_MOST_STEPS, _RELAXATION = 5_000, 1.6


@dataclass(frozen=True, slots=True, eq=False)
class ChiBarSquare:
    """A chi-bar-squared distribution.

    Attributes
    ----------
    free : int
        Degrees of freedom d outside the cone.
    dimension : int
        That of the cone, m.
    weights : (m + 1,) array or None
        Of chi-squared with ``d .. d + m`` degrees of freedom; None for matrices of order two and more, whose
        cone has no flat faces.
    shares : (draws,) array or None
        For random directions, how much of the squared length of a vector of dimension ``d + m`` remains after
        its projection; None where the weights are exact.
    """

    free: int
    dimension: int
    weights: np.ndarray | None
    shares: np.ndarray | None

    def p_value(self, statistic: float) -> tuple[float, float]:
        """Tail area, and its Monte-Carlo standard error, zero where the weights are exact.

        A vector's length is independent of its direction, so only directions are drawn: tail areas keep their
        relative accuracy far out.
        """
        if math.isnan(statistic):
            return math.nan, math.nan
        if statistic <= 0:
            return 1.0, 0.0
        if self.shares is None:
            assert self.weights is not None
            df = self.free + np.arange(self.dimension + 1.0)
            return float(self.weights @ chi2_p_values(np.full(len(df), statistic), df)), 0.0
        tails = np.zeros(len(self.shares))
        left = self.shares > 0
        df = np.array(float(self.free + self.dimension))
        tails[left] = chi2_p_values(statistic / self.shares[left], df)
        return float(tails.mean()), float(tails.std() / math.sqrt(len(tails)))


def chi_bar_square(
    information: np.ndarray, orders: tuple[int, ...], free: int = 0, *, draws: int = DRAWS, seed: int = 0
) -> ChiBarSquare:
    """The distribution for a product of cones of positive semidefinite matrices.

    Parameters
    ----------
    information : (m, m) array
        H, of the lower triangles of the matrices, columnwise, one matrix after the other.
    orders : tuple of int
        Of the matrices: m is the sum of ``r (r + 1) / 2``.
    free : int
        Degrees of freedom outside the cone.
    draws, seed : int
        Of the Monte-Carlo average, which cones of dimension one, and two variances, need not.

    Returns
    -------
    ChiBarSquare

    Raises
    ------
    ValueError
        If the information is singular.

    Examples
    --------
    >>> chi_bar_square(np.eye(2), (1, 1)).weights.tolist()
    [0.25, 0.5, 0.25]
    >>> p_value, error = chi_bar_square(np.eye(3), (1, 1, 1)).p_value(5.0)
    >>> abs(p_value - 0.061762) < 4 * error  # weights 1, 3, 3, 1 eighths
    True
    """
    m = len(information)
    scale = np.sqrt(np.diagonal(information))
    if m == 1:
        return ChiBarSquare(free, 1, np.array([0.5, 0.5]), None)
    if not (scale > 0).all():
        raise ValueError("the information of a tested variance is zero")
    H = information / np.outer(scale, scale)
    if np.linalg.eigvalsh(H)[0] <= REGULAR * m:
        raise ValueError("the information of the tested variances is singular")
    if orders == (1, 1):
        both = 0.25 - math.asin(H[0, 1]) / (2 * math.pi)  # the covariances' correlation is minus H's
        return ChiBarSquare(free, 2, np.array([0.5 - both, 0.5, both]), None)
    H, project = _balanced(information, orders)
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((draws, free + m))
    own = vectors[:, free:]
    z = np.linalg.solve(np.linalg.cholesky(H).T, own.T).T
    found = _projections(z, H, project)
    rest = z - found
    remaining = (own**2).sum(axis=1) - np.einsum("ni,ij,nj->n", rest, H, rest)
    shares = (np.maximum(remaining, 0.0) + (vectors[:, :free] ** 2).sum(axis=1)) / (vectors**2).sum(axis=1)
    weights = None
    if max(orders) == 1:
        active = (found > 0).sum(axis=1)
        weights = np.bincount(active, minlength=m + 1) / draws
    return ChiBarSquare(free, m, weights, shares)


class _Cone:
    """Projection onto the product of cones of matrices, in coordinates of which the length is Frobenius'."""

    def __init__(self, orders: tuple[int, ...]) -> None:
        self.blocks: list[tuple[slice, int]] = []
        start = 0
        for r in orders:
            stop = start + r * (r + 1) // 2
            self.blocks.append((slice(start, stop), r))
            start = stop

    def __call__(self, c: np.ndarray) -> np.ndarray:
        """Nearest elements of the cone, row by row."""
        nearest = np.maximum(c, 0.0)
        for own, r in self.blocks:
            if r > 1:
                nearest[:, own] = _nearest_semidefinite(c[:, own], r)
        return nearest


def _nearest_semidefinite(c: np.ndarray, r: int) -> np.ndarray:
    """Positive parts of matrices of which the triangles are given, off-diagonal elements times root two."""
    rows, columns = lower_triangle(r)
    if r == 2:  # in closed form: eigenvalues are mean +- radius
        mean, half, off = (c[:, 0] + c[:, 2]) / 2, (c[:, 0] - c[:, 2]) / 2, c[:, 1] / math.sqrt(2)
        radius = np.hypot(half, off)
        high, low = np.maximum(mean + radius, 0.0), np.maximum(mean - radius, 0.0)
        middle = (high + low) / 2
        tilt = np.divide(high - low, 2 * radius, out=np.zeros_like(radius), where=radius > 0)
        return np.stack([middle + tilt * half, math.sqrt(2) * tilt * off, middle - tilt * half], axis=1)
    weight = np.where(rows == columns, 1.0, math.sqrt(0.5))
    matrices = np.zeros((len(c), r, r))
    matrices[:, rows, columns] = matrices[:, columns, rows] = c * weight
    values, vectors = np.linalg.eigh(matrices)
    positive = (vectors * np.maximum(values, 0.0)[:, None, :]) @ vectors.swapaxes(1, 2)
    return np.asarray(positive[:, rows, columns] / weight)


def _balanced(information: np.ndarray, orders: tuple[int, ...]) -> tuple[np.ndarray, _Cone]:
    """Information in units of the effects in which that of every variance is one, and the cone there."""
    factors, start = [], 0
    for r in orders:
        rows, columns = lower_triangle(r)
        stop = start + len(rows)
        size = np.sqrt(np.diagonal(information)[start:stop][rows == columns]) ** 0.5
        factors.append(size[rows] * size[columns] * np.where(rows == columns, 1.0, math.sqrt(2)))
        start = stop
    scale = np.concatenate(factors)
    return information / np.outer(scale, scale), _Cone(orders)


def _projections(z: np.ndarray, H: np.ndarray, project: _Cone) -> np.ndarray:
    """Projections of the rows of z onto a cone in the metric of H.

    The alternating direction method of multipliers (Boyd et al. 2011, Foundations and Trends in Machine
    Learning 3, 1-122, section 3), for all rows together; rows leave as they are found.
    """
    eigenvalues = np.linalg.eigvalsh(H)
    rho = math.sqrt(eigenvalues[0] * eigenvalues[-1])
    inverse = np.linalg.inv(H + rho * np.eye(len(H)))
    found, open_rows = project(z), np.arange(len(z))
    target, w = z @ H @ inverse, found.copy()
    u = np.zeros_like(z)
    tolerance = CONVERGED / math.sqrt(eigenvalues[-1])
    for step in range(_MOST_STEPS):
        c = target + rho * (w - u) @ inverse
        relaxed = _RELAXATION * c + (1 - _RELAXATION) * w
        new = project(relaxed + u)
        u += relaxed - new
        moved = np.maximum(np.abs(new - w).max(axis=1), np.abs(c - new).max(axis=1))
        w = new
        if step % 10 == 9:
            done = moved <= tolerance
            found[open_rows[done]] = w[done]
            open_rows, target, w, u = open_rows[~done], target[~done], w[~done], u[~done]
            if not len(open_rows):
                break
    found[open_rows] = w
    return found
