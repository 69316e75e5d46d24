"""Small-matrix kernels against NumPy and JAX's own factorisations, with their derivatives."""

import itertools
from collections.abc import Iterator
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmixed import linalg
from jaxmixed.linalg import (
    BLOCK,
    independent_columns,
    inverse_and_logdet,
    is_positive_definite,
    pivoted_cholesky,
    resolvent,
    solve_and_logdet,
    solve_modified,
    stacked_qr_triangle,
)
from jaxmixed.precision import double_precision
from tests.support.compilation import LIKE_FITS, QUICKLY

ROUNDING = 1e-11
"""Relative; the matrices' condition numbers are below 1e3."""

inverted = jax.jit(inverse_and_logdet, compiler_options=LIKE_FITS)
solved = jax.jit(solve_and_logdet, compiler_options=LIKE_FITS)
modified = jax.jit(solve_modified, compiler_options=LIKE_FITS)


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
    inverse, logdet = inverted(M)
    first = np.moveaxis(M, -1, 0)
    np.testing.assert_allclose(np.moveaxis(inverse, -1, 0), np.linalg.inv(first), rtol=ROUNDING, atol=1e-13)
    np.testing.assert_allclose(logdet, np.linalg.slogdet(first)[1], rtol=ROUNDING)


@pytest.mark.parametrize("q", [1, 3, 8, 9, 12])
def test_a_single_matrix_gives_what_it_gives_in_a_batch(q: int, rng: np.random.Generator) -> None:
    M = positive_definite(rng, q, 5)
    batch_inverse, batch_logdet = inverted(M)
    inverse, logdet = inverted(M[:, :, 1])
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

        def derivatives(t: float) -> tuple[jax.Array, ...]:
            return value(t), jax.grad(value)(t), jax.grad(jax.grad(value))(t)

        return jax.jit(derivatives, compiler_options=QUICKLY)(0.1)

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

    found, expected = (jax.jit(jax.grad(f), compiler_options=QUICKLY)(M) for f in (ours, theirs))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_derivatives_are_limits_of_differences(rng: np.random.Generator) -> None:
    M, dM = (positive_definite(rng, 4, 2) for _ in range(2))
    (_, _), (d_inverse, d_logdet) = jax.jvp(inverted, (M,), (dM,))
    h = 1e-5
    above, below = inverted(M + h * dM), inverted(M - h * dM)
    np.testing.assert_allclose(d_inverse, (above[0] - below[0]) / (2 * h), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(d_logdet, (above[1] - below[1]) / (2 * h), rtol=1e-7)


def test_vmap_equals_a_loop(rng: np.random.Generator) -> None:
    stack = np.stack([positive_definite(rng, 3, 4) for _ in range(3)])
    inverses, logdets = jax.jit(jax.vmap(inverse_and_logdet), compiler_options=LIKE_FITS)(stack)
    for M, inverse, logdet in zip(stack, inverses, logdets, strict=True):
        alone = inverted(M)
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
    assert np.isnan(inverted(np.array(M))[1])


def test_a_large_indefinite_matrix_yields_nan_too(rng: np.random.Generator) -> None:
    M = positive_definite(rng, 12, 1)[:, :, 0]
    M[7, 7] = -1.0
    assert np.isnan(inverted(M)[1])


def test_a_singular_matrix_has_no_finite_log_determinant() -> None:
    assert not np.isfinite(inverted(np.ones((2, 2)))[1])


def test_one_indefinite_member_leaves_the_rest_of_the_batch_alone(rng: np.random.Generator) -> None:
    M = positive_definite(rng, 3, 4)
    M[:, :, 2] = -np.eye(3)
    inverse, logdet = inverted(M)
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
    np.testing.assert_allclose(modified(H, g, 1e-12), np.linalg.solve(H, g), rtol=ROUNDING)


@pytest.mark.parametrize("k", [2, 3, 10])
def test_the_solution_of_an_indefinite_system_is_a_direction_of_descent(
    k: int, rng: np.random.Generator
) -> None:
    for _ in range(20):
        H, g = rng.normal(size=(k, k)), rng.normal(size=k)
        x = modified(H + H.T, g, 1e-8)
        assert x @ g > 0
        assert np.isfinite(x).all()


def test_a_negative_pivot_counts_with_its_size_and_a_small_one_with_the_floor() -> None:
    x = modified(np.diag([4.0, -2.0, 1e-9, 0.0]), np.ones(4), 1e-3)
    np.testing.assert_allclose(x, [0.25, 0.5, 1e3, 1e3], rtol=ROUNDING)


def test_the_largest_pivot_is_taken_first() -> None:
    """Elimination in the order of the rows would meet the floor at once, and lose the second equation."""
    H = np.array([[1e-14, 1.0], [1.0, 3.0]])
    x = modified(H, np.array([1.0, 3.0]), 1e-10)
    np.testing.assert_allclose(x, [0.0, 1.0], atol=1e-9)


def test_the_most_curved_of_many_are_found_positive_definite() -> None:
    H = np.stack([np.eye(3), np.diag([1.0, 2.0, -1e-9]), np.ones((3, 3)), np.full((3, 3), np.nan)])
    assert is_positive_definite(H).tolist() == [True, False, False, False]


# Large matrices, inverted by halves


def scales(rng: np.random.Generator, q: int) -> np.ndarray:
    return 10.0 ** rng.uniform(-6, 6, q)


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
    inverse, logdet = jax.jit(lambda M: inverse_and_logdet(M), compiler_options=LIKE_FITS)(M)
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

    by_M, by_B = jax.jit(jax.grad(value, argnums=(0, 1)), compiler_options=LIKE_FITS)(M, B)
    inverse = np.linalg.inv(M)
    np.testing.assert_allclose(by_B, inverse @ C, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(by_M, 2 * inverse - inverse @ C @ (inverse @ B).T, rtol=0, atol=ROUNDING)


def test_derivatives_of_a_solution_are_limits_of_differences(rng: np.random.Generator) -> None:
    at = positive_definite(rng, 12, 1)[:, :, 0], rng.normal(size=(12, 3))
    step = positive_definite(rng, 12, 1)[:, :, 0], rng.normal(size=(12, 3))
    C = rng.normal(size=(12, 3))

    @partial(jax.jit, compiler_options=LIKE_FITS)
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


def exact_resolvent(G: np.ndarray, N: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """``(I + G N)^{-1} G``, ``(I + G N)^{-1}`` and the log-determinant in rational numbers."""
    q = len(G)
    g, product = [[Fraction(x) for x in row] for row in G], [[Fraction(0)] * q for _ in range(q)]
    for i, j, k in itertools.product(range(q), repeat=3):
        product[i][j] += g[i][k] * Fraction(N[k, j])
    rows = [
        [product[i][j] + (i == j) for j in range(q)] + [Fraction(i == j) for j in range(q)] for i in range(q)
    ]
    determinant = Fraction(1)
    for k in range(q):
        swap = next(i for i in range(k, q) if rows[i][k] != 0)
        rows[k], rows[swap], determinant = rows[swap], rows[k], determinant * (1 if swap == k else -1)
        determinant *= rows[k][k]
        rows[k] = [x / rows[k][k] for x in rows[k]]
        for i in range(q):
            if i != k:
                rows[i] = [x - rows[i][k] * y for x, y in zip(rows[i], rows[k], strict=True)]
    K = [row[q:] for row in rows]
    A = [[sum(K[i][k] * g[k][j] for k in range(q)) for j in range(q)] for i in range(q)]
    return np.array(A, dtype=float), np.array(K, dtype=float), float(np.log(float(determinant)))


@pytest.mark.parametrize(("q", "rank"), [(1, 0), (1, 1), (2, 1), (2, 2), (4, 0), (4, 2), (4, 4)])
def test_the_resolvent_keeps_its_digits_whatever_the_rank_and_the_units(
    q: int, rank: int, rng: np.random.Generator
) -> None:
    units = 10.0 ** rng.uniform(-3, 3, q)
    root, rows = units[:, None] * rng.normal(size=(q, rank)), rng.normal(size=(5, 3 * q, q)) / units
    G, N = root @ root.T, 50 * np.einsum("mij,mik->jkm", rows, rows)
    A, K, logdet = (np.asarray(part) for part in jax.jit(resolvent, compiler_options=LIKE_FITS)(G, N))
    for i in range(5):
        exact_A, exact_K, exact_logdet = exact_resolvent(G, N[:, :, i])
        for found, exact, scale in (
            (A, exact_A, np.outer(units, units)),
            (K, exact_K, np.outer(units, 1 / units)),
        ):
            exact, found = exact / scale, found[:, :, i] / scale
            np.testing.assert_allclose(found, exact, rtol=0, atol=ROUNDING * np.abs(exact).max())
        assert logdet[i] == pytest.approx(exact_logdet, abs=ROUNDING)


@pytest.mark.parametrize(
    "G",
    [
        [[1.0, 2.0], [2.0, 1.0]],
        [[0.0, 1e-9], [1e-9, 0.0]],
        [[-1e-20, 0.0], [0.0, 1.0]],
        [[np.nan, 0], [0, 1]],
    ],
)
def test_the_resolvent_of_an_indefinite_matrix_is_nan(G: list[list[float]]) -> None:
    assert all(np.isnan(part).any() for part in resolvent(jnp.asarray(G), jnp.ones((2, 2, 1))))


def test_derivatives_of_the_resolvent_are_differences_where_it_is_singular(rng: np.random.Generator) -> None:
    root, N = rng.normal(size=(3, 1)), positive_definite(rng, 3, 2)
    G, inward, move = root @ root.T, positive_definite(rng, 3, 1)[:, :, 0], positive_definite(rng, 3, 2)

    def along(t: float) -> tuple[jax.Array, ...]:
        return resolvent(jnp.asarray(G + t * inward), jnp.asarray(N + t * move))

    h = 1e-4
    slopes = jax.jvp(along, (0.0,), (1.0,))[1]
    curvatures = jax.jvp(lambda t: jax.jvp(along, (t,), (1.0,))[1], (0.0,), (1.0,))[1]
    # Inside the domain alone: G moves to larger matrices.
    values = [along(step * h) for step in range(5)]
    for i, (slope, curvature) in enumerate(zip(slopes, curvatures, strict=True)):
        f = [value[i] for value in values]
        forward = (-25 * f[0] + 48 * f[1] - 36 * f[2] + 16 * f[3] - 3 * f[4]) / (12 * h)
        second = (35 * f[0] - 104 * f[1] + 114 * f[2] - 56 * f[3] + 11 * f[4]) / (12 * h * h)
        np.testing.assert_allclose(slope, forward, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(curvature, second, rtol=1e-4, atol=1e-4)


def test_a_pivoted_root_of_a_nearly_singular_matrix_keeps_its_derivatives(rng: np.random.Generator) -> None:
    points = np.sort(rng.uniform(0, 10, 40))
    squares = (points[:, None] - points) ** 2

    def correlations(x):
        return jnp.exp(-squares * jnp.exp(-2 * x) / 2)

    def root_and_slope(x):
        return jax.jvp(lambda x: pivoted_cholesky(correlations(x)), (x,), (jnp.ones_like(x),))

    with double_precision():
        T, dT = (np.asarray(a) for a in jax.jit(root_and_slope, compiler_options=QUICKLY)(np.array(0.7)))
    K = np.exp(-squares * np.exp(-1.4) / 2)
    assert np.linalg.eigvalsh(K)[0] < 1e-14
    np.testing.assert_allclose(T @ T.T, K, atol=1e-14)
    np.testing.assert_allclose(dT @ T.T + T @ dT.T, K * squares * np.exp(-1.4), atol=1e-12)


def test_a_pivoted_root_has_the_rank_of_its_matrix_and_units_do_not_matter(rng: np.random.Generator) -> None:
    half = rng.normal(size=(5, 3)) * np.array([1e-6, 1.0, 1e3, 1.0, 1e-3])[:, None]
    with double_precision():
        T = np.asarray(pivoted_cholesky(jnp.asarray(half @ half.T)))
    assert T.any(axis=0).sum() == 3
    size = np.sqrt((half * half).sum(axis=1))
    np.testing.assert_allclose(
        T @ T.T / np.outer(size, size), half @ half.T / np.outer(size, size), atol=1e-14
    )


def test_an_indefinite_matrix_has_no_root() -> None:
    for matrix in (np.array([[1.0, 2.0], [2.0, 1.0]]), np.full((2, 2), np.nan)):
        assert np.isnan(pivoted_cholesky(jnp.asarray(matrix))).any()


@pytest.mark.parametrize("units", [1.0, 1e-150, 1e150])
def test_of_columns_that_depend_on_each_other_the_first_are_chosen(
    units: float, rng: np.random.Generator
) -> None:
    a, b, c = rng.normal(size=(3, 9)) * units
    # The fourth is nearly, the fifth exactly in the span of those before; the last is the only zero.
    X = np.column_stack([a, b, 1e3 * a - b, a + 1e-5 * c, a, b + c, c, 0 * a])
    chosen = independent_columns(X, 1e-7 * np.linalg.norm(X, axis=0))
    assert chosen.tolist() == [0, 1, 3]
    assert independent_columns(X, 1e-4 * np.linalg.norm(X, axis=0)).tolist() == [0, 1, 5]
    assert np.linalg.matrix_rank(X[:, chosen] / units) == np.linalg.matrix_rank(X / units) == 3


def test_as_many_columns_are_independent_as_the_rank_is_though_they_nearly_depend() -> None:
    hilbert = 1 / (np.arange(8)[:, None] + np.arange(8) + 1.0)  # condition number 1.5e10
    X = np.repeat(hilbert, 2, axis=1)
    assert independent_columns(X, 1e-13 * np.linalg.norm(X, axis=0)).tolist() == [0, 2, 4, 6, 8, 10, 12, 14]


def test_nothing_is_chosen_of_no_columns_and_of_columns_without_rows() -> None:
    assert independent_columns(np.zeros((3, 0)), np.zeros(0)).tolist() == []
    assert independent_columns(np.zeros((0, 2)), np.zeros(2)).tolist() == []


def test_the_triangle_of_stacked_blocks_is_that_of_the_whole(rng: np.random.Generator) -> None:
    X = rng.normal(size=(11, 3)) * [1.0, 1e6, 1e-6]
    found = stacked_qr_triangle(X[start : start + 4] for start in range(0, 11, 4))
    np.testing.assert_allclose(np.abs(found), np.abs(np.linalg.qr(X)[1]), rtol=ROUNDING, atol=0)
    assert (np.tril(found, -1) == 0).all()
