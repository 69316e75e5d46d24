"""Further fits of a model with correlated residuals, one after the other, as arrays of estimates.

Where residuals are correlated the statistics of a response are cross-moments in a metric that the search
moves, so that responses do not share what those of independent residuals do; each is reduced and fitted as
the model itself was.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jaxmixed.crossproducts import Reduction, reduce_rows
from jaxmixed.diagnosis import NOT_A_MINIMUM, NOT_STATIONARY, OK, STOPPED, UNDETERMINED, TermLabel
from jaxmixed.diagnosis import NOT_FINITE as NOT_FINITE_OPTIMUM
from jaxmixed.errors import DesignError
from jaxmixed.estimates import Estimates, ResidualEstimate
from jaxmixed.fitting import fit
from jaxmixed.likelihood import Method
from jaxmixed.many_estimates import (
    CONSTANT,
    MAGNITUDE,
    MISSING,
    PERFECT,
    REFUSED,
    ManyEstimates,
    arrays_of,
    blank,
)
from jaxmixed.responses import LARGEST_MAGNITUDE
from jaxmixed.schedule import check_interrupt

_CODES = {
    "iteration_limit": STOPPED,
    "no_descent": STOPPED,
    "not_finite": NOT_FINITE_OPTIMUM,
    "not_stationary": NOT_STATIONARY,
    "saddle": NOT_A_MINIMUM,
    "boundary": NOT_A_MINIMUM,
    "flat": UNDETERMINED,
}
"""Codes of many fits by the problems of one."""


class CorrelatedRefits:
    """Fits of one model to further responses, or to other rows.

    Parameters
    ----------
    reduction : Reduction
        Of any response on the design.
    labels : tuple of TermLabel
    x_names : tuple of str
        Names of all fixed-effect columns, aliased ones included.
    residual : ResidualEstimate
        The structure, with any parameters.
    method : {"reml", "ml"}

    Examples
    --------
    >>> import jaxmixed as jm
    >>> data = jm.datasets.load("ovary")
    >>> fit = jm.mixed("follicles ~ Time", data, residuals="ar1(occasion | Mare)")
    >>> refits = CorrelatedRefits(fit.state, (), fit.frame.x_names, fit.estimates.residual)
    >>> bool(abs(refits.fit(fit.frame.y[:, None]).llf[0] - fit.llf) < 1e-8)
    True
    """

    def __init__(
        self,
        reduction: Reduction,
        labels: tuple[TermLabel, ...],
        x_names: tuple[str, ...],
        residual: ResidualEstimate,
        *,
        method: Method = "reml",
    ) -> None:
        self.reduction, self.labels, self.x_names = reduction, labels, x_names
        self.residual, self.method = residual, method

    def blank(self, models: int, reason: int = REFUSED) -> ManyEstimates:
        """Estimates of models none of which has been fitted."""
        covariances = tuple(term.covariance for term in self.reduction.stats.terms)
        found = blank(models, self.labels, self.x_names, covariances, self.method, reason)
        k = self.reduction.stats.num_params
        missing = np.full((models, k), np.nan)
        return replace(
            found,
            residual=self.residual.covariance,
            standard=missing,
            log_rss_gradient=missing.copy(),
            hessian=np.full((models, k, k), np.nan),
            free=np.zeros((models, k), dtype=bool),
            determined=np.zeros((models, k), dtype=bool),
        )

    def fit(self, Y: np.ndarray) -> ManyEstimates:
        """Fit every response.

        Parameters
        ----------
        Y : (n, m) array
            Responses less any offset.

        Returns
        -------
        ManyEstimates
        """
        design, terms = self.reduction.design, self.reduction.stats.terms

        def reduced(y: np.ndarray) -> Reduction | int:
            problem = _unusable(y)
            if problem:
                return problem
            own = (design.weights, design.root, design.residual)
            try:
                return reduce_rows(y, design.X, design.groupings, terms, *own)
            except DesignError:
                return PERFECT

        return self.fit_reductions([reduced(y) for y in np.ascontiguousarray(Y.T)])

    def fit_reductions(self, reductions: Sequence[Reduction | int | None]) -> ManyEstimates:
        """Fit reduced data sets; a number is the reason why there is none."""
        found = self.blank(len(reductions))
        for number, reduction in enumerate(reductions):
            check_interrupt()
            if not isinstance(reduction, Reduction):
                found.reason[number] = PERFECT if reduction is None else reduction
                continue
            found.nobs[number] = int(reduction.stats.nobs)
            try:
                labels = self.residual.labels
                one = fit(reduction, self.labels, self.x_names, method=self.method, residual_labels=labels)
            except DesignError:
                found.reason[number] = PERFECT
                continue
            _put(found, number, one)
        return found


def _unusable(y: np.ndarray) -> int:
    """Reason code of a response that cannot be fitted, or 0."""
    if not np.isfinite(y).all():
        return MISSING
    if y.min() == y.max():
        return CONSTANT
    largest = float(np.abs(y).max())
    return MAGNITUDE if largest > LARGEST_MAGNITUDE or largest < 1 / LARGEST_MAGNITUDE else 0


def _put(into: ManyEstimates, model: int, one: Estimates) -> None:
    """Put the estimates of a fit into the row of a model."""
    checks = one.diagnostics
    codes = [_CODES.get(problem, NOT_STATIONARY) for problem in checks.problems]
    values = {
        "beta": one.beta,
        "cov_beta": one.cov_beta,
        "sigma": one.sigma,
        "theta": one.theta,
        "standard": one.standard,
        "deviance": one.deviance,
        "linear_deviance": -2 * one.linear_llf,
        "hessian": one.hessian,
        "log_rss_gradient": one.log_rss_gradient,
        "free": one.free,
        "determined": one.determined,
        "nobs": one.nobs,
        "rank": one.rank,
        "reason": OK if checks.converged else min(codes, default=NOT_STATIONARY),
        "singular": checks.singular,
        "evaluations": checks.evaluations,
    }
    arrays = arrays_of(into)
    for name, value in values.items():
        arrays[name][model] = value
    for target, term in zip(into.frames, one.terms, strict=True):
        target[model] = term.frame
