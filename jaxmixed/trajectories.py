"""Lines of groups along a covariate: what the model expects of the population, and of each group.

All other covariates of the fixed part stand at values of the group's own: numbers at its mean, factors at the
level that most of its rows have. The line of the population is the fixed part there, that of the group has
the predicted random effects of its grouping, and of those that contain it, added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jaxmixed.contrasts import FactorCoding, known_codes
from jaxmixed.design_slopes import fixed_design, fixed_evaluator
from jaxmixed.draws import Draws
from jaxmixed.encoding import design_matrix
from jaxmixed.errors import DataError, listed, printable
from jaxmixed.grouping import factorize, level_labels, level_positions
from jaxmixed.ingest import DataColumn, Table, numbers
from jaxmixed.predict import chosen_terms, group_contribution, linear_predictor
from jaxmixed.reference_grid import factor_coding

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates
    from jaxmixed.frame import GroupDesign, ModelFrame

_STREAM = "trajectories"
_POINTS = 41
MOST_KINDS = 8
"""Values of a number by which groups are told apart."""

_SHORTEST = 0.05
"""Part of the whole range that the line of a group with one value of x takes."""


@dataclass(frozen=True, slots=True, eq=False)
class Trajectories:
    """Observed points and lines of k groups.

    Attributes
    ----------
    label : str
        The grouping.
    levels : pandas.Index
        The k groups.
    num_levels : int
        Groups that the model has.
    x_name, y_name : str
    ticks : tuple of str
        Labels of x = 0, 1, ... where x is a factor; empty where it is numeric.
    rows : tuple of arrays of int
        Rows of each group.
    x, y : (n,) arrays
        Of all rows of the data.
    grid : (k, g) array
        Values of x of the lines, within each group's own range.
    population, conditional : (k, g) arrays
        NaN where a group has no row at a level of x.
    kinds : tuple of str
        Levels of the factor by which the groups are told apart; one empty text where there is none.
    kind : (k,) int array
        Of each group, that of most of its rows.
    mean_x : (g,) array
    means : (kinds, g) array
        Line of the population over the whole range, for each level the mean over its groups; NaN for a level
        that most rows of no group have.
    """

    label: str
    levels: pd.Index
    num_levels: int
    x_name: str
    y_name: str
    ticks: tuple[str, ...]
    rows: tuple[np.ndarray, ...]
    x: np.ndarray
    y: np.ndarray
    grid: np.ndarray
    population: np.ndarray
    conditional: np.ndarray
    kinds: tuple[str, ...]
    kind: np.ndarray
    mean_x: np.ndarray
    means: np.ndarray


def trajectories(
    frame: ModelFrame,
    estimates: Estimates,
    modes: Sequence[np.ndarray],
    x: str,
    group: str | None,
    groups: Any,
    max_groups: int,
    seed: int,
    by: str | None = None,
) -> Trajectories:
    """Points and lines of some groups.

    Parameters
    ----------
    frame : ModelFrame
    estimates : Estimates
    modes : sequence of (m, q) arrays
        Predicted random effects, term by term.
    x : str
        Column of the fixed part.
    group : str, optional
        The grouping; by default the one with the most levels among those within which x varies.
    groups : sequence, optional
        Levels to show; by default all, or `max_groups` of them chosen at random.
    max_groups, seed : int
    by : str, optional
        Factor of the fixed part, or a number with few values, that tells groups apart.

    Returns
    -------
    Trajectories

    Raises
    ------
    DataError
        If a column, grouping or level is not one of the model's.
    """
    axis = _Axis.of(frame, x)
    design = _choose_grouping(frame, estimates, group, axis)
    chosen = _chosen(design, groups, max_groups, seed)
    rows = _rows_of(design, chosen)
    lines = _Lines(frame, estimates, modes, design, axis, rows)
    grid, seen = axis.grids([axis.values[own] for own in rows])
    population, conditional = lines.values(grid)
    whole = np.broadcast_to(axis.whole(grid.shape[1]), grid.shape)
    kinds, kind = _kinds(frame, by, rows)
    mean = lines.values(whole)[0]
    return Trajectories(
        design.label,
        design.levels[chosen],
        len(design.levels),
        x,
        frame.response_name,
        axis.ticks,
        rows,
        axis.values,
        frame.y,
        grid,
        np.where(seen, population, np.nan),
        np.where(seen, conditional, np.nan),
        kinds,
        kind,
        whole[0],
        np.array([_mean(mean[kind == place]) for place in range(len(kinds))]),
    )


def _chosen(design: GroupDesign, groups: Any, max_groups: int, seed: int) -> np.ndarray:
    """Positions of the levels to show: those asked for, or at most so many of those with rows, in order."""
    if groups is not None:
        asked = [groups] if isinstance(groups, str) or not hasattr(groups, "__iter__") else list(groups)
        if not asked:
            raise DataError("groups= names no level; leave it out for a choice of them")
        return level_positions(design.levels, asked, design.label)
    if isinstance(max_groups, bool) or not isinstance(max_groups, int | np.integer) or max_groups < 1:
        raise DataError(f"max_groups must be a positive integer; it is {max_groups!r}")
    size = design.num_recorded
    if size <= max_groups:
        return np.arange(size)
    return np.sort(Draws(seed, _STREAM).permutations(0, 1, size)[:max_groups, 0])


def _rows_of(design: GroupDesign, chosen: np.ndarray) -> tuple[np.ndarray, ...]:
    """Rows of each of some levels."""
    place = np.full(len(design.levels), -1, dtype=np.int64)
    place[chosen] = np.arange(len(chosen))
    of_row = place[design.codes]
    kept = np.flatnonzero(of_row >= 0)
    kept = kept[np.argsort(of_row[kept], kind="stable")]
    sizes = np.bincount(of_row[kept], minlength=len(chosen))
    if not sizes.all():
        level = design.levels[chosen[int(sizes.argmin())]]
        raise DataError(f"the level {printable(level)!r} of {printable(design.label)} has no rows to show")
    return tuple(np.split(kept, np.cumsum(sizes)[:-1]))


def _mean(lines: np.ndarray) -> np.ndarray:
    return np.asarray(lines.mean(axis=0)) if len(lines) else np.full(lines.shape[1], np.nan)


def _fixed_column(frame: ModelFrame, argument: str, name: str) -> DataColumn:
    """A column that the fixed effects were made from."""
    if name not in frame.columns:
        raise DataError(
            f"{argument} is {printable(name)!r}, which is no column of the fixed effects; "
            + (f"these are {listed(list(frame.columns))}" if frame.columns else "there are none")
        )
    return frame.columns[name]


def _kinds(
    frame: ModelFrame, by: str | None, rows: tuple[np.ndarray, ...]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Levels of a factor, and that of most rows of each group."""
    if by is None:
        return ("",), np.zeros(len(rows), dtype=np.int64)
    column, coding = _fixed_column(frame, "by", by), factor_coding(frame, by)
    if coding is not None:
        return tuple(coding.labels), _most_frequent(known_codes(column, None, coding), rows)
    codes, values = factorize(column, None)
    if len(values) > MOST_KINDS:
        raise DataError(
            f"by is {printable(by)!r}, a number with {len(values):,} values; lines are told apart by a"
            f" factor, or by a number with at most {MOST_KINDS} values"
        )
    return level_labels(values), _most_frequent(codes, rows)


