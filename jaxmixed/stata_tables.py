"""Stata's layouts: header, tables of coefficients and of random effects, 80 columns wide.

Only text is made here; numbers come in as they are and leave in Stata's formats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxmixed.stata_design import CONSTANT, Design
from jaxmixed.stata_formats import abbreviated_name, count, fixed, general

WIDTH = 78
"""Width of headers and of tables whose names are not long."""

NAME = 12
"""Characters of a name in a table of coefficients; up to `WIDEST` where there are factor variables."""

WIDEST = 14
PARAMETER = 28
"""Characters of a name in the table of random effects."""

_NUMBERS = 64


@dataclass(frozen=True, slots=True)
class Row:
    """A line of numbers of a table; ``note`` stands in their place, as in "(omitted)"."""

    label: str
    estimate: float = math.nan
    std_error: float = math.nan
    statistic: float = math.nan
    p_value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    note: str = ""
    is_level: bool = False


@dataclass(frozen=True, slots=True)
class Title:
    """A line that holds only the name of an effect, or nothing."""

    label: str = ""


Line = Row | Title


def header(left: Sequence[str], right: Sequence[tuple[str, str] | str]) -> list[str]:
    """The lines above a table: texts on the left, facts and their values aligned on the right.

    Parameters
    ----------
    left : sequence of str
    right : sequence of (label, value), or of str
        A label that starts with a blank stands at the right end of the column of labels.

    Returns
    -------
    list of str

    Examples
    --------
    >>> for line in header(["Linear model", "x"], [("Number of obs", "34"), (" min", "2.0")]):
    ...     print(line)
    Linear model                                               Number of obs =  34
    x                                                                    min = 2.0
    """
    pairs = [entry for entry in right if not isinstance(entry, str)]
    labels = max((len(label) for label, _ in pairs), default=0)
    values = max((len(value) for _, value in pairs), default=0)
    start = WIDTH - labels - values - 3
    lines = []
    for at in range(max(len(left), len(right))):
        text = left[at] if at < len(left) else ""
        entry = right[at] if at < len(right) else ""
        if isinstance(entry, str):
            lines.append(f"{text:<{start}}{entry}".rstrip())
            continue
        label, value = entry
        label = label.strip().rjust(labels) if label.startswith(" ") else _spread(label, labels)
        lines.append(f"{text:<{start - 1}} {label} = {value:>{values}}")
    return lines


def _spread(label: str, width: int) -> str:
    """A label with blanks at its end, or in the place of a tabulator."""
    first, tab, last = label.partition("\t")
    return first + last.rjust(width - len(first)) if tab else label.ljust(width)


def group_sizes(smallest: int, average: float, largest: int) -> list[tuple[str, str] | str]:
    """Lines of `header` about the sizes of groups."""
    return [
        "Obs per group:",
        (" min", count(smallest)),
        (" avg", f"{average:,.1f}"),
        (" max", count(largest)),
    ]


def grouping_table(groups: Iterable[tuple[str, int, int, float, int]]) -> list[str]:
    """The table of several groupings.

    Parameters
    ----------
    groups : iterable of (name, number of groups, smallest, average, largest)

    Examples
    --------
    >>> print(grouping_table([("region", 9, 51, 90.7, 136)])[-2])
                     region |          9         51       90.7        136
    """
    lines = [
        "-" * 61,
        f"{'':16}|     No. of       Observations per group",
        f"{' Group variable':16}|     groups    Minimum    Average    Maximum",
        "-" * 16 + "+" + "-" * 44,
    ]
    for name, number, smallest, average, largest in groups:
        sizes = f"{count(number):>11}{count(smallest):>11}{average:>11,.1f}{count(largest):>11}"
        lines.append(f"{abbreviated_name(name, 14):>15} |{sizes}")
    lines.append("-" * 61)
    return ["        Grouping information", *("        " + line for line in lines)]


def effect_lines(design: Design, rows: dict[str, Row], omitted: Iterable[str] = ()) -> list[Line]:
    """Lines of a table of coefficients, with the titles of factor variables and blank lines around them.

    Parameters
    ----------
    design : Design
    rows : dict of str to Row
        By name of the coefficient.
    omitted : iterable of str
        Coefficients that were left out as collinear.

    Returns
    -------
    list of Row and Title
    """
    left_out = set(omitted)
    lines: list[Line] = []
    after_block = False
    for term in design.terms:
        if not term.columns:
            continue
        is_product = len(term.factors) > 1
        if lines and (after_block or term.has_title or is_product):
            lines.append(Title())
        if term.has_title:
            lines.append(Title(term.title))
        for column in term.columns:
            label = column.label if term.has_title else column.name
            if column.is_empty or column.name in left_out:
                note = "(empty)" if column.is_empty else "(omitted)"
                lines.append(Row(label, note=note, is_level=term.has_title))
            else:
                own = rows[column.name]
                numbers = (own.estimate, own.std_error, own.statistic, own.p_value, own.low, own.high)
                lines.append(Row(label, *numbers, is_level=term.has_title))
        after_block = is_product or (term.has_title and len(term.columns) > 1)
    if CONSTANT in rows:
        if after_block:
            lines.append(Title())
        lines.append(rows[CONSTANT])
    return lines


def coefficient_table(
    response: str,
    lines: Sequence[Line],
    *,
    statistic: str = "z",
    level: float = 95,
    robust: bool = False,
    is_open: bool = False,
) -> list[str]:
    """A table of coefficients.

    Parameters
    ----------
    response : str
    lines : sequence of Row and Title
    statistic : {"z", "t"}
    level : float
        Of the intervals, in per cent.
    robust : bool
        Whether standard errors are robust.
    is_open : bool
        Leave the last rule for whoever adds further rows.

    Returns
    -------
    list of str

    Examples
    --------
    >>> table = coefficient_table("y", [Row("x", 0.25, 0.125, 2, 0.0456, 0.005, 0.495)])
    >>> print(table[3])
               x |        .25       .125     2.00   0.046         .005        .495
    """
    width = name_width(lines)
    bound = interval_title(level)
    error = "std. err." if robust else "Std. err."
    titles = f" Coefficient  {error}{statistic:>7}    P>|{statistic}|{bound:>25}"
    table = ["-" * (width + 2 + _NUMBERS)]
    if robust:
        table.append(f"{'':{width}} |               Robust")
    table += [
        f"{abbreviated_name(response, width):>{width}} |{titles}",
        rule(width),
    ]
    table += [text for line in lines for text in _line(line, width)]
    return table if is_open else [*table, "-" * (width + 2 + _NUMBERS)]


def name_width(lines: Sequence[Line]) -> int:
    """Characters that the names of a table of coefficients get."""
    if not any(isinstance(line, Title) or "." in line.label for line in lines):
        return NAME
    longest = max(
        len(text.removesuffix("#")) + (isinstance(line, Row) and line.is_level)
        for line in lines
        for text in _pieces(line.label)
    )
    return min(WIDEST, max(NAME, longest))


def _pieces(label: str) -> list[str]:
    """Pieces that a long name is broken into: after its #."""
    if len(label) <= WIDEST - 1 or "#" not in label:
        return [label]
    parts = label.split("#")
    return [*(f"{part}#" for part in parts[:-1]), parts[-1]]


