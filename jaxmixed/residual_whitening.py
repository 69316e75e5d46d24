r"""The rows of a fit in the metric of the residuals' covariance: precisions and Cholesky factors by pattern.

With :math:`\operatorname{Var}(e) = \sigma^2 W^{-1/2} R W^{-1/2}` and R block-diagonal over the groups of
correlated rows, :math:`R = LL'` with L lower triangular in the order of time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxmixed.residual_groups import pattern_matrices, patterns_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scipy.sparse import csr_array

    from jaxmixed.residual_covariance import ResidualCovariance
    from jaxmixed.residual_groups import Pattern, ResidualDesign

MOST_NUMBERS = 1 << 22
"""Numbers of the patterns' matrices held at a time."""


def relative_covariances(
    design: ResidualDesign, free: np.ndarray, covariance: ResidualCovariance | None = None
) -> Iterator[tuple[Pattern, np.ndarray]]:
    """Patterns of the rows with their relative covariances R.

    Parameters
    ----------
    design : ResidualDesign
    free : (k,) array
        Residual parameters.
    covariance : ResidualCovariance, optional
        In place of the design's.

    Yields
    ------
    Pattern
    (t, t) array
    """
    batch: list[Pattern] = []
    for pattern in [*sorted(patterns_of(design), key=lambda own: -own.rows.shape[1]), None]:
        longest = batch[0].rows.shape[1] if batch else 0
        full = batch and (
            pattern is None
            or 2 * pattern.rows.shape[1] < longest
            or (len(batch) + 1) * longest**2 > MOST_NUMBERS
        )
        if full:
            found = pattern_matrices(covariance or design.covariance, free, batch)
            yield from zip(batch, found, strict=True)
            batch = []
        if pattern is not None:
            batch.append(pattern)


def whitened(
    design: ResidualDesign, free: np.ndarray, weights: np.ndarray | None, columns: np.ndarray
) -> np.ndarray:
    r"""Columns times :math:`L^{-1} W^{1/2}`: of residuals, uncorrelated ones with variance sigma squared.

    Parameters
    ----------
    design : ResidualDesign
    free : (k,) array
        Residual parameters.
    weights : (n,) array or None
    columns : (n, c) array

    Returns
    -------
    (n, c) array

    Examples
    --------
    >>> from jaxmixed.residual_covariance import ResidualCovariance
    >>> from jaxmixed.residual_families import Autoregressive
    >>> from jaxmixed.residual_groups import ResidualDesign
    >>> zero, one = np.zeros(2, dtype=int), np.ones(2)
    >>> ar = ResidualCovariance(Autoregressive(1, 4))
    >>> design = ResidualDesign(ar, zero, 1, np.array([0.0, 1.0]), zero, one, zero)
    >>> whitened(design, np.arctanh([0.6]), None, np.array([[1.0], [1.4]])).round(6).tolist()
    [[1.0], [1.0]]
    """
    rows = np.asarray(columns, dtype=np.float64)
    if weights is not None:
        rows = rows * np.sqrt(weights)[:, None]
    found = np.empty_like(rows)
    for pattern, R in relative_covariances(design, free):
        own = rows[pattern.rows]  # groups, times, columns
        flat = np.moveaxis(own, 1, 0).reshape(len(R), -1)
        solved = np.linalg.solve(np.linalg.cholesky(R), flat)
        found[pattern.rows] = np.moveaxis(solved.reshape(len(R), len(own), -1), 0, 1)
    return found


def precision(design: ResidualDesign, free: np.ndarray, weights: np.ndarray | None) -> csr_array:
    r"""The sparse (n, n) matrix :math:`W^{1/2} R^{-1} W^{1/2}`.

    Parameters
    ----------
    design : ResidualDesign
    free : (k,) array
        Residual parameters.
    weights : (n,) array or None
    """
    from scipy import sparse

    values, row, column = [], [], []
    root = np.ones(len(design.codes)) if weights is None else np.sqrt(weights)
    for pattern, R in relative_covariances(design, free):
        own = root[pattern.rows]
        inverse = np.linalg.inv(R)
        values.append((own[:, :, None] * ((inverse + inverse.T) / 2) * own[:, None, :]).ravel())
        t = len(R)
        row.append(np.repeat(pattern.rows, t, axis=1).ravel())
        column.append(np.tile(pattern.rows, (1, t)).ravel())
    n = len(design.codes)
    entries = (np.concatenate(row), np.concatenate(column))
    return sparse.csr_array((np.concatenate(values), entries), shape=(n, n))
