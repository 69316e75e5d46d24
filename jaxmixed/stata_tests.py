"""Stata's `test`, `testparm`, `lincom` and `nlcom`: hypotheses about coefficients.

References
----------
StataCorp, Stata Base Reference Manual, test, lincom, nlcom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxmixed._distributions import chi2_p_value, f_p_value, t_p_values, t_quantiles
from jaxmixed.crossproducts import block_diagonal
from jaxmixed.fixed_inference import FixedInference, independent_rows
from jaxmixed.stata_design import CONSTANT
from jaxmixed.stata_expressions import evaluate
from jaxmixed.stata_factors import Term, terms
from jaxmixed.stata_formats import general
from jaxmixed.stata_model import read_level
from jaxmixed.stata_parameters import full_names, variance_metric
from jaxmixed.stata_session import CommandSpec, Estimation, Session
from jaxmixed.stata_syntax import Statement, Tokens, closing, split
from jaxmixed.stata_tables import Row, coefficient_table
from jaxmixed.stata_tokens import Token

_LINEAR = 1e-9
"""A function whose values differ by less, in units of their size, from those of a linear one is linear."""

_STEP = 1e-3
"""Of numerical derivatives, in units of the larger of a parameter's size and its standard error."""

_COMMANDS = ("mixed", "regress", "xtreg")


@dataclass(frozen=True)
class Linear:
    """A linear function of the coefficients: weights (p,) in the order of `full_names`, and a constant."""

    weights: np.ndarray
    constant: float


def evaluated(
    session: Session, statement: Statement, tokens: Tokens, b: dict[str, float], bare: bool = True
) -> float:
    """An expression of coefficients, at given values of these.

    Parameters
    ----------
    session, statement
    tokens : tuple of Token
    b : dict
        Values by name.
    bare : bool
        Whether names stand for coefficients, not only ``_b[name]``.
    """
    rows = replace(session.rows(statement), coefficients=bare, b=b)
    value = rows.spread(evaluate(rows, tokens), at_least=1)[0]
    if isinstance(value, str):
        raise statement.error(tokens, "a number is needed here, not a text")
    return float(value)


def without_equations(statement: Statement, tokens: Tokens, response: str) -> Tokens:
    """``[y]x`` as ``x``, and ``[lns1_1_1]_cons`` as ``_b[lns1_1_1:_cons]``."""
    found: list[Token] = []
    at = 0
    while at < len(tokens):
        here = tokens[at : at + 4]
        opens = [token.kind for token in here[:3]] == ["[", "name", "]"]
        before = tokens[at - 1] if at else None
        attached = before is not None and before.kind == "name" and before.end == tokens[at].start
        if opens and not attached and len(here) == 4 and here[3].kind in ("name", "number"):
            if here[1].value != response:
                name = here[3]
                colon = Token(":", ":", here[2].start, here[2].end)
                bracket = Token("]", "]", name.start, name.end)
                base = Token("name", "_b", here[0].start, here[0].start)
                found += [base, here[0], here[1], colon, name, bracket]
                at += 4
                continue
            at += 3
        else:
            found.append(tokens[at])
            at += 1
    return tuple(found)


def linear_function(session: Session, statement: Statement, estimates: Estimation, tokens: Tokens) -> Linear:
    """A linear function of coefficients.

    Raises
    ------
    StataError
        If the expression is not linear, or names what is no coefficient.
    """
    if not tokens:
        raise statement.error(None, "an expression of coefficients is missing")
    names, _ = full_names(estimates)
    response = estimates.more["response"]
    tokens = without_equations(statement, tokens, response)
    bases = {
        f"{base:.10g}.{name}": 0.0
        for name, base in estimates.more["design"].bases.items()
        if base is not None
    }
    has_equation = any(token.kind == ":" for token in tokens)

    def at(values: np.ndarray) -> float:
        own = dict(zip(names, (float(value) for value in values), strict=True))
        if has_equation:
            own |= {f"{response}:{name}": value for name, value in own.items()}
        return evaluated(session, statement, tokens, {**bases, **own})

    zero = np.zeros(len(names))
    constant = at(zero)
    weights = np.array([at(row) - constant for row in np.eye(len(names))])
    b = np.array([estimates.b[name] for name in names])
    for point in (b, 1.0 + np.arange(len(names)), -3.0 - b):
        expected = constant + weights @ point
        size = abs(constant) + np.abs(weights) @ np.abs(point)
        if not abs(at(point) - expected) <= _LINEAR * max(size, 1e-300):
            raise statement.error(tokens, "this is not linear in the coefficients: see nlcom")
    return Linear(weights, constant)


