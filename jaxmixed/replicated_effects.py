"""Fixed effects and conditional modes of further responses on a design, at given variance parameters.

At fixed variance parameters both are linear in the response, and all that depends on the design alone (the
factors of every group, and of the dense root) is computed once for many responses. What simulated responses
show of residuals and of predicted random effects is compared with what the data show.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxmixed.crossproducts import Reduction, reduce_rows
from jaxmixed.effects import by_term, level_modes, solve_levels
from jaxmixed.estimates import Estimates
from jaxmixed.fitting import fixed_effects, spread_columns, units_of
from jaxmixed.likelihood import level_factors
from jaxmixed.precision import double_precision, to_host
from jaxmixed.programs import Program
from jaxmixed.residual_whitening import whitened
from jaxmixed.responses import ResponsePass, Responses, attach, pad_responses
from jaxmixed.statistics import SufficientStatistics, pad

LANES = 8
"""Responses that are solved for together."""


class ReplicatedEffects(NamedTuple):
    """Estimates of B responses at the same variance parameters.

    Attributes
    ----------
    beta : (B, p) array
        Fixed effects (GLS), NaN where aliased.
    sigma : (B,) array
        Residual standard deviations at these relative variances.
    modes : tuple of (B, m, q) arrays
        Predicted random effects, term by term.
    """

    beta: np.ndarray
    sigma: np.ndarray
    modes: tuple[np.ndarray, ...]


def _of_responses(
    theta: Float[Array, " k"], design: SufficientStatistics, own: Responses
) -> tuple[Array, ...]:
    """Schur complements and modes of the standardised columns, responses along the first axis."""
    factors = level_factors(theta, design)

    def one(response: Responses) -> tuple[Array, ...]:
        stats = attach(design, response)
        solved = solve_levels(factors, stats)
        return (solved.schur, *level_modes(factors, solved, stats)[0])

    # What the response does not touch has no such axis, so that it is computed once.
    found: tuple[Array, ...] = jax.vmap(one, in_axes=-1)(own)
    return found


_OF_RESPONSES = Program(_of_responses)


class EffectsPass:
    """Estimates of further responses at the variance parameters of a fit.

    Parameters
    ----------
    state : Reduction
        Of the fitted data.
    estimates : Estimates

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    >>> again = next(EffectsPass(fit.state, fit.estimates).solve(fit.frame.y[:, None]))
    >>> bool(abs(again.modes[0][0] - fit.ranef()["Subject"]).max(axis=None) < 1e-8)
    True
    """

    def __init__(self, state: Reduction, estimates: Estimates) -> None:
        self._whiten = None
        if estimates.residual is not None:
            assert state.design.residual is not None
            own = (state.design.residual, estimates.residual.free, state.design.weights)
            self._whiten = partial(whitened, *own)
            state, estimates = _whitened_rows(state, self._whiten), replace(estimates, residual=None)
        self.state, self.estimates = state, estimates
        self.rows = ResponsePass(replace(state, compact=state.stats), method="reml")
        self.design = pad(state.stats)

    def solve(self, Y: np.ndarray) -> Iterator[ReplicatedEffects]:
        """Solve for responses, a few at a time and in their order.

        Parameters
        ----------
        Y : (n, B) array
            Responses less any offset.

        Yields
        ------
        ReplicatedEffects
            Of up to `LANES` responses.
        """
        for start in range(0, Y.shape[1], LANES):
            block = Y[:, start : start + LANES]
            if self._whiten is not None:
                block = self._whiten(block)
            own, _ = self.rows.reduce(block)
            yield self._solved(own, block.shape[1])

    def _solved(self, own: Responses, count: int) -> ReplicatedEffects:
        filled = jax.tree.map(lambda values: _repeated(values, LANES - count), pad_responses(own))
        with double_precision():
            found = to_host(_OF_RESPONSES(self.estimates.all_theta, self.design, filled))
        schur, *standard = (np.asarray(values)[:count] for values in found)
        scale = np.asarray(own.scale)
        units = units_of(self.state.stats)._replace(origin=np.asarray(own.origin).T, scale=scale)
        beta, _, sigma = fixed_effects(schur, units, self.estimates.df)
        keep, size = self.state.fixed.columns.keep, len(self.estimates.beta)
        natural = [
            np.linalg.solve(frame, scale[:, None, None] * modes)
            for frame, modes in zip(self.state.stats.frames, standard, strict=True)
        ]
        by_response = [by_term(modes, self.state, 1) for modes in zip(*natural, strict=True)]
        modes = tuple(np.stack(term) for term in zip(*by_response, strict=True))
        return ReplicatedEffects(spread_columns(beta, keep, size), sigma, modes)


def _whitened_rows(state: Reduction, whiten: Callable[[np.ndarray], np.ndarray]) -> Reduction:
    """The model of independent residuals that correlated ones leave once the rows are whitened."""
    design, rows = state.design, len(state.design.X)
    factors = [replace(own, Z=whiten(own.Z)) for own in (*design.groupings, *design.root)]
    depth = len(design.groupings)
    y = np.random.default_rng(0).standard_normal(rows)  # any response: others take its place
    terms = state.stats.terms
    return reduce_rows(y, whiten(design.X), factors[:depth], terms, None, factors[depth:])


def _repeated(values: np.ndarray, times: int) -> np.ndarray:
    """Lanes that are not used hold the last response."""
    if not times:
        return np.asarray(values)
    return np.concatenate([values, np.repeat(values[..., -1:], times, axis=-1)], axis=-1)
