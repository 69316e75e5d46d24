"""Pictures of power. matplotlib is imported when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from jaxmixed.errors import DataError, printable
from jaxmixed.plot_style import (
    DASHES,
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
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class _Setting(Protocol):
    """What the picture says about the simulation."""

    @property
    def test(self) -> str: ...

    @property
    def alpha(self) -> float: ...

    @property
    def level(self) -> float: ...

    @property
    def n(self) -> int: ...


def draw_power(
    table: pd.DataFrame,
    name: str,
    label: str,
    lines: list[tuple[dict[str, Any], np.ndarray]],
    setting: _Setting,
    has_null: bool,
    power: float | None,
    ax: Axes | None,
) -> Axes:
    """Draw power curves; see `PowerResult.plot`.

    Parameters
    ----------
    table
        Of all points.
    name, label
        Column of the horizontal axis, and what to write there.
    lines
        For each line, the values of the other axes and the rows of the table from left to right; a legend
        names those that differ between the lines.
    setting
        What was asked.
    has_null
        Whether some tested effects are zero: the level of the test is drawn, too.
    power
        Wanted power.
    ax
        Axes to draw on.

    Returns
    -------
    matplotlib.axes.Axes
    """
    if len(lines) > len(PALETTE):
        raise DataError(
            f"the plot would have {len(lines)} lines; choose up to {len(PALETTE)} of them with"
            f" at={{{next(iter(lines[0][0]))!r}: ...}}"
        )
    varying = [key for key in lines[0][0] if len({str(place[key]) for place, _ in lines}) > 1]
    ax = new_axes(WIDE if varying else SIZE) if ax is None else ax
    for (place, members), colour in zip(lines, PALETTE, strict=False):
        rows = table.iloc[members]
        x = rows[name].to_numpy(dtype=np.float64)
        text = _listed(place, varying)
        low, high = rows["conf_low"], rows["conf_high"]
        ax.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0, zorder=2)
        ax.plot(
            x, rows["power"], color=colour, linewidth=1.8, marker="o", markersize=4.5, label=text, zorder=3
        )
    if power is not None:
        _mark(ax, power, f"{power:g} wanted", "left")
    if has_null:
        _mark(ax, setting.alpha, f"{setting.alpha:g} level of the test", "right")
    ax.set_ylim(0, 1.02)
    label_axes(ax, label, "Power")
    dress(ax)
    if varying:
        legend_beside(ax)
    constant = _listed(lines[0][0], [key for key in lines[0][0] if key not in varying])
    facts = [constant, f"{percent(setting.level)} intervals", f"{setting.n:,} replicates"]
    entitle(ax, f"Test of {short(setting.test)}", facts)
    return ax


def _mark(ax: Axes, value: float, text: str, side: str) -> None:
    """A dashed line across, with its meaning at one end; behind the curves."""
    ax.axhline(value, color=LINE, linewidth=0.9, linestyle=DASHES, zorder=1)
    ax.annotate(
        text,
        (0.005 if side == "left" else 0.995, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha=side,
        fontsize="small",
        color=LINE,
        zorder=1.5,
    )


def _listed(place: dict[str, Any], names: list[str]) -> str:
    return ", ".join(f"{printable(key)} = {short(place[key])}" for key in names)
