"""Pictures of predicted random effects. matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from jaxmixed._distributions import normal_quantile
from jaxmixed.covariance import semidefinite_cholesky
from jaxmixed.errors import DataError, listed, printable
from jaxmixed.plot_style import (
    DASHES,
    LINE,
    QUIET,
    STRONG,
    dress,
    entitle,
    label_axes,
    new_axes,
    percent,
    scatter,
    short,
    zero_line,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HALF_PROBABILITY = 1.3862943611198906  # 2 log 2, the median of chi-squared with two degrees of freedom
_MAX_LABELLED = 60
_MAX_SEPARATE = 300
_LOWEST_LINE = 0.12  # inches
_INTERCEPT = "(Intercept)"


def draw_caterpillar(
    effects: dict[str, pd.DataFrame],
    errors: dict[str, pd.DataFrame],
    group: str | None,
    effect: str | None,
    level: float,
    sort: bool,
    ax: Axes | None,
    factor: float | None = None,
) -> Axes:
    """Predicted random effects with intervals; see `Plots.caterpillar`.

    Parameters
    ----------
    effects, errors : dict of str to DataFrame
        Predicted effects and their standard errors, by grouping.
    group, effect : str, optional
    level : float
        Of the intervals.
    sort : bool
        By the size of the effect, or in the order of the levels.
    ax : Axes, optional
    factor : float, optional
        Half width of the intervals in standard errors, where they are for comparing two levels.

    Returns
    -------
    matplotlib.axes.Axes
    """
    half_width = normal_quantile(level) if factor is None else factor
    label = choose_group(effects, group)
    name = choose_effect(effects[label], label, effect)
    values, half = effects[label][name].to_numpy(), half_width * errors[label][name].to_numpy()
    order = np.argsort(values, kind="stable") if sort else np.arange(len(values))
    ax = new_axes(figure_size(len(values))) if ax is None else ax
    named = has_room_for_names(ax, len(values))
    if not sort and named:
        order = order[::-1]  # the first level on top
    values, half = values[order], half[order]
    strong = (np.abs(values) > half) & (factor is None)
    _draw(ax, values, half, strong, named)
    if named:
        label_levels(ax, [short(value) for value in effects[label].index[order]])
    else:
        label_ranks(ax, len(values), "Rank" if sort else "Level, in the order of the data")
    if factor is None:
        facts = f"{percent(level)} intervals; {int(strong.sum()):,} of {len(values):,} exclude zero"
    else:
        facts = f"{percent(level)} comparison intervals: apart where two levels differ"
    entitle(ax, f"{short(label)}: {short(name)}", facts)
    return ax


def draw_pairs(
    effects: dict[str, pd.DataFrame],
    covariance: Callable[[str, str, str], np.ndarray],
    group: str | None,
    pair: Sequence[str] | None,
    ax: Axes | None,
) -> Axes:
    """Predicted effects of two kinds against each other; see `Plots.pairs`.

    Parameters
    ----------
    effects : dict of str to DataFrame
        Predicted effects by grouping.
    covariance : callable
        Estimated covariance matrix (2, 2) of two effects of a grouping.
    group : str, optional
    pair : (str, str), optional
    ax : Axes, optional
    """
    wide = {label: table for label, table in effects.items() if table.shape[1] > 1} or effects
    label = choose_group(effects if group is not None else wide, group)
    table = effects[label]
    if table.shape[1] < 2:
        raise DataError(f"{printable(label)} has one random effect alone, {listed(table.columns)}")
    if pair is None:
        pair = [str(name) for name in table.columns[:2]]
    if isinstance(pair, str) or len(pair) != 2 or pair[0] == pair[1]:
        raise DataError(f"effects is {pair!r}; give the names of two random effects")
    x_name, y_name = (choose_effect(table, label, name) for name in pair)
    x, y = table[x_name].to_numpy(), table[y_name].to_numpy()
    cov = covariance(label, x_name, y_name)
    ax = new_axes((5.4, 4.6)) if ax is None else ax
    angle = np.linspace(0, 2 * np.pi, 200)
    edge = np.sqrt(_HALF_PROBABILITY) * semidefinite_cholesky(cov) @ np.array([np.cos(angle), np.sin(angle)])
    ax.plot(edge[0], edge[1], color=LINE, linewidth=0.9, linestyle=DASHES, zorder=3)
    zero_line(ax)
    ax.axvline(0, color=LINE, linewidth=0.9, zorder=1)
    words = scatter(ax, x, y)
    label_axes(ax, printable(x_name), printable(y_name))
    dress(ax)
    scale = np.sqrt(cov[0, 0] * cov[1, 1])
    estimate = f"estimated correlation {cov[0, 1] / scale:.2f}" if scale > 0 else ""
    entitle(ax, f"{short(label)}: predicted effects", [words, "dashed: half of all true effects", estimate])
    return ax


def choose_group(effects: dict[str, pd.DataFrame], group: str | None) -> str:
    """The grouping asked for, or the one with the fewest levels.

    Raises
    ------
    DataError
        If the model has no random effects, or no such grouping.
    """
    if not effects:
        raise DataError("a linear model has no random effects")
    if group is None:
        return min(effects, key=lambda label: len(effects[label]))
    if group not in effects:
        raise DataError(f"the model has no grouping {group!r}; it has {listed(effects)}")
    return group


def choose_effect(table: pd.DataFrame, label: str, effect: str | None) -> str:
    """The effect asked for, or the intercept, or the first effect.

    Raises
    ------
    DataError
        If the grouping ``label`` has no such effect.
    """
    if effect is None:
        return _INTERCEPT if _INTERCEPT in table.columns else str(table.columns[0])
    if effect not in table.columns:
        raise DataError(f"{printable(label)} has no random effect {effect!r}; it has {listed(table.columns)}")
    return effect


def figure_size(num_levels: int) -> tuple[float, float]:
    """Inches of a picture with a line, or a rank, for each level."""
    return (6.4, 1.3 + 0.2 * max(4, num_levels)) if num_levels <= _MAX_LABELLED else (8.5, 4.2)


def has_room_for_names(ax: Axes, num_levels: int) -> bool:
    """Whether each level has a line of its own, with its name: up to 60 of them, and not too close."""
    return num_levels <= _MAX_LABELLED and ax.bbox.height / ax.figure.dpi >= _LOWEST_LINE * num_levels


def _draw(ax: Axes, values: np.ndarray, half: np.ndarray, strong: np.ndarray, named: bool) -> None:
    """Intervals and points, quiet ones first, so that the others lie on top."""
    rank = np.arange(1, len(values) + 1)
    for mask, colours, layer in ((~strong, QUIET, 2), (strong, STRONG, 3)):
        ends = (rank[mask], (values - half)[mask], (values + half)[mask])
        if named:
            ax.hlines(*ends, colors=colours.line, linewidth=1.8, zorder=layer)
            ax.scatter(values[mask], rank[mask], s=22, color=colours.point, linewidths=0, zorder=layer + 2)
        elif len(values) <= _MAX_SEPARATE:
            ax.vlines(*ends, colors=colours.line, linewidth=1.2 if len(values) < 200 else 0.9, zorder=layer)
            ax.scatter(rank[mask], values[mask], s=11, color=colours.point, linewidths=0, zorder=layer + 2)
        else:
            # Lines this close together would flicker: they become one pale band under the points.
            ax.vlines(*ends, colors=colours.band, linewidth=max(0.15, 900 / len(values)), zorder=layer)
            ax.scatter(rank[mask], values[mask], s=3, color=colours.point, linewidths=0, zorder=layer + 4)


def label_levels(ax: Axes, labels: list[str]) -> None:
    """One line for each level, with its name, from the bottom; effects from left to right."""
    ax.axvline(0, color=LINE, linewidth=0.9, zorder=1)
    size = min(10.0, 60 * ax.bbox.height / ax.figure.dpi / max(len(labels), 1))
    ax.set_yticks(np.arange(1, len(labels) + 1), labels, parse_math=False, fontsize=size)
    ax.set_ylim(0.2, len(labels) + 0.8)
    ax.set_xlabel("Predicted random effect")
    ax.tick_params(axis="y", length=0)
    dress(ax, "x")
    ax.spines["left"].set_visible(False)


def label_ranks(ax: Axes, count: int, what: str = "Rank") -> None:
    """Levels from left to right without names; effects upwards."""
    zero_line(ax, zorder=4)
    margin = 0.015 * count
    ax.set_xlim(1 - margin, count + margin)
    label_axes(ax, what, "Predicted random effect")
    dress(ax, "y")
