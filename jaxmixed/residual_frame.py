"""A residual structure brought together with the rows of a model frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jaxmixed import residual_families as families
from jaxmixed import residuals as structures
from jaxmixed.errors import DataError, DesignError
from jaxmixed.ingest import numbers
from jaxmixed.residual_checks import Bound, check_bound
from jaxmixed.residual_columns import (
    LARGEST_LAG,
    Coded,
    ResidualRows,
    Times,
    coded,
    covariate_of,
    covariate_values,
    group_of,
    new_table,
    positions,
    times_of,
)
from jaxmixed.residual_covariance import ResidualCovariance, VarianceFunction
from jaxmixed.residual_groups import ResidualDesign, ResidualLabels
from jaxmixed.sizes import grid_size
from jaxmixed.supports import Fixed, Support

if TYPE_CHECKING:
    from jaxmixed.frame import ModelFrame
    from jaxmixed.residual_families import Family
    from jaxmixed.residuals import ResidualStructure


@dataclass(frozen=True, slots=True, eq=False)
class ResidualFrame:
    """A residual structure on the rows used.

    Attributes
    ----------
    spec : ResidualStructure
        As it was asked for.
    design : ResidualDesign
        The arrays of the rows.
    labels : ResidualLabels
        What its parts are called.
    group_levels : pandas.Index
        The groups of correlated rows, in the order of their codes; empty where every row is its own.
    groups : Coded or None
    times : Times
    levels, strata : Coded or None
        Columns that standard deviations, and all parameters, differ by.
    """

    spec: ResidualStructure
    design: ResidualDesign
    labels: ResidualLabels
    group_levels: pd.Index
    groups: Coded | None
    times: Times
    levels: Coded | None
    strata: Coded | None

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that new rows need."""
        names = [] if self.groups is None else list(self.groups.coding.columns)
        names += [] if self.times.column is None else [self.times.column]
        return tuple(dict.fromkeys([*names, *self.condition_columns]))

    @property
    def condition_columns(self) -> tuple[str, ...]:
        """Columns that tell the variance of a new row's residual."""
        names: list[str] = []
        for own in (self.levels, self.strata):
            names += [] if own is None else list(own.coding.columns)
        if self.spec.variance is not None:
            names.append(self.spec.variance.covariate)
        return tuple(dict.fromkeys(names))

    def at(self, newdata: Any, grouped: bool = True) -> ResidualRows:
        """Groups, times and conditions of new rows.

        Parameters
        ----------
        newdata : DataFrame or mapping
            With the columns of the structure.
        grouped : bool
            False: of rows of new groups, whose variances alone matter. Groups are then -1 and times zero, and
            their columns are not needed.

        Returns
        -------
        ResidualRows

        Raises
        ------
        DataError
            Naming a column that is missing, or a level that the model was not fitted to.
        """
        table, kept = new_table(newdata, self.columns if grouped else self.condition_columns)
        n = table.num_rows

        def filled(values: np.ndarray, fill: float) -> np.ndarray:
            full = np.full(n, fill, dtype=values.dtype)
            full[kept] = values
            return full

        zeros = np.zeros(int(kept.sum()), dtype=np.int64)
        codes = zeros - 1
        if self.groups is not None and grouped:
            codes = self.groups.find(table, kept)
            codes = np.where(codes < self.design.size, codes, -1)
        levels = zeros if self.levels is None else self.levels.at(table, kept, "residual variance")
        stratum = zeros if self.strata is None else self.strata.at(table, kept, "residual structure")
        z = zeros + 1.0
        if self.spec.variance is not None:
            column = table.columns[self.spec.variance.covariate]
            z = covariate_values(self.spec.variance, numbers(column, kept, "the variance function"))
        return ResidualRows(
            filled(codes, -1),
            filled(self.times.at(table, kept) if grouped else zeros + 0.0, np.nan),
            filled(levels, -1),
            filled(z, np.nan),
            filled(stratum, -1),
        )

    def covariance_for(self, times: np.ndarray) -> ResidualCovariance:
        """The structure for times that may be farther apart than those of the fit.

        Parameters
        ----------
        times : (n,) array
            Of all rows whose correlations are asked for, on the scale of the fit's times.

        Returns
        -------
        ResidualCovariance
            With the parameters of the fit's.

        Raises
        ------
        DataError
            If the structure has no correlation for such a lag.
        """
        known = times[~np.isnan(times)]
        lag = int(known.max() - known.min()) if len(known) else 0
        return _for_lag(self.design.covariance, self.spec, lag)


