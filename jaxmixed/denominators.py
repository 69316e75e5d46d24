r"""Denominator degrees of freedom: how statistics of linear functions of the fixed effects are distributed.

A :class:`Reference` gives the degrees of freedom of one function, and the F statistic of several with its
own.

**Satterthwaite.** A variance :math:`l'Cl` that is estimated has the degrees of freedom :math:`2 (l'Cl)^2 /
\operatorname{var}(l'Cl)`, whose denominator follows from the covariance of the variance parameters by the
delta method (Giesbrecht & Burns 1985, Biometrics 41, 477-486; several functions at once: Fai & Cornelius
1996, Journal of Statistical Computation and Simulation 54, 363-378, as in Kuznetsova, Brockhoff & Christensen
2017, Journal of Statistical Software 82(13), section 2).

**Kenward & Roger** (1997, Biometrics 53, 983-997) add to C what the estimation of V costs, and choose scale
and degrees of freedom so that F has the first two moments that it should. All that they need are derivatives
along the covariance (:mod:`jaxmixed.variation`), in the metric of variances and covariances; of correlated
residuals, see :mod:`jaxmixed.residual_variation`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from jaxmixed.estimates import Estimates, ResidualEstimate
from jaxmixed.inference import VarianceParameters, parameter_covariance
from jaxmixed.residual_statistics import CorrelatedRows, PatternMoments
from jaxmixed.residual_variation import (
    Lines,
    RestrictedInformation,
    information_by_patterns,
    inverse_information,
    is_linear,
    natural_drift,
    precision_by_patterns,
    unheld,
)
from jaxmixed.statistics import SufficientStatistics
from jaxmixed.variation import Direction, Variation, metric, precision_slopes, vary

EQUAL_DF = 1e-8
"""Degrees of freedom of several functions that differ by less are one number."""

FAR_APART = 1e5
"""Ratio of standard errors beyond which small principal components would be lost in the large ones."""


class Reference(Protocol):
    """Distribution of statistics of linear functions of the p coefficients that are not aliased."""

    @abstractmethod
    def df(self, L: np.ndarray) -> np.ndarray:
        """Degrees of freedom (c,) of each row of L, (c, p), by itself; infinite for a normal statistic."""
        ...

    @abstractmethod
    def joint(self, L: np.ndarray, values: np.ndarray) -> tuple[float, float]:
        """F statistic and denominator degrees of freedom of ``L beta = 0``.

        Parameters
        ----------
        L : (c, p) array
            Linearly independent rows.
        values : (c,) array
            Estimates of ``L beta``, less what the hypothesis says.
        """
        ...


def wald_f(covariance: np.ndarray, L: np.ndarray, values: np.ndarray) -> float:
    """``values' (L C L')^{-1} values / c``, in units of the standard errors: scales may differ widely."""
    of_rows = L @ covariance @ L.T
    scale = np.sqrt(np.diagonal(of_rows))
    with np.errstate(divide="ignore", invalid="ignore"):
        z, correlation = values / scale, of_rows / np.outer(scale, scale)
    if not (np.isfinite(z).all() and np.isfinite(correlation).all()):
        return np.nan
    try:
        return float(z @ np.linalg.solve(correlation, z)) / len(L)
    except np.linalg.LinAlgError:  # nearly collinear columns: one combination has no variance left
        return np.nan


@dataclass(frozen=True, eq=False)
class FixedDf:
    """Degrees of freedom that belong to coefficients; of a function, the fewest of those that it involves.

    Attributes
    ----------
    covariance : (p, p) array
    by_coefficient : (p,) array
        Infinite for normal tests.
    """

    covariance: np.ndarray
    by_coefficient: np.ndarray

    def df(self, L: np.ndarray) -> np.ndarray:
        """Degrees of freedom (c,) of each row."""
        involved = np.where(L != 0, self.by_coefficient, np.inf)
        return involved.min(axis=1, initial=np.inf)

    def joint(self, L: np.ndarray, values: np.ndarray) -> tuple[float, float]:
        """F statistic and denominator degrees of freedom."""
        return wald_f(self.covariance, L, values), float(self.df(L).min())


@dataclass(frozen=True, eq=False)
class Satterthwaite:
    """Degrees of freedom from the sampling variance of each estimated variance.

    Attributes
    ----------
    back : (p, p) array
        Coefficients from those of the statistics' coordinates.
    covariance : (p, p) array
        Of the coefficients in the statistics' coordinates, where its elements are of one size.
    slopes : (k, p, p) array
        Its derivatives in the variance parameters.
    parameter_covariance : (k, k) array
        Of the variance parameters.
    """

    back: np.ndarray
    covariance: np.ndarray
    slopes: np.ndarray
    parameter_covariance: np.ndarray

    def df(self, L: np.ndarray) -> np.ndarray:
        """Degrees of freedom (c,) of each row."""
        rows = L @ self.back
        variance = np.einsum("ci,ij,cj->c", rows, self.covariance, rows)
        gradient = np.einsum("ci,kij,cj->ck", rows, self.slopes, rows)
        of_variance = np.einsum("ck,kl,cl->c", gradient, self.parameter_covariance, gradient)
        with np.errstate(divide="ignore", invalid="ignore"):
            return 2 * variance**2 / of_variance

    def joint(self, L: np.ndarray, values: np.ndarray) -> tuple[float, float]:
        """F statistic and denominator degrees of freedom, from the t statistics of uncorrelated functions.

        These are the principal components of the estimates in the units that L gives them, as in lmerTest; in
        units of their standard errors where those are too far apart for an eigendecomposition.
        """
        rows = L @ self.back
        scale = np.sqrt(np.einsum("ci,ij,cj->c", rows, self.covariance, rows))
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            return np.nan, np.nan
        if scale.max() < FAR_APART * scale.min():
            scale = np.full_like(scale, scale.max())
        scaled, z = L / scale[:, None], values / scale
        rows = scaled @ self.back
        eigenvalues, vectors = np.linalg.eigh(rows @ self.covariance @ rows.T)
        t_squared = (vectors.T @ z) ** 2 / eigenvalues
        return float(t_squared.mean()), _joint_df(self.df(vectors.T @ scaled))


def _joint_df(df: np.ndarray) -> float:
    """Denominator degrees of freedom of the mean of squared t statistics, from those of each."""
    q = len(df)
    if q == 1 or np.ptp(df) < EQUAL_DF * df[0]:
        return float(df.mean())
    if not (df > 2).all():
        return 2.0
    expected = np.sum(np.where(np.isinf(df), 1.0, df / (df - 2)))
    return float(2 * expected / (expected - q)) if expected > q else np.inf


def _precision(estimates: Estimates, stats: SufficientStatistics) -> tuple[np.ndarray, np.ndarray]:
    """``X'V^{-1}X`` and its derivatives in the parameters of the factors; V relative to sigma squared."""
    standard = estimates.standard
    by_patterns = not estimates.terms and isinstance(stats.residual, PatternMoments | CorrelatedRows)
    if by_patterns and estimates.residual is not None:
        value, slopes = precision_by_patterns(stats, estimates.residual)
        return value, slopes[:-1]
    if not len(standard):
        return np.array(stats.total[:-1, :-1]), np.zeros((0, estimates.rank, estimates.rank))
    value, slopes = precision_slopes(standard[None], stats)
    return value[0], slopes[0]


