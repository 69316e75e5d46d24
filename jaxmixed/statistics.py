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
from itertools import pairwise
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxmixed._types import AnyArray, SameArray
from jaxmixed.coordinates import fixed_coordinates, random_coordinates, untouched
from jaxmixed.covariance import Covariance, Parameterised, covariance_structure
from jaxmixed.links import Links, pad_links
from jaxmixed.residual_covariance import ResidualCovariance
from jaxmixed.root import LevelBasis, Root
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


class ResidualPart(Protocol):
    """Rows with correlated residuals (:mod:`jaxmixed.residual_statistics`)."""

    @property
    def covariance(self) -> ResidualCovariance:
        """Their structure."""
        ...

    def whitened(self, free: Float[Array, " k"], stats: "SufficientStatistics") -> "SufficientStatistics":
        """Statistics of the model with independent residuals at free residual parameters."""
        ...


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
    residual : ResidualPart or None
        Rows with correlated residuals, whose free parameters follow those of the terms; None if residuals are
        independent. The other fields are then those without correlation, and :meth:`at` gives what they are
        with it.
    repeated : bool
        Static. Groups count other than once (`frequencies` of :func:`summarise`): cross-products with the
        columns of coarser levels, X and y are those of all copies.
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
    residual: ResidualPart | None = None
    repeated: bool = field(default=False, metadata={"static": True})

    @property
    def structures(self) -> tuple[Parameterised, ...]:
        """Owners of successive parameters: the terms' covariances, then the residuals'."""
        own = tuple(term.covariance for term in self.terms)
        return own if self.residual is None else (*own, self.residual.covariance)

    def at(self, theta: Float[Array, " k"]) -> "SufficientStatistics":
        """Statistics of the model with independent residuals, at the residual parameters in `theta`."""
        if self.residual is None:
            return self
        return self.residual.whitened(theta[len(theta) - self.num_residual :], self)

    @property
    def num_residual(self) -> int:
        """Number of residual parameters, the last of `theta`."""
        return 0 if self.residual is None else self.residual.covariance.num_params

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
        return sum(structure.num_params for structure in self.structures)

    def split(self, theta: Float[SameArray, " k"]) -> list[Float[SameArray, " kt"]]:
        """Parameters of each term, in order; not those of the residuals, which follow."""
        parts: list[SameArray] = []
        start = 0
        for term in self.terms:
            stop = start + term.covariance.num_params
            parts.append(theta[start:stop])
            start = stop
        return parts


def _group_sums(values: Float[Array, "n a b"], codes: Int[Array, " n"], m: int) -> Float[Array, "a b m"]:
    return jnp.moveaxis(jax.ops.segment_sum(values, codes, num_segments=m), 0, -1)


Structure = str | Covariance | Sequence[Covariance]
"""Of a factor's effects: a name, one structure, or structures of successive columns (several terms)."""


@dataclass(frozen=True, slots=True)
class _Factor:
    """One grouping factor of traced rows."""

    Z: Float[Array, "n q"]
    codes: Int[Array, " n"]
    size: int
    covariances: tuple[Covariance, ...]
    copies: Float[AnyArray, " m"] | None


def listed(values: Any) -> list[Any]:
    """One array (or None, or name), or several in a list or tuple, as a list.

    Examples
    --------
    >>> listed(None), listed(("unstructured", "identity"))
    ([None], ['unstructured', 'identity'])
    """
    return list(values) if isinstance(values, list | tuple) else [values]


def _factors(
    Z: Sequence[AnyArray] | AnyArray,
    groups: Sequence[AnyArray] | AnyArray,
    num_groups: Sequence[int] | int,
    structures: Sequence[Structure] | Structure,
    copies: Sequence[AnyArray | None],
) -> list[_Factor]:
    """The arguments of :func:`summarise`, factor by factor."""
    Zs, given = listed(Z), listed(structures)
    if not isinstance(structures, list | tuple) or (hasattr(Z, "ndim") and len(given) > 1):
        given = [structures] * len(Zs)  # of all factors; a tuple for the only one is of its terms
    copies = [*copies, *[None] * (len(Zs) - len(copies))]
    factors = []
    for block, code, size, structure, own in zip(
        Zs, listed(groups), listed(num_groups), given, copies, strict=True
    ):
        columns = jnp.asarray(block)
        if isinstance(structure, str):
            structure = covariance_structure(structure, columns.shape[1])
        own_structures = tuple(structure) if isinstance(structure, list | tuple) else (structure,)
        factors.append(_Factor(columns, jnp.asarray(code), int(size), own_structures, own))
    return factors


