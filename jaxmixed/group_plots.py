"""Plots of a fit that show its groups: ranks, shrinkage, lines along a covariate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmixed.plot_effects import choose_group
from jaxmixed.plot_ranks import draw_ranks
from jaxmixed.plot_shrinkage import draw_shrinkage, own_estimates
from jaxmixed.plot_trajectories import draw_lines, draw_panels
from jaxmixed.trajectories import Trajectories, trajectories

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes


class GroupPlots:
    """The part of `Plots` that shows groups."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def fit(self) -> Any:
            """The fit to draw."""

    def ranks(
        self,
        group: str | None = None,
        effect: str | None = None,
        *,
        at: Mapping[str, float] | None = None,
        level: float = 0.95,
        top: float = 0.1,
        ascending: bool = False,
        num_draws: int = 2000,
        seed: int = 0,
        beta: str = "estimated",
        ax: Axes | None = None,
    ) -> Axes:
        """Expected ranks of the levels of a grouping, with intervals: how far a league table can be trusted.

        Up to 60 levels are drawn one to a line, rank 1 on top, with their names and at the right the
        probability of being among the top; more of them from left to right. Levels that are more likely than
        not among the top are dark; the ranks of the top are shaded.

        Parameters
        ----------
        group, effect, at, level, top, ascending, num_draws, seed, beta
            See `MixedResults.ranks`.
        ax
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.plot.ranks(effect="Days", num_draws=200).get_xlabel()
        'Rank (1 is the highest)'
        """
        drawn = {"num_draws": num_draws, "seed": seed, "beta": beta}
        table = self.fit.ranks(group, effect, at=at, level=level, top=top, ascending=ascending, **drawn)
        return draw_ranks(table, level, ascending, ax)

    def shrinkage(
        self,
        group: str | None = None,
        effects: str | Sequence[str] | None = None,
        *,
        ax: Axes | None = None,
    ) -> Axes:
        """How far the prediction of each group is drawn from its own estimate towards the population.

        The own estimates are those of least squares within the group, the fixed effects and the predicted
        effects of other groupings taken away; groups whose rows do not determine them are left out and
        counted. Two effects are drawn against each other, as coefficients of the groups, with an arrow from
        the own estimate to the prediction. One effect is drawn as prediction against own estimate (of a
        random intercept: the mean residual of the group), with the line on which nothing is shrunk.

        Parameters
        ----------
        group
            Grouping, e.g. ``"school"``; by default the one with the fewest levels.
        effects
            One or two random effects; by default the first two, or the only one.
        ax
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.plot.shrinkage().get_title(loc="left")
        'Subject: shrinkage'
        """
        label = choose_group(self.fit.ranef(), group)
        found = own_estimates(self.fit.frame, self.fit.estimates, self.fit._modes, label)
        return draw_shrinkage(found, label, effects, ax)

    def trajectories(
        self,
        x: str,
        group: str | None = None,
        *,
        groups: Any = None,
        max_groups: int = 24,
        seed: int = 0,
        axes: Any = None,
    ) -> np.ndarray:
        """Groups along a covariate, a panel for each: its rows, the population's line and its own.

        The lines are what the model expects at each value of x within the group's own range, other covariates
        at values of the group: numbers at its mean, factors at the level that most of its rows have. The line
        of the population (dashed) is the fixed part; that of the group adds the predicted effects of its
        grouping and of those that contain it, but not of others.

        Parameters
        ----------
        x
            Column of the fixed part; of a factor, its levels stand side by side.
        group
            Grouping, e.g. ``"student"``; by default the one with the most levels within which x varies.
        groups
            Levels to show; by default all, or `max_groups` of them chosen at random.
        max_groups
            Most groups to choose.
        seed
            Of the choice.
        axes
            One for each group; by default those of a new figure, with common scales.

        Returns
        -------
        array of matplotlib.axes.Axes

        See Also
        --------
        spaghetti : the lines of all groups in one panel.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> panels = fit.plot.trajectories("Days", groups=["308", "335"])
        >>> [panel.get_title(loc="left") for panel in panels]
        ['308', '335']
        """
        return draw_panels(self._trajectories(x, group, groups, max_groups, seed), axes)

    def spaghetti(
        self,
        x: str,
        group: str | None = None,
        *,
        by: str | None = None,
        groups: Any = None,
        max_groups: int = 1000,
        seed: int = 0,
        ax: Axes | None = None,
    ) -> Axes:
        """Lines of all groups along a covariate in one panel, the population's on top.

        The lines are those of `trajectories`; the population's is the mean over the groups that are shown, of
        which each has covariates of its own.

        Parameters
        ----------
        x, group, groups, max_groups, seed
            As for `trajectories`.
        by
            Factor of the fixed part, e.g. a treatment, or a number with few values: its levels have colours,
            and a line of the population each, the mean over the groups most of whose rows are at the level.
        ax
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.plot.spaghetti("Days").get_title(loc="right")
        '18 groups'
        """
        return draw_lines(self._trajectories(x, group, groups, max_groups, seed, by), by, ax)

    def _trajectories(
        self, x: str, group: str | None, groups: Any, max_groups: int, seed: int, by: str | None = None
    ) -> Trajectories:
        fit = self.fit
        return trajectories(fit.frame, fit.estimates, fit._modes, x, group, groups, max_groups, seed, by)
