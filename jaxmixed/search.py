"""The search for the optimum: start, optimise, leave saddles, settle what is exactly zero.

The optimiser works in the coordinates of the statistics, where the columns of unstructured terms are
orthonormal and all others have unit size: shifting or rescaling a covariate changes nothing there. A point of
negative curvature is left along that direction; a failure is retried from other starts; a nearly singular
covariance is compared with the exactly singular one beside it, where the sign of the curvature decides.

The search is written for many models at once, of which only those that need it take the further steps; the
fit of one data set is a search with one model.
"""

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxmixed import curvature, optim
from jaxmixed.covariance import Parameterised
from jaxmixed.likelihood import Method, profile
from jaxmixed.linalg import is_positive_definite
from jaxmixed.precision import double_precision, to_host
from jaxmixed.programs import Program
from jaxmixed.statistics import SufficientStatistics, pad

GRADIENT_TOLERANCE = 1e-6
"""Largest gradient, in units of each parameter's own curvature, at a point called an optimum."""

FLAT_CURVATURE = 1e-9
"""Second derivative of the deviance below which a parameter is undetermined: a unit of it changes nothing."""

SNAP = 1e-4
"""A (conditional) variance ratio below this, in units of the columns, is compared with exactly zero."""

SNAP_COST = 1e-8
"""How much the deviance may rise when it is set to zero."""

NEGATIVE = 1e-7
"""An eigenvalue below minus this share of the largest one is negative curvature, not rounding."""

LBFGS_STEPS = 20
"""Steps of limited-memory BFGS allowed for each Newton step: they are many and cheap."""

RESTARTS = (0.2, 4.0)
"""When the moments' start fails, which is rare: smaller and larger variances; then all equal to sigma's."""

MAX_ESCAPES = 4
"""Steps off saddle points."""

MAX_RELEASES = 2
"""Comparisons with exact zeros, each with fewer of them."""

SMALLEST_CURVATURE = 1e-4
"""A gradient is measured in units of the root of its own curvature, but of no smaller one."""


class Optimum(NamedTuple):
    """The optimiser's answers in the coordinates of the statistics, on the host, a row for each model.

    Attributes
    ----------
    x : (m, k) array
        Parameters of the factors of the standardised columns.
    value : (m,) array
        Deviance.
    gradient : (m, k) array
    hessian : (m, k, k) array
    schur : (m, p + 1, p + 1) array
        ``[X y]' V^{-1} [X y]`` in the coordinates of the statistics.
    log_rss_gradient : (m, k) array
    evaluations : (m,) int array
    status : (m,) int array
        Codes of :mod:`jaxmixed.optim`.
    """

    x: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    schur: np.ndarray
    log_rss_gradient: np.ndarray
    evaluations: np.ndarray
    status: np.ndarray

    def take(self, rows: np.ndarray | slice | int) -> "Optimum":
        """Some of the models."""
        return Optimum(*(values[rows] for values in self))

    def put(self, rows: np.ndarray, other: "Optimum") -> None:
        """Replace some of the models, in place."""
        for values, new in zip(self, other, strict=True):
            values[rows] = new

    @property
    def smallest_curvature(self) -> tuple[np.ndarray, np.ndarray]:
        """Most negative eigenvalue of each Hessian beyond rounding (or 0), and its direction."""
        curvature, direction = np.zeros(len(self.x)), np.zeros_like(self.x)
        doubtful = np.flatnonzero(~is_positive_definite(self.hessian) & _are_finite(self.hessian))
        if doubtful.size:
            eigenvalues, vectors = np.linalg.eigh(self.hessian[doubtful])
            smallest = eigenvalues[:, 0]
            negative = smallest < -NEGATIVE * np.maximum(np.abs(eigenvalues[:, -1]), 1e-3)
            curvature[doubtful] = np.where(negative, smallest, 0.0)
            direction[doubtful] = vectors[:, :, 0]
        return curvature, direction

    @property
    def is_stationary(self) -> np.ndarray:
        """Whether the optimiser converged, or stopped where the gradient is zero all the same."""
        flat = scaled_gradient(self.gradient, self.hessian) <= GRADIENT_TOLERANCE
        return (self.status == optim.CONVERGED) | (flat & _are_finite(self.hessian))


