"""Every covariance structure against its definition."""

from collections.abc import Iterator
from functools import partial

import jax
import numpy as np
import pytest

from jaxmixed.covariance import STRUCTURES, Covariance, covariance_structure, semidefinite_cholesky
from jaxmixed.precision import double_precision
from tests.support.compilation import QUICKLY

NAMES = ("a", "b", "c", "d")
CASES = [(name, q) for name in STRUCTURES for q in (1, 2, 3, 4)]


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with double_precision():
        yield


def draw(structure: Covariance, rng: np.random.Generator) -> np.ndarray:
    """Canonical parameters: diagonals positive."""
    positive = ["." not in name for name in structure.names(NAMES[: structure.q])]
    return np.where(
        positive, rng.uniform(0.3, 2, structure.num_params), rng.normal(size=structure.num_params)
    )


def covariance(structure: Covariance, theta: np.ndarray) -> np.ndarray:
    T = np.asarray(structure.factor(theta))
    return T @ T.T


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def structure(request: pytest.FixtureRequest) -> Covariance:
    return covariance_structure(*request.param)


def test_the_jacobian_is_the_derivative_of_the_factor(
    structure: Covariance, rng: np.random.Generator
) -> None:
    theta = draw(structure, rng)
    expected = jax.jacfwd(structure.factor)(theta)
    np.testing.assert_allclose(structure.jacobian(theta), np.moveaxis(expected, -1, 0), atol=1e-15)
    assert structure.jacobian(theta).shape == (structure.num_params, structure.q, structure.q)


def test_the_factor_is_linear_in_its_parameters(structure: Covariance, rng: np.random.Generator) -> None:
    theta = rng.normal(size=structure.num_params)
    rebuilt = np.tensordot(theta, structure.jacobian(theta), axes=1)
    np.testing.assert_allclose(structure.factor(theta), rebuilt, atol=1e-15)


def test_parameters_come_back_from_their_covariance(structure: Covariance, rng: np.random.Generator) -> None:
    theta = draw(structure, rng)
    np.testing.assert_allclose(structure.from_covariance(covariance(structure, theta)), theta, rtol=1e-10)


def test_parameters_of_either_sign_have_one_canonical_form(
    structure: Covariance, rng: np.random.Generator
) -> None:
    theta = draw(structure, rng)
    np.testing.assert_allclose(structure.from_covariance(covariance(structure, -theta)), theta, rtol=1e-10)
    np.testing.assert_allclose(structure.canonical(-theta), theta, rtol=1e-10)


def test_the_canonical_form_is_the_same_inside_a_trace(
    structure: Covariance, rng: np.random.Generator
) -> None:
    canonical = jax.jit(partial(structure.canonical, tolerance=1e-12), compiler_options=QUICKLY)
    boundary = jax.jit(structure.on_boundary, compiler_options=QUICKLY)
    for theta in (-draw(structure, rng), np.zeros(structure.num_params), 1.0 * structure.even()):
        expected = structure.canonical(theta, tolerance=1e-12)
        np.testing.assert_allclose(canonical(theta), expected, rtol=1e-14, atol=1e-15)
        np.testing.assert_array_equal(boundary(expected), structure.on_boundary(expected))
    single = np.ones(structure.num_params, np.float32)
    assert canonical(single).dtype == structure.factor(single).dtype == np.float32


def test_the_start_is_the_identity(structure: Covariance) -> None:
    np.testing.assert_allclose(covariance(structure, structure.initial()), np.eye(structure.q), atol=1e-15)


def test_zero_parameters_are_the_zero_covariance_and_come_back(structure: Covariance) -> None:
    zero = np.zeros(structure.num_params)
    np.testing.assert_array_equal(covariance(structure, zero), np.zeros((structure.q, structure.q)))
    np.testing.assert_array_equal(structure.from_covariance(np.zeros((structure.q, structure.q))), zero)
    assert structure.on_boundary(zero).all()


def test_nothing_inside_is_on_the_boundary(structure: Covariance, rng: np.random.Generator) -> None:
    assert not structure.on_boundary(draw(structure, rng)).any()


def test_every_parameter_has_a_name_a_parity_and_a_start(structure: Covariance) -> None:
    k, names = structure.num_params, structure.names(NAMES[: structure.q])
    assert len(names) == len(set(names)) == k
    assert len(structure.even()) == len(structure.initial()) == k


