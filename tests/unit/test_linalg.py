"""Small-matrix kernels against NumPy and JAX's own factorisations, with their derivatives."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmixed import linalg
from jaxmixed.linalg import (
    BLOCK,
    inverse_and_logdet,
    is_positive_definite,
    solve_and_logdet,
    solve_modified,
)
from jaxmixed.precision import double_precision

ROUNDING = 1e-11
"""Relative; the matrices' condition numbers are below 1e3."""


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with double_precision():
        yield


def positive_definite(rng: np.random.Generator, q: int, m: int) -> np.ndarray:
    """Batch of well-conditioned symmetric matrices, batch axis last."""
    root = rng.normal(size=(m, q, q))
    return np.moveaxis(root @ root.transpose(0, 2, 1) + q * np.eye(q), 0, -1)


def lapack(M: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same two results from JAX's own routines, batch axis first."""
    return jnp.linalg.inv(M), jnp.linalg.slogdet(M)[1]


@pytest.mark.parametrize("q", range(1, 13))
def test_the_inverse_and_log_determinant_are_those_of_numpy(q: int, rng: np.random.Generator) -> None:
    M = positive_definite(rng, q, 5)
    inverse, logdet = jax.jit(inverse_and_logdet)(M)
    first = np.moveaxis(M, -1, 0)
    np.testing.assert_allclose(np.moveaxis(inverse, -1, 0), np.linalg.inv(first), rtol=ROUNDING, atol=1e-13)
    np.testing.assert_allclose(logdet, np.linalg.slogdet(first)[1], rtol=ROUNDING)


@pytest.mark.parametrize("q", [1, 3, 8, 9, 12])
def test_a_single_matrix_gives_what_it_gives_in_a_batch(q: int, rng: np.random.Generator) -> None:
    M = positive_definite(rng, q, 3)
    batch_inverse, batch_logdet = inverse_and_logdet(M)
    inverse, logdet = inverse_and_logdet(M[:, :, 1])
    assert inverse.shape == (q, q)
    assert logdet.shape == ()
    np.testing.assert_allclose(inverse, batch_inverse[:, :, 1], rtol=1e-14, atol=1e-16)
    np.testing.assert_allclose(logdet, batch_logdet[1], rtol=1e-14)


def test_matrices_of_order_zero_have_determinant_one() -> None:
    inverse, logdet = inverse_and_logdet(np.zeros((0, 0)))
    assert inverse.shape == (0, 0)
    assert logdet == 0


@pytest.mark.parametrize("q", [2, 4, 10])
def test_first_and_second_derivatives_are_those_of_jax_linear_algebra(
    q: int, rng: np.random.Generator
) -> None:
    M = positive_definite(rng, q, 1)[:, :, 0]
    direction = positive_definite(rng, q, 1)[:, :, 0] / q
    weights = rng.normal(size=(q, q))

    def along(factorise):  # type: ignore[no-untyped-def]
        def value(t: jax.Array) -> jax.Array:
            inverse, logdet = factorise(M + t * direction)
            return jnp.sum(weights * inverse) + logdet

        return jax.jit(lambda t: (value(t), jax.grad(value)(t), jax.grad(jax.grad(value))(t)))(0.1)

    np.testing.assert_allclose(along(inverse_and_logdet), along(lapack), rtol=1e-10)


def test_the_gradient_of_a_batch_is_that_of_jax_linear_algebra(rng: np.random.Generator) -> None:
    M = positive_definite(rng, 3, 4)
    A, b = rng.normal(size=(3, 3, 4)), rng.normal(size=4)

    def ours(M: jax.Array) -> jax.Array:
        inverse, logdet = inverse_and_logdet(M)
        return jnp.sum(A * inverse) + jnp.sum(b * logdet)

    def theirs(M: jax.Array) -> jax.Array:
        inverse, logdet = lapack(jnp.moveaxis(M, -1, 0))
        return jnp.sum(jnp.moveaxis(jnp.asarray(A), -1, 0) * inverse) + jnp.sum(b * logdet)

    np.testing.assert_allclose(jax.grad(ours)(M), jax.grad(theirs)(M), rtol=1e-10, atol=1e-12)


def test_derivatives_are_limits_of_differences(rng: np.random.Generator) -> None:
    M, dM = (positive_definite(rng, 4, 2) for _ in range(2))
    (_, _), (d_inverse, d_logdet) = jax.jvp(inverse_and_logdet, (M,), (dM,))
    h = 1e-5
    above, below = inverse_and_logdet(M + h * dM), inverse_and_logdet(M - h * dM)
    np.testing.assert_allclose(d_inverse, (above[0] - below[0]) / (2 * h), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(d_logdet, (above[1] - below[1]) / (2 * h), rtol=1e-7)


def test_vmap_equals_a_loop(rng: np.random.Generator) -> None:
    stack = np.stack([positive_definite(rng, 3, 4) for _ in range(3)])
    inverses, logdets = jax.vmap(inverse_and_logdet)(stack)
    for M, inverse, logdet in zip(stack, inverses, logdets, strict=True):
        alone = inverse_and_logdet(M)
        np.testing.assert_allclose(inverse, alone[0], rtol=1e-14, atol=1e-16)
        np.testing.assert_allclose(logdet, alone[1], rtol=1e-14)


@pytest.mark.parametrize(
    "M",
    [
        [[-1.0]],
        [[1.0, 2.0], [2.0, 1.0]],
        [[-1.0, 0.0], [0.0, -1.0]],
        [[2.0, 0.0, 0.0], [0.0, 3.0, 4.0], [0.0, 4.0, 5.0]],
        [[np.nan, 0.0], [0.0, 1.0]],
    ],
)
def test_an_indefinite_matrix_yields_nan_and_raises_nothing(M: list[list[float]]) -> None:
    assert np.isnan(inverse_and_logdet(np.array(M))[1])


def test_a_large_indefinite_matrix_yields_nan_too(rng: np.random.Generator) -> None:
    M = positive_definite(rng, 12, 1)[:, :, 0]
    M[7, 7] = -1.0
    assert np.isnan(inverse_and_logdet(M)[1])


def test_a_singular_matrix_has_no_finite_log_determinant() -> None:
    assert not np.isfinite(inverse_and_logdet(np.ones((2, 2)))[1])


def test_one_indefinite_member_leaves_the_rest_of_the_batch_alone(rng: np.random.Generator) -> None:
    M = positive_definite(rng, 3, 4)
    M[:, :, 2] = -np.eye(3)
    inverse, logdet = inverse_and_logdet(M)
    others = [0, 1, 3]
    assert np.isnan(logdet[2])
    np.testing.assert_allclose(
        logdet[np.array(others)], np.linalg.slogdet(np.moveaxis(M[:, :, others], -1, 0))[1]
    )
    assert np.isfinite(inverse[:, :, np.array(others)]).all()


def test_products_and_transposes_act_on_each_matrix(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(2, 3, 5)), rng.normal(size=(3, 4, 5))
    np.testing.assert_allclose(linalg.matmul(a, b), np.einsum("ijm,jkm->ikm", a, b), rtol=1e-13)
    np.testing.assert_array_equal(linalg.transpose(a), np.einsum("ijm->jim", a))


def test_the_identity_has_the_dtype_asked_for() -> None:
    one = linalg.identity(3, jnp.float32)
    assert one.shape == (3, 3, 1)
    assert one.dtype == jnp.float32
    np.testing.assert_array_equal(one[:, :, 0], np.eye(3))


def test_float32_stays_float32() -> None:
    inverse, logdet = inverse_and_logdet(np.eye(3, dtype=np.float32))
    assert inverse.dtype == logdet.dtype == jnp.float32


@pytest.mark.parametrize("k", [1, 2, 5, 8, 9, 12])
def test_a_positive_definite_system_is_solved_as_it_is(k: int, rng: np.random.Generator) -> None:
    H, g = positive_definite(rng, k, 1)[:, :, 0], rng.normal(size=k)
    np.testing.assert_allclose(solve_modified(H, g, 1e-12), np.linalg.solve(H, g), rtol=ROUNDING)


@pytest.mark.parametrize("k", [2, 3, 10])
def test_the_solution_of_an_indefinite_system_is_a_direction_of_descent(
    k: int, rng: np.random.Generator
) -> None:
    for _ in range(20):
        H, g = rng.normal(size=(k, k)), rng.normal(size=k)
        x = solve_modified(H + H.T, g, 1e-8)
        assert x @ g > 0
        assert np.isfinite(x).all()


def test_a_negative_pivot_counts_with_its_size_and_a_small_one_with_the_floor() -> None:
    x = solve_modified(np.diag([4.0, -2.0, 1e-9, 0.0]), np.ones(4), 1e-3)
    np.testing.assert_allclose(x, [0.25, 0.5, 1e3, 1e3], rtol=ROUNDING)


def test_the_largest_pivot_is_taken_first() -> None:
    """Elimination in the order of the rows would meet the floor at once, and lose the second equation."""
    H = np.array([[1e-14, 1.0], [1.0, 3.0]])
    x = solve_modified(H, np.array([1.0, 3.0]), 1e-10)
    np.testing.assert_allclose(x, [0.0, 1.0], atol=1e-9)


def test_the_most_curved_of_many_are_found_positive_definite() -> None:
    H = np.stack([np.eye(3), np.diag([1.0, 2.0, -1e-9]), np.ones((3, 3)), np.full((3, 3), np.nan)])
    assert is_positive_definite(H).tolist() == [True, False, False, False]


# Large matrices, inverted by halves


def scales(rng: np.random.Generator, q: int) -> np.ndarray:
    return 10.0 ** rng.uniform(-6, 6, q)


inverted = jax.jit(inverse_and_logdet)


@pytest.mark.parametrize("scaled", [False, True], ids=["well scaled", "badly scaled"])
def test_the_inverse_of_a_large_matrix_is_that_of_numpy(scaled: bool, rng: np.random.Generator) -> None:
    q = 2 * BLOCK + 37
    M = positive_definite(rng, q, 1)[:, :, 0]
    scale = scales(rng, q) if scaled else np.ones(q)
    inverse, logdet = inverted(M * scale[:, None] * scale)
    found = np.asarray(inverse) * scale[:, None] * scale  # in the units of the well-scaled matrix
    expected = np.linalg.inv(M)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * np.abs(expected).max())
    total = np.linalg.slogdet(M)[1] + 2 * np.sum(np.log(scale))
    np.testing.assert_allclose(logdet, total, rtol=0, atol=ROUNDING * q)


def test_halves_of_halves_fit_together(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linalg, "BLOCK", 4)
    monkeypatch.setattr(linalg, "BLOCK_MULTIPLE", 2)
    M = positive_definite(rng, 13, 1)[:, :, 0]
    inverse, logdet = jax.jit(lambda M: inverse_and_logdet(M))(M)
    np.testing.assert_allclose(inverse, np.linalg.inv(M), rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(logdet, np.linalg.slogdet(M)[1], rtol=ROUNDING)


@pytest.mark.parametrize(("where", "diagonal"), [(0, -1.0), (150, 1e-3), (2 * BLOCK + 36, 1e-3)])
def test_an_indefinite_matrix_of_any_half_yields_nan(
    where: int, diagonal: float, rng: np.random.Generator
) -> None:
    M = positive_definite(rng, 2 * BLOCK + 37, 1)[:, :, 0]
    M[where, where] = diagonal  # far less than what the other rows explain of it
    assert np.linalg.eigvalsh(M)[0] < 0
    assert np.isnan(inverted(M)[1])


# Solving with several right-hand sides

solved = jax.jit(solve_and_logdet)


@pytest.mark.parametrize("q", [1, 12, BLOCK + 3])
def test_solve_and_logdet_are_those_of_numpy(q: int, rng: np.random.Generator) -> None:
    M, B = positive_definite(rng, q, 1)[:, :, 0], rng.normal(size=(q, 3))
    X, logdet = solved(M, B)
    np.testing.assert_allclose(X, np.linalg.solve(M, B), rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(logdet, np.linalg.slogdet(M)[1], rtol=ROUNDING)


def test_the_gradient_of_a_solution_is_that_of_its_matrices(rng: np.random.Generator) -> None:
    M, B, C = positive_definite(rng, 12, 1)[:, :, 0], rng.normal(size=(12, 3)), rng.normal(size=(12, 3))

    def value(M: jax.Array, B: jax.Array) -> jax.Array:
        X, logdet = solve_and_logdet(M, B)
        return jnp.sum(C * X) + 2 * logdet

    by_M, by_B = jax.jit(jax.grad(value, argnums=(0, 1)))(M, B)
    inverse = np.linalg.inv(M)
    np.testing.assert_allclose(by_B, inverse @ C, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(by_M, 2 * inverse - inverse @ C @ (inverse @ B).T, rtol=0, atol=ROUNDING)


def test_derivatives_of_a_solution_are_limits_of_differences(rng: np.random.Generator) -> None:
    at = positive_definite(rng, 12, 1)[:, :, 0], rng.normal(size=(12, 3))
    step = positive_definite(rng, 12, 1)[:, :, 0], rng.normal(size=(12, 3))
    C = rng.normal(size=(12, 3))

    @jax.jit
    def along(t: jax.Array) -> tuple[jax.Array, ...]:
        def slope(t: jax.Array) -> tuple[jax.Array, ...]:
            def moved(t: jax.Array) -> tuple[jax.Array, jax.Array]:
                X, logdet = solve_and_logdet(at[0] + t * step[0], at[1] + t * step[1])
                return jnp.sum(C * X), logdet

            return jax.jvp(moved, (t,), (jnp.ones_like(t),))[1]

        return jax.jvp(slope, (t,), (jnp.ones_like(t),))

    h = 1e-4
    (d_X, d_logdet), (dd_X, dd_logdet) = along(0.1)
    values = [solved(at[0] + t * step[0], at[1] + t * step[1]) for t in (0.1 + h, 0.1 - h)]
    (above, below), (upper, lower) = (along(t)[0] for t in (0.1 + h, 0.1 - h)), (v[1] for v in values)
    X = [np.sum(C * v[0]) for v in values]
    np.testing.assert_allclose(d_X, (X[0] - X[1]) / (2 * h), rtol=1e-6)
    np.testing.assert_allclose(d_logdet, (upper - lower) / (2 * h), rtol=1e-6)
    np.testing.assert_allclose([dd_X, dd_logdet], (np.array(above) - np.array(below)) / (2 * h), rtol=1e-6)


@pytest.mark.parametrize("q", [12, BLOCK + 3])
def test_a_solution_of_an_indefinite_matrix_has_no_log_determinant(q: int) -> None:
    M = np.eye(q)
    M[0, -1] = M[-1, 0] = 2.0
    assert np.isnan(solved(M, np.ones((q, 3)))[1])
