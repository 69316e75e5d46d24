"""Data as Stata holds them, and the names of their variables: abbreviations, wildcards, ranges.

References
----------
StataCorp, Stata User's Guide, sections 11.3 (Naming conventions) and 11.4 (varlists), 12 (Data).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from jaxmixed import datasets
from jaxmixed.errors import DataError, StataError, listed, printable
from jaxmixed.files import load_data
from jaxmixed.stata_syntax import Statement, Tokens
from jaxmixed.stata_tokens import Token

STORAGE_TYPES = ("byte", "int", "long", "float", "double", "str", "strL")
"""Storage types that may stand before the name of a new variable (str also with a number)."""

_RESERVED = {
    "_all", "_b", "byte", "_coef", "_cons", "double", "float", "if", "in", "int", "long", "_n", "_N", "_pi",
    "_pred", "_rc", "_se", "_skip", "strL", "using", "with",
}  # fmt: skip
_LONGEST_NAME = 32
_STATA_EPOCH = np.datetime64("1960-01-01")


def as_stata_frame(data: Any) -> tuple[pd.DataFrame, dict[str, dict[float, str]]]:
    """The data in Stata's two types, and the labels of coded values.

    Parameters
    ----------
    data : DataFrame, mapping of columns, other table, name of a data set or of a file, or None

    Returns
    -------
    pandas.DataFrame
        Numbers in float64 (NaN where missing), texts as objects of str ("" where missing); truth values
        become 0 and 1, dates days since 1960, categories of texts codes from 1. A Stata file keeps its codes.
    dict
        Labels of the codes by variable.

    Raises
    ------
    DataError
        If a column is neither numbers nor texts, or two have one name.

    Examples
    --------
    >>> frame, labels = as_stata_frame({"x": [1, 2], "g": pd.Categorical(["b", "a"])})
    >>> frame["g"].tolist(), labels
    ([2.0, 1.0], {'g': {1.0: 'a', 2.0: 'b'}})
    """
    table = _as_pandas(data)
    names = [str(name) for name in table.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"two columns are named {printable(twice[0])!r}; rename one of them")
    codes = _codes_of_file(data) if isinstance(data, str) else None
    columns: dict[str, pd.Series] = {}
    labels: dict[str, dict[float, str]] = {}
    for position, name in enumerate(names):
        column = table.iloc[:, position]
        if codes is not None:
            column, of_values = stata_column(name, codes[name])[0], _labels(codes[name], column)
        else:
            column, of_values = stata_column(name, column)
        columns[name] = column
        if of_values:
            labels[name] = of_values
    return pd.DataFrame(columns, index=pd.RangeIndex(len(table))), labels


def _codes_of_file(source: str) -> pd.DataFrame | None:
    """The values of a Stata file that `load_data` could read, without their labels; None for other data."""
    if source in datasets.names() or not source.lower().removesuffix(".gz").endswith(".dta"):
        return None
    codes = pd.read_stata(source, convert_categoricals=False, convert_dates=False)
    codes.columns = [str(name).strip() for name in codes.columns]
    return codes


def _labels(codes: pd.Series, labelled: pd.Series) -> dict[float, str]:
    """Labels of the values that occur."""
    if not isinstance(labelled.dtype, pd.CategoricalDtype):
        return {}
    pairs = zip(codes, labelled, strict=True)
    return {float(code): label for code, label in dict.fromkeys(pairs) if isinstance(label, str)}


def _as_pandas(data: Any) -> pd.DataFrame:
    if data is None:
        return pd.DataFrame()
    if isinstance(data, pd.DataFrame):
        return data
    if isinstance(data, str):
        return load_data(data)
    if isinstance(data, Mapping):
        try:
            return pd.DataFrame(dict(data))
        except ValueError as problem:
            raise DataError(f"the data are not columns of equal length: {problem}") from None
    import narwhals

    try:
        table: pd.DataFrame = narwhals.from_native(data, eager_only=True).to_pandas()
    except TypeError:
        raise DataError(
            "data must be a DataFrame, a mapping of columns, or the name of a file, not"
            f" {type(data).__name__}"
        ) from None
    return table


def stata_column(name: str, column: pd.Series) -> tuple[pd.Series, dict[float, str]]:
    """One column in Stata's types, and the labels of its codes.

    Examples
    --------
    >>> stata_column("d", pd.Series(pd.to_datetime(["1960-01-03"])))[0].tolist()
    [2.0]
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        levels = list(column.cat.categories)
        if levels and all(isinstance(level, str) for level in levels):
            codes = column.cat.codes.to_numpy().astype(float)
            labels = {float(code): str(level) for code, level in enumerate(levels, 1)}
            return _numbers(np.where(codes < 0, np.nan, codes + 1)), labels
        column = column.astype(object)
    kind = getattr(column.dtype, "kind", "O")
    if kind in "iufb":
        return _numbers(column.to_numpy(dtype=float, na_value=np.nan)), {}
    if kind == "M":
        days = (column.dt.tz_localize(None) - _STATA_EPOCH) / np.timedelta64(1, "D")
        return _numbers(days.to_numpy(dtype=float)), {}
    values = column.astype(object)
    missing = values.isna().to_numpy()
    present = values[~missing]
    if all(isinstance(value, str) for value in present):
        return texts(np.where(missing, "", values.to_numpy())) if (~missing).any() else _numbers(
            np.full(len(values), np.nan)
        ), {}
    try:
        return _numbers(np.where(missing, np.nan, values.to_numpy()).astype(float)), {}
    except (TypeError, ValueError):
        raise DataError(
            f"column {printable(name)!r} is neither numbers nor texts (it holds"
            f" {listed({type(value).__name__ for value in present}, 3)})"
        ) from None


