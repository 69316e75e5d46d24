r"""Residuals of every kind, leverages among them, conditional on random effects or marginal.

With t the fixed effects and the random effects of the chosen terms, :math:`u` what these leave out (the other
random effects and the residual) and :math:`\hat t` the prediction of t, a residual :math:`e = y - \hat t` is
a contrast, so that by the property of best linear unbiased predictors
:math:`\operatorname{Cov}(\hat t - t, e) = 0` and

.. math:: \operatorname{Var}(e) = \operatorname{Var}(u) - \operatorname{Var}(\hat t - t),

at the variance parameters of the fit. For conditional residuals this is :math:`(1 - h) \sigma^2 / w` with the
leverage :math:`h = w \operatorname{Var}(\hat t - t) / \sigma^2`, the diagonal of the matrix that takes y to
its fitted values (Hodges & Sargent 2001, Biometrika 88, 367-379).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxmixed.errors import DataError, DesignError, printable
from jaxmixed.predict import fitted_rows
from jaxmixed.predictions import effects_variance, error_variance, left_out_effects

if TYPE_CHECKING:
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
    weights = np.ones(len(values)) if frame.weights is None else frame.weights
    if kind in ("pearson", "deviance"):
        return np.asarray(values * np.sqrt(weights))
    if kind == "scaled":
        return decorrelated(values, estimates, state)
    left_out = left_out_effects(frame, estimates, rows)
    variance = effects_variance(estimates, left_out, len(values)) + estimates.sigma**2 / weights
    if kind == "standardized":
        return np.asarray(values / np.sqrt(variance))
    own = variance - error_variance(fit, rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        studentized = values / np.sqrt(np.where(own > NO_VARIANCE * variance, own, np.nan))
        return studentized if kind == "studentized" else _deleted(studentized, estimates)


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
    found = error_variance(fit, fitted_rows(fit.frame, fit.estimates)) / fit.estimates.sigma**2
    return found if fit.frame.weights is None else np.asarray(found * fit.frame.weights)


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
        Rows stand in their own order; within an outermost group those of an inner group are taken together.

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
    if not design.groupings:
        return np.asarray(values / (estimates.sigma * np.sqrt(noise)))
    codes = [grouping.codes for grouping in design.groupings]
    Z = np.concatenate([grouping.Z for grouping in design.groupings], axis=1)
    widths = [grouping.Z.shape[1] for grouping in design.groupings]
    starts = np.cumsum([0, *widths])
    prior = np.zeros((starts[-1], starts[-1]))
    for term, own in zip(state.stats.terms, estimates.terms, strict=True):
        part = slice(starts[term.level] + term.start, starts[term.level] + term.start + len(own.names))
        prior[part, part] = own.cov / estimates.sigma**2
    # Groups together, the coarsest first; then the first rows of all outermost groups, the second ones, ...
    order = np.lexsort([np.arange(len(values)), *codes])
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
