r"""What the observed rows of a group say of the residuals of further rows of that group.

With R the covariance of a group's observed residuals relative to :math:`\sigma^2`, r* that of a further row's
residual with them and R** its variance, the further residual given the observed ones has the mean c'e and the
variance

.. math:: \sigma^2 (R_{**} - r_*' c), \qquad c = R^{-1} r_*,

so that the best linear unbiased prediction of the row is :math:`x_*'\hat\beta + z_*'\hat u + c'(y -
X\hat\beta - Z\hat u)` and its error that of a row with the adjusted columns :math:`x_* - X'c` and
:math:`z_* - Z'c`.
Precision weights w scale residuals by their roots, those of R and c are of rows of weight one.

Goldberger (1962), Journal of the American Statistical Association 57, 369-375.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from jaxmixed.precision import double_precision, to_host
from jaxmixed.programs import Program
from jaxmixed.residual_covariance import Occasions, ResidualCovariance
from jaxmixed.residual_groups import (
    Pattern,
    ResidualDesign,
    joined_occasions,
    pattern_matrices,
    patterns_of,
)
from jaxmixed.sizes import grid_size

if TYPE_CHECKING:
    from scipy.sparse import csr_array

MOST_NUMBERS = 1 << 22
"""Numbers of the matrices held at a time."""

FEW = 32
"""Further times of a pattern that are always taken together."""


class FurtherRows(NamedTuple):
    """Rows beside those of the fit, as the residual structure sees them.

    Attributes
    ----------
    codes : (n,) int array
        Group of each row; -1 for one without observed rows.
    times : (n,) array
    levels, stratum : (n,) int arrays
    covariate : (n,) array
    """

    codes: np.ndarray
    times: np.ndarray
    levels: np.ndarray
    covariate: np.ndarray
    stratum: np.ndarray


class Forecasts(NamedTuple):
    """Residuals of further rows given the observed ones, or the derivative of this.

    Attributes
    ----------
    coefficients : sparse (n, N) array
        c: the mean is a combination of the N observed residuals.
    variance : (n,) array
        Relative to sigma squared. Negative where the structure has no such row.
    """

    coefficients: csr_array
    variance: np.ndarray


class _Joint(NamedTuple):
    """Some further occasions of the groups of a pattern.

    Attributes
    ----------
    pattern : Pattern
        Of observed and further occasions together, by time; without rows.
    observed, further : int arrays
        Where they stand in it.
    members : (r,) int array
        Further rows at these occasions.
    occasion : (r,) int array
        Occasion of each of them, a position in `further`.
    rows : (r, t) int array
        Observed rows of the group of each.
    """

    pattern: Pattern
    observed: np.ndarray
    further: np.ndarray
    members: np.ndarray
    occasion: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class ResidualForecasts:
    """Residuals of further rows, as functions of the residual parameters.

    Parameters
    ----------
    design : ResidualDesign
        Of the rows of the fit.
    covariance : ResidualCovariance
        The design's, or the same for longer lags.
    free : (k,) array
        Residual parameters.
    rows : FurtherRows
        None at a time at which its group was observed.
    weights : (N,) array or None
        Precision weights of the rows of the fit.
    own_weights : (n,) array
        Precision weights of the further rows; NaN gives NaN.

    Examples
    --------
    >>> from jaxmixed.residual_families import Autoregressive
    >>> ar = ResidualCovariance(Autoregressive(1, 4))
    >>> zero, one = np.zeros(2, dtype=int), np.ones(2)
    >>> design = ResidualDesign(ar, zero, 1, np.array([0.0, 1.0]), zero, one, zero)
    >>> further = FurtherRows(np.array([0, -1]), np.array([3.0, 0.0]), zero, one, zero)
    >>> found = ResidualForecasts(design, ar, np.arctanh([0.5]), further, None, one).values()
    >>> found.coefficients.toarray().round(6).tolist(), found.variance.tolist()
    ([[0.0, 0.25], [0.0, 0.0]], [0.9375, 1.0])
    """

    design: ResidualDesign
    covariance: ResidualCovariance
    free: np.ndarray
    rows: FurtherRows
    weights: np.ndarray | None
    own_weights: np.ndarray

    def values(self) -> Forecasts:
        """Combinations of the observed residuals and conditional variances."""

        def given(R: np.ndarray, _: np.ndarray, joint: _Joint) -> tuple[np.ndarray, np.ndarray]:
            c, cross = _regression(R, joint)
            return c, R[joint.further, joint.further] - np.einsum("tm,tm->m", cross, c)

        return self._assembled(given, None)

    def slopes(self, direction: np.ndarray) -> Forecasts:
        """Their derivative along a direction (k,) of the residual parameters."""

        def moved(R: np.ndarray, change: np.ndarray, joint: _Joint) -> tuple[np.ndarray, np.ndarray]:
            c, _ = _regression(R, joint)
            o, f = joint.observed, joint.further
            left = change[np.ix_(o, f)] - change[np.ix_(o, o)] @ c
            dc = np.linalg.solve(R[np.ix_(o, o)], left)
            dv = change[f, f] - np.einsum("tm,tm->m", c, left + change[np.ix_(o, f)])
            return dc, dv

        return self._assembled(moved, np.asarray(direction, dtype=np.float64))

    def _assembled(
        self,
        one: Callable[[np.ndarray, np.ndarray, _Joint], tuple[np.ndarray, np.ndarray]],
        direction: np.ndarray | None,
    ) -> Forecasts:
        """Values or derivatives of all further rows from those of each joint pattern."""
        from scipy import sparse

        rows, w = self.rows, self.own_weights
        found, row, column = [np.zeros(0)], [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        variance = relative_variances(self.covariance, self.free, rows, direction)
        root = None if self.weights is None else np.sqrt(self.weights)
        for batch in _batches(list(self._joints())):
            patterns = [joint.pattern for joint in batch]
            values = pattern_matrices(self.covariance, self.free, patterns)
            changes = values
            if direction is not None:
                changes = pattern_tangents(self.covariance, self.free, direction, patterns)
            for R, change, joint in zip(values, changes, batch, strict=True):
                c, v = one(R, change, joint)
                variance[joint.members] = v[joint.occasion]
                own = c.T[joint.occasion]
                own = own if root is None else own * root[joint.rows]
                found.append((own / np.sqrt(w[joint.members])[:, None]).ravel())
                row.append(np.repeat(joint.members, own.shape[1]))
                column.append(joint.rows.ravel())
        indices = (np.concatenate(row), np.concatenate(column))
        shape = (len(rows.codes), len(self.design.codes))
        return Forecasts(sparse.csr_array((np.concatenate(found), indices), shape=shape), variance / w)

    def _joints(self) -> Iterator[_Joint]:
        """Observed and further occasions that are taken together."""
        rows = self.rows
        known = np.flatnonzero(rows.codes >= 0)
        if not len(known):
            return
        patterns = patterns_of(self.design)
        which = np.empty(self.design.size, dtype=np.int64)
        place = np.empty(self.design.size, dtype=np.int64)
        for number, pattern in enumerate(patterns):
            which[pattern.groups], place[pattern.groups] = number, np.arange(len(pattern.groups))
        of = which[rows.codes[known]]
        order = np.argsort(of, kind="stable")
        for members in np.split(known[order], np.flatnonzero(np.diff(of[order])) + 1):
            pattern = patterns[which[rows.codes[members[0]]]]
            observed = pattern.rows[place[rows.codes[members]]]
            yield from self._of_pattern(pattern, members, observed)

    def _of_pattern(self, pattern: Pattern, members: np.ndarray, observed: np.ndarray) -> Iterator[_Joint]:
        """The further occasions of one pattern, no two at the same time, not too many together."""
        rows = self.rows
        keys = np.stack([rows.times[members], rows.levels[members], rows.covariate[members]], axis=1)
        occasions, of = np.unique(keys, axis=0, return_inverse=True)
        of = of.ravel()
        first = np.r_[True, np.diff(occasions[:, 0]) != 0]
        starts = np.flatnonzero(first)
        again = np.arange(len(occasions)) - np.repeat(starts, np.diff(np.r_[starts, len(occasions)]))
        at, t = pattern.at, observed.shape[1]
        most = max(t, FEW)
        for turn in range(int(again.max()) + 1):
            chosen = np.flatnonzero(again == turn)
            for start in range(0, len(chosen), most):
                own = chosen[start : start + most]
                times = np.concatenate([at.times[:, 0], occasions[own, 0]])
                order = np.argsort(times, kind="stable")
                stands = np.argsort(order)
                joined = Occasions(
                    times=times[order, None],
                    levels=np.concatenate([at.levels[:, 0], occasions[own, 1]]).astype(np.int64)[order, None],
                    covariate=np.concatenate([at.covariate[:, 0], occasions[own, 2]])[order, None],
                    present=np.ones((len(times), 1), dtype=bool),
                    stratum=at.stratum,
                )
                number = np.full(len(occasions), -1)
                number[own] = np.arange(len(own))
                mine = number[of] >= 0
                nothing = np.zeros((0, 0), dtype=np.int64)
                yield _Joint(
                    Pattern(nothing, nothing[0:0], joined),
                    stands[:t],
                    stands[t:],
                    members[mine],
                    number[of[mine]],
                    observed[mine],
                )


def _regression(R: np.ndarray, joint: _Joint) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (t, m) of further residuals on the observed ones, and their covariances."""
    cross = R[np.ix_(joint.observed, joint.further)]
    return np.linalg.solve(R[np.ix_(joint.observed, joint.observed)], cross), cross


