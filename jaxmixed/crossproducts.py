r"""One pass over the rows: host arrays in, accurate sufficient statistics out.

Within every finest group the random-effects columns are orthogonalised (modified Gram-Schmidt) and projected
out of the coarser columns, X and the response, which :mod:`jaxmixed.basis` has centred. The rows are visited
in blocks of whole groups, so that beyond the columns themselves only a block is held. Runs on numpy rather
than JAX because its shapes depend on the number of rows: compiling it would cost more than running it.

References
----------
Bjorck (1967), BIT 7, 1-21, for the stability of modified Gram-Schmidt in least squares.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from jaxmixed import basis
from jaxmixed.basis import ColumnBasis, FixedBasis, column_basis, fixed_basis
from jaxmixed.covariance import Coordinates
from jaxmixed.errors import DesignError
from jaxmixed.frequencies import Frequencies
from jaxmixed.layout import Grouping
from jaxmixed.linking import RootPass
from jaxmixed.patterns import compress, stable_order
from jaxmixed.residual_groups import ResidualDesign
from jaxmixed.residual_pass import standard_rows, with_residuals
from jaxmixed.residual_root import RowSlots
from jaxmixed.statistics import Level, SufficientStatistics, Term

GROUP_RANK_TOLERANCE = 1e-12
"""A random-effects column smaller than this within a group, once the earlier ones are removed, is rounding
there."""


class Design(NamedTuple):
    """What was reduced, but for the response: all that further responses on the same rows need.

    Attributes
    ----------
    X : (n, p) array
        Fixed-effects columns, aliased ones included.
    groupings : tuple of Grouping
        The nested chain, finest first.
    root : tuple of Grouping
        Factors beside the chain.
    weights : (n,) array or None
        Precision weights.
    residual : ResidualDesign or None
        Structure of correlated residuals.
    frequencies : Frequencies or None
        How often rows and groups count.
    """

    X: np.ndarray
    groupings: tuple[Grouping, ...]
    root: tuple[Grouping, ...]
    weights: np.ndarray | None
    residual: ResidualDesign | None = None
    frequencies: Frequencies | None = None


@dataclass(frozen=True, slots=True)
class Reduction:
    """Statistics of a data set, group by group, and how to find the user's groups in them.

    Attributes
    ----------
    stats : SufficientStatistics
        Numpy arrays; one entry per group (not compressed, not padded).
    compact : SufficientStatistics
        The same with equal groups sharing an entry, where that pays (:mod:`jaxmixed.patterns`).
    positions : tuple of (m,) int arrays
        For each level (chain, then root), the entry that holds the user's group ``0 .. m-1``; groups without
        rows that a known relationship adds are counted.
    columns : tuple of ColumnBasis
        For each *term*, the coordinates of its random-effects columns.
    fixed : FixedBasis
    design : Design
        The arrays themselves, not copies.
    residual : (n,) array or None
        Least-squares residuals, standardised and weighted; kept where they are correlated.
    """

    stats: SufficientStatistics
    compact: SufficientStatistics
    positions: tuple[np.ndarray, ...]
    columns: tuple[ColumnBasis, ...]
    fixed: FixedBasis
    design: Design
    residual: np.ndarray | None = None


def chain_positions(groupings: Sequence[Grouping]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Order the groups of nested factors so that the members of a parent stand together.

    Parameters
    ----------
    groupings : sequence of Grouping
        Finest first, each nested in the next.

    Returns
    -------
    positions : list of (m,) int arrays
        Entry of each user group, level by level.
    parents : list of (m,) int arrays
        For every level but the coarsest, the entry of the next coarser level that holds each *entry*.

    Raises
    ------
    DesignError
        If a factor is not nested in the next coarser one.
    """
    positions = [np.arange(groupings[-1].size)]
    parents: list[np.ndarray] = []
    for fine, coarse in zip(groupings[-2::-1], groupings[:0:-1], strict=True):
        owner = np.empty(fine.size, dtype=np.int64)
        owner[fine.codes] = coarse.codes
        if not np.array_equal(owner[fine.codes], coarse.codes):
            raise DesignError(
                f"{fine.label!r} is not nested in {coarse.label!r}: some of its groups occur in more than "
                f"one group of {coarse.label!r}. Factors that are crossed with the chain belong to the root "
                "(jaxmixed.layout.arrange finds which)."
            )
        parent_entry = positions[0][owner]
        order = np.argsort(parent_entry, kind="stable")
        position = np.empty(fine.size, dtype=np.int64)
        position[order] = np.arange(fine.size)
        positions.insert(0, position)
        parents.insert(0, parent_entry[order])
    return positions, parents


