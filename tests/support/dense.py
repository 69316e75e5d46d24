"""Dense brute-force oracle of the Gaussian mixed model, in NumPy, straight from its definition.

    y = offset + X β + Σ_k Z_k b_k + ε,    b_k[level] ~ N(0, G_k),    ε_i ~ N(0, σ² / w_i)

or b_k ~ N(0, A_k ⊗ G_k) where the levels are related.

Everything goes through the n × n covariance matrix V of y, so that it shares nothing with the library
but the model, and costs O(n³). Covariances G_k are absolute unless an argument says relative (G_k / σ²).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Method = Literal["ml", "reml"]


@dataclass(frozen=True)
class Block:
    """One random-effects term: its covariates, the level of each row, and how the levels are related."""

    Z: Array  # (n, q)
    codes: NDArray[np.int64]  # (n,), 0 .. m - 1
    related: Array | None = None  # (m, m), the identity if None

    @property
    def num_levels(self) -> int:
        return int(self.codes.max()) + 1 if self.related is None else len(self.related)

    def prior(self, cov: Array) -> Array:
        """Covariance of the effects of all levels, A ⊗ G, (m q, m q)."""
        return np.kron(np.eye(self.num_levels) if self.related is None else self.related, cov)

    @property
    def num_effects(self) -> int:
        return self.Z.shape[1]

    def wide(self) -> Array:
        """Z as an n × (m q) matrix; the q columns of a level stand together."""
        n, q = self.Z.shape
        wide = np.zeros((n, self.num_levels, q))
        wide[np.arange(n), self.codes] = self.Z
        return wide.reshape(n, -1)

    def covariance(self, cov: Array) -> Array:
        """What the term contributes to V."""
        if self.related is not None:
            return self.related[np.ix_(self.codes, self.codes)] * (self.Z @ cov @ self.Z.T)
        same_level = self.codes[:, None] == self.codes[None, :]
        return np.where(same_level, self.Z @ cov @ self.Z.T, 0.0)


class GLS(NamedTuple):
    """Generalised least squares: coefficients, their covariance, and the residual y - offset - X β."""

    beta: Array
    cov: Array
    resid: Array


class Profile(NamedTuple):
    """Log-likelihood maximised over β and σ, and where the maximum is."""

    llf: float
    sigma: float
    beta: Array
    cov_beta: Array


@dataclass(frozen=True)
class DenseModel:
    """Data of a mixed model; X must have full column rank."""

    y: Array
    X: Array
    blocks: tuple[Block, ...] = ()
    weights: Array | None = None
    offset: Array | None = None

    @property
    def response(self) -> Array:
        """The response less the offset."""
        return self.y if self.offset is None else self.y - self.offset

    def covariance(self, covs: tuple[Array, ...], sigma: float) -> Array:
        """V, the marginal covariance matrix of y."""
        weights = np.ones_like(self.y) if self.weights is None else self.weights
        V = np.diag(sigma**2 / weights)
        for block, cov in zip(self.blocks, covs, strict=True):
            V += block.covariance(np.asarray(cov, dtype=np.float64))
        return V

    def gls(self, V: Array) -> GLS:
        """Fixed effects at a given V."""
        information = self.X.T @ np.linalg.solve(V, self.X)
        cov = np.linalg.inv(information)
        beta = np.linalg.solve(information, self.X.T @ np.linalg.solve(V, self.response))
        return GLS(beta, cov, self.response - self.X @ beta)

    def loglik(
        self, covs: tuple[Array, ...], sigma: float, method: Method, beta: Array | None = None
    ) -> float:
        """Log-likelihood, profiled over β unless β is given; REML without a log|X'X| term."""
        V = self.covariance(covs, sigma)
        n, p = self.X.shape
        fit = self.gls(V)
        resid = fit.resid if beta is None else self.response - self.X @ beta
        twice = n * np.log(2 * np.pi) + _logdet(V) + resid @ np.linalg.solve(V, resid)
        if method == "reml":
            twice += -p * np.log(2 * np.pi) - _logdet(fit.cov)
        return float(-0.5 * twice)

    def profiled(self, relative: tuple[Array, ...], method: Method) -> Profile:
        """Profile out β and σ at relative covariances G_k / σ²."""
        V = self.covariance(relative, 1.0)
        n, p = self.X.shape
        fit = self.gls(V)
        df = n if method == "ml" else n - p
        sigma = float(np.sqrt(fit.resid @ np.linalg.solve(V, fit.resid) / df))
        covs = tuple(sigma**2 * np.asarray(cov) for cov in relative)
        return Profile(self.loglik(covs, sigma, method), sigma, fit.beta, sigma**2 * fit.cov)

    def blups(self, k: int, covs: tuple[Array, ...], sigma: float) -> Array:
        """Conditional means of the effects of term k at the GLS estimate of β, (m, q)."""
        V = self.covariance(covs, sigma)
        block, cov = self.blocks[k], np.asarray(covs[k])
        scores = block.wide().T @ np.linalg.solve(V, self.gls(V).resid)
        return (block.prior(cov) @ scores).reshape(block.num_levels, -1)

    def blup_cov(
        self, k: int, covs: tuple[Array, ...], sigma: float, beta: Literal["known", "estimated"]
    ) -> Array:
        """Conditional covariance of the effects of term k, level by level, (m, q, q).

        With β known, Var(b | y). With β estimated, the variance of the prediction error b̂ - b.
        """
        V = self.covariance(covs, sigma)
        block, cov = self.blocks[k], np.asarray(covs[k])
        m, q = block.num_levels, block.num_effects
        wide = block.wide() @ block.prior(cov)
        projection = np.linalg.inv(V)
        if beta == "estimated":
            weighted_X = np.linalg.solve(V, self.X)
            projection = projection - weighted_X @ self.gls(V).cov @ weighted_X.T
        full = block.prior(cov) - wide.T @ projection @ wide
        return np.stack([full[i * q : (i + 1) * q, i * q : (i + 1) * q] for i in range(m)])

    def errors(
        self, covs: tuple[Array, ...], sigma: float, beta: Literal["known", "estimated"] = "estimated"
    ) -> Array:
        """Joint covariance of β̂ - β and of all b̂ - b, term by term and level by level.

        The inverse of Henderson's mixed model equations, written so that a covariance may be singular.
        """
        inverse = np.linalg.inv(self.covariance(covs, sigma))
        p, sizes = self.X.shape[1], [block.num_levels * block.num_effects for block in self.blocks]
        prior, start = np.zeros((sum(sizes), sum(sizes))), 0
        for block, cov, size in zip(self.blocks, covs, sizes, strict=True):
            prior[start : start + size, start : start + size] = block.prior(np.asarray(cov))
            start += size
        A = prior @ np.concatenate([block.wide() for block in self.blocks], axis=1).T @ inverse
        of_beta = np.zeros((p, p))
        if beta == "estimated":
            of_beta = np.linalg.inv(self.X.T @ inverse @ self.X)
        AX = A @ self.X
        own = prior - A @ np.linalg.inv(inverse) @ A.T + AX @ of_beta @ AX.T
        return np.block([[of_beta, -of_beta @ AX.T], [-AX @ of_beta, own]])


def _logdet(matrix: Array) -> float:
    sign, logdet = np.linalg.slogdet(matrix)
    if sign <= 0:
        raise np.linalg.LinAlgError("the matrix is not positive definite")
    return float(logdet)
