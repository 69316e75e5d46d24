"""The part of the pass over the rows that keeps what correlated residuals need."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from jaxmixed.basis import ColumnBasis, FixedBasis
from jaxmixed.layout import Grouping
from jaxmixed.residual_groups import Pattern, ResidualDesign, joined_occasions, patterns_of
from jaxmixed.residual_root import RootRows, RowSlots, pairs_of_groups, root_rows
from jaxmixed.residual_statistics import CorrelatedRows, PatternMoments, RowBatch, SuccessiveRows
from jaxmixed.sizes import grid_size
from jaxmixed.statistics import SufficientStatistics

MOST_MOMENTS = 1 << 26
"""Largest number of cross-moments kept, half a gigabyte."""

MOST_PAIRS = 50_000_000
"""More pairs than this are not listed where they need not be."""

SPREAD = 2
"""Groups whose numbers of rows differ by no more than this factor are padded to one size."""


def standard_rows(
    groupings: Sequence[Grouping],
    by_level: Sequence[ColumnBasis],
    X: np.ndarray,
    fixed: FixedBasis,
    residual: np.ndarray,
    weights: np.ndarray | None,
) -> np.ndarray:
    """Random-effects columns of all levels, X and y of all rows, standardised and weighted, (n, c)."""
    every = slice(None)
    columns = [
        found.standardise(grouping.Z, every) for grouping, found in zip(groupings, by_level, strict=True)
    ]
    joined = np.concatenate([*columns, fixed.columns.standardise(X, every), residual[:, None]], axis=1)
    return joined if weights is None else joined * np.sqrt(weights)[:, None]


def _batches_by_size(patterns: Sequence[Pattern]) -> list[list[Pattern]]:
    """Patterns in batches whose groups are of similar sizes, the largest first."""
    batches: list[list[Pattern]] = []
    smallest = np.inf
    for pattern in sorted(patterns, key=lambda own: -own.rows.shape[1]):
        size = pattern.rows.shape[1]
        if size * SPREAD < smallest:
            batches.append([])
            smallest = size
        batches[-1].append(pattern)
    return batches


class Crossing(NamedTuple):
    """What further rows of the dense root need.

    Attributes
    ----------
    slots : RowSlots
    stats : SufficientStatistics
    entries : sequence of (n,) int arrays
        Entry of each row at every level of the chain.
    """

    slots: RowSlots
    stats: SufficientStatistics
    entries: Sequence[np.ndarray]

    def num_pairs(self, patterns: list[Pattern]) -> int:
        """Number of pairs of slots of rows of the same group."""
        rows = sum(len(own.groups) * own.rows.shape[1] ** 2 for own in patterns)
        return rows * len(self.slots.values) ** 2

    def of_groups(self, patterns: list[Pattern], t: int, u: int, groups: int) -> RootRows:
        """Root rows of the groups of some patterns, side by side, the first times first."""
        rows, pairs, start = np.full((t, groups), -1), [], 0
        for number, own in enumerate(patterns):
            stop = start + len(own.groups)
            rows[: own.rows.shape[1], start:stop] = own.rows.T
            pairs.append(pairs_of_groups(own.rows, t, u, number))
            start = stop
        return root_rows(self.slots, self.stats, list(self.entries), rows.ravel(), pairs)

    def of_successive(self, order: np.ndarray, first: np.ndarray) -> RootRows:
        """Root rows in an order in which each depends on the one before, if it is not its group's first."""
        n, padded = len(order), len(first)
        rows = np.concatenate([order, np.full(padded - n, -1)])
        later = np.flatnonzero(~first[1:n])
        pairs = [
            (order, order, np.arange(n)),
            (order[later], order[later + 1], padded + later),
        ]
        return root_rows(self.slots, self.stats, list(self.entries), rows, pairs)


def _batch(
    patterns: list[Pattern], rows: np.ndarray, entries: Sequence[np.ndarray], crossing: Crossing | None
) -> RowBatch:
    """One batch: its groups side by side, padded with rows and groups of zeros."""
    t = grid_size(max(own.rows.shape[1] for own in patterns))
    groups = grid_size(sum(len(own.groups) for own in patterns))
    u = grid_size(len(patterns))
    columns = np.zeros((t, rows.shape[1], groups))
    pattern, start = np.zeros(groups, dtype=np.int64), 0
    entry = [np.zeros(groups, dtype=np.int64) for _ in entries]
    for number, own in enumerate(patterns):
        at = slice(start, start + len(own.groups))
        columns[: own.rows.shape[1], :, at] = rows[own.rows].transpose(1, 2, 0)
        pattern[at] = number
        for target, codes in zip(entry, entries, strict=True):
            target[at] = codes[own.rows[:, 0]]
        start = at.stop
    count = np.zeros(u)
    count[: len(patterns)] = [len(own.groups) for own in patterns]
    occasions = joined_occasions(patterns, t, u)
    return RowBatch(
        at=occasions,
        count=count,
        pattern=pattern,
        columns=columns,
        entries=tuple(entry),
        root=None if crossing is None else crossing.of_groups(patterns, t, u, groups),
    )


def correlated_rows(
    design: ResidualDesign,
    rows: np.ndarray,
    entries: Sequence[np.ndarray],
    patterns: list[Pattern],
    crossing: Crossing | None = None,
) -> CorrelatedRows:
    """The rows by groups and their patterns.

    Parameters
    ----------
    design : ResidualDesign
    rows : (n, c) array
        From :func:`standard_rows`.
    entries : sequence of (n,) int arrays
        Entry of each row at every level of the chain.
    patterns : list of Pattern
    crossing : Crossing, optional
        Of a dense root.

    Returns
    -------
    CorrelatedRows
    """
    batches = tuple(_batch(own, rows, entries, crossing) for own in _batches_by_size(patterns))
    return CorrelatedRows(covariance=design.covariance, batches=batches)


