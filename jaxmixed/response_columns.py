"""Many responses, read a few at a time: arrays in memory or on disk, tables, columns of Parquet files."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from jaxmixed.errors import DataError
from jaxmixed.ingest import DataColumn, read_columns

_NUMERIC = "fiub"


class ResponseColumns(Protocol):
    """Responses side by side.

    Attributes
    ----------
    names : pandas.Index
        One per response.
    """

    names: pd.Index

    @abstractmethod
    def read(self, first: int, last: int) -> np.ndarray:
        """Responses ``first .. last - 1`` on the rows used: float64 (n, last - first), NaN where missing.

        May be a view: not to be written to. Called from several threads.
        """
        ...


class _Rows:
    """Which rows of the responses the model uses."""

    def __init__(self, given: int, index: pd.Index, kept: np.ndarray, what: str) -> None:
        n = len(index)
        if given not in (n, len(kept)):
            dropped = f", of which {n:,} are used" if n < len(kept) else ""
            raise DataError(f"{what} have {given:,} rows, but the data have {len(kept):,}{dropped}")
        # Rows of the data, unless they are the rows used already.
        self.take = None if given == n else np.flatnonzero(kept)

    def of(self, values: np.ndarray) -> np.ndarray:
        return values if self.take is None else values[self.take]


class ArrayResponses:
    """Columns of a two-dimensional array, which may be a memory map.

    Parameters
    ----------
    values : (n, m) array
    index : pandas.Index
        Of the rows used.
    kept : (rows,) bool array
        Which rows of the data these are.
    names : pandas.Index, optional
    """

    def __init__(
        self, values: np.ndarray, index: pd.Index, kept: np.ndarray, names: pd.Index | None = None
    ) -> None:
        if values.ndim != 2:
            raise DataError(
                f"the responses have shape {values.shape}; give a table with a row for each row of the data "
                "and a column for each response"
            )
        if values.dtype.kind not in _NUMERIC:
            raise DataError(f"the responses have dtype {values.dtype}; a Gaussian model needs numbers")
        self._rows = _Rows(len(values), index, kept, "the responses")
        self._values = values
        self.names = pd.RangeIndex(values.shape[1]) if names is None else names

    def read(self, first: int, last: int) -> np.ndarray:
        """See `ResponseColumns`."""
        return np.asarray(self._rows.of(self._values[:, first:last]), dtype=np.float64)


class ListedResponses:
    """Columns of the data, by name.

    Parameters
    ----------
    columns : list of DataColumn
    index : pandas.Index
    kept : (rows,) bool array
    """

    def __init__(self, columns: list[DataColumn], index: pd.Index, kept: np.ndarray) -> None:
        for column in columns:
            if column.kind not in ("number", "boolean"):
                raise DataError(
                    f"the response {column.name!r} holds {column.phrase}; a Gaussian model needs numbers"
                )
        self._columns = columns
        self._rows = _Rows(len(kept), index, kept, "the responses")
        self.names = pd.Index([column.name for column in columns])

    def read(self, first: int, last: int) -> np.ndarray:
        """See `ResponseColumns`."""
        found = []
        for column in self._columns[first:last]:
            values = np.array(column.values, dtype=np.float64)
            if column.missing is not None:
                values[column.missing] = np.nan
            found.append(self._rows.of(values))
        return np.stack(found, axis=1)


class ParquetResponses:
    """Columns of a Parquet file, all of them responses, read as they are needed.

    Parameters
    ----------
    path : Path
    index : pandas.Index
    kept : (rows,) bool array
    """

    def __init__(self, path: Path, index: pd.Index, kept: np.ndarray) -> None:
        import pyarrow
        from pyarrow import parquet

        try:
            self._file = parquet.ParquetFile(path)
        except (OSError, pyarrow.ArrowInvalid) as problem:
            raise DataError(f"responses={str(path)!r} cannot be read as a Parquet file: {problem}") from None
        schema = self._file.schema_arrow
        self._names = list(schema.names)
        for field in schema:
            kind = field.type
            numeric = pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)
            if not (numeric or pyarrow.types.is_boolean(kind)):
                raise DataError(
                    f"the column {field.name!r} of {str(path)!r} holds {kind}; every column must be a "
                    "response (numbers)"
                )
        self._rows = _Rows(self._file.metadata.num_rows, index, kept, f"the columns of {str(path)!r}")
        self.names = pd.Index(self._names)
        self._lock = threading.Lock()

    def read(self, first: int, last: int) -> np.ndarray:
        """See `ResponseColumns`."""
        with self._lock:  # one reader; a file object is not for several threads
            table = self._file.read(columns=self._names[first:last], use_threads=False)
        values = np.empty((table.num_rows, last - first))
        for j, column in enumerate(table.columns):
            values[:, j] = column.cast("float64").to_numpy()  # nulls become NaN
        return self._rows.of(values)


def response_columns(given: Any, index: pd.Index, kept: np.ndarray, data: Any = None) -> ResponseColumns:
    """Responses in any of the forms that a user may give.

    Parameters
    ----------
    given
        Array (n, m), memory map, path of a ``.npy`` or Parquet file, data frame, or list of columns of
        `data`.
    index : pandas.Index
        Labels of the rows used.
    kept : (rows,) bool array
        Which rows of the data these are.
    data
        The table that lists of names refer to.

    Returns
    -------
    ResponseColumns

    Raises
    ------
    DataError
        If it is none of these, or its rows do not match those of the data.

    Examples
    --------
    >>> found = response_columns(np.eye(3), pd.RangeIndex(3), np.ones(3, dtype=bool))
    >>> found.read(1, 3).tolist()
    [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    """
    if isinstance(given, str | Path):
        return _from_file(Path(given), index, kept)
    if isinstance(given, pd.DataFrame):
        return _from_pandas(given, index, kept)
    if data is not None and _is_names(given):
        return _from_names(list(given), index, kept, data)
    if isinstance(given, np.ndarray):
        return ArrayResponses(given, index, kept)
    if isinstance(given, list | tuple):
        try:
            return ArrayResponses(np.array(given, dtype=np.float64), index, kept)
        except (TypeError, ValueError):
            raise DataError(
                "the responses must be a table of numbers with a row for each row of the data, or a list of "
                "names of columns of the data"
            ) from None
    return _from_narwhals(given, index, kept)


def _is_names(given: Any) -> bool:
    return (
        isinstance(given, Sequence | pd.Index)
        and not isinstance(given, str)
        and all(isinstance(name, str) for name in given)
    )


def _from_names(names: list[str], index: pd.Index, kept: np.ndarray, data: Any) -> ResponseColumns:
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    if twice:
        raise DataError(f"the response {sorted(twice)[0]!r} is listed twice")
    columns = read_columns(data, names).columns
    return ListedResponses([columns[name] for name in names], index, kept)


def _from_file(path: Path, index: pd.Index, kept: np.ndarray) -> ResponseColumns:
    if not path.is_file():
        raise DataError(f"responses={str(path)!r} is no file (columns of the data are given as a list)")
    if path.suffix == ".npy":
        try:
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as problem:
            raise DataError(f"responses={str(path)!r} cannot be read as a .npy file: {problem}") from None
        return ArrayResponses(values, index, kept)
    if path.suffix in (".parquet", ".pq"):
        return ParquetResponses(path, index, kept)
    raise DataError(f"responses={str(path)!r} must end in .npy or .parquet")


def _from_pandas(table: pd.DataFrame, index: pd.Index, kept: np.ndarray) -> ResponseColumns:
    """Columns of a data frame, whose rows must be those of the data by their labels, too."""
    rows = np.flatnonzero(kept) if len(table) == len(kept) else np.arange(len(table))
    if len(rows) == len(index) and not table.index[rows].equals(index):
        raise DataError(
            "the index of the responses does not match the index of the data, so their rows cannot be "
            "matched; pass responses.to_numpy() if the order is the same"
        )
    if not table.columns.is_unique:
        raise DataError(
            f"the response {table.columns[table.columns.duplicated()][0]!r} occurs twice; give unique names"
        )
    names = pd.Index(table.columns)
    if all(isinstance(kind, np.dtype) and kind.kind in _NUMERIC for kind in table.dtypes.unique()):
        values = table.to_numpy()
        return ArrayResponses(values, index, kept, names)
    columns = read_columns(table.rename(columns=str), [str(name) for name in names]).columns
    found = ListedResponses(list(columns.values()), index, _every(kept, len(table)))
    found.names = names
    return found


def _every(kept: np.ndarray, rows: int) -> np.ndarray:
    """The rows to keep of a table that may hold the kept ones only."""
    return kept if len(kept) == rows else np.ones(rows, dtype=bool)


def _from_narwhals(given: Any, index: pd.Index, kept: np.ndarray) -> ResponseColumns:
    from narwhals.stable import v1 as narwhals

    try:
        frame = narwhals.from_native(given, eager_only=True)
    except TypeError:
        raise DataError(
            f"responses of type {type(given).__name__} are not a table; give a numpy array, a data frame, a "
            "path, or a list of names of columns of the data"
        ) from None
    names = frame.columns
    columns = read_columns(given, names).columns
    return ListedResponses([columns[name] for name in names], index, _every(kept, len(frame)))