def satterthwaite(estimates: Estimates, stats: SufficientStatistics) -> Satterthwaite:
    """Satterthwaite's degrees of freedom for one fit.

    Parameters
    ----------
    estimates : Estimates
        Variance parameters on the boundary are held there.
    stats : SufficientStatistics
        Of the fitted data.

    Returns
    -------
    Satterthwaite
    """
    value, slopes = _precision(estimates, stats)
    phi = np.linalg.inv(value)
    covariance = estimates.sigma**2 * (phi + phi.T) / 2
    along = -covariance @ slopes @ covariance / estimates.sigma**2
    return Satterthwaite(
        back=np.linalg.inv(np.asarray(stats.basis)),
        covariance=covariance,
        slopes=np.concatenate([along, 2 * covariance[None]]),  # the last in log sigma
        parameter_covariance=parameter_covariance(VarianceParameters.of(estimates))[0],
    )


@dataclass(frozen=True, eq=False)
class KenwardRoger:
    """Kenward & Roger's adjusted covariance, scale and degrees of freedom.

    Attributes
    ----------
    back : (p, p) array
        Coefficients from those of the statistics' coordinates.
    unadjusted, adjusted : (p, p) arrays
        Covariances of the coefficients in the statistics' coordinates, Phi and Phi_A, relative to sigma
        squared.
    slopes : (k, p, p) array
        ``P_i = -X'V^{-1} V_i V^{-1} X``.
    parameter_covariance : (k, k) array
        W, from the expected information of the restricted likelihood.
    sigma : float
    """

    back: np.ndarray
    unadjusted: np.ndarray
    adjusted: np.ndarray
    slopes: np.ndarray
    parameter_covariance: np.ndarray
    sigma: float

    @property
    def covariance(self) -> np.ndarray:
        """The adjusted covariance (p, p) of the coefficients."""
        found = self.sigma**2 * self.back @ self.adjusted @ self.back.T
        return (found + found.T) / 2

    def df(self, L: np.ndarray) -> np.ndarray:
        """Degrees of freedom (c,) of each row."""
        return np.array([self._moments(row[None])[1] for row in L @ self.back])

    def joint(self, L: np.ndarray, values: np.ndarray) -> tuple[float, float]:
        """Scaled F statistic and its denominator degrees of freedom."""
        scale, df = self._moments(L @ self.back)
        return scale * wald_f(self.covariance, L, values), df

    def _moments(self, rows: np.ndarray) -> tuple[float, float]:
        """Scale lambda of F and degrees of freedom m (Kenward & Roger 1997, equations 4 to 8)."""
        q = len(rows)
        size = np.sqrt(np.einsum("ci,ij,cj->c", rows, self.unadjusted, rows))
        rows = rows / size[:, None]
        half = rows @ self.unadjusted
        theta = half.T @ np.linalg.inv(half @ rows.T) @ half  # Phi Theta Phi
        M = theta @ self.slopes
        traces = np.einsum("kii->k", M)
        A1 = float(traces @ self.parameter_covariance @ traces)
        A2 = float(np.einsum("kij,lji,kl->", M, M, self.parameter_covariance))
        if not np.isfinite(A2) or A2 <= 0:
            return 1.0, np.nan if np.isnan(A2) else np.inf
        if q == 1:  # A1 = A2, and the general form, which has poles at A2 = 1/2 and 1, is this elsewhere
            return 1.0, 2 / A2
        B = (A1 + 6 * A2) / (2 * q)
        g = ((q + 1) * A1 - (q + 4) * A2) / ((q + 2) * A2)
        d = 3 * q + 2 * (1 - g)
        c1, c2, c3 = g / d, (q - g) / d, (q + 2 - g) / d
        with np.errstate(divide="ignore", invalid="ignore"):
            shrunk = np.float64(1 - A2 / q)  # the inverse of the approximate mean of F
            ratio = (shrunk / (1 - c2 * B)) ** 2 * (1 + c1 * B) / (1 - c3 * B) / q
            m = 4 + (q + 2) / (q * ratio - 1)
            return float(m * shrunk / (m - 2)), float(m)


