r"""Sufficient statistics of a Gaussian mixed model.

A Gaussian mixed model sees its data only through cross-products. The statistics of a chain of nested factors,
finest first, hold for every *entry* of a level (a group, or a pattern standing for many equal groups) what
the elimination of that level needs, and in `total` what is left for the fixed effects. Grouping factors
outside the chain (crossed with it) are kept in a dense *root* (:mod:`jaxmixed.root`), to which each level of
the chain is linked by sparse cross-products (:mod:`jaxmixed.links`). Two forms of the finest level are
equivalent:

``"orthogonal"``
    From a QR decomposition ``Z_i = Q_i R_i`` within each group: `root` is ``R_i``, `cross` is ``D_i = Q_i'
    [Z_2 .. X y]`` and `total` keeps what is orthogonal to ``Z_i``. Nothing is ever subtracted, so no digits
    are lost when the variance ratio is large. This is what the front end makes
    (:mod:`jaxmixed.crossproducts`).

``"moments"``
    Plain sums: `root` is ``N_i = Z_i' Z_i`` and `cross` is ``Z_i' [Z_2 .. X y]``; `total` is ``[X y]' [X
    y]``. Smooth in the data and additive row by row, so this is what :func:`summarise` makes of traced
    arrays.

Rows are premultiplied by the square roots of their precision weights in both.

**Patterns.** Groups with the same ``R_i`` may share one entry: `count` of them, and instead of `cross` the
sum of the outer products, `gram`. The cost of an evaluation then falls from the number of groups to that of
distinct patterns.

**Coordinates.** The fixed-effects columns are ``X = Xs @ basis``, each level's random-effects columns ``Z =
Zs @ frame`` and the response ``y = X @ origin + scale * ys``, with ``Xs, Zs, ys`` what the cross-products are
made of; `likelihood` puts the constants back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxmixed._types import AnyArray, SameArray
from jaxmixed.covariance import Covariance, covariance_structure
from jaxmixed.links import Links, pad_links
from jaxmixed.root import Root
from jaxmixed.sizes import grid_size, root_size

Form = Literal["orthogonal", "moments"]


@dataclass(frozen=True, slots=True)
class Term:
    """Where a random-effects term lives: static, hashable.

    Attributes
    ----------
    level : int
        Position of its grouping factor: in the chain, 0 the finest, and then among the root's factors.
    start : int
        First column of the term among the level's columns.
    covariance : Covariance
        Its structure, with the number of its columns.
    """

    level: int
    start: int
    covariance: Covariance


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """Statistics of one grouping level; `r` counts the columns of coarser levels, X and y, in that order.

    Attributes
    ----------
    root : (q, q, m) array
        ``R`` or ``N``, by `form`.
    cross : (q, r, m) array or None
        Cross-products with the remaining columns; None when compressed to `gram`.
    gram : (q, q, m, r, r) array or None
        Sum over the groups of a pattern of the outer products of their `cross`.
    count : (m,) array
        Number of groups that each entry stands for; 0 for padding.
    parents : tuple of (m,) int arrays
        For each coarser level, the entry that contains this one; sorted.
    links : Links or None
        Cross-products with the columns of the root, where there is one.
    form : str
        Static. Coarser levels are always "moments".
    """

    root: Float[AnyArray, "q q m"]
    cross: Float[AnyArray, "q r m"] | None
    gram: Float[AnyArray, "q q m r r"] | None
    count: Float[AnyArray, " m"]
    parents: tuple[Int[AnyArray, " m"], ...]
    form: Form = field(metadata={"static": True})
    links: Links | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, slots=True)
class SufficientStatistics:
    """All that the likelihood needs of the data.

    Attributes
    ----------
    levels : tuple of Level
        Finest first; empty for a linear model.
    total : (p + 1, p + 1) array
        Cross-products of [X y] (what is left of them within the finest groups, in the orthogonal form).
    nobs : scalar
        Number of rows.
    sum_log_weights : scalar
        Sum of the logarithms of the precision weights.
    root : Root or None
        The grouping factors outside the chain; None when there are none.
    frames : tuple of (q, q) arrays
        For each level, and then each factor of the root, ``Z = Zs @ frame``.
    basis : (p, p) array
        ``X = Xs @ basis``.
    log_det_basis : scalar
        ``2 log |det basis|``.
    origin : (p,) array
        Coefficients already removed from the response, on the scale of X.
    scale : scalar
        Unit of the response.
    terms : tuple of Term
        Static; the order in which `theta` lists their parameters.
    """

    levels: tuple[Level, ...]
    total: Float[AnyArray, "r r"]
    nobs: Float[AnyArray, ""]
    sum_log_weights: Float[AnyArray, ""]
    frames: tuple[Float[AnyArray, "q q"], ...]
    basis: Float[AnyArray, "p p"]
    log_det_basis: Float[AnyArray, ""]
    origin: Float[AnyArray, " p"]
    scale: Float[AnyArray, ""]
    terms: tuple[Term, ...] = field(metadata={"static": True})
    root: Root | None = None

    @property
    def widths(self) -> list[int]:
        """Random-effects columns of each level of the chain and each factor of the root."""
        return [len(frame) for frame in self.frames]

    def assemble(self, blocks: Sequence[Float[Array, "qt qt"]]) -> list[Float[Array, "q q"]]:
        """Matrix of each level (chain, then root), block-diagonal over its terms, from a block per term."""
        matrices = []
        for depth, width in enumerate(self.widths):
            matrix = jnp.zeros((width, width), self.frames[depth].dtype)
            for term, block in zip(self.terms, blocks, strict=True):
                if term.level == depth:
                    matrix = jax.lax.dynamic_update_slice(matrix, block, (term.start, term.start))
            matrices.append(matrix)
        return matrices

    @property
    def num_params(self) -> int:
        """Length of `theta`."""
        return sum(term.covariance.num_params for term in self.terms)

    def split(self, theta: Float[SameArray, " k"]) -> list[Float[SameArray, " kt"]]:
        """Parameters of each term, in order."""
        parts: list[SameArray] = []
        start = 0
        for term in self.terms:
            stop = start + term.covariance.num_params
            parts.append(theta[start:stop])
            start = stop
        return parts


def _group_sums(values: Float[Array, "n a b"], codes: Int[Array, " n"], m: int) -> Float[Array, "a b m"]:
    return jnp.moveaxis(jax.ops.segment_sum(values, codes, num_segments=m), 0, -1)


def summarise(
    y: Float[Array, " n"],
    X: Float[Array, "n p"],
    Z: Sequence[Float[Array, "n q"]] | Float[Array, "n q"],
    groups: Sequence[Int[Array, " n"]] | Int[Array, " n"],
    *,
    num_groups: Sequence[int] | int,
    weights: Float[Array, " n"] | None = None,
    structures: Sequence[str] | str = "unstructured",
) -> SufficientStatistics:
    """Statistics of traced arrays: a pure function of y, X, Z and the weights, smooth in all of them.

    Parameters
    ----------
    y : (n,) array
        Response.
    X : (n, p) array of full column rank
        Fixed-effects design.
    Z : (n, q) array, or a sequence of them
        Random-effects columns of each grouping factor, finest factor first.
    groups : (n,) int array, or a sequence of them
        Codes ``0 .. m-1`` of each factor; each must be nested in the next. Codes need not be sorted.
    num_groups : int, or a sequence of int
        Number of groups of each factor (static).
    weights : (n,) array, optional
        Precision weights, ``Var(e_i) = sigma**2 / w_i``.
    structures : str, or a sequence of str
        Covariance structure of each factor's effects.

    Returns
    -------
    SufficientStatistics
        In the "moments" form and the dtype of `y`.

    Notes ----- Cross-products square the condition number: centre X and y beforehand where their means are
    large against their spread. The front end does this, and more (:mod:`jaxmixed.crossproducts`).

    Examples
    --------
    >>> y, x = jnp.array([1.0, 2.0, 4.0, 7.0]), jnp.ones((4, 1))
    >>> stats = summarise(y, x, x, jnp.array([0, 0, 1, 1]), num_groups=2)
    >>> stats.levels[0].root.shape
    (1, 1, 2)
    """
    Zs = [Z] if isinstance(Z, Array | np.ndarray) else list(Z)
    codes = [groups] if isinstance(groups, Array | np.ndarray) else list(groups)
    counts = [num_groups] if isinstance(num_groups, int) else list(num_groups)
    names = [structures] * len(Zs) if isinstance(structures, str) else list(structures)
    w = jnp.ones_like(y) if weights is None else weights
    remaining = jnp.concatenate([*Zs[1:], X, y[:, None]], axis=1)
    levels = []
    for depth, (block, code, m) in enumerate(zip(Zs, codes, counts, strict=True)):
        weighted = w[:, None] * block
        representative = jax.ops.segment_max(jnp.arange(len(y)), code, num_segments=m)
        levels.append(
            Level(
                root=_group_sums(weighted[:, :, None] * block[:, None, :], code, m),
                cross=_group_sums(weighted[:, :, None] * remaining[:, None, :], code, m),
                gram=None,
                count=jnp.ones(m, y.dtype),
                parents=tuple(jnp.asarray(coarser)[representative] for coarser in codes[depth + 1 :]),
                form="moments",
            )
        )
        remaining = remaining[:, Zs[depth + 1].shape[1] :] if depth + 1 < len(Zs) else remaining
    p = X.shape[1]
    Xy = jnp.concatenate([X, y[:, None]], axis=1)
    return SufficientStatistics(
        levels=tuple(levels),
        total=Xy.T @ (w[:, None] * Xy),
        nobs=jnp.asarray(len(y), y.dtype),
        sum_log_weights=jnp.sum(jnp.log(w)),
        frames=tuple(jnp.eye(block.shape[1], dtype=y.dtype) for block in Zs),
        basis=jnp.eye(p, dtype=y.dtype),
        log_det_basis=jnp.zeros((), y.dtype),
        origin=jnp.zeros(p, y.dtype),
        scale=jnp.ones((), y.dtype),
        terms=tuple(
            Term(depth, 0, covariance_structure(name, block.shape[1]))
            for depth, (block, name) in enumerate(zip(Zs, names, strict=True))
        ),
    )


def _pad_level(level: Level, m: int, parent_sizes: Sequence[int]) -> Level:
    extra = m - len(level.count)
    if extra == 0:
        return level

    def last(a: AnyArray) -> np.ndarray:
        return np.concatenate([a, np.zeros((*a.shape[:-1], extra))], axis=-1)

    gram = level.gram
    if gram is not None:
        gram = np.concatenate([gram, np.zeros((*gram.shape[:2], extra, *gram.shape[3:]))], axis=2)
    return replace(
        level,
        root=last(level.root),
        cross=None if level.cross is None else last(level.cross),
        gram=gram,
        count=last(level.count),
        parents=tuple(
            np.concatenate([parent, np.full(extra, size - 1, parent.dtype)])
            for parent, size in zip(level.parents, parent_sizes, strict=True)
        ),
    )


def _pad_root(root: Root, size: int) -> Root:
    extra = size - len(root.gram)
    gram = np.pad(root.gram, [(0, extra), (0, extra)])
    return replace(root, gram=gram, cross=np.pad(root.cross, [(0, extra), (0, 0)]))


def pad(stats: SufficientStatistics) -> SufficientStatistics:
    """Pad every level's entries, and the root, to sizes that data of similar shape share (see `sizes`).

    Padding is exact: a group without rows has ``I + T' 0 T = I`` and contributes nothing.
    """
    sizes = [grid_size(len(level.count)) for level in stats.levels]
    levels = [
        _pad_level(level, m, sizes[depth + 1 :])
        for depth, (level, m) in enumerate(zip(stats.levels, sizes, strict=True))
    ]
    if stats.root is None:
        return replace(stats, levels=tuple(levels))
    width = root_size(len(stats.root.gram))
    links = [level.links for level in stats.levels]
    entries = [grid_size(len(own.group) + 1) for own in links if own is not None]
    linked = [
        replace(level, links=pad_links(own, m, width, entries[depth:]))
        for depth, (level, own, m) in enumerate(zip(levels, links, sizes, strict=True))
        if own is not None
    ]
    return replace(stats, levels=tuple(linked), root=_pad_root(stats.root, width))


def pad_alike(many: Sequence[SufficientStatistics]) -> list[SufficientStatistics]:
    """Pad the levels of data sets of one structure to common sizes, so that they can stand side by side.

    Parameters
    ----------
    many : sequence of SufficientStatistics
        Host arrays without a root, with the same terms and the same number of levels, all compressed or none.

    Returns
    -------
    list of SufficientStatistics
        Of equal shapes.
    """
    depth = len(many[0].levels)
    sizes = [grid_size(max(len(stats.levels[d].count) for stats in many)) for d in range(depth)]
    return [
        replace(
            stats,
            levels=tuple(
                _pad_level(level, m, sizes[d + 1 :])
                for d, (level, m) in enumerate(zip(stats.levels, sizes, strict=True))
            ),
        )
        for stats in many
    ]
