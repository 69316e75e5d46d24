"""Sparse matrices whose columns are the effects of many groups, effect by effect; on SciPy's arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array

BLOCK_NUMBERS = 1 << 22
"""Numbers of a dense block of rows held at a time."""


def known_rows(values: np.ndarray, columns: np.ndarray, known: np.ndarray, size: int) -> csr_array:
    """Rows of which the known ones have these values in these columns, (k, q) each."""
    from scipy import sparse

    counts = np.where(known, values.shape[1], 0)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    return sparse.csr_array((values.ravel(), columns.ravel(), indptr), shape=(len(known), size))


def touched_columns(rows: csr_array) -> tuple[np.ndarray, csr_array]:
    """The columns that occur, and the rows with these columns only."""
    from scipy import sparse

    touched, inverse = np.unique(rows.indices, return_inverse=True)
    return touched, sparse.csr_array((rows.data, inverse, rows.indptr), shape=(rows.shape[0], len(touched)))


def block_rows(values: np.ndarray, entry: np.ndarray, size: int) -> csr_array:
    """Sparse (t, q size) matrix whose row i has values[i] for the q effects of one group."""
    from scipy import sparse

    t, q = values.shape
    columns = np.arange(q) * size + entry[:, None]
    indptr = np.arange(0, t * q + 1, q)
    return sparse.csr_array((values.ravel(), columns.ravel(), indptr), shape=(t, q * size))


def block_diagonal(values: np.ndarray) -> csr_array:
    """The (q m, q m) matrix of m blocks (q, q, m), effect by effect."""
    q, _, m = values.shape
    rows = np.moveaxis(values, 1, 2).reshape(q * m, q)
    return block_rows(rows, np.tile(np.arange(m), q), m)


def quadratic_diagonal(left: csr_array, K: np.ndarray, right: csr_array) -> np.ndarray:
    """Diagonal of ``left K right'``, a block of rows at a time."""
    n, R = left.shape
    step = max(1, BLOCK_NUMBERS // R)
    total = np.empty(n)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        total[rows] = right[rows].multiply(left[rows] @ K).sum(axis=1)
    return total