def rule(width: int = NAME) -> str:
    """The rule below the titles of a table."""
    return "-" * (width + 1) + "+" + "-" * _NUMBERS


def _line(line: Line, width: int) -> list[str]:
    room = width - (isinstance(line, Row) and line.is_level)
    pieces = [line.label]
    if len(line.label) > room and "#" in line.label:
        pieces = _pieces(line.label) if len(line.label) > WIDEST - 1 else [line.label]
    gap = "  |" if isinstance(line, Row) and line.is_level else " |"
    if isinstance(line, Row) and line.is_level:
        pieces = [p if len(p) <= room else f"{p[: room - 2]}.." for p in pieces]
    else:
        pieces = [abbreviated_name(p, room + p.endswith("#")) for p in pieces]
    before = [f"{p:>{room + 1}}{gap[1:]}" for p in pieces[:-1]]  # the # stands one farther to the right
    last = f"{pieces[-1]:>{room}}{gap}"
    return [*before, last if isinstance(line, Title) else last + numbers(line)]


def numbers(row: Row) -> str:
    """The numbers of a row of a table of coefficients."""
    if row.note:
        return f"{'0':>11}  {row.note}"
    return (
        f"{general(row.estimate):>11}{general(row.std_error):>11}"
        f"{fixed(row.statistic, 2, 8):>9}{fixed(row.p_value, 3):>8}"
        f"{general(row.low):>13}{general(row.high):>12}"
    ).rstrip()


def interval_title(level: float) -> str:
    """``[95% conf. interval]``."""
    return f"[{level:g}% conf. interval]"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A line of the table of random effects."""

    label: str
    estimate: float
    std_error: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Section:
    """Parameters of a level, or of the residuals, under the lines of its title."""

    title: tuple[str, ...]
    parameters: tuple[Parameter, ...]


def random_effects_table(sections: Sequence[Section], level: float = 95, robust: bool = False) -> list[str]:
    """The table of random effects.

    Parameters
    ----------
    sections : sequence of Section
    level : float
        Of the intervals, in per cent.
    robust : bool

    Returns
    -------
    list of str

    Examples
    --------
    >>> parameter = Parameter("var(_cons)", 14.817509, 3.124226, 9.801716, 22.40002)
    >>> print(random_effects_table([Section(("id: Identity",), (parameter,))])[-2])
                      var(_cons) |   14.81751   3.124226      9.801716    22.40002
    """
    between = "-" * (PARAMETER + 1) + "+" + "-" * 48
    error = "std. err." if robust else "Std. err."
    table = ["-" * WIDTH]
    if robust:
        table.append(f"{'':{PARAMETER}} |               Robust")
    table.append(f"  Random-effects parameters  |   Estimate   {error}{interval_title(level):>25}")
    for section in sections:
        table.append(between)
        table += [f"{line:<{PARAMETER}} |" for line in section.title]
        for own in section.parameters:
            table.append(
                f"{own.label:>{PARAMETER}} |{general(own.estimate):>11}{general(own.std_error):>11}"
                f"{general(own.low):>14}{general(own.high):>12}"
            )
    return [*table, "-" * WIDTH]


def cluster_line(number: float | str, name: str) -> str:
    """The line above a table of robust standard errors.

    Examples
    --------
    >>> cluster_line(65, "school").strip()
    '(Std. err. adjusted for 65 clusters in school)'
    """
    return f"{f'(Std. err. adjusted for {count(number)} clusters in {name})':>{WIDTH}}"


def ends(left: str, right: str, width: int = WIDTH) -> str:
    """Two texts at the ends of a line."""
    return f"{left}{right:>{max(len(right) + 1, width - len(left))}}"


def note(text: str, indent: int = 6, width: int = WIDTH) -> list[str]:
    """A note, wrapped, its further lines indented.

    Examples
    --------
    >>> note("Note: short.")
    ['Note: short.']
    """
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = " " * indent + word
        else:
            line = f"{line} {word}" if line.strip() else line + word
    return [*lines, line]
