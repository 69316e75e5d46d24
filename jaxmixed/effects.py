r"""Conditional modes of the random effects (BLUPs) and their covariances.

Back-substitution through the elimination of :mod:`jaxmixed.likelihood`, the coarsest level first. For an
entry with orthogonal root R, middle matrix :math:`\Omega` and cross-products D with the coarser columns, X
and y,

.. math:: b = A w, \qquad A = T T' R' \Omega D, \qquad w = (-b_{\text{coarser}}, -\beta, 1),

and given the coarser effects and beta its covariance is :math:`\sigma^2 T (I + T' R' R T)^{-1} T'` (Robinson
1991, Statistical Science 6(1), 15-32). Nothing of size n, or of size groups times groups, is formed.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxmixed.crossproducts import Reduction
from jaxmixed.estimates import Estimates
from jaxmixed.likelihood import eliminate, level_factors, middle
from jaxmixed.linalg import identity, inverse_and_logdet, matmul, transpose
from jaxmixed.precision import double_precision, to_host
from jaxmixed.programs import Program
from jaxmixed.statistics import Level, SufficientStatistics, pad

Beta = Literal["known", "estimated"]


def _times(T: Float[Array, "a q"], batch: Float[Array, "q b m"]) -> Float[Array, "a b m"]:
    return jnp.sum(T[:, :, None, None] * batch[None, :, :, :], axis=1)


def _given_coarser(
    T: Float[Array, "q q"], level: Level
) -> tuple[Float[Array, "q q m"], Float[Array, "q r m"]]:
    """Relative covariance W of an entry's effects given the coarser ones, and the docstring's matrix A."""
    assert level.cross is not None  # one entry per group: not compressed
    if level.form == "moments":
        W = -middle(T, level.root, "moments")[0]
        return W, matmul(W, level.cross)
    F = jnp.sum(level.root[:, :, None, :] * T[None, :, :, None], axis=1)
    inverse, _ = inverse_and_logdet(identity(T.shape[0], T.dtype) + matmul(transpose(F), F))
    TM = _times(T, inverse)
    W = jnp.sum(TM[:, :, None, :] * T.T[None, :, :, None], axis=1)
    # T T'R' Omega = T (I + F'F)^{-1} F' (push-through), with F = R T.
    return W, matmul(matmul(TM, transpose(F)), level.cross)


def _standard_blup(theta: Float[Array, " k"], stats: SufficientStatistics) -> tuple[Float[Array, "q m"], ...]:
    """Conditional modes of the effects of the standardised columns."""
    factors = level_factors(theta, stats)
    _, schur, levels = eliminate(factors, stats)
    p = schur.shape[0] - 1
    inverse, _ = inverse_and_logdet(schur[:p, :p])
    v = jnp.append(-(inverse @ schur[:p, p]), jnp.ones((), schur.dtype))
    modes: list[Float[Array, "q m"]] = []
    for T, level in zip(factors[::-1], levels[::-1], strict=True):
        _, A = _given_coarser(T, level)
        known = [-mode[:, parent] for mode, parent in zip(modes, level.parents, strict=True)]
        w = jnp.concatenate([*known, jnp.broadcast_to(v[:, None], (p + 1, A.shape[-1]))])
        modes.insert(0, jnp.sum(A * w[None], axis=1))
    return tuple(mode * stats.scale for mode in modes)


def blup(theta: Float[Array, " k"], stats: SufficientStatistics) -> tuple[Float[Array, "q m"], ...]:
    """Conditional modes of each level's random effects at theta, the fixed effects at their GLS estimates.

    Parameters
    ----------
    theta : (k,) array
    stats : SufficientStatistics
        Not compressed: one entry per group.

    Returns
    -------
    tuple of (q, m) arrays
        For each level, finest first, in the units of the response.

    Examples
    --------
    >>> from jaxmixed.statistics import summarise
    >>> y, one = jnp.array([1.0, 2.0, 4.0, 7.0]), jnp.ones((4, 1))
    >>> stats = summarise(y, one, one, jnp.array([0, 0, 1, 1]), num_groups=2)
    >>> [round(float(mode), 3) for mode in blup(jnp.array([1.0]), stats)[0][0]]
    [-1.333, 1.333]
    """
    modes = _standard_blup(theta, stats)
    return tuple(jnp.linalg.solve(frame, mode) for frame, mode in zip(stats.frames, modes, strict=True))


def _standard_covariance(
    theta: Float[Array, " k"], stats: SufficientStatistics, *, beta: Beta = "known"
) -> tuple[Float[Array, "q q m"], ...]:
    """Covariances of the errors of the effects of the standardised columns, relative to sigma squared."""
    factors = level_factors(theta, stats)
    _, schur, levels = eliminate(factors, stats)
    p = schur.shape[0] - 1
    if beta == "estimated":
        joint = inverse_and_logdet(schur[:p, :p])[0][:, :, None]
    else:
        joint = jnp.zeros((0, 0, 1), schur.dtype)
    covariances: list[Float[Array, "q q m"]] = []
    for T, level in zip(factors[::-1], levels[::-1], strict=True):
        W, A = _given_coarser(T, level)
        _, width, m = A.shape
        used = A[:, : width - 1 if beta == "estimated" else width - 1 - p]
        outer = (
            joint[:, :, level.parents[0]] if level.parents else jnp.broadcast_to(joint, (*joint.shape[:2], m))
        )
        cross = -matmul(used, outer)
        own = W - matmul(cross, transpose(used))
        top = jnp.concatenate([own, cross], axis=1)
        joint = jnp.concatenate([top, jnp.concatenate([transpose(cross), outer], axis=1)])
        covariances.insert(0, own)
    return tuple(covariances)


def blup_covariance(
    theta: Float[Array, " k"], stats: SufficientStatistics, *, beta: Beta = "known"
) -> tuple[Float[Array, "q q m"], ...]:
    """Covariance of ``b - b_hat`` for each level, relative to sigma squared.

    Parameters
    ----------
    theta : (k,) array
    stats : SufficientStatistics
        Not compressed: one entry per group.
    beta : {"known", "estimated"}
        Whether the fixed effects are taken as known (lme4's ``condVar``) or their uncertainty is included.

    Returns
    -------
    tuple of (q, q, m) arrays
        For each level, finest first.
    """
    covariances = _standard_covariance(theta, stats, beta=beta)
    inverses = [jnp.linalg.inv(frame) for frame in stats.frames]
    return tuple(
        jnp.einsum("ab,bcm,dc->adm", inverse, covariance, inverse)
        for inverse, covariance in zip(inverses, covariances, strict=True)
    )


# The programs stop short of the frames: undoing those takes LAPACK, which a kept executable cannot call.
_BLUP = Program(_standard_blup)
_BLUP_COVARIANCE = Program(_standard_covariance)


def _by_term(per_level: tuple[np.ndarray, ...], reduction: Reduction, axes: int) -> tuple[np.ndarray, ...]:
    """Slices of the levels' arrays for each term, groups first and in the user's order."""
    found = []
    for term in reduction.stats.terms:
        part = slice(term.start, term.start + term.covariance.q)
        block = np.moveaxis(per_level[term.level][(part,) * axes], -1, 0)
        found.append(block[reduction.positions[term.level]])
    return tuple(found)


def random_effects(state: Reduction, estimates: Estimates) -> tuple[np.ndarray, ...]:
    """Conditional modes of the fitted model, term by term.

    Parameters
    ----------
    state : Reduction
        Statistics of the fitted data.
    estimates : Estimates

    Returns
    -------
    tuple of (m, q) arrays
        Per term of ``estimates.terms``, rows in the order of the factor's levels.
    """
    with double_precision():
        standard = to_host(_BLUP(estimates.theta, pad(state.stats)))
    modes = tuple(
        np.linalg.solve(frame, mode) for frame, mode in zip(state.stats.frames, standard, strict=True)
    )
    return _by_term(modes, state, 1)


def random_effects_covariance(
    state: Reduction, estimates: Estimates, beta: Beta = "known"
) -> tuple[np.ndarray, ...]:
    """Covariances of the conditional modes' errors, term by term.

    Parameters
    ----------
    state : Reduction
    estimates : Estimates
    beta : {"known", "estimated"}
        See :func:`blup_covariance`.

    Returns
    -------
    tuple of (m, q, q) arrays
    """
    with double_precision():
        values = _BLUP_COVARIANCE(estimates.theta, pad(state.stats), beta=beta)
        standard = to_host(values)
    inverses = [estimates.sigma * np.linalg.inv(frame) for frame in state.stats.frames]
    covariances = tuple(
        np.einsum("ab,bcm,dc->adm", inverse, value, inverse)
        for inverse, value in zip(inverses, standard, strict=True)
    )
    return _by_term(covariances, state, 2)
