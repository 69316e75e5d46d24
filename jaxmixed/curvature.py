r"""Value, gradient and exact Hessian of the deviance with a dense root, by closed forms.

Plain automatic differentiation of :mod:`jaxmixed.root` would multiply two matrices of the root's order R for
every parameter and carry a tangent of that size through each operation. Here the chain is differentiated
automatically (its statistics g, h, s of the root depend on few parameters and cost little), and the root by
hand. With :math:`W = (I + T'gT)^{-1}`, :math:`P = gTW`, :math:`C = g - PT'g`, :math:`Y = TWT'h`,
:math:`e = h - gY = Z'V^{-1}[X\,y]` and, for a parameter a of the root and i, j of the chain,

.. math::
    \partial_a \log|M| &= 2\operatorname{tr} P' \dot T_a, &
    \partial_i \log|M| &= \operatorname{tr} K \dot g_i, \quad K = TWT', \\
    \partial_{ab} \log|M| &= 2\operatorname{tr} \dot T_a' C \dot T_b W - 2\operatorname{tr} \dot T_a' P \dot
    T_b' P, &
    \partial_{ij} \log|M| &= \operatorname{tr} K \ddot g_{ij} - \operatorname{tr} B_i B_j,\quad B_i = T'\dot
    g_i T W, \\
    \partial_{ia} \log|M| &= 2 \operatorname{tr} (\dot g_i T W - P B_i)' \dot T_a, &&

so that two products of whole matrices serve all parameters of the root, and one more each of the chain's. The
Schur complement :math:`S = s - h'Y` is differentiated alike, and the deviance is a function of the small S
and of the log-determinants. The formulas are those of Lindstrom & Bates (1988, Journal of the American
Statistical Association 83, section 3) and Wolfinger, Tobias & Sall (1994, SIAM Journal on Scientific
Computing 15, section 4), written for a T that may be singular.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxmixed.likelihood import Method, eliminate_chain, inner_product, profile_schur, remaining_root
from jaxmixed.linalg import inverse_and_logdet
from jaxmixed.optim import Evaluation
from jaxmixed.root import (
    Shapes,
    diagonal_of,
    factor_columns,
    relative_covariance,
    right_times,
    spherical,
    times,
    transposed_times,
)
from jaxmixed.statistics import SufficientStatistics

SAFE_DIVISOR = 1e-3
"""A relative standard deviation above this loses at most six digits of second derivatives when divided by
twice."""


class _Remainder(NamedTuple):
    """What the chain leaves to the root (`likelihood.Elimination`)."""

    logdet: Float[Array, ""]
    gram: Float[Array, "R R"]
    cross: Float[Array, "R r"]
    schur: Float[Array, "r r"]


class _Solution(NamedTuple):
    """The root solved: matrices of the module's docstring; T is a factor per grouping factor."""

    T: list[Float[Array, "q q"]]
    shapes: Shapes
    W: Float[Array, "R R"]
    P: Float[Array, "R R"]
    C: Float[Array, "R R"]
    K: Float[Array, "R R"]
    X: Float[Array, "R r"]
    Y: Float[Array, "R r"]
    e: Float[Array, "R r"]


class _Derivatives(NamedTuple):
    """Derivatives along some parameters: of log|M|, of S, of its residual ``E = d(T'h) - dM X``."""

    logdet: Float[Array, " k"]
    schur: Float[Array, "k r r"]
    E: Float[Array, "k R r"]


def _solve(rem: _Remainder, T: list[Float[Array, "q q"]], shapes: Shapes) -> tuple[_Solution, Array, Array]:
    """The root's matrices, its log-determinant and the Schur complement."""
    M, b = spherical(T, rem.gram, rem.cross, shapes)
    W, logdet = inverse_and_logdet(M)
    X = W @ b
    Y = times(T, X, shapes)
    P, C = _products(rem.gram, W, T, shapes)
    K = relative_covariance(T, W, shapes)
    solution = _Solution(T, shapes, W, P, C, K, X, Y, rem.cross - rem.gram @ Y)
    return solution, logdet, rem.schur - b.T @ X


