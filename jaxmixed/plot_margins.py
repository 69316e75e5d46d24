"""Pictures of marginal means and slopes. matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from jaxmixed.errors import DataError, listed, printable
from jaxmixed.plot_style import (
    LINE,
    PALETTE,
    SIZE,
    WIDE,
    dress,
    entitle,
    label_axes,
    legend_beside,
    new_axes,
    percent,
    short,
    zero_line,
)
from jaxmixed.reference_grid import factor_coding

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from jaxmixed.fixed_inference import FixedInference
    from jaxmixed.frame import ModelFrame
    from jaxmixed.marginal_means import MarginalMeans

_POINTS, _MOST_TICKS, _MOST_VALUES = 60, 400, 5
_DODGE = 0.5  # of the space between two levels, taken by all lines together


class FitWithMeans(Protocol):
    """What the pictures need of a fit."""

    @property
    def frame(self) -> ModelFrame:
        """The data as the model saw them."""

    def emmeans(
        self,
        spec: str | Sequence[str],
        by: str | Sequence[str] | None = None,
        at: Mapping[str, Any] | None = None,
        weights: str = "equal",
        level: float = 0.95,
        *,
        ddf: str = "satterthwaite",
        vcov: FixedInference | None = None,
    ) -> MarginalMeans:
        """Marginal means."""

    def emtrends(
        self,
        spec: str | Sequence[str],
        var: str,
        by: str | Sequence[str] | None = None,
        at: Mapping[str, Any] | None = None,
        weights: str = "equal",
        level: float = 0.95,
        *,
        ddf: str = "satterthwaite",
        vcov: FixedInference | None = None,
    ) -> MarginalMeans:
        """Marginal slopes."""


def draw_margins(
    fit: FitWithMeans,
    x: str,
    by: str | Sequence[str] | None,
    slope: str | None,
    at: Mapping[str, Any] | None,
    weights: str,
    level: float,
    ddf: str,
    vcov: FixedInference | None,
    ax: Axes | None,
) -> Axes:
    """Marginal means, or slopes, along a column; see `Plots.margins`."""
    frame, lines = fit.frame, [by] if isinstance(by, str) else list(by or [])
    for name in (x, *lines):
        if name not in frame.columns:
            raise DataError(
                f"the fixed part has no column {name!r}; it has {listed(frame.columns) or 'none'}"
            )
    if x in lines:
        raise DataError(f"by= names {x!r}, which is the horizontal axis")
    values = dict(at or {})
    numeric = factor_coding(frame, x) is None
    if numeric and x not in values:
        values[x] = _grid(_numbers(frame, x))
    for name in lines:
        if name not in values and factor_coding(frame, name) is None:
            values[name] = _few_values(_numbers(frame, name))
    spec, options = [x, *lines], {"ddf": ddf, "vcov": vcov}
    if slope is None:
        means = fit.emmeans(spec, None, values, weights, level, **options)  # type: ignore[arg-type]
    else:
        means = fit.emtrends(spec, slope, None, values, weights, level, **options)  # type: ignore[arg-type]
    table = means.table
    ax = new_axes(WIDE if lines else SIZE) if ax is None else ax
    _draw(ax, table, x, lines, numeric)
    if numeric:
        _rug(ax, _numbers(frame, x))
    if slope is not None:
        zero_line(ax)
    what = frame.response_name if slope is None else f"Slope of {slope}"
    label_axes(ax, printable(x), f"Predicted {printable(what)}" if slope is None else printable(what))
    dress(ax)
    heads = "Marginal means" if slope is None else f"Marginal slopes in {short(slope)}"
    entitle(ax, heads, f"pointwise {percent(level)} {'bands' if numeric else 'intervals'}")
    return ax


def _numbers(frame: ModelFrame, name: str) -> np.ndarray:
    return np.asarray(frame.columns[name].values, dtype=np.float64)


def _grid(values: np.ndarray) -> np.ndarray:
    return np.linspace(values.min(), values.max(), _POINTS)


def _few_values(values: np.ndarray) -> list[float]:
    """All values, where there are up to five; else the mean and a standard deviation to either side."""
    distinct = np.unique(values)
    if len(distinct) <= _MOST_VALUES:
        return distinct.tolist()
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    return [float(f"{value:.4g}") for value in (mean - sd, mean, mean + sd)]


def _draw(ax: Axes, table: pd.DataFrame, x: str, lines: list[str], numeric: bool) -> None:
    parts = list(table.groupby(lines, sort=False, observed=True)) if lines else [((), table)]
    if len(parts) > len(PALETTE):
        raise DataError(
            f"the plot would have {len(parts)} lines; choose up to {len(PALETTE)} of them with"
            f" at={{{lines[0]!r}: [...]}}"
        )
    levels = list(dict.fromkeys(table[x]))
    for number, ((key, part), colour) in enumerate(zip(parts, PALETTE, strict=False)):
        label = ", ".join(short(value) for value in (key if isinstance(key, tuple) else (key,)))
        low, high = (part[name].to_numpy(dtype=np.float64) for name in ("conf_low", "conf_high"))
        mean = part["estimate"].to_numpy(dtype=np.float64)
        if numeric:
            at = part[x].to_numpy(dtype=np.float64)
            ax.fill_between(at, low, high, color=colour, alpha=0.16, linewidth=0, zorder=2)
            ax.plot(at, mean, color=colour, linewidth=1.8, label=label, zorder=3)
            continue
        shift = 0.0 if len(parts) == 1 else _DODGE * (number / (len(parts) - 1) - 0.5)
        place = np.array([levels.index(value) for value in part[x]]) + shift
        ax.vlines(place, low, high, colors=colour, linewidth=1.8, zorder=2)
        ax.plot(place, mean, color=colour, marker="o", markersize=5, linewidth=0, label=label, zorder=3)
    if not numeric:
        ax.set_xticks(np.arange(len(levels)), [short(value) for value in levels], parse_math=False)
        ax.set_xlim(-0.6, len(levels) - 0.4)
    if lines:
        legend_beside(ax, ", ".join(map(short, lines)))


def _rug(ax: Axes, values: np.ndarray) -> None:
    """Where the data are: a tick at each value, or at quantiles of many."""
    values = np.unique(values)
    if len(values) > _MOST_TICKS:
        values = np.unique(np.quantile(values, np.linspace(0, 1, _MOST_TICKS)))
    height = np.zeros(len(values))
    ax.plot(
        values, height, "|", color=LINE, alpha=0.5, markersize=7, transform=ax.get_xaxis_transform(), zorder=4
    )
