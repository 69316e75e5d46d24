"""Coding of factors: levels, and contrasts defined and named as R's ``contr.*`` functions do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from jaxmixed.errors import DataError, DesignError, FormulaError, listed
from jaxmixed.grouping import factorize, level_labels
from jaxmixed.ingest import DataColumn
from jaxmixed.terms import CONTRASTS, Call, Expr, Number, Text

_MAX_POLY_LEVELS = 95
_POLY_SUFFIXES = (".L", ".Q", ".C")


def contrast_name(name: object) -> str:
    """Canonical name of a contrast; R's spelling ``contr.sum`` is accepted.

    Raises
    ------
    FormulaError
        If the contrast is not known, listing those that are.

    Examples
    --------
    >>> contrast_name("contr.helmert")
    'helmert'
    """
    short = name.removeprefix("contr.") if isinstance(name, str) else name
    if short not in CONTRASTS:
        raise FormulaError(f"contrast {name!r} is not known; choose one of {', '.join(CONTRASTS)}")
    return str(short)


@lru_cache(maxsize=64)
def contrast_matrix(name: str, num_levels: int, base: int = 0) -> np.ndarray:
    """Contrast matrix with a row per level and a column per coefficient.

    Parameters
    ----------
    name
        ``"treatment"`` (each level against the base level), ``"sum"`` (each level but the last against the
        grand mean), ``"helmert"`` (each level against the mean of those before it) or ``"poly"`` (orthonormal
        polynomials of the level number).
    num_levels
        Number of levels, at least 2.
    base
        Position of the base level of treatment contrasts.

    Returns
    -------
    numpy.ndarray of shape (num_levels, num_levels - 1)

    Examples
    --------
    >>> contrast_matrix("sum", 3)
    array([[ 1.,  0.],
           [ 0.,  1.],
           [-1., -1.]])
    """
    if name == "treatment":
        matrix = np.delete(np.eye(num_levels), base, axis=1)
    elif name == "sum":
        matrix = np.vstack([np.eye(num_levels - 1), -np.ones(num_levels - 1)])
    elif name == "helmert":
        matrix = np.triu(np.full((num_levels, num_levels - 1), -1.0))
        matrix[np.arange(1, num_levels), np.arange(num_levels - 1)] = np.arange(1, num_levels)
    else:
        matrix = orthogonal_polynomials(np.arange(1.0, num_levels + 1.0), num_levels - 1)[0]
    matrix.flags.writeable = False  # shared by every caller
    return matrix


def contrast_suffixes(name: str, labels: Sequence[str], base: int = 0) -> tuple[str, ...]:
    """What R appends to a factor's name to name the columns of its contrast matrix.

    Examples
    --------
    >>> contrast_suffixes("poly", ["a", "b", "c", "d", "e"])
    ('.L', '.Q', '.C', '^4')
    """
    num_columns = len(labels) - 1
    if name == "treatment":
        return tuple(label for position, label in enumerate(labels) if position != base)
    if name == "poly":
        return _POLY_SUFFIXES[:num_columns] + tuple(f"^{degree}" for degree in range(4, num_columns + 1))
    return tuple(str(number) for number in range(1, num_columns + 1))


def orthogonal_polynomials(x: np.ndarray, degree: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Orthonormal polynomials of degrees 1 to ``degree`` on the points x, with their three-term recurrence.

    The monic polynomials satisfy ``p_{i+1}(x) = (x - alpha_i) p_i(x) - (norm_i / norm_{i-1}) p_{i-1}(x)``;
    the columns returned are ``p_i / sqrt(norm_i)``. Each new polynomial is orthogonalised twice against all
    earlier ones, since the bare recurrence loses orthogonality at high degrees.

    Parameters
    ----------
    x
        Points, more distinct ones than ``degree``.
    degree
        Highest degree.

    Returns
    -------
    basis : numpy.ndarray of shape (n, degree)
    alpha : numpy.ndarray of shape (degree,)
    norm : numpy.ndarray of shape (degree + 1,)
        Squared norms of the monic polynomials of degrees 0 to ``degree``.

    References
    ----------
    Kennedy and Gentle (1980), Statistical Computing, section 8.3.4 (the definition used by R's ``poly``).

    Examples
    --------
    >>> basis, alpha, norm = orthogonal_polynomials(np.array([1.0, 2.0, 6.0]), 1)
    >>> alpha.round(12).tolist(), norm.round(12).tolist()
    ([3.0], [3.0, 14.0])
    """
    orthonormal = np.empty((degree + 1, len(x)))
    orthonormal[0] = 1 / np.sqrt(len(x))
    alpha = np.empty(degree)
    norm = np.empty(degree + 1)
    norm[0] = len(x)
    for step in range(degree):
        current = orthonormal[step]
        alpha[step] = x @ current**2
        following = (x - alpha[step]) * current
        for _ in range(2):
            earlier = orthonormal[: step + 1]
            following = following - earlier.T @ (earlier @ following)
        length = np.sqrt(following @ following)
        orthonormal[step + 1] = following / length
        norm[step + 1] = norm[step] * length**2
    return orthonormal[1:].T, alpha, norm