def residual_frame(spec: ResidualStructure | None, frame: ModelFrame) -> ResidualFrame | None:
    """Bring a residual structure and a model frame together.

    Parameters
    ----------
    spec : ResidualStructure or None
    frame : ModelFrame
        Whose `also` holds the columns that :func:`jaxmixed.residual_columns.residual_columns` names.

    Returns
    -------
    ResidualFrame or None
        None for independent residuals with one variance.

    Raises
    ------
    DataError, DesignError
        Naming the column, group, time or level at fault.

    Examples
    --------
    >>> from jaxmixed.formula import parse
    >>> from jaxmixed.frame import build_frame
    >>> data = {"y": [1.0, 2.0, 4.0, 3.0, 5.0], "id": list("aabbb"), "week": [0, 2, 0, 1, 2]}
    >>> from jaxmixed.residual_columns import residual_columns
    >>> spec = structures.AR(1, time="week", group="id")
    >>> formula = parse("y ~ week")
    >>> frame = build_frame(formula, data, also=residual_columns(spec, formula))
    >>> own = residual_frame(spec, frame)
    >>> own.labels.text, own.design.times.tolist()
    ('AR(1) in week within id', [0.0, 2.0, 0.0, 1.0, 2.0])
    """
    if spec is None:
        return None
    independent = isinstance(spec, structures.Independent)
    if independent and spec.by is None and spec.variance_by is None and spec.variance is None:
        return None
    n = len(frame.y)
    groups = None if independent else group_of(spec, frame)
    codes = np.arange(n) if groups is None else groups.codes
    size = n if groups is None else int(codes.max()) + 1
    times = Times(None, np.zeros(n)) if independent else times_of(spec, frame)
    by_time = spec.variance_by is structures.BY_TIME
    levels = times.labels if by_time else None
    if spec.variance_by is not None and not by_time:
        levels = coded(spec.variance_by, frame)  # type: ignore[arg-type]
    strata = None if spec.by is None else coded(spec.by, frame)
    zeros = np.zeros(n, dtype=np.int64)
    level_codes = zeros if levels is None else levels.codes
    z = covariate_of(spec, frame)
    values = times.values
    if isinstance(spec, structures.Exchangeable):
        # Its correlations know no times: groups of one size are alike whenever they were observed.
        values = positions(codes, values, level_codes, z)
    function: VarianceFunction = "none"
    if spec.variance is not None:
        function = "power" if isinstance(spec.variance, structures.Power) else "exp"
    covariance = ResidualCovariance(
        _family(spec, codes, size, times, values),
        1 if levels is None else len(levels.coding.levels),
        1 if strata is None else len(strata.coding.levels),
        function,
    )
    design = ResidualDesign(
        covariance, codes, size, values, level_codes, z, zeros if strata is None else strata.codes
    )
    check_bound(Bound(spec, design, frame, groups, times, levels, strata))
    if isinstance(spec, structures.Exchangeable):
        times = Times(None, values)
    group_levels = pd.Index([]) if groups is None else groups.coding.levels[:size]
    labels = _labels(spec, groups, times, levels, strata)
    return ResidualFrame(spec, design, labels, group_levels, groups, times, levels, strata)


def _labels(
    spec: ResidualStructure, groups: Coded | None, times: Times, levels: Coded | None, strata: Coded | None
) -> ResidualLabels:
    """What the parts of a structure are called."""
    text = spec.text if times.column is None else f"{spec.text} in {times.column}"
    return ResidualLabels(
        text=text if groups is None else f"{text} within {groups.label}",
        group=None if groups is None else groups.label,
        time=times.column,
        times=() if times.labels is None else times.labels.texts,
        by=None if strata is None else strata.label,
        strata=() if strata is None else strata.texts,
        variance_by=None if levels is None else levels.label,
        levels=() if levels is None else levels.texts,
        covariate=None if spec.variance is None else spec.variance.covariate,
    )


