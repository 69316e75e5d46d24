"""Newton's method with one parameter held, for many held parameters and values at once.

The steps of all searches are computed together on the host; what is expensive, the criterion with its exact
derivatives, is evaluated together by :class:`jaxmixed.profile_likelihood.Criterion`.

References
----------
Nocedal & Wright (2006), Numerical Optimization, 2nd edition, sections 3.4 and 4.1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmixed.profile_constraints import Placed
from jaxmixed.profile_likelihood import Criterion, Lane, Values

TOLERANCE = 1e-10
"""Predicted decrease of the deviance at which a search ends, after one more step."""

MAX_EVALUATIONS = 100

NEGATIVE = 1e-6
"""An eigenvalue of the unit-diagonal Hessian below minus this is negative curvature, not rounding."""

FLAT = 1e-9
"""An eigenvalue of the unit-diagonal Hessian below this is of a flat direction."""

PATIENCE = 20
"""Evaluations after which a search must have gained something."""

STALLED = 1e-7
"""By which less is nothing: a limit moves by 1e-8 of its interval's width."""


class Solved(NamedTuple):
    """Constrained optima, a row each.

    Attributes
    ----------
    y : (n, k + 1) array
        Free numbers.
    z : (n, k + 1) array
        (theta, log sigma).
    deviance : (n,) array
        NaN where the search failed.
    slope : (n,) array
        Its derivative along the held coordinate.
    tangent : (n, k + 1) array
        How the free numbers move with the held coordinate, as far as they do by z.
    direction : (n, r) array
        From :meth:`Criterion.residual_direction`.
    """

    y: np.ndarray
    z: np.ndarray
    deviance: np.ndarray
    slope: np.ndarray
    tangent: np.ndarray
    direction: np.ndarray


class _State(NamedTuple):
    """Derivatives of the criterion along the free numbers at accepted points."""

    value: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    full: Values
    placed: list[Placed]


def solve(criterion: Criterion, lanes: Sequence[Lane], c: np.ndarray, start: np.ndarray) -> Solved:
    """Maximise the likelihood over what is free, for many held parameters and values at once.

    Newton's method with the exact Hessian made positive definite, damped (Levenberg-Marquardt) where a step
    does not keep what it promises; points of negative curvature are left along it.

    Parameters
    ----------
    criterion : Criterion
    lanes : sequence of Lane
        n of them, possibly one several times.
    c : (n,) array
        Where their parameters are held.
    start : (n, k + 1) array
        Free numbers.

    Returns
    -------
    Solved
    """
    n = len(lanes)
    y, shift, predicted = start.copy(), np.zeros(n), np.zeros(n)
    trial, step = start.copy(), np.zeros_like(start)
    done, failed = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    escapes = np.zeros(n, dtype=int)
    state = _evaluate(criterion, lanes, c, trial)
    failed |= ~_is_finite(state)
    before = state.value.copy()
    for evaluation in range(MAX_EVALUATIONS):
        at = np.flatnonzero(~done & ~failed)
        if not at.size:
            break
        if evaluation:
            new = _evaluate(criterion, [lanes[i] for i in at.tolist()], c[at], trial[at])
            noise = 64 * np.finfo(float).eps * (1 + np.abs(state.value[at]))
            actual = state.value[at] - new.value
            accepted = _is_finite(new) & (actual >= 1e-4 * predicted[at] - noise)
            ratio = np.where(accepted, actual / np.maximum(predicted[at], noise), 0.0)
            ratio[accepted & (predicted[at] <= 1e-8)] = 1.0
            shift[at] = _next_shift(shift[at], ratio, accepted)
            _put(state, at, new, accepted)
            y[at[accepted]] = trial[at[accepted]]
            failed[at[~accepted & (shift[at] > 1e10)]] = True
        _propose(state, y, at, shift, trial, step, predicted, done, escapes, criterion.rows)
        if evaluation and evaluation % PATIENCE == 0:
            # In the valleys near a singular covariance nothing more is to be gained by crawling on.
            stalled = at[~done[at] & (before[at] - state.value[at] < STALLED)]
            done[stalled], step[stalled], predicted[stalled] = True, 0.0, 0.0
            before[at] = state.value[at]
    failed |= ~done
    placed = [lane.map.place(own, row) for lane, own, row in zip(lanes, c, y - step, strict=True)]
    return _finish(criterion, lanes, c, y - step, state, placed, predicted, failed)


