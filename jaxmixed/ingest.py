"""Columns from any table: pandas, polars, pyarrow, a dict of arrays, a numpy structured array.

Only the columns that a model uses are read, and what is read is never written to. Every column is brought to
one of a few kinds, so that the rest of the package never asks where the data came from:

============  ==========================================================================================
kind          ``values``
============  ==========================================================================================
``number``    numpy array of integers or floats, in the dtype of the data (integers above 2**53 stay exact)
``boolean``   numpy array of bool
``text``      array of strings (numpy object array, or a pandas string array)
``category``  ``pandas.Categorical``
``datetime``  dates, times, durations, periods
``complex``   numpy array of complex numbers
``mixed``     anything else: usable to name groups, never as a predictor
============  ==========================================================================================
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from jaxmixed.errors import DataError, listed

_KIND_OF_NUMPY = {
    "f": "number",
    "i": "number",
    "u": "number",
    "b": "boolean",
    "M": "datetime",
    "m": "datetime",
    "c": "complex",
}
_KIND_OF_OBJECTS = {
    "string": "text",
    "integer": "number",
    "floating": "number",
    "mixed-integer-float": "number",
    "decimal": "number",
    "empty": "number",
    "boolean": "boolean",
    "complex": "complex",
    "date": "datetime",
    "datetime": "datetime",
    "datetime64": "datetime",
    "time": "datetime",
    "timedelta": "datetime",
    "timedelta64": "datetime",
    "period": "datetime",
}
_PHRASES = {
    "number": "numbers",
    "boolean": "booleans",
    "text": "text",
    "category": "categories",
    "datetime": "dates or times",
    "complex": "complex numbers",
    "mixed": "values of several types",
}
_MAX_LISTED = 30


@dataclass(frozen=True, slots=True, eq=False)
class DataColumn:
    """One column of the data, as read.

    Parameters
    ----------
    name
        Name of the column.
    kind
        One of the kinds in the table at the top of this module.
    values
        The values; entries at missing rows are arbitrary.
    missing
        True at missing rows; ``None`` when no value is missing.
    has_infinite
        Whether some value is infinite.
    """

    name: str
    kind: str
    values: Any
    missing: np.ndarray | None
    has_infinite: bool = False

    @property
    def phrase(self) -> str:
        """The kind in words, for messages."""
        return _PHRASES[self.kind]

    def rows(self, kept: np.ndarray | None) -> Any:
        """Values at the kept rows (all of them, not copied, when ``kept`` is None)."""
        return self.values if kept is None else self.values[kept]

    def copied(self, kept: np.ndarray | None) -> DataColumn:
        """The kept rows, complete ones, as a column of its own that later changes of the data leave alone."""
        values = self.values.copy() if kept is None else self.values[kept]
        return DataColumn(self.name, self.kind, values, None, self.has_infinite)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The used columns of a data set, its row index and its number of rows."""

    columns: dict[str, DataColumn]
    index: pd.Index
    num_rows: int
    kind: str

    @property
    def description(self) -> str:
        """Short description for messages, e.g. ``"pandas DataFrame with 180 rows"``."""
        return f"{self.kind} with {self.num_rows} rows"


def read_columns(data: Any, names: Sequence[str]) -> Table:
    """Read the named columns of a table.

    Parameters
    ----------
    data
        pandas or polars data frame, pyarrow table, dict of equally long columns, or numpy structured array.
    names
        Columns to read.

    Returns
    -------
    Table

    Raises
    ------
    DataError
        If the object is not a table, or a column is absent or occurs twice.

    Examples
    --------
    >>> table = read_columns({"x": [1.0, None], "g": ["a", "b"]}, ["x", "g"])
    >>> table.columns["x"].missing
    array([False,  True])
    """
    if isinstance(data, pd.DataFrame):
        return _read_pandas(data, names)
    if isinstance(data, Mapping):
        return _read_mapping(data, names, "dict of columns")
    if isinstance(data, np.ndarray):
        if data.dtype.names is None or data.ndim != 1:
            raise DataError(
                f"data is a numpy array of dtype {data.dtype} and shape {data.shape}, which has no column "
                "names; give a data frame, a dict of columns or a one-dimensional structured array"
            )
        fields = {name: data[name] for name in data.dtype.names}
        return _read_mapping(fields, names, "numpy structured array")
    return _read_narwhals(data, names)


