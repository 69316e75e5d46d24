r"""The dense root: the grouping factors that are not eliminated as a chain, joined to X and y.

When the chain is eliminated there is left, for the random effects b of the root's R columns Z and for [X y],

.. math::
    g = Z'V_c^{-1}Z, \qquad h = Z'V_c^{-1}[X\,y], \qquad s = [X\,y]'V_c^{-1}[X\,y],

with :math:`V_c` the covariance without the root's effects. One inverse of :math:`M = I + T' g T` gives the
rest: :math:`\log|V| = \log|V_c| + \log|M|` and the Schur complement :math:`s - h'T M^{-1} T'h`. Variances of
zero are ordinary, for T is never inverted.

Columns of one factor are ordered by effect, then by level, so that T acts on contiguous blocks.

**Shared directions.** The columns of a random effect add up to a column of X (intercepts to the constant),
and to what other factors' columns add up to. In that direction g is smaller than its elements by the variance
ratio of the eliminated factor, and their rounding would drown it. The levels of every factor are therefore
reflected (:func:`reflect`) so that their sum is a coordinate of its own, whose cross-products are taken from
those of X, where nothing cancels. A reflection of independent levels leaves their distribution as it is.

**Known relationships.** Levels with covariance ``A = L L'`` have the effects ``b = (L x T) u`` with u as
independent as before (:class:`LevelBasis`): their columns become ``Z L H``, with H the reflection that turns
v into the first coordinate, ``L v = 1``. A is never inverted and may be singular.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxmixed._types import AnyArray
from jaxmixed.linalg import inverse_and_logdet, solve_and_logdet

Shapes = tuple[tuple[int, int], ...]

REGULAR = 1e-10
"""Cholesky pivots above this share of their diagonal element are taken as they are."""

RANK_TOLERANCE = 1e-12
"""Eigenvalues of a singular matrix below this share of the largest one are zero."""

IN_RANGE = 1e-12
"""A sum of levels that a root of their relationship matrix reaches to this accuracy is a shared direction."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, slots=True)
class LevelBasis:
    """Root of a known relationship matrix between the levels of a factor.

    Attributes
    ----------
    matrix : (m, l) array
        B with ``B B' = A`` but for levels without rows, which follow the l levels that have some: ``b = B
        u``. Where a shared direction exists it is the first coordinate: ``B[:l, 0]`` is constant.
    rest : (m,) array
        Variances of what B leaves: zero for the first l levels.
    """

    matrix: Float[AnyArray, "m l"]
    rest: Float[AnyArray, " m"]