def _numbers(values: np.ndarray) -> pd.Series:
    return pd.Series(np.asarray(values, dtype=np.float64))


def texts(values: np.ndarray) -> pd.Series:
    """A variable of texts."""
    return pd.Series(list(values), dtype=object)


class Variables:
    """Names of variables in one statement.

    Parameters
    ----------
    statement : Statement
        For errors.
    names : tuple of str
        Variables of the data, in their order.
    """

    def __init__(self, statement: Statement, names: tuple[str, ...]) -> None:
        self.statement = statement
        self.names = names

    def one(self, token: Token) -> str:
        """Full name of the one variable that a token names or abbreviates.

        Raises
        ------
        StataError
            If there is none, or there are several.

        Examples
        --------
        >>> from jaxmixed.stata_syntax import parse
        >>> line = parse("sort scho")[0]
        >>> Variables(line, ("school", "score")).one(line.arguments[0])
        'school'
        """
        found = self.find(token)
        if found is None:
            raise self._unknown(token, token.value)
        return found

    def find(self, token: Token) -> str | None:
        """The same, but None if there is no such variable."""
        if token.kind != "name":
            raise self.statement.error(token, f"the name of a variable is needed here, not '{token.value}'")
        if token.value in self.names:
            return token.value
        if token.value in _RESERVED:
            return None
        close = [name for name in self.names if name.startswith(token.value)]
        if len(close) > 1:
            raise self.statement.error(
                token, f"'{token.value}' is ambiguous: it abbreviates {listed(close, 5)}"
            )
        return close[0] if close else None

    def existing(self, tokens: Tokens) -> list[tuple[str, Token]]:
        """Names of existing variables, with the token that each comes from; no name twice.

        Raises
        ------
        StataError
            If a name is unknown or ambiguous, or a pattern matches nothing.

        Examples
        --------
        >>> from jaxmixed.stata_syntax import parse
        >>> line = parse("summarize y x* a-c")[0]
        >>> [name for name, _ in Variables(line, ("a", "b", "c", "x1", "x2", "y")).existing(line.arguments)]
        ['y', 'x1', 'x2', 'a', 'b', 'c']
        """
        found: dict[str, Token] = {}
        pieces = list(self._pieces(tokens))
        at = 0
        while at < len(pieces):
            piece = pieces[at]
            if at + 2 < len(pieces) and pieces[at + 1][0].kind == "-":
                names = self._between(piece, pieces[at + 2])
                at += 3
            else:
                names = self._matching(piece)
                at += 1
            for name in names:
                found.setdefault(name, piece[0])
        return list(found.items())

    def _pieces(self, tokens: Tokens) -> list[Tokens]:
        """Names and patterns: tokens that touch each other belong together."""
        pieces: list[Tokens] = []
        for token in tokens:
            if token.kind not in ("name", "number", "*", "?", "-"):
                raise self.statement.error(token, f"names of variables are needed here, not '{token.value}'")
            touches = pieces and pieces[-1][-1].end == token.start
            if touches and "-" not in (token.kind, pieces[-1][-1].kind):
                pieces[-1] = (*pieces[-1], token)
            else:
                pieces.append((token,))
        return pieces

    def _matching(self, piece: Tokens) -> list[str]:
        if len(piece) == 1 and piece[0].kind == "name":
            return list(self.names) if piece[0].value == "_all" else [self.one(piece[0])]
        if piece[0].kind == "-":
            raise self.statement.error(piece[0], "'-' stands between two variables, as in x1-x5")
        source = self.statement.source(piece)
        if not any(token.kind in "*?" for token in piece):
            raise self.statement.error(piece, f"'{source}' is not the name of a variable")
        pattern = re.compile(re.escape(source).replace(r"\*", ".*").replace(r"\?", ".") + r"\Z", re.DOTALL)
        names = [name for name in self.names if pattern.match(name)]
        if not names:
            raise self._unknown(piece, source)
        return names

    def _between(self, first: Tokens, last: Tokens) -> list[str]:
        for piece in (first, last):
            if len(piece) > 1:
                raise self.statement.error(piece, "a range x1-x5 has the name of a variable at each end")
        ends = self.names.index(self.one(first[0])), self.names.index(self.one(last[0]))
        if ends[0] > ends[1]:
            raise self.statement.error(
                (*first, *last), f"'{last[0].value}' stands before '{first[0].value}' in the data"
            )
        return list(self.names[ends[0] : ends[1] + 1])

    def new(self, token: Token) -> str:
        """A token as the name of a variable that does not exist yet.

        Raises
        ------
        StataError
            If it exists, is reserved, or is too long.
        """
        if token.kind != "name":
            raise self.statement.error(
                token, f"the name of a new variable is needed here, not '{token.value}'"
            )
        if token.value in self.names:
            raise self.statement.error(token, f"variable '{token.value}' exists already")
        if token.value in _RESERVED or re.fullmatch(r"str[0-9]+", token.value):
            raise self.statement.error(token, f"'{token.value}' is a reserved word: choose another name")
        if len(token.value) > _LONGEST_NAME:
            raise self.statement.error(token, f"a name has at most {_LONGEST_NAME} characters")
        return token.value

    def _unknown(self, tokens: Token | Tokens, name: str) -> StataError:
        close = difflib.get_close_matches(name, self.names, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else f"; there are {listed(self.names)}"
        return self.statement.error(
            tokens,
            f"there is no variable '{name}'" + (hint if self.names else ", for there are no data: use some"),
        )


def is_new_name(text: str) -> bool:
    """Whether a variable may have this name.

    Examples
    --------
    >>> is_new_name("test_score"), is_new_name("test score"), is_new_name("_cons")
    (True, False, False)
    """
    known = text in _RESERVED or re.fullmatch(r"str[0-9]+", text) is not None
    return text.isidentifier() and not known and len(text) <= _LONGEST_NAME


def storage_type(tokens: Tokens) -> tuple[str | None, Tokens]:
    """A storage type that stands before new names, and what follows it.

    Examples
    --------
    >>> from jaxmixed.stata_syntax import parse
    >>> storage_type(parse("generate byte x = 1")[0].arguments)[0]
    'byte'
    """
    if len(tokens) > 1 and tokens[0].kind == "name" and tokens[1].kind == "name":
        word = tokens[0].value
        if word in STORAGE_TYPES or re.fullmatch(r"str[0-9]+", word):
            return ("str" if word.startswith("str") else word), tokens[1:]
    return None, tokens
