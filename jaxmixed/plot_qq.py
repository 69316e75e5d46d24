"""Normal quantile plots with simulated envelopes. matplotlib is imported when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxmixed.envelopes import QuantilePlot
from jaxmixed.plot_style import (
    ACCENT,
    BAND,
    LINE,
    QUIET,
    dress,
    entitle,
    label_axes,
    new_axes,
    percent,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_quantiles(found: QuantilePlot, what: str, subject: str, level: float, ax: Axes | None) -> Axes:
    """Ordered values against normal quantiles; see `Plots.qq`.

    Parameters
    ----------
    found : QuantilePlot
    what : str
        Label of the vertical axis.
    subject : str
        Title.
    level : float
        Of the envelope.
    ax : Axes, optional
    """
    ax = new_axes() if ax is None else ax
    x, y = found.theoretical, found.observed
    outside = np.zeros(len(x), dtype=bool)
    facts = f"{found.num_values:,} values, line through the quartiles"
    if found.simulations:
        # Rounding must not put outside what has no variance at all.
        slack = 1e-9 * float(np.abs(found.high - found.low).max())
        outside = (y < found.low - slack) | (y > found.high + slack)
        ax.fill_between(x, found.low, found.high, color=BAND, alpha=0.35, linewidth=0, zorder=1)
        ax.plot(x, found.centre, color=LINE, linewidth=0.9, zorder=3)
        shown = "" if len(x) == found.num_values else " shown"
        facts = f"{int(outside.sum()):,} of {len(x):,}{shown} outside the pointwise {percent(level)} band"
    else:
        ax.plot(x, _quartile_line(x, y), color=LINE, linewidth=0.9, zorder=3)
    size = 16 if len(x) <= 300 else 8
    for mask, colour, layer in ((~outside, QUIET.point, 2), (outside, ACCENT, 4)):
        ax.scatter(x[mask], y[mask], s=size, color=colour, linewidths=0, zorder=layer)
    band = f" (band: {found.simulations} simulations)" if found.simulations else ""
    label_axes(ax, f"Normal quantile{band}", what)
    dress(ax)
    entitle(ax, subject, facts)
    return ax


def _quartile_line(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The line through the first and third quartiles of both, as R's ``qqline``."""
    low, high = np.interp([-0.6744897501960817, 0.6744897501960817], x, y)
    slope = (high - low) / (2 * 0.6744897501960817)
    return (low + high) / 2 + slope * x
