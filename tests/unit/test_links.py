"""Sums over the sparse links between groups and root columns, against the same sums with dense matrices."""

from collections.abc import Iterator
from functools import partial
from itertools import combinations_with_replacement
from typing import NamedTuple

import jax
import numpy as np
import pytest

from jaxmixed import links
from jaxmixed._types import AnyArray
from jaxmixed.links import (
    LARGEST_LISTED_ROOT,
    Blocks,
    Links,
    Pairs,
    column_sums,
    count_pairs,
    group_sums,
    make_fill,
    outer_sum,
    pad_links,
    per_entry,
    projected,
    sampled_product,
)
from jaxmixed.precision import double_precision
from jaxmixed.sizes import grid_size
from tests.support.closeness import assert_close_to_the_largest
from tests.support.compilation import LIKE_FITS

ROUNDING = 1e-13
"""Relative to the largest element: sums of a few dozen products of order one."""

GROUPS, Q, SIZE = 13, 2, 7
PADDED_SIZE, PADDED_ENTRIES = 9, (64, 24)
OTHERS = 3


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with double_precision():
        yield


close = partial(assert_close_to_the_largest, share=ROUNDING)


class Sums(NamedTuple):
    """What is made of links, and what it is made of."""

    fill: AnyArray
    sampled: AnyArray
    projected: AnyArray
    columns: AnyArray
    groups: AnyArray


class Problem:
    """Groups that meet some of the root's columns: one all of them, two none, the last among them."""

    def __init__(self, rng: np.random.Generator) -> None:
        meets = rng.random((GROUPS, SIZE)) < 0.5
        meets[4] = True
        meets[[2, GROUPS - 1]] = False
        self.group, self.column = np.nonzero(meets)
        self.values = rng.normal(size=(Q, len(self.group)))
        omega = rng.normal(size=(Q, Q, GROUPS))
        self.omega = omega + np.swapaxes(omega, 0, 1)
        matrix = rng.normal(size=(SIZE, SIZE))
        self.matrix = matrix + matrix.T
        self.others = rng.normal(size=(Q, OTHERS, GROUPS))

    @property
    def dense(self) -> np.ndarray:
        """Each group's cross-products with every column, (m, q, R)."""
        V = np.zeros((GROUPS, Q, SIZE))
        V[self.group, :, self.column] = self.values.T
        return V

    def links(self) -> Links:
        return Links(
            values=self.values,
            group=self.group.astype(np.int32),
            column=self.column.astype(np.int32),
            parents=((self.column % 5).astype(np.int32),),
            fill=make_fill(self.group, self.column, Q, GROUPS, SIZE),
        )

    def expected(self) -> Sums:
        V = self.dense
        return Sums(
            fill=np.einsum("mar,abm,mbs->rs", V, self.omega, V),
            sampled=np.einsum("mar,rs->mas", V, self.matrix)[self.group, :, self.column].T,
            projected=np.einsum("mar,rs,mbs->abm", V, self.matrix, V),
            columns=np.einsum("mar,abm,bcm->rc", V, self.omega, self.others),
            groups=V.sum(axis=2).T,
        )


def found(own: Links, omega: np.ndarray, matrix: np.ndarray, others: np.ndarray) -> Sums:
    """All sums, compiled together."""
    groups, size = omega.shape[-1], len(matrix)

    @partial(jax.jit, compiler_options=LIKE_FITS)
    def sums(own: Links, omega: jax.Array, matrix: jax.Array, others: jax.Array) -> Sums:
        return Sums(
            outer_sum(omega, own, size),
            sampled_product(matrix, own),
            projected(matrix, own, groups),
            column_sums(per_entry(omega, own), others, own, size),
            group_sums(own.values, own, groups),
        )

    return sums(own, omega, matrix, others)


def force_blocks(monkeypatch: pytest.MonkeyPatch, rows: int, split: int) -> None:
    """Slabs of so many groups, and symmetric products by parts from an order of `split` on."""
    monkeypatch.setattr(links, "PAIR_COST", 1e9)
    monkeypatch.setattr(links, "SLAB_BYTES", 8.0 * Q * SIZE * rows)
    monkeypatch.setattr(links, "SMALLEST_STRIP", split)


