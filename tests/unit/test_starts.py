"""Starting values: near the truth, inside the parameter space, indifferent to how the data are written."""

from collections.abc import Callable

import jax
import numpy as np
import pytest

from jaxmixed import starts
from jaxmixed.covariance import covariance_structure
from jaxmixed.crossproducts import Reduction, reduce_rows
from jaxmixed.layout import Grouping
from jaxmixed.patterns import compress
from jaxmixed.precision import double_precision
from jaxmixed.responses import ResponsePass, Responses, attach
from jaxmixed.starts import LARGEST, SMALLEST, moment_start, moment_starts
from jaxmixed.statistics import SufficientStatistics, Term

M, K = 400, 6


def slopes(G: np.ndarray, structure: str = "unstructured", seed: int = 0, unit: float = 1.0) -> Reduction:
    """Many groups with a random intercept and slope of relative covariance G."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(M), K)
    x = rng.normal(size=M * K)
    Z = np.column_stack([np.ones(M * K), unit * x])
    eigenvalues, vectors = np.linalg.eigh(G)
    b = rng.normal(size=(M, 2)) * np.sqrt(np.maximum(eigenvalues, 0)) @ vectors.T
    y = 2 + b[codes, 0] + b[codes, 1] * x + rng.normal(size=M * K)
    return reduce_rows(y, Z, [Grouping(Z, codes, M, "g")], (Term(0, 0, covariance_structure(structure, 2)),))


def covariance(reduction: Reduction, theta: np.ndarray) -> np.ndarray:
    """In the units of the standardised columns."""
    T = np.tensordot(theta, reduction.stats.terms[0].covariance.jacobian(theta), axes=1)
    return T @ T.T


def test_with_many_groups_the_start_is_near_the_truth() -> None:
    G = np.array([[1.5, 0.6], [0.6, 0.8]])
    reduction = slopes(G)
    frame = np.linalg.inv(reduction.stats.frames[0])
    found = frame @ covariance(reduction, moment_start(reduction.stats)) @ frame.T
    np.testing.assert_allclose(found, G, atol=0.25)


def test_every_level_of_a_chain_has_its_own_start() -> None:
    rng = np.random.default_rng(1)
    codes = np.repeat(np.arange(M), K)
    schools = codes // 4
    one = np.ones((M * K, 1))
    y = (
        rng.normal(scale=0.7, size=M)[codes]
        + rng.normal(scale=1.5, size=M // 4)[schools]
        + rng.normal(size=M * K)
    )
    terms = tuple(Term(level, 0, covariance_structure("unstructured", 1)) for level in range(2))
    reduction = reduce_rows(
        y, one, [Grouping(one, codes, M, "c"), Grouping(one, schools, M // 4, "s")], terms
    )
    np.testing.assert_allclose(moment_start(reduction.stats), [0.7, 1.5], rtol=0.15)


@pytest.mark.parametrize("structure", ["unstructured", "independent", "identity", "exchangeable"])
def test_the_start_is_inside_the_parameter_space(structure: str) -> None:
    for G in (np.zeros((2, 2)), np.ones((2, 2)), 1e-3 * np.eye(2), 1e6 * np.eye(2)):
        reduction = slopes(G, structure, seed=2)
        theta = moment_start(reduction.stats)
        own = reduction.stats.terms[0].covariance
        assert len(theta) == own.num_params
        assert not own.on_boundary(theta).any()
        np.testing.assert_allclose(own.canonical(theta), theta, rtol=1e-9)
        eigenvalues = np.linalg.eigvalsh(covariance(reduction, theta))
        assert eigenvalues[0] > 0.05 * SMALLEST
        assert eigenvalues[-1] < 2 * LARGEST


def test_a_variance_that_moments_make_negative_starts_at_the_smallest() -> None:
    codes = np.repeat(np.arange(10), 4)
    one = np.ones((40, 1))
    y = np.tile([-1.5, -0.5, 0.5, 1.5], 10)  # all group means are equal
    reduction = reduce_rows(
        y, one, [Grouping(one, codes, 10, "g")], (Term(0, 0, covariance_structure("identity", 1)),)
    )
    np.testing.assert_allclose(moment_start(reduction.stats), np.sqrt(SMALLEST))


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_the_start_does_not_depend_on_the_unit_of_a_column(unit: float) -> None:
    G = np.array([[1.5, 0.6], [0.6, 0.8]])
    expected = moment_start(slopes(G).stats)
    np.testing.assert_allclose(moment_start(slopes(G, unit=unit).stats), expected, rtol=1e-8)


def test_compression_does_not_move_the_start() -> None:
    rng = np.random.default_rng(3)
    codes, times = np.repeat(np.arange(60), 4), np.tile(np.arange(4.0), 60)
    Z = np.column_stack([np.ones(240), times])
    one = np.ones((240, 1))
    y = rng.normal(size=240) + rng.normal(size=60)[codes] + rng.normal(size=3)[codes % 3]
    terms = (
        Term(0, 0, covariance_structure("unstructured", 2)),
        Term(1, 0, covariance_structure("unstructured", 1)),
    )
    reduction = reduce_rows(y, Z, [Grouping(Z, codes, 60, "g"), Grouping(one, codes % 3, 3, "h")], terms)
    compressed = compress(reduction.stats)
    assert compressed.levels[0].gram is not None
    np.testing.assert_allclose(moment_start(compressed), moment_start(reduction.stats), rtol=1e-9)


def test_groups_of_a_single_row_still_have_a_start() -> None:
    rng = np.random.default_rng(4)
    codes = np.concatenate([np.arange(30), np.arange(3)])
    one = np.ones((33, 1))
    terms = (Term(0, 0, covariance_structure("unstructured", 1)),)
    reduction = reduce_rows(rng.normal(size=33), one, [Grouping(one, codes, 30, "g")], terms)
    assert np.isfinite(moment_start(reduction.stats)).all()
    assert (moment_start(reduction.stats) > 0).all()


def test_a_column_of_zeros_leaves_the_others_alone() -> None:
    rng = np.random.default_rng(5)
    codes = np.repeat(np.arange(M), K)
    one = np.ones((M * K, 1))
    Z = np.column_stack([one, np.zeros(M * K)])
    y = rng.normal(size=M)[codes] + rng.normal(size=M * K)
    terms = (Term(0, 0, covariance_structure("independent", 2)),)
    theta = moment_start(reduce_rows(y, one, [Grouping(Z, codes, M, "g")], terms).stats)
    assert np.isfinite(theta).all()
    assert theta[0] == pytest.approx(1.0, rel=0.15)


# Many responses on one design


def intercept(codes: np.ndarray, label: str) -> Grouping:
    return Grouping(np.ones((len(codes), 1)), codes, int(codes.max()) + 1, label)


def chain_of_three(rng: np.random.Generator, weights: bool = False) -> Reduction:
    """Groups of all sizes, some of one row, with slopes at two levels."""
    n = 260
    fine = rng.permutation(np.concatenate([np.arange(48), rng.integers(1, 48, n - 48)]))
    x, middle = rng.normal(size=(n, 2)), rng.permutation(np.resize(np.arange(12), 48))
    X = np.column_stack([np.ones(n), x])
    chain = [Grouping(X[:, :2], fine, 48, "a"), Grouping(X, middle[fine], 12, "b")]
    chain.append(intercept(middle[fine] % 3, "c"))
    structures = ("unstructured", "exchangeable", "unstructured")
    terms = tuple(
        Term(depth, 0, covariance_structure(name, own.Z.shape[1]))
        for depth, (name, own) in enumerate(zip(structures, chain, strict=True))
    )
    return reduce_rows(rng.normal(size=n), X, chain, terms, rng.uniform(0.3, 3, n) if weights else None)


def compressed(rng: np.random.Generator, levels: int = 1) -> Reduction:
    codes, times = np.repeat(np.arange(60), 4), np.tile(np.arange(4.0), 60)
    Z = np.column_stack([np.ones(240), times])
    chain = [Grouping(Z, codes, 60, "g"), intercept(codes % 3, "h")][:levels]
    terms = tuple(
        Term(depth, 0, covariance_structure("unstructured", own.Z.shape[1]))
        for depth, own in enumerate(chain)
    )
    return reduce_rows(rng.normal(size=240), Z, chain, terms)


def crossed(rng: np.random.Generator) -> Reduction:
    n = 180
    fine, other = rng.permutation(np.resize(np.arange(40), n)), rng.permutation(np.resize(np.arange(9), n))
    X = np.column_stack([np.ones(n), rng.normal(size=n)])
    root = [Grouping(X, other, 9, "item"), intercept(rng.permutation(np.resize(np.arange(4), n)), "judge")]
    sizes = (2, 1, 2, 1)
    terms = tuple(Term(d, 0, covariance_structure("unstructured", q)) for d, q in enumerate(sizes))
    chain = [Grouping(X, fine, 40, "pupil"), intercept(fine % 5, "school")]
    return reduce_rows(rng.normal(size=n), X, chain, terms, rng.uniform(0.3, 3, n), root)


DESIGNS: dict[str, Callable[[np.random.Generator], Reduction]] = {
    "slopes": lambda rng: slopes(np.eye(2), seed=int(rng.integers(100))),
    "independent": lambda rng: slopes(np.eye(2), "independent", seed=int(rng.integers(100))),
    "three levels": chain_of_three,
    "three weighted levels": lambda rng: chain_of_three(rng, weights=True),
    "compressed": compressed,
    "two compressed levels": lambda rng: compressed(rng, 2),
    "crossed": crossed,
}


def many(name: str, count: int = 9) -> tuple[Reduction, np.ndarray, Responses]:
    """Responses between pure noise and groups that differ by a hundred sigma, each in its own unit."""
    rng = np.random.default_rng(6)
    reduction = DESIGNS[name](rng)
    design = reduction.design
    Y = rng.normal(size=(len(design.X), count))
    for grouping in (*design.groupings, *design.root):
        for column in grouping.Z.T:
            effects = rng.normal(size=(grouping.size, count)) * 10.0 ** rng.uniform(-2, 2, count)
            Y += column[:, None] * effects[grouping.codes]
    Y *= 10.0 ** rng.uniform(-9, 9, count)
    own, reasons = ResponsePass(reduction).reduce(Y)
    assert not reasons.any()
    return reduction, Y, own


def alone(shared: SufficientStatistics, own: Responses, number: int) -> SufficientStatistics:
    with double_precision():
        one = attach(shared, jax.tree_util.tree_map(lambda part: part[..., number], own))
        return jax.tree_util.tree_map(np.asarray, one)


@pytest.mark.parametrize("name", DESIGNS)
def test_each_of_many_responses_has_its_own_start(name: str) -> None:
    reduction, _, own = many(name)
    found = moment_starts(reduction.compact, own)
    assert found.shape == (9, reduction.compact.num_params)
    assert found.flags.c_contiguous
    for number, theta in enumerate(found):
        expected = moment_start(alone(reduction.compact, own, number))
        np.testing.assert_allclose(theta, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    assert len(np.unique(found[:, 0])) > 3


@pytest.mark.parametrize("name", ["three levels", "two compressed levels", "crossed"])
def test_how_many_are_started_at_a_time_does_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reduction, _, own = many(name)
    expected = moment_starts(reduction.compact, own)
    monkeypatch.setattr(starts, "CHUNK_CELLS", 1)
    monkeypatch.setattr(starts, "SMALLEST_CHUNK", 2)
    np.testing.assert_allclose(moment_starts(reduction.compact, own), expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["three levels", "compressed", "crossed"])
def test_no_response_has_no_start(name: str) -> None:
    reduction, _, own = many(name)
    none = jax.tree_util.tree_map(lambda part: part[..., :0], own)
    assert moment_starts(reduction.compact, none).shape == (0, reduction.compact.num_params)


def brute_force(reduction: Reduction, y: np.ndarray, within: float) -> np.ndarray:
    """Moment estimates by the equations as the module's docstring has them, in dense matrices."""
    design, stats = reduction.design, reduction.stats
    roots = np.ones(len(y)) if design.weights is None else np.sqrt(design.weights)
    wide = []  # (n, groups, q) of every factor; each has one term
    for grouping, columns in zip((*design.groupings, *design.root), reduction.columns, strict=True):
        Z = roots[:, None] * columns.standardise(grouping.Z, slice(None))
        wide.append(np.eye(grouping.size)[grouping.codes][:, :, None] * Z[:, None, :])
    y = roots * y
    squares = [block.shape[2] ** 2 for block in wide]
    first = 1 + np.cumsum([0, *squares])
    A, right = np.zeros((first[-1],) * 2), np.zeros(first[-1])
    A[0, 0], right[0] = len(y), y @ y
    for k, one in enumerate(wide):
        mine, C = slice(first[k], first[k + 1]), np.einsum("nga,n->ga", one, y)
        right[mine] = (C.T @ C).ravel()
        A[mine, 0] = A[0, mine] = np.einsum("nga,ngb->ab", one, one).ravel()
        for h, other in enumerate(wide):
            N = np.einsum("nga,nhb->gahb", one, other, optimize=True)
            block = np.einsum("gahb,gchd->acbd", N, N, optimize=True)
            A[mine, first[h] : first[h + 1]] = block.reshape(squares[k], squares[h])
    if design.root:
        found = np.linalg.solve(A, right)
        return np.asarray(found[1:] / max(found[0], SMALLEST * right[0] / len(y)))
    used = np.count_nonzero(np.diagonal(stats.levels[0].root) > 0)
    sigma2 = within / (len(y) - used - (len(stats.total) - 1))
    return np.asarray(np.linalg.solve(A[1:, 1:], right[1:] / sigma2 - A[1:, 0]))


