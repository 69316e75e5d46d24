r"""Further responses on a design that is already reduced, many at a time.

With X, the groups and the weights fixed, all that the sufficient statistics hold of a response is linear in
it, but for its square. The design's part of the pass over the rows (:mod:`jaxmixed.crossproducts`) is
therefore kept: the orthonormal columns of X, those of every finest group, and the columns of coarser levels
and of the root without what lies in the finest groups. A response goes through the same sequence as in the
pass: its least-squares fit on X is removed (twice), then its part within the finest groups, and what is left
meets the other columns. Nothing is subtracted that the pass does not subtract, so no more digits are lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxmixed._types import AnyArray
from jaxmixed.basis import EXACT_FIT, ColumnBasis, FixedBasis, constant_column
from jaxmixed.crossproducts import Reduction, level_bases, project_out
from jaxmixed.errors import DataError
from jaxmixed.groupsums import GroupSums, PatternSums, WithinGroups, order_by_size, product
from jaxmixed.layout import Grouping
from jaxmixed.likelihood import Method
from jaxmixed.sizes import grid_size, root_size
from jaxmixed.statistics import Level, SufficientStatistics

OK, NOT_FINITE, CONSTANT, PERFECT, MAGNITUDE = 0, 1, 2, 3, 4
"""Why a response cannot be fitted: a missing or infinite value; all values equal; no variation beyond the
fixed effects and the finest groups; values whose variances a float64 could not hold."""

LARGEST_MAGNITUDE = 1e37
"""Largest absolute value of a response, and its inverse the smallest, whose variance can be represented."""

NOTHING_WITHIN = 1e-24
"""A sum of squares within the finest groups below this share of the total is rounding."""

CANCELLED = 16 * float(np.finfo(float).eps)
"""What remains of that sum of squares below this share of it, once X is removed, is rounding too."""

CHUNK_CELLS = 1 << 17
"""Values of responses that are reduced together: what a processor's second-level cache holds."""