def constraint(estimates: Estimation, own: Linear, rhs: float = 0.0) -> str:
    """``[y]x1 - 2*[y]x2 = 1``."""
    names, _ = full_names(estimates)
    prefix = f"[{estimates.more['response']}]" if estimates.command == "mixed" else ""
    text = ""
    for name, weight in zip(names, own.weights, strict=True):
        if weight == 0:
            continue
        size = "" if abs(weight) == 1 else f"{general(abs(weight))}*"
        sign = ("- " if weight < 0 else "") if not text else (" - " if weight < 0 else " + ")
        text += f"{sign}{size}{prefix}{name}"
    return f"{text or '0'} = {general(rhs - own.constant)}"


def on_all(estimates: Estimation, weights: np.ndarray) -> np.ndarray:
    """Rows of weights (c, p) of `full_names` as rows for the inference."""
    _, positions = full_names(estimates)
    inference: FixedInference = estimates.more["inference"]
    found = np.zeros((len(weights), len(inference.names)))
    found[:, positions] = weights
    return found


def is_small(statement: Statement, estimates: Estimation) -> bool:
    """Whether tests are t and F: always but after mixed, where the option small asks for them."""
    if estimates.command != "mixed":
        one = np.eye(1, len(full_names(estimates)[0]))
        return bool(np.isfinite(estimates.more["inference"].of_kept.df(on_all(estimates, one))).all())
    if statement.has("small") and estimates.more["options"].df_method is None:
        raise statement.error(
            statement.option("small").token,  # type: ignore[union-attr]
            "small needs degrees of freedom: fit the model by reml with dfmethod()",
        )
    return statement.has("small")


# test and testparm. -----------------------------------------------------------------------------------


def test(session: Session, statement: Statement) -> None:
    """Wald test of linear hypotheses."""
    estimates = session.need_estimates(statement, *_COMMANDS)
    found: list[Linear] = []
    for tokens in _hypotheses(statement):
        sides = _sides(tokens)
        if len(sides) == 1:
            found += [linear_function(session, statement, estimates, own) for own in _listed(tokens)]
            continue
        first = linear_function(session, statement, estimates, sides[0])
        for side in sides[1:]:
            other = linear_function(session, statement, estimates, side)
            found.append(Linear(first.weights - other.weights, first.constant - other.constant))
    wald(session, statement, estimates, found)


def _hypotheses(statement: Statement) -> list[Tokens]:
    """The contents of parentheses that stand side by side, or everything."""
    tokens = statement.arguments
    if not tokens:
        raise statement.error(None, "test needs coefficients, as in test x1 x2 or test x1 = x2")
    if tokens[0].kind != "(":
        return [tokens]
    found: list[Tokens] = []
    at = 0
    while at < len(tokens) and tokens[at].kind == "(":
        end = at + closing(tokens[at:], 0)
        found.append(tokens[at + 1 : end])
        at = end + 1
    return found if at == len(tokens) else [tokens]


def _sides(tokens: Tokens) -> list[Tokens]:
    return [side for part in split(tokens, "=") for side in split(part, "==")]


def _listed(tokens: Tokens) -> list[Tokens]:
    """Coefficients of a list: names and what touches them."""
    pieces: list[list[Token]] = []
    for token in tokens:
        if pieces and pieces[-1][-1].end == token.start:
            pieces[-1].append(token)
        else:
            pieces.append([token])
    return [tuple(piece) for piece in pieces]


def testparm(session: Session, statement: Statement) -> None:
    """Test that the coefficients of a list of effects are zero, or (``equal``) equal."""
    estimates = session.need_estimates(statement, *_COMMANDS)
    if not statement.arguments:
        raise statement.error(None, "testparm needs effects, as in testparm i.race")
    names, _ = full_names(estimates)
    chosen: list[str] = []
    for term in terms(statement, statement.arguments, session.variables(statement)):
        own = [name for name in _columns(estimates, term) if name in names]
        if not own:
            raise statement.error(
                term.tokens, f"the model has no coefficients of '{statement.source(term.tokens)}'"
            )
        chosen += [name for name in own if name not in chosen]
    rows = np.array([[float(name == own) for own in names] for name in chosen])
    if statement.has("equal"):
        if len(rows) < 2:
            raise statement.error(statement.arguments, "equal needs two coefficients or more")
        rows = rows[1:] - rows[0]
        rows = -rows
    wald(session, statement, estimates, [Linear(row, 0.0) for row in rows])


