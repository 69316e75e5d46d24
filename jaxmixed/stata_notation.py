"""`from_stata`: a `mixed` command as a formula and the keyword arguments of :func:`jaxmixed.mixed`.

No data are looked at: names stand in full, and what depends on values (rows chosen by ``if``, single levels
of a factor) is refused. `MixedResults.to_stata` is the way back.

References
----------
StataCorp, Stata Multilevel Mixed-Effects Reference Manual, mixed; User's Guide, section 11.4.3 (Factor
variables).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from jaxmixed.errors import FormulaError, StataError
from jaxmixed.formula import parse as parse_formula
from jaxmixed.stata_design import Design
from jaxmixed.stata_factors import Factor, Term, terms
from jaxmixed.stata_levels import (
    ALL,
    RandomLevel,
    Request,
    read_levels,
    read_residuals,
    residual_structure,
)
from jaxmixed.stata_mixed import COMMANDS
from jaxmixed.stata_model import ROWS_WEIGHT, read_options, weight_arguments, weight_column, weight_options
from jaxmixed.stata_session import Session
from jaxmixed.stata_syntax import Statement, Tokens, parse
from jaxmixed.terms import Binary, Column, Number

_ELSEWHERE = {
    "dfmethod": "give it to the results, as in fit.summary(ddf='kenward-roger')",
    "level": "give it to the results, as in fit.summary(level=0.9)",
    "vce": "ask the results for it, as in fit.summary(vcov=fit.robust())",
    "robust": "ask the results for it, as in fit.summary(vcov=fit.robust())",
    "cluster": "ask the results for it, as in fit.summary(vcov=fit.robust())",
}
"""Options that are no part of the model, and where they belong."""

_WRAPPERS = {"identity": "homdiag", "exchangeable": "cs"}


def from_stata(command: str) -> tuple[str, dict[str, Any]]:
    """Translate a `mixed` command of Stata.

    Parameters
    ----------
    command : str
        One command, as in ``"mixed score ses || school: ses, covariance(unstructured)"``. Factor variables
        (``i.arm##c.week``, ``ib2.arm``) become ``factor(arm)`` and ``C(arm, ref=2)``, products ``c.x#c.x``
        ``I(x^2)``, ``R.item`` a grouping. Options that concern the printed table alone are left out.

    Returns
    -------
    formula : str
        In lme4's notation.
    arguments : dict
        Keyword arguments of :func:`jaxmixed.mixed`: ``method``, and where the command has them ``residuals``,
        ``sampling_weights``, ``weight_scaling``, ``frequency_weights``.

    Raises
    ------
    StataError
        At a piece that cannot be read, that has no counterpart in :func:`jaxmixed.mixed`, or whose meaning
        depends on the data; :func:`jaxmixed.stata` runs such commands.

    See Also
    --------
    stata : runs commands on data.
    MixedResults.to_stata : translates a fitted model.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> formula, arguments = jm.from_stata("mixed wm || id:, reml")
    >>> formula, arguments
    ('wm ~ 1 + (1 | id)', {'method': 'reml'})
    >>> fit = jm.mixed(formula, jm.datasets.load("mini_wright"), **arguments)
    >>> round(float(fit.llf), 5)
    -180.37921
    >>> print(jm.from_stata("mixed y x || school: x, cov(un) || class:")[0])
    y ~ 1 + x + (1 + x | school) + (1 | school:class)
    """
    if not isinstance(command, str):
        raise StataError(f"the command is {type(command).__name__}, not text")
    lines = parse(command)
    if len(lines) != 1:
        raise StataError(f"one mixed command is needed here, not {len(lines)} commands")
    names = dict.fromkeys(token.value for token in lines[0].tokens if token.kind == "name")
    session = Session(COMMANDS, pd.DataFrame(columns=list(names), dtype=float))
    statement, _ = session.prepared(lines[0])
    _refuse(statement)
    options = read_options(statement)
    if not statement.arguments:
        raise statement.error(None, "mixed needs a response, as in: mixed score ses || school:")
    variables = session.variables(statement)
    response = variables.one(statement.arguments[0])
    effects = terms(statement, statement.arguments[1:], variables)
    requests = read_levels(session, statement)
    fixed = _effects(statement, effects, not statement.has("noconstant"))
    pieces = [fixed, *(text for request in requests if (text := _random_term(statement, request)))]
    levels = [RandomLevel(own, own.grouping, Design((), True), "", None) for own in requests]
    residuals = residual_structure(statement, read_residuals(session, statement), levels)
    arguments: dict[str, Any] = {"method": options.method}
    if residuals is not None:
        arguments["residuals"] = residuals
    formula = f"{_label(response)} ~ {' + '.join(pieces)}"
    try:
        parse_formula(formula)
    except FormulaError as problem:
        reason = str(problem).splitlines()[0]
        raise statement.error(None, f"as a formula this is {formula!r}, and {reason}") from None
    return formula, {**arguments, **_weights(statement, requests)}


def _label(name: str) -> str:
    return Column(name).label


def _refuse(statement: Statement) -> None:
    """Raise a `StataError` at what is no part of the model, or needs data."""
    rows = statement.condition or statement.in_range
    if rows:
        raise statement.error(
            rows, "rows are chosen before the fit: leave if and in out, and drop them there"
        )
    for option in statement.options:
        if option.name in _ELSEWHERE:
            raise statement.error(
                option.token, f"{option.name} is no part of the model: {_ELSEWHERE[option.name]}"
            )
    for tokens in (statement.arguments, *(level.arguments for level in statement.levels)):
        for token in tokens:
            if token.kind in ("*", "?", "-") or (token.value == ALL and token.kind == "name"):
                raise statement.error(
                    token, "patterns and ranges of names need the data: write the names in full"
                )


def _random_term(statement: Statement, request: Request) -> str:
    """A level in lme4's notation; nothing for a level without effects."""
    groups = (*request.grouping, request.factor) if request.factor else request.grouping
    if not groups:
        raise statement.error(
            request.level.name, "effects of _all need a column that is the same in all rows, as their group"
        )
    where = ":".join(_label(name) for name in groups)
    if request.factor:
        return f"(1 | {where})"
    if not request.effects and not request.constant:
        return ""
    effects = _effects(statement, request.effects, request.constant)
    factors = [factor for term in request.effects for factor in term.factors]
    several = len(request.effects) + request.constant > 1 or any(own.categorical for own in factors)
    structure = request.structure if several else "unstructured"
    bar = "||" if structure == "independent" else "|"
    return f"{_WRAPPERS.get(structure, '')}({effects} {bar} {where})"


# Effects. -------------------------------------------------------------------------------------------


def _effects(statement: Statement, effects: Sequence[Term], constant: bool) -> str:
    """A list of effects in lme4's notation, with the same columns in both.

    Raises
    ------
    StataError
        For what chooses levels by the data, and for factors that R would code in another way.
    """
    bases: dict[str, float | str | None] = {}
    for term in effects:
        for factor in term.factors:
            if factor.categorical and bases.get(factor.name) is None:
                bases[factor.name] = _base(statement, term, factor)
    present = {_signature(term.factors) for term in effects} | ({()} if constant else set())
    first = True
    for term in effects:
        _check_coding(statement, term, present, bases, constant or not first)
        first = first and not (len(term.factors) == 1 and term.factors[0].categorical)
    return " + ".join(["1" if constant else "0", *(_term(term, bases) for term in effects)])


def _base(statement: Statement, term: Term, factor: Factor) -> float | str | None:
    if factor.levels:
        raise statement.error(
            term.tokens, f"single levels of '{factor.name}' need the data: generate their indicators"
        )
    if factor.base in ("last", "freq"):
        raise statement.error(
            term.tokens, f"the {factor.base} base depends on the data: write its value, as in ib2."
        )
    return None if factor.base == "first" else factor.base


def _signature(factors: Sequence[Factor]) -> tuple[tuple[str, bool], ...]:
    return tuple(sorted((factor.name, factor.categorical) for factor in factors))


def _check_coding(
    statement: Statement,
    term: Term,
    present: set[tuple[tuple[str, bool], ...]],
    bases: dict[str, float | str | None],
    constant: bool,
) -> None:
    """Refuse a term that Stata and R would code differently.

    R codes a factor by its contrasts where the term without it is in the model, else by all its levels;
    without a constant, the first factor has all its levels. Stata leaves out the base of ``i.a`` always.
    """
    factors = [factor for factor in term.factors if factor.categorical]
    margins = [
        _signature([other for other in term.factors if other is not factor]) in present for factor in factors
    ]
    if len(factors) == len(term.factors) == 1:
        has_all = bases[factors[0].name] == "none"
        if constant and has_all:
            raise statement.error(
                term.tokens, "all levels beside a constant, or another factor, are one too many: write i."
            )
        if not constant and not has_all:
            raise statement.error(
                term.tokens, f"without a constant, say that all levels are meant: ibn.{factors[0].name}"
            )
        return
    if len(factors) > 1 and not all(margins):
        raise statement.error(
            term.tokens, "an interaction of factors needs its main effects beside it: join them by ##"
        )
    if any(own and bases[factor.name] == "none" for own, factor in zip(margins, factors, strict=True)):
        raise statement.error(term.tokens, "all levels in this interaction are too many: write i. for ibn.")


def _term(term: Term, bases: dict[str, float | str | None]) -> str:
    powers = Counter(factor.name for factor in term.factors if not factor.categorical)
    pieces: dict[str, None] = {}
    for factor in term.factors:
        label = _label(factor.name)
        if factor.categorical:
            base = bases[factor.name]
            piece = f"C({label}, ref={base:.10g})" if isinstance(base, float) else f"factor({label})"
        else:
            power = powers[factor.name]
            piece = (
                label if power == 1 else f"I({Binary('^', Column(factor.name), Number(float(power))).label})"
            )
        pieces[piece] = None
    return ":".join(pieces)


# Weights. -------------------------------------------------------------------------------------------


def _weights(statement: Statement, requests: Sequence[Request]) -> dict[str, Any]:
    """Arguments about weights; each weight is one variable."""
    columns: dict[str, str] = {}
    if statement.weight is not None:
        columns[ROWS_WEIGHT] = _one_variable(statement, statement.weight.expression)
    for request in requests:
        for option in weight_options(request):
            if statement.weight is not None and option.name != statement.weight.kind:
                raise statement.error(option.token, "all weights are of one kind: pweight or fweight")
            columns[weight_column(request)] = _one_variable(statement, option.argument or ())
    found = weight_arguments(statement, requests, columns)
    for name in ("sampling_weights", "frequency_weights"):
        if name in found:
            found[name] = {level: columns[column] for level, column in found[name].items()}
    if columns and statement.has("reml"):
        raise statement.error(None, "weights need maximum likelihood: leave reml out")
    return found


def _one_variable(statement: Statement, tokens: Tokens) -> str:
    if len(tokens) != 1 or tokens[0].kind != "name":
        raise statement.error(
            tokens or None, "a weight is one variable here: generate it from the expression"
        )
    return tokens[0].value
