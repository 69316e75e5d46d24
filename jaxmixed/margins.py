"""Predictive margins and marginal effects of the fixed part, averaged over rows.

A prediction is linear in the coefficients, and so are its derivatives in a column of the data and their
averages: each is a row of a matrix L with L beta, and has the tests and intervals of any linear function. The
derivatives of the design are exact (:mod:`jaxmixed.design_slopes`).

References
----------
Williams (2012), Using the margins command to estimate and interpret adjusted predictions and marginal
effects, Stata Journal 12(2), 308-331, for the words: average marginal effects, marginal effects at the means
and at representative values.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from jaxmixed.design_slopes import fixed_design, fixed_slope
from jaxmixed.encoding import Encoding, plan_of
from jaxmixed.errors import DataError, DesignError, listed
from jaxmixed.fixed_inference import FixedInference, linear_table
from jaxmixed.formatting import NotedFrame, counted
from jaxmixed.frame import ModelFrame
from jaxmixed.grouping import factorize
from jaxmixed.ingest import (
    DataColumn,
    Table,
    column_from_values,
    constant_column,
    numbers,
    read_columns,
    unknown_columns,
    values_by_column,
)

Others = Literal["observed", "means"]

MOST_MARGINS = 5_000
"""Margins of one call, whose joint covariance is formed."""

MOST_ROWS = 2_000_000
"""Rows that combinations of levels at the means may take."""


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows to average over: a table, the part (0 .. c - 1) of each row, and weights that sum to 1 in each."""

    table: Table
    codes: np.ndarray
    weights: np.ndarray
    offset: np.ndarray

    def averaged(self, values: np.ndarray, num_parts: int) -> np.ndarray:
        """Weighted means (c, p) of the columns of (n, p)."""
        sums = [
            np.bincount(self.codes, self.weights * column, minlength=num_parts)
            for column in values.reshape(len(values), -1).T
        ]
        return np.stack(sums, axis=1)

    def at(self, values: Mapping[str, DataColumn]) -> _Rows:
        """The same with some columns replaced."""
        table = Table(
            {**self.table.columns, **values}, self.table.index, self.table.num_rows, self.table.kind
        )
        return replace(self, table=table)


@dataclass(frozen=True, eq=False)
class _Parts:
    """Subgroups of the rows: names of the columns, and their values by part."""

    names: tuple[str, ...]
    values: list[tuple[Any, ...]]


@dataclass(frozen=True, eq=False)
class _Found:
    """Rows of L, constants beside L beta, and their labels."""

    L: list[np.ndarray]
    constant: list[float]
    labels: list[tuple[Any, ...]]


def margins(
    frame: ModelFrame,
    inference: FixedInference,
    dydx: str | Sequence[str] | None = None,
    at: Mapping[str, Any] | str | None = None,
    over: str | Sequence[str] | None = None,
    newdata: Any = None,
    level: float = 0.95,
    others: Others = "observed",
) -> pd.DataFrame:
    """Table of margins; see `Marginal.margins`, which calls this.

    Parameters
    ----------
    frame : ModelFrame
    inference : FixedInference
    dydx, at, over, newdata, level, others
        As of the method.

    Returns
    -------
    pandas.DataFrame
    """
    encoding = frame.encoding
    columns = _effect_columns(encoding, dydx)
    if others not in ("observed", "means"):
        raise DataError(f"others is {others!r}; columns that at= does not name are 'observed' or at 'means'")
    means, values = _values(encoding, at)
    means = means or others == "means"
    rows, parts = _rows(frame, newdata, over, set(values))
    if set(parts.names) & set(values):
        raise DataError(f"at= and over= both name {listed(sorted(set(parts.names) & set(values)))}; keep one")
    num_rows = rows.table.num_rows
    grid = list(itertools.product(*values.values()))
    _refuse_too_many(len(grid) * max(1, len(columns)) * len(parts.values))
    if means:
        rows = _means(encoding, rows, len(parts.values))
    found = _Found([], [], [])
    factors = _factor_labels(encoding)
    for combination in grid:
        held = zip(values, combination, strict=True)
        count = rows.table.num_rows
        here = rows.at({name: constant_column(name, value, count, name in factors) for name, value in held})
        names: list[str | None] = [*columns] or [None]
        for name in names:
            for label, L, constant in _effects(encoding, here, name, len(parts.values)):
                _append(found, L, constant, label, combination, parts)
    table = _table(inference, found, level)
    named = bool(columns) or not (values or parts.names)
    table.index = _index(found, ("effect", *values, *parts.names), named)
    what = "average marginal effects" if columns else "average predictions"
    where = "at the means" if means else f"over {counted(num_rows, 'row')}"
    result = NotedFrame(table)
    result.attrs["note"] = f"{what.removeprefix('average ') if means else what} {where}, of the fixed part"
    return result


