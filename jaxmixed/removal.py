r"""Statistics of a nested model without some of its rows, from those of all rows.

The coordinates stay those of all rows: they are a change of variables, whatever rows it was made from. Of a
finest group with :math:`Z = QR`, :math:`D = Q'C` and :math:`W = C - QD` (C the columns of coarser levels, X
and y) a row with rows q of Q and w of W is taken out by

.. math::
    \tilde R = (I - a q q') R, \quad \tilde D = (I - a q q') D - q w' / s, \quad
    \tilde W'\tilde W = W'W - w w' / s^2, \quad s^2 = 1 - q'q, \quad a = 1 / (1 + s),

where :math:`(I - aqq')^2 = I - qq'`: the new R is not triangular, which the likelihood does not ask for.
(If the row is alone in its group, s and w are zero, and the terms in w vanish.) A whole group is taken out by
zeros. What is subtracted may leave few digits where a case has most of what the data say in some direction;
such cases are told, and left to a new reduction of the rows that remain.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import jax
import numpy as np

from jaxmixed._types import AnyArray
from jaxmixed.basis import fixed_basis
from jaxmixed.crossproducts import Reduction, group_blocks, level_bases, project_out
from jaxmixed.fitting import Units, units_of
from jaxmixed.layout import Grouping
from jaxmixed.patterns import pattern_codes
from jaxmixed.statistics import Level, SufficientStatistics, pad

DELICATE = 1e-4
"""A case that leaves less than this share of what is known in some direction is not subtracted."""

ALONE = 1e-12
"""A row whose leverage within its group falls short of one by less than this is all that the group has in
some direction."""


DEPENDENT = 1e-12
"""Smallest eigenvalue of cross-products with unit diagonal at which columns are linearly dependent."""


class Remaining(NamedTuple):
    """What is left without each of some cases; the cases along the last axis of the statistics.

    Attributes
    ----------
    stats : SufficientStatistics
        Padded; views where all cases have the same.
    whole : (c, r, r) array
        ``[X y]'[X y]``.
    units : Units
    """

    stats: SufficientStatistics
    whole: np.ndarray
    units: Units


class _Parts(NamedTuple):
    """What some cases take away.

    Attributes
    ----------
    Z : (c, q, q) array
        Cross-products of the finest level's columns.
    rest : (c, s, s) array
        Those of the coarser levels' columns, X and y.
    within : (c, s, s) array
        Those of what is orthogonal to the finest groups' columns: the change of it, for rows.
    rows : (c,) array
        Number of rows.
    log_weights : (c,) array
        Sum of the logarithms of their weights.
    groups : (c, levels) array
        Groups of each level that vanish with them.
    """

    Z: np.ndarray
    rest: np.ndarray
    within: np.ndarray
    rows: np.ndarray
    log_weights: np.ndarray
    groups: np.ndarray


class Gone(NamedTuple):
    """Entries of a level that vanish, and in which of the cases."""

    entry: np.ndarray
    case: np.ndarray


class Removal:
    """Statistics without each of many cases.

    Parameters
    ----------
    reduction : Reduction
        Of all rows, without a root.
    y : (n,) array
        The response that was reduced.
    """

    def __init__(self, reduction: Reduction, y: np.ndarray) -> None:
        design, stats = reduction.design, reduction.stats
        self.reduction, self.groupings = reduction, design.groupings
        self.depth, self.r = len(stats.levels), len(stats.total)
        self.entries = [
            position[grouping.codes]
            for position, grouping in zip(reduction.positions, design.groupings, strict=True)
        ]
        self.Q, self.W = _orthogonal_rows(reduction, y)
        self.log_weights = np.zeros(len(y)) if design.weights is None else np.log(design.weights)
        self.patterns: np.ndarray | None = None
        compact = reduction.compact.levels[0].gram if self.depth == 1 else None
        if compact is not None:
            self.patterns = pattern_codes(stats.levels[0])[0]
        self.base = pad(stats if compact is None else self._spared(reduction.compact))
        self.whole = self._totals()

    def _spared(self, compact: SufficientStatistics) -> SufficientStatistics:
        """Compressed statistics, with room for what a case adds to them."""
        return compact

    @property
    def bytes_each(self) -> float:
        """Size of the statistics of one case."""
        size = sum(np.size(leaf) for leaf in jax.tree.leaves(self.base.levels))
        return 8.0 * (size + (self.W.shape[1] + self.r) ** 2)

    def _finest(self) -> tuple[np.ndarray, np.ndarray]:
        """R (q, q, m) and D (q, s, m) of the finest groups; without any, of one that has no columns."""
        if not self.depth:
            return np.zeros((0, 0, 1)), np.zeros((0, self.r, 1))
        level = self.reduction.stats.levels[0]
        assert level.cross is not None  # statistics of every group
        return np.asarray(level.root), np.asarray(level.cross)

    def _totals(self) -> _Parts:
        """What there is of all rows, as of one case."""
        R, D = self._finest()
        inner = self.W.T @ self.W
        return _Parts(
            Z=np.einsum("abm,acm->bc", R, R)[None],
            rest=(inner + np.einsum("abm,acm->bc", D, D))[None],
            within=inner[None],
            rows=np.array([len(self.W)]),
            log_weights=np.array([self.log_weights.sum()]),
            groups=np.array([[grouping.size for grouping in self.groupings]], dtype=np.int64),
        )

    def _delicate(self, parts: _Parts) -> np.ndarray:
        """Mask of the cases that take away nearly all of something, or too much for the model."""
        left = self.whole.groups - parts.groups
        nobs, p = self.whole.rows - parts.rows, self.r - 1
        widths = np.array([grouping.Z.shape[1] for grouping in self.groupings], dtype=np.int64)
        mask = nobs <= p + 1
        mask |= ((left < 2) | (left * widths >= nobs[:, None])).any(axis=1)
        for fine, coarse in pairwise(range(self.depth)):
            mask |= left[:, fine] <= left[:, coarse]
        if self.depth:
            mask |= nobs - left[:, 0] - p <= 0
        y, s = self.whole.within[0, -1, -1], self.W.shape[1]
        mask |= y - parts.within[:, -1, -1] < DELICATE * y
        X = slice(s - self.r, s - 1)
        blocks = [(self.whole.Z[0], parts.Z), (self.whole.rest[0, X, X], parts.rest[:, X, X])]
        start = 0
        for grouping in self.groupings[1:]:
            own = slice(start, start + grouping.Z.shape[1])
            blocks.append((self.whole.rest[0, own, own], parts.rest[:, own, own]))
            start = own.stop
        for total, taken in blocks:
            mask |= _takes_most(total, taken)
        return mask

    def _units(self, parts: _Parts) -> Units:
        units = units_of(self.reduction.stats)
        return units._replace(
            scale=np.broadcast_to(units.scale, len(parts.rows)),
            nobs=units.nobs - parts.rows,
            sum_log_weights=units.sum_log_weights - parts.log_weights,
        )

    def _remaining(self, parts: _Parts, levels: tuple[Level, ...]) -> Remaining:
        """Put the levels, and all that is the same for every kind of case, together."""
        r, units = self.r, self._units(parts)
        count = len(parts.rows)

        def alike(values: AnyArray) -> np.ndarray:
            return np.broadcast_to(np.asarray(values)[..., None], (*np.shape(values), count))

        base, total = self.base, _copies(self.base.total, count)
        total -= np.moveaxis(parts.within[:, -r:, -r:], 0, -1)
        stats = replace(
            base,
            levels=levels,
            total=total,
            nobs=units.nobs,
            sum_log_weights=units.sum_log_weights,
            frames=tuple(alike(frame) for frame in base.frames),
            basis=alike(base.basis),
            log_det_basis=alike(base.log_det_basis),
            origin=alike(base.origin),
            scale=alike(base.scale),
        )
        return Remaining(stats, self.whole.rest[:, -r:, -r:] - parts.rest[:, -r:, -r:], units)

    def _coarser(self, depth: int, ancestors: np.ndarray | None, gone: Gone, within: np.ndarray) -> Level:
        """A coarser level: without what the case has in one of its groups, or without whole groups."""
        base, count = self.base.levels[depth], len(within)
        assert base.cross is not None  # only a finest level is compressed
        root, cross = _copies(base.root, count), _copies(base.cross, count)
        if ancestors is None:
            root[:, :, gone.entry, gone.case] = 0.0
            cross[:, :, gone.entry, gone.case] = 0.0
        else:
            start = sum(grouping.Z.shape[1] for grouping in self.groupings[1:depth])
            own, case = slice(start, start + root.shape[0]), np.arange(count)
            inner = np.moveaxis(within, 0, -1)
            root[:, :, ancestors, case] -= inner[own, own]
            cross[:, :, ancestors, case] -= inner[own, own.stop :]
        return _stacked(base, count, root=root, cross=cross)


class RowRemoval(Removal):
    """Statistics without each of the rows."""

    spare = 0

    def __init__(self, reduction: Reduction, y: np.ndarray) -> None:
        super().__init__(reduction, y)
        self.alone = np.zeros((len(y), self.depth), dtype=np.int64)
        for depth, grouping in enumerate(self.groupings):
            self.alone[:, depth] = (np.bincount(grouping.codes, minlength=grouping.size) == 1)[grouping.codes]

    def _spared(self, compact: SufficientStatistics) -> SufficientStatistics:
        level = compact.levels[0]
        assert level.gram is not None
        self.spare = level.gram.shape[2]
        spare = replace(
            level,
            root=np.concatenate([level.root, np.zeros_like(level.root[:, :, :1])], axis=2),
            gram=np.concatenate([level.gram, np.zeros_like(level.gram[:, :, :1])], axis=2),
            count=np.append(level.count, 0.0),
        )
        return replace(compact, levels=(spare,))

    def take_out(self, first: int, last: int) -> tuple[np.ndarray, Remaining]:
        """Statistics without each of some rows.

        Parameters
        ----------
        first, last : int
            Rows ``first .. last - 1``.

        Returns
        -------
        (c,) int array
            Those of them that can be subtracted.
        Remaining
            Without each of these.
        """
        rows = np.arange(first, last)
        R, D = self._finest()
        at = self.entries[0][rows] if self.depth else np.zeros(len(rows), dtype=np.int64)
        q, w = self.Q[rows], self.W[rows]
        square = 1 - np.einsum("cq,cq->c", q, q)
        alone = square < ALONE
        share = np.divide(1.0, square, out=np.zeros(len(rows)), where=~alone)
        qR, qD = np.einsum("ca,abc->bc", q, R[:, :, at]), np.einsum("ca,abc->bc", q, D[:, :, at])
        raw = qD.T + w
        parts = _Parts(
            Z=np.einsum("ac,bc->cab", qR, qR),
            rest=np.einsum("ca,cb->cab", raw, raw),
            within=np.einsum("c,ca,cb->cab", share, w, w),
            rows=np.ones(len(rows), dtype=np.int64),
            log_weights=self.log_weights[rows],
            groups=self.alone[rows],
        )
        good = np.flatnonzero(~self._delicate(parts) & (alone | (square > DELICATE)))
        parts = _Parts(*(values[good] for values in parts))
        levels = []
        if self.depth:
            a = q[good].T / (1 + np.sqrt(np.where(alone, 0.0, square)))[good]
            at = at[good]
            root = R[:, :, at] - a[:, None] * qR[None, :, good]
            cross = D[:, :, at] - a[:, None] * qD[None, :, good]
            cross -= q[good].T[:, None] * (np.sqrt(share)[:, None] * w)[good].T[None]
            levels.append(self._finest_level(at, root, cross))
        for depth in range(1, self.depth):
            ancestors = self.entries[depth][rows[good]]
            levels.append(self._coarser(depth, ancestors, Gone(at, at), parts.within))
        return rows[good], self._remaining(parts, tuple(levels))

    def _finest_level(self, at: np.ndarray, root: np.ndarray, cross: np.ndarray) -> Level:
        """The finest level, where the groups `at` are replaced, one in each case."""
        base, count = self.base.levels[0], len(at)
        case = np.arange(count)
        roots = _copies(base.root, count)
        if self.patterns is None:
            assert base.cross is not None
            crosses = _copies(base.cross, count)
            roots[:, :, at, case], crosses[:, :, at, case] = root, cross
            return _stacked(base, count, root=roots, cross=crosses)
        assert base.gram is not None
        _, D = self._finest()
        old, own = D[:, :, at], self.patterns[at]
        grams, counts = _copies(base.gram, count), _copies(base.count, count)
        grams[:, :, own, :, :, case] -= np.einsum("axc,byc->cabxy", old, old)
        counts[own, case] -= 1.0
        roots[:, :, self.spare], counts[self.spare] = root, 1.0
        grams[:, :, self.spare] = np.einsum("axc,byc->abxyc", cross, cross)
        return _stacked(base, count, root=roots, gram=grams, counts=counts)


class GroupRemoval(Removal):
    """Statistics without each of some groups of rows, which hold every finest group whole or not at all.

    Parameters
    ----------
    reduction : Reduction
    y : (n,) array
    codes : (n,) int array
        Case of each row, ``0 .. c-1``, all present; see :func:`holds_whole_groups`.
    """

    def __init__(self, reduction: Reduction, y: np.ndarray, codes: np.ndarray) -> None:
        super().__init__(reduction, y)
        self.sizes = np.bincount(codes)
        self.order = np.argsort(codes, kind="stable")
        self.starts = np.append(0, np.cumsum(self.sizes))
        self.logs = np.bincount(codes, self.log_weights, len(self.sizes))
        self.gone: list[tuple[np.ndarray, np.ndarray]] = []  # entries in the order of their case; starts
        self.ancestors: list[np.ndarray | None] = []
        self.vanish = np.zeros((len(self.sizes), self.depth), dtype=np.int64)
        for depth, (entry, grouping) in enumerate(zip(self.entries, self.groupings, strict=True)):
            owner = np.empty(grouping.size, dtype=np.int64)
            owner[entry] = codes
            counts = np.bincount(owner, minlength=len(self.sizes))
            whole = bool((owner[entry] == codes).all())
            self.gone.append((np.argsort(owner, kind="stable"), np.append(0, np.cumsum(counts))))
            above = np.empty(len(self.sizes), dtype=np.int64)
            above[codes] = entry
            self.ancestors.append(None if whole else above)
            rows = np.bincount(entry, minlength=grouping.size)
            self.vanish[:, depth] = counts if whole else rows[above] == self.sizes

    def _gone(self, depth: int, cases: np.ndarray) -> Gone:
        """Entries of a level in each of some cases, which are numbered anew."""
        order, starts = self.gone[depth]
        counts = starts[cases + 1] - starts[cases]
        case = np.repeat(np.arange(len(cases)), counts)
        within = np.arange(len(case)) - np.repeat(np.cumsum(counts) - counts, counts)
        return Gone(order[np.repeat(starts[cases], counts) + within], case)

    def take_out(self, first: int, last: int) -> tuple[np.ndarray, Remaining]:
        """Statistics without each of some cases; see `RowRemoval.take_out`."""
        cases = np.arange(first, last)
        R, D = self._finest()
        s, q = self.W.shape[1], len(R)
        within, Z = np.zeros((len(cases), s, s)), np.zeros((len(cases), q, q))
        for number, place in enumerate(cases):
            own = self.W[self.order[self.starts[place] : self.starts[place + 1]]]
            within[number] = own.T @ own
        rest = within.copy()
        if self.depth:
            gone = self._gone(0, cases)
            old_R, old_D = R[:, :, gone.entry], D[:, :, gone.entry]
            np.add.at(Z, gone.case, np.einsum("abm,acm->mbc", old_R, old_R))
            np.add.at(rest, gone.case, np.einsum("abm,acm->mbc", old_D, old_D))
        every = _Parts(Z, rest, within, self.sizes[cases], self.logs[cases], self.vanish[cases])
        good = np.flatnonzero(~self._delicate(every))
        cases, parts = cases[good], _Parts(*(values[good] for values in every))
        levels = [self._finest_level(cases)] if self.depth else []
        for depth in range(1, self.depth):
            above = self.ancestors[depth]
            ancestors = None if above is None else above[cases]
            levels.append(self._coarser(depth, ancestors, self._gone(depth, cases), parts.within))
        return cases, self._remaining(parts, tuple(levels))

    def _finest_level(self, cases: np.ndarray) -> Level:
        """The finest level without the groups of each case."""
        base, count = self.base.levels[0], len(cases)
        gone = self._gone(0, cases)
        if self.patterns is None:
            assert base.cross is not None
            roots, crosses = _copies(base.root, count), _copies(base.cross, count)
            roots[:, :, gone.entry, gone.case] = crosses[:, :, gone.entry, gone.case] = 0.0
            return _stacked(base, count, root=roots, cross=crosses)
        assert base.gram is not None
        _, D = self._finest()
        old, own = D[:, :, gone.entry], self.patterns[gone.entry]
        grams, counts = _copies(base.gram, count), _copies(base.count, count)
        places = np.moveaxis(grams, (2, 5), (0, 1))
        np.subtract.at(places, (own, gone.case), np.einsum("axg,byg->gabxy", old, old))
        np.subtract.at(counts, (own, gone.case), 1.0)
        return _stacked(base, count, gram=grams, counts=counts)


def whole_level(reduction: Reduction, codes: np.ndarray) -> tuple[int, Grouping] | None:
    """The coarsest factor of which every level lies within one case, and its level; None if there is none.

    Levels that are related are not told apart from the rest, and count as none.

    Parameters
    ----------
    reduction : Reduction
    codes : (n,) int array
        Case of each row.
    """
    factors = enumerate((*reduction.design.groupings, *reduction.design.root))
    found = [
        (level, factor)
        for level, factor in factors
        if factor.relationship is None and lies_within(factor.codes, codes)
    ]
    return min(found, key=lambda pair: pair[1].size, default=None)


def holds_whole_groups(reduction: Reduction, codes: np.ndarray) -> bool:
    """Whether cases can be taken out of the statistics: no root, and every group of every level is in one.

    Parameters
    ----------
    reduction : Reduction
    codes : (n,) int array
        Case of each row.

    Returns
    -------
    bool
        True also for cases that lie within one group of a level that is not the finest.
    """
    if reduction.design.root:
        return False
    for depth, grouping in enumerate(reduction.design.groupings):
        if not (lies_within(grouping.codes, codes) or (depth and lies_within(codes, grouping.codes))):
            return False
    return True


def lies_within(fine: np.ndarray, coarse: np.ndarray) -> bool:
    """Whether all rows of each fine code have the same coarse one.

    Examples
    --------
    >>> lies_within(np.array([0, 0, 1]), np.array([1, 1, 1])), lies_within(np.array([0, 0]), np.array([0, 1]))
    (True, False)
    """
    owner = np.empty(int(fine.max()) + 1, dtype=np.int64)
    owner[fine] = coarse
    return bool((owner[fine] == coarse).all())


def _orthogonal_rows(reduction: Reduction, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q (n, q) and W (n, s) in the order of the rows."""
    design, n = reduction.design, len(y)
    groupings, stats = design.groupings, reduction.stats
    fixed, residual = fixed_basis(y, design.X, design.weights)
    by_level = level_bases(stats.terms, reduction.columns, len(groupings))
    q = groupings[0].Z.shape[1] if groupings else 0
    rest = sum(grouping.Z.shape[1] for grouping in groupings[1:]) + len(stats.total)
    Q, W = np.empty((n, q)), np.empty((n, rest))
    blocks = group_blocks(groupings, reduction.positions, by_level, design.X, fixed, residual, design.weights)
    for block in blocks:
        if groupings:
            sizes = np.diff(np.append(block.starts, len(block.Z)))
            Q[block.rows] = project_out(block.Z, block.rest, block.starts, sizes)[2]
        W[block.rows] = block.rest
    return Q, W


