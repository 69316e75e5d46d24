r"""How the estimates move when a case counts a little more or less: infinitesimal deletion of all cases.

A case g is a row, or the rows of a group. Counting it f times adds f - 1 copies to the log-likelihood; of a
group, with random effects of their own. With e the conditional residuals, W the weights, and for each row
the part that the case's own effects leave out (`rest`: fixed effects and the effects of other groupings) with
marginal residual :math:`\tilde r`, the deviance D changes by

.. math:: \frac{\partial D}{\partial f_g} = n_g \log 2\pi\sigma^2 + \log|V_{g|\text{rest}}| +
    \sum_{i \in g} \frac{w_i}{\sigma^2} \{\tilde r_i e_i + \operatorname{cov}(\text{rest}_i, \text{row}_i)\}

where the covariances are those of the errors of prediction (:mod:`jaxmixed.prediction_error`), with the fixed
effects estimated (REML) or known (ML). For a row, rest and row are the same, and the sum is its squared
residual plus its leverage. The implicit function theorem gives the rest: theta moves by minus the inverse
Hessian times the derivative of this in theta, and beta by

.. math:: \frac{\partial\hat\beta}{\partial f_g} = \frac{1}{\sigma^2} \operatorname{Cov}(\hat\beta) \sum_i w_i
    e_i\, c(\text{rest}_i) + \frac{\partial\hat\beta}{\partial\theta}\frac{\partial\theta}{\partial f_g},

c the coefficients of beta's error in that of the row. Cook (1986), Journal of the Royal Statistical Society B
48(2), 133-169, and Christensen, Pearson & Johnson (1992), Technometrics 34(1), 38-45, treat the derivatives
and the deletion of cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmixed.estimates import Estimates
from jaxmixed.precision import double_precision, to_host
from jaxmixed.prediction_error import ErrorModel, RowErrors, RowTerm
from jaxmixed.recursion import Recursion, given_beta, standard_factors


@dataclass(frozen=True)
class Rows:
    """The fitted rows.

    Attributes
    ----------
    X : (n, p_full) array
    terms : sequence of RowTerm
        Every term's position, columns and levels.
    weights : (n,) array
        Precision weights, ones where there are none.
    resid : (n,) array
        Response minus conditional fitted values.
    contributions : sequence of (n,) arrays
        Each term's part of the fitted values.
    """

    X: np.ndarray
    terms: Sequence[RowTerm]
    weights: np.ndarray
    resid: np.ndarray
    contributions: Sequence[np.ndarray]


@dataclass(frozen=True)
class Cases:
    """Which rows make up each case.

    Attributes
    ----------
    codes : (n,) int array
        Case of every row, 0 .. c - 1.
    count : int
    level : int or None
        Where cases are the groups of a factor of the model, its level: random effects of it, and of finer
        levels nested in it, are copied with the case. None where cases share all effects with other rows.
    entries : (c,) int array or None
        The entry of every case in that level.
    """

    codes: np.ndarray
    count: int
    level: int | None = None
    entries: np.ndarray | None = None

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums over the rows of every case, (c,)."""
        return np.bincount(self.codes, values, minlength=self.count)


class CaseDerivatives(NamedTuple):
    """Derivatives with respect to the number of times that each case counts, c cases.

    Attributes
    ----------
    nobs : (c,) array
        Rows.
    leverage : (c,) array
        Trace of the case's block of the conditional fit's hat matrix.
    deviance : (c,) array
        Of the deviance at fixed parameters, by the envelope theorem also of its minimum.
    standard : (c, k) array
        Of the standardised variance parameters; zero for those held on the boundary.
    log_sigma : (c,) array
    beta : (c, p) array
        Of the fixed effects that are not aliased.
    log_det_cov : (c,) array
        Of log|Cov(beta)|.
    """

    nobs: np.ndarray
    leverage: np.ndarray
    deviance: np.ndarray
    standard: np.ndarray
    log_sigma: np.ndarray
    beta: np.ndarray
    log_det_cov: np.ndarray