def unknown_columns(unknown: Iterable[str], available: Iterable[Any]) -> DataError:
    """Error that lists every unknown name, its close matches and the available columns."""
    known = [str(name) for name in available]
    pieces = []
    for name in unknown:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        folded = [other for other in known if other.casefold() == name.casefold() and other not in close]
        matches = " or ".join(repr(match) for match in (*folded, *close))
        pieces.append(f"{name!r} (did you mean {matches}?)" if matches else repr(name))
    noun = "column" if len(pieces) == 1 else "columns"
    shown = listed(known, _MAX_LISTED) or "none"
    return DataError(f"the data have no {noun} {', '.join(pieces)}; available columns: {shown}")


def _read_pandas(data: pd.DataFrame, names: Sequence[str]) -> Table:
    labels = data.columns
    if isinstance(labels, pd.MultiIndex):
        raise DataError(
            "the data frame has MultiIndex columns, but a formula needs one name per column; flatten them "
            "first, e.g. data.columns = ['_'.join(map(str, c)) for c in data.columns]"
        )
    unknown = [name for name in names if name not in labels]
    if unknown:
        raise unknown_columns(unknown, labels)
    columns = {}
    for name in names:
        series = data[name]
        if series.ndim != 1:
            raise DataError(
                f"{series.shape[1]} columns are named {name!r}, so the formula does not say which one to "
                "use; rename them"
            )
        columns[name] = column_from_series(name, series)
    return Table(columns, data.index, len(data.index), "pandas DataFrame")


def _read_mapping(data: Mapping[Any, Any], names: Sequence[str], kind: str) -> Table:
    unknown = [name for name in names if name not in data]
    if unknown:
        raise unknown_columns(unknown, data)
    columns = {name: column_from_values(name, data[name]) for name in names}
    lengths = {name: len(column.values) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
        raise DataError(f"the columns of the data differ in length: {listed} rows; rows cannot be matched")
    indexed = [(name, data[name].index) for name in names if isinstance(data[name], pd.Series)]
    for name, index in indexed[1:]:
        if not index.equals(indexed[0][1]):
            raise DataError(
                f"the Series {indexed[0][0]!r} and {name!r} have different indexes, so their rows cannot be "
                "matched; put them in one DataFrame first"
            )
    num_rows = next(iter(lengths.values()), 0)
    index = indexed[0][1] if indexed else pd.RangeIndex(num_rows)
    return Table(columns, index, num_rows, kind)


def _read_narwhals(data: Any, names: Sequence[str]) -> Table:
    from narwhals.stable import v1 as narwhals  # heavy, and of no use to callers who have pandas data

    try:
        frame = narwhals.from_native(data, eager_only=True)
    except TypeError:
        raise DataError(
            f"data of type {type(data).__name__} is not a table; give a pandas or polars DataFrame, a "
            "pyarrow Table, a dict of columns or a numpy structured array (collect a lazy frame first)"
        ) from None
    unknown = [name for name in names if name not in frame.columns]
    if unknown:
        raise unknown_columns(unknown, frame.columns)
    num_rows = len(frame)
    columns = {name: _from_narwhals(name, frame[name], narwhals) for name in names}
    label = {"polars": "polars DataFrame", "pyarrow": "pyarrow Table"}.get(
        frame.implementation.value, "data frame"
    )
    return Table(columns, pd.RangeIndex(num_rows), num_rows, label)


def _from_narwhals(name: str, series: Any, narwhals: Any) -> DataColumn:
    """One polars or pyarrow column; nulls go through a mask so that integers stay integers."""
    dtype = series.dtype
    missing = series.is_null().to_numpy() if series.null_count() else None
    if dtype.is_decimal():
        series = series.cast(narwhals.Float64)
    if dtype.is_integer() or dtype == narwhals.Boolean:
        filled = (
            series if missing is None else series.fill_null(value=False if dtype == narwhals.Boolean else 0)
        )
        return DataColumn(name, "number" if dtype.is_integer() else "boolean", filled.to_numpy(), missing)
    ordered_levels = isinstance(dtype, narwhals.Enum) or (
        dtype == narwhals.Categorical and series.implementation.value == "pyarrow"
    )
    if ordered_levels:
        categories = series.cat.get_categories().to_list()
        values = pd.Categorical(series.cast(narwhals.String).to_list(), categories=categories)
        return DataColumn(name, "category", values, missing)
    if dtype == narwhals.Categorical:  # polars: the order of its categories depends on other frames
        series = series.cast(narwhals.String)
    if dtype.is_nested():
        raise DataError(f"column {name!r} holds {dtype} values; a model needs one number or level per row")
    column = column_from_values(name, np.asarray(series.to_numpy()))
    if missing is None:
        return column
    both = missing if column.missing is None else missing | column.missing
    return DataColumn(name, column.kind, column.values, both, column.has_infinite)


def column_from_values(name: str, values: Any) -> DataColumn:
    """Column from a list, array, Series or other one-dimensional object.

    A list goes through pandas, which keeps 1 and "1" apart; numpy would make both of them text.
    """
    if isinstance(values, pd.Series):
        return column_from_series(name, values)
    if isinstance(values, pd.api.extensions.ExtensionArray | pd.Index | np.ma.MaskedArray):
        return column_from_series(name, pd.Series(values))
    if isinstance(values, str | bytes | Mapping | set | frozenset):
        raise DataError(
            f"column {name!r} is a {type(values).__name__}; give a list or array with one value per row"
        )
    if isinstance(values, list | tuple | range):
        try:
            values = pd.Series(list(values), dtype=None if len(values) else float)
        except (ValueError, TypeError, OverflowError):
            raise DataError(f"column {name!r} cannot be read as one value per row") from None
        return column_from_series(name, values)
    array = np.asarray(values)
    if array.ndim == 0:
        array = array[None]
    if array.ndim != 1:
        raise DataError(f"column {name!r} has shape {array.shape}; a model needs one value per row")
    return _from_numpy(name, array)


def constant_column(name: str, value: Any, num_rows: int, is_factor: bool) -> DataColumn:
    """Column with one value in all rows: a number, or (where it codes a factor) a level.

    Raises
    ------
    DataError
        If a number is not finite, or the value a missing one.
    """
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)
    if number and not np.isfinite(value):
        raise DataError(f"the value {value!r} of {name!r} is not finite")
    one = column_from_values(name, [value])
    if one.missing is not None:
        raise DataError(f"the value {value!r} of {name!r} is a missing one")
    if number or not is_factor:
        return DataColumn(name, one.kind, np.repeat(np.asarray(one.values), num_rows), None)
    # One level as a categorical: its codes are all that is written for each row.
    codes = np.zeros(num_rows, dtype=np.int8)
    return DataColumn(name, "category", pd.Categorical.from_codes(codes, pd.Index([value])), None)


