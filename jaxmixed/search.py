"""The search for the optimum: start, optimise, leave saddles, settle what is exactly zero.

The optimiser works in the coordinates of the statistics, where the columns of unstructured terms are
orthonormal and all others have unit size: shifting or rescaling a covariate changes nothing there. A point of
negative curvature is left along that direction; a failure is retried from other starts; a nearly singular
covariance is compared with the exactly singular one beside it, where the sign of the curvature decides.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from jax import Array

from jaxmixed import curvature, optim
from jaxmixed.likelihood import Method, profile
from jaxmixed.precision import double_precision, to_host
from jaxmixed.programs import Program
from jaxmixed.statistics import SufficientStatistics, pad

GRADIENT_TOLERANCE = 1e-6
"""Largest gradient, in units of each parameter's own curvature, at a point called an optimum."""

SNAP = 1e-4
"""A (conditional) variance ratio below this, in units of the columns, is compared with exactly zero."""

SNAP_COST = 1e-8
"""How much the deviance may rise when it is set to zero."""

NEGATIVE = 1e-7
"""An eigenvalue below minus this share of the largest one is negative curvature, not rounding."""

LBFGS_STEPS = 20
"""Steps of limited-memory BFGS allowed for each Newton step: they are many and cheap."""

_RESTARTS = (0.2, 4.0)
_MAX_ESCAPES = 4
_MAX_RELEASES = 2


class Optimum(NamedTuple):
    """Optimiser's answer in the coordinates of the statistics, on the host.

    Attributes
    ----------
    x : (k,) array
        Parameters of the factors of the standardised columns.
    value : scalar
        Deviance.
    gradient : (k,) array
    hessian : (k, k) array
    schur : (p + 1, p + 1) array
        ``[X y]' V^{-1} [X y]`` in the coordinates of the statistics.
    log_rss_gradient : (k,) array
    evaluations : int scalar
    status : int scalar
        Code of :mod:`jaxmixed.optim`.
    """

    x: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    schur: np.ndarray
    log_rss_gradient: np.ndarray
    evaluations: np.ndarray
    status: np.ndarray

    @property
    def smallest_curvature(self) -> tuple[float, np.ndarray]:
        """Most negative eigenvalue of the Hessian beyond rounding (or 0), and its direction."""
        if not np.isfinite(self.hessian).all():
            return 0.0, np.zeros_like(self.x)
        eigenvalues, vectors = np.linalg.eigh(self.hessian)
        negative = eigenvalues[0] < -NEGATIVE * max(abs(eigenvalues[-1]), 1e-3)
        return (float(eigenvalues[0]) if negative else 0.0), vectors[:, 0]

    @property
    def is_stationary(self) -> bool:
        """Whether the optimiser converged, or stopped where the gradient is zero all the same."""
        if self.status == optim.CONVERGED:
            return True
        finite = bool(np.isfinite(self.hessian).all())
        return finite and scaled_gradient(self.gradient, self.hessian) <= GRADIENT_TOLERANCE


def _optimise(
    x: Array,
    max_evaluations: Array,
    stats: SufficientStatistics,
    *,
    method: Method,
) -> tuple[Array, ...]:
    def objective(x: Array) -> tuple[Array, tuple[Array, Array]]:
        factors = [
            term.covariance.factor(part) for term, part in zip(stats.terms, stats.split(x), strict=True)
        ]
        found = profile(stats.assemble(factors), stats, method=method)
        return found.deviance, (found.log_rss, found.schur)

    by_hand = None if stats.root is None else partial(curvature.evaluate, stats=stats, method=method)
    slopes = [E for term in stats.terms for E in term.covariance.jacobian(np.zeros(0))]
    even = np.array([np.diagonal(E).any() for E in slopes], dtype=bool)  # a factor's column has no sign
    result = optim.minimize(objective, x, max_evaluations=max_evaluations, evaluator=by_hand, even=even)
    at = result.evaluation
    return (
        result.theta,
        at.value,
        at.gradient,
        at.hessian,
        at.aux[1],
        at.aux_tangents[0],
        result.evaluations,
        result.status,
    )


