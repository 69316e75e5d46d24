r"""Sparse cross-products between the groups of an eliminated level and the columns of the dense root.

A group i meets only some of the root's columns: those that occur in its rows. Its cross-products :math:`V_i`
(q × R) are kept as *entries*, one for every group and column that meet. Eliminating the groups adds
:math:`\sum_i V_i' \Omega_i V_i` to the root (the *fill*), summed in one of two ways, chosen by cost when the
statistics are made:

``Pairs``
    every pair of entries of a group, listed once: a gather and a segment sum. The cost is that of the pairs.
``Blocks``
    dense slabs of some groups at a time, multiplied as matrices. The cost is groups · R², at the speed of a
    matrix product: better when a group meets many of the columns.

InstEval has 1.8 million pairs where slabs would take 3.9 billion products; ratings of 6,040 users for 3,706
items have 224 million pairs, 2.7 GB of lists.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxmixed._types import AnyArray
from jaxmixed.sizes import grid_size

PAIR_COST = 5e-9
"""Seconds for one pair of entries, and one pair of effects: about, on one core."""

PRODUCT_COST = 1.2e-11
"""Seconds for a multiplication and addition within a matrix product on two cores."""

SLAB_COST = 1e-2
"""Seconds for making slabs dense, at least: lists serve small designs."""

LARGEST_PAIRS = 50_000_000
"""More pairs than this are never listed: a list takes 12 bytes for each."""

LARGEST_LISTED_ROOT = 2**15
"""Cells of a larger root do not fit into the 32-bit integers of the lists."""

SMALLEST_STRIP = 256
"""Fewest rows of a strip of a symmetric product; a smaller product is made whole."""

SLAB_BYTES = 64e6
"""Size of the dense slab that `Blocks` multiplies at a time."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Pairs of entries of the same group, the right one not after the left one.

    Attributes
    ----------
    left, right : (P,) int array
        Entries.
    cell : (P,) int array
        ``column[left] * R + column[right]``, in the lower triangle of the root.
    """

    left: Int[AnyArray, " P"]
    right: Int[AnyArray, " P"]
    cell: Int[AnyArray, " P"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """Entries laid out in slabs of consecutive groups, every slab padded to the same number of entries.

    Attributes
    ----------
    entry : (slabs, E) int array
        Entry, or the number of entries for padding.
    row : (slabs, E) int array
        Its group within the slab.
    rows : int
        Groups in a slab; static.
    """

    entry: Int[AnyArray, "slabs E"]
    row: Int[AnyArray, "slabs E"]
    rows: int = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, slots=True)
class Links:
    """Entries of one level, ordered by group and then by column.

    Attributes
    ----------
    values : (q, e) array
        Cross-products of the group's columns (orthonormal or not, as the level's form says) with the root's.
    group : (e,) int array
    column : (e,) int array
    parents : tuple of (e,) int arrays
        For each coarser level of the chain, its entry for the same column.
    fill : Pairs or Blocks
    """

    values: Float[AnyArray, "q e"]
    group: Int[AnyArray, " e"]
    column: Int[AnyArray, " e"]
    parents: tuple[Int[AnyArray, " e"], ...]
    fill: Pairs | Blocks


def per_entry(
    matrices: Float[Array, "a q m"], links: Links, columns: Float[Array, "q e"] | None = None
) -> Float[Array, "a e"]:
    """Each group's matrix times the columns of its entries: the links' own values, or others."""
    return jnp.sum(matrices[:, :, links.group] * (links.values if columns is None else columns)[None], axis=1)


def outer_sum(omega: Float[Array, "q q m"], links: Links, size: int) -> Float[Array, "R R"]:
    """The fill ``sum over groups of V' Omega V``, for symmetric Omega.

    Parameters
    ----------
    omega : (q, q, m) array
    links : Links
    size : int
        R, the number of the root's columns.

    Returns
    -------
    (R, R) array
    """
    if isinstance(links.fill, Blocks):
        return _outer_sum_of_blocks(omega, links, links.fill, size)
    half = per_entry(omega, links)
    products = jnp.sum(links.values[:, links.fill.left] * half[:, links.fill.right], axis=0)
    lower = jax.ops.segment_sum(products, links.fill.cell, num_segments=size * size).reshape(size, size)
    return lower + lower.T - jnp.diag(jnp.diagonal(lower))


def _slab(
    values: Float[Array, "q e"],
    links: Links,
    entry: Int[Array, " E"],
    row: Int[Array, " E"],
    shape: tuple[int, int],
) -> Float[Array, "R q rows"]:
    """Entries of one slab as dense matrices; padding has the value zero.

    Columns of the root come first, so that both kinds of products below contract the last axes or multiply
    from the left as stored: a product with a transposed left side is several times slower.
    """
    column = jnp.take(jnp.asarray(links.column), entry, mode="clip")
    found = jnp.take(values, entry, axis=1, mode="fill", fill_value=0)
    return jnp.zeros((shape[0], len(values), shape[1]), values.dtype).at[column, :, row].add(found.T)


def _by_slab(batch: Float[Array, "... m"], fill: Blocks) -> Float[Array, "slabs ... rows"]:
    """Groups' arrays cut into slabs, padded with zeros."""
    slabs = fill.entry.shape[0]
    batch = batch[..., : slabs * fill.rows]
    padded = jnp.pad(batch, [(0, 0)] * (batch.ndim - 1) + [(0, slabs * fill.rows - batch.shape[-1])])
    return jnp.moveaxis(padded.reshape(*batch.shape[:-1], slabs, fill.rows), -2, 0)


