"""Analysis of variance of the fixed effects: types I, II and III, for any coding of factors.

Each type is a set of hypotheses ``L beta = 0`` for each term of the formula, in the sense of SAS [1]_ and as
lmerTest [2]_ forms them. X is n × p of rank r, and beta are its coefficients.

Type I: the rows of a term in the unit upper triangular factor of X'X, columns in the order of the formula:
each term adjusted for those before it.

The rows, and not only the space that they span, are lmerTest's: Satterthwaite's degrees of freedom of several
functions rest on the principal components of their estimates.

Type II: the same with the columns in another order for each term: terms that do not contain it, the term
itself, terms that contain it. A term contains another one if it has all its variables and more, and the same
numeric ones.

Type III: let theta be the parameters of the model written with an indicator for each level, or combination
of levels, of each term; then ``X beta = D theta`` and ``beta = C theta``, so that the rows of C are a basis
of the estimable functions of theta. For a term, the functions of its own coefficients in treatment coding
are made orthogonal to those of the terms that contain it. The hypotheses do not depend on the coding in X,
nor on how often cells of the design occur; with empty cells some functions are not estimable, and the space
is smaller. Where columns are aliased for other reasons the first ones count. (lmerTest differs where a
factor of an interaction is coded by all of its levels, as in ``a + a:b``: it does not take ``a:b`` to
contain ``a``, so that the test of ``a`` depends on the coding of ``b``.)

D is never formed: C follows from the codes of the factors (`indicator_maps`) and the dependencies among the
columns of X, whatever n is.

References
----------
.. [1] SAS Institute. The four types of estimable functions. *SAS/STAT User's Guide*.
.. [2] Kuznetsova, A., Brockhoff, P. B. and Christensen, R. H. B. (2017). lmerTest package: tests in linear
   mixed effects models. *Journal of Statistical Software*, 82(13). https://doi.org/10.18637/jss.v082.i13
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jaxmixed._distributions import f_p_value
from jaxmixed.basis import row_blocks
from jaxmixed.contrasts import FactorCoding, contrast_matrix
from jaxmixed.denominators import FixedDf, wald_f
from jaxmixed.encoding import EffectsCoding
from jaxmixed.errors import DataError, printable
from jaxmixed.fixed_inference import FixedInference, independent_rows
from jaxmixed.formatting import NotedFrame
from jaxmixed.linalg import independent_columns, qr_triangle, stacked_qr_triangle
from jaxmixed.terms import FUNCTIONS, Call, Expr, Number

if TYPE_CHECKING:
    from jaxmixed.frame import ModelFrame

TYPES = {1: 1, 2: 2, 3: 3, "1": 1, "2": 2, "3": 3, "I": 1, "II": 2, "III": 3}
COLUMNS = ("sum_sq", "mean_sq", "num_df", "den_df", "statistic", "p_value")
_NAMES = {1: "Type I", 2: "Type II", 3: "Type III"}
_DEPENDENT = 1e-7
"""A column whose part outside the span of earlier ones is smaller than this share of it depends on them."""
_ZERO = 1e-10


def anova_table(frame: ModelFrame, inference: FixedInference, sigma: float, type: Any = 3) -> pd.DataFrame:
    """Table of F tests, a row per term; see `MixedResults.anova`."""
    number = (
        TYPES.get(type) if isinstance(type, int | str | np.integer) and not isinstance(type, bool) else None
    )
    if number is None:
        raise DataError(f"type is {type!r}; choose 1 (sequential), 2 or 3")
    assign = np.asarray(frame.x_assign, dtype=np.int64)
    hypotheses = term_hypotheses(frame, inference, number)
    rows = [_row(L, assign == term, inference, sigma) for term, L in enumerate(hypotheses, start=1)]
    values = np.array(rows, dtype=np.float64).reshape(len(rows), len(COLUMNS))
    columns: dict[str, np.ndarray] = dict(zip(COLUMNS, values.T, strict=True))
    columns["num_df"] = columns["num_df"].astype(np.int64)
    table = NotedFrame(columns, index=pd.Index(frame.term_labels, name="term", dtype=object))
    parts = [_NAMES[number], inference.title] if inference.title else [_NAMES[number]]
    if inference.ddf == "none":
        parts.append("statistic: chi-squared over num_df")
    incomplete = _incomplete_terms(frame.term_labels, assign, inference.kept)
    if incomplete:
        parts.append(f"columns of {', '.join(incomplete)} were dropped (empty cells?): read with care")
    table.attrs["note"] = "; ".join(parts)
    return table


def _incomplete_terms(labels: Sequence[str], assign: np.ndarray, kept: np.ndarray) -> list[str]:
    """Terms of which some columns, but not all, were dropped: their hypotheses compare what there is."""
    return [
        printable(label)
        for number, label in enumerate(labels, 1)
        if kept[assign == number].any() and not kept[assign == number].all()
    ]


def _row(L: np.ndarray, own: np.ndarray, inference: FixedInference, sigma: float) -> tuple[float, ...]:
    """Values of the table for a term with its hypotheses (c, p) and the mask (p,) of its columns."""
    found = inference.of_kept.joint_test(L)
    if not found.num_df:
        return (math.nan, math.nan, 0, math.nan, math.nan, math.nan)
    # Of the plain F, not of the one that Kenward and Roger scale: a sum of squares has no correction.
    kept = inference.kept
    rows = L[:, kept][independent_rows(L[:, kept])]
    mean_sq = wald_f(inference.cov[np.ix_(kept, kept)], rows, rows @ inference.beta[kept]) * sigma**2
    if isinstance(inference.reference, FixedDf):
        # Those of the term, whatever other coefficients it is adjusted for or averaged over.
        den_df = float(inference.reference.by_coefficient[own[kept]].min())
        found = found._replace(den_df=den_df, p_value=f_p_value(found.statistic, found.num_df, den_df))
    return mean_sq * found.num_df, mean_sq, found.num_df, found.den_df, found.statistic, found.p_value


def term_hypotheses(frame: ModelFrame, inference: FixedInference, number: int) -> list[np.ndarray]:
    """Hypotheses of each term.

    Parameters
    ----------
    frame : ModelFrame
    inference : FixedInference
        Says which columns of X are kept, and what the others depend on.
    number : int
        Type, 1 to 3.

    Returns
    -------
    list of (c, p) arrays
        Functions of the coefficients as they are printed, those of dropped columns zero; without rows for a
        term whose columns were all dropped.
    """
    kept = np.flatnonzero(inference.kept)
    assign = np.asarray(frame.x_assign, dtype=np.int64)[kept]
    numbers = range(1, len(frame.term_labels) + 1)
    if not len(frame.term_labels) or not len(kept):
        return [np.zeros((0, len(inference.names))) for _ in numbers]
    factor, scale = triangular_factor(frame.X, kept)
    containing = _containing(frame.encoding.fixed, frame.encoding.factors)
    if number == 1 or len(numbers) == 1:
        own = [_sequential(factor, scale, np.zeros_like(assign), assign == term) for term in numbers]
    elif number == 2:
        own = [_type2(factor, scale, assign, term, containing[term - 1]) for term in numbers]
    else:
        own = _type3(frame.encoding.fixed, inference, frame.encoding.factors, factor * scale, containing)
    L = [np.zeros((len(rows), len(inference.names))) for rows in own]
    for full, rows in zip(L, own, strict=True):
        # Rounding must not involve a coefficient, whose degrees of freedom might count.
        size = np.abs(rows) / scale
        full[:, kept] = np.where(size > _ZERO * size.max(axis=1, keepdims=True, initial=0.0), rows, 0.0)
    return L


def triangular_factor(X: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Upper triangular factor (r, r) of some columns of X, each divided by its scale; and the scales (r,).

    It is made in blocks of rows, so that large designs are not copied.
    """
    scale = np.abs(X[:, kept]).max(axis=0)
    scale[scale == 0] = 1.0
    return stacked_qr_triangle(X[rows][:, kept] / scale for rows in row_blocks(len(X))), scale