def _batches(joints: Sequence[_Joint]) -> Iterator[list[_Joint]]:
    """Joint patterns of similar sizes, as many as memory is meant to hold."""
    batch: list[_Joint] = []
    for joint in sorted(joints, key=lambda own: -len(own.pattern.at.times)):
        size = len(joint.pattern.at.times)
        longest = len(batch[0].pattern.at.times) if batch else size
        if batch and (2 * size < longest or (len(batch) + 1) * grid_size(longest) ** 2 > MOST_NUMBERS):
            yield batch
            batch = []
        batch.append(joint)
    if batch:
        yield batch


def _tangents(
    free: jax.Array, direction: jax.Array, at: Occasions, *, covariance: ResidualCovariance
) -> tuple[jax.Array, ...]:
    return (jax.jvp(lambda own: covariance.matrices(own, at), (free,), (direction,))[1],)


_TANGENTS = Program(_tangents)
_VALUES = Program(lambda free, at, *, covariance: (covariance.matrices(free, at),))


def pattern_tangents(
    covariance: ResidualCovariance, free: np.ndarray, direction: np.ndarray, patterns: list[Pattern]
) -> list[np.ndarray]:
    """Derivatives of :func:`jaxmixed.residual_groups.pattern_matrices` along a direction of the parameters.

    Parameters
    ----------
    covariance : ResidualCovariance
    free, direction : (k,) arrays
    patterns : list of Pattern

    Returns
    -------
    list of (t, t) arrays
    """
    longest = grid_size(max(len(pattern.at.times) for pattern in patterns))
    at = joined_occasions(patterns, longest, grid_size(len(patterns)))
    with double_precision():
        (R,) = to_host(_TANGENTS(free, direction, at, covariance=covariance))
    sizes = [len(pattern.at.times) for pattern in patterns]
    return [R[:t, :t, u] for u, t in enumerate(sizes)]


