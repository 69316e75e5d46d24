"""The optimum examined as a claim: gradient, curvature, boundary; every failure put into words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxmixed import optim
from jaxmixed.basis import ColumnBasis
from jaxmixed.covariance import STRUCTURES
from jaxmixed.estimates import Diagnostics, ResidualEstimate, TermEstimate
from jaxmixed.inference import FLAT
from jaxmixed.linalg import is_positive_definite
from jaxmixed.residual_inference import free_names
from jaxmixed.search import GRADIENT_TOLERANCE, NEGATIVE, Optimum, is_determined, scaled_gradient
from jaxmixed.statistics import Term

ALL_OF_IT = 100.0
"""Standard deviation of effects relative to sigma at which a search that fails was after a sigma of zero."""

RESIDUAL = "residual: "
"""What stands before the name of a residual parameter, where random effects have their grouping."""

DEPENDENT = "so the data do not determine its variance"
"""How the sentence about a term with dependent columns ends."""

OK, STOPPED, NOT_FINITE, NOT_STATIONARY, NOT_A_MINIMUM, UNDETERMINED = range(6)

REASONS = {
    OK: "",
    STOPPED: "the optimiser stopped before it converged",
    NOT_FINITE: "the deviance or its derivatives are not finite",
    NOT_STATIONARY: "the gradient is not zero at the solution",
    NOT_A_MINIMUM: "the Hessian is not positive definite: this is not a minimum",
    UNDETERMINED: "the likelihood is flat: the data do not determine all variance parameters",
}
"""What is wrong with an optimum, by the code in `Verdicts.reason`."""

_STATUS_PROBLEMS = {
    optim.ITERATION_LIMIT: "iteration_limit",
    optim.NO_DESCENT: "no_descent",
    optim.NOT_FINITE: "not_finite",
}
"""What an optimiser's status is called among the problems of a fit."""


