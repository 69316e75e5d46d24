"""The command `mixed`: a statement becomes a call of :func:`jaxmixed.mixed`, its results Stata's tables.

References
----------
StataCorp, Stata Multilevel Mixed-Effects Reference Manual, mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from jaxmixed.comparison import linear_model_test
from jaxmixed.errors import listed
from jaxmixed.fixed_inference import FixedInference, linear_table
from jaxmixed.stata_design import CONSTANT
from jaxmixed.stata_formats import abbreviated_name, count, fixed, general
from jaxmixed.stata_model import (
    DF_METHODS,
    LEVEL_OPTIONS,
    OPTIONS,
    ROWS_WEIGHT,
    Options,
    Prepared,
    degrees_of_freedom,
    fitted,
    prepare,
    read_options,
)
from jaxmixed.stata_session import CommandSpec, Estimation, Session
from jaxmixed.stata_syntax import Statement
from jaxmixed.stata_tables import (
    Row,
    cluster_line,
    coefficient_table,
    effect_lines,
    ends,
    group_sizes,
    grouping_table,
    header,
    note,
    random_effects_table,
)
from jaxmixed.stata_variances import sections

_DISPLAY = (
    "level", "variance", "stddeviations", "noretable", "nofetable", "noheader", "nogroup", "nolrtest",
)  # fmt: skip


def run_mixed(session: Session, statement: Statement) -> None:
    """Fit what a `mixed` statement describes and print its tables; without a model, print the last one's."""
    if not statement.arguments and not statement.levels:
        _replay(session, statement)
        return
    options = read_options(statement)
    prepared = prepare(session, statement, options)
    fit, told = fitted(prepared)
    weighted = fit.estimates.sampling is not None and fit.estimates.sampling.kind == "sampling"
    table_fit, inference = _inference(statement, prepared, options, fit, weighted)
    estimation = _estimation(statement, prepared, options, fit, inference, weighted or options.robust)
    estimation.more |= {"prepared": prepared, "table_fit": table_fit, "told": told}
    session.estimates = estimation
    notes = [f"note: {name} omitted because of collinearity." for name in estimation.more["omitted"]]
    session.write("\n".join([*notes, *_tables(statement, estimation, options)]))


def _replay(session: Session, statement: Statement) -> None:
    """Print the tables of the last `mixed` again, as in ``mixed, stddeviations``."""
    if not statement.options and session.estimates is None:
        raise statement.error(None, "mixed needs a response, as in: mixed score ses || school:")
    estimation = session.need_estimates(statement, "mixed")
    for option in statement.options:
        if option.name not in _DISPLAY:
            raise statement.error(
                option.token, f"without a model, mixed prints the last one again and takes {listed(_DISPLAY)}"
            )
    if statement.condition or statement.in_range or statement.weight:
        raise statement.error(None, "without a model, mixed takes no if, in and weights")
    asked, before = read_options(statement), estimation.more["options"]
    options = replace(before, level=asked.level, sds=asked.sds)
    rows = coefficient_rows(estimation.more["names"], estimation.more["inference"], options.level)
    again = replace(estimation, more={**estimation.more, "rows": rows, "options": options})
    session.write("\n".join(_tables(statement, again, options)))


def _tables(statement: Statement, estimation: Estimation, options: Options) -> list[str]:
    """All that is printed about a fit, without what the options of a statement leave out."""
    more, fit = estimation.more, estimation.fit
    prepared: Prepared = more["prepared"]
    lines: list[str] = []
    if not statement.has("noheader"):
        lines += ["", *_header(options, estimation, statement.has("nogroup"))]
    lines.append("")
    if not statement.has("nofetable"):
        if more["robust"]:
            lines.append(cluster_line(estimation.e["N_clust"], prepared.levels[0].request.name))
        lines += [*fixed_table(estimation), ""]
    if not statement.has("noretable"):
        own = sections(more["table_fit"], prepared.levels, prepared.residual, options.level, options.sds)
        lines += random_effects_table(own, options.level, more["robust"])
    if not (more["robust"] or statement.has("nolrtest")):
        lines += _lr_lines(fit, estimation)
    return lines + search_warnings(fit, more["told"])


def _inference(
    statement: Statement, prepared: Prepared, options: Options, fit: Any, weighted: bool
) -> tuple[Any, FixedInference]:
    """The fit whose variances are tabulated, and inference on the coefficients."""
    if weighted or not options.robust:
        return fit, degrees_of_freedom(fit, options)
    if prepared.residual is not None or "frequency_weights" in prepared.arguments:
        raise statement.error(
            None, "robust standard errors are supported without residuals() and without frequency weights"
        )
    ones = prepared.arguments["data"].assign(**{ROWS_WEIGHT: 1.0})
    other, _ = fitted(prepared, data=ones, sampling_weights={"obs": ROWS_WEIGHT})
    return other, other.fixed_inference("none")


