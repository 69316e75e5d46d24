"""Stata's `contrast` and `pwcompare` of factor variables: balanced means of the linear prediction.

Every level of the other factors counts the same, whatever the data (``asbalanced``, Stata's default).

References
----------
StataCorp, Stata Base Reference Manual, contrast, pwcompare.
"""

from __future__ import annotations

import itertools

import numpy as np

from jaxmixed._distributions import chi2_p_value, t_p_values, t_quantiles
from jaxmixed.fixed_inference import FixedInference, independent_rows
from jaxmixed.stata_design import Design
from jaxmixed.stata_factors import Term, terms
from jaxmixed.stata_formats import abbreviated_name, fixed, general
from jaxmixed.stata_model import read_level
from jaxmixed.stata_session import CommandSpec, Estimation, Session
from jaxmixed.stata_syntax import Statement, abbreviated
from jaxmixed.stata_tables import interval_title
from jaxmixed.stata_tests import is_small

MOST_CELLS = 2_000
_ADJUSTMENTS = {"noadjust": "noadj", "bonferroni": "bon", "sidak": "sid"}
_TITLES = {"noadjust": "Unadjusted", "bonferroni": "Bonferroni", "sidak": "Šidák"}


def _chosen(session: Session, statement: Statement, estimates: Estimation) -> list[Term]:
    """Effects that the statement names, all of factor variables of the model."""
    if not statement.arguments:
        raise statement.error(None, f"{statement.command} needs factors, as in {statement.command} race")
    design: Design = estimates.more["design"]
    found = terms(statement, statement.arguments, session.variables(statement))
    for term in found:
        for factor in term.factors:
            if factor.name not in design.levels:
                known = ", ".join(design.levels) or "none"
                raise statement.error(
                    term.tokens, f"'{factor.name}' is no factor variable of the model; these are {known}"
                )
    return found


def cell_means(
    statement: Statement, estimates: Estimation, term: Term
) -> tuple[list[str], list[tuple[float, ...]], np.ndarray]:
    """Variables of an effect, its cells, and the weights (cells, p) of their balanced means.

    Raises
    ------
    StataError
        If the factors interact with a covariate, on whose value the means would depend, or there are too many
        cells.
    """
    design: Design = estimates.more["design"]
    names = [factor.name for factor in term.factors]
    for column in design.columns:
        own = {piece.name for piece in column.pieces if piece.level is not None}
        if own & set(names) and any(piece.level is None for piece in column.pieces):
            raise statement.error(
                term.tokens,
                f"'{statement.source(term.tokens)}' interacts with a covariate, so its contrasts depend on"
                " where that is: use margins with at()",
            )
    others = [name for name in design.levels if name not in names]
    size = int(np.prod([len(design.levels[name]) for name in [*names, *others]]))
    if size > MOST_CELLS:
        raise statement.error(term.tokens, f"the factors have {size:,} cells; the most are {MOST_CELLS:,}")
    cells = list(itertools.product(*(design.levels[name] for name in names)))
    rest = list(itertools.product(*(design.levels[name] for name in others)))
    labels = list(estimates.more["names"])
    weights = np.zeros((len(cells), len(labels)))
    for row, cell in enumerate(cells):
        for other in rest:
            here = dict(zip([*names, *others], [*cell, *other], strict=True))
            for column in design.columns:
                if all(
                    piece.level is not None and here[piece.name] == piece.level for piece in column.pieces
                ):
                    weights[row, labels.index(column.name)] += 1 / len(rest)
    return names, cells, weights


def _interaction(cells: list[tuple[float, ...]], weights: np.ndarray) -> np.ndarray:
    """Differences of differences of cell means: the contrasts of an effect without those it contains."""
    sizes = [len(set(values)) for values in zip(*cells, strict=True)]
    contrasts: np.ndarray = np.ones((1, 1))
    for size in sizes:
        step = np.hstack([-np.ones((size - 1, 1)), np.eye(size - 1)])
        contrasts = np.kron(contrasts, step)
    return contrasts @ weights


def contrast(session: Session, statement: Statement) -> None:
    """Tests of main effects and interactions of factors."""
    estimates = session.need_estimates(statement, "mixed", "regress")
    inference: FixedInference = estimates.more["inference"]
    small = is_small(statement, estimates)
    rule = "-" * 48
    name = "F" if small else "chi2"
    lines = ["", "Contrasts of marginal linear predictions", "", "Margins: asbalanced", "", rule]
    lines += [f"{'':12} |{'df':>11}{name:>12}{'P>' + name:>11}", "-" * 13 + "+" + "-" * 34]
    if estimates.command == "mixed":
        lines.append(f"{abbreviated_name(estimates.more['response']):<12} |")
    denominator = np.nan
    for term in _chosen(session, statement, estimates):
        names, cells, weights = cell_means(statement, estimates, term)
        L = _interaction(cells, weights)
        label = abbreviated_name("#".join(names))
        if not inference.estimable(L).all():
            lines.append(f"{label:>12} |  (not testable)")
            continue
        own = inference.joint_test(L)
        statistic, p_value, denominator = own.statistic, own.p_value, own.den_df
        if not small:
            rows = L[independent_rows(L)]
            values = inference.estimate(rows)
            statistic = float(values @ np.linalg.solve(inference.covariance(rows), values))
            p_value = float(chi2_p_value(statistic, own.num_df))
        lines.append(f"{label:>12} |{own.num_df:>11}{fixed(statistic, 2):>12}{fixed(p_value, 4):>11}")
    if estimates.command == "regress":
        lines += [f"{'':12} |", f"{'Denominator':>12} |{general(denominator):>11}"]
    session.write("\n".join([*lines, rule]))