def case_derivatives(errors: ErrorModel, estimates: Estimates, rows: Rows, cases: Cases) -> CaseDerivatives:
    """Derivatives of the estimates in how often each case counts.

    Parameters
    ----------
    errors : ErrorModel
        Of the fit, the fixed effects estimated.
    estimates : Estimates
    rows : Rows
    cases : Cases

    Returns
    -------
    CaseDerivatives
        What deleting a case does is, to first order, minus these.

    Examples
    --------
    Deleting a row of a regression moves the mean by minus its residual over n, to first order.

    >>> import jaxmixed as jm
    >>> from jaxmixed.prediction_error import error_model
    >>> fit = jm.mixed("y ~ 1", {"y": [1.0, 2.0, 7.0, 4.0]}, method="ml")
    >>> rows = Rows(fit.frame.X, (), np.ones(4), fit.resid.to_numpy(), ())
    >>> errors = error_model(fit.state, fit.estimates)
    >>> found = case_derivatives(errors, fit.estimates, rows, Cases(np.arange(4), 4))
    >>> found.beta[:, 0].tolist()
    [-0.625, -0.375, 0.875, 0.125]
    """
    within = _within(errors, cases)
    whole = errors.rows(rows.X, rows.terms)
    rest = errors.rows(rows.X, [term for term in rows.terms if term[0] not in within]) if within else whole
    marginal = rows.resid + sum((rows.contributions[i] for i in within), np.zeros(len(rows.resid)))
    sigma2, w = estimates.sigma**2, rows.weights
    nobs = np.bincount(cases.codes, minlength=cases.count).astype(np.float64)
    penalty = cases.sums(w * marginal * rows.resid) / sigma2
    of_beta = errors.parts.of_beta
    log_det = cases.sums(-w * np.einsum("ni,ni->n", rest.beta @ of_beta, whole.beta))
    direct = np.stack(
        [cases.sums(w * rows.resid * column) for column in rest.beta.T] or [np.zeros(cases.count)], axis=1
    )[:, : len(of_beta)]
    u = estimates.log_rss_gradient
    tangents = [errors.tangent(direction) for direction in np.eye(len(u))]
    logdet, slopes = _log_determinants(errors, tangents, rows, cases)
    reference = errors if estimates.method == "reml" else errors.given_beta()
    mixed = np.empty((cases.count, len(u)))
    of_theta, moved = np.empty((len(u), len(of_beta))), np.empty(len(u))
    for j, tangent in enumerate(tangents):
        d_resid, d_within = _residual_slopes(errors, rows, tangent, within)
        d_penalty = cases.sums(w * ((d_resid + d_within) * rows.resid + marginal * d_resid)) / sigma2
        d_product = _product_slope(reference, whole, rest, tangent)
        mixed[:, j] = slopes[j] + cases.sums(w * d_product) + d_penalty + (nobs - penalty) * u[j]
        of_theta[j] = tangent.beta
        moved[j] = np.trace(np.linalg.solve(of_beta, tangent.of_beta)) if len(of_beta) else 0.0
    product = rest.product(whole, reference.parts)
    standard = -mixed @ _inverse_hessian(estimates)
    log_sigma = 0.5 * ((penalty - nobs) / estimates.df + standard @ u)
    scale = float(np.asarray(errors.stats.scale))
    beta = direct @ of_beta + scale * (standard @ of_theta)
    return CaseDerivatives(
        nobs=nobs,
        leverage=cases.sums(w * whole.product(whole, errors.parts)),
        deviance=nobs * np.log(2 * np.pi * sigma2) + logdet + penalty + cases.sums(w * product - np.log(w)),
        standard=standard,
        log_sigma=log_sigma,
        beta=np.linalg.solve(errors.reduction.fixed.columns.basis, beta.T).T,
        log_det_cov=log_det + 2 * len(of_beta) * log_sigma + standard @ moved,
    )


def _within(errors: ErrorModel, cases: Cases) -> tuple[int, ...]:
    """Terms whose effects belong to one case each."""
    if cases.level is None:
        return ()
    chain = len(errors.stats.levels)
    levels = range(cases.level + 1) if cases.level < chain else (cases.level,)
    return tuple(i for i, term in enumerate(errors.stats.terms) if term.level in levels)