def _family(
    spec: ResidualStructure, codes: np.ndarray, size: int, times: Times, values: np.ndarray
) -> Family:
    """The family of correlations of a structure, for the times of the rows."""
    if isinstance(spec, structures.Independent):
        return families.Independent()
    if isinstance(spec, structures.Exchangeable):
        return families.Exchangeable(int(values.max()) + 1)
    if isinstance(spec, structures.Exponential):
        return families.Exponential(spec.nugget, families.time_unit(gaps(codes, values)))
    if isinstance(spec, structures.Custom):
        return _custom(spec, codes, values)
    if isinstance(spec, structures.Labelled):
        assert times.labels is not None
        labels = len(times.labels.coding.levels)
        if isinstance(spec, structures.Banded):
            return families.Banded(min(spec.order, labels - 1), labels)
        if isinstance(spec, structures.AnteDependence):
            return families.AnteDependence(labels)
        return families.Unstructured(labels)
    return _of_lags(spec, longest_lag(codes, size, values), longest_run(codes, values))


def _custom(spec: structures.Custom, codes: np.ndarray, values: np.ndarray) -> Family:
    """A structure of the user's own, whose function is tried at the times of the largest group."""
    for name, own in spec.parameters:
        if not isinstance(own, Support | Fixed):
            raise DesignError(
                f"the parameter {name!r} of {spec.text} is {own!r}; give its support and starting value, "
                "such as jm.kernels.Positive(1.0), or jm.kernels.Fixed(...) if it is known"
            )
    family = families.Custom(spec.function, spec.parameters, spec.cholesky, spec.name).at(values)
    largest = int(np.bincount(codes).argmax())
    families.check_custom(family, np.sort(values[codes == largest]))
    return family


def gaps(codes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Times between neighbouring rows of a group."""
    order = np.lexsort((values, codes))
    apart = np.diff(values[order])
    return np.asarray(apart[np.diff(codes[order]) == 0])


def longest_lag(codes: np.ndarray, size: int, values: np.ndarray) -> int:
    """Longest time between two rows of a group."""
    first, last = np.full(size, np.inf), np.full(size, -np.inf)
    np.minimum.at(first, codes, values)
    np.maximum.at(last, codes, values)
    return int(np.max(last - first, where=last >= first, initial=0.0))


def longest_run(codes: np.ndarray, values: np.ndarray) -> int:
    """Most rows of one group at whole times without a gap."""
    order = np.lexsort((values, codes))
    follows = (np.diff(values[order]) == 1) & (np.diff(codes[order]) == 0)
    breaks = np.flatnonzero(~np.concatenate([[False], follows, [False]]))
    return int(np.diff(breaks).max())


def _of_lags(spec: ResidualStructure, lag: int, run: int) -> Family:
    """A family over whole times, for lags up to the longest; rows without a gap in time are `run` at most."""
    if lag > LARGEST_LAG:
        raise DesignError(
            f"the times {spec.time!r} of a group are up to {lag:,} apart, and {spec.text} is for lags up to "
            f"{LARGEST_LAG:,}; number the times 0, 1, 2, ..., or use Exponential"
        )
    if isinstance(spec, structures.Toeplitz):
        order = lag if spec.order is None else spec.order
        return families.Toeplitz(order, lag if order >= lag else grid_size(lag), run > order)
    longest = grid_size(lag)
    if isinstance(spec, structures.AR):
        return families.Autoregressive(spec.order, longest)
    if isinstance(spec, structures.MA):
        return families.MovingAverage(spec.order, longest)
    assert isinstance(spec, structures.ARMA)
    return families.AutoregressiveMovingAverage(spec.ar, spec.ma, longest)


def _for_lag(own: ResidualCovariance, spec: ResidualStructure, lag: int) -> ResidualCovariance:
    """The structure for lags up to one that may be longer than those of the fit."""
    known = own.family
    lagged = (
        families.Autoregressive,
        families.MovingAverage,
        families.AutoregressiveMovingAverage,
        families.Toeplitz,
    )
    if not isinstance(known, lagged) or lag <= known.longest:
        return own
    family: Family
    if not isinstance(known, families.Toeplitz):
        family = _of_lags(spec, lag, 0)
    elif isinstance(spec, structures.Toeplitz) and spec.order is not None:
        family = families.Toeplitz(known.order, grid_size(lag), known.complete)
    else:
        raise DataError(
            f"rows are {lag} apart in {spec.time!r}, and the correlations of {spec.text} are known up to the "
            f"lag {known.longest}, the longest in the data"
        )
    return ResidualCovariance(family, own.levels, own.strata, own.function)
