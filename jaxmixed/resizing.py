"""Designs of other sizes made from one at hand: its groups and rows used again, or left out.

A resized design is a list of rows of the first one, with group numbers of its own. Covariates, contrasts and
transforms are therefore those of the first one, whatever is left out.

Which groups are used first is random, given the seed, but balanced: those with the same values of covariates
of groups (a treatment that has few values, not a mean) are spread evenly, so that ten groups of a trial with
two arms are five of each. A number that exceeds the number of groups goes through them again from the start.
Rows of a group are chosen likewise, balanced over the values of covariates with few values. Values that occur
as often come in the order in which they first occur: five rows of a subject that was seen on days 0 to 9 are
days 0 to 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from jaxmixed.draws import Draws
from jaxmixed.errors import DataError

if TYPE_CHECKING:
    from jaxmixed.frame import ModelFrame

FEW_VALUES = 10
"""Covariates of rows with up to this many values, or as many as the largest group's rows, are balanced."""


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Rows of a frame, in which a row may occur again as a row of another group.

    Attributes
    ----------
    rows : (k,) int array
        Row of the frame.
    columns : dict of str to (k,) int array
        Level of each grouping column, by number.
    """

    rows: np.ndarray
    columns: dict[str, np.ndarray]

    def codes(self, columns: Sequence[str]) -> np.ndarray:
        """Numbers, from 0 and without gaps, of the combinations of levels that occur."""
        found = np.zeros(len(self.rows), dtype=np.int64)
        for name in columns:
            own = self.columns[name]
            found = _numbered(found * (int(own.max(initial=0)) + 1) + own)
        return found


def every_row(frame: ModelFrame) -> Selection:
    """The frame's own rows and groups."""
    columns: dict[str, np.ndarray] = {}
    for group in frame.groups:
        parts = frame.encoding.groups[group.columns].parts()
        for name, part in zip(group.columns, parts, strict=True):
            columns.setdefault(name, part[group.codes])
    return Selection(np.arange(len(frame.y)), columns)


def grouping(frame: ModelFrame, key: str, what: str) -> tuple[str, ...]:
    """Columns of the grouping that a user calls by its label or by its (last) column.

    Parameters
    ----------
    frame : ModelFrame
    key : str
    what : str
        The argument that names it.

    Returns
    -------
    tuple of str

    Raises
    ------
    DataError
        If there is none, or more than one.

    Examples
    --------
    >>> from jaxmixed.frame import build_frame
    >>> data = {"y": range(8), "a": [1, 1, 1, 1, 2, 2, 2, 2], "b": [1, 1, 2, 2, 1, 1, 2, 2]}
    >>> frame = build_frame("y ~ 1 + (1 | a/b)", data)
    >>> grouping(frame, "b", "size")
    ('a', 'b')
    """
    known = list(dict.fromkeys(group.columns for group in frame.groups))
    for candidates in (
        [columns for columns in known if ":".join(columns) == key],
        [columns for columns in known if columns[-1] == key],
        [(key,)] if any(key in columns for columns in known) else [],
    ):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            labels = ", ".join(repr(":".join(columns)) for columns in candidates)
            raise DataError(f"{what} names {key!r}, which could be {labels}; use one of these")
    labels = ", ".join(repr(":".join(columns)) for columns in known) or "none: this is a linear model"
    raise DataError(f"{what} names {key!r}, which is no grouping of the model; its groupings: {labels}")


def innermost(frame: ModelFrame, what: str) -> tuple[str, ...]:
    """Columns of the grouping that is nested in all others; none at all for a linear model."""
    if not frame.groups:
        return ()
    finest = max(frame.groups, key=lambda group: len(group.levels))
    for group in frame.groups:
        if not _is_nested(finest.codes, group.codes):
            raise DataError(
                f"{what} is one number, but the groupings {finest.label!r} and {group.label!r} are crossed:"
                f' say whose rows it counts, as in {{"size": {{{finest.label!r}: [10, 20]}}}}'
            )
    return finest.columns


