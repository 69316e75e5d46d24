"""The minimisers on functions whose minima are known, and their status codes."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmixed.optim import (
    CONVERGED,
    ITERATION_LIMIT,
    MAX_ITERATIONS,
    MESSAGES,
    NEWTON_LIMIT,
    NO_DESCENT,
    NOT_FINITE,
    RUNNING,
    TOLERANCE,
    Evaluation,
    Function,
    OptimResult,
    advance,
    begin,
    evaluate,
    lbfgs,
    minimize,
    newton,
)
from jaxmixed.precision import double_precision
from tests.support.compilation import QUICKLY

CURVATURE = jnp.array([[4.0, 1.0, 0.5], [1.0, 3.0, -0.2], [0.5, -0.2, 2.0]], dtype=jnp.float32)
START = np.array([-1.2, 1.0])
MINIMUM = jnp.array([1.0, -2.0, 0.5], dtype=jnp.float32)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with double_precision():
        yield


def quadratic(x: jax.Array) -> tuple[jax.Array, Any]:
    d = x - MINIMUM
    return 0.5 * d @ CURVATURE @ d, None


def rosenbrock(x: jax.Array) -> tuple[jax.Array, Any]:
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2, None


def two_wells(x: jax.Array) -> tuple[jax.Array, Any]:
    """Minima at (0, +-1), a saddle at the origin."""
    return x[0] ** 2 + (x[1] ** 2 - 1) ** 2, None


def valley(x: jax.Array) -> tuple[jax.Array, Any]:
    """Minima all along the unit circle."""
    return (x @ x - 1) ** 2, None


def walled(x: jax.Array) -> tuple[jax.Array, Any]:
    """Minimum at 2; not a number for x <= 0."""
    return jnp.sum(x / 2 - jnp.log(x)), None


@cache
def program(
    minimiser: Callable[..., OptimResult], fun: Function, **options: Any
) -> Callable[..., OptimResult]:
    """Compiled once for each function and number of parameters: the start and the limit are data."""

    def minimise(start: jax.Array, limit: jax.Array) -> OptimResult:
        return minimiser(fun, start, max_evaluations=limit, **options)

    return jax.jit(minimise, compiler_options=QUICKLY)


def run(
    minimiser: Callable[..., OptimResult],
    fun: Function,
    start: Any,
    *,
    max_evaluations: int = MAX_ITERATIONS,
    **options: Any,
) -> OptimResult:
    return program(minimiser, fun, **options)(np.asarray(start, dtype=float), max_evaluations)


@pytest.mark.parametrize("minimiser", [newton, lbfgs])
@pytest.mark.parametrize(
    ("fun", "start", "minimum"),
    [
        (quadratic, [0.0, 0.0, 0.0], MINIMUM),
        (quadratic, [50.0, -80.0, 20.0], MINIMUM),
        (rosenbrock, [-1.2, 1.0], [1.0, 1.0]),
        (two_wells, [0.5, 0.3], [0.0, 1.0]),
        (two_wells, [0.5, -1e-3], [0.0, -1.0]),
        (walled, [0.01, 30.0], [2.0, 2.0]),
    ],
)
def test_the_minimum_is_found(
    minimiser: Callable[..., OptimResult], fun: Function, start: list[float], minimum: list[float]
) -> None:
    result = run(minimiser, fun, start)
    assert result.status == CONVERGED
    np.testing.assert_allclose(result.theta, minimum, atol=1e-7 if minimiser is newton else 1e-4)


def test_the_result_carries_the_derivatives_at_its_point() -> None:
    result = run(newton, rosenbrock, [-1.2, 1.0])
    at, (x, y) = result.evaluation, np.asarray(result.theta)
    np.testing.assert_allclose(at.value, 100 * (y - x**2) ** 2 + (1 - x) ** 2, atol=1e-15)
    gradient = [-400 * x * (y - x**2) - 2 * (1 - x), 200 * (y - x**2)]
    np.testing.assert_allclose(at.gradient, gradient, atol=1e-12)
    np.testing.assert_allclose(
        at.hessian, [[1200 * x**2 - 400 * y + 2, -400 * x], [-400 * x, 200]], rtol=1e-12
    )


def test_a_quadratic_takes_one_newton_step_and_a_look() -> None:
    result = run(newton, quadratic, [0.5, -1.0, 0.0])
    assert result.evaluations <= 3
    assert result.decrement <= TOLERANCE


def test_an_evaluation_holds_all_derivatives_of_both_outputs() -> None:
    def fun(x: jax.Array) -> tuple[jax.Array, Any]:
        return x[0] ** 2 * x[1], (jnp.exp(x[0]), jnp.stack([x[1], x[0] * x[1]]))

    at = jax.jit(partial(evaluate, fun), compiler_options=QUICKLY)(np.array([2.0, 3.0]))
    assert at.value == 12
    np.testing.assert_allclose(at.gradient, [12, 4])
    np.testing.assert_allclose(at.hessian, [[6, 4], [4, 0]])
    np.testing.assert_allclose(at.aux[1], [3, 6])
    np.testing.assert_allclose(at.aux_tangents[0], [np.exp(2), 0])
    np.testing.assert_allclose(at.aux_tangents[1], [[0, 3], [1, 2]])


def test_a_start_beside_a_saddle_leaves_it() -> None:
    result = run(newton, two_wells, [0.0, 1e-3])
    assert result.status == CONVERGED
    np.testing.assert_allclose(np.abs(result.theta), [0, 1], atol=1e-7)


def test_a_start_on_a_saddle_shows_its_negative_curvature() -> None:
    result = run(newton, two_wells, [0.0, 0.0])
    assert np.linalg.eigvalsh(result.evaluation.hessian)[0] < 0


def test_a_start_on_a_maximum_side_slope_descends() -> None:
    result = run(newton, lambda x: (jnp.sum(jnp.cos(x)), None), [0.3, -0.2])
    np.testing.assert_allclose(result.evaluation.value, -2, atol=1e-12)


@pytest.mark.parametrize("start", [[3.0, 4.0], [0.1, -0.05]])
def test_a_flat_valley_ends_on_its_floor(start: list[float]) -> None:
    result = run(newton, valley, start)
    assert result.status == CONVERGED
    assert result.evaluation.value < 1e-12
    assert result.evaluations < 30


def test_a_weak_negative_curvature_is_left_by_growing_steps() -> None:
    """Beside a curvature ten million times stronger, where a damping that knows one scale would crawl."""

    def saddle(x: jax.Array) -> tuple[jax.Array, Any]:
        return 1e3 * x[0] ** 2 + 1e-4 * (x[1] ** 2 - 1) ** 2, None

    result = run(newton, saddle, [0.3, 1e-5])
    assert result.status == CONVERGED
    np.testing.assert_allclose(np.abs(result.theta), [0, 1], atol=1e-6)
    assert result.evaluations < 40


def turned(theta: jax.Array, step: jax.Array) -> jax.Array:
    """A step along a circle about the origin, to which it is tangential."""
    size, moved = jnp.sqrt(theta @ theta), theta + step
    return moved * (size + theta @ step / size) / jnp.sqrt(moved @ moved)


def test_a_retraction_follows_a_curved_valley() -> None:
    """Steep across the unit circle and nearly flat along it: straight steps leave the valley at once."""

    def bend(x: jax.Array) -> tuple[jax.Array, Any]:
        return 1e4 * (jnp.sqrt(x @ x) - 1) ** 2 + (1 - x[1] / jnp.sqrt(x @ x)), None

    straight = run(newton, bend, [1.0, 0.1])
    curved = run(newton, bend, [1.0, 0.1], retract=turned)
    assert curved.status == CONVERGED
    np.testing.assert_allclose(curved.theta, [0.0, 1.0], atol=1e-6)
    assert 2 * curved.evaluations < straight.evaluations


def test_one_iteration_at_a_time_is_the_whole() -> None:
    evaluator = partial(evaluate, rosenbrock)
    step = jax.jit(partial(advance, evaluator), compiler_options=QUICKLY)
    state = begin(evaluator, jnp.asarray(START))
    while state.status == RUNNING:
        state = step(state)
    whole = run(newton, rosenbrock, START)
    np.testing.assert_allclose(state.theta, whole.theta, rtol=1e-14)
    assert (state.evaluations, state.status) == (whole.evaluations, whole.status)


def test_steps_into_a_region_without_values_are_taken_back() -> None:
    result = run(newton, walled, [40.0, 3.0])
    assert result.status == CONVERGED
    np.testing.assert_allclose(result.theta, [2.0, 2.0], rtol=1e-7)


@pytest.mark.parametrize("minimiser", [newton, lbfgs])
def test_a_start_without_a_value_is_not_finite(minimiser: Callable[..., OptimResult]) -> None:
    result = run(minimiser, walled, [-1.0, 2.0])
    assert result.status == NOT_FINITE


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_the_limit_on_evaluations_holds_and_is_reported(limit: int) -> None:
    result = run(newton, rosenbrock, [-1.2, 1.0], max_evaluations=limit)
    assert result.status == ITERATION_LIMIT
    assert result.evaluations == limit


def test_a_limit_of_one_only_evaluates_the_start() -> None:
    result = run(newton, rosenbrock, [-1.2, 1.0], max_evaluations=1)
    np.testing.assert_array_equal(result.theta, [-1.2, 1.0])
    assert result.evaluation.value == pytest.approx(24.2)


def test_lbfgs_stops_at_its_limit_too() -> None:
    result = run(lbfgs, rosenbrock, [-1.2, 1.0], max_evaluations=3)
    assert result.status == ITERATION_LIMIT
    assert np.isfinite(result.evaluation.value)


def test_a_limit_reached_keeps_the_best_point() -> None:
    values = [
        float(run(newton, rosenbrock, START, max_evaluations=limit).evaluation.value) for limit in range(1, 9)
    ]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]


def test_a_derivative_that_promises_what_the_function_does_not_keep_ends_without_descent() -> None:
    @jax.custom_jvp
    def liar(x: jax.Array) -> jax.Array:
        return jnp.sum(x**2)

    liar.defjvp(
        lambda primals, tangents: (
            liar(*primals),
            -2 * jnp.sum(primals[0] * tangents[0]) - jnp.sum(tangents[0]),
        )
    )
    result = run(newton, lambda x: (liar(x), None), [1.0, 2.0])
    assert result.status in (NO_DESCENT, ITERATION_LIMIT)
    np.testing.assert_array_equal(result.theta, [1.0, 2.0])


def test_a_constant_function_is_at_its_minimum_everywhere() -> None:
    result = run(newton, lambda x: (0 * jnp.sum(x), None), [1.0, 2.0])
    assert result.status == CONVERGED
    assert np.isfinite(result.theta).all()


def test_a_function_without_a_lower_bound_ends_at_the_limit() -> None:
    result = run(newton, lambda x: (-jnp.sum(x**2), None), [1.0, 2.0], max_evaluations=20)
    assert result.status == ITERATION_LIMIT


def test_one_poisoned_member_of_a_batch_leaves_the_others_alone() -> None:
    def solve(start: jax.Array, scale: jax.Array) -> OptimResult:
        return newton(lambda x: (scale * rosenbrock(x)[0], None), start)

    starts = np.array([[-1.2, 1.0], [0.0, 0.0], [2.0, -3.0]])
    scales = np.array([1.0, np.nan, 10.0])
    together = jax.jit(jax.vmap(solve), compiler_options=QUICKLY)(starts, scales)
    alone = jax.jit(solve, compiler_options=QUICKLY)
    assert together.status.tolist() == [CONVERGED, NOT_FINITE, CONVERGED]
    for i in (0, 2):
        single = alone(starts[i], scales[i])
        np.testing.assert_allclose(together.theta[i], single.theta, rtol=1e-12)
        assert together.evaluations[i] == single.evaluations


def test_float32_is_minimised_in_float32() -> None:
    result = program(newton, quadratic)(jnp.zeros(3, jnp.float32), MAX_ITERATIONS)
    assert result.theta.dtype == jnp.float32
    assert result.status == CONVERGED
    np.testing.assert_allclose(result.theta, MINIMUM, rtol=1e-5)


@pytest.mark.parametrize("minimiser", [newton, minimize])
def test_an_evaluator_takes_the_place_of_automatic_differentiation(
    minimiser: Callable[..., OptimResult],
) -> None:
    def never(x: jax.Array) -> tuple[jax.Array, Any]:
        raise AssertionError("the function was differentiated")

    def evaluator(x: jax.Array) -> Evaluation:
        value = jnp.sum(jnp.cosh(x - 2))
        return Evaluation(value, jnp.sinh(x - 2), jnp.diag(jnp.cosh(x - 2)), x[0] + 40, jnp.eye(2)[0])

    result = run(minimiser, never, [0.5, 3.0], evaluator=evaluator)
    assert result.status == CONVERGED
    np.testing.assert_allclose(result.theta, 2.0, atol=1e-7)
    np.testing.assert_allclose(result.evaluation.aux, 42.0, atol=1e-7)
    np.testing.assert_array_equal(result.evaluation.aux_tangents, [1.0, 0.0])


@pytest.mark.parametrize("k", [3, NEWTON_LIMIT + 5])
def test_minimize_chooses_by_the_number_of_parameters(k: int) -> None:
    result = run(minimize, lambda x: (jnp.sum((x - 1) ** 2 * jnp.arange(1, k + 1)), None), np.zeros(k))
    assert result.status == CONVERGED
    np.testing.assert_allclose(result.theta, 1.0, atol=1e-4)
    assert np.isnan(result.decrement) == (k > NEWTON_LIMIT)


def test_every_status_has_a_message() -> None:
    assert set(MESSAGES) == {CONVERGED, ITERATION_LIMIT, NO_DESCENT, NOT_FINITE}
    assert MESSAGES[CONVERGED].startswith("converged")
    assert all(text.startswith("not converged") for code, text in MESSAGES.items() if code != CONVERGED)
