r"""Confidence limits from replicates of an estimate.

With :math:`\hat\theta` the estimate, :math:`q_\alpha` a quantile of its replicates :math:`\theta^*`, and se
standard errors:

=========== ==========================================================================================
percentile  :math:`q_{\alpha/2}, q_{1-\alpha/2}`
basic       :math:`2\hat\theta - q_{1-\alpha/2}, 2\hat\theta - q_{\alpha/2}`
normal      :math:`2\hat\theta - \bar\theta^* \mp z \, sd(\theta^*)`
studentized the basic limits of :math:`t^* = (\theta^* - \hat\theta)/se^*`, in units of :math:`\hat{se}`
bca         percentile limits at levels corrected for bias and for a standard error that changes with
            the parameter (acceleration, from a jackknife)
=========== ==========================================================================================

Quantiles interpolate between the order statistics, the k-th of n standing for the level :math:`k/(n+1)`.
Replicates that are NaN do not count.

References
----------
Davison & Hinkley (1997), Bootstrap Methods and their Application, chapter 5. Efron (1987), Better bootstrap
confidence intervals, JASA 82, 171-185.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from jaxmixed._distributions import normal_quantile

_NORMAL = NormalDist()

Limits = tuple[float, float]
NO_LIMITS: Limits = (np.nan, np.nan)


def known(values: np.ndarray) -> np.ndarray:
    """The values that are not NaN."""
    return values[~np.isnan(values)]


def _quantiles(values: np.ndarray, low: float, high: float) -> Limits:
    if not len(values):
        return NO_LIMITS
    found = np.quantile(values, [low, high], method="weibull")
    return float(found[0]), float(found[1])


def percentile(values: np.ndarray, level: float) -> Limits:
    """Percentile limits.

    Parameters
    ----------
    values : (n,) array
        Replicates.
    level : float

    Returns
    -------
    low, high : float
        NaN if there are no replicates.

    Examples
    --------
    >>> low, high = percentile(np.arange(1.0, 100.0), 0.9)
    >>> round(low, 6), round(high, 6)
    (5.0, 95.0)
    """
    tail = (1 - level) / 2
    return _quantiles(known(values), tail, 1 - tail)


def basic(estimate: float, values: np.ndarray, level: float) -> Limits:
    """Basic (reflected) limits: the percentile limits, mirrored at the estimate.

    Parameters
    ----------
    estimate : float
    values : (n,) array
        Replicates.
    level : float

    Returns
    -------
    low, high : float

    Examples
    --------
    >>> basic(40.0, np.arange(1.0, 100.0), 0.9)
    (-15.0, 75.0)
    """
    low, high = percentile(values, level)
    return 2 * estimate - high, 2 * estimate - low


def normal(estimate: float, values: np.ndarray, level: float) -> Limits:
    """Normal limits with the replicates' bias and standard deviation.

    Parameters
    ----------
    estimate : float
    values : (n,) array
        Replicates, at least two.
    level : float

    Returns
    -------
    low, high : float

    Examples
    --------
    >>> low, high = normal(50.0, np.arange(1.0, 100.0), 0.95)
    >>> round(low, 2), round(high, 2)
    (-6.3, 106.3)
    """
    own = known(values)
    if len(own) < 2:
        return NO_LIMITS
    middle, half = 2 * estimate - own.mean(), normal_quantile(level) * own.std(ddof=1)
    return float(middle - half), float(middle + half)


def studentized(estimate: float, se: float, values: np.ndarray, errors: np.ndarray, level: float) -> Limits:
    """Studentised (bootstrap-t) limits.

    Parameters
    ----------
    estimate, se : float
        With its standard error.
    values, errors : (n,) arrays
        Replicates, each with its own standard error; those without one do not count.
    level : float

    Returns
    -------
    low, high : float
        NaN if the estimate has no standard error.

    Examples
    --------
    >>> studentized(50.0, 2.0, np.arange(1.0, 100.0), np.ones(99), 0.9)
    (-40.0, 140.0)
    """
    usable = errors > 0
    ratios = (values[usable] - estimate) / errors[usable]
    low, high = percentile(ratios, level)
    return estimate - high * se, estimate - low * se


def acceleration(jackknife: np.ndarray) -> float:
    """Acceleration of BCa limits: a sixth of the skewness of the estimate's influence values.

    Parameters
    ----------
    jackknife : (m,) array
        Estimates without each of m groups.

    Returns
    -------
    float
        0 if they are all equal; NaN if there are fewer than two.

    Examples
    --------
    >>> round(acceleration(np.array([1.0, 1.0, 1.0, 5.0])), 4)
    -0.0962
    """
    own = known(jackknife)
    if len(own) < 2:
        return np.nan
    influence = own.mean() - own
    size = float((influence**2).sum())
    return float((influence**3).sum() / (6 * size**1.5)) if size > 0 else 0.0


def bca(estimate: float, values: np.ndarray, jackknife: np.ndarray, level: float) -> Limits:
    """Bias-corrected and accelerated limits.

    Parameters
    ----------
    estimate : float
    values : (n,) array
        Replicates. Those equal to the estimate count half below and half above it.
    jackknife : (m,) array
        Estimates without each of m groups.
    level : float

    Returns
    -------
    low, high : float
        NaN if all replicates lie on one side of the estimate.

    Examples
    --------
    >>> low, high = bca(50.0, np.arange(1.0, 100.0), np.array([1.0, 2.0, 3.0]), 0.9)
    >>> round(low, 6), round(high, 6)
    (5.0, 95.0)
    """
    own, a = known(values), acceleration(jackknife)
    below = np.mean((own < estimate) + 0.5 * (own == estimate)) if len(own) else np.nan
    if not 0 < below < 1 or np.isnan(a):
        return NO_LIMITS
    bias, z = _NORMAL.inv_cdf(float(below)), normal_quantile(level)
    levels = []
    for shifted in (bias - z, bias + z):
        scale = 1 - a * shifted
        if scale <= 0:  # beyond the range in which the correction is monotone
            return NO_LIMITS
        levels.append(_NORMAL.cdf(bias + shifted / scale))
    return _quantiles(own, levels[0], levels[1])
