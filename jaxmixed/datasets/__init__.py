"""Small real data sets with their sources, for examples, tests and teaching.

Nothing is read before `load` asks for it. Identifiers and factors come as pandas categoricals with text
labels: identifiers in order of first appearance, factors in the documented order with the reference level
first. Other columns are int64 or float64. No column has missing values.
"""

from __future__ import annotations

import difflib
import gzip
import io
from importlib.resources import files

import pandas as pd

from jaxmixed.datasets._catalogue import CATALOGUE, Column, Description
from jaxmixed.errors import DataError

__all__ = ["Column", "Description", "describe", "load", "names"]


def names() -> tuple[str, ...]:
    """Names of the bundled data sets, in the order in which they are documented.

    Returns
    -------
    tuple of str
        Every name that `load` accepts.

    Examples
    --------
    >>> from jaxmixed import datasets
    >>> datasets.names()[:3]
    ('hsb82', 'exam', 'sleepstudy')
    """
    return tuple(CATALOGUE)


def describe(name: str) -> Description:
    """Title, columns, source, licence and an example formula of a bundled data set.

    Parameters
    ----------
    name : str
        One of `names()`.

    Returns
    -------
    Description
        Fields `name`, `title`, `rows`, `columns`, `source`, `licence`, `example`;
        printing it gives a page of text.

    Raises
    ------
    DataError
        If there is no such data set.

    Examples
    --------
    >>> from jaxmixed import datasets
    >>> datasets.describe("sleepstudy").example
    'Reaction ~ Days + (1 + Days | Subject)'
    """
    entry = CATALOGUE.get(name) if isinstance(name, str) else None
    if entry is None:
        close = difflib.get_close_matches(str(name).lower(), CATALOGUE, n=3)
        hint = f"Did you mean {' or '.join(repr(match) for match in close)}? " if close else ""
        raise DataError(f"There is no bundled data set {name!r}. {hint}Available: {', '.join(CATALOGUE)}.")
    return entry


def load(name: str) -> pd.DataFrame:
    """Read a bundled data set.

    Parameters
    ----------
    name : str
        One of `names()`.

    Returns
    -------
    pandas.DataFrame
        A fresh frame at every call; `describe(name)` tells what the columns mean.

    Raises
    ------
    DataError
        If there is no such data set.

    Examples
    --------
    >>> from jaxmixed import datasets
    >>> datasets.load("sleepstudy").shape
    (180, 3)
    """
    entry = describe(name)
    packed = files(__name__).joinpath("data", f"{entry.name}.csv.gz").read_bytes()
    text = io.StringIO(gzip.decompress(packed).decode("utf-8"))
    raw = pd.read_csv(text, dtype=str, keep_default_na=False)
    return pd.DataFrame({column.name: _typed(raw[column.name], column) for column in entry.columns})


def _typed(values: pd.Series, column: Column) -> pd.Series:
    if column.kind == "integer":
        return values.astype("int64")
    if column.kind == "number":
        return values.astype("float64")
    levels = list(column.levels) if column.levels else list(dict.fromkeys(values))
    return pd.Series(pd.Categorical(values, categories=levels), index=values.index)