@dataclass(frozen=True, slots=True, eq=False)
class FactorCoding:
    """Levels of a factor of the model, their labels, and its contrast with the position of the base level.

    Of ordered categories also the places of the levels among all of these, used or not.
    """

    label: str
    kind: str
    levels: pd.Index
    labels: tuple[str, ...]
    contrast: str
    base: int
    places: np.ndarray | None = None

    def names(self, full: bool) -> list[str]:
        """Names of the dummy variables of all levels (``full``), or of the contrasts, as R gives them."""
        if full:
            return [self.label + label for label in self.labels]
        self.width(full)
        return [self.label + suffix for suffix in contrast_suffixes(self.contrast, self.labels, self.base)]

    def width(self, full: bool) -> int:
        """Number of columns; an error for the contrasts of a single level, which do not exist."""
        if not full and len(self.labels) < 2:
            found = f"only the level {self.labels[0]!r}" if self.labels else "no level"
            raise DesignError(
                f"{self.label} has {found} in the rows used, so it has no contrasts to estimate; remove it "
                "from the formula"
            )
        return len(self.labels) - (not full)

    def column(self, codes: np.ndarray, j: int, full: bool) -> np.ndarray:
        """Dummy variable or contrast j of rows with these levels (boolean where it is 0 or 1)."""
        if full:
            return codes == j
        if self.contrast == "treatment":
            return codes == (j + (j >= self.base))
        return contrast_matrix(self.contrast, len(self.labels))[:, j].take(codes)


def learn_factor(
    expr: Expr, label: str, column: DataColumn, kept: np.ndarray | None, contrast: str | None
) -> tuple[np.ndarray, FactorCoding]:
    """Level numbers of the kept rows, and the coding asked for by the formula, the caller or R's default.

    Parameters
    ----------
    expr, label
        The factor as it stands in the formula.
    column
        The column behind it.
    kept
        Rows used, or None for all.
    contrast
        The caller's contrast for the column, if any; one in the formula takes precedence.
    """
    codes, levels = factorize(column, kept)
    if column.kind == "boolean" and not isinstance(expr, Call) and len(levels) == 1:
        codes, levels = np.full_like(codes, int(levels[0])), pd.Index([False, True])
    labels = level_labels(levels)
    ordered = column.kind == "category" and column.values.ordered
    name = contrast_name(contrast) if contrast is not None else "poly" if ordered else "treatment"
    base = 0
    if isinstance(expr, Call) and expr.name == "C":
        name, base = _asked_in_formula(expr, label, labels, name)
    if name == "poly" and len(labels) > _MAX_POLY_LEVELS:
        raise DesignError(
            f"{label}: polynomial contrasts of {len(labels)} levels cannot be computed accurately (at most "
            f"{_MAX_POLY_LEVELS} levels); use numeric values with poly(), or treatment contrasts"
        )
    places = column.values.categories.get_indexer(levels) if ordered else None
    return codes, FactorCoding(label, column.kind, levels, labels, name, base, places)


def _asked_in_formula(expr: Call, label: str, labels: tuple[str, ...], default: str) -> tuple[str, int]:
    """Contrast and base level of ``C(f, contrast, base=, ref=)``."""
    asked, base, ref = (expr.argument(name) for name in ("contrast", "base", "ref"))
    name = contrast_name(asked.value) if isinstance(asked, Text) else default
    if base is None and ref is None:
        return name, 0
    if isinstance(base, Number):
        position, wanted = int(base.value) - 1, f"number {base.label}"
    else:
        text = ref.value if isinstance(ref, Text) else "" if ref is None else ref.label
        position, wanted = labels.index(text) if text in labels else -1, repr(text)
    if not 0 <= position < len(labels):
        raise DataError(f"{label}: level {wanted} does not exist; the levels are {listed(labels)}")
    return "treatment", position  # the parser takes a base level with no other contrasts


def known_codes(column: DataColumn, kept: np.ndarray | None, coding: FactorCoding) -> np.ndarray:
    """Training level numbers of new values, matched by value, then by label.

    Raises
    ------
    DataError
        If a level is not one of the training data's.
    """
    codes, uniques = factorize(column, kept)
    positions = coding.levels.get_indexer(uniques)
    if (positions < 0).any():
        by_label = {label: position for position, label in enumerate(coding.labels)}
        pairs = list(zip(level_labels(uniques), positions, strict=True))
        positions = np.array([by_label.get(label, -1) if place < 0 else place for label, place in pairs])
        unseen = [label for (label, _), place in zip(pairs, positions, strict=True) if place < 0]
        if unseen:
            raise DataError(
                f"column {column.name!r} has levels that the fitted model does not know: {listed(unseen)}; "
                f"it was fitted with {listed(coding.labels)}"
            )
    return positions[codes]
