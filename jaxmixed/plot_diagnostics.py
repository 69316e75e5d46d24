"""The panel of diagnostic pictures. matplotlib is imported when it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmixed.plot_style import given_panels, new_panels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_COLUMNS, _MOST_EFFECTS = 3, 2
_PANEL = (3.8, 3.3)


def effects_shown(effects: dict[str, pd.DataFrame]) -> list[tuple[str, str]]:
    """The effects whose quantiles the panel shows: the first of each grouping, then others.

    Examples
    --------
    >>> import pandas as pd
    >>> effects_shown({"g": pd.DataFrame(columns=["(Intercept)", "x"]), "h": pd.DataFrame(columns=["z"])})
    [('g', '(Intercept)'), ('h', 'z')]
    """
    ranked = [
        (place, label, str(name)) for label, t in effects.items() for place, name in enumerate(t.columns)
    ]
    return [(label, name) for _, label, name in sorted(ranked, key=lambda item: item[0])][:_MOST_EFFECTS]


def draw_panel(parts: list[Callable[[Axes], Axes]], axes: Any) -> np.ndarray:
    """Pictures side by side.

    Parameters
    ----------
    parts : list of callable
        Each draws on the axes that it gets.
    axes : array_like of Axes, optional
        One for each; by default those of a new figure.

    Returns
    -------
    (len(parts),) array of Axes
    """
    count = len(parts)
    if axes is None:
        panels = new_panels(count, _COLUMNS, _PANEL)[1]
    else:
        panels = given_panels(axes, count, f"the diagnostics of this model need {count}")
    for draw, ax in zip(parts, panels, strict=True):
        draw(ax)
    return panels
