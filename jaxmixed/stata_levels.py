"""Levels of `mixed`: ``|| school: ses, covariance(unstructured)``, ``|| _all: R.rater``, ``residuals()``.

References
----------
StataCorp, Stata Multilevel Mixed-Effects Reference Manual, mixed (syntax of re_equation, residuals()).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from jaxmixed import residuals
from jaxmixed.residuals import ResidualStructure
from jaxmixed.stata_design import CONSTANT, Design, design_of, variables_of
from jaxmixed.stata_factors import Term, terms
from jaxmixed.stata_session import Session
from jaxmixed.stata_syntax import Level, Option, Statement, Tokens, abbreviated, nested, number_of, suggestion
from jaxmixed.terms import Column

ALL: Final = "_all"
"""The level that holds all rows."""

STRUCTURES = {"independent": "ind", "exchangeable": "ex", "identity": "id", "unstructured": "un"}
"""Covariance structures with their shortest spellings."""

RESIDUALS = {
    "independent": "ind",
    "exchangeable": "ex",
    "ar": "ar",
    "ma": "ma",
    "unstructured": "un",
    "banded": "ba",
    "toeplitz": "to",
    "exponential": "exp",
}
"""Residual structures with their shortest spellings."""

_WITH_ORDER = ("ar", "ma", "banded", "toeplitz")
_WITHOUT_TIME = ("independent", "exchangeable")


@dataclass(frozen=True)
class Request:
    """A level as it is asked for, before the estimation sample is known.

    Attributes
    ----------
    level : Level
    name : str
        Grouping variable, or ``_all``.
    grouping : tuple of str
        Variables whose combinations are the groups, the outermost first; empty for all rows.
    effects : list of Term
    factor : str or None
        Variable of ``R.variable``.
    constant : bool
    structure : str
    """

    level: Level
    name: str
    grouping: tuple[str, ...]
    effects: list[Term]
    factor: str | None
    constant: bool
    structure: str

    @property
    def variables(self) -> list[str]:
        """All variables of the level, none twice."""
        own = [*self.grouping, *variables_of(self.effects)]
        return list(dict.fromkeys([*own, self.factor] if self.factor else own))


@dataclass(frozen=True)
class RandomLevel:
    """A level of the fitted model.

    Attributes
    ----------
    request : Request
    grouping : tuple of str
        Variables whose combinations are the levels of the random effects; with ``R.f`` f is one of them.
    design : Design
        Columns of the effects.
    title : str
        Covariance structure as the table names it.
    term : int or None
        Number of the term in the formula; None for a level without effects.
    """

    request: Request
    grouping: tuple[str, ...]
    design: Design
    title: str
    term: int | None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the effects in the table: slopes first."""
        return (f"R.{self.request.factor}",) if self.request.factor else self.design.names

    @property
    def label(self) -> str:
        """Label of the grouping in the fitted model."""
        return ":".join(self.grouping) or ALL


def read_levels(session: Session, statement: Statement) -> list[Request]:
    """What the levels of a statement ask for.

    Raises
    ------
    StataError
        At a level that cannot be read, or a structure that does not exist.
    """
    found: list[Request] = []
    outer: tuple[str, ...] = ()
    for level in statement.levels:
        name = _level_name(session, statement, level)
        if name == ALL and outer:
            raise statement.error(level.name, "_all is the outermost level: write it first")
        if name != ALL and (not outer or outer[-1] != name):
            if name in outer:
                raise statement.error(
                    level.name, f"'{name}' is an outer level already: keep its equations together"
                )
            outer = (*outer, name)
        factor = _random_factor(session, statement, level)
        own = [] if factor else terms(statement, level.arguments, session.variables(statement))
        constant = not any(option.name == "noconstant" for option in level.options)
        structure = _structure(statement, level, factor is not None)
        found.append(Request(level, name, outer, own, factor, constant, structure))
    return found


def _level_name(session: Session, statement: Statement, level: Level) -> str:
    if len(level.name) != 1 or level.name[0].kind != "name":
        raise statement.error(level.name, "one variable, or _all, stands before the colon of a level")
    if level.name[0].value == ALL:
        return ALL
    return session.variables(statement).one(level.name[0])


def _random_factor(session: Session, statement: Statement, level: Level) -> str | None:
    """The variable of ``R.variable``, or None."""
    tokens = level.arguments
    if not tokens or tokens[0].value != "R" or len(tokens) < 2 or tokens[1].kind != ".":
        for at, token in enumerate(tokens[:-1]):
            if token.value == "R" and tokens[at + 1].kind == ".":
                raise statement.error(
                    tokens[at:], "R.variable stands alone in a level: give each its own '||'"
                )
        return None
    if len(tokens) != 3:
        raise statement.error(tokens, "R.variable stands alone in a level: give each its own '||'")
    return session.variables(statement).one(tokens[2])


def _structure(statement: Statement, level: Level, is_factor: bool) -> str:
    option = next((option for option in level.options if option.name == "covariance"), None)
    if option is None:
        return "identity" if is_factor else "independent"
    tokens = option.argument or ()
    known = ", ".join(STRUCTURES)
    if len(tokens) != 1 or tokens[0].kind != "name":
        raise statement.error(tokens or option.token, f"covariance() takes one of {known}")
    full = abbreviated(tokens[0].value, STRUCTURES)
    if full is None:
        hint = suggestion(tokens[0].value, STRUCTURES) or "."
        raise statement.error(
            tokens, f"'{tokens[0].value}' is no covariance structure{hint} There are {known}"
        )
    if is_factor and full not in ("identity", "independent"):
        raise statement.error(tokens, "the levels of R.variable have one variance: covariance(identity)")
    return "identity" if is_factor else full


