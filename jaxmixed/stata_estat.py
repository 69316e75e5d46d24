"""Stata's `estat` after `mixed`, and what of it there is after `regress`.

References
----------
StataCorp, Stata Multilevel Mixed-Effects Reference Manual, estat icc, estat group, estat recovariance,
estat sd, estat wcorrelation, estat df; Stata Base Reference Manual, estat ic, estat vce, estat summarize.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np

from jaxmixed.crossproducts import block_diagonal
from jaxmixed.stata_design import CONSTANT
from jaxmixed.stata_formats import count, general
from jaxmixed.stata_levels import RandomLevel
from jaxmixed.stata_matrices import matrix_lines
from jaxmixed.stata_model import DF_METHODS, degrees_of_freedom, read_level
from jaxmixed.stata_parameters import full_names, variance_metric
from jaxmixed.stata_predict import chosen_levels, require_data, term_number
from jaxmixed.stata_session import CommandSpec, Estimation, Session
from jaxmixed.stata_syntax import Option, Statement, abbreviated, number_of
from jaxmixed.stata_tables import grouping_table, interval_title, random_effects_table
from jaxmixed.stata_variances import effect_positions, sections
from jaxmixed.wcorrelation import MOST_ROWS, response_covariance

_RULE = "-" * 78
_FIXED_FORMAT = re.compile(r"%([0-9]{1,2})\.([0-9]{1,2})(f|g)\Z")


def _need_mixed(session: Session, statement: Statement) -> Estimation:
    estimates = session.need_estimates(statement, "mixed")
    if statement.arguments:
        raise statement.error(statement.arguments, f"{statement.command} takes options only, after a comma")
    return estimates


def _need_levels(session: Session, statement: Statement) -> tuple[Estimation, list[RandomLevel]]:
    estimates = _need_mixed(session, statement)
    levels = [level for level in estimates.more["levels"] if level.term is not None]
    if not levels:
        raise statement.error(None, f"{statement.command} needs a model with random effects")
    return estimates, levels


def icc(session: Session, statement: Statement) -> None:
    """Intraclass correlations of nested levels."""
    estimates, levels = _need_levels(session, statement)
    level = read_level(statement)
    if any(own.request.factor or not own.request.grouping for own in levels):
        raise statement.error(
            None, "estat icc is for nested levels, not for _all and R.variable, whose effects are crossed"
        )
    if estimates.more["residual"] is not None:
        raise statement.error(None, "estat icc is not available with residuals(): see estat wcorrelation")
    fit = estimates.more.get("table_fit", estimates.fit)
    table = fit.icc(level=level / 100)
    slopes = any(set(own.names) != {CONSTANT} for own in levels)
    covariates = any(name != CONSTANT for name in estimates.more["names"])
    kind = "Conditional i" if slopes else "Residual i" if covariates else "I"
    lines = [
        "",
        f"{kind}ntraclass correlation",
        "",
        _RULE,
        f"{'Level':>28} |{'ICC':>11}   Std. err.{interval_title(level):>25}",
        "-" * 29 + "+" + "-" * 48,
    ]
    results: dict[str, float | str] = {}
    groupings = list(dict.fromkeys(own.grouping for own in levels))
    for number, grouping in enumerate(groupings):
        row = table.loc[":".join(grouping)]
        label = "|".join(reversed(grouping))
        label = label if len(label) <= 28 else f"{label[:26]}~{label[-1]}"
        lines.append(
            f"{label:>28} |{general(row['estimate']):>11}{general(row['std_error']):>11}"
            f"{general(row['conf_low']):>14}{general(row['conf_high']):>12}"
        )
        at = len(groupings) + 1 - number  # Stata counts levels from the rows, which are level 1
        results |= {
            f"icc{at}": float(row["estimate"]),
            f"se{at}": float(row["std_error"]),
            f"label{at}": label,
        }
    lines.append(_RULE)
    if slopes:
        lines.append("Note: ICC is conditional on zero values of random-effects covariates.")
    session.r = {**results, "level": level}
    session.write("\n".join(lines))


def group(session: Session, statement: Statement) -> None:
    """Numbers and sizes of groups."""
    estimates, _ = _need_levels(session, statement)
    groups = estimates.more["groups"]
    session.r = {"relevels": float(len(groups))}
    session.write("\n".join(["", *(line.removeprefix(" " * 8) for line in grouping_table(groups))]))


def _by_level(
    statement: Statement, estimates: Estimation, levels: list[RandomLevel]
) -> dict[str, list[RandomLevel]]:
    """Equations of each level; of the one that relevel() names, if it is there."""
    chosen = chosen_levels(statement, estimates)
    found: dict[str, list[RandomLevel]] = {}
    for level in levels:
        if chosen is None or any(level is own for own in chosen):
            found.setdefault(level.request.name, []).append(level)
    return found


def recovariance(session: Session, statement: Statement) -> None:
    """Covariance matrices of random effects."""
    estimates, levels = _need_levels(session, statement)
    fit = estimates.fit
    correlation = statement.has("correlation")
    lines: list[str] = []
    for name, equations in _by_level(statement, estimates, levels).items():
        pieces = []
        for level in equations:
            order = effect_positions(level)
            pieces.append(fit.estimates.terms[term_number(fit, level)].cov[np.ix_(order, order)])
        matrix = block_diagonal(pieces)
        if correlation:
            sd = np.sqrt(np.diagonal(matrix))
            with np.errstate(invalid="ignore", divide="ignore"):
                matrix = matrix / sd[:, None] / sd[None, :]
        names = [text for level in equations for text in level.names]
        kind = "correlation" if correlation else "covariance"
        lines += ["", f"Random-effects {kind} matrix for level {name}", ""]
        lines += matrix_lines(matrix, names, names, symmetric=True)
    session.r = {"relevels": float(len(estimates.more["groups"]))}
    session.write("\n".join(lines))


def sd(session: Session, statement: Statement) -> None:
    """The table of random effects as standard deviations and correlations, or (``variance``) as variances."""
    estimates, _ = _need_levels(session, statement)
    more = estimates.more
    level = more["options"].level
    fit = more.get("table_fit", estimates.fit)
    own = sections(fit, more["levels"], more["residual"], level, not statement.has("variance"))
    session.write("\n".join(["", *random_effects_table(own, level, more["robust"])]))


# Within-group covariance of responses. ---------------------------------------------------------------


def wcorrelation(session: Session, statement: Statement) -> None:
    """Standard deviations and correlations of the responses of one group."""
    estimates, levels = _need_levels(session, statement)
    rows, title, label, names = _cluster(session, statement, estimates, levels)
    if len(rows) > MOST_ROWS:
        raise statement.error(None, f"the group has {len(rows):,} rows; a matrix is of {MOST_ROWS:,} at most")
    fit = estimates.fit
    covariance = response_covariance(fit.frame, fit.estimates, rows)
    deviations = np.sqrt(np.diagonal(covariance))
    width, text = _format(statement)
    shape: dict[str, Any] = {"corner": label, "width": width, "text": text}
    if statement.has("covariance"):
        lines = ["", f"Covariances for {title}:", ""]
        lines += matrix_lines(covariance, names, names, symmetric=True, **shape)
    else:
        correlation = covariance / deviations[:, None] / deviations[None, :]
        lines = ["", f"Standard deviations and correlations for {title}:", "", "Standard deviations:", ""]
        lines += matrix_lines(deviations[None, :], ["sd"], names, **shape)
        lines += ["", "Correlations:", ""]
        lines += matrix_lines(correlation, names, names, symmetric=True, **shape)
    session.write("\n".join(lines))


def _format(statement: Statement) -> tuple[int, Any]:
    """Width and text of numbers, by format(%6.3f)."""
    option = statement.option("format")
    if option is None:
        return 6, lambda value: f"{value:.3f}"
    match = _FIXED_FORMAT.match("".join(token.value for token in option.argument or ()))
    if match is None:
        raise statement.error(option.argument or option.token, "supported formats are as %6.3f and %9.0g")
    width, decimals, kind = int(match[1]), int(match[2]), match[3]
    if not 3 <= width <= 30:
        raise statement.error(option.argument or option.token, "the width of a format is between 3 and 30")
    if kind == "g":
        return width, lambda value: general(value, width)
    return width, lambda value: f"{value:.{decimals}f}"


def _cluster(
    session: Session, statement: Statement, estimates: Estimation, levels: list[RandomLevel]
) -> tuple[np.ndarray, str, str, list[str]]:
    """Positions in the fit of the rows of one group, its name, and the names of the rows."""
    require_data(session, statement, estimates)
    sample, position = estimates.sample, estimates.position
    assert position is not None
    data = session.frame.loc[sample]
    if position[sample].size < len(estimates.fit.frame.y):
        raise statement.error(None, "rows of the estimation sample are no longer in the data")
    grouping = max((level.request.grouping for level in levels), key=len)
    at = statement.option("at")
    wanted = _at(session, statement, at, grouping) if at else {}
    kept = np.ones(len(data), dtype=bool)
    if statement.has("all"):
        title = "all rows"
    else:
        if not wanted:
            wanted = {name: data[name].iloc[0] for name in grouping}
        for name, value in wanted.items():
            kept &= (data[name] == value).to_numpy()
        title = " ".join(f"{name} = {v if isinstance(v, str) else general(v)}" for name, v in wanted.items())
    if not kept.any():
        raise statement.error(at.argument if at else None, f"no row of the estimation sample has {title}")
    rows = position[sample][kept]
    residual = estimates.more["residual"]
    if residual is None or residual.time is None:
        return rows, title, "obs", [str(number + 1) for number in range(len(rows))]
    times = data[residual.time][kept]
    order = np.arange(len(rows)) if statement.has("nosort") else np.argsort(times.to_numpy(), kind="stable")
    names = [value if isinstance(value, str) else general(value) for value in times.iloc[order]]
    return rows[order], title, residual.time, names


def _at(
    session: Session, statement: Statement, option: Option, grouping: tuple[str, ...]
) -> dict[str, float | str]:
    """Values by variable of ``at(school = 33 classroom = 4)``."""
    tokens = option.argument or ()
    found: dict[str, float | str] = {}
    start = 0
    while start < len(tokens):
        piece = (
            tokens[start : start + 4]
            if tokens[start + 2 : start + 3] and tokens[start + 2].kind == "-"
            else (tokens[start : start + 3])
        )
        if len(piece) < 3 or piece[1].kind != "=":
            raise statement.error(piece, "at() takes values of level variables, as in at(school = 33)")
        name = session.variables(statement).one(piece[0])
        if name not in grouping:
            raise statement.error(piece[0], f"the level variables are {', '.join(grouping)}")
        is_text = piece[2].kind == "text"
        found[name] = piece[2].value if is_text else number_of(statement.script, option.token, piece[2:])
        if is_text != session.is_text(name):
            raise statement.error(piece[2:], f"'{name}' holds {'numbers' if is_text else 'texts'}")
        start += len(piece)
    return found


# Of any estimation command. ---------------------------------------------------------------------------


def information(e: dict[str, float | str], label: str, size: float | None = None) -> tuple[str, float, float]:
    """A line of a table of information criteria, and the criteria."""
    ll, df = float(e["ll"]), float(e["rank"])
    N = float(e["N"]) if size is None else size
    aic, bic = -2 * ll + 2 * df, -2 * ll + df * np.log(N)
    null = e.get("ll_0")
    cells = f"{count(N):>11}{general(None if null is None else float(null)):>11}{general(ll):>11}"
    return f"{label:>12} |{cells}{df:>8.0f}{general(aic):>11}{general(bic):>11}", aic, bic


IC_HEAD = [
    "-" * 77,
    f"{'Model':>12} |{'N':>11}{'ll(null)':>11}{'ll(model)':>11}{'df':>8}{'AIC':>11}{'BIC':>11}",
    "-" * 13 + "+" + "-" * 63,
]


def rows_of_bic(statement: Statement) -> float | None:
    """The number of rows that the option n() gives, or None."""
    option = statement.option("n")
    if option is None:
        return None
    size = statement.number("n", 0)
    if size < 1:
        raise statement.error(option.argument or option.token, "n() takes a number of rows, 1 or more")
    return size


def ic(session: Session, statement: Statement) -> None:
    """Information criteria."""
    estimates = session.need_estimates(statement)
    if "ll" not in estimates.e:
        raise statement.error(None, f"{estimates.command} has no log likelihood, so there are no AIC and BIC")
    size = rows_of_bic(statement)
    line, aic, bic = information(estimates.e, ".", size)
    head = "Akaike's information criterion and Bayesian information criterion"
    text = "number of observations" if size is None else f"{size:,.0f}"
    note = f"Note: BIC uses N = {text}. See [R] BIC note."
    session.r = {"AIC": aic, "BIC": bic, "N": size or float(estimates.e["N"]), "ll": float(estimates.e["ll"]),
                 "df": float(estimates.e["rank"])}  # fmt: skip
    session.write("\n".join(["", head, "", *IC_HEAD, line, "-" * 77, note]))


def df(session: Session, statement: Statement) -> None:
    """Degrees of freedom of the tests of the coefficients."""
    estimates = _need_mixed(session, statement)
    if estimates.e["method"] != "REML":
        raise statement.error(None, "estat df needs a fit by reml")
    options = estimates.more["options"]
    option = statement.option("method")
    shortest = {name: least for name, (least, _) in DF_METHODS.items()}
    methods = []
    for token in option.argument or () if option else ():
        full = abbreviated(token.value, shortest)
        if full is None:
            raise statement.error(token, f"method() takes {', '.join(DF_METHODS)}")
        methods.append(full)
    methods = methods or [options.df_method]
    if methods == [None]:
        raise statement.error(None, f"name the methods: estat df, method({' '.join(DF_METHODS)})")
    names, positions = full_names(estimates)
    found = []
    for method in methods:
        own = replace(options, df_method=method, observed=options.observed and method == options.df_method)
        inference = degrees_of_freedom(estimates.fit, own).of_kept
        found.append(inference.df(np.eye(len(inference.names))[positions]))
    rule = "-" * (14 + 15 * len(methods))
    lines = ["", "Degrees of freedom", "", rule]
    lines.append(f"{'':12} |" + "".join(f"{method.capitalize():>14} " for method in methods))
    lines.append("-" * 13 + "+" + "-" * (15 * len(methods)))
    lines.append(f"{estimates.more['response'][:12]:<12} |")
    for at, name in enumerate(names):
        lines.append(f"{name:>12} |" + "".join(f"{general(values[at]):>14} " for values in found).rstrip())
    session.write("\n".join([*lines, rule]))


def vce(session: Session, statement: Statement) -> None:
    """Covariance (or correlation) matrix of the estimates."""
    estimates = session.need_estimates(statement)
    inference = estimates.more["inference"]
    names, positions = full_names(estimates)
    matrix = inference.cov[np.ix_(positions, positions)]
    equations = None
    metric = variance_metric(estimates) if estimates.command == "mixed" else None
    if estimates.more.get("robust"):
        metric = None  # robust covariances of coefficients and variances with each other are not known
    if metric is not None:
        matrix = block_diagonal([matrix, metric.covariance])
        equations = [estimates.more["response"]] * len(names) + list(metric.names)
        names = [*names, *([CONSTANT] * len(metric.names))]
    kind, corner = ("Correlation", "e(V)") if statement.has("correlation") else ("Covariance", "e(V)")
    if statement.has("correlation"):
        deviations = np.sqrt(np.diagonal(matrix))
        with np.errstate(all="ignore"):
            matrix = matrix / deviations[:, None] / deviations[None, :]
    lines = ["", f"{kind} matrix of coefficients of {estimates.command} model", ""]
    lines += matrix_lines(matrix, names, names, corner=corner, symmetric=True, equations=equations)
    if estimates.command == "mixed" and metric is None:
        why = "with robust standard errors" if estimates.more.get("robust") else "with residuals()"
        lines += ["", f"Note: variance parameters of models {why} are not listed; see estat sd."]
    session.write("\n".join(lines))


def summarize(session: Session, statement: Statement) -> None:
    """Means and ranges of the variables in the estimation sample."""
    estimates = session.need_estimates(statement)
    require_data(session, statement, estimates)
    more = estimates.more
    names = session.varlist(statement, statement.arguments, numeric=True)
    names = names or [more["response"], *more["design"].variables]
    head = f"  Estimation sample {estimates.command}"
    size = f"Number of obs = {count(estimates.sample.sum()):>10}"
    rule = "  " + "-" * 67
    lines = ["", f"{head:<43}{size}", "", rule]
    lines.append(f"  {'Variable':>12} |{'Mean':>13}{'Std. dev.':>13}{'Min':>13}{'Max':>13}")
    lines.append("  " + "-" * 13 + "+" + "-" * 53)
    for name in names:
        values = session.frame[name].to_numpy(dtype=np.float64)[estimates.sample]
        values = values[~np.isnan(values)]
        spread = values.std(ddof=1) if len(values) > 1 else np.nan
        numbers = (values.mean(), spread, values.min(), values.max()) if len(values) else (np.nan,) * 4
        lines.append(f"  {name[:12]:>12} |" + "".join(f"{general(value):>13}" for value in numbers))
    session.write("\n".join([*lines, rule]))


COMMANDS = {
    "estat icc": CommandSpec("estat icc", icc, options={"level": ("l", True)}),
    "estat group": CommandSpec("estat gr", group),
    "estat recovariance": CommandSpec(
        "estat recov", recovariance, options={"relevel": ("relev", True), "correlation": ("corr", False)}
    ),
    "estat sd": CommandSpec("estat sd", sd, options={"variance": ("var", False)}),
    "estat wcorrelation": CommandSpec(
        "estat wcor",
        wcorrelation,
        options={
            "at": ("at", True),
            "all": ("all", False),
            "covariance": ("cov", False),
            "nosort": ("nosort", False),
            "format": ("f", True),
        },
    ),
    "estat ic": CommandSpec("estat ic", ic, options={"n": ("n", True)}),
    "estat df": CommandSpec("estat df", df, options={"method": ("m", True)}),
    "estat vce": CommandSpec("estat vce", vce, options={"correlation": ("c", False)}),
    "estat summarize": CommandSpec("estat su", summarize),
}
