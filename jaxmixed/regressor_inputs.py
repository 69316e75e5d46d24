"""What a scikit-learn estimator is given (arrays, groups, weights), as the columns of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from jaxmixed.errors import DataError


@dataclass(frozen=True, slots=True)
class ArrayColumns:
    """Names by which the formula of a model that is given by arrays calls its columns.

    Parameters
    ----------
    features
        Of the predictors.
    groups
        Of the grouping factors.
    response
        Of the response.
    """

    features: tuple[str, ...]
    groups: tuple[str, ...]
    response: str


def free_name(wanted: str, otherwise: str, taken: set[str]) -> str:
    """A name that a formula can quote and that is not taken yet; it is taken then."""
    name = wanted if wanted.strip() and wanted.isprintable() and "`" not in wanted else otherwise
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def positions(given: Any, names: list[str], width: int, argument: str) -> tuple[int, ...]:
    """Positions of columns of X that are given by name or position."""
    listed = (given,) if isinstance(given, str) or np.ndim(given) == 0 else tuple(given)
    found = []
    for column in listed:
        if isinstance(column, str):
            if column not in names:
                known = f"has {', '.join(map(repr, names))}" if names else "has no names: give positions"
                raise DataError(f"{argument}= names the column {column!r}, but X {known}")
            found.append(names.index(column))
        elif (
            isinstance(column, int | np.integer) and not isinstance(column, bool) and -width <= column < width
        ):
            found.append(int(column) % width)
        else:
            raise DataError(
                f"{argument}={column!r} is neither a name nor a position of the {width} columns of X"
            )
    if len(set(found)) < len(found):
        raise DataError(f"{argument}= names a column twice")
    return tuple(found)


def column_names(table: Any) -> list[Any]:
    """Names of the columns of a table of any kind."""
    if isinstance(table, pd.DataFrame):
        return list(table.columns)
    return list(_narwhals().from_native(table, eager_only=True).columns)


def _narwhals() -> Any:
    """Narwhals, which only tables that are not pandas' need."""
    from narwhals.stable import v1 as narwhals

    return narwhals


def as_table(X: Any) -> pd.DataFrame:
    """Array or table of any kind as a pandas data frame."""
    if isinstance(X, pd.DataFrame | np.ndarray):
        return pd.DataFrame(X)
    frame = _narwhals().from_native(X, eager_only=True)
    return pd.DataFrame({name: frame[name].to_numpy() for name in frame.columns})


def read_groups(groups: Any, rows: int) -> dict[str, Any]:
    """Grouping factors by name, one value per row each.

    Raises
    ------
    DataError
        For another number of rows, or of dimensions.
    """
    if isinstance(groups, pd.Series):
        found: dict[str, Any] = {str(groups.name) if groups.name is not None else "group": groups.array}
    elif hasattr(groups, "columns"):
        table = as_table(groups)
        if not table.columns.is_unique:
            raise DataError(f"groups= has the columns {list(table.columns)}; give each a name of its own")
        found = {str(name): table.iloc[:, j].array for j, name in enumerate(table.columns)}
    else:
        # An object array keeps 1 and "1" of a list apart.
        array = np.asarray(groups, dtype=object if isinstance(groups, list | tuple) else None)
        if array.ndim not in (1, 2) or 0 in array.shape:
            raise DataError(
                f"groups= has shape {array.shape}; give one label per row, or a column per grouping factor"
            )
        array = array.reshape(len(array), -1)
        several = array.shape[1] > 1
        found = {f"group{j}" if several else "group": array[:, j] for j in range(array.shape[1])}
    for name, values in found.items():
        if len(values) != rows:
            raise DataError(f"groups= has {len(values)} rows ({name!r}), but X has {rows}")
    return found


def frame_of(
    columns: ArrayColumns, values: np.ndarray, factors: Sequence[Any], index: pd.Index
) -> pd.DataFrame:
    """Predictors and grouping factors (none: they are unknown) under the names of the formula."""
    table = pd.DataFrame(values, columns=list(columns.features), index=index)
    for name, labels in zip(columns.groups, factors, strict=False):
        table[name] = labels
    return table


def with_columns(table: Any, columns: Mapping[str, Any]) -> Any:
    """Copy of a table with columns replaced or added, of the kind that it was."""
    if not columns:
        return table
    if isinstance(table, pd.DataFrame):
        return table.assign(**columns)
    narwhals = _narwhals()
    frame = narwhals.from_native(table, eager_only=True)
    space = narwhals.get_native_namespace(frame)
    added = [
        narwhals.new_series(name, np.asarray(values), native_namespace=space)
        for name, values in columns.items()
    ]
    return frame.with_columns(*added).to_native()


def weighted(table: Any, sample_weight: Any) -> tuple[Any, np.ndarray | None]:
    """The rows of positive weight, and their weights.

    Raises
    ------
    DataError
        For weights that are negative, not finite, all zero, or too few.
    """
    if sample_weight is None:
        return table, None
    rows, weights = len(table), np.asarray(sample_weight, dtype=np.float64)
    if weights.shape != (rows,):
        raise DataError(
            f"sample_weight has shape {weights.shape}; give one weight for each of the {rows} rows"
        )
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"sample_weight is {weights[row]:g} in row {row} (counting from 0); weights must be positive, or "
            "zero to leave a row out"
        )
    if not weights.any():
        raise DataError("the weights in sample_weight are all zero, which leaves no row to fit")
    kept = weights > 0
    if kept.all():
        return table, weights
    if isinstance(table, pd.DataFrame):
        return table.loc[kept], weights[kept]
    return _narwhals().from_native(table, eager_only=True).filter(kept.tolist()).to_native(), weights[kept]