class Problem(NamedTuple):
    """Something bad about an optimum: what kind it is, as in :class:`jaxmixed.estimates.Diagnostics`."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class TermLabel:
    """What a term is called by the user.

    Attributes
    ----------
    group : str
    names : tuple of str
        Effects.
    frame_index : int
        Position in the model frame.
    num_levels : int
    """

    group: str
    names: tuple[str, ...]
    frame_index: int
    num_levels: int


def dependent_columns(label: TermLabel, columns: ColumnBasis) -> str | None:
    """Sentence about a term whose random-effects columns cannot be told apart, or None."""
    if not columns.aliased:
        return None
    names = ", ".join(label.names[j] for j in columns.aliased)
    return (
        f"{label.group}: the random-effects column {names} is zero, or a combination of the columns before "
        f"it (a constant slope, say), {DEPENDENT}"
    )


def singular_direction(label: TermLabel, term: TermEstimate) -> str | None:
    """Sentence naming the direction in which an estimated covariance is singular, or None."""
    if not term.covariance.on_boundary(term.standard).any():
        return None
    sd = np.sqrt(np.diagonal(term.cov))
    zero = [name for name, value in zip(term.names, sd, strict=True) if value == 0]
    if zero:
        return f"{label.group}: the variance of {', '.join(zero)} is estimated as zero"
    correlation = term.cov / np.outer(sd, sd)
    pairs = [
        f"{term.names[i]} and {term.names[j]}"
        for i in range(len(sd))
        for j in range(i)
        if abs(correlation[i, j]) >= 1 - 1e-9
    ]
    if pairs:
        return f"{label.group}: the correlation of {', '.join(pairs)} is estimated as +-1"
    eigenvalues, vectors = np.linalg.eigh(correlation)
    weights = vectors[:, 0] / sd
    weights = weights / np.abs(weights).max()
    rank = int(np.sum(eigenvalues > 1e-9))
    combination = " ".join(f"{weight:+.3g}*{name}" for weight, name in zip(weights, term.names, strict=True))
    return (
        f"{label.group}: the covariance matrix has rank {rank} of {len(sd)}; the combination {combination} "
        "has an estimated variance of zero"
    )


def vanishing_residual(label: TermLabel, term: TermEstimate) -> str | None:
    """Sentence about a covariance function beside which the residual variance goes to zero, or None."""
    if term.covariance.name in STRUCTURES:
        return None
    ratio = float(np.sqrt((term.factor * term.factor).sum(axis=1).max()))
    if ratio < ALL_OF_IT:
        return None
    return (
        f"{label.group}: the effects vary {ratio:.3g} times as much as the residuals, whose variance goes to "
        f"zero: {term.covariance.name} explains every row, as a rough covariance function can where "
        "positions have one row each"
    )


_INWARDS = "a variance is zero or a correlation +-1 though the deviance falls inwards from there: no minimum"


def _flat_along(names: str) -> Problem:
    part = "the random part or the residual structure" if RESIDUAL in names else "the random part"
    message = (
        f"the likelihood is flat along {names}: the data do not determine these parameters; simplify {part}"
    )
    return Problem("flat", message)


def _curvature(
    gradient: np.ndarray, hessian: np.ndarray, names: list[str]
) -> tuple[np.ndarray, float, Problem | None]:
    """Eigenvalues of the unit-diagonal Hessian, Newton decrement, and what is wrong with the curvature."""
    if not (np.isfinite(hessian).all() and np.isfinite(gradient).all()):
        broken = Problem("not_finite", "the derivatives of the deviance are not finite")
        return np.full(len(gradient), np.nan), np.nan, broken
    scale = np.sqrt(np.abs(np.diagonal(hessian)))
    scale[scale == 0] = 1.0
    eigenvalues, vectors = np.linalg.eigh(hessian / np.outer(scale, scale))
    decrement = 0.5 * np.sum((vectors.T @ (gradient / scale)) ** 2 / np.maximum(np.abs(eigenvalues), FLAT))
    weak = np.abs(vectors[:, 0])
    direction = ", ".join(names[i] for i in np.argsort(-weak)[:3] if weak[i] > 0.2)
    problem: Problem | None = None
    if eigenvalues[0] < -10 * FLAT:
        problem = Problem(
            "saddle", f"the Hessian is not positive definite: this is not a minimum along {direction}"
        )
    elif eigenvalues[0] < FLAT:
        problem = _flat_along(direction)
    return eigenvalues, float(decrement), problem


def falls_inwards(hessian: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Whether deviances fall from the boundary into the inside, so that they have no minimum there.

    The deviance is even in parameters that are held at zero: their second derivatives are its first
    derivatives in the (co)variances (:mod:`jaxmixed.optimality`).

    Parameters
    ----------
    hessian : (m, k, k) array
    held : (m, k) bool array
        Parameters on the boundary.

    Returns
    -------
    (m,) bool array
        False where a Hessian is not finite.
    """
    falls = held.any(axis=1) & np.isfinite(hessian).all(axis=(1, 2))
    at = np.flatnonzero(falls)
    if at.size:
        H, own = hessian[at], held[at]
        rounding = 10 * NEGATIVE * np.maximum(np.abs(H).max(axis=(1, 2)), 1e-3)
        identity = np.eye(H.shape[1])
        block = np.where(own[:, :, None] & own[:, None, :], H, identity)
        falls[at] = ~is_positive_definite(block + rounding[:, None, None] * identity)
    return falls


class Verdicts(NamedTuple):
    """What was found about many optima.

    Attributes
    ----------
    reason : (m,) int8 array
        OK, or the first of the codes in REASONS that applies.
    singular : (m,) bool array
    free : (m, k) bool array
        Parameters that are not held on the boundary.
    determined : (m, k) bool array
        Parameters along which the likelihood is not flat.
    """

    reason: np.ndarray
    singular: np.ndarray
    free: np.ndarray
    determined: np.ndarray


