r"""Conditional modes of the random effects (BLUPs) and their covariances.

Back-substitution through the elimination of :mod:`jaxmixed.likelihood`, the coarsest level first. For an
entry with orthogonal root R, middle matrix :math:`\Omega` and cross-products D with the coarser columns, X
and y,

.. math:: b = A w, \qquad A = T T' R' \Omega D, \qquad w = (-b_{\text{coarser}}, -\beta, 1),

and given the coarser effects and beta its covariance is :math:`\sigma^2 T (I + T' R' R T)^{-1} T'` (Robinson
1991, Statistical Science 6(1), 15-32). The effects of a dense root come before the chain's: they are coarser
than all, and a group's effects depend on those of the root's columns that it meets. Nothing of size n, or of
size groups times groups, is formed for the chain, and nothing larger than the root itself.
"""

from dataclasses import replace
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxmixed.crossproducts import Reduction
from jaxmixed.estimates import Estimates
from jaxmixed.likelihood import eliminate_chain, level_factors, middle, remaining_root
from jaxmixed.linalg import identity, inverse_and_logdet, matmul, transpose
from jaxmixed.links import group_sums, per_entry, sampled_product
from jaxmixed.precision import double_precision, to_host
from jaxmixed.programs import Program
from jaxmixed.root import (
    Root,
    level_rows,
    relative_covariance,
    spherical,
    times,
    to_levels,
)
from jaxmixed.statistics import Level, SufficientStatistics, pad

Beta = Literal["known", "estimated"]


def _times(T: Float[Array, "a q"], batch: Float[Array, "q b m"]) -> Float[Array, "a b m"]:
    return jnp.sum(T[:, :, None, None] * batch[None, :, :, :], axis=1)


def given_coarser(
    T: Float[Array, "q q"], level: Level
) -> tuple[Float[Array, "q q m"], Float[Array, "q q m"], Float[Array, " m"]]:
    """Of an entry given the coarser ones: relative covariance W, L of ``A = L D``, part of log|V|."""
    if level.form == "moments":
        omega, logdet = middle(T, level.root, "moments")
        return -omega, -omega, logdet
    F = jnp.sum(level.root[:, :, None, :] * T[None, :, :, None], axis=1)
    inverse, logdet = inverse_and_logdet(identity(T.shape[0], T.dtype) + matmul(transpose(F), F))
    TM = _times(T, inverse)
    W = jnp.sum(TM[:, :, None, :] * T.T[None, :, :, None], axis=1)
    # T T'R' Omega = T (I + F'F)^{-1} F' (push-through), with F = R T.
    return W, matmul(TM, transpose(F)), logdet


class _SolvedRoot(NamedTuple):
    """Relative covariance K of the root's effects given beta, and ``Y = K h``.

    Levels without rows, which only a known relationship has, follow the root's columns.
    """

    K: Float[Array, "R_all R_all"]
    Y: Float[Array, "R_all r"]


class Solved(NamedTuple):
    """What the elimination leaves for the effects: levels as eliminated, the root, the Schur complement."""

    levels: tuple[Level, ...]
    root: _SolvedRoot | None
    schur: Float[Array, "r r"]


def _of_one_copy(levels: tuple[Level, ...]) -> tuple[Level, ...]:
    """Levels whose cross-products are those of one copy of each group, and not of all that it stands for."""
    counts = [jnp.where(level.count > 0, level.count, 1) for level in levels]
    found = []
    for depth, (level, count) in enumerate(zip(levels, counts, strict=True)):
        assert level.cross is not None  # one entry per group: not compressed
        above = [
            # Copies of this group in one copy of the coarser one.
            jnp.broadcast_to(count / coarse[parent], (coarser.root.shape[0], len(count)))
            for coarse, coarser, parent in zip(
                counts[depth + 1 :], levels[depth + 1 :], level.parents, strict=True
            )
        ]
        rest = level.cross.shape[1] - sum(len(own) for own in above)
        copies = jnp.concatenate([*above, jnp.broadcast_to(count, (rest, len(count)))])
        found.append(replace(level, cross=level.cross / jnp.sqrt(copies)))
    return tuple(found)


