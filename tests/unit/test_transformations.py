"""Likelihood and fit under JAX's transformations, against the dense density that JAX differentiates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.stats import multivariate_normal

from jaxmixed.likelihood import Parameters, deviance, loglik, marginal_loglik
from jaxmixed.precision import double_precision
from jaxmixed.solution import solve
from jaxmixed.statistics import SufficientStatistics, summarise
from tests.support.closeness import assert_close_to_the_largest
from tests.support.compilation import QUICKLY
from tests.support.dense import Block, DenseModel
from tests.support.dense_jax import Rows, log_density, one_way_fit, profiled_deviance

EXACT = 1e-9
"""Relative to the largest element; derivatives of the dense density lose digits to the inverse of V."""

DIFFERENCE = 1e-6
"""Relative to the largest element: truncation of central differences."""

SINGLE = 2e-5
"""Relative to the largest element, of float32 against float64: some hundred times its rounding, 6e-8."""

N, SIZES = 24, (6, 2)
FINE = np.concatenate([np.arange(6), [0, 0, 1, 2, 2, 2, 2, 3, 3, 5, 5, 5, 4, 3, 0, 1, 5, 2]])[::-1].copy()
CODES = (FINE, np.array([0, 0, 1, 1, 0, 1])[FINE])

Vector = jax.Array | np.ndarray


fast_jit = partial(jax.jit, compiler_options=QUICKLY)


@dataclass(frozen=True)
class Case:
    """A function of a vector of parameters and of rows, from the library and from the definition."""

    prepare: Callable[[Rows], Any]  # rows -> what `ours` takes of them
    ours: Callable[[Vector, Any], jax.Array]
    dense: Callable[[Vector, Rows], jax.Array]
    points: np.ndarray  # (points, k)
    num_factors: int

    def of_rows(self, x: Vector, rows: Rows) -> jax.Array:
        return self.ours(x, self.prepare(rows))


def draw(seed: int, num_factors: int) -> Rows:
    rng = np.random.default_rng(seed)
    X = np.column_stack([np.ones(N), rng.normal(size=N)])
    Z = (X, np.ones((N, 1)))[:num_factors]
    effects = rng.normal(size=(6, 2))[CODES[0]] + rng.normal(size=(2, 1))[CODES[1]]
    y = X @ [1.0, -0.5] + np.sum(X * effects, axis=1) + rng.normal(size=N)
    return Rows(y, X, Z, rng.uniform(0.5, 2, N))


def reduce(rows: Rows, **options: Any) -> SufficientStatistics:
    y, X, Z, weights = rows
    return summarise(y, X, Z, CODES[: len(Z)], num_groups=SIZES[: len(Z)], weights=weights, **options)


def symmetric(a: Vector) -> jax.Array:
    """Matrix of order two from its elements."""
    return jnp.stack([jnp.stack([a[0], a[1]]), jnp.stack([a[1], a[2]])])


def covariances(theta: Vector, num_factors: int) -> tuple[jax.Array, ...]:
    """Relative covariances of lme4's theta."""
    a, b, c = theta[:3]
    first = symmetric(jnp.stack([a * a, a * b, b * b + c * c]))
    return (first, theta[3:4, None] ** 2)[:num_factors]


THETAS = np.array([[0.8, 0.3, 0.5, 0.9], [1.1, -0.4, 0.0, 0.0], [-0.6, 0.2, 0.7, -1.2]])
"""Ordinary; on the boundary; with columns of the other sign."""

NATURAL = np.array([[0.7, -0.2, 1.3], [0.2, 0.4, 0.9], [1.5, -1.0, 0.6]])
"""Fixed effects, and sigma."""

ELEMENTS = np.array([[1.5, 0.3, 0.8, 0.7], [1.0, -0.5, 0.25, 0.0], [0.0, 0.0, 0.0, 0.4]])
"""Elements of absolute covariances: regular; of rank one, and zero; zero."""


