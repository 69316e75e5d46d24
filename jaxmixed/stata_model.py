"""What a `mixed` statement asks for: its options, weights, data and the arguments of :func:`jaxmixed.mixed`.

References
----------
StataCorp, Stata Multilevel Mixed-Effects Reference Manual, mixed.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from jaxmixed.denominators import Satterthwaite, kenward_roger
from jaxmixed.errors import JaxMixedWarning
from jaxmixed.fixed_inference import FixedInference
from jaxmixed.formula import parse as parse_formula
from jaxmixed.model import mixed
from jaxmixed.residual_variation import of_any_covariance
from jaxmixed.stata_design import Design, design_of, variables_of
from jaxmixed.stata_factors import terms
from jaxmixed.stata_levels import (
    ALL,
    RandomLevel,
    Request,
    ResidualRequest,
    formula_term,
    random_levels,
    read_levels,
    read_residuals,
    residual_structure,
)
from jaxmixed.stata_session import Session
from jaxmixed.stata_syntax import Option, Statement, abbreviated, nested, suggestion
from jaxmixed.terms import Column

OPTIONS: dict[str, tuple[str, bool | None]] = {
    "mle": ("ml", False),
    "reml": ("reml", False),
    "dfmethod": ("dfm", True),
    "pwscale": ("pwscale", True),
    "residuals": ("res", True),
    "vce": ("vce", True),
    "robust": ("robust", False),
    "cluster": ("cl", True),
    "level": ("l", True),
    "variance": ("var", False),
    "stddeviations": ("stddev", False),
    "noretable": ("noret", False),
    "nofetable": ("nofet", False),
    "noheader": ("nohead", False),
    "nogroup": ("nogr", False),
    "nolrtest": ("nolr", False),
    "nolog": ("nolog", False),
    "noconstant": ("nocons", False),
}

LEVEL_OPTIONS: dict[str, tuple[str, bool | None]] = {
    "covariance": ("cov", True),
    "noconstant": ("nocons", False),
    "fweight": ("fw", True),
    "pweight": ("pw", True),
}

DF_METHODS = {
    "residual": ("res", "Residual"),
    "repeated": ("rep", "Repeated"),
    "satterthwaite": ("sat", "Satterthwaite"),
    "kroger": ("kr", "Kenward–Roger"),
}
"""Supported methods for degrees of freedom: shortest spelling, and name in the header."""

SCALES = {"size": "size", "effective": "eff", "gk": "gk"}

ROWS_WEIGHT = "weight of rows"


@dataclass(frozen=True)
class Options:
    """What the options of a statement ask for.

    Attributes
    ----------
    method : {"ml", "reml"}
    level : float
        Of intervals, in per cent.
    sds : bool
    df_method : str or None
    observed : bool
        Whether degrees of freedom are from the observed information.
    robust : bool
    """

    method: str
    level: float
    sds: bool
    df_method: str | None
    observed: bool
    robust: bool


@dataclass(frozen=True)
class Prepared:
    """A model that is read and has its data."""

    response: str
    design: Design
    levels: list[RandomLevel]
    residual: ResidualRequest | None
    sample: np.ndarray
    frame: pd.DataFrame
    arguments: dict[str, Any]


# Reading. -------------------------------------------------------------------------------------------


def read_options(statement: Statement) -> Options:
    """What the options of a `mixed` statement ask for.

    Raises
    ------
    StataError
        For options that exclude each other, or values that are not supported.
    """
    for pair in (("mle", "reml"), ("variance", "stddeviations")):
        if all(statement.has(name) for name in pair):
            raise statement.error(_token(statement, pair[1]), f"{pair[0]} and {pair[1]} exclude each other")
    method = "reml" if statement.has("reml") else "ml"
    level = read_level(statement)
    df_method, observed = _df_method(statement)
    if df_method is not None and method != "reml":
        raise statement.error(_token(statement, "dfmethod"), "dfmethod() needs the option reml")
    return Options(method, level, statement.has("stddeviations"), df_method, observed, _is_robust(statement))


def read_level(statement: Statement) -> float:
    """The level of intervals, in per cent."""
    level = statement.number("level", 95)
    if not 10 <= level <= 99.99:
        raise statement.error(_token(statement, "level"), "level() takes a number from 10 to 99.99")
    return level


def _token(statement: Statement, name: str) -> Any:
    option = statement.option(name)
    return None if option is None else option.token


def _df_method(statement: Statement) -> tuple[str | None, bool]:
    option = statement.option("dfmethod")
    if option is None:
        return None, False
    tokens, further = nested(statement.script, option.argument or ())
    shortest = {name: least for name, (least, _) in DF_METHODS.items()}
    full = abbreviated(tokens[0].value, shortest) if len(tokens) == 1 else None
    if full is None:
        hint = suggestion(tokens[0].value, DF_METHODS) if tokens else ""
        raise statement.error(
            tokens or option.token,
            f"supported methods for degrees of freedom{hint or ':'} {', '.join(DF_METHODS)}",
        )
    for own in further:
        if own.name not in ("eim", "oim") or full not in ("satterthwaite", "kroger"):
            raise statement.error(own.token, "satterthwaite and kroger take eim (expected) or oim")
        if own.name == "oim" and full == "kroger":
            raise statement.error(own.token, "kroger is with the expected information only: leave oim out")
    return full, any(own.name == "oim" for own in further)


def _is_robust(statement: Statement) -> bool:
    option = statement.option("vce")
    for other in ("robust", "cluster"):
        if option is not None and statement.has(other):
            raise statement.error(_token(statement, other), f"{other} and vce() exclude each other")
    robust = statement.has("robust", "cluster")
    if option is not None:
        kind = option.argument[0] if option.argument else option.token
        full = abbreviated(kind.value, {"oim": "oim", "robust": "r", "cluster": "cl"})
        if full is None or (full != "cluster" and len(option.argument or ()) > 1):
            raise statement.error(
                option.argument or option.token, "vce() takes oim, robust, or cluster and a variable"
            )
        robust = full != "oim"
    if robust and statement.has("reml"):
        raise statement.error(
            _token(statement, "reml"), "robust standard errors need maximum likelihood: leave reml out"
        )
    if robust and not statement.levels:
        raise statement.error(None, "robust standard errors need a level, which is the cluster; see regress")
    return robust


def _cluster_of(session: Session, statement: Statement) -> str | None:
    """The variable of vce(cluster), or None."""
    option = statement.option("vce")
    tokens = (option.argument or ())[1:] if option else ()
    option = statement.option("cluster") or option
    if statement.has("cluster") and option:
        tokens = option.argument or ()
    if not tokens:
        return None
    return session.variables(statement).one(tokens[0])


def prepare(session: Session, statement: Statement, options: Options) -> Prepared:
    """Read a statement, find its sample, and make the arguments of :func:`jaxmixed.mixed`."""
    if not statement.arguments:
        raise statement.error(None, "mixed needs a response, as in: mixed score ses || school:")
    response = session.varlist(statement, statement.arguments[:1], numeric=True)[0]
    effects = terms(statement, statement.arguments[1:], session.variables(statement))
    requests = read_levels(session, statement)
    residual = read_residuals(session, statement)
    cluster = _cluster_of(session, statement)
    if cluster is not None and cluster != (requests[0].name if requests else None):
        raise statement.error(
            (statement.option("vce") or statement.option("cluster") or statement.options[0]).token,
            f"clusters are the groups of the outermost level, '{requests[0].name}'",
        )
    weights = _weights(session, statement, requests)
    if weights and options.method == "reml":
        raise statement.error(_token(statement, "reml"), "weights need maximum likelihood: leave reml out")
    names = [response, *variables_of(effects), *(name for own in requests for name in own.variables)]
    names += [name for name in (residual.time, residual.by) if name] if residual else []
    sample = session.sample(statement) & present(session, names)
    for values in weights.values():
        sample &= ~np.isnan(values)
    if not sample.any():
        raise statement.error(None, "no rows are left: all are missing a value, or excluded by if and in")
    frame = session.frame.loc[sample].reset_index(drop=True)
    design = design_of(statement, effects, frame, session.state.labels, not statement.has("noconstant"))
    check_not_empty(statement, design)
    levels = random_levels(session, statement, requests, frame)
    data = _data(session, frame, design, levels, residual)
    for name, values in weights.items():
        data[name] = values[sample]
    arguments = {
        "formula": _formula(response, design, levels),
        "data": data,
        "method": options.method,
        "covariance": None,
        "residuals": residual_structure(statement, residual, levels),
        **weight_arguments(statement, requests, weights),
    }
    arguments["covariance"] = _structures(arguments["formula"], levels)
    return Prepared(response, design, levels, residual, sample, frame, arguments)


def check_not_empty(statement: Statement, design: Design) -> None:
    """Refuse a fixed part without any effect."""
    if not design.names:
        raise statement.error(
            None, "without the constant no effect is left: name variables, or leave noconstant out"
        )


def present(session: Session, names: Sequence[str]) -> np.ndarray:
    """Rows in which none of the variables is missing.

    Returns
    -------
    (n,) bool array
    """
    kept = np.ones(len(session.frame), dtype=bool)
    for name in dict.fromkeys(names):
        column = session.frame[name]
        kept &= (column != "").to_numpy() if session.is_text(name) else column.notna().to_numpy()
    return kept


def _data(
    session: Session,
    frame: pd.DataFrame,
    design: Design,
    levels: Sequence[RandomLevel],
    residual: ResidualRequest | None,
) -> pd.DataFrame:
    """Columns for the formula: the effects under their own names, groups by labels or as whole numbers."""
    data = {name: frame[name] for name in frame.columns}
    designs = (design, *(level.design for level in levels))
    effects = {column.name for own in designs for column in own.columns}
    keys = [name for own in levels for name in own.grouping]
    keys += [name for name in (residual.time, residual.by) if name] if residual else []
    time = residual.time if residual else None
    for name in keys:
        labels = session.state.labels.get(name, {})
        if session.is_text(name):
            continue
        # What is an effect, too, has to stay a number.
        if name not in effects and name != time and _tell_apart(labels, frame[name]):
            shown = frame[name].map(labels)
            data[name] = pd.Series(pd.Categorical(shown, [labels[code] for code in sorted(labels)]))
        elif (frame[name] == np.floor(frame[name])).all():
            data[name] = frame[name].astype(np.int64)
    if any(not own.grouping for own in levels):
        data[ALL] = pd.Series(np.ones(len(frame), dtype=np.int64))
    for own in designs:
        for column in own.columns:
            data.setdefault(column.name, pd.Series(column.values(frame)))
    return pd.DataFrame(data)


def _tell_apart(labels: Mapping[float, str], values: pd.Series) -> bool:
    """Whether all values have labels, and different ones."""
    return len(set(labels.values())) == len(labels) and bool(values.isin(list(labels)).all())


def _formula(response: str, design: Design, levels: Sequence[RandomLevel]) -> str:
    effects = ["1" if design.constant else "0", *(Column(column.name).label for column in design.columns)]
    effects += [formula_term(level) for level in levels if level.term is not None]
    return f"{Column(response).label} ~ {' + '.join(effects)}"


def _structures(formula: str, levels: Sequence[RandomLevel]) -> dict[str, list[str] | str] | None:
    """Covariance structures by group label, lists where a group has several terms."""
    bars = parse_formula(formula).random
    own = [level for level in levels if level.term is not None]
    found: dict[str, list[str]] = {}
    for bar, level in zip(bars, own, strict=True):
        size = len(level.names)
        structure = "unstructured" if size == 1 else level.request.structure
        found.setdefault(bar.group_label, []).append(structure)
    return {label: names[0] if len(names) == 1 else names for label, names in found.items()} or None


# Weights. -------------------------------------------------------------------------------------------


def _weights(session: Session, statement: Statement, requests: Sequence[Request]) -> dict[str, np.ndarray]:
    """Values of all weights by the name of their column."""
    found: dict[str, np.ndarray] = {}
    kinds = set()
    if statement.weight is not None:
        kinds.add(statement.weight.kind)
        found[ROWS_WEIGHT] = np.asarray(session.weights(statement), dtype=np.float64)
    for request in requests:
        for option in weight_options(request):
            kinds.add(option.name)
            values = session.values(statement, option.argument or ())
            found[weight_column(request)] = np.asarray(values, dtype=np.float64)
            if len(kinds) > 1:
                raise statement.error(option.token, "all weights are of one kind: pweight or fweight")
    for request in requests:
        if weight_options(request) and request.factor:
            raise statement.error(weight_options(request)[0].token, "levels of R.variable take no weights")
    return found


def weight_options(request: Request) -> list[Option]:
    """The options of a level that give weights."""
    return [option for option in request.level.options if option.name in ("pweight", "fweight")]


def weight_column(request: Request) -> str:
    """Name of the column that holds a level's weights."""
    return f"weight of {request.name}"


