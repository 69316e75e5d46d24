"""The grid of predictor values at which a model's means are compared, and averages over it.

A reference grid holds every combination of the levels of the factors of the fixed effects, other variables at
their means (Searle, Speed & Milliken 1980, The American Statistician 34, 216-221, population marginal means;
Lenth's emmeans has the name). A row of it is a linear function of the coefficients, and so is any average of
rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jaxmixed.contrasts import FactorCoding, known_codes
from jaxmixed.design_slopes import fixed_design, fixed_slope
from jaxmixed.errors import DataError, listed
from jaxmixed.ingest import Table, read_columns

if TYPE_CHECKING:
    from jaxmixed.frame import ModelFrame

WEIGHTS = ("equal", "proportional", "outer", "cells", "flat")
MAX_CELLS, MAX_ELEMENTS = 100_000, 50_000_000
"""Of a grid, and of its linear functions."""
KEPT_VALUES = 2
"""A numeric variable with at most so many distinct values enters the grid with all of them."""


@dataclass(frozen=True, slots=True, eq=False)
class GridVariable:
    """A column of the data in the grid.

    Attributes
    ----------
    name : str
    levels : pandas.Index
        Its values in the grid.
    coding : FactorCoding or None
        Of a factor.
    counted : bool
        Whether rows of the data are counted by its levels: factors and numbers of two values.
    at_mean : bool
    """

    name: str
    levels: pd.Index
    coding: FactorCoding | None
    counted: bool
    at_mean: bool = False
    around_mean: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceGrid:
    """Linear functions of the coefficients at every combination of the variables' levels.

    Attributes
    ----------
    frame : ModelFrame
    variables : tuple of GridVariable
        In the order of the formula; the first varies fastest.
    L : (m, p) array
        Rows of the fixed-effects design, or their derivatives.
    offset : (m,) array
        Known part of the predictions.
    """

    frame: ModelFrame
    variables: tuple[GridVariable, ...]
    L: np.ndarray
    offset: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers of levels."""
        return tuple(len(variable.levels) for variable in self.variables)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the variables."""
        return tuple(variable.name for variable in self.variables)

    def counts(self) -> np.ndarray:
        """Rows of the data (sums of their weights, where the model has some) in each cell, (m,)."""
        frame, step = self.frame, 1
        total = np.zeros(len(frame.y), dtype=np.int64)
        present = np.ones(len(frame.y), dtype=bool)
        counted = [variable for variable in self.variables if variable.counted]
        for variable in counted:
            codes = _codes(frame, variable)
            present &= codes >= 0
            total += step * codes
            step *= len(variable.levels)
        weights = None if frame.weights is None else frame.weights[present]
        cells = np.bincount(total[present], weights, minlength=step).astype(np.float64)
        if not counted or not cells.any():
            return np.ones(len(self.L))
        narrow = tuple(len(variable.levels) if variable.counted else 1 for variable in self.variables)
        return np.broadcast_to(cells.reshape(narrow, order="F"), self.shape).ravel(order="F")


def reference_grid(
    frame: ModelFrame, at: Mapping[str, Any] | None, slope_of: str | None, spread: float = 0.0
) -> ReferenceGrid:
    """The grid of a model.

    Parameters
    ----------
    frame : ModelFrame
    at : mapping, optional
        Values of variables, by name of the column, in place of all levels of a factor or the mean of a
        number.
    slope_of : str, optional
        Numeric column of which to take derivatives, instead of predictions.
    spread : float
        If positive, numbers enter with two values, so far from their means.

    Returns
    -------
    ReferenceGrid

    Raises
    ------
    DataError
        If `at` or `slope_of` does not fit the model, or the grid is too large.

    Notes
    -----
    Functions of a variable are evaluated at its mean: ``log(x)`` at ``log(mean(x))``. A number with one or
    two distinct values has those in the grid, and counts as a factor in averages. The formula's offsets are
    evaluated on the grid; an offset given as an argument is at its mean.
    """
    asked = dict(at or {})
    names = tuple(frame.columns)
    unknown = [name for name in asked if name not in names]
    if unknown:
        raise DataError(
            f"at= names {unknown[0]!r}, which is no column of the fixed effects; these are"
            f" {', '.join(map(repr, names)) or 'none'}"
        )
    variables = tuple(_variable(frame, name, asked.get(name), spread) for name in names)
    sizes = [len(variable.levels) for variable in variables]
    limit = min(MAX_CELLS, MAX_ELEMENTS // max(1, len(frame.x_names)))
    if math.prod(sizes) > limit:
        shown = ", ".join(f"{own.name!r} has {size}" for own, size in zip(variables, sizes, strict=True))
        raise DataError(
            f"the reference grid would have {math.prod(sizes):,} cells, more than {limit:,} ({shown});"
            " choose some levels of the largest factors with at="
        )
    table = _table(variables, sizes)
    encoding = frame.encoding
    if slope_of is not None:
        return ReferenceGrid(frame, variables, *fixed_slope(encoding, table, slope_of))
    L, offset = fixed_design(encoding, table)
    return ReferenceGrid(frame, variables, L, offset + _argument_offset(frame))


def _table(variables: Sequence[GridVariable], sizes: Sequence[int]) -> Table:
    """The grid as a table, the first variable fastest."""
    cells = math.prod(sizes)
    positions = np.unravel_index(np.arange(cells), sizes, order="F") if sizes else ()
    columns = {
        variable.name: variable.levels.take(place)
        for variable, place in zip(variables, positions, strict=True)
    }
    table = read_columns(columns, list(columns))
    return Table(table.columns, pd.RangeIndex(cells), cells, "reference grid")


def _argument_offset(frame: ModelFrame) -> float:
    """Mean of the offset that was given as an argument."""
    if frame.offset is None or frame.encoding.offset_source == "none":
        return 0.0
    total = float(frame.offset.mean())
    if frame.encoding.formula.offsets:
        rows = len(frame.y)
        data = Table(dict(frame.columns), pd.RangeIndex(rows), rows, "rows used")
        total -= float(fixed_design(frame.encoding, data)[1].mean())
    return total


def _variable(frame: ModelFrame, name: str, asked: Any, spread: float) -> GridVariable:
    coding = factor_coding(frame, name)
    if coding is not None:
        levels = coding.levels if asked is None else coding.levels.take(_asked_levels(coding, name, asked))
        return GridVariable(name, levels, coding, True)
    if asked is not None:
        return GridVariable(name, pd.Index(_asked_numbers(name, asked)), None, False)
    values = np.asarray(frame.columns[name].values, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    if ((values == low) | (values == high)).all():
        return GridVariable(name, pd.Index(sorted({low, high})), None, True)
    mean = float(values.mean())
    if spread > 0:
        return GridVariable(name, pd.Index([mean - spread, mean + spread]), None, False, around_mean=True)
    return GridVariable(name, pd.Index([mean]), None, False, at_mean=True)


def factor_coding(frame: ModelFrame, name: str) -> FactorCoding | None:
    """Coding of a column that is a factor in some fixed-effects term."""
    factors = frame.encoding.factors
    for term in frame.encoding.fixed.terms:
        for expr, label in zip(term.factors, term.labels, strict=True):
            if label in factors and expr.columns[0] == name:
                return factors[label]
    return None


def _as_list(asked: Any) -> list[Any]:
    if isinstance(asked, str | bytes) or not hasattr(asked, "__iter__"):
        return [asked]
    return list(dict.fromkeys(asked))


def _asked_levels(coding: FactorCoding, name: str, asked: Any) -> list[int]:
    by_value = {level: place for place, level in enumerate(coding.levels.tolist())}
    by_label = {label: place for place, label in enumerate(coding.labels)}
    found = []
    for level in _as_list(asked):
        place = by_value.get(level, by_label.get(str(level)))
        if place is None:
            raise DataError(f"at= asks for {name} = {level!r}; its levels are {listed(coding.labels)}")
        found.append(place)
    if not found:
        raise DataError(f"at= gives no level of {name!r}; its levels are {listed(coding.labels)}")
    return found


def _asked_numbers(name: str, asked: Any) -> np.ndarray:
    given = _as_list(asked)
    try:
        values = np.array(given, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.array([np.nan])
    if not values.size or values.ndim != 1 or not np.isfinite(values).all():
        raise DataError(f"at= gives {asked!r} for {name!r}, which is numeric; give a number or several")
    return values


def _codes(frame: ModelFrame, variable: GridVariable) -> np.ndarray:
    """Position (n,) among the variable's levels of each row used; -1 where it is none of them."""
    column = frame.columns[variable.name]
    if variable.coding is None:
        return variable.levels.get_indexer(pd.Index(np.asarray(column.values, dtype=np.float64)))
    places = np.full(len(variable.coding.levels), -1, dtype=np.int64)
    places[variable.coding.levels.get_indexer(variable.levels)] = np.arange(len(variable.levels))
    return places[known_codes(column, None, variable.coding)]


