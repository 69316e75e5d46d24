r"""Cross-products of the dense root's columns where residuals are correlated within groups of rows.

In the metric of :math:`P = R^{-1}`, block-diagonal over groups of rows, the root's columns Z have

.. math:: Z'PZ = \sum_{ij} P_{ij}\, z_i z_j', \qquad Z'P\,[A\; X\; y],

with :math:`z_i` the row of Z, of which only a few *slots* are not zero: one for each effect of each factor.
The first sum is over pairs of slots of rows of the same group, listed once on the host, those of equal place
added up; the second needs one product for each slot of each row. A is what the chain is made of
(:mod:`jaxmixed.links`); which of its groups meet which columns does not depend on P.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxmixed._types import AnyArray
from jaxmixed.sizes import grid_size
from jaxmixed.statistics import Level, SufficientStatistics


class RowSlots(NamedTuple):
    """The root's columns that are not zero in each row of the data.

    Attributes
    ----------
    columns : (s, n) int array
    values : (s, n) array
        Of weighted rows.
    """

    columns: np.ndarray
    values: np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, slots=True)
class RootRows:
    """The root's columns in some rows, groups of correlated rows whole.

    Attributes
    ----------
    columns : (s, n) int array
    values : (s, n) array
        Zero for padding.
    entries : tuple of (s, n) int arrays
        For each level of the chain, where its cross-product with the column stands among its links.
    place : (e,) int array
        Element of P, flattened, of each pair of slots.
    weight : (e,) array
        Product of their values; half of it for a row with itself, as each pair counts both ways.
    left, right : (e,) int arrays
        Their columns.
    """

    columns: Int[AnyArray, "s n"]
    values: Float[AnyArray, "s n"]
    entries: tuple[Int[AnyArray, "s n"], ...]
    place: Int[AnyArray, " e"]
    weight: Float[AnyArray, " e"]
    left: Int[AnyArray, " e"]
    right: Int[AnyArray, " e"]


class RootSums(NamedTuple):
    """Sums over the rows so far.

    Attributes
    ----------
    gram : (R, R) array
        Of the pairs listed, one way.
    cross : (R, r) array
    links : tuple of (q, e) arrays
    """

    gram: Float[Array, "R R"]
    cross: Float[Array, "R r"]
    links: tuple[Float[Array, "q e"], ...]


def no_sums(stats: SufficientStatistics) -> RootSums | None:
    """Sums over no row; None without a root."""
    if stats.root is None:
        return None
    dtype = stats.total.dtype
    links = [level.links for level in stats.levels]
    return RootSums(
        jnp.zeros(stats.root.gram.shape, dtype),
        jnp.zeros(stats.root.cross.shape, dtype),
        tuple(jnp.zeros(own.values.shape, dtype) for own in links if own is not None),
    )


def with_rows(
    sums: RootSums | None, rows: RootRows | None, P: Float[Array, " k"], PA: Float[Array, "c n"]
) -> RootSums | None:
    """The sums with those of further rows.

    Parameters
    ----------
    sums : RootSums or None
    rows : RootRows or None
        None without a root, as the sums.
    P : (k,) array
        Elements of the precisions that `rows.place` refers to.
    PA : (c, n) array
        Products of the precisions with the columns of all levels of the chain, X and y.
    """
    if sums is None or rows is None:
        return sums
    columns, values = jnp.asarray(rows.columns).ravel(), jnp.asarray(rows.values)
    products = (values[:, None] * PA[None]).transpose(0, 2, 1).reshape(-1, len(PA))  # slot and row first
    links, start = [], 0
    for found, entry in zip(sums.links, rows.entries, strict=True):
        q, size = found.shape
        own = jax.ops.segment_sum(products[:, start : start + q], jnp.asarray(entry).ravel(), size)
        links.append(found + own.T)
        start += q
    pairs = P[rows.place] * rows.weight
    return RootSums(
        sums.gram.at[rows.left, rows.right].add(pairs),
        sums.cross + jax.ops.segment_sum(products[:, start:], columns, len(sums.cross)),
        tuple(links),
    )


def put_sums(
    stats: SufficientStatistics, levels: tuple[Level, ...], sums: RootSums | None
) -> SufficientStatistics:
    """Statistics with the chain's levels, and with the sums as the root and its links."""
    if sums is None or stats.root is None:
        return replace(stats, levels=levels)
    linked = []
    for level, values in zip(levels, sums.links, strict=True):
        assert level.links is not None
        linked.append(replace(level, links=replace(level.links, values=values)))
    root = replace(stats.root, gram=sums.gram + sums.gram.T, cross=sums.cross)
    return replace(stats, levels=tuple(linked), root=root)


