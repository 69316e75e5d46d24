"""Predictions of a fit by their definition: rows of one wide matrix for all fixed and random effects.

Nothing is shared with the library but the data and the estimates of the fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import jaxmixed as jm
from tests.support.dense import Array, Block, DenseModel

Term = tuple[int, Array, Array]
"""Position of a term, its columns by row, and the level of each row (-1: unknown)."""


@dataclass(frozen=True)
class DensePredictions:
    """The dense model of a fit with the fit's variances."""

    fit: jm.MixedResults
    model: DenseModel
    covs: tuple[Array, ...]
    sigma: float

    @property
    def kept(self) -> Array:
        return np.flatnonzero(~np.isnan(self.fit.estimates.beta))

    def own_terms(self, rows: Array | slice = slice(None)) -> list[Term]:
        """All terms in rows of the fit."""
        return [(i, block.Z[rows], block.codes[rows]) for i, block in enumerate(self.model.blocks)]

    def combinations(self, X: Array | None, terms: Sequence[Term]) -> tuple[Array, Array]:
        """Weights (n, p + all effects) of the effects in each row, and the variance of unknown levels."""
        n = len(terms[0][2]) if X is None else len(X)
        sizes = [block.num_levels * block.num_effects for block in self.model.blocks]
        starts = np.cumsum([len(self.kept), *sizes])
        wide, unknown = np.zeros((n, starts[-1])), np.zeros(n)
        if X is not None:
            wide[:, : len(self.kept)] = X[:, self.kept]
        for i, Z, codes in terms:
            for row, code in enumerate(codes):
                if code < 0:
                    unknown[row] += Z[row] @ self.covs[i] @ Z[row]
                else:
                    first = starts[i] + code * Z.shape[1]
                    wide[row, first : first + Z.shape[1]] += Z[row]
        return wide, unknown

    def covariance(self, X: Array | None, terms: Sequence[Term], beta: str = "estimated") -> Array:
        """Joint covariance of the errors of rows."""
        wide, unknown = self.combinations(X, terms)
        errors = self.model.errors(self.covs, self.sigma, beta)  # type: ignore[arg-type]
        return wide @ errors @ wide.T + np.diag(unknown)

    def estimates(self) -> Array:
        """Fixed effects and then all predicted effects, as one vector."""
        V = self.model.covariance(self.covs, self.sigma)
        modes = [self.model.blups(i, self.covs, self.sigma).ravel() for i in range(len(self.model.blocks))]
        return np.concatenate([self.model.gls(V).beta, *modes])


def dense_predictions(
    fit: jm.MixedResults, covs: Sequence[Array] | None = None, sigma: float | None = None
) -> DensePredictions:
    """The dense model of a fit, at its own or at other variances."""
    frame, found = fit.frame, fit.estimates
    blocks = []
    for term in found.terms:
        group = frame.groups[term.frame_index]
        related = None if group.relationship is None else group.relationship.matrix
        blocks.append(Block(np.asarray(group.Z), group.codes, related))
    kept = ~np.isnan(found.beta)
    model = DenseModel(frame.y, np.asarray(frame.X)[:, kept], tuple(blocks), frame.weights, frame.offset)
    own = [term.cov for term in found.terms] if covs is None else covs
    return DensePredictions(fit, model, tuple(own), found.sigma if sigma is None else sigma)
