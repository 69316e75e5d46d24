"""How far each group's prediction is drawn from its own estimate towards the population."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from jaxmixed.crossproducts import project_out
from jaxmixed.errors import DataError, listed, printable
from jaxmixed.formatting import counted
from jaxmixed.patterns import stable_order
from jaxmixed.plot_style import (
    ACCENT,
    DASHES,
    LINE,
    MOST_POINTS,
    QUIET,
    STRONG,
    WIDE,
    dress,
    entitle,
    label_axes,
    legend_beside,
    new_axes,
    scatter,
    short,
    zero_line,
)
from jaxmixed.predict import fitted_values, group_contribution

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from jaxmixed.estimates import Estimates
    from jaxmixed.frame import ModelFrame

_MOST_NAMED, _MOST_HEADED = 24, 300
_FLAT = 1e-6
_FENCE = 3.0
"""Own estimates so many interquartile ranges beyond the quartiles do not widen the picture."""


class OwnEstimates(NamedTuple):
    """Estimates of the groups from their own rows alone, beside their predictions.

    Attributes
    ----------
    levels : pandas.Index
        The m groups.
    names : tuple of str
        The q effects, of all terms for the grouping.
    own : (m, q) array
        By least squares within the group, as deviations from the population; NaN where a group's rows do not
        determine all of them.
    predicted : (m, q) array
        Predicted random effects.
    population : (q,) array
        Fixed coefficient of each effect; zero where it has none.
    """

    levels: pd.Index
    names: tuple[str, ...]
    own: np.ndarray
    predicted: np.ndarray
    population: np.ndarray


def own_estimates(
    frame: ModelFrame, estimates: Estimates, modes: Sequence[np.ndarray], label: str
) -> OwnEstimates:
    """Least squares within every group of a grouping, given all else in the model.

    The response less the fixed part and less the predicted effects of the other groupings is regressed on the
    random-effects columns, group by group, with the weights of the fit: what the prediction would be if the
    variances of the effects were without bounds.

    Parameters
    ----------
    frame : ModelFrame
    estimates : Estimates
    modes : sequence of (m, q) arrays
        Predicted random effects, term by term.
    label : str
        The grouping.

    Returns
    -------
    OwnEstimates
    """
    own = [k for k, term in enumerate(estimates.terms) if term.group == label]
    designs = [frame.groups[estimates.terms[k].frame_index] for k in own]
    codes, levels = designs[0].codes, designs[0].levels
    Z = np.concatenate([design.Z for design in designs], axis=1)
    rest = frame.y - fitted_values(frame, estimates, modes)
    for k, design in zip(own, designs, strict=True):
        rest += group_contribution(design.Z, codes, modes[k])
    if frame.weights is not None:
        root = np.sqrt(frame.weights)
        Z, rest = Z * root[:, None], rest * root
    names = tuple(name for k in own for name in estimates.terms[k].names)
    beta = dict(zip(frame.x_names, np.nan_to_num(estimates.beta), strict=True))
    return OwnEstimates(
        levels,
        names,
        _least_squares(Z, rest, codes, len(levels)),
        np.concatenate([modes[k] for k in own], axis=1),
        np.array([beta.get(name, 0.0) for name in names]),
    )


def _least_squares(Z: np.ndarray, y: np.ndarray, codes: np.ndarray, num_levels: int) -> np.ndarray:
    """Coefficients (m, q) of y on Z within each group, NaN where they are not determined."""
    order = stable_order(codes, num_levels)
    sizes = np.bincount(codes, minlength=num_levels)
    present = np.flatnonzero(sizes)
    sizes = sizes[present]
    R, cross, _ = project_out(Z[order], y[order, None].copy(), np.cumsum(sizes) - sizes, sizes)
    q = Z.shape[1]
    solved = np.zeros((q, len(present)))
    for a in reversed(range(q)):
        right = cross[a, 0] - np.sum(R[a, a + 1 :] * solved[a + 1 :], axis=0)
        solved[a] = np.divide(right, R[a, a], out=np.full(len(present), np.nan), where=R[a, a] > 0)
    found = np.full((num_levels, q), np.nan)
    # A column that is not determined leaves what stands before it undetermined, but not what follows.
    found[present] = np.where(np.isfinite(solved).all(axis=0), solved, np.nan).T
    return found


def draw_shrinkage(
    found: OwnEstimates, label: str, effects: str | Sequence[str] | None, ax: Axes | None
) -> Axes:
    """Own estimates and predictions: two effects with arrows, or one effect against the other estimate.

    Parameters
    ----------
    found : OwnEstimates
    label : str
        The grouping.
    effects : str or pair of str, optional
        By default the first two effects, or the only one.
    ax : Axes, optional

    Returns
    -------
    Axes
    """
    columns = _choose_effects(found.names, label, effects)
    complete = np.isfinite(found.own).all(axis=1)
    if not complete.any():
        raise DataError(
            f"no level of {printable(label)} has rows enough for estimates of its own of"
            f" {listed(found.names)}"
        )
    ax = new_axes(WIDE) if ax is None else ax
    own, predicted = found.own[np.ix_(complete, columns)], found.predicted[np.ix_(complete, columns)]
    facts = [counted(len(own), "group")]
    if not complete.all():
        facts.append(f"{(~complete).sum():,} without an own estimate left out")
    names = [found.names[column] for column in columns]
    if len(columns) == 1:
        facts.append(_draw_one(ax, own[:, 0], predicted[:, 0]))
        entitle(ax, f"{short(label)}: {printable(names[0])}", facts)
        return ax
    population = found.population[columns]
    labels = [short(level) for level in found.levels[complete]] if len(own) <= _MOST_NAMED else []
    facts.append(_draw_arrows(ax, own + population, predicted + population, population, labels))
    entitle(ax, f"{short(label)}: shrinkage", facts)
    label_axes(ax, *(short(name) for name in names))
    return ax


def _choose_effects(names: tuple[str, ...], label: str, effects: str | Sequence[str] | None) -> list[int]:
    if effects is None:
        return list(range(min(2, len(names))))
    asked = [effects] if isinstance(effects, str) else list(effects)
    unknown = [name for name in asked if name not in names]
    if unknown:
        raise DataError(
            f"{printable(label)} has no random effect {printable(unknown[0])!r}; it has {listed(names)}"
        )
    if len(asked) not in (1, 2) or len(set(asked)) < len(asked):
        raise DataError(f"effects= names {len(asked)} effects; the plot shows one, or two different ones")
    return [names.index(name) for name in asked]


def _limits(own: np.ndarray, predicted: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Range that shows all predictions and the own estimates that are not far out, and which of these are."""
    low, high = np.quantile(own, [0.25, 0.75])
    reach = _FENCE * (high - low)
    far = (own < low - reach) | (own > high + reach)
    shown = np.concatenate([own[~far], predicted])
    margin = 0.06 * (float(np.ptp(shown)) or 1.0)
    start, end = float(shown.min()) - margin, float(shown.max()) + margin
    return start, end, (own < start) | (own > end)