def verdicts(found: Optimum, terms: Sequence[Term], dependent: Sequence[bool]) -> Verdicts:
    """Check many optima by the rules of :func:`examine`, in codes instead of words.

    Parameters
    ----------
    found : Optimum
        In canonical form.
    terms : sequence of Term
    dependent : sequence of bool
        For each term, whether its random-effects columns are linearly dependent.

    Returns
    -------
    Verdicts
    """
    m, k = found.x.shape
    free, judged, held, start = *np.zeros((3, m, k), dtype=bool), 0
    for term, is_dependent in zip(terms, dependent, strict=True):
        own = slice(start, start + term.covariance.num_params)
        free[:, own] = ~term.covariance.on_boundary(found.x[:, own])
        judged[:, own] = free[:, own] & (not is_dependent)
        held[:, own] = ~free[:, own] & (not is_dependent)
        start = own.stop
    determined = is_determined(found)
    finite = np.isfinite(found.hessian).all(axis=(1, 2)) & np.isfinite(found.gradient).all(axis=1)
    flat = (judged & ~determined).any(axis=1)
    kept = judged & determined & finite[:, None]
    hessian = np.where(kept[:, :, None] & kept[:, None, :], found.hessian, np.eye(k))
    steep = scaled_gradient(np.where(kept, found.gradient, 0.0), hessian) > GRADIENT_TOLERANCE
    smallest = _smallest_unit_eigenvalue(hessian)
    stopped = (found.status == optim.ITERATION_LIMIT) | ((found.status != optim.CONVERGED) & steep)
    conditions = {
        STOPPED: stopped,
        NOT_FINITE: ~finite,
        NOT_STATIONARY: steep,
        NOT_A_MINIMUM: (smallest < -10 * FLAT) | falls_inwards(found.hessian, held),
        UNDETERMINED: flat | (smallest < FLAT),
    }
    reason = np.select(list(conditions.values()), list(conditions), OK).astype(np.int8)
    return Verdicts(reason, np.logical_or(~free.all(axis=1), any(dependent)), free, determined)


def _smallest_unit_eigenvalue(hessian: np.ndarray) -> np.ndarray:
    """Smallest eigenvalue of each Hessian scaled to unit diagonal, or 1 where it is well above FLAT."""
    m, k = hessian.shape[:2]
    smallest = np.ones(m)
    scale = np.sqrt(np.abs(np.diagonal(hessian, axis1=1, axis2=2)))
    scale = np.where(scale == 0, 1.0, scale)
    unit = hessian / (scale[:, :, None] * scale[:, None, :])
    doubtful = np.flatnonzero(~is_positive_definite(unit - 100 * FLAT * np.eye(k)))
    if doubtful.size:
        smallest[doubtful] = np.linalg.eigvalsh(unit[doubtful])[:, 0]
    return smallest


