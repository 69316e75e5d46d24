"""The differentiable fit against whole fits of the front end, and its derivatives against refits."""

import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.model_arrays import Arrays
from jaxmixed.precision import double_precision
from jaxmixed.solution import Solution, _inverse_on_face, solve
from jaxmixed.statistics import summarise
from tests.support.closeness import assert_close_to_the_largest
from tests.support.compilation import LIKE_FITS
from tests.support.fits import quietly

FORMULA = "Reaction ~ Days + (Days | Subject)"
jit = partial(jax.jit, compiler_options=LIKE_FITS)
STEP = 1e-3
"""Of central differences, relative to the size of what is changed."""


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with double_precision():
        yield


@cache
def model() -> Arrays:
    return jm.arrays(FORMULA, jm.datasets.load("sleepstudy"))


def numbers(found: Solution) -> jax.Array:
    """All estimates in one vector: beta (2), theta (3), sigma, log-likelihood, a group's effects (2)."""
    return jnp.concatenate(
        [found.beta, found.theta, jnp.stack([found.sigma, found.loglik]), found.effects[0][:, 3]]
    )


def numbers_of(fit: jm.MixedResults) -> np.ndarray:
    group = fit.random_terms[0].group
    return np.concatenate([fit.params, fit.theta, [fit.sigma, fit.llf], fit.ranef()[group].to_numpy()[3]])


def evaluate(
    y: jax.Array, x: jax.Array, weights: jax.Array, rows: jax.Array, groups: jax.Array, method="reml"
):  # type: ignore[no-untyped-def]
    columns = jnp.stack([jnp.ones_like(x), x], axis=1)
    stats = model().summarise(y=y, X=columns, Z=[columns], weights=weights, frequencies=[rows, groups])
    return numbers(solve(stats, method=method))


estimates = jit(evaluate, static_argnames="method")


def arguments() -> list[jax.Array]:
    own = model()
    return [jnp.asarray(a) for a in (own.y, own.X[:, 1], np.ones(180), np.ones(180), np.ones(18))]


@cache
def jacobians() -> tuple[np.ndarray, ...]:
    with double_precision():
        found = jit(jax.jacrev(evaluate, argnums=(0, 1, 2, 3, 4)))(*arguments())
        return tuple(np.asarray(one) for one in found)