def stata_names(fit: Any) -> tuple[str, ...]:
    """Stata's names of the coefficients, in the order of the fit."""
    return tuple(CONSTANT if name == "(Intercept)" else name.strip("`") for name in fit.frame.x_names)


def coefficient_rows(names: Sequence[str], inference: FixedInference, level: float = 95) -> dict[str, Row]:
    """Rows of a table of coefficients, by name.

    Parameters
    ----------
    names : sequence of str
        In the order of the fit.
    inference : FixedInference
    level : float
        In per cent.

    Returns
    -------
    dict of str to Row
        Without the coefficients that were dropped as collinear.
    """
    table = _linear(inference, level)
    columns = ["estimate", "std_error", "statistic", "p_value", "conf_low", "conf_high"]
    found = {}
    for at, name in enumerate(names):
        if inference.kept[at]:
            estimate, error, statistic, p, low, high = (float(table[column].iloc[at]) for column in columns)
            found[name] = Row(name, estimate, error, statistic, p, low, high)
    return found


def _linear(inference: FixedInference, level: float) -> pd.DataFrame:
    return linear_table(inference.of_kept, np.eye(len(inference.names)), level=level / 100)


def wald_test(names: Sequence[str], inference: FixedInference) -> tuple[int, float, float, float]:
    """Test of all coefficients but the constant: df, denominator df, statistic (chi2 or F), p."""
    rows = [at for at, name in enumerate(names) if name != CONSTANT and inference.kept[at]]
    if not rows:
        return 0, np.nan, np.nan, np.nan
    own = inference.of_kept.joint_test(np.eye(len(names))[rows])
    statistic = own.statistic * own.num_df if np.isinf(own.den_df) else own.statistic
    return own.num_df, own.den_df, statistic, own.p_value


def _estimation(
    statement: Statement,
    prepared: Prepared,
    options: Options,
    fit: Any,
    inference: FixedInference,
    robust: bool,
) -> Estimation:
    names = stata_names(fit)
    rows = coefficient_rows(names, inference, options.level)
    more: dict[str, Any] = {
        "design": prepared.design,
        "levels": prepared.levels,
        "residual": prepared.residual,
        "inference": inference,
        "names": names,
        "rows": rows,
        "omitted": [name for at, name in enumerate(names) if not inference.kept[at]],
        "options": options,
        "robust": robust,
        "groups": _sizes(prepared),
        "response": prepared.response,
    }
    e: dict[str, float | str] = {
        "cmd": "mixed",
        "cmdline": statement.text,
        "ivars": " ".join(dict.fromkeys(level.request.name for level in prepared.levels)),
        **_results(options, fit, more),
    }
    b = {name: row.estimate for name, row in rows.items()}
    se = {name: row.std_error for name, row in rows.items()}
    return Estimation("mixed", statement, fit, prepared.sample, e, b, se, more)


def _results(options: Options, fit: Any, more: dict[str, Any]) -> dict[str, float | str]:
    """What e() holds of a fit."""
    estimates, robust = fit.estimates, more["robust"]
    num_df, den_df, statistic, p_value = wald_test(more["names"], more["inference"])
    e: dict[str, float | str] = {
        "depvar": more["response"],
        "method": options.method.upper(),
        "vce": "robust" if robust else "oim",
        "N": float(fit.nobs if robust or estimates.sampling is None else estimates.sampling.size),
        "k": float(len(estimates.free) + 1 + estimates.rank),
        "k_f": float(estimates.rank),
        "k_r": float(len(estimates.free) + 1),
        "rank": float(fit.num_params),
        "df_m": float(num_df),
        "ll": float(fit.llf),
        "chi2" if options.df_method is None else "F": float(statistic),
        "p": float(p_value),
        "converged": float(fit.converged),
    }
    if options.df_method is not None:
        e |= {"dfmethod": options.df_method, "ddf_m": float(den_df)}
    if robust:
        e["N_clust"] = float(more["groups"][0][1])
        return e
    test = linear_model_test(estimates)
    if test is not None:
        e |= {"chi2_c": float(test.statistic), "df_c": float(test.df), "p_c": float(test.p_value)}
        e["ll_c"] = float(estimates.linear_llf)
    return e


# Printing. ------------------------------------------------------------------------------------------


def fixed_table(estimation: Estimation) -> list[str]:
    """The table of the coefficients of an estimation."""
    more = estimation.more
    lines = effect_lines(more["design"], more["rows"], more["omitted"])
    options: Options = more["options"]
    statistic = "z" if options.df_method is None else "t"
    return coefficient_table(
        more["response"], lines, statistic=statistic, level=options.level, robust=more["robust"]
    )


