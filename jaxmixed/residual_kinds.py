r"""Residuals of every kind, leverages among them, conditional on random effects or marginal.

With t the fixed effects and the random effects of the chosen terms, :math:`u` what these leave out (the other
random effects and the residual) and :math:`\hat t` the prediction of t, a residual :math:`e = y - \hat t` is
a contrast, so that by the property of best linear unbiased predictors
:math:`\operatorname{Cov}(\hat t - t, e) = 0` and

.. math:: \operatorname{Var}(e) = \operatorname{Var}(u) - \operatorname{Var}(\hat t - t),

at the variance parameters of the fit. For conditional residuals this is :math:`(1 - h) \sigma^2 / w` with the
leverage :math:`h = w \operatorname{Var}(\hat t - t) / \sigma^2`, the diagonal of the matrix that takes y to
its fitted values (Hodges & Sargent 2001, Biometrika 88, 367-379).

With correlated residuals, :math:`\operatorname{Var}(e) = \sigma^2 Q^{-1}` of the errors e, that matrix is
:math:`\operatorname{Cov}(\hat t - t) Q / \sigma^2` and not symmetric; and what a row has beyond what all
others tell of it, those of its group among these, is :math:`(Q e)_i` over its own precision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxmixed.errors import DataError, DesignError, printable
from jaxmixed.predict import PredictionRows, fitted_rows
from jaxmixed.predictions import effects_variance, error_variance, left_out_effects, row_blocks
from jaxmixed.residual_predictions import residual_variances
from jaxmixed.residual_whitening import precision, whitened
from jaxmixed.row_combinations import combined_rows
from jaxmixed.weighted_samples import refuse_weighted_sample

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from jaxmixed.crossproducts import Reduction
    from jaxmixed.estimates import Estimates
    from jaxmixed.predictions import Fit

KINDS = (
    "response",
    "working",
    "pearson",
    "deviance",
    "standardized",
    "studentized",
    "deleted",
    "normalized",
    "scaled",
)

NO_VARIANCE = 1e-10
"""A residual whose variance is less than this share of that of its parts is zero but for rounding."""


def residuals(fit: Fit, kind: str, random: bool | str, state: Reduction) -> np.ndarray:
    """Residuals of the rows used; see `MixedResults.residuals`, which calls this.

    Parameters
    ----------
    fit : Fit
    kind : str
    random : bool or str
    state : Reduction

    Returns
    -------
    (n,) array
    """
    if not isinstance(kind, str) or kind not in KINDS:
        raise DataError(f"kind is {kind!r}; residuals() gives {', '.join(map(repr, KINDS))}")
    if kind in ("deleted", "scaled") and random is not True:
        why = "of conditional" if kind == "deleted" else "made from marginal"
        raise DataError(f"{kind} residuals are {why} residuals and take no random=, here {random!r}")
    frame, estimates = fit.frame, fit.estimates
    rows = fitted_rows(frame, estimates, kind != "scaled" and random)
    values = frame.y - rows.values(estimates.beta, fit._modes if rows.terms else ())
    if kind in ("response", "working"):
        return values
    noise = residual_variances(frame, estimates)
    if kind in ("pearson", "deviance"):
        return np.asarray(values * (estimates.sigma / np.sqrt(noise)))
    if kind == "normalized" and estimates.residual is not None:
        own = (frame.residual.design, estimates.residual.free, frame.weights)
        return np.asarray(whitened(*own, values[:, None])[:, 0] / estimates.sigma)
    if kind == "normalized":
        return np.asarray(values / np.sqrt(noise))
    if kind == "scaled":
        why = "they need the covariance of rows that count once"
        refuse_weighted_sample(estimates, "residuals('scaled')", why)
        return decorrelated(values, estimates, state)
    if kind == "deleted":
        return _deleted(_without_own_row(fit, rows, values), estimates)
    left_out = left_out_effects(frame, estimates, rows)
    variance = effects_variance(estimates, left_out, len(values)) + noise
    if kind == "standardized":
        return np.asarray(values / np.sqrt(variance))
    own = variance - error_variance(fit, rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(values / np.sqrt(np.where(own > NO_VARIANCE * variance, own, np.nan)))


def residual_precision(fit: Fit) -> csr_array | None:
    """Inverse covariance of the residuals of the rows used, relative to sigma squared; None if diagonal."""
    frame, residual = fit.frame, fit.estimates.residual
    if residual is None or not residual.covariance.family.num_params:
        return None
    return precision(frame.residual.design, residual.free, frame.weights)


def _in_metric(fit: Fit, rows: PredictionRows, Q: csr_array | None) -> tuple[np.ndarray, PredictionRows]:
    """Precisions (n,) of the residuals' own, and rows times the inverse covariance."""
    if Q is None:
        own = fit.estimates.sigma**2 / residual_variances(fit.frame, fit.estimates)
        terms = tuple(term._replace(Z=term.Z * own[:, None]) for term in rows.terms)
        return own, PredictionRows(rows.X * own[:, None], None, terms, rows.index)
    X, terms = combined_rows(fit.frame, fit.estimates, Q, [term.term for term in rows.terms])
    return Q.diagonal(), PredictionRows(X, None, terms, rows.index)


def _without_own_row(fit: Fit, rows: PredictionRows, values: np.ndarray) -> np.ndarray:
    """Errors of predicting each row from all others, in units of their standard deviations, (n,)."""
    Q = residual_precision(fit)
    own, moved = _in_metric(fit, rows, Q)
    sigma = fit.estimates.sigma
    left = own - error_variance(fit, moved) / sigma**2
    scaled = own * values if Q is None else Q @ values
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(scaled / (sigma * np.sqrt(np.where(left > NO_VARIANCE * own, left, np.nan))))


