"""Sufficient statistics against the sums that define them."""

from collections.abc import Iterator
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmixed.covariance import covariance_structure
from jaxmixed.effects import blup
from jaxmixed.likelihood import Parameters, deviance, loglik
from jaxmixed.precision import double_precision
from jaxmixed.statistics import SufficientStatistics, Term, grid_size, pad, summarise
from tests.support.compilation import QUICKLY

N, P = 40, 3
SIZES = (11, 5, 2)
WIDTHS = (2, 1, 3)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with double_precision():
        yield


class Rows:
    """Rows in three nested factors, finest first, in no order."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.y, self.X = rng.normal(size=N), rng.normal(size=(N, P))
        self.Z = [rng.normal(size=(N, q)) for q in WIDTHS]
        self.weights = rng.uniform(0.5, 2, N)
        parent, grandparent = rng.permutation(np.resize(np.arange(5), 11)), np.array([0, 1, 0, 1, 1])
        fine = rng.permutation(np.resize(np.arange(11), N))
        self.codes = [fine, parent[fine], grandparent[parent[fine]]]

    def summarise(self, **options: object) -> SufficientStatistics:
        """As plain sums."""
        options = {"standardise": False, **options}
        return summarise(self.y, self.X, self.Z, self.codes, num_groups=SIZES, **options)  # type: ignore[arg-type]


@pytest.fixture
def rows(rng: np.random.Generator) -> Rows:
    return Rows(rng)


def test_every_level_holds_its_groups_cross_products(rows: Rows) -> None:
    stats = rows.summarise(weights=rows.weights)
    for depth, (level, Z, codes) in enumerate(zip(stats.levels, rows.Z, rows.codes, strict=True)):
        remaining = np.column_stack([*rows.Z[depth + 1 :], rows.X, rows.y])
        assert level.root.shape == (WIDTHS[depth], WIDTHS[depth], SIZES[depth])
        for group in range(SIZES[depth]):
            mine = codes == group
            W = np.diag(rows.weights[mine])
            np.testing.assert_allclose(
                level.root[:, :, group], Z[mine].T @ W @ Z[mine], rtol=1e-12, atol=1e-13
            )
            np.testing.assert_allclose(
                level.cross[:, :, group], Z[mine].T @ W @ remaining[mine], rtol=1e-12, atol=1e-13
            )
    Xy = np.column_stack([rows.X, rows.y])
    np.testing.assert_allclose(stats.total, Xy.T @ np.diag(rows.weights) @ Xy, rtol=1e-12)


def test_scalars_and_coordinates_are_those_of_untransformed_data(rows: Rows) -> None:
    stats = rows.summarise(weights=rows.weights)
    assert stats.nobs == N
    np.testing.assert_allclose(stats.sum_log_weights, np.log(rows.weights).sum(), rtol=1e-13)
    np.testing.assert_array_equal(stats.basis, np.eye(P))
    np.testing.assert_array_equal(stats.origin, np.zeros(P))
    assert (stats.log_det_basis, stats.scale) == (0, 1)


def test_without_weights_every_row_weighs_one(rows: Rows) -> None:
    bare, ones = rows.summarise(), rows.summarise(weights=np.ones(N))
    assert bare.sum_log_weights == 0
    for a, b in zip(jax.tree.leaves(bare), jax.tree.leaves(ones), strict=True):
        np.testing.assert_array_equal(a, b)


def test_parents_are_the_groups_that_hold_each_group(rows: Rows) -> None:
    fine, middle, coarse = rows.summarise().levels
    for row in range(N):
        entry = rows.codes[0][row]
        assert fine.parents[0][entry] == rows.codes[1][row]
        assert fine.parents[1][entry] == rows.codes[2][row]
        assert middle.parents[0][rows.codes[1][row]] == rows.codes[2][row]
    assert coarse.parents == ()


def test_the_order_of_the_rows_does_not_matter(rows: Rows, rng: np.random.Generator) -> None:
    expected = rows.summarise(weights=rows.weights)
    order = rng.permutation(N)
    rows.y, rows.X, rows.weights = rows.y[order], rows.X[order], rows.weights[order]
    rows.Z, rows.codes = [Z[order] for Z in rows.Z], [codes[order] for codes in rows.codes]
    for a, b in zip(
        jax.tree.leaves(rows.summarise(weights=rows.weights)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def test_one_factor_needs_no_lists(rows: Rows) -> None:
    bare = summarise(rows.y, rows.X, rows.Z[0], rows.codes[0], num_groups=11)
    listed = summarise(rows.y, rows.X, [rows.Z[0]], [rows.codes[0]], num_groups=[11])
    assert jax.tree.structure(bare) == jax.tree.structure(listed)
    for a, b in zip(jax.tree.leaves(bare), jax.tree.leaves(listed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_each_factor_may_have_a_structure_of_its_own(rows: Rows) -> None:
    stats = rows.summarise(structures=["independent", "unstructured", "exchangeable"])
    assert [term.covariance.name for term in stats.terms] == ["independent", "unstructured", "exchangeable"]
    assert [term.level for term in stats.terms] == [0, 1, 2]
    assert stats.num_params == 2 + 1 + 2


def test_parameters_are_dealt_out_term_by_term(rows: Rows) -> None:
    stats = rows.summarise()
    assert stats.num_params == 3 + 1 + 6
    parts = stats.split(np.arange(10))
    assert [part.tolist() for part in parts] == [[0, 1, 2], [3], [4, 5, 6, 7, 8, 9]]


def test_the_statistics_keep_the_dtype_of_the_response(rows: Rows) -> None:
    single = summarise(
        jnp.float32(rows.y),
        jnp.float32(rows.X),
        jnp.float32(rows.Z[0]),
        jnp.asarray(rows.codes[0]),
        num_groups=11,
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(single) if jnp.issubdtype(leaf.dtype, jnp.floating)} == {
        np.dtype(np.float32)
    }


def test_statistics_pass_through_jit_and_vmap(rows: Rows, rng: np.random.Generator) -> None:
    Y = rng.normal(size=(4, N))

    def of_response(y: jax.Array) -> SufficientStatistics:
        return summarise(y, rows.X, rows.Z[0], rows.codes[0], num_groups=11)

    batch = jax.jit(jax.vmap(of_response))(Y)
    for i in range(4):
        alone = of_response(Y[i])
        np.testing.assert_allclose(batch.total[i], alone.total, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(batch.levels[0].cross[i], alone.levels[0].cross, rtol=1e-12, atol=1e-14)


def test_group_codes_may_be_numpy_arrays_inside_a_trace(rows: Rows) -> None:
    def of_response(y: jax.Array) -> SufficientStatistics:
        return summarise(y, rows.X, rows.Z, rows.codes, num_groups=SIZES)

    traced = jax.jit(of_response)(rows.y)
    np.testing.assert_array_equal(traced.levels[0].parents[1], rows.summarise().levels[0].parents[1])


def test_the_grid_holds_every_size_and_wastes_at_most_half() -> None:
    sizes = [grid_size(m) for m in range(1, 5000)]
    assert sizes[:12] == [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12]
    assert all(m <= size < 1.5 * m + 1 for m, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
    assert all(grid_size(size) == size for size in sizes)
    assert len(set(sizes)) < 26


def test_padding_adds_empty_entries_only(rows: Rows) -> None:
    stats = jax.tree.map(np.asarray, rows.summarise())
    padded = pad(stats)
    assert [len(level.count) for level in padded.levels] == [12, 6, 2]
    for before, after in zip(stats.levels, padded.levels, strict=True):
        m = len(before.count)
        np.testing.assert_array_equal(after.root[..., :m], before.root)
        np.testing.assert_array_equal(after.cross[..., :m], before.cross)
        assert (after.root[..., m:] == 0).all()
        assert (after.cross[..., m:] == 0).all()
        assert (after.count[m:] == 0).all()
        for old, new in zip(before.parents, after.parents, strict=True):
            np.testing.assert_array_equal(new[:m], old)
            assert new.dtype == old.dtype
    np.testing.assert_array_equal(padded.total, stats.total)


def test_padded_entries_point_at_entries_that_exist(rows: Rows) -> None:
    padded = pad(jax.tree.map(np.asarray, rows.summarise()))
    for depth, level in enumerate(padded.levels):
        for above, parent in enumerate(level.parents, depth + 1):
            assert (parent >= 0).all()
            assert (parent < len(padded.levels[above].count)).all()


def test_padding_again_changes_nothing(rows: Rows) -> None:
    padded = pad(jax.tree.map(np.asarray, rows.summarise()))
    for a, b in zip(jax.tree.leaves(pad(padded)), jax.tree.leaves(padded), strict=True):
        np.testing.assert_array_equal(a, b)


def test_terms_are_hashable_and_compare_by_value() -> None:
    term = Term(0, 1, covariance_structure("unstructured", 2))
    assert {term: 1}[Term(0, 1, covariance_structure("unstructured", 2))] == 1
    assert term != Term(1, 1, covariance_structure("unstructured", 2))


TERMS = [
    covariance_structure("unstructured", 2),
    covariance_structure("identity", 1),
    (covariance_structure("independent", 2), covariance_structure("unstructured", 1)),
]
THETA = np.array([0.8, 0.3, 0.6, 1.1, 0.5, 0.9, 0.7])


def test_a_factor_may_have_several_terms(rows: Rows) -> None:
    stats = rows.summarise(structures=TERMS)
    assert [(term.level, term.start, term.covariance.q) for term in stats.terms] == [
        (0, 0, 2),
        (1, 0, 1),
        (2, 0, 2),
        (2, 2, 1),
    ]


@pytest.mark.parametrize("method", ["reml", "ml"])
def test_nothing_depends_on_the_coordinates_of_the_sums(rows: Rows, method: str) -> None:
    rows.X = np.column_stack([np.ones(N), 5 + rows.X[:, 1], 100 * rows.X[:, 2]])
    rows.y = 50 + 4 * rows.y

    def value(theta: jax.Array, y: jax.Array, weights: jax.Array, standardise: bool) -> jax.Array:
        stats = summarise(
            *(y, rows.X, rows.Z, rows.codes),
            num_groups=SIZES,
            weights=weights,
            structures=TERMS,
            standardise=standardise,
        )
        params = Parameters(jnp.array([50.0, 0.01, 0.002]), theta, jnp.asarray(3.0))
        return deviance(theta, stats, method=method) + loglik(params, stats, method=method)  # type: ignore[arg-type]

    both = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2)), static_argnums=3, compiler_options=QUICKLY)
    plain, expected = both(jnp.asarray(THETA), rows.y, rows.weights, False)
    found, gradient = both(jnp.asarray(THETA), rows.y, rows.weights, True)
    np.testing.assert_allclose(found, plain, rtol=1e-11)
    for a, b in zip(gradient, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


def test_coordinates_keep_the_digits_that_plain_sums_lose(rows: Rows) -> None:
    X = np.column_stack([np.ones(N), np.arange(N) % 7])
    one = np.ones((N, 1))

    def value(shift: float, standardise: bool) -> float:
        stats = summarise(
            *(rows.y + shift, X + np.array([0, shift]), one, rows.codes[0]),
            num_groups=11,
            standardise=standardise,
        )
        return float(deviance(jnp.array([0.7]), stats, method="ml"))

    exact = value(0.0, True)
    assert abs(value(2.0**25, True) - exact) < 1e-6
    assert not abs(value(2.0**25, False) - exact) < 1e-6


def test_in_their_coordinates_columns_are_orthonormal_and_the_response_is_centred(rows: Rows) -> None:
    stats = rows.summarise(standardise=True, weights=rows.weights)
    np.testing.assert_allclose(stats.total[:P, :P], np.eye(P), atol=1e-12)
    np.testing.assert_allclose(stats.total[:P, P], 0, atol=1e-12)
    np.testing.assert_allclose(stats.basis.T @ stats.basis, rows.X.T @ (rows.weights[:, None] * rows.X))
    np.testing.assert_allclose(stats.log_det_basis, np.linalg.slogdet(stats.basis.T @ stats.basis)[1])


def test_a_column_that_repeats_others_makes_no_coordinates_of_its_own(rows: Rows) -> None:
    rows.X = np.column_stack([rows.X[:, :2], rows.X[:, 0] - rows.X[:, 1]])
    stats = rows.summarise(standardise=True)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(stats))


COPIED = np.array([0.8, 0.3, 0.6, 0.7, 0.8, 0.2, 0.1, 0.5, 0.3, 0.4])


@partial(jax.jit, static_argnames="num_groups", compiler_options=QUICKLY)
def of_copies(y, X, Z, codes, weights, frequencies, num_groups):  # type: ignore[no-untyped-def]
    """Number of rows, deviances and conditional modes."""
    stats = summarise(y, X, Z, codes, num_groups=num_groups, weights=weights, frequencies=frequencies)
    criteria = [deviance(COPIED, stats, method=method) for method in ("reml", "ml")]
    return stats.nobs, jnp.stack(criteria), blup(COPIED, stats)


@pytest.mark.parametrize("depths", [(0,), (1,), (0, 1, 2)])
def test_frequencies_are_copies(rows: Rows, rng: np.random.Generator, depths: tuple[int, ...]) -> None:
    of_rows, of_groups = rng.integers(1, 3, N), [rng.integers(1, 3, size) for size in SIZES]
    of_rows[:3] = of_groups[0][4] = 0
    taken, identities = [], []
    for row in np.repeat(np.arange(N), of_rows):
        codes = [int(own[row]) for own in rows.codes]
        fine, middle, coarse = (
            range(of_groups[d][code] if d in depths else 1) for d, code in enumerate(codes)
        )
        # Every copy of a group, at any level, has an identity of its own.
        for k, j, i in product(coarse, middle, fine):
            top = (codes[2], k)
            identities.append(((codes[0], i, codes[1], j, *top), (codes[1], j, *top), top))
            taken.append(row)
    index, copies = np.array(taken), []
    for names in zip(*identities, strict=True):
        known = {name: number for number, name in enumerate(dict.fromkeys(names))}
        copies.append(np.array([known[name] for name in names]))
    groups = [own if d in depths else np.ones(len(own)) for d, own in enumerate(of_groups)]
    frequencies = [np.asarray(own, float) for own in (of_rows, *groups)]
    nobs, criteria, modes = of_copies(
        rows.y, rows.X, rows.Z, rows.codes, rows.weights, frequencies, num_groups=SIZES
    )
    _, expected, expected_modes = of_copies(
        *(rows.y[index], rows.X[index], [Z[index] for Z in rows.Z], copies, rows.weights[index], None),
        num_groups=tuple(int(own.max()) + 1 for own in copies),
    )
    assert nobs == len(index)
    np.testing.assert_allclose(criteria, expected, rtol=1e-12)
    for mode, own, expected_mode, copy in zip(modes, rows.codes, expected_modes, copies, strict=True):
        np.testing.assert_allclose(mode[:, own[index]], expected_mode[:, copy], atol=1e-10)


def test_codes_out_of_range_are_refused_by_factor(rows: Rows) -> None:
    rows.codes[1] = rows.codes[1] + 1
    with pytest.raises(ValueError, match="codes of factor 1 run from 1 to 5; with 5 groups"):
        rows.summarise()


def test_factors_that_are_not_nested_are_refused_unless_crossed(rows: Rows) -> None:
    rows.codes[0] = np.arange(N) % 11
    with pytest.raises(ValueError, match="factor 0 is not nested in factor 1"):
        rows.summarise()
    assert rows.summarise(crossed=True).root is not None


def test_groups_of_crossed_factors_have_no_frequencies(rows: Rows) -> None:
    with pytest.raises(ValueError, match="of crossed ones, only rows"):
        rows.summarise(crossed=True, frequencies=[None, np.ones(11)])
