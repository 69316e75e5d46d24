r"""The fit as a differentiable function of the statistics: :func:`solve`.

The maximiser :math:`\hat\theta(s)` of the profiled likelihood is where the gradient g of the deviance
vanishes, so by the implicit function theorem

.. math:: d\hat\theta = -H^{-1}\, \frac{\partial g}{\partial s}\, ds, \qquad H = \partial g / \partial\theta,

whatever steps led there: nothing of the search is differentiated or kept. The rule is written in terms of
:func:`jaxmixed.likelihood.deviance` and of itself, so derivatives of any order follow, forward and reverse.
Parameters that are held at zero on the boundary (a variance of zero, a correlation of one) stay there:
derivatives are those of the maximum over that face, on which the maximiser stays for small changes of the
data in general.

The search is that of :mod:`jaxmixed.search` (other starts, steps off saddles, exact zeros where the
deviance has its minimum at zero), for one data set inside a trace: as a loop whose every turn is a run of
the optimiser, so that the optimiser is compiled once, and works under ``vmap``.

References
----------
Blondel et al. (2022), Efficient and modular implicit differentiation, NeurIPS 35, section 2.1.
"""

from functools import partial
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxmixed import optim
from jaxmixed.covariance import PIVOT_TOLERANCE
from jaxmixed.effects import blup
from jaxmixed.inference import CERTAIN
from jaxmixed.likelihood import Method, Profile, degrees_of_freedom, deviance, level_factors, profile
from jaxmixed.linalg import inverse_and_logdet
from jaxmixed.search import (
    GRADIENT_TOLERANCE,
    MAX_ESCAPES,
    MAX_RELEASES,
    NEGATIVE,
    RESTARTS,
    SMALLEST_CURVATURE,
    SNAP,
    SNAP_COST,
    evaluation,
    even_parameters,
    further_starts,
    parameter_slices,
    profiled_deviance,
    retraction,
)
from jaxmixed.statistics import SufficientStatistics

_SEARCHING, _UPHILL, _DOWNHILL, _SETTLING, _DONE = range(5)


class Solution(NamedTuple):
    """A fitted model as arrays.

    Attributes
    ----------
    beta : (p,) array
        Fixed effects.
    cov_beta : (p, p) array
        Their covariance given the variance parameters.
    theta : (k,) array
        Parameters of the relative factors, in the units of the data.
    sigma : scalar
        Residual standard deviation (of a row of weight 1).
    effects : tuple of (q, m) arrays
        Conditional modes of the random effects of each level, finest first; empty for statistics in which
        equal groups share an entry.
    loglik : scalar
        Maximised log-likelihood; of the restricted likelihood under REML.
    free : (k,) bool array
        False for parameters that are held at zero on the boundary; derivatives are those along its face.
    gradient : (k,) array
        Of the deviance at `theta`. Zero but for rounding where the search has converged.
    converged : bool scalar
        The gradient vanishes, and no direction of the free parameters lowers the deviance.
    status : int scalar
        Code of :mod:`jaxmixed.optim` of the run that ended at `theta`.
    evaluations : int scalar
        Evaluations of the deviance with its derivatives, over all runs.
    """

    beta: Float[Array, " p"]
    cov_beta: Float[Array, "p p"]
    theta: Float[Array, " k"]
    sigma: Float[Array, ""]
    effects: tuple[Float[Array, "q m"], ...]
    loglik: Float[Array, ""]
    free: Bool[Array, " k"]
    gradient: Float[Array, " k"]
    converged: Bool[Array, ""]
    status: Int[Array, ""]
    evaluations: Int[Array, ""]

    @property
    def singular(self) -> Bool[Array, ""]:
        """Whether an estimated covariance matrix is singular."""
        return jnp.any(~self.free)


