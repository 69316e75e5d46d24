"""Pictures of the correlation of residuals within groups. matplotlib is imported when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxmixed.plot_style import (
    BAND,
    CURVE,
    QUIET,
    dress,
    entitle,
    label_axes,
    new_axes,
    zero_line,
)
from jaxmixed.residual_correlation import ByDistance, ByLag

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_autocorrelation(found: ByLag, ax: Axes | None) -> Axes:
    """Autocorrelations by lag; see `Plots.autocorrelation`."""
    ax = new_axes() if ax is None else ax
    table = found.table.iloc[1:]  # that at lag 0 is 1 by definition
    table = table[table["pairs"] > 0]
    lag, value = table["lag"].to_numpy(), table["autocorrelation"].to_numpy()
    low, high = table["low"].to_numpy(), table["high"].to_numpy()
    ax.bar(lag, high - low, bottom=low, width=1.0, color=BAND, alpha=0.3, linewidth=0, zorder=1)
    ax.use_sticky_edges = False  # of the bars, at which the axes would end
    zero_line(ax)
    outside = (value < low) | (value > high)
    for mask, colour in ((~outside, QUIET.point), (outside, CURVE)):
        ax.vlines(lag[mask], 0, value[mask], colors=colour, linewidth=1.8, zorder=2)
        ax.scatter(lag[mask], value[mask], s=18, color=colour, linewidths=0, zorder=3)
    ax.set_xlim(0.3, lag[-1] + 0.7)
    ax.locator_params(axis="x", integer=True)
    label_axes(ax, found.lag_label, "Autocorrelation of residuals")
    dress(ax, "y")
    entitle(ax, found.subject("Autocorrelation"), f"{int(table['pairs'].sum()):,} pairs; {found.limits}")
    return ax


def draw_variogram(found: ByDistance, ax: Axes | None) -> Axes:
    """Semivariances by distance; see `Plots.variogram`."""
    ax = new_axes() if ax is None else ax
    table = found.table
    x, y = table["distance"].to_numpy(), table["semivariance"].to_numpy()
    low, high = table["low"].to_numpy(), table["high"].to_numpy()
    if np.isfinite(low).all():
        ax.fill_between(x, low, high, color=BAND, alpha=0.3, linewidth=0, zorder=1)
    ax.plot(x, y, color=CURVE, linewidth=1.4, marker="o", markersize=4.5, zorder=3)
    if np.nanmin(np.r_[low, y]) < 0.6 * np.nanmax(np.r_[high, y]):
        ax.set_ylim(0, None)
    label_axes(ax, found.distance_label, "Semivariance of residuals")
    dress(ax)
    entitle(
        ax,
        found.subject("Variogram"),
        f"{found.pairs_used}; {found.limits}" if found.limits else found.pairs_used,
    )
    return ax