def _evaluate(criterion: Criterion, lanes: Sequence[Lane], c: np.ndarray, y: np.ndarray) -> _State:
    """The criterion and its derivatives along the free numbers."""
    placed = [lane.map.place(float(own), row) for lane, own, row in zip(lanes, c, y, strict=True)]
    full = criterion(lanes, np.stack([point.z for point in placed]), c)
    slope = np.stack([point.slope for point in placed])
    gradient = np.einsum("nab,na->nb", slope, full.gradient)
    hessian = slope.swapaxes(1, 2) @ full.hessian @ slope
    for row, point in enumerate(placed):
        for a, i, j, value in point.curves:
            hessian[row, i, j] += value * full.gradient[row, a]
            if i != j:
                hessian[row, j, i] += value * full.gradient[row, a]
        idle = point.idle
        gradient[row, idle] = 0.0
        hessian[row, idle], hessian[row, :, idle] = 0.0, 0.0
        hessian[row, idle, idle] = 1.0
    return _State(full.value, gradient, hessian, full, placed)


def _is_finite(state: _State) -> np.ndarray:
    finite = np.isfinite(state.value) & np.isfinite(state.gradient).all(axis=1)
    return np.asarray(finite & np.isfinite(state.hessian).all(axis=(1, 2)))


def _put(state: _State, at: np.ndarray, new: _State, accepted: np.ndarray) -> None:
    """Take over the points that were accepted."""
    rows = at[accepted]
    for old, found in zip((*state[:3], *state.full), (*new[:3], *new.full), strict=True):
        old[rows] = found[accepted]
    for row, kept in zip(rows, np.flatnonzero(accepted), strict=True):
        state.placed[row] = new.placed[kept]


def _next_shift(shift: np.ndarray, ratio: np.ndarray, accepted: np.ndarray) -> np.ndarray:
    """Less damping after a good step, more after a poor one."""
    calmer = np.where(shift > 1e-6, shift / 16, 0.0)
    stricter = np.maximum(6 * shift, 0.25)
    return np.where(accepted & (ratio > 0.75), calmer, np.where(accepted & (ratio > 0.25), shift, stricter))


class _Spectrum(NamedTuple):
    """Hessians of unit diagonal by their eigenvalues, and gradients along their eigenvectors."""

    size: np.ndarray
    values: np.ndarray
    vectors: np.ndarray
    along: np.ndarray

    @classmethod
    def of(cls, gradient: np.ndarray, hessian: np.ndarray) -> "_Spectrum":
        diagonal = np.abs(np.einsum("nii->ni", hessian))
        floor = 1e-10 * diagonal.max(axis=1, keepdims=True) + np.finfo(float).tiny
        size = np.sqrt(np.maximum(diagonal, floor))
        values, vectors = np.linalg.eigh(hessian / (size[:, :, None] * size[:, None, :]))
        along = np.einsum("nab,na->nb", vectors, gradient / size)
        return cls(size, values, vectors, along)

    def step(self, divisor: np.ndarray) -> np.ndarray:
        """Solution where the eigenvalues are replaced by others."""
        return np.asarray(np.einsum("nab,nb->na", self.vectors, self.along / divisor) / self.size)


