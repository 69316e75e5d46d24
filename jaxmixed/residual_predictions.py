"""Rows to predict where residuals are correlated: what the observed rows of their groups say of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmixed.errors import DataError, printable
from jaxmixed.ingest import column_from_values, numbers, read_columns
from jaxmixed.predict import PredictionRows, TermRows, prediction_rows
from jaxmixed.residual_forecasts import FurtherRows, ResidualForecasts, relative_variances
from jaxmixed.row_combinations import combined_rows

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from jaxmixed.estimates import Estimates
    from jaxmixed.frame import ModelFrame

NEGATIVE = 1e-9
"""A conditional variance below minus this share of the variance is not rounding."""


@dataclass(frozen=True)
class RowResiduals:
    """Residuals of rows to predict, given the observed ones.

    Attributes
    ----------
    frame : ModelFrame
    estimates : Estimates
    source : ResidualForecasts
    coefficients : sparse (n, N) array
        Of the observed residuals in the mean.
    variance : (n,) array
        Relative to sigma squared; NaN in rows with a missing value.
    terms : tuple of int
        Positions of all terms.
    """

    frame: ModelFrame
    estimates: Estimates
    source: ResidualForecasts
    coefficients: csr_array
    variance: np.ndarray
    terms: tuple[int, ...]

    @property
    def any_known(self) -> bool:
        """Whether an observed residual says anything of a row."""
        return bool(self.coefficients.nnz)

    def slopes(self, direction: np.ndarray) -> RowSlopes:
        """Derivatives along a direction (k,) of all standardised parameters, the residual's last."""
        found = self.source.slopes(direction[len(direction) - len(self.source.free) :])
        X, terms = combined_rows(self.frame, self.estimates, -found.coefficients, self.terms)
        return RowSlopes(found.coefficients, found.variance, X, terms)


@dataclass(frozen=True)
class RowSlopes:
    """Derivatives of rows to predict along a direction of the residual parameters.

    Attributes
    ----------
    coefficients : sparse (n, N) array
        Of those of the observed residuals.
    variance : (n,) array
        Of the residual's relative variance.
    X : (n, p) array
        Of the adjusted columns of the fixed effects.
    terms : tuple of TermRows
        Of those of the random effects.
    """

    coefficients: csr_array
    variance: np.ndarray
    X: np.ndarray
    terms: tuple[TermRows, ...]


@dataclass(frozen=True)
class RowsToPredict(PredictionRows):
    """Rows to predict, and what is known of their residuals.

    Attributes
    ----------
    residual : RowResiduals or None
        Where residuals are correlated, or their variances differ.
    """

    residual: RowResiduals | None = None


def rows_to_predict(
    frame: ModelFrame,
    estimates: Estimates,
    newdata: Any,
    random: bool | str,
    allow_new_levels: bool,
    offset: Any,
    weights: Any = None,
    new_responses: bool = False,
) -> RowsToPredict:
    """Rows to predict, of the fit or of new data; with the residuals that correlated ones tell.

    Parameters
    ----------
    frame : ModelFrame
    estimates : Estimates
    newdata, random, allow_new_levels, offset, weights
        See `MixedResults.predictions`.
    new_responses : bool
        Whether the variances of the residuals are needed in any case.

    Returns
    -------
    RowsToPredict
        Of rows whose group was observed at other times the columns are adjusted by those of the observed rows
        and the offset holds what these say, so that predictions and their errors are those of the adjusted
        rows (:mod:`jaxmixed.residual_forecasts`).

    Raises
    ------
    DataError
        Naming the argument, column or level at fault.
    """
    plain = prediction_rows(frame, estimates, newdata, random, allow_new_levels, offset)
    rows = RowsToPredict(plain.X, plain.offset, plain.terms, plain.index)
    if estimates.residual is None:
        return rows
    forecast = isinstance(random, bool | np.bool_) and bool(random) and newdata is not None
    forecast &= frame.residual.groups is not None
    if not forecast and not new_responses:
        return rows
    n = len(rows.X)
    at = further_rows(frame, newdata, n, forecast)
    if forecast:
        _check_known(frame, at, allow_new_levels)
        _check_strata(frame, at)
        rows = replace(rows, X=np.where((at.stratum < 0)[:, None], np.nan, rows.X))
        at = at._replace(codes=np.where(_observed(frame, at), -1, at.codes))
        at = at._replace(codes=np.where(np.isfinite(rows.X).all(axis=1), at.codes, -1))
    known = bool((at.codes >= 0).any())
    own = np.ones(n)
    if new_responses or weights is not None or (known and frame.weights is not None):
        own = own * new_weights(frame, newdata, weights, n)
    covariance = estimates.residual.covariance
    if known:
        design = frame.residual.design
        reached = at.codes >= 0
        covariance = frame.residual.covariance_for(_lags(design, at, reached))
    source = ResidualForecasts(
        frame.residual.design, covariance, estimates.residual.free, at, frame.weights, own
    )
    found = source.values()
    _check_variance(frame, at, found.variance * own)
    terms = tuple(range(len(estimates.terms)))
    residual = RowResiduals(frame, estimates, source, found.coefficients, found.variance, terms)
    rows = replace(rows, residual=residual)
    return _adjusted(rows, residual) if known else rows


