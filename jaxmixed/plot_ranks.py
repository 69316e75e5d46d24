"""Pictures of ranks and of how uncertain they are. matplotlib is imported when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxmixed.plot_effects import figure_size
from jaxmixed.plot_style import (
    BAND,
    LINE,
    QUIET,
    STRONG,
    dress,
    entitle,
    label_axes,
    new_axes,
    percent,
    short,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_MAX_LABELLED = 60
_MAX_SEPARATE = 300
_LIKELY = 0.5
_TOP = (BAND, 0.22)
"""Colour and opacity of the ranks that count as the top."""


def draw_ranks(table: pd.DataFrame, level: float, ascending: bool, ax: Axes | None = None) -> Axes:
    """Expected ranks with intervals, in order; see `Plots.ranks`.

    Parameters
    ----------
    table : DataFrame
        Of `MixedResults.ranks`, with its ``attrs``.
    level : float
        Of the intervals.
    ascending : bool
        Whether rank 1 is the lowest value.
    ax : Axes, optional

    Returns
    -------
    matplotlib.axes.Axes
    """
    m, num_top = len(table), int(table.attrs["num_top"])
    few = m <= _MAX_LABELLED
    ax = new_axes(figure_size(m)) if ax is None else ax
    likely = table["p_top"].to_numpy() > _LIKELY
    place = np.arange(1, m + 1)
    span = ax.axvspan if few else ax.axhspan
    span(0.5, num_top + 0.5, color=_TOP[0], alpha=_TOP[1], linewidth=0, zorder=0)
    low, high, expected = (table[name].to_numpy() for name in ("rank_low", "rank_high", "expected"))
    for mask, colours, layer in ((~likely, QUIET, 2), (likely, STRONG, 3)):
        ends = (place[mask], low[mask], high[mask])
        if few:
            ax.hlines(*ends, colors=colours.line, linewidth=1.8, zorder=layer)
            ax.scatter(expected[mask], place[mask], s=22, color=colours.point, linewidths=0, zorder=layer + 2)
            continue
        separate = m <= _MAX_SEPARATE
        width = (1.2 if m < 200 else 0.9) if separate else max(0.15, 900 / m)
        ax.vlines(*ends, colors=colours.line if separate else colours.band, linewidth=width, zorder=layer)
        size = 11 if separate else 3
        ax.scatter(place[mask], expected[mask], s=size, color=colours.point, linewidths=0, zorder=layer + 2)
    first = "lowest" if ascending else "highest"
    facts = f"{percent(level)} intervals of ranks; top {num_top:,} shaded"
    if few:
        _name_levels(ax, table, first, num_top)
    else:
        _name_order(ax, m, first)
        facts += f", {int(likely.sum()):,} of {m:,} with P(top) > {_LIKELY}"
    entitle(ax, f"{short(table.attrs['group'])}: {short(table.attrs['effect'])}", facts)
    return ax


def _name_levels(ax: Axes, table: pd.DataFrame, first: str, num_top: int) -> None:
    """A line for each level, the first on top, with the probability of the top at the right."""
    m = len(table)
    ax.set_yticks(np.arange(1, m + 1), [short(level) for level in table.index], parse_math=False)
    ax.set_ylim(m + 0.8, 0.2)
    ax.set_xlim(0.5, m + 0.5)
    ax.set_xlabel(f"Rank (1 is the {first})")
    ax.tick_params(axis="y", length=0)
    dress(ax, "x")
    ax.spines["left"].set_visible(False)
    right = ax.get_yaxis_transform()
    for line, share in enumerate(table["p_top"].to_numpy(), start=1):
        if share >= 0.005:
            ax.text(1.01, line, f"{share:.2f}", transform=right, fontsize="small", color=LINE, va="center")
    ax.text(1.01, 0.1, f"P(top {num_top})", transform=right, fontsize="small", color=LINE, va="bottom")


def _name_order(ax: Axes, m: int, first: str) -> None:
    """Levels from left to right without names, rank 1 on top."""
    margin = 0.015 * m
    ax.set_xlim(1 - margin, m + margin)
    ax.set_ylim(m + margin, 1 - margin)
    label_axes(ax, "Level, in the order of the expected rank", f"Rank (1 is the {first})")
    dress(ax, "y")
