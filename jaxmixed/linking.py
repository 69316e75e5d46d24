"""The part of the pass over the rows that meets the dense root: its cross-products with everything else.

For every finest group the rows give, for each root column that occurs in them, an *entry*: the cross-product
of that column with the group's orthonormal columns. Coarser levels of the chain have the entries of the
groups within them.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from jaxmixed.basis import BLOCK_ROWS, ColumnBasis
from jaxmixed.layout import Grouping
from jaxmixed.links import Links, make_fill
from jaxmixed.root import LevelBasis, Root, factor_columns, level_basis
from jaxmixed.statistics import Level

IN_SPAN = 1e-10
"""A column that combinations of X approach to this share of its largest element is one of them."""


class RootPass:
    """Cross-products with the root's columns, filled block by block.

    Parameters
    ----------
    groupings : sequence of Grouping
        Factors of the root.
    bases : sequence of ColumnBasis
        Coordinates of each factor's random-effects columns.
    weights : (n,) array or None
        Precision weights.
    r : int
        Columns of [X y].
    """

    def __init__(
        self,
        groupings: Sequence[Grouping],
        bases: Sequence[ColumnBasis],
        weights: np.ndarray | None,
        r: int,
    ) -> None:
        self.groupings, self.bases, self.weights, self.r = groupings, bases, weights, r
        self.shapes = tuple((grouping.size, grouping.Z.shape[1]) for grouping in groupings)
        self.starts = [columns.start for columns in factor_columns(self.shapes)]
        self.size = sum(levels * effects for levels, effects in self.shapes)
        self.cross = np.zeros((self.size, r))
        self.keys: list[np.ndarray] = []
        self.values: list[np.ndarray] = []

    def row_columns(self, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Root columns that occur in each row, and their values in weighted rows: (slots, rows)."""
        columns, values = [], []
        for grouping, found, start in zip(self.groupings, self.bases, self.starts, strict=True):
            Z = found.standardise(grouping.Z, rows)
            for effect in range(Z.shape[1]):
                columns.append(start + effect * grouping.size + grouping.codes[rows].astype(np.int64))
                values.append(Z[:, effect])
        scaled = np.stack(values)
        if self.weights is not None:
            scaled = scaled * np.sqrt(self.weights[rows])
        return np.stack(columns), scaled

    def add(self, rows: slice | np.ndarray, group: np.ndarray, own: np.ndarray, rest: np.ndarray) -> None:
        """Add a block of whole finest groups.

        Parameters
        ----------
        rows : slice or int array
            Where the block's rows stand in the data.
        group : (b,) int array
            Finest entry of each.
        own : (b, q) array
            Orthonormal columns of the finest level.
        rest : (b, c + r) array
            Columns of the coarser levels, X and y, orthogonal to them.
        """
        columns, z = self.row_columns(rows)
        self._add_cross(columns, z, rest[:, -self.r :])
        keys, inverse = np.unique(group * self.size + columns, return_inverse=True)
        inverse = inverse.ravel()
        linked = [*own.T, *rest[:, : -self.r].T]
        self.keys.append(keys)
        self.values.append(
            np.stack([np.bincount(inverse, (z * column).ravel(), len(keys)) for column in linked])
        )

    def add_ungrouped(self, rows: slice | np.ndarray, rest: np.ndarray) -> None:
        """Add a block of rows without a chain: `rest` (b, r) holds their X and y."""
        self._add_cross(*self.row_columns(rows), rest)

    def _add_cross(self, columns: np.ndarray, z: np.ndarray, Xy: np.ndarray) -> None:
        for j, column in enumerate(Xy.T):
            self.cross[:, j] += np.bincount(columns.ravel(), (z * column).ravel(), self.size)

    def _shared(self, X: np.ndarray, of_X: ColumnBasis, z: np.ndarray) -> np.ndarray:
        """Combination of [X y] that each effect's columns add up to, or zero."""
        n = len(X)
        blocks = [slice(start, start + BLOCK_ROWS) for start in range(0, n, BLOCK_ROWS)]

        def standardised(rows: slice) -> np.ndarray:
            Xs = of_X.standardise(X, rows)
            return Xs if self.weights is None else Xs * np.sqrt(self.weights[rows])[:, None]

        shared = np.zeros((self.r, len(z)))
        for rows in blocks:  # the columns of X are orthonormal
            shared[:-1] += standardised(rows).T @ z[:, rows].T
        error = np.zeros(len(z))
        for rows in blocks:
            error = np.maximum(error, np.abs(z[:, rows].T - standardised(rows) @ shared[:-1]).max(axis=0))
        shared[:, error > IN_SPAN * np.abs(z).max(axis=1)] = 0.0
        return shared

    def _effects(self) -> list[slice]:
        """Where the effects of each factor stand among those of all."""
        ends = np.cumsum([0, *(effects for _, effects in self.shapes)])
        return [slice(int(first), int(last)) for first, last in pairwise(ends)]

    def _gram(self, columns: np.ndarray, z: np.ndarray) -> np.ndarray:
        """``Z'Z`` of the root's columns, from all rows at once."""
        gram = np.zeros((self.size, self.size))
        owner = np.repeat(np.arange(len(self.shapes)), [effects for _, effects in self.shapes])
        for i, own in enumerate(columns):
            for j, other in enumerate(columns[: i + 1]):
                m, k = self.shapes[owner[i]][0], self.shapes[owner[j]][0]
                first, second = int(own.min()), int(other.min())  # every level occurs: a block's first column
                if owner[i] == owner[j]:
                    sums = np.bincount(own - first, z[i] * z[j], m)
                    gram[first + np.arange(m), second + np.arange(m)] = sums
                else:
                    cells = (own - first) * k + (other - second)
                    gram[first : first + m, second : second + k] = np.bincount(
                        cells, z[i] * z[j], m * k
                    ).reshape(m, k)
        return np.tril(gram) + np.tril(gram, -1).T

    def finish(
        self, levels: tuple[Level, ...], X: np.ndarray, of_X: ColumnBasis
    ) -> tuple[tuple[Level, ...], Root]:
        """The chain's levels with their links, and the root."""
        linked = self._linked(levels) if levels else ()
        columns, z = self.row_columns(slice(None))
        shared, bases = self._shared(X, of_X, z), []
        for grouping, own in zip(self.groupings, self._effects(), strict=True):
            basis: LevelBasis | None = None
            if grouping.relationship is not None:
                basis, has_sum = level_basis(grouping.relationship, grouping.size)
                shared[:, own] *= has_sum
            bases.append(basis)
        related = any(basis is not None for basis in bases)
        root = Root(
            gram=self._gram(columns, z),
            cross=self.cross,
            shared=shared,
            shapes=self.shapes,
            bases=tuple(bases) if related else (),
        )
        return linked, root

    def _linked(self, levels: tuple[Level, ...]) -> tuple[Level, ...]:
        """The chain's levels with their links."""
        keys, values = np.concatenate(self.keys), np.concatenate(self.values, axis=1)
        finest, column = np.divmod(keys, self.size)
        owners = [finest, *(np.asarray(parent)[finest] for parent in levels[0].parents)]
        found = [np.unique(owner * self.size + column, return_inverse=True) for owner in owners]
        linked, start = [], 0
        for depth, (level, (unique, inverse)) in enumerate(zip(levels, found, strict=True)):
            q = level.root.shape[0]
            group, own_column = np.divmod(unique, self.size)
            own = values[start : start + q]
            if depth:
                own = np.stack([np.bincount(inverse, row, len(unique)) for row in own])
            parents = [
                np.searchsorted(coarser, np.asarray(parent)[group] * self.size + own_column).astype(np.int32)
                for parent, (coarser, _) in zip(level.parents, found[depth + 1 :], strict=True)
            ]
            links = Links(
                values=own,
                group=group.astype(np.int32),
                column=own_column.astype(np.int32),
                parents=tuple(parents),
                fill=make_fill(group, own_column, q, level.root.shape[-1], self.size),
            )
            linked.append(replace(level, links=links))
            start += q
        return tuple(linked)
