"""Standard errors and intervals of predictions.

What is predicted is ``x'b + z'u`` of the fixed effects and of the random effects of the chosen terms
(``"confidence"``), or a new response with these effects (``"prediction"``). Variances are those of the
prediction error, from the joint covariance of the errors of the estimates
(:mod:`jaxmixed.prediction_error`); what a prediction leaves out adds its own variance.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from jaxmixed._distributions import t_quantiles
from jaxmixed.errors import DataError, printable
from jaxmixed.formatting import NotedFrame, counted
from jaxmixed.ingest import column_from_values, numbers, read_columns
from jaxmixed.predict import PredictionRows, effects_of_new_groups, prediction_rows
from jaxmixed.prediction_df import NewEffects, prediction_df

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxmixed.estimates import Estimates
    from jaxmixed.fixed_inference import FixedInference
    from jaxmixed.frame import GroupDesign, ModelFrame
    from jaxmixed.prediction_error import ErrorModel, RowErrors
    from jaxmixed.prediction_slopes import PredictionSlopes

INTERVALS = ("confidence", "prediction")
KNOWLEDGE = ("known", "estimated")

BLOCK_ROWS = 1 << 17
"""Rows whose errors are held at a time."""


class Fit(Protocol):
    """What predictions need of a fit."""

    frame: ModelFrame
    estimates: Estimates

    @property
    def _modes(self) -> tuple[np.ndarray, ...]: ...

    @property
    def _errors(self) -> ErrorModel: ...

    @property
    def _slopes(self) -> PredictionSlopes: ...

    def fixed_inference(self, ddf: str = "none", vcov: FixedInference | None = None) -> FixedInference:
        """Inference on linear functions of the coefficients."""


def predictions(
    fit: Fit,
    newdata: Any = None,
    random: bool | str = True,
    allow_new_levels: bool = False,
    *,
    interval: str = "confidence",
    level: float = 0.95,
    offset: Any = None,
    ddf: str = "none",
    vcov: FixedInference | None = None,
    variance_parameters: str = "known",
    weights: Any = None,
) -> pd.DataFrame:
    """Table of predictions; see `MixedResults.predictions`, which calls this.

    Parameters
    ----------
    fit : Fit
    newdata, random, allow_new_levels, interval, level, offset, ddf, vcov, variance_parameters, weights
        See `MixedResults.predictions`.

    Returns
    -------
    pandas.DataFrame
    """
    _check_choice("interval", interval, INTERVALS)
    _check_choice("variance_parameters", variance_parameters, KNOWLEDGE)
    rows = prediction_rows(fit.frame, fit.estimates, newdata, random, allow_new_levels, offset)
    inference = fit.fixed_inference(ddf, vcov)
    _check_reference(fit.estimates, rows, interval, variance_parameters, inference)
    if weights is not None and (newdata is None or interval != "prediction"):
        raise DataError(
            "weights= is for interval='prediction' in new data, where the variance of a new response is"
            " sigma^2 / w; the fitted rows keep the weights of the fit"
        )
    new_effects = _unknown_levels(fit.frame, fit.estimates, rows)
    num_new = int(np.count_nonzero(sum((times for *_, times in new_effects), np.zeros(len(rows.X)))))
    variance = error_variance(fit, rows, inference)
    if interval == "prediction":
        left_out = left_out_effects(fit.frame, fit.estimates, rows, newdata)
        variance = variance + effects_variance(fit.estimates, left_out, len(variance))
        variance += fit.estimates.sigma**2 / _new_weights(fit.frame, newdata, weights, len(variance))
        new_effects += left_out
    df = np.full(len(variance), np.inf)
    if inference.ddf != "none":
        df = _degrees_of_freedom(fit, rows, inference, new_effects, variance)
    if variance_parameters == "estimated" and fit.estimates.terms:
        variance = variance + _slope_variance(fit._slopes, rows)
    estimate = rows.values(fit.estimates.beta, fit._modes if rows.terms else ())
    std_error = np.where(np.isnan(estimate), np.nan, np.sqrt(np.maximum(variance, 0.0)))
    columns = {"estimate": estimate, "std_error": std_error}
    if inference.ddf != "none":
        columns["df"] = np.where(np.isnan(std_error), np.nan, df)
    half = t_quantiles(level, df) * std_error
    columns |= {"conf_low": estimate - half, "conf_high": estimate + half}
    table = NotedFrame(columns, index=rows.index)
    if num_new:
        table.attrs["note"] = (
            f"levels that the model was not fitted to, in {counted(num_new, 'row')}: their effects are taken"
            " as zero, and their variance is part of the standard errors"
        )
    return table


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise DataError(f"{name} is {value!r}; choose one of {', '.join(map(repr, choices))}")


def _check_reference(
    estimates: Estimates,
    rows: PredictionRows,
    interval: str,
    variance_parameters: str,
    inference: FixedInference,
) -> None:
    """Most degrees of freedom and other covariances are those of functions of the fixed effects alone."""
    if inference.ddf == "none" or not estimates.terms:
        return
    if inference.ddf != "satterthwaite" and (rows.terms or interval == "prediction"):
        raise DataError(
            f"inference by {inference.ddf!r} is of functions of the fixed effects alone, and these"
            " predictions have random effects: use ddf='satterthwaite' or ddf='none', or random=False with"
            " interval='confidence'"
        )
    if inference.ddf != "satterthwaite" and variance_parameters == "estimated":
        raise DataError(
            f"inference by {inference.ddf!r} has standard errors of its own: it does not go with"
            " variance_parameters='estimated'"
        )


def _unknown_levels(frame: ModelFrame, estimates: Estimates, rows: PredictionRows) -> list[NewEffects]:
    """Effects of levels that the fit does not know; refuses those of unknown relationship."""
    found = []
    for own in rows.terms:
        unknown = (own.codes < 0) & np.isfinite(own.Z).all(axis=1)
        if not unknown.any():
            continue
        term = estimates.terms[own.term]
        if frame.groups[term.frame_index].relationship is not None:
            row = int(np.flatnonzero(unknown)[0])
            raise DataError(
                f"row {row} (counting from 0) has a level of {printable(term.group)!r} that is not in its"
                " relationship matrix, so that neither its covariance with the others nor its variance is"
                " known: fit with a matrix that has it (levels without data may be in it), or use"
                " random=False"
            )
        found.append((own.term, own.Z, unknown.astype(np.float64)))
    return found


def row_blocks(rows: PredictionRows) -> Iterator[tuple[slice, PredictionRows]]:
    """Slices of at most BLOCK_ROWS rows."""
    for start in range(0, len(rows.X), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        yield block, rows.at(block)


def error_variance(fit: Fit, rows: PredictionRows, inference: FixedInference | None = None) -> np.ndarray:
    """Variances (n,) of the errors of predictions, the variance parameters taken as known.

    Parameters
    ----------
    fit : Fit
    rows : PredictionRows
    inference : FixedInference, optional
        Whose covariance is that of the fixed effects, for rows without random effects.

    Returns
    -------
    (n,) array
        In squared units of the response; NaN in rows with a missing value.
    """
    variance = np.empty(len(rows.X))
    if not rows.terms:
        own = fit.fixed_inference() if inference is None else inference
        L = rows.X[:, own.kept]
        return np.einsum("ni,ni->n", L @ own.cov[np.ix_(own.kept, own.kept)], L)
    for block, part in row_blocks(rows):
        variance[block] = fit._errors.rows(part.X, part.terms).variance()
    return variance


def _degrees_of_freedom(
    fit: Fit,
    rows: PredictionRows,
    inference: FixedInference,
    new_effects: list[NewEffects],
    variance: np.ndarray,
) -> np.ndarray:
    """Of every row's variance, (n,); NaN in rows with a missing value."""
    if rows.terms or (new_effects and fit.estimates.terms):

        def blocks() -> Iterator[tuple[slice, RowErrors]]:
            for block, part in row_blocks(rows):
                yield block, fit._errors.rows(part.X, part.terms)

        return prediction_df(fit._errors, fit.estimates, blocks, new_effects, variance)
    df, good = np.full(len(variance), np.nan), np.isfinite(rows.X).all(axis=1)
    df[good] = inference.reference.df(rows.X[good][:, inference.kept])
    return df


