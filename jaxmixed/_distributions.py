"""Tail areas and quantiles that the tables need: the standard library's normal, SciPy's chi-squared."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from jaxmixed.errors import DataError

_NORMAL = NormalDist()


def normal_quantile(level: float) -> float:
    """Half-width, in standard errors, of a central normal interval of the given level.

    Examples
    --------
    >>> round(normal_quantile(0.95), 6)
    1.959964
    """
    if not isinstance(level, int | float | np.number) or isinstance(level, bool) or not 0 < level < 1:
        raise DataError(f"level is {level!r}; give a number between 0 and 1, such as 0.95")
    # From the lower tail: 0.5 + level / 2 would round for levels near 1.
    return -_NORMAL.inv_cdf((1.0 - float(level)) / 2)


def normal_p_values(statistics: np.ndarray) -> np.ndarray:
    """Two-sided p-values of standard normal statistics, accurate in the far tail; NaN where the statistic is.

    Examples
    --------
    >>> normal_p_values(np.array([1.959963984540054]))
    array([0.05])
    """
    return np.array([math.erfc(abs(z) / math.sqrt(2.0)) for z in statistics], dtype=np.float64)


def chi2_p_value(statistic: float, df: int) -> float:
    """Pr(chi-squared with ``df`` degrees of freedom > ``statistic``); 0 degrees: all mass at 0.

    Examples
    --------
    >>> round(chi2_p_value(5.991464547, 2), 6)
    0.05
    """
    from scipy.special import chdtrc  # a tenth of a second to import, and not every process prints a test

    return float(chdtrc(df, max(statistic, 0.0))) if df > 0 else float(statistic <= 0)


def chi2_p_values(statistics: np.ndarray, df: np.ndarray) -> np.ndarray:
    """As `chi2_p_value`, of many statistics, each with its degrees of freedom; NaN where the statistic is.

    Examples
    --------
    >>> chi2_p_values(np.array([3.841458821, 0.0]), np.array([1, 0])).round(6)
    array([0.05, 1.  ])
    """
    from scipy.special import chdtrc

    with np.errstate(invalid="ignore"):
        positive = chdtrc(np.maximum(df, 1), np.maximum(statistics, 0.0))
    return np.where(np.isnan(statistics), np.nan, np.where(df > 0, positive, statistics <= 0))


def binomial_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Exact (Clopper-Pearson) limits of a probability.

    References
    ----------
    Clopper & Pearson (1934), Biometrika 26, 404-413.

    Examples
    --------
    >>> low, high = binomial_interval(10, 100)
    >>> round(low, 4), round(high, 4)
    (0.049, 0.1762)
    """
    normal_quantile(level)  # refuses what is no level
    if not trials:
        return 0.0, 1.0
    from scipy.special import betaincinv

    tail, failures = (1 - level) / 2, trials - successes
    low = float(betaincinv(successes, failures + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, failures, 1 - tail)) if failures else 1.0
    return low, high


def t_p_values(statistics: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Two-sided p-values of t statistics; normal ones where `df` is infinite, NaN where either is NaN.

    Examples
    --------
    >>> t_p_values(np.array([2.228138852, 1.959963985]), np.array([10.0, np.inf])).round(6)
    array([0.05, 0.05])
    """
    statistics, df = np.broadcast_arrays(np.asarray(statistics, dtype=np.float64), df)
    found = normal_p_values(statistics.ravel()).reshape(statistics.shape)
    finite = np.isfinite(df)
    if finite.any():
        from scipy.special import stdtr

        found[finite] = 2 * stdtr(df[finite], -np.abs(statistics[finite]))
    found[np.isnan(df)] = np.nan
    return found


def t_quantiles(level: float, df: np.ndarray) -> np.ndarray:
    """Half-widths, in standard errors, of central intervals of t distributions; NaN where `df` is.

    Examples
    --------
    >>> t_quantiles(0.95, np.array([10.0, np.inf])).round(4)
    array([2.2281, 1.96  ])
    """
    df = np.asarray(df, dtype=np.float64)
    found = np.where(np.isnan(df), np.nan, normal_quantile(level))
    finite = np.isfinite(df)
    if finite.any():
        from scipy.special import stdtrit

        found[finite] = -stdtrit(df[finite], (1.0 - float(level)) / 2)
    return found


def f_p_value(statistic: float, num_df: float, den_df: float) -> float:
    """Pr(F > statistic); of chi-squared over `num_df` where `den_df` is infinite.

    Examples
    --------
    >>> round(f_p_value(4.102821, 2, 10.0), 6), round(f_p_value(2.995732, 2, math.inf), 6)
    (0.05, 0.05)
    """
    if math.isnan(statistic) or math.isnan(den_df):
        return math.nan
    if math.isinf(den_df):
        return chi2_p_value(statistic * num_df, int(num_df))
    from scipy.special import fdtrc

    return float(fdtrc(num_df, den_df, max(statistic, 0.0)))