class _Point(NamedTuple):
    """Where a run of the optimiser ended."""

    x: Float[Array, " k"]
    value: Float[Array, ""]
    stationary: Bool[Array, ""]
    curvature: Float[Array, " k"]
    negative: Bool[Array, ""]
    direction: Float[Array, " k"]
    status: Int[Array, ""]

    @classmethod
    def reached_by(cls, result: optim.OptimResult) -> Self:
        """The end of a run, and the direction of its most negative curvature."""
        at = result.evaluation
        finite = jnp.all(jnp.isfinite(at.hessian))
        eigenvalues, vectors = jnp.linalg.eigh(jnp.where(finite, at.hessian, 0))
        share = max(NEGATIVE, 64 * float(jnp.finfo(at.hessian.dtype).eps))
        curvature = jnp.diagonal(at.hessian)
        steepness = jnp.abs(at.gradient) / jnp.maximum(jnp.sqrt(jnp.abs(curvature)), SMALLEST_CURVATURE)
        flat = (jnp.max(steepness) <= GRADIENT_TOLERANCE) & finite
        return cls(
            x=result.theta,
            value=at.value,
            stationary=(result.status == optim.CONVERGED) | flat,
            curvature=curvature,
            negative=eigenvalues[0] < -share * jnp.maximum(jnp.abs(eigenvalues[-1]), 1e-3),
            direction=vectors[:, 0],
            status=result.status,
        )

    @classmethod
    def nowhere(cls, start: Float[Array, " k"]) -> Self:
        """Worse than any."""
        no, nan = jnp.asarray(False), jnp.full_like(start, jnp.nan)
        value = jnp.asarray(jnp.inf, start.dtype)
        return cls(start, value, no, nan, no, nan, jnp.asarray(optim.NOT_FINITE))


class _State(NamedTuple):
    """Between two runs: the next start and what it is for."""

    start: Float[Array, " k"]
    best: _Point
    phase: Int[Array, ""]
    tries: Int[Array, ""]
    evaluations: Int[Array, ""]


class _Next(NamedTuple):
    """What a turn of the search decides."""

    start: Float[Array, " k"]
    phase: Int[Array, ""]
    tries: Int[Array, ""]


def _choose(condition: Array, taken, other):  # type: ignore[no-untyped-def]
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), taken, other)


def _by_term(stats: SufficientStatistics, x: Float[Array, " k"], method) -> Float[Array, " k"]:  # type: ignore[no-untyped-def]
    parts = zip(stats.structures, parameter_slices(stats.structures), strict=True)
    return jnp.concatenate([method(own, x[at]) for own, at in parts])


def _canonical(
    stats: SufficientStatistics, x: Float[Array, " k"], tolerance: float | None = None
) -> Float[Array, " k"]:
    """The same covariances with non-negative diagonals; what is nearly zero set to zero at a tolerance."""
    rounding = max(PIVOT_TOLERANCE, 16 * float(jnp.finfo(x.dtype).eps))
    given, floor = (rounding, 0.0) if tolerance is None else (tolerance, tolerance)
    return _by_term(stats, x, lambda covariance, part: covariance.canonical(part, given, floor))


def _with(state: _State, found: _Point, exact: Float[Array, " k"]) -> tuple[_Point, Bool[Array, ""]]:
    """Best point so far, and whether the new one is it; `exact` is the canonical form of the new one."""
    noise = 64 * jnp.finfo(found.value.dtype).eps * (1 + jnp.abs(state.best.value))
    nearer = ~jnp.isfinite(state.best.value) | (found.value < state.best.value)
    nearer &= found.stationary | ~state.best.stationary
    lower = found.value < state.best.value - jnp.maximum(noise, 1e-10)
    # Exact zeros are accepted where they cost nothing, and are a minimum.
    stays = jnp.all((exact == 0) | (state.start != 0))
    settles = stays & ~found.negative & (found.value <= state.best.value + jnp.maximum(SNAP_COST, noise))
    settling = state.phase == _SETTLING
    taken = jnp.where(settling, settles, jnp.where(state.phase == _SEARCHING, nearer, lower))
    new = found._replace(x=jnp.where(settling, exact, found.x))
    return _choose(taken, new, state.best), taken


