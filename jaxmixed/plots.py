"""Pictures of a fit. matplotlib is imported when a plot is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import pandas as pd

from jaxmixed._distributions import normal_quantile
from jaxmixed.errors import DataError, JaxMixedError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from jaxmixed.profiles import PlotKind, Profile

Beta = Literal["known", "estimated"]
_MAX_LABELLED = 60
_MAX_SEPARATE = 300
_MAX_LABEL = 28
_INTERCEPT = "(Intercept)"
_LINE, _GRID = "#555555", "#e6e6e6"


class _Colours(NamedTuple):
    """Colours of points, of intervals, and of the band of intervals too close to tell apart."""

    point: str
    line: str
    band: str


_QUIET = _Colours("#7f95ab", "#9fb3c8", "#d3dde7")
_STRONG = _Colours("#0b4f8a", "#0b4f8a", "#8fb8dc")


class _Fit(Protocol):
    """What the plots need of a fit."""

    def ranef(self) -> dict[str, pd.DataFrame]:
        """Predicted random effects."""

    def ranef_se(self, beta: Beta = "known") -> dict[str, pd.DataFrame]:
        """Their standard errors."""

    def profile(self, which: Any = None, level: float = 0.999) -> Profile:
        """Profile likelihoods."""


@dataclass(frozen=True, slots=True)
class Plots:
    """The plots of a fit: ``fit.plot.caterpillar()``.

    Parameters
    ----------
    fit
        The fit to draw.
    """

    fit: _Fit

    def caterpillar(
        self,
        group: str | None = None,
        effect: str | None = None,
        *,
        level: float = 0.95,
        beta: Beta = "known",
        ax: Axes | None = None,
    ) -> Axes:
        """Predicted random effects in order, with intervals: which groups stand out.

        Up to 60 levels are drawn one to a line with their names; more of them from left to right by rank.
        Intervals that exclude zero are dark. The intervals are for one level at a time and not for comparing
        two levels.

        Parameters
        ----------
        group
            Grouping, e.g. ``"school"``; by default the one with the fewest levels.
        effect
            Effect, e.g. ``"ses"``; by default the intercept, or the first effect where there is none.
        level
            Level of the intervals.
        beta
            Whether the standard errors take the fixed effects as known or as estimated (see
            `MixedResults.ranef_se`).
        ax
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> ax = fit.plot.caterpillar(effect="Days")
        >>> ax.get_title(loc="left")
        'Subject: Days'
        """
        half_width = normal_quantile(level)
        effects = self.fit.ranef()
        label = _choose_group(effects, group)
        name = _choose_effect(effects[label], label, effect)
        values = effects[label][name].to_numpy()
        half = half_width * self.fit.ranef_se(beta)[label][name].to_numpy()
        order = np.argsort(values, kind="stable")
        values, half = values[order], half[order]
        labels = [_short(value) for value in effects[label].index[order]]
        if ax is None:
            ax = _new_axes(len(values))
        strong = np.abs(values) > half
        _draw(ax, values, half, strong, labels)
        text = f"{100 * level:.12g}% intervals; {int(strong.sum()):,} of {len(values):,} exclude zero"
        ax.set_title(f"{_short(label)}: {printable(name)}", loc="left", fontweight="bold", parse_math=False)
        ax.set_title(text, loc="right", fontsize="small", color=_LINE)
        return ax

    def profile(
        self,
        which: str | Sequence[str] | None = None,
        kind: PlotKind = "zeta",
        *,
        level: float = 0.95,
        axes: Any = None,
    ) -> np.ndarray:
        """Profile likelihoods, a panel for each parameter; see `Profile.plot`.

        Parameters
        ----------
        which
            Parameters, by default all (see `MixedResults.profile`).
        kind
            ``"zeta"``: the signed root of the rise of the deviance. ``"density"``: the density of which that
            is the normal score.
        level
            Level of the intervals shown.
        axes
            One for each parameter; by default those of a new figure.

        Returns
        -------
        array of matplotlib.axes.Axes

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
        >>> len(fit.plot.profile())
        4
        """
        return self.fit.profile(which).plot(kind, level=level, axes=axes)


def _choose_group(effects: dict[str, pd.DataFrame], group: str | None) -> str:
    if not effects:
        raise DataError("a linear model has no random effects to plot")
    if group is None:
        return min(effects, key=lambda label: len(effects[label]))
    if group not in effects:
        raise DataError(f"the model has no grouping {group!r}; it has {_listed(effects)}")
    return group


def _choose_effect(table: pd.DataFrame, label: str, effect: str | None) -> str:
    if effect is None:
        return _INTERCEPT if _INTERCEPT in table.columns else str(table.columns[0])
    if effect not in table.columns:
        raise DataError(
            f"{printable(label)} has no random effect {effect!r}; it has {_listed(table.columns)}"
        )
    return effect


def _listed(names: Any) -> str:
    return ", ".join(repr(printable(name)) for name in names)


def _short(value: object) -> str:
    text = printable(value)
    return text if len(text) <= _MAX_LABEL else text[: _MAX_LABEL - 1] + "…"


def _new_axes(num_levels: int) -> Axes:
    try:
        from matplotlib import pyplot as plt
    except ImportError:
        raise JaxMixedError("plots need matplotlib: pip install 'jaxmixed[plot]'") from None
    return plt.subplots(figsize=_figure_size(num_levels), layout="constrained")[1]


def _figure_size(num_levels: int) -> tuple[float, float]:
    return (6.4, 1.3 + 0.2 * max(4, num_levels)) if num_levels <= _MAX_LABELLED else (8.5, 4.2)


def _draw(ax: Axes, values: np.ndarray, half: np.ndarray, strong: np.ndarray, labels: list[str]) -> None:
    """Intervals and points, quiet ones first, so that the others lie on top."""
    rank = np.arange(1, len(values) + 1)
    for mask, colours, layer in ((~strong, _QUIET, 2), (strong, _STRONG, 3)):
        ends = (rank[mask], (values - half)[mask], (values + half)[mask])
        if len(values) <= _MAX_LABELLED:
            ax.hlines(*ends, colors=colours.line, linewidth=1.8, zorder=layer)
            ax.scatter(values[mask], rank[mask], s=22, color=colours.point, linewidths=0, zorder=layer + 2)
        elif len(values) <= _MAX_SEPARATE:
            ax.vlines(*ends, colors=colours.line, linewidth=1.2 if len(values) < 200 else 0.9, zorder=layer)
            ax.scatter(rank[mask], values[mask], s=11, color=colours.point, linewidths=0, zorder=layer + 2)
        else:
            # Lines this close together would flicker: they become one pale band under the points.
            ax.vlines(*ends, colors=colours.band, linewidth=max(0.15, 900 / len(values)), zorder=layer)
            ax.scatter(rank[mask], values[mask], s=3, color=colours.point, linewidths=0, zorder=layer + 4)
    if len(values) <= _MAX_LABELLED:
        _label_levels(ax, rank, labels)
    else:
        _label_ranks(ax, rank)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _label_levels(ax: Axes, rank: np.ndarray, labels: list[str]) -> None:
    ax.axvline(0, color=_LINE, linewidth=0.9, zorder=1)
    ax.set_yticks(rank, labels, parse_math=False)
    ax.set_ylim(0.2, len(rank) + 0.8)
    ax.set_xlabel("Predicted random effect")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=_GRID, linewidth=0.8)
    ax.spines["left"].set_visible(False)


def _label_ranks(ax: Axes, rank: np.ndarray) -> None:
    ax.axhline(0, color=_LINE, linewidth=0.9, zorder=4)
    margin = 0.015 * len(rank)
    ax.set_xlim(1 - margin, len(rank) + margin)
    ax.set_xlabel("Rank")
    ax.set_ylabel("Predicted random effect")
    ax.grid(axis="y", color=_GRID, linewidth=0.8)


def save_caterpillar(fit: _Fit, path: Path, level: float) -> None:
    """Write the default caterpillar plot to a file, without a window or a display."""
    from matplotlib.figure import Figure

    tables = fit.ranef()
    figure = Figure(figsize=_figure_size(len(tables[_choose_group(tables, None)])), layout="constrained")
    Plots(fit).caterpillar(level=level, ax=figure.add_subplot())
    figure.savefig(path, dpi=200)
