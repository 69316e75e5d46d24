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
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxmixed._types import AnyArray
from jaxmixed.linalg import solve_and_logdet

Shapes = tuple[tuple[int, int], ...]


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
    """

    gram: Float[AnyArray, "R R"]
    cross: Float[AnyArray, "R r"]
    shared: Float[AnyArray, "r b"]
    shapes: Shapes = field(metadata={"static": True})


def factor_columns(shapes: Shapes) -> list[slice]:
    """Columns of each factor."""
    ends = np.cumsum([0, *(levels * effects for levels, effects in shapes)])
    return [slice(int(start), int(stop)) for start, stop in pairwise(ends)]


@cache
def _mirrors(shapes: Shapes, size: int) -> np.ndarray:
    """Unit vectors w of the reflections I - 2 w w', a column for each effect of each factor, (R, b)."""
    vectors = []
    for (levels, effects), columns in zip(shapes, factor_columns(shapes), strict=True):
        for effect in range(effects):
            w = np.zeros(size)
            start = columns.start + effect * levels
            w[start : start + levels] = 1 / np.sqrt(levels)
            w[start] -= 1.0
            length = np.linalg.norm(w)
            vectors.append(w / length if length > 0 else w)
    return np.stack(vectors, axis=1)


def reflect_rows(A: Float[AnyArray, "R c"], shapes: Shapes) -> Float[Array, "R c"]:
    """``H A`` with H the reflection that turns the sum of a factor's levels into the first of them."""
    w = jnp.asarray(_mirrors(shapes, A.shape[0]), A.dtype)
    return jnp.asarray(A) - 2 * (w @ (w.T @ A))


def reflect_both(A: Float[AnyArray, "R R"], shapes: Shapes) -> Float[Array, "R R"]:
    """``H A H`` for a symmetric matrix A."""
    w = jnp.asarray(_mirrors(shapes, A.shape[0]), A.dtype)
    Aw = A @ w
    p = 2 * (Aw - w @ (w.T @ Aw))
    return jnp.asarray(A) - (w @ p.T + p @ w.T)


def reflect(root: Root) -> Root:
    """The root in coordinates where the sum of a factor's levels is its first column."""
    shapes = root.shapes
    cross, gram = reflect_rows(root.cross, shapes), reflect_both(root.gram, shapes)
    levels = np.concatenate([np.full(effects, levels) for levels, effects in shapes])
    starts = np.concatenate(
        [c.start + m * np.arange(q) for c, (m, q) in zip(factor_columns(shapes), shapes, strict=True)]
    )
    known = jnp.any(jnp.asarray(root.shared) != 0, axis=0)
    columns = jnp.where(known, cross @ (root.shared / np.sqrt(levels)), gram[:, starts])
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
