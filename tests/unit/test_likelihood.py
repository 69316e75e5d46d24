"""The likelihood against the dense Gaussian density, values and derivatives, in every form of statistics."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from jaxmixed.covariance import covariance_structure
from jaxmixed.crossproducts import reduce_rows
from jaxmixed.layout import Grouping
from jaxmixed.likelihood import Parameters, deviance, level_factors, loglik, marginal_loglik, profile
from jaxmixed.patterns import compress
from jaxmixed.precision import double_precision
from jaxmixed.statistics import SufficientStatistics, Term, pad, summarise
from tests.support.compilation import LIKE_FITS, QUICKLY
from tests.support.dense import Block, DenseModel

VALUE = 1e-10
"""Relative; both sides lose a digit or two to the conditioning of V."""

DERIVATIVE = 1e-9
"""Relative to the largest element: derivatives of the dense density lose more digits than its value."""

DIFFERENCE = 1e-6
"""Relative to the largest element: truncation of central differences."""

N, P = 60, 3
SIZES = (18, 7, 3)

# Terms of each level, finest level first: structure and number of effects.
CHAINS = {
    "one intercept": ((("unstructured", 1),),),
    "two effects": ((("unstructured", 2),),),
    "three effects": ((("unstructured", 3),),),
    "four effects": ((("unstructured", 4),),),
    "independent": ((("independent", 2),),),
    "identity": ((("identity", 3),),),
    "exchangeable": ((("exchangeable", 3),),),
    "two terms": ((("unstructured", 1), ("unstructured", 2)),),
    "two levels": ((("unstructured", 2),), (("unstructured", 1),)),
    "three levels": ((("unstructured", 1),), (("unstructured", 2),), (("unstructured", 1),)),
    "two levels of two terms": (
        (("unstructured", 1), ("independent", 2)),
        (("exchangeable", 2), ("unstructured", 1)),
    ),
    "structures by level": ((("identity", 2),), (("exchangeable", 2),), (("independent", 2),)),
}
FORMS = ("moments", "orthogonal", "padded")

compiled = partial(jax.jit, compiler_options=LIKE_FITS)
summarised = compiled(summarise, static_argnames="num_groups")
loglik_at = compiled(loglik, static_argnames="method")
deviance_at = compiled(deviance)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with double_precision():
        yield


@dataclass
class Chain:
    """Nested factors with random columns, as rows and as a dense model."""

    y: np.ndarray
    X: np.ndarray
    Z: list[np.ndarray]
    codes: list[np.ndarray]
    terms: tuple[Term, ...]
    weights: np.ndarray | None

    @property
    def sizes(self) -> tuple[int, ...]:
        return SIZES[: len(self.Z)]

    @property
    def num_params(self) -> int:
        return sum(term.covariance.num_params for term in self.terms)

    def dense(self) -> DenseModel:
        blocks = tuple(
            Block(self.Z[term.level][:, term.start : term.start + term.covariance.q], self.codes[term.level])
            for term in self.terms
        )
        return DenseModel(self.y, self.X, blocks, self.weights)

    def covariances(self, theta: np.ndarray) -> tuple[np.ndarray, ...]:
        """Relative covariance of each term."""
        found, start = [], 0
        for term in self.terms:
            part = theta[start : start + term.covariance.num_params]
            T = np.tensordot(part, term.covariance.jacobian(part), axes=1)
            found.append(T @ T.T)
            start += len(part)
        return tuple(found)

    def statistics(self, form: str) -> SufficientStatistics:
        if form == "moments":
            plain = summarised(
                self.y, self.X, self.Z, self.codes, num_groups=self.sizes, weights=self.weights
            )
            return replace(plain, terms=self.terms)
        groupings = [
            Grouping(Z, codes, size, f"g{depth}")
            for depth, (Z, codes, size) in enumerate(zip(self.Z, self.codes, self.sizes, strict=True))
        ]
        stats = reduce_rows(self.y, self.X, groupings, self.terms, self.weights).stats
        return pad(stats) if form == "padded" else stats


def draw(name: str, seed: int, weights: bool = False) -> Chain:
    """Rows in no order, in groups of 1 to 8 rows."""
    rng = np.random.default_rng(seed)
    levels = CHAINS[name]
    owners = [rng.permutation(np.resize(np.arange(b), a)) for a, b in pairwise(SIZES)]
    fine = np.concatenate([np.arange(18), rng.integers(2, 18, N - 18)])  # groups 0 and 1 have a single row
    codes = [rng.permutation(fine)]
    codes.extend(
        owners[depth][codes[0]] if depth == 0 else owners[1][owners[0][codes[0]]] for depth in range(2)
    )
    Z, terms = [], []
    for depth, members in enumerate(levels):
        start = 0
        for structure, q in members:
            terms.append(Term(depth, start, covariance_structure(structure, q)))
            start += q
        block = rng.normal(size=(N, start))
        block[:, 0] = 1.0
        Z.append(block)
    X = rng.normal(size=(N, P))
    X[:, 0] = 1.0
    y = X @ rng.normal(size=P) + rng.normal(size=N)
    for block, code, size in zip(Z, codes, SIZES, strict=False):
        y += np.sum(block * rng.normal(size=(size, block.shape[1]))[code], axis=1)
    w = rng.uniform(0.3, 3, N) if weights else None
    return Chain(y, X, Z, codes[: len(levels)], tuple(terms), w)


def by_ml_and_reml(theta: jax.Array, stats: SufficientStatistics) -> jax.Array:
    return jnp.stack([deviance(theta, stats, method=method) for method in ("ml", "reml")])


both = compiled(by_ml_and_reml)


def thetas(chain: Chain, seed: int) -> list[np.ndarray]:
    """Ordinary parameters of either sign, none, some at zero, and large ones."""
    rng = np.random.default_rng(seed)
    ordinary = rng.normal(size=chain.num_params)
    some_zero = np.where(rng.random(chain.num_params) < 0.5, 0.0, ordinary)
    return [ordinary, np.zeros(chain.num_params), some_zero, 30 * ordinary]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CHAINS)
def test_the_deviance_is_that_of_the_dense_density(name: str, form: str) -> None:
    for seed, weights in enumerate((False, True)):
        chain = draw(name, seed, weights)
        stats, dense = chain.statistics(form), chain.dense()
        for theta in thetas(chain, seed):
            relative = chain.covariances(theta)
            expected = [-2 * dense.profiled(relative, method).llf for method in ("ml", "reml")]
            np.testing.assert_allclose(both(theta, stats), expected, rtol=VALUE)


def balanced(levels: int, weights: bool) -> Chain:
    """Every finest group has the same columns, so that groups share a pattern."""
    rng = np.random.default_rng(4)
    times = np.arange(3.0)
    m = 60
    codes = [np.repeat(np.arange(m), 3), np.repeat(np.arange(m) // 20, 3)][:levels]
    Z = [np.column_stack([np.ones(3 * m), np.tile(times, m)]), np.ones((3 * m, 1))][:levels]
    terms = (
        Term(0, 0, covariance_structure("unstructured", 2)),
        Term(1, 0, covariance_structure("unstructured", 1)),
    )
    X = np.column_stack([np.ones(3 * m), np.tile(times, m)])
    y = rng.normal(size=3 * m) + Z[0][:, 1] * rng.normal(size=m)[codes[0]]
    w = np.tile([1.0, 0.5, 2.0], m) if weights else None
    return Chain(y, X, Z, codes, terms[:levels], w)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("levels", [1, 2])
def test_groups_that_share_a_pattern_leave_the_deviance_as_it_is(levels: int, weights: bool) -> None:
    chain, sizes = balanced(levels, weights), (60, 3)
    groupings = [Grouping(Z, c, m, "g") for Z, c, m in zip(chain.Z, chain.codes, sizes, strict=False)]
    stats = reduce_rows(chain.y, chain.X, groupings, chain.terms, chain.weights).stats
    compressed = compress(stats)
    assert compressed.levels[0].gram is not None
    assert len(compressed.levels[0].count) == (1 if levels == 1 else 3)
    dense = chain.dense()
    for theta in thetas(chain, 0):
        expected = [-2 * dense.profiled(chain.covariances(theta), method).llf for method in ("ml", "reml")]
        for form in (stats, compressed, pad(compressed)):
            np.testing.assert_allclose(both(theta, form), expected, rtol=VALUE)


@pytest.mark.parametrize("name", ["two effects", "two levels of two terms"])
def test_profiled_quantities_are_those_of_the_dense_model(name: str) -> None:
    chain = draw(name, 3, weights=True)
    theta = thetas(chain, 3)[0]
    dense = chain.dense().profiled(chain.covariances(theta), "reml")
    stats = chain.statistics("orthogonal")
    found = compiled(lambda theta: profile(level_factors(theta, stats), stats))(theta)
    np.testing.assert_allclose(np.exp(found.log_rss) / (N - P), dense.sigma**2, rtol=VALUE)
    schur = np.asarray(found.schur)
    standardised = np.linalg.solve(schur[:P, :P], schur[:P, P])
    beta = stats.origin + stats.scale * np.linalg.solve(stats.basis, standardised)
    np.testing.assert_allclose(beta, dense.beta, rtol=1e-9)


@pytest.mark.parametrize("form", ["moments", "orthogonal"])
@pytest.mark.parametrize("name", ["three effects", "three levels", "two levels of two terms"])
def test_the_unprofiled_likelihood_is_that_of_the_dense_density(name: str, form: str) -> None:
    chain = draw(name, 5, weights=True)
    rng = np.random.default_rng(6)
    stats, dense = chain.statistics(form), chain.dense()
    for _ in range(3):
        params = Parameters(rng.normal(size=P), rng.normal(size=chain.num_params), rng.uniform(0.5, 2))
        covs = tuple(params.sigma**2 * G for G in chain.covariances(params.theta))
        expected = dense.loglik(covs, params.sigma, "ml", params.beta)
        np.testing.assert_allclose(loglik_at(params, stats), expected, rtol=VALUE)
        restricted = dense.loglik(covs, params.sigma, "reml")
        np.testing.assert_allclose(loglik_at(params, stats, method="reml"), restricted, rtol=VALUE)
        other = params._replace(beta=params.beta + 1)
        assert loglik_at(other, stats, method="reml") == loglik_at(params, stats, method="reml")


def dense_deviance(theta: jax.Array, chain: Chain, method: str) -> jax.Array:
    """The profiled deviance from its definition, differentiable by JAX's own rules."""
    w = np.ones(N) if chain.weights is None else chain.weights
    V, start = jnp.diag(1 / w), 0
    for term in chain.terms:
        part = theta[start : start + term.covariance.num_params]
        T = jnp.tensordot(part, term.covariance.jacobian(np.zeros(len(part))), axes=1)
        Z = chain.Z[term.level][:, term.start : term.start + term.covariance.q]
        same = chain.codes[term.level][:, None] == chain.codes[term.level][None, :]
        V = V + jnp.where(same, (Z @ T) @ (Z @ T).T, 0.0)
        start += len(part)
    A = chain.X.T @ jnp.linalg.solve(V, chain.X)
    beta = jnp.linalg.solve(A, chain.X.T @ jnp.linalg.solve(V, chain.y))
    r = chain.y - chain.X @ beta
    df = N - (P if method == "reml" else 0)
    value = jnp.linalg.slogdet(V)[1] + df * (1 + jnp.log(2 * jnp.pi * (r @ jnp.linalg.solve(V, r)) / df))
    return value + (jnp.linalg.slogdet(A)[1] if method == "reml" else 0.0)