def _sizes(prepared: Prepared) -> list[tuple[str, int, int, float, int]]:
    """Groups of each level: name, number, smallest, average and largest size; copies count."""
    found: dict[tuple[str, ...], tuple[str, int, int, float, int]] = {}
    weights: dict[str, str] = prepared.arguments.get("frequency_weights", {})
    data = prepared.arguments["data"]
    for level in prepared.levels:
        grouping = level.request.grouping
        if grouping in found:
            continue
        outer = [":".join(grouping[: at + 1]) for at in range(len(grouping))]
        copies, rows = np.ones(len(data)), np.ones(len(data))
        for label, column in weights.items():
            (copies if label in outer else rows)[:] *= data[column].to_numpy()
        keys = [prepared.frame[name] for name in grouping] or [pd.Series(np.zeros(len(data)))]
        groups = pd.DataFrame({"rows": rows, "copies": copies}).groupby(keys, sort=False)
        sizes, number = groups["rows"].sum().to_numpy(), groups["copies"].first().to_numpy()
        average = float(sizes @ number / number.sum())
        own = (round(number.sum()), round(sizes.min()), average, round(sizes.max()))
        found[grouping] = (level.request.name, *own)
    return list(found.values())


def _header(options: Options, estimation: Estimation, no_groups: bool) -> list[str]:
    e, more = estimation.e, estimation.more
    method = "" if more["robust"] else f"{options.method.upper()} "
    title = f"Mixed-effects {method}regression"
    groups = [] if no_groups else more["groups"]
    facts: list[tuple[str, str] | str] = [("Number of obs", count(e["N"]))]
    left = [title]
    likelihood = "restricted-likelihood" if options.method == "reml" else "likelihood"
    likelihood = "pseudolikelihood" if more["robust"] else likelihood
    if len(groups) == 1:
        name, number, *sizes = groups[0]
        left.append(f"Group variable: {abbreviated_name(name, 14)}")
        facts += [("Number of groups", count(number)), *group_sizes(*sizes)]
    tests = _test_facts(estimation, options)
    if options.df_method is not None:
        left += [""] * (len(facts) - len(left))
        left.append(f"DF method: {DF_METHODS[options.df_method][1]}")
    last = len(facts) + len(tests) - 1
    left += [""] * (last - len(left))
    left.append(f"Log {likelihood} = {general(e['ll'], 10):>10}")
    lines = header(left, [*facts, *tests])
    if len(groups) > 1:
        lines = [lines[0], "", *grouping_table(groups), "", *lines[1:]]
    return lines


def _test_facts(estimation: Estimation, options: Options) -> list[tuple[str, str] | str]:
    e, more = estimation.e, estimation.more
    p = fixed(e["p"], 4)
    if options.df_method is None:
        return [(f"Wald chi2({e['df_m']:.0f})", fixed(e["chi2"], 2)), ("Prob > chi2", p)]
    inference: FixedInference = more["inference"]
    df = inference.of_kept.df(np.eye(len(inference.names))[inference.kept])
    return [
        ("DF:\tmin", f"{df.min():,.2f}"),
        (" avg", f"{df.mean():,.2f}"),
        (" max", f"{df.max():,.2f}"),
        (f"F({e['df_m']:.0f}, {fixed(e['ddf_m'], 2)})", fixed(e["F"], 2)),
        ("Prob > F", p),
    ]


def _lr_lines(fit: Any, estimation: Estimation) -> list[str]:
    """The line of the test against the linear model, with its note."""
    e = estimation.e
    if "chi2_c" not in e:
        return []
    test = linear_model_test(fit.estimates)
    assert test is not None
    sign, name = (">=", "chibar2") if test.distribution.startswith("chibar2") else (">", "chi2")
    lines = [
        ends(
            f"LR test vs. linear model: {test.distribution} = {fixed(test.statistic, 2)}",
            f"Prob {sign} {name} = {fixed(test.p_value, 4)}",
        )
    ]
    if name == "chi2" and fit.estimates.terms:
        lines += ["", "Note: LR test is conservative and provided only for reference."]
    elif name == "chi2":
        text = (
            "Note: The reported degrees of freedom assumes the null hypothesis is not on the boundary of the"
            " parameter space. If this is not true, then the reported test is conservative."
        )
        lines += ["", *note(text)]
    return lines


def search_warnings(fit: Any, told: Sequence[str]) -> list[str]:
    """What Stata says of a search that failed, or of standard errors that do not exist, and why."""
    lines: list[str] = []
    found = fit.diagnostics
    if not fit.converged:
        lines += ["Warning: convergence not achieved"]
        lines += [line for text in found.messages for line in note(f"Note: {text}")]
    if fit.is_singular:
        lines += ["Warning: standard-error calculation has failed"]
        lines += [line for text in found.singular_terms for line in note(f"Note: {text}")]
    lines += [line for text in told for line in note(f"Note: {text}")]
    lines = [line.replace("`", "").replace("(Intercept)", CONSTANT) for line in lines]
    return ["", *lines] if lines else []


COMMANDS = {
    "mixed": CommandSpec(
        "mixed",
        run_mixed,
        OPTIONS,
        LEVEL_OPTIONS,
        condition=True,
        levels=True,
        weights=("pweight", "fweight"),
    )
}
