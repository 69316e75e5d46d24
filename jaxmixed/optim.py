r"""Minimisation of smooth functions of a few parameters with exact derivatives.

:func:`newton` is a Levenberg-Marquardt trust-region Newton method with the exact Hessian and one evaluation
site (value, gradient, Hessian together) in a ``lax.while_loop``. It stops when the decrease that the
quadratic model predicts, half the squared Newton decrement, is below a tolerance in units of the function:
for a deviance that is a statistical scale, whatever the size of the data. The last step is still taken, so
the point returned is one quadratically convergent step beyond the test. :func:`lbfgs` serves where the
Hessian is too large.

Both take a function, never a model, return status codes and raise nothing, so both work under ``vmap``.

References
----------
Nocedal & Wright (2006), Numerical Optimization, 2nd edition, algorithms 4.1 and 7.5.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxmixed.linalg import solve_shifted

CONVERGED, ITERATION_LIMIT, NO_DESCENT, NOT_FINITE = 0, 1, 2, 3

MESSAGES = {
    CONVERGED: "converged: the predicted decrease is below the tolerance",
    ITERATION_LIMIT: (
        "not converged: the limit on iterations was reached; raise max_iterations or rescale the data"
    ),
    NO_DESCENT: (
        "not converged: no step decreased the deviance; the likelihood may be flat or ill-conditioned here"
    ),
    NOT_FINITE: "not converged: the deviance is not finite at the starting values",
}

NEWTON_LIMIT = 100
"""Up to this many parameters the exact Hessian is cheap; beyond, limited-memory BFGS is used."""

TOLERANCE = 1e-14
"""Predicted decrease, in units of the function, at which the next step is the last."""

ROUNDING = 1e-8
"""A predicted decrease below this may be lost in the rounding of an ill-conditioned function."""

MAX_ITERATIONS = 100
_MAX_SHIFT_TRIALS = 60

Function = Callable[[Float[Array, " k"]], tuple[Float[Array, ""], Any]]
Evaluator = Callable[[Float[Array, " k"]], "Evaluation"]


class Evaluation(NamedTuple):
    """A function and its derivatives at a point.

    Attributes
    ----------
    value : scalar
    gradient : (k,) array
    hessian : (k, k) array
    aux : pytree
        The function's second output.
    aux_tangents : pytree
        Derivatives of `aux`, a leading axis of length k added to each leaf.
    """

    value: Float[Array, ""]
    gradient: Float[Array, " k"]
    hessian: Float[Array, "k k"]
    aux: Any
    aux_tangents: Any


class OptimResult(NamedTuple):
    """Where the minimiser stopped.

    Attributes
    ----------
    theta : (k,) array
    evaluation : Evaluation
        The function and its derivatives at `theta`.
    decrement : scalar
        Predicted decrease of the last accepted step's starting point.
    evaluations : int scalar
        Number of evaluations of the function.
    status : int scalar
        CONVERGED, ITERATION_LIMIT, NO_DESCENT or NOT_FINITE.
    """

    theta: Float[Array, " k"]
    evaluation: Evaluation
    decrement: Float[Array, ""]
    evaluations: Int[Array, ""]
    status: Int[Array, ""]


def evaluate(fun: Function, theta: Float[Array, " k"]) -> Evaluation:
    """Value, gradient, Hessian, second output and its derivatives, by forward over reverse mode."""
    value_and_gradient = jax.value_and_grad(fun, has_aux=True)

    def along(direction: Float[Array, " k"]):  # type: ignore[no-untyped-def]
        return jax.jvp(value_and_gradient, (theta,), (direction,))

    ((value, aux), gradient), ((_, aux_tangents), hessian) = jax.vmap(along, out_axes=(None, 0))(
        jnp.eye(len(theta), dtype=theta.dtype)
    )
    return Evaluation(value, gradient, hessian, aux, aux_tangents)


class _State(NamedTuple):
    theta: Float[Array, " k"]
    at: Evaluation
    trial: Float[Array, " k"]
    predicted: Float[Array, ""]
    decrement: Float[Array, ""]
    shift: Float[Array, ""]
    evaluations: Int[Array, ""]
    status: Int[Array, ""]


_RUNNING = -1


def _descent_step(
    at: Evaluation, shift: Float[Array, ""], size: Float[Array, ""]
) -> tuple[Float[Array, " k"], Float[Array, ""]]:
    """Newton step on the Hessian shifted until it is positive definite, and its shift."""
    floor = 1e-10 * size

    def unfinished(state):  # type: ignore[no-untyped-def]
        _, _, _, pivot, trials = state
        return (pivot <= floor) & (trials < _MAX_SHIFT_TRIALS)

    def attempt(state):  # type: ignore[no-untyped-def]
        _, _, shift, _, trials = state
        step, pivot = solve_shifted(at.hessian, at.gradient, shift)
        return step, shift, jnp.maximum(4 * shift, 1e-3 * size), pivot, trials + 1

    start = (jnp.zeros_like(at.gradient), shift, shift, -floor - 1, jnp.asarray(0))
    step, shift, *_ = jax.lax.while_loop(unfinished, attempt, start)
    return step, shift


def _is_finite(at: Evaluation) -> Array:
    return jnp.isfinite(at.value) & jnp.all(jnp.isfinite(at.gradient)) & jnp.all(jnp.isfinite(at.hessian))


def _steepness(at: Evaluation) -> Array:
    """Largest component of the gradient in units of its own curvature."""
    curvature = jnp.sqrt(jnp.abs(jnp.diagonal(at.hessian)))
    return jnp.max(jnp.abs(at.gradient) / jnp.maximum(curvature, 1e-4))


def _next_shift(shift: Array, ratio: Array, accepted: Array, size: Array) -> Array:
    """Less damping after a good step, more after a poor one."""
    calmer = jnp.where(shift > 1e-6 * size, shift / 8, 0.0)
    stricter = jnp.maximum(4 * shift, 1e-2 * size)
    return jnp.where(accepted & (ratio > 0.75), calmer, jnp.where(accepted & (ratio > 0.25), shift, stricter))


def _newton_iteration(
    evaluator: Evaluator, state: _State, tolerance: float, max_evaluations: int | Array, even: np.ndarray
) -> _State:
    """Evaluate the trial point, keep it or not, and propose the next."""
    new = evaluator(state.trial)
    first = state.evaluations == 0
    finite = _is_finite(new)
    noise = 64 * jnp.finfo(new.value.dtype).eps * (1 + jnp.abs(new.value))
    actual = state.at.value - new.value
    # So near the optimum the function is known less well than its gradient, which then decides.
    closer = (state.predicted <= ROUNDING) & (_steepness(new) <= 0.5 * _steepness(state.at))
    accepted = finite & (first | closer | (actual >= 1e-4 * state.predicted - noise))
    theta, at = jax.tree.map(
        lambda taken, kept: jnp.where(accepted, taken, kept), (state.trial, new), (state.theta, state.at)
    )
    size = jnp.max(jnp.abs(jnp.diagonal(at.hessian))) + jnp.finfo(theta.dtype).tiny
    ratio = actual / jnp.maximum(state.predicted, noise)
    settled = first | closer | (accepted & (state.predicted <= noise))  # lost in rounding: no ratio
    shift = jnp.where(settled, state.shift, _next_shift(state.shift, ratio, accepted, size))

    step, shift = _descent_step(at, shift, size)
    # A step of more than twice the current size is a sign that the quadratic model does not hold that far.
    limit = 2 * jnp.maximum(1.0, jnp.max(jnp.abs(theta)))
    step = step * jnp.minimum(1.0, limit / jnp.maximum(jnp.max(jnp.abs(step)), jnp.finfo(step.dtype).tiny))
    # Past the mirror image of its start an even function rises again: that far the model cannot be right.
    step = jnp.where(even & (step * theta > 2 * theta**2), theta / 2, step)
    predicted = step @ at.gradient - 0.5 * (step @ (at.hessian @ step))

    evaluations = state.evaluations + 1
    small = ~first & (state.predicted <= jnp.maximum(tolerance, noise / 100))
    hopeless = ~accepted & (small | (shift > 1e12 * size))
    status = jnp.where(evaluations >= max_evaluations, ITERATION_LIMIT, _RUNNING)
    status = jnp.where(hopeless, NO_DESCENT, status)
    status = jnp.where(accepted & small, CONVERGED, status)
    status = jnp.where(first & ~finite, NOT_FINITE, status)
    return _State(theta, at, theta - step, predicted, state.predicted, shift, evaluations, status)


def newton(
    fun: Function,
    theta: Float[Array, " k"],
    *,
    tolerance: float = TOLERANCE,
    max_evaluations: int | Int[Array, ""] = MAX_ITERATIONS,
    evaluator: Evaluator | None = None,
    even: np.ndarray | None = None,
) -> OptimResult:
    """Minimise by trust-region Newton with the exact Hessian.

    Parameters
    ----------
    fun : callable
        ``theta -> (value, aux)``, twice differentiable.
    theta : (k,) array
        Start.
    tolerance : float
        Predicted decrease at which the next step is the last.
    max_evaluations : int
        Limit on evaluations; 1 only evaluates at the start.
    evaluator : callable, optional
        ``theta -> Evaluation`` of the same function, where there is a cheaper way than :func:`evaluate`.
    even : (k,) bool array, optional
        Parameters whose sign does not matter.

    Returns
    -------
    OptimResult

    Examples
    --------
    >>> result = newton(lambda x: ((x[0] - 1.0) ** 2 + (x[1] + 2.0) ** 4, None), jnp.zeros(2))
    >>> int(result.status)
    0
    """
    mirrored = np.zeros(theta.shape, dtype=bool) if even is None else even
    evaluator = jax.jit(evaluator or partial(evaluate, fun))  # traced once, for its shapes and for the loop
    shapes = jax.eval_shape(evaluator, theta)
    nowhere = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    zero = jnp.zeros((), theta.dtype)
    state = _State(
        theta=theta,
        at=nowhere._replace(value=jnp.full_like(nowhere.value, jnp.inf)),
        trial=theta,
        predicted=zero,
        decrement=zero,
        shift=zero,
        evaluations=jnp.asarray(0),
        status=jnp.asarray(_RUNNING),
    )
    state = jax.lax.while_loop(
        lambda s: s.status == _RUNNING,
        lambda s: _newton_iteration(evaluator, s, tolerance, max_evaluations, mirrored),
        state,
    )
    return OptimResult(state.theta, state.at, state.decrement, state.evaluations, state.status)


def lbfgs(
    fun: Function,
    theta: Float[Array, " k"],
    *,
    tolerance: float = TOLERANCE,
    max_evaluations: int | Int[Array, ""] = 20 * MAX_ITERATIONS,
    evaluator: Evaluator | None = None,
) -> OptimResult:
    """Minimise by optax's limited-memory BFGS, then evaluate the exact derivatives once at the optimum.

    Parameters
    ----------
    fun : callable
        ``theta -> (value, aux)``.
    theta : (k,) array
        Start.
    tolerance : float
        Gradient norm, relative to the square root of the function's own scale, at which to stop.
    max_evaluations : int
        Limit on iterations.
    evaluator : callable, optional
        As for :func:`newton`; used at the optimum.

    Returns
    -------
    OptimResult
        `decrement` is NaN: the method has no Hessian.

    Examples
    --------
    >>> result = lbfgs(lambda x: (jnp.sum((x - 1.0) ** 2), None), jnp.zeros(40))
    >>> bool(jnp.allclose(result.theta, 1.0))
    True
    """
    import optax  # costs a tenth of a second, and few models need it

    solver = optax.lbfgs()

    def objective(x: Float[Array, " k"]) -> Float[Array, ""]:
        return fun(x)[0]

    value_and_grad = optax.value_and_grad_from_state(objective)

    def running(carry):  # type: ignore[no-untyped-def]
        _, _, gradient_norm, count = carry
        return (gradient_norm > jnp.sqrt(tolerance)) & (count < max_evaluations)

    def iterate(carry):  # type: ignore[no-untyped-def]
        x, state, _, count = carry
        value, gradient = value_and_grad(x, state=state)
        updates, state = solver.update(gradient, state, x, value=value, grad=gradient, value_fn=objective)
        return optax.apply_updates(x, updates), state, optax.tree.norm(gradient), count + 1

    start = (theta, solver.init(theta), jnp.asarray(jnp.inf, theta.dtype), jnp.asarray(0))
    theta, _, norm, count = jax.lax.while_loop(running, iterate, start)
    at = (evaluator or partial(evaluate, fun))(theta)
    finite = jnp.isfinite(at.value) & jnp.all(jnp.isfinite(at.hessian))
    status = jnp.where(finite, jnp.where(norm <= jnp.sqrt(tolerance), CONVERGED, ITERATION_LIMIT), NOT_FINITE)
    return OptimResult(theta, at, jnp.asarray(jnp.nan, theta.dtype), count + 1, status)


def minimize(
    fun: Function,
    theta: Float[Array, " k"],
    *,
    tolerance: float = TOLERANCE,
    max_evaluations: int | Int[Array, ""] = MAX_ITERATIONS,
    evaluator: Evaluator | None = None,
    even: np.ndarray | None = None,
) -> OptimResult:
    """Minimise with :func:`newton` up to NEWTON_LIMIT parameters and :func:`lbfgs` beyond.

    Parameters
    ----------
    fun, theta, tolerance, max_evaluations, evaluator, even
        As for :func:`newton`.

    Returns
    -------
    OptimResult

    Examples
    --------
    >>> float(minimize(lambda x: (jnp.sum(x * x), None), jnp.ones(3)).evaluation.value)
    0.0
    """
    if theta.shape[0] > NEWTON_LIMIT:
        return lbfgs(fun, theta, tolerance=tolerance, max_evaluations=max_evaluations, evaluator=evaluator)
    return newton(
        fun, theta, tolerance=tolerance, max_evaluations=max_evaluations, evaluator=evaluator, even=even
    )
