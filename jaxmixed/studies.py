"""`study`: the design of a study that has not been made, as a table without a response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxmixed.draws import Draws, check_seed
from jaxmixed.errors import DataError

MAX_ROWS = 10**8
"""More rows than this are taken for a mistake."""

_DISTRIBUTIONS = {
    "normal": ("mean", "sd"),
    "uniform": ("low", "high"),
    "binary": ("probability",),
    "sample": ("values",),
}
_DEFAULTS: dict[str, tuple[Any, ...]] = {"normal": (0.0, 1.0), "uniform": (0.0, 1.0), "binary": (0.5,)}


def study(
    groups: Mapping[str, int | Sequence[int]],
    size: int | Sequence[int],
    *,
    between: Mapping[str, Any] | None = None,
    within: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Lay out a study: nested groups, rows in them, and covariates of groups and of rows.

    Parameters
    ----------
    groups : mapping
        Number of groups by name, the outermost first; below the first, the number in each group above:
        ``{"school": 40, "class": 2}`` are 80 classes. A list of numbers is gone through in turn.
    size : int or list of int
        Rows in each innermost group; a list is gone through in turn.
    between : mapping, optional
        Columns that are constant within a group: ``{"treatment": [0, 1]}`` for the outermost groups,
        ``{"class": {"method": ["old", "new"]}}`` for others.
    within : mapping, optional
        Columns that vary between the rows of a group.
    seed : int
        Of the random columns. Equal arguments give equal tables.

    Returns
    -------
    pandas.DataFrame
        Group columns are categories "1", "2", ... and, for groups within groups, "1.1", "1.2", ...

    Raises
    ------
    DataError
        Naming the argument and the column at fault.

    Notes
    -----
    The values of a column are

    ======================  =================================================================================
    ``[0, 1]``              these in turn: balanced over all groups of that level; over the rows of each group
    ``"normal"``            standard normal numbers; ``("normal", mean, sd)`` others
    ``"uniform"``           numbers between 0 and 1; ``("uniform", low, high)`` others
    ``"binary"``            0 or 1 with equal probabilities; ``("binary", p)``: 1 with probability p
    ``("sample", values)``  drawn with replacement, say from a column of a pilot study
    ======================  =================================================================================

    What else a study has (a lagged covariate, attrition) is a column that you add, or rows that you drop.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> trial = jm.study({"school": 4}, size=2, between={"treatment": [0, 1]}, within={"ses": "normal"})
    >>> trial[["school", "treatment"]].to_numpy().tolist()[:5]
    [['1', 0], ['1', 0], ['2', 1], ['2', 1], ['3', 0]]
    >>> visits = jm.study({"clinic": 2, "patient": [3, 1]}, size=4, within={"month": [0, 1, 2, 3]})
    >>> visits["patient"].unique().tolist()
    ['1.1', '1.2', '1.3', '2.1']
    """
    check_seed(seed)
    levels = _levels(groups)
    rows_in_group = _counts("size", size, levels[-1].number)
    total = int(rows_in_group.sum())
    if total > MAX_ROWS:
        raise DataError(
            f"groups={dict(groups)!r} and size={size!r} make {total:,} rows, too many for a table"
        )
    inner, place = _members(rows_in_group)
    unit_of_row = [inner]
    for level in levels[:0:-1]:
        unit_of_row.append(level.parent[unit_of_row[-1]])
    unit_of_row.reverse()
    columns: dict[str, Any] = {
        level.name: pd.Categorical.from_codes(units, categories=pd.Index(level.labels))
        for level, units in zip(levels, unit_of_row, strict=True)
    }
    by_level = _by_level(between, [level.name for level in levels])
    for level, units in zip(levels, unit_of_row, strict=True):
        for name, values in by_level[level.name].items():
            what = f"between[{name!r}]"
            _check_new(what, name, columns)
            columns[name] = _column(what, name, values, np.arange(level.number), seed)[units]
    for name, values in _mapping("within", within).items():
        what = f"within[{name!r}]"
        _check_new(what, name, columns)
        columns[name] = _column(what, name, values, place, seed)
    return pd.DataFrame(columns)


class _Level:
    """Groups of one level: their labels, and the group of the level above that each belongs to."""

    name: str
    number: int
    parent: np.ndarray
    labels: list[str]

    def __init__(self, name: str, number: Any, above: _Level | None) -> None:
        counts = _counts(f"groups[{name!r}]", number, 1 if above is None else above.number)
        self.name = name
        self.number = int(counts.sum())
        if self.number > MAX_ROWS:
            raise DataError(f"groups[{name!r}] make {self.number:,} groups, too many for a table")
        self.parent, place = _members(counts)
        own = [str(number) for number in (place + 1).tolist()]
        self.labels = (
            own
            if above is None
            else [f"{above.labels[p]}.{label}" for p, label in zip(self.parent.tolist(), own, strict=True)]
        )