def force(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The kinds of fill that the tests go through."""
    monkeypatch.setattr(links, "SLAB_COST", 0.0)
    if kind == "pairs":
        monkeypatch.setattr(links, "PRODUCT_COST", 1e9)
    else:
        rows, split = {"one slab": (100, 512), "two slabs": (7, 4), "five slabs": (3, 4)}[kind]
        force_blocks(monkeypatch, rows, split)


@pytest.mark.parametrize("kind", ["pairs", "one slab", "five slabs"])
def test_sums_are_those_of_dense_matrices(
    kind: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, kind)
    problem = Problem(rng)
    own = problem.links()
    if isinstance(own.fill, Blocks):
        assert len(own.fill.entry) == {"one slab": 1, "five slabs": 5}[kind]
    else:
        assert kind == "pairs"
    sums = found(own, problem.omega, problem.matrix, problem.others)
    for ours, dense in zip(sums, problem.expected(), strict=True):
        close(ours, dense)
    np.testing.assert_array_equal(sums.fill, np.asarray(sums.fill).T)


@pytest.mark.parametrize("kind", ["pairs", "two slabs"])
def test_padding_changes_nothing(
    kind: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, kind)
    problem = Problem(rng)
    groups, count = grid_size(GROUPS), len(problem.group)
    assert groups > GROUPS
    padded = pad_links(problem.links(), groups, PADDED_SIZE, PADDED_ENTRIES)
    extra = PADDED_SIZE - SIZE
    sums = found(
        padded,
        np.pad(problem.omega, [(0, 0), (0, 0), (0, groups - GROUPS)], constant_values=5.0),
        np.pad(problem.matrix, [(0, extra), (0, extra)], constant_values=3.0),
        np.pad(problem.others, [(0, 0), (0, 0), (0, groups - GROUPS)], constant_values=2.0),
    )
    expected = problem.expected()
    close(sums.fill, np.pad(expected.fill, [(0, extra), (0, extra)]))
    close(np.asarray(sums.sampled)[:, :count], expected.sampled)
    close(sums.projected, np.pad(expected.projected, [(0, 0), (0, 0), (0, groups - GROUPS)]))
    close(sums.columns, np.pad(expected.columns, [(0, extra), (0, 0)]))
    close(sums.groups, np.pad(expected.groups, [(0, 0), (0, groups - GROUPS)]))


@pytest.mark.parametrize("kind", ["pairs", "two slabs"])
def test_padded_links_stay_in_order_and_point_at_padding(
    kind: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, kind)
    own = Problem(rng).links()
    count, (entries, coarser) = len(own.group), PADDED_ENTRIES
    padded = pad_links(own, grid_size(GROUPS), PADDED_SIZE, PADDED_ENTRIES)
    assert padded.values.shape == (Q, entries)
    assert (padded.values[:, count:] == 0).all()
    assert (np.diff(padded.group) >= 0).all()
    assert padded.column.max() == PADDED_SIZE - 1
    assert [len(parent) for parent in padded.parents] == [entries]
    assert (padded.parents[0][count:] == coarser - 1).all()
    np.testing.assert_array_equal(padded.parents[0][:count], own.parents[0])
    if isinstance(padded.fill, Pairs):
        assert len(padded.fill.left) == grid_size(len(own.fill.left))  # type: ignore[union-attr]
        expected = padded.column[padded.fill.left] * PADDED_SIZE + padded.column[padded.fill.right]
        np.testing.assert_array_equal(padded.fill.cell, expected)


@pytest.mark.parametrize("kind", ["pairs", "five slabs"])
def test_the_fill_has_the_derivatives_of_the_dense_sum(
    kind: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, kind)
    problem = Problem(rng)
    own, V, K = problem.links(), problem.dense, problem.matrix

    def value(omega: jax.Array, values: jax.Array) -> jax.Array:
        moved = Links(values=values, group=own.group, column=own.column, parents=(), fill=own.fill)
        return (outer_sum((omega + omega.swapaxes(0, 1)) / 2, moved, SIZE) * K).sum()

    gradient = jax.jit(jax.grad(value, argnums=(0, 1)), compiler_options=LIKE_FITS)
    by_omega, by_values = gradient(problem.omega, problem.values)
    close(by_omega, np.einsum("mar,rs,mbs->abm", V, K, V))
    dense = 2 * np.einsum("abm,mbs,sr->mar", problem.omega, V, K)
    close(by_values, dense[problem.group, :, problem.column].T)


@pytest.mark.parametrize("columns", [1, 12])
def test_sums_by_column_are_right_for_few_and_for_many_columns(
    columns: int, rng: np.random.Generator
) -> None:
    problem = Problem(rng)
    own, others = problem.links(), rng.normal(size=(Q, columns, GROUPS))
    half = np.asarray(per_entry(problem.omega, own))
    close(half, np.einsum("abm,mbr->mar", problem.omega, problem.dense)[problem.group, :, problem.column].T)
    expected = np.einsum("mar,abm,bcm->rc", problem.dense, problem.omega, others)
    close(column_sums(half, others, own, SIZE), expected)


# The lists


def test_every_pair_of_entries_of_a_group_is_listed_once(rng: np.random.Generator) -> None:
    problem = Problem(rng)
    fill = problem.links().fill
    assert isinstance(fill, Pairs)
    listed = list(zip(fill.left.tolist(), fill.right.tolist(), strict=True))
    every = combinations_with_replacement(range(len(problem.group)), 2)
    expected = {(b, a) for a, b in every if problem.group[a] == problem.group[b]}
    assert len(listed) == len(expected) == count_pairs(problem.group)
    assert set(listed) == expected
    row, column = np.divmod(fill.cell, SIZE)
    np.testing.assert_array_equal(row, problem.column[fill.left])
    np.testing.assert_array_equal(column, problem.column[fill.right])
    assert (row >= column).all()


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_slabs_hold_every_entry_once(
    rows: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    force_blocks(monkeypatch, rows, 512)
    problem = Problem(rng)
    fill, count = problem.links().fill, len(problem.group)
    assert isinstance(fill, Blocks)
    assert fill.rows == min(rows, grid_size(GROUPS))
    slab, position = np.nonzero(fill.entry < count)
    entry = fill.entry[slab, position]
    assert sorted(entry) == list(range(count))
    np.testing.assert_array_equal(slab * fill.rows + fill.row[slab, position], problem.group[entry])


def test_no_entries_make_no_pairs() -> None:
    assert count_pairs(np.array([], dtype=int)) == 0


def test_few_pairs_are_listed() -> None:
    group, column = np.repeat(np.arange(50), 2), np.tile([0, 3], 50)
    assert isinstance(make_fill(group, column, 1, 50, 1000), Pairs)


def test_groups_that_meet_most_columns_are_multiplied_as_matrices() -> None:
    group, column = np.repeat(np.arange(40), 500), np.tile(np.arange(500), 40)
    assert isinstance(make_fill(group, column, 1, 40, 500), Blocks)


def test_more_pairs_than_may_be_listed_are_multiplied_as_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    group, column = np.repeat(np.arange(50), 2), np.tile([0, 3], 50)
    monkeypatch.setattr(links, "LARGEST_PAIRS", 150)
    assert isinstance(make_fill(group, column, 1, 50, 1000), Pairs)
    monkeypatch.setattr(links, "LARGEST_PAIRS", 149)
    assert isinstance(make_fill(group, column, 1, 50, 1000), Blocks)


def test_the_cells_of_a_listed_root_fit_into_32_bits() -> None:
    largest = LARGEST_LISTED_ROOT - 1
    group, column = np.array([0, 0]), np.array([0, largest - 1])
    fill = make_fill(group, column, 1, 1, largest)
    assert isinstance(fill, Pairs)
    assert fill.cell.tolist() == [0, (largest - 1) * largest, largest**2 - 1]
    assert isinstance(make_fill(group, column, 1, 1, LARGEST_LISTED_ROOT), Blocks)
