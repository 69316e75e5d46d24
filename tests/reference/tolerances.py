"""Tolerances of the comparison with the stored cases, one function per quantity.

They are those of the README beside the cases: how far apart two correct programs with different optimisers
may end, on the scale of the uncertainty of each quantity. `GATE_*` are stricter: what remains when both
optima are exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

NORMAL_975 = 1.959963984540054
SINGULAR_FACTOR = 5.0  # conditional modes along a direction of no variance are poorly determined

GATE_LOGLIK = 1e-8  # relative
GATE_VARIANCE = 1e-5  # relative
GATE_FIXEF = 1e-6  # relative to the coefficient, or to its standard error where that is larger


def loglik(reference: float) -> float:
    """By how much a log-likelihood may fall short: the flatness of the optimum, growing with the data."""
    return 1e-4 * max(1.0, abs(reference) / 1000)


def fixef(se: ArrayLike) -> Array:
    """Coefficients: 1e-4 of their standard errors, invisible in any table."""
    return 1e-4 * np.asarray(se, dtype=float)


def standard_error(se: ArrayLike) -> Array:
    """Standard errors of coefficients: relative."""
    return 1e-4 * np.asarray(se, dtype=float)


def vcov(se: ArrayLike) -> Array:
    """Covariances of coefficients: relative to the product of the two standard errors."""
    return 1e-3 * np.outer(se, se)


def variance(sd: float, sigma: float) -> float:
    """Variances: relative; where the reference is on the boundary, (1% of sigma)²."""
    return 1e-3 * sd**2 if sd > 0 else (0.01 * sigma) ** 2


def correlation() -> float:
    """Correlations: absolute, as they are bounded."""
    return 2e-3


def covariance(sd1: float, sd2: float, estimate: float) -> float:
    """Covariances: what the tolerances of the two variances and of the correlation leave."""
    return correlation() * sd1 * sd2 + 1e-3 * abs(estimate)


def sigma(reference: float) -> float:
    """Residual standard deviation: half the relative tolerance of a variance."""
    return 5e-4 * reference


def theta(reference: ArrayLike, row_norm: ArrayLike) -> Array:
    """Relative Cholesky factor: standard deviations (5e-4), sigma (5e-4) and correlations (2e-3) together."""
    return 3e-3 * np.broadcast_to(np.asarray(row_norm, dtype=float), np.shape(reference))


def random_effect(sd: ArrayLike, residual_sd: float, singular: bool) -> Array:
    """Conditional modes: 1e-3 of the component's standard deviation, more in a singular fit."""
    scale = np.where(np.asarray(sd) > 0, sd, 0.01 * residual_sd)
    return 1e-3 * scale * (SINGULAR_FACTOR if singular else 1.0)


def conditional_sd(sd: ArrayLike, residual_sd: float, singular: bool) -> Array:
    """Conditional standard deviations: twice as wide as the modes."""
    return 2 * random_effect(sd, residual_sd, singular)


def fitted(residual_sd: float) -> float:
    """Fitted values, residuals, predictions: on the scale of the noise."""
    return 1e-3 * residual_sd


def sum_of_squares(each: float, sumsq: float, count: int) -> float:
    """What a sum of `count` squares may differ by if every element may differ by `each` (Cauchy-Schwarz)."""
    return 2 * each * float(np.sqrt(count * sumsq)) + count * each**2


def vc_standard_error(se: float) -> float:
    """Standard errors of variance parameters: R's come from numerical second differences."""
    return 5e-3 * abs(se)


def variance_limit(limit: float, estimate: float, se: float) -> float:
    """Limit of a variance, v exp(±z se/v): the tolerances of v and of se, propagated."""
    return abs(limit) * (1e-3 + NORMAL_975 * 6e-3 * se / estimate)


def covariance_limit(sd1: float, sd2: float, estimate: float, se: float) -> float:
    """Limit of a covariance, c ± z se: the tolerances of c and of se, propagated."""
    return covariance(sd1, sd2, estimate) + NORMAL_975 * vc_standard_error(se)


def atanh_correlation_limit(estimate: float, se: float) -> float:
    """Limit of a correlation on the atanh scale: the tolerances of r and of se, propagated."""
    slope = 1 / (1 - estimate**2)
    return slope * (correlation() + NORMAL_975 * vc_standard_error(se))


def icc() -> float:
    """Intraclass correlations: absolute."""
    return 1e-3


def lr_statistic(reference: float, *logliks: float) -> float:
    """Likelihood-ratio statistics: relative, but not below what the two log-likelihoods allow."""
    return max(1e-3 * abs(reference), 2 * sum(loglik(value) for value in logliks))


def p_value(reference: float) -> float:
    """P values: relative, or absolute where nobody would look at the digits."""
    return max(2e-2 * reference, 1e-6)


DF = 1e-2
"""Degrees of freedom: relative."""

GATE_DF = 1e-5
"""What is left of the difference between exact derivatives and good differences."""

STATISTIC = 1e-3
"""t and F: relative."""

P_VALUE, P_FLOOR = 2e-2, 1e-6
"""Relative, or absolute."""

GATE_ROBUST = 1e-8
"""Cluster-robust standard errors (relative) and covariances (to the product of two of them)."""

GATE_R2 = 1e-6
"""R-squared and shares of variance, absolute: what optima of different optimisers leave (1e-3 is stated)."""

GATE_PROFILE = 1e-3
"""Limits of profile intervals, relative to their width: what lme4's interpolation leaves (README)."""