def _levels(groups: Any) -> list[_Level]:
    if not isinstance(groups, Mapping) or not groups:
        raise DataError(
            f'groups={groups!r} must map names of groupings to numbers of groups, such as {{"school": 40}}'
        )
    found: list[_Level] = []
    for name, number in groups.items():
        if not isinstance(name, str) or not name:
            raise DataError(f"groups has the name {name!r}; names of columns are texts")
        found.append(_Level(name, number, found[-1] if found else None))
    return found


def _counts(what: str, given: Any, units: int) -> np.ndarray:
    """A positive whole number for each unit, from one number or a list that is gone through in turn."""
    values = np.asarray(given)
    if values.ndim > 1 or values.size == 0 or values.dtype.kind not in "iu" or values.min() < 1:
        raise DataError(f"{what} is {given!r}; give a positive whole number, or a list of them")
    if int(values.max()) * units > 10 * MAX_ROWS:
        raise DataError(f"{what} is {given!r}, too many for a table")
    return np.resize(values.ravel(), units).astype(np.int64)


def _members(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of ``counts.sum()`` members, the number of its group and its place there."""
    group = np.repeat(np.arange(len(counts)), counts)
    return group, np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)


def _mapping(argument: str, given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise DataError(
            f'{argument}={given!r} must map names of columns to their values, such as {{"x": [0, 1]}}'
        )
    return dict(given)


def _by_level(between: Any, levels: list[str]) -> dict[str, dict[str, Any]]:
    """Columns of the groups of every level."""
    found: dict[str, dict[str, Any]] = {name: {} for name in levels}
    for name, values in _mapping("between", between).items():
        if name in found:
            found[name].update(_mapping(f"between[{name!r}]", values))
        elif isinstance(values, Mapping):
            raise DataError(
                f"between has columns of the grouping {name!r}; the study's groupings are"
                f" {', '.join(map(repr, levels))}"
            )
        else:
            found[levels[0]][name] = values
    return found


def _check_new(what: str, name: str, columns: Mapping[str, Any]) -> None:
    if name in columns:
        raise DataError(f"{what}: the study has a column {name!r} already; choose another name")


def _column(what: str, name: str, given: Any, place: np.ndarray, seed: int) -> Any:
    """Values of a column for units with these places in their groups."""
    if isinstance(given, str | tuple):
        kind, *parameters = (given,) if isinstance(given, str) else given
        return _drawn(what, kind, parameters, len(place), Draws(seed, f"study {name}"))
    if not isinstance(given, list | range | np.ndarray | pd.Series | pd.Index | pd.Categorical):
        raise DataError(
            f"{what} is {given!r}; give a list of values, or one of {', '.join(map(repr, _DISTRIBUTIONS))}"
        )
    return _valued(what, given, place % max(len(given), 1))


def _valued(what: str, values: Any, which: np.ndarray) -> Any:
    """Numbers as they are, anything else as categories in the order given."""
    found = pd.Series(values)
    if found.empty or found.isna().any():
        raise DataError(f"{what} is empty" if found.empty else f"{what} has missing values")
    if found.dtype.kind not in "iuf":
        categories = found.cat.categories if isinstance(found.dtype, pd.CategoricalDtype) else found.unique()
        return pd.Categorical(found.to_numpy()[which], categories=categories)
    return found.to_numpy()[which]


def _drawn(what: str, kind: Any, parameters: list[Any], number: int, draws: Draws) -> Any:
    """Random values of one column."""
    if not isinstance(kind, str) or kind not in _DISTRIBUTIONS:
        raise DataError(
            f"{what} is {kind!r}, which is no distribution; choose one of"
            f" {', '.join(map(repr, _DISTRIBUTIONS))}, or give values to use in turn as a list"
        )
    names = _DISTRIBUTIONS[kind]
    if not parameters:
        parameters = list(_DEFAULTS.get(kind, ()))
    if len(parameters) != len(names):
        raise DataError(f"{what} must be ({', '.join([repr(kind), *names])})")
    if kind == "sample":
        values = parameters[0]
        if not hasattr(values, "__len__") or isinstance(values, str) or len(values) == 0:
            raise DataError(f"{what}: give the values to sample from, a column or a list")
        return _valued(what, values, draws.indices(0, 1, number, len(values))[:, 0])
    first, second = _numbers(what, parameters, names)
    if kind == "normal":
        if second < 0:
            raise DataError(f"{what}: the standard deviation is {second:g}; it cannot be negative")
        return first + second * draws.normal(0, 1, number)[:, 0]
    uniform = draws.uniform(0, 1, number)[:, 0]
    if kind == "binary":
        if not 0 <= first <= 1:
            raise DataError(f"{what}: the probability is {first:g}; it lies between 0 and 1")
        return (uniform < first).astype(np.int64)
    if not first < second:
        raise DataError(f"{what}: the range from {first:g} to {second:g} is empty")
    return first + (second - first) * uniform


def _numbers(what: str, parameters: list[Any], names: tuple[str, ...]) -> tuple[float, float]:
    """Finite numbers; a missing second one is zero."""
    for name, value in zip(names, parameters, strict=True):
        good = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not good or not np.isfinite(value):
            raise DataError(f"{what}: {name} is {value!r}; give a finite number")
    values = [float(value) for value in parameters]
    return values[0], values[1] if len(values) > 1 else 0.0
