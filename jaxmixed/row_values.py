"""Values that a caller gives for the rows of a fit: a column that the fit keeps, or an array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jaxmixed.errors import DataError
from jaxmixed.ingest import DataColumn, column_from_values, numbers

if TYPE_CHECKING:
    from jaxmixed.frame import ModelFrame


def given_column(frame: ModelFrame, values: Any, argument: str) -> tuple[DataColumn, np.ndarray | None]:
    """Column of values that stand for the rows used, or for those of the data.

    Parameters
    ----------
    frame : ModelFrame
    values : array_like
        A Series must have the index of the data, or of the rows used.
    argument : str
        Name of the argument, for messages.

    Returns
    -------
    column : DataColumn
        Called after the Series, or after the argument.
    rows : (n_data,) bool array or None
        Which of its values belong to the rows used; None for all.

    Raises
    ------
    DataError
        If there are more or fewer values than rows, or the index does not match.
    """
    label = str(values.name) if isinstance(values, pd.Series) and values.name is not None else argument
    column = column_from_values(label, values)
    length, n = len(column.values), len(frame.y)
    if length not in (n, len(frame.kept)):
        data = "" if n == len(frame.kept) else f" ({len(frame.kept)} in the data)"
        raise DataError(
            f"{argument} has {length} values, and the fit has {n} rows{data}: give one for each row"
        )
    rows = None if length == n else frame.kept
    if isinstance(values, pd.Series):
        own = values.index if rows is None else values.index[rows]
        if not own.equals(frame.index):
            raise DataError(
                f"the index of {argument} does not match the index of the data, so its rows cannot be"
                f" matched; pass {argument}=series.to_numpy() if the order is the same"
            )
    return column, rows


def row_numbers(frame: ModelFrame, values: Any, argument: str) -> tuple[str, np.ndarray]:
    """A number for each row used, by the name of a column of the fixed part or as an array.

    Parameters
    ----------
    frame : ModelFrame
    values : str or array_like
    argument : str
        Name of the argument, for messages.

    Returns
    -------
    name : str
    values : (n,) array

    Raises
    ------
    DataError
        If there is no such column, or some value is missing, infinite or no number.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
    >>> name, days = row_numbers(fit.frame, "Days", "time")
    >>> name, days[:3].tolist()
    ('Days', [0.0, 1.0, 2.0])
    """
    rows: np.ndarray | None = None
    if not isinstance(values, str):
        column, rows = given_column(frame, values, argument)
    elif values in frame.columns or values in frame.also:
        column = frame.columns[values] if values in frame.columns else frame.also[values]
    else:
        known = ", ".join(map(repr, {**frame.columns, **frame.also})) or "none"
        raise DataError(
            f"the fit has no column {values!r} (it keeps those of the fixed part: {known}): give the values"
            f" themselves, {argument}=data[{values!r}]"
        )
    found = np.asarray(numbers(column, rows, f"{argument}="), dtype=np.float64)
    missing = np.count_nonzero(np.isnan(found))
    if missing:
        raise DataError(f"{argument}= ({column.name!r}) is missing in {missing} of the rows used")
    return column.name, found
