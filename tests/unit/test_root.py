"""The dense root against the same algebra with T, its reflection and V written out as matrices."""

from collections.abc import Iterator
from functools import partial

import jax
import numpy as np
import pytest
from scipy.linalg import block_diag

from jaxmixed.precision import double_precision
from jaxmixed.root import (
    Root,
    Shapes,
    diagonal_of,
    eliminate_root,
    factor_columns,
    reflect,
    reflect_both,
    reflect_rows,
    relative_covariance,
    right_times,
    spherical,
    times,
    transposed_times,
)
from tests.support.closeness import assert_close_to_the_largest

ROUNDING = 1e-12
"""Relative to the largest element: products of matrices of order twenty."""

PADDING = 2
SHAPES: dict[str, Shapes] = {
    "intercepts": ((5, 1), (3, 1)),
    "vectors": ((4, 2), (3, 3)),
    "a factor of one level": ((1, 1), (3, 2)),
}


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with double_precision():
        yield


close = partial(assert_close_to_the_largest, share=ROUNDING)


def columns(shapes: Shapes) -> int:
    return sum(levels * effects for levels, effects in shapes)


def random_factors(rng: np.random.Generator, shapes: Shapes) -> list[np.ndarray]:
    return [np.tril(rng.normal(size=(effects, effects))) for _, effects in shapes]


def whole(factors: list[np.ndarray], shapes: Shapes, padding: int = PADDING) -> np.ndarray:
    """T: the effects of a level stand a whole number of levels apart; zero in the padding."""
    blocks = [np.kron(T, np.eye(levels)) for T, (levels, _) in zip(factors, shapes, strict=True)]
    return block_diag(*blocks, np.zeros((padding, padding)))


class Rows:
    """Rows in crossed factors; X holds the constant and the slope of every factor's first two effects."""

    def __init__(self, rng: np.random.Generator, shapes: Shapes, n: int = 40) -> None:
        self.shapes = shapes
        x = rng.normal(size=n)
        self.X = np.column_stack([np.ones(n), x])
        blocks, shared = [], []
        for levels, effects in shapes:
            covariates = np.column_stack([np.ones(n), x, rng.normal(size=n)])[:, :effects]
            indicators = np.eye(levels)[rng.permutation(np.resize(np.arange(levels), n))]
            blocks += [indicators * covariates[:, [effect]] for effect in range(effects)]
            shared += [np.eye(3)[effect] if effect < 2 else np.zeros(3) for effect in range(effects)]
        self.Z = np.column_stack(blocks)
        self.shared = np.column_stack(shared)
        self.Xy = np.column_stack([self.X, rng.normal(size=n)])
        part = rng.normal(size=(n, 10))
        self.inverse = np.linalg.inv(np.eye(n) + part @ part.T)  # what the eliminated factors leave

    def root(self) -> Root:
        extra = [(0, PADDING), (0, PADDING)]
        gram = np.pad(self.Z.T @ self.inverse @ self.Z, extra)
        cross = np.pad(self.Z.T @ self.inverse @ self.Xy, [extra[0], (0, 0)])
        return Root(gram=gram, cross=cross, shared=self.shared, shapes=self.shapes)

    def schur(self) -> np.ndarray:
        return self.Xy.T @ self.inverse @ self.Xy

    def marginal(self, factors: list[np.ndarray]) -> tuple[float, np.ndarray]:
        """``log|V| - log|V_c|`` and ``[X y]'V^{-1}[X y]`` from V itself."""
        T = whole(factors, self.shapes, 0)
        V = np.linalg.inv(self.inverse) + self.Z @ T @ T.T @ self.Z.T
        logdet = np.linalg.slogdet(V)[1] + np.linalg.slogdet(self.inverse)[1]
        return float(logdet), self.Xy.T @ np.linalg.solve(V, self.Xy)


eliminated, reflected = jax.jit(eliminate_root), jax.jit(reflect)
rows_reflected = jax.jit(reflect_rows, static_argnums=1)
both_reflected = jax.jit(reflect_both, static_argnums=1)


@pytest.fixture(params=SHAPES)
def shapes(request: pytest.FixtureRequest) -> Shapes:
    return SHAPES[request.param]


# Products with T


def test_products_with_the_factors_are_those_of_the_whole_matrix(
    shapes: Shapes, rng: np.random.Generator
) -> None:
    factors, size = random_factors(rng, shapes), columns(shapes) + PADDING
    T, A, M = whole(factors, shapes), rng.normal(size=(size, 4)), rng.normal(size=(size, size))
    symmetric = M + M.T

    @jax.jit
    def products(factors: list[jax.Array]) -> tuple[jax.Array, ...]:
        return (
            transposed_times(factors, A, shapes),
            times(factors, A, shapes),
            right_times(A.T, factors, shapes),
            relative_covariance(factors, symmetric, shapes),
            *spherical(factors, symmetric, A, shapes),
        )

    expected = (T.T @ A, T @ A, A.T @ T, T @ symmetric @ T.T, T.T @ symmetric @ T + np.eye(size), T.T @ A)
    for ours, dense in zip(products(factors), expected, strict=True):
        close(ours, dense)


def test_the_diagonal_is_that_of_intercepts_alone(rng: np.random.Generator) -> None:
    intercepts, vectors = SHAPES["intercepts"], SHAPES["vectors"]
    factors = random_factors(rng, intercepts)
    diagonal = diagonal_of(factors, columns(intercepts) + PADDING, intercepts)
    close(diagonal, np.diagonal(whole(factors, intercepts)))
    assert diagonal_of(random_factors(rng, vectors), columns(vectors), vectors) is None