SMALLEST_CHUNK = 64
"""Fewest responses that are reduced together, however many rows they have."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, slots=True)
class Responses:
    """What the statistics of one design hold of each response; models along a last axis, or without it.

    Attributes
    ----------
    levels : tuple of (q, m, B) arrays
        Last column of every level's `cross`; None for a finest level that is compressed.
    gram : tuple of (q, q, m, r - 1, B) and (q, q, m, B) arrays, or None
        Of a compressed finest level: the products of its other columns with the response, and the response's
        with itself.
    root : (R, B) array or None
        Last column of the root's `cross`.
    total : (r, B) array
        Last column of `total`: cross-products with X, then the square.
    origin : (p, B) array
    scale : (B,) array
    """

    levels: tuple[Float[AnyArray, "q m ..."] | None, ...]
    gram: tuple[Float[AnyArray, "q q m s ..."], Float[AnyArray, "q q m ..."]] | None
    root: Float[AnyArray, "R ..."] | None
    total: Float[AnyArray, "r ..."]
    origin: Float[AnyArray, "p ..."]
    scale: Float[AnyArray, "..."]


def response_of(stats: SufficientStatistics) -> Responses:
    """Parts of some statistics that their own response has made; views of them, without an axis of models.

    Parameters
    ----------
    stats : SufficientStatistics

    Returns
    -------
    Responses
        So that ``attach(stats, response_of(stats))`` equals `stats`.
    """
    gram = None
    if stats.levels and stats.levels[0].gram is not None:
        whole = stats.levels[0].gram
        gram = whole[..., :-1, -1], whole[..., -1, -1]
    return Responses(
        levels=tuple(None if level.cross is None else level.cross[:, -1] for level in stats.levels),
        gram=gram,
        root=None if stats.root is None else stats.root.cross[:, -1],
        total=stats.total[:, -1],
        origin=stats.origin,
        scale=stats.scale,
    )


def _with_last(matrix: AnyArray, column: AnyArray) -> Array:
    """Symmetric matrix, or a batch of them, (..., r, r), with another last column and row."""
    sides, corner = jnp.asarray(column[..., :-1]), jnp.asarray(column[..., -1:])
    top = jnp.concatenate([jnp.asarray(matrix[..., :-1, :-1]), sides[..., :, None]], axis=-1)
    bottom = jnp.concatenate([sides, corner], axis=-1)
    return jnp.concatenate([top, bottom[..., None, :]], axis=-2)


def _attach_level(level: Level, own: AnyArray | None, gram: tuple[AnyArray, AnyArray] | None) -> Level:
    if level.cross is not None:
        assert own is not None  # what is compressed in one is in the other
        cross = jnp.concatenate([jnp.asarray(level.cross[:, :-1]), jnp.asarray(own)[:, None]], axis=1)
        return replace(level, cross=cross)
    assert level.gram is not None
    assert gram is not None
    products, square = jnp.asarray(gram[0]), jnp.asarray(gram[1])
    left = jnp.concatenate([jnp.asarray(level.gram[..., :-1, :-1]), products[..., None]], axis=-1)
    # Elements (a, b) of the outer products are those of columns i and j of effects a and b, in that order.
    below = jnp.concatenate([jnp.swapaxes(products, 0, 1), square[..., None]], axis=-1)
    return replace(level, gram=jnp.concatenate([left, below[..., None, :]], axis=-2))


def attach(shared: SufficientStatistics, own: Responses) -> SufficientStatistics:
    """Statistics of one response: the design's, with what depends on the response put in.

    A pure function of traced or host arrays, to be called under ``vmap``.

    Parameters
    ----------
    shared : SufficientStatistics
        Of the design, with any response.
    own : Responses
        Of one response: without the axis of models.

    Returns
    -------
    SufficientStatistics
    """
    first = [own.gram] + [None] * len(shared.levels)
    levels = tuple(
        _attach_level(level, part, gram)
        for level, part, gram in zip(shared.levels, own.levels, first, strict=False)
    )
    root = shared.root
    if root is not None:
        assert own.root is not None
        cross = jnp.concatenate([jnp.asarray(root.cross[:, :-1]), jnp.asarray(own.root)[:, None]], axis=1)
        root = replace(root, cross=cross)
    return replace(
        shared,
        levels=levels,
        root=root,
        total=_with_last(shared.total, own.total),
        origin=jnp.asarray(own.origin),
        scale=jnp.asarray(own.scale),
    )


def _pad_axis(values: AnyArray, axis: int, size: int) -> np.ndarray:
    extra = [(0, 0)] * np.ndim(values)
    extra[axis] = (0, size - values.shape[axis])
    return np.pad(values, extra)


def pad_responses(own: Responses) -> Responses:
    """Pad every level's entries, and the root, as :func:`jaxmixed.statistics.pad` pads the design's.

    Parameters
    ----------
    own : Responses
        Host arrays, with or without the axis of models.

    Returns
    -------
    Responses
        For ``statistics.pad(shared)``.
    """
    gram = own.gram
    if gram is not None:
        entries = grid_size(gram[0].shape[2])
        gram = _pad_axis(gram[0], 2, entries), _pad_axis(gram[1], 2, entries)
    return replace(
        own,
        levels=tuple(
            None if part is None else _pad_axis(part, 1, grid_size(part.shape[1])) for part in own.levels
        ),
        gram=gram,
        root=None if own.root is None else _pad_axis(own.root, 0, root_size(len(own.root))),
    )


# The pass


def _squares(values: np.ndarray) -> np.ndarray:
    """Sum of squares of each column."""
    return np.einsum("nb,nb->b", values, values)


class _FixedPart:
    """Removal of the least-squares fit on X: :func:`jaxmixed.basis.fixed_basis` for many responses."""

    def __init__(
        self, X: np.ndarray, order: np.ndarray, weights: np.ndarray | None, fixed: FixedBasis
    ) -> None:
        self.basis = fixed.columns.basis
        self.columns = fixed.columns.standardise(X, order)
        weighted = self.columns if weights is None else weights[:, None] * self.columns
        self.products = np.ascontiguousarray(weighted.T)
        constant = constant_column(X)
        self.constant = None if constant is None else int(np.searchsorted(fixed.columns.keep, constant))
        self.value = 1.0 if constant is None else float(X[0, constant])

    def remove(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coefficients (p, B), unit and whether nothing was left; the fit is removed in place."""
        n = len(values)
        mean = np.zeros(values.shape[1]) if self.constant is None else values.mean(axis=0)
        if self.constant is not None:
            values -= mean
        centred = np.sqrt(_squares(values) / n)
        coefficients = np.zeros((len(self.products), values.shape[1]))
        for _ in range(2):  # the second pass removes what rounding left of the first
            update = product(self.products, values)
            values -= product(self.columns, update)
            coefficients += update
        size = np.sqrt(_squares(values) / n)
        exact = size <= np.maximum(EXACT_FIT * centred, 4 * np.finfo(float).eps * np.abs(mean))
        values[:, exact] = 0.0
        size[exact] = 1.0
        origin = np.linalg.solve(self.basis, coefficients)
        if self.constant is not None:
            origin[self.constant] += mean / self.value
        return origin, np.ldexp(1.0, np.rint(np.log2(size)).astype(np.int32)), exact


