"""Starting values: near the truth, inside the parameter space, indifferent to how the data are written."""

import numpy as np
import pytest

from jaxmixed.covariance import covariance_structure
from jaxmixed.crossproducts import Reduction, reduce_rows
from jaxmixed.layout import Grouping
from jaxmixed.patterns import compress
from jaxmixed.starts import LARGEST, SMALLEST, moment_start
from jaxmixed.statistics import Term

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
        assert all(low <= value <= high for value, (low, high) in zip(theta, own.bounds(), strict=True))
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
