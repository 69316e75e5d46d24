r"""Well-conditioned coordinates of the fixed-effects columns and the response.

Cross-products square the condition number of the data, so nothing is multiplied before it is centred: the
columns of X are centred on their means (when X has a constant column) and orthonormalised by a triangular
matrix, which also finds the columns that are linear combinations of earlier ones; the response is replaced by
its least-squares residual, twice, and brought to unit size by a power of two. What was removed is remembered,
so estimates and criteria are those of the data as given.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxmixed.errors import DesignError
from jaxmixed.linalg import independent_columns, qr_triangle, stacked_qr_triangle

BLOCK_ROWS = 1 << 15
"""Rows visited at a time: a block of a few columns stays in the processor's cache."""

RANK_TOLERANCE = 1e-10
"""A column whose part orthogonal to the earlier ones is smaller than this, relative to its centred size, is
aliased."""

EXACT_FIT = 1e-13
"""A residual this small, relative to the centred response, is rounding."""


WELL_CONDITIONED = 1e-4
"""Smallest eigenvalue of unit-diagonal cross-products whose Cholesky factor serves instead of a QR
decomposition."""


@dataclass(frozen=True, slots=True)
class ColumnBasis:
    """Coordinates in which columns are centred and orthonormal.

    Attributes
    ----------
    keep : (p,) int array
        Columns that are not aliased.
    shift : (p,) array
        Subtracted from the kept columns.
    solve : (p, p) array
        ``Xs = (X[:, keep] - shift) @ solve``.
    basis : (p, p) array
        ``X[:, keep] = Xs @ basis``.
    log_det : float
        ``2 log |det basis|``.
    condition : float
        Condition number of the centred columns, each at unit length.
    aliased : tuple of int
        Columns that are zero or depend on earlier ones.
    """

    keep: np.ndarray
    shift: np.ndarray
    solve: np.ndarray
    basis: np.ndarray
    log_det: float = 0.0
    condition: float = 1.0
    aliased: tuple[int, ...] = ()

    def standardise(self, X: np.ndarray, rows: slice | np.ndarray) -> np.ndarray:
        """Rows of ``Xs`` for the given rows of the full matrix X."""
        block = X[rows] if len(self.keep) == X.shape[1] else X[rows][:, self.keep]
        return (block - self.shift) @ self.solve


@dataclass(frozen=True, slots=True)
class FixedBasis:
    """Coordinates in which X is orthonormal and the response is its own least-squares residual.

    Attributes
    ----------
    columns : ColumnBasis
        Of X.
    origin : (p,) array
        Least-squares coefficients removed from the response.
    scale : float
        Power of two; the response in use is ``(y - X origin) / scale``.
    """

    columns: ColumnBasis
    origin: np.ndarray
    scale: float


def row_blocks(n: int) -> Iterator[slice]:
    """Consecutive slices of at most BLOCK_ROWS rows."""
    for start in range(0, n, BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, n))


def _centred_blocks(X: np.ndarray, shift: np.ndarray, weights: np.ndarray | None) -> Iterator[np.ndarray]:
    for rows in row_blocks(len(X)):
        block = X[rows] - shift
        yield block if weights is None else block * np.sqrt(weights[rows, None])


