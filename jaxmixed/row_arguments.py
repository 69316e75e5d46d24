"""Arguments with a value for each row, and which rows are complete."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from jaxmixed.errors import DataError
from jaxmixed.ingest import DataColumn, Table, column_from_values, example_value, numbers


def extra_column(argument: str, values: Any, table: Table) -> DataColumn | None:
    """Weights or offset, given as a column name or as an array."""
    if values is None:
        return None
    if isinstance(values, str):
        return table.columns[values]
    if isinstance(values, pd.Series) and not values.index.equals(table.index):
        raise DataError(
            f"the index of {argument} does not match the index of the data, so its rows cannot be matched; "
            f"put it in the data as a column, or pass {argument}=series.to_numpy() if the order is the same"
        )
    if not hasattr(values, "__len__"):
        raise DataError(
            f"{argument}={values!r} is neither a column name nor an array with one number per row"
        )
    column = column_from_values(argument, values)
    if len(column.values) != table.num_rows:
        raise DataError(
            f"{argument} has {len(column.values)} values, but the data have {table.num_rows} rows"
        )
    return column


def complete_rows(
    table: Table, extra: tuple[DataColumn | None, ...], missing: str
) -> tuple[np.ndarray | None, dict[str, int]]:
    """Mask of rows without a missing value (None when these are all rows), and missing values per column."""
    if table.num_rows == 0:
        raise DataError("the data have no rows")
    columns = {
        id(column): column for column in (*table.columns.values(), *extra) if column is not None
    }.values()
    masks = {column.name: column.missing for column in columns if column.missing is not None}
    if not masks:
        return None, {}
    counts = {name: int(np.count_nonzero(mask)) for name, mask in masks.items()}
    described = ", ".join(f"{name!r} in {count}" for name, count in counts.items())
    if missing == "raise":
        raise DataError(
            f"values are missing in the data ({described} of {table.num_rows} rows); fill them in, or use "
            "missing='drop' to leave these rows out"
        )
    kept = np.ones(table.num_rows, dtype=bool)
    for mask in masks.values():
        kept &= ~mask
    if not kept.any():
        empty = [name for name, count in counts.items() if count == table.num_rows]
        why = (
            f"{' and '.join(empty)} {'is' if len(empty) == 1 else 'are'} missing in all"
            if empty
            else f"missing: {described}"
        )
        raise DataError(f"0 complete rows of {table.num_rows}; {why}")
    return kept, counts


def precision_weights(column: DataColumn, kept: np.ndarray | None) -> np.ndarray:
    """Precision weights, all positive."""
    if column.kind != "number":
        raise DataError(
            f"the weights {column.name!r} hold {column.phrase}, e.g. {example_value(column, kept)}; give "
            "numbers"
        )
    values = np.array(numbers(column, kept, "weights"), dtype=np.float64)
    smallest = int(values.argmin())
    if values[smallest] <= 0:
        row = smallest if kept is None else int(np.flatnonzero(kept)[smallest])
        why = (
            "weights of zero leave the number of observations undefined: subset the data instead"
            if values[smallest] == 0
            else "weights must be positive, because Var(e_i) = sigma^2 / w_i"
        )
        raise DataError(
            f"the weights {column.name!r} contain {values[smallest]:g}, first in row {row} (counting from "
            f"0); {why}"
        )
    return values
