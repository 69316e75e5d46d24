"""Pictures of power. matplotlib is imported when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from jaxmixed.errors import DataError, JaxMixedError, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0b4f8a", "#c8553d", "#3f7d4e", "#7a4f9a", "#b07d12", "#4f6d7a", "#9c3f6e", "#6b6b2a")
_LINE, _GRID = "#555555", "#e6e6e6"
_SIZE, _WIDE = (6.8, 4.2), (8.2, 4.2)


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
    if len(lines) > len(_COLOURS):
        raise DataError(
            f"the plot would have {len(lines)} lines; choose up to {len(_COLOURS)} of them with"
            f" at={{{next(iter(lines[0][0]))!r}: ...}}"
        )
    varying = [key for key in lines[0][0] if len({str(place[key]) for place, _ in lines}) > 1]
    ax = _new_axes(bool(varying)) if ax is None else ax
    for (place, members), colour in zip(lines, _COLOURS, strict=False):
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
    ax.set_xlabel(label, parse_math=False)
    ax.set_ylabel("Power")
    ax.grid(color=_GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    if varying:
        ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    constant = _listed(lines[0][0], [key for key in lines[0][0] if key not in varying])
    facts = [constant] if constant else []
    facts += [f"{100 * setting.level:.12g}% intervals", f"{setting.n:,} replicates"]
    ax.set_title(f"Test of {_short(setting.test)}", loc="left", fontweight="bold", parse_math=False)
    ax.set_title(", ".join(facts), loc="right", fontsize="small", color=_LINE, parse_math=False)
    return ax


def _mark(ax: Axes, value: float, text: str, side: str) -> None:
    """A dashed line across, with its meaning at one end; behind the curves."""
    ax.axhline(value, color=_LINE, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    ax.annotate(
        text,
        (0.005 if side == "left" else 0.995, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha=side,
        fontsize="small",
        color=_LINE,
        zorder=1.5,
    )


def _listed(place: dict[str, Any], names: list[str]) -> str:
    return ", ".join(f"{printable(key)} = {_short(place[key])}" for key in names)


def _short(value: object) -> str:
    text = f"{value:.12g}" if isinstance(value, float) else printable(value)
    return text if len(text) <= 28 else text[:27] + "…"


def _new_axes(legend: bool) -> Axes:
    try:
        from matplotlib import pyplot as plt
    except ImportError:
        raise JaxMixedError("plots need matplotlib: pip install 'jaxmixed[plot]'") from None
    return plt.subplots(figsize=_WIDE if legend else _SIZE, layout="constrained")[1]