def _pays(patterns: list[Pattern], n: int, r: int, q: int) -> bool:
    """Whether cross-moments of patterns cost less than the rows."""
    longest, u = grid_size(max(own.rows.shape[1] for own in patterns)), grid_size(len(patterns))
    moments = u * longest**2 * r**2
    return moments <= MOST_MOMENTS and moments * (1 + q) <= n * (r + q) * (r + q + longest)


def pattern_moments(
    design: ResidualDesign, Xy: np.ndarray, Z: np.ndarray, patterns: list[Pattern]
) -> PatternMoments:
    """Cross-moments of the rows of every pattern.

    Parameters
    ----------
    design : ResidualDesign
    Xy : (n, r) array
    Z : (n, q) array
        The same for all groups of a pattern; q may be zero.
    patterns : list of Pattern

    Returns
    -------
    PatternMoments
    """
    r = Xy.shape[1]
    t = grid_size(max(own.rows.shape[1] for own in patterns))
    u = grid_size(len(patterns))
    moments, count = np.zeros((t, t, u, r, r)), np.zeros(u)
    effects = np.zeros((t, Z.shape[1], u))
    for number, own in enumerate(patterns):
        size = own.rows.shape[1]
        flat = Xy[own.rows].reshape(len(own.groups), size * r)
        products = (flat.T @ flat).reshape(size, r, size, r)
        moments[:size, :size, number] = products.transpose(0, 2, 1, 3)
        count[number] = len(own.groups)
        effects[:size, :, number] = Z[own.rows[0]]
    at = joined_occasions(patterns, t, u)
    return PatternMoments(covariance=design.covariance, at=at, count=count, moments=moments, Z=effects)


def successive_rows(
    design: ResidualDesign,
    rows: np.ndarray,
    entries: Sequence[np.ndarray],
    crossing: Crossing | None = None,
) -> SuccessiveRows:
    """The rows of all groups, by group and time.

    Parameters
    ----------
    design : ResidualDesign
        Of a Markov family.
    rows : (n, c) array
        From :func:`standard_rows`.
    entries : sequence of (n,) int arrays
        Entry of each row at every level of the chain.
    crossing : Crossing, optional
        Of a dense root.

    Returns
    -------
    SuccessiveRows
    """
    n = len(rows)
    order = np.lexsort((design.times, design.codes))
    padded = grid_size(n)

    def extended(values: np.ndarray, fill: float | bool = 0) -> np.ndarray:
        return np.concatenate([values, np.full(padded - n, fill, dtype=values.dtype)])

    times, codes = design.times[order], design.codes[order]
    first = np.append(True, codes[1:] != codes[:-1])
    before = np.where(first, times, np.roll(times, 1))
    whole_first = extended(first, True)
    columns = np.zeros((rows.shape[1], padded))
    columns[:, :n] = rows[order].T
    return SuccessiveRows(
        covariance=design.covariance,
        times=np.stack([extended(before), extended(times)]),
        first=whole_first,
        count=extended(np.ones(n)),
        levels=extended(design.levels[order]),
        stratum=extended(design.stratum[order]),
        covariate=extended(design.covariate[order], 1),
        columns=columns,
        entries=tuple(extended(entry[order]) for entry in entries),
        root=None if crossing is None else crossing.of_successive(order, whole_first),
    )


def _same_groups(design: ResidualDesign, grouping: Grouping) -> bool:
    """Whether the groups of correlated rows are those of a grouping factor."""
    if design.size != grouping.size:
        return False
    owner = np.empty(design.size, dtype=np.int64)
    owner[design.codes] = grouping.codes
    return bool((owner[design.codes] == grouping.codes).all())


def with_residuals(
    stats: SufficientStatistics,
    design: ResidualDesign,
    rows: np.ndarray,
    groupings: Sequence[Grouping],
    entries: Sequence[np.ndarray],
    slots: RowSlots | None = None,
) -> tuple[SufficientStatistics, SufficientStatistics]:
    """Statistics of every group, and with groups that are alike sharing moments where that pays.

    Parameters
    ----------
    stats : SufficientStatistics
        Without correlation.
    design : ResidualDesign
    rows : (n, c) array
        From :func:`standard_rows`.
    groupings : sequence of Grouping
        The chain.
    entries : sequence of (n,) int arrays
        Entry of each row at each of its levels.
    slots : RowSlots, optional
        Columns of the dense root, if there is one.

    Returns
    -------
    stats, compact : SufficientStatistics
    """
    patterns = patterns_of(design)
    crossing = None if slots is None else Crossing(slots, stats, entries)
    markov = design.covariance.family.is_markov
    if markov and crossing is not None and crossing.num_pairs(patterns) > MOST_PAIRS:
        chained = replace(stats, residual=successive_rows(design, rows, entries, crossing))
        return chained, chained
    every = replace(stats, residual=correlated_rows(design, rows, entries, patterns, crossing))
    r = stats.total.shape[0]
    Z, Xy = rows[:, :-r], rows[:, -r:]
    plain = not groupings or (len(groupings) == 1 and _same_groups(design, groupings[0]))
    if plain and crossing is None:
        alike = patterns_of(design, Z) if groupings else patterns
        if _pays(alike, len(rows), r, Z.shape[1]):
            return every, replace(stats, levels=(), residual=pattern_moments(design, Xy, Z, alike))
    if markov:
        return every, replace(stats, residual=successive_rows(design, rows, entries, crossing))
    return every, every
