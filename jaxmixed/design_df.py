r"""Denominator degrees of freedom that follow from the design alone, by coefficient.

``"residual"``: n less the rank of X.

``"between-within"``: each grouping of a nested chain, and the rows as the innermost one, has its own:
:math:`(m_i - r_i) - (m_{i-1} - r_{i-1})` with :math:`m_i` groups and :math:`r_i` dimensions of the span of X
that are constant within them. A coefficient has those of the outermost grouping within whose groups its
column is constant. The groups of correlated residuals are a grouping like those of random effects.

``"containment"``: a random effect contains a column that is, within each of its groups, a combination of the
effect's own columns. A coefficient has as many as the smallest rank contribution of an effect that contains
its column, or else n less the rank of [X Z]. An effect contributes what it adds to the rank of X and of all
effects but those that are part of a finer grouping.

References
----------
Schluchter & Elashoff (1990), Journal of Statistical Computation and Simulation 37, 69-87; Pinheiro & Bates
(2000), Mixed-Effects Models in S and S-PLUS, section 2.4.2; SAS/STAT User's Guide, PROC MIXED, DDFM=.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmixed.basis import column_basis
from jaxmixed.errors import DesignError, printable
from jaxmixed.layout import Grouping, is_nested

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates
    from jaxmixed.frame import ModelFrame

KINDS = ("residual", "between-within", "containment")
"""Methods of this module."""

INSIDE = 1e-11
"""Share of a column's sum of squares outside of a span below which it lies in it."""

DEPENDENT = 1e-9
"""Share of a column's sum of squares that others leave, below which it depends on them."""

ROUNDING = 1e-13
"""Relative size of what rounding leaves of a column."""


def coefficient_df(kind: str, frame: ModelFrame, estimates: Estimates) -> np.ndarray:
    """Degrees of freedom of every coefficient that is not aliased.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    frame : ModelFrame
    estimates : Estimates

    Returns
    -------
    (p,) array
        Zero where nothing is left to estimate the variance from.

    Raises
    ------
    DesignError
        For ``"between-within"`` where groupings are crossed.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    >>> {kind: coefficient_df(kind, fit.frame, fit.estimates).tolist() for kind in KINDS}
    {'residual': [178.0, 178.0], 'between-within': [17.0, 161.0], 'containment': [17.0, 17.0]}
    """
    kept = ~np.isnan(estimates.beta)
    n, p = len(frame.X), int(np.count_nonzero(kept))
    X = np.asarray(frame.X)[:, kept]
    if kind == "between-within" and _groupings(frame):
        return np.maximum(_between_within(X, frame), 0.0)
    if kind == "containment" and frame.groups:
        return np.maximum(_Containment(X, frame).df(), 0.0)
    return np.full(p, float(n - p))


def _total_squares(X: np.ndarray) -> np.ndarray:
    """Sums of squares of columns about their means; of constant columns, about zero."""
    square = np.einsum("ij,ij->j", X, X)
    centred = square - X.sum(axis=0) ** 2 / len(X)
    return np.asarray(np.where(centred > ROUNDING * square, centred, square))


