r"""Shares of variance explained: marginal and conditional R-squared of mixed models.

.. math:: R^2_m = \frac{\sigma_f^2}{\sigma_f^2 + \sum_k \sigma_k^2 + \sigma^2}, \qquad
          R^2_c = \frac{\sigma_f^2 + \sum_k \sigma_k^2}{\sigma_f^2 + \sum_k \sigma_k^2 + \sigma^2}

with the variance of the fixed predictions :math:`\sigma_f^2` over the rows (Nakagawa & Schielzeth 2013,
Methods in Ecology and Evolution 4(2), 133-142) and, for each grouping, the mean over the rows of
:math:`z' \sigma^2 G z` (Johnson 2014, the same 5(9), 944-946).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from jaxmixed._distributions import normal_quantile
from jaxmixed.formatting import NotedFrame
from jaxmixed.icc import WEIGHTED, nested_order
from jaxmixed.residual_tables import mean_residual, mean_residual_note
from jaxmixed.variance_parts import mean_moment, variance_parts

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates
    from jaxmixed.frame import ModelFrame


def variance_explained(frame: ModelFrame, estimates: Estimates, level: float = 0.95) -> pd.DataFrame:
    """Table of R-squared; see `Marginal.r2`, which calls this.

    Parameters
    ----------
    frame : ModelFrame
    estimates : Estimates
    level : float

    Returns
    -------
    pandas.DataFrame
    """
    half_width = normal_quantile(level)
    kept = ~np.isnan(estimates.beta)
    X, beta = frame.X[:, kept], estimates.beta[kept]
    X = X - X.mean(axis=0)  # exactly zero for the intercept
    predicted = X @ beta
    fixed = float(predicted @ predicted) / (len(predicted) - 1)
    # The derivative of beta' S beta, S the covariance matrix of the columns.
    gradient = 2 * (X.T @ predicted) / (len(predicted) - 1)
    variance = float(gradient @ estimates.cov_beta[np.ix_(kept, kept)] @ gradient)
    moments = [mean_moment(frame.groups[term.frame_index]) for term in estimates.terms]
    parts = variance_parts(estimates, moments, mean_residual(frame, estimates))
    parts = parts.preceded(fixed, variance)
    num_terms = len(estimates.terms)
    inside = {"marginal": [0], "conditional": list(range(num_terms + 1))}
    labels = [group.label for group in nested_order(frame, estimates)]
    rows = [parts.share(chosen, half_width) for chosen in inside.values()]
    for label in labels:
        rows.append(
            parts.share([i + 1 for i, term in enumerate(estimates.terms) if term.group == label], half_width)
        )
    index = pd.Index([*inside, *labels], name="part")
    table = NotedFrame(
        rows, index=index, columns=["estimate", "std_error", "conf_low", "conf_high"], dtype=np.float64
    )
    notes = [WEIGHTED] if frame.weights is not None else []
    notes += [note for note in (mean_residual_note(estimates),) if note]
    if notes:
        table.attrs["note"] = ", ".join(notes)
    return table
