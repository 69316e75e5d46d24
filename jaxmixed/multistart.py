"""The search repeated from dispersed random starts, to see whether it ends where the fit did.

A likelihood of variance parameters may have several maxima (Henn & Hodges 2014). The starts are drawn in the
coordinates of the optimiser, where standard deviations of effects are relative to sigma and columns have unit
size: standard deviations log-uniform between 1/30 and 30 (farther where the estimate lies near those), with
random correlations, and a covariance function's or residual structure's own parameters around its starting
values. Each start gets
the whole search of a fit, on the same statistics and with the same compiled program: nothing is compiled
anew, and the rows are not visited.

References
----------
Henn & Hodges (2014), Multiple local maxima in restricted likelihoods and posterior distributions for mixed
linear models, International Statistical Review 82, 90-105.
"""

from typing import NamedTuple

import numpy as np

from jaxmixed import optim
from jaxmixed.covariance import STRUCTURES
from jaxmixed.crossproducts import Reduction
from jaxmixed.draws import check_seed
from jaxmixed.errors import DataError
from jaxmixed.estimates import Estimates, ResidualEstimate
from jaxmixed.search import SingleRunner, search

REACH = 30.0
"""Standard deviations of starts lie between sigma divided by this and sigma times this."""

BEYOND = 3.0
"""They reach this much farther than every estimate."""

KERNEL_SPREAD = 1.5
"""Standard deviation of the free parameters of a covariance function (logarithms of lengths, atanh)."""

RESIDUAL_SPREAD = 1.0
"""The same of a residual structure, whose free parameters are of correlations and ratios near one."""

SAME_DEVIANCE = 1e-6
"""Deviances that differ by less are of the same optimum: no statistic of the fit changes visibly."""

DEVIANCE_ROUNDING = 1e-11
"""Rounding of a deviance, relative to its size."""

SAME_PARAMETERS = 1e-3
"""Relative difference of relative standard deviations and covariances that are the same."""

MOST_STARTS = 10_000


class Agreement(NamedTuple):
    """Where searches from random starts ended.

    Attributes
    ----------
    seed : int
    deviance : (s,) array
        Lowest deviance that each start led to; NaN where it is not finite.
    stationary : (s,) bool array
        Whether the gradient is zero there.
    standard : (s, k) array
        Standardised parameters there, in canonical form.
    same_parameters : (s,) bool array
        They are those of the fit.
    of_fit : float
        Deviance of the fit.
    tolerance : float
        Deviances that differ by less are the same.
    """

    seed: int
    deviance: np.ndarray
    stationary: np.ndarray
    standard: np.ndarray
    same_parameters: np.ndarray
    of_fit: float
    tolerance: float

    @property
    def best(self) -> int:
        """Which start led to the lowest deviance."""
        return int(np.argmin(np.where(self.stationary, self.deviance, np.inf)))

    @property
    def improvement(self) -> float:
        """How far the lowest deviance found is below the fit's; 0 where it is not."""
        if not self.stationary.any():
            return 0.0
        lower = float(self.of_fit - self.deviance[self.best])
        return lower if lower > self.tolerance else 0.0

    @property
    def reached(self) -> np.ndarray:
        """Mask of the starts that led to the deviance of the fit."""
        return self.stationary & (np.abs(self.deviance - self.of_fit) <= self.tolerance)

    def optima(self) -> list[np.ndarray]:
        """The starts that led to each different optimum, the lowest deviance first."""
        found: list[list[int]] = []
        for start in np.argsort(np.where(self.stationary, self.deviance, np.inf)).tolist():
            if not self.stationary[start]:
                break
            if found and self.deviance[start] - self.deviance[found[-1][0]] <= self.tolerance:
                found[-1].append(start)
            else:
                found.append([start])
        return [np.array(starts) for starts in found]