def averaged(
    grid: ReferenceGrid, kept: Sequence[str], weights: str
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Average the grid over all variables but some.

    Parameters
    ----------
    grid : ReferenceGrid
    kept : sequence of str
        Variables to keep; the first varies fastest in what is returned.
    weights : str
        ``"equal"``: all cells alike. ``"proportional"``: by the rows of the data at the levels averaged over.
        ``"outer"``: by the product of the numbers of rows at each of these levels. ``"cells"``: by the rows
        in each cell, which differ between the means. ``"flat"``: all cells with rows alike.

    Returns
    -------
    levels : pandas.DataFrame
        Levels of the kept variables, m' rows.
    L : (m', p) array
        NaN where no cell has a row.
    offset : (m',) array
    """
    if weights not in WEIGHTS:
        raise DataError(f"weights is {weights!r}; choose one of {', '.join(map(repr, WEIGHTS))}")
    shape, names = grid.shape, grid.names
    axes = [names.index(name) for name in kept]
    over = tuple(axis for axis in range(len(shape)) if axis not in axes)
    values = np.column_stack([grid.L, grid.offset]).reshape((*shape, -1), order="F")
    share = _shares(grid, over, weights).reshape(shape, order="F")
    # A weight of zero takes nothing, whatever the cell holds; a sum of zero leaves nothing.
    means = (values * share[..., None]).sum(axis=over)
    order = [sorted(axes).index(axis) for axis in axes]
    means = means.transpose([*order, len(order)]).reshape((-1, values.shape[-1]), order="F")
    sizes = [shape[axis] for axis in axes]
    places = np.unravel_index(np.arange(math.prod(sizes)), sizes, order="F") if sizes else ()
    levels = pd.DataFrame(
        {
            name: grid.variables[axis].levels.take(place)
            for name, axis, place in zip(kept, axes, places, strict=True)
        },
        index=pd.RangeIndex(math.prod(sizes)),
    )
    return levels, means[:, :-1], means[:, -1]


def _shares(grid: ReferenceGrid, over: tuple[int, ...], weights: str) -> np.ndarray:
    """Share (m,) of each cell in the mean that it belongs to; NaN where all weigh nothing."""
    if weights == "equal" or not any(grid.shape[axis] > 1 for axis in over):
        own = np.ones(grid.shape)
    else:
        counts = grid.counts().reshape(grid.shape, order="F")
        kept = tuple(axis for axis in range(len(grid.shape)) if axis not in over)
        if weights == "cells":
            own = counts
        elif weights == "flat":
            own = (counts > 0).astype(np.float64)
        else:
            margin = counts.sum(axis=kept, keepdims=True)
            if weights == "outer":
                margin = math.prod(
                    (margin.sum(axis=tuple(o for o in over if o != axis), keepdims=True) for axis in over),
                    start=np.ones(1),
                )
            own = np.broadcast_to(margin, grid.shape)
    with np.errstate(invalid="ignore"):
        return np.asarray(own / own.sum(axis=over, keepdims=True)).ravel(order="F")