def _directions(estimates: Estimates) -> tuple[list[Direction], dict[tuple[int, int], int], list[Direction]]:
    """Directions of the variance parameters; which pairs have curvature; and the directions of that."""
    first: list[Direction] = []
    bent: dict[tuple[int, int], int] = {}
    curved: list[Direction] = []
    for number, term in enumerate(estimates.terms):
        found, start = metric(term.covariance, term.standard), len(first)
        first += [{number: change} for change in found.slopes]
        if found.curvatures is None:
            continue
        for a in range(len(found.slopes)):
            for b in range(a, len(found.slopes)):
                if found.curvatures[a, b].any():
                    bent[start + a, start + b] = len(curved)
                    curved.append({number: found.curvatures[a, b]})
    return first, bent, curved


def _with_residual(found: Variation, nobs: float) -> Variation:
    """Derivatives with the residual variance as a further parameter, in place of the last direction.

    The last direction is that of all random effects' covariances together. V is homogeneous of degree one in
    them and the residual variance, and what is not known of the latter follows by Euler's theorem.
    """
    k = len(found.first) - 1
    value, first, second = found.value, found.first.copy(), found.second.copy()
    logdet_first, logdet_second = found.logdet_first.copy(), found.logdet_second.copy()
    first[k] = -(value + found.first[k])
    second[:k, k] = second[k, :k] = -(2 * found.first[:k] + found.second[:k, k])
    # Along the joint direction twice, and once it and once the residual.
    joint = -(2 * found.first[k] + found.second[k, k])
    second[k, k] = -(2 * first[k] + joint)
    logdet_first[k] = nobs - found.logdet_first[k]
    logdet_second[:k, k] = logdet_second[k, :k] = -(found.logdet_first[:k] + found.logdet_second[:k, k])
    joint_logdet = -(found.logdet_first[k] + found.logdet_second[k, k])
    logdet_second[k, k] = -(logdet_first[k] + joint_logdet)
    return Variation(value, first, second, logdet_first, logdet_second)


def covariance_variation(estimates: Estimates, stats: SufficientStatistics) -> tuple[Variation, np.ndarray]:
    """Derivatives in the variances and covariances and, last, the residual variance, all relative to sigma.

    Parameters
    ----------
    estimates : Estimates
    stats : SufficientStatistics

    Returns
    -------
    Variation
        Of K directions. Effects of variance zero have none.
    bend : (K, K, p, p) array
        ``X'V^{-1} V_ab V^{-1} X`` of the parameters in which V is not linear, zero elsewhere.
    """
    p, nobs = estimates.rank, float(np.asarray(stats.nobs))
    first, bent, curved = _directions(estimates)
    k = len(first)
    bend = np.zeros((k + 1, k + 1, p, p))
    if not first:
        value = _precision(estimates, stats)[0]
        nothing = np.zeros((1, p, p))
        none = Variation(value, nothing, nothing[None], np.zeros(1), np.zeros((1, 1)))
        return _with_residual(none, nobs), bend
    factors = [term.covariance.factor(term.standard) for term in estimates.terms]
    joint = {number: T @ T.T for number, T in enumerate(factors)}
    pairs = [*zip(*np.triu_indices(k + 1), strict=True), *((k + 1 + c,) * 2 for c in range(len(curved)))]
    found = vary(factors, [*first, joint, *curved], stats, np.array(pairs, dtype=np.int64))
    for (a, b), c in bent.items():
        bend[a, b] = bend[b, a] = -found.first[k + 1 + c]
    return _with_residual(found.leading(k + 1), nobs), bend