def random_starts(reduction: Reduction, estimates: Estimates, num: int, seed: int) -> np.ndarray:
    """Random parameters of every term, dispersed over their range.

    Parameters
    ----------
    reduction : Reduction
    estimates : Estimates
        Of the fit, whose estimates the starts surround.
    num : int
    seed : int

    Returns
    -------
    (num, k) array
        Standardised parameters; the first ones of a seed do not depend on `num`.
    """
    parts = []
    for number, (term, estimate) in enumerate(zip(reduction.stats.terms, estimates.terms, strict=True)):
        covariance, q = term.covariance, term.covariance.q
        T = covariance.factor(estimate.standard)
        sd = np.sqrt((T * T).sum(axis=1))
        low = np.minimum(1 / REACH, np.where(sd > 0, sd, np.inf) / BEYOND)
        high = np.maximum(REACH, BEYOND * sd)
        starts = []
        for start in range(num):
            rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(start, number)))
            sizes = np.exp(rng.uniform(np.log(low), np.log(high)))
            A = rng.standard_normal((q, q + 1))
            A /= np.sqrt((A * A).sum(axis=1, keepdims=True))
            own = covariance.from_covariance(np.outer(sizes, sizes) * (A @ A.T))
            if covariance.name not in STRUCTURES:
                own = covariance.initial()
                own[0] *= sizes[0]
                own[1:] += KERNEL_SPREAD * rng.standard_normal(len(own) - 1)
            starts.append(covariance.canonical(own))
        parts.append(np.stack(starts))
    if estimates.residual is not None:
        parts.append(_residual_starts(estimates.residual, num, seed, len(parts)))
    return np.concatenate(parts, axis=1)


def _residual_starts(own: ResidualEstimate, num: int, seed: int, number: int) -> np.ndarray:
    """Random free parameters (num, k) of a residual structure."""
    draws = [
        np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(start, number))).standard_normal(
            len(own.free)
        )
        for start in range(num)
    ]
    return own.covariance.initial() + RESIDUAL_SPREAD * np.stack(draws)


def search_from_random_starts(
    reduction: Reduction, estimates: Estimates, starts: int, seed: int = 0
) -> Agreement:
    """Search for the optimum again, from random starts.

    Parameters
    ----------
    reduction : Reduction
        What was fitted.
    estimates : Estimates
        The fit.
    starts : int
    seed : int

    Returns
    -------
    Agreement

    Raises
    ------
    DataError
        If `starts` or `seed` is not a sensible integer.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    >>> search_from_random_starts(fit.state, fit.estimates, 4).reached
    array([ True,  True,  True,  True])
    """
    if isinstance(starts, bool) or not isinstance(starts, int | np.integer) or not 1 <= starts <= MOST_STARTS:
        raise DataError(
            f"starts must be an integer from 1 to {MOST_STARTS:,}, such as 8, or 0 for none; it is {starts!r}"
        )
    seed = check_seed(seed)
    tolerance = max(SAME_DEVIANCE, DEVIANCE_ROUNDING * abs(estimates.deviance))
    if not len(estimates.free):
        closed = np.full(int(starts), estimates.deviance)
        sure, none = np.ones(int(starts), dtype=bool), np.zeros((int(starts), 0))
        return Agreement(seed, closed, sure, none, sure, estimates.deviance, tolerance)
    run = SingleRunner(reduction.compact, estimates.method, optim.MAX_ITERATIONS)  # type: ignore[arg-type]
    found = search(run, random_starts(reduction, estimates, int(starts), seed))
    deviance = np.where(np.isfinite(found.value), found.value, np.nan)
    same, first = np.ones(int(starts), dtype=bool), 0
    for estimate, columns in zip(estimates.terms, reduction.columns, strict=True):
        covariance = estimate.covariance
        own = slice(first, first + covariance.num_params)
        first = own.stop
        if columns.aliased:
            continue  # columns that depend on each other may share their variance in any way
        T, expected = covariance.factor(found.x[:, own]), covariance.factor(estimate.standard)
        G, G_fit = T @ T.swapaxes(1, 2), expected @ expected.T
        size = np.sqrt(np.maximum(np.diagonal(G_fit), 1e-4))
        same &= (np.abs(G - G_fit) <= SAME_PARAMETERS * np.outer(size, size)).all(axis=(1, 2))
    if estimates.residual is not None:
        free = estimates.residual.free
        same &= (np.abs(found.x[:, first:] - free) <= SAME_PARAMETERS * np.maximum(1, np.abs(free))).all(
            axis=1
        )
    stationary = found.is_stationary & np.isfinite(deviance)
    return Agreement(seed, deviance, stationary, found.x, same, estimates.deviance, tolerance)
