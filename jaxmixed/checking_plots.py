"""Plots of a fit that check its assumptions: methods of `Plots`. matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from jaxmixed.envelopes import (
    Replicates,
    check_simulations,
    quantile_plot,
    replicated,
    replicated_modes,
    replicated_residuals,
)
from jaxmixed.errors import DataError, listed, printable
from jaxmixed.plot_correlations import draw_autocorrelation, draw_variogram
from jaxmixed.plot_diagnostics import draw_panel, effects_shown
from jaxmixed.plot_effects import choose_effect, draw_caterpillar
from jaxmixed.plot_qq import draw_quantiles
from jaxmixed.plot_residuals import draw_residuals, draw_scale_location
from jaxmixed.plot_style import short
from jaxmixed.residual_correlation import FittedRows, autocorrelation, variogram
from jaxmixed.weighted_samples import is_pseudo_likelihood

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class CheckedFit(FittedRows, Protocol):
    """What these plots need of a fit."""

    def residuals(self, kind: str = "response", random: bool | str = True) -> pd.Series:
        """Residuals of the rows used."""

    def predict(self, newdata: Any = None, random: bool | str = True) -> pd.Series:
        """Predictions of the rows used."""

    def ranef(self) -> dict[str, pd.DataFrame]:
        """Predicted random effects."""

    def ranef_se(self, beta: Any = "known") -> dict[str, pd.DataFrame]:
        """Their standard errors."""


class CheckingPlots:
    """Methods of `Plots` about residuals and about the distribution of random effects."""

    __slots__ = ()

    fit: CheckedFit

    def residuals(
        self,
        kind: str = "standardized",
        random: bool | str = True,
        *,
        mark: int = 3,
        ax: Axes | None = None,
    ) -> Axes:
        """Residuals against fitted values, with a smoother: is the mean right, are there outliers.

        The red curve is a robust locally linear regression (LOWESS, span 2/3); where the mean is right it
        stays near zero. Beyond 10,000 rows counts in hexagons stand for the points.

        Parameters
        ----------
        kind
            Kind of residuals; see `MixedResults.residuals`.
        random
            True: conditional residuals against conditional fitted values; False: marginal ones against
            population predictions; a grouping: down to that level. Scaled residuals, which are made from
            marginal ones, stand against population predictions.
        mark
            How many of the largest residuals carry the label of their row.
        ax
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.plot.residuals().get_ylabel()
        'Standardized residual'
        """
        values = self.fit.residuals(kind, random)
        scaled = kind == "scaled"
        fitted = self.fit.predict(random=random and not scaled)
        known = values.notna()
        if scaled:
            subject = "Scaled residuals"
        elif isinstance(random, str):
            subject = f"Residuals within {short(random)}"
        else:
            subject = "Conditional residuals" if random else "Marginal residuals"
        what = f"{kind.capitalize()} residual"
        return draw_residuals(fitted[known].to_numpy(), values[known], what, subject, mark, ax)

    def scale_location(self, *, mark: int = 3, ax: Axes | None = None) -> Axes:
        """Roots of absolute standardized residuals against fitted values: is the residual spread constant.

        A red curve (LOWESS) that rises or falls, away from the dashed median, shows a spread that changes
        with the mean.

        Parameters
        ----------
        mark
            How many of the largest residuals carry the label of their row.
        ax
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        References
        ----------
        Cleveland (1993), Visualizing Data, section 3.1 (spread-location plots).

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.plot.scale_location().get_xlabel()
        'Fitted value'
        """
        values = self.fit.residuals("standardized")
        return draw_scale_location(self.fit.predict().to_numpy(), values, mark, ax)

    def qq(
        self,
        what: str = "residuals",
        effect: str | None = None,
        *,
        level: float = 0.95,
        simulations: int | None = None,
        seed: int = 1,
        ax: Axes | None = None,
    ) -> Axes:
        """Normal quantile plot of residuals or of predicted random effects, with a simulated envelope.

        The band is simulated from the fitted model: responses are drawn, and their fixed effects, random
        effects and sigma estimated at the fitted relative variances, so that the band shows what shrinkage,
        groups of unequal size and estimation do to the distribution; the line is the median of the
        simulations. The band is pointwise: each point lies within it with probability `level` where the model
        is right, all points together with a smaller one. As the relative variances are not estimated anew for
        each response, the scale of random effects varies a little more than it would otherwise.

        Parameters
        ----------
        what
            ``"residuals"`` (standardized conditional residuals, whitened where they are correlated), or a
            grouping, for its random effects.
        effect
            Effect of the grouping; by default the intercept, or the first effect where there is none.
        level
            Level of the band.
        simulations
            Simulated responses: by default 119, of more than 50,000 rows 39; 0 for none, with the line
            through the quartiles instead.
        seed
            Of the simulations: the picture is the same at each call.
        ax
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.plot.qq("Subject", "Days").get_ylabel()
        'Predicted random effect'
        """
        count = check_simulations(simulations, len(self.fit.frame.y), self.fit.frame.sampling is not None)
        replicates = replicated(self.fit, count, seed) if count else None
        return self._quantiles(what, effect, level, replicates, ax)

    def _quantiles(
        self, what: str, effect: str | None, level: float, replicates: Replicates | None, ax: Axes | None
    ) -> Axes:
        drawn: Iterable[np.ndarray] | None = None
        if what == "residuals":
            if effect is not None:
                raise DataError(f"effect={effect!r} is of a grouping: pass its name as what=")
            values = self.fit.residuals("normalized").to_numpy()
            if replicates is not None:
                drawn = replicated_residuals(self.fit, replicates)
            correlated = self.fit.estimates.residual is not None
            name = "Normalized residual" if correlated else "Standardized residual"
            return draw_quantiles(quantile_plot(values, drawn, level), name, "Residuals", level, ax)
        effects = self.fit.ranef()
        if what not in effects:
            known = listed(["residuals", *effects])
            raise DataError(f"what is {what!r}; quantiles are of {known}")
        name = choose_effect(effects[what], what, effect)
        if replicates is not None:
            drawn = replicated_modes(replicates, *self._place(what, name))
        found = quantile_plot(effects[what][name].to_numpy(), drawn, level)
        return draw_quantiles(found, "Predicted random effect", f"{short(what)}: {short(name)}", level, ax)

    def _place(self, label: str, name: str) -> tuple[int, int]:
        """Term of an effect, and its position in the term."""
        for position, term in enumerate(self.fit.estimates.terms):
            if term.group == label and name in term.names:
                return position, term.names.index(name)
        raise DataError(f"{printable(label)} has no random effect {name!r}")

    def autocorrelation(
        self,
        group: Any = None,
        time: Any = None,
        *,
        max_lag: int | None = None,
        level: float = 0.95,
        simulations: int | None = None,
        seed: int = 1,
        ax: Axes | None = None,
    ) -> Axes:
        """Autocorrelation of residuals within groups, by lag: do neighbours in time resemble each other.

        The numbers and the limits are those of `MixedResults.autocorrelation`. What lies outside the shaded
        limits is dark.

        Parameters
        ----------
        group, time, max_lag, level, simulations, seed
            As for `MixedResults.autocorrelation`.
        ax
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.plot.autocorrelation(time="Days").get_xlabel()
        'Lag (Days)'
        """
        found = autocorrelation(self.fit, group, time, max_lag, level, simulations, seed)
        return draw_autocorrelation(found, ax)

    def variogram(
        self,
        x: Any = None,
        group: Any = None,
        *,
        max_distance: float | None = None,
        bins: int = 20,
        level: float = 0.95,
        simulations: int | None = None,
        seed: int = 1,
        ax: Axes | None = None,
    ) -> Axes:
        """Semivariogram of residuals within groups, by distance in time or in another number.

        The numbers and the limits are those of `MixedResults.variogram`. Where the model is right the line
        stays within the shaded limits; residuals of close rows that resemble each other make it rise.

        Parameters
        ----------
        x, group, max_distance, bins, level, simulations, seed
            As for `MixedResults.variogram`.
        ax
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.plot.variogram("Days").get_xlabel()
        'Distance (Days)'
        """
        found = variogram(self.fit, x, group, max_distance, bins, level, simulations, seed)
        return draw_variogram(found, ax)

    def diagnostics(
        self,
        *,
        level: float = 0.95,
        simulations: int | None = None,
        seed: int = 1,
        axes: Any = None,
    ) -> np.ndarray:
        """The pictures to look at after every fit, in one panel.

        Residuals against fitted values, their spread against fitted values, their quantiles; quantiles of up
        to two random effects (the first of each grouping, then others), and the caterpillar plot of the
        grouping with the fewest levels (not with sampling weights, where predictions have no errors). A
        linear model has the first three.

        Parameters
        ----------
        level
            Level of the bands and intervals.
        simulations, seed
            Of the envelopes; see `qq`.
        axes
            One for each picture; by default those of a new figure.

        Returns
        -------
        array of matplotlib.axes.Axes

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> len(fit.plot.diagnostics(simulations=39))
        6
        """
        count = check_simulations(simulations, len(self.fit.frame.y), self.fit.frame.sampling is not None)
        replicates = list(replicated(self.fit, count, seed)) if count else None
        parts: list[Callable[[Axes], Axes]] = [
            lambda ax: self.residuals(ax=ax),
            lambda ax: self.scale_location(ax=ax),
            lambda ax: self._quantiles("residuals", None, level, replicates, ax),
        ]
        effects = self.fit.ranef()
        for label, name in effects_shown(effects):
            parts.append(partial(self._quantiles, label, name, level, replicates))
        if effects and not is_pseudo_likelihood(self.fit.estimates):
            errors = self.fit.ranef_se("known")
            parts.append(lambda ax: draw_caterpillar(effects, errors, None, None, level, True, ax))
        return draw_panel(parts, axes)