def close(found: jax.Array, expected: jax.Array, tolerance: float) -> None:
    np.testing.assert_allclose(
        found, expected, rtol=tolerance, atol=tolerance * float(np.abs(expected).max())
    )


@pytest.mark.parametrize(
    ("name", "method", "form"),
    [
        ("two effects", "ml", "orthogonal"),
        pytest.param("three levels", "reml", "padded", marks=pytest.mark.slow),
        ("two levels", "reml", "padded"),
        pytest.param("two levels of two terms", "ml", "moments", marks=pytest.mark.slow),
        pytest.param("structures by level", "reml", "orthogonal", marks=pytest.mark.slow),
    ],
)
def test_gradient_and_hessian_are_those_of_the_dense_density(name: str, method: str, form: str) -> None:
    chain = draw(name, 7, weights=True)
    stats = chain.statistics(form)

    def ours(theta: jax.Array) -> jax.Array:
        return deviance(theta, stats, method=method)

    def oracle(theta: jax.Array) -> jax.Array:
        return dense_deviance(theta, chain, method)

    found = compiled(lambda theta: (jax.grad(ours)(theta), jax.hessian(ours)(theta)))
    expected = jax.jit(
        lambda theta: (jax.grad(oracle)(theta), jax.hessian(oracle)(theta)), compiler_options=QUICKLY
    )
    h = 1e-5
    for theta in thetas(chain, 7)[:3]:
        (gradient, hessian), (expected_gradient, expected_hessian) = found(theta), expected(theta)
        close(gradient, expected_gradient, DERIVATIVE)
        close(hessian, expected_hessian, DERIVATIVE)
        steps = h * np.eye(len(theta))
        close(hessian, [(found(theta + s)[0] - found(theta - s)[0]) / (2 * h) for s in steps], DIFFERENCE)
        differences = [(both(theta + s, stats) - both(theta - s, stats)) / (2 * h) for s in steps]
        ml_or_reml = ("ml", "reml").index(method)
        close(gradient, np.array(differences)[:, ml_or_reml], DIFFERENCE)


