"""The pass over the rows beside a root: entries, cross-products and likelihood against dense matrices."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmixed import basis, linking, links
from jaxmixed.covariance import covariance_structure
from jaxmixed.crossproducts import Reduction, reduce_rows
from jaxmixed.layout import Grouping
from jaxmixed.likelihood import deviance
from jaxmixed.links import Blocks, Links, Pairs
from jaxmixed.precision import double_precision
from jaxmixed.statistics import Term, pad
from tests.support.closeness import assert_close_to_the_largest
from tests.support.dense import Block, DenseModel

ROUNDING = 1e-11
"""Relative to the largest: the columns are orthogonalised by another route."""

VALUE = 1e-10
"""Relative; both sides lose a digit or two to the conditioning of V."""

N = 90


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with double_precision():
        yield


close = partial(assert_close_to_the_largest, share=ROUNDING)


@dataclass(frozen=True)
class Rows:
    """Pupils in schools who meet some items and some judges; the first pupil has a single row."""

    y: np.ndarray
    X: np.ndarray
    groupings: tuple[Grouping, ...]
    weights: np.ndarray | None

    @property
    def terms(self) -> tuple[Term, ...]:
        return tuple(
            Term(depth, 0, covariance_structure("unstructured", grouping.Z.shape[1]))
            for depth, grouping in enumerate(self.groupings)
        )

    @cached_property
    def reduction(self) -> Reduction:
        return reduce_rows(
            self.y, self.X, self.groupings[:2], self.terms, self.weights, root=self.groupings[2:]
        )

    @cached_property
    def root_weights(self) -> np.ndarray:
        return np.ones((N, 1)) if self.weights is None else np.sqrt(self.weights)[:, None]

    def columns(self, depth: int) -> np.ndarray:
        """Weighted random-effects columns in the coordinates of the statistics."""
        found = self.reduction.columns[depth].standardise(self.groupings[depth].Z, slice(None))
        return np.asarray(found * self.root_weights)

    @cached_property
    def Xy(self) -> np.ndarray:
        fixed = self.reduction.fixed
        y = (self.y - self.X @ fixed.origin) / fixed.scale
        return np.column_stack([fixed.columns.standardise(self.X, slice(None)), y]) * self.root_weights

    @cached_property
    def of_root(self) -> np.ndarray:
        """The root's columns: by factor, then effect, then level."""
        blocks = []
        for depth in (2, 3):
            grouping = self.groupings[depth]
            indicators = np.eye(grouping.size)[grouping.codes]
            blocks += [indicators * column[:, None] for column in self.columns(depth).T]
        return np.column_stack(blocks)

    @cached_property
    def orthonormal(self) -> np.ndarray:
        """Columns of the pupils, orthonormal within each; zero where rows do not tell them apart."""
        Z, Q = self.columns(0), np.zeros((N, 2))
        for group in range(self.groupings[0].size):
            mine = self.groupings[0].codes == group
            for a in range(2):
                earlier = Z[mine][:, :a]
                left = Z[mine, a] - earlier @ np.linalg.lstsq(earlier, Z[mine, a])[0]
                if np.linalg.norm(left) > 1e-10:
                    Q[mine, a] = left / np.linalg.norm(left)
        return Q

    def within(self, A: np.ndarray) -> np.ndarray:
        """What of some columns is orthogonal to those of every pupil."""
        left = A.copy()
        for group in range(self.groupings[0].size):
            mine = self.groupings[0].codes == group
            Q = self.orthonormal[mine]
            left[mine] -= Q @ (Q.T @ A[mine])
        return left

    def links(self, depth: int) -> Links:
        found = self.reduction.stats.levels[depth].links
        assert found is not None
        return found

    def dense_links(self, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Cross-products of every group with every column of the root, and which of them meet."""
        own = self.orthonormal if depth == 0 else self.within(self.columns(1))
        grouping = self.groupings[depth]
        Z, size = self.of_root, grouping.size
        V, meets = np.zeros((size, own.shape[1], Z.shape[1])), np.zeros((size, Z.shape[1]), dtype=bool)
        for group in range(size):
            mine = grouping.codes == group
            position = self.reduction.positions[depth][group]
            V[position], meets[position] = own[mine].T @ Z[mine], (Z[mine] != 0).any(axis=0)
        return V, meets


def draw(seed: int, weights: bool, constant: bool = True) -> Rows:
    rng = np.random.default_rng(seed)
    pupil = np.r_[0, rng.permutation(np.resize(np.arange(1, 14), N - 1))]
    school = rng.permutation(np.resize(np.arange(4), 14))[pupil]
    item = np.minimum(rng.integers(0, 5, N), 4 - (school == 0))
    judge = rng.integers(0, 3, N)
    x, z, one = rng.normal(size=N), rng.normal(size=N), np.ones(N)
    columns = ([one, x], [one], [one, x], [one, z])
    sizes = zip((pupil, school, item, judge), (14, 4, 5, 3), columns, ("p", "s", "i", "j"), strict=True)
    groupings = tuple(Grouping(np.column_stack(Z), code, size, label) for code, size, Z, label in sizes)
    y = 2 + x + rng.normal(size=14)[pupil] + rng.normal(size=5)[item] + rng.normal(size=N)
    X = np.column_stack([one, x] if constant else [x])
    return Rows(y, X, groupings, rng.uniform(0.3, 3, N) if weights else None)


@pytest.fixture(scope="module", params=["plain", "weighted", "in blocks"])
def rows(request: pytest.FixtureRequest) -> Iterator[Rows]:
    found = draw(3, request.param != "plain")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "in blocks":  # the rows are visited sixteen at a time
            patch.setattr(basis, "BLOCK_ROWS", 16)
            patch.setattr(linking, "BLOCK_ROWS", 16)
        yield found


@pytest.mark.parametrize("depth", [0, 1])
def test_entries_are_the_cross_products_of_groups_and_columns_that_meet(depth: int, rows: Rows) -> None:
    own, (V, meets) = rows.links(depth), rows.dense_links(depth)
    assert not meets.all()
    expected = np.nonzero(meets)
    np.testing.assert_array_equal(own.group, expected[0])
    np.testing.assert_array_equal(own.column, expected[1])
    close(own.values, V[expected[0], :, expected[1]].T)


def test_an_entry_knows_that_of_its_coarser_group(rows: Rows) -> None:
    own, above = rows.links(0), rows.links(1)
    assert [len(parents) for parents in (own.parents, above.parents)] == [1, 0]
    parent = np.asarray(rows.reduction.stats.levels[0].parents[0])
    np.testing.assert_array_equal(np.asarray(above.group)[own.parents[0]], parent[np.asarray(own.group)])
    np.testing.assert_array_equal(np.asarray(above.column)[own.parents[0]], own.column)


def test_the_roots_cross_products_are_those_of_its_columns(rows: Rows) -> None:
    root = rows.reduction.stats.root
    assert root is not None
    assert root.shapes == ((5, 2), (3, 2))
    close(root.gram, rows.of_root.T @ rows.of_root)
    close(root.cross, rows.of_root.T @ rows.within(rows.Xy))


def test_columns_that_add_up_to_fixed_effects_are_shared_and_a_slope_outside_x_is_not(rows: Rows) -> None:
    root = rows.reduction.stats.root
    assert root is not None
    shared = np.asarray(root.shared)
    assert shared.shape == (3, 4)
    sums = np.column_stack([rows.columns(2), rows.columns(3)])  # over a factor's levels
    close(rows.Xy[:, :2] @ shared[:2, :3], sums[:, :3])
    assert (shared[:, 3] == 0).all()
    assert (shared[2] == 0).all()
    assert (np.abs(shared[:, :3]).max(axis=0) > 0.1).all()


def test_without_a_constant_in_x_no_intercepts_are_shared() -> None:
    rows = draw(4, True, constant=False)
    assert rows.reduction.stats.root is not None
    assert (np.asarray(rows.reduction.stats.root.shared) == 0).all()


def test_the_order_of_the_rows_does_not_matter() -> None:
    rows, order = draw(6, True), np.random.default_rng(6).permutation(N)
    assert rows.weights is not None
    shuffled = replace(
        rows,
        y=rows.y[order],
        X=rows.X[order],
        groupings=tuple(replace(g, Z=g.Z[order], codes=g.codes[order]) for g in rows.groupings),
        weights=rows.weights[order],
    )
    for depth in range(2):
        a, b = rows.links(depth), shuffled.links(depth)
        np.testing.assert_array_equal(a.group, b.group)
        np.testing.assert_array_equal(a.column, b.column)
        # The signs of the coordinates depend on the first rows.
        close(np.abs(a.values), np.abs(b.values))


# The likelihood


@jax.jit
def both(theta, stats):  # type: ignore[no-untyped-def]
    return jnp.stack([deviance(theta, stats, method=method) for method in ("ml", "reml")])


def dense_deviances(rows: Rows, theta: np.ndarray) -> list[float]:
    model = DenseModel(rows.y, rows.X, tuple(Block(g.Z, g.codes) for g in rows.groupings), rows.weights)
    relative, start = [], 0
    for term in rows.terms:
        part = theta[start : start + term.covariance.num_params]
        T = np.tensordot(part, term.covariance.jacobian(part), axes=1)
        relative.append(T @ T.T)
        start += len(part)
    return [-2 * model.profiled(tuple(relative), method).llf for method in ("ml", "reml")]


@pytest.mark.parametrize(("kind", "padded"), [(Pairs, False), (Blocks, True)])
def test_the_deviance_is_that_of_the_dense_density(
    kind: type, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind is Blocks:
        monkeypatch.setattr(links, "PAIR_COST", 1e9)
        monkeypatch.setattr(links, "SLAB_BYTES", 8.0 * 2 * 16 * 5)
        monkeypatch.setattr(links, "SMALLEST_STRIP", 8)
    for weights in (False, True):
        rows = draw(7, weights)
        stats = rows.reduction.stats
        assert type(rows.links(0).fill) is type(rows.links(1).fill) is kind
        if kind is Blocks:
            assert rows.links(0).fill.entry.shape[0] == 3  # type: ignore[union-attr]
        ordinary = np.random.default_rng(7).normal(size=stats.num_params)
        some_zero = ordinary * np.tile([1.0, 0.0], 5)
        for theta in (ordinary, some_zero, 0 * ordinary, 30 * ordinary):
            found = both(theta, pad(stats) if padded else stats)
            np.testing.assert_allclose(found, dense_deviances(rows, theta), rtol=VALUE)
