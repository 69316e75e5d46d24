"""P-values of many tests, adjusted for their number.

========== ============================================================================================
method     what the adjusted value controls
========== ============================================================================================
fdr_bh     false discovery rate of independent or positively dependent tests (Benjamini and Hochberg 1995,
           Journal of the Royal Statistical Society B 57, 289-300)
fdr_by     false discovery rate whatever the dependence (Benjamini and Yekutieli 2001, Annals of Statistics
           29, 1165-1188)
holm       probability of any false rejection, whatever the dependence (Holm 1979, Scandinavian Journal of
           Statistics 6, 65-70)
bonferroni the same, more simply and never with more rejections
none       nothing: the p-values as they are
========== ============================================================================================

Rejecting what has an adjusted p-value of at most alpha keeps the rate, or the probability, at most alpha.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from jaxmixed.errors import DataError

Adjustment = Literal["fdr_bh", "fdr_by", "holm", "bonferroni", "none"]
ADJUSTMENTS: tuple[Adjustment, ...] = ("fdr_bh", "fdr_by", "holm", "bonferroni", "none")


def adjusted_p_values(p: Any, method: Adjustment = "fdr_bh") -> np.ndarray:
    """P-values adjusted for the number of tests along the first axis.

    Parameters
    ----------
    p : (B, ...) array_like
        P-values; NaN marks a test that could not be made. With further axes (coefficients, say), the tests of
        each column are a family of their own.
    method : str
        ``"fdr_bh"``, ``"fdr_by"``, ``"holm"``, ``"bonferroni"`` or ``"none"``.

    Returns
    -------
    (B, ...) array
        NaN where `p` is; those tests do not count.

    Raises
    ------
    DataError
        For a method of another name, and for what is no p-value.

    Examples
    --------
    >>> adjusted_p_values([0.01, 0.5, 0.02, 0.03, float("nan")])
    array([0.04, 0.5 , 0.04, 0.04,  nan])
    """
    if method not in ADJUSTMENTS:
        raise DataError(f"method is {method!r}; p-values are adjusted by {', '.join(map(repr, ADJUSTMENTS))}")
    try:
        values = np.array(p, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError("p-values to adjust are numbers between 0 and 1, or NaN; p holds others") from error
    if values.ndim == 0:
        raise DataError(f"p is {p!r}; give the p-values of all tests together, as an array")
    outside = values[(values < 0) | (values > 1)]
    if outside.size:
        raise DataError(
            f"{outside.size} of the p-values lie outside 0 to 1 (the first is {outside[0]:.6g}); give"
            " p-values, not test statistics"
        )
    for column in values.reshape(len(values), -1).T if values.size else ():
        known = ~np.isnan(column)
        if known.any():
            column[known] = _adjusted(column[known], method)
    return values


def _adjusted(p: np.ndarray, method: Adjustment) -> np.ndarray:
    """Adjusted values of one family, without NaN."""
    if method == "none":
        return p
    if method == "bonferroni":
        return np.minimum(len(p) * p, 1.0)
    if method == "holm":
        order, adjusted = np.argsort(p), np.empty(len(p))
        adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
        return np.minimum(adjusted, 1.0)
    from scipy.stats import false_discovery_control  # slow to import

    return np.asarray(false_discovery_control(p, method=method.removeprefix("fdr_")))