def _strips(size: int) -> list[tuple[int, int]]:
    """Rows of a symmetric matrix cut into strips, of which only the part left of the diagonal is needed."""
    parts = max(1, min(8, size // SMALLEST_STRIP))
    return list(pairwise(size * part // parts for part in range(parts + 1)))


def _lower_product(A: Float[Array, "R K"], B: Float[Array, "R K"]) -> Float[Array, "R R"]:
    """Lower triangle of the symmetric ``A B'`` (above it, anything), in about half of the operations."""
    size = len(A)
    rows = [A[start:stop] @ B[:stop].T for start, stop in _strips(size)]
    return jnp.concatenate([jnp.pad(row, [(0, 0), (0, size - row.shape[1])]) for row in rows])


def _doubled_product(K: Float[Array, "R R"], V: Float[Array, "R K"]) -> Float[Array, "R K"]:
    """A product whose inner product with V is that of ``K V``, from the lower triangle of K alone."""
    strips = [
        jnp.concatenate([2 * K[start:stop, :start], K[start:stop, start:stop]], axis=1) @ V[:stop]
        for start, stop in _strips(len(K))
    ]
    return jnp.concatenate(strips)


def _outer_sum_of_blocks(
    omega: Float[Array, "q q m"], links: Links, fill: Blocks, size: int
) -> Float[Array, "R R"]:
    values = jnp.asarray(links.values)

    @jax.checkpoint
    def add(total: Array, slab: tuple[Array, Array, Array]) -> tuple[Array, None]:
        entry, row, middle = slab
        V = _slab(values, links, entry, row, (size, fill.rows))
        half = jnp.sum(middle[None] * V[:, None], axis=2)
        return total + _lower_product(V.reshape(size, -1), half.reshape(size, -1)), None

    slabs = (jnp.asarray(fill.entry), jnp.asarray(fill.row), _by_slab(omega, fill))
    total, _ = jax.lax.scan(add, jnp.zeros((size, size), omega.dtype), slabs)
    return jnp.tril(total) + jnp.tril(total, -1).T


def sampled_product(matrix: Float[Array, "R R"], links: Links) -> Float[Array, "q e"]:
    """``V_i K`` of every group, at the columns that the group meets, for a symmetric matrix K.

    Parameters
    ----------
    matrix : (R, R) array
    links : Links

    Returns
    -------
    (q, e) array
        One column per entry.
    """
    values, count, fill = jnp.asarray(links.values), links.group.shape[0], links.fill
    if isinstance(fill, Pairs):
        left, right = jnp.asarray(fill.left), jnp.asarray(fill.right)
        K = jnp.ravel(matrix)[fill.cell]
        total = jax.vmap(partial(jax.ops.segment_sum, num_segments=count), (0, None))
        below = jnp.where(left == right, 0, K)
        return total(values[:, left] * K, right) + total(values[:, right] * below, left)

    def multiply(carried: None, slab: tuple[Array, Array]) -> tuple[None, Array]:
        entry, row = slab
        V = _slab(values, links, entry, row, (len(matrix), fill.rows))
        column = jnp.take(jnp.asarray(links.column), entry, mode="clip")
        product = (matrix @ V.reshape(len(matrix), -1)).reshape(V.shape)
        return carried, product[column, :, row]

    _, products = jax.lax.scan(multiply, None, (jnp.asarray(fill.entry), jnp.asarray(fill.row)))
    found = jnp.zeros((count, len(values)), matrix.dtype)
    return found.at[jnp.ravel(fill.entry)].set(products.reshape(-1, len(values)), mode="drop").T


def projected(matrix: Float[Array, "R R"], links: Links, groups: int) -> Float[Array, "q q m"]:
    """``V_i K V_i'`` of every group, for a symmetric matrix K: the transpose of :func:`outer_sum`.

    Parameters
    ----------
    matrix : (R, R) array
    links : Links
    groups : int
        m.

    Returns
    -------
    (q, q, m) array
    """
    values, fill = jnp.asarray(links.values), links.fill
    if isinstance(fill, Pairs):
        left, right = jnp.asarray(fill.left), jnp.asarray(fill.right)
        K = jnp.where(left == right, 0.5, 1.0) * jnp.ravel(matrix)[fill.cell]
        products = values[:, None, left] * (K * values[None, :, right])
        group = jnp.asarray(links.group)[left]
        sums = jax.ops.segment_sum(
            jnp.moveaxis(products, -1, 0), group, num_segments=groups, indices_are_sorted=True
        )
        half = jnp.moveaxis(sums, 0, -1)
        return half + jnp.swapaxes(half, 0, 1)

    def project(carried: None, slab: tuple[Array, Array]) -> tuple[None, Array]:
        V = _slab(values, links, *slab, (len(matrix), fill.rows))
        product = _doubled_product(matrix, V.reshape(len(matrix), -1)).reshape(V.shape)
        half = jnp.sum(V[:, :, None] * product[:, None], axis=0)
        return carried, (half + jnp.swapaxes(half, 0, 1)) / 2

    _, products = jax.lax.scan(project, None, (jnp.asarray(fill.entry), jnp.asarray(fill.row)))
    found = jnp.moveaxis(products, 0, -2).reshape(len(values), len(values), -1)[:, :, :groups]
    return jnp.pad(found, [(0, 0), (0, 0), (0, groups - found.shape[-1])])


def group_sums(by_entry: Float[AnyArray, "... e"], links: Links, groups: int) -> Float[Array, "... m"]:
    """Sum over the entries of each group."""
    sums = jax.ops.segment_sum(
        jnp.moveaxis(by_entry, -1, 0), links.group, num_segments=groups, indices_are_sorted=True
    )
    return jnp.moveaxis(sums, 0, -1)


def column_sums(
    half: Float[Array, "q e"], others: Float[AnyArray, "q r m"], links: Links, size: int
) -> Float[Array, "R r"]:
    """``sum over groups of V' Omega C`` from ``half = Omega V``, a column of C at a time."""

    def one(column: Float[Array, "q m"]) -> Float[Array, " R"]:
        return jax.ops.segment_sum(
            jnp.sum(half * column[:, links.group], axis=0), links.column, num_segments=size
        )

    columns = jnp.moveaxis(others, 1, 0)
    sums = jax.vmap(one)(columns) if len(columns) <= 8 else jax.lax.map(one, columns)
    return sums.T


# Building the lists: host, once per design.


def count_pairs(group: np.ndarray) -> int:
    """Number of pairs of entries within the same group."""
    sizes = np.bincount(group).astype(np.int64) if len(group) else np.zeros(1, dtype=np.int64)
    return int(np.sum(sizes * (sizes + 1) // 2))


def fill_cost(pairs: int, groups: int, q: int, size: int) -> tuple[float, float]:
    """Seconds that the fill takes by pairs (infinite when too many to list) and by blocks, roughly."""
    listed = pairs <= LARGEST_PAIRS and size < LARGEST_LISTED_ROOT
    by_pairs = pairs * q * PAIR_COST if listed else np.inf
    return by_pairs, SLAB_COST + float(groups) * q * (float(size) ** 2) * PRODUCT_COST


def make_fill(group: np.ndarray, column: np.ndarray, q: int, groups: int, size: int) -> Pairs | Blocks:
    """The cheaper way to sum the fill of a level's entries.

    Parameters
    ----------
    group, column : (e,) int arrays
        Ordered by group, then by column.
    q : int
        Columns of the level.
    groups, size : int
        Groups of the level, columns of the root.
    """
    by_pairs, by_blocks = fill_cost(count_pairs(group), groups, q, size)
    if by_pairs <= by_blocks:
        return _pairs(group, column, size)
    return _blocks(group, max(1, min(grid_size(groups), int(SLAB_BYTES / (8 * q * size)))), groups)


def _pairs(group: np.ndarray, column: np.ndarray, size: int) -> Pairs:
    first = np.searchsorted(group, group)  # the first entry of each entry's group
    lengths = np.arange(len(group)) - first + 1
    left = np.repeat(np.arange(len(group)), lengths)
    right = np.arange(len(left)) - np.repeat(np.cumsum(lengths) - lengths - first, lengths)
    cell = column[left] * size + column[right]
    return Pairs(left=left.astype(np.int32), right=right.astype(np.int32), cell=cell.astype(np.int32))


def _blocks(group: np.ndarray, rows: int, groups: int) -> Blocks:
    slabs = -(-groups // rows)
    slab = group // rows
    counts = np.bincount(slab, minlength=slabs)
    starts = np.cumsum(counts) - counts
    position = np.arange(len(group)) - starts[slab]
    entry = np.full((slabs, counts.max()), len(group), dtype=np.int32)
    row = np.zeros_like(entry)
    entry[slab, position] = np.arange(len(group))
    row[slab, position] = group - slab * rows
    return Blocks(entry=entry, row=row, rows=rows)


def pad_links(links: Links, groups: int, size: int, entries: Sequence[int]) -> Links:
    """Links padded with entries of value zero, so that designs of similar shape share a program.

    Parameters
    ----------
    links : Links
    groups, size : int
        Padded numbers of groups and of the root's columns.
    entries : sequence of int
        Padded numbers of entries of this level (at least one more than there are) and of each coarser one.
    """
    own, *above = entries
    count = len(links.group)

    def longer(values: AnyArray, length: int, filler: int) -> np.ndarray:
        return np.concatenate([values, np.full(length - len(values), filler, dtype=np.int32)])

    column, fill = longer(links.column, own, size - 1), links.fill
    if isinstance(fill, Pairs):
        length = grid_size(len(fill.left))
        left, right = longer(fill.left, length, own - 1), longer(fill.right, length, own - 1)
        cell = (column[left].astype(np.int64) * size + column[right]).astype(np.int32)
        fill = Pairs(left=left, right=right, cell=cell)
    else:
        slabs, width = fill.entry.shape
        extra = [(0, grid_size(slabs) - slabs), (0, grid_size(width) - width)]
        entry = np.where(fill.entry == count, own, fill.entry).astype(np.int32)
        fill = replace(fill, entry=np.pad(entry, extra, constant_values=own), row=np.pad(fill.row, extra))
    return Links(
        values=np.pad(links.values, [(0, 0), (0, own - count)]),
        group=longer(links.group, own, groups - 1),
        column=column,
        parents=tuple(longer(parent, own, m - 1) for parent, m in zip(links.parents, above, strict=True)),
        fill=fill,
    )