def _refuse_too_many(count: int) -> None:
    if count > MOST_MARGINS:
        raise DesignError(
            f"{count:,} margins are asked for, at most {MOST_MARGINS:,} are given at once; average over fewer"
            " subgroups or at fewer values"
        )


def _effect_columns(encoding: Encoding, dydx: str | Sequence[str] | None) -> list[str]:
    """Columns whose effects are asked for."""
    if dydx is None:
        return []
    known = encoding.formula.fixed.columns
    if not known:
        raise DesignError("the fixed part has no columns, so nothing has a marginal effect on it")
    if isinstance(dydx, str):
        if dydx == "all" and "all" not in known:
            return list(known)
        dydx = [dydx]
    if not isinstance(dydx, Sequence):
        raise DataError(f"dydx= is {dydx!r}; give the name of a column, several names or 'all'")
    wanted = list(dict.fromkeys(dydx))
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise DataError(
            f"dydx= names {listed(unknown) or 'nothing'}; marginal effects are of columns of the fixed part:"
            f" {listed(known)}, or 'all'"
        )
    return wanted


def _values(encoding: Encoding, at: Mapping[str, Any] | str | None) -> tuple[bool, dict[str, list[Any]]]:
    """Whether at the means, and the values of each column that is held."""
    if at is None or (isinstance(at, str) and at == "means"):
        return at is not None, {}
    if not isinstance(at, Mapping):
        raise DataError(f'at= is {at!r}; give "means", or values by column such as at={{"x": [0, 1]}}')
    known = plan_of(encoding.formula).fixed_columns
    unknown = [name for name in at if name not in known]
    if unknown:
        raise DataError(f"at=, of columns of the fixed part: {unknown_columns(unknown, known)}")
    return False, values_by_column(at)


def _factor_labels(encoding: Encoding) -> dict[str, str]:
    """Label of the (first) factor that each column is coded as."""
    found: dict[str, str] = {}
    for term in encoding.fixed.terms:
        for expr, label in zip(term.factors, term.labels, strict=True):
            if label in encoding.factors:
                found.setdefault(expr.columns[0], label)
    return found


def _rows(
    frame: ModelFrame, newdata: Any, over: str | Sequence[str] | None, held: set[str]
) -> tuple[_Rows, _Parts]:
    """Rows to average over, in their subgroups."""
    names = [over] if isinstance(over, str) else list(over or [])
    if newdata is None:
        table = Table(dict(frame.columns), frame.index, len(frame.y), "data")
        coded = [_own_part(frame, name) for name in names]
        offset = _array_offset(frame)
    else:
        table, coded, offset = _new_rows(frame, newdata, names, held)
    if not table.num_rows:
        raise DataError("newdata have no complete row to average over")
    codes, parts = _combined(names, coded, table.num_rows)
    weights = 1.0 / np.bincount(codes, minlength=len(parts.values))[codes]
    return _Rows(table, codes, weights, offset), parts


