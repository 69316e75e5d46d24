r"""Correlation of residuals within groups: by lag, and by distance.

The autocorrelation at lag k of residuals r is the mean of the products :math:`r_i r_j` over all pairs of rows
of a group that are k apart, over the mean square of all residuals; the semivariogram at a distance d the mean
of :math:`(r_i - r_j)^2 / 2` over the pairs that are d apart (Pinheiro & Bates 2000, Mixed-Effects Models in S
and S-PLUS, sections 5.3.1 and 5.3.2; Diggle 1990, Time Series, section 2.5).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pandas as pd

from jaxmixed._distributions import normal_quantile
from jaxmixed.draws import Draws, check_seed
from jaxmixed.envelopes import check_simulations, quantile_limits, replicated, replicated_residuals
from jaxmixed.errors import DataError, printable
from jaxmixed.fitted import Fitted
from jaxmixed.formatting import NotedFrame
from jaxmixed.robust_inference import resolve_clusters
from jaxmixed.row_values import row_numbers

if TYPE_CHECKING:
    from jaxmixed.frame import ModelFrame

MOST_PAIRS = 1_000_000
"""Pairs of rows that a variogram is made of at most: of more, so many are drawn."""

_PAIRS_STREAM = "pairs of rows"
_LONGEST_GRID = 1_000_000  # steps of time from the first to the last
_ON_GRID = 1e-6  # of a step


class FittedRows(Fitted, Protocol):
    """What correlations need of a fit."""

    def residuals(self, kind: Any = "response") -> pd.Series:
        """Residuals of the rows used."""


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Rows in order within their groups.

    Attributes
    ----------
    group : str or None
        Name of the grouping; None where all rows are one series.
    time : str or None
        Name of what orders them; None for the order of the data.
    order : (n,) int array
        Rows, those of a group together and in order.
    codes : (n,) int array
        Group of each of these.
    at : (n,) array
        Their times; without times, their positions in the group, from 1.
    """

    group: str | None
    time: str | None
    order: np.ndarray
    codes: np.ndarray
    at: np.ndarray

    @property
    def place(self) -> np.ndarray:
        """Position of each row in its group, from 0, (n,)."""
        sizes = np.bincount(self.codes)
        return np.arange(len(self.codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)[: len(self.codes)]


def series_of(frame: ModelFrame, group: Any, time: Any, argument: str = "time") -> Series:
    """Rows of a fit in order within groups.

    Parameters
    ----------
    frame : ModelFrame
    group : str, array_like or None
        By default the groups of correlated residuals, or else the grouping with the most levels; of a model
        without any, all rows are one series.
    time : str, array_like or None
        By default the times of correlated residuals in their groups, or else the order of the data.
    argument : str
        Name of the argument `time`, for messages.

    Returns
    -------
    Series

    Raises
    ------
    DataError
        If there is no such column, or no group has two rows.
    """
    label: str | None
    residual = frame.residual
    if group is None and residual is not None and residual.groups is not None:
        group = residual.groups.label
        if time is None and residual.times.column is not None:
            design = residual.design
            order = np.lexsort((design.times, design.codes))
            at = design.times[order] + residual.times.origin
            return Series(group, residual.times.column, order, design.codes[order], at)
    if group is None and not frame.groups:
        label, codes = None, np.zeros(len(frame.y), dtype=np.int64)
    else:
        finest = max(frame.groups, key=lambda design: design.num_recorded).label if group is None else group
        found = resolve_clusters(frame, finest, "group")
        label, codes = found.label, np.unique(found.codes, return_inverse=True)[1]
    if not (np.bincount(codes) > 1).any():
        raise DataError(
            f"no level of {printable(label)!r} has two rows, so there are no pairs of residuals; choose a"
            " coarser grouping with group="
        )
    if time is None:
        order = np.argsort(codes, kind="stable")
        series = Series(label, None, order, codes[order], np.zeros(len(order)))
        return Series(label, None, order, series.codes, series.place + 1.0)
    name, values = row_numbers(frame, time, argument)
    order = np.lexsort((values, codes))
    return Series(label, name, order, codes[order], values[order])


# By lag


class Lags(NamedTuple):
    """Times in whole steps.

    Attributes
    ----------
    at : (n,) int array
        Step of each row of a `Series`, from 0 in each group; its position where times lie on no grid.
    step : float
        Time between steps; NaN where times lie on no grid.
    """

    at: np.ndarray
    step: float


def lags_of(series: Series) -> Lags:
    """Steps of the rows of a series.

    Raises
    ------
    DataError
        If a group has two rows at the same time.
    """
    if series.time is None:
        return Lags(series.place, 1.0)
    within = series.codes[1:] == series.codes[:-1]
    gaps = np.diff(series.at)[within]
    if (gaps == 0).any():
        row = int(np.flatnonzero(within & (np.diff(series.at) == 0))[0])
        where = "" if series.group is None else f" of one level of {printable(series.group)!r}"
        raise DataError(
            f"several rows{where} have the same {printable(series.time)!r} ({series.at[row]:g}), so they are"
            " in no order; choose with group= a finer grouping, within which times differ"
        )
    step = float(gaps.min())
    steps = gaps / step
    on_grid = bool((np.abs(steps - np.rint(steps)) <= _ON_GRID * np.maximum(steps, 1)).all())
    if not on_grid or steps.max() > _LONGEST_GRID:
        return Lags(series.place, np.nan)
    first = series.at[np.flatnonzero(series.place == 0)]
    return Lags(np.rint((series.at - first[series.codes]) / step).astype(np.int64), step)


def default_max_lag(lags: Lags) -> int:
    """Lags up to ten times the decimal logarithm of the longest series, as R's ``acf``."""
    longest = int(lags.at.max())
    return max(1, min(longest, int(10 * np.log10(longest + 1))))


def lagged_pairs(series: Series, lags: Lags, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (in the series' order) of the earlier and of the later row of all pairs so far apart."""
    key = series.codes * (int(lags.at.max()) + lag + 1) + lags.at
    later = np.minimum(np.searchsorted(key, key + lag), len(key) - 1)
    earlier = np.flatnonzero(key[later] == key + lag)
    return earlier, later[earlier]


def _mean_products(values: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Autocorrelations of each column of values (n, B), lags from 1 along the first axis."""
    squares = np.einsum("nb,nb->b", values, values) / len(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.array([(values[i] * values[j]).sum(axis=0) / len(i) / squares for i, j in pairs])


def autocorrelation_table(
    residuals: np.ndarray,
    series: Series,
    lags: Lags,
    max_lag: int,
    level: float,
    simulated: Iterable[np.ndarray] | None,
) -> pd.DataFrame:
    """Autocorrelations by lag, with limits.

    Parameters
    ----------
    residuals : (n,) array
        By row.
    series : Series
    lags : Lags
    max_lag : int
    level : float
        Of the limits.
    simulated : iterable of (n, b) arrays, or None
        Residuals of data that the model generates: limits are their quantiles at each lag; without them those
        of independent residuals, normal quantiles over the root of the number of pairs.

    Returns
    -------
    pandas.DataFrame
        ``lag, autocorrelation, pairs, low, high``; lag 0 has no limits, a lag without pairs no value.
    """
    pairs = [lagged_pairs(series, lags, lag) for lag in range(1, max_lag + 1)]
    counts = np.array([len(i) for i, _ in pairs])
    values = _mean_products(residuals[series.order][:, None], pairs)[:, 0]
    if simulated is None:
        with np.errstate(divide="ignore"):
            half = normal_quantile(level) / np.sqrt(counts)
        half[counts == 0] = np.nan
        low, high = -half, half
    else:
        drawn = [_mean_products(block[series.order], pairs) for block in simulated]
        low, high = quantile_limits(np.concatenate(drawn, axis=1), level)
    return pd.DataFrame(
        {
            "lag": np.arange(max_lag + 1),
            "autocorrelation": np.r_[1.0, values],
            "pairs": np.r_[len(residuals), counts],
            "low": np.r_[np.nan, low],
            "high": np.r_[np.nan, high],
        }
    )


# By distance


class Pairs(NamedTuple):
    """Pairs of rows of a group.

    Attributes
    ----------
    first, second : (m,) int arrays
        Positions in the series' order.
    distance : (m,) array
    total : int
        Pairs that there are: more than m where m of them were drawn.
    """

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray
    total: int


def pairs_of(series: Series, max_distance: float | None, seed: int) -> Pairs:
    """All pairs of rows within groups, or `MOST_PAIRS` of them drawn with equal probabilities.

    Parameters
    ----------
    series : Series
    max_distance : float, optional
        Pairs further apart are left out.
    seed : int
        Of the draw.

    Raises
    ------
    DataError
        If no pair is left.
    """
    sizes = np.bincount(series.codes)
    total = int((sizes * (sizes - 1) // 2).sum())
    first, second = (
        _all_pairs(series.place, sizes[series.codes])
        if total <= MOST_PAIRS
        else (_drawn_pairs(sizes, Draws(seed, _PAIRS_STREAM)))
    )
    distance = np.abs(series.at[second] - series.at[first])
    if max_distance is not None:
        near = distance <= max_distance
        if not near.any():
            raise DataError(
                f"no two rows of a group are within max_distance={max_distance:g} of each other; the nearest"
                f" are {distance.min():g} apart"
            )
        first, second, distance = first[near], second[near], distance[near]
    return Pairs(first, second, distance, total)


def _all_pairs(place: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    earlier, found, lag = np.arange(len(place)), [], 1
    while True:
        earlier = earlier[place[earlier] + lag < size[earlier]]
        if not len(earlier):
            break
        found.append((earlier, earlier + lag))
        lag += 1
    return np.concatenate([i for i, _ in found]), np.concatenate([j for _, j in found])


def _drawn_pairs(sizes: np.ndarray, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """Group by its number of pairs, then two different rows of it."""
    cumulated = np.cumsum(sizes * (sizes - 1) / 2)
    uniform = draws.uniform(0, 3, MOST_PAIRS)
    group = np.searchsorted(cumulated / cumulated[-1], uniform[:, 0], side="right")
    group = np.minimum(group, len(sizes) - 1)
    own, start = sizes[group], (np.cumsum(sizes) - sizes)[group]
    first = (uniform[:, 1] * own).astype(np.int64)
    second = (uniform[:, 2] * (own - 1)).astype(np.int64)
    second += second >= first
    return start + first, start + second


def _bins_of(distance: np.ndarray, bins: int) -> np.ndarray:
    """Bin of each pair: a distance each, or as many pairs in each as ties allow."""
    values, own = np.unique(distance, return_inverse=True)
    if len(values) <= bins:
        return own
    breaks = np.unique(np.quantile(distance, np.linspace(0, 1, bins + 1)))
    return np.maximum(np.searchsorted(breaks, distance, side="left") - 1, 0)


def variogram_table(
    residuals: np.ndarray,
    series: Series,
    pairs: Pairs,
    bins: int,
    level: float,
    simulated: Iterable[np.ndarray] | None,
) -> pd.DataFrame:
    """Semivariances by distance.

    Parameters
    ----------
    residuals : (n,) array
        By row.
    series : Series
    pairs : Pairs
    bins : int
        Where there are more distances than that, they are put in so many bins with about as many pairs each.
    level : float
        Of the limits.
    simulated : iterable of (n, b) arrays, or None
        As for :func:`autocorrelation_table`; without them there are no limits.

    Returns
    -------
    pandas.DataFrame
        ``distance`` (median of the bin), ``semivariance``, ``pairs``, ``low``, ``high``.
    """
    own = _bins_of(pairs.distance, bins)
    own = np.unique(own, return_inverse=True)[1]
    counts = np.bincount(own)

    def semivariances(values: np.ndarray) -> np.ndarray:
        ordered = values[series.order]
        return np.bincount(own, (ordered[pairs.first] - ordered[pairs.second]) ** 2) / (2 * counts)

    by_bin = np.argsort(own, kind="stable")
    parts = np.split(pairs.distance[by_bin], np.cumsum(counts)[:-1])
    limits = [np.full(len(counts), np.nan)] * 2
    if simulated is not None:
        drawn = [semivariances(column) for block in simulated for column in block.T]
        limits = list(quantile_limits(np.array(drawn).T, level))
    return pd.DataFrame(
        {
            "distance": [float(np.median(part)) for part in parts],
            "semivariance": semivariances(residuals),
            "pairs": counts,
            "low": limits[0],
            "high": limits[1],
        }
    )


# Of a fit


@dataclass(frozen=True, slots=True, eq=False)
class _Correlation:
    """A table of correlations, and what it is of.

    Attributes
    ----------
    table : pandas.DataFrame
    series : Series
    limits : str
        What the limits are, in words; empty without any.
    """

    table: pd.DataFrame
    series: Series
    limits: str

    def noted(self) -> pd.DataFrame:
        """The table, which prints what its limits are."""
        table = NotedFrame(self.table)
        if self.limits:
            table.attrs["note"] = self.limits
        return table

    def subject(self, what: str) -> str:
        """Title: ``Autocorrelation within Subject``."""
        group = self.series.group
        return what if group is None else f"{what} within {printable(group)}"


@dataclass(frozen=True, slots=True, eq=False)
class ByLag(_Correlation):
    """Autocorrelations by lag."""

    step: float

    @property
    def lag_label(self) -> str:
        """What a lag is."""
        time = self.series.time
        if time is None:
            return "Lag (rows, in the order of the data)"
        if np.isnan(self.step):
            return f"Lag (rows, in the order of {printable(time)})"
        steps = "" if self.step == 1 else f", steps of {self.step:.6g}"
        return f"Lag ({printable(time)}{steps})"


@dataclass(frozen=True, slots=True, eq=False)
class ByDistance(_Correlation):
    """Semivariances by distance."""

    pairs: Pairs

    @property
    def distance_label(self) -> str:
        """What a distance is."""
        time = self.series.time
        return (
            "Distance (rows, in the order of the data)" if time is None else f"Distance ({printable(time)})"
        )

    @property
    def pairs_used(self) -> str:
        """Number of pairs, in words."""
        used = len(self.pairs.distance)
        return (
            f"{used:,} pairs"
            if used <= self.pairs.total <= MOST_PAIRS
            else (f"{used:,} pairs, drawn from {self.pairs.total:,}")
        )


def _limits(level: float, simulations: int) -> str:
    if not simulations:
        return ""
    return f"pointwise {100 * level:.12g}% limits of {simulations} simulations"


def autocorrelation(
    fit: FittedRows, group: Any, time: Any, max_lag: int | None, level: float, simulations: Any, seed: int
) -> ByLag:
    """Autocorrelation of a fit's residuals; see `MixedResults.autocorrelation`."""
    series = series_of(fit.frame, group, time)
    lags = lags_of(series)
    longest = int(lags.at.max())
    if max_lag is None:
        max_lag = default_max_lag(lags)
    elif (
        isinstance(max_lag, bool) or not isinstance(max_lag, int | np.integer) or not 1 <= max_lag <= longest
    ):
        raise DataError(f"max_lag is {max_lag!r}; the longest series has lags from 1 to {longest}")
    count = check_simulations(simulations, len(fit.frame.y), fit.frame.sampling is not None)
    drawn = replicated_residuals(fit, replicated(fit, count, seed)) if count else None
    residuals = fit.residuals("normalized").to_numpy()
    table = autocorrelation_table(residuals, series, lags, int(max_lag), level, drawn)
    limits = _limits(level, count) or f"{100 * level:.12g}% limits of independent residuals"
    return ByLag(table, series, limits, lags.step)


def variogram(
    fit: FittedRows,
    x: Any,
    group: Any,
    max_distance: float | None,
    bins: int,
    level: float,
    simulations: Any,
    seed: int,
) -> ByDistance:
    """Semivariogram of a fit's residuals; see `MixedResults.variogram`."""
    if isinstance(bins, bool) or not isinstance(bins, int | np.integer) or bins < 1:
        raise DataError(f"bins is {bins!r}; give a positive number of bins")
    series = series_of(fit.frame, group, x, "x")
    pairs = pairs_of(series, max_distance, check_seed(seed))
    count = check_simulations(simulations, len(fit.frame.y), fit.frame.sampling is not None)
    drawn = replicated_residuals(fit, replicated(fit, count, seed)) if count else None
    residuals = fit.residuals("normalized").to_numpy()
    table = variogram_table(residuals, series, pairs, int(bins), level, drawn)
    return ByDistance(table, series, _limits(level, count), pairs)
