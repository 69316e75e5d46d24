"""Pictures of a fit. matplotlib is imported when a plot is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import pandas as pd

from jaxmixed.checking_plots import CheckedFit, CheckingPlots
from jaxmixed.effects import Beta
from jaxmixed.errors import DataError
from jaxmixed.group_plots import GroupPlots
from jaxmixed.plot_effects import choose_group, draw_caterpillar, draw_pairs, figure_size
from jaxmixed.plot_margins import FitWithMeans, draw_margins

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from jaxmixed.fixed_inference import FixedInference
    from jaxmixed.influence import Influence, InfluenceMethod
    from jaxmixed.plot_influence import InfluencePlot
    from jaxmixed.profiles import PlotKind, Profile


class _Fit(CheckedFit, FitWithMeans, Protocol):
    """What the plots need of a fit."""

    def ranef(self) -> dict[str, pd.DataFrame]:
        """Predicted random effects."""

    def ranef_se(self, beta: Beta = "known") -> dict[str, pd.DataFrame]:
        """Their standard errors."""

    def comparison_intervals(
        self,
        group: str | None = None,
        effect: str | None = None,
        *,
        at: Mapping[str, float] | None = None,
        level: float = 0.95,
        beta: Beta = "estimated",
    ) -> pd.DataFrame:
        """Intervals for comparing two levels."""

    def profile(self, which: Any = None, level: float = 0.999) -> Profile:
        """Profile likelihoods."""

    def influence(self, cases: Any = "rows", method: InfluenceMethod = "both") -> Influence:
        """Influence of rows or groups."""


@dataclass(frozen=True, slots=True)
class Plots(CheckingPlots, GroupPlots):
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
        sort: bool = True,
        intervals: Literal["single", "comparison"] = "single",
        ax: Axes | None = None,
    ) -> Axes:
        """Predicted random effects in order, with intervals: which groups stand out.

        Up to 60 levels are drawn one to a line with their names; more of them from left to right by rank.
        Intervals that exclude zero are dark. They are for one level at a time; those for comparing two levels
        are shorter.

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
        sort
            From the smallest effect to the largest; False: in the order of the levels.
        intervals
            ``"single"``: for one level at a time. ``"comparison"``: for comparing two levels, which differ
            where their intervals do not overlap (see `MixedResults.comparison_intervals`).
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
        effects, errors = self.fit.ranef(), self.fit.ranef_se(beta)
        if intervals not in ("single", "comparison"):
            raise DataError(f"intervals is {intervals!r}; they are 'single', or for 'comparison'")
        factor = None
        if intervals == "comparison" and effects:
            table = self.fit.comparison_intervals(group, effect, level=level, beta=beta)
            factor = float(table.attrs["factor"])
        return draw_caterpillar(effects, errors, group, effect, level, sort, ax, factor)

    def pairs(
        self,
        group: str | None = None,
        effects: tuple[str, str] | None = None,
        *,
        ax: Axes | None = None,
    ) -> Axes:
        """Predicted random effects of two kinds against each other, a point for each level.

        The dashed ellipse would hold half of the true effects under the estimated covariance; predicted
        effects are shrunken, so that more of them lie within.

        Parameters
        ----------
        group
            Grouping; by default the one with the fewest levels among those with several effects.
        effects
            Names of two effects; by default the first two.
        ax
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> ax = fit.plot.pairs()
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('(Intercept)', 'Days')
        """
        return draw_pairs(self.fit.ranef(), self._covariance, group, effects, ax)

    def _covariance(self, group: str, first: str, second: str) -> np.ndarray:
        """Estimated covariance matrix of two effects of a grouping; those of different terms have none."""
        found = np.zeros((2, 2))
        for term in self.fit.estimates.terms:
            own = [i for i, name in enumerate((first, second)) if term.group == group and name in term.names]
            at = [term.names.index((first, second)[i]) for i in own]
            found[np.ix_(own, own)] = term.cov[np.ix_(at, at)]
        return found

    def margins(
        self,
        x: str,
        by: str | Sequence[str] | None = None,
        slope: str | None = None,
        *,
        at: Mapping[str, Any] | None = None,
        weights: str = "equal",
        level: float = 0.95,
        ddf: str = "satterthwaite",
        vcov: FixedInference | None = None,
        ax: Axes | None = None,
    ) -> Axes:
        """Marginal means along a column, with pointwise bands: what the fixed part predicts.

        Means as of `MixedResults.emmeans`: other numbers at their means, averaged over the levels of other
        factors. A number has a line, with ticks at the bottom where the data are, a factor a point and an
        interval for each level.

        Parameters
        ----------
        x
            Column of the fixed part.
        by
            Columns whose levels have lines of their own; a number with more than five values has three
            lines, at its mean and a standard deviation to either side.
        slope
            Numeric column: marginal slopes in it (`MixedResults.emtrends`) instead of means.
        at
            Values of columns, `x` and `by` included.
        weights, level, ddf, vcov
            As for `MixedResults.emmeans`.
        ax
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("yield ~ Variety * nitro + (1 | Block)", jm.datasets.load("oats"))
        >>> ax = fit.plot.margins("nitro", by="Variety")
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['Golden Rain', 'Marvellous', 'Victory']
        """
        return draw_margins(self.fit, x, by, slope, at, weights, level, ddf, vcov, ax)

    def influence(
        self,
        cases: Any = "rows",
        kind: InfluencePlot = "index",
        *,
        method: InfluenceMethod = "approximate",
        mark: int = 5,
        ax: Axes | None = None,
    ) -> Axes:
        """Influence of rows or groups on the coefficients.

        Of more than 5,000 cases the most influential 5,000 are drawn (1,000 as bubbles). A fit's `influence`
        gives the numbers behind the picture, and draws it, too.

        Parameters
        ----------
        cases
            ``"rows"``, a grouping, e.g. ``"school"``, or values; as for `MixedResults.influence`.
        kind
            ``"index"``: Cook's distance of every case, in order; the dashed line is at 4 / cases.
            ``"bubble"``: residuals against leverages, the area in proportion to Cook's distance.
            ``"agreement"``: true deletion against its first order (with ``method="both"``).
        method
            ``"approximate"``: to first order. ``"deletion"``: by fits without each case. ``"both"``: these,
            with a ring around the cases where the first order misleads.
        mark
            How many of the most influential cases carry their names.
        ax
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.plot.influence("Subject").get_title(loc="left").strip()
        'Influence of Subject'
        """
        return self.fit.influence(cases, method).plot(kind, mark=mark, ax=ax)

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


def save_caterpillar(fit: _Fit, path: Path, level: float) -> None:
    """Write the default caterpillar plot to a file, without a window or a display."""
    from matplotlib.figure import Figure

    tables = fit.ranef()
    figure = Figure(figsize=figure_size(len(tables[choose_group(tables, None)])), layout="constrained")
    Plots(fit).caterpillar(level=level, ax=figure.add_subplot())
    figure.savefig(path, dpi=200)
