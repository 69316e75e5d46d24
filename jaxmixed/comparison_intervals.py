"""Intervals of levels that may be compared with each other, pair by pair."""

from __future__ import annotations

import numpy as np
import pandas as pd

from jaxmixed._distributions import normal_quantile
from jaxmixed.formatting import NotedFrame
from jaxmixed.prediction_error import ErrorModel
from jaxmixed.ranking import LevelEffect

MOST_PAIRED = 300
"""Levels of whose pairs an average is taken; of more, so many spread evenly over the standard errors."""


def comparison_factor(covariance: np.ndarray, level: float) -> float:
    """Half width of intervals, in standard errors, that two equal levels' miss with the right probability.

    With half widths c s_i, the intervals of levels i and j do not overlap if their estimates differ by more
    than c (s_i + s_j); for equal levels this has the probability 2 Phi(-c (s_i + s_j) / s_ij), s_ij the
    standard error of the difference. The factor c makes the mean of these over all pairs 1 - level. Of
    independent estimates with equal errors it is the normal quantile over the root of two, 1.39 for 95%.

    Parameters
    ----------
    covariance : (m, m) array
        Of the errors of the estimates.
    level : float

    Returns
    -------
    float

    References
    ----------
    Goldstein & Healy (1995), The graphical presentation of a collection of means, Journal of the Royal
    Statistical Society A 158(1), 175-177, equation 4, there with independent estimates.

    Examples
    --------
    >>> round(comparison_factor(np.eye(3), 0.95), 4)
    1.3859
    """
    from scipy.optimize import brentq
    from scipy.special import ndtr

    variance = np.maximum(np.diagonal(covariance), 0.0)
    first, second = np.triu_indices(len(variance), 1)
    squared = variance[first] + variance[second] - 2 * covariance[first, second]
    sums = np.sqrt(variance[first]) + np.sqrt(variance[second])
    apart = squared > 1e-12 * sums**2  # other pairs differ by no error at all
    if not apart.any():
        return normal_quantile(level)
    ratio = sums[apart] / np.sqrt(squared[apart])

    def excess(factor: float) -> float:
        return float(np.mean(2 * ndtr(-factor * ratio))) - (1 - level)

    # The smallest ratio alone would need the largest factor.
    return float(brentq(excess, 0.0, normal_quantile(level) / ratio.min() + 1e-9, xtol=1e-12))


def comparison_intervals(chosen: LevelEffect, errors: ErrorModel, level: float) -> pd.DataFrame:
    """Table of comparison intervals; see `MixedResults.comparison_intervals`.

    Parameters
    ----------
    chosen : LevelEffect
    errors : ErrorModel
    level : float

    Returns
    -------
    pandas.DataFrame
    """
    normal_quantile(level)  # refuses what is no level
    m = len(chosen.estimate)
    error = np.sqrt(np.maximum(chosen.rows(errors, np.arange(m)).variance(), 0.0))
    picked = np.argsort(error, kind="stable")[
        np.unique(np.linspace(0, m - 1, min(m, MOST_PAIRED)).astype(int))
    ]
    factor = comparison_factor(chosen.rows(errors, picked).covariance(), level)
    columns = {
        "estimate": chosen.estimate,
        "std_error": error,
        "compare_low": chosen.estimate - factor * error,
        "compare_high": chosen.estimate + factor * error,
    }
    table = NotedFrame(columns, index=chosen.levels)
    note = (
        f"{chosen.words}; intervals of {factor:.4g} standard errors: of two levels that are equal they do not"
        f" overlap with a probability of {100 * (1 - level):.6g}%, on average over pairs"
    )
    table.attrs |= {"note": note, "group": chosen.label, "effect": chosen.words, "factor": factor}
    return table
