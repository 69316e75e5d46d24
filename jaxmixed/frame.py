"""The one place where data frames become arrays: formula and data in, `ModelFrame` out.

Rows with a missing value in any used column are dropped from every array together, before anything is
encoded; infinite values are errors. Nothing here knows about likelihoods, and nothing later knows about data
frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from jaxmixed import relatedness
from jaxmixed.contrasts import FactorCoding
from jaxmixed.encoding import (
    INTERCEPT,
    EffectsCoding,
    Encoding,
    Evaluator,
    Plan,
    UserFunctions,
    code_effects,
    design_matrix,
    matching_columns,
    plan_of,
)
from jaxmixed.errors import DataError, DesignError
from jaxmixed.formula import parse
from jaxmixed.grouping import GroupCoding, code_group
from jaxmixed.ingest import DataColumn, example_value, numbers, read_columns
from jaxmixed.relationship import Known, Relationship, check_labels, match_levels
from jaxmixed.row_arguments import complete_rows, extra_column, precision_weights
from jaxmixed.terms import FEW_PARAMETERS, ORDERED, Call, Column, Expr, Formula, RandomTerm

_MISSING_OPTIONS = ("drop", "raise")
_MAX_COVARIANCE_PARAMETERS = 5_000


@dataclass(frozen=True, slots=True, eq=False)
class GroupDesign:
    """One random-effects term on the kept rows.

    Parameters
    ----------
    term
        The term of the formula.
    label
        Name of the grouping: ``"school"``, ``"school:class"``.
    columns
        Grouping columns.
    names
        Names of the effects.
    Z : numpy.ndarray of shape (n, q)
        Values of the effects, read-only; a view of X where the same columns stand there.
    codes : numpy.ndarray of shape (n,), int64
        Level number of each row. Terms with the same grouping share this object, and ``levels``.
    levels : pandas.Index
        The m levels: values of the column, or texts "a:b" for a combination of columns.
    structure : str
        Name of the covariance structure; of a given covariance function, that itself.
    relationship : Relationship or None
        Known relationship between the levels. Levels without rows then follow those that have some.
    factor_levels : pandas.Index or None
        Where the effects are the indicators of all levels of one factor, those levels.
    factor_places : numpy.ndarray of int or None
        Their places among all categories, used or not, of a factor whose categories are ordered.
    """

    term: RandomTerm
    label: str
    columns: tuple[str, ...]
    names: tuple[str, ...]
    Z: np.ndarray
    codes: np.ndarray
    levels: pd.Index
    structure: Any
    relationship: Relationship | None = None
    factor_levels: pd.Index | None = None
    factor_places: np.ndarray | None = None

    @property
    def num_recorded(self) -> int:
        """Number of levels with rows."""
        return len(self.levels) if self.relationship is None else self.relationship.recorded


@dataclass(frozen=True, slots=True, eq=False)
class ModelFrame:
    """Arrays and labels of a model, n rows.

    Parameters
    ----------
    formula
        The parsed formula.
    y : numpy.ndarray of shape (n,)
        Response, read-only.
    X : numpy.ndarray of shape (n, p)
        Fixed-effects design in column order, read-only.
    x_names
        Names of its columns, as R gives them.
    x_assign
        Number of the term of each column: 0 for the intercept, k for ``term_labels[k - 1]``.
    term_labels
        Labels of the fixed-effects terms, without the intercept.
    groups
        The random-effects terms, in the order of the formula.
    weights, offset : numpy.ndarray of shape (n,), or None
        Precision weights; sum of all offsets.
    index
        Index labels of the kept rows.
    kept : numpy.ndarray of bool
        The rows of the data that are used.
    n_dropped
        Number of rows dropped for missing values.
    dropped_by
        Missing values of each column that has some.
    encoding
        Encodes new data alike.
    response_name
        Label of the response.
    data_repr
        Short description of the data.
    columns
        The columns of the fixed effects and of the formula's offsets as they were read, by name: the kept
        rows, copied. ``fixed_data`` gives them as a table.
    also
        Further columns that were asked for, by name: the kept rows, copied.
    residual
        Structure of the residuals on the kept rows (:class:`jaxmixed.residual_frame.ResidualFrame`); None
        where these are independent.
    sampling
        Weights by which rows and groups count (:class:`jaxmixed.sampling.SamplingFrame`); None for once.
    """

    formula: Formula
    y: np.ndarray
    X: np.ndarray
    x_names: tuple[str, ...]
    x_assign: tuple[int, ...]
    term_labels: tuple[str, ...]
    groups: tuple[GroupDesign, ...]
    weights: np.ndarray | None
    offset: np.ndarray | None
    index: pd.Index
    kept: np.ndarray
    n_dropped: int
    dropped_by: dict[str, int]
    encoding: Encoding
    response_name: str
    data_repr: str
    columns: Mapping[str, DataColumn]
    also: Mapping[str, DataColumn] = field(default_factory=dict)
    residual: Any = None
    sampling: Any = None

    @property
    def y_less_offset(self) -> np.ndarray:
        """Response (n,) less any offset: what is fitted."""
        return self.y if self.offset is None else self.y - self.offset

    @property
    def fixed_data(self) -> dict[str, Any]:
        """Table that the fixed effects were encoded from, the rows used; not to be changed in place."""
        return {name: column.values for name, column in self.columns.items()}


def build_frame(
    formula: Formula | str,
    data: Any,
    *,
    weights: Any = None,
    offset: Any = None,
    missing: str = "drop",
    contrasts: Mapping[str, str] | None = None,
    functions: UserFunctions | None = None,
    relationships: Mapping[str, Known] | None = None,
    covariance: Any = None,
    also: Sequence[str] = (),
) -> ModelFrame:
    """Bring formula and data together.

    Parameters
    ----------
    formula
        Parsed formula, or its text.
    data
        pandas or polars data frame, pyarrow table, dict of columns, numpy structured array. It is not
        modified.
    weights
        Precision weights, Var(e_i) = sigma^2 / w_i: name of a column, or an array with one positive number
        per row.
    offset
        Known addend of the linear predictor: name of a column, or an array. Offsets in the formula are added
        to it.
    missing
        ``"drop"`` leaves out rows with a missing value in a used column; ``"raise"`` makes them an error.
    contrasts
        Contrast per factor: ``{"recipe": "sum"}``. The default is ``"poly"`` for ordered categoricals, as in
        R, and ``"treatment"`` for other factors. A contrast in the formula takes precedence.
    functions
        Functions of the caller that the formula may use, by name; they get float64 arrays of the kept rows.
    relationships
        Known relationships between levels, by group label.
    covariance
        Structures of the random effects as :func:`jaxmixed.mixed` takes them: effects with a covariance
        function, of few parameters, may outnumber the rows.
    also
        Further columns to be read, such as those of a residual structure. A row in which one of them is
        missing is left out.

    Returns
    -------
    ModelFrame

    Raises
    ------
    FormulaError, DataError, DesignError
        Naming the column, term or level at fault.

    Examples
    --------
    >>> data = {"y": [1.0, 2.0, 4.0, 3.0, 5.0, 9.0], "f": list("aabbcc"), "g": [1, 2, 1, 2, 1, 2]}
    >>> frame = build_frame("y ~ f + (1 | g)", data)
    >>> frame.x_names
    ('(Intercept)', 'fb', 'fc')
    >>> frame.groups[0].codes.tolist()
    [0, 1, 0, 1, 0, 1]
    """
    if missing not in _MISSING_OPTIONS:
        raise DataError(
            f"missing={missing!r} is not an option; choose one of {', '.join(map(repr, _MISSING_OPTIONS))}"
        )
    functions = dict(functions or {})
    contrasts = dict(contrasts or {})
    if isinstance(formula, str):
        formula = parse(formula, frozenset(functions))
    plan = plan_of(formula)
    extra_names = [name for name in (weights, offset, *also) if isinstance(name, str)]
    names = tuple(dict.fromkeys((*plan.columns, *extra_names))) if extra_names else plan.columns
    table = read_columns(data, names)
    weight_column = extra_column("weights", weights, table)
    offset_column = extra_column("offset", offset, table)
    kept, dropped_by = complete_rows(table, (weight_column, offset_column), missing)

    evaluator = Evaluator(table, kept, functions, contrasts)
    y = _response(formula.response, evaluator)
    X, groups, encoding = _designs(formula, plan, evaluator, offset, relationships or {}, covariance)
    frame = ModelFrame(
        formula=formula,
        y=y,
        X=X,
        x_names=encoding.fixed.names,
        x_assign=encoding.fixed.assign,
        term_labels=tuple(term.label for term in plan.fixed),
        groups=groups,
        weights=None if weight_column is None else precision_weights(weight_column, kept),
        offset=_offset(formula, offset_column, evaluator),
        index=table.index if kept is None else table.index[kept],
        kept=np.ones(table.num_rows, dtype=bool) if kept is None else kept,
        n_dropped=table.num_rows - evaluator.num_rows,
        dropped_by=dropped_by,
        encoding=encoding,
        response_name=formula.response.label,
        data_repr=table.description,
        columns={name: table.columns[name].copied(kept) for name in plan.fixed_columns},
        also={name: table.columns[name].copied(kept) for name in also},
    )
    check_identifiability(frame)
    return frame


def _designs(
    formula: Formula,
    plan: Plan,
    evaluator: Evaluator,
    offset: Any,
    relationships: Mapping[str, Known],
    covariance: Any,
) -> tuple[np.ndarray, tuple[GroupDesign, ...], Encoding]:
    """Code all effects, then make the design matrices."""
    fixed = code_effects(formula.fixed.intercept, plan.fixed, evaluator)
    random = tuple(
        code_effects(term.effects.intercept, terms, evaluator)
        for term, terms in zip(formula.random, plan.random, strict=True)
    )
    _check_contrasts(evaluator)
    X = design_matrix(fixed, evaluator)
    X.flags.writeable = False
    groups, group_codings = _group_designs(formula, fixed, X, random, evaluator, relationships, covariance)
    encoding = Encoding(
        formula=formula,
        factors=evaluator.factors,
        transforms=evaluator.transforms,
        fixed=fixed,
        random=random,
        groups=group_codings,
        offset_source="none" if offset is None else "column" if isinstance(offset, str) else "array",
        offset_column=offset if isinstance(offset, str) else "",
        functions=evaluator.functions,
    )
    return X, groups, encoding


def _response(expr: Expr, evaluator: Evaluator) -> np.ndarray:
    """Response as a new float64 array; not constant."""
    label = expr.label
    for name in expr.columns:
        column = evaluator.table.columns[name]
        if column.kind != "number":
            raise DataError(
                f"the response {name!r} holds {column.phrase}, e.g. {example_value(column, evaluator.kept)}; "
                "a Gaussian model needs a numeric response"
                + (
                    " (convert it to 0 and 1 yourself if a linear probability model is meant)"
                    if column.kind == "boolean"
                    else ""
                )
            )
    y = np.array(evaluator.vector(expr, "the response"))
    if y.min() == y.max():
        raise DataError(
            f"the response {label} is constant: all {len(y)} rows used equal {y[0]:g}; there is nothing to "
            "model"
        )
    y.flags.writeable = False
    return y


def _offset(formula: Formula, column: DataColumn | None, evaluator: Evaluator) -> np.ndarray | None:
    """Sum of the offsets of the formula and of the argument."""
    if column is None and not formula.offsets:
        return None
    total = np.zeros(evaluator.num_rows)
    for expr in formula.offsets:
        total += evaluator.vector(expr, f"offset({expr.label})")
    if column is not None:
        total += numbers(column, evaluator.kept, "the offset")
    return total


def _check_contrasts(evaluator: Evaluator) -> None:
    unused = [key for key in evaluator.contrasts if key not in evaluator.contrasts_used]
    if unused:
        factors = ", ".join(repr(name) for name in evaluator.factors) or "none"
        raise DataError(
            f"contrasts are given for {', '.join(map(repr, unused))}, not a factor of this model's effects; "
            f"its factors: {factors}"
        )


def _group_designs(
    formula: Formula,
    fixed: EffectsCoding,
    X: np.ndarray,
    random: tuple[EffectsCoding, ...],
    evaluator: Evaluator,
    relationships: Mapping[str, Known],
    covariance: Any,
) -> tuple[tuple[GroupDesign, ...], dict[tuple[str, ...], GroupCoding]]:
    """Random-effects designs; terms with one grouping share its codes and levels."""
    check_labels(relationships, {term.group_label for term in formula.random})
    coded: dict[tuple[str, ...], tuple[np.ndarray, GroupCoding]] = {}
    related: dict[tuple[str, ...], Relationship | None] = {}
    designs = []
    for term, effects in zip(formula.random, random, strict=True):
        if term.group not in coded:
            codes, group = code_group(term.group, evaluator.table, evaluator.kept)
            related[term.group] = _relationship(relationships.get(term.group_label), term, group)
            coded[term.group] = codes, _with_all_levels(group, related[term.group])
        codes, group = coded[term.group]
        relationship = related[term.group]
        recorded = group.levels if relationship is None else group.levels[: relationship.recorded]
        label = term.group_label
        _check_term(term, effects, recorded, len(X), relationship, _is_structured(covariance, term))
        shared = matching_columns(fixed, effects)
        Z = design_matrix(effects, evaluator) if shared is None else X[:, shared]
        Z.flags.writeable = False
        facts = (term, label, term.group, effects.names)
        factor = _factor(effects, evaluator)
        indicated = (None, None) if factor is None else (factor.levels, factor.places)
        designs.append(GroupDesign(*facts, Z, codes, group.levels, term.structure, relationship, *indicated))
    return tuple(designs), {columns: group for columns, (_, group) in coded.items()}


def _is_structured(covariance: Any, term: RandomTerm) -> bool:
    """Whether a term, or another one of its group, is given a covariance function of few parameters."""
    own = covariance.get(term.group_label) if isinstance(covariance, Mapping) else covariance
    several = own if isinstance(own, list | tuple) else (own,)
    asked = [term.structure if one is None else one for one in several]
    names = [one if isinstance(one, str) else one.name if hasattr(one, "name") else "" for one in asked]
    return any(
        name in FEW_PARAMETERS or not (isinstance(one, str) or name in ORDERED)
        for one, name in zip(asked, names, strict=True)
    )


def _factor(effects: EffectsCoding, evaluator: Evaluator) -> FactorCoding | None:
    """The one factor whose indicators are the effects, if that is what they are."""
    if effects.intercept or effects.full != ((True,),):
        return None
    return evaluator.factors[effects.terms[0].labels[0]]


def _relationship(own: Known | None, term: RandomTerm, group: GroupCoding) -> Relationship | None:
    return None if own is None else match_levels(own, group.levels, term.group_label, term.group)


def _with_all_levels(group: GroupCoding, relationship: Relationship | None) -> GroupCoding:
    """The coding with the levels that a relationship matrix has beyond those of the rows."""
    if relationship is None or relationship.recorded == len(relationship.levels):
        return group
    return replace(group, column_levels=(relationship.levels,), levels=relationship.levels)


def _check_term(
    term: RandomTerm,
    effects: EffectsCoding,
    levels: pd.Index,
    num_rows: int,
    relationship: Relationship | None,
    structured: bool,
) -> None:
    """Refuse a term whose variances cannot be estimated, before its columns are built.

    The limits are lme4's: more than one level, fewer levels than rows, and fewer random effects than rows in
    each block of correlated effects. Levels that are related need not repeat: their variance is told from the
    residual variance by the relationships; so need not effects with a covariance function of few parameters.
    """
    label, text, num_levels = term.group_label, term.text, len(levels)
    if num_levels < 2:
        raise DataError(
            f"the grouping {label!r} of {text} has one level, {levels.tolist()[0]!r}, in the rows used; a "
            "variance between groups needs at least two"
        )
    told_apart = relationship is not None and not relationship.is_plain
    if num_levels >= num_rows and not told_apart:
        plain = (
            ""
            if relationship is None
            else "; the relationship matrix given is a multiple of the identity, which says nothing more"
        )
        raise DesignError(
            f"the grouping {label!r} of {text} has {num_levels} levels for {num_rows} rows, one row per "
            f"level, so its variance cannot be told from the residual variance{plain}; group by a column "
            "whose levels repeat"
        )
    if structured:
        return
    width = _block_width(term.structure, effects)
    if width * num_levels >= num_rows and not told_apart:
        raise DesignError(
            f"the term {text} has {width * num_levels} random effects, {num_rows} rows: {width} effects for "
            f"each of {num_levels} levels of {label!r} cannot be told from the residuals; drop effects from "
            "the term"
        )
    parameters = width * (width + 1) // 2
    if term.structure == "unstructured" and parameters > _MAX_COVARIANCE_PARAMETERS:
        raise DesignError(
            f"the term {text} has {width} correlated effects, so {parameters} covariance parameters; use "
            "fewer effects, or a structure such as diag() or cs()"
        )


def check_identifiability(frame: ModelFrame) -> None:
    """Refuse designs whose variance components the data cannot tell apart.

    Two groupings that split the rows alike, and a factor that is fixed and random at once, have flat
    likelihoods.

    Raises
    ------
    DesignError
        Naming the terms at fault.
    """
    _check_same_partition(frame.groups)
    _check_fixed_and_random(frame)


def _block_width(structure: str, effects: EffectsCoding) -> int:
    """Effects per level in one covariance block: all, or those of one variable when independent."""
    if structure != "independent":
        return len(effects.names)
    return max(effects.assign.count(number) for number in set(effects.assign))


def _check_same_partition(groups: tuple[GroupDesign, ...]) -> None:
    for position, group in enumerate(groups):
        for other in groups[:position]:
            different = group.columns == other.columns or group.num_recorded != other.num_recorded
            if different or not set(group.names) & set(other.names):
                continue
            partner = np.empty(group.num_recorded, dtype=np.int64)
            partner[group.codes] = other.codes
            alike = np.array_equal(partner[group.codes], other.codes)
            if alike and (_unrelated(group, other) or _related_alike(group, other, partner)):
                raise DesignError(
                    f"the groupings {other.label!r} and {group.label!r} split the rows into the same "
                    f"{group.num_recorded} groups, so the variances of {other.term.text} and "
                    f"{group.term.text} cannot be told apart; keep one of them"
                )


def _unrelated(group: GroupDesign, other: GroupDesign) -> bool:
    return group.relationship is None and other.relationship is None


def _related_alike(group: GroupDesign, other: GroupDesign, partner: np.ndarray) -> bool:
    """Whether two groupings of the same partition have the same covariances, but for a factor."""
    own, others = (
        np.eye(len(partner)) if one.relationship is None else one.relationship.among_recorded
        for one in (group, other)
    )
    return relatedness.alike(own, others[np.ix_(partner, partner)])


def _check_fixed_and_random(frame: ModelFrame) -> None:
    """Refuse a random intercept of a factor with fixed effects: the likelihood is flat in its variance."""
    fixed_factors = {
        _column_name(term.factors[0])
        for term in frame.formula.fixed.terms
        if len(term.factors) == 1 and term.label in frame.encoding.factors
    }
    for group in frame.groups:
        if len(group.columns) == 1 and group.columns[0] in fixed_factors and INTERCEPT in group.names:
            raise DesignError(
                f"{group.label!r} has fixed effects and is the grouping of {group.term.text}, so the "
                "variance of its random intercept cannot be estimated; keep it in one of the two parts"
            )


def _column_name(expr: Expr) -> str | None:
    """The column behind ``f``, ``factor(f)`` or ``C(f, ...)``."""
    while isinstance(expr, Call) and expr.name in ("C", "factor"):
        expr = expr.args[0]
    return expr.name if isinstance(expr, Column) else None
