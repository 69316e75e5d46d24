r"""How much a case moves the estimates, by the measures in use, from what its deletion changes.

With b the p estimated coefficients, C their covariance, and (i) for without case i:

================== ===============================================================================
DFBETAS            :math:`(b_j - b_j(i)) / \mathrm{se}_j(i)`
Cook's distance    :math:`(b - b(i))' C^{-1} (b - b(i)) / p`
MDFFITS            :math:`(b - b(i))' C(i)^{-1} (b - b(i)) / p`
COVTRACE           :math:`|\mathrm{tr}(C^{-1} C(i)) - p|`
COVRATIO           :math:`|C(i)| / |C|`
RVC                relative change of a variance parameter, :math:`v(i) / v - 1`
================== ===============================================================================

The infinitesimal versions take for every difference its first order: minus the derivative in how often the
case counts. The standard errors of DFBETAS are then those of the fit; COVRATIO is the exponential of the
derivative of its logarithm, which is also the derivative of the trace; MDFFITS is Cook's distance to this
order and is not given.

References
----------
Belsley, Kuh & Welsch (1980), Regression Diagnostics, chapter 2; Christensen, Pearson & Johnson (1992),
Technometrics 34, 38-45; Demidenko & Stukel (2005), Statistics in Medicine 24, 893-909; Schabenberger (2004),
SUGI 29, paper 189; Loy & Hofmann (2014), Journal of Statistical Software 56(5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from jaxmixed.case_derivatives import CaseDerivatives
from jaxmixed.estimates import Estimates
from jaxmixed.formatting import counted
from jaxmixed.inference import VarianceParameters
from jaxmixed.many_estimates import INTERRUPTED, ManyEstimates
from jaxmixed.parameter_values import Parameters, all_values, estimated_values, relative_slopes

KINDS = ("var", "cov", "kernel")
"""Kinds of variance parameters whose relative change is told."""

RELATIVE = 1 / 3
"""A difference of less than this share of the larger of two values is one of degree."""

DISTANCE_SHARE = 0.5
"""Cook's distances that differ by less than this share of the usual cut-off 4 / cases agree: neither tells
what the other does not."""

VARIANCE_CHANGE = 0.1
"""Relative changes of a variance that differ by less than this agree: it is 5% of a standard deviation, and
small beside the standard error of a variance between m groups, some sqrt(2 / m) of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """Measures of c cases, by one way of leaving them out; NaN where a measure is not defined.

    Attributes
    ----------
    change : (c, p) array
        Coefficients without the case minus those of the fit; NaN for coefficients that either lacks.
    dfbetas : (c, p) array
    cooks_distance, mdffits, covratio, covtrace : (c,) array
    rvc : (c, v) array
        Infinite where the variance is zero in the fit, and is not without the case.
    """

    change: np.ndarray
    dfbetas: np.ndarray
    cooks_distance: np.ndarray
    mdffits: np.ndarray
    covratio: np.ndarray
    covtrace: np.ndarray
    rvc: np.ndarray


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Measures:
    """Measures of the influence of every case, by one way of leaving it out.

    Every property is a table or column with a row for each case.
    """

    _numbers: Numbers
    _names: pd.Index
    _coefficients: tuple[str, ...]
    _variances: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<Measures of influence: {counted(len(self._names), 'case')}>"

    def _column(self, values: np.ndarray, name: str) -> pd.Series:
        return pd.Series(np.array(values), index=self._names, name=name)

    def _table(self, values: np.ndarray, columns: tuple[str, ...]) -> pd.DataFrame:
        return pd.DataFrame(np.array(values), index=self._names, columns=list(columns))

    @property
    def cooks_distance(self) -> pd.Series:
        """Cook's distance of the coefficients."""
        return self._column(self._numbers.cooks_distance, "cooks_distance")

    @property
    def mdffits(self) -> pd.Series:
        """Cook's distance by the covariance without the case; NaN of the infinitesimal deletion."""
        return self._column(self._numbers.mdffits, "mdffits")

    @property
    def covratio(self) -> pd.Series:
        """Determinant of the coefficients' covariance without the case, over that of the fit."""
        return self._column(self._numbers.covratio, "covratio")

    @property
    def covtrace(self) -> pd.Series:
        """Distance of the trace of the same two matrices' ratio from the number of coefficients."""
        return self._column(self._numbers.covtrace, "covtrace")

    @property
    def dfbeta(self) -> pd.DataFrame:
        """Change of every coefficient: without the case minus that of the fit."""
        return self._table(self._numbers.change, self._coefficients)

    @property
    def dfbetas(self) -> pd.DataFrame:
        """Coefficients of the fit minus those without the case, over their standard errors without it."""
        return self._table(self._numbers.dfbetas, self._coefficients)

    @property
    def rvc(self) -> pd.DataFrame:
        """Relative change of every variance parameter: 0.1 for 10% more without the case."""
        return self._table(self._numbers.rvc, self._variances)


def _distances(change: np.ndarray, cov: np.ndarray) -> np.ndarray:
    """``d' C^{-1} d / p`` of differences (c, p) by one covariance (p, p) or by each its own (c, p, p)."""
    p = change.shape[1]
    if not p:
        return np.full(len(change), np.nan)
    found = np.full(len(change), np.nan)
    good = np.isfinite(change).all(axis=1) & np.isfinite(cov).all(axis=(-2, -1))
    own = cov if cov.ndim == 2 else cov[good]
    scale = np.sqrt(np.diagonal(own, axis1=-2, axis2=-1))
    unit = change[good] / scale
    correlation = own / (scale[..., :, None] * scale[..., None, :])
    found[good] = np.einsum("cp,cp->c", unit, np.linalg.solve(correlation, unit[..., None])[..., 0]) / p
    return found