def _beyond(count: int) -> str:
    return f"{count:,} own estimates beyond the frame" if count > 1 else "1 own estimate beyond the frame"


def _draw_one(ax: Axes, own: np.ndarray, predicted: np.ndarray) -> str:
    """Predictions against own estimates of one effect, with the line of no shrinkage."""
    start, end, beyond = _limits(own, predicted)
    # The line of no shrinkage is steeper than the points: it is cut where they end.
    counts = scatter(ax, own[~beyond], predicted[~beyond])
    zero_line(ax)
    ends = np.array([max(start, predicted.min()), min(end, predicted.max())])
    ax.plot(ends, ends, color=LINE, linewidth=1.0, linestyle=DASHES, zorder=3, label="no shrinkage")
    ax.set_xlim(start, end)
    if np.ptp(predicted) < _FLAT * (end - start):  # no variance: rounding would fill the picture
        ax.set_ylim((start - end) / 8, (end - start) / 8)
    label_axes(ax, "Own estimate: least squares within the group", "Predicted random effect")
    dress(ax)
    legend_beside(ax)
    return ", ".join(text for text in (counts, _beyond(beyond.sum()) if beyond.any() else "") if text)


def _draw_arrows(
    ax: Axes, own: np.ndarray, predicted: np.ndarray, population: np.ndarray, labels: list[str]
) -> str:
    """An arrow for each group from its own estimate to the prediction."""
    many, m = len(own) > _MOST_HEADED, len(own)
    alpha = 0.25 if m > 2_000 else 0.5 if many else 0.9
    ax.quiver(
        *own.T,
        *(predicted - own).T,
        angles="xy",
        scale_units="xy",
        scale=1,
        color=QUIET.line,
        alpha=alpha,
        width=0.0012 if many else 0.0022,
        headwidth=0 if many else 5,
        headlength=0 if many else 6,
        headaxislength=0 if many else 5,
        zorder=2,
        rasterized=m > MOST_POINTS,
    )
    size = 22 if m <= _MOST_NAMED else 12 if not many else 4
    ax.scatter(
        own[:, 0], own[:, 1], s=size, facecolors="none" if not many else QUIET.band, zorder=2.5,
        edgecolors=QUIET.point, linewidths=0.9 if not many else 0.0, label="own estimate",
    )  # fmt: skip
    ax.scatter(
        predicted[:, 0],
        predicted[:, 1],
        s=size,
        color=STRONG.point,
        linewidths=0,
        zorder=3,
        label="predicted",
    )
    ax.scatter(
        population[0],
        population[1],
        s=70,
        marker="+",
        color=ACCENT,
        linewidths=2.0,
        zorder=5,
        label="population",
    )
    for text, place in zip(labels, own, strict=False):
        ax.annotate(
            text, place, xytext=(4, 3), textcoords="offset points", fontsize="x-small", color=LINE,
            parse_math=False, annotation_clip=True,
        )  # fmt: skip
    left, right, beside = _limits(own[:, 0], predicted[:, 0])
    low, high, beyond = _limits(own[:, 1], predicted[:, 1])
    ax.set_xlim(left, right)
    ax.set_ylim(low, high)
    outside = beside | beyond
    dress(ax)
    legend_beside(ax)
    return _beyond(outside.sum()) if outside.any() else ""
