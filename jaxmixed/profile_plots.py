"""Pictures of profile likelihoods. matplotlib is imported when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxmixed._distributions import normal_quantile
from jaxmixed.plot_style import (
    BAND,
    CURVE,
    DASHES,
    LINE,
    MOST_COLUMNS,
    dress,
    given_panels,
    new_panels,
    percent,
    zero_line,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FINE = 400


class Curve(NamedTuple):
    """A profile to draw.

    Attributes
    ----------
    name : str
    values, zeta : (n,) arrays
        In rising order of the values.
    estimate : float
    interval : (float, float)
        Limits, possibly infinite or NaN.
    ends : (float, float)
        Range of the parameter.
    """

    name: str
    values: np.ndarray
    zeta: np.ndarray
    estimate: float
    interval: tuple[float, float]
    ends: tuple[float, float]


def _interpolated(curve: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, zeta and its slope on a fine grid: by a cubic spline, or monotone cubics where that turns."""
    from scipy.interpolate import CubicSpline, PchipInterpolator

    values, first = np.unique(curve.values, return_index=True)
    grid = np.linspace(values[0], values[-1], _FINE)
    smooth = CubicSpline(values, curve.zeta[first])
    if (smooth(grid, 1) < 0).any():
        smooth = PchipInterpolator(values, curve.zeta[first])
    return grid, smooth(grid), smooth(grid, 1)


def _panels(count: int, axes: Any, level: float) -> np.ndarray:
    """Axes, one for each parameter; a new figure says what is shaded."""
    if axes is not None:
        return given_panels(axes, count, f"the profile needs {count}, one for each parameter")
    figure, panels = new_panels(count, MOST_COLUMNS, (3.0, 2.5), (0.4, 4.2))
    figure.supxlabel(f"shaded: {percent(level)} intervals", fontsize="small", color=LINE)
    return panels


def _dress(ax: Axes, curve: Curve, label: str) -> None:
    ax.set_title(curve.name, loc="left", fontsize="medium", fontweight="bold", parse_math=False)
    ax.set_ylabel(label)
    dress(ax)
    ax.locator_params(axis="x", nbins=5)


def _empty(ax: Axes) -> bool:
    ax.text(0.5, 0.5, "not determined", transform=ax.transAxes, ha="center", color=LINE)
    return True


def draw_zeta(curves: list[Curve], level: float, axes: Any = None) -> np.ndarray:
    """Signed roots of the rise of the deviance, with intervals; see `Profile.plot`.

    Parameters
    ----------
    curves : list of Curve
    level : float
        Of the intervals.
    axes : sequence of Axes, optional

    Returns
    -------
    array of Axes
    """
    panels, z = _panels(len(curves), axes, level), normal_quantile(level)
    for ax, curve in zip(panels, curves, strict=True):
        _dress(ax, curve, "ζ")
        if len(curve.values) < 2:
            _empty(ax)
            continue
        grid, zeta, _ = _interpolated(curve)
        low, high = (
            min(max(limit, grid[0]), grid[-1]) for limit in np.nan_to_num(curve.interval, nan=np.inf)
        )
        for sign in (-1, 1):
            ax.axhline(sign * z, color=LINE, linewidth=0.8, linestyle=DASHES, zorder=1)
        zero_line(ax)
        ax.axvspan(low, high, color=BAND, alpha=0.3, linewidth=0, zorder=0)
        ax.plot(grid, zeta, color=CURVE, linewidth=1.8, zorder=3)
        ax.plot(curve.estimate, 0, marker="o", markersize=4.5, color=CURVE, zorder=4)
    return panels


def draw_density(curves: list[Curve], level: float, axes: Any = None) -> np.ndarray:
    """Densities of which the profiles are normal scores; arguments as for :func:`draw_zeta`."""
    panels = _panels(len(curves), axes, level)
    for ax, curve in zip(panels, curves, strict=True):
        _dress(ax, curve, "density")
        if len(curve.values) < 2:
            _empty(ax)
            continue
        grid, zeta, slope = _interpolated(curve)
        density = np.exp(-0.5 * zeta**2) / np.sqrt(2 * np.pi) * np.maximum(slope, 0)
        low, high = curve.interval
        inside = (grid >= low) & (grid <= high)
        ax.fill_between(grid, density, where=inside, color=BAND, alpha=0.5, linewidth=0, zorder=2)
        ax.plot(grid, density, color=CURVE, linewidth=1.8, zorder=3)
        ax.set_ylim(0, None)
    return panels
