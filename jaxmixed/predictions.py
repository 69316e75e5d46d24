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
from jaxmixed.predict import PredictionRows, effects_of_new_groups
from jaxmixed.prediction_df import NewEffects, RowChanges, prediction_df
from jaxmixed.residual_predictions import RowsToPredict, new_weights, rows_to_predict

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

    @property
    def _fitted(self) -> np.ndarray: ...

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
    own = interval == "prediction"
    rows = rows_to_predict(fit.frame, fit.estimates, newdata, random, allow_new_levels, offset, weights, own)
    inference = fit.fixed_inference(ddf, vcov)
    _check_reference(fit.estimates, rows, interval, variance_parameters, inference)
    if weights is not None and (newdata is None or not (own or rows.residual)):
        raise DataError(
            "weights= is for interval='prediction' in new data, where the variance of a new response is"
            " sigma^2 / w; the fitted rows keep the weights of the fit"
        )
    new_effects = _unknown_levels(fit.frame, fit.estimates, rows)
    num_new = int(np.count_nonzero(sum((times for *_, times in new_effects), np.zeros(len(rows.X)))))
    variance = error_variance(fit, rows, inference)
    if own:
        left_out = left_out_effects(fit.frame, fit.estimates, rows, newdata)
        variance = variance + effects_variance(fit.estimates, left_out, len(variance))
        if rows.residual is None:
            share = 1 / new_weights(fit.frame, newdata, weights, len(variance))
        else:
            share = np.maximum(rows.residual.variance, 0.0)
        variance += fit.estimates.sigma**2 * share
        new_effects += left_out
    df = np.full(len(variance), np.inf)
    if inference.ddf != "none":
        df = _degrees_of_freedom(fit, rows, inference, new_effects, variance, own)
    if variance_parameters == "estimated" and (fit.estimates.terms or fit.estimates.residual):
        variance = variance + _slope_variance(fit, rows)
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


def _uses_residuals(rows: RowsToPredict) -> bool:
    """Whether residuals of the fit are part of predictions."""
    return rows.residual is not None and rows.residual.any_known


def _check_reference(
    estimates: Estimates,
    rows: RowsToPredict,
    interval: str,
    variance_parameters: str,
    inference: FixedInference,
) -> None:
    """Most degrees of freedom and other covariances are those of functions of the fixed effects alone."""
    if inference.ddf == "none" or not (estimates.terms or estimates.residual):
        return
    own = interval == "prediction" or _uses_residuals(rows)
    if inference.ddf != "satterthwaite" and (rows.terms or own):
        parts = "random effects" if estimates.terms else "residuals of their own"
        raise DataError(
            f"inference by {inference.ddf!r} is of functions of the fixed effects alone, and these"
            f" predictions have {parts}: use ddf='satterthwaite' or ddf='none', or random=False with"
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
    rows: RowsToPredict,
    inference: FixedInference,
    new_effects: list[NewEffects],
    variance: np.ndarray,
    own_residual: bool,
) -> np.ndarray:
    """Of every row's variance, (n,); NaN in rows with a missing value."""
    residual = rows.residual is not None and (own_residual or rows.residual.any_known)
    if rows.terms or residual or (new_effects and fit.estimates.terms):

        def blocks() -> Iterator[tuple[slice, RowErrors]]:
            for block, part in row_blocks(rows):
                yield block, fit._errors.rows(part.X, part.terms)

        def changes(direction: np.ndarray) -> RowChanges | None:
            if rows.residual is None:
                return None
            found = rows.residual.slopes(direction)
            moved = replace(rows, X=found.X, terms=found.terms, offset=None)

            def errors(block: slice) -> RowErrors:
                part = moved.at(block)
                return fit._errors.rows(part.X, part.terms)

            variance = found.variance if own_residual else 0.0
            return RowChanges(errors if rows.residual.any_known else None, variance)

        return prediction_df(fit._errors, fit.estimates, blocks, new_effects, variance, changes)
    df, good = np.full(len(variance), np.nan), np.isfinite(rows.X).all(axis=1)
    df[good] = inference.reference.df(rows.X[good][:, inference.kept])
    return df


def _slope_variance(fit: Fit, rows: RowsToPredict) -> np.ndarray:
    """What estimated variance parameters add to the variances of predictions, (n,)."""
    # Once for what predictions vary with the parameters, and once more because the variance at the estimated
    # parameters falls short of that at the true ones by as much (Prasad & Rao 1990).
    linear, slopes = replace(rows, offset=None), fit._slopes
    total = np.zeros(len(rows.X))
    observed = _uses_residuals(rows)
    errors = fit.frame.y - fit._fitted if observed else np.zeros(0)
    for number, beta in enumerate(slopes.beta):
        moved = linear.values(beta, [modes[number] for modes in slopes.modes])
        if observed:
            assert rows.residual is not None
            moved = moved + rows.residual.slopes(slopes.directions[number]).coefficients @ errors
        total += moved**2
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
