r"""Known relationships between the levels of a grouping factor: pedigrees, genomic matrices, neighbours.

The effects b of a factor with m levels and q effects in each have covariance

.. math:: \operatorname{Var}(b) = \sigma^2\, A \otimes G,

A known, (m, m), and G the usual q x q matrix that is estimated (Henderson 1976, Biometrics 32(1), 69-83, for
pedigrees; VanRaden 2008, Journal of Dairy Science 91(11), 4414-4423, for marker matrices; Besag 1974, Journal
of the Royal Statistical Society B 36(2), 192-236, for neighbours, given by the precision). The fit works with
a root ``A = L L'`` (:func:`jaxmixed.root.level_basis`), so A may be singular, as with clones.

Here a user's matrix is checked and matched with the levels of the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from jaxmixed import relatedness
from jaxmixed.errors import DataError, DesignError, FormulaError, listed

ASYMMETRY = 1e-8
"""Elements (i, j) and (j, i) that differ by more than this share of the largest element are an error."""

NEGATIVE = 1e-8
"""So is an eigenvalue below minus this share of the largest one."""


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """A checked relationship matrix with the labels of its levels: what :func:`known` returns.

    Attributes
    ----------
    matrix : (m, m) array
        A: symmetric, positive semidefinite, read-only.
    levels : pandas.Index
        Label of each row.
    within : str, covariance structure, or None
        Structure of the effects of one level; None leaves it to the formula.
    """

    matrix: np.ndarray
    levels: pd.Index
    within: Any = None

    def __repr__(self) -> str:
        own = "" if self.within is None else f", within={self.within!r}"
        return f"known(<{len(self.levels):,} levels>{own})"


@dataclass(frozen=True, slots=True, eq=False)
class Relationship:
    """A known relationship matched with the levels of a grouping in some data.

    Attributes
    ----------
    matrix : (m, m) array
        The levels that occur in the data stand first, in their order.
    levels : pandas.Index
        Labels of all m levels.
    recorded : int
        How many of them occur in the data.
    """

    matrix: np.ndarray
    levels: pd.Index
    recorded: int

    @property
    def among_recorded(self) -> np.ndarray:
        """A among the levels in the data."""
        return self.matrix[: self.recorded, : self.recorded]

    @property
    def is_plain(self) -> bool:
        """Whether the levels in the data are unrelated and alike: A is a multiple of the identity there."""
        return relatedness.is_plain(self.among_recorded)


def known(A: Any, levels: Any = None, within: Any = None, *, precision: bool = False) -> Known:
    r"""Relationship between the levels of a grouping factor, for ``covariance={"animal": jm.known(A, ids)}``.

    The random effects then have covariance :math:`\sigma^2 A \otimes G` instead of
    :math:`\sigma^2 I \otimes G`: `A` is known, the q x q matrix G is estimated, and the variances reported
    are those of a level whose diagonal element of `A` is one.

    Parameters
    ----------
    A : (m, m) array or DataFrame
        Symmetric and positive semidefinite: additive relationships of a pedigree, a genomic relationship
        matrix, a covariance function of distances. Best scaled so that its diagonal is about one. With a
        DataFrame, whose rows and columns are labelled alike, the labels give the levels.
    levels : sequence, optional
        Label of each row of `A`: values of the grouping column. All levels of the data must be there; further
        ones (ancestors without records) get predictions, too. Needed unless `A` is a DataFrame.
    within : str or covariance structure, optional
        Structure of the effects of one level, as in `covariance`; by default what the formula says.
    precision : bool
        `A` is given by its inverse, a regular matrix: for neighbours in space (conditional autoregression),
        or where the inverse of a pedigree's matrix is at hand. It is inverted, densely.

    Returns
    -------
    Known

    Raises
    ------
    DataError
        If the matrix is not square, symmetric and positive semidefinite (positive definite for a precision),
        has missing or infinite values, or its labels are missing, repeated or not as many as its rows.

    Notes
    -----
    Slopes work alike: ``(1 + x | animal)``. One record for each level is the ordinary animal model. A factor
    may enter twice, once with a relationship and once without (the *permanent environment* of animals with
    repeated records), through a copy of its column:
    ``"y ~ x + (1 | animal) + (1 | animal_pe)"`` with ``covariance={"animal": jm.known(A, ids)}``. The levels
    with a relationship form a dense matrix: memory and time grow as with crossed factors of as many levels as
    occur in the data.

    References
    ----------
    Henderson (1976), Biometrics 32(1), 69-83; Lynch & Walsh (1998), Genetics and Analysis of Quantitative
    Traits, chapters 26 and 27.

    Examples
    --------
    >>> import numpy as np
    >>> import jaxmixed as jm
    >>> A = np.array([[1, 0, 0.5, 0.5], [0, 1, 0.5, 0.5], [0.5, 0.5, 1, 0.5], [0.5, 0.5, 0.5, 1]])
    >>> data = {"y": [2.1, 2.5, 4.0, 4.4, 2.9, 3.3, 2.2, 4.1], "id": ["a", "a", "b", "b", "c", "c", "d", "d"]}
    >>> family = jm.known(A, ["a", "b", "c", "d"])
    >>> fit = jm.mixed("y ~ 1 + (1 | id)", data, covariance={"id": family})
    >>> fit.ranef()["id"].shape
    (4, 1)
    """
    labels = None if levels is None else _labels(levels, "levels")
    if isinstance(A, pd.DataFrame):
        labels = _frame_labels(A, labels)
    elif labels is None:
        raise DataError(
            "known() needs the label of each row: pass levels=, the values of the grouping column in the"
            " order of the matrix's rows, or a DataFrame whose index and columns are these labels"
        )
    what = "the precision matrix" if precision else "the relationship matrix"
    matrix = _checked(A, labels, what)
    if precision:
        matrix = _inverse(matrix)
    else:
        _check_semidefinite(matrix)
    matrix.flags.writeable = False
    return Known(matrix, labels, within)


def _labels(values: Any, what: str) -> pd.Index:
    """Distinct labels without missing ones."""
    labels = values if isinstance(values, pd.Index) else pd.Index(list(values))
    if isinstance(labels, pd.MultiIndex):
        raise DataError(
            f"{what} of known() must be one label for each level; they have {labels.nlevels} parts"
        )
    if isinstance(labels, pd.CategoricalIndex):
        labels = pd.Index(labels.to_numpy())
    missing = np.flatnonzero(labels.isna())
    if len(missing):
        raise DataError(f"{what} of known() have {len(missing)} missing labels, the first at {missing[0]}")
    repeated = labels[labels.duplicated()].unique()
    if len(repeated):
        raise DataError(f"{what} of known() repeat {listed(repeated)}; each level has one row")
    return labels


def _frame_labels(A: pd.DataFrame, labels: pd.Index | None) -> pd.Index:
    """Labels of a table, the same in its rows and columns."""
    rows = _labels(A.index, "the rows")
    if labels is not None and not labels.equals(rows):
        raise DataError("levels= and the index of the relationship matrix differ; leave levels= out")
    if not rows.equals(_labels(A.columns, "the columns")):
        raise DataError(
            "the rows and columns of the relationship matrix are labelled differently: both need the levels,"
            " in the same order; without labels pass an array and levels="
        )
    return rows


def _checked(A: Any, labels: pd.Index, what: str) -> np.ndarray:
    """The matrix as an exactly symmetric float64 copy."""
    try:
        matrix = np.array(A, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{what} of known() must hold numbers; it is {type(A).__name__}") from None
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise DataError(f"{what} of known() must be square; its shape is {matrix.shape}")
    if len(labels) != len(matrix):
        raise DataError(f"{what} of known() has {len(matrix)} rows, but levels= names {len(labels)}")
    if not np.isfinite(matrix).all():
        i, j = np.argwhere(~np.isfinite(matrix))[0].tolist()
        raise DataError(
            f"{what} of known() has {np.count_nonzero(~np.isfinite(matrix))} missing or infinite values, the "
            f"first between {listed([labels[i]])} and {listed([labels[j]])}"
        )
    largest = float(np.abs(matrix).max())
    difference = np.abs(matrix - matrix.T)
    if difference.max() > ASYMMETRY * largest:
        i, j = divmod(int(difference.argmax()), len(matrix))
        raise DataError(
            f"{what} of known() is not symmetric: {matrix[i, j]:.6g} between {listed([labels[i]])} and "
            f"{listed([labels[j]])}, but {matrix[j, i]:.6g} the other way"
        )
    return (matrix + matrix.T) / 2


def _check_semidefinite(matrix: np.ndarray) -> None:
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        eigenvalues = np.linalg.eigvalsh(matrix)
        if eigenvalues[-1] <= 0 or eigenvalues[0] < -NEGATIVE * eigenvalues[-1]:
            raise DataError(
                "the relationship matrix of known() is not a covariance matrix: its smallest eigenvalue is "
                f"{eigenvalues[0]:.6g}, the largest {eigenvalues[-1]:.6g}, and none may be negative. Check "
                "how it was made (rounded values, pairwise estimates), or add a small number to its diagonal"
            ) from None


def _inverse(precision: np.ndarray) -> np.ndarray:
    """Inverse of a precision matrix."""
    try:
        np.linalg.cholesky(precision)
    except np.linalg.LinAlgError:
        smallest = float(np.linalg.eigvalsh(precision)[0])
        raise DataError(
            f"the precision matrix of known() is not positive definite: its smallest eigenvalue is "
            f"{smallest:.6g}. An intrinsic autoregression has no covariance matrix; use a proper one, such "
            "as D - rho W with rho below one, or Q plus a small multiple of the identity"
        ) from None
    inverse = np.linalg.inv(precision)
    return (inverse + inverse.T) / 2


def separate(covariance: Any) -> tuple[Any, dict[str, Known]]:
    """Part the argument `covariance` into structures within levels and relationships between them.

    Parameters
    ----------
    covariance : str, mapping or None
        As users give it; whatever is not a relationship is left for others to check.

    Returns
    -------
    covariance : str, mapping or None
        Without relationships.
    relationships : dict of Known
        By group label.

    Raises
    ------
    FormulaError
        For a relationship that no group is named for.

    Examples
    --------
    >>> separate({"school": "independent"})
    ({'school': 'independent'}, {})
    """
    if isinstance(covariance, Known):
        raise FormulaError(
            "covariance= is a relationship between the levels of one grouping: say of which, as in "
            'covariance={"animal": jm.known(A, ids)}'
        )
    if not isinstance(covariance, Mapping):
        return covariance, {}
    relationships = {label: own for label, own in covariance.items() if isinstance(own, Known)}
    if not relationships:
        return covariance, {}
    structures = {
        label: own.within if isinstance(own, Known) else own
        for label, own in covariance.items()
        if not (isinstance(own, Known) and own.within is None)
    }
    return structures or None, relationships


def match_levels(own: Known, levels: pd.Index, label: str, columns: tuple[str, ...]) -> Relationship:
    """Put the levels of a relationship matrix in the order of the data's, those without rows after them.

    Parameters
    ----------
    own : Known
    levels : pandas.Index
        Of the grouping in the data.
    label : str
        Of the grouping.
    columns : tuple of str
        Its columns.

    Returns
    -------
    Relationship

    Raises
    ------
    DataError
        If levels of the data are not among those of the matrix.
    """
    place = own.levels.get_indexer(levels)
    missing = levels[place < 0]
    if len(missing):
        texts = {str(value) for value in own.levels}
        alike = all(str(value) in texts for value in missing)
        raise DataError(
            f"{len(missing):,} of the {len(levels):,} levels of {label!r} are not in the relationship "
            f"matrix: {listed(missing)}"
            + (
                "; they are there as values of another type, e.g. "
                f"{own.levels[0]!r} beside {missing[0]!r}: give levels= the type of the column"
                if alike
                else "; add them to the matrix, or leave their rows out"
            )
        )
    others = np.setdiff1d(np.arange(len(own.levels)), place)
    if len(others) and len(columns) > 1:
        raise DesignError(
            f"the relationship matrix of {label!r} has {len(others)} levels without rows, which only a"
            " grouping of a single column may have: make one column of the combination"
        )
    order = np.concatenate([place, others])
    every = levels.append(own.levels[others]) if len(others) else levels
    matrix = own.matrix[np.ix_(order, order)]
    zero = np.flatnonzero(np.diagonal(matrix)[: len(levels)] <= 0)
    if len(zero):
        raise DataError(
            f"the relationship matrix of {label!r} is zero for levels in the data: {listed(levels[zero])}; "
            "their effects would be zero. Leave their rows out, or correct the matrix"
        )
    matrix.flags.writeable = False
    return Relationship(matrix, every, len(levels))


def check_labels(relationships: Mapping[str, Known], labels: set[str]) -> None:
    """Refuse a relationship of a grouping that the formula does not have.

    Raises
    ------
    FormulaError
    """
    for label in relationships:
        if label not in labels:
            names = ", ".join(map(repr, sorted(labels))) or "none"
            raise FormulaError(
                f"covariance= names the group {label!r}, which the formula does not have; its groups are "
                f"{names}."
            )