def _array_offset(frame: ModelFrame) -> np.ndarray:
    """What the offset argument added to the offsets of the formula."""
    if frame.offset is None or frame.encoding.offset_source == "none":
        return np.zeros(len(frame.y))
    table = Table(dict(frame.columns), frame.index, len(frame.y), "data")
    return frame.offset - fixed_design(frame.encoding, table)[1]


def _own_part(frame: ModelFrame, name: str) -> tuple[np.ndarray, list[Any]]:
    """Codes and values of a grouping or a column of the fixed part."""
    for group in frame.groups:
        if group.label == name:
            return group.codes, group.levels.tolist()
    if name not in frame.columns:
        known = dict.fromkeys((*frame.columns, *(group.label for group in frame.groups)))
        raise DataError(
            f"over= names {name!r}, which the fit does not keep: it keeps the columns of the fixed part and"
            f" the groupings ({listed(list(known))}); give other columns with newdata="
        )
    codes, levels = factorize(frame.columns[name], None)
    return codes, levels.tolist()


def _new_rows(
    frame: ModelFrame, newdata: Any, over: list[str], held: set[str]
) -> tuple[Table, list[tuple[np.ndarray, list[Any]]], np.ndarray]:
    """Complete rows of new data, their subgroups and the offset argument's part."""
    encoding = frame.encoding
    needed = [name for name in plan_of(encoding.formula).fixed_columns if name not in held]
    by_column = encoding.offset_source == "column"
    if encoding.offset_source == "array":
        raise DataError(
            "the model was fitted with an array as offset, which new data do not have; fit it with the offset"
            " as a column"
        )
    asked = tuple(dict.fromkeys((*needed, *over, *([encoding.offset_column] if by_column else []))))
    read = read_columns(newdata, asked)
    num_rows = read.num_rows if asked else len(newdata)
    missing = [column.missing for column in read.columns.values() if column.missing is not None]
    kept = ~np.logical_or.reduce(missing) if missing else None
    count = num_rows if kept is None else int(kept.sum())
    columns = {name: read.columns[name].copied(kept) for name in asked}
    coded = []
    for name in over:
        codes, levels = factorize(columns[name], None)
        coded.append((codes, levels.tolist()))
    offset = np.zeros(count)
    if by_column:
        offset = offset + numbers(columns[encoding.offset_column], None, "the offset")
    # Columns that at= holds need not be in the data; their values are set before anything reads them.
    return Table({name: columns[name] for name in needed}, pd.RangeIndex(count), count, "data"), coded, offset