def _check_codes(groups: Sequence[AnyArray], sizes: Sequence[int], nested: bool) -> None:
    """Refuse codes out of range, and factors that are not nested; of codes that are known, not traced."""
    known = [None if isinstance(codes, jax.core.Tracer) else np.asarray(codes) for codes in groups]
    for position, (codes, size) in enumerate(zip(known, sizes, strict=True)):
        if codes is not None and codes.size and not (codes.min() >= 0 and codes.max() < size):
            raise ValueError(
                f"the codes of factor {position} run from {codes.min()} to {codes.max()}; with {size} groups "
                f"they must lie between 0 and {size - 1}"
            )
    for position, (fine, coarse) in enumerate(pairwise(known)):
        if not nested or fine is None or coarse is None:
            continue
        owner = np.empty(sizes[position], dtype=np.int64)
        owner[fine] = coarse
        if not np.array_equal(owner[fine], coarse):
            raise ValueError(
                f"factor {position} is not nested in factor {position + 1}: a group of it occurs in several "
                "of theirs. The finest factor comes first; crossed=True takes factors that are not nested."
            )


def _coordinates(
    factor: _Factor, w: Float[Array, " n"], standardise: bool
) -> tuple[Float[Array, "n q"], Float[Array, "q q"]]:
    """A factor's columns in coordinates of their own, term by term, and the frame that leads back."""
    q = factor.Z.shape[1]
    if not standardise:
        return factor.Z, jnp.eye(q, dtype=factor.Z.dtype)
    blocks, frame, start = [], jnp.zeros((q, q), factor.Z.dtype), 0
    for covariance in factor.covariances:
        own = slice(start, start + covariance.q)
        columns, block = random_coordinates(factor.Z[:, own], w, covariance)
        blocks.append(columns)
        frame = frame.at[own, own].set(block)
        start = own.stop
    return jnp.concatenate(blocks, axis=1), frame


def _terms(factors: Sequence[_Factor]) -> tuple[Term, ...]:
    terms: list[Term] = []
    for depth, factor in enumerate(factors):
        start = 0
        for covariance in factor.covariances:
            terms.append(Term(depth, start, covariance))
            start += covariance.q
    return tuple(terms)


def summarise(
    y: Float[AnyArray, " n"],
    X: Float[AnyArray, "n p"],
    Z: Sequence[Float[AnyArray, "n q"]] | Float[AnyArray, "n q"],
    groups: Sequence[Int[AnyArray, " n"]] | Int[AnyArray, " n"],
    *,
    num_groups: Sequence[int] | int,
    weights: Float[AnyArray, " n"] | None = None,
    frequencies: Sequence[Float[AnyArray, " m"] | None] | Float[AnyArray, " n"] | None = None,
    structures: Sequence[Structure] | Structure = "unstructured",
    crossed: bool = False,
    relationships: Sequence[Float[AnyArray, "m m"] | None] | Float[AnyArray, "m m"] | None = None,
    standardise: bool = True,
) -> SufficientStatistics:
    r"""Statistics of traced arrays: a pure function of y, X, Z and the weights, smooth in all of them.

    Parameters
    ----------
    y : (n,) array
        Response.
    X : (n, p) array of full column rank
        Fixed-effects design.
    Z : (n, q) array, or a sequence of them
        Random-effects columns of each grouping factor, finest factor first.
    groups : (n,) int array, or a sequence of them
        Codes ``0 .. m-1`` of each factor; each must be nested in the next, unless `crossed`. Codes need not
        be sorted.
    num_groups : int, or a sequence of int
        Number of groups of each factor (static).
    weights : (n,) array, optional
        Precision weights, ``Var(e_i) = sigma**2 / w_i``.
    frequencies : (n,) array, or a sequence, optional
        How often each row counts; in a sequence, then how often each group of each factor does, finest first,
        None for once. A frequency of 2 is a copy (of a group: with random effects of its own), one of 0 a
        deletion. With sampling weights this is the pseudo-likelihood of Rabe-Hesketh & Skrondal (2006).
    structures : str, Covariance, or a sequence of them
        Covariance structure of each factor's effects; for several terms of one factor, a tuple of
        structures of successive columns.
    crossed : bool
        The factors are not nested: they go to a dense root, whose order is the number of all their effects.
    relationships : (m, m) array, or a sequence, optional
        Relationship matrix between the levels of each factor, positive definite, None for independent ones:
        effects have covariance ``kron(A, G)``. May be traced: a kernel of the levels' positions. Implies
        `crossed`.
    standardise : bool
        Compute in coordinates in which X is orthonormal, y centred and Z of unit size
        (:mod:`jaxmixed.coordinates`). Nothing that the likelihood returns depends on it, but for rounding.
        False leaves plain sums, which add up over batches of rows.

    Returns
    -------
    SufficientStatistics
        In the "moments" form and the dtype of `y`.

    Raises
    ------
    ValueError
        For codes out of range, and factors that are not nested (where codes are known, not traced); for
        frequencies of the groups of crossed factors, whose copies would share the others' effects.

    Notes
    -----
    A group's copies multiply what it hands to coarser levels, not what it receives: Z of every coarser
    level, X and y are multiplied by the square root of the number of copies. At a frequency of exactly zero
    the statistics are right, but not differentiable; and a group that is not there has effects of zero, while
    the limit from above are those of a copy.

    References
    ----------
    Rabe-Hesketh & Skrondal (2006), Multilevel modelling of complex survey data, Journal of the Royal
    Statistical Society A 169(4), equation 4.

    Examples
    --------
    >>> y, x = jnp.array([1.0, 2.0, 4.0, 7.0]), jnp.ones((4, 1))
    >>> stats = summarise(y, x, x, jnp.array([0, 0, 1, 1]), num_groups=2)
    >>> stats.levels[0].root.shape
    (1, 1, 2)
    """
    y, X = jnp.asarray(y), jnp.asarray(X)
    copies = listed(frequencies)
    related = listed(relationships)
    crossed = crossed or any(A is not None for A in related)
    factors = _factors(Z, groups, num_groups, structures, copies[1:])
    _check_codes(listed(groups), [factor.size for factor in factors], nested=not crossed)
    one = jnp.ones_like(y)
    w = one if weights is None else jnp.asarray(weights)
    rows = one if copies[0] is None else jnp.asarray(copies[0])
    # Copies of all that is inside a group: for each level, and at the end for X and y.
    inside = [one]
    for factor in factors:
        inside.append(inside[-1] if factor.copies is None else inside[-1] * factor.copies[factor.codes])
    total = rows * inside[-1]
    found = fixed_coordinates(X, y, w * total) if standardise else untouched(X, y)
    scaled = [_coordinates(factor, w * total, standardise) for factor in factors]
    columns = [Zs * jnp.sqrt(copies)[:, None] for (Zs, _), copies in zip(scaled, inside[:-1], strict=True)]
    Xy = jnp.concatenate([found.X, found.y[:, None]], axis=1) * jnp.sqrt(inside[-1])[:, None]
    weight = (w * rows)[:, None]
    if crossed and any(factor.copies is not None for factor in factors):
        raise ValueError("frequencies of groups need nested factors; of crossed ones, only rows have any.")
    return SufficientStatistics(
        levels=() if crossed else _levels(factors, columns, Xy, weight),
        root=_dense_root(factors, columns, Xy, weight, related) if crossed else None,
        total=Xy.T @ (weight * Xy),
        nobs=jnp.sum(total),
        sum_log_weights=jnp.sum(total * jnp.log(w)),
        frames=tuple(frame for _, frame in scaled),
        basis=found.basis,
        log_det_basis=found.log_det,
        origin=found.origin,
        scale=found.scale,
        terms=_terms(factors),
        repeated=any(factor.copies is not None for factor in factors),
    )