def _containing(coding: EffectsCoding, factors: Mapping[str, FactorCoding]) -> list[tuple[int, ...]]:
    """Numbers (from 1) of the terms that contain each term."""
    variables = [frozenset(term.labels) for term in coding.terms]
    numeric = [frozenset(label for label in labels if label not in factors) for labels in variables]
    return [
        tuple(
            other
            for other in range(1, len(variables) + 1)
            if variables[term] < variables[other - 1] and numeric[term] == numeric[other - 1]
        )
        for term in range(len(variables))
    ]


def _sequential(factor: np.ndarray, scale: np.ndarray, rank: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Hypotheses (c, r) of some columns, each adjusted for those before it in the order of the ranks."""
    order = np.argsort(rank, kind="stable")
    R = qr_triangle(factor[:, order]) if rank.any() else factor
    rows = R[own[order]] / np.diagonal(R)[own[order]][:, None]
    L = np.zeros_like(rows)
    L[:, order] = rows
    return L * scale / scale[own][:, None]


def _type2(
    factor: np.ndarray, scale: np.ndarray, assign: np.ndarray, term: int, containing: Sequence[int]
) -> np.ndarray:
    """Hypotheses (c, r) of type II of a term; that its coefficients are zero, if no other contains it."""
    if not containing:
        return np.eye(len(assign))[assign == term]
    rank = np.where(assign == term, 1, np.where(np.isin(assign, containing), 2, 0))
    return _sequential(factor, scale, rank, rank == 1)


def _type3(
    coding: EffectsCoding,
    inference: FixedInference,
    factors: Mapping[str, FactorCoding],
    factor: np.ndarray,
    containing: list[tuple[int, ...]],
) -> list[np.ndarray]:
    """Hypotheses (c, r) of type III of each term.

    Where an interaction stands without its margins, so that indicators of its cells are not combinations of
    the columns, the hypotheses are that the coefficients of each term are zero.
    """
    kept = inference.kept
    assign = np.asarray(coding.assign, dtype=np.int64)
    maps = indicator_maps(coding, factors)
    if maps is None:
        return [np.eye(kept.sum())[assign[kept] == term] for term in range(1, len(containing) + 1)]
    of_all = np.eye(len(kept))[kept]  # kept coefficients as functions of all
    of_all[:, ~kept] = -inference.aliases[:, kept].T
    of_theta = np.hstack([one.values for one in maps])
    C = of_all @ of_theta
    # Indicators of cells without data are zero; rounding must not make columns of them.
    size = np.abs(factor) @ np.abs(of_all) @ np.abs(of_theta)
    C[:, np.abs(factor @ C).max(axis=0) <= _ZERO * size.max(axis=0)] = 0.0
    treatment = np.concatenate([one.treatment for one in maps])
    candidates = np.flatnonzero(treatment)
    columns = factor @ C[:, candidates]
    chosen = candidates[independent_columns(columns, _DEPENDENT * np.linalg.norm(columns, axis=0))]
    of_term = np.concatenate([np.full(len(one.treatment), one.term) for one in maps])[chosen]
    to_treatment = np.linalg.inv(C[:, chosen])
    C = to_treatment @ C
    found = []
    for term, others in enumerate(containing, start=1):
        own, above = np.flatnonzero(of_term == term), np.flatnonzero(np.isin(of_term, others))
        rows = np.eye(len(C))[own]
        rows[:, above] -= np.linalg.lstsq(C[above].T, C[own].T)[0].T
        found.append(rows @ to_treatment)
    return found


@dataclass(frozen=True, eq=False)
class IndicatorMap:
    """Indicators of all cells of a term (times its numeric variables) as combinations of the columns of X.

    Attributes
    ----------
    term : int
        0 for the intercept.
    labels : tuple of str
        Variables.
    values : (p, G) array
        ``X values`` are the G columns; the first variable varies fastest.
    shape : tuple of int
        Levels of each factor, columns of each numeric variable.
    treatment : (G,) bool array
        Columns that treatment coding has.
    """

    term: int
    labels: tuple[str, ...]
    values: np.ndarray
    shape: tuple[int, ...]
    treatment: np.ndarray

    def tensor(self) -> np.ndarray:
        """``values`` with an axis for each variable, (p, ...)."""
        return self.values.reshape(len(self.values), *self.shape, order="F")


def indicator_maps(coding: EffectsCoding, factors: Mapping[str, FactorCoding]) -> list[IndicatorMap] | None:
    """Indicators of the cells of every term as combinations of the columns of X, whatever the data.

    An indicator of a level is a combination of the contrasts and of 1, ``d = k P + 1 q``; so the indicators
    of the cells of a term are combinations of its own columns and of the indicators of its margins, which
    earlier terms have.

    Parameters
    ----------
    coding : EffectsCoding
        Of p columns.
    factors : mapping
        Codings of the factors.

    Returns
    -------
    list of IndicatorMap, or None
        None where a margin that the coding relies on is in no earlier term.

    Examples
    --------
    >>> from jaxmixed.frame import build_frame
    >>> data = {"y": [1.0, 2.0, 4.0, 3.0], "f": list("aabb")}
    >>> encoding = build_frame("y ~ f", data, contrasts={"f": "sum"}).encoding
    >>> indicator_maps(encoding.fixed, encoding.factors)[1].values
    array([[ 0.5,  0.5],
           [ 0.5, -0.5]])
    """
    p = len(coding.names)
    assign = np.asarray(coding.assign, dtype=np.int64)
    maps = []
    if coding.intercept:
        maps.append(IndicatorMap(0, (), np.eye(p)[:, :1], (), np.ones(1, dtype=bool)))
    for number, (term, full) in enumerate(zip(coding.terms, coding.full, strict=True), start=1):
        codes = [
            _Codes.of(expr, label, whole, factors)
            for expr, label, whole in zip(term.factors, term.labels, full, strict=True)
        ]
        widths = tuple(code.width for code in codes)
        own = np.flatnonzero(assign == number)
        if len(own) != math.prod(widths):
            return None
        columns = np.zeros((p, len(own)))
        columns[own, np.arange(len(own))] = 1.0
        values = columns.reshape(p, *widths, order="F")
        for axis, code in enumerate(codes, start=1):
            values = _along(values, code.on_columns, axis)
        for place, code in enumerate(codes):
            if code.whole:
                continue
            margin = _margin(maps, term.labels, place, factors)
            if margin is None:
                return None
            for axis in range(place):
                if not codes[axis].whole:
                    margin = _along(margin, codes[axis].without_mean, axis + 1)
            values = values + np.moveaxis(np.multiply.outer(margin, code.on_one), -1, place + 1)
        shape = values.shape[1:]
        treatment = np.ones(shape, dtype=bool)
        for axis, code in enumerate(codes):
            if not code.whole:
                treatment &= (np.arange(code.size) != code.base).reshape(-1, *[1] * (len(codes) - axis - 1))
        flat = values.reshape(p, -1, order="F")
        maps.append(IndicatorMap(number, term.labels, flat, shape, treatment.ravel(order="F")))
    return maps


@dataclass(frozen=True, eq=False)
class _Codes:
    """How a variable of a term is coded: its indicators are ``columns @ on_columns + on_one``.

    A ``whole`` variable is numeric, or a factor with an indicator for each of its levels.
    """

    whole: bool
    size: int
    base: int
    on_columns: np.ndarray
    on_one: np.ndarray

    @classmethod
    def of(cls, expr: Expr, label: str, full: bool, factors: Mapping[str, FactorCoding]) -> _Codes:
        coding = factors.get(label)
        if coding is None or full:
            size = _num_columns(expr) if coding is None else len(coding.labels)
            return cls(True, size, 0, np.eye(size), np.zeros(size))
        size = len(coding.labels)
        contrasts = contrast_matrix(coding.contrast, size, coding.base)
        inverse = np.linalg.inv(np.column_stack([contrasts, np.ones(size)]))
        base = coding.base if coding.contrast == "treatment" else 0
        return cls(False, size, base, inverse[:-1], inverse[-1])

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.on_columns)

    @property
    def without_mean(self) -> np.ndarray:
        """(size, size): from the indicators to the part of them that the columns make."""
        return np.eye(self.size) - np.outer(np.ones(self.size), self.on_one)


def _num_columns(expr: Expr) -> int:
    """Number of columns of a numeric variable: the degree or df of those that make several."""
    if isinstance(expr, Call) and expr.name in FUNCTIONS and FUNCTIONS[expr.name].kind == "columns":
        count = expr.args[1]
        return int(count.value) if isinstance(count, Number) else 1
    return 1


def _along(values: np.ndarray, matrix: np.ndarray, axis: int) -> np.ndarray:
    """Multiply one axis of an array by a matrix from the right."""
    return np.moveaxis(np.tensordot(values, matrix, axes=(axis, 0)), -1, axis)


def _margin(
    maps: Sequence[IndicatorMap], labels: tuple[str, ...], place: int, factors: Mapping[str, FactorCoding]
) -> np.ndarray | None:
    """Indicators of a term without one of its variables, (p, ...), from an earlier term that has them all."""
    wanted = [label for position, label in enumerate(labels) if position != place]
    numeric = {label for label in wanted if label not in factors}
    for one in maps:
        same = {label for label in one.labels if label not in factors} == numeric
        if same and set(wanted) <= set(one.labels):
            extra = tuple(axis for axis, label in enumerate(one.labels, start=1) if label not in wanted)
            summed = one.tensor().sum(axis=extra)
            rest = [label for label in one.labels if label in wanted]
            return np.moveaxis(summed, [rest.index(label) + 1 for label in wanted], range(1, len(rest) + 1))
    return None