def relative_variances(
    covariance: ResidualCovariance,
    free: np.ndarray,
    rows: FurtherRows | ResidualDesign,
    direction: np.ndarray | None = None,
) -> np.ndarray:
    """Variances of residuals of weight one relative to sigma squared, or their derivative.

    Parameters
    ----------
    covariance : ResidualCovariance
    free : (k,) array
    rows : FurtherRows or ResidualDesign
        Rows without a level or stratum (-1) get NaN.
    direction : (k,) array, optional
        Of the parameters: the derivative along it.

    Returns
    -------
    (n,) array
    """
    keys = np.stack([rows.levels, rows.covariate, rows.stratum], axis=1).astype(np.float64)
    distinct, of = np.unique(keys, axis=0, return_inverse=True)
    u = grid_size(len(distinct))
    good = np.isfinite(distinct).all(axis=1) & (distinct[:, [0, 2]] >= 0).all(axis=1)
    padded = np.zeros((u, 3))
    padded[:, 1] = 1.0
    padded[: len(distinct)][good] = distinct[good]
    at = Occasions(
        times=np.zeros((1, u)),
        levels=padded[None, :, 0].astype(np.int64),
        covariate=padded[None, :, 1],
        present=np.ones((1, u), dtype=bool),
        stratum=padded[:, 2].astype(np.int64),
    )
    with double_precision():
        if direction is None:
            (R,) = to_host(_VALUES(free, at, covariance=covariance))
        else:
            (R,) = to_host(_TANGENTS(free, direction, at, covariance=covariance))
    return np.where(good, R[0, 0, : len(distinct)], np.nan)[of.ravel()]
