"""Profiles of residual parameters: those that a single number, the others free, holds where they are.

These are the standard deviations, the exponents of variance functions, and the parameters of families each of
which is an increasing function of one free parameter: of an autoregression or moving average of order one, of
exchangeable, exponential and antedependent structures, of the user's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxmixed.estimates import Estimates, ResidualEstimate
from jaxmixed.profile_constraints import Combination, Held
from jaxmixed.residual_covariance import ResidualCovariance
from jaxmixed.residual_inference import has_sds, natural_names, natural_scales, natural_values


@dataclass(frozen=True, slots=True)
class _Place:
    """What holds a natural parameter.

    Attributes
    ----------
    number : int
        Among the natural parameters.
    slot : int
        Free residual parameter, their number for log sigma.
    others : tuple of int
        Further ones that a logarithm of a standard deviation is the sum of.
    """

    number: int
    slot: int
    others: tuple[int, ...] = ()


def _places(covariance: ResidualCovariance) -> list[_Place]:
    """The natural parameters that can be profiled."""
    # Where the parameters are anything but special, all derivatives that are not zero throughout show.
    free = np.random.default_rng(0).uniform(0.2, 0.8, covariance.num_params)
    _, slopes = natural_values(covariance, free, 1.0)
    first_sd = covariance.strata * len(covariance.family.scales)
    sds = covariance.strata * covariance.levels if has_sds(covariance) else 0
    # Some of a family's parameters without the others would look as if they were all.
    every = bool((np.count_nonzero(slopes[:first_sd], axis=1) == 1).all() and (slopes[:first_sd] >= 0).all())
    found = []
    for number, row in enumerate(slopes):
        (slots,) = np.nonzero(row)
        if first_sd <= number < first_sd + sds:
            # The level's own ratio, else the stratum's, else sigma.
            *others, sigma = slots.tolist()
            slot = min(others, default=sigma)
            found.append(_Place(number, slot, tuple(other for other in slots.tolist() if other != slot)))
        elif number >= first_sd or every:
            found.append(_Place(number, int(slots[0])))
    return found


def profiled_names(estimates: Estimates) -> list[str]:
    """Names of the residual parameters that can be profiled, in the order of the tables.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> data = jm.datasets.load("orthodont")
    >>> fit = jm.mixed("distance ~ age", data, residuals="cs(age | Subject)")
    >>> profiled_names(fit.estimates)
    ['rho']
    """
    own = estimates.residual
    if own is None:
        return []
    names = natural_names(own.covariance, own.labels)
    return [names[place.number] for place in _places(own.covariance)]


def held_residuals(estimates: Estimates, scale: float) -> list[Held]:
    """The constraints that hold these parameters.

    Parameters
    ----------
    estimates : Estimates
    scale : float
        Unit of the response.

    Returns
    -------
    list of Held
    """
    own = estimates.residual
    return [] if own is None else [_held(own, place, estimates, scale) for place in _places(own.covariance)]


def _held(own: ResidualEstimate, place: _Place, estimates: Estimates, scale: float) -> Held:
    k = len(estimates.free)
    start = k - len(own.free)
    constraint = Combination(start + place.slot, tuple(start + other for other in place.others))
    if place.others or place.slot == len(own.free):
        return Held(constraint, None, None, lambda c: scale * float(np.exp(c)), ends=(0.0, np.inf))

    def value(c: float) -> float:
        free = own.free.copy()
        free[place.slot] = c
        return float(natural_values(own.covariance, free, 1.0)[0][place.number])

    reach = float(own.covariance.farthest[place.slot])
    ends = (-np.inf, np.inf) if np.isinf(reach) else (value(-reach), value(reach))
    if natural_scales(own.covariance)[place.number] == "log":
        ends = (0.0, np.inf)
    return Held(constraint, None, None, value, -reach, reach, ends, known_ends=False)


def residual_values(estimates: Estimates, z: np.ndarray, scale: float) -> np.ndarray:
    """These parameters at points (n, k + 1) of the likelihood's own, (n, a)."""
    own = estimates.residual
    if own is None:
        return np.zeros((len(z), 0))
    numbers = [place.number for place in _places(own.covariance)]
    start = len(estimates.free) - len(own.free)
    rows = [natural_values(own.covariance, row[start:-1], scale * np.exp(row[-1]))[0][numbers] for row in z]
    return np.array(rows).reshape(len(z), len(numbers))