def test_at_zero_the_gradient_vanishes_and_the_curvature_does_not() -> None:
    chain = draw("three effects", 8)
    stats = chain.statistics("orthogonal")
    zero = np.zeros(chain.num_params)
    gradient, hessian = compiled(lambda *at: (jax.grad(deviance)(*at), jax.hessian(deviance)(*at)))(
        zero, stats
    )
    np.testing.assert_array_equal(gradient, zero)
    assert np.abs(np.diagonal(hessian)).min() > 0


def test_the_deviance_is_even_in_the_sign_of_each_column() -> None:
    chain = draw("three effects", 9)
    stats = chain.statistics("orthogonal")
    theta = thetas(chain, 9)[0]
    for signs in ([-1, -1, -1, 1, 1, 1], [1, 1, 1, -1, -1, 1], [1, 1, 1, 1, 1, -1]):
        np.testing.assert_allclose(both(np.array(signs) * theta, stats), both(theta, stats), rtol=1e-13)


def test_vmap_over_parameters_equals_a_loop() -> None:
    chain = draw("two levels", 10)
    stats = chain.statistics("orthogonal")
    batch = np.random.default_rng(10).normal(size=(5, chain.num_params))
    together = compiled(jax.vmap(by_ml_and_reml, in_axes=(0, None)))(batch, stats)
    np.testing.assert_allclose(together, [both(theta, stats) for theta in batch], rtol=1e-13)


