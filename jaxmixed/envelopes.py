"""What residuals and predicted random effects look like where the model is right, by simulation.

Responses are drawn from the fitted model, and fixed effects, random effects and sigma estimated from each at
the fitted relative variances (:mod:`jaxmixed.replicated_effects`): shrinkage, unequal group sizes and the
correlation that estimation brings into residuals are those of the data. The relative variances are not
estimated anew.

References
----------
Atkinson (1981), Two graphical displays for outlying and influential observations in regression, Biometrika
68(1), 13-20 (simulated envelopes of normal plots).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxmixed._distributions import normal_quantile
from jaxmixed.draws import check_seed
from jaxmixed.errors import DataError
from jaxmixed.fitted import Fitted
from jaxmixed.replicated_effects import LANES, EffectsPass, ReplicatedEffects
from jaxmixed.resampling import parametric
from jaxmixed.residual_whitening import whitened

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates
    from jaxmixed.frame import ModelFrame

SIMULATIONS, FEWER, MANY_ROWS = 119, 39, 50_000
"""Simulated responses by default, and for more rows than that: either gives limits of 95 % at whole ranks."""

_MOST_SHOWN, _TAIL = 1000, 100


def check_simulations(simulations: Any, num_rows: int, weighted: bool = False) -> int:
    """Number of simulated responses: the caller's, or the default for so many rows.

    None by default if rows and groups count other than once, which a simulation does not know.

    Raises
    ------
    DataError
        If it is no number of responses.
    """
    if simulations is None and weighted:
        return 0
    if simulations is None:
        return SIMULATIONS if num_rows <= MANY_ROWS else FEWER
    whole = isinstance(simulations, int | np.integer) and not isinstance(simulations, bool)
    if not whole or simulations < 0:
        raise DataError(
            f"simulations is {simulations!r}; give the number of responses to simulate, or 0 for no limits"
        )
    return int(simulations)


def quantile_limits(drawn: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Pointwise limits from simulated values (k, B).

    A further value of the same distribution lies between the ranks (B + 1)(1 - level) / 2 from either end
    with the probability `level`, exactly where these ranks are whole numbers.

    Raises
    ------
    DataError
        If B is too small for such ranks.

    Examples
    --------
    >>> low, high = quantile_limits(np.arange(1.0, 40.0)[None], 0.95)
    >>> low.round(6).tolist(), high.round(6).tolist()
    ([1.0], [39.0])
    """
    normal_quantile(level)  # refuses what is no level
    tail, count = (1 - level) / 2, drawn.shape[1]
    if (count + 1) * tail < 1 - 1e-9:
        raise DataError(
            f"simulations={count} are too few for limits of level {level:g}; it takes"
            f" {int(np.ceil(1 / tail - 1e-9)) - 1} or more"
        )
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=1, method="weibull")
    return low, high


Replicates = Iterable[tuple[np.ndarray, ReplicatedEffects]]
"""Responses less any offset, (n, b) at a time, and what is estimated from each."""


def replicated(fit: Fitted, count: int, seed: int) -> Iterator[tuple[np.ndarray, ReplicatedEffects]]:
    """Responses that the fitted model generates, less any offset, and what is estimated from each.

    Parameters
    ----------
    fit : Fitted
    count : int
    seed : int
        Replicate i of a seed is the same whatever `count`.

    Yields
    ------
    Y : (n, b) array
        Up to `replicated_effects.LANES` responses, each from new random effects and residuals.
    effects : ReplicatedEffects
    """
    draw, solver = parametric(fit, check_seed(seed)), EffectsPass(fit.state, fit.estimates)
    for first in range(0, count, LANES):
        Y = draw(first, min(first + LANES, count))
        for effects in solver.solve(Y):
            yield Y, effects


