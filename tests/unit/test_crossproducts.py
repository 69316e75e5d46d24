"""One pass over the rows: exact statistics whatever the rows' order, blocks, offsets, units and rank."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest

from jaxmixed import basis
from jaxmixed.covariance import covariance_structure
from jaxmixed.crossproducts import Reduction, chain_positions, reduce_rows
from jaxmixed.errors import DesignError
from jaxmixed.layout import Grouping
from jaxmixed.patterns import compress
from jaxmixed.statistics import SufficientStatistics, Term

N = 96
SIZES = (20, 8, 3)
ROUNDING = 1e-11


class Rows:
    """Rows in nested groups, in no order; every number is a multiple of 2**-8, so that shifts are exact."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)

        def numbers(*shape: int) -> np.ndarray:
            return np.round(256 * rng.normal(size=shape)) / 256

        self.y = numbers(N)
        self.X = np.column_stack([np.ones(N), numbers(N), numbers(N)])
        self.Z = [np.column_stack([np.ones(N), numbers(N)]), np.ones((N, 1)), numbers(N, 2)]
        self.weights: np.ndarray | None = None
        fine = rng.permutation(np.concatenate([np.arange(20), rng.integers(1, 20, N - 20)]))
        owner, top = rng.permutation(np.resize(np.arange(8), 20)), rng.permutation(np.resize(np.arange(3), 8))
        self.codes = [fine, owner[fine], top[owner[fine]]]

    @property
    def groupings(self) -> list[Grouping]:
        labels = ("class", "school", "district")
        return [Grouping(*one) for one in zip(self.Z, self.codes, SIZES, labels, strict=True)]

    def reduce(self) -> Reduction:
        terms = tuple(
            Term(d, 0, covariance_structure("unstructured", Z.shape[1])) for d, Z in enumerate(self.Z)
        )
        return reduce_rows(self.y, self.X, self.groupings, terms, self.weights)

    def take(self, rows: np.ndarray) -> "Rows":
        other = Rows()
        other.y, other.X = self.y[rows], self.X[rows]
        other.Z, other.codes = [Z[rows] for Z in self.Z], [codes[rows] for codes in self.codes]
        other.weights = None if self.weights is None else self.weights[rows]
        return other