def _columns(estimates: Estimation, term: Term) -> list[str]:
    """Names of the columns of the model that belong to an effect."""
    found = []
    wanted = sorted((factor.name, factor.categorical) for factor in term.factors)
    levels = {factor.name: factor.levels for factor in term.factors if factor.levels}
    for own in estimates.more["design"].terms:
        if sorted((factor.name, factor.categorical) for factor in own.factors) == wanted:
            found += [
                column.name
                for column in own.columns
                if all(piece.level in levels.get(piece.name, (piece.level,)) for piece in column.pieces)
            ]
    return found


def wald(session: Session, statement: Statement, estimates: Estimation, found: Sequence[Linear]) -> None:
    """Print the joint test of linear functions."""
    lines = [""] + [f" ({number:2d})  {constraint(estimates, own)}" for number, own in enumerate(found, 1)]
    weights = np.array([own.weights for own in found])
    constants = np.array([own.constant for own in found])
    kept = independent_rows(weights)
    for number in sorted(set(range(len(found))) - set(kept)):
        _check_consistent(statement, weights, constants, kept, number)
        lines.append(f"       Constraint {number + 1} dropped")
    if not len(kept):
        raise statement.error(
            statement.arguments, "nothing is tested: no coefficient is left in the hypotheses"
        )
    inference: FixedInference = estimates.more["inference"].of_kept
    L = on_all(estimates, weights[kept])
    values = inference.estimate(L) + constants[kept]
    if is_small(statement, estimates):
        own = inference.joint_test(L, -constants[kept])
        p_value = float(f_p_value(own.statistic, own.num_df, own.den_df))
        den_df = f"{own.den_df:.{0 if own.den_df % 1 == 0 else 2}f}"
        lines += [
            "",
            f"       F({own.num_df:3d},{den_df:>6}) ={own.statistic:8.2f}",
        ]
        lines.append(f"{'Prob > F =':>22}{p_value:10.4f}")
        session.r = {"F": own.statistic, "df": float(own.num_df), "df_r": own.den_df, "p": p_value}
    else:
        statistic = float(values @ np.linalg.solve(inference.covariance(L), values))
        p_value = float(chi2_p_value(statistic, len(kept)))
        lines += [
            "",
            f"           chi2({len(kept):3d}) ={statistic:8.2f}",
            f"{'Prob > chi2 =':>22}{p_value:10.4f}",
        ]
        session.r = {"chi2": statistic, "df": float(len(kept)), "p": p_value}
    session.write("\n".join(lines))


def _check_consistent(
    statement: Statement, weights: np.ndarray, constants: np.ndarray, kept: np.ndarray, number: int
) -> None:
    """Refuse a hypothesis that contradicts others, such as x = 1 after x = 0."""
    if len(kept):
        share = np.linalg.lstsq(weights[kept].T, weights[number])[0]
        implied = share @ constants[kept]
    else:
        implied = 0.0
    if abs(implied - constants[number]) > 1e-8 * max(1.0, np.abs(constants).max()):
        raise statement.error(statement.arguments, f"hypothesis {number + 1} contradicts the others")


# lincom and nlcom. ------------------------------------------------------------------------------------


def lincom(session: Session, statement: Statement) -> None:
    """A linear combination of coefficients."""
    estimates = session.need_estimates(statement, *_COMMANDS)
    level = read_level(statement)
    own = linear_function(session, statement, estimates, statement.arguments)
    inference: FixedInference = estimates.more["inference"].of_kept
    L = on_all(estimates, own.weights[None])
    estimate = float(inference.estimate(L)[0]) + own.constant
    error = float(np.sqrt(inference.covariance(L)[0, 0]))
    small = is_small(statement, estimates)
    df = float(inference.df(L)[0]) if small else np.inf
    row = result_row("(1)", estimate, error, df, level)
    lines = ["", f" ( 1)  {constraint(estimates, own)}", ""]
    lines += coefficient_table(
        estimates.more["response"],
        [row],
        statistic="t" if small else "z",
        level=level,
        robust=_is_robust(estimates),
    )
    kind = {"df": df, "t": row.statistic} if small else {"z": row.statistic}
    bounds = {"p": row.p_value, "lb": row.low, "ub": row.high, "level": level}
    session.r = {"estimate": estimate, "se": error, **bounds, **kind}
    session.write("\n".join(lines))


def _is_robust(estimates: Estimation) -> bool:
    return bool(estimates.more.get("robust", False))


def result_row(label: str, estimate: float, error: float, df: float, level: float) -> Row:
    """A line of a table of coefficients from an estimate and its standard error."""
    with np.errstate(all="ignore"):
        statistic = np.array([estimate / error if error else np.nan])
    half = float(t_quantiles(level / 100, np.array([df]))[0]) * error
    p_value = float(t_p_values(statistic, np.array([df]))[0])
    return Row(label, estimate, error, float(statistic[0]), p_value, estimate - half, estimate + half)