def _triangular_factor(X: np.ndarray, shift: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Upper triangle R with ``R'R`` the cross-products of the centred, weighted columns.

    By Cholesky where there are many rows and the columns are far from collinear, otherwise by Householder's
    QR decomposition, block by block.
    """
    p = X.shape[1]
    if len(X) > BLOCK_ROWS:
        products = np.zeros((p, p))
        for block in _centred_blocks(X, shift, weights):
            products += block.T @ block
        sizes = np.sqrt(np.diagonal(products))
        if (sizes > 0).all():
            unit = products / np.outer(sizes, sizes)
            if np.linalg.eigvalsh(unit).min(initial=1.0) > WELL_CONDITIONED:
                return np.linalg.cholesky(unit).T * sizes
    return stacked_qr_triangle(_centred_blocks(X, shift, weights))


def _condition(R: np.ndarray) -> float:
    if R.shape[1] < 2:
        return 1.0
    singular = np.linalg.svd(R / np.sqrt((R * R).sum(axis=0)), compute_uv=False)
    return float(singular[0] / max(singular[-1], np.finfo(float).tiny))


def _power_of_two(size: float) -> float:
    return float(np.ldexp(1.0, int(np.round(np.log2(size)))))


def constant_column(X: np.ndarray) -> int | None:
    """Position of the first column of one value throughout, not zero.

    Examples
    --------
    >>> constant_column(np.array([[0.0, 2.0], [0.0, 2.0]]))
    1
    """
    for j in range(X.shape[1]):
        if X[0, j] != 0 and X[-1, j] == X[0, j] and (X[:, j] == X[0, j]).all():
            return j
    return None


def _project(
    residual: np.ndarray, X: np.ndarray, weights: np.ndarray | None, columns: ColumnBasis
) -> np.ndarray:
    """Least-squares coefficients of `residual` on the standardised columns; they are removed, in place."""
    coefficients = np.zeros(len(columns.keep))
    blocks = list(row_blocks(len(X)))
    whole = columns.standardise(X, blocks[0]) if len(blocks) == 1 else None
    for _ in range(2):  # the second pass removes what rounding left of the first
        update = np.zeros(len(columns.keep))
        for rows in blocks:
            Xs = columns.standardise(X, rows) if whole is None else whole
            update += Xs.T @ (residual[rows] if weights is None else weights[rows] * residual[rows])
        for rows in blocks:
            residual[rows] -= (columns.standardise(X, rows) if whole is None else whole) @ update
        coefficients += update
    return coefficients


def column_basis(X: np.ndarray, weights: np.ndarray | None) -> ColumnBasis:
    """Centred and orthonormal coordinates of columns, those that depend on earlier ones left out.

    Parameters
    ----------
    X : (n, p_full) array
        May be rank deficient: later columns that depend on earlier ones are dropped.
    weights : (n,) array or None
        Positive precision weights.

    Returns
    -------
    ColumnBasis

    Examples
    --------
    >>> X = np.column_stack([np.ones(4), np.arange(4.0), 2 * np.arange(4.0)])
    >>> column_basis(X, None).keep
    array([0, 1])
    """
    n, p_full = X.shape
    constant = constant_column(X)
    shift = np.zeros(p_full)
    if constant is not None:
        shift = np.mean(X, axis=0)
        shift[constant] = 0.0
    R = _triangular_factor(X, shift, weights)
    rounding = np.finfo(float).eps * 8 * np.sqrt(n) * np.abs(shift)
    floors = np.maximum(RANK_TOLERANCE * np.sqrt((R * R).sum(axis=0)), rounding)
    regular = len(R) == p_full and (np.abs(np.diagonal(R)) > floors).all()
    keep = np.arange(p_full) if regular else independent_columns(R, floors)
    aliased: tuple[int, ...] = ()
    if len(keep) < p_full:
        aliased = tuple(np.setdiff1d(np.arange(p_full), keep).tolist())
        R, shift = qr_triangle(R[:, keep]), shift[keep]
    basis = R
    if constant is not None:  # undo the centring: X_j = Xc_j + shift_j * (constant column / its value)
        at = int(np.searchsorted(keep, constant))
        basis = R + np.outer(R[:, at], shift / X[0, constant])
    return ColumnBasis(
        keep=keep,
        shift=shift,
        solve=np.linalg.inv(R),
        basis=basis,
        log_det=float(2 * np.sum(np.log(np.abs(np.diagonal(R))))),
        condition=_condition(R),
        aliased=aliased,
    )


def fixed_basis(y: np.ndarray, X: np.ndarray, weights: np.ndarray | None) -> tuple[FixedBasis, np.ndarray]:
    """Coordinates in which X is orthonormal and the response is its own least-squares residual.

    Parameters
    ----------
    y : (n,) array
    X : (n, p_full) array
        May be rank deficient.
    weights : (n,) array or None
        Positive precision weights.

    Returns
    -------
    FixedBasis
    residual : (n,) array
        The response in use.

    Raises
    ------
    DesignError
        If there are no more rows than columns, or the response is an exact linear function of the columns.

    Examples
    --------
    >>> fixed, _ = fixed_basis(np.array([1.0, 2.0, 4.0]), np.ones((3, 1)), None)
    >>> fixed.origin.round(4), fixed.scale
    (array([2.3333]), 1.0)
    """
    n = len(y)
    columns = column_basis(X, weights)
    p = len(columns.keep)
    if n <= p:
        raise DesignError(
            f"The model has {p} linearly independent fixed-effect columns but only {n} complete rows: "
            "no residual variance can be estimated. Use fewer fixed effects or more data."
        )
    constant = constant_column(X)
    mean = float(np.mean(y)) if constant is not None else 0.0
    residual = y - mean
    centred_size = float(np.sqrt(residual @ residual / n))
    coefficients = _project(residual, X, weights, columns)
    size = float(np.sqrt(residual @ residual / n))
    if size <= max(EXACT_FIT * centred_size, 4 * np.finfo(float).eps * abs(mean)):
        raise DesignError(
            "The residual variance is zero: the response is an exact linear function of the fixed effects, "
            "so the likelihood is unbounded. Check that the response, or a copy of it, is not among the "
            "predictors."
        )
    scale = _power_of_two(size)
    residual /= scale
    origin = np.linalg.solve(columns.basis, coefficients)
    if constant is not None:
        origin[np.searchsorted(columns.keep, constant)] += mean / X[0, constant]
    return FixedBasis(columns, origin, scale), residual