def semidefinite_root(A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Root of a positive semidefinite matrix: Cholesky's if it is regular, else one of its eigenvectors.

    Parameters
    ----------
    A : (m, m) array
        Symmetric.

    Returns
    -------
    L : (m, m) array
        ``L L' = A``.
    R : (m, m) array
        ``L = A R``, and ``L R'`` is the projection onto the range of A.

    Examples
    --------
    >>> L, R = semidefinite_root(np.ones((2, 2)))
    >>> (L @ L.T).round(12).tolist(), (L @ R.T).round(12).tolist()
    ([[1.0, 1.0], [1.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]])
    """
    try:
        L = np.linalg.cholesky(A)
        if (np.diagonal(L) ** 2 > REGULAR * np.diagonal(A)).all():
            return L, np.linalg.inv(L).T
    except np.linalg.LinAlgError:
        pass
    values, vectors = np.linalg.eigh(A)
    kept = values > RANK_TOLERANCE * values[-1]
    roots = np.sqrt(np.where(kept, values, 0.0))
    return vectors * roots, vectors * np.divide(1.0, roots, out=np.zeros_like(roots), where=kept)


def level_basis(A: np.ndarray, recorded: int) -> tuple[LevelBasis, bool]:
    """Root of a relationship matrix in the coordinates of the dense root.

    Parameters
    ----------
    A : (m, m) array
        Symmetric, positive semidefinite.
    recorded : int
        Number l of levels with rows, which stand first.

    Returns
    -------
    LevelBasis
    shared : bool
        Whether the sum of the levels with rows is a coordinate of its own.

    Examples
    --------
    >>> basis, shared = level_basis(np.array([[1.0, 0.5], [0.5, 1.0]]), 2)
    >>> (basis.matrix @ basis.matrix.T).round(12), shared
    (array([[1. , 0.5],
           [0.5, 1. ]]), True)
    """
    L, inverse = semidefinite_root(A[:recorded, :recorded])
    beyond = A[recorded:, :recorded] @ inverse
    rest = np.diagonal(A)[recorded:] - np.einsum("ij,ij->i", beyond, beyond)
    v = inverse.sum(axis=0)
    length = np.linalg.norm(v)
    shared = bool(length > 0 and np.abs(L @ v - 1).max() <= IN_RANGE)
    matrix = np.concatenate([L, beyond])
    if shared:
        w = v / length
        w[0] -= 1.0
        size = np.linalg.norm(w)
        if size > 0:
            w /= size
            matrix = matrix - 2 * np.outer(matrix @ w, w)
    return LevelBasis(matrix=matrix, rest=np.append(np.zeros(recorded), np.maximum(rest, 0.0))), shared


Bases = tuple[LevelBasis | None, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, slots=True)
class Root:
    """Cross-products of the root's columns.

    Attributes
    ----------
    gram : (R, R) array
        ``Z'Z``, whole: what of it is orthogonal to the eliminated groups would be a difference in any case.
    cross : (R, r) array
        ``Z'[X y]``, of what is left of [X y] within the finest groups (in the orthogonal form).
    shared : (r, b) array
        For each effect of each factor, the combination of [X y] that its levels' columns add up to; zero
        where they do not add up to a combination of X.
    shapes : tuple of (levels, effects)
        Static; one per factor. Columns beyond them are padding, zero throughout.
    bases : tuple of (LevelBasis or None)
        One per factor: the root of a known relationship between its levels, None where they are independent.
        An empty tuple stands for independent levels of all factors.
    """

    gram: Float[AnyArray, "R R"]
    cross: Float[AnyArray, "R r"]
    shared: Float[AnyArray, "r b"]
    shapes: Shapes = field(metadata={"static": True})
    bases: Bases = ()


def factor_columns(shapes: Shapes) -> list[slice]:
    """Columns of each factor."""
    ends = np.cumsum([0, *(levels * effects for levels, effects in shapes)])
    return [slice(int(start), int(stop)) for start, stop in pairwise(ends)]


@cache
def _mirrors(shapes: Shapes, known: tuple[bool, ...], size: int) -> np.ndarray:
    """Unit vectors w of reflections I - 2 w w', a column for each effect of independent levels, (R, b)."""
    vectors = [np.zeros((size, 0))]
    for (levels, effects), columns, related in zip(shapes, factor_columns(shapes), known, strict=True):
        for effect in range(0 if related else effects):
            w = np.zeros((size, 1))
            start = columns.start + effect * levels
            w[start : start + levels] = 1 / np.sqrt(levels)
            w[start] -= 1.0
            length = np.linalg.norm(w)
            vectors.append(w / length if length > 0 else w)
    return np.concatenate(vectors, axis=1)


def _known(shapes: Shapes, bases: Bases) -> tuple[tuple[bool, ...], list[tuple[slice, int, LevelBasis]]]:
    """Which factors have a known relationship; and the columns, effects and basis of those that do."""
    every = bases or (None,) * len(shapes)
    found = [
        (columns, effects, basis)
        for (_, effects), columns, basis in zip(shapes, factor_columns(shapes), every, strict=True)
        if basis is not None
    ]
    return tuple(basis is not None for basis in every), found


def _blockwise(B: Float[AnyArray, "a b"], A: Float[Array, "rows c"], effects: int) -> Float[Array, "new c"]:
    """``(I x B) A``, a block of A's rows for each effect."""
    rows, columns = B.shape
    blocks = A.reshape(effects, columns, A.shape[1])
    return jnp.einsum("ab,qbc->qac", jnp.asarray(B), blocks).reshape(effects * rows, A.shape[1])


def _reflected(A: Float[AnyArray, "R c"], shapes: Shapes, known: tuple[bool, ...]) -> Float[Array, "R c"]:
    """``H A`` with H the reflections of independent levels."""
    w = jnp.asarray(_mirrors(shapes, known, A.shape[0]), A.dtype)
    return jnp.asarray(A) - 2 * (w @ (w.T @ A)) if w.shape[1] else jnp.asarray(A)


def reflect_rows(A: Float[AnyArray, "R c"], shapes: Shapes, bases: Bases = ()) -> Float[Array, "R c"]:
    """``B' A`` with B the change to coordinates of which the first is the sum of a factor's levels.

    For independent levels B is a reflection H; for others see :class:`LevelBasis`.
    """
    known, related = _known(shapes, bases)
    A = _reflected(A, shapes, known)
    for rows, effects, basis in related:
        levels = basis.matrix.shape[1]
        A = A.at[rows].set(_blockwise(basis.matrix[:levels].T, A[rows], effects))
    return A


def reflect_both(A: Float[AnyArray, "R R"], shapes: Shapes, bases: Bases = ()) -> Float[Array, "R R"]:
    """``B' A B`` for a symmetric matrix A."""
    known, related = _known(shapes, bases)
    w = jnp.asarray(_mirrors(shapes, known, A.shape[0]), A.dtype)
    if w.shape[1]:
        Aw = A @ w
        p = 2 * (Aw - w @ (w.T @ Aw))
        A = jnp.asarray(A) - (w @ p.T + p @ w.T)
    A = jnp.asarray(A)
    for columns, effects, basis in related:
        levels = basis.matrix.shape[1]
        for _ in range(2):
            A = A.at[columns].set(_blockwise(basis.matrix[:levels].T, A[columns], effects)).T
    return A


def to_levels(A: Float[AnyArray, "R c"], shapes: Shapes, bases: Bases = ()) -> Float[Array, "R_all c"]:
    """``B A``: from coordinates back to the levels; those without rows follow, factor by factor."""
    known, related = _known(shapes, bases)
    A = _reflected(A, shapes, known)
    beyond = []
    for rows, effects, basis in related:
        levels = basis.matrix.shape[1]
        beyond.append(_blockwise(basis.matrix[levels:], A[rows], effects))
        A = A.at[rows].set(_blockwise(basis.matrix[:levels], A[rows], effects))
    return jnp.concatenate([A, *beyond])


def level_rows(shapes: Shapes, bases: Bases, size: int) -> list[np.ndarray]:
    """Where the effects of each factor's levels stand among the rows of :func:`to_levels`, (q, m) each.

    Parameters
    ----------
    shapes, bases
        Of the root.
    size : int
        Its number of columns, padding included.

    Returns
    -------
    list of (q, m) int arrays
    """
    found = []
    every = bases or (None,) * len(shapes)
    for (levels, effects), columns, basis in zip(shapes, factor_columns(shapes), every, strict=True):
        rows = np.arange(columns.start, columns.stop).reshape(effects, levels)
        if basis is not None:
            more = basis.matrix.shape[0] - levels
            rows = np.concatenate([rows, size + np.arange(effects * more).reshape(effects, more)], axis=1)
            size += effects * more
        found.append(rows)
    return found


def reflect(root: Root) -> Root:
    """The root in coordinates where the sum of a factor's levels is its first column."""
    shapes, bases = root.shapes, root.bases
    cross, gram = reflect_rows(root.cross, shapes, bases), reflect_both(root.gram, shapes, bases)
    scales = jnp.concatenate(
        [
            jnp.broadcast_to(1 / np.sqrt(levels) if basis is None else basis.matrix[0, 0], effects)
            for (levels, effects), basis in zip(shapes, bases or (None,) * len(shapes), strict=True)
        ]
    )
    starts = np.concatenate(
        [c.start + m * np.arange(q) for c, (m, q) in zip(factor_columns(shapes), shapes, strict=True)]
    )
    known = jnp.any(jnp.asarray(root.shared) != 0, axis=0)
    columns = jnp.where(known, cross @ (root.shared * scales.astype(cross.dtype)), gram[:, starts])
    corner = columns[starts]
    columns = columns.at[starts].set((corner + corner.T) / 2, unique_indices=True)
    return Root(
        gram=gram.at[:, starts]
        .set(columns, unique_indices=True)
        .at[starts, :]
        .set(columns.T, unique_indices=True),
        cross=cross,
        shared=root.shared,
        shapes=shapes,
        bases=bases,
    )


def diagonal_of(
    factors: Sequence[Float[Array, "q q"]], size: int, shapes: Shapes
) -> Float[Array, " R"] | None:
    """Diagonal of T where every factor has one effect, which saves cutting matrices into blocks."""
    if any(effects > 1 for _, effects in shapes):
        return None
    parts = [jnp.broadcast_to(T[0, 0], levels) for T, (levels, _) in zip(factors, shapes, strict=True)]
    used = sum(levels for levels, _ in shapes)
    return jnp.concatenate([*parts, jnp.zeros(size - used, parts[0].dtype)])


def transposed_times(
    factors: Sequence[Float[Array, "q q"]], A: Float[AnyArray, "R c"], shapes: Shapes
) -> Float[Array, "R c"]:
    """``T'A`` with T block-diagonal, a block per level of every factor; zero in the padding's rows."""
    diagonal = diagonal_of(factors, A.shape[0], shapes)
    if diagonal is not None:
        return diagonal[:, None] * jnp.asarray(A)
    parts = []
    for T, (levels, effects), rows in zip(factors, shapes, factor_columns(shapes), strict=True):
        block = A[rows].reshape(effects, levels, -1)
        parts.append(jnp.sum(T[:, :, None, None] * block[:, None], axis=0).reshape(effects * levels, -1))
    used = sum(levels * effects for levels, effects in shapes)
    parts.append(jnp.zeros((A.shape[0] - used, A.shape[1]), parts[0].dtype))
    return jnp.concatenate(parts)


def times(
    factors: Sequence[Float[Array, "q q"]], A: Float[AnyArray, "R c"], shapes: Shapes
) -> Float[Array, "R c"]:
    """``T A``."""
    return transposed_times([T.T for T in factors], A, shapes)


def right_times(
    A: Float[AnyArray, "c R"], factors: Sequence[Float[Array, "q q"]], shapes: Shapes
) -> Float[Array, "c R"]:
    """``A T``; zero in the padding's columns."""
    diagonal = diagonal_of(factors, A.shape[1], shapes)
    if diagonal is not None:
        return jnp.asarray(A) * diagonal
    parts = []
    for T, (levels, effects), columns in zip(factors, shapes, factor_columns(shapes), strict=True):
        block = A[:, columns].reshape(-1, effects, 1, levels)
        parts.append(jnp.sum(T[:, :, None] * block, axis=1).reshape(-1, effects * levels))
    used = sum(levels * effects for levels, effects in shapes)
    parts.append(jnp.zeros((A.shape[0], A.shape[1] - used), parts[0].dtype))
    return jnp.concatenate(parts, axis=1)


def spherical(
    factors: Sequence[Float[Array, "q q"]],
    gram: Float[AnyArray, "R R"],
    cross: Float[AnyArray, "R r"],
    shapes: Shapes,
) -> tuple[Float[Array, "R R"], Float[Array, "R r"]]:
    """``M = I + T' g T`` and ``T' h``: the system of the standardised, uncorrelated effects."""
    M = transposed_times(factors, right_times(gram, factors, shapes), shapes)
    return M + jnp.eye(len(M), dtype=M.dtype), transposed_times(factors, cross, shapes)


def relative_covariance(
    factors: Sequence[Float[Array, "q q"]], W: Float[Array, "R R"], shapes: Shapes
) -> Float[Array, "R R"]:
    """``K = T W T'``: covariance of the root's effects given the data and beta, relative to sigma squared."""
    return times(factors, right_times(W, [T.T for T in factors], shapes), shapes)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def covariance_of_effects(
    factors: Sequence[Float[Array, "q q"]],
    covariances: Sequence[Float[Array, "q q"]],
    gram: Float[Array, "R R"],
    shapes: Shapes,
) -> tuple[Float[Array, "R R"], Float[Array, ""]]:
    r"""``A = (I + G g)^{-1} G`` and ``log|I + g G|``, differentiable in the relative covariances G.

    Computed from their factors, so that only symmetric positive definite matrices are inverted; the
    derivatives, in any direction of G, singular or not, are

    .. math:: dA = K\, dG\, K' - A\, dg\, A, \qquad d\log|I + g G| = \operatorname{tr}(g K\, dG) +
        \operatorname{tr}(A\, dg), \qquad K = I - A g.

    Parameters
    ----------
    factors : sequence of (q, q) arrays
        Roots of the covariances at the point where derivatives are taken.
    covariances : sequence of (q, q) arrays
    gram : (R, R) array
    shapes
        Of the root.

    Returns
    -------
    A : (R, R) array
    logdet : scalar
    """
    del covariances  # what they are is known by their factors; only their tangents matter
    M = transposed_times(factors, right_times(gram, factors, shapes), shapes)
    W, logdet = inverse_and_logdet(M + jnp.eye(len(M), dtype=M.dtype))
    return relative_covariance(factors, W, shapes), logdet


@covariance_of_effects.defjvp
def _covariance_of_effects_jvp(shapes, primals, tangents):  # type: ignore[no-untyped-def]
    factors, covariances, gram = primals
    _, dG, dg = tangents
    A, logdet = covariance_of_effects(factors, covariances, gram, shapes)
    K = jnp.eye(len(A), dtype=A.dtype) - A @ gram
    dG_K = times(dG, K.T, shapes)  # symmetric dG
    dA = K @ dG_K - A @ dg @ A
    return (A, logdet), (dA, jnp.sum(gram * dG_K) + jnp.sum(A * dg))


def eliminate_root(
    factors: Sequence[Float[Array, "q q"]], root: Root, schur: Float[Array, "r r"]
) -> tuple[Float[Array, ""], Float[Array, "r r"]]:
    """Contribution of the root to log|V|, and the Schur complement without it.

    Parameters
    ----------
    factors : sequence of (q, q) arrays
        Relative factor of each of the root's grouping factors.
    root : Root
        After the elimination of the chain.
    schur : (r, r) array

    Returns
    -------
    logdet : scalar
    schur : (r, r) array
    """
    M, b = spherical(factors, root.gram, root.cross, root.shapes)
    X, logdet = solve_and_logdet(M, b)
    return logdet, schur - b.T @ X
