"""Pictures of groups along a covariate: a panel for each, or all lines in one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmixed.errors import printable
from jaxmixed.formatting import counted
from jaxmixed.plot_style import (
    ACCENT,
    CURVE,
    DASHES,
    LINE,
    PALETTE,
    QUIET,
    dress,
    entitle,
    given_panels,
    label_axes,
    legend_beside,
    new_axes,
    new_panels,
    short,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from jaxmixed.trajectories import Trajectories

_MOST_COLUMNS = 6
_MOST_POINTS = 2_000
_TICKS = 6


def draw_panels(found: Trajectories, axes: Any = None) -> np.ndarray:
    """A panel for each group: its points, the population's line and its own.

    Parameters
    ----------
    found : Trajectories
    axes : array_like of Axes, optional

    Returns
    -------
    (k,) array of Axes
    """
    k = len(found.levels)
    columns = min(_MOST_COLUMNS, math.ceil(1.3 * math.sqrt(k)))
    if axes is None:
        figure, panels = new_panels(k, columns, (1.75, 1.6), (0.7, 6.0))
    else:
        panels = given_panels(axes, k, f"the plot needs {k}, one for each group")
        figure = None
    size = _point_size(max(len(rows) for rows in found.rows))
    for place, (ax, level) in enumerate(zip(panels, found.levels, strict=True)):
        if figure is not None:
            _share(ax, panels, place, columns)
        _draw_group(ax, found, place, size)
        ax.set_title(short(level), loc="left", fontsize="small", fontweight="bold", parse_math=False)
        dress(ax)
        _name_ticks(ax, found)
    x, y = printable(found.x_name), printable(found.y_name)
    if figure is None:
        for ax in panels:
            label_axes(ax, x, y)
        return panels
    named = {"parse_math": False, "fontsize": "medium"}
    figure.supxlabel(x, **named)
    figure.supylabel(y, **named)
    chosen = f"{k:,} of {counted(found.num_levels, 'group')}" if k < found.num_levels else counted(k, "group")
    figure.suptitle(
        f"{short(found.label)}: {chosen}", x=0.01, ha="left", fontweight="bold", fontsize="large",
        parse_math=False,
    )  # fmt: skip
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False,
        fontsize="small",
    )  # fmt: skip
    return panels


def _point_size(most: int) -> tuple[float, float]:
    """Size and opacity of points, the same in all panels."""
    return (14.0, 0.9) if most <= 30 else (7.0, 0.6) if most <= 300 else (3.0, 0.4)


def _draw_group(ax: Axes, found: Trajectories, place: int, look: tuple[float, float]) -> None:
    rows, (size, alpha) = found.rows[place], look
    rows = rows[:: -(-len(rows) // _MOST_POINTS)]
    ax.scatter(
        found.x[rows], found.y[rows], s=size, alpha=alpha, color=QUIET.point, linewidths=0, zorder=2,
        label="observed",
    )  # fmt: skip
    ax.plot(
        found.grid[place], found.population[place], color=LINE, linewidth=1.1, linestyle=DASHES, zorder=3,
        label="population",
    )  # fmt: skip
    ax.plot(
        found.grid[place],
        found.conditional[place],
        color=CURVE,
        linewidth=1.7,
        zorder=4,
        label="group",
        marker="o" if found.ticks else "",
        markersize=3.0,
    )


def _share(ax: Axes, panels: np.ndarray, place: int, columns: int) -> None:
    """One scale for all panels, numbers only at the left and below."""
    if place:
        ax.sharex(panels[0])
        ax.sharey(panels[0])
    below, left = place + columns >= len(panels), place % columns == 0
    ax.tick_params(labelbottom=below, labelleft=left, labelsize="small")


def _name_ticks(ax: Axes, found: Trajectories) -> None:
    if not found.ticks:
        ax.locator_params(axis="x", nbins=4)
        return
    every = -(-len(found.ticks) // _TICKS)
    places = range(0, len(found.ticks), every)
    ax.set_xticks(list(places), [short(found.ticks[place]) for place in places], parse_math=False)


def draw_lines(found: Trajectories, by: str | None = None, ax: Axes | None = None) -> Axes:
    """The lines of all groups, faint, with the population's on top.

    Parameters
    ----------
    found : Trajectories
    by : str, optional
        Name of the factor that tells groups apart, for the legend.
    ax : Axes, optional

    Returns
    -------
    Axes
    """
    from matplotlib.collections import LineCollection

    ax = new_axes((8.2, 4.6)) if ax is None else ax
    k, told_apart = len(found.levels), len(found.kinds) > 1
    lines = np.stack([found.grid, found.conditional], axis=-1)
    width, alpha = (1.2, 0.8) if k <= 40 else (0.8, 0.5) if k <= 200 else (0.5, 0.3)
    for place, name in enumerate(found.kinds):
        own = found.kind == place
        if not own.any():
            continue
        colour = PALETTE[place % len(PALETTE)] if told_apart else ACCENT
        faint = LineCollection(
            list(lines[own]), colors=colour if told_apart else QUIET.point, linewidths=width, zorder=2,
            alpha=0.6 * alpha if told_apart else alpha, label="" if told_apart else "groups",
            rasterized=k > 500,
        )  # fmt: skip
        ax.add_collection(faint)
        # A white edge keeps the line apart from those below it.
        for line, edge, label in (
            (4.4, "white", ""),
            (2.4, colour, short(name) if told_apart else "population"),
        ):
            ax.plot(found.mean_x, found.means[place], color=edge, linewidth=line, zorder=4, label=label)
    ax.autoscale_view()
    _name_ticks(ax, found)
    dress(ax)
    shown = f"{k:,} of {counted(found.num_levels, 'group')}" if k < found.num_levels else counted(k, "group")
    entitle(ax, short(found.label), shown)
    label_axes(ax, printable(found.x_name), f"Predicted {printable(found.y_name)}")
    legend_beside(ax, f"population, {short(by)}" if by else None)
    shown_in = ax.get_legend()
    for handle in [] if shown_in is None else shown_in.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)
    return ax
