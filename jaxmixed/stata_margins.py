"""Stata's `margins` of the linear prediction's fixed part, and `marginsplot`.

References
----------
StataCorp, Stata Base Reference Manual, margins, marginsplot.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from jaxmixed.fixed_inference import FixedInference
from jaxmixed.plot_style import PALETTE, WIDE, dress, label_axes, legend_beside, new_axes, short
from jaxmixed.stata_design import CONSTANT, Design
from jaxmixed.stata_factors import terms
from jaxmixed.stata_formats import count, general
from jaxmixed.stata_graphs import LOOKS, title_of
from jaxmixed.stata_model import read_level
from jaxmixed.stata_predict import require_data
from jaxmixed.stata_session import CommandSpec, Estimation, Session
from jaxmixed.stata_syntax import Statement, Tokens, closing, number_of
from jaxmixed.stata_tables import Line, Row, Title, coefficient_table, ends
from jaxmixed.stata_tests import result_row

MOST_MARGINS = 1_000
_AT = "_at"


@dataclass(frozen=True)
class Margin:
    """One margin: what it is at, by variable (and `_at` by its number), what it is of, and its row."""

    at: dict[str, float]
    of: str
    row: Row


def margins(session: Session, statement: Statement) -> None:
    """Predictive margins and average marginal effects of the fixed part."""
    estimates = session.need_estimates(statement, "mixed", "regress")
    if estimates.more["design"] is None or estimates.statement.weight is not None:
        raise statement.error(None, "margins is supported after fits without weights")
    require_data(session, statement, estimates)
    level = read_level(statement)
    frame = session.frame.loc[estimates.sample]
    factors = _factors(session, statement, estimates)
    points = _points(session, statement, estimates)
    effects = _effects(session, statement, estimates)
    if factors and effects:
        raise statement.error(statement.arguments, "margins with dydx() takes at(), but no list of factors")
    levels: list[tuple[float, ...]] = [estimates.more["design"].levels[name] for name in factors]
    cells = list(itertools.product(*levels))
    if len(points) * len(cells) * max(1, len(effects)) > MOST_MARGINS:
        raise statement.error(None, f"this makes more than {MOST_MARGINS:,} margins")
    if statement.has("atmeans"):
        frame = _at_means(statement, estimates, frame)
    found: list[Margin] = []
    for cell in cells:
        for number, point in enumerate(points, 1):
            here = {**point, **dict(zip(factors, cell, strict=True))}
            data = frame.assign(**here)
            index = {**dict(zip(factors, cell, strict=True)), _AT: float(number)}
            for label, base, weights in _functions(estimates.more["design"], data, effects):
                row = _row(estimates, weights, label, level)
                found.append(Margin({**index, **({} if base is None else base)}, label, row))
    if len(points) > 1:
        found.sort(key=lambda margin: margin.at[_AT])
    estimates.more["margins"] = (found, factors, points, effects, level)
    session.write("\n".join(_text(statement, estimates, found, factors, points, effects, level, len(frame))))
    session.r = {"N": float(estimates.sample.sum()), "level": level}


def _factors(session: Session, statement: Statement, estimates: Estimation) -> list[str]:
    """Factor variables whose margins are asked for, as in ``margins race#sex``."""
    if not statement.arguments:
        return []
    found = terms(statement, statement.arguments, session.variables(statement))
    if len(found) != 1:
        raise statement.error(
            statement.arguments, "margins takes one list of factors at a time, as in margins race or race#sex"
        )
    known = estimates.more["design"].levels
    names = [factor.name for factor in found[0].factors]
    for name in names:
        if name not in known:
            raise statement.error(
                statement.arguments,
                f"'{name}' is no factor variable of the model; these are {_listed(known)}",
            )
    return names


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _points(session: Session, statement: Statement, estimates: Estimation) -> list[dict[str, float]]:
    """Values by variable of ``at(x = (0 1 2) z = 1)``: all combinations, the last variable fastest."""
    option = statement.option("at")
    if option is None:
        return [{}]
    tokens = option.argument or ()
    values: dict[str, list[float]] = {}
    start = 0
    while start < len(tokens):
        if start + 2 >= len(tokens) or tokens[start].kind != "name" or tokens[start + 1].kind != "=":
            raise statement.error(
                tokens[start:], "at() takes values of variables, as in at(x = (0 1 2) z = 1)"
            )
        name = session.variables(statement).one(tokens[start])
        if name not in estimates.more["design"].variables:
            raise statement.error(tokens[start], f"'{name}' is not in the fixed part of the model")
        first = start + 2
        if tokens[first].kind == "(":
            end = first + closing(tokens[first:], 0)
            values[name] = numbers(statement, tokens[first + 1 : end])
            start = end + 1
        else:
            size = 2 if tokens[first].kind == "-" else 1
            values[name] = [number_of(statement.script, option.token, tokens[first : first + size])]
            start = first + size
        known = estimates.more["design"].levels.get(name)
        if known is not None and not set(values[name]) <= set(known):
            raise statement.error(
                tokens[first:start], f"the levels of '{name}' are {_listed(map(general, known))}"
            )
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def numbers(statement: Statement, tokens: Tokens) -> list[float]:
    """The numbers of ``0 1 2``, ``0/5`` and ``0(2)10``."""
    found: list[float] = []
    at = 0

    def one() -> float:
        nonlocal at
        size = 2 if at < len(tokens) and tokens[at].kind == "-" else 1
        value = number_of(statement.script, statement.name_token, tokens[at : at + size])
        at += size
        return value

    while at < len(tokens):
        first = one()
        kind = tokens[at].kind if at < len(tokens) else ""
        if kind not in ("/", "("):
            found.append(first)
            continue
        at += 1
        step = 1.0
        if kind == "(":
            step = one()
            if at >= len(tokens) or tokens[at].kind != ")":
                raise statement.error(tokens, "a range of numbers is written 0/5 or 0(2)10")
            at += 1
        last = one()
        size = (last - first) / step if step else -1.0
        if not 0 <= size < MOST_MARGINS:
            raise statement.error(
                tokens, f"a range has up to {MOST_MARGINS:,} numbers from the first to the last"
            )
        found += [first + step * k for k in range(int(size + 1e-9) + 1)]
    if not found:
        raise statement.error(tokens or None, "numbers are needed in the parentheses, as in at(x = (0 1 2))")
    return found