def deviance_case(num_factors: int, method: str, weighted: bool) -> Case:
    def prepare(rows: Rows) -> SufficientStatistics:
        return reduce(rows if weighted else rows._replace(weights=None))

    def ours(theta: Vector, stats: SufficientStatistics) -> jax.Array:
        return deviance(theta, stats, method=method)

    def dense(theta: Vector, rows: Rows) -> jax.Array:
        rows = rows if weighted else rows._replace(weights=np.ones(N))
        return profiled_deviance(rows, CODES[:num_factors], covariances(theta, num_factors), method)

    return Case(prepare, ours, dense, THETAS[:, : 2 + num_factors], num_factors)


def loglik_case(num_factors: int, method: str) -> Case:
    def ours(x: Vector, stats: SufficientStatistics) -> jax.Array:
        return loglik(Parameters(x[:2], x[3:], x[2]), stats, method=method)

    def dense(x: Vector, rows: Rows) -> jax.Array:
        covs = [x[2] ** 2 * G for G in covariances(x[3:], num_factors)]
        return log_density(rows, CODES[:num_factors], covs, x[2], x[:2] if method == "ml" else None)

    points = np.hstack([NATURAL, THETAS[:, : 2 + num_factors]])
    return Case(reduce, ours, dense, points, num_factors)


def marginal_case(num_factors: int) -> Case:
    def absolute(x: Vector) -> tuple[jax.Array, ...]:
        return (symmetric(x[3:6]), x[6:7, None])[:num_factors]

    def ours(x: Vector, rows: Rows) -> jax.Array:
        Z, codes, G, m = rows.Z, CODES, absolute(x), SIZES
        if num_factors == 1:
            Z, codes, G, m = rows.Z[0], CODES[0], G[0], SIZES[0]
        y, X, _, weights = rows
        return marginal_loglik(y, X, Z, codes, x[:2], G, x[2], num_groups=m, weights=weights)

    def dense(x: Vector, rows: Rows) -> jax.Array:
        return log_density(rows, CODES[:num_factors], absolute(x), x[2], x[:2])

    points = np.hstack([NATURAL, ELEMENTS[:, : 2 + num_factors]])
    return Case(lambda rows: rows, ours, dense, points, num_factors)


def fit_case() -> Case:
    """All estimates of a random intercept in one number, as a function of changes of the response."""
    codes, rng = CODES[0], np.random.default_rng(5)
    direction, share = rng.normal(size=N), rng.normal(size=11)
    indicators = (codes[:, None] == np.arange(6)).astype(float)

    def changed(x: Vector, rows: Rows) -> Rows:
        y = jnp.asarray(rows.y)
        dtype = y.dtype
        B = jnp.column_stack([jnp.asarray(indicators, dtype), rows.X[:, 1:]])
        explained = B @ jnp.linalg.solve(B.T @ B, B.T @ y)
        y = y + x[0] * explained + x[1] * jnp.asarray(direction, dtype)
        return rows._replace(y=y, Z=(jnp.ones((N, 1), dtype),))

    def mixed(*estimates: jax.Array) -> jax.Array:
        flat = jnp.concatenate([jnp.ravel(a) for a in estimates])
        return flat @ jnp.asarray(share, flat.dtype)

    def ours(x: Vector, rows: Rows) -> jax.Array:
        found = solve(reduce(changed(x, rows)))
        return mixed(found.theta, found.beta, found.sigma, found.loglik, found.effects[0])

    def dense(x: Vector, rows: Rows) -> jax.Array:
        return mixed(*one_way_fit(changed(x, rows), codes))

    # The last leaves of the groups' differences too little for a variance above zero.
    return Case(lambda rows: rows, ours, dense, np.array([[0.0, 0.3], [0.6, -0.2], [-0.95, 0.1]]), 1)


CASES = {
    "deviance": deviance_case(2, "reml", True),
    "loglik": loglik_case(1, "ml"),
    "marginal_loglik": marginal_case(2),
    "deviance, ml": deviance_case(1, "ml", False),
    "loglik, reml": loglik_case(2, "reml"),
    "marginal_loglik, one factor": marginal_case(1),
    "solve": fit_case(),
}


def cases(*quick: str, slow: Iterable[str]) -> list[Any]:
    """Names of cases, some of them tested only where there is time."""
    return [*quick, *(pytest.param(name, marks=pytest.mark.slow) for name in slow)]


QUICK = ("deviance", "loglik", "marginal_loglik")