def _are_finite(hessian: np.ndarray) -> np.ndarray:
    return np.isfinite(hessian).all(axis=(1, 2))


class Runner(Protocol):
    """Runs of the optimiser for models of the same shape.

    Attributes
    ----------
    structures : tuple of Parameterised
        Owners of their successive parameters.
    """

    structures: tuple[Parameterised, ...]

    @abstractmethod
    def __call__(self, models: np.ndarray, starts: np.ndarray) -> Optimum:
        """Optimise from starting values.

        Parameters
        ----------
        models : (t,) int array
            Which models, possibly some of them more than once.
        starts : (t, k) array

        Returns
        -------
        Optimum
            A row for each start, in fresh writable arrays.
        """
        ...


def profiled_deviance(
    x: Array, stats: SufficientStatistics, *, method: Method
) -> tuple[Array, tuple[Array, Array]]:
    """Deviance in the parameters of the standardised columns; beside it (log rss, Schur complement)."""
    factors = [term.covariance.factor(part) for term, part in zip(stats.terms, stats.split(x), strict=True)]
    found = profile(stats.assemble(factors), stats.at(x), method=method)
    return found.deviance, (found.log_rss, found.schur)


def evaluation(x: Array, stats: SufficientStatistics, *, method: Method) -> optim.Evaluation:
    """Deviance and its derivatives at x; beside them (log rss, Schur complement), the former's gradient."""
    if stats.root is None or stats.residual is not None:
        at = optim.evaluate(partial(profiled_deviance, stats=stats, method=method), x)
    else:
        at = curvature.evaluate(x, stats, method=method)
    return at._replace(aux_tangents=at.aux_tangents[0])


Structures = Sequence[Parameterised]


def even_parameters(structures: Structures) -> np.ndarray:
    """Mask of the parameters whose sign alone does not matter, as where they fill a factor's column."""
    return np.concatenate([np.zeros(0, dtype=bool), *(own.even() for own in structures)])


def parameter_slices(structures: Structures) -> list[slice]:
    """Where the parameters of each structure stand."""
    ends = np.cumsum([0, *(own.num_params for own in structures)]).tolist()
    return [slice(first, last) for first, last in pairwise(ends)]


def retraction(structures: Structures) -> optim.Retraction:
    """Where a step leads, structure by structure (:meth:`jaxmixed.covariance.Covariance.retract`)."""

    def retract(x: Array, step: Array) -> Array:
        parts = zip(structures, parameter_slices(structures), strict=True)
        return jnp.concatenate([own.retract(x[at], step[at]) for own, at in parts])

    return retract


def _optimise(
    x: Array,
    max_evaluations: Array,
    stats: SufficientStatistics,
    *,
    method: Method,
) -> tuple[Array, ...]:
    result = optim.minimize(
        partial(profiled_deviance, stats=stats, method=method),
        x,
        max_evaluations=max_evaluations,
        evaluator=partial(evaluation, stats=stats, method=method),
        even=even_parameters(stats.structures),
        retract=retraction(stats.structures),
    )
    found = result.evaluation
    return (
        result.theta,
        found.value,
        found.gradient,
        found.hessian,
        found.aux[1],
        found.aux_tangents,
        result.evaluations,
        result.status,
    )


PROGRAM = Program(_optimise)
"""The compiled optimiser, one executable per structure and size of the statistics."""