def _deleted(studentized: np.ndarray, estimates: Estimates) -> np.ndarray:
    """Residuals studentized by the residual variance that is estimated without their own row.

    With the relative covariances held, the penalised residual sum of squares without a row is less by
    ``sigma**2 t**2``, as in a regression (Cook & Weisberg 1982, Residuals and Influence in Regression,
    equation 2.2.4).
    """
    df = estimates.nobs - estimates.rank
    without = (estimates.df - studentized**2) / (df - 1) if df > 1 else np.full(len(studentized), np.nan)
    return np.asarray(studentized / np.sqrt(np.where(without > 0, without, np.nan)))


def leverage(fit: Fit) -> np.ndarray:
    """Leverages (n,) of the rows used; see `MixedResults.leverage`, which calls this.

    Parameters
    ----------
    fit : Fit
    """
    rows = fitted_rows(fit.frame, fit.estimates)
    Q = residual_precision(fit)
    if Q is None:
        return np.asarray(error_variance(fit, rows) / residual_variances(fit.frame, fit.estimates))
    _, moved = _in_metric(fit, rows, Q)
    if not rows.terms:
        own = fit.fixed_inference()
        cov = own.cov[np.ix_(own.kept, own.kept)]
        return np.einsum("ni,ni->n", rows.X[:, own.kept] @ cov, moved.X[:, own.kept]) / fit.estimates.sigma**2
    found = np.empty(len(rows.X))
    for block, part in row_blocks(rows):
        other = moved.at(block)
        errors = fit._errors.rows(part.X, part.terms)
        found[block] = errors.covariance_with(fit._errors.rows(other.X, other.terms))
    return np.asarray(found / fit.estimates.sigma**2)


def decorrelated(values: np.ndarray, estimates: Estimates, state: Reduction) -> np.ndarray:
    """``L^{-1} r`` with ``L L' = V``, for marginal residuals r of nested groups.

    The solution is the sequence of standardised errors of predicting each row from the earlier ones of its
    outermost group, found by recursive updating of the group's effects: a row costs O(q^2), and V is not
    formed.

    Parameters
    ----------
    values : (n,) array
        Response less fixed effects and offset.
    estimates : Estimates
    state : Reduction

    Returns
    -------
    (n,) array
        Rows stand in their own order; within an outermost group those of an inner group are taken together,
        and those of a group of correlated residuals by time.

    Raises
    ------
    DesignError
        If groupings are crossed, or their levels related.
    """
    design = state.design
    if design.root:
        names = " and ".join(repr(printable(own.label)) for own in design.root)
        raise DesignError(
            f"scaled residuals need nested groups of independent levels: {names} would join all rows to one"
            " cluster. Studentized residuals are there for any model"
        )
    noise = np.ones(len(values)) if design.weights is None else 1 / design.weights
    codes = [grouping.codes for grouping in design.groupings]
    Z = np.concatenate([np.zeros((len(values), 0)), *(own.Z for own in design.groupings)], axis=1)
    keys: list[np.ndarray] = [np.arange(len(values))]
    if estimates.residual is not None:
        # First what is correlated within groups, and then the rows of a model of independent residuals.
        assert design.residual is not None
        rows = np.column_stack([values, Z])
        rows = whitened(design.residual, estimates.residual.free, design.weights, rows)
        values, Z, noise = rows[:, 0], rows[:, 1:], np.ones(len(values))
        keys = [design.residual.times, design.residual.codes]
    if not design.groupings:
        return np.asarray(values / (estimates.sigma * np.sqrt(noise)))
    widths = [grouping.Z.shape[1] for grouping in design.groupings]
    starts = np.cumsum([0, *widths])
    prior = np.zeros((starts[-1], starts[-1]))
    for term, own in zip(state.stats.terms, estimates.terms, strict=True):
        part = slice(starts[term.level] + term.start, starts[term.level] + term.start + len(own.names))
        prior[part, part] = own.cov / estimates.sigma**2
    # Groups together, the coarsest first; then the first rows of all outermost groups, the second ones, ...
    order = np.lexsort([*keys, *codes])
    sizes = np.bincount(codes[-1])
    first = np.cumsum(sizes) - sizes
    by_size = np.argsort(-sizes, kind="stable")
    mean, spread = np.zeros((len(sizes), len(prior))), np.tile(prior, (len(sizes), 1, 1))
    found = np.empty(len(values))
    for step in range(int(sizes.max())):
        groups = by_size[: np.searchsorted(-sizes[by_size], -step, side="left")]
        rows = order[first[groups] + step]
        places = np.arange(len(groups))
        if step:
            before = order[first[groups] + step - 1]
            for code, start, stop in zip(codes[:-1], starts[:-2], starts[1:-1], strict=True):
                entered = places[code[rows] != code[before]]
                mean[entered, start:stop] = 0.0
                spread[entered, start:stop] = prior[start:stop]
                spread[entered, :, start:stop] = prior[:, start:stop]
        m, P = mean[places], spread[places]
        Pz = np.einsum("gij,gj->gi", P, Z[rows])
        variance = np.einsum("gi,gi->g", Pz, Z[rows]) + noise[rows]
        error = values[rows] - np.einsum("gi,gi->g", m, Z[rows])
        found[rows] = error / (estimates.sigma * np.sqrt(variance))
        mean[places] = m + Pz * (error / variance)[:, None]
        spread[places] = P - Pz[:, :, None] * (Pz / variance[:, None])[:, None, :]
    return found