def random_levels(
    session: Session, statement: Statement, requests: Sequence[Request], frame: pd.DataFrame
) -> list[RandomLevel]:
    """The levels with the columns of their effects.

    Parameters
    ----------
    session, statement
    requests : sequence of Request
    frame : DataFrame
        Rows of the estimation sample.

    Returns
    -------
    list of RandomLevel
    """
    found: list[RandomLevel] = []
    number = 0
    for request in requests:
        effects = [] if request.factor else request.effects
        labels = session.state.labels
        constant = request.constant and request.factor is None
        own = design_of(statement, effects, frame, labels, constant)
        grouping = (*request.grouping, request.factor) if request.factor else request.grouping
        size = 1 if request.factor else len(own.names)
        title = "Identity" if size == 1 else request.structure.capitalize()
        found.append(RandomLevel(request, grouping, own, title, number if size else None))
        number += size > 0
    return found


def formula_term(level: RandomLevel) -> str:
    """The level in lme4's notation.

    Examples
    --------
    >>> from jaxmixed.stata_syntax import parse
    >>> bar = parse("mixed y || a: || b:")[0].levels[1]
    >>> request = Request(bar, "b", ("a", "b"), [], None, True, "independent")
    >>> formula_term(RandomLevel(request, ("a", "b"), Design((), True), "Identity", 0))
    '(1 | a:b)'
    """
    groups = ":".join(Column(name).label for name in level.grouping or (ALL,))
    if level.request.factor:
        return f"(1 | {groups})"
    effects = ["1" if level.design.constant else "0"]
    effects += [Column(name).label for name in level.design.names if name != CONSTANT]
    return f"({' + '.join(effects)} | {groups})"


@dataclass(frozen=True)
class ResidualRequest:
    """``residuals()`` as it is asked for: the full name of the structure, its number, columns."""

    option: Option
    name: str
    order: int | None
    time: str | None
    by: str | None

    @property
    def title(self) -> str:
        """As the table names it."""
        if self.name in ("ar", "ma"):
            return f"{self.name.upper()}({self.order or 1})"
        if self.name in _WITH_ORDER and self.order is not None:
            return f"{self.name.capitalize()}({self.order})"
        return self.name.capitalize()


def read_residuals(session: Session, statement: Statement) -> ResidualRequest | None:
    """What the option residuals() of a statement asks for, or None.

    Raises
    ------
    StataError
        For an unknown structure, a missing t(), or without a level.
    """
    option = statement.option("residuals")
    if option is None:
        return None
    tokens, further = nested(statement.script, option.argument or ())
    known = ", ".join(f"{name} #" if name in _WITH_ORDER else name for name in RESIDUALS)
    full = abbreviated(tokens[0].value, RESIDUALS) if tokens and tokens[0].kind == "name" else None
    if full is None:
        raise statement.error(tokens or option.token, f"residuals() takes one of {known}")
    order = _order(statement, full, tokens)
    columns: dict[str, str] = {}
    for own in further:
        if own.name not in ("t", "by") or not own.argument:
            raise statement.error(own.token, "the options of residuals() are t(variable) and by(variable)")
        names = session.varlist(statement, own.argument)
        if len(names) != 1 or own.name in columns:
            raise statement.error(own.argument, f"{own.name}() takes one variable")
        columns[own.name] = names[0]
    if full not in _WITHOUT_TIME and "t" not in columns:
        raise statement.error(option.token, f"residuals({full}) needs t(variable), the time of each row")
    if not statement.levels:
        raise statement.error(option.token, "residuals() needs a level, whose groups correlated rows make")
    return ResidualRequest(option, full, order, columns.get("t"), columns.get("by"))


def _order(statement: Statement, name: str, tokens: Tokens) -> int | None:
    if len(tokens) == 1:
        return None
    value = number_of(statement.script, tokens[0], tokens[1:])
    if name not in _WITH_ORDER or not value.is_integer() or value < 1:
        raise statement.error(tokens[1:], f"residuals({name}) does not take this number")
    return int(value)


def residual_structure(
    statement: Statement, request: ResidualRequest | None, levels: Sequence[RandomLevel]
) -> ResidualStructure | None:
    """The structure for :func:`jaxmixed.mixed`; correlated rows are those of the innermost groups."""
    if request is None:
        return None
    group = levels[-1].request.grouping
    if request.name == "independent":
        return residuals.Independent(variance_by=request.by) if request.by else None
    if not group:
        raise statement.error(
            request.option.token, "residuals within _all would correlate all rows: name a level variable"
        )
    columns: dict[str, Any] = {"group": group[0] if len(group) == 1 else group, "by": request.by}
    order = request.order or 1
    if request.name == "exchangeable":
        return residuals.Exchangeable(**columns)
    timed = {**columns, "time": request.time}
    if request.name == "ar":
        return residuals.AR(order, **timed)
    if request.name == "ma":
        return residuals.MA(order, **timed)
    if request.name == "toeplitz":
        return residuals.Toeplitz(request.order, **timed)
    if request.name == "exponential":
        return residuals.Exponential(**timed)
    if request.name == "banded" and request.order is not None:
        return residuals.Banded(request.order, **timed)
    return residuals.Unstructured(**timed)