def solve_levels(factors: list[Float[Array, "q q"]], stats: SufficientStatistics) -> Solved:
    """Eliminate all effects, and solve for the root's.

    Parameters
    ----------
    factors : list of (q, q) arrays
        Relative factor of each level in the coordinates of the statistics.
    stats : SufficientStatistics
        Not compressed: one entry per group.
    """
    chain = eliminate_chain(factors, stats)
    if stats.root is None:
        return Solved(_of_one_copy(chain.levels) if stats.repeated else chain.levels, None, chain.schur)
    above, shapes, bases = factors[len(chain.levels) :], stats.root.shapes, stats.root.bases
    remaining = remaining_root(chain, stats.root)
    M, b = spherical(above, remaining.gram, remaining.cross, shapes)
    W, _ = inverse_and_logdet(M)
    X = W @ b
    K, Y = relative_covariance(above, W, shapes), times(above, X, shapes)
    K = to_levels(to_levels(K, shapes, bases).T, shapes, bases)
    return Solved(chain.levels, _SolvedRoot(K, to_levels(Y, shapes, bases)), chain.schur - b.T @ X)


def level_modes(
    factors: list[Float[Array, "q q"]], solved: Solved, stats: SufficientStatistics
) -> tuple[tuple[Float[Array, "q m"], ...], Float[Array, " p"], Float[Array, "p p"]]:
    """Conditional modes of every level, beta and its relative covariance, of the response in use."""
    levels, root, schur = solved
    p = schur.shape[0] - 1
    inverse, _ = inverse_and_logdet(schur[:p, :p])
    beta = inverse @ schur[:p, p]
    v = jnp.append(-beta, jnp.ones((), schur.dtype))
    of_root = jnp.zeros(0, v.dtype) if root is None else root.Y @ v
    modes: list[Float[Array, "q m"]] = []
    for T, level in zip(factors[: len(levels)][::-1], levels[::-1], strict=True):
        assert level.cross is not None  # one entry per group: not compressed
        L = given_coarser(T, level)[1]
        known = [-mode[:, parent] for mode, parent in zip(modes, level.parents, strict=True)]
        w = jnp.concatenate([*known, jnp.broadcast_to(v[:, None], (p + 1, L.shape[-1]))])
        right = jnp.sum(level.cross * w[None], axis=1)
        if level.links is not None:
            met = level.links.values * of_root[level.links.column]
            right = right - group_sums(met, level.links, right.shape[-1])
        modes.insert(0, jnp.sum(L * right[None], axis=1))
    if stats.root is not None:
        modes += [of_root[rows] for rows in root_rows(stats.root)]
    return tuple(modes), beta, inverse


def _standard_blup(theta: Float[Array, " k"], stats: SufficientStatistics) -> tuple[Float[Array, "q m"], ...]:
    """Conditional modes of the effects of the standardised columns."""
    factors, stats = level_factors(theta, stats), stats.at(theta)
    modes, _, _ = level_modes(factors, solve_levels(factors, stats), stats)
    return tuple(mode * stats.scale for mode in modes)


def root_rows(root: Root) -> list[np.ndarray]:
    """Where the effects of each of the root's factors stand among the levels' effects, (q, m) each."""
    return level_rows(root.shapes, root.bases, root.gram.shape[0])


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
        For each level, finest first, and then each factor of the root, in the units of the response. With a
        known relationship levels without rows are the last of their factor's.

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


class _Coarser(NamedTuple):
    """Covariances of what a level's effects depend on: the effects of the coarser levels, and beta.

    Attributes
    ----------
    joint : (w, w, groups) array
        Among themselves, for every group of the next coarser level.
    with_root : (w, e) array or None
        With the effects of the root, at the level's own links.
    """

    joint: Float[Array, "w w groups"]
    with_root: Float[Array, "w e"] | None