def pwcompare(session: Session, statement: Statement) -> None:
    """Differences of all pairs of balanced means."""
    estimates = session.need_estimates(statement, "mixed", "regress")
    level = read_level(statement)
    adjustment = _adjustment(statement)
    effects = statement.has("effects")
    inference: FixedInference = estimates.more["inference"]
    small = is_small(statement, estimates)
    kind = "t" if small else "z"
    width = 78 if effects else 65
    title, interval = _TITLES[adjustment], interval_title(level)
    above = f"{'':22}{title:^19}{title:^22}" if effects else f"{'':22}{title:^29}"
    statistic = f"{kind:>7}    P>|{kind}|" if effects else ""
    lines = [
        "",
        "Pairwise comparisons of marginal linear predictions",
        "",
        "Margins: asbalanced",
        "",
        "-" * width,
    ]
    lines += [f"{'':12} |{above}".rstrip(), f"{'':12} |{'Contrast':>11}   Std. err.{statistic}{interval:>25}"]
    lines.append("-" * 13 + "+" + "-" * (width - 14))
    if estimates.command == "mixed":
        lines.append(f"{abbreviated_name(estimates.more['response']):<12} |")
    for term in _chosen(session, statement, estimates):
        names, cells, weights = cell_means(statement, estimates, term)
        pairs = [(a, b) for b in range(len(cells)) for a in range(b + 1, len(cells))]
        if len(pairs) > MOST_CELLS:
            raise statement.error(term.tokens, f"there are {len(pairs):,} pairs; the most are {MOST_CELLS:,}")
        lines.append(f"{abbreviated_name('#'.join(names)):>12} |")
        for a, b in pairs:
            label = f"{_label(estimates, names, cells[a])} vs {_label(estimates, names, cells[b])}"
            L = (weights[a] - weights[b])[None]
            head = f"{label if len(label) <= 11 else label[:9] + '..':>11}  |"
            if not inference.estimable(L)[0]:
                lines.append(f"{head}{'.':>11}  (not estimable)")
                continue
            estimate = float(inference.estimate(L)[0])
            error = float(np.sqrt(inference.covariance(L)[0, 0]))
            df = float(inference.df(L)[0]) if small else np.inf
            numbers = _numbers(estimate, error, df, level, adjustment, len(pairs), effects)
            lines.append(head + numbers)
    session.write("\n".join([*lines, "-" * width]))


def _adjustment(statement: Statement) -> str:
    option = statement.option("mcompare")
    if option is None:
        return "noadjust"
    tokens = option.argument or ()
    full = abbreviated(tokens[0].value, _ADJUSTMENTS) if len(tokens) == 1 else None
    if full is None:
        raise statement.error(tokens or option.token, f"mcompare() takes {', '.join(_ADJUSTMENTS)}")
    return full


def _numbers(
    estimate: float, error: float, df: float, level: float, adjustment: str, pairs: int, effects: bool
) -> str:
    """The numbers of a comparison, adjusted for their number."""
    alpha = 1 - level / 100
    per_pair = {"noadjust": alpha, "bonferroni": alpha / pairs, "sidak": 1 - (1 - alpha) ** (1 / pairs)}
    half = float(t_quantiles(1 - per_pair[adjustment], np.array([df]))[0]) * error
    statistic = estimate / error if error else np.nan
    p_value = float(t_p_values(np.array([statistic]), np.array([df]))[0])
    p_value = {
        "noadjust": p_value,
        "bonferroni": min(1.0, p_value * pairs),
        "sidak": 1 - (1 - p_value) ** pairs,
    }[adjustment]
    tested = f"{fixed(statistic, 2, 8):>9}{fixed(p_value, 3):>8}" if effects else ""
    bounds = f"{general(estimate - half):>13}{general(estimate + half):>12}"
    return f"{general(estimate):>11}{general(error):>11}{tested}{bounds}"


def _label(estimates: Estimation, names: list[str], cell: tuple[float, ...]) -> str:
    labels = estimates.more["design"].labels
    return " ".join(labels.get(n, {}).get(v, general(v)) for n, v in zip(names, cell, strict=True))


COMMANDS = {
    "contrast": CommandSpec("contrast", contrast, options={"small": ("small", False)}),
    "pwcompare": CommandSpec(
        "pwcomp",
        pwcompare,
        options={
            "effects": ("eff", False),
            "mcompare": ("mcomp", True),
            "small": ("small", False),
            "level": ("l", True),
        },
    ),
}