def _copies(values: AnyArray, count: int) -> np.ndarray:
    """An array for each case, to be changed."""
    return np.repeat(np.asarray(values)[..., None], count, axis=-1)


def _stacked(
    base: Level,
    count: int,
    *,
    root: np.ndarray | None = None,
    cross: np.ndarray | None = None,
    gram: np.ndarray | None = None,
    counts: np.ndarray | None = None,
) -> Level:
    """A level of many cases: what is given, and otherwise what it is of all rows."""

    def alike(values: AnyArray) -> np.ndarray:
        return np.broadcast_to(np.asarray(values)[..., None], (*np.shape(values), count))

    return replace(
        base,
        root=alike(base.root) if root is None else root,
        cross=cross,
        gram=gram,
        count=alike(base.count) if counts is None else counts,
        parents=tuple(alike(parent) for parent in base.parents),
    )


def _takes_most(total: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Mask of the cases without which cross-products (q, q) are small in some direction.

    Parameters
    ----------
    total : (q, q) array
    taken : (c, q, q) array

    Returns
    -------
    (c,) bool array

    Examples
    --------
    >>> _takes_most(np.eye(2), np.array([np.diag([0.5, 1.0]), np.diag([0.5, 0.5])]))
    array([ True, False])
    """
    mask = np.zeros(len(taken), dtype=bool)
    size = np.sqrt(np.diagonal(total))
    size = np.where(size > 0, size, 1.0)
    least = np.linalg.eigvalsh(total / np.outer(size, size))[0] if len(total) else 0.0
    if least < DEPENDENT:
        return mask  # dependent columns stay so
    shares = np.trace(taken / np.outer(size, size), axis1=1, axis2=2)
    doubtful = np.flatnonzero(shares > least * (1 - DELICATE))  # a bound: the sum of all eigenvalues
    if len(doubtful):
        left = (total - taken[doubtful]) / np.outer(size, size)
        mask[doubtful] = np.linalg.eigvalsh(left)[:, 0] < DELICATE * least
    return mask
