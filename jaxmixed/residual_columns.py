"""Columns of a residual structure as codes and numbers: who belongs together, when, under what conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from jaxmixed.errors import DataError, DesignError, listed
from jaxmixed.grouping import GroupCoding, check_order, code_group, known_groups, level_labels
from jaxmixed.ingest import Table, example_value, numbers, read_columns
from jaxmixed.residuals import (
    AR,
    ARMA,
    BY_TIME,
    MA,
    Columns,
    Custom,
    Exponential,
    Labelled,
    Power,
    Toeplitz,
    Unstructured,
)

if TYPE_CHECKING:
    from jaxmixed.frame import GroupDesign, ModelFrame
    from jaxmixed.residuals import ResidualStructure
    from jaxmixed.terms import Formula

LARGEST_LAG = 10_000
"""Longest lag of a structure over whole times."""

TimeKind = Literal["none", "numbers", "whole", "labels"]


class ResidualRows(NamedTuple):
    """What a residual structure asks of rows.

    Attributes
    ----------
    codes : (n,) int array
        Group; -1 for one that the model was not fitted to, and in rows with a missing value.
    times : (n,) array
        On the scale of the fit's times; NaN in rows with a missing value.
    levels, stratum : (n,) int arrays
        -1 in rows with a missing value.
    covariate : (n,) array
    """

    codes: np.ndarray
    times: np.ndarray
    levels: np.ndarray
    covariate: np.ndarray
    stratum: np.ndarray


class Coded(NamedTuple):
    """Columns whose combinations are levels, with the codes (n,) of the rows used."""

    codes: np.ndarray
    coding: GroupCoding

    @property
    def label(self) -> str:
        """Names of the columns."""
        return ":".join(self.coding.columns)

    @property
    def texts(self) -> tuple[str, ...]:
        """Levels as they are printed."""
        return level_labels(self.coding.levels)

    def find(self, table: Table, kept: np.ndarray | None) -> np.ndarray:
        """Codes of new rows, -1 for levels that the model was not fitted to."""
        return known_groups(self.coding, table, kept)[0]

    def at(self, table: Table, kept: np.ndarray | None, what: str) -> np.ndarray:
        """Codes of new rows.

        Raises
        ------
        DataError
            Naming levels that the model was not fitted to.
        """
        codes, unknown = known_groups(self.coding, table, kept)
        if unknown:
            raise DataError(
                f"{self.label!r} has {'levels' if len(unknown) > 1 else 'the level'} {listed(unknown)} in "
                f"the new data, and the model has no {what} for {'them' if len(unknown) > 1 else 'it'}; its "
                f"levels: {listed(self.texts)}"
            )
        return codes


@dataclass(frozen=True, slots=True, eq=False)
class Times:
    """Times of rows, and how those of other rows are read.

    Attributes
    ----------
    column : str or None
    values : (n,) array
        Numbers less `origin`, or numbers of labels; zero without a column.
    origin : float
    whole : bool
        Whether they must be whole numbers.
    labels : Coded or None
        If the times are labels.
    """

    column: str | None
    values: np.ndarray
    origin: float = 0.0
    whole: bool = False
    labels: Coded | None = None

    def at(self, table: Table, kept: np.ndarray | None) -> np.ndarray:
        """Times of new rows."""
        if self.column is None:
            return np.zeros(table.num_rows if kept is None else int(kept.sum()))
        if self.labels is not None:
            return self.labels.at(table, kept, "residual at such a time").astype(np.float64)
        values = np.asarray(numbers(table.columns[self.column], kept, "a time"), dtype=np.float64)
        if self.whole:
            check_whole(values, self.column)
        return values - self.origin

    def text(self, value: float) -> str:
        """A time as the user wrote it."""
        if self.labels is not None:
            return self.labels.texts[int(value)]
        return f"{value + self.origin:.15g}"


def residual_columns(spec: ResidualStructure | None, formula: Formula) -> tuple[str, ...]:
    """Columns that a residual structure needs, but for those of a default group.

    Parameters
    ----------
    spec : ResidualStructure or None
    formula : Formula

    Returns
    -------
    tuple of str

    Examples
    --------
    >>> from jaxmixed.formula import parse
    >>> from jaxmixed.residuals import AR
    >>> residual_columns(AR(time="week", by="arm"), parse("y ~ arm + (1 | site/id)"))
    ('week', 'arm', 'site', 'id')
    """
    if spec is None:
        return ()
    names: list[str] = [spec.time] if spec.time is not None else []
    for own in (spec.by, spec.variance_by):
        names += [] if own is None or own is BY_TIME else as_tuple(own)
    if spec.variance is not None:
        names.append(spec.variance.covariate)
    if spec.group is not None:
        names += group_columns(spec.group, formula)
    else:
        names += [name for term in formula.random for name in term.group]
    return tuple(dict.fromkeys(names))


def as_tuple(columns: Columns) -> tuple[str, ...]:
    """Names of columns."""
    return (columns,) if isinstance(columns, str) else columns


def group_columns(group: Columns, formula: Formula) -> tuple[str, ...]:
    """Columns of a grouping of the formula by its label, or the columns given."""
    of_label = {term.group_label: term.group for term in formula.random}
    return of_label.get(group, (group,)) if isinstance(group, str) else group


def innermost(groups: Sequence[GroupDesign], what: str) -> tuple[str, ...]:
    """Columns of the grouping that is nested in all others.

    Raises
    ------
    DesignError
        If there is none.
    """
    if not groups:
        raise DesignError(
            f"{what} needs to know which rows belong together: give group=, the column of the subjects; the "
            "formula has no random effects whose groups could be meant"
        )
    finest = max(groups, key=lambda own: own.num_recorded)
    for other in groups:
        owner = np.empty(finest.num_recorded, dtype=np.int64)
        owner[finest.codes] = other.codes
        if not np.array_equal(owner[finest.codes], other.codes):
            raise DesignError(
                f"the groupings {finest.label!r} and {other.label!r} of the formula are crossed, so it does "
                f"not say which rows of {what} belong together; give group="
            )
    return finest.columns


def group_of(spec: ResidualStructure, frame: ModelFrame) -> Coded:
    """The groups of correlated rows."""
    if spec.group is None:
        columns = innermost(frame.groups, spec.text)
    else:
        columns = group_columns(spec.group, frame.formula)
    for own in frame.groups:
        if own.columns == columns:
            return Coded(own.codes, frame.encoding.groups[columns])
    return Coded(*code_group(columns, table_of(frame), None))


def table_of(frame: ModelFrame) -> Table:
    """The columns of the residual structure in the rows used."""
    return Table(dict(frame.also), frame.index, len(frame.y), "data")


def coded(columns: Columns, frame: ModelFrame) -> Coded:
    """Codes and levels of a column or of combinations of columns."""
    return Coded(*code_group(as_tuple(columns), table_of(frame), None))


def time_kind(spec: ResidualStructure) -> TimeKind:
    """What the times of a structure are."""
    if isinstance(spec, AR | MA | ARMA | Toeplitz):
        return "whole"
    if isinstance(spec, Exponential | Custom):
        return "numbers"
    return "labels" if isinstance(spec, Labelled) else "none"


def times_of(spec: ResidualStructure, frame: ModelFrame) -> Times:
    """Times of the rows used.

    Raises
    ------
    DataError, DesignError
        Naming the column, if the structure cannot use it, or if there is none and must be one.
    """
    kind = time_kind(spec)
    if spec.time is None:
        if kind != "none":
            raise DesignError(
                f"{spec.text} needs the times of the rows: give time=, the column that says when each row "
                "was observed"
            )
        return Times(None, np.zeros(len(frame.y)))
    column = frame.also[spec.time]
    labels = column.kind in ("category", "text", "boolean") and not isinstance(spec, Exponential)
    if labels or kind in ("labels", "none"):
        own = coded(spec.time, frame)
        if column.kind == "text" and kind != "none" and not isinstance(spec, Unstructured):
            check_order(own.coding.levels, own.label)
        return Times(spec.time, own.codes.astype(np.float64), labels=own)
    if column.kind != "number":
        raise DataError(
            f"the times {spec.time!r} hold {column.phrase}, e.g. {example_value(column, None)}, and "
            f"{spec.text} needs numbers; make a column of them, such as days since the start"
        )
    values = numbers(column, None, "a time")
    if kind == "whole":
        check_whole(values, spec.time)
    origin = 0 if isinstance(spec, Custom) else values.min()
    return Times(spec.time, np.asarray(values - origin, dtype=np.float64), float(origin), kind == "whole")


def positions(codes: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """Number (n,) of each row within its group, by the keys, the first of them first."""
    order = np.lexsort((*reversed(keys), codes))
    first = np.flatnonzero(np.r_[True, np.diff(codes[order]) != 0])
    sizes = np.diff(np.r_[first, len(codes)])
    found = np.empty(len(codes))
    found[order] = np.arange(len(codes)) - np.repeat(first, sizes)
    return found


def check_whole(values: np.ndarray, name: str) -> None:
    """Refuse times that are not whole numbers."""
    if values.dtype.kind in "iu":
        return
    odd = np.flatnonzero(values != np.round(values))
    if len(odd):
        raise DataError(
            f"the times {name!r} are not whole numbers, e.g. {values[odd[0]]:g}; number them 0, 1, 2, ..., "
            "or use Exponential, which is an autoregression at any times"
        )


def covariate_of(spec: ResidualStructure, frame: ModelFrame) -> np.ndarray:
    """Covariate of the variance function, one if there is none.

    Raises
    ------
    DataError
        Naming the column, if it holds no numbers, or Power has one that is not positive.
    """
    if spec.variance is None:
        return np.ones(len(frame.y))
    column = frame.also[spec.variance.covariate]
    return covariate_values(spec.variance, numbers(column, None, f"the variance function {spec.variance}"))


def covariate_values(variance: Any, values: np.ndarray) -> np.ndarray:
    """Values (n,) of the covariate of a variance function, checked."""
    z = np.array(values, dtype=np.float64)
    if isinstance(variance, Power) and z.size and z.min() <= 0:
        raise DataError(
            f"the covariate {variance.covariate!r} of {variance} is {z.min():g} in a row, and a power needs "
            "positive numbers; use Exp, or add a constant to it"
        )
    return z


def new_table(newdata: Any, names: Sequence[str]) -> tuple[Table, np.ndarray]:
    """The columns of new rows, and which rows have no missing value in them."""
    # The length of a dict is that of one of its columns.
    some = tuple(newdata)[:1] if not names and isinstance(newdata, Mapping) else ()
    table = read_columns(newdata, (*names, *some))
    kept = np.ones(table.num_rows, dtype=bool)
    for name in names:
        missing = table.columns[name].missing
        if missing is not None:
            kept &= ~missing
    return table, kept
