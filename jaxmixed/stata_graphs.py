"""Stata's `serrbar` and `marginsplot`: figures of estimates with intervals, by matplotlib.

References
----------
StataCorp, Stata Base Reference Manual, serrbar, marginsplot.
"""

from __future__ import annotations

import numpy as np

from jaxmixed.plot_style import CURVE, DASHES, LINE, QUIET, WIDE, dress, label_axes, new_axes
from jaxmixed.stata_session import CommandSpec, Session
from jaxmixed.stata_syntax import Statement, number_of

_MOST_BARS = 100_000


def title_of(statement: Statement, name: str, default: str) -> str:
    """The text of an option such as ytitle("..."), or the default."""
    option = statement.option(name)
    if option is None:
        return default
    tokens = option.argument or ()
    if len(tokens) != 1:
        raise statement.error(tokens or option.token, f'{name}() takes one text, as in {name}("rank")')
    return tokens[0].value


def lines_at(statement: Statement, name: str) -> list[float]:
    """The numbers of yline() or xline()."""
    option = statement.option(name)
    if option is None:
        return []
    found, start = [], 0
    tokens = option.argument or ()
    while start < len(tokens):
        size = 2 if tokens[start].kind in "+-" else 1
        found.append(number_of(statement.script, option.token, tokens[start : start + size]))
        start += size
    return found


def serrbar(session: Session, statement: Statement) -> None:
    """Estimates with bars of so many standard errors: ``serrbar estimate error position, scale(1.96)``."""
    names = session.varlist(statement, statement.arguments, numeric=True)
    if len(names) != 3:
        raise statement.error(
            statement.arguments or None,
            "serrbar takes three variables: estimates, standard errors, and their places on the axis",
        )
    scale = statement.number("scale", 1)
    kept = session.sample(statement)
    estimate, error, place = (session.frame[name].to_numpy(dtype=np.float64)[kept] for name in names)
    complete = ~(np.isnan(estimate) | np.isnan(error) | np.isnan(place))
    if not complete.any():
        raise statement.error(statement.arguments, "no row has all three values")
    if complete.sum() > _MOST_BARS:
        raise statement.error(
            statement.arguments, f"at most {_MOST_BARS:,} bars are drawn: choose rows by if"
        )
    estimate, error, place = estimate[complete], error[complete], place[complete]
    ax = new_axes(WIDE)
    for value in lines_at(statement, "yline"):
        ax.axhline(value, color=LINE, linewidth=0.8, linestyle=DASHES)
    for value in lines_at(statement, "xline"):
        ax.axvline(value, color=LINE, linewidth=0.8, linestyle=DASHES)
    ax.errorbar(place, estimate, yerr=scale * np.abs(error), fmt="o", markersize=3, color=CURVE,
                ecolor=QUIET.line, elinewidth=1, capsize=1.5)  # fmt: skip
    label_axes(ax, title_of(statement, "xtitle", names[2]), title_of(statement, "ytitle", names[0]))
    if statement.has("title"):
        ax.set_title(title_of(statement, "title", ""), parse_math=False)
    dress(ax, "y")
    session.state.figures.append(ax.figure)


LOOKS = {
    "yline": ("yli", True),
    "xline": ("xli", True),
    "ytitle": ("yti", True),
    "xtitle": ("xti", True),
    "title": ("ti", True),
}
"""Supported options of both figures."""

COMMANDS = {
    "serrbar": CommandSpec("serrbar", serrbar, options={"scale": ("sc", True), **LOOKS}, condition=True),
}