def _effects(session: Session, statement: Statement, estimates: Estimation) -> list[str]:
    """Variables of dydx()."""
    option = statement.option("dydx")
    if option is None:
        return []
    known = estimates.more["design"].variables
    tokens = option.argument or ()
    names = (
        list(known) if [t.value for t in tokens] in (["*"], ["_all"]) else session.varlist(statement, tokens)
    )
    for name in names:
        if name not in known:
            raise statement.error(tokens, f"'{name}' is not in the fixed part of the model: {_listed(known)}")
    return names


def _at_means(statement: Statement, estimates: Estimation, frame: pd.DataFrame) -> pd.DataFrame:
    """One row at the means of the variables that are not factors."""
    design: Design = estimates.more["design"]
    if design.levels:
        token = statement.option("atmeans").token  # type: ignore[union-attr]
        raise statement.error(
            token, "atmeans is supported for models without factor variables: name values in at()"
        )
    own = frame[list(design.variables)].mean()
    return pd.DataFrame([own])


def _functions(
    design: Design, data: pd.DataFrame, effects: list[str]
) -> list[tuple[str, dict[str, float] | None, np.ndarray]]:
    """Label, place and weights (p,) in the order of the design of each margin at some data."""
    if not effects:
        return [(CONSTANT, None, design.matrix(data).mean(axis=0))]
    found: list[tuple[str, dict[str, float] | None, np.ndarray]] = []
    for name in effects:
        if name not in design.levels:
            found.append((name, None, _slopes(design, data, name)))
            continue
        base = design.bases[name]
        at_base = design.matrix(data.assign(**{name: base})).mean(axis=0)
        for level in design.levels[name]:
            if level != base:
                change = design.matrix(data.assign(**{name: level})).mean(axis=0) - at_base
                found.append((f"{level:.10g}.{name}", {name: level}, change))
    return found