def test_parameters_come_back_from_any_factor_of_their_covariance(
    structure: Covariance, rng: np.random.Generator
) -> None:
    theta = draw(structure, rng)
    rotation = np.linalg.qr(rng.normal(size=(structure.q, structure.q)))[0]
    turned = np.asarray(structure.factor(theta)) @ rotation
    np.testing.assert_allclose(structure.from_factor(turned), theta, rtol=1e-10, atol=1e-13)
    traced = jax.jit(structure.from_factor, compiler_options=QUICKLY)
    np.testing.assert_allclose(traced(turned), theta, rtol=1e-10, atol=1e-13)


def test_a_factor_of_zeros_gives_parameters_of_zero(structure: Covariance) -> None:
    zero = np.zeros((structure.q, structure.q))
    np.testing.assert_array_equal(structure.from_factor(zero), np.zeros(structure.num_params))


def test_shown_elements_are_distinct_and_in_the_lower_triangle(structure: Covariance) -> None:
    elements = structure.elements()
    assert len(set(elements)) == len(elements) == structure.num_params
    assert all(0 <= j <= i < structure.q for i, j in elements)


def test_the_factor_keeps_the_dtype_of_its_parameters(structure: Covariance) -> None:
    assert structure.factor(np.ones(structure.num_params, dtype=np.float32)).dtype == np.float32


def test_structures_are_equal_and_hash_alike_when_their_fields_do(structure: Covariance) -> None:
    twin = covariance_structure(structure.name, structure.q)
    assert twin == structure
    assert hash(twin) == hash(structure)
    assert covariance_structure(structure.name, structure.q + 1) != structure