def replicated_residuals(fit: Fitted, replicates: Replicates) -> Iterator[np.ndarray]:
    """Normalized conditional residuals of simulated responses, (n, b) at a time.

    Of each response, less what is fitted to it, times the root of the row's weight (correlated ones are
    whitened), over its own sigma.

    Parameters
    ----------
    fit : Fitted
    replicates : Replicates
        Of this fit.
    """
    frame, estimates = fit.frame, fit.estimates
    root_weights = None if frame.weights is None else np.sqrt(frame.weights)[:, None]
    for Y, effects in replicates:
        errors = Y - _fitted(frame, estimates, effects)
        if estimates.residual is not None:
            errors = whitened(frame.residual.design, estimates.residual.free, frame.weights, errors)
        elif root_weights is not None:
            errors *= root_weights
        yield errors / effects.sigma


def _fitted(frame: ModelFrame, estimates: Estimates, effects: ReplicatedEffects) -> np.ndarray:
    """Fitted values without offset, (n, b)."""
    total = frame.X @ np.where(np.isnan(effects.beta), 0.0, effects.beta).T
    for term, modes in zip(estimates.terms, effects.modes, strict=True):
        group = frame.groups[term.frame_index]
        for column, mode in zip(group.Z.T, np.moveaxis(modes, -1, 0), strict=True):
            total += column[:, None] * mode.T[group.codes]
    return total


def replicated_modes(replicates: Replicates, term: int, effect: int) -> Iterator[np.ndarray]:
    """Predicted random effects of simulated responses, (m, b) at a time.

    Parameters
    ----------
    replicates : Replicates
    term : int
        Position among the estimates' terms.
    effect : int
        Position in the term.
    """
    for _, effects in replicates:
        yield effects.modes[term][:, :, effect].T


class QuantilePlot(NamedTuple):
    """Ordered values against normal quantiles, at k of the n ranks.

    Attributes
    ----------
    theoretical, observed : (k,) arrays
    low, centre, high : (k,) arrays
        Pointwise limits and medians of the same ranks of simulated values; NaN without simulations.
    num_values : int
        All n.
    simulations : int
    """

    theoretical: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    centre: np.ndarray
    high: np.ndarray
    num_values: int
    simulations: int


def shown_ranks(count: int) -> np.ndarray:
    """All ranks (from 0), or about 1000: the outermost hundred on either side, and others evenly between.

    Evenly on the scale of normal quantiles.
    """
    if count <= _MOST_SHOWN:
        return np.arange(count)
    from scipy.special import ndtr, ndtri

    end = ndtri(_TAIL / count)
    inner = np.rint(count * ndtr(np.linspace(end, -end, _MOST_SHOWN - 2 * _TAIL))).astype(np.int64)
    return np.unique(np.r_[np.arange(_TAIL), np.clip(inner, 0, count - 1), np.arange(count - _TAIL, count)])


def plotting_positions(count: int, ranks: np.ndarray) -> np.ndarray:
    """Normal quantiles of ranks (from 0), as R's ``qqnorm`` takes them.

    Examples
    --------
    >>> plotting_positions(20, np.array([0, 19])).round(4).tolist()
    [-1.96, 1.96]
    """
    from scipy.special import ndtri

    shift = 3 / 8 if count <= 10 else 1 / 2
    return ndtri((ranks + 1 - shift) / (count + 1 - 2 * shift))


def quantile_plot(values: np.ndarray, simulated: Iterable[np.ndarray] | None, level: float) -> QuantilePlot:
    """Ordered values with the limits of those that are simulated.

    Parameters
    ----------
    values : (n,) array
    simulated : iterable of (n, b) arrays, or None
    level : float
        Of the limits.

    Returns
    -------
    QuantilePlot
    """
    ranks = shown_ranks(len(values))
    theoretical, observed = plotting_positions(len(values), ranks), np.sort(values)[ranks]
    if simulated is None:
        normal_quantile(level)  # refuses what is no level
        none = np.full(len(ranks), np.nan)
        return QuantilePlot(theoretical, observed, none, none, none, len(values), 0)
    drawn = np.concatenate([np.sort(block, axis=0)[ranks] for block in simulated], axis=1)
    low, high = quantile_limits(drawn, level)
    centre = np.median(drawn, axis=1)
    return QuantilePlot(theoretical, observed, low, centre, high, len(values), drawn.shape[1])