def _adjusted(rows: RowsToPredict, residual: RowResiduals) -> RowsToPredict:
    """Rows less what the observed rows of their groups have of the same effects."""
    C, frame = residual.coefficients, residual.frame
    X, terms = combined_rows(frame, residual.estimates, -C, residual.terms)
    known = C @ frame.y_less_offset
    offset = known if rows.offset is None else rows.offset + known
    return replace(rows, X=rows.X + X, offset=offset, terms=(*rows.terms, *terms))


def further_rows(frame: ModelFrame, newdata: Any, num_rows: int, grouped: bool) -> FurtherRows:
    """What the residual structure sees of the rows used (``newdata=None``), or of new ones.

    Parameters
    ----------
    frame : ModelFrame
    newdata : table or None
    num_rows : int
    grouped : bool
        Whether groups and times matter.
    """
    if newdata is None:
        design = frame.residual.design
        none = np.full(num_rows, -1)
        return FurtherRows(none, design.times, design.levels, design.covariate, design.stratum)
    if not grouped and not frame.residual.condition_columns:
        zero = np.zeros(num_rows, dtype=np.int64)
        return FurtherRows(zero - 1, zero + 0.0, zero, zero + 1.0, zero)
    try:
        return FurtherRows(*frame.residual.at(newdata, grouped))
    except DataError as error:
        if not grouped:
            raise
        raise DataError(
            f"{error}. Predictions use the correlation of residuals ({frame.residual.labels.text}) with the "
            "rows observed in the same group; random=False gives those from the fixed effects alone"
        ) from None


def _check_known(frame: ModelFrame, at: FurtherRows, allow_new_levels: bool) -> None:
    """Refuse groups that the model was not fitted to, unless they are allowed."""
    if allow_new_levels:
        return
    unknown = np.flatnonzero((at.codes < 0) & (at.stratum >= 0))
    if len(unknown):
        raise DataError(
            f"{'row' if len(unknown) == 1 else 'rows'} {', '.join(map(str, unknown[:10]))}"
            f"{' and more' if len(unknown) > 10 else ''} (counting from 0) of newdata are of levels of "
            f"{printable(frame.residual.labels.group)!r} that the model was not fitted to, so that nothing "
            "is known of their residuals: pass allow_new_levels=True to take them as zero, or random=False "
            "for population predictions"
        )


def _check_strata(frame: ModelFrame, at: FurtherRows) -> None:
    """Refuse rows of a group in another stratum than the group was observed in."""
    design = frame.residual.design
    of_group = np.zeros(design.size, dtype=np.int64)
    of_group[design.codes] = design.stratum
    astray = np.flatnonzero((at.codes >= 0) & (of_group[at.codes] != at.stratum))
    if len(astray):
        labels = frame.residual.labels
        raise DataError(
            f"row {astray[0]} (counting from 0) of newdata is in another stratum of {printable(labels.by)!r}"
            f" than its group of {printable(labels.group)!r} was observed in, and a group is in one stratum;"
            " use random=False"
        )


def _observed(frame: ModelFrame, at: FurtherRows) -> np.ndarray:
    """Which rows (n,) are at a time at which their group was observed."""
    if frame.residual.times.column is None:
        return np.zeros(len(at.codes), dtype=bool)
    design = frame.residual.design
    moments, own = np.unique(design.times, return_inverse=True)
    place = np.minimum(np.searchsorted(moments, at.times), len(moments) - 1)
    same = moments[place] == at.times
    seen = design.codes * len(moments) + own.ravel()
    return np.asarray(same & np.isin(at.codes * len(moments) + place, seen))


def _lags(design: Any, at: FurtherRows, reached: np.ndarray) -> np.ndarray:
    """Two times that are as far apart as any two of the rows that are taken together."""
    first, last = np.full(design.size, np.inf), np.full(design.size, -np.inf)
    for codes, times in ((design.codes, design.times), (at.codes[reached], at.times[reached])):
        np.minimum.at(first, codes, times)
        np.maximum.at(last, codes, times)
    touched = np.unique(at.codes[reached])
    return np.array([0.0, float((last - first)[touched].max())])


def _check_variance(frame: ModelFrame, at: FurtherRows, variance: np.ndarray) -> None:
    """Refuse rows for which the structure has no distribution."""
    bad = np.flatnonzero(variance < -NEGATIVE)
    if len(bad):
        raise DataError(
            f"the residuals of row {bad[0]} (counting from 0) of newdata and of the observed rows of its "
            f"group would have no positive definite covariance: {frame.residual.labels.text}, as estimated, "
            "does not extend to this row; use random=False"
        )


def residual_variances(frame: ModelFrame, estimates: Estimates) -> np.ndarray:
    """Variance (n,) of the residual of every row used."""
    own = 1.0 if frame.weights is None else frame.weights
    if estimates.residual is None:
        return np.asarray(np.ones(len(frame.y)) * estimates.sigma**2 / own)
    residual = estimates.residual
    relative = relative_variances(residual.covariance, residual.free, frame.residual.design)
    return np.asarray(estimates.sigma**2 * relative / own)


def new_weights(frame: ModelFrame, newdata: Any, weights: Any, num_rows: int) -> np.ndarray | float:
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