def _most_frequent(codes: np.ndarray, rows: tuple[np.ndarray, ...]) -> np.ndarray:
    """Code that most rows of each group have, the first of several."""
    return np.array([np.bincount(codes[own]).argmax() for own in rows])


def _choose_grouping(frame: ModelFrame, estimates: Estimates, group: str | None, axis: _Axis) -> GroupDesign:
    designs = {term.group: frame.groups[term.frame_index] for term in estimates.terms}
    if not designs:
        raise DataError("a linear model has no groups to show")
    if group is not None:
        if group not in designs:
            raise DataError(f"the model has no grouping {printable(group)!r}; it has {listed(list(designs))}")
        return designs[group]
    # The terms come by falling number of levels.
    return next(
        (design for design in designs.values() if _varies(axis.values, design)), next(iter(designs.values()))
    )


def _varies(x: np.ndarray, design: GroupDesign) -> bool:
    first = np.zeros(len(design.levels))
    first[design.codes] = x
    return not np.array_equal(first[design.codes], x)


@dataclass(frozen=True, slots=True, eq=False)
class _Axis:
    """The column along which lines run: its numbers, or the positions of its levels."""

    name: str
    values: np.ndarray
    coding: FactorCoding | None

    @classmethod
    def of(cls, frame: ModelFrame, name: str) -> _Axis:
        column, coding = _fixed_column(frame, "x", name), factor_coding(frame, name)
        if coding is not None:
            return cls(name, known_codes(column, None, coding).astype(np.float64), coding)
        return cls(name, np.asarray(numbers(column, None, "x"), dtype=np.float64), None)

    @property
    def ticks(self) -> tuple[str, ...]:
        return () if self.coding is None else tuple(self.coding.labels)

    def whole(self, size: int) -> np.ndarray:
        """Values over the range of all rows, (g,)."""
        if self.coding is not None:
            return np.arange(float(size))
        return np.linspace(self.values.min(), self.values.max(), size)

    def grids(self, own: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Values (k, g) for each group over its own range, and which of them its rows speak of."""
        if self.coding is not None:
            size = len(self.coding.levels)
            seen = np.array([np.bincount(x.astype(np.int64), minlength=size) > 0 for x in own])
            return np.broadcast_to(np.arange(float(size)), seen.shape), seen
        low, high = np.array([x.min() for x in own]), np.array([x.max() for x in own])
        shortest = _SHORTEST * float(np.ptp(self.values))
        widen = np.maximum(shortest - (high - low), 0.0) / 2
        grid = np.linspace(low - widen, high + widen, _POINTS, axis=1)
        return grid, np.ones(grid.shape, dtype=bool)

    def column(self, values: np.ndarray) -> DataColumn:
        """Values as a column of a table."""
        if self.coding is None:
            return DataColumn(self.name, "number", values, None)
        return _factor_column(self.name, self.coding, values.astype(np.int64))


def _factor_column(name: str, coding: FactorCoding, codes: np.ndarray) -> DataColumn:
    levels = pd.Categorical.from_codes(codes, categories=coding.levels)
    return DataColumn(name, "category", levels, None)


@dataclass(frozen=True, slots=True, eq=False)
class _Lines:
    """Evaluates the model for k groups at any values of x."""

    frame: ModelFrame
    estimates: Estimates
    modes: Sequence[np.ndarray]
    design: GroupDesign
    axis: _Axis
    rows: tuple[np.ndarray, ...]

    def values(self, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lines (k, g) of the population and of the groups at values (k, g) of x."""
        k, g = grid.shape
        encoding = self.frame.encoding
        table = self._table(grid)
        X, offset = fixed_design(encoding, table)
        population = linear_predictor(X, self.estimates.beta, offset + np.repeat(self._given_offset(), g))
        conditional = population.copy()
        first = np.array([own[0] for own in self.rows])
        for position in chosen_terms(self.frame, self.estimates, self.design.label):
            term = self.estimates.terms[position]
            Z = self._random_design(term.frame_index, table)
            codes = np.repeat(self.frame.groups[term.frame_index].codes[first], g)
            conditional += group_contribution(Z, codes, self.modes[position])
        return population.reshape(k, g), conditional.reshape(k, g)

    def _table(self, grid: np.ndarray) -> Table:
        k, g = grid.shape
        columns = {self.axis.name: self.axis.column(grid.ravel())}
        for name, column in self.frame.columns.items():
            if name == self.axis.name:
                continue
            coding = factor_coding(self.frame, name)
            if coding is None:
                values = np.asarray(numbers(column, None, "a covariate"), dtype=np.float64)
                own = DataColumn(name, "number", np.repeat(self._means(values), g), None)
            else:
                most = _most_frequent(known_codes(column, None, coding), self.rows)
                own = _factor_column(name, coding, np.repeat(most, g))
            columns[name] = own
        return Table(columns, pd.RangeIndex(k * g), k * g, "trajectories")

    def _means(self, values: np.ndarray) -> np.ndarray:
        """Mean (k, ...) of values (n, ...) over the rows of each group."""
        return np.array([values[own].mean(axis=0) for own in self.rows])

    def _given_offset(self) -> np.ndarray:
        """Mean of the offset that was given as an argument, for each group, (k,)."""
        frame = self.frame
        if frame.offset is None or frame.encoding.offset_source == "none":
            return np.zeros(len(self.rows))
        given = frame.offset
        if frame.encoding.formula.offsets:
            data = Table(dict(frame.columns), pd.RangeIndex(len(given)), len(given), "rows used")
            given = given - fixed_design(frame.encoding, data)[1]
        return self._means(given)

    def _random_design(self, position: int, table: Table) -> np.ndarray:
        """Columns (k g, q) of a random-effects term along the lines."""
        coding = self.frame.encoding.random[position]
        needed = {name for term in coding.terms for expr in term.factors for name in expr.columns}
        beyond = sorted(needed - set(table.columns))
        if not beyond:
            return design_matrix(coding, fixed_evaluator(self.frame.encoding, table))
        if self.axis.name in needed:
            raise DataError(
                f"the random effects {self.frame.groups[position].term.text} depend on"
                f" {printable(beyond[0])!r} as well, which is no column of the fixed effects; add it there"
                " to draw lines"
            )
        return np.repeat(
            self._means(self.frame.groups[position].Z), len(table.index) // len(self.rows), axis=0
        )