def _products(
    gram: Float[Array, "R R"], W: Float[Array, "R R"], T: list[Float[Array, "q q"]], shapes: Shapes
) -> tuple[Float[Array, "R R"], Float[Array, "R R"]]:
    """P and C: from ``T'P = T'C T = I - W`` where T is diagonal and not nearly singular, or by products."""

    def multiply() -> tuple[Array, Array]:
        gT = right_times(gram, T, shapes)
        P = gT @ W
        return P, gram - P @ gT.T

    t = diagonal_of(T, len(W), shapes)
    if t is None:
        return multiply()
    used = jnp.arange(len(W)) < sum(levels for levels, _ in shapes)
    inverse = jnp.where(used, 1 / jnp.where(used, t, 1), 0)

    def divide() -> tuple[Array, Array]:
        P = inverse[:, None] * (jnp.eye(len(W), dtype=W.dtype) - W)
        return P, P * inverse

    safe = jnp.min(jnp.where(used, jnp.abs(t), 1)) > SAFE_DIVISOR
    return jax.lax.cond(safe, divide, multiply)


def _symmetric(A: Float[Array, "... r r"]) -> Float[Array, "... r r"]:
    return A + jnp.swapaxes(A, -1, -2)


def _blocks(A: Float[Array, "R c"], shapes: Shapes) -> list[Float[Array, "q l c"]]:
    """Rows of each factor, effects first."""
    return [
        A[rows].reshape(effects, levels, -1)
        for (levels, effects), rows in zip(shapes, factor_columns(shapes), strict=True)
    ]


def _along_chain(
    d: _Remainder, at: _Solution
) -> tuple[_Derivatives, Float[Array, "k R R"], Float[Array, "k R r"]]:
    """First derivatives along the chain's parameters (leading axis of `d`), ``dg T W`` and ``dh - dg Y``."""
    k, R, _ = d.gram.shape
    A = (d.gram.reshape(k * R, R) @ times(at.T, at.W, at.shapes)).reshape(k, R, R)
    n = d.cross - (d.gram.reshape(k * R, R) @ at.Y).reshape(d.cross.shape)
    E = jax.vmap(lambda one: transposed_times(at.T, one, at.shapes))(n)
    # s - h'Y - Y'h + Y'gY, with Y held: the terms in dY cancel.
    schur = d.schur - _transposed_product(n, at.Y) - jnp.swapaxes(_transposed_product(d.cross, at.Y), 1, 2)
    logdet = jnp.sum(at.K * d.gram, axis=(1, 2))
    return _Derivatives(logdet, schur, E), A, n


def _transposed_product(left: Float[Array, "k R r"], right: Float[Array, "R s"]) -> Float[Array, "k r s"]:
    return jnp.einsum("kir,is->krs", left, right)


def _along_root(
    gram: Float[Array, "R R"], at: _Solution
) -> tuple[_Derivatives, Float[Array, "k R r"], Float[Array, "k R r"]]:
    """First derivatives along every element of T, ``U = dT X`` and ``g U``."""
    r = at.X.shape[1]
    logdets, schurs, Es, Us, gUs = [], [], [], [], []
    blocks = zip(
        at.shapes,
        factor_columns(at.shapes),
        _blocks(at.X, at.shapes),
        _blocks(at.e, at.shapes),
        _blocks(at.P, at.shapes),
        strict=True,
    )
    for (levels, effects), rows, X, e, P in blocks:
        own = P[:, :, rows].reshape(effects, levels, effects, levels)
        logdets.append(2 * jnp.einsum("blal->ba", own).ravel())
        schurs.append(-_symmetric(jnp.einsum("blr,als->bars", e, X)).reshape(-1, r, r))
        for b in range(effects):
            for a in range(effects):
                into_a, into_b = rows.start + a * levels, rows.start + b * levels
                dTe = jnp.zeros_like(at.X).at[into_a : into_a + levels].set(e[b])
                Us.append(jnp.zeros_like(at.X).at[into_b : into_b + levels].set(X[a]))
                gUs.append(gram[:, into_b : into_b + levels] @ X[a])
                Es.append(dTe - transposed_times(at.T, gUs[-1], at.shapes))
    return (
        _Derivatives(jnp.concatenate(logdets), jnp.concatenate(schurs), jnp.stack(Es)),
        jnp.stack(Us),
        jnp.stack(gUs),
    )


