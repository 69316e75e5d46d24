"""Results as a JSON document, for other programs.

===================== =======================================================================================
key                   value
===================== =======================================================================================
``jaxmixed``          version of the package (documents of the command line)
``formula``           model formula
``method``            ``"ml"`` or ``"reml"``
``level``             level of all intervals
``ddf``               denominator degrees of freedom of the tests of coefficients
``fit``               ``nobs, n_dropped, dropped_by, num_params, df_resid, llf, deviance, aic, bic, sigma,
                      theta``
``groups``            list of ``group, levels, min, mean, max`` (rows per level)
``coefficients``      list of ``term, estimate, std_error, df, statistic, p_value, conf_low, conf_high``;
                      ``df`` is null for normal tests, and every number is null for a dropped column
``varcorr``           list of ``group, effect, effect2, estimate, std_error, conf_low, conf_high`` (variances,
                      covariances) and ``sd_or_corr`` with its ``_std_error, _conf_low, _conf_high``;
                      the residual last
``residual``          structure of correlated residuals: ``structure, text, group, groups, time, times, by,
                      strata, variance_by, levels, covariate`` and ``parameters``, a list of ``parameter,
                      estimate, std_error, conf_low, conf_high``; null where they are independent
``linear_model_test`` ``statistic, df, p_value, distribution, note``, or null for a linear model
``diagnostics``       ``converged, singular, status, messages, iterations, evaluations, gradient_norm,
                      newton_decrement, hessian_eigenvalues, rank_deficient, condition_number,
                      problems, gradient_tolerance, hessian_condition, advice``; ``weakest_direction``:
                      ``weights`` by parameter, ``std_error, curvature``; ``boundary``: list of ``group,
                      kind, effects, parameter, estimate, derivative, is_minimum``
===================== =======================================================================================

Numbers that do not exist (standard errors on a boundary) are null.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmixed.certificate import certificate
from jaxmixed.comparison import linear_model_test
from jaxmixed.residual_tables import residual_document
from jaxmixed.tables import information_criteria

if TYPE_CHECKING:
    import pandas as pd

    from jaxmixed.results import MixedResults


def document(result: MixedResults, level: float = 0.95, ddf: str = "none") -> dict[str, Any]:
    """Everything that a table of the fit shows, as plain lists, texts and numbers.

    Parameters
    ----------
    result : MixedResults
        A fit.
    level : float
        Level of the intervals.
    ddf : str
        Denominator degrees of freedom of the tests of coefficients.

    Returns
    -------
    dict
        Strictly valid as JSON; the keys are those of this module's table.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    >>> document(fit)["coefficients"][1]["term"]
    'Days'
    """
    found = result.diagnostics
    test = linear_model_test(result.estimates)
    aic, bic = information_criteria(result.estimates)
    contents = {
        "formula": result.formula,
        "method": result.method,
        "level": level,
        "ddf": ddf,
        "fit": {
            "nobs": result.nobs,
            "n_dropped": result.n_dropped,
            "dropped_by": result.dropped_by,
            "num_params": result.num_params,
            "df_resid": result.df_resid,
            "llf": result.llf,
            "deviance": result.deviance,
            "aic": aic,
            "bic": bic,
            "sigma": result.sigma,
            "theta": result.theta,
        },
        "groups": _records(result.group_sizes().reset_index()),
        "coefficients": _records(result.coef_table(ddf, level).rename_axis("term").reset_index()),
        "varcorr": _records(result.variance_table(level)),
        "residual": residual_document(result.frame, result.estimates, result.residual_table(level)),
        "linear_model_test": None if test is None else asdict(test),
        "diagnostics": {
            "converged": found.converged,
            "singular": found.singular,
            "status": found.status,
            "messages": found.messages,
            "iterations": found.iterations,
            "evaluations": found.evaluations,
            "gradient_norm": found.gradient_norm,
            "newton_decrement": found.newton_decrement,
            "hessian_eigenvalues": found.hessian_eigenvalues,
            "rank_deficient": found.rank_deficient,
            "condition_number": found.condition_number,
            "problems": found.problems,
            **certificate(result).facts(),
        },
    }
    return {key: _plain(value) for key, value in contents.items()}


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False, name=None)]


def _plain(value: Any) -> Any:
    """Numbers, texts, lists and dicts of JSON; null for what is not finite."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return None if value is None else str(value)
