"""Commands that show the data: list, describe, summarize, tabulate, count, display.

References
----------
StataCorp, Stata Base Reference Manual, summarize, tabulate oneway, display; Data Management Reference Manual,
list, describe, count.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from jaxmixed.formatting import display_width
from jaxmixed.stata_data import missing_in, only_token
from jaxmixed.stata_egen import percentile
from jaxmixed.stata_expressions import value_of
from jaxmixed.stata_formats import abbreviated_name, count, fixed, general
from jaxmixed.stata_functions import is_text
from jaxmixed.stata_session import CommandSpec, Session
from jaxmixed.stata_syntax import Statement, Tokens, is_abbreviation
from jaxmixed.stata_tokens import Token
from jaxmixed.stata_trees import read_first

_FORMAT = re.compile(
    r"%(?P<left>-?)(?P<width>[0-9]+)(?:\.(?P<decimals>[0-9]+))?(?P<kind>[fges])(?P<comma>c?)"
)
_STYLES = ("text", "txt", "result", "res", "error", "err", "input", "inp")
_MOST_LEVELS = 3_000
_MOST_BLANKS = 500


def formatted(value: float | str, code: re.Match[str]) -> str:
    """A value in a format such as ``%9.2f``.

    Examples
    --------
    >>> formatted(3.14159, _FORMAT.match("%9.2f")), formatted(1234567.0, _FORMAT.match("%12.0fc"))
    ('     3.14', '   1,234,567')
    """
    width = min(int(code["width"]), 244)
    decimals = min(int(code["decimals"] or 0), 20)
    if isinstance(value, str):
        text = value
    elif not np.isfinite(value):
        text = "."
    elif code["kind"] == "g" and decimals == 0:
        text = general(value, max(width, 3))
    else:
        kind = code["kind"] if code["kind"] != "s" else "g"
        text = f"{value:{',' if code['comma'] else ''}.{decimals}{kind}}"
        if kind == "f" and text.lstrip("-").startswith("0.") and len(text) > width:
            text = text.replace("0.", ".", 1)
    return text.ljust(width) if code["left"] else text.rjust(width)


def _display(session: Session, statement: Statement) -> None:
    session.write(_displayed(session, statement, statement.arguments))


def _displayed(session: Session, statement: Statement, tokens: Tokens) -> str:
    pieces: list[str] = []
    code: re.Match[str] | None = None
    while tokens:
        token = tokens[0]
        special, tokens = _directive(statement, tokens, "".join(pieces))
        if special is not None:
            pieces.append(special)
            continue
        if token.kind == "%":
            code, tokens = _format(statement, tokens)
            continue
        if token.kind == "text" and (len(tokens) < 2 or tokens[1].kind not in _CONTINUES):
            value: float | str = token.value
            tokens = tokens[1:]
        else:
            value, tokens = _next_value(session, statement, tokens)
        if code is not None:
            pieces.append(formatted(value, code))
        else:
            pieces.append(value if isinstance(value, str) else general(value, 10))
        code = None
    return "".join(pieces)


_CONTINUES = ("+", "==", "!=", "~=", "<", ">", "<=", ">=", "*")


def _next_value(session: Session, statement: Statement, tokens: Tokens) -> tuple[float | str, Tokens]:
    rows = session.rows(statement)
    node, rest = read_first(statement, tokens)
    with np.errstate(all="ignore"):
        value = rows.spread(value_of(rows, node), at_least=1)[0]
    return (value if isinstance(value, str) else float(value)), rest


def _format(statement: Statement, tokens: Tokens) -> tuple[re.Match[str], Tokens]:
    code = _FORMAT.match(statement.script.text, tokens[0].start)
    if code is None:
        raise statement.error(tokens[0], "formats are written as %9.2f, %9.0g, %12.0fc, %10.3e or %20s")
    return code, tuple(token for token in tokens if token.start >= code.end())


def _directive(statement: Statement, tokens: Tokens, line: str) -> tuple[str | None, Tokens]:
    """What ``_newline``, ``_skip(3)``, ``as result``, ``,`` print; None if there is none of them."""
    token = tokens[0]
    if token.kind == ",":
        return " ", tokens[1:]
    if token.kind != "name":
        return None, tokens
    if token.value in ("as", "in") and tokens[1:]:
        if tokens[1].value not in (*_STYLES, "smcl"):
            raise statement.error(tokens[1], f"'{token.value}' is followed by text, result, error or input")
        return "", tokens[2:]
    number, rest = 1, tokens[1:]
    called = (
        len(tokens) > 3 and tokens[1].kind == "(" and tokens[3].kind == ")" and tokens[2].value.isdecimal()
    )
    if called:
        number, rest = min(int(tokens[2].value[:9]), _MOST_BLANKS), tokens[4:]
    if is_abbreviation(token.value, "_newline", "_new") or (token.value == "_n" and called):
        return "\n" * number, rest
    if is_abbreviation(token.value, "_skip", "_s") and called:
        return " " * number, rest
    if is_abbreviation(token.value, "_column", "_col") and called:
        width = display_width(line.rsplit("\n", 1)[-1])
        return " " * max(0, number - 1 - width), rest
    if is_abbreviation(token.value, "_continue", "_c"):
        raise statement.error(token, "_continue is not supported: write all in one display")
    return None, tokens


def _count(session: Session, statement: Statement) -> None:
    if statement.arguments:
        raise statement.error(statement.arguments, "count takes no variables: write 'count if condition'")
    number = int(session.sample(statement).sum())
    session.r = {"N": float(number)}
    session.write(f"  {count(number)}")


def _assert(session: Session, statement: Statement) -> None:
    values = session.values(statement, statement.arguments)
    if is_text(values):
        raise statement.error(statement.arguments, "a condition is a number")
    wrong = int(((values == 0) & session.sample(statement)).sum())
    if wrong:
        raise statement.error(statement.arguments, f"the assertion is false in {count(wrong)} observations")


# summarize -------------------------------------------------------------------------------------------


def _summarize(session: Session, statement: Statement) -> None:
    if statement.has("detail") and statement.has("meanonly"):
        raise statement.error(None, "detail and meanonly exclude each other")
    names = session.varlist(statement, statement.arguments) or list(session.frame.columns)
    kept = session.sample(statement)
    prefix = statement.prefix("by", "bysort")
    if prefix is None:
        _summarize_rows(session, statement, names, kept)
        return
    groups = list(session.rows(statement).groups)
    for key, rows in session.frame.groupby(groups, dropna=False).indices.items():
        inside = np.zeros(len(kept), dtype=bool)
        inside[rows] = True
        values = key if isinstance(key, tuple) else (key,)
        shown = ", ".join(
            f"{n} = {v if isinstance(v, str) else general(v)}" for n, v in zip(groups, values, strict=True)
        )
        session.write("\n" + "-" * 79 + f"\n-> {shown}")
        _summarize_rows(session, statement, names, kept & inside)


def _summarize_rows(session: Session, statement: Statement, names: list[str], kept: np.ndarray) -> None:
    only_results, detail = statement.has("meanonly"), statement.has("detail")
    if not only_results:
        session.write()
        if not detail:
            session.write("    Variable |        Obs        Mean    Std. dev.       Min        Max")
            session.write("-------------+" + "-" * 57)
    for name in names:
        column = session.frame[name].to_numpy()
        label = f"{abbreviated_name(name):>12} |"
        if is_text(column):
            session.r = {"N": 0.0}
            if not only_results and not detail:
                session.write(f"{label}{'0':>11}")
            continue
        values = column[kept & ~np.isnan(column)]
        session.r = results = _moments(values)
        if only_results:
            continue
        if detail:
            session.r = {**results, **_details(session, name, values)}
            continue
        line = f"{label}{count(len(values)):>11}"
        if len(values):
            shown = [general(float(results[key])) for key in ("mean", "sd", "min", "max")]
            line += "".join(text.rjust(width) for text, width in zip(shown, (12, 12, 11, 11), strict=True))
        session.write(line)


def _moments(values: np.ndarray) -> dict[str, float | str]:
    """Results of summarize; without values only their number."""
    size = len(values)
    results: dict[str, float | str] = {"N": float(size), "sum_w": float(size), "sum": float(values.sum())}
    if size:
        variance = float(values.var(ddof=1)) if size > 1 else float("nan")
        results |= {"mean": float(values.mean()), "Var": variance, "sd": variance**0.5}
        results |= {"min": float(values.min()), "max": float(values.max())}
    return results


def _details(session: Session, name: str, values: np.ndarray) -> dict[str, float | str]:
    """Print what ``detail`` adds, and return it."""
    title = session.state.variable_labels.get(name) or name
    session.write(f"{title:^61}".rstrip())
    session.write("-" * 61)
    if not len(values):
        session.write("no observations")
        return {}
    ordered = np.sort(values)
    of = {percent: percentile(values, percent) for percent in (1, 5, 10, 25, 50, 75, 90, 95, 99)}
    centred = values - values.mean()
    second = float((centred**2).mean())
    skewness = float((centred**3).mean() / second**1.5) if second > 0 else float("nan")
    kurtosis = float((centred**4).mean() / second**2) if second > 0 else float("nan")
    sd = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    low = [general(v) for v in ordered[:4]] + [""] * 4
    high = [""] * max(0, 4 - len(ordered)) + [general(v) for v in ordered[-4:]]
    session.write("      Percentiles      Smallest")
    for percent, smallest in zip((1, 5), low, strict=False):
        session.write(f"{percent:>2}%{general(of[percent]):>13}{smallest:>15}")
    size = count(len(values))
    session.write(f"10%{general(of[10]):>13}{low[2]:>15}       Obs{size:>20}")
    session.write(f"25%{general(of[25]):>13}{low[3]:>15}       Sum of wgt.{size:>12}")
    session.write()
    session.write(f"50%{general(of[50]):>13}{'':>15}       Mean{general(values.mean()):>19}")
    session.write(f"{'Largest':>31}       Std. dev.{general(sd):>14}")
    session.write(f"75%{general(of[75]):>13}{high[0]:>15}")
    session.write(f"90%{general(of[90]):>13}{high[1]:>15}       Variance{general(sd * sd):>15}")
    session.write(f"95%{general(of[95]):>13}{high[2]:>15}       Skewness{general(skewness):>15}")
    session.write(f"99%{general(of[99]):>13}{high[3]:>15}       Kurtosis{general(kurtosis):>15}")
    return {"skewness": skewness, "kurtosis": kurtosis, **{f"p{p}": value for p, value in of.items()}}


# tabulate --------------------------------------------------------------------------------------------


def _tabulate(session: Session, statement: Statement) -> None:
    names = session.varlist(statement, statement.arguments)
    if len(names) != 1:
        raise statement.error(
            statement.arguments or None, "tabulate takes one variable; two-way tables are not supported"
        )
    name = names[0]
    column = session.frame[name]
    kept = session.sample(statement)
    missing = missing_in(column.to_numpy())
    if not statement.has("missing"):
        kept = kept & ~missing
    levels = _levels(column[kept], statement)
    counts = [int(((column == level) & kept).sum()) for level in levels]
    if (missing & kept).any() and not is_text(column.to_numpy()):
        levels, counts = [*levels, np.nan], [*counts, int((missing & kept).sum())]
    _make_indicators(session, statement, name, levels, kept)
    total = sum(counts)
    session.r = {"N": float(total), "r": float(len(levels))}
    if not total:
        session.write("no observations")
        return
    labels = session.labels.get(name, {})
    title = session.state.variable_labels.get(name) or name
    session.write()
    session.write(f"{abbreviated_name(title):>11} |      Freq.     Percent        Cum.")
    session.write("------------+-----------------------------------")
    running = 0
    for level, number in zip(levels, counts, strict=True):
        running += number
        text = level if isinstance(level, str) else labels.get(level, general(level))
        session.write(
            f"{text[:11]:>11} |{count(number):>11}{fixed(100 * number / total, 2):>12}"
            f"{fixed(100 * running / total, 2):>12}"
        )
    session.write("------------+-----------------------------------")
    session.write(f"{'Total':>11} |{count(total):>11}{'100.00':>12}")


def _levels(column: pd.Series, statement: Statement) -> list[float | str]:
    levels = sorted(column.dropna().unique())
    if len(levels) > _MOST_LEVELS:
        raise statement.error(
            statement.arguments, f"there are {count(len(levels))} values: too many for a table"
        )
    return levels


def _make_indicators(
    session: Session, statement: Statement, name: str, levels: list[float | str], kept: np.ndarray
) -> None:
    """``generate(stub)``: one variable of zeros and ones for each value."""
    option = statement.option("generate")
    if option is None:
        return
    stub = only_token(statement, option.argument or (), "the beginning of the new names")
    variables = session.variables(statement)
    column = session.frame[name].to_numpy()
    frame = session.frame
    for number, level in enumerate(levels, 1):
        new = variables.new(Token("name", f"{stub.value}{number}", stub.start, stub.end))
        values = missing_in(column) if isinstance(level, float) and np.isnan(level) else column == level
        frame = frame.assign(**{new: np.where(kept, values.astype(float), np.nan)})
    session.frame = frame


# list and describe -------------------------------------------------------------------------------------


def _list(session: Session, statement: Statement) -> None:
    names = session.varlist(statement, statement.arguments) or list(session.frame.columns)
    kept = np.flatnonzero(session.sample(statement))
    if not names or not len(kept):
        return
    every = int(statement.number("separator", 5))
    columns = [_listed(session, name, kept, statement.has("nolabel")) for name in names]
    numbered = not statement.has("noobs")
    gutter = max(len(str(kept[-1] + 1)) + 2, 4) if numbered else 1
    left = " " * (gutter + 1)
    inner = "   ".join(column[0] for column in columns)
    rule = "-" * (display_width(inner) + 2)
    session.write()
    session.write(f"{left}+{rule}+")
    session.write(f"{left}| {inner} |")
    session.write(f"{left}|{rule}|")
    by = _separated(session, statement, kept)
    for at, row in enumerate(kept):
        if at and (by[at] != by[at - 1] if by is not None else every and at % every == 0):
            session.write(f"{left}|{rule}|")
        number = f"{f'{row + 1}.':>{gutter}} " if numbered else left
        session.write(f"{number}| " + "   ".join(column[at + 1] for column in columns) + " |")
    session.write(f"{left}+{rule}+")


def _separated(session: Session, statement: Statement, kept: np.ndarray) -> np.ndarray | None:
    option = statement.option("sepby")
    if option is None:
        return None
    names = session.varlist(statement, option.argument or ())
    codes: np.ndarray = session.frame.groupby(names, dropna=False).ngroup().to_numpy()[kept]
    return codes


def _listed(session: Session, name: str, kept: np.ndarray, codes: bool) -> list[str]:
    """A column of the listing with its title, all of one width."""
    column = session.frame[name].to_numpy()[kept]
    labels = {} if codes else session.labels.get(name, {})
    if is_text(column) or labels:
        cells = [v if isinstance(v, str) else labels.get(v, general(v)) for v in column]
    else:
        cells = [general(v) for v in column]
    title = abbreviated_name(name, 8 if not is_text(column) else 12)
    width = max(display_width(cell) for cell in [title, *cells])
    if is_text(column):
        return [cell + " " * (width - display_width(cell)) for cell in [title, *cells]]
    return [" " * (width - display_width(cell)) + cell for cell in [title, *cells]]


def _describe(session: Session, statement: Statement) -> None:
    names = session.varlist(statement, statement.arguments) or list(session.frame.columns)
    frame = session.frame
    session.write()
    session.write("Contains data")
    session.write(f" Observations:{count(len(frame)):>14}")
    session.write(f"    Variables:{count(len(frame.columns)):>14}")
    rule = "-" * 79
    session.write(rule)
    session.write("Variable      Storage   Display    Value")
    session.write("    name         type    format    label      Variable label")
    session.write(rule)
    for name in names:
        text = is_text(frame[name].to_numpy())
        longest = max((len(v) for v in frame[name]), default=1) if text else 0
        kind, code = (f"str{max(1, longest)}", f"%{max(9, longest)}s") if text else ("double", "%10.0g")
        has_label = "yes" if name in session.labels else ""
        label = session.state.variable_labels.get(name, "")
        session.write(f"{abbreviated_name(name):<16}{kind:<8}{code:<11}{has_label:<11}{label}".rstrip())
    session.write(rule)
    order = session.state.sorted_by
    session.write(f"Sorted by: {'  '.join(order)}".rstrip())
    session.r = {"N": float(len(frame)), "k": float(len(frame.columns))}


COMMANDS = {
    "display": CommandSpec("di", _display),
    "count": CommandSpec("cou", _count, condition=True),
    "assert": CommandSpec("as", _assert, condition=True),
    "summarize": CommandSpec(
        "su",
        _summarize,
        options={"detail": ("d", False), "meanonly": ("mean", False)},
        condition=True,
        by=True,
    ),
    "tabulate": CommandSpec(
        "ta",
        _tabulate,
        options={"missing": ("m", False), "generate": ("gen", True)},
        condition=True,
    ),
    "list": CommandSpec(
        "l",
        _list,
        options={
            "noobs": ("noo", False),
            "separator": ("sep", True),
            "sepby": ("sepby", True),
            "nolabel": ("nol", False),
        },
        condition=True,
    ),
    "describe": CommandSpec("d", _describe),
}