def _row_order(entry: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Order that brings the rows of a group together (None if they are), and where each group starts."""
    counts = np.bincount(entry)
    order = None if (entry[1:] >= entry[:-1]).all() else stable_order(entry, len(counts))
    return order, np.cumsum(counts) - counts


def _blocks(starts: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of groups that hold about a block of rows each."""
    firsts = np.flatnonzero(np.diff(starts // basis.BLOCK_ROWS, prepend=-1))
    return zip(firsts, [*firsts[1:], len(starts)], strict=True)


def project_out(
    Z: np.ndarray, rest: np.ndarray, starts: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """QR within every group by modified Gram-Schmidt; makes `rest` orthogonal to the columns of Z, in place.

    Parameters
    ----------
    Z : (n, q) array
        Rows of a group stand together.
    rest : (n, r) array
        Changed.
    starts, sizes : (m,) int arrays
        First row of each group, and how many it has.

    Returns
    -------
    R : (q, q, m) array
    cross : (q, r, m) array
        ``Q' rest``.
    Q : (n, q) array

    Examples
    --------
    >>> rest = np.array([[1.0], [3.0], [5.0]])
    >>> R, cross, Q = project_out(np.ones((3, 1)), rest, np.array([0, 2]), np.array([2, 1]))
    >>> rest.ravel()
    array([-1.,  1.,  0.])
    """
    q, r, m = Z.shape[1], rest.shape[1], len(starts)
    R, cross = np.zeros((q, q, m)), np.zeros((q, r, m))
    Z = Z.copy()
    original = np.sqrt(np.add.reduceat(Z * Z, starts, axis=0))
    for a in range(q):
        column = Z[:, a]
        norm = np.sqrt(np.add.reduceat(column * column, starts)) if a else original[:, 0]
        norm = np.where(norm > GROUP_RANK_TOLERANCE * original[:, a], norm, 0.0)
        R[a, a] = norm
        column *= np.repeat(np.divide(1.0, norm, out=np.zeros(m), where=norm > 0), sizes)
        for other, target in ((Z[:, a + 1 :], R[a, a + 1 :]), (rest, cross[a])):
            if other.shape[1]:
                coefficients = np.add.reduceat(column[:, None] * other, starts, axis=0)
                target[:] = coefficients.T
                other -= column[:, None] * np.repeat(coefficients, sizes, axis=0)
    return R, cross, Z


class _Pass:
    """The statistics under construction, filled block by block."""

    def __init__(self, groupings: Sequence[Grouping], r: int) -> None:
        self.widths = [grouping.Z.shape[1] for grouping in groupings]
        self.r = r
        remaining = np.cumsum(self.widths[::-1])[::-1] + r
        blocks = [
            np.zeros((q, width, grouping.size))
            for grouping, q, width in zip(groupings, self.widths, remaining, strict=True)
        ]
        self.finest = blocks[0] if blocks else None
        self.rows = blocks[1:]
        self.total = np.zeros((r, r))

    def add_groups(
        self, first: int, last: int, Z: np.ndarray, rest: np.ndarray, starts: np.ndarray
    ) -> np.ndarray:
        """Reduce a range of the finest groups: `rest` is left orthogonal to their orthonormal columns."""
        assert self.finest is not None
        root, cross, own = project_out(Z, rest, starts, np.diff(np.append(starts, len(Z))))
        self.finest[:, : len(root), first:last] = root
        self.finest[:, len(root) :, first:last] = cross
        return own

    def add_within(self, within: np.ndarray, ancestors: Sequence[np.ndarray]) -> None:
        """Add the cross-products of rows already orthogonal to their finest group."""
        start = 0
        for target, entry in zip(self.rows, ancestors, strict=True):
            q = target.shape[0]
            Z = within[:, start : start + q]
            if Z.any():
                first = np.flatnonzero(np.r_[True, entry[1:] != entry[:-1]])
                products = np.add.reduceat(Z[:, :, None] * within[:, None, start:], first, axis=0)
                target[:, :, entry[first]] += np.moveaxis(products, 0, -1)
            start += q
        own = within[:, -self.r :]
        self.total += own.T @ own

    def levels(self, parents: list[np.ndarray]) -> tuple[Level, ...]:
        """Finished levels."""
        if self.finest is None:
            return ()
        q = len(self.finest)
        levels = [_level(self.finest[:, :q], self.finest[:, q:], _ancestors(parents, 0), "orthogonal")]
        for depth, (row, q) in enumerate(zip(self.rows, self.widths[1:], strict=True), 1):
            levels.append(_level(row[:, :q], row[:, q:], _ancestors(parents, depth), "moments"))
        return tuple(levels)


def _level(root: np.ndarray, cross: np.ndarray, parents: tuple[np.ndarray, ...], form: str) -> Level:
    count = np.ones(root.shape[-1])
    return Level(root=root, cross=cross, gram=None, count=count, parents=parents, form=form)  # type: ignore[arg-type]


def _ancestors(parents: list[np.ndarray], depth: int) -> tuple[np.ndarray, ...]:
    """Entry of every coarser level that holds each entry of this one."""
    found: list[np.ndarray] = []
    for parent in parents[depth:]:
        found.append(parent[found[-1]] if found else parent)
    return tuple(found)


def same_memory(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are the same columns, as when the random effects repeat the fixed ones."""
    return a.shape == b.shape and a.strides == b.strides and a.ctypes.data == b.ctypes.data


def _term_basis(
    factors: Sequence[Grouping], term: Term, weights: np.ndarray | None, X: np.ndarray, of_X: ColumnBasis
) -> ColumnBasis:
    """Coordinates of a term's columns that its covariance structure is closed under, of unit mean square."""
    Z = factors[term.level].Z[:, term.start : term.start + term.covariance.q]
    closed: Coordinates = term.covariance.coordinates
    n, q = Z.shape
    aliased: tuple[int, ...] = ()
    if closed == "any" and q > 1:
        found = of_X if same_memory(Z, X) else column_basis(Z, weights)
        if not found.aliased:
            return replace(found, solve=found.solve * np.sqrt(n), basis=found.basis / np.sqrt(n))
        aliased = found.aliased
    squares = np.einsum("ij,ij->j", Z, Z) if weights is None else np.einsum("i,ij,ij->j", weights, Z, Z)
    sizes = np.sqrt(squares / n)
    if closed == "scale":
        sizes = np.full(q, np.sqrt(np.mean(sizes**2)))
    elif closed == "none":
        sizes = np.ones(q)
    aliased = aliased or tuple(np.flatnonzero(sizes == 0).tolist())
    sizes = np.where(sizes > 0, sizes, 1.0)
    return ColumnBasis(np.arange(q), np.zeros(q), np.diag(1 / sizes), np.diag(sizes), aliased=aliased)


def block_diagonal(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Square blocks along the diagonal of a matrix of zeros."""
    size = sum(len(block) for block in blocks)
    matrix, start = np.zeros((size, size)), 0
    for block in blocks:
        stop = start + len(block)
        matrix[start:stop, start:stop] = block
        start = stop
    return matrix


def _level_basis(bases: Sequence[ColumnBasis]) -> ColumnBasis:
    """Coordinates of a level's columns, its terms side by side."""
    if len(bases) == 1:
        return bases[0]
    return ColumnBasis(
        keep=np.arange(sum(len(found.keep) for found in bases)),
        shift=np.concatenate([found.shift for found in bases]),
        solve=block_diagonal([found.solve for found in bases]),
        basis=block_diagonal([found.basis for found in bases]),
    )


def level_bases(terms: tuple[Term, ...], by_term: Sequence[ColumnBasis], levels: int) -> list[ColumnBasis]:
    """Coordinates of every level's columns from those of its terms.

    Parameters
    ----------
    terms : tuple of Term
    by_term : sequence of ColumnBasis
        Of each term.
    levels : int
        Levels of the chain and factors of the root.
    """
    return [
        _level_basis([found for term, found in zip(terms, by_term, strict=True) if term.level == depth])
        for depth in range(levels)
    ]


class Block(NamedTuple):
    """Rows of some finest groups, each group's together, in the coordinates of the statistics.

    Attributes
    ----------
    rows : slice or (b,) int array
        Which rows; in their own order where there are no groups.
    first, last : int
        Entries of the finest level that they fill.
    starts : (last - first,) int array
        Where each of these begins within the block.
    entries : list of (b,) int arrays
        For each level of the chain, the entry of each row.
    Z : (b, q) array
        Random-effects columns of the finest level; no columns where there are no groups.
    rest : (b, c) array
        Those of the coarser levels, X and the response.
    """

    rows: slice | np.ndarray
    first: int
    last: int
    starts: np.ndarray
    entries: list[np.ndarray]
    Z: np.ndarray
    rest: np.ndarray


def group_blocks(
    groupings: Sequence[Grouping],
    positions: Sequence[np.ndarray],
    by_level: Sequence[ColumnBasis],
    X: np.ndarray,
    fixed: FixedBasis,
    residual: np.ndarray,
    weights: np.ndarray | None,
    copies: Sequence[np.ndarray] = (),
) -> Iterator[Block]:
    """Visit all rows, a block of whole finest groups at a time; premultiplied by the weights' square roots.

    Parameters
    ----------
    groupings : sequence of Grouping
        The nested chain, finest first.
    positions : sequence of (m,) int arrays
        Entry of each of their groups, from :func:`chain_positions`.
    by_level : sequence of ColumnBasis
        Coordinates of their columns.
    X : (n, p) array
    fixed : FixedBasis
    residual : (n,) array
        From :func:`jaxmixed.basis.fixed_basis`.
    weights : (n,) array or None
    copies : sequence of (n,) arrays
        How often each row counts among the columns of each level of the chain, and then in X and the response
        (:mod:`jaxmixed.frequencies`); none for once.

    Yields
    ------
    Block
        Its `rest` is a fresh array, which may be changed.
    """
    n = len(residual)
    entries = [
        position[grouping.codes] if len(groupings) > 1 else grouping.codes
        for position, grouping in zip(positions, groupings, strict=True)
    ]
    order, starts = _row_order(entries[0]) if groupings else (None, np.arange(0, n, basis.BLOCK_ROWS))
    for first, last in _blocks(starts):
        low, high = int(starts[first]), int(starts[last]) if last < len(starts) else n
        rows: slice | np.ndarray = slice(low, high) if order is None else order[low:high]
        columns = [
            found.standardise(grouping.Z, rows) for grouping, found in zip(groupings, by_level, strict=True)
        ]
        columns += [fixed.columns.standardise(X, rows), residual[rows, None]]
        if weights is not None:
            root_weights = np.sqrt(weights[rows])[:, None]
            columns = [column * root_weights for column in columns]
        if copies:
            columns = [
                column * np.sqrt(own[rows])[:, None]
                for column, own in zip(columns, [*copies, copies[-1]], strict=True)
            ]
        rest = np.concatenate(columns[1:] if groupings else columns, axis=1)
        Z = columns[0] if groupings else rest[:, :0]
        own = [entry[rows] for entry in entries]
        yield Block(rows, int(first), int(last), starts[first:last] - low, own, Z, rest)


def _compact(
    stats: SufficientStatistics,
    correlated: ResidualDesign | None,
    rows: np.ndarray | None,
    groupings: Sequence[Grouping],
    positions: Sequence[np.ndarray],
    linking: RootPass | None,
) -> tuple[SufficientStatistics, SufficientStatistics]:
    """Statistics of every group, with the rows where residuals are correlated; and what is alike together."""
    if correlated is None or rows is None:
        return stats, compress(stats)
    entries = [position[factor.codes] for position, factor in zip(positions, groupings, strict=True)]
    slots = None if linking is None else RowSlots(*linking.row_columns(slice(None)))
    return with_residuals(stats, correlated, rows, groupings, entries, slots)


def _coordinate_weights(weights: np.ndarray | None, copies: Sequence[np.ndarray]) -> np.ndarray | None:
    """Weights (n,) in which columns are made orthonormal; frequencies have mean one, so that sizes stay."""
    if not copies:
        return weights
    total = copies[-1] * (len(copies[-1]) / copies[-1].sum())
    return total if weights is None else total * weights


def _with_counts(
    levels: tuple[Level, ...], counts: Sequence[np.ndarray], positions: Sequence[np.ndarray]
) -> tuple[Level, ...]:
    """Levels whose groups count as often as said, in the order of the user's groups."""
    return tuple(
        replace(level, count=count[np.argsort(position)])
        for level, count, position in zip(levels, counts, positions, strict=True)
    )


def reduce_rows(
    y: np.ndarray,
    X: np.ndarray,
    groupings: Sequence[Grouping],
    terms: tuple[Term, ...],
    weights: np.ndarray | None = None,
    root: Sequence[Grouping] = (),
    correlated: ResidualDesign | None = None,
    frequencies: Frequencies | None = None,
) -> Reduction:
    """Sufficient statistics of host arrays, with X orthonormalised and the response centred.

    Parameters
    ----------
    y : (n,) array
        Response less any offset.
    X : (n, p) array
        Fixed-effects columns, possibly rank deficient.
    groupings : sequence of Grouping
        Nested factors, finest first; empty for a linear model, or where all factors are in the root.
    terms : tuple of Term
        Which columns of which level belong to which random-effects term: side by side, every column in one.
    weights : (n,) array, optional
        Positive precision weights.
    root : sequence of Grouping
        Factors that are not nested with the others, and those with a known relationship between their levels
        (:mod:`jaxmixed.layout`); their levels follow the chain's.
    correlated : ResidualDesign, optional
        Structure of correlated residuals; its groups lie within those of the chain.
    frequencies : Frequencies, optional
        How often rows and groups of the chain count; without a root and correlated residuals only.

    Returns
    -------
    Reduction

    Examples
    --------
    >>> y, X = np.array([1.0, 2.0, 4.0, 7.0]), np.ones((4, 1))
    >>> from jaxmixed.covariance import covariance_structure
    >>> term = Term(0, 0, covariance_structure("unstructured", 1))
    >>> reduction = reduce_rows(y, X, [Grouping(X, np.array([0, 0, 1, 1]), 2, "g")], (term,))
    >>> reduction.stats.levels[0].root.round(3)
    array([[[1.414, 1.414]]])
    """
    n = len(y)
    positions, parents = chain_positions(groupings) if groupings else ([], [])
    factors = [*groupings, *root]
    copies = [] if frequencies is None else frequencies.within(groupings)
    counted = _coordinate_weights(weights, copies)
    fixed, residual = fixed_basis(y, X, counted)
    by_term = tuple(_term_basis(factors, term, counted, X, fixed.columns) for term in terms)
    by_level = level_bases(terms, by_term, len(factors))
    building = _Pass(groupings, len(fixed.columns.keep) + 1)
    chain = by_level[: len(groupings)]
    linking = RootPass(root, by_level[len(groupings) :], weights, building.r) if root else None
    for block in group_blocks(groupings, positions, chain, X, fixed, residual, weights, copies):
        if groupings:
            own = building.add_groups(block.first, block.last, block.Z, block.rest, block.starts)
            if linking is not None:
                linking.add(block.rows, block.entries[0], own, block.rest)
        elif linking is not None:
            linking.add_ungrouped(block.rows, block.rest)
        building.add_within(block.rest, block.entries[1:])
    levels = building.levels(parents)
    levels, dense = (levels, None) if linking is None else linking.finish(levels, X, fixed.columns)
    if frequencies is not None:
        levels = _with_counts(levels, frequencies.counts(groupings), positions)
    logs = np.zeros(1) if weights is None else np.log(weights)
    stats = SufficientStatistics(
        levels=levels,
        root=dense,
        total=building.total,
        nobs=np.asarray(float(n) if not copies else copies[-1].sum()),
        sum_log_weights=np.asarray(np.sum(logs * copies[-1] if copies else logs)),
        frames=tuple(found.basis for found in by_level),
        basis=fixed.columns.basis,
        log_det_basis=np.asarray(fixed.columns.log_det),
        origin=fixed.origin,
        scale=np.asarray(fixed.scale),
        terms=terms,
        repeated=frequencies is not None,
    )
    rows = None if correlated is None else standard_rows(groupings, chain, X, fixed, residual, weights)
    stats, compact = _compact(stats, correlated, rows, groupings, positions, linking)
    positions += [np.arange(grouping.all_levels) for grouping in root]
    design = Design(X, tuple(groupings), tuple(root), weights, correlated, frequencies)
    response = None if rows is None else rows[:, -1].copy()
    return Reduction(stats, compact, tuple(positions), by_term, fixed, design, response)