def parameters(estimates: Estimation) -> tuple[list[list[str]], np.ndarray, np.ndarray]:
    """All parameters: the names of each, values, and covariance."""
    names, positions = full_names(estimates)
    inference: FixedInference = estimates.more["inference"]
    covariance = inference.cov[np.ix_(positions, positions)]
    values = inference.beta[positions]
    labels = [[name, f"{estimates.more['response']}:{name}"] for name in names]
    metric = variance_metric(estimates) if estimates.command == "mixed" else None
    if metric is not None:
        covariance = block_diagonal([covariance, metric.covariance])
        values = np.concatenate([values, metric.values])
        labels += [[f"{name}:{CONSTANT}", f"/{name}"] for name in metric.names]
    return labels, values, covariance


def nlcom(session: Session, statement: Statement) -> None:
    """Nonlinear combinations of parameters, by the delta method."""
    estimates = session.need_estimates(statement, *_COMMANDS)
    level = read_level(statement)
    labels, values, covariance = parameters(estimates)
    errors = np.sqrt(np.maximum(np.nan_to_num(np.diagonal(covariance)), 0.0))
    named = _named(statement)
    rows: list[Row] = []
    found: dict[str, float | str] = {}
    lines = [""]
    for label, tokens in named:
        own = without_equations(statement, tokens, estimates.more["response"])

        def at(point: np.ndarray, own: Tokens = own) -> float:
            b = {name: float(v) for names, v in zip(labels, point, strict=True) for name in names}
            return evaluated(session, statement, own, b, bare=False)

        estimate = at(values)
        slopes = np.array([_slope(at, values, errors, place) for place in range(len(values))])
        used = slopes != 0
        if not np.isfinite(estimate) or not np.isfinite(slopes).all():
            raise statement.error(tokens, "this has no value, or no derivative, at the estimates")
        if not used.any():
            raise statement.error(tokens, "no parameter stands in this expression: write it as _b[name]")
        size = len(full_names(estimates)[0])
        if estimates.more.get("robust") and used[:size].any() and used[size:].any():
            raise statement.error(
                tokens,
                "with robust standard errors, coefficients and variances cannot stand in one expression",
            )
        variance = float(slopes[used] @ covariance[np.ix_(used, used)] @ slopes[used])
        if not np.isfinite(variance):
            raise statement.error(tokens, "a parameter in this has no standard error: it is on its boundary")
        small = estimates.command == "regress"
        df = float(estimates.e["df_r"]) if small else np.inf
        rows.append(result_row(label, estimate, float(np.sqrt(max(variance, 0.0))), df, level))
        lines.append(f"{label:>12}:  {statement.source(tokens)}")
        found |= {f"b_{label}": estimate, f"se_{label}": rows[-1].std_error}
    statistic = "t" if estimates.command == "regress" else "z"
    lines += ["", *coefficient_table(estimates.more["response"], rows, statistic=statistic, level=level)]
    session.r = found
    session.write("\n".join(lines))


def _slope(function: object, values: np.ndarray, errors: np.ndarray, place: int) -> float:
    """Derivative in one parameter: the central difference of fourth order."""
    assert callable(function)
    step = _STEP * max(abs(values[place]), errors[place], 1e-8)
    moved = np.zeros(len(values))
    moved[place] = step
    near = function(values + moved) - function(values - moved)
    if near == 0 and function(values + 2 * moved) == function(values - 2 * moved):
        return 0.0
    far = function(values + 2 * moved) - function(values - 2 * moved)
    return float((8 * near - far) / (12 * step))


def _named(statement: Statement) -> list[tuple[str, Tokens]]:
    """Names and expressions of ``(ratio: _b[x1]/_b[x2]) (...)`` or of one expression."""
    tokens = statement.arguments
    if not tokens:
        raise statement.error(None, "nlcom needs an expression, as in nlcom _b[x1]/_b[x2]")
    pieces = _hypotheses(statement)
    found = []
    for number, piece in enumerate(pieces, 1):
        if len(piece) > 2 and piece[0].kind == "name" and piece[1].kind == ":":
            found.append((piece[0].value, piece[2:]))
        else:
            found.append((f"_nl_{number}", piece))
    if len({name for name, _ in found}) < len(found):
        raise statement.error(tokens, "a name is given twice")
    return found


COMMANDS = {
    "test": CommandSpec("te", test, options={"small": ("small", False)}),
    "testparm": CommandSpec("testparm", testparm, options={"small": ("small", False), "equal": ("e", False)}),
    "lincom": CommandSpec("lincom", lincom, options={"small": ("small", False), "level": ("l", True)}),
    "nlcom": CommandSpec("nlcom", nlcom, options={"level": ("l", True)}),
}