def weight_arguments(
    statement: Statement, requests: Sequence[Request], weights: Collection[str]
) -> dict[str, Any]:
    """Arguments of :func:`jaxmixed.mixed` about weights; `weights` are the names of their columns."""
    scale = statement.option("pwscale")
    if not weights:
        if scale is not None:
            raise statement.error(scale.token, "pwscale() needs sampling weights, as in [pweight=w]")
        return {}
    columns: dict[str, str] = {"obs": ROWS_WEIGHT} if ROWS_WEIGHT in weights else {}
    kinds = {statement.weight.kind} if statement.weight else set()
    for request in requests:
        for option in weight_options(request):
            kinds.add(option.name)
            columns[":".join(request.grouping)] = weight_column(request)
    if kinds == {"fweight"}:
        if scale is not None:
            raise statement.error(scale.token, "pwscale() is for sampling weights, not for frequency weights")
        return {"frequency_weights": columns}
    found: dict[str, Any] = {"sampling_weights": columns}
    if scale is not None:
        tokens = scale.argument or ()
        full = abbreviated(tokens[0].value, SCALES) if len(tokens) == 1 else None
        if full is None:
            raise statement.error(tokens or scale.token, f"pwscale() takes one of {', '.join(SCALES)}")
        if len({request.grouping for request in requests}) != 1:
            raise statement.error(scale.token, "pwscale() is for models of two levels")
        found["weight_scaling"] = full
    return found


