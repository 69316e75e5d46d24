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

from jaxmixed.linalg import solve_modified

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
_FLAT = 1e-10  # a pivot smaller than this share of the largest diagonal element is rounding

Function = Callable[[Float[Array, " k"]], tuple[Float[Array, ""], Any]]
Evaluator = Callable[[Float[Array, " k"]], "Evaluation"]
Retraction = Callable[[Float[Array, " k"], Float[Array, " k"]], Float[Array, " k"]]


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


class State(NamedTuple):
    """Newton's method between two evaluations: what :func:`advance` takes and returns.

    Attributes
    ----------
    theta : (k,) array
        Best point so far.
    at : Evaluation
        The function there.
    trial : (k,) array
        Point to evaluate next.
    predicted : scalar
        Decrease that the quadratic model expects of it.
    decrement : scalar
        The same of the step before.
    shift : scalar
        Share by which the Hessian's diagonal is raised.
    evaluations : int scalar
    status : int scalar
        RUNNING, or why it stopped.
    """

    theta: Float[Array, " k"]
    at: Evaluation
    trial: Float[Array, " k"]
    predicted: Float[Array, ""]
    decrement: Float[Array, ""]
    shift: Float[Array, ""]
    evaluations: Int[Array, ""]
    status: Int[Array, ""]


RUNNING = -1


def _descent_step(at: Evaluation, shift: Float[Array, ""]) -> Float[Array, " k"]:
    """Newton step on the Hessian with its diagonal raised by a share, and made positive definite."""
    diagonal = jnp.abs(jnp.diagonal(at.hessian))
    floor = _FLAT * jnp.max(diagonal) + jnp.finfo(diagonal.dtype).tiny
    raised = at.hessian + jnp.diag(shift * jnp.maximum(diagonal, floor))
    return solve_modified(raised, at.gradient, floor)


def _is_finite(at: Evaluation) -> Array:
    return jnp.isfinite(at.value) & jnp.all(jnp.isfinite(at.gradient)) & jnp.all(jnp.isfinite(at.hessian))


def _steepness(at: Evaluation) -> Array:
    """Largest component of the gradient in units of its own curvature."""
    curvature = jnp.sqrt(jnp.abs(jnp.diagonal(at.hessian)))
    return jnp.max(jnp.abs(at.gradient) / jnp.maximum(curvature, 1e-4))


def _next_shift(shift: Array, ratio: Array, accepted: Array) -> Array:
    """Less damping after a good step, more after a poor one."""
    calmer = jnp.where(shift > 1e-6, shift / 16, 0.0)
    stricter = jnp.maximum(6 * shift, 0.25)
    return jnp.where(accepted & (ratio > 0.75), calmer, jnp.where(accepted & (ratio > 0.25), shift, stricter))


def begin(evaluator: Evaluator, theta: Float[Array, " k"]) -> State:
    """Newton's method at its start, nothing evaluated yet.

    Parameters
    ----------
    evaluator : callable
        Asked for its shapes only.
    theta : (k,) array

    Returns
    -------
    State
    """
    nowhere = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(evaluator, theta))
    zero = jnp.zeros((), theta.dtype)
    return State(
        theta=theta,
        at=nowhere._replace(value=jnp.full_like(nowhere.value, jnp.inf)),
        trial=theta,
        predicted=zero,
        decrement=zero,
        shift=zero,
        evaluations=jnp.asarray(0),
        status=jnp.asarray(RUNNING),
    )


def advance(
    evaluator: Evaluator,
    state: State,
    *,
    tolerance: float = TOLERANCE,
    max_evaluations: int | Int[Array, ""] = MAX_ITERATIONS,
    even: np.ndarray | None = None,
    retract: Retraction | None = None,
) -> State:
    """One iteration of Newton's method: evaluate the trial point, keep it or not, and propose the next.

    Parameters
    ----------
    evaluator : callable
    state : State
        Of which the status is RUNNING: another one would be moved, too.
    tolerance, max_evaluations, even, retract
        As for :func:`newton`.

    Returns
    -------
    State
    """
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
    ratio = actual / jnp.maximum(state.predicted, noise)
    settled = closer | (accepted & (state.predicted <= noise))  # lost in rounding: no ratio
    shift = jnp.where(first, 0.0, _next_shift(state.shift, jnp.where(settled, 1.0, ratio), accepted))

    # Where the undamped step promises nothing, it is the last.
    undamped = _descent_step(at, jnp.zeros_like(shift))
    quiet = jnp.maximum(tolerance, noise / 100)
    shift = jnp.where(undamped @ at.gradient <= 2 * quiet, 0.0, shift)
    step = _descent_step(at, shift)
    # A step of more than twice the current size is a sign that the quadratic model does not hold that far.
    limit = 2 * jnp.maximum(1.0, jnp.max(jnp.abs(theta)))
    step = step * jnp.minimum(1.0, limit / jnp.maximum(jnp.max(jnp.abs(step)), jnp.finfo(step.dtype).tiny))
    # Past the mirror image of its start an even function rises again: that far the model cannot be right.
    if even is not None:
        step = jnp.where(even & (step * theta > 2 * theta**2), theta / 2, step)
    predicted = step @ at.gradient - 0.5 * (step @ (at.hessian @ step))

    evaluations = state.evaluations + 1
    small = ~first & (jnp.abs(state.predicted) <= quiet)
    small &= ~accepted | (state.shift == 0)  # that a damped step promises little proves nothing
    hopeless = ~accepted & (small | (shift > 1e12))
    status = jnp.where(evaluations >= max_evaluations, ITERATION_LIMIT, RUNNING)
    status = jnp.where(hopeless, NO_DESCENT, status)
    status = jnp.where(accepted & small, CONVERGED, status)
    status = jnp.where(first & ~finite, NOT_FINITE, status)
    trial = theta - step if retract is None else retract(theta, -step)
    return State(theta, at, trial, predicted, state.predicted, shift, evaluations, status)


def newton(
    fun: Function,
    theta: Float[Array, " k"],
    *,
    tolerance: float = TOLERANCE,
    max_evaluations: int | Int[Array, ""] = MAX_ITERATIONS,
    evaluator: Evaluator | None = None,
    even: np.ndarray | None = None,
    retract: Retraction | None = None,
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
    retract : callable, optional
        ``(theta, step) -> theta``, the point that a step leads to, equal to ``theta + step`` but for terms of
        second order: a path that follows curved valleys (Absil, Mahony & Sepulchre 2008, Optimization
        Algorithms on Matrix Manifolds, section 4.1).

    Returns
    -------
    OptimResult

    Examples
    --------
    >>> result = newton(lambda x: ((x[0] - 1.0) ** 2 + (x[1] + 2.0) ** 4, None), jnp.zeros(2))
    >>> int(result.status)
    0
    """
    evaluator = jax.jit(evaluator or partial(evaluate, fun))  # traced once, for its shapes and for the loop
    step = partial(
        advance,
        evaluator,
        tolerance=tolerance,
        max_evaluations=max_evaluations,
        even=even,
        retract=retract,
    )
    state = jax.lax.while_loop(lambda s: s.status == RUNNING, step, begin(evaluator, theta))
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
    retract: Retraction | None = None,
) -> OptimResult:
    """Minimise with :func:`newton` up to NEWTON_LIMIT parameters and :func:`lbfgs` beyond.

    Parameters
    ----------
    fun, theta, tolerance, max_evaluations, evaluator, even, retract
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
        fun,
        theta,
        tolerance=tolerance,
        max_evaluations=max_evaluations,
        evaluator=evaluator,
        even=even,
        retract=retract,
    )
