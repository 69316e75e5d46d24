"""Pictures of residuals against fitted values. matplotlib is imported when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from jaxmixed.plot_style import (
    DASHES,
    LINE,
    draw_smoother,
    dress,
    entitle,
    label_axes,
    name_largest,
    new_axes,
    scatter,
    zero_line,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_residuals(
    fitted: np.ndarray, residuals: pd.Series, what: str, subject: str, mark: int, ax: Axes | None
) -> Axes:
    """Residuals against fitted values; see `Plots.residuals`.

    Parameters
    ----------
    fitted : (n,) array
    residuals : (n,) Series
        Its index names the rows.
    what : str
        Kind of the residuals, the label of the vertical axis.
    subject : str
        Title.
    mark : int
        How many of the largest residuals carry the name of their row.
    ax : Axes, optional
    """
    ax = new_axes() if ax is None else ax
    values = residuals.to_numpy()
    words = scatter(ax, fitted, values)
    zero_line(ax, zorder=3)
    draw_smoother(ax, fitted, values)
    name_largest(ax, fitted, values, list(residuals.index), mark)
    label_axes(ax, "Fitted value", what)
    dress(ax)
    entitle(ax, subject, words)
    return ax


def draw_scale_location(fitted: np.ndarray, residuals: pd.Series, mark: int, ax: Axes | None) -> Axes:
    """Roots of absolute standardized residuals against fitted values; see `Plots.scale_location`."""
    ax = new_axes() if ax is None else ax
    values = np.sqrt(np.abs(residuals.to_numpy()))
    words = scatter(ax, fitted, values)
    ax.axhline(float(np.median(values)), color=LINE, linewidth=0.9, linestyle=DASHES, zorder=3)
    draw_smoother(ax, fitted, values)
    name_largest(ax, fitted, values, list(residuals.index), mark)
    label_axes(ax, "Fitted value", "√|standardized residual|")
    ax.set_ylim(0, None)
    dress(ax)
    entitle(ax, "Spread of residuals", [words, "dashed: median"])
    return ax