def test_vmap_over_responses_equals_a_loop_even_beside_a_poisoned_one() -> None:
    chain = draw("two levels", 11)
    Y = chain.y + np.random.default_rng(11).normal(size=(4, N))
    Y[2, 5] = np.nan
    theta = np.array([0.8, 0.1, 0.5, 1.2])
    codes = [jnp.asarray(code) for code in chain.codes]

    def of_response(y: jax.Array) -> jax.Array:
        return by_ml_and_reml(theta, summarise(y, chain.X, chain.Z, codes, num_groups=chain.sizes))

    together, alone = np.asarray(compiled(jax.vmap(of_response))(Y)), compiled(of_response)
    assert np.isnan(together[2]).all()
    for i in (0, 1, 3):
        np.testing.assert_allclose(together[i], alone(Y[i]), rtol=1e-13)


def test_jit_equals_eager() -> None:
    chain = draw("two effects", 12)
    stats = chain.statistics("orthogonal")
    theta = thetas(chain, 12)[0]
    np.testing.assert_allclose(deviance_at(theta, stats), deviance(theta, stats), rtol=1e-13)


@pytest.mark.parametrize("form", ["moments", "orthogonal"])
def test_float32_in_gives_float32_out(form: str) -> None:
    chain = draw("two levels", 13)
    single = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float32) if np.issubdtype(leaf.dtype, np.floating) else leaf,
        jax.tree.map(np.asarray, chain.statistics(form)),
    )
    theta = np.array([0.8, 0.1, 0.5, 1.2])
    value, gradient = compiled(jax.value_and_grad(deviance))(theta.astype(np.float32), single)
    assert value.dtype == gradient.dtype == jnp.float32
    np.testing.assert_allclose(value, deviance_at(theta, chain.statistics(form)), rtol=1e-5)


def test_parameters_that_are_not_numbers_give_nan_and_raise_nothing() -> None:
    chain = draw("two effects", 14)
    assert np.isnan(both(np.array([1.0, np.nan, 1.0]), chain.statistics("orthogonal"))).all()