@pytest.fixture(autouse=True)
def _settings_are_left_alone() -> Iterator[None]:
    before = dict(jax.config.values)
    yield
    assert dict(jax.config.values) == before


@pytest.fixture
def double() -> Iterator[None]:
    with double_precision():
        yield


class Known(dict[str, Any]):
    """Value, gradient, Hessian and a direction of a function at every point, from the definition."""


@pytest.fixture(scope="module")
def known() -> Callable[[str], Known]:
    """The dense density of each case, differentiated once."""
    kept: dict[str, Known] = {}

    def of_case(name: str) -> Known:
        if name not in kept:
            case = CASES[name]
            rows = draw(1, case.num_factors)

            def everything(x: Vector) -> dict[str, jax.Array]:
                def f(x: Vector) -> jax.Array:
                    return case.dense(x, rows)

                return {"f": f(x), "g": jax.grad(f)(x), "H": jax.hessian(f)(x)}

            with double_precision():
                found = jax.tree.map(np.asarray, fast_jit(jax.vmap(everything))(case.points))
            direction = np.random.default_rng(2).normal(size=case.points.shape)
            kept[name] = Known(**found, v=direction)
        return kept[name]

    return of_case


Function = Callable[[Vector], jax.Array]
Transformed = Callable[[Function, Vector, Vector], Any]

TRANSFORMATIONS: dict[str, tuple[Transformed, str]] = {
    "value": (lambda f, x, v: f(x), "f"),
    "grad": (lambda f, x, v: jax.grad(f)(x), "g"),
    "value_and_grad": (lambda f, x, v: jax.value_and_grad(f)(x), "f g"),
    "jvp": (lambda f, x, v: jax.jvp(f, (x,), (v,)), "f gv"),
    "vjp": (lambda f, x, v: jax.vjp(f, x)[1](v[0])[0], "v0g"),
    "linearize": (lambda f, x, v: jax.linearize(f, x)[1](v), "gv"),
    "jacfwd": (lambda f, x, v: jax.jacfwd(f)(x), "g"),
    "jacrev": (lambda f, x, v: jax.jacrev(f)(x), "g"),
    "checkpoint": (lambda f, x, v: jax.grad(jax.checkpoint(f))(x), "g"),
    "forward over reverse": (lambda f, x, v: jax.hessian(f)(x), "H"),
    "reverse over forward": (lambda f, x, v: jax.jacrev(jax.jacfwd(f))(x), "H"),
    "reverse over reverse": (lambda f, x, v: jax.jacrev(jax.grad(f))(x), "H"),
    "forward over forward": (lambda f, x, v: jax.jacfwd(jax.jacfwd(f))(x), "H"),
    "product with the hessian": (lambda f, x, v: jax.jvp(jax.grad(f), (x,), (v,)), "g Hv"),
    "gradient of a slope": (lambda f, x, v: jax.grad(lambda x: jax.grad(f)(x) @ v)(x), "Hv"),
    "gradient of a forward slope": (lambda f, x, v: jax.grad(lambda x: jax.jvp(f, (x,), (v,))[1])(x), "Hv"),
}
TOGETHER = ("reverse over forward", "value_and_grad", "forward over reverse")


def expected(what: str, of: Known) -> Any:
    f, g, H, v = (of[letter] for letter in "fgHv")
    gv, Hv = np.sum(g * v, axis=1), np.einsum("bij,bj->bi", H, v)
    named = {"f": f, "g": g, "H": H, "gv": gv, "Hv": Hv, "v0g": v[:, :1] * g}
    parts = tuple(named[part] for part in what.split())
    return parts if len(parts) > 1 else parts[0]


