"""Pictures of the influence of rows or groups. matplotlib is imported when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
import pandas as pd

from jaxmixed.errors import DataError, listed, printable
from jaxmixed.influence_measures import usual_limits
from jaxmixed.plot_style import (
    ACCENT,
    DASHES,
    LINE,
    QUIET,
    STRONG,
    dress,
    entitle,
    label_axes,
    name_largest,
    new_axes,
    short,
    zero_line,
)
from jaxmixed.predict import linear_predictor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from jaxmixed.influence_measures import Measures

InfluencePlot = Literal["index", "bubble", "agreement"]
PLOTS: tuple[InfluencePlot, ...] = get_args(InfluencePlot)

_DISTANCE, _FIRST_ORDER = "Cook's distance", "Cook's distance to first order"
_MOST_STEMS, _MOST_DRAWN, _MOST_BUBBLES = 300, 5_000, 1_000
_LARGEST_BUBBLE, _SMALLEST_BUBBLE = 420.0, 6.0  # points squared


class Influence(Protocol):
    """What the pictures show: of :class:`jaxmixed.influence.Influence`."""

    @property
    def label(self) -> str:
        """Name of the cases."""

    @property
    def names(self) -> pd.Index:
        """Labels of the cases."""

    @property
    def sizes(self) -> np.ndarray:
        """Rows in each, (c,)."""

    @property
    def codes(self) -> np.ndarray:
        """Case of each row, (n,)."""

    @property
    def fit(self) -> Any:
        """The fit of all rows."""

    @property
    def deletion(self) -> Measures | None:
        """Measures of deletion."""

    @property
    def approximate(self) -> Measures | None:
        """Measures to first order."""

    @property
    def are_rows(self) -> bool:
        """Whether the cases are single rows."""

    @property
    def cooks_distance(self) -> pd.Series:
        """Cook's distances."""

    @property
    def leverage(self) -> pd.Series:
        """Leverages."""

    @property
    def disagree(self) -> pd.Series:
        """Where the first order misleads."""


def draw_influence(found: Influence, kind: str, mark: int, ax: Axes | None) -> Axes:
    """Influence of all cases; see `Plots.influence`.

    Parameters
    ----------
    found : Influence
    kind : str
    mark : int
        How many of the most influential cases carry their names.
    ax : Axes, optional
    """
    if kind not in PLOTS:
        raise DataError(f"kind is {kind!r}; pictures of influence are {listed(PLOTS)}")
    distances = found.cooks_distance.to_numpy()
    if not np.isfinite(distances).any():
        raise DataError(
            "there is no Cook's distance to draw: no coefficient could be estimated without a case"
        )
    if kind == "agreement" and (found.approximate is None or found.deletion is None):
        raise DataError("kind='agreement' compares both ways of leaving cases out: use method='both'")
    ax = new_axes() if ax is None else ax
    known = np.flatnonzero(np.isfinite(distances))
    most = _MOST_BUBBLES if kind == "bubble" else _MOST_DRAWN
    largest = known[np.argsort(-distances[known], kind="stable")[:most]]
    fewer = f"the {most:,} largest of {len(known):,}" if len(known) > most else ""
    drawn = np.sort(largest)
    if kind == "index":
        words = _draw_index(ax, found, drawn, mark)
    elif kind == "bubble":
        words = _draw_bubbles(ax, found, drawn, mark)
    else:
        words = _draw_agreement(ax, found, drawn, mark)
    dress(ax)
    subject = "Influence of rows" if found.are_rows else f"Influence of {short(found.label)}"
    entitle(ax, subject, [*words, fewer])
    return ax


