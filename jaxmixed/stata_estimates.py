"""Stata's `estimates` (store, restore, dir, drop, table, stats) and `lrtest`.

References
----------
StataCorp, Stata Base Reference Manual, estimates store, estimates table, estimates stats, lrtest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxmixed._distributions import chi2_p_value, t_p_values
from jaxmixed.stata_design import CONSTANT
from jaxmixed.stata_estat import IC_HEAD, information, rows_of_bic
from jaxmixed.stata_formats import abbreviated_name, count, fixed, general
from jaxmixed.stata_parameters import full_names, variance_metric
from jaxmixed.stata_session import CommandSpec, Estimation, Session
from jaxmixed.stata_syntax import Option, Statement, Tokens, number_of, suggestion
from jaxmixed.stata_tables import note

_COLUMN = 13
_LINE = 80
_TITLES = {"mixed": "Mixed-effects regression", "regress": "Linear regression", "xtreg": "Panel regression"}
_STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))


def _one_name(statement: Statement) -> str:
    tokens = statement.arguments
    if len(tokens) != 1 or tokens[0].kind != "name" or tokens[0].value == "_all":
        raise statement.error(
            tokens or None, f"{statement.command} takes one name, as in {statement.command} m1"
        )
    return tokens[0].value


def found(session: Session, statement: Statement, tokens: Tokens) -> dict[str, Estimation]:
    """Estimates by name: ``.`` is the current ones, ``*`` and ``_all`` all that are stored.

    Raises
    ------
    StataError
        If nothing is stored under a name.
    """
    chosen: dict[str, Estimation] = {}
    for token in tokens:
        if token.kind == ".":
            chosen["."] = session.need_estimates(statement)
        elif token.value in ("*", "_all"):
            chosen |= session.stored
        elif token.value in session.stored and token.kind == "name":
            chosen[token.value] = session.stored[token.value]
        else:
            known = ", ".join(session.stored)
            hint = suggestion(token.value, session.stored)
            there = f": there are {known}" if known else ": nothing is stored yet, see estimates store"
            raise statement.error(token, f"no estimates are stored as '{token.value}'{hint or there}")
    return chosen


def store(session: Session, statement: Statement) -> None:
    """Keep the current estimates under a name."""
    name = _one_name(statement)
    session.stored[name] = session.need_estimates(statement)


def restore(session: Session, statement: Statement) -> None:
    """Make stored estimates the current ones."""
    name = _one_name(statement)
    session.state.estimates = found(session, statement, statement.arguments)[name]
    session.write(f"(results {name} are active now)")


def drop(session: Session, statement: Statement) -> None:
    """Forget stored estimates."""
    if not statement.arguments:
        raise statement.error(None, "estimates drop takes names, or _all")
    for name in found(session, statement, statement.arguments):
        session.stored.pop(name, None)


def clear(session: Session, statement: Statement) -> None:
    """Forget all stored estimates."""
    if statement.arguments:
        raise statement.error(statement.arguments, "estimates clear takes no names; see estimates drop")
    session.stored.clear()


def directory(session: Session, statement: Statement) -> None:
    """List what is stored."""
    chosen = found(session, statement, statement.arguments) if statement.arguments else session.stored
    rule = "-" * 78
    lines = [
        rule,
        f"{'':12} |{'':11}{'Dependent':11}{'Number of':>10}",
        f"{'Name':>12} | {'Command':10}{'variable':12}{'param.':>9}  Title",
        "-" * 13 + "+" + "-" * 64,
    ]
    for name, own in chosen.items():
        title = _TITLES.get(own.command, "")
        size = sum(len(names) for _, names, *_ in _equations(own))
        response = abbreviated_name(str(own.e["depvar"]))
        line = f"{abbreviated_name(name):>12} | {own.command:10}{response:12}{size:>9}  "
        lines.append((line + title[: 78 - len(line)]).rstrip())
    session.write("\n".join(["", *lines, rule] if chosen else [""]))


def stats(session: Session, statement: Statement) -> None:
    """Information criteria of several estimates."""
    chosen = found(session, statement, statement.arguments) if statement.arguments else {}
    chosen = chosen or {".": session.need_estimates(statement)}
    size = rows_of_bic(statement)
    lines = []
    for name, own in chosen.items():
        if "ll" not in own.e:
            raise statement.error(None, f"'{name}' is of {own.command}, which has no log likelihood")
        lines.append(information(own.e, abbreviated_name(name), size)[0])
    text = "number of observations" if size is None else f"{size:,.0f}"
    head = "Akaike's information criterion and Bayesian information criterion"
    last = f"Note: BIC uses N = {text}. See [R] BIC note."
    session.write("\n".join(["", head, "", *IC_HEAD, *lines, "-" * 77, last]))


# The table of coefficients of several estimates. -------------------------------------------------------

Equation = tuple[str, list[str], np.ndarray, np.ndarray, np.ndarray]
"""Name of an equation, names of its parameters, estimates, standard errors, p-values."""


def _equations(own: Estimation) -> list[Equation]:
    """Equations of an estimation: the coefficients, and the variance parameters of `mixed`."""
    names, _ = full_names(own)
    rows = own.more["rows"]
    estimate = np.array([rows[name].estimate for name in names])
    error = np.array([rows[name].std_error for name in names])
    p_value = np.array([rows[name].p_value for name in names])
    equations: list[Equation] = [(str(own.more["response"]), names, estimate, error, p_value)]
    metric = variance_metric(own) if own.command == "mixed" else None
    if metric is not None:
        errors = np.sqrt(np.diagonal(metric.covariance))
        with np.errstate(all="ignore"):
            p_values = t_p_values(metric.values / errors, np.full(len(errors), np.inf))
        for at, name in enumerate(metric.names):
            here = slice(at, at + 1)
            equations.append((name, [CONSTANT], metric.values[here], errors[here], p_values[here]))
    return equations


def table(session: Session, statement: Statement) -> None:
    """Coefficients of several estimates side by side."""
    chosen = found(session, statement, statement.arguments) if statement.arguments else {}
    chosen = chosen or {".": session.need_estimates(statement)}
    if statement.has("star") and statement.has("se", "t", "p"):
        raise statement.error(statement.option("star").token, "star excludes se, t and p")  # type: ignore[union-attr]
    shown = ["b", *(name for name in ("se", "t", "p") if statement.has(name))]
    texts = {name: _format(statement, name) for name in shown}
    cells: dict[str, dict[str, dict[str, list[str]]]] = {}
    several = any(len(_equations(own)) > 1 for own in chosen.values())
    responses = {str(own.more["response"]) for own in chosen.values()}
    first = responses.pop() if len(responses) == 1 else ""
    for model, own in chosen.items():
        for at, (equation, names, *values) in enumerate(_equations(own)):
            of_equation = cells.setdefault(equation if at or not first else first, {})
            for row, name in enumerate(names):
                estimate, error, p_value = (float(column[row]) for column in values)
                every = {"b": estimate, "se": error, "t": estimate / error if error else np.nan, "p": p_value}
                line = [_cell(texts[what], every[what]) for what in shown]
                if statement.has("star"):
                    line = [line[0] + _stars(p_value)]
                of_equation.setdefault(name, {})[model] = line
    cells = dict(sorted(cells.items(), key=lambda item: item[0] == "lnsig_e"))  # the residual's stands last
    kept = _kept(statement, cells)
    session.write("\n".join(_table_lines(statement, list(chosen.items()), kept, shown, several)))


def _stars(p_value: float) -> str:
    return next((f"{stars:<3}" for bound, stars in _STARS if p_value < bound), "   ")


def _format(statement: Statement, name: str) -> tuple[int, str] | None:
    """Decimals of a format such as %7.3f, None for the general one."""
    option = statement.option(name)
    if option is None or not option.argument:
        return None
    text = "".join(token.value for token in option.argument)
    parts = text.removeprefix("%").removesuffix("f").split(".")
    if text[:1] != "%" or text[-1:] != "f" or len(parts) != 2 or not all(p.isdecimal() for p in parts):
        raise statement.error(option.argument, f"formats of {name}() are as %7.3f")
    if not 1 <= int(parts[0]) <= 12 or int(parts[1]) > 9:
        raise statement.error(option.argument, "a format has at most 12 characters and 9 decimals")
    return int(parts[1]), "f"


def _cell(how: tuple[int, str] | None, value: float) -> str:
    return general(value, 10) if how is None else fixed(value, how[0], 12)


def _kept(
    statement: Statement, cells: dict[str, dict[str, dict[str, list[str]]]]
) -> dict[str, dict[str, dict[str, list[str]]]]:
    """What keep() and drop() leave."""
    for name in ("keep", "drop"):
        option = statement.option(name)
        if option is None:
            continue
        wanted = statement.source(option.argument or ()).split()
        known = {own for rows in cells.values() for own in rows}
        for text in wanted:
            if text not in known:
                raise statement.error(option.argument, f"no coefficient is named '{text}': there are "
                                      + ", ".join(sorted(known)))  # fmt: skip
        keep = name == "keep"
        cells = {
            equation: {own: line for own, line in rows.items() if (own in wanted) == keep}
            for equation, rows in cells.items()
        }
    return {equation: rows for equation, rows in cells.items() if rows}


def _table_lines(
    statement: Statement,
    models: Sequence[tuple[str, Estimation]],
    cells: dict[str, dict[str, dict[str, list[str]]]],
    shown: Sequence[str],
    several: bool,
) -> list[str]:
    """The table, in blocks of as many models as a line holds."""
    width = _COLUMN + (3 if statement.has("star") else 0)
    per_block = max(1, (_LINE - 14) // width)
    lines: list[str] = []
    for start in range(0, len(models), per_block):
        block = models[start : start + per_block]
        rule = "-" * (14 + width * len(block))
        between = "-" * 13 + "+" + "-" * (width * len(block))
        titles = "".join(f"{abbreviated_name(name):^{width}}" for name, _ in block)
        lines += ["", rule, f"{'Variable':>12} |{titles}".rstrip(), between]
        for number, (equation, rows) in enumerate(cells.items()):
            lines += [between] if number else []
            lines += [f"{abbreviated_name(equation):<12} |"] if several else []
            for name, by_model in rows.items():
                for place in range(len(shown)):
                    texts = [by_model.get(model, [""] * len(shown))[place] for model, _ in block]
                    label = abbreviated_name(name) if place == 0 else ""
                    lines.append((f"{label:>12} |" + "".join(f"{t:>{width - 1}} " for t in texts)).rstrip())
        wanted = _statistics(statement)
        if wanted:
            lines.append(between)
            for name in wanted:
                texts = [_statistic(own, name) for _, own in block]
                lines.append((f"{name:>12} |" + "".join(f"{t:>{width - 1}} " for t in texts)).rstrip())
        lines.append(rule)
        if len(shown) > 1:
            lines.append(f"{'Legend: ' + '/'.join(shown):>{len(rule)}}")
        if statement.has("star"):
            lines.append(f"{'Legend: * p<.05; ** p<.01; *** p<.001':>{len(rule)}}")
    return lines


def _statistics(statement: Statement) -> list[str]:
    option = statement.option("stats")
    return [token.value for token in option.argument or () if token.kind == "name"] if option else []


def _statistic(own: Estimation, name: str) -> str:
    if name in ("aic", "bic") and "ll" in own.e:
        _, aic, bic = information(own.e, "")
        return general(aic if name == "aic" else bic, 10)
    value = own.e.get(name)
    return "" if value is None else value if isinstance(value, str) else general(value, 10)


# Likelihood-ratio test. -----------------------------------------------------------------------------


def lrtest(session: Session, statement: Statement) -> None:
    """Likelihood-ratio test of two nested models."""
    parts = statement.arguments
    if len(parts) not in (1, 2) or any(t.kind not in ("name", ".") or t.value == "_all" for t in parts):
        raise statement.error(
            parts or None, "lrtest takes the names of one or two stored estimates, as in lrtest small large"
        )
    first = found(session, statement, parts[:1])
    second = (
        found(session, statement, parts[1:]) if len(parts) > 1 else {".": session.need_estimates(statement)}
    )
    (name_a, a), (name_b, b) = *first.items(), *second.items()
    names = [(name_a, a), (name_b, b)]
    names.sort(key=lambda pair: _size(pair[1]))
    (small_name, small), (large_name, large) = names
    _check(statement, small, large)
    option = statement.option("df")
    df = _size(large) - _size(small) if option is None else _whole(statement, option)
    if df <= 0:
        raise statement.error(
            None, f"both models have {_size(large)} parameters, so neither is nested in the other"
        )
    statistic = 2 * (float(large.e["ll"]) - float(small.e["ll"]))
    p_value = float(chi2_p_value(max(statistic, 0.0), df))
    lines = ["", "Likelihood-ratio test", f"Assumption: {small_name} nested within {large_name}", ""]
    head = f"LR chi2({df})"
    width = max(len(head), len("Prob > chi2"))
    value = fixed(statistic, 2)
    size = max(len(value), 6)
    lines += [f"{head:>{width}} = {value:>{size}}", f"{'Prob > chi2':>{width}} = {fixed(p_value, 4):>{size}}"]
    if _tests_variances(small, large):
        text = (
            "Note: The reported degrees of freedom assumes the null hypothesis is not on the boundary of the"
            " parameter space. If this is not true, then the reported test is conservative."
        )
        lines += ["", *note(text)]
    if small.e.get("method") == "REML":
        text = (
            "Note: LR tests based on REML are valid only when the fixed-effects specification is identical"
            " for both models."
        )
        lines += ["", *note(text)]
    session.r = {"chi2": statistic, "df": float(df), "p": p_value}
    if statement.has("stats"):
        rows = [information(own.e, abbreviated_name(name))[0] for name, own in names]
        lines += [
            "",
            "Akaike's information criterion and Bayesian information criterion",
            "",
            *IC_HEAD,
            *rows,
            "-" * 77,
        ]
    session.write("\n".join(lines))


def _whole(statement: Statement, option: Option) -> int:
    value = number_of(statement.script, option.token, option.argument or ())
    if not value.is_integer() or value < 1:
        raise statement.error(option.argument, "df() takes a whole number from 1")
    return int(value)


def _size(own: Estimation) -> int:
    """Parameters of a model; regress does not count the residual variance among its own."""
    return int(own.e.get("rank", 0)) + (own.command == "regress")


def _tests_variances(small: Estimation, large: Estimation) -> bool:
    """Whether the larger model has more variance parameters."""
    return _size(large) - len(full_names(large)[0]) > _size(small) - len(full_names(small)[0])


def _check(statement: Statement, small: Estimation, large: Estimation) -> None:
    """Refuse models whose likelihoods cannot be compared."""
    for own in (small, large):
        if "ll" not in own.e:
            raise statement.error(None, f"{own.command} has no log likelihood, so there is no LR test")
        if str(own.e.get("vce", "")) in ("robust", "cluster"):
            raise statement.error(
                None, "LR tests are not valid with robust standard errors or sampling weights: use test"
            )
    methods = ["REML" if own.e.get("method") == "REML" else "ML" for own in (small, large)]
    if methods[0] != methods[1]:
        raise statement.error(None, "one model is fitted by REML and the other by ML: fit both by ML")
    if small.more["response"] != large.more["response"]:
        raise statement.error(
            None, f"the responses differ: {small.more['response']} and {large.more['response']}"
        )
    if methods[0] == "REML" and sorted(full_names(small)[0]) != sorted(full_names(large)[0]):
        raise statement.error(
            None,
            "the fixed parts differ, and restricted likelihoods then cannot be compared: fit both by mle",
        )
    rows = [float(own.e["N"]) for own in (small, large)]
    if rows[0] != rows[1] or not np.array_equal(small.sample, large.sample):
        sizes = f"{count(rows[0])} and {count(rows[1])} rows"
        raise statement.error(
            None,
            f"the models are fitted to different rows ({sizes}): fit both to one sample, as by if e(sample)",
        )


COMMANDS = {
    "estimates store": CommandSpec("est sto", store),
    "estimates restore": CommandSpec("est res", restore),
    "estimates drop": CommandSpec("est drop", drop),
    "estimates clear": CommandSpec("est clear", clear),
    "estimates dir": CommandSpec("est dir", directory),
    "estimates stats": CommandSpec("est stat", stats, options={"n": ("n", True)}),
    "estimates table": CommandSpec(
        "est tab",
        table,
        options={
            "b": ("b", True),
            "se": ("se", None),
            "t": ("t", None),
            "p": ("p", None),
            "star": ("star", False),
            "stats": ("s", True),
            "keep": ("k", True),
            "drop": ("d", True),
        },
    ),
    "lrtest": CommandSpec("lrtest", lrtest, options={"stats": ("st", False), "df": ("df", True)}),
}
