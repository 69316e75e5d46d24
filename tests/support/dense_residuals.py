"""Dense oracle of residual covariance structures, in NumPy, straight from their definitions.

    Var(ε) = σ² W^-1/2 R W^-1/2,    R_ij = d_i d_j C(t_i, t_j) within a residual group, else 0

Correlations of autoregressive and moving-average errors come from the stationary covariance of their state
space form, not from recursions of partial autocorrelations; everything goes through the n × n matrix V of y.
Parameters are read under the names that tables give them, so that the names are tested, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tests.support.dense import Array, DenseModel

Parameters = Mapping[str, float]


@dataclass(frozen=True)
class DenseResidualModel(DenseModel):
    """A mixed model whose residuals have a covariance matrix; `weights` are part of it."""

    relative: Array | None = None  # (n, n), Var(ε) / σ²

    def covariance(self, covs: tuple[Array, ...], sigma: float) -> Array:
        """V, the marginal covariance matrix of y."""
        assert self.relative is not None
        assert self.weights is None, "weights belong into the covariance of the residuals"
        V = sigma**2 * self.relative
        for block, cov in zip(self.blocks, covs, strict=True):
            V = V + block.covariance(np.asarray(cov, dtype=np.float64))
        return V


# Correlations


def autocorrelations(phi: Sequence[float], theta: Sequence[float], longest: int) -> Array:
    """Of e_t = Σ φ_k e_{t-k} + u_t + Σ θ_k u_{t-k} at lags 0 .. longest, (longest + 1,).

    The state (e_t, .., u_t, ..) moves by s' = F s + g u; its stationary covariance P solves
    P = F P F' + g g', and Cov(e_{t+k}, e_t) = (F^k P)_00 (Brockwell & Davis 1991, sec. 12.1).
    """
    p, q = max(len(phi), 1), len(theta)
    F, g = np.zeros((p + q, p + q)), np.zeros(p + q)
    F[0, : len(phi)], F[0, p:] = phi, theta
    F[np.arange(1, p), np.arange(p - 1)] = 1.0
    F[np.arange(p + 1, p + q), np.arange(p, p + q - 1)] = 1.0
    g[0] = 1.0
    if q:
        g[p] = 1.0
    size = p + q
    system = np.eye(size**2) - np.kron(F, F)
    P = np.linalg.solve(system, np.outer(g, g).ravel()).reshape(size, size)
    covariances, power = [], P
    for _ in range(longest + 1):
        covariances.append(power[0, 0])
        power = F @ power
    return np.array(covariances) / covariances[0]


def numbered(parameters: Parameters, name: str) -> list[float]:
    """Parameters name1, name2, ... in this order."""
    found = []
    while f"{name}{len(found) + 1}" in parameters:
        found.append(parameters[f"{name}{len(found) + 1}"])
    return found


def _lags(times: Sequence[Any]) -> NDArray[np.float64]:
    at = np.asarray(times, dtype=np.float64)
    return np.abs(at[:, None] - at[None, :])


def _independent(parameters: Parameters, times: Sequence[Any], labels: Sequence[str]) -> Array:
    del parameters, labels
    return np.eye(len(times))


def _exchangeable(parameters: Parameters, times: Sequence[Any], labels: Sequence[str]) -> Array:
    del labels
    same = np.eye(len(times), dtype=bool)
    return np.where(same, 1.0, parameters["rho"])


def _arma(parameters: Parameters, times: Sequence[Any], labels: Sequence[str]) -> Array:
    del labels
    lags = _lags(times).astype(int)
    phi, theta = numbered(parameters, "phi"), numbered(parameters, "theta")
    return autocorrelations(phi, theta, int(lags.max(initial=0)))[lags]


def _exponential(parameters: Parameters, times: Sequence[Any], labels: Sequence[str]) -> Array:
    del labels
    lags = _lags(times)
    decay = (1 - parameters.get("nugget", 0.0)) * np.exp(-lags / parameters["range"])
    return np.where(np.eye(len(times), dtype=bool), 1.0, decay)


def _toeplitz(parameters: Parameters, times: Sequence[Any], labels: Sequence[str]) -> Array:
    del labels
    lags = _lags(times).astype(int)
    of_lags = np.zeros(int(lags.max(initial=0)) + 1)
    own = numbered(parameters, "rho")[: len(of_lags) - 1]
    of_lags[: len(own) + 1] = [1.0, *own]
    return of_lags[lags]


def _pairs(parameters: Parameters, labels: Sequence[str]) -> Array:
    """corr[a,b] of all pairs of labels; a pair without a parameter is not correlated."""
    C = np.eye(len(labels))
    for i, a in enumerate(labels):
        for j, b in enumerate(labels[:i]):
            C[i, j] = C[j, i] = parameters.get(f"corr[{b},{a}]", 0.0)
    return C


def _of_labels(C: Array, times: Sequence[Any], labels: Sequence[str]) -> Array:
    at = [labels.index(text_of(time)) for time in times]
    return C[np.ix_(at, at)]


def _unstructured(parameters: Parameters, times: Sequence[Any], labels: Sequence[str]) -> Array:
    return _of_labels(_pairs(parameters, labels), times, labels)


def _antedependence(parameters: Parameters, times: Sequence[Any], labels: Sequence[str]) -> Array:
    """Correlations are products of those of the neighbours between (Gabriel 1962)."""
    own = [parameters[f"corr[{a},{b}]"] for a, b in pairwise(labels)]
    size = len(labels)
    C = np.eye(size)
    for i in range(size):
        for j in range(i):
            C[i, j] = C[j, i] = np.prod(own[j:i])
    return _of_labels(C, times, labels)


CORRELATIONS: dict[str, Callable[[Parameters, Sequence[Any], Sequence[str]], Array]] = {
    "independent": _independent,
    "exchangeable": _exchangeable,
    "ar": _arma,
    "ma": _arma,
    "arma": _arma,
    "exponential": _exponential,
    "toeplitz": _toeplitz,
    "banded": _unstructured,
    "unstructured": _unstructured,
    "antedependence": _antedependence,
}


# The covariance of all residuals


@dataclass(frozen=True)
class Structure:
    """Columns of a data frame without missing values, and how the residuals of its rows hang together."""

    family: str
    group: str | None = None
    time: str | None = None
    by: str | None = None
    variance_by: str | None = None
    power: str | None = None  # sd ∝ |column|^delta
    exp: str | None = None  # sd ∝ exp(delta column)
    weights: str | None = None

    def relative(self, data: pd.DataFrame, parameters: Parameters, sigma: float) -> Array:
        """Var(ε) / σ² (n, n) at natural parameters under the names of `fit.residual_parameters`."""
        n = len(data)
        group = np.arange(n) if self.group is None else data[self.group].to_numpy()
        times = data[self.time].tolist() if self.time else [0.0] * n
        labels = [text_of(level) for level in levels_of(data[self.time])] if self.time else []
        by = [text_of(value) for value in data[self.by]] if self.by else [""] * n
        sd = np.array([self._sd(row, parameters, sigma) for _, row in data.iterrows()])
        R = np.zeros((n, n))
        for name in dict.fromkeys(group.tolist()):
            rows = np.flatnonzero(group == name)
            own = of_stratum(parameters, by[rows[0]])
            C = CORRELATIONS[self.family](own, [times[row] for row in rows], labels)
            R[np.ix_(rows, rows)] = C * np.outer(sd[rows], sd[rows])
        return R / sigma**2

    def _sd(self, row: pd.Series, parameters: Parameters, sigma: float) -> float:
        """Standard deviation of a row's residual."""
        names = [text_of(row[column]) for column in (self.by, self.variance_by) if column]
        stratum = text_of(row[self.by]) if self.by else ""
        sd = parameters[f"sd[{','.join(names)}]"] if names else sigma
        if self.power:
            sd *= abs(row[self.power]) ** of_stratum(parameters, stratum)["delta"]
        if self.exp:
            sd *= np.exp(of_stratum(parameters, stratum)["delta"] * row[self.exp])
        return float(sd / np.sqrt(row[self.weights] if self.weights else 1.0))


def levels_of(column: pd.Series) -> list[Any]:
    """Levels in the order of a categorical column, else sorted."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        present = set(column)
        return [level for level in column.cat.categories if level in present]
    return sorted(set(column))


def text_of(value: Any) -> str:
    """A level as names of parameters have it."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def of_stratum(parameters: Parameters, stratum: str) -> dict[str, float]:
    """Parameters of one stratum without its name."""
    end = f"[{stratum}]" if stratum else ""
    return {name.removesuffix(end): value for name, value in parameters.items() if name.endswith(end)}