def _decide(
    state: _State,
    found: _Point,
    taken: Bool[Array, ""],
    starts: Float[Array, "s k"],
    needed: int,
    stats: SufficientStatistics,
) -> _Next:
    """The next start, once the best point (of `state`) is known; the `needed` first are always tried."""
    best, zero = state.best, jnp.asarray(0)
    exact, snapped = _canonical(stats, best.x), _canonical(stats, best.x, SNAP)
    end = _Next(best.x, jnp.asarray(_DONE), zero)
    settle = _choose(jnp.any(snapped != exact), _Next(snapped, jnp.asarray(_SETTLING), zero), end)
    # A saddle is left along its most negative curvature; both ways, if the first is not lower.
    length = 0.3 * jnp.maximum(1.0, jnp.max(jnp.abs(best.x)))
    escapes = jnp.where(state.phase == _SEARCHING, 0, state.tries + 1)
    leave = _Next(best.x + length * best.direction, jnp.asarray(_UPHILL), escapes)
    leave = _choose(best.negative & (escapes < MAX_ESCAPES), leave, settle)
    back = _Next(2 * best.x - state.start, jnp.asarray(_DOWNHILL), state.tries)
    after_escape = _choose(taken, leave, _choose(state.phase == _UPHILL, back, settle))

    tries = state.tries + 1
    other = _Next(starts[jnp.minimum(tries, len(starts) - 1)], jnp.asarray(_SEARCHING), tries)
    searched = (best.stationary & (tries >= needed)) | (tries == len(starts))
    after_search = _choose(searched, leave, other)

    # What gains by leaving zero is released; the rest may still be zero.
    released = jnp.where((found.curvature < 0) | ~jnp.isfinite(found.curvature), exact, state.start)
    again = jnp.any(released != state.start) & jnp.any(released != exact) & (tries < MAX_RELEASES)
    after_settling = _choose(again & ~taken, _Next(released, jnp.asarray(_SETTLING), tries), end)

    after = _choose(state.phase == _SETTLING, after_settling, after_escape)
    return _choose(state.phase == _SEARCHING, after_search, after)


class _Found(NamedTuple):
    """What the search found, in canonical form and the coordinates of the statistics."""

    x: Float[Array, " k"]
    free: Bool[Array, " k"]
    converged: Bool[Array, ""]
    status: Int[Array, ""]
    evaluations: Int[Array, ""]

    @classmethod
    def of_linear_model(cls, dtype: jnp.dtype) -> "_Found":
        """Nothing was to be found."""
        done = jnp.asarray(optim.CONVERGED)
        return cls(jnp.zeros(0, dtype), jnp.zeros(0, bool), jnp.asarray(True), done, jnp.asarray(0))


def _search(
    start: Float[Array, " k"] | None, stats: SufficientStatistics, method: Method, max_evaluations: int
) -> _Found:
    """Best optimum found from a start in the coordinates of the statistics."""
    equal = np.concatenate([own.initial() for own in stats.structures])
    first: list[Any] = [start]
    if start is None:
        first = [equal, *(one[0] for one in further_starts(stats.structures, equal[None]))]
    others = [*(factor * first[0] for factor in RESTARTS), equal]
    starts = jnp.stack([jnp.asarray(one, stats.total.dtype) for one in [*first, *others]])

    def turn(state: _State) -> _State:
        result = optim.minimize(
            partial(profiled_deviance, stats=stats, method=method),
            state.start,
            max_evaluations=max_evaluations,
            evaluator=partial(evaluation, stats=stats, method=method),
            even=even_parameters(stats.structures),
            retract=retraction(stats.structures),
        )
        found = _Point.reached_by(result)
        best, taken = _with(state, found, _canonical(stats, found.x))
        step = _decide(state._replace(best=best), found, taken, starts, len(first), stats)
        return _State(step.start, best, step.phase, step.tries, state.evaluations + result.evaluations)

    zero = jnp.asarray(0)
    begin = _State(starts[0], _Point.nowhere(starts[0]), jnp.asarray(_SEARCHING), zero, zero)
    end = jax.lax.while_loop(lambda state: state.phase != _DONE, turn, begin)
    best, x = end.best, _canonical(stats, end.best.x)
    free = ~_by_term(stats, x, lambda covariance, part: covariance.on_boundary(part))
    return _Found(x, free, best.stationary & ~best.negative, best.status, end.evaluations)


def _in_units(stats: SufficientStatistics, theta: Float[Array, " k"], *, of_data: bool) -> Float[Array, " k"]:
    """Parameters in the units of the data from those of the standardised columns, or the other way."""
    parts = []
    for term, part in zip(stats.terms, stats.split(theta), strict=True):
        own = slice(term.start, term.start + term.covariance.q)
        frame = jnp.asarray(stats.frames[term.level])[own, own]
        parts.append(term.covariance.transformed(part, jnp.linalg.inv(frame) if of_data else frame))
    return jnp.concatenate([*parts, theta[len(theta) - stats.num_residual :]])


