"""Intraclass correlations: how alike two observations of one group are."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from jaxmixed._distributions import normal_quantile
from jaxmixed.encoding import EffectsCoding, Evaluator, design_matrix
from jaxmixed.errors import DataError, DesignError, listed, printable
from jaxmixed.formatting import NotedFrame
from jaxmixed.ingest import Table, constant_column, values_by_column
from jaxmixed.residual_tables import mean_residual, mean_residual_note, require_independent
from jaxmixed.tables import distinct_groups
from jaxmixed.variance_parts import variance_parts

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates, TermEstimate
    from jaxmixed.frame import GroupDesign, ModelFrame

Kind = Literal["correlation", "share"]
_INTERCEPT = "(Intercept)"
WEIGHTED = "for rows of weight 1"
_COLUMNS = ["estimate", "std_error", "conf_low", "conf_high"]


def intraclass_correlation(
    frame: ModelFrame,
    estimates: Estimates,
    kind: Kind = "correlation",
    level: float = 0.95,
    at: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Table of intraclass correlations, outermost grouping first; see `Marginal.icc`, which calls this.

    Parameters
    ----------
    frame : ModelFrame
    estimates : Estimates
    kind, level, at
        As of the method.

    Returns
    -------
    pandas.DataFrame
    """
    if kind not in ("correlation", "share"):
        raise DataError(
            f"kind is {kind!r}; icc() gives kind='correlation' (of two observations of a group) or 'share'"
        )
    half_width = normal_quantile(level)
    require_groups(estimates)
    groups = nested_order(frame, estimates)
    if kind == "correlation":
        require_nested(groups)
        require_independent(estimates, "icc()")
    held, residual = _held(frame, estimates, at), mean_residual(frame, estimates)
    rows, labels = [], []
    for values in itertools.product(*held.values()):
        here = dict(zip(held, values, strict=True))
        covariates = [covariates_at(frame, term, here) for term in estimates.terms]
        parts = variance_parts(estimates, [np.outer(z, z) for z in covariates], residual)
        for i, group in enumerate(groups):
            inside = groups[: i + 1] if kind == "correlation" else [group]
            names = {item.label for item in inside}
            chosen = [place for place, term in enumerate(estimates.terms) if term.group in names]
            rows.append(parts.share(chosen, half_width))
            labels.append((group.label, *values))
    index = (
        pd.MultiIndex.from_tuples(labels, names=["group", *held])
        if held
        else pd.Index([label for (label,) in labels], name="group")
    )
    table = NotedFrame(rows, index=index, columns=_COLUMNS, dtype=np.float64)
    note = _note(frame, estimates, held)
    if note:
        table.attrs["note"] = note
    return table


def require_groups(estimates: Estimates) -> None:
    """Refuse a linear model.

    Raises
    ------
    DesignError
    """
    if not estimates.terms:
        if estimates.residual is not None:
            raise DesignError(
                "the model has no random effects, so there is no intraclass correlation; wcorrelation() gives"
                " the correlations of a group's rows"
            )
        raise DesignError(
            "a linear model has no groups, so there is no intraclass correlation; add a term such as (1 |"
            " school)"
        )


def nested_order(frame: ModelFrame, estimates: Estimates) -> list[GroupDesign]:
    """Groupings from the fewest levels to the most."""
    return sorted(distinct_groups(frame, estimates), key=lambda group: len(group.levels))


def require_nested(groups: list[GroupDesign]) -> None:
    """Refuse groupings of which one does not contain the next.

    Raises
    ------
    DesignError
    """
    for outer, inner in pairwise(groups):
        image = np.zeros(len(inner.levels), dtype=np.int64)
        image[inner.codes] = outer.codes
        if not np.array_equal(image[inner.codes], outer.codes):
            names = f"{printable(outer.label)} and {printable(inner.label)}"
            raise DesignError(
                f"{names} are crossed, so neither correlation contains the other; the share of each in the"
                " variance is defined: icc(kind='share')"
            )