def _root_by_root(at: _Solution) -> Float[Array, "kr kr"]:
    """Second derivatives of log|M| along pairs of elements of T."""
    columns = factor_columns(at.shapes)

    def block(A: Array, f: int, h: int) -> Array:
        (m, q), (n, c) = at.shapes[f], at.shapes[h]
        return A[columns[f], columns[h]].reshape(q, m, c, n)

    rows = []
    for f, (_, q) in enumerate(at.shapes):
        row = []
        for h, (_, c) in enumerate(at.shapes):
            pairs = jnp.einsum("bldk,alck->badc", block(at.C, f, h), block(at.W, f, h))
            pairs -= jnp.einsum("blck,dkal->badc", block(at.P, f, h), block(at.P, h, f))
            row.append(2 * pairs.reshape(q * q, c * c))
        rows.append(jnp.concatenate(row, axis=1))
    return jnp.concatenate(rows)


def _chain_by_root(A: Float[Array, "k R R"], B: Float[Array, "k R R"], at: _Solution) -> Float[Array, "k kr"]:
    """Second derivatives of log|M| along a parameter of the chain and an element of T."""
    found = []
    for (m, q), rows in zip(at.shapes, factor_columns(at.shapes), strict=True):
        own = A[:, rows, rows].reshape(len(A), q, m, q, m)  # no sizes left open: there may be no chain
        P = at.P[rows].reshape(q, m, -1)
        crossed = jnp.einsum("blj,kjal->kba", P, B[:, :, rows].reshape(len(B), B.shape[1], q, m))
        found.append(2 * (jnp.einsum("kblal->kba", own) - crossed).reshape(len(A), q * q))
    return jnp.concatenate(found, axis=1)


def _inner(left: Float[Array, "a R r"], right: Float[Array, "b R r"]) -> Float[Array, "a b"]:
    size = left.shape[1] * left.shape[2]
    return left.reshape(len(left), size) @ right.reshape(len(right), size).T


def _second_order(
    rem: _Remainder,
    tangents: _Remainder,
    at: _Solution,
    Q: Float[Array, "r r"],
) -> tuple[_Derivatives, Float[Array, "k k"]]:
    """First derivatives along the chain's parameters and the elements of T, in this order, and the second.

    The second ones are of ``log|M| + <Q, S>``, without those parts that contain second derivatives of g, h
    and s.
    """
    chain, A, n = _along_chain(tangents, at)
    root, U, gU = _along_root(rem.gram, at)
    B = jax.vmap(lambda one: transposed_times(at.T, one, at.shapes))(A)
    both = _Derivatives(*(jnp.concatenate(pair) for pair in zip(chain, root, strict=True)))
    mixed = _chain_by_root(A, B, at) - 2 * _inner(n @ Q, U)
    hessian = jnp.block(
        [
            [-jnp.einsum("aij,bji->ab", B, B), mixed],
            [mixed.T, _root_by_root(at) + 2 * _inner(U @ Q, gU)],
        ]
    )
    WE = jnp.einsum("ij,kjr->kir", at.W, both.E)
    return both, hessian - 2 * _inner(both.E @ Q, WE)


def _level_factors(
    x: Float[Array, " k"], stats: SufficientStatistics, frames: Sequence[Float[Array, "q q"]] | None
) -> list[Float[Array, "q q"]]:
    """Factor of each level, those of the terms multiplied with `frames` from the left."""
    found = [term.covariance.factor(part) for term, part in zip(stats.terms, stats.split(x), strict=True)]
    if frames is not None:
        found = [jnp.matmul(frame, T) for frame, T in zip(frames, found, strict=True)]
    return stats.assemble(found)


Outer = Callable[[Float[Array, "r r"]], tuple[Float[Array, ""], Float[Array, ""]]]
"""What the Schur complement adds to log|V|, and another function of it whose derivatives are wanted."""


def _profiled(stats: SufficientStatistics, method: Method) -> Outer:
    """The profiled deviance, and log_rss."""

    def outer(S: Array) -> tuple[Array, Array]:
        found = profile_schur(jnp.zeros((), S.dtype), S, stats, method)
        return found.deviance, found.log_rss

    return outer