@pytest.mark.parametrize("name", ["three weighted levels", "two compressed levels", "crossed"])
def test_the_moments_solve_their_equations(name: str) -> None:
    reduction, Y, own = many(name, 3)
    shared = reduction.compact
    found = starts._solve_equations(shared, own, starts._coarser_rows(shared))
    keep = reduction.fixed.columns.keep
    for number in range(3):
        y = (Y[:, number] - reduction.design.X[:, keep] @ own.origin[:, number]) / own.scale[number]
        expected = brute_force(reduction, y, float(own.total[-1, number]))
        mine = np.concatenate([G[number].ravel() for G in found])
        np.testing.assert_allclose(mine, expected, rtol=1e-7, atol=1e-9 * np.abs(expected).max())


def test_a_covariance_is_moved_inside_the_cone_whatever_its_neighbours() -> None:
    G = np.array([[[1.0, 0.3], [0.3, 2.0]], [[-1.0, 0.3], [0.3, 2.0]], [[4.0, 8.0], [8.0, 4.0]]])
    found = starts._inside_cone(G, np.array([True, True]))
    np.testing.assert_allclose(found[0], G[0])
    limit = 0.9 * np.sqrt(SMALLEST * 2.0)
    np.testing.assert_allclose(found[1], [[SMALLEST, limit], [limit, 2.0]])
    np.testing.assert_allclose(found[2], [[4.0, 3.6], [3.6, 4.0]])
    np.testing.assert_array_equal(starts._inside_cone(G, np.array([False, True]))[:, 0], 0.0)


def test_correlations_of_three_effects_are_shrunk_until_they_are_definite() -> None:
    impossible = np.array([[1.0, 0.9, 0.9], [0.9, 1.0, -0.9], [0.9, -0.9, 1.0]])
    found = starts._inside_cone(np.stack([np.eye(3), impossible]), np.ones(3, dtype=bool))
    np.testing.assert_array_equal(found[0], np.eye(3))
    np.testing.assert_allclose(np.linalg.eigvalsh(found[1])[0], 0.1)
    np.testing.assert_allclose(np.diagonal(found[1]), 1.0)