def assert_all_close(found: Any, wanted: Any, tolerance: float = EXACT) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert_close_to_the_largest(a, b, tolerance)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", cases(*QUICK, slow=list(CASES)[3:]))
def test_batches_of_derivatives_are_those_of_the_dense_density(
    name: str, known: Callable[[str], Known]
) -> None:
    case, of = CASES[name], known(name)

    def program(x: Vector, v: Vector, data: Any) -> dict[str, Any]:
        return {
            transformation: TRANSFORMATIONS[transformation][0](lambda x: case.ours(x, data), x, v)
            for transformation in (TOGETHER[1:] if name == "solve" else TOGETHER)
        }

    data = fast_jit(case.prepare)(draw(1, case.num_factors))
    found = fast_jit(jax.vmap(program, in_axes=(0, 0, None)))(case.points, of["v"], data)
    for transformation, values in found.items():
        assert_all_close(values, expected(TRANSFORMATIONS[transformation][1], of))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("name", "transformation"),
    [
        *(("deviance", transformation) for transformation in TRANSFORMATIONS),
        *(("marginal_loglik", transformation) for transformation in list(TRANSFORMATIONS)[7:]),
        *(("solve", transformation) for transformation in list(TRANSFORMATIONS)[-5:]),
    ],
)
def test_each_transformation_alone_in_a_batch_and_not_compiled(
    name: str, transformation: str, known: Callable[[str], Known]
) -> None:
    case, of = CASES[name], known(name)
    rows = draw(1, case.num_factors)
    transform, what = TRANSFORMATIONS[transformation]

    def program(x: Vector, v: Vector) -> Any:
        return transform(lambda x: case.of_rows(x, rows), x, v)

    wanted = expected(what, of)
    assert_all_close(fast_jit(jax.vmap(program))(case.points, of["v"]), wanted)
    if name != "solve" and transformation in ("value", "grad", "product with the hessian"):
        first = jax.tree.map(lambda a: a[0], wanted)
        assert_all_close(program(case.points[0], of["v"][0]), first)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", cases("loglik", slow=("marginal_loglik", "solve")))
def test_batches_maps_and_scans_over_data_sets_equal_the_dense_density(name: str) -> None:
    case = CASES[name]
    rows = jax.tree.map(lambda *sets: np.stack(sets), *(draw(seed, case.num_factors) for seed in range(4)))

    def scanned(x: Vector, many: Any) -> jax.Array:
        step = jax.checkpoint(lambda total, data: (total + case.ours(x, data), None))
        return jax.lax.scan(step, jnp.zeros(()), many)[0]

    def program(x: Vector, rows: Rows) -> tuple[Any, Any, Any]:
        many, slopes = jax.vmap(case.prepare)(rows), jax.value_and_grad(case.ours)
        return (
            jax.vmap(slopes, in_axes=(None, 0))(x, many),
            jax.lax.map(lambda data: slopes(x, data), many),
            jax.value_and_grad(scanned)(x, many),
        )

    x = case.points[0]
    batched, mapped, total = fast_jit(program)(x, rows)
    wanted = fast_jit(jax.vmap(jax.value_and_grad(case.dense), in_axes=(None, 0)))(x, rows)
    assert_all_close(batched, wanted)
    assert_all_close(mapped, wanted)
    assert_all_close(total, jax.tree.map(lambda a: a.sum(axis=0), wanted))


class Network(NamedTuple):
    """Parameters of a small network: one hidden layer, and a weight for the response."""

    first: jax.Array  # (inputs, hidden)
    second: jax.Array  # (hidden, features)
    shift: jax.Array  # scalar


def through(network: Network, rows: Rows, inputs: np.ndarray) -> Rows:
    """Rows whose X, Z and y are outputs of a network."""
    features = jnp.tanh(jnp.tanh(inputs @ network.first) @ network.second)
    X = jnp.column_stack([jnp.ones(N, features.dtype), features])
    Z = (X[:, :2], *rows.Z[1:])
    return rows._replace(X=X, Z=Z, y=rows.y + jnp.exp(network.shift) * features[:, 0])


def draw_network(seed: int) -> tuple[Network, np.ndarray]:
    rng = np.random.default_rng(seed)
    return Network(rng.normal(size=(3, 4)), rng.normal(size=(4, 1)), np.array(0.3)), rng.normal(size=(N, 3))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", cases("deviance", slow=("marginal_loglik", "solve")))
def test_gradients_reach_the_network_that_makes_the_data(name: str) -> None:
    case, (network, inputs) = CASES[name], draw_network(4)
    rows, x = draw(1, case.num_factors), case.points[0]
    flat, unravel = ravel_pytree(network)

    def ours(network: Network) -> jax.Array:
        return case.of_rows(x, through(network, rows, inputs))

    def dense(flat: jax.Array) -> jax.Array:
        return case.dense(x, through(unravel(flat), rows, inputs))

    steps = 1e-5 * np.eye(len(flat))
    around = fast_jit(jax.vmap(dense))(np.concatenate([flat + steps, flat - steps]))
    differences = (around[: len(flat)] - around[len(flat) :]) / 2e-5
    found, _ = ravel_pytree(fast_jit(jax.grad(ours))(network))
    assert_close_to_the_largest(found, differences, DIFFERENCE)