def _owned(stats: SufficientStatistics) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the chain's parameters and of the root's."""
    sizes = [term.covariance.num_params for term in stats.terms]
    owners = np.repeat([term.level for term in stats.terms], sizes)
    depth = len(stats.levels)
    return np.flatnonzero(owners < depth), np.flatnonzero(owners >= depth)


def evaluate(
    x: Float[Array, " k"],
    stats: SufficientStatistics,
    *,
    method: Method = "reml",
    outer: Outer | None = None,
    frames: Sequence[Float[Array, "q q"]] | None = None,
) -> Evaluation:
    """Deviance with its exact gradient and Hessian, in the parameters of the standardised columns.

    Parameters
    ----------
    x : (k,) array
        Parameters of every term, in the order of ``stats.terms``.
    stats : SufficientStatistics
        With a root.
    method : {"reml", "ml"}
        Of the profiled deviance; not used with another `outer`.
    outer : callable, optional
        Another function of the Schur complement than the profiled deviance, added to log|V|.
    frames : sequence of (q, q) arrays, optional
        What each term's factor is multiplied with from the left; nothing by default.

    Returns
    -------
    Evaluation
        `aux` holds the second output of `outer` (log_rss of :class:`jaxmixed.likelihood.Profile`) and the
        Schur complement.
    """
    depth = len(stats.levels)
    in_chain, in_root = _owned(stats)
    assert stats.root is not None
    shapes = stats.root.shapes

    factors = partial(_level_factors, stats=stats, frames=frames)
    of_schur = outer or _profiled(stats, method)

    def remainder(chain: Array) -> _Remainder:
        found = eliminate_chain(factors(x.at[in_chain].set(chain)), stats)
        assert stats.root is not None
        root = remaining_root(found, stats.root)
        return _Remainder(found.logdet, jnp.asarray(root.gram), jnp.asarray(root.cross), found.schur)

    def elements(root: Array) -> Array:
        return jnp.concatenate([T.ravel() for T in factors(x.at[in_root].set(root))[depth:]])

    rem = remainder(x[in_chain])
    directions = jnp.eye(len(in_chain), dtype=x.dtype)
    tangents = jax.vmap(lambda d: jax.jvp(remainder, (x[in_chain],), (d,))[1])(directions)
    at, logdet, schur = _solve(rem, factors(x)[depth:], shapes)
    (value, second), Q = jax.value_and_grad(of_schur, has_aux=True)(schur)
    first, hessian = _second_order(rem, tangents, at, Q)

    def curved(chain: Array) -> Array:
        """The deviance's dependence on the chain, everything else held at its derivative."""
        assert stats.root is not None
        now, YQ = eliminate_chain(factors(x.at[in_chain].set(chain)), stats), at.Y @ Q
        held = inner_product(now, stats.root, at.K + YQ @ at.Y.T, -2 * YQ)
        return now.logdet + held + jnp.sum(Q * now.schur)

    through = jax.vmap(lambda d: jax.jvp(jax.grad(lambda S: of_schur(S)[0]), (schur,), (d,))[1])(first.schur)
    hessian = hessian + _inner(first.schur, through)
    k = len(in_chain)
    hessian = hessian.at[:k, :k].add(jax.hessian(curved)(x[in_chain]))
    # From the elements of T to the parameters.
    slope = jnp.zeros((len(first.logdet), len(x)), x.dtype)
    slope = slope.at[np.arange(k), in_chain].set(1.0)
    slope = slope.at[k:, in_root].set(jax.jacfwd(elements)(x[in_root]))
    by_element = first.logdet + jnp.einsum("rs,krs->k", Q, first.schur)
    bent = jax.hessian(lambda root: elements(root) @ by_element[k:])(x[in_root])
    gradient = (by_element @ slope).at[in_chain].add(tangents.logdet)
    slope_of_second = jax.grad(lambda S: of_schur(S)[1])(schur)
    schur_tangents = jnp.einsum("ek,ers->krs", slope, first.schur)
    return Evaluation(
        value=value + rem.logdet + logdet,
        gradient=gradient,
        hessian=(slope.T @ hessian @ slope).at[np.ix_(in_root, in_root)].add(bent),
        aux=(second, schur),
        aux_tangents=(jnp.einsum("rs,krs->k", slope_of_second, schur_tangents), schur_tangents),
    )