def examine(
    found: Optimum,
    labels: tuple[TermLabel, ...],
    terms: tuple[TermEstimate, ...],
    columns: tuple[ColumnBasis, ...],
    evaluations: int,
    dropped: tuple[str, ...],
    condition: float,
    residual: ResidualEstimate | None = None,
) -> Diagnostics:
    """Check an optimum and say every failure in words.

    Parameters
    ----------
    found : Optimum
        In canonical form.
    labels, terms : tuples
        In the order of the statistics' terms.
    columns : tuple of ColumnBasis
        Coordinates of each term's columns.
    evaluations : int
        Of all runs of the optimiser.
    dropped : tuple of str
        Aliased fixed-effect columns.
    condition : float
        Condition number of the fixed-effect columns.
    residual : ResidualEstimate, optional
        Structure of correlated residuals, whose parameters follow those of the terms.

    Returns
    -------
    Diagnostics
    """
    judged: list[np.ndarray] = []
    held: list[np.ndarray] = []
    names: list[str] = []
    singular: list[str] = []
    for label, term, basis in zip(labels, terms, columns, strict=True):
        dependent = dependent_columns(label, basis)
        singular += [sentence for sentence in (dependent, singular_direction(label, term)) if sentence]
        # A term whose columns are dependent is flat by construction, which its own sentence says.
        on_boundary = term.covariance.on_boundary(term.standard)
        judged.append(~on_boundary & (dependent is None))
        held.append(on_boundary & (dependent is None))
        names += [f"{label.group}: {name}" for name in term.covariance.names(label.names)]
    if residual is not None:
        judged, held = [*judged, ~residual.held], [*held, np.zeros_like(residual.held)]
        names += [f"{RESIDUAL}{name}" for name in free_names(residual.covariance, residual.labels)]
    keep = np.concatenate(judged)
    flat = keep & ~is_determined(found)
    keep &= ~flat
    gradient, hessian = found.gradient[keep], found.hessian[np.ix_(keep, keep)]
    gradient_norm = float(scaled_gradient(gradient, hessian))
    eigenvalues, decrement, problem = np.zeros(0), 0.0, None
    if keep.any():
        kept_names = [name for name, is_kept in zip(names, keep, strict=True) if is_kept]
        eigenvalues, decrement, problem = _curvature(gradient, hessian, kept_names)
    if flat.any() and np.isfinite(found.hessian).all():
        flat_names = ", ".join(name for name, is_flat in zip(names, flat, strict=True) if is_flat)
        problem = _flat_along(flat_names)
    if falls_inwards(found.hessian[None], np.concatenate(held)[None])[0]:
        problem = Problem("boundary", _INWARDS)
    problems = _in_order(problem, gradient_norm, int(found.status))
    if problems:
        sentences = filter(None, map(vanishing_residual, labels, terms))
        problems += [Problem("vanishing_residual", sentence) for sentence in sentences]
    return Diagnostics(
        converged=not problems,
        status=_account(int(found.status), bool(problems)),
        iterations=max(evaluations - 1, 0),
        evaluations=evaluations,
        gradient_norm=gradient_norm,
        newton_decrement=decrement,
        hessian_eigenvalues=eigenvalues,
        singular=bool(singular),
        singular_terms=tuple(singular),
        messages=tuple(problem.message for problem in problems),
        rank_deficient=dropped,
        condition_number=condition,
        problems=tuple(problem.kind for problem in problems),
        gradient=found.gradient,
    )


def _in_order(curvature: Problem | None, gradient_norm: float, status: int) -> list[Problem]:
    """Why the optimiser stopped, if too early; what is wrong with the curvature, and with the gradient."""
    problems = [curvature] if curvature else []
    stationary = gradient_norm <= GRADIENT_TOLERANCE
    if not stationary:
        what = f"(scaled norm {gradient_norm:.2g}, tolerance {GRADIENT_TOLERANCE:g})"
        problems.append(Problem("not_stationary", f"the gradient is not zero at the solution {what}"))
    if status == optim.ITERATION_LIMIT or (status != optim.CONVERGED and not stationary):
        problems.insert(0, Problem(_STATUS_PROBLEMS[status], optim.MESSAGES[status]))
    return problems


def _account(status: int, failed: bool) -> str:
    if not failed:
        return optim.MESSAGES[optim.CONVERGED]
    return (
        optim.MESSAGES[status]
        if status != optim.CONVERGED
        else "not converged: a check of the optimum failed"
    )


def closed_form(dropped: tuple[str, ...], condition: float) -> Diagnostics:
    """Verdict on a model without random effects."""
    return Diagnostics(
        converged=True,
        status="closed form: no random effects",
        iterations=0,
        evaluations=0,
        gradient_norm=0.0,
        newton_decrement=0.0,
        hessian_eigenvalues=np.zeros(0),
        singular=False,
        singular_terms=(),
        messages=(),
        rank_deficient=dropped,
        condition_number=condition,
        problems=(),
        gradient=np.zeros(0),
    )
