r"""Variance inflation factors of the terms of the fixed part.

.. math:: \mathrm{GVIF}_j = \frac{\det R_{jj} \det R_{-j,-j}}{\det R}

with R the correlation matrix of the estimated coefficients without the intercept, and the blocks those of the
term's own coefficients and of all others (Fox & Monette 1992, Journal of the American Statistical Association
87(417), 178-183).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from jaxmixed.errors import DesignError
from jaxmixed.formatting import NotedFrame

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates
    from jaxmixed.frame import ModelFrame


def inflation_factors(frame: ModelFrame, estimates: Estimates) -> pd.DataFrame:
    """Table of inflation factors; see `Marginal.vif`, which calls this.

    Parameters
    ----------
    frame : ModelFrame
    estimates : Estimates

    Returns
    -------
    pandas.DataFrame
    """
    assign = np.array(frame.x_assign, dtype=np.int64)
    used = ~np.isnan(estimates.beta) & (assign > 0)
    if not used.any():
        raise DesignError("the fixed part has no terms beside the intercept, so there is nothing to inflate")
    cov, terms = estimates.cov_beta[np.ix_(used, used)], assign[used]
    # A correlation matrix by its Cholesky factor: determinants of scaled blocks neither over- nor underflow.
    scale = np.sqrt(np.diagonal(cov))
    R = cov / np.outer(scale, scale)
    whole = _log_determinant(R)
    rows, labels = [], []
    for number in np.unique(terms):
        own = terms == number
        inside, outside = R[np.ix_(own, own)], R[np.ix_(~own, ~own)]
        gvif = float(np.exp(_log_determinant(inside) + _log_determinant(outside) - whole))
        df = int(own.sum())
        rows.append((gvif, df, gvif ** (1 / (2 * df))))
        labels.append(frame.term_labels[number - 1])
    table = NotedFrame(rows, index=pd.Index(labels, name="term"), columns=["gvif", "df", "gvif_adj"])
    notes = []
    if 0 not in frame.x_assign:
        notes.append("without an intercept, inflation is measured against columns that are not centred")
    if np.isnan(estimates.beta).any():
        notes.append("dropped coefficients are left out")
    if notes:
        table.attrs["note"] = "; ".join(notes)
    return table


def _log_determinant(R: np.ndarray) -> float:
    return float(np.linalg.slogdet(R)[1]) if len(R) else 0.0