def expected_information(variation: Variation) -> np.ndarray:
    """Expected information (K, K) of the restricted likelihood about the variance parameters.

    ``(tr(P V_a P V_b)) / 2`` with P the matrix of the restricted likelihood.
    """
    phi = np.linalg.inv(variation.value)
    M = phi @ variation.first
    of_products = np.einsum("ij,abji->ab", phi, variation.second)  # tr Phi (Q_ab + Q_ba)
    return (-variation.logdet_second - of_products + np.einsum("aij,bji->ab", M, M)) / 2


def _information(estimates: Estimates, stats: SufficientStatistics) -> RestrictedInformation:
    """What the method takes of all variance parameters."""
    if estimates.residual is not None:
        if not estimates.terms:
            return information_by_patterns(stats, estimates.residual)
        return _with_correlated_residuals(estimates, estimates.residual, stats)
    variation, bend = covariance_variation(estimates, stats)
    information = expected_information(variation)
    scale = np.sqrt(np.diagonal(information))
    W = np.linalg.inv(information / np.outer(scale, scale)) / np.outer(scale, scale)
    products = np.einsum("ab,abij->ij", W, variation.second / 2 - bend / 4)
    return RestrictedInformation(variation.value, variation.first, W, products)


def _with_correlated_residuals(
    estimates: Estimates, residual: ResidualEstimate, stats: SufficientStatistics
) -> RestrictedInformation:
    """Of random effects beside a residual structure: the parameters of the effects, then the residuals'."""
    first, bent, curved = _directions(estimates)
    basis = unheld(residual)
    k, size, size_curved = len(first), len(basis), len(curved)
    a, b = np.triu_indices(0 if is_linear(stats, residual) else size)
    nothing: Direction = {}
    directions = [*first, *[nothing] * size, *curved, *[nothing] * len(a)]
    one = np.zeros((len(directions), size))
    one[k : k + size] = basis
    left, right = np.zeros_like(one), np.zeros_like(one)
    own = np.arange(k + size + size_curved, len(directions))
    left[own], right[own] = basis[a], basis[b]
    all_curved = np.arange(k + size, len(directions))
    pairs = np.concatenate(
        [np.stack(np.triu_indices(k + size), axis=1), np.stack([all_curved, all_curved], axis=1)]
    )
    factors = [term.covariance.factor(term.standard) for term in estimates.terms]
    found = vary(factors, directions, stats, pairs, Lines(residual.free, one, left, right))  # type: ignore[arg-type]
    main = found.leading(k + size)
    W = inverse_information(expected_information(main))
    products = np.einsum("ab,abij->ij", W, main.second / 2)
    if np.isnan(W).any():
        return RestrictedInformation(main.value, main.first, W, products)
    for (c, d), number in bent.items():
        products += (1.0 if c == d else 2.0) * W[c, d] * found.first[k + size + number] / 4
    if len(own):
        among = W[k:, k:]
        products += np.einsum("c,cij->ij", np.where(a == b, 1.0, 2.0) * among[a, b], found.first[own]) / 4
        drift = natural_drift(residual, among)
        products -= np.einsum("e,eij->ij", drift, main.first[k:]) / 4
    return RestrictedInformation(main.value, main.first, W, products)


def kenward_roger(estimates: Estimates, stats: SufficientStatistics) -> KenwardRoger:
    """Kenward & Roger's method for one REML fit.

    Parameters
    ----------
    estimates : Estimates
        Effects of variance zero are held there.
    stats : SufficientStatistics
        Of the fitted data.

    Returns
    -------
    KenwardRoger
    """
    value, P, W, products = _information(estimates, stats)
    phi = np.linalg.inv(value)
    adjustment = products - np.einsum("ab,aij,jk,bkl->il", W, P, phi, P, optimize=True)
    adjusted = phi + 2 * phi @ (adjustment + adjustment.T) / 2 @ phi
    return KenwardRoger(
        back=np.linalg.inv(np.asarray(stats.basis)),
        unadjusted=(phi + phi.T) / 2,
        adjusted=(adjusted + adjusted.T) / 2,
        slopes=P,
        parameter_covariance=W,
        sigma=estimates.sigma,
    )