@np.errstate(all="ignore")
def of_deletion(estimates: Estimates, found: ManyEstimates, parameters: Parameters) -> Numbers:
    """Measures from the fits without each case.

    Parameters
    ----------
    estimates : Estimates
        Of all rows.
    found : ManyEstimates
        Without each case.
    parameters : Parameters

    Returns
    -------
    Numbers
    """
    kept = np.flatnonzero(~np.isnan(estimates.beta))
    cov, p = estimates.cov_beta[np.ix_(kept, kept)], len(kept)
    change = found.beta - estimates.beta
    covs = found.cov_beta[:, kept][:, :, kept]
    ratio = np.linalg.slogdet(covs)[1] - np.linalg.slogdet(cov)[1]
    trace = np.einsum("pq,cqp->c", np.linalg.inv(cov), covs) if p else np.full(len(covs), np.nan)
    places = parameters.places(*KINDS)
    whole, values = estimated_values(estimates)[places], all_values(found)[:, places]
    return Numbers(
        change=change,
        dfbetas=-change / np.sqrt(np.diagonal(found.cov_beta, axis1=1, axis2=2)),
        cooks_distance=_distances(change[:, kept], cov),
        mdffits=_distances(change[:, kept], covs),
        covratio=np.exp(ratio) if p else np.full(len(covs), np.nan),
        covtrace=np.abs(trace - p),
        rvc=np.where(whole == 0, np.where(values == 0, np.nan, values / np.abs(whole)), values / whole - 1),
    )


@np.errstate(all="ignore")
def of_derivatives(estimates: Estimates, found: CaseDerivatives) -> Numbers:
    """Measures to first order.

    Parameters
    ----------
    estimates : Estimates
    found : CaseDerivatives
        In how often each case counts.

    Returns
    -------
    Numbers
    """
    kept = np.flatnonzero(~np.isnan(estimates.beta))
    cases, missing = len(found.nobs), np.full(len(found.nobs), np.nan)
    change = np.full((cases, len(estimates.beta)), np.nan)
    change[:, kept] = -found.beta
    moved = np.column_stack([found.standard, found.log_sigma])
    rvc = -moved @ relative_slopes(VarianceParameters.of(estimates))[0].T
    return Numbers(
        change=change,
        dfbetas=-change / np.sqrt(np.diagonal(estimates.cov_beta)),
        cooks_distance=_distances(change[:, kept], estimates.cov_beta[np.ix_(kept, kept)]),
        mdffits=missing,
        covratio=np.exp(-found.log_det_cov) if len(kept) else missing,
        covtrace=np.abs(found.log_det_cov) if len(kept) else missing,
        rvc=rvc,
    )


def disagreement(
    approximate: Numbers, deletion: Numbers, reason: np.ndarray, judged: np.ndarray
) -> np.ndarray:
    """Mask of the cases of whose influence the infinitesimal measures give a wrong idea.

    Cook's distance, or the relative change of a variance parameter, differs by more than a third of the
    larger of the two values, and by more than what is of no consequence: half of the cut-off 4 / cases that
    is usual for Cook's distance, 0.1 for the change of a variance. Covariances, which may be near zero, are
    not judged. So does a case without which the model
    cannot be fitted, or a coefficient not be estimated: no derivative tells that.

    Parameters
    ----------
    approximate, deletion : Numbers
    reason : (c,) array
        Codes of `many_estimates.REASONS`, of the fits without each case.
    judged : (v,) bool array
        Variance parameters that are compared.

    Returns
    -------
    (c,) bool array
    """
    limit = DISTANCE_SHARE * usual_limits(len(reason), 1).cooks_distance
    pairs = [(approximate.cooks_distance[:, None], deletion.cooks_distance[:, None], limit)]
    pairs.append((approximate.rvc[:, judged], deletion.rvc[:, judged], VARIANCE_CHANGE))
    mask = np.zeros(len(reason), dtype=bool)
    for one, other, least in pairs:
        # A parameter that is held on the boundary does not move to first order.
        one, other = np.nan_to_num(one, posinf=np.inf), np.nan_to_num(other, posinf=np.inf)
        larger = np.maximum(np.abs(one), np.abs(other))
        with np.errstate(invalid="ignore"):
            mask |= ~(np.abs(one - other) <= np.maximum(least, RELATIVE * larger)).all(axis=1)
    lost = np.isnan(deletion.change) & ~np.isnan(approximate.change)
    return (mask | lost.any(axis=1)) & (reason != INTERRUPTED)


@dataclass(frozen=True, slots=True)
class Limits:
    """Values beyond which a case is usually looked at.

    Attributes
    ----------
    cooks_distance : float
        4 / c (Bollen & Jackman 1990; for groups Van der Meer, Te Grotenhuis & Pelzer 2010).
    dfbetas : float
        2 / sqrt(c) (Belsley, Kuh & Welsch 1980), in size.
    covratio : float
        3 p / c (the same), of its distance from one.
    """

    cooks_distance: float
    dfbetas: float
    covratio: float


def usual_limits(cases: int, coefficients: int) -> Limits:
    """Usual cut-offs for c cases and p coefficients.

    Examples
    --------
    >>> usual_limits(16, 2)
    Limits(cooks_distance=0.25, dfbetas=0.5, covratio=0.375)
    """
    return Limits(4 / cases, 2 / cases**0.5, 3 * coefficients / cases)
