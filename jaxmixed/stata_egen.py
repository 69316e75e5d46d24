"""``egen``: means, totals, ranks and the like over all rows, over groups, or over the variables of a row.

References
----------
StataCorp, Stata Data Management Reference Manual, egen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from jaxmixed.errors import StataError
from jaxmixed.stata_data import add_variable, assignment, missing_in, only_token
from jaxmixed.stata_formats import count
from jaxmixed.stata_frame import storage_type
from jaxmixed.stata_functions import is_text
from jaxmixed.stata_session import CommandSpec, Session
from jaxmixed.stata_syntax import Statement, Tokens, closing, suggestion
from jaxmixed.stata_tokens import Token

Grouped = pd.api.typing.SeriesGroupBy


@dataclass(frozen=True)
class _Work:
    """One egen: what its functions need.

    ``codes`` (n,) number the groups from 0 and are -1 in rows that do not take part.
    """

    session: Session
    statement: Statement
    function: Token
    inside: Tokens
    kept: np.ndarray
    codes: np.ndarray

    @property
    def by_rows(self) -> np.ndarray:
        """Rows that take part."""
        return self.codes >= 0

    def number(self, name: str, default: float) -> float:
        return self.statement.number(name, default)


def percentile(values: np.ndarray, percent: float) -> float:
    """Stata's percentile of numbers without missing ones: the mean of two neighbours if it falls on a rank.

    Examples
    --------
    >>> percentile(np.array([1.0, 2.0, 3.0, 4.0]), 50), percentile(np.array([1.0, 2.0, 3.0]), 25)
    (2.5, 1.0)
    """
    if not len(values):
        return float("nan")
    ordered, position = np.sort(values), len(values) * percent / 100
    at = int(np.floor(position))
    if position == at and 0 < at < len(values):
        return float((ordered[at - 1] + ordered[at]) / 2)
    return float(ordered[min(at, len(values) - 1)])


def _not_numbers(work: _Work) -> StataError:
    return work.statement.error(work.inside, f"{work.function.value}() needs numbers, and these are texts")


def _by_group(summary: Callable[[Grouped], pd.Series]) -> Callable[[_Work], np.ndarray]:
    """A function of the values of each group, the same for all its rows."""

    def made(work: _Work) -> np.ndarray:
        values = work.session.values(work.statement, work.inside)
        if is_text(values):
            raise work.statement.error(
                work.inside, f"{work.function.value}() needs numbers, and these are texts"
            )
        taking = work.by_rows
        grouped = pd.Series(values[taking]).groupby(work.codes[taking])
        result = np.full(len(values), np.nan)
        table = summary(grouped)
        result[taking] = table.reindex(work.codes[taking]).to_numpy(dtype=float)
        return result

    return made


def _standardised(work: _Work) -> np.ndarray:
    values = work.session.values(work.statement, work.inside)
    if is_text(values):
        raise _not_numbers(work)
    if work.codes.max(initial=-1) > 0:
        raise work.statement.error(work.function, "std() cannot be combined with by")
    used = values[work.by_rows & ~np.isnan(values)]
    result = np.full(len(values), np.nan)
    if len(used) > 1 and used.std() > 0:
        wanted_mean, wanted_sd = work.number("mean", 0.0), work.number("sd", 1.0)
        z = (values - used.mean()) / used.std(ddof=1)
        result = np.where(work.by_rows, wanted_mean + wanted_sd * z, np.nan)
    return result


def _rank(work: _Work) -> np.ndarray:
    values = work.session.values(work.statement, work.inside)
    if is_text(values):
        raise _not_numbers(work)
    method, ascending = "average", True
    if work.statement.has("field"):
        method, ascending = "min", False
    elif work.statement.has("track"):
        method = "min"
    elif work.statement.has("unique"):
        method = "first"
    taking = work.by_rows
    result = np.full(len(values), np.nan)
    grouped = pd.Series(values[taking]).groupby(work.codes[taking])
    result[taking] = grouped.rank(method=method, ascending=ascending).to_numpy()
    return result


def _group(work: _Work) -> np.ndarray:
    """Numbers from one of the combinations of values, in their order."""
    names = work.session.varlist(work.statement, work.inside)
    frame = work.session.frame[names]
    taking = work.kept.copy()
    if not work.statement.has("missing"):
        for name in names:
            taking &= ~missing_in(frame[name].to_numpy())
    numbers = frame[taking].groupby(names, sort=True, dropna=False).ngroup().to_numpy(dtype=float)
    result = np.full(len(frame), np.nan)
    result[taking] = numbers + 1
    return result


def _tag(work: _Work) -> np.ndarray:
    """1 in one row of each combination of values, else 0."""
    numbers = _group(work)
    result = np.zeros(len(numbers))
    found = ~np.isnan(numbers)
    _, first = np.unique(numbers[found], return_index=True)
    result[np.flatnonzero(found)[first]] = 1.0
    return result


def _across(summary: Callable[[pd.DataFrame], pd.Series]) -> Callable[[_Work], np.ndarray]:
    """A function of the variables of a row."""

    def made(work: _Work) -> np.ndarray:
        names = work.session.varlist(work.statement, work.inside, numeric=True)
        return np.where(work.kept, summary(work.session.frame[names]).to_numpy(dtype=float), np.nan)

    return made


_EXPRESSION: dict[str, Callable[[_Work], np.ndarray]] = {
    "mean": _by_group(lambda g: g.mean()),
    "sd": _by_group(lambda g: g.std(ddof=1)),
    "median": _by_group(lambda g: g.median()),
    "min": _by_group(lambda g: g.min()),
    "max": _by_group(lambda g: g.max()),
    "total": _by_group(lambda g: g.sum()),
    "sum": _by_group(lambda g: g.sum()),
    "count": _by_group(lambda g: g.count()),
    "std": _standardised,
    "rank": _rank,
}
_VARIABLES: dict[str, Callable[[_Work], np.ndarray]] = {
    "group": _group,
    "tag": _tag,
    "rowmean": _across(lambda f: f.mean(axis=1)),
    "rowtotal": _across(lambda f: f.sum(axis=1)),
    "rowmin": _across(lambda f: f.min(axis=1)),
    "rowmax": _across(lambda f: f.max(axis=1)),
    "rowsd": _across(lambda f: f.std(axis=1, ddof=1)),
    "rowmiss": _across(lambda f: f.isna().sum(axis=1)),
    "rownonmiss": _across(lambda f: f.notna().sum(axis=1)),
}
_OPTIONS_OF = {
    "std": ("mean", "sd"), "rank": ("field", "track", "unique"), "group": ("missing",), "tag": ("missing",)
}  # fmt: skip
_WITHOUT_BY = ("group", "tag", "std")


def _pctile(work: _Work) -> np.ndarray:
    percent = work.number("p", 50.0)
    if not 0 < percent < 100:
        raise work.statement.error(None, "p() is between 0 and 100")
    return _by_group(lambda g: g.agg(lambda v: percentile(v.dropna().to_numpy(), percent)))(work)


_EXPRESSION["pctile"] = _pctile
_OPTIONS_OF["pctile"] = ("p",)


def _egen(session: Session, statement: Statement) -> None:
    left, right = assignment(statement, statement.arguments, "egen m = mean(x), by(school)")
    _, names = storage_type(left)
    name = session.variables(statement).new(only_token(statement, names, "the name of the new variable"))
    function = right[0]
    if (
        len(right) < 3
        or function.kind != "name"
        or right[1].kind != "("
        or closing(right, 1) != len(right) - 1
    ):
        raise statement.error(right, "egen needs one function, as in 'egen m = mean(x)'")
    make = _EXPRESSION.get(function.value) or _VARIABLES.get(function.value)
    known = [*_EXPRESSION, *_VARIABLES]
    if make is None:
        hint = suggestion(function.value, known) or "."
        raise statement.error(
            function,
            f"egen has no function {function.value}(){hint} Supported are {', '.join(known)}",
        )
    inside = right[2:-1]
    if not inside:
        raise statement.error(function, f"{function.value}() needs something in parentheses")
    for option in statement.options:
        if option.name != "by" and option.name not in _OPTIONS_OF.get(function.value, ()):
            raise statement.error(option.token, f"option {option.name} does not belong to {function.value}()")
    codes, kept = _codes(session, statement, function)
    values = make(_Work(session, statement, function, inside, kept, codes))
    add_variable(session, name, values)
    missing = int(np.isnan(values).sum())
    if missing:
        session.write(f"({count(missing)} missing value{'' if missing == 1 else 's'} generated)")


def _codes(session: Session, statement: Statement, function: Token) -> tuple[np.ndarray, np.ndarray]:
    """Number of each row's group, -1 in rows that ``if`` and ``in`` leave out; and the rows they leave."""
    kept = session.sample(statement)
    by, prefix = statement.option("by"), statement.prefix("by", "bysort")
    names = session.varlist(statement, by.argument or ()) if by else list(session.rows(statement).groups)
    if by and prefix:
        raise statement.error(by.token, "by() and the prefix by say the same: use one of them")
    if names and function.value in (*_WITHOUT_BY, *(n for n in _VARIABLES if n.startswith("row"))):
        raise statement.error(function, f"{function.value}() cannot be combined with by")
    if not names:
        return np.where(kept, 0, -1), kept
    codes = session.frame.groupby(names, sort=False, dropna=False).ngroup().to_numpy()
    return np.where(kept, codes, -1), kept


COMMANDS = {
    "egen": CommandSpec(
        "egen",
        _egen,
        options={
            "by": ("by", True),
            "mean": ("m", True),
            "sd": ("s", True),
            "p": ("p", True),
            "field": ("f", False),
            "track": ("t", False),
            "unique": ("u", False),
            "missing": ("missing", False),
        },
        condition=True,
        by=True,
    )
}