def _draw_index(ax: Axes, found: Influence, drawn: np.ndarray, mark: int) -> list[str]:
    """Cook's distance of every case in order: what to say in the title."""
    values, limit = found.cooks_distance.to_numpy(), usual_limits(len(found.names), 1).cooks_distance
    strong, odd = values[drawn] > limit, found.disagree.to_numpy()[drawn]
    stems = len(drawn) <= _MOST_STEMS
    size = 20.0 if stems else 8.0
    for mask, colours in ((~strong, QUIET), (strong, STRONG)):
        at = drawn[mask]
        if stems:
            ax.vlines(at + 1, 0, values[at], colors=colours.line, linewidth=1.2, zorder=2)
        ax.scatter(at + 1, values[at], s=size, color=colours.point, linewidths=0, zorder=3)
    words = [f"dashed: 4 / {len(values):,}"]
    if odd.any():
        at = drawn[odd]
        ax.scatter(
            at + 1, values[at], s=3 * size, facecolors="none", edgecolors=ACCENT, linewidths=1.0, zorder=4
        )
        words.append("ringed: the first order misleads")
    if limit < 4 * values[drawn].max():
        ax.axhline(limit, color=LINE, linewidth=0.9, linestyle=DASHES, zorder=1)
    else:
        words = [f"all below 4 / {len(values):,}", *words[1:]]
    name_largest(ax, drawn + 1, values[drawn], [found.names[place] for place in drawn], mark)
    ax.locator_params(axis="x", integer=True)
    margin = max(0.6, 0.015 * len(values))
    ax.set_xlim(1 - margin, len(values) + margin)
    ax.set_ylim(0, None)
    what = "Row" if found.are_rows else f"{printable(found.label)}, by number"
    label_axes(ax, what, _FIRST_ORDER if found.deletion is None else _DISTANCE)
    return words


def _draw_bubbles(ax: Axes, found: Influence, drawn: np.ndarray, mark: int) -> list[str]:
    """Residuals against leverages, as large as Cook's distance."""
    values = found.cooks_distance.to_numpy()
    x, (y, what) = found.leverage.to_numpy()[drawn], _residuals(found)
    y = y[drawn]
    area = _LARGEST_BUBBLE * values[drawn] / max(float(values[drawn].max()), np.finfo(float).tiny)
    strong = values[drawn] > usual_limits(len(values), 1).cooks_distance
    for mask, colours in ((~strong, QUIET), (strong, STRONG)):
        ax.scatter(
            x[mask],
            y[mask],
            s=np.maximum(area[mask], _SMALLEST_BUBBLE),
            color=colours.point,
            alpha=0.55,
            linewidths=0,
            zorder=3 if colours is STRONG else 2,
        )
    if found.are_rows:
        zero_line(ax)
    radius = np.sqrt(np.maximum(area, _SMALLEST_BUBBLE) / np.pi)
    name_largest(ax, x, y, [found.names[place] for place in drawn], mark, by=values[drawn], radius=radius)
    ax.margins(0.08)
    label_axes(ax, "Leverage" if found.are_rows else "Leverage, summed over rows", what)
    return ["area: Cook's distance", f"dark: above 4 / {len(values):,}"]


def _residuals(found: Influence) -> tuple[np.ndarray, str]:
    """Standardized residuals of rows; of groups, the root mean squares of marginal ones."""
    fit, sigma = found.fit, float(found.fit.estimates.sigma)
    root = 1.0 if fit.frame.weights is None else np.sqrt(fit.frame.weights)
    if found.are_rows:
        return root * fit.residuals().to_numpy() / sigma, "Standardized residual"
    marginal = (
        root * (fit.frame.y - linear_predictor(fit.frame.X, fit.estimates.beta, fit.frame.offset)) / sigma
    )
    squares = np.bincount(found.codes, marginal**2) / found.sizes
    return np.sqrt(squares), "Root mean square residual (marginal, in sigma)"


def _draw_agreement(ax: Axes, found: Influence, drawn: np.ndarray, mark: int) -> list[str]:
    """Cook's distance of deletion against that of first order."""
    assert found.approximate is not None
    first = found.approximate.cooks_distance.to_numpy()[drawn]
    true, odd = found.cooks_distance.to_numpy()[drawn], found.disagree.to_numpy()[drawn]
    high = 1.05 * float(max(first.max(), true.max()))
    ax.plot([0, high], [0, high], color=LINE, linewidth=0.9, zorder=1)
    ax.scatter(first[~odd], true[~odd], s=18, color=QUIET.point, alpha=0.75, linewidths=0, zorder=2)
    ax.scatter(first[odd], true[odd], s=22, color=ACCENT, linewidths=0, zorder=3)
    name_largest(ax, first, true, [found.names[place] for place in drawn], mark)
    ax.set_xlim(0, high)
    ax.set_ylim(0, high)
    label_axes(ax, _FIRST_ORDER, f"{_DISTANCE}, true deletion")
    return [f"{int(odd.sum()):,} disagree materially"]