def test_the_columns_of_the_factors_follow_each_other() -> None:
    assert factor_columns(((4, 2), (3, 3), (1, 1))) == [slice(0, 8), slice(8, 17), slice(17, 18)]


# The reflection


def mirror(shapes: Shapes) -> np.ndarray:
    return np.asarray(rows_reflected(np.eye(columns(shapes) + PADDING), shapes))


def test_the_reflection_turns_the_sum_of_the_levels_into_the_first_of_them(shapes: Shapes) -> None:
    H = mirror(shapes)
    close(H, H.T)
    close(H @ H, np.eye(len(H)))
    for (levels, effects), own in zip(shapes, factor_columns(shapes), strict=True):
        for start in range(own.start, own.stop, levels):
            total = np.zeros(len(H))
            total[start : start + levels] = 1 / np.sqrt(levels)
            close(H @ total, np.eye(len(H))[start])
        assert effects == len(range(own.start, own.stop, levels))


def test_the_reflection_leaves_the_distribution_of_the_effects(
    shapes: Shapes, rng: np.random.Generator
) -> None:
    H, T = mirror(shapes), whole(random_factors(rng, shapes), shapes)
    close(H @ T @ T.T @ H, T @ T.T)
    A = rng.normal(size=T.shape)
    close(both_reflected(A + A.T, shapes), H @ (A + A.T) @ H)


def test_reflected_cross_products_are_those_of_reflected_columns(
    shapes: Shapes, rng: np.random.Generator
) -> None:
    H, root = mirror(shapes), Rows(rng, shapes).root()
    found = reflected(root)
    close(found.gram, H @ np.asarray(root.gram) @ H)
    close(found.cross, H @ np.asarray(root.cross))


def test_a_reflected_root_gives_the_same_likelihood(shapes: Shapes, rng: np.random.Generator) -> None:
    rows, factors = Rows(rng, shapes), random_factors(rng, shapes)
    direct = eliminated(factors, rows.root(), rows.schur())
    turned = eliminated(factors, reflected(rows.root()), rows.schur())
    close(turned[0], direct[0])
    close(turned[1], direct[1])


def test_shared_directions_are_taken_from_the_fixed_effects_alone(rng: np.random.Generator) -> None:
    shapes = SHAPES["vectors"]
    root = Rows(rng, shapes).root()
    H, gram = mirror(shapes), np.asarray(root.gram)
    cross = rng.normal(size=root.cross.shape)  # of other data: what comes from it cannot be mistaken
    found = np.asarray(
        reflected(Root(gram=gram, cross=cross, shared=np.asarray(root.shared), shapes=shapes)).gram
    )
    direct = H @ gram @ H
    starts, levels = [0, 4, 8, 11, 14], [4, 4, 3, 3, 3]
    known, unknown = [0, 1, 2, 3], 4
    inner = np.setdiff1d(np.arange(len(H)), starts)
    expected = H @ cross @ (np.asarray(root.shared) / np.sqrt(levels))
    for effect in known:
        close(found[inner, starts[effect]], expected[inner, effect])
        close(found[starts[effect], inner], expected[inner, effect])
    close(found[inner, starts[unknown]], direct[inner, starts[unknown]])
    close(found[np.ix_(inner, inner)], direct[np.ix_(inner, inner)])


def test_a_large_variance_ratio_leaves_the_shared_direction_its_digits() -> None:
    # Six groups, eliminated, by five levels, one row in each cell: the intercepts add up to the constant.
    groups, levels, ratio = 6, 5, 1e10
    within = levels + 1 / ratio
    g = groups * np.eye(levels) - groups / within
    constant = groups / ratio / within  # a level's column times V_c^{-1} 1, without a difference
    root = Root(
        gram=g, cross=np.full((levels, 2), constant), shared=np.array([[1.0], [0.0]]), shapes=((levels, 1),)
    )
    found = np.asarray(reflected(root).gram)
    assert found[0, 0] == pytest.approx(constant, rel=1e-14, abs=0)
    np.testing.assert_allclose(np.linalg.eigvalsh(found)[1:], groups, rtol=1e-13)
    assert np.ones(levels) @ g @ np.ones(levels) / levels != pytest.approx(constant, rel=1e-8, abs=0)


# The elimination


def with_zero_rows(factors: list[np.ndarray]) -> list[np.ndarray]:
    """Singular factors: the last effect of each has no variance."""
    return [np.vstack([T[:-1], np.zeros_like(T[-1:])]) for T in factors]


def test_eliminating_the_root_gives_the_marginal_covariance(shapes: Shapes, rng: np.random.Generator) -> None:
    rows, factors = Rows(rng, shapes), random_factors(rng, shapes)
    nothing = [np.zeros_like(T) for T in factors]
    one_gone = [np.zeros_like(factors[0]), *factors[1:]]
    for T in (factors, with_zero_rows(factors), one_gone, nothing, [30 * T for T in factors]):
        logdet, schur = eliminated(T, rows.root(), rows.schur())
        expected = rows.marginal(T)
        close(logdet, expected[0])
        close(schur, expected[1])


def test_without_variances_the_root_adds_nothing(shapes: Shapes, rng: np.random.Generator) -> None:
    rows = Rows(rng, shapes)
    nothing = [np.zeros((effects, effects)) for _, effects in shapes]
    logdet, schur = eliminated(nothing, rows.root(), rows.schur())
    assert logdet == 0
    np.testing.assert_array_equal(schur, rows.schur())