def _propose(
    state: _State,
    y: np.ndarray,
    at: np.ndarray,
    shift: np.ndarray,
    trial: np.ndarray,
    step: np.ndarray,
    predicted: np.ndarray,
    done: np.ndarray,
    escapes: np.ndarray,
    rows: list[np.ndarray],
) -> None:
    """Next points of some searches, in place; those that are at an optimum are done, one step beyond it."""
    spectrum = _Spectrum.of(state.gradient[at], state.hessian[at])
    safe = np.maximum(np.abs(spectrum.values), FLAT)
    decrement = 0.5 * (spectrum.along**2 / safe).sum(axis=1)
    noise = 64 * np.finfo(float).eps * (1 + np.abs(state.value[at]))
    quiet = decrement <= np.maximum(TOLERANCE, noise)
    saddle = quiet & (spectrum.values[:, 0] < -NEGATIVE) & (escapes[at] < 2 * len(_ESCAPES))
    # Along a flat direction a gradient is rounding.
    last = spectrum.step(np.where(spectrum.values > 1e-6, spectrum.values, np.inf))
    damped = spectrum.step(safe + shift[at, None])
    limit = 2 * np.maximum(1.0, np.abs(y[at]).max(axis=1))
    damped *= np.minimum(1.0, limit / np.maximum(np.abs(damped).max(axis=1), 1e-300))[:, None]
    for row in np.flatnonzero(saddle):
        away = spectrum.vectors[row, :, 0] / spectrum.size[row]
        number = escapes[at[row]]
        length = _ESCAPES[number // 2] * (-1) ** number * limit[row] / np.abs(away).max()
        damped[row], escapes[at[row]] = length * away, number + 1
    own = np.where((quiet & ~saddle)[:, None], last, damped)
    H = state.hessian[at]
    decrease = (own * state.gradient[at]).sum(axis=1) - 0.5 * np.einsum("na,nab,nb->n", own, H, own)
    step[at], predicted[at] = own, np.where(saddle, np.maximum(1e-3 * decrease, 1e-9), decrease)
    trial[at] = y[at] - own
    done[at] = quiet & ~saddle
    for row in np.flatnonzero(~saddle):
        _turn(trial[at[row]], y[at[row]], rows, state.placed[at[row]].idle)


def _turn(trial: np.ndarray, y: np.ndarray, rows: list[np.ndarray], idle: np.ndarray) -> None:
    """Turn the rows of triangular factors instead of stretching them, in place, as `Unstructured.retract`."""
    for row in rows:
        own = row[~idle[row]]
        if len(own) < 2:
            continue
        now, moved = y[own], trial[own]
        square, step = now @ now, moved - now
        if step @ step < square:
            wanted = np.sqrt(square) + now @ step / np.sqrt(square)
            if wanted > 0:
                trial[own] = moved * (wanted / np.linalg.norm(moved))


_ESCAPES = (0.15, 0.04, 0.01)
"""Distances at which a way down from a point of negative curvature is sought, to both sides."""


def _finish(
    criterion: Criterion,
    lanes: Sequence[Lane],
    c: np.ndarray,
    y: np.ndarray,
    state: _State,
    placed: list[Placed],
    predicted: np.ndarray,
    failed: np.ndarray,
) -> Solved:
    """What is asked of the optima."""
    r = criterion.p + 1
    slopes, tangents = np.full(len(lanes), np.nan), np.zeros_like(y)
    directions = np.full((len(lanes), r), np.nan)
    for row in np.flatnonzero(~failed).tolist():
        lane, point, S = lanes[row], state.placed[row], state.full.schur[row]
        directions[row] = v = criterion.residual_direction(lane, c[row], S)
        g, H = state.full.gradient[row], state.full.hessian[row]
        of_response = 2 * np.exp(-2 * point.z[-1]) * (lane.regression.move @ S @ v)
        slopes[row] = point.along @ g + of_response
        small = 1e-6 * max(1.0, abs(c[row]))
        turned = (lane.map.place(c[row] + small, y[row]).slope - placed[row].slope) / small
        mixed = point.slope.T @ H @ point.along + turned.T @ g
        mixed[point.idle] = 0.0
        spectrum = _Spectrum.of(mixed[None], state.hessian[row][None])
        tangents[row] = -spectrum.step(np.where(spectrum.values > 1e-6, spectrum.values, np.inf))[0]
    return Solved(
        y=y,
        z=np.stack([point.z for point in placed]),
        deviance=np.where(failed, np.nan, state.value - predicted),
        slope=slopes,
        tangent=tangents,
        direction=directions,
    )
