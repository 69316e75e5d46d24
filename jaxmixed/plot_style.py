"""What all pictures share: colours, axes, titles, names, and points with a smoother. matplotlib is optional.

Quiet greys for what is expected, one blue for what is found; no frame above and to the right; what is drawn
stands in bold at the left of the title, how it was made in small letters at the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from jaxmixed.errors import DataError, JaxMixedError, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE, GRID = "#555555", "#e6e6e6"
"""Colours of reference lines and small print, and of the grid."""

CURVE, BAND = "#0b4f8a", "#8fb8dc"
"""Colours of what is estimated, and of its intervals."""

ACCENT = "#c8553d"
"""Colour of what needs to be seen on top of blue: smoothers, levels named."""

PALETTE = (CURVE, ACCENT, "#3f7d4e", "#7a4f9a", "#b07d12", "#4f6d7a", "#9c3f6e", "#6b6b2a")
"""Colours of lines that stand for the levels of a factor."""

DASHES = (0, (4, 3))
SIZE, WIDE = (6.8, 4.2), (8.2, 4.2)
"""Inches of a picture of one panel, without and with a legend beside it."""

MOST_POINTS, MOST_COLUMNS = 10_000, 3
_MAX_LABEL = 28
_BOLD_CHARACTER, _SMALL_CHARACTER = 0.105, 0.062  # inches, roughly


class Colours(NamedTuple):
    """Colours of points, of intervals, and of the band of intervals too close to tell apart."""

    point: str
    line: str
    band: str


QUIET = Colours("#7f95ab", "#9fb3c8", "#d3dde7")
STRONG = Colours(CURVE, CURVE, BAND)


def short(value: object) -> str:
    """A name or a value as a label: printable, of at most 28 characters.

    Examples
    --------
    >>> short(0.1 + 0.2), short("a" * 40)[-3:]
    ('0.3', 'aa…')
    """
    text = f"{value:.12g}" if isinstance(value, float) else printable(value)
    return text if len(text) <= _MAX_LABEL else text[: _MAX_LABEL - 1] + "…"


def percent(level: float) -> str:
    """A level of confidence: ``95%``."""
    return f"{100 * level:.12g}%"


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot as plt
    except ImportError:
        raise JaxMixedError("plots need matplotlib: pip install 'jaxmixed[plot]'") from None
    return plt


def new_axes(size: tuple[float, float] = SIZE) -> Axes:
    """Axes of a new figure of pyplot's.

    Parameters
    ----------
    size : (float, float)
        Width and height in inches.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    JaxMixedError
        If matplotlib is not installed.
    """
    return _pyplot().subplots(figsize=size, layout="constrained")[1]


def new_panels(
    count: int, columns: int, panel: tuple[float, float], room: tuple[float, float] = (0.0, 0.0)
) -> tuple[Figure, np.ndarray]:
    """A new figure with panels of equal size, row by row.

    Parameters
    ----------
    count, columns : int
    panel : (float, float)
        Width and height of a panel in inches.
    room : (float, float)
        Inches added to the figure, and below which its width does not fall.

    Returns
    -------
    figure : matplotlib.figure.Figure
    panels : (count,) array of Axes
    """
    columns = min(count, columns)
    rows = -(-count // columns)
    width, height = max(panel[0] * columns, room[1]) + room[0], panel[1] * rows + room[0]
    figure, panels = _pyplot().subplots(
        rows, columns, figsize=(width, height), layout="constrained", squeeze=False
    )
    panels = panels.ravel()
    for empty in panels[count:]:
        empty.remove()
    return figure, np.asarray(panels[:count])


def given_panels(axes: Any, count: int, need: str) -> np.ndarray:
    """The axes that the caller gave, as many as there are panels.

    Parameters
    ----------
    axes : array_like of Axes
    count : int
    need : str
        End of the error message: ``"the profile needs 4, one for each parameter"``.

    Returns
    -------
    (count,) array of Axes

    Raises
    ------
    DataError
        If there are fewer.
    """
    found = np.atleast_1d(np.asarray(axes, dtype=object)).ravel()
    if len(found) < count:
        raise DataError(f"axes= has {len(found)} axes; {need}")
    return found[:count]


def dress(ax: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """The grid behind what is drawn, no frame above and to the right."""
    ax.grid(axis=grid, color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def entitle(ax: Axes, subject: str, facts: str | Sequence[str] = "") -> None:
    """Title: the subject in bold at the left, in small letters at the right how it was made.

    Parameters
    ----------
    ax : Axes
    subject : str
        Printable; no mathematics is parsed in it.
    facts : str or sequence of str
        Empty ones are left out. They stand on lines of their own where both do not fit beside each other.
    """
    text = facts if isinstance(facts, str) else ", ".join(fact for fact in facts if fact)
    room = ax.bbox.width / ax.figure.dpi
    if len(subject) * _BOLD_CHARACTER + (len(text) + 3) * _SMALL_CHARACTER > room:
        lines = wrap(text, max(20, int(room / _SMALL_CHARACTER)))
        text, subject = "\n".join(lines), subject + "\n" * len(lines)
    ax.set_title(subject, loc="left", fontweight="bold", parse_math=False)
    ax.set_title(text, loc="right", fontsize="small", color=LINE, parse_math=False)


def label_axes(ax: Axes, x: str, y: str) -> None:
    """Names of the axes; columns may have dollar signs in their names."""
    ax.set_xlabel(x, parse_math=False)
    ax.set_ylabel(y, parse_math=False)


def legend_beside(ax: Axes, title: str | None = None) -> None:
    """Legend to the right of the axes."""
    box = ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0), title=title)
    box.get_title().set(fontsize="small", color=LINE, parse_math=False)
    for text in box.get_texts():
        text.set_parse_math(False)


def zero_line(ax: Axes, zorder: float = 1) -> None:
    """A line across at zero."""
    ax.axhline(0, color=LINE, linewidth=0.9, zorder=zorder)


def scatter(ax: Axes, x: np.ndarray, y: np.ndarray) -> str:
    """Points, smaller and paler the more there are; above `MOST_POINTS` as counts in hexagons.

    Parameters
    ----------
    ax : Axes
    x, y : (n,) arrays

    Returns
    -------
    str
        What to say of it in the title; empty for points.
    """
    n = len(x)
    if n > MOST_POINTS:
        from matplotlib.colors import LinearSegmentedColormap

        shades = LinearSegmentedColormap.from_list("counts", [QUIET.band, STRONG.band, CURVE])
        ax.hexbin(x, y, gridsize=(60, 36), bins="log", mincnt=1, cmap=shades, linewidths=0.1, zorder=2)
        return f"{n:,} rows, counted in hexagons"
    size, alpha = (16.0, 0.8) if n <= 300 else (9.0, 0.55) if n <= 2000 else (4.0, 0.35)
    ax.scatter(x, y, s=size, color=QUIET.point, alpha=alpha, linewidths=0, zorder=2, rasterized=n > 5000)
    return ""


def name_largest(
    ax: Axes,
    x: np.ndarray,
    y: np.ndarray,
    names: Sequence[object],
    count: int,
    by: np.ndarray | None = None,
    radius: np.ndarray | None = None,
) -> None:
    """Names of the points with the largest values, but for those that would lie on another's.

    Parameters
    ----------
    ax : Axes
    x, y : (n,) arrays
    names : sequence
        Of each point.
    count : int
    by : (n,) array, optional
        What is largest; by default `y`, in size.
    radius : (n,) array, optional
        Of points that are drawn large, beside which the names stand; in points.
    """
    if count <= 0 or not len(x):
        return
    low, high = x.min(), x.max()
    near_x, near_y = 0.15 * (high - low), 0.05 * (y.max() - y.min())
    placed: list[int] = []
    for row in np.argsort(-np.abs(y if by is None else by), kind="stable")[:count].tolist():
        if any(abs(x[row] - x[i]) <= near_x and abs(y[row] - y[i]) <= near_y for i in placed):
            continue
        placed.append(row)
        side = "left" if x[row] <= (low + high) / 2 else "right"
        away = 4.0 if radius is None else 2.0 + float(radius[row])
        ax.annotate(
            short(names[row]),
            (x[row], y[row]),
            xytext=(away if side == "left" else -away, 0),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize="x-small",
            color=LINE,
            parse_math=False,
            zorder=5,
        )


def draw_smoother(ax: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """The curve of :func:`local_means` on top of the points, where x has enough values for one."""
    grid, values = local_means(x, y)
    if len(grid) >= _FEWEST_VALUES:
        ax.plot(grid, values, color=ACCENT, linewidth=1.8, zorder=4)


_FEWEST_VALUES = 4  # of x: below, a curve would show less than the points
_SPAN, _ROUNDS, _GRID_POINTS, _MOST_SMOOTHED = 2 / 3, 3, 100, 20_000


def local_means(x: np.ndarray, y: np.ndarray, span: float = _SPAN) -> tuple[np.ndarray, np.ndarray]:
    """Robust locally linear regression of y on x (LOWESS).

    At each of up to about 100 values of x spread over its range, a line is fitted to the nearest part `span`
    of the points with tricube weights; three further rounds give points with large residuals little weight.
    Costs O(n) for each value. Beyond 20,000 points every k-th in the order of x is taken.

    Parameters
    ----------
    x, y : (n,) arrays
    span : float
        Part of the points that each line rests on.

    Returns
    -------
    grid, values : (g,) arrays
        In rising order; between them the curve is straight.

    References
    ----------
    Cleveland (1979), Robust locally weighted regression and smoothing scatterplots, Journal of the American
    Statistical Association 74(368), 829-836.

    Examples
    --------
    >>> grid, values = local_means(np.arange(10.0), 2 * np.arange(10.0) + 1)
    >>> values[:3].round(6).tolist()
    [1.0, 3.0, 5.0]
    """
    order = np.argsort(x, kind="stable")
    order = order[:: -(-len(order) // _MOST_SMOOTHED)]
    x, y = np.asarray(x, dtype=np.float64)[order], np.asarray(y, dtype=np.float64)[order]
    grid = _spread_values(x)
    near = max(2, min(len(x), int(span * len(x) + 1e-7)))
    robust = np.ones(len(x))
    values = np.zeros(len(grid))
    for _ in range(_ROUNDS + 1):
        values = np.array([_local_line(point, x, y, robust, near) for point in grid])
        errors = np.abs(y - np.interp(x, grid, values))
        limit = 6 * float(np.median(errors))
        if limit < 1e-7 * float(errors.mean()) or not limit:
            break
        robust = np.maximum(1 - (errors / limit) ** 2, 0.0) ** 2
    return grid, values


def _spread_values(x: np.ndarray) -> np.ndarray:
    """Distinct values of x (sorted), or those next to as many points spread evenly over its range."""
    distinct = x[np.flatnonzero(np.diff(x, prepend=-np.inf) > 0)]
    if len(distinct) <= _GRID_POINTS:
        return distinct
    even = np.linspace(distinct[0], distinct[-1], _GRID_POINTS)
    return distinct[np.unique(np.minimum(np.searchsorted(distinct, even), len(distinct) - 1))]


def _local_line(point: float, x: np.ndarray, y: np.ndarray, robust: np.ndarray, near: int) -> float:
    """Value at a point of the line through its neighbours."""
    left, right = _nearest(x, point, near)
    reach = max(point - x[left], x[right - 1] - point)
    if reach == 0:  # more points at this very value than asked for: all of them
        left, right = int(np.searchsorted(x, point, "left")), int(np.searchsorted(x, point, "right"))
    x_near, y_near, weights = x[left:right], y[left:right], robust[left:right]
    if reach > 0:
        distance = np.abs(x_near - point) / reach
        fall = 1 - distance * distance * distance
        weights = weights * (fall * fall * fall)
    total = weights.sum()
    if not total > 0:  # all neighbours are outliers
        return float(np.median(y_near))
    weights = weights / total
    mean, height = _dot(weights, x_near), _dot(weights, y_near)
    centred = x_near - mean
    sloped = weights * centred
    spread = _dot(sloped, centred)
    if np.sqrt(spread) <= 1e-3 * (x[-1] - x[0]):
        return height
    return height + (point - mean) * _dot(sloped, y_near) / spread


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """Product of two vectors without BLAS, whose threads would wait for each other at every call."""
    return float(np.einsum("i,i->", a, b))


def _nearest(x: np.ndarray, point: float, count: int) -> tuple[int, int]:
    """Slice of the ``count`` values of sorted x that are nearest to a point."""
    low, high = 0, len(x) - count
    while low < high:  # the first window that would not gain by moving one to the right
        middle = (low + high) // 2
        if x[middle + count] - point < point - x[middle]:
            low = middle + 1
        else:
            high = middle
    return low, low + count
