r"""The recursion of the errors of fixed and random effects: what each level's depend on, what is their own.

For every group of a level, the coarsest first,

.. math:: e_b = \eta - A\, e_{\text{coarser}} - A_\beta\, e_\beta - \sum_r L V_r\, e_r, \qquad
    \eta \sim N(0, \sigma^2 W),

and :math:`e_{\text{root}} = \eta - Y e_\beta` of the dense root, each :math:`\eta` independent of all others.
The matrices are those of :mod:`jaxmixed.effects`; here they are a smooth function of the variance parameters,
whose derivatives are taken forwards.
"""

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxmixed._types import SameArray
from jaxmixed.effects import given_coarser, level_modes, solve_levels
from jaxmixed.links import per_entry
from jaxmixed.precision import double_precision, to_host
from jaxmixed.programs import Program
from jaxmixed.statistics import SufficientStatistics


class Recursion(NamedTuple, Generic[SameArray]):
    """The recursion's matrices, relative to sigma, in the coordinates of the statistics.

    Attributes
    ----------
    own : tuple of (q, q, m) arrays
        W of every level of the chain.
    on : tuple of (q, w, m) arrays
        A of every level: effects of the coarser levels, then beta.
    linked : tuple of (q, e) arrays
        ``L V`` at the links of every level; empty without a root.
    root : (R, R) array
        Covariance of the root's innovations.
    root_on : (R, p) array
        Y.
    of_beta : (p, p) array
        Covariance of the errors of beta.
    beta : (p,) array
        Fixed effects, of the response in use.
    modes : tuple of (q, m) arrays
        Conditional modes of every level, then of every factor of the root, of the response in use.
    logdet : tuple of (m,) arrays
        Contribution of each group of every level of the chain to log|V|, given the coarser effects.
    """

    own: tuple[Float[SameArray, "q q m"], ...]
    on: tuple[Float[SameArray, "q w m"], ...]
    linked: tuple[Float[SameArray, "q e"], ...]
    root: Float[SameArray, "R R"]
    root_on: Float[SameArray, "R p"]
    of_beta: Float[SameArray, "p p"]
    beta: Float[SameArray, " p"]
    modes: tuple[Float[SameArray, "q m"], ...]
    logdet: tuple[Float[SameArray, " m"], ...]


def standard_factors(x: Float[Array, " k"], stats: SufficientStatistics) -> list[Float[Array, "q q"]]:
    """Relative factor of each level from the parameters of the standardised columns."""
    parts = zip(stats.terms, stats.split(x), strict=True)
    return stats.assemble([term.covariance.factor(part) for term, part in parts])


def recursion(x: Float[Array, " k"], stats: SufficientStatistics) -> Recursion[Array]:
    """The recursion at the parameters x of the standardised columns; a pure function, smooth in x.

    Parameters
    ----------
    x : (k,) array
    stats : SufficientStatistics
        Not compressed: one entry per group.

    Returns
    -------
    Recursion
    """
    factors, stats = standard_factors(x, stats), stats.at(x)
    solved = solve_levels(factors, stats)
    p = solved.schur.shape[0] - 1
    own, on, linked, logdet = [], [], [], []
    for T, level in zip(factors, solved.levels, strict=False):
        W, L, logdets = given_coarser(T, level)
        assert level.cross is not None  # one entry per group: not compressed
        own.append(W)
        on.append(jnp.sum(L[:, :, None] * level.cross[None, :, :-1], axis=1))
        logdet.append(logdets)
        if level.links is not None:
            linked.append(per_entry(L, level.links))
    modes, beta, of_beta = level_modes(factors, solved, stats)
    empty = jnp.zeros((0, 0), of_beta.dtype)
    return Recursion(
        own=tuple(own),
        on=tuple(on),
        linked=tuple(linked),
        root=empty if solved.root is None else solved.root.K,
        root_on=jnp.zeros((0, p), of_beta.dtype) if solved.root is None else solved.root.Y[:, :p],
        of_beta=of_beta,
        beta=beta,
        modes=modes,
        logdet=tuple(logdet),
    )


def _flat(x: Float[Array, " k"], stats: SufficientStatistics) -> tuple[Array, ...]:
    return tuple(jax.tree.leaves(recursion(x, stats)))


def _flat_tangent(
    x: Float[Array, " k"], direction: Float[Array, " k"], stats: SufficientStatistics
) -> tuple[Array, ...]:
    return jax.jvp(lambda at: _flat(at, stats), (x,), (direction,))[1]


_VALUES = Program(_flat)
_TANGENT = Program(_flat_tangent)


def _unflat(leaves: Sequence[np.ndarray], stats: SufficientStatistics) -> Recursion[np.ndarray]:
    """The record that the flat tuple of a program stands for."""
    chain = len(stats.levels)
    joined = 0 if stats.root is None else chain
    found = iter(leaves)

    def take(count: int) -> tuple[Any, ...]:
        return tuple(next(found) for _ in range(count))

    own, on, linked = take(chain), take(chain), take(joined)
    root, root_on, of_beta, beta = take(4)
    return Recursion(own, on, linked, root, root_on, of_beta, beta, take(len(stats.frames)), take(chain))


def evaluate(x: np.ndarray, stats: SufficientStatistics) -> Recursion[np.ndarray]:
    """The recursion at x as host arrays.

    Parameters
    ----------
    x : (k,) array
    stats : SufficientStatistics
        Padded, one entry per group.

    Returns
    -------
    Recursion
    """
    with double_precision():
        return _unflat(to_host(_VALUES(x, stats)), stats)


def tangent(x: np.ndarray, direction: np.ndarray, stats: SufficientStatistics) -> Recursion[np.ndarray]:
    """Its derivative along a direction (k,), as host arrays; parameters as those of :func:`evaluate`."""
    with double_precision():
        return _unflat(to_host(_TANGENT(x, np.asarray(direction, dtype=np.float64), stats)), stats)


def given_beta(parts: Recursion[np.ndarray]) -> Recursion[np.ndarray]:
    """The same recursion (or tangent) with the fixed effects known: without a covariance."""
    return parts._replace(of_beta=np.zeros_like(parts.of_beta))