def in_single(tree: Any) -> Any:
    return jax.tree.map(lambda a: np.asarray(a, np.float32), tree)


@pytest.mark.parametrize("name", cases("loglik", "marginal_loglik", slow=("solve",)))
def test_float32_data_give_float32_numbers_near_those_of_float64(
    name: str, known: Callable[[str], Known]
) -> None:
    case, of = CASES[name], known(name)
    slopes = jax.value_and_grad(case.of_rows)
    found = fast_jit(jax.vmap(slopes, in_axes=(0, None)))(
        in_single(case.points), in_single(draw(1, case.num_factors))
    )
    assert all(a.dtype == jnp.float32 for a in found)
    assert_all_close(found, (of["f"], of["g"]), SINGLE)


def dtypes_of(jaxpr: jax.extend.core.Jaxpr) -> set[Any]:
    """Types of all that a program computes, the programs inside it included."""
    found = {variable.aval.dtype for equation in jaxpr.eqns for variable in equation.outvars}
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: isinstance(v, jax.extend.core.Jaxpr)):
            inner = getattr(value, "jaxpr", value)  # of a closed one
            if isinstance(inner, jax.extend.core.Jaxpr):
                found |= dtypes_of(inner)
    return found


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", CASES)
def test_a_program_of_float32_stays_one_where_float64_is_allowed(name: str) -> None:
    case = CASES[name]
    x, rows = in_single((case.points[0], draw(1, case.num_factors)))
    program = jax.make_jaxpr(jax.value_and_grad(case.of_rows, argnums=(0, 1)))(x, rows)
    types = dtypes_of(program.jaxpr)
    assert np.dtype(np.float32) in types
    assert np.dtype(np.float64) not in types