def test_shapes_of_the_covariances(rng: np.random.Generator) -> None:
    independent = covariance(covariance_structure("independent", 3), np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(independent, np.diag([1.0, 4.0, 9.0]))
    common = covariance(covariance_structure("identity", 3), np.array([2.0]))
    np.testing.assert_allclose(common, 4 * np.eye(3), atol=1e-15)
    G = covariance(covariance_structure("exchangeable", 3), np.array([2.0, 0.5]))
    np.testing.assert_allclose(np.diagonal(G), G[0, 0])
    np.testing.assert_allclose(G[np.tril_indices(3, -1)], G[1, 0])
    np.testing.assert_allclose(np.linalg.eigvalsh(G), [0.25, 0.25, 4.0])


def test_unstructured_parameters_go_down_the_columns_as_in_lme4() -> None:
    T = covariance_structure("unstructured", 3).factor(np.arange(1.0, 7.0))
    np.testing.assert_array_equal(T, [[1, 0, 0], [2, 4, 0], [3, 5, 6]])
    assert covariance_structure("unstructured", 2).names(("(Intercept)", "x")) == (
        "(Intercept)",
        "x.(Intercept)",
        "x",
    )
    assert covariance_structure("unstructured", 2).elements() == ((0, 0), (1, 0), (1, 1))


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_structure_of_one_effect_is_one_variance(name: str) -> None:
    structure = covariance_structure(name, 1)
    assert structure.num_params == 1
    np.testing.assert_allclose(covariance(structure, np.array([3.0])), [[9.0]])


def test_a_nearly_singular_factor_keeps_the_digits_that_its_covariance_loses() -> None:
    structure = covariance_structure("unstructured", 2)
    factor = np.array([[1.0, 0.0], [1.0, 1e-9]])
    np.testing.assert_allclose(structure.from_factor(factor), [1, 1, 1e-9], rtol=1e-6)


def test_a_singular_factor_has_an_exact_zero() -> None:
    structure = covariance_structure("unstructured", 2)
    turned = np.outer([0.3, -0.7], [0.6, 0.8])
    np.testing.assert_allclose(structure.from_factor(turned), [0.3, -0.7, 0.0], atol=1e-15)
    assert structure.from_factor(turned)[2] == 0


def test_a_collapsed_column_is_on_the_boundary_as_a_whole() -> None:
    structure = covariance_structure("unstructured", 3)
    theta = structure.from_covariance(np.diag([1.0, 0.0, 2.0]))
    np.testing.assert_array_equal(theta, [1, 0, 0, 0, 0, np.sqrt(2)])
    np.testing.assert_array_equal(structure.on_boundary(theta), [False, False, False, True, True, False])


def test_a_correlation_of_one_is_an_exact_zero_pivot() -> None:
    structure = covariance_structure("unstructured", 2)
    theta = structure.from_covariance(np.outer([0.3, -0.7], [0.3, -0.7]))
    np.testing.assert_allclose(theta[:2], [0.3, -0.7], rtol=1e-14)
    assert theta[2] == 0
    np.testing.assert_array_equal(structure.on_boundary(theta), [False, False, True])


@pytest.mark.parametrize(("theta", "correlation"), [((2.0, 0.0), 1.0), ((0.0, 2.0), -0.5)])
def test_a_singular_exchangeable_covariance_is_on_the_boundary(
    theta: tuple[float, float], correlation: float
) -> None:
    structure = covariance_structure("exchangeable", 3)
    G = covariance(structure, np.array(theta))
    assert G[1, 0] / G[0, 0] == pytest.approx(correlation)
    found = structure.from_covariance(G)
    np.testing.assert_allclose(found, theta, atol=1e-15)
    np.testing.assert_array_equal(structure.on_boundary(found), np.array(theta) == 0)


@pytest.mark.parametrize("name", STRUCTURES)
def test_variances_below_the_floor_become_exactly_zero(name: str) -> None:
    structure = covariance_structure(name, 2)
    G = 1e-7 * np.eye(2)
    assert (structure.from_covariance(G, floor=1e-6) == 0).all()
    assert (structure.from_covariance(G, floor=1e-8)[[0, -1]] > 0).all()


@pytest.mark.parametrize("q", [1, 2, 4, 7])
def test_the_semidefinite_factor_is_numpys_where_that_exists(q: int, rng: np.random.Generator) -> None:
    root = rng.normal(size=(q, q))
    G = root @ root.T + np.eye(q)
    np.testing.assert_allclose(semidefinite_cholesky(G), np.linalg.cholesky(G), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_a_singular_matrix_has_as_many_columns_as_its_rank(rank: int, rng: np.random.Generator) -> None:
    root = rng.normal(size=(4, rank))
    T = semidefinite_cholesky(root @ root.T, tolerance=1e-12)
    np.testing.assert_allclose(T @ T.T, root @ root.T, rtol=1e-10, atol=1e-12)
    assert (np.tril(T) == T).all()
    assert int((np.diagonal(T) > 0).sum()) == rank
    assert (T[:, np.diagonal(T) == 0] == 0).all()


def test_a_zero_variance_in_the_middle_leaves_the_others() -> None:
    G = np.array([[4.0, 0.0, 2.0], [0.0, 0.0, 0.0], [2.0, 0.0, 5.0]])
    np.testing.assert_allclose(semidefinite_cholesky(G), [[2, 0, 0], [0, 0, 0], [1, 0, 2]])


def test_a_retraction_is_the_step_to_first_order(structure: Covariance, rng: np.random.Generator) -> None:
    theta, step = draw(structure, rng), rng.normal(size=structure.num_params)
    slope = jax.jvp(lambda t: structure.retract(theta, t * step), (0.0,), (1.0,))[1]
    np.testing.assert_allclose(structure.retract(theta, 0 * step), theta, rtol=1e-14)
    np.testing.assert_allclose(slope, step, rtol=1e-10)


def test_a_step_along_a_row_keeps_its_length_and_a_longer_one_is_straight() -> None:
    theta = np.array([1.0, 0.3, 0.4])  # columnwise: the second row of T is (0.3, 0.4)
    structure = covariance_structure("unstructured", 2)
    turned = structure.retract(theta, np.array([0.1, 0.08, -0.06]))
    np.testing.assert_allclose(np.hypot(*turned[1:]), 0.5, rtol=1e-14)
    np.testing.assert_allclose(turned[0], 1.1)
    assert turned[2] < 0.4 < 0.5 < turned[1] + 0.13
    long = np.array([0.0, 0.8, -0.6])
    np.testing.assert_allclose(structure.retract(theta, long), theta + long)
    np.testing.assert_allclose(structure.retract(np.zeros(3), long), long)


def test_many_covariances_have_the_parameters_of_each_alone(
    structure: Covariance, rng: np.random.Generator
) -> None:
    thetas = np.stack([draw(structure, rng) for _ in range(6)])
    thetas[2] = 0.0
    thetas[3, 0] = 0.0
    roots = np.stack([np.asarray(structure.factor(theta)) for theta in thetas])
    G = (roots @ np.swapaxes(roots, 1, 2)).reshape(2, 3, structure.q, structure.q)
    for values in (structure.from_covariance, structure.from_factor):
        given = G if values == structure.from_covariance else roots.reshape(G.shape)
        alone = [[values(one) for one in row] for row in given]
        np.testing.assert_allclose(values(given), alone, rtol=1e-13, atol=1e-15)
    np.testing.assert_array_equal(
        structure.on_boundary(thetas), [structure.on_boundary(theta) for theta in thetas]
    )