def _levels(
    factors: Sequence[_Factor],
    columns: Sequence[Float[Array, "n q"]],
    Xy: Float[Array, "n r"],
    weight: Float[Array, "n 1"],
) -> tuple[Level, ...]:
    """Cross-products of every factor's columns with themselves, those of coarser factors, X and y."""
    n = len(Xy)
    levels: list[Level] = []
    representatives = [
        jax.ops.segment_max(jnp.arange(n), factor.codes, num_segments=factor.size) for factor in factors
    ]
    for depth, (factor, block) in enumerate(zip(factors, columns, strict=True)):
        weighted = weight * block
        rest = jnp.concatenate([*columns[depth + 1 :], Xy], axis=1)
        count = jnp.ones(factor.size, Xy.dtype)
        for other in factors[depth:]:
            if other.copies is not None:
                count = count * other.copies[other.codes[representatives[depth]]]
        levels.append(
            Level(
                root=_group_sums(weighted[:, :, None] * block[:, None, :], factor.codes, factor.size),
                cross=_group_sums(weighted[:, :, None] * rest[:, None, :], factor.codes, factor.size),
                gram=None,
                count=count,
                parents=tuple(coarser.codes[representatives[depth]] for coarser in factors[depth + 1 :]),
                form="moments",
            )
        )
    return tuple(levels)


def _dense_root(
    factors: Sequence[_Factor],
    columns: Sequence[Float[Array, "n q"]],
    Xy: Float[Array, "n r"],
    weight: Float[Array, "n 1"],
    relationships: Sequence[Float[AnyArray, "m m"] | None],
) -> Root:
    """Cross-products of all factors' columns, ordered by factor, effect and level."""
    effects = [
        (factor, weight[:, 0] * block[:, a], block[:, a])
        for factor, block in zip(factors, columns, strict=True)
        for a in range(block.shape[1])
    ]
    rows = []
    for one, weighted, _ in effects:
        row = []
        for other, _, z in effects:
            cells = jax.ops.segment_sum(
                weighted * z, one.codes * other.size + other.codes, num_segments=one.size * other.size
            )
            row.append(cells.reshape(one.size, other.size))
        rows.append(jnp.concatenate(row, axis=1))
    cross = [
        jax.ops.segment_sum(weighted[:, None] * Xy, one.codes, num_segments=one.size)
        for one, weighted, _ in effects
    ]
    return Root(
        gram=jnp.concatenate(rows),
        cross=jnp.concatenate(cross),
        # Whether they add up to columns of X is not known of traced arrays.
        shared=jnp.zeros((Xy.shape[1], len(effects)), Xy.dtype),
        shapes=tuple((factor.size, block.shape[1]) for factor, block in zip(factors, columns, strict=True)),
        bases=tuple(
            None if A is None else LevelBasis(matrix=jnp.linalg.cholesky(A), rest=jnp.zeros(len(A), A.dtype))
            for A in relationships
        )
        if any(A is not None for A in relationships)
        else (),
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