@pytest.mark.parametrize("name", CASES)
def test_numpy_arrays_are_taken_in_the_precision_that_jax_is_set_to(name: str) -> None:
    case = CASES[name]
    rows = draw(1, case.num_factors)
    with jax.enable_x64(False):
        assert jax.eval_shape(lambda: case.of_rows(case.points[0], rows)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert jax.eval_shape(lambda: case.of_rows(case.points[0], rows)).dtype == jnp.float64


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", CASES)
def test_equal_shapes_are_traced_once(name: str) -> None:
    case, traces = CASES[name], 0

    def counted(x: Vector, data: Any) -> jax.Array:
        nonlocal traces
        traces += 1
        return case.ours(x, data)

    program = jax.jit(counted)
    for seed in range(3):
        data = jax.eval_shape(case.prepare, draw(seed, case.num_factors))
        program.eval_shape(case.points[seed], data)
    assert traces == 1


@pytest.mark.usefixtures("double")
def test_coordinates_change_neither_values_nor_derivatives() -> None:
    rows, theta = draw(1, 2), THETAS[0]

    def program(theta: Vector, rows: Rows) -> list[Any]:
        def of(theta: Vector, rows: Rows, standardise: bool) -> jax.Array:
            return deviance(theta, reduce(rows, standardise=standardise))

        return [jax.value_and_grad(of, argnums=(0, 1))(theta, rows, flag) for flag in (False, True)]

    plain, standardised = fast_jit(program)(theta, rows)
    assert_all_close(standardised, plain)


BAD_PARAMETERS: dict[str, tuple[int, float]] = {
    "sigma below zero": (2, -1.0),
    "sigma of zero": (2, 0.0),
    "a variance below zero": (3, -0.1),
    "a covariance beyond its variances": (4, 1.2),
    "a variance that is not a number": (6, np.nan),
    "an infinite variance": (5, np.inf),
    "a coefficient that is not a number": (0, np.nan),
}
BAD_ROWS: dict[str, tuple[str, float]] = {
    "a response that is not a number": ("y", np.nan),
    "an infinite response": ("y", np.inf),
    "a column that is not a number": ("X", np.nan),
    "a weight below zero": ("weights", -1.0),
}


@pytest.mark.usefixtures("double")
def test_outside_its_domain_the_marginal_density_is_nan_and_nothing_is_raised() -> None:
    case, rows = CASES["marginal_loglik"], draw(1, 2)
    number = len(BAD_PARAMETERS) + len(BAD_ROWS) + 1
    points = np.stack([case.points[0]] * number)
    many = jax.tree.map(lambda a: np.stack([a] * number), rows)
    for point, (position, value) in zip(points, BAD_PARAMETERS.values(), strict=False):
        point[position] = value
    for number, (name, value) in enumerate(BAD_ROWS.values(), len(BAD_PARAMETERS)):
        many._asdict()[name][number, 4] = value
    values, slopes = fast_jit(jax.vmap(jax.value_and_grad(case.ours)))(points, many)
    np.testing.assert_array_equal(np.isnan(values), [True] * (len(points) - 1) + [False])
    assert np.isfinite(slopes[-1]).all()


@pytest.mark.usefixtures("double")
def test_outside_its_domain_the_likelihood_is_nan_and_nothing_is_raised() -> None:
    case = CASES["loglik"]
    points = np.stack([case.points[0]] * 5)
    points[[0, 1, 2, 3], [2, 2, 3, 0]] = [-1.0, 0.0, np.nan, np.nan]
    data = fast_jit(case.prepare)(draw(1, 1))
    values = np.asarray(fast_jit(jax.vmap(case.ours, in_axes=(0, None)))(points, data))
    assert np.isnan(values[[0, 2, 3]]).all()
    assert not np.isfinite(values[1])
    assert np.isfinite(values[4])


def density(groups: Any, **options: Any) -> jax.Array:
    y, X, Z, weights = draw(1, 2)
    G = (jnp.eye(2), jnp.eye(1))
    return marginal_loglik(y, X, Z, groups, jnp.ones(2), G, 1.0, weights=weights, **options)


def test_the_number_of_groups_is_read_off_codes_that_are_known() -> None:
    for codes in (CODES, [jnp.asarray(code) for code in CODES]):
        given = jax.make_jaxpr(lambda codes=codes: density(codes, num_groups=SIZES))()
        assert str(jax.make_jaxpr(lambda codes=codes: density(codes))()) == str(given)


def test_traced_codes_need_the_number_of_groups() -> None:
    with pytest.raises(TypeError, match="num_groups is needed"):
        jax.make_jaxpr(density)(CODES)
    assert jax.eval_shape(partial(density, num_groups=SIZES), CODES).shape == ()


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("columns", ["none", "repeated"])
def test_the_marginal_density_takes_fixed_effects_of_any_rank(columns: str) -> None:
    rows, sigma = draw(1, 2), 0.8
    # One column twice, one without an element: features of a network do such things.
    X = np.zeros((N, 0)) if columns == "none" else np.column_stack([rows.X, rows.X[:, 1], np.zeros(N)])
    beta, G = np.arange(1.0, X.shape[1] + 1), (np.array([[1.5, 0.3], [0.3, 0.8]]), np.array([[0.7]]))
    blocks = tuple(Block(Z, code) for Z, code in zip(rows.Z, CODES, strict=True))
    V = DenseModel(rows.y, X, blocks, rows.weights).covariance(G, sigma)
    found = fast_jit(
        lambda beta: marginal_loglik(rows.y, X, rows.Z, CODES, beta, G, sigma, weights=rows.weights)
    )
    assert found(beta) == pytest.approx(multivariate_normal.logpdf(rows.y, X @ beta, V), rel=EXACT)


@pytest.mark.gpu
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", CASES)
def test_the_same_program_on_an_accelerator(name: str, known: Callable[[str], Known]) -> None:
    if jax.default_backend() == "cpu":
        pytest.skip("there is no accelerator")
    case, of = CASES[name], known(name)
    program = jax.jit(jax.vmap(jax.value_and_grad(case.of_rows), in_axes=(0, None)))
    found = program(case.points, draw(1, case.num_factors))
    assert {device.platform for leaf in found for device in leaf.devices()} == {jax.default_backend()}
    assert_all_close(found, (of["f"], of["g"]))