def _slope_variance(slopes: PredictionSlopes, rows: PredictionRows) -> np.ndarray:
    """What estimated variance parameters add to the variances of predictions, (n,)."""
    # Once for what predictions vary with the parameters, and once more because the variance at the estimated
    # parameters falls short of that at the true ones by as much (Prasad & Rao 1990).
    linear = replace(rows, offset=None)
    total = np.zeros(len(rows.X))
    for number, beta in enumerate(slopes.beta):
        total += linear.values(beta, [modes[number] for modes in slopes.modes]) ** 2
    return 2 * total


def left_out_effects(
    frame: ModelFrame, estimates: Estimates, rows: PredictionRows, newdata: Any = None
) -> list[NewEffects]:
    """Random effects that predictions leave out, of new groups in every row.

    Parameters
    ----------
    frame : ModelFrame
    estimates : Estimates
    rows : PredictionRows
    newdata : table or None
        What the rows were made from.

    Raises
    ------
    DataError
        If the levels of such a term have different variances by a known relationship.
    """
    return [
        (i, Z, _level_variance(frame.groups[estimates.terms[i].frame_index]))
        for i, Z in effects_of_new_groups(frame, estimates, rows, newdata)
    ]


def effects_variance(estimates: Estimates, effects: list[NewEffects], num_rows: int) -> np.ndarray:
    """Prior variance (n,) of effects of levels without data.

    Parameters
    ----------
    estimates : Estimates
    effects : list of NewEffects
    num_rows : int
    """
    total = np.zeros(num_rows)
    for i, Z, times in effects:
        total += times * np.einsum("ni,ij,nj->n", Z, estimates.terms[i].cov, Z)
    return total


