"""Groups of correlated rows: which rows belong together, when they were observed, and which groups are alike.

Groups observed at the same times under the same conditions share a *pattern*, and with it one covariance
matrix, whatever their number.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxmixed.precision import double_precision, to_host
from jaxmixed.programs import Program
from jaxmixed.residual_covariance import Occasions, ResidualCovariance
from jaxmixed.sizes import grid_size


@dataclass(frozen=True, slots=True, eq=False)
class ResidualLabels:
    """What the parts of a residual structure are called.

    Attributes
    ----------
    text : str
        The structure in words, "AR(1) in week within id".
    group : str or None
        Label of the groups of correlated rows; None where every row is its own.
    time : str or None
        Column of the times.
    times : tuple of str
        Labels of the times, where the family has labels.
    by : str or None
        Column of the strata.
    strata : tuple of str
    variance_by : str or None
        Column whose levels have standard deviations of their own.
    levels : tuple of str
    covariate : str or None
        Column of the variance function.
    """

    text: str
    group: str | None = None
    time: str | None = None
    times: tuple[str, ...] = ()
    by: str | None = None
    strata: tuple[str, ...] = ()
    variance_by: str | None = None
    levels: tuple[str, ...] = ()
    covariate: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ResidualDesign:
    """A residual structure at the rows of a data set.

    Attributes
    ----------
    covariance : ResidualCovariance
    codes : (n,) int array
        Group of each row, ``0 .. size-1``.
    size : int
        Number of groups.
    times : (n,) array
        Times, or numbers of labels; different from each other within a group.
    levels : (n,) int array
        Level that standard deviations differ by.
    covariate : (n,) array
        Of the variance function; one if there is none.
    stratum : (n,) int array
        The same for all rows of a group.
    """

    covariance: ResidualCovariance
    codes: np.ndarray
    size: int
    times: np.ndarray
    levels: np.ndarray
    covariate: np.ndarray
    stratum: np.ndarray

    def take(self, rows: np.ndarray) -> "ResidualDesign":
        """The structure at some of the rows; groups are numbered anew."""
        kept, codes = np.unique(self.codes[rows], return_inverse=True)
        own = (self.times[rows], self.levels[rows], self.covariate[rows], self.stratum[rows])
        return ResidualDesign(self.covariance, codes.ravel(), len(kept), *own)


class Pattern(NamedTuple):
    """Groups observed at the same times under the same conditions.

    Attributes
    ----------
    rows : (g, t) int array
        Rows of each group, by time.
    groups : (g,) int array
        Which groups.
    at : Occasions
        Of one group, (t, 1).
    """

    rows: np.ndarray
    groups: np.ndarray
    at: Occasions


def patterns_of(design: ResidualDesign, extra: np.ndarray | None = None) -> list[Pattern]:
    """Which groups are alike.

    Parameters
    ----------
    design : ResidualDesign
    extra : (n, c) array, optional
        Further columns in which the groups of a pattern must agree, such as those of random effects.

    Returns
    -------
    list of Pattern
        By size of the groups, then in order of first appearance.

    Examples
    --------
    >>> from jaxmixed.residual_families import Autoregressive
    >>> codes, times = np.array([0, 0, 1, 1, 2]), np.array([0.0, 1, 1, 0, 0])
    >>> one = np.ones(5)
    >>> design = ResidualDesign(
    ...     ResidualCovariance(Autoregressive(1, 1)), codes, 3, times, 0 * codes, one, 0 * codes
    ... )
    >>> [pattern.rows.tolist() for pattern in patterns_of(design)]
    [[[4]], [[0, 1], [3, 2]]]
    """
    order = np.lexsort((design.times, design.codes))
    sizes = np.bincount(design.codes, minlength=design.size)
    starts = np.cumsum(sizes) - sizes
    columns = [design.times, design.levels, design.covariate, design.stratum]
    columns += [] if extra is None else list(extra.T)
    found = []
    for size in np.unique(sizes[sizes > 0]):
        groups = np.flatnonzero(sizes == size)
        rows = order[starts[groups][:, None] + np.arange(size)]
        keys = np.concatenate([column[rows] for column in columns], axis=1) + 0.0  # no negative zeros
        for members in _alike(keys):
            first = rows[members[0]]
            at = Occasions(
                times=design.times[first, None],
                levels=design.levels[first, None],
                covariate=design.covariate[first, None],
                present=np.ones((size, 1), dtype=bool),
                stratum=design.stratum[first[:1]],
            )
            found.append(Pattern(rows[members], groups[members], at))
    return found


def _alike(keys: np.ndarray) -> list[np.ndarray]:
    """Positions of equal rows of a matrix, in order of first appearance."""
    if len(keys) == 1 or (keys == keys[0]).all():
        return [np.arange(len(keys))]
    packed = np.ascontiguousarray(keys).view([("", keys.dtype)] * keys.shape[1]).ravel()
    _, first, inverse, counts = np.unique(packed, return_index=True, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(inverse.ravel(), kind="stable"), np.cumsum(counts)[:-1])
    return [members[i] for i in np.argsort(first)]


def joined_occasions(patterns: list[Pattern], longest: int, padded: int) -> Occasions:
    """Occasions of several patterns side by side, padded to a common length and number.

    Parameters
    ----------
    patterns : list of Pattern
    longest : int
        Rows t that every pattern is padded to.
    padded : int
        Number u of patterns, with those that have no rows.

    Returns
    -------
    Occasions
    """

    def side_by_side(values: list[np.ndarray], fill: float | bool) -> np.ndarray:
        joined = np.full((longest, padded), fill, dtype=values[0].dtype)
        for u, own in enumerate(values):
            joined[: len(own), u] = own[:, 0]
        return joined

    own = [pattern.at for pattern in patterns]
    strata = np.zeros(padded, dtype=np.int64)
    strata[: len(own)] = [at.stratum[0] for at in own]
    return Occasions(
        times=side_by_side([np.asarray(at.times, dtype=np.float64) for at in own], 0.0),
        levels=side_by_side([np.asarray(at.levels) for at in own], 0),
        covariate=side_by_side([np.asarray(at.covariate, dtype=np.float64) for at in own], 1.0),
        present=side_by_side([np.asarray(at.present) for at in own], False),
        stratum=strata,
    )


_MATRICES = Program(lambda free, at, *, covariance: (covariance.matrices(free, at),))


def pattern_matrices(
    covariance: ResidualCovariance, free: np.ndarray, patterns: list[Pattern]
) -> list[np.ndarray]:
    """Relative covariance of the rows of each pattern, (t, t) each.

    Parameters
    ----------
    covariance : ResidualCovariance
    free : (k,) array
    patterns : list of Pattern

    Returns
    -------
    list of (t, t) arrays
    """
    longest = grid_size(max(len(pattern.at.times) for pattern in patterns))
    at = joined_occasions(patterns, longest, grid_size(len(patterns)))
    with double_precision():
        (R,) = to_host(_MATRICES(free, at, covariance=covariance))
    sizes = [len(pattern.at.times) for pattern in patterns]
    return [R[:t, :t, u] for u, t in enumerate(sizes)]