def _combined(
    names: list[str], coded: list[tuple[np.ndarray, list[Any]]], num_rows: int
) -> tuple[np.ndarray, _Parts]:
    """One code for the combinations that occur, ordered by the levels of each column."""
    codes, values = np.zeros(num_rows, dtype=np.int64), [()]
    for own, levels in coded:
        present, codes = np.unique(codes * len(levels) + own, return_inverse=True)
        values = [(*values[i // len(levels)], levels[i % len(levels)]) for i in present.tolist()]
    return codes.astype(np.int64), _Parts(tuple(names), list(values))


def _means(encoding: Encoding, rows: _Rows, num_parts: int) -> _Rows:
    """One row per subgroup and combination of levels: numbers at means, levels weighted by proportions."""
    factors = [name for name in rows.table.columns if name in _factor_labels(encoding)]
    coded = {name: factorize(rows.table.columns[name], None) for name in factors}
    sizes = [len(levels) for _, levels in coded.values()]
    num_cells = int(np.prod(sizes, dtype=np.int64)) if sizes else 1
    if num_cells * num_parts > MOST_ROWS:
        raise DesignError(
            f"at='means' weights {num_cells:,} combinations of the levels of {listed(factors)} by their"
            f" proportions, more than {MOST_ROWS:,}; hold some of these columns with at= instead"
        )
    cells = np.indices(sizes or [1]).reshape(max(len(sizes), 1), -1)
    weights = np.ones((num_parts, num_cells))
    columns = {}
    for place, (name, (codes, levels)) in enumerate(coded.items()):
        shares = np.zeros((num_parts, len(levels)))
        np.add.at(shares, (rows.codes, codes), rows.weights)
        weights *= shares[:, cells[place]]
        values = pd.Index(levels).take(np.tile(cells[place], num_parts))
        columns[name] = column_from_values(name, values)
    for name, column in rows.table.columns.items():
        if name not in columns:
            x = np.asarray(numbers(column, None, "a mean"), dtype=np.float64)
            means = rows.averaged(x, num_parts)[:, 0]
            columns[name] = DataColumn(name, "number", np.repeat(means, num_cells), None)
    count = num_parts * num_cells
    offset = np.repeat(rows.averaged(rows.offset, num_parts)[:, 0], num_cells)
    table = Table(columns, pd.RangeIndex(count), count, "data")
    return _Rows(table, np.repeat(np.arange(num_parts), num_cells), weights.ravel(), offset)


def _effects(
    encoding: Encoding, rows: _Rows, name: str | None, num_parts: int
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Labels, rows of L (c, p) and constants (c,), of each effect of a column, or of predictions."""
    if name is None:
        X, offset = fixed_design(encoding, rows.table)
        constant = rows.averaged(offset + rows.offset, num_parts)[:, 0]
        return [("prediction", rows.averaged(X, num_parts), constant)]
    factor = _factor_labels(encoding).get(name)
    if factor is None:
        slope, offset = fixed_slope(encoding, rows.table, name)
        return [(name, rows.averaged(slope, num_parts), rows.averaged(offset, num_parts)[:, 0])]
    _require_factor_alone(encoding, name)
    coding = encoding.factors[factor]
    designs = []
    for level in coding.levels:
        table = rows.at({name: constant_column(name, level, rows.table.num_rows, True)}).table
        designs.append(rows.averaged(fixed_design(encoding, table)[0], num_parts))
    base = coding.base if coding.contrast == "treatment" else 0
    return [
        (f"{name}: {label} - {coding.labels[base]}", design - designs[base], np.zeros(num_parts))
        for place, (label, design) in enumerate(zip(coding.labels, designs, strict=True))
        if place != base
    ]


def _require_factor_alone(encoding: Encoding, name: str) -> None:
    for term in encoding.fixed.terms:
        for expr, label in zip(term.factors, term.labels, strict=True):
            if name in expr.columns and label not in encoding.factors:
                raise DesignError(
                    f"{name!r} is a number in {label} and a factor elsewhere in the formula, so it has no"
                    " marginal effect"
                )
    if any(name in expr.columns for expr in encoding.formula.offsets):
        raise DesignError(f"{name!r} is a factor, and a number in an offset, so it has no marginal effect")


def _append(
    found: _Found,
    L: np.ndarray,
    constant: np.ndarray,
    label: str,
    combination: tuple[Any, ...],
    parts: _Parts,
) -> None:
    for row, own, values in zip(L, constant, parts.values, strict=True):
        found.L.append(row)
        found.constant.append(float(own))
        found.labels.append((label, *combination, *values))


def _table(inference: FixedInference, found: _Found, level: float) -> pd.DataFrame:
    """Tests and intervals of L beta plus constants."""
    L, constant = np.array(found.L), np.array(found.constant)
    table = linear_table(inference, L, rhs=-constant, level=level)
    for column in ("estimate", "conf_low", "conf_high"):
        table[column] += constant
    return table


def _index(found: _Found, names: tuple[str, ...], named: bool) -> pd.Index:
    """Index of effect, values held and subgroup; of one level where there is one."""
    labels, names = (found.labels, names) if named else ([row[1:] for row in found.labels], names[1:])
    if len(names) == 1:
        return pd.Index([row[0] for row in labels], name=names[0])
    return pd.MultiIndex.from_tuples(labels, names=names)