def moments(stats: SufficientStatistics, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """``Zs'Zs`` and ``Zs' [coarser Zs, Xs, ys]`` of a level's entries, put together again."""
    leaf = stats.levels[0]
    if depth == 0:
        return np.einsum("abm,acm->bcm", leaf.root, leaf.root), np.einsum(
            "abm,acm->bcm", leaf.root, leaf.cross
        )
    level, start = stats.levels[depth], sum(each.root.shape[0] for each in stats.levels[1:depth])
    q = level.root.shape[0]
    full = np.concatenate([level.root, level.cross], axis=1)
    products = np.einsum("abm,acm->bcm", leaf.cross[:, start : start + q], leaf.cross[:, start:])
    np.add.at(np.moveaxis(full, -1, 0), leaf.parents[depth - 1], np.moveaxis(products, -1, 0))
    return full[:, :q], full[:, q:]


def total(stats: SufficientStatistics) -> np.ndarray:
    """``[Xs ys]' W [Xs ys]``."""
    r = len(stats.total)
    cross = np.moveaxis(stats.levels[0].cross[:, -r:], 1, 0).reshape(r, -1)
    return stats.total + cross @ cross.T


def in_data_units(reduction: Reduction, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """``Z'Z`` and ``Z' [coarser Z, X, y]`` of the user's groups, groups first."""
    stats = reduction.stats
    root, cross = (
        np.moveaxis(each[..., reduction.positions[depth]], -1, 0) for each in moments(stats, depth)
    )
    frame = stats.frames[depth]
    root, cross = frame.T @ root @ frame, frame.T @ cross
    parts, start = [], 0
    for coarser in (*stats.frames[depth + 1 :], stats.basis):
        parts.append(cross[..., start : start + len(coarser)] @ coarser)
        start += len(coarser)
    Zy = cross[..., -1:] * stats.scale + parts[-1] @ stats.origin[:, None]
    return root, np.concatenate([*parts, Zy], axis=-1)


def assert_same(a: Reduction, b: Reduction, tolerance: float = ROUNDING) -> None:
    for depth in range(len(a.stats.levels)):
        for left, right in zip(in_data_units(a, depth), in_data_units(b, depth), strict=True):
            np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance * np.abs(right).max())
    left, right = total(a.stats), total(b.stats)
    np.testing.assert_allclose(
        left[-1, -1] * a.stats.scale**2, right[-1, -1] * b.stats.scale**2, rtol=tolerance
    )
    np.testing.assert_allclose(a.stats.log_det_basis, b.stats.log_det_basis, rtol=tolerance)


def test_the_statistics_are_the_cross_products_of_the_data() -> None:
    rows = Rows(1)
    rows.weights = np.random.default_rng(1).uniform(0.5, 2, N)
    reduction = rows.reduce()
    stats, w = reduction.stats, rows.weights[:, None]
    for depth, (Z, codes) in enumerate(zip(rows.Z, rows.codes, strict=True)):
        remaining = np.column_stack([*rows.Z[depth + 1 :], rows.X, rows.y])
        root, cross = in_data_units(reduction, depth)
        for group in range(SIZES[depth]):
            mine = codes == group
            np.testing.assert_allclose(root[group], Z[mine].T @ (w * Z)[mine], rtol=1e-10, atol=1e-11)
            np.testing.assert_allclose(
                cross[group], Z[mine].T @ (w * remaining)[mine], rtol=1e-10, atol=1e-11
            )
    Xs, ys = rows.X @ np.linalg.inv(stats.basis), (rows.y - rows.X @ stats.origin) / stats.scale
    both = np.column_stack([Xs, ys])
    np.testing.assert_allclose(total(stats), both.T @ (w * both), rtol=1e-10, atol=1e-10)
    assert stats.nobs == N
    assert stats.sum_log_weights == pytest.approx(np.log(rows.weights).sum(), rel=1e-13)


@pytest.mark.parametrize("structure", ["unstructured", "independent", "identity", "exchangeable"])
def test_random_effects_columns_have_unit_mean_square_in_coordinates_that_suit_their_structure(
    structure: str,
) -> None:
    rows = Rows(1)
    rows.X[:, 1] += 2000.0
    Z = rows.X[:, :2] * [1.0, 12.0]
    term = Term(0, 0, covariance_structure(structure, 2))
    stats = reduce_rows(rows.y, rows.X, [Grouping(Z, rows.codes[0], SIZES[0], "g")], (term,)).stats
    (frame,) = stats.frames
    squares = np.trace(moments(stats, 0)[0].sum(axis=-1)) / N
    assert squares == pytest.approx(2.0, rel=1e-9)
    if structure != "unstructured":  # these structures know no covariance, or one that columns must share
        assert frame[0, 1] == frame[1, 0] == 0
    if structure in ("identity", "exchangeable"):
        assert frame[0, 0] == frame[1, 1]


@pytest.mark.parametrize("weighted", [False, True])
def test_the_fixed_effects_columns_are_orthonormal_and_the_response_their_residual(weighted: bool) -> None:
    rows = Rows(2)
    if weighted:
        rows.weights = np.random.default_rng(2).uniform(0.5, 2, N)
    stats = rows.reduce().stats
    w = np.ones(N) if rows.weights is None else rows.weights
    found = total(stats)
    np.testing.assert_allclose(found[:3, :3], np.eye(3), atol=1e-13)
    np.testing.assert_allclose(found[:3, 3], 0, atol=1e-12)
    root = np.sqrt(w)
    expected = np.linalg.lstsq(rows.X * root[:, None], rows.y * root)[0]
    np.testing.assert_allclose(stats.origin, expected, rtol=1e-10)
    rss = np.sum(w * (rows.y - rows.X @ expected) ** 2)
    assert found[3, 3] * stats.scale**2 == pytest.approx(rss, rel=1e-12)
    assert stats.log_det_basis == pytest.approx(
        np.linalg.slogdet(rows.X.T @ (w[:, None] * rows.X))[1], rel=1e-12
    )


def test_the_roots_are_upper_triangular_with_non_negative_diagonals() -> None:
    root = Rows(3).reduce().stats.levels[0].root
    assert (root[1, 0] == 0).all()
    assert (root[[0, 1], [0, 1]] >= 0).all()


def test_a_group_with_fewer_rows_than_effects_has_an_exact_zero_in_its_root() -> None:
    rows = Rows(4)
    reduction = rows.reduce()
    singles = np.flatnonzero(np.bincount(rows.codes[0]) == 1)
    assert 0 in singles
    entries = reduction.positions[0][singles]
    assert (reduction.stats.levels[0].root[1, 1, entries] == 0).all()
    assert (reduction.stats.levels[0].cross[1][:, entries] == 0).all()


def test_the_order_of_the_rows_does_not_matter() -> None:
    rows = Rows(5)
    expected = rows.reduce()
    assert_same(rows.take(np.lexsort(rows.codes)).reduce(), expected)
    assert_same(rows.take(np.random.default_rng(5).permutation(N)).reduce(), expected)


@pytest.mark.parametrize("block", [1, 7, 40])
def test_the_size_of_the_blocks_does_not_matter(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(6)
    rows.weights = np.random.default_rng(6).uniform(0.5, 2, N)
    expected = rows.reduce()
    monkeypatch.setattr(basis, "BLOCK_ROWS", block)
    assert_same(rows.reduce(), expected)


def test_a_linear_model_in_blocks_has_the_same_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(7)
    expected = reduce_rows(rows.y, rows.X, (), ()).stats
    monkeypatch.setattr(basis, "BLOCK_ROWS", 10)
    found = reduce_rows(rows.y, rows.X, (), ()).stats
    np.testing.assert_allclose(found.total, expected.total, rtol=ROUNDING, atol=1e-13)
    assert found.levels == expected.levels == ()


@pytest.mark.parametrize(
    ("x_shift", "y_shift"), [(1e9, 0.0), (0.0, 2.0**40), (-1e9, -(2.0**40)), (2.0**30, 1e12)]
)
def test_huge_offsets_leave_the_statistics_as_they_are(x_shift: float, y_shift: float) -> None:
    rows = Rows(8)
    expected = rows.reduce()
    rows.X[:, 1:] += x_shift
    rows.y += y_shift
    shifted = rows.reduce()
    # What is added to the columns goes into the coordinates: the statistics themselves stay.
    assert shifted.stats.scale == expected.stats.scale
    for depth in range(3):
        for left, right in zip(moments(shifted.stats, depth), moments(expected.stats, depth), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-11 * np.abs(right).max())
    np.testing.assert_allclose(shifted.stats.log_det_basis, expected.stats.log_det_basis, rtol=1e-10)
    slopes = expected.stats.origin[1:]
    np.testing.assert_allclose(shifted.stats.origin[1:], slopes, rtol=1e-9)


@pytest.mark.parametrize("exponent", [-150, -40, 40, 150])
def test_units_leave_the_statistics_as_they_are(exponent: int) -> None:
    rows, unit = Rows(9), 2.0**exponent
    expected = rows.reduce()
    rows.X[:, 1] *= unit
    rows.y /= unit
    scaled = rows.reduce()
    assert scaled.stats.scale == expected.stats.scale / unit
    for depth in range(3):
        for left, right in zip(moments(scaled.stats, depth), moments(expected.stats, depth), strict=True):
            np.testing.assert_allclose(left, right, rtol=ROUNDING, atol=ROUNDING * np.abs(right).max())
    np.testing.assert_allclose(scaled.stats.origin, expected.stats.origin / [unit, unit**2, unit], rtol=1e-10)


@pytest.mark.parametrize("exponent", [-100, 100])
def test_units_of_random_effects_columns_go_into_their_frames(exponent: int) -> None:
    rows, unit = Rows(10), 2.0**exponent
    expected = rows.reduce()
    rows.Z = [rows.Z[0] * [1, unit], rows.Z[1], rows.Z[2] * [unit, 1]]
    scaled = rows.reduce()
    for depth in range(3):
        for left, right in zip(moments(scaled.stats, depth), moments(expected.stats, depth), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-9, atol=ROUNDING * np.abs(right).max())
    np.testing.assert_allclose(scaled.stats.frames[0], expected.stats.frames[0] * [1, unit], rtol=1e-10)
    np.testing.assert_allclose(scaled.stats.frames[2], expected.stats.frames[2] * [unit, 1], rtol=1e-10)


@pytest.mark.parametrize("shift", [2000.0, 1e9])
def test_the_origin_of_a_slope_goes_into_its_frame(shift: float) -> None:
    rows = Rows(10)
    expected = rows.reduce()
    rows.Z[0] = rows.Z[0] + [0.0, shift]
    shifted = rows.reduce()
    for left, right in zip(moments(shifted.stats, 0), moments(expected.stats, 0), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-10 * np.abs(right).max())
    np.testing.assert_allclose(shifted.stats.frames[0][:, 0], expected.stats.frames[0][:, 0], rtol=1e-10)


def test_the_inputs_are_not_modified() -> None:
    rows = Rows(11)
    rows.weights = np.full(N, 2.0)
    copies = [array.copy() for array in (rows.y, rows.X, *rows.Z, *rows.codes, rows.weights)]
    for array in (rows.y, rows.X, *rows.Z, *rows.codes, rows.weights):
        array.flags.writeable = False
    rows.reduce()
    for array, copy in zip((rows.y, rows.X, *rows.Z, *rows.codes, rows.weights), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


# Rank of the fixed effects


def coordinates(y: np.ndarray, X: np.ndarray) -> basis.FixedBasis:
    """Of a linear model."""
    return reduce_rows(y, X, (), ()).fixed


@pytest.mark.parametrize(
    ("columns", "kept"),
    [
        ("1ab", [0, 1, 2]),
        ("1aa", [0, 1]),
        ("1aba", [0, 1, 2]),
        ("1a1", [0, 1]),
        ("a1b1", [0, 1, 2]),
        ("1abs", [0, 1, 2]),
        ("1sab", [0, 1, 2]),
        ("10a", [0, 2]),
        ("0", []),
        ("ab", [0, 1]),
        ("aas", [0, 2]),
    ],
)
@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_the_later_of_dependent_columns_is_dropped(columns: str, kept: list[int], shift: float) -> None:
    rows = Rows(12)
    a, b = rows.X[:, 1] + shift, rows.X[:, 2]
    available = {"1": np.ones(N), "a": a, "b": b, "s": a - 2 * b + 3, "0": np.zeros(N)}
    X = np.column_stack([available[name] for name in columns])
    fixed = coordinates(rows.y, X)
    assert fixed.columns.keep.tolist() == kept
    np.testing.assert_array_equal(coordinates(rows.y, X).columns.keep, fixed.columns.keep)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_rank_does_not_depend_on_units(scale: float) -> None:
    rows = Rows(13)
    X = np.column_stack([rows.X, rows.X[:, 1] + rows.X[:, 2]])
    assert coordinates(rows.y, X * [1, scale, 1, 1 / scale]).columns.keep.tolist() == [0, 1, 2]
    assert coordinates(rows.y, rows.X * [1, scale, 1 / scale]).columns.keep.tolist() == [0, 1, 2]


def test_the_rank_is_found_in_blocks_as_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(14)
    X = np.column_stack([rows.X, rows.X[:, 1] - rows.X[:, 2], rows.X[:, 1] ** 2])
    monkeypatch.setattr(basis, "BLOCK_ROWS", 9)
    assert coordinates(rows.y, X).columns.keep.tolist() == [0, 1, 2, 4]


def test_nearly_dependent_columns_are_kept_and_their_condition_reported() -> None:
    rows = Rows(15)
    noise = np.random.default_rng(15).normal(size=N)
    X = np.column_stack([rows.X, rows.X[:, 1] + 1e-8 * noise])
    fixed = coordinates(rows.y, X)
    assert fixed.columns.keep.tolist() == [0, 1, 2, 3]
    assert 1e7 < fixed.columns.condition < 1e9
    assert coordinates(rows.y, rows.X).columns.condition < 3


def test_dropping_a_column_leaves_the_statistics_of_the_model_without_it() -> None:
    rows = Rows(16)
    expected = rows.reduce()
    rows.X = np.column_stack([rows.X, rows.X @ [1.0, 2.0, -1.0]])
    assert_same(rows.reduce(), expected)


# Chains of factors


def intercepts(levels: int) -> tuple[Term, ...]:
    return tuple(Term(level, 0, covariance_structure("unstructured", 1)) for level in range(levels))


def grouping(codes: Sequence[int], label: str) -> Grouping:
    array = np.asarray(codes)
    return Grouping(np.ones((len(array), 1)), array, int(array.max()) + 1, label)


def test_members_of_a_parent_stand_together() -> None:
    rows = Rows(17)
    positions, parents = chain_positions(rows.groupings)
    for depth, position in enumerate(positions):
        assert sorted(position.tolist()) == list(range(SIZES[depth]))
    for depth, parent in enumerate(parents):
        assert all(a <= b for a, b in pairwise(parent.tolist()))
        fine, coarse = positions[depth][rows.codes[depth]], positions[depth + 1][rows.codes[depth + 1]]
        np.testing.assert_array_equal(parent[fine], coarse)


def test_the_statistics_know_every_ancestor() -> None:
    rows = Rows(18)
    reduction = rows.reduce()
    for depth, level in enumerate(reduction.stats.levels):
        entry = reduction.positions[depth][rows.codes[depth]]
        for above, parent in enumerate(level.parents, depth + 1):
            np.testing.assert_array_equal(parent[entry], reduction.positions[above][rows.codes[above]])


@pytest.mark.parametrize(
    "chain",
    [
        [grouping([0, 0, 1, 1, 2, 2], "pupil"), grouping([0, 1, 0, 1, 0, 1], "teacher")],
        [grouping([0, 0, 1, 1, 2, 2], "pupil"), grouping([0, 0, 0, 0, 0, 1], "teacher")],
        [
            grouping(range(6), "row"),
            grouping([0, 0, 1, 1, 2, 2], "pupil"),
            grouping([0, 1, 0, 1, 0, 1], "teacher"),
        ],
    ],
)
def test_a_chain_that_is_not_nested_is_refused_by_both_names(chain: list[Grouping]) -> None:
    y = np.array([1.0, 3, 2, 5, 4, 7])
    with pytest.raises(DesignError, match=r"'pupil' is not nested in 'teacher'") as caught:
        reduce_rows(y, np.ones((6, 1)), chain, intercepts(len(chain)))
    assert "root" in str(caught.value)


# What cannot be fitted


def test_no_more_rows_than_columns_are_refused_with_both_numbers() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(DesignError, match=r"4 linearly independent .* only 4 complete rows"):
        coordinates(rng.normal(size=4), rng.normal(size=(4, 6)))


@pytest.mark.parametrize("shift", [0.0, 1e8])
def test_a_response_that_is_a_function_of_the_columns_is_refused(shift: float) -> None:
    X = Rows(19).X
    with pytest.raises(DesignError, match="residual variance is zero"):
        coordinates(X @ [shift, 2.0, -1.0], X)


@pytest.mark.parametrize("value", [0.0, 5.0, 0.1, 1e12])
def test_a_constant_response_is_refused(value: float) -> None:
    with pytest.raises(DesignError, match="residual variance is zero"):
        coordinates(np.full(N, value), Rows(20).X)


def test_a_small_residual_is_not_taken_for_none() -> None:
    rows = Rows(21)
    fixed = coordinates(rows.X @ [3.0, 2.0, -1.0] + 1e-9 * rows.y, rows.X)
    assert fixed.scale == pytest.approx(1e-9, rel=0.8)


# Patterns


def balanced(m: int = 60, parents: int = 3) -> tuple[Reduction, np.ndarray]:
    rng = np.random.default_rng(22)
    times = np.tile(np.arange(4.0), m)
    codes = np.repeat(np.arange(m), 4)
    Z = np.column_stack([np.ones(4 * m), times])
    terms = (
        Term(0, 0, covariance_structure("unstructured", 2)),
        Term(1, 0, covariance_structure("unstructured", 1)),
    )
    chain = [Grouping(Z, codes, m, "g"), Grouping(np.ones((4 * m, 1)), codes % parents, parents, "h")]
    y = rng.normal(size=4 * m)
    return reduce_rows(y, Z, chain, terms), y


def test_groups_with_the_same_columns_and_parent_share_an_entry() -> None:
    reduction, _ = balanced()
    leaf = compress(reduction.stats).levels[0]
    assert leaf.cross is None
    assert leaf.count.tolist() == [20, 20, 20]
    assert leaf.parents[0].tolist() == [0, 1, 2]


def test_patterns_keep_the_sum_of_the_outer_products() -> None:
    reduction, _ = balanced()
    before, after = reduction.stats.levels[0], compress(reduction.stats).levels[0]
    for pattern in range(3):
        mine = before.cross[:, :, before.parents[0] == pattern]
        expected = np.einsum("aim,bjm->abij", mine, mine)
        np.testing.assert_allclose(after.gram[:, :, pattern], expected, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(after.root[..., pattern], before.root[..., pattern * 20], rtol=1e-13)


def test_compression_leaves_all_but_the_finest_level() -> None:
    reduction, _ = balanced()
    compressed = compress(reduction.stats)
    assert compressed.levels[1] is reduction.stats.levels[1]
    assert compressed.total is reduction.stats.total
    assert compressed.terms == reduction.stats.terms


def test_groups_that_all_differ_stay_as_they_are() -> None:
    stats = Rows(23).reduce().stats
    assert compress(stats) is stats


def test_a_linear_model_has_nothing_to_compress() -> None:
    rows = Rows(24)
    stats = reduce_rows(rows.y, rows.X, (), ()).stats
    assert compress(stats) is stats


def test_random_intercepts_need_an_entry_per_group_size() -> None:
    rng = np.random.default_rng(25)
    counts = rng.integers(2, 6, 200)
    codes = rng.permutation(np.repeat(np.arange(200), counts))
    one = np.ones((len(codes), 1))
    stats = compress(
        reduce_rows(rng.normal(size=len(codes)), one, [Grouping(one, codes, 200, "g")], intercepts(1)).stats
    )
    assert sorted(stats.levels[0].count.tolist()) == sorted(np.bincount(counts)[2:].tolist())


@pytest.fixture(autouse=True)
def _no_floating_point_accident() -> Iterator[None]:
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        yield