def _is_inside(rest: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Mask of the columns of X of which nothing but rounding remains as `rest`."""
    left = np.einsum("ij,ij->j", rest, rest)
    rounding = ROUNDING**2 * np.einsum("ij,ij->j", X, X)
    return np.asarray(left <= np.maximum(INSIDE * _total_squares(X), rounding))


# Between and within


def _within(X: np.ndarray, codes: np.ndarray, size: int) -> np.ndarray:
    """Columns less their means within groups."""
    counts = np.bincount(codes, minlength=size)
    rest = np.empty_like(X)
    for j, column in enumerate(X.T):
        centred = column - column.mean()
        rest[:, j] = centred - (np.bincount(codes, weights=centred, minlength=size) / counts)[codes]
    return rest


def _groupings(frame: ModelFrame) -> list[Grouping]:
    """The distinct groupings: those of random effects, and of correlated residuals."""
    none = np.zeros((len(frame.X), 0))
    distinct = {id(group.codes): group for group in frame.groups}
    found = [Grouping(none, group.codes, group.num_recorded, group.label) for group in distinct.values()]
    if frame.residual is not None and frame.residual.groups is not None:
        own = frame.residual.groups
        found.append(Grouping(none, own.codes, len(frame.residual.group_levels), own.label))
    return found


def _chain(frame: ModelFrame) -> list[Grouping]:
    """The distinct groupings, from the fewest groups to the most.

    Raises
    ------
    DesignError
        If one is not nested in the next.
    """
    found = sorted(_groupings(frame), key=lambda grouping: grouping.size)
    chain = found[:1]
    for grouping in found[1:]:
        if not is_nested(grouping, chain[-1]):
            outer, inner = printable(chain[-1].label), printable(grouping.label)
            raise DesignError(
                f"between-within degrees of freedom need nested groupings, and {inner!r} is crossed with"
                f" {outer!r}: neither lies within the other, so being between the groups of one does not say"
                ' whether a column is within those of the other; use ddf="containment", "satterthwaite" or'
                ' "kenward-roger"'
            )
        if grouping.size > chain[-1].size:
            chain.append(grouping)
    return chain


def _between_within(X: np.ndarray, frame: ModelFrame) -> np.ndarray:
    n, p = X.shape
    basis = column_basis(X, None)
    groups, constant = [0], [0]
    level = np.full(p, -1)
    for number, grouping in enumerate(_chain(frame)):
        inside = _is_inside(_within(X, grouping.codes, grouping.size), X)
        level[inside & (level < 0)] = number
        rest = _within(basis.standardise(X, slice(None)), grouping.codes, grouping.size)
        varying = int(np.count_nonzero(np.linalg.eigvalsh(rest.T @ rest) > INSIDE))
        groups.append(grouping.size)
        constant.append(p - varying)
    level[level < 0] = len(groups) - 1
    own = np.diff([*groups, n]) - np.diff([*constant, p])
    return own[level].astype(float)


# Containment


@dataclass(frozen=True, slots=True, eq=False)
class _Effect:
    """A random effect: the columns of one term of the formula beside the bar, varying over groups.

    Attributes
    ----------
    Z : (n, q) array
    codes : (n,) int array
    size : int
        Number of groups.
    """

    Z: np.ndarray
    codes: np.ndarray
    size: int


def _effects(frame: ModelFrame) -> list[_Effect]:
    found = []
    for group, coding in zip(frame.groups, frame.encoding.random, strict=True):
        assign = np.array(coding.assign)
        for number in dict.fromkeys(coding.assign):
            Z = np.asarray(group.Z)[:, assign == number]
            found.append(_Effect(Z, group.codes, group.num_recorded))
    return found


def _orthonormal_within(Z: np.ndarray, codes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns orthonormal within each group, zero where they depend on earlier ones, and their ranks (size,).

    Modified Gram-Schmidt, each column twice.
    """
    Q, ranks = np.zeros_like(Z), np.zeros(size, dtype=np.int64)

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(codes, weights=values, minlength=size)

    for a, own in enumerate(Z.T):
        column = own.copy()
        before = sums(column * column)
        for _ in range(2):
            for earlier in Q.T[:a]:
                column -= earlier * sums(earlier * column)[codes]
        after = sums(column * column)
        independent = after > DEPENDENT * before
        root = np.where(independent, np.sqrt(np.where(independent, after, 1.0)), np.inf)
        Q[:, a] = column / root[codes]
        ranks += independent
    return Q, ranks


class _Containment:
    """Which effects contain which columns, and what each adds to the rank of the design.

    Parameters
    ----------
    X : (n, p) array
        Of full rank.
    frame : ModelFrame
    """

    def __init__(self, X: np.ndarray, frame: ModelFrame) -> None:
        self.X, self.effects = X, _effects(frame)
        self.rank: Callable[[frozenset[int]], int] = cache(self._rank)

    @cached_property
    def fixed(self) -> np.ndarray:
        """Orthonormal columns that span X."""
        return column_basis(self.X, None).standardise(self.X, slice(None))

    def df(self) -> np.ndarray:
        """Degrees of freedom of each column."""
        n, p = self.X.shape
        inside = np.array([_is_inside(self._beyond(effect, self.X), self.X) for effect in self.effects])
        found = np.full(p, np.inf)
        for k in np.flatnonzero(inside.any(axis=1)).tolist():
            found[inside[k]] = np.minimum(found[inside[k]], self._contribution(k))
        if np.isinf(found).any():
            found[np.isinf(found)] = n - self.rank(frozenset(range(len(self.effects))))
        return found

    @staticmethod
    def _beyond(effect: _Effect, columns: np.ndarray) -> np.ndarray:
        """Columns less their parts that are, within groups, combinations of the effect's."""
        Q, _ = _orthonormal_within(effect.Z, effect.codes, effect.size)
        rest = columns.astype(float, copy=True)
        for j in range(rest.shape[1]):
            for _ in range(2):
                for q in Q.T:
                    sums = np.bincount(effect.codes, weights=q * rest[:, j], minlength=effect.size)
                    rest[:, j] -= q * sums[effect.codes]
        return rest

    def _is_part_of(self, k: int, other: int) -> bool:
        """Whether an effect is spanned by another one, of the same or a finer grouping."""
        own, theirs = self.effects[k], self.effects[other]
        coarse = Grouping(own.Z, own.codes, own.size, "")
        if not is_nested(Grouping(theirs.Z, theirs.codes, theirs.size, ""), coarse):
            return False
        return bool(_is_inside(self._beyond(theirs, own.Z), own.Z).all())

    def _contribution(self, k: int) -> int:
        """What an effect adds to the rank of X and of the effects that it is no part of."""
        others = []
        for other in range(len(self.effects)):
            if other == k:
                continue
            mutual = self._is_part_of(k, other)
            if not mutual or (other < k and self._is_part_of(other, k)):
                others.append(other)
        return self.rank(frozenset([*others, k])) - self.rank(frozenset(others))

    def _rank(self, chosen: frozenset[int]) -> int:
        """Rank of X and of some effects side by side."""
        by_grouping: dict[int, list[_Effect]] = {}
        for k in sorted(chosen):
            by_grouping.setdefault(id(self.effects[k].codes), []).append(self.effects[k])
        joined = []
        for own in by_grouping.values():
            Z = np.column_stack([effect.Z for effect in own])
            joined.append(
                _Effect(column_basis(Z, None).standardise(Z, slice(None)), own[0].codes, own[0].size)
            )
        return _rank_of_design(self.fixed, sorted(joined, key=lambda effect: -effect.size))


def _rank_of_design(X: np.ndarray, effects: Sequence[_Effect]) -> int:
    """Rank of columns X and of effects, of falling numbers of groups, without a matrix of rows by groups.

    The first effects that form a nested chain are projected out of all others group by group; of these and X
    the matrix of cross-products is left.
    """
    if not effects:
        return _gram_rank(X.T @ X, np.einsum("ij,ij->j", X, X))
    first, *others = effects
    Q, ranks = _orthonormal_within(first.Z, first.codes, first.size)
    gram, original = _projected_gram(Q, first, others, X)
    rank = int(ranks.sum())
    start = 0
    for position, effect in enumerate(others):
        codes = Grouping(effect.Z, effect.codes, effect.size, "")
        chain = [first, *others[:position]]
        if not all(is_nested(Grouping(e.Z, e.codes, e.size, ""), codes) for e in chain):
            break
        stop = effect.size * effect.Z.shape[1]
        gram, own = _eliminate_blocks(gram, original[start : start + stop], effect.Z.shape[1])
        rank, start = rank + own, start + stop
    return rank + _gram_rank(_dense(gram), original[start:])


def _dense(matrix: Any) -> np.ndarray:
    return np.asarray(matrix if isinstance(matrix, np.ndarray) else matrix.toarray())


def _projected_gram(
    Q: np.ndarray, first: _Effect, others: Sequence[_Effect], X: np.ndarray
) -> tuple[Any, np.ndarray]:
    """Sparse cross-products of the other effects' columns and X, of what Q leaves of them; their own squares.

    An effect's columns stand level by level.
    """
    from scipy import sparse

    n = len(X)

    def wide(columns: np.ndarray, codes: np.ndarray, size: int) -> Any:
        q = columns.shape[1]
        places = codes[:, None] * q + np.arange(q)
        starts = np.arange(0, n * q + 1, q)
        return sparse.csr_matrix((columns.ravel(), places.ravel(), starts), shape=(n, size * q))

    rest = sparse.hstack([*(wide(e.Z, e.codes, e.size) for e in others), sparse.csr_matrix(X)], format="csr")
    cross = wide(Q, first.codes, first.size).T @ rest
    return (rest.T @ rest - cross.T @ cross).tocsr(), np.asarray(rest.multiply(rest).sum(axis=0)).ravel()


def _eliminate_blocks(gram: Any, original: np.ndarray, q: int) -> tuple[Any, int]:
    """Eliminate columns whose cross-products are blocks of order q; what is left, and the rank of these."""
    from scipy import sparse

    size = len(original)
    m = size // q
    own = gram[:size, :size]
    blocks = np.empty((m, q, q))
    for a in range(q):
        for b in range(q):
            blocks[:, a, b] = own[np.arange(a, size, q), np.arange(b, size, q)]
    scale = np.sqrt(np.where(original > 0, original, 1.0)).reshape(m, q)
    scaled = blocks / (scale[:, :, None] * scale[:, None, :])
    values, vectors = np.linalg.eigh(scaled)
    independent = values > DEPENDENT
    roots = np.where(independent, 1 / np.sqrt(np.where(independent, values, 1.0)), 0.0)
    half = vectors * roots[:, None, :] / scale[:, :, None]
    rows, columns = np.meshgrid(np.arange(q), np.arange(q), indexing="ij")
    starts = (np.arange(m) * q)[:, None, None]
    place = ((starts + rows).ravel(), (starts + columns).ravel())
    W = sparse.csr_matrix((half.ravel(), place), shape=(size, size))
    cross = W.T @ gram[:size, size:]
    return (gram[size:, size:] - cross.T @ cross).tocsr(), int(np.count_nonzero(independent))


def _gram_rank(gram: np.ndarray, original: np.ndarray) -> int:
    """Rank of columns from their cross-products, after others were projected out, and their own squares."""
    from scipy.linalg.lapack import dpstrf

    keep = original > 0
    if not keep.any():
        return 0
    scale = np.sqrt(original[keep])
    scaled = gram[np.ix_(keep, keep)] / np.outer(scale, scale)
    if not np.diagonal(scaled).max() > DEPENDENT:
        return 0  # the routine takes its first pivot for granted
    return int(dpstrf(scaled, lower=1, tol=DEPENDENT)[2])