def _level_variance(group: GroupDesign) -> float:
    """Variance of a new level relative to G: 1, or the common diagonal of a known relationship matrix."""
    if group.relationship is None:
        return 1.0
    own = np.diagonal(group.relationship.matrix)
    if np.ptp(own) > 1e-8 * np.abs(own).max():
        raise DataError(
            f"the levels of {printable(group.label)!r} have different variances by their relationship matrix"
            f" ({own.min():.4g} to {own.max():.4g} times the estimated one), so that of a new level is not"
            " known: predict for levels of the matrix (random=True), or use interval='confidence'"
        )
    return float(own.mean())


def _new_weights(frame: ModelFrame, newdata: Any, weights: Any, num_rows: int) -> np.ndarray | float:
    """Precision weights of new responses; NaN where missing."""
    if newdata is None:
        return 1.0 if frame.weights is None else frame.weights
    if weights is None:
        if frame.weights is None:
            return 1.0
        raise DataError(
            "the model has precision weights, so the variance of a new response is sigma^2 / w: give"
            " weights=, the name of a column of the new data, an array or a number (weights=1 for a row of"
            " weight 1)"
        )
    if isinstance(weights, int | float | np.number) and not isinstance(weights, bool):
        weights = np.full(num_rows, float(weights))
    if isinstance(weights, str):
        column = read_columns(newdata, [weights]).columns[weights]
    else:
        column = column_from_values("weights", weights)
    if len(column.values) != num_rows:
        raise DataError(f"weights has {len(column.values)} values for {num_rows} rows of new data")
    kept = None if column.missing is None else ~column.missing
    values = np.full(num_rows, np.nan)
    values[slice(None) if kept is None else kept] = numbers(column, kept, "weights")
    if (values <= 0).any():
        raise DataError(
            f"the weights of the new data contain {values[values <= 0][0]:g}; weights must be positive,"
            " because Var(e_i) = sigma^2 / w_i"
        )
    return values
