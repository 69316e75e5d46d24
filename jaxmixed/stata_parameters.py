"""All parameters of `mixed` in the metric in which Stata estimates them.

Variances are logarithms of standard deviations, correlations their atanh. Stata's names of these are
``lns1_1_1`` (level, equation of the level, effect), ``atr1_1_1_2`` (level, equation, two effects) and
``lnsig_e``.

References
----------
StataCorp, Stata Multilevel Mixed-Effects Reference Manual, mixed (Methods and formulas).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from jaxmixed.inference import VarianceParameters, log_scale, variance_inference
from jaxmixed.pseudo_likelihood import variance_scores
from jaxmixed.stata_session import Estimation
from jaxmixed.stata_syntax import Statement
from jaxmixed.stata_variances import effect_positions


@dataclass(frozen=True)
class VarianceMetric:
    """Variance parameters in the metric of Stata's estimation.

    Attributes
    ----------
    names : tuple of str
        Of the P parameters.
    values : (P,) array
    covariance : (P, P) array
    slopes : (P, k + 1) array
        Derivatives in the parameters of the fit and log sigma.
    """

    names: tuple[str, ...]
    values: np.ndarray
    covariance: np.ndarray
    slopes: np.ndarray


def variance_metric(estimates: Estimation) -> VarianceMetric | None:
    """Variance parameters of an estimation; None where residuals have parameters of their own."""
    found = estimates.more.get("table_fit", estimates.fit).estimates  # robust, if the tables are
    if found.residual is not None:
        return None
    parameters = VarianceParameters.of(found)
    inference, scale = variance_inference(parameters).model(0), log_scale(parameters)
    row_of = {key: row for row, key in enumerate(scale.elements)}
    names, rows = [], []
    equations: dict[str, int] = {}
    for level in estimates.more["levels"]:
        if level.term is None:
            continue
        name = level.request.name
        number = list(dict.fromkeys([*equations, name])).index(name) + 1
        equations[name] = equations.get(name, 0) + 1
        term = next(at for at, own in enumerate(found.terms) if own.frame_index == level.term)
        order, stem = effect_positions(level), f"{number}_{equations[name]}"
        shared = level.title in ("Identity", "Exchangeable")
        for a, i in enumerate(order[:1] if shared else order):
            names.append(f"lns{stem}_{a + 1}")
            rows.append(row_of[term, i, i])
        pairs = (
            list(combinations(range(len(order)), 2))
            if level.title in ("Unstructured", "Exchangeable")
            else []
        )
        for a, b in pairs[:1] if shared else pairs:
            i, j = sorted((order[a], order[b]), reverse=True)
            names.append(f"atr{stem}_{a + 1}_{b + 1}")
            rows.append(row_of[term, i, j] if (term, i, j) in row_of else row_of[term, j, i])
    names.append("lnsig_e")
    rows.append(row_of[-1, 0, 0])
    shown = inference.sd_corr[rows]
    with np.errstate(all="ignore"):
        values = np.array([
            np.arctanh(value) if name.startswith("atr") else np.log(value)
            for name, value in zip(names, shown, strict=True)
        ])  # fmt: skip
    covariance = inference.log_covariance[np.ix_(rows, rows)]
    return VarianceMetric(tuple(names), values, covariance, scale.slopes[0][rows])


def full_names(estimates: Estimation) -> tuple[list[str], np.ndarray]:
    """Names of the coefficients in Stata's order, and their positions in the inference."""
    names, inference = list(estimates.more["names"]), estimates.more["inference"]
    ordered = [name for name in estimates.more["design"].names if name in names]
    ordered = [name for name in ordered if inference.kept[names.index(name)]]
    return ordered, np.array([names.index(name) for name in ordered], dtype=int)


def parameter_scores(statement: Statement, estimates: Estimation) -> list[np.ndarray]:
    """Scores of all parameters, each in the last row of each group of the outermost level.

    Returns
    -------
    list of (n,) arrays
        By parameter: coefficients, then variance parameters, for the rows of the data; NaN elsewhere.

    Raises
    ------
    StataError
        With correlated residuals or weights, without random effects, or with crossed ones.
    """
    fit, metric = estimates.fit, variance_metric(estimates)
    found, frame = fit.estimates, fit.frame
    grouped = [level for level in estimates.more["levels"] if level.request.grouping]
    nested = len(grouped) == len(estimates.more["levels"]) and not any(own.request.factor for own in grouped)
    if metric is None or not found.terms or not nested or found.sampling is not None:
        raise statement.error(
            statement.option("scores").token,  # type: ignore[union-attr]
            "scores are supported for nested random effects, without residuals() and without weights",
        )
    top = fit.state.design.groupings[-1]
    weights = 1.0 if frame.weights is None else frame.weights
    # V^-1 (y - X beta) is the residual that the random effects leave, over its variance.
    errors = fit.residuals().to_numpy() * weights / found.sigma**2
    _, kept = full_names(estimates)
    of_beta = [np.bincount(top.codes, frame.X[:, at] * errors, top.size) for at in kept]
    of_standard = variance_scores(fit.state, found, fit.residuals(random=False).to_numpy())
    if not np.isfinite(metric.slopes).all() or np.linalg.matrix_rank(metric.slopes) < len(metric.names):
        raise statement.error(
            statement.option("scores").token,  # type: ignore[union-attr]
            "a variance is zero or a correlation is one: it has no score in the metric of the estimation",
        )
    of_variances = np.linalg.solve(metric.slopes.T, of_standard.T)
    position, sample = estimates.position, np.flatnonzero(estimates.sample)
    assert position is not None
    codes = top.codes[position[sample]]
    last = np.full(top.size, -1)
    last[codes] = sample  # the last one written is the last row
    columns = []
    for values in [*of_beta, *of_variances]:
        column = np.full(len(position), np.nan)
        column[last[last >= 0]] = values[last >= 0]
        columns.append(column)
    return columns
