"""Dense oracle of pseudo-likelihoods of nested Gaussian models, in NumPy, straight from their definition.

    log L = Σ_k w_k log ∫ exp{ Σ_j w_j|k log ∫ exp{ Σ_i w_i|jk log f(y_i | b) } φ(b_j) db_j } φ(b_k) db_k

The logarithm of each integrand is a quadratic function of all effects around a row; an integral over some of
them completes the square. Nothing is orthogonalised, scaled or shared between groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Quadratic:
    """constant + linear'v - v' precision v / 2."""

    precision: Array
    linear: Array
    constant: float

    def times(self, weight: float) -> Quadratic:
        return Quadratic(weight * self.precision, weight * self.linear, weight * self.constant)

    def plus(self, other: Quadratic) -> Quadratic:
        return Quadratic(
            self.precision + other.precision, self.linear + other.linear, self.constant + other.constant
        )

    def integrated(self, cov: Array) -> Quadratic:
        """log ∫ exp(.) φ(v₁; 0, cov) dv₁ over the first effects."""
        q = len(cov)
        inverse = np.linalg.inv(cov)
        P = self.precision[:q, :q] + inverse
        cross, h = self.precision[:q, q:], self.linear[:q]
        solved = np.linalg.solve(P, np.column_stack([cross, h]))
        constant = self.constant + 0.5 * (
            h @ solved[:, -1] - np.linalg.slogdet(P)[1] - np.linalg.slogdet(cov)[1]
        )
        return Quadratic(
            self.precision[q:, q:] - cross.T @ solved[:, :-1],
            self.linear[q:] - cross.T @ solved[:, -1],
            constant,
        )


@dataclass(frozen=True)
class DensePseudoLikelihood:
    """Levels are the finest first: columns Z, codes and weights of the groups for each."""

    y: Array
    X: Array
    Z: Sequence[Array]
    codes: Sequence[NDArray[np.int64]]
    row_weights: Array
    group_weights: Sequence[Array]

    def _row(self, i: int, beta: Array, sigma: float) -> Quadratic:
        z = np.concatenate([Z[i] for Z in self.Z])
        r = self.y[i] - self.X[i] @ beta
        constant = -0.5 * np.log(2 * np.pi * sigma**2) - 0.5 * r**2 / sigma**2
        return Quadratic(np.outer(z, z) / sigma**2, z * r / sigma**2, constant).times(self.row_weights[i])

    def _group(self, depth: int, code: int, beta: Array, covs: Sequence[Array], sigma: float) -> Quadratic:
        """The logarithm of a group's integral as a function of the coarser effects."""
        rows = np.flatnonzero(self.codes[depth] == code)
        if depth == 0:
            parts = [self._row(i, beta, sigma) for i in rows]
        else:
            below = np.unique(self.codes[depth - 1][rows])
            parts = [
                self._group(depth - 1, own, beta, covs, sigma).times(self.group_weights[depth - 1][own])
                for own in below
            ]
        total = parts[0]
        for part in parts[1:]:
            total = total.plus(part)
        return total.integrated(np.asarray(covs[depth]))

    def clusters(self, beta: Array, covs: Sequence[Array], sigma: float) -> Array:
        """Contribution of each group of the coarsest level, its own weight included."""
        top = len(self.Z) - 1
        return np.array(
            [
                self.group_weights[top][code] * self._group(top, code, beta, covs, sigma).constant
                for code in range(int(self.codes[top].max()) + 1)
            ]
        )

    def value(self, beta: Array, covs: Sequence[Array], sigma: float) -> float:
        """The log pseudo-likelihood."""
        return float(self.clusters(beta, covs, sigma).sum())