PROGRAM = Program(_optimise)
"""The compiled optimiser, one executable per structure and size of the statistics."""


def scaled_gradient(gradient: np.ndarray, hessian: np.ndarray) -> float:
    """Largest component of the gradient in units of its own curvature."""
    if len(gradient) == 0:
        return 0.0
    curvature = np.sqrt(np.abs(np.diagonal(hessian)))
    return float(np.max(np.abs(gradient) / np.maximum(curvature, 1e-4)))


class Search:
    """Runs of the optimiser on one data set, and what they cost.

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
        cheaper = 1 if stats.num_params <= optim.NEWTON_LIMIT else LBFGS_STEPS
        self.max_evaluations = np.asarray(cheaper * max_evaluations)
        self.evaluations = 0

    def optimum(self, start: np.ndarray) -> Optimum:
        """Best optimum found from starting values, in canonical form."""
        return self._canonical(self._leave_saddles(self._from_starts(start)))

    def _run(self, x: np.ndarray) -> Optimum:
        with double_precision():
            output = PROGRAM(x, self.max_evaluations, self.stats, method=self.method)
            found = Optimum(*to_host(output))
        self.evaluations += int(found.evaluations)
        return found

    def _from_starts(self, x: np.ndarray) -> Optimum:
        """First start that converges; otherwise the lowest finite point that any reached."""
        best = self._run(x)
        for factor in _RESTARTS:  # when the moments' start fails, which is rare: smaller and larger variances
            if best.is_stationary:
                break
            other = self._run(factor * x)
            if not np.isfinite(best.value) or other.value < best.value:
                best = other
        return best

    def _leave_saddles(self, found: Optimum) -> Optimum:
        """Step off points of negative curvature, both ways, until the curvature is not negative."""
        for _ in range(_MAX_ESCAPES):
            curvature, direction = found.smallest_curvature
            if curvature == 0:
                break
            step = 0.3 * max(1.0, float(np.abs(found.x).max())) * direction
            trials = [self._run(found.x + sign * step) for sign in (1.0, -1.0)]
            better = min(trials, key=lambda trial: np.nan_to_num(trial.value, nan=np.inf))
            if not better.value < found.value - 1e-10:
                break
            found = better
        return found

    def _canonical(self, found: Optimum) -> Optimum:
        """Non-negative diagonals; exact zeros where the deviance has its minimum at zero."""
        exact, snapped = self._canonical_points(found.x)
        for _ in range(_MAX_RELEASES):
            if (snapped == exact).all():
                break
            singular = self._run(snapped)
            settled, _ = self._canonical_points(singular.x)
            stays = (settled[snapped == 0] == 0).all()
            curvature, _ = singular.smallest_curvature
            if stays and curvature == 0 and singular.value <= found.value + SNAP_COST:
                return singular._replace(x=settled)
            # Release what gains by leaving zero; the rest may still be zero.
            gains = np.diagonal(singular.hessian) < 0
            snapped = np.where(gains | ~np.isfinite(np.diagonal(singular.hessian)), exact, snapped)
        signs = np.where(found.x * exact < 0, -1.0, 1.0)
        moved = np.abs(signs * found.x - exact)
        if (moved > 1e-9 * np.abs(exact) + 1e-12 * np.abs(exact).max()).any():
            return self._run(exact)
        return found._replace(
            x=exact,
            gradient=signs * found.gradient,
            hessian=found.hessian * np.outer(signs, signs),
            log_rss_gradient=signs * found.log_rss_gradient,
        )

    def _canonical_points(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Canonical parameters of the same covariances, and with what is nearly zero set to zero."""
        exact, snapped = [], []
        for term, part in zip(self.stats.terms, self.stats.split(x), strict=True):
            T = np.tensordot(part, term.covariance.jacobian(part), axes=1)
            G = T @ T.T
            exact.append(term.covariance.from_covariance(G))
            snapped.append(term.covariance.from_covariance(G, tolerance=SNAP, floor=SNAP))
        return np.concatenate(exact), np.concatenate(snapped)