# Fitting. -------------------------------------------------------------------------------------------


def fitted(prepared: Prepared, **further: Any) -> tuple[Any, list[str]]:
    """The fit, and the texts of warnings that the tables do not repeat."""
    arguments = {**prepared.arguments, **further}
    formula, data = arguments.pop("formula"), arguments.pop("data")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", JaxMixedWarning)
        fit = mixed(formula, data, **arguments)
    said = {*fit.diagnostics.messages, *fit.diagnostics.singular_terms}
    told = [
        str(own.message)
        for own in caught
        if not any(text in str(own.message) for text in said)
        and not (fit.diagnostics.rank_deficient and "dropped" in str(own.message))
    ]
    return fit, told


def degrees_of_freedom(fit: Any, options: Options) -> FixedInference:
    """Inference by the method of degrees of freedom that was asked for."""
    method = options.df_method
    if method is None:
        found: FixedInference = fit.fixed_inference("none")
        return found
    if method == "residual":
        found = fit.fixed_inference("residual")
    elif method == "repeated":
        found = fit.fixed_inference("between-within")
    elif method == "kroger":
        found = fit.fixed_inference("kenward-roger")
    elif options.observed:
        found = fit.fixed_inference("satterthwaite")
    else:
        own = kenward_roger(fit.estimates, of_any_covariance(fit.state))
        slopes = -np.einsum("ij,kjl,lm->kim", own.unadjusted, own.slopes, own.unadjusted)
        scale = fit.estimates.sigma**2
        expected = Satterthwaite(own.back, scale * own.unadjusted, scale * slopes, own.parameter_covariance)
        found = replace(fit.fixed_inference("satterthwaite"), reference=expected)
    return found