def _usable(values: np.ndarray) -> np.ndarray:
    """Reason codes by the values alone; columns that cannot be used become zero, in place."""
    top, bottom = values.max(axis=0), values.min(axis=0)
    largest = np.maximum(top, -bottom)
    reasons = np.where(top == bottom, CONSTANT, OK).astype(np.int8)
    reasons[(largest > LARGEST_MAGNITUDE) | ((largest > 0) & (largest < 1 / LARGEST_MAGNITUDE))] = MAGNITUDE
    reasons[~(np.isfinite(top) & np.isfinite(bottom))] = NOT_FINITE
    if reasons.any():
        values[:, reasons > 0] = 0.0
    return reasons


class ResponsePass:
    """The pass over the rows for further responses on one design.

    Parameters
    ----------
    reduction : Reduction
        Of the design, with any response.
    method : {"reml", "ml"}
        Where the fixed effects and the finest groups together have as many columns as there are rows, only
        the restricted likelihood is bounded.

    Attributes
    ----------
    shared : SufficientStatistics
        The design's statistics, compressed where that pays, not padded: the first argument of
        :func:`attach`.

    Examples
    --------
    >>> from jaxmixed.covariance import covariance_structure
    >>> from jaxmixed.crossproducts import reduce_rows
    >>> from jaxmixed.statistics import Term
    >>> one, term = np.ones((4, 1)), Term(0, 0, covariance_structure("unstructured", 1))
    >>> groups = [Grouping(one, np.array([0, 0, 1, 1]), 2, "g")]
    >>> reduction = reduce_rows(np.array([1.0, 2.0, 4.0, 7.0]), one, groups, (term,))
    >>> own, reasons = ResponsePass(reduction).reduce(np.array([[1.0, 5], [2, 5], [4, 5], [9, 5]]))
    >>> own.origin.round(3), reasons.tolist()
    (array([[4. , 3.5]]), [0, 2])
    """

    def __init__(self, reduction: Reduction, *, method: Method = "reml") -> None:
        self.shared = reduction.compact
        design, stats = reduction.design, reduction.stats
        self._rows, chain = len(design.X), len(design.groupings)
        entries = [
            position[grouping.codes]
            for position, grouping in zip(reduction.positions, design.groupings, strict=False)
        ]
        every = np.arange(self._rows)
        order = order_by_size(entries[0], design.groupings[0].size) if chain else every
        self._order = None if np.array_equal(order, every) else order
        weights = None if design.weights is None else design.weights[order]
        self._root_weights = None if weights is None else np.sqrt(weights)[:, None]
        self._fixed = _FixedPart(design.X, order, weights, reduction.fixed)
        bases = level_bases(stats.terms, reduction.columns, chain + len(design.root))
        self._prepare_chain(
            self._columns(design.groupings, bases, order),
            [entry[order] for entry in entries],
            [grouping.size for grouping in design.groupings],
        )
        self._root = [
            GroupSums(Z, grouping.codes[order], grouping.size)
            for Z, grouping in zip(self._columns(design.root, bases[chain:], order), design.root, strict=True)
        ]  # by factor, effect and level, as the root's columns are
        compressed = bool(stats.levels) and self.shared.levels[0].cross is None
        self._patterns = PatternSums(stats.levels[0]) if compressed else None
        self._check = _within_check(stats, method)

    def _weighted(self, columns: np.ndarray) -> np.ndarray:
        return columns if self._root_weights is None else columns * self._root_weights

    def _columns(
        self, groupings: Sequence[Grouping], bases: Sequence[ColumnBasis], order: np.ndarray
    ) -> list[np.ndarray]:
        """Weighted random-effects columns of each factor in the coordinates of the statistics."""
        return [
            self._weighted(found.standardise(grouping.Z, order))
            for grouping, found in zip(groupings, bases, strict=False)
        ]

    def _prepare_chain(self, blocks: list[np.ndarray], entries: list[np.ndarray], sizes: list[int]) -> None:
        """Orthonormal columns of the finest groups; coarser columns and X without what lies in them."""
        rest = np.concatenate([*blocks[1:], self._weighted(self._fixed.columns)], axis=1)
        self._finest: WithinGroups | None = None
        if blocks:
            starts = np.flatnonzero(np.diff(entries[0], prepend=-1))
            _, _, Q = project_out(blocks[0], rest, starts, np.diff(np.append(starts, self._rows)))
            self._finest = WithinGroups(Q, entries[0], sizes[0])
        self._coarser: list[GroupSums] = []
        start = 0
        for block, entry, size in zip(blocks[1:], entries[1:], sizes[1:], strict=True):
            stop = start + block.shape[1]
            self._coarser.append(GroupSums(rest[:, start:stop], entry, size))
            start = stop
        self._within_X = np.ascontiguousarray(rest[:, start:].T)

    def reduce(self, Y: np.ndarray) -> tuple[Responses, np.ndarray]:
        """Reduce responses.

        Parameters
        ----------
        Y : (n, B) array
            A response less any offset in every column, rows in the order of the design's.

        Returns
        -------
        Responses
            A response that cannot be fitted has the numbers of the reduction's own.
        reasons : (B,) int8 array
            `OK`, or why a response cannot be fitted: `NOT_FINITE`, `CONSTANT`, `PERFECT` or `MAGNITUDE`.

        Raises
        ------
        DataError
            If Y has not the design's number of rows.
        """
        Y = np.asarray(Y)
        if Y.ndim != 2 or len(Y) != self._rows:
            raise DataError(
                f"The responses have the shape {Y.shape}, but the design has {self._rows} rows: give "
                "a column of that length for each response."
            )
        count, width = Y.shape[1], max(CHUNK_CELLS // self._rows, SMALLEST_CHUNK)
        own = response_of(self.shared)
        found = jax.tree_util.tree_map(lambda part: np.empty((*np.shape(part), count)), own)
        reasons = np.empty(count, dtype=np.int8)
        for start in range(0, count, width):
            lanes = slice(start, min(start + width, count))
            if self._order is None:
                values = np.array(Y[:, lanes], dtype=np.float64, order="C")
            else:
                values = Y[self._order, lanes].astype(np.float64, order="C", copy=False)
            parts, reasons[lanes] = self._reduce(values)
            _put(found, parts, lanes)
        if reasons.any():
            bad = reasons != OK
            one = jax.tree_util.tree_map(lambda part: np.asarray(part)[..., None], own)
            _put(found, one, bad)
        return found, reasons

    def _reduce(self, values: np.ndarray) -> tuple[Responses, np.ndarray]:
        """Parts of some responses, whose values are used up, and their reason codes."""
        reasons = _usable(values)
        origin, scale, exact = self._fixed.remove(values)
        if self._root_weights is not None:
            values *= self._root_weights
        levels: list[np.ndarray | None] = []
        gram, root, within = None, None, np.zeros(len(scale))
        if self._finest is not None:
            own = self._finest.remove(values)
            own /= scale
            within = np.einsum("amb,amb->b", own, own)
            gram = None if self._patterns is None else self._patterns(own)
            levels.append(own if self._patterns is None else None)
            levels += [sums(values) / scale for sums in self._coarser]
        if self._root:
            root = np.concatenate([sums(values).reshape(-1, len(scale)) for sums in self._root]) / scale
        total = np.concatenate([product(self._within_X, values) / scale, _squares(values)[None] / scale**2])
        if self._check is not None:
            Xy, square = total[:-1], total[-1]
            left = square - np.einsum("pb,pb->b", Xy, self._check @ Xy)
            exact |= ~(left > np.maximum(NOTHING_WITHIN * (square + within), CANCELLED * square))
        reasons[exact & (reasons == OK)] = PERFECT
        parts = Responses(levels=tuple(levels), gram=gram, root=root, total=total, origin=origin, scale=scale)
        return parts, reasons


def _within_check(stats: SufficientStatistics, method: Method) -> np.ndarray | None:
    """Inverse of X's cross-products within the finest groups, where variation must be left there.

    `fitting` refuses data without. In the saturated case no row is left to estimate sigma within groups, but
    the restricted likelihood is bounded.
    """
    if not stats.levels:
        return None
    X = np.asarray(stats.total)[:-1, :-1]
    rank = np.linalg.lstsq(X, X[:, :1] if len(X) else np.zeros((0, 1)), rcond=1e-12)[2]
    left = int(stats.nobs) - np.count_nonzero(np.diagonal(stats.levels[0].root) > 0) - rank
    return None if left <= 0 and method == "reml" else np.linalg.pinv(X, rcond=1e-12)


def _put(found: Responses, parts: Responses, lanes: slice | np.ndarray) -> None:
    """Write the parts of some responses in their places."""

    def write(into: np.ndarray, part: np.ndarray) -> None:
        into[..., lanes] = part

    jax.tree_util.tree_map(write, found, parts)