def refit(y: np.ndarray, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A whole fit from the data frame on."""
    data = jm.datasets.load("sleepstudy").assign(Reaction=y, Days=x, w=weights)
    return numbers_of(quietly(FORMULA, data, weights="w"))


@pytest.mark.parametrize("method", ["reml", pytest.param("ml", marks=pytest.mark.slow)])
def test_it_is_the_fit(method: str) -> None:
    fit = jm.mixed(FORMULA, jm.datasets.load("sleepstudy"), method=method)
    np.testing.assert_allclose(estimates(*arguments(), method=method), numbers_of(fit), rtol=1e-8)


def test_a_batch_is_the_fits_one_by_one_singular_ones_included(
    rng: np.random.Generator,
) -> None:
    groups, effects = model().groups[0], rng.normal(size=(2, 18, 60)) * np.repeat([0, 0.3, 1], 20)
    Y = rng.normal(size=(180, 60)) + effects[0, groups] + 0.1 * effects[1, groups] * model().X[:, 1:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jm.JaxMixedWarning)
        many = jm.fit_many("~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"), responses=Y)
    found = jit(jax.vmap(lambda y: solve(model().summarise(y=y))))(jnp.asarray(Y.T))
    singular = np.asarray(~found.free).any(axis=1)
    assert 10 < singular.sum() < 50
    np.testing.assert_array_equal(singular, many.is_singular)
    np.testing.assert_array_equal(found.converged, many.converged)
    np.testing.assert_allclose(found.loglik, many.llf, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.theta, many.theta, atol=1e-6)
    np.testing.assert_allclose(found.beta, many.params, atol=1e-8)
    np.testing.assert_allclose(np.sqrt(jnp.diagonal(found.cov_beta, axis1=1, axis2=2)), many.bse, rtol=1e-7)
    assert (found.status[found.converged] == 0).all()
    assert np.abs(found.gradient[~singular]).max() < 1e-6


@pytest.mark.parametrize(
    ("number", "row"), [(0, 0), (0, 97), (1, 40), (2, 140)], ids=["y", "y'", "x", "weight"]
)
def test_derivatives_are_differences_of_whole_refits(number: int, row: int) -> None:
    def at(step: float) -> np.ndarray:
        changed = [np.array(one) for one in arguments()[:3]]
        changed[number][row] += step
        return refit(*changed)

    step = STEP * max(1.0, np.abs(arguments()[number]).max())
    difference = (at(step) - at(-step)) / (2 * step)
    found = jacobians()[number][:, row]
    np.testing.assert_allclose(found, difference, rtol=1e-5, atol=1e-6 * np.abs(difference).max())


@pytest.mark.slow
@pytest.mark.exhaustive
def test_forward_and_reverse_derivatives_are_each_others_transpose(rng: np.random.Generator) -> None:
    directions = [jnp.asarray(rng.normal(size=one.shape)) for one in arguments()]
    _, tangent = jit(lambda args, change: jax.jvp(evaluate, args, change))(
        tuple(arguments()), tuple(directions)
    )
    expected = sum(J @ direction for J, direction in zip(jacobians(), directions, strict=True))
    assert_close_to_the_largest(tangent, expected, 1e-9)


@cache
def along(direction: int) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """All estimates, and their second derivatives, along a line through the arguments."""
    rng = np.random.default_rng(direction)
    start = arguments()
    change = [
        jnp.asarray(s * rng.normal(size=one.shape))
        for s, one in zip((10, 0.1, 0.1, 0.1, 0.1), start, strict=True)
    ]

    def line(t: jax.Array) -> jax.Array:
        return evaluate(*(one + t * d for one, d in zip(start, change, strict=True)))

    first = jit(jax.jacfwd(line))
    return first, jit(jax.jacfwd(jax.jacrev(line)))


@pytest.mark.slow
def test_second_derivatives_are_differences_of_first_ones() -> None:
    first, second = along(1)
    step = 1e-4
    difference = (first(step) - first(-step)) / (2 * step)
    np.testing.assert_allclose(second(0.0), difference, rtol=1e-5, atol=1e-6)


def test_a_frequency_of_zero_is_a_deletion() -> None:
    data = jm.datasets.load("sleepstudy")
    subjects = data["Subject"].astype("category")
    rows = np.ones(180)
    rows[25] = 0
    y, x, weights, _, groups = arguments()
    expected = jm.mixed(FORMULA, data.drop(index=25))
    np.testing.assert_allclose(
        estimates(y, x, weights, jnp.asarray(rows), groups), numbers_of(expected), rtol=1e-7
    )
    without = np.ones(18)
    without[7] = 0
    expected = jm.mixed(FORMULA, data[subjects.cat.codes != 7])
    np.testing.assert_allclose(
        estimates(y, x, weights, jnp.ones(180), jnp.asarray(without)), numbers_of(expected), rtol=1e-7
    )


@pytest.mark.parametrize(("number", "at"), [(3, 11), (4, 5)], ids=["row", "group"])
def test_derivatives_in_frequencies_are_differences(number: int, at: int) -> None:
    def value(step: float) -> np.ndarray:
        changed = list(arguments())
        changed[number] = changed[number].at[at].add(step)
        return np.asarray(estimates(*changed))

    difference = (value(STEP) - value(-STEP)) / (2 * STEP)
    np.testing.assert_allclose(jacobians()[number][:, at], difference, rtol=1e-4, atol=1e-6)


def test_a_start_changes_nothing_but_the_work() -> None:
    own = one_way(zero=False)[1]

    def value(start: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = solve(own.summarise(), start=start)
        return jnp.concatenate([found.beta, found.theta, found.sigma[None]]), found.evaluations

    run = jit(lambda start: jax.jvp(value, (start,), (jnp.ones(1),)))
    (far, many), _ = run(jnp.array([5.0]))
    (near, few), (change, _) = run(far[1:2])
    np.testing.assert_allclose(near, far, rtol=1e-9)
    assert few <= 3 < many
    np.testing.assert_array_equal(change, np.zeros(3))


# On the boundary


@cache
def one_way(zero: bool) -> tuple[pd.DataFrame, Arrays]:
    name = "dyestuff2" if zero else "dyestuff"
    data = jm.datasets.load(name)
    return data, jm.arrays("Yield ~ 1 + (1 | Batch)", data)


def test_a_variance_of_zero_stays_there_and_the_rest_is_a_linear_model() -> None:
    data, own = one_way(zero=True)
    found = jit(solve)(own.summarise())
    assert found.singular
    assert found.converged
    assert found.theta.tolist() == [0.0]
    np.testing.assert_allclose(found.sigma, data["Yield"].std(ddof=1), rtol=1e-12)
    J = jit(jax.jacrev(lambda y: numbers_at_zero(solve(own.summarise(y=y)))))(jnp.asarray(own.y))
    n, y = len(data), data["Yield"].to_numpy()
    np.testing.assert_allclose(J[0], np.full(n, 1 / n), rtol=1e-10)
    np.testing.assert_array_equal(J[1], np.zeros(n))
    np.testing.assert_allclose(J[2], (y - y.mean()) / (n - 1) / y.std(ddof=1), rtol=1e-9, atol=1e-12)


def numbers_at_zero(found: Solution) -> jax.Array:
    return jnp.concatenate([found.beta, found.theta, found.sigma[None]])


@pytest.mark.slow
def test_derivatives_along_a_face_are_those_of_refits_that_stay_there(rng: np.random.Generator) -> None:
    """A correlation of one: the first column of the factor is free, the second is not."""
    x, groups = np.tile(np.arange(6.0), 12), np.repeat(np.arange(12), 6)
    data = pd.DataFrame({"x": x, "g": groups})
    data["y"] = rng.normal(size=72) + (1 + 0.5 * x) * rng.normal(size=12)[groups]
    formula = "y ~ x + (x | g)"
    own = jm.arrays(formula, data)

    def value(y: jax.Array) -> jax.Array:
        return numbers(solve(own.summarise(y=y)))

    assert jit(solve)(own.summarise()).free.tolist() == [True, True, False]
    direction = rng.normal(size=72)

    def at(step: float) -> np.ndarray:
        fit = quietly(formula, data.assign(y=data["y"] + step * direction))
        assert fit.is_singular
        return numbers_of(fit)

    difference = (at(STEP) - at(-STEP)) / (2 * STEP)
    _, tangent = jit(lambda y, d: jax.jvp(value, (y,), (d,)))(own.y, direction)
    np.testing.assert_allclose(tangent, difference, rtol=1e-5, atol=1e-6)


def test_what_the_data_do_not_determine_has_no_derivative() -> None:
    H, free = jnp.array([[1.0, 1.0, 0.2], [1.0, 1.0, 0.1], [0.2, 0.1, 2.0]]), jnp.array([True, True, False])
    assert np.isnan(_inverse_on_face(H, free)[:2, :2]).all()
    held = _inverse_on_face(H, jnp.array([True, False, True]))
    np.testing.assert_allclose(held[::2, ::2], np.linalg.inv(H[::2, ::2]), rtol=1e-12)
    np.testing.assert_array_equal(held[1], np.zeros(3))


# Other models


def test_a_model_without_random_effects_is_least_squares(rng: np.random.Generator) -> None:
    y, X = rng.normal(size=20), np.column_stack([np.ones(20), rng.normal(size=20)])
    found = solve(summarise(y, X, [], [], num_groups=[]))
    beta, rss, *_ = np.linalg.lstsq(X, y)
    np.testing.assert_allclose(found.beta, beta, rtol=1e-12)
    np.testing.assert_allclose(found.sigma, np.sqrt(rss[0] / 18), rtol=1e-12)
    assert found.converged
    assert found.effects == ()


def test_crossed_factors_are_fitted_from_arrays_and_from_the_front_ends_statistics() -> None:
    data = jm.datasets.load("penicillin")
    fit = jm.mixed("diameter ~ 1 + (1 | plate) + (1 | sample)", data)
    own = jm.arrays("diameter ~ 1 + (1 | plate) + (1 | sample)", data)
    assert own.crossed
    order = [own.group_names.index(term.group) for term in fit.random_terms]
    found = jit(solve)(own.summarise())
    np.testing.assert_allclose(found.theta[np.array(order)], fit.theta, rtol=1e-7)
    np.testing.assert_allclose([found.sigma, found.loglik], [fit.sigma, fit.llf], rtol=1e-9)
    for position, term in zip(order, fit.random_terms, strict=True):
        np.testing.assert_allclose(found.effects[position].T, fit.ranef()[term.group], atol=1e-8)


@pytest.mark.slow
def test_statistics_of_the_front_end_with_a_root_are_solved_alike() -> None:
    fit = jm.mixed("diameter ~ 1 + (1 | plate) + (1 | sample)", jm.datasets.load("penicillin"))
    found = jit(solve)(fit.state.stats)
    np.testing.assert_allclose([found.sigma, found.loglik], [fit.sigma, fit.llf], rtol=1e-9)
    np.testing.assert_allclose(np.sort(found.theta), np.sort(fit.theta), rtol=1e-7)


def test_nested_factors_with_several_terms_are_fitted_alike() -> None:
    data = jm.datasets.load("pastes")
    formula = "strength ~ 1 + (1 | batch/cask)"
    fit, own = jm.mixed(formula, data), jm.arrays(formula, data)
    assert not own.crossed
    found = jit(solve)(own.summarise())
    np.testing.assert_allclose(found.loglik, fit.llf, rtol=1e-10)
    np.testing.assert_allclose(found.theta, fit.theta, atol=1e-7)


def test_groups_that_share_an_entry_have_no_effects_of_their_own() -> None:
    fit = jm.mixed("Yield ~ 1 + (1 | Batch)", one_way(zero=False)[0])
    compact = fit.state.compact
    assert compact.levels[0].cross is None
    found = jit(solve)(compact)
    assert found.effects == ()
    np.testing.assert_allclose([found.sigma, *found.theta], [fit.sigma, *fit.theta], rtol=1e-8)


def test_a_second_data_set_of_the_same_shape_is_not_traced_again() -> None:
    traces = 0

    @jit
    def run(y: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return solve(one_way(zero=False)[1].summarise(y=y)).sigma

    y = jnp.asarray(one_way(zero=False)[1].y)
    assert run(y) != run(y + jnp.arange(30.0))
    assert traces == 1


@pytest.mark.slow
def test_a_kernel_and_a_known_relationship_are_fitted_alike() -> None:
    data = jm.datasets.load("sleepstudy")
    apart = np.abs(np.subtract.outer(np.arange(18), np.arange(18)))
    family = jm.known(np.exp(-apart / 3), sorted(data["Subject"].unique()))
    for formula, structure in (
        ("Reaction ~ Days + (0 + C(Days) | Subject)", jm.kernels.ar1()),
        (FORMULA, family),
    ):
        fit = jm.mixed(formula, data, covariance={"Subject": structure})
        own = jm.arrays(formula, data, covariance={"Subject": structure})
        found = jit(solve)(own.summarise())
        np.testing.assert_allclose([found.sigma, found.loglik], [fit.sigma, fit.llf], rtol=1e-9)
        np.testing.assert_allclose(found.theta, fit.theta, rtol=1e-6)
        np.testing.assert_allclose(found.effects[0].T, fit.ranef()["Subject"], atol=1e-4)
