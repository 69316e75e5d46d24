"""P-values and limits of several estimates at once: what a family of comparisons needs.

=============== =======================================================================================
method          what is adjusted for
=============== =======================================================================================
none            nothing
tukey           all pairwise comparisons of k means, by the studentised range (Tukey 1953; exact for equal
                numbers of independent rows, conservative for unequal ones: Hayter 1984, Annals of
                Statistics 12, 61-75)
sidak           n tests as if they were independent (Sidak 1967, Journal of the American Statistical
                Association 62, 626-633); conservative for two-sided t tests, whatever their correlations
bonferroni      n tests, whatever their dependence
holm            the same for p-values, with more rejections; its limits are Bonferroni's
scheffe         all linear functions of the estimates, tested or not (Scheffe 1953, Biometrika 40, 87-104)
fdr             false discovery rate (`fdr_bh`, `fdr_by`: see :mod:`jaxmixed.multiplicity`); its limits are
                Bonferroni's
mvt             exactly these n estimates with their correlations: the multivariate t distribution
=============== =======================================================================================

Wherever R's emmeans has a method of the same name, p-values and limits follow its definition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from jaxmixed._distributions import t_p_values, t_quantiles
from jaxmixed.errors import DataError
from jaxmixed.multiplicity import adjusted_p_values

METHODS = (
    "none",
    "tukey",
    "sidak",
    "bonferroni",
    "holm",
    "scheffe",
    "fdr",
    "fdr_bh",
    "fdr_by",
    "mvt",
)
_P_VALUES_ONLY = {"holm": "holm", "fdr": "fdr_bh", "fdr_bh": "fdr_bh", "fdr_by": "fdr_by"}

SHIFTS, POINTS = 8, 8192
"""Randomly shifted copies of a lattice, and its points: the standard error of a p-value near 0.05 is about
1e-5 in three dimensions and below 1e-3 in many (which is what the usual integrators aim at)."""
KNOTS = 120
"""Tails of the studentised range that are integrated, a hundredth of a second each; more are interpolated."""
BINS = 1024
"""Points of a copy that reach almost as far count as one."""
ANGLES = 8192
"""Directions of two dimensions, equally spaced over half a circle."""
SEED = 20231
_DEPENDENT = 1e-9
"""Share of its variance below which an estimate depends on earlier ones."""
_GOLDEN = (np.sqrt(5) - 1) / 2
_SAME_DF = 6
"""Degrees of freedom that agree in as many digits share one critical value."""


class Family(NamedTuple):
    """Estimates that are judged together.

    Attributes
    ----------
    statistic, df : (n,) arrays
        t statistics and their degrees of freedom, infinite for normal ones; NaN for an estimate that does not
        exist and does not count.
    correlation : (n, n) array
        Of the estimates.
    means : int or None
        Of pairwise comparisons, how many means are compared.
    """

    statistic: np.ndarray
    df: np.ndarray
    correlation: np.ndarray
    means: int | None = None


class Adjusted(NamedTuple):
    """What an adjustment gives for a family.

    Attributes
    ----------
    p_values : (n,) array
    critical : (n,) array
        Half-widths of the limits in standard errors.
    method : str
        The method used, where the one asked for is not meant for such a family.
    error : float
        Estimated Monte-Carlo standard error of the p-values, the largest one.
    """

    p_values: np.ndarray
    critical: np.ndarray
    method: str
    error: float = 0.0


def check_method(method: str) -> str:
    """The method, if there is one of that name.

    Raises
    ------
    DataError
        If there is none.
    """
    if method not in METHODS:
        raise DataError(f"adjust is {method!r}; choose one of {', '.join(map(repr, METHODS))}")
    return method


def adjust_family(family: Family, method: str, level: float = 0.95) -> Adjusted:
    """Adjusted p-values and critical values of one family.

    Parameters
    ----------
    family : Family
    method : str
        One of `METHODS`. ``"tukey"`` of a family that is not of pairwise comparisons is taken as
        ``"sidak"``; one estimate alone needs no adjustment.
    level : float
        Joint level of the limits.

    Returns
    -------
    Adjusted

    Raises
    ------
    DataError
        If there is no such method.

    Examples
    --------
    >>> family = Family(np.array([2.0, -3.0]), np.array([20.0, 20.0]), np.eye(2))
    >>> adjust_family(family, "bonferroni").p_values.round(4).tolist()
    [0.1185, 0.0142]
    """
    check_method(method)
    unadjusted, plain = t_p_values(family.statistic, family.df), t_quantiles(level, family.df)
    known = ~np.isnan(unadjusted)
    count = int(known.sum())
    if count <= 1 and method != "scheffe":
        return Adjusted(unadjusted, plain, "none")
    if method == "tukey" and family.means is None:
        method = "sidak"
    if method == "none" or not count:
        return Adjusted(unadjusted, plain, method)
    own = Family(
        family.statistic[known], family.df[known], family.correlation[np.ix_(known, known)], family.means
    )
    p_values, critical, error = _adjusted(own, unadjusted[known], method, level, complete=bool(known.all()))
    all_p, all_critical = np.full(len(known), np.nan), np.full(len(known), np.nan)
    # Never less than without adjustment: the tails of the special distributions end in rounding errors.
    all_p[known] = np.clip(p_values, unadjusted[known], 1.0)
    all_critical[known] = np.maximum(critical, plain[known])
    return Adjusted(all_p, all_critical, method, error)


def _adjusted(
    family: Family, unadjusted: np.ndarray, method: str, level: float, complete: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    """P-values, critical values and Monte-Carlo error of a family without NaN."""
    count = len(unadjusted)
    if method == "sidak":
        with np.errstate(divide="ignore"):
            p_values = -np.expm1(count * np.log1p(-unadjusted))
        return p_values, t_quantiles(level ** (1 / count), family.df), 0.0
    if method == "bonferroni" or method in _P_VALUES_ONLY:
        p_values = adjusted_p_values(unadjusted, _P_VALUES_ONLY.get(method, "bonferroni"))  # type: ignore[arg-type]
        return p_values, t_quantiles(1 - (1 - level) / count, family.df), 0.0
    if method == "scheffe":
        return *_scheffe(family, level), 0.0
    if method == "tukey":
        # Of an incomplete family: as many means as would have that many pairs.
        means = family.means if complete and family.means is not None else (1 + np.sqrt(1 + 8 * count)) / 2
        return *_tukey(family, float(means), level), 0.0
    radial = Directions(family.correlation)
    tails = [radial.tail(abs(t), df) for t, df in zip(family.statistic, family.df, strict=True)]
    p_values = np.array([tail.mean() for tail in tails])
    error = max(float(tail.std(ddof=1)) / np.sqrt(len(tail)) if len(tail) > 1 else 0.0 for tail in tails)

    def critical(df: float) -> float:
        return _inverse(lambda c: float(radial.tail(c, df).mean()), level, df, count)

    return p_values, _by_df(family.df, critical), error


def _scheffe(family: Family, level: float) -> tuple[np.ndarray, np.ndarray]:
    from scipy.special import chdtrc, chdtri, fdtrc, fdtri

    rank = _root(family.correlation).shape[1]
    squared, df = family.statistic**2, family.df
    finite = np.isfinite(df)
    held = np.where(finite, df, 1.0)
    p_values = np.where(finite, fdtrc(rank, held, squared / rank), chdtrc(rank, squared))
    critical = np.where(finite, rank * fdtri(rank, held, level), chdtri(rank, 1 - level))
    return p_values, np.sqrt(critical)


def _tukey(family: Family, means: float, level: float) -> tuple[np.ndarray, np.ndarray]:
    ranges = np.sqrt(2) * np.abs(family.statistic)
    return _range_tail(ranges, means, family.df), _by_df(
        family.df, lambda df: _tukey_critical(means, level, df)
    )


def _range_tail(ranges: np.ndarray, means: float, df: np.ndarray) -> np.ndarray:
    """Tail of the studentised range: of very many with equal degrees of freedom, by a spline of its log."""
    from scipy.interpolate import CubicSpline
    from scipy.stats import studentized_range

    found, rounded = np.full(len(df), np.nan), _rounded(df)
    for value in np.unique(rounded):
        own = rounded == value
        if np.count_nonzero(own) <= KNOTS:
            found[own] = studentized_range.sf(ranges[own], means, df[own])
            continue
        knots = np.linspace(ranges[own].min(), ranges[own].max() + 1e-9, KNOTS)
        tails = np.maximum(studentized_range.sf(knots, means, value), 1e-15)
        found[own] = np.exp(CubicSpline(knots, np.log(tails))(ranges[own]))
    return found


def _rounded(df: np.ndarray) -> np.ndarray:
    return np.array([float(f"{value:.{_SAME_DF}g}") for value in df])


@lru_cache(maxsize=1024)
def _tukey_critical(means: float, level: float, df: float) -> float:
    """Kept, since groups often share it and each value takes a hundredth of a second or more."""
    from scipy.stats import studentized_range

    pairs = means * (means - 1) / 2
    return _inverse(lambda c: float(studentized_range.sf(np.sqrt(2) * c, means, df)), level, df, pairs)


def _by_df(df: np.ndarray, critical: Callable[[float], float]) -> np.ndarray:
    """Critical values, found once for equal degrees of freedom."""
    rounded = _rounded(df)
    found = {value: critical(value) for value in set(rounded)}
    return np.array([found[value] for value in rounded])


def _inverse(tail: Callable[[float], float], level: float, df: float, count: float) -> float:
    """Where a tail is one minus the level: between no adjustment and Bonferroni's, with some room."""
    from scipy.optimize import brentq

    low = 0.9 * float(t_quantiles(level, np.array([df]))[0])
    high = 1.1 * float(t_quantiles(1 - (1 - level) / max(count, 2), np.array([df]))[0])
    return float(brentq(lambda c: tail(c) - (1 - level), low, high, xtol=1e-8))