def _slopes(design: Design, data: pd.DataFrame, name: str) -> np.ndarray:
    """Mean derivatives of the columns in a variable: each is a product."""
    slopes = []
    for column in design.columns:
        total = np.zeros(len(data))
        for at, piece in enumerate(column.pieces):
            if piece.name == name and piece.level is None:
                rest = [own.values(data) for place, own in enumerate(column.pieces) if place != at]
                total += np.prod(rest, axis=0) if rest else 1.0
        slopes.append(total.mean())
    return np.array([*slopes, *([0.0] if design.constant else [])])


def _row(estimates: Estimation, weights: np.ndarray, label: str, level: float) -> Row:
    """The line of a margin; "(not estimable)" where dropped columns matter."""
    names = list(estimates.more["names"])
    inference: FixedInference = estimates.more["inference"]
    L = np.zeros((1, len(names)))
    for name, weight in zip(estimates.more["design"].names, weights, strict=True):
        L[0, names.index(name)] = weight
    if not inference.estimable(L)[0]:
        return Row(label, note="(not estimable)")
    df = float(inference.df(L)[0]) if estimates.command == "regress" else np.inf
    error = float(np.sqrt(inference.covariance(L)[0, 0]))
    return result_row(label, float(inference.estimate(L)[0]), error, df, level)


# Printing. -------------------------------------------------------------------------------------------


def _text(
    statement: Statement,
    estimates: Estimation,
    found: list[Margin],
    factors: list[str],
    points: list[dict[str, float]],
    effects: list[str],
    level: float,
    averaged: int,
) -> list[str]:
    design: Design = estimates.more["design"]
    held = {*factors, *(name for point in points for name in point)}
    is_fixed = averaged == 1 or set(design.variables) <= held
    if effects:
        title = "Conditional marginal effects" if is_fixed else "Average marginal effects"
    else:
        title = "Adjusted predictions" if is_fixed else "Predictive margins"
    fixed = ", fixed portion" if estimates.command == "mixed" else ""
    lines = ["", ends(title, f"Number of obs = {count(estimates.sample.sum())}"), ""]
    lines.append(f"Expression: Linear prediction{fixed}, predict()")
    if effects:
        lines.append("dy/dx wrt:  " + " ".join(effects))
    for number, point in enumerate(points, 1):
        head = "At:" if len(points) == 1 else f"{number}._at:"
        longest = max(map(len, point), default=0)
        for name, value in point.items():
            width = max(len(general(own[name])) for own in points)
            lines.append(f"{head} {name:<{longest}} = {general(value):>{width}}")
            head = " " * len(head)
    statistic = "t" if estimates.command == "regress" else "z"
    table = coefficient_table("", _lines(estimates, found, factors, points), statistic=statistic, level=level)
    bar = table[1].index("|")
    kind = "dy/dx" if effects else "Margin"
    heading = table[1].replace(" Coefficient  Std. err.", f"{kind:>11}   std. err.")
    lines += ["", table[0], f"{'':{bar}}|{'Delta-method':>24}", heading, *table[2:]]
    if effects and any(name in design.levels for name in effects):
        lines.append("Note: dy/dx for factor levels is the discrete change from the base level.")
    return lines


