"""Residual parameters at the end of their range: a nugget of zero, a correlation of one, or of none at all.

The optimiser's parameters are unbounded, so such an optimum lies at infinity: the search stops where the
deviance does not change any more. The parameter is then held there, as a variance of zero is, and what is
said about the others is said given that.
"""

from dataclasses import replace

import numpy as np

from jaxmixed.estimates import Diagnostics, ResidualEstimate
from jaxmixed.residual_covariance import ResidualCovariance
from jaxmixed.residual_inference import free_names, held_naturals, natural_names, natural_values
from jaxmixed.search import SingleRunner

FAR = 3.0
"""A free parameter that is undetermined and this far from zero is on its way to the end of its range."""

INSIDE = 0.01
"""How far inside of the range the deviance is looked at."""

STEEP = 0.5
"""A deviance that still falls by this much for a unit of the free parameter, at the end of it, has no end."""

AT_END, NO_EFFECT = "at the end of its range", "of the residuals has no effect"

_UNBOUNDED = (
    "the likelihood has no maximum: it rises without end as {} of the residuals goes to the end of its "
    "range, as where rows determine each other or do not vary"
)

_INWARDS = "{} of the residuals is at the end of its range though the deviance falls inwards from there"


def held_at_limit(covariance: ResidualCovariance, free: np.ndarray, determined: np.ndarray) -> np.ndarray:
    """Which free parameters are at the end of their range, or have no effect while others are.

    Parameters
    ----------
    covariance : ResidualCovariance
    free : (k,) array
    determined : (k,) bool array
        Those that the deviance changes with.

    Returns
    -------
    (k,) bool array

    Examples
    --------
    A correlation of one, and an autoregressive parameter that another one makes meaningless:

    >>> from jaxmixed.residual_families import AutoregressiveMovingAverage, Exchangeable
    >>> held_at_limit(ResidualCovariance(Exchangeable(2)), np.array([13.0]), np.array([False]))
    array([ True])
    >>> arma = ResidualCovariance(AutoregressiveMovingAverage(1, 1, 5))
    >>> held_at_limit(arma, np.array([0.5, -0.5]), np.array([False, False]))
    array([False, False])
    """
    ends = covariance.on_boundary(free) | (~determined & (np.abs(free) >= FAR))
    return ends | (~determined & ends.any())


def limit_sentences(residual: ResidualEstimate, sigma: float) -> tuple[str, ...]:
    """A sentence for each natural parameter that is at the end of its range, or has no effect there."""
    if not residual.held.any():
        return ()
    covariance, labels = residual.covariance, residual.labels
    values, _ = natural_values(covariance, residual.free, sigma)
    names = natural_names(covariance, labels)
    far = np.abs(residual.free) >= FAR
    ends = held_naturals(covariance, residual.held & far)
    idle = held_naturals(covariance, residual.held) & ~ends
    found = [f"residuals: {names[a]} is estimated as {values[a]:.4g}, {AT_END}" for a in np.flatnonzero(ends)]
    return (*found, *(f"{names[a]} {NO_EFFECT} there" for a in np.flatnonzero(idle)))


def examine_limits(
    diagnostics: Diagnostics, run: SingleRunner, x: np.ndarray, residual: ResidualEstimate, sigma: float
) -> Diagnostics:
    """Say which parameters are at the end of their range, and whether the deviance has its minimum there.

    Parameters
    ----------
    diagnostics : Diagnostics
    run : SingleRunner
        Of one evaluation.
    x : (k,) array
        The optimum.
    residual : ResidualEstimate
        Whose parameters are the last of `x`.
    sigma : float

    Returns
    -------
    Diagnostics
        With a sentence for each such parameter, and a further problem where the likelihood has no maximum, or
        not there.
    """
    covariance, sentences = residual.covariance, limit_sentences(residual, sigma)
    if sentences:
        singular = (*diagnostics.singular_terms, *sentences)
        diagnostics = replace(diagnostics, singular=True, singular_terms=singular)
    held = residual.held & covariance.on_boundary(residual.free)
    if not held.any():
        return diagnostics
    signs, start = np.sign(residual.free), len(x) - len(residual.free)
    inside = x.copy()
    inside[start:] = np.where(held, signs * (covariance.farthest - INSIDE), residual.free)
    gradient = run(np.arange(1), inside[None]).gradient[0, start:] * signs  # outwards
    names = free_names(covariance, residual.labels)
    further = [("unbounded", _UNBOUNDED.format(names[a])) for a in np.flatnonzero(held & (gradient < -STEEP))]
    further += [("boundary", _INWARDS.format(names[a])) for a in np.flatnonzero(held & (gradient > STEEP))]
    if not further:
        return diagnostics
    return replace(
        diagnostics,
        converged=False,
        status="not converged: a check of the optimum failed",
        problems=(*diagnostics.problems, *(kind for kind, _ in further)),
        messages=(*diagnostics.messages, *(message for _, message in further)),
    )