def _root(correlation: np.ndarray) -> np.ndarray:
    """Root (n, r) of a correlation matrix of rank r: Cholesky's, without the columns of dependent rows.

    Unlike that of an eigendecomposition it moves little when the matrix does, whatever its eigenvalues: the
    same directions serve families whose correlations agree but for rounding.
    """
    rest, columns = np.array(correlation), []
    for row in range(len(rest)):
        if rest[row, row] > _DEPENDENT:
            column = rest[:, row] / np.sqrt(rest[row, row])
            columns.append(column)
            rest -= np.outer(column, column)
    return np.stack(columns, axis=1)


@dataclass(frozen=True, eq=False)
class Directions:
    """Tail of the largest of several correlated t statistics, by an average over directions.

    With T = A u R, where A A' is the correlation matrix of rank r, u a uniform direction in r dimensions and
    R^2 / r an F variate with r and df degrees of freedom, ``P(max |T_j| > c)`` is the average over u of
    ``P(R > c / max_j |A_j u|)``, which F gives in closed form (Deak 1980, Numerische Mathematik 35, 35-43;
    Genz & Bretz 2009, Computation of Multivariate Normal and t Probabilities, section 4.1). The directions
    are the same for every c, so the tail falls smoothly in c and critical values are its inverse; correlation
    matrices may be singular, as those of all pairwise comparisons are, for which
    `scipy.stats.multivariate_t.cdf` is not made. One and two dimensions need no random numbers.

    Attributes
    ----------
    correlation : (n, n) array
    """

    correlation: np.ndarray

    @cached_property
    def rank(self) -> int:
        """Number of dimensions, r."""
        return _root(self.correlation).shape[1]

    @cached_property
    def reach(self) -> tuple[np.ndarray, np.ndarray]:
        """``max_j |A_j u|``, and how often it is that far: (shifts, points) each."""
        root = _root(self.correlation)
        if self.rank == 1:
            found = np.abs(root).max(axis=0)[None]
            return found, np.ones((1, 1))
        if self.rank == 2:
            angle = np.pi * (np.arange(ANGLES) + 0.5) / ANGLES
            found = np.abs(root @ np.stack([np.cos(angle), np.sin(angle)])).max(axis=0)[None]
            return found, np.full(found.shape, 1 / ANGLES)
        shifts = np.random.default_rng(SEED).random((SHIFTS, self.rank, 1))
        copies = [_binned(np.abs(root @ _directions(shift)).max(axis=0)) for shift in shifts]
        return np.stack([found for found, _ in copies]), np.stack([share for _, share in copies])

    def tail(self, c: float, df: float) -> np.ndarray:
        """``P(max |T_j| > c)`` by each shifted copy of the directions: (1,) where that is exact."""
        from scipy.special import chdtrc, fdtrc

        reach, share = self.reach
        if c == 0:
            return np.ones(len(reach))
        with np.errstate(divide="ignore"):
            squared = (c / reach) ** 2
        beyond = chdtrc(self.rank, squared) if np.isinf(df) else fdtrc(self.rank, df, squared / self.rank)
        return np.asarray((share * beyond).sum(axis=1))