def _held(frame: ModelFrame, estimates: Estimates, at: Mapping[str, Any] | None) -> dict[str, list[Any]]:
    """Values of the columns that random effects are of."""
    if at is None:
        return {}
    if not isinstance(at, Mapping):
        raise DataError(f'at= is {at!r}; give values by column, such as at={{"x": [0, 1]}}')
    known = dict.fromkeys(
        name for term in estimates.terms for name in _columns(frame.groups[term.frame_index])
    )
    unknown = [name for name in at if name not in known]
    if unknown:
        raise DataError(
            f"at= names {listed(unknown)}, but random effects are of {listed(list(known)) or 'no column'};"
            " the variance does not depend on others"
        )
    return values_by_column(at)


def _columns(group: GroupDesign) -> tuple[str, ...]:
    return group.term.effects.columns


def _factors(frame: ModelFrame, coding: EffectsCoding) -> set[str]:
    """Columns that effects code as factors."""
    return {
        expr.columns[0]
        for term in coding.terms
        for expr, label in zip(term.factors, term.labels, strict=True)
        if label in frame.encoding.factors
    }


def covariates_at(frame: ModelFrame, term: TermEstimate, at: Mapping[str, Any]) -> np.ndarray:
    """Covariates (q,) of a term's effects at values of columns, other numeric columns being zero.

    Parameters
    ----------
    frame : ModelFrame
    term : TermEstimate
    at : mapping
        Values by column; a term with none of these columns is taken at its intercept.

    Returns
    -------
    (q,) array

    Raises
    ------
    DesignError, DataError
        If the term has no intercept, or a factor has no value.
    """
    group, names = frame.groups[term.frame_index], _columns(frame.groups[term.frame_index])
    if not set(names) & set(at):
        if _INTERCEPT in term.names:
            return np.array([name == _INTERCEPT for name in term.names], dtype=np.float64)
        if term.covariance.homogeneous and group.factor_levels is not None:
            return np.eye(len(term.names))[0]  # one level, whichever: their variances are the same
        label = printable(group.label)
        raise DesignError(
            f"the random effects of {label} have no intercept, so the variance that its levels share is not"
            f" defined at one point; choose one, at={{{names[0]!r}: ...}}, or add an intercept to the term,"
            f" e.g. (1 + {printable(group.names[-1])} | {label})"
        )
    coding = frame.encoding.random[term.frame_index]
    factors = _factors(frame, coding)
    lacking = [name for name in names if name in factors and name not in at]
    if lacking:
        raise DataError(
            f"at= needs a level of {listed(lacking)}, too: the random effects of {printable(group.label)}"
            " depend on it"
        )
    columns = {name: constant_column(name, at.get(name, 0.0), 1, name in factors) for name in names}
    table = Table(columns, pd.RangeIndex(1), 1, "values of at=")
    evaluator = Evaluator(table, None, frame.encoding.functions, {}, frame.encoding)
    return np.asarray(design_matrix(coding, evaluator)[0])


def _note(frame: ModelFrame, estimates: Estimates, held: Mapping[str, list[Any]]) -> str:
    notes = []
    groups = [(term, frame.groups[term.frame_index]) for term in estimates.terms]
    free = {name for term, group in groups for name in _columns(group)} - set(held)
    if any(_INTERCEPT not in term.names and not set(_columns(group)) & set(held) for term, group in groups):
        notes.append("for rows with the same random effect of a group")
    elif free:
        notes.append(f"at zero of {'other' if held else 'the'} covariates that have random effects")
    if frame.weights is not None:
        notes.append(WEIGHTED)
    if any(group.relationship is not None for group in frame.groups):
        notes.append("for levels whose diagonal element in the relationship matrix is 1")
    several = mean_residual_note(estimates)
    return " and ".join([*notes, several] if several else notes)