def _inverse_on_face(H: Float[Array, "k k"], free: Bool[Array, " k"]) -> Float[Array, "k k"]:
    """Inverse of the free part of the Hessian, zero elsewhere; NaN where the likelihood is flat."""
    scale = jnp.where(free, jnp.sqrt(jnp.abs(jnp.diagonal(H))), 1)
    scale = jax.lax.stop_gradient(jnp.where(scale > 0, scale, 1))
    both = free[:, None] & free[None, :]
    eye = jnp.eye(len(H), dtype=H.dtype)
    inverse, logdet = inverse_and_logdet(jnp.where(both, H / scale[:, None] / scale, eye))
    certain = jnp.isfinite(logdet) & (jnp.trace(inverse) < CERTAIN)
    return jnp.where(both, jnp.where(certain, inverse, jnp.nan) / scale[:, None] / scale, 0)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _maximiser(
    method: Method, theta: Float[Array, " k"], free: Bool[Array, " k"], stats: SufficientStatistics
) -> Float[Array, " k"]:
    """`theta`, known to maximise the likelihood of `stats` over its free parameters."""
    del method, free, stats
    return theta


@_maximiser.defjvp
def _maximiser_jvp(method, primals, tangents):  # type: ignore[no-untyped-def]
    theta, free, stats = primals
    _, _, change = tangents
    theta = _maximiser(method, theta, free, stats)  # by the same rule again in derivatives of this one

    def slope(stats: SufficientStatistics) -> Array:
        return jax.grad(deviance)(theta, stats, method=method)

    _, dg = jax.jvp(slope, (stats,), (change,))
    H = jax.hessian(deviance)(theta, stats, method=method)
    return theta, -(_inverse_on_face(H, free) @ dg)


def solve(
    stats: SufficientStatistics,
    *,
    method: Method = "reml",
    start: Float[Array, " k"] | None = None,
    max_iterations: int = optim.MAX_ITERATIONS,
) -> Solution:
    """Fit a mixed model: the maximiser of its likelihood as a differentiable function of the statistics.

    Composes with jit, vmap, jvp, grad and their nestings of any order; follows the dtype of its input.

    Parameters
    ----------
    stats : SufficientStatistics
        From :func:`jaxmixed.statistics.summarise` of traced arrays (smooth in y, X, Z, weights and
        frequencies), from :meth:`jaxmixed.arrays.Arrays.summarise`, or from the front end.
    method : {"reml", "ml"}
    start : (k,) array, optional
        Where to begin, in the units of `theta`: the last solution, within an outer optimisation. No
        derivative passes through it.
    max_iterations : int
        Limit on the evaluations of each run of the optimiser (static).

    Returns
    -------
    Solution
        Nothing is raised on values: look at `converged`, and at `free` for what is held on the boundary.
        Derivatives are NaN in directions that the data do not determine.

    Examples
    --------
    >>> from jaxmixed.statistics import summarise
    >>> y, one = jnp.array([1.0, 2.0, 4.0, 7.0, 6.0, 8.0]), jnp.ones((6, 1))
    >>> groups = jnp.array([0, 0, 1, 1, 2, 2])
    >>> def mean(y):
    ...     return solve(summarise(y, one, one, groups, num_groups=3)).beta[0]
    >>> [round(float(value), 3) for value in jax.jit(jax.grad(mean))(y)]
    [0.167, 0.167, 0.167, 0.167, 0.167, 0.167]
    """
    theta, found = jnp.zeros(0, stats.total.dtype), _Found.of_linear_model(stats.total.dtype)
    if stats.num_params:
        held = jax.lax.stop_gradient(stats)
        if start is not None:
            start = jax.lax.stop_gradient(jnp.asarray(start, stats.total.dtype))
            start = _in_units(held, start, of_data=False)
        found = _search(start, held, method, max_iterations)
        theta = _maximiser(method, _in_units(held, found.x, of_data=True), found.free, stats)

    def profiled(theta: Array) -> tuple[Array, Profile]:
        at = profile(level_factors(theta, stats), stats.at(theta), method=method)
        return at.deviance, at

    gradient, at = jax.grad(profiled, has_aux=True)(theta)
    p = len(stats.basis)
    inverse, _ = inverse_and_logdet(at.schur[:p, :p])
    back = jnp.linalg.inv(stats.basis)
    variance = jnp.exp(at.log_rss) / degrees_of_freedom(stats, method)
    by_group = all(level.cross is not None for level in stats.levels)
    return Solution(
        beta=stats.origin + stats.scale * (back @ (inverse @ at.schur[:p, p])),
        cov_beta=variance * (back @ inverse @ back.T),
        theta=theta,
        sigma=jnp.sqrt(variance),
        effects=blup(theta, stats) if by_group else (),
        loglik=-at.deviance / 2,
        free=found.free,
        gradient=gradient,
        converged=found.converged,
        status=found.status,
        evaluations=found.evaluations,
    )
