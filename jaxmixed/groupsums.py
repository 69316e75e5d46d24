"""Sums over the rows of groups, for many responses at once.

Groups of the same size are one batch of small matrix products: an order of magnitude faster than adding row
by row. The rows are therefore kept in an order that brings such groups together.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from jaxmixed.patterns import pattern_codes, stable_order
from jaxmixed.statistics import Level

SERIAL_PRODUCT = 1 << 18
"""Multiplications up to which OpenBLAS keeps a matrix product in the thread that asks for it."""


def product(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Matrix product ``A @ B``, by slices of B so narrow that BLAS does not share it out among threads.

    Those would wait for the processors that other workers are using: measured, half the speed of one thread.
    """
    width = max(SERIAL_PRODUCT // max(A.size, 1), 1)
    if B.shape[1] <= width:
        return A @ B
    found = np.empty((len(A), B.shape[1]))
    for start in range(0, B.shape[1], width):
        columns = slice(start, start + width)
        np.matmul(A, B[:, columns], out=found[:, columns])
    return found


class _Batch(NamedTuple):
    """Groups of one size: where their rows stand, which they are, and their columns (groups, q, size)."""

    rows: slice
    groups: slice | np.ndarray
    columns: np.ndarray

    def cut(self, values: np.ndarray) -> np.ndarray:
        """Rows of these groups, (groups, size, B): a view."""
        k, _, size = self.columns.shape
        return values[self.rows].reshape(k, size, -1)


def order_by_size(group: np.ndarray, size: int) -> np.ndarray:
    """Order of the rows that brings groups together, and groups of the same size.

    Parameters
    ----------
    group : (n,) int array
        Group of each row, ``0 .. size-1``, all present.
    size : int
        Number of groups m.

    Returns
    -------
    (n,) int array
        Rows of smaller groups first; those of a group stay in their order.

    Examples
    --------
    >>> order_by_size(np.array([0, 1, 0, 2]), 3)
    array([1, 3, 0, 2])
    """
    rank = np.empty(size, dtype=np.int64)
    rank[np.argsort(np.bincount(group, minlength=size), kind="stable")] = np.arange(size)
    return stable_order(rank[group], size)


class GroupSums:
    """Sums over each group's rows of columns times values.

    Parameters
    ----------
    columns : (n, q) array
    group : (n,) int array
        Group of each row, ``0 .. size-1``, all present.
    size : int
        Number of groups m.

    Examples
    --------
    >>> sums = GroupSums(np.array([[1.0], [2.0], [1.0]]), np.array([0, 0, 1]), 2)
    >>> sums(np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]))
    array([[[ 5., 50.],
            [ 3., 30.]]])
    """

    def __init__(self, columns: np.ndarray, group: np.ndarray, size: int) -> None:
        order = order_by_size(group, size)
        self.order = None if np.array_equal(order, np.arange(len(order))) else order
        self.shape = (columns.shape[1], size)
        self.batches: list[_Batch] = []
        ordered = columns if self.order is None else columns[order]
        counts = np.bincount(group, minlength=size)
        by_size = np.argsort(counts, kind="stable")
        changes = np.flatnonzero(np.diff(counts[by_size], prepend=-1))
        start = 0
        for first, last in pairwise([*changes, size]):
            groups, rows = by_size[first:last], int(counts[by_size[first]])
            stop = start + rows * len(groups)
            adjacent = groups[-1] - groups[0] == len(groups) - 1
            blocks = ordered[start:stop].reshape(len(groups), rows, -1).transpose(0, 2, 1)
            self.batches.append(
                _Batch(
                    slice(start, stop),
                    slice(int(groups[0]), int(groups[-1]) + 1) if adjacent else groups,
                    np.ascontiguousarray(blocks),
                )
            )
            start = stop

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Sums of (n, B) values, (q, m, B)."""
        ordered = values if self.order is None else values[self.order]
        sums = np.empty((*self.shape, values.shape[1]))
        for batch in self.batches:
            sums[:, batch.groups] = np.swapaxes(batch.columns @ batch.cut(ordered), 0, 1)
        return sums


class WithinGroups:
    """Removal of what lies in the span of each group's orthonormal columns.

    Removing them one after the other, as the pass does, gives ``c = L^-1 Q'y`` with L the lower triangle of
    ``Q'Q``: the identity but where the columns of a group are so nearly dependent that Q is not orthonormal.

    Parameters
    ----------
    Q : (n, q) array
        From :func:`jaxmixed.crossproducts.project_out`, its rows in the order of :func:`order_by_size`.
    group : (n,) int array
        Group of each row.
    size : int
        Number of groups m.
    """

    def __init__(self, Q: np.ndarray, group: np.ndarray, size: int) -> None:
        self.sums = GroupSums(Q, group, size)
        assert self.sums.order is None  # the rows are kept in the order of these groups
        self.columns: list[np.ndarray] = []
        for number, batch in enumerate(self.sums.batches):
            transposed = batch.columns
            original = np.ascontiguousarray(transposed.transpose(0, 2, 1))
            self.columns.append(original)
            if Q.shape[1] > 1:
                L = np.tril(transposed @ original, -1) + np.eye(Q.shape[1])
                self.sums.batches[number] = batch._replace(columns=np.linalg.solve(L, transposed))

    def remove(self, values: np.ndarray) -> np.ndarray:
        """Coefficients (q, m, B) on the groups' columns, which are removed from the values in place."""
        found = np.empty((*self.sums.shape, values.shape[1]))
        for batch, original in zip(self.sums.batches, self.columns, strict=True):
            rows = batch.cut(values)
            coefficients = batch.columns @ rows
            rows -= original @ coefficients
            found[:, batch.groups] = np.swapaxes(coefficients, 0, 1)
        return found


class PatternSums:
    """Sums over the groups of each pattern, for a finest level that is compressed.

    Parameters
    ----------
    level : Level
        The finest, one entry per group.
    """

    def __init__(self, level: Level) -> None:
        assert level.cross is not None
        codes, first = pattern_codes(level)
        counts = np.bincount(codes, minlength=len(first))
        self.order = stable_order(codes, len(first)) if len(first) > 1 else None
        self.ranges = list(pairwise([0, *np.cumsum(counts).tolist()]))
        cross = np.asarray(level.cross)[:, :-1]
        self.cross = cross if self.order is None else cross[..., self.order]

    def __call__(self, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums of outer products: (q, q, patterns, s, B) with other columns, (q, q, patterns, B) its own.

        Parameters
        ----------
        own : (q, m, B) array
            Responses' coefficients on the orthonormal columns of every group.
        """
        q, s, _ = self.cross.shape
        if self.order is not None:
            own = own[:, self.order]
        products = np.empty((q, q, len(self.ranges), s, own.shape[-1]))
        square = np.empty((q, q, len(self.ranges), own.shape[-1]))
        for pattern, (start, stop) in enumerate(self.ranges):
            columns = self.cross[:, :, start:stop].reshape(q * s, stop - start)
            for b in range(q):
                part = own[b, start:stop]
                products[:, b, pattern] = product(columns, part).reshape(q, s, part.shape[1])
                for a in range(b + 1):
                    sums = np.einsum("mb,mb->b", own[a, start:stop], part)
                    square[a, b, pattern] = square[b, a, pattern] = sums
        return products, square