def _inverse_hessian(estimates: Estimates) -> np.ndarray:
    """Inverse Hessian of the profiled deviance; zero for parameters that are held or undetermined."""
    free = estimates.free & estimates.determined
    inverse = np.zeros_like(estimates.hessian)
    if free.any():
        own = np.ix_(free, free)
        scale = np.sqrt(np.abs(np.diagonal(estimates.hessian[own])))
        inverse[own] = np.linalg.inv(estimates.hessian[own] / np.outer(scale, scale)) / np.outer(scale, scale)
    return inverse


def _residual_slopes(
    errors: ErrorModel, rows: Rows, tangent: Recursion[np.ndarray], within: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of the conditional residuals, and of the contributions of the case's own effects."""
    stats, reduction = errors.stats, errors.reduction
    scale = float(np.asarray(stats.scale))
    moved = scale * (errors.standard_columns(rows.X) @ tangent.beta)
    own = np.zeros(len(moved))
    for position, Z, codes in rows.terms:
        level = stats.terms[position].level
        part, to_standard = errors.effect_columns(position)
        entries = reduction.positions[level][codes]
        change = scale * np.einsum("nj,jn->n", Z @ to_standard, tangent.modes[level][part][:, entries])
        moved += change
        if position in within:
            own += change
    return -moved, own


def _product_slope(
    model: ErrorModel, whole: RowErrors, rest: RowErrors, tangent: Recursion[np.ndarray]
) -> np.ndarray:
    """Derivative of the relative covariance of each row's errors with those of what it leaves to others."""
    if model.beta == "known":
        tangent = given_beta(tangent)
    d_whole = model.row_tangent(whole, tangent)
    total = rest.product(whole, tangent) + rest.product(d_whole, model.parts)
    d_rest = d_whole if rest is whole else model.row_tangent(rest, tangent)
    return total + d_rest.product(whole, model.parts)


def _log_determinants(
    errors: ErrorModel, tangents: Sequence[Recursion[np.ndarray]], rows: Rows, cases: Cases
) -> tuple[np.ndarray, np.ndarray]:
    """log|V| of every case given the rest, (c,), and its derivatives in the parameters, (k, c)."""
    if cases.level is None or cases.entries is None:
        return np.zeros(cases.count), np.zeros((len(tangents), cases.count))
    if cases.level >= len(errors.stats.levels):
        return _root_determinants(errors, rows, cases)
    values = [_nested_sum(errors, parts.logdet, cases.level) for parts in (errors.parts, *tangents)]
    found = np.stack(values)[:, cases.entries]
    return found[0], found[1:]


def _nested_sum(errors: ErrorModel, logdet: Sequence[np.ndarray], level: int) -> np.ndarray:
    """Sum over the groups of all levels within each group of a level."""
    total = logdet[level].copy()
    for depth in range(level):
        parent = np.asarray(errors.stats.levels[depth].parents[level - depth - 1])
        total += np.bincount(parent, logdet[depth], minlength=len(total))
    return total


def _root_determinants(errors: ErrorModel, rows: Rows, cases: Cases) -> tuple[np.ndarray, np.ndarray]:
    """:func:`_log_determinants` of the levels of one of the root's factors, other factors' effects given."""
    stats, level = errors.stats, cases.level
    assert level is not None
    Z = np.zeros((len(rows.X), len(stats.frames[level])))
    for position, columns, _ in rows.terms:
        if stats.terms[position].level == level:
            part, to_standard = errors.effect_columns(position)
            Z[:, part] = columns @ to_standard
    q = Z.shape[1]
    N = np.stack([[cases.sums(rows.weights * Z[:, a] * Z[:, b]) for b in range(q)] for a in range(q)])
    N = np.moveaxis(N, -1, 0)
    with double_precision():
        x = jnp.asarray(errors.x)
        T = to_host(tuple(standard_factors(x, stats)))[level]
        moves = [
            to_host(tuple(jax.jvp(lambda at: standard_factors(at, stats), (x,), (direction,))[1]))[level]
            for direction in jnp.eye(len(errors.x))
        ]
    M = np.eye(q) + N @ (T @ T.T)
    inverse = np.linalg.solve(M, N)
    slopes = [np.einsum("cab,ba->c", inverse, dT @ T.T + T @ dT.T) for dT in moves]
    return np.linalg.slogdet(M)[1], np.stack(slopes) if slopes else np.zeros((0, cases.count))