def values_by_column(at: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Values of an argument ``at=``, one or several for each column, as lists.

    Raises
    ------
    DataError
        If a column is given none.
    """
    held = {}
    for name, given in at.items():
        if isinstance(given, np.ndarray) and given.ndim == 0:
            given = given.item()
        several = not isinstance(given, str | bytes) and hasattr(given, "__len__")
        held[name] = list(given) if several else [given]
        if not held[name]:
            raise DataError(f"at= gives no value of {name!r}")
    return held


def column_from_series(name: str, series: pd.Series) -> DataColumn:
    """Column from a pandas Series of any dtype."""
    dtype = series.dtype
    if isinstance(dtype, np.dtype):
        return _from_numpy(name, series.to_numpy())
    array = series.array
    if isinstance(dtype, pd.CategoricalDtype):
        codes = array.codes
        missing = codes < 0 if codes.size and codes.min() < 0 else None
        return DataColumn(name, "category", array, missing)
    if isinstance(dtype, pd.SparseDtype):
        return _from_numpy(name, np.asarray(array))
    missing = _mask(array.isna())
    if isinstance(dtype, pd.StringDtype):
        return DataColumn(name, "text", array, missing)
    if isinstance(dtype, pd.ArrowDtype) and dtype.kind not in "iufb":
        return _from_arrow(name, array, missing)
    if dtype.kind in "iufb":
        plain_dtype: np.dtype = dtype.numpy_dtype  # type: ignore[attr-defined]  # of every nullable number
        plain = array.to_numpy(dtype=plain_dtype, na_value=plain_dtype.type(0))
        column = _from_numpy(name, plain)
        if missing is not None and column.missing is not None:
            missing = missing | column.missing
        return DataColumn(
            name, column.kind, plain, column.missing if missing is None else missing, column.has_infinite
        )
    if dtype.kind in "mM" or isinstance(dtype, pd.PeriodDtype):
        return DataColumn(name, "datetime", array, missing)
    return DataColumn(name, "mixed", array, missing)


def _from_arrow(name: str, array: Any, missing: np.ndarray | None) -> DataColumn:
    """Column of a pyarrow-backed pandas dtype that is not numeric: text, dictionary, dates, decimals."""
    if array.dtype.kind in "mM":
        return DataColumn(name, "datetime", array, missing)
    objects = np.asarray(array.to_numpy(dtype=object, na_value=None))
    column = _from_numpy(name, objects)
    return DataColumn(name, column.kind, column.values, missing, column.has_infinite)


def _from_numpy(name: str, values: np.ndarray) -> DataColumn:
    letter = values.dtype.kind
    if letter == "f":
        finite = np.isfinite(values)
        if finite.all():
            return DataColumn(name, "number", values, None)
        missing = _mask(np.isnan(values))
        num_missing = 0 if missing is None else int(missing.sum())
        return DataColumn(name, "number", values, missing, values.size - int(finite.sum()) > num_missing)
    if letter in "iub":
        return DataColumn(name, _KIND_OF_NUMPY[letter], values, None)
    if letter in "mM":
        return DataColumn(name, "datetime", values, _mask(np.isnat(values)))
    if letter == "c":
        return DataColumn(name, "complex", values, _mask(np.isnan(values)))
    if letter in "UST":
        objects = values.astype(str).astype(object) if letter != "S" else values.astype(object)
        return DataColumn(name, "text" if letter != "S" else "mixed", objects, None)
    if letter == "O":
        return _from_objects(name, values)
    raise DataError(f"column {name!r} has dtype {values.dtype}, which a model cannot use")


def _from_objects(name: str, values: np.ndarray) -> DataColumn:
    """Object column: what its entries are decides, never the dtype."""
    missing = _mask(pd.isna(values))
    present = values if missing is None else values[~missing]
    kind = _KIND_OF_OBJECTS.get(pd.api.types.infer_dtype(present, skipna=False), "mixed")
    if kind == "number":
        filled = values if missing is None else np.where(missing, 0, values)
        try:
            numbers = _exact_numbers(filled)
        except (TypeError, ValueError, OverflowError):
            return DataColumn(name, "mixed", values, missing)
        column = _from_numpy(name, numbers)
        return DataColumn(name, "number", column.values, missing, column.has_infinite)
    if kind == "boolean":
        filled = values if missing is None else np.where(missing, False, values)
        return DataColumn(name, "boolean", filled.astype(bool), missing)
    return DataColumn(name, kind, values, missing)


def _exact_numbers(values: np.ndarray) -> np.ndarray:
    """Python numbers as int64 when all are such integers (large identifiers stay exact), else float64."""
    if pd.api.types.infer_dtype(values, skipna=False) == "integer":
        try:
            return values.astype(np.int64)
        except OverflowError:
            return values.astype(np.float64)
    return values.astype(np.float64)


def _mask(missing: Any) -> np.ndarray | None:
    mask = np.asarray(missing)
    return mask if mask.any() else None


def numbers(column: DataColumn, kept: np.ndarray | None, purpose: str) -> np.ndarray:
    """Numeric values of a column at the kept rows, in their own dtype (booleans as 0 and 1).

    Raises
    ------
    DataError
        If the column does not hold numbers, naming it and a value, or if a kept value is infinite.
    """
    if column.kind not in ("number", "boolean"):
        raise DataError(
            f"column {column.name!r} holds {column.phrase}, e.g. {example_value(column, kept)}, but "
            f"{purpose} needs numbers; convert or recode it first"
        )
    values = column.rows(kept)
    if column.has_infinite:
        finite = np.isfinite(values)
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0]) if kept is None else int(np.flatnonzero(kept)[~finite][0])
            raise DataError(
                f"column {column.name!r} is infinite in {int((~finite).sum())} of the rows used, first in "
                f"row {row} (counting from 0); infinite values are not treated as missing: recode or remove "
                "them"
            )
    return values


def example_value(column: DataColumn, kept: np.ndarray | None) -> str:
    """One value of a column for a message; text that is not a number is preferred."""
    present = column.rows(kept)
    if kept is None and column.missing is not None:
        present = present[~column.missing]
    values = list(present[:1000])
    if column.kind == "mixed":
        values = [value for value in values if not isinstance(value, int | float)] or values
    if not values:
        return "(no value)"
    scalar = isinstance(values[0], np.number | np.bool_)  # their reprs are np.float64(1.0) and so on
    return repr(values[0].item() if scalar else values[0])[:60]
