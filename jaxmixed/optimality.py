r"""What second derivatives say about an optimum, in the user's parameters: its weakest direction, its bounds.

**The weakest direction.** On the scales of the intervals (logarithms of standard deviations, atanh of
correlations) a change d of the variance parameters costs :math:`\tfrac12 d' M d` of deviance, where M is the
Hessian of the deviance there. The unit vector with the smallest cost is what the data determine least, and
:math:`\sqrt{2/\lambda}` its standard error, if lambda is that smallest eigenvalue; where the likelihood is
flat lambda is zero, and at a saddle negative.

**Active bounds.** A singular covariance :math:`\sigma^2 G` is a constrained optimum, which is one if no
direction into the cone lowers the deviance (the conditions of Karush, Kuhn and Tucker): :math:`c' D c \ge 0`
for all c, with :math:`D = \partial d / \partial G`. In the parameters of the factor :math:`G = T T'` such a
point is stationary, whatever D is. The Hessian shows it: for a column z of T that is zero,

.. math:: \frac{\partial^2 d}{\partial T_{iz} \partial T_{jz}} = 2 D_{ij}, \qquad i, j \ge z,

and the other elements of D follow from :math:`D T = 0`, which holds where the gradient vanishes. Nothing is
evaluated anew.

References
----------
Nocedal & Wright (2006), Numerical Optimization, 2nd edition, section 12.3.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from jaxmixed.estimates import Estimates, TermEstimate
from jaxmixed.inference import VarianceParameters, joined, log_scale, unprofiled_hessian
from jaxmixed.residual_inference import scaled_slopes

BOUND_ROUNDING = 1e-6
"""A derivative below minus this share of the largest second derivative is no rounding."""

FLAT_ON_LOG_SCALE = 1e-9
"""A second derivative this small determines nothing: a standard error of 40,000 on the log scale."""

PERFECT = 1e-9
"""A correlation this close to +-1, or an eigenvalue of a correlation matrix this close to zero, is there."""

Kind = Literal["variance", "correlation", "rank"]


class WeakDirection(NamedTuple):
    """The combination of variance parameters that the data determine least.

    Attributes
    ----------
    names : tuple of str
        ``ln sd(group effect)``, ``atanh cor(group effect, effect2)``, ``atanh phi1`` ..., of the P
        parameters that are free.
    weights : (P,) array
        Of length one; the largest is positive.
    curvature : float
        Second derivative of the deviance along it.
    std_error : float
        Of the combination; infinite where the likelihood is flat, NaN at a saddle.
    """

    names: tuple[str, ...]
    weights: np.ndarray
    curvature: float
    std_error: float


@dataclass(frozen=True, slots=True)
class BoundaryComponent:
    """Something that an estimated covariance matrix has on the boundary of its range.

    Attributes
    ----------
    term : int
        Position among the estimates' terms.
    group : str
    kind : {"variance", "correlation", "rank"}
        A variance of zero; a correlation at its limit; a combination of effects without variance.
    effects : tuple of str
        Those concerned.
    parameter : str
        ``var(group effect)``, ``cor(group effect, effect2)``, or ``var(group combination)``.
    value : float
        At the estimate: 0, or the correlation.
    derivative : float
        Of the profiled deviance in that parameter, others fixed, towards the inside of a variance's range;
        in the units of the data.
    is_minimum : bool
        The derivative has the sign of a minimum: the deviance does not fall into the inside.
    """

    term: int
    group: str
    kind: Kind
    effects: tuple[str, ...]
    parameter: str
    value: float
    derivative: float
    is_minimum: bool


def parameter_name(term: TermEstimate, i: int, j: int) -> str:
    """``sd(group effect)``, or ``cor(group effect, effect2)`` where i and j differ."""
    names = (joined(term.names),) * len(term.names) if term.covariance.homogeneous else term.names
    if i == j:
        return f"sd({term.group} {names[i]})"
    return (
        f"cor({term.group} {names[j]}, {names[i]})"
        if names[i] != names[j]
        else f"cor({term.group} {names[i]})"
    )


def _log_names(estimates: Estimates, index: tuple[tuple[int, int, int], ...]) -> list[str]:
    names = []
    for number, i, j in index:
        name = "sd(Residual)" if number < 0 else parameter_name(estimates.terms[number], i, j)
        names.append(f"{'ln' if i == j else 'atanh'} {name}")
    return names


@np.errstate(all="ignore")
def weakest_direction(estimates: Estimates) -> WeakDirection | None:
    """The combination of variance parameters that the data determine least.

    Parameters
    ----------
    estimates : Estimates

    Returns
    -------
    WeakDirection or None
        None for a linear model, and where second derivatives are not finite.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
    >>> weak = weakest_direction(fit.estimates)
    >>> weak.names, weak.weights.round(2), round(weak.std_error, 3)
    (('ln sd(Subject (Intercept))', 'ln sd(Residual)'), array([ 1.  , -0.01]), 0.183)
    """
    parameters = VarianceParameters.of(estimates)
    free = np.append(parameters.free[0], True)
    H = unprofiled_hessian(parameters)[0][np.ix_(free, free)]
    if not len(estimates.free) or not np.isfinite(H).all():
        return None
    index, slopes, defined = log_scale(parameters)
    names, J = _log_names(estimates, index), slopes[0]
    start = 0
    rows = []
    for term in estimates.terms:
        covariance, own = term.covariance, np.zeros((len(term.covariance.natural_names), len(free)))
        own[:, start : start + covariance.num_params] = covariance.natural(term.standard).jacobian
        rows.append(own)
        names += [f"{name}({term.group})" for name in covariance.natural_names]
        start += covariance.num_params
    residual_names, residual_slopes = scaled_slopes(estimates)
    names += residual_names
    J = np.concatenate([J, *rows, residual_slopes])[:, free]
    shown = np.concatenate([defined[0], np.ones(len(J) - len(index), dtype=bool)])
    shown &= np.isfinite(J).all(axis=1) & (J != 0).any(axis=1)
    # Directions of the optimiser's parameters that move no parameter shown cost what they cost.
    U, sizes, V = np.linalg.svd(J[shown], full_matrices=False)
    kept = sizes > 1e-10 * sizes.max(initial=0.0)
    if not kept.any():
        return None
    back = V[kept].T / sizes[kept]
    eigenvalues, vectors = np.linalg.eigh(back.T @ H @ back)
    weights = U[:, kept] @ vectors[:, 0]
    weights = weights * np.sign(weights[np.abs(weights).argmax()])
    kept_names = tuple(name for name, is_shown in zip(names, shown, strict=True) if is_shown)
    curvature = float(eigenvalues[0])
    if abs(curvature) < FLAT_ON_LOG_SCALE:
        return WeakDirection(kept_names, weights, curvature, float("inf"))
    return WeakDirection(kept_names, weights, curvature, float(np.sqrt(np.float64(2 / curvature))))


def _bound_derivatives(term: TermEstimate, H: np.ndarray) -> np.ndarray | None:
    """D of the standardised effects (q, q) of an unstructured term, from its block of the Hessian."""
    q, covariance = term.covariance.q, term.covariance
    T = covariance.factor(term.standard)
    zeros = np.flatnonzero(np.diagonal(T) == 0)
    if not zeros.size:
        return None
    z = int(zeros[0])
    own = [k for k, (_, column) in enumerate(covariance.elements()) if column == z]
    D = np.zeros((q, q))
    D[z:, z:] = H[np.ix_(own, own)] / 2
    if z:
        # Columns before z are not zero: D T = 0 there.
        across = -np.linalg.solve(T[:z, :z].T, T[z:, :z].T @ D[z:, z:])
        D[:z, z:], D[z:, :z] = across, across.T
        D[:z, :z] = -np.linalg.solve(T[:z, :z].T, T[z:, :z].T @ across.T)
    return D


def _unstructured(
    number: int, term: TermEstimate, H: np.ndarray, sigma: float, rounding: float
) -> list[BoundaryComponent]:
    standard = _bound_derivatives(term, H)
    if standard is None:
        return []
    solve = np.linalg.inv(term.frame)
    D = solve.T @ standard @ solve / sigma**2  # of the covariance in the units of the data

    def component(
        kind: Kind, effects: list[str], parameter: str, value: float, derivative: float, into: np.ndarray
    ) -> BoundaryComponent:
        inside = solve @ into
        fall = float(inside @ standard @ inside) / float(inside @ inside)
        return BoundaryComponent(
            number, term.group, kind, tuple(effects), parameter, value, derivative, fall >= -rounding
        )

    sd = np.sqrt(np.diagonal(term.cov))
    found = [
        component(
            "variance", [term.names[j]], f"var({term.group} {term.names[j]})", 0.0, float(D[j, j]), unit
        )
        for j, unit in enumerate(np.eye(len(sd)))
        if sd[j] == 0
    ]
    varying = np.flatnonzero(sd > 0)
    correlation = term.cov / np.outer(np.where(sd > 0, sd, 1.0), np.where(sd > 0, sd, 1.0))
    perfect = False
    for i in varying:
        for j in varying[varying < i]:
            rho = correlation[i, j]
            if abs(rho) < 1 - PERFECT:
                continue
            perfect, sign = True, float(np.sign(rho))
            into = np.zeros(len(sd))
            into[[i, j]] = sd[i], -sign * sd[j]
            name = f"cor({term.group} {term.names[j]}, {term.names[i]})"
            slope = float(2 * D[i, j] * sd[i] * sd[j])
            found.append(component("correlation", [term.names[j], term.names[i]], name, sign, slope, into))
    if perfect or not varying.size:
        return found
    eigenvalues, vectors = np.linalg.eigh(correlation[np.ix_(varying, varying)])
    for column in np.flatnonzero(eigenvalues <= PERFECT):
        weights = vectors[:, column] / sd[varying]
        weights = weights / weights[np.abs(weights).argmax()]
        effects = [term.names[j] for j in varying]
        into = np.zeros(len(sd))
        into[varying] = weights / float(weights @ weights)
        name = f"var({term.group} {combination(weights, effects)})"
        found.append(component("rank", effects, name, 0.0, float(into @ D @ into), into))
    return found


def combination(weights: np.ndarray, names: list[str] | tuple[str, ...]) -> str:
    """A weighted sum in words.

    Examples
    --------
    >>> combination(np.array([1.0, -0.5]), ["a", "b"])
    '+1*a -0.5*b'
    """
    return " ".join(f"{weight:+.3g}*{name}" for weight, name in zip(weights, names, strict=True))


def _of_roots(
    number: int, term: TermEstimate, H: np.ndarray, sigma: float, rounding: float
) -> list[BoundaryComponent]:
    """Structures whose parameters are roots of variances, or of eigenvalues: half of their curvatures."""
    covariance, group = term.covariance, term.group
    roots = np.flatnonzero(covariance.even())
    zero = roots[covariance.on_boundary(term.standard)[roots]]
    if not zero.size:
        return []
    units = sigma**2 * np.square(np.diagonal(term.frame))
    slopes = np.diagonal(H) / 2
    if covariance.name == "independent":
        return [
            BoundaryComponent(
                *(number, group, "variance", (name,), f"var({group} {name})", 0.0),
                *(float(slopes[at] / units[at]), bool(slopes[at] >= -rounding)),
            )
            for at in zero.tolist()
            for name in term.names[at : at + 1]
        ]
    fine = bool((slopes[zero] >= -rounding).all())
    if covariance.name == "exchangeable" and zero.size == 1:
        # The eigenvalues are v (1 + (q - 1) rho) and v (1 - rho); the one that is zero moves with rho alone.
        others = covariance.q - 1
        value, per_rho = ((-1 / others, others), (1.0, -1))[int(zero[0])]
        slope = float(slopes[zero[0]] * per_rho * term.cov[0, 0] / units[0])
        name = f"cor({group} {joined(term.names)})"
        return [BoundaryComponent(number, group, "correlation", term.names, name, value, slope, fine)]
    slope = float(slopes[roots].sum() / units[0])
    name = f"var({group} {joined(term.names)})"
    return [BoundaryComponent(number, group, "variance", term.names, name, 0.0, slope, fine)]


def boundary_components(estimates: Estimates) -> tuple[BoundaryComponent, ...]:
    """What the estimates have on the boundary of their range, with the derivative of the deviance there.

    Parameters
    ----------
    estimates : Estimates

    Returns
    -------
    tuple of BoundaryComponent

    Examples
    --------
    A variance estimated as zero, where the deviance rises with the variance:

    >>> import warnings
    >>> import jaxmixed as jm
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore", jm.SingularFitWarning)
    ...     fit = jm.mixed("Yield ~ 1 + (1 | Batch)", jm.datasets.load("dyestuff2"))
    >>> (bound,) = boundary_components(fit.estimates)
    >>> bound.parameter, round(bound.derivative, 4), bound.is_minimum
    ('var(Batch (Intercept))', 0.7174, True)
    """
    found: list[BoundaryComponent] = []
    if not np.isfinite(estimates.hessian).all():
        return ()
    rounding = BOUND_ROUNDING * max(float(np.abs(estimates.hessian).max(initial=0.0)), 1e-3)
    start = 0
    for number, term in enumerate(estimates.terms):
        own = slice(start, start + term.covariance.num_params)
        make = _unstructured if term.covariance.name == "unstructured" else _of_roots
        found += make(number, term, estimates.hessian[own, own], estimates.sigma, rounding)
        start = own.stop
    return tuple(found)
