"""`PowerResult`: the power of a test at every point of a grid of designs and effects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jaxmixed._distributions import binomial_interval
from jaxmixed.errors import DataError, printable
from jaxmixed.formatting import Table, count
from jaxmixed.many_estimates import OK, REASONS
from jaxmixed.power_plots import draw_power
from jaxmixed.proportions import crossing, increasing
from jaxmixed.tables import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOT_DONE = 255
"""Code of a replicate that was not fitted because the work was interrupted."""

FEW_CONVERGED = 0.05
"""Share of failed fits above which a warning is due."""

_LIMITS = ("needed", "conf_low", "conf_high")
_METHODS = {"ml": "ML", "reml": "REML"}
COLUMNS = (
    "rows",
    "power",
    "conf_low",
    "conf_high",
    "n_rejected",
    "n_used",
    "n_failed",
    "n_singular",
    "converged",
)
"""Columns of the table of results, after those of the axes."""


@dataclass(frozen=True, slots=True)
class PowerAxis:
    """What a grid varies.

    Parameters
    ----------
    name
        Its column in the table.
    kind
        "groups", "size", "effects" or "design".
    label
        Name on the axis of a plot.
    values
        In the order of the grid.
    """

    name: str
    kind: str
    label: str
    values: tuple[Any, ...]

    @property
    def is_count(self) -> bool:
        """Whether its values are numbers of groups or rows."""
        return self.kind in ("groups", "size")

    def position(self, values: np.ndarray) -> np.ndarray:
        """Values on the scale on which the probit of the power is nearly a straight line."""
        return np.sqrt(values) if self.is_count else values


@dataclass(frozen=True, slots=True)
class PowerSetting:
    """What was asked: model, test and simulation.

    Parameters
    ----------
    formula, test, kind
        The model, the hypothesis and the kind of test in words.
    method
        "reml" or "ml".
    alpha
        Level of the test.
    level
        Level of the Monte-Carlo intervals.
    n
        Replicates per point.
    seed
        Of the simulated responses.
    """

    formula: str
    test: str
    kind: str
    method: str
    alpha: float
    level: float
    n: int
    seed: int


class PowerResult:
    """Power of a test by simulation, at every point of a grid.

    Parameters
    ----------
    setting
        What was asked.
    axes
        What varies; none for a single point.
    points
        A row per point: values of the axes.
    rows
        Number of observations at each point.
    null
        Whether the hypothesis is true at each point, so that its power is the rate of false rejections.
    p_values, reasons, singular : arrays (points, n)
        Of every replicate: p-value; what was wrong with the fit (a code of
        `jaxmixed.many_estimates.REASONS`, or NOT_DONE); whether an estimated covariance matrix is singular.

    Notes
    -----
    A replicate whose fit failed a check of convergence is left out and counted (`n_failed`). A singular fit
    is a correct answer at the boundary and is used.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> trial = jm.study({"school": 20}, size=10, between={"treatment": [0, 1]})
    >>> params = {"beta": [0, 0.5], "random": {"school": 0.3}, "sigma": 1}
    >>> found = jm.power("y ~ treatment + (1 | school)", trial, params, n=200, seed=1)
    >>> found
    <PowerResult: treatment; 1 point, 200 replicates, power 0.71>
    """

    def __init__(
        self,
        setting: PowerSetting,
        axes: tuple[PowerAxis, ...],
        points: pd.DataFrame,
        rows: np.ndarray,
        null: np.ndarray,
        p_values: np.ndarray,
        reasons: np.ndarray,
        singular: np.ndarray,
    ) -> None:
        self.setting, self.axes, self.points = setting, axes, points
        self.rows, self.null = rows, null
        self.p_values, self.reasons, self.singular = p_values, reasons, singular

    def __repr__(self) -> str:
        power = self._counts["power"]
        low, high = (f"{value:.2f}" for value in (np.fmin.reduce(power), np.fmax.reduce(power)))
        points = f"{len(power):,} point{'s' if len(power) > 1 else ''}"
        span = low if low == high else f"{low} to {high}"
        what = f"{printable(self.setting.test)}; {points}, {self.setting.n:,} replicates"
        return f"<PowerResult: {what}, power {span}>"

    @property
    def seed(self) -> int:
        """Seed of the simulated responses; the same call with it gives the same result."""
        return self.setting.seed

    @cached_property
    def _counts(self) -> dict[str, np.ndarray]:
        """Columns of the table, apart from the axes."""
        done = self.reasons != NOT_DONE
        used = (self.reasons == OK) & ~np.isnan(self.p_values)
        with np.errstate(invalid="ignore"):
            rejected = (used & (self.p_values <= self.setting.alpha)).sum(axis=1)
        n_used, n_done = used.sum(axis=1), done.sum(axis=1)
        pairs = zip(rejected.tolist(), n_used.tolist(), strict=True)
        limits = [binomial_interval(x, m, self.setting.level) if m else (np.nan, np.nan) for x, m in pairs]
        low, high = np.array(limits).T
        with np.errstate(invalid="ignore", divide="ignore"):
            power, converged = rejected / n_used, n_used / n_done
        singular = (used & self.singular).sum(axis=1)
        columns = (self.rows, power, low, high, rejected, n_used, n_done - n_used, singular, converged)
        return dict(zip(COLUMNS, columns, strict=True))

    @property
    def table(self) -> pd.DataFrame:
        """A row per point, in the order of the grid (the last axis fastest).

        Columns: the axes; ``rows``, the number of observations; ``power`` with ``conf_low`` and
        ``conf_high``, exact (Clopper-Pearson) limits of its simulation error; ``n_rejected`` of ``n_used``
        replicates; ``n_failed``, fits that failed a check and were left out; ``n_singular``, used fits with
        a singular covariance; ``converged``, the share of fits that did not fail.
        """
        counts = pd.DataFrame(self._counts)
        return pd.concat([self.points.reset_index(drop=True), counts], axis=1)

    def failures(self) -> pd.DataFrame:
        """Numbers of failed fits by point and reason, with a row for each pair that occurs."""
        rows = []
        for number, reasons in enumerate(self.reasons):
            codes, counts = np.unique(reasons[(reasons != OK) & (reasons != NOT_DONE)], return_counts=True)
            place = self.points.iloc[number].to_dict()
            rows += [
                {**place, "reason": REASONS[int(c)], "n": int(m)} for c, m in zip(codes, counts, strict=True)
            ]
        return pd.DataFrame(rows, columns=[*self.points.columns, "reason", "n"])

    def describe(self, number: int) -> str:
        """A point in words: ``school = 10, size = 25``; empty for the only one."""
        return ", ".join(
            f"{printable(name)} = {_shown(value)}"
            for name, value in self.points.iloc[number].to_dict().items()
        )

    def needed(self, power: float = 0.8, along: str | None = None) -> pd.DataFrame:
        """Smallest number of groups or rows, or smallest effect, that has the power.

        Parameters
        ----------
        power : float
            Wanted power.
        along : str, optional
            The axis; by default the first with two or more numbers.

        Returns
        -------
        pandas.DataFrame
            A row for each combination of the other axes: ``needed``, ``conf_low``, ``conf_high`` (whole
            numbers for groups and rows), missing where the grid does not reach; ``note`` says on which side.

        Raises
        ------
        DataError
            If there is no such axis.

        Notes
        -----
        The power is taken not to decrease along the axis: the simulated values are replaced by the nearest
        sequence that does not decrease (Ayer et al. 1955, Annals of Mathematical Statistics 26, 641-647), and
        joined by straight lines of probit(power) against the square root of a number of groups or rows, or
        an effect. The limits are where the upper and the lower confidence limits of the power, joined
        likewise, reach the wanted power: the values that the simulated power does not contradict. They hold
        simulation error alone.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> trial = jm.study({"school": 20}, size=10, between={"treatment": [0, 1]})
        >>> params = {"beta": [0, 0.5], "random": {"school": 0.3}, "sigma": 1}
        >>> found = jm.power(
        ...     "y ~ treatment + (1 | school)",
        ...     trial,
        ...     params,
        ...     vary={"groups": {"school": [10, 20, 30]}},
        ...     n=400,
        ...     seed=1,
        ... )
        >>> found.needed(0.8)
           needed  conf_low  conf_high note
        0      26        23         28
        """
        if isinstance(power, bool) or not isinstance(power, int | float | np.number) or not 0 < power < 1:
            raise DataError(f"power is {power!r}; give a number between 0 and 1, such as 0.8")
        axis = self.axis(along)
        others = [other.name for other in self.axes if other is not axis]
        rows = []
        for place, members in self._lines(axis):
            found, note = self._needed(axis, members, float(power))
            rows.append({**place, **dict(zip(_LIMITS, found, strict=True)), "note": note})
        table = pd.DataFrame(rows, columns=[*others, *_LIMITS, "note"])
        return table.astype(dict.fromkeys(_LIMITS, "Int64")) if axis.is_count else table

    def axis(self, name: str | None) -> PowerAxis:
        """The axis with this name, or the first that has two numbers."""
        numeric = [axis for axis in self.axes if len(axis.values) > 1 and _all_numbers(axis.values)]
        if not numeric:
            raise DataError(
                "there is nothing along which the power changes: vary= has no list of two numbers"
            )
        if name is None:
            return numeric[0]
        for axis in numeric:
            if axis.name == name:
                return axis
        raise DataError(
            f"the grid has no numbers along {name!r}; it has {', '.join(repr(axis.name) for axis in numeric)}"
        )

    def _lines(self, axis: PowerAxis) -> list[tuple[dict[str, Any], np.ndarray]]:
        """Points that differ in one axis only: values of the others, and point numbers in order."""
        others = [other.name for other in self.axes if other is not axis]
        lines: dict[tuple[Any, ...], list[int]] = {}
        for number, row in enumerate(self.points[others].itertuples(index=False, name=None)):
            lines.setdefault(tuple(row), []).append(number)
        x = self.points[axis.name].to_numpy()
        return [
            (dict(zip(others, key, strict=True)), np.array(sorted(members, key=lambda number: x[number])))
            for key, members in lines.items()
        ]

    def _needed(self, axis: PowerAxis, members: np.ndarray, power: float) -> tuple[list[float], str]:
        """Estimate and limits along one line, and what to say where the grid does not reach."""
        members = members[self._counts["n_used"][members] > 0]
        x = self.points[axis.name].to_numpy(dtype=np.float64)[members]
        sign = -1.0 if axis.kind == "effects" and (x <= 0).all() else 1.0
        if axis.kind == "effects" and (sign * x).min(initial=0.0) < 0:
            raise DataError(
                f"{axis.name} has negative and positive effects; the power has its smallest value in between"
            )
        order = np.argsort(sign * x)
        x, members = sign * x[order], members[order]
        used = self._counts["n_used"][members]
        estimate = increasing(self._counts["power"][members], used)
        high = np.minimum.accumulate(self._counts["conf_high"][members][::-1])[::-1]
        low = np.maximum.accumulate(self._counts["conf_low"][members])
        position, margin = axis.position(x), 0.5 / max(int(used.max(initial=1)), 1)
        found = [crossing(position, values, power, margin) for values in (estimate, high, low)]
        note = ""
        if np.isinf(found[0]) and len(x):
            less = found[0] > 0
            end = _shown(sign * x[-1 if less else 0])
            note = f"power {'<' if less else '>'} {power:g} at {end}"
        if sign < 0:
            found = [found[0], found[2], found[1]]
        values = [np.nan if np.isinf(at) else at**2 if axis.is_count else sign * at for at in found]
        return [np.ceil(at - 1e-9) if axis.is_count else at for at in values], note

    def plot(
        self,
        x: str | None = None,
        *,
        at: Mapping[str, Any] | None = None,
        power: float | None = 0.8,
        ax: Axes | None = None,
    ) -> Axes:
        """Power curves with their Monte-Carlo intervals, a line for each combination of the other axes.

        Parameters
        ----------
        x
            Axis from left to right; by default the first with two or more numbers.
        at
            Values of other axes, to draw only those lines: ``{"size": 20}``.
        power
            Wanted power, drawn as a line; None for none.
        ax
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Examples
        --------
        >>> import jaxmixed as jm
        >>> trial = jm.study({"school": 20}, size=10, between={"treatment": [0, 1]})
        >>> params = {"beta": [0, 0.5], "random": {"school": 0.3}, "sigma": 1}
        >>> found = jm.power(
        ...     "y ~ treatment + (1 | school)",
        ...     trial,
        ...     params,
        ...     vary={"effects": {"treatment": [0, 0.5, 1]}},
        ...     n=200,
        ...     seed=1,
        ... )
        >>> found.plot().get_xlabel()
        'Effect of treatment'
        """
        axis = self.axis(x)
        lines = self._lines(axis)
        for name, value in dict(at or {}).items():
            if name not in [other.name for other in self.axes if other is not axis]:
                raise DataError(f"at= names {name!r}; the other axes are {self._others(axis)}")
            lines = [(place, members) for place, members in lines if place[name] == value]
            if not lines:
                raise DataError(f"at={at!r}: the grid has no {name} of {value!r}")
        has_null = bool(self.null[np.concatenate([members for _, members in lines])].any())
        return draw_power(self.table, axis.name, axis.label, lines, self.setting, has_null, power, ax)

    def _others(self, axis: PowerAxis) -> str:
        return ", ".join(repr(other.name) for other in self.axes if other is not axis) or "none"

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know about failed and missing replicates, point by point."""
        found = []
        for number, failed in enumerate(self._counts["n_failed"]):
            done = int((self.reasons[number] != NOT_DONE).sum())
            place = self.describe(number)
            if failed > FEW_CONVERGED * done:
                codes, counts = np.unique(self.reasons[number], return_counts=True)
                why = "; ".join(
                    f"{REASONS[int(c)]} ({m:,})"
                    for c, m in zip(codes, counts, strict=True)
                    if c not in (OK, NOT_DONE)
                )
                where = f" at {place}" if place else ""
                found.append(f"{failed:,} of {done:,} fits failed{where} and are left out: {why}")
        missing = int((self.reasons == NOT_DONE).sum())
        if missing:
            found.append(f"interrupted: {missing:,} of {self.reasons.size:,} replicates were not fitted")
        return tuple(found)

    def summary(self) -> Summary:
        """Printed summary: what was asked, and the power at every point.

        Returns
        -------
        Summary
            Prints as text, and as HTML in notebooks.
        """
        setting = self.setting
        facts = (
            (("Test of", printable(setting.test)), ("Level of the test", f"{setting.alpha:g}")),
            (("Replicates per point", count(setting.n)), ("Seed", str(setting.seed))),
        )
        names = [printable(axis.name) for axis in self.axes]
        interval = (f"[{100 * setting.level:.12g}% conf.", "interval]")
        header = (*(names or ["Design"]), "Rows", "Power", *interval, "Failed", "Singular")
        rows = []
        for number, row in enumerate(self.table.itertuples(index=False, name=None)):
            place = [_shown(value) for value in row[: len(names)]] or ["as given"]
            counts = {name: values[number] for name, values in self._counts.items()}
            shares = [
                "." if np.isnan(counts[name]) else f"{counts[name]:.3f}"
                for name in ("power", "conf_low", "conf_high")
            ]
            numbers = [count(int(counts[name])) for name in ("n_failed", "n_singular")]
            rows.append((*place, count(int(counts["rows"])), *shares, *numbers))
        notes = ["the interval is exact (Clopper-Pearson) and holds the simulation error alone."]
        if self.null.any():
            notes.append("where the tested effects are zero, the power is the rate of false rejections.")
        return Summary(
            title=f"Power of a {setting.kind} by simulation, {_METHODS[setting.method]} fits",
            warnings=self.warnings(),
            formula=printable(setting.formula),
            facts=facts,
            tables=(Table("", header, tuple(rows)),),
            footer=(),
            notes=tuple(notes),
        )


def _shown(value: Any) -> str:
    """A value of an axis as text."""
    if isinstance(value, float | np.floating):
        return f"{value:.12g}"
    return printable(value)


def _all_numbers(values: tuple[Any, ...]) -> bool:
    return all(isinstance(v, int | float | np.number) and not isinstance(v, bool | np.bool_) for v in values)