def _level_covariance(
    T: Float[Array, "q q"], level: Level, coarser: _Coarser, of_root: Float[Array, "R R"] | None
) -> tuple[Float[Array, "q q m"], _Coarser]:
    """Covariance of one level's effects, and of them together with what they depend on."""
    assert level.cross is not None  # one entry per group: not compressed
    W, L, _ = given_coarser(T, level)
    m, w = W.shape[-1], coarser.joint.shape[0]
    A = matmul(L, level.cross[:, :w])
    joint = coarser.joint
    outer = joint[:, :, level.parents[0]] if level.parents else jnp.broadcast_to(joint, (w, w, m))
    cross = -matmul(A, outer)
    own = W - matmul(cross, transpose(A))
    with_root = None
    if level.links is not None and of_root is not None and coarser.with_root is not None:
        links = level.links
        LV = per_entry(L, links)
        product = sampled_product(of_root, links)
        LVK = per_entry(L, links, product)
        through = group_sums(LV[:, None] * coarser.with_root[None], links, m)  # L V Cov(root, coarser)
        half = matmul(through, transpose(A))
        own = own + half + transpose(half) + group_sums(LVK[:, None] * LV[None], links, m)
        cross = cross - through
        above = per_entry(A, links, coarser.with_root)
        with_root = jnp.concatenate([-above - LVK, coarser.with_root])
    top = jnp.concatenate([own, cross], axis=1)
    bottom = jnp.concatenate([transpose(cross), outer], axis=1)
    return own, _Coarser(jnp.concatenate([top, bottom]), with_root)


def _diagonal_blocks(
    K: Float[Array, "R_all R_all"], factors: list[Float[Array, "q q"]], root: Root
) -> list[Float[Array, "q q m"]]:
    """Blocks of each level of the root's factors, with what related levels leave of one without rows."""
    found = []
    for T, rows, basis in zip(factors, root_rows(root), root.bases or (None,) * len(factors), strict=True):
        own = K[rows[:, None], rows[None]]
        found.append(own if basis is None else own + (T @ T.T)[:, :, None] * basis.rest)
    return found


def _standard_covariance(
    theta: Float[Array, " k"], stats: SufficientStatistics, *, beta: Beta = "known"
) -> tuple[Float[Array, "q q m"], ...]:
    """Covariances of the errors of the effects of the standardised columns, relative to sigma squared."""
    factors, stats = level_factors(theta, stats), stats.at(theta)
    levels, root, schur = solve_levels(factors, stats)
    p = schur.shape[0] - 1 if beta == "estimated" else 0
    of_beta = inverse_and_logdet(schur[:p, :p])[0] if p else jnp.zeros((0, 0), schur.dtype)
    of_root, with_beta = None, None
    if root is not None:
        with_beta = -(of_beta @ root.Y[:, :p].T)
        of_root = root.K - root.Y[:, :p] @ with_beta
    size = 0 if stats.root is None else stats.root.gram.shape[0]
    linked = None if of_root is None else of_root[:size, :size]
    covariances: list[Float[Array, "q q m"]] = []
    coarser = _Coarser(of_beta[:, :, None], None)
    for T, level in zip(factors[: len(levels)][::-1], levels[::-1], strict=True):
        if level.links is not None and with_beta is not None:
            # At the links of this level: from those of the next coarser one, or from the root itself.
            found, above = coarser.with_root, level.links.parents[:1]
            met = with_beta[:, level.links.column] if found is None else found[:, above[0]]
            coarser = coarser._replace(with_root=met)
        own, coarser = _level_covariance(T, level, coarser, linked)
        covariances.insert(0, own)
    if stats.root is not None and of_root is not None:
        covariances += _diagonal_blocks(of_root, factors[len(levels) :], stats.root)
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
        For each level, finest first, and then each factor of the root.
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


def by_term(per_level: tuple[np.ndarray, ...], reduction: Reduction, axes: int) -> tuple[np.ndarray, ...]:
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
        standard = to_host(_BLUP(estimates.all_theta, pad(state.stats)))
    modes = tuple(
        np.linalg.solve(frame, mode) for frame, mode in zip(state.stats.frames, standard, strict=True)
    )
    return by_term(modes, state, 1)


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
        values = _BLUP_COVARIANCE(estimates.all_theta, pad(state.stats), beta=beta)
        standard = to_host(values)
    inverses = [estimates.sigma * np.linalg.inv(frame) for frame in state.stats.frames]
    covariances = tuple(
        np.einsum("ab,bcm,dc->adm", inverse, value, inverse)
        for inverse, value in zip(inverses, standard, strict=True)
    )
    return by_term(covariances, state, 2)