@pytest.mark.parametrize("theta", [1e-8, 1.0, 1e4, 1e8])
def test_the_orthogonal_form_keeps_its_digits_at_any_variance_ratio(theta: float) -> None:
    m, k = 18, 5
    rng = np.random.default_rng(15)
    y = rng.normal(size=(m, k)) + 3 * rng.normal(size=(m, 1))
    one = np.ones((m * k, 1))
    grouping = Grouping(one, np.repeat(np.arange(m), k), m, "g")
    terms = (Term(0, 0, covariance_structure("unstructured", 1)),)
    stats = reduce_rows(y.ravel(), one, [grouping], terms).stats
    within = np.sum((y - y.mean(axis=1, keepdims=True)) ** 2)
    between = k * np.sum((y.mean(axis=1) - y.mean()) ** 2)
    ratio, n = 1 + k * theta**2, m * k
    expected = m * np.log(ratio) + n * (1 + np.log(2 * np.pi * (within + between / ratio) / n))
    np.testing.assert_allclose(both(np.array([theta]), stats)[0], expected, rtol=1e-13)


def test_derivatives_reach_the_data() -> None:
    chain = draw("two levels", 16, weights=True)
    rng = np.random.default_rng(16)
    theta = np.array([0.8, 0.1, 0.5, 1.2])
    relative = chain.covariances(theta)
    data = (chain.y, chain.X, chain.Z, chain.weights)
    codes = [jnp.asarray(code) for code in chain.codes]

    def ours(y, X, Z, weights):  # type: ignore[no-untyped-def]
        stats = summarise(y, X, Z, codes, num_groups=chain.sizes, weights=weights)
        return deviance(theta, stats)

    def dense(y, X, Z, weights):  # type: ignore[no-untyped-def]
        return -2 * Chain(y, X, Z, chain.codes, chain.terms, weights).dense().profiled(relative, "reml").llf

    gradient = compiled(jax.grad(ours, argnums=(0, 1, 2, 3)))(*data)
    h = 1e-5
    for moved in range(4):
        direction = [
            jax.tree.map(lambda a, on=(i == moved): on * rng.normal(size=a.shape), a)
            for i, a in enumerate(data)
        ]
        above, below = (
            jax.tree.map(lambda a, d, s=s: a + s * h * d, data, tuple(direction)) for s in (1, -1)
        )
        slope = sum(
            jax.tree.leaves(jax.tree.map(lambda g, d: float(np.sum(g * d)), gradient, tuple(direction)))
        )
        assert slope == pytest.approx((dense(*above) - dense(*below)) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("weights", [False, True])
def test_the_marginal_likelihood_is_a_normal_density(weights: bool) -> None:
    chain = draw("two effects", 17, weights)
    rng = np.random.default_rng(17)
    root = rng.normal(size=(2, 2))
    beta, G, sigma = rng.normal(size=P), root @ root.T + 0.2 * np.eye(2), 1.3
    model = chain.dense()
    expected = multivariate_normal.logpdf(chain.y, chain.X @ beta, model.covariance((G,), sigma))

    def ours(beta: jax.Array, G: jax.Array, sigma: jax.Array) -> jax.Array:
        return marginal_loglik(
            chain.y, chain.X, chain.Z[0], chain.codes[0], beta, G, sigma, num_groups=18, weights=chain.weights
        )

    value, (d_beta, d_G, d_sigma) = compiled(jax.value_and_grad(ours, argnums=(0, 1, 2)))(beta, G, sigma)
    assert value == pytest.approx(expected, rel=VALUE)
    h = 1e-5

    def density(beta: np.ndarray, G: np.ndarray, sigma: float) -> float:
        return model.loglik((G,), sigma, "ml", beta)

    step = np.array([0.3, -0.5, 0.8])
    assert d_beta @ step == pytest.approx(
        (density(beta + h * step, G, sigma) - density(beta - h * step, G, sigma)) / (2 * h), rel=1e-6
    )
    move = np.array([[1.0, 0.4], [0.4, -0.5]])
    assert np.sum(d_G * move) == pytest.approx(
        (density(beta, G + h * move, sigma) - density(beta, G - h * move, sigma)) / (2 * h), rel=1e-6
    )
    assert d_sigma == pytest.approx(
        (density(beta, G, sigma + h) - density(beta, G, sigma - h)) / (2 * h), rel=1e-6
    )