def _binned(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means (bins,) of numbers between 0 and 1 that are nearly the same, and their shares."""
    place = np.minimum((values * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    return np.bincount(place, values, minlength=BINS) / np.maximum(count, 1), count / len(values)


def _directions(shift: np.ndarray) -> np.ndarray:
    """Directions (r, points) from Richtmyer's lattice, shifted by (r, 1) and folded as Genz & Bretz do.

    In three dimensions from a lattice of two, on half a sphere.
    """
    from scipy.special import ndtri

    if len(shift) == 3:
        # Archimedes: height and angle are uniform; Fibonacci's lattice covers their rectangle evenly.
        place = np.arange(POINTS) + shift[0]
        height, angle = place / POINTS, 2 * np.pi * (place * _GOLDEN + shift[1])
        width = np.sqrt(1 - height**2)
        return np.stack([width * np.cos(angle), width * np.sin(angle), height])
    steps = np.sqrt(_primes(len(shift)))
    uniform = np.abs(2 * np.mod(np.outer(steps, np.arange(1.0, POINTS + 1)) + shift, 1.0) - 1)
    normal = ndtri(np.clip(uniform, 1e-15, 1 - 1e-15))
    return np.asarray(normal / np.maximum(np.sqrt((normal**2).sum(axis=0)), 1e-300))


def _primes(count: int) -> np.ndarray:
    """The first primes."""
    found: list[int] = []
    candidate = 2
    while len(found) < count:
        if all(candidate % prime for prime in found):
            found.append(candidate)
        candidate += 1
    return np.array(found, dtype=np.float64)
