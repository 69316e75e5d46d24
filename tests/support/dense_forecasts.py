"""Predictions of rows beside those of a fit by their definition: kriging with the covariance of all rows.

Nothing is shared with the library but the data and the estimates of the fit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

import jaxmixed as jm
from tests.support.dense import Array
from tests.support.dense_residuals import Structure


class Effects(NamedTuple):
    """A random-effects term: its grouping, the columns besides the intercept, and the effects' covariance."""

    group: str
    columns: tuple[str, ...]
    cov: Array


class Forecast(NamedTuple):
    """Of new rows: predictions, and standard deviations of the errors of means and responses, (m,) each."""

    estimate: Array
    of_mean: Array
    of_response: Array


@dataclass(frozen=True)
class DenseForecasts:
    """A model with all its variances, on observed and on new rows.

    The columns of the fixed effects are the intercept and `columns`.
    """

    data: pd.DataFrame
    new: pd.DataFrame
    response: str
    columns: tuple[str, ...]
    structure: Structure
    parameters: dict[str, float]
    sigma: float
    effects: tuple[Effects, ...] = ()

    @property
    def whole(self) -> pd.DataFrame:
        """Observed rows, then new ones."""
        return pd.concat([self.data, self.new], ignore_index=True)

    def design(self, columns: tuple[str, ...]) -> Array:
        """An intercept and these columns of all rows."""
        own = [self.whole[name].to_numpy(dtype=np.float64) for name in columns]
        return np.column_stack([np.ones(len(self.whole)), *own])

    @property
    def residual(self) -> Array:
        """Covariance of the residuals of all rows."""
        return self.sigma**2 * self.structure.relative(self.whole, self.parameters, self.sigma)

    @property
    def covariance(self) -> Array:
        """Covariance of the responses of all rows."""
        total = self.residual
        for term in self.effects:
            Z = self.design(term.columns)
            codes = pd.factorize(self.whole[term.group])[0]
            total = total + (Z @ term.cov @ Z.T) * (codes[:, None] == codes[None, :])
        return total

    def forecast(self) -> Forecast:
        """Universal kriging of the new rows from the observed ones (Cressie 1993, section 3.4.5)."""
        n, V, X = len(self.data), self.covariance, self.design(self.columns)
        y = self.data[self.response].to_numpy(dtype=np.float64)
        inverse = np.linalg.inv(V[:n, :n])
        of_beta = np.linalg.inv(X[:n].T @ inverse @ X[:n])
        beta = of_beta @ X[:n].T @ inverse @ y
        weights = V[n:, :n] @ inverse
        estimate = X[n:] @ beta + weights @ (y - X[:n] @ beta)
        left = X[n:] - weights @ X[:n]
        variance = np.diagonal(V[n:, n:] - weights @ V[:n, n:] + left @ of_beta @ left.T)
        R = self.residual
        conditional = np.diagonal(R[n:, n:] - R[n:, :n] @ np.linalg.solve(R[:n, :n], R[:n, n:]))
        mean = np.sqrt(np.maximum(variance - conditional, 0.0))
        return Forecast(estimate, mean, np.sqrt(variance))


def dense_forecasts(
    fit: jm.MixedResults,
    data: pd.DataFrame,
    new: pd.DataFrame,
    columns: tuple[str, ...],
    structure: Structure,
) -> DenseForecasts:
    """The dense model of a fit at its estimates; random effects have an intercept and columns of the data."""
    effects = tuple(
        Effects(term.group, tuple(name for name in term.names if name != "(Intercept)"), np.asarray(term.cov))
        for term in fit.estimates.terms
    )
    parameters = dict(fit.residual_parameters.items())
    response = fit.frame.response_name
    own = (response, columns, structure, parameters, float(fit.sigma), effects)
    return DenseForecasts(data, new, *own)


def moved(dense: DenseForecasts, parameters: dict[str, float], sigma: float) -> DenseForecasts:
    """The same at other parameters of the residuals; other covariances move with sigma squared."""
    share = (sigma / dense.sigma) ** 2
    effects = tuple(term._replace(cov=share * term.cov) for term in dense.effects)
    return replace(dense, parameters=parameters, sigma=sigma, effects=effects)