# On the host


def root_rows(
    slots: RowSlots,
    stats: SufficientStatistics,
    entries: list[np.ndarray],
    rows: np.ndarray,
    pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> RootRows:
    """The root's columns in some rows.

    Parameters
    ----------
    slots : RowSlots
        Of all rows of the data.
    stats : SufficientStatistics
        Not padded.
    entries : list of (n,) int arrays
        Entry of each row of the data at each level of the chain.
    rows : (m,) int array
        Rows of the data; -1 for padding.
    pairs : list of (left, right, place)
        Rows of the data, (a,) each, a pair of them listed once, and which element of P they share.

    Returns
    -------
    RootRows
    """
    assert stats.root is not None
    size, there = len(stats.root.gram), rows >= 0
    columns = np.where(there, slots.columns[:, rows], 0)
    of_links = []
    for level, entry in zip(stats.levels, entries, strict=True):
        assert level.links is not None
        keys = np.asarray(level.links.group, dtype=np.int64) * size + level.links.column
        of_links.append(np.where(there, np.searchsorted(keys, entry[rows] * size + columns), 0))
    place, weight, left, right = _summed_pairs(slots, size, pairs)
    return RootRows(
        columns=columns,
        values=np.where(there, slots.values[:, rows], 0.0),
        entries=tuple(of_links),
        place=place,
        weight=weight,
        left=left,
        right=right,
    )


def _summed_pairs(
    slots: RowSlots, size: int, pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Place, weight and columns of all pairs of slots, those with the same place and columns added up."""
    keys, weights = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
    for i, j, place in pairs:
        share = np.where(i == j, 0.5, 1.0)
        for one, first in zip(slots.columns, slots.values, strict=True):
            for other, second in zip(slots.columns, slots.values, strict=True):
                keys.append((place * size + one[i]) * size + other[j])
                weights.append(share * first[i] * second[j])
    distinct, of = np.unique(np.concatenate(keys), return_inverse=True)
    total = np.bincount(of.ravel(), np.concatenate(weights), len(distinct))
    count = grid_size(max(len(distinct), 1))
    distinct = np.concatenate([distinct, np.zeros(count - len(distinct), dtype=np.int64)])
    total = np.concatenate([total, np.zeros(count - len(total))])
    place, cell = np.divmod(distinct, size * size)
    left, right = np.divmod(cell, size)
    return place, total, left, right


def pairs_of_groups(
    rows: np.ndarray, longest: int, patterns: int, number: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of rows of the groups of one pattern, and their places among (longest, longest, patterns).

    Parameters
    ----------
    rows : (g, t) int array
    longest, patterns : int
        Shape of the precisions.
    number : int
        Of the pattern.

    Returns
    -------
    left, right, place : (g * t (t + 1) / 2,) int arrays

    Examples
    --------
    >>> [own.tolist() for own in pairs_of_groups(np.array([[5, 7]]), 4, 3, 2)]
    [[5, 5, 7], [5, 7, 7], [2, 5, 17]]
    """
    i, j = np.triu_indices(rows.shape[1])
    place = (i * longest + j) * patterns + number
    return rows[:, i].ravel(), rows[:, j].ravel(), np.tile(place, len(rows))