def _lines(
    estimates: Estimation, found: list[Margin], factors: list[str], points: list[dict[str, float]]
) -> list[Line]:
    """Rows under the titles of what they are at."""
    several = len(points) > 1
    parts = [*([_AT] if several else []), *factors]
    if parts:
        lines: list[Line] = [Title("#".join(parts))]
        for margin in found:
            label = _label(estimates, margin, parts)
            if margin.of != CONSTANT:
                label = f"{label} {margin.of}"
            lines.append(replace(margin.row, label=label, is_level=True))
        return lines
    lines, title = [], None
    for margin in found:
        name = margin.of.partition(".")[2]
        if not name:
            lines.append(margin.row)
            title = None
            continue
        if name != title:
            lines += [*([Title()] if lines else []), Title(name)]
            title = name
        lines.append(replace(margin.row, label=_label(estimates, margin, [name]), is_level=True))
    return lines


def _label(estimates: Estimation, margin: Margin, parts: list[str]) -> str:
    labels = estimates.more["design"].labels
    texts = [labels.get(name, {}).get(margin.at[name], general(margin.at[name])) for name in parts]
    return ("#" if any(name in labels for name in parts) else " ").join(texts)


# The figure. ------------------------------------------------------------------------------------------


def marginsplot(session: Session, statement: Statement) -> None:
    """Draw the margins that were estimated last, with their intervals."""
    estimates = session.need_estimates(statement)
    if "margins" not in estimates.more:
        raise statement.error(None, "marginsplot draws what margins estimated: run margins first")
    found, factors, points, effects, level = estimates.more["margins"]
    varying = [name for name in points[0] if len({point[name] for point in points}) > 1]
    if len(varying) + len(factors) > 2 or len(effects) > 1 or not (varying or factors):
        raise statement.error(
            None, "marginsplot draws margins over one or two variables: margins race, at(x = (0 1 2))"
        )
    names: list[str] = [*varying, *factors]
    x, lines = names[0], names[1:]
    series: dict[str, list[tuple[float, Row]]] = {}
    for margin in found:
        values = {**points[int(margin.at[_AT]) - 1], **margin.at}
        name = margin.of if "." in margin.of else ""
        if lines:
            labels = estimates.more["design"].labels.get(lines[0], {})
            name = f"{lines[0]}={labels.get(values[lines[0]], general(values[lines[0]]))}"
        if not margin.row.note:
            series.setdefault(name, []).append((values[x], margin.row))
    ax = new_axes(WIDE)
    for colour, (name, own) in zip(itertools.cycle(PALETTE), series.items(), strict=False):
        place = np.array([value for value, _ in own])
        middle = np.array([row.estimate for _, row in own])
        bars = np.array([(row.estimate - row.low, row.high - row.estimate) for _, row in own]).T
        ax.errorbar(
            place, middle, yerr=bars, fmt="-o", markersize=4, capsize=2, color=colour, label=short(name)
        )
    known = estimates.more["design"].labels.get(x)
    if x in estimates.more["design"].levels:
        levels = estimates.more["design"].levels[x]
        ax.set_xticks(
            levels, [(known or {}).get(value, general(value)) for value in levels], parse_math=False
        )
    text = f"Effects of {effects[0]}" if effects else "Linear prediction, fixed portion"
    label_axes(ax, title_of(statement, "xtitle", x), title_of(statement, "ytitle", text))
    default = f"{'Marginal effects' if effects else 'Predictive margins'} with {level:g}% CIs"
    ax.set_title(title_of(statement, "title", default), parse_math=False)
    dress(ax)
    if len(series) > 1:
        legend_beside(ax)
    session.write(f"\nVariables that uniquely identify margins: {' '.join([x, *lines])}")
    session.state.figures.append(ax.figure)


COMMANDS = {
    "margins": CommandSpec(
        "margins",
        margins,
        options={
            "at": ("at", True),
            "atmeans": ("atmeans", False),
            "dydx": ("dydx", True),
            "level": ("l", True),
        },
    ),
    "marginsplot": CommandSpec(
        "marginsplot",
        marginsplot,
        options={name: how for name, how in LOOKS.items() if name.endswith("title")},
    ),
}