def with_groups(
    frame: ModelFrame, selection: Selection, columns: tuple[str, ...], number: int, seed: int
) -> Selection:
    """Give a grouping another number of levels, in each level of the grouping above it.

    Parameters
    ----------
    frame : ModelFrame
    selection : Selection
    columns : tuple of str
        Of the grouping. Groupings nested in it are copied with it, those crossed with it stay.
    number : int
    seed : int

    Returns
    -------
    Selection

    Examples
    --------
    >>> from jaxmixed.frame import build_frame
    >>> frame = build_frame("y ~ 1 + (1 | g)", {"y": [1.0, 2.0, 4.0, 3.0], "g": [1, 1, 2, 2]})
    >>> more = with_groups(frame, every_row(frame), ("g",), 4, seed=1)
    >>> np.bincount(more.codes(("g",))).tolist(), sorted(more.rows.tolist())
    ([2, 2, 2, 2], [0, 0, 1, 1, 2, 2, 3, 3])
    """
    units = selection.codes(columns)
    first, num_units = _first(units), int(units.max()) + 1
    parent = selection.codes(container(frame, selection, columns))
    pattern = _patterns(_of_units(frame.X[selection.rows], units, first), num_units // 2)
    lot = Draws(seed, f"groups {':'.join(columns)}").uniform(0, 1, num_units)[:, 0]
    copies = _copies(parent[first], pattern, lot, lot, number)
    picked, copy = _repeated(copies[units])
    nested = {name for name, codes in selection.columns.items() if _is_nested(codes, units)}
    changed = {
        name: _numbered(copy * (int(codes.max()) + 1) + codes[picked])
        if name == columns[-1] or name in nested
        else codes[picked]
        for name, codes in selection.columns.items()
    }
    return Selection(selection.rows[picked], changed)


def with_size(
    frame: ModelFrame, selection: Selection, columns: tuple[str, ...], number: int, seed: int
) -> Selection:
    """Give every level of a grouping the same number of rows.

    Parameters
    ----------
    frame : ModelFrame
    selection : Selection
    columns : tuple of str
        Of the grouping; () for all rows together.
    number : int
    seed : int

    Returns
    -------
    Selection

    Examples
    --------
    >>> from jaxmixed.frame import build_frame
    >>> data = {"y": [1.0, 2.0, 4.0, 3.0, 5.0], "x": [1, 1, 0, 0, 1], "g": [1, 1, 1, 1, 2]}
    >>> frame = build_frame("y ~ x + (1 | g)", data)
    >>> two = with_size(frame, every_row(frame), ("g",), 2, seed=1)
    >>> np.bincount(two.codes(("g",))).tolist(), frame.X[two.rows, 1].tolist()
    ([2, 2], [1.0, 0.0, 1.0, 1.0])
    """
    units = selection.codes(columns)
    X = frame.X[selection.rows]
    most = max(FEW_VALUES, int(np.bincount(units).max()))
    pattern = _patterns(X, most)
    for name, codes in selection.columns.items():
        if name not in columns and not _is_nested(units, codes):  # groups within, or beside
            pattern = _numbered(pattern * (int(codes.max()) + 1) + codes)
    stratum = _numbered(units * (int(pattern.max()) + 1) + pattern)
    lot = Draws(seed, f"rows {':'.join(columns)}").uniform(0, 1, len(units))[:, 0]
    copies = _copies(units, stratum, lot, _first(stratum)[stratum], number)
    picked, _ = _repeated(copies)
    return Selection(selection.rows[picked], {name: c[picked] for name, c in selection.columns.items()})


def resized(frame: ModelFrame, selection: Selection) -> ModelFrame:
    """The frame of the selected rows.

    Examples
    --------
    >>> from jaxmixed.frame import build_frame
    >>> frame = build_frame("y ~ 1 + (1 | g)", {"y": [1.0, 2.0, 4.0, 3.0], "g": [1, 1, 2, 2]})
    >>> resized(frame, with_groups(frame, every_row(frame), ("g",), 3, seed=1)).X.shape
    (6, 1)
    """
    rows = selection.rows
    codes = {columns: selection.codes(columns) for columns in {group.columns for group in frame.groups}}
    groups = tuple(
        replace(
            group,
            Z=group.Z[rows],
            codes=codes[group.columns],
            levels=pd.RangeIndex(int(codes[group.columns].max()) + 1),
        )
        for group in frame.groups
    )
    return replace(
        frame,
        y=frame.y[rows],
        X=frame.X[rows],
        groups=groups,
        weights=None if frame.weights is None else frame.weights[rows],
        offset=None if frame.offset is None else frame.offset[rows],
        index=pd.RangeIndex(len(rows)),
        kept=np.ones(len(rows), dtype=bool),
    )


def container(frame: ModelFrame, selection: Selection, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Columns of the finest grouping that the levels of another lie in; () if there is none.

    Examples
    --------
    >>> from jaxmixed.frame import build_frame
    >>> data = {"y": range(8), "a": [1, 1, 1, 1, 2, 2, 2, 2], "b": [1, 1, 2, 2, 3, 3, 4, 4]}
    >>> frame = build_frame("y ~ 1 + (1 | a) + (1 | b)", data)
    >>> container(frame, every_row(frame), ("b",))
    ('a',)
    """
    units = selection.codes(columns)
    found: tuple[str, ...] = ()
    most, limit = 1, int(units.max()) + 1
    for other in sorted({columns[:-1], *(group.columns for group in frame.groups)} - {columns}):
        codes = selection.codes(other)
        size = int(codes.max()) + 1
        if most < size < limit and _is_nested(units, codes):
            found, most = other, size
    return found


def _copies(
    parent: np.ndarray, stratum: np.ndarray, lot: np.ndarray, ties: np.ndarray, number: int
) -> np.ndarray:
    """How often each member is used, so that every parent has ``number`` of them.

    The j-th of the m members of a stratum (of a parent) stands at (j + 1/2) / m, which is Sainte-Laguë's rule
    for filling seats: every beginning of the sequence has the strata in proportion.
    """
    table = pd.DataFrame({"parent": parent, "stratum": stratum, "lot": lot, "ties": ties})
    table = table.sort_values("lot", kind="stable")
    strata = table.groupby(["parent", "stratum"], sort=False)["lot"]
    table["seat"] = (strata.cumcount() + 0.5) / strata.transform("size")
    table = table.sort_values(["parent", "seat", "ties"], kind="stable")
    members = table.groupby("parent", sort=False)["lot"]
    place, size = members.cumcount().to_numpy(), members.transform("size").to_numpy()
    copies = np.empty(len(table), dtype=np.int64)
    copies[table.index.to_numpy()] = np.maximum(-((place - number) // size), 0)
    return copies


def _repeated(copies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows, each as often as asked, and the number of the copy; the first copy in the order of the rows."""
    row = np.repeat(np.arange(len(copies)), copies)
    copy = np.arange(len(row)) - np.repeat(np.cumsum(copies) - copies, copies)
    order = np.argsort(copy, kind="stable")
    return row[order], copy[order]


def _of_units(X: np.ndarray, units: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The columns that are constant within units, one row per unit."""
    values = X[first]
    constant = [j for j in range(X.shape[1]) if (X[:, j] == values[units, j]).all()]
    return values[:, constant]


def _patterns(values: np.ndarray, most: int) -> np.ndarray:
    """Numbers of the combinations of values in the columns that have at most so many values."""
    found = np.zeros(len(values), dtype=np.int64)
    for column in values.T:
        distinct, own = np.unique(column, return_inverse=True)
        if len(distinct) <= most:
            found = _numbered(found * len(distinct) + own)
    return found


def _first(codes: np.ndarray) -> np.ndarray:
    """Position at which each code first occurs."""
    return np.unique(codes, return_index=True)[1]


def _numbered(codes: np.ndarray) -> np.ndarray:
    """Codes numbered from 0 without gaps."""
    return np.unique(codes, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _is_nested(inner: np.ndarray, outer: np.ndarray) -> bool:
    """Whether all rows of a level of the one have the same level of the other."""
    image = np.zeros(int(inner.max(initial=0)) + 1, dtype=np.int64)
    image[inner] = outer
    return bool((image[inner] == outer).all())