def scaled_gradient(gradient: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """Largest component of each gradient (..., k) in units of its own curvature."""
    if gradient.shape[-1] == 0:
        return np.zeros(gradient.shape[:-1])
    curvature = np.sqrt(np.abs(np.diagonal(hessian, axis1=-2, axis2=-1)))
    return np.max(np.abs(gradient) / np.maximum(curvature, SMALLEST_CURVATURE), axis=-1)


def is_determined(found: Optimum) -> np.ndarray:
    """Mask of the parameters along which the deviance has curvature, on their own scale or its logarithm."""
    curvature = np.abs(np.diagonal(found.hessian, axis1=-2, axis2=-1))
    return np.maximum(1.0, found.x**2) * curvature >= FLAT_CURVATURE


class SingleRunner:
    """Runs of the optimiser on one data set.

    Parameters
    ----------
    stats : SufficientStatistics
        Host arrays, compressed or not.
    method : {"reml", "ml"}
    max_evaluations : int
        Limit of one run.

    Attributes
    ----------
    evaluations : int
        Evaluations of value, gradient and Hessian so far.
    """

    def __init__(self, stats: SufficientStatistics, method: Method, max_evaluations: int) -> None:
        self.stats, self.method = pad(stats), method
        self.structures = stats.structures
        cheaper = 1 if stats.num_params <= optim.NEWTON_LIMIT else LBFGS_STEPS
        self.max_evaluations = np.asarray(cheaper * max_evaluations)
        self.evaluations = 0

    def __call__(self, models: np.ndarray, starts: np.ndarray) -> Optimum:
        """One after the other; `models` says only how many."""
        del models
        with double_precision():
            runs = [
                to_host(PROGRAM(start, self.max_evaluations, self.stats, method=self.method))
                for start in starts
            ]
        found = Optimum(*(np.stack(values) for values in zip(*runs, strict=True)))
        self.evaluations += int(found.evaluations.sum())
        return found


def search(run: Runner, starts: np.ndarray) -> Optimum:
    """Best optimum found for each model, in canonical form.

    Parameters
    ----------
    run : Runner
        Of models ``0 .. m-1``.
    starts : (m, k) array

    Returns
    -------
    Optimum
    """
    found = _from_starts(run, starts)
    _leave_saddles(run, found)
    _leave_zeros(run, found)
    _leave_limits(run, found)
    _make_canonical(run, found)
    return found


def _from_starts(run: Runner, starts: np.ndarray) -> Optimum:
    """First start that converges; otherwise the lowest finite point that any reached.

    Where a structure has several maxima, the highest of those that its further starts lead to.
    """
    every = np.arange(len(starts))
    best = run(every, starts)
    for others in further_starts(run.structures, starts):
        other = run(every, others)
        better = other.is_stationary & ~(other.value >= best.value - SNAP_COST)
        best.put(every[better], other.take(better))
    equal = np.broadcast_to(_equal_variances(run.structures), starts.shape)
    for others in (*(factor * starts for factor in RESTARTS), equal):
        failed = np.flatnonzero(~best.is_stationary)
        if not failed.size:
            break
        other = run(failed, others[failed])
        better = ~np.isfinite(best.value[failed]) | (other.value < best.value[failed])
        best.put(failed[better], other.take(better))
    return best


def _equal_variances(structures: Structures) -> np.ndarray:
    """Parameters (k,) of variances equal to sigma's."""
    return np.concatenate([own.initial() for own in structures])


def further_starts(structures: Structures, starts: np.ndarray) -> list[np.ndarray]:
    """Starts (m, k) that structures with several maxima ask for, each with other parameters of one."""
    found = []
    for structure, own in zip(structures, parameter_slices(structures), strict=True):
        for values in structure.further_starts(starts[:, own]):
            found.append(starts.copy())
            found[-1][:, own] = values
    return found


def _leave_saddles(run: Runner, found: Optimum) -> None:
    """Step off points of negative curvature, both ways, until the curvature is not negative."""
    at = np.arange(len(found.x))
    for _ in range(MAX_ESCAPES):
        negative, direction = found.take(at).smallest_curvature
        at, direction = at[negative < 0], direction[negative < 0]
        if not at.size:
            return
        x = found.x[at]
        step = 0.3 * np.maximum(1.0, np.abs(x).max(axis=1, keepdims=True)) * direction
        trials = run(np.tile(at, 2), np.concatenate([x + step, x - step]))
        values = np.nan_to_num(trials.value, nan=np.inf).reshape(2, -1)
        better = trials.take(np.argmin(values, axis=0) * len(at) + np.arange(len(at)))
        lower = better.value < found.value[at] - 1e-10
        at = at[lower]
        found.put(at, better.take(lower))


def _leave_zeros(run: Runner, found: Optimum) -> None:
    """Search once more from variances equal to sigma's where some were found to be zero.

    A restricted likelihood may have a maximum at zero and a higher one inside, when few groups of very
    different sizes disagree (Henn & Hodges 2014, International Statistical Review 82, 90-105), and the
    moments cannot tell.
    """
    _, snapped = _canonical_points(run.structures, found.x)
    zero = (snapped == 0) & even_parameters(run.structures)
    starts, equal = found.x.copy(), _equal_variances(run.structures)
    for own in parameter_slices(run.structures):
        starts[:, own] = np.where(zero[:, own].any(axis=1, keepdims=True), equal[own], starts[:, own])
    at = np.flatnonzero(zero.any(axis=1) & found.is_stationary)
    if not at.size:
        return
    other = run(at, starts[at])
    better = other.is_stationary & (other.value < found.value[at] - SNAP_COST)
    found.put(at[better], other.take(better))
    if better.any():
        _leave_saddles(run, found)


def _leave_limits(run: Runner, found: Optimum) -> None:
    """Search once more where the deviance does not change with a parameter that has no zero to be at.

    As where correlations in continuous time start so low that they are none at any distance.
    """
    starts, flat = found.x.copy(), np.zeros(found.x.shape, dtype=bool)
    for own, at in zip(run.structures, parameter_slices(run.structures), strict=True):
        if not own.even().any():
            flat[:, at] = ~is_determined(found)[:, at]
            starts[:, at] = np.where(flat[:, at].any(axis=1, keepdims=True), own.initial(), starts[:, at])
    again = np.flatnonzero(flat.any(axis=1) & np.isfinite(found.value))
    if not again.size:
        return
    other = run(again, starts[again])
    better = other.is_stationary & (other.value < found.value[again] - SNAP_COST)
    found.put(again[better], other.take(better))


def _make_canonical(run: Runner, found: Optimum) -> None:
    """Non-negative diagonals; exact zeros where the deviance has its minimum at zero."""
    exact, snapped = _canonical_points(run.structures, found.x)
    at = np.flatnonzero((snapped != exact).any(axis=1))
    open_ended = np.ones(len(found.x), dtype=bool)
    for _ in range(MAX_RELEASES):
        if not at.size:
            break
        singular = run(at, snapped[at])
        settled, _ = _canonical_points(run.structures, singular.x)
        stays = ((settled == 0) | (snapped[at] != 0)).all(axis=1)
        negative, _ = singular.smallest_curvature
        settles = stays & (negative == 0) & (singular.value <= found.value[at] + SNAP_COST)
        found.put(at[settles], singular._replace(x=settled).take(settles))
        open_ended[at[settles]] = False
        # Release what gains by leaving zero; the rest may still be zero.
        at, diagonal = at[~settles], np.diagonal(singular.hessian[~settles], axis1=1, axis2=2)
        released = np.where((diagonal < 0) | ~np.isfinite(diagonal), exact[at], snapped[at])
        again = (released != snapped[at]).any(axis=1) & (released != exact[at]).any(axis=1)
        snapped[at] = released
        at = at[again]
    at = np.flatnonzero(open_ended)
    x, exact = found.x[at], exact[at]
    signs = np.where(x * exact < 0, -1.0, 1.0)
    size = np.abs(exact)
    moved = np.abs(signs * x - exact) > 1e-9 * size + 1e-12 * size.max(axis=1, initial=0.0, keepdims=True)
    away = moved.any(axis=1)
    found.x[at] = exact
    found.gradient[at] *= signs
    found.hessian[at] *= signs[:, :, None] * signs[:, None, :]
    found.log_rss_gradient[at] *= signs
    if away.any():
        found.put(at[away], run(at[away], exact[away]))


def _canonical_points(structures: Structures, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Canonical parameters of the same covariances, and with what is nearly zero set to zero."""
    parts = [(own, x[:, at]) for own, at in zip(structures, parameter_slices(structures), strict=True)]
    exact = [own.canonical(part) for own, part in parts]
    snapped = [own.canonical(part, tolerance=SNAP, floor=SNAP) for own, part in parts]
    return np.concatenate(exact, axis=1), np.concatenate(snapped, axis=1)
