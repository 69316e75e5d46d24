"""Methods of a fit that compare the levels of a grouping: ranks and differences, with their uncertainty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jaxmixed.comparison_intervals import comparison_intervals
from jaxmixed.effects import Beta
from jaxmixed.group_effects import check_beta
from jaxmixed.ranking import LevelEffect, compare_levels, level_effect, ranks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxmixed.estimates import Estimates
    from jaxmixed.prediction_error import ErrorModel


class Comparing:
    """Methods of `MixedResults` that compare the levels of a grouping."""

    estimates: Estimates

    if TYPE_CHECKING:

        @property
        def _errors(self) -> ErrorModel:
            """Joint distribution of the errors."""

        @property
        def _modes(self) -> tuple[np.ndarray, ...]:
            """Predicted random effects by term."""

        def ranef(self) -> dict[str, pd.DataFrame]:
            """Predicted random effects."""

    def _level_effect(
        self, group: str | None, effect: str | None, at: Mapping[str, float] | None
    ) -> LevelEffect:
        return level_effect(self.estimates, self.ranef(), self._modes, group, effect, at)

    def _errors_given(self, beta: Beta) -> ErrorModel:
        check_beta(beta)
        return self._errors if beta == "estimated" else self._errors.given_beta()

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
        beta: Beta = "estimated",
    ) -> pd.DataFrame:
        """Ranks of the levels of a grouping by a random effect, and how uncertain they are.

        The effects of all levels are drawn jointly from their distribution given the data, at the estimated
        variances; the table summarises the ranks in the draws.

        Parameters
        ----------
        group : str, optional
            Grouping, e.g. ``"school"``; by default the one with the fewest levels.
        effect : str, optional
            Random effect, e.g. ``"ses"``; by default the intercept, or the first effect where there is none.
        at : mapping of str to float, optional
            Rank by a combination of the grouping's effects instead, the value of each level's line there:
            ``{"ses": 1}`` is the intercept plus once the slope of ``ses``. The intercept counts 1 unless it
            is named, effects that are not named count 0.
        level : float
            Level of the intervals of ranks.
        top : float or int
            What counts as the top: a share of the levels (rounded down to a number of levels, one at least),
            or a whole number of levels.
        ascending : bool
            False: rank 1, and the top, is the highest. True: the lowest.
        num_draws : int
        seed : int
            The same seed gives the same table, whatever the machine's memory.
        beta : str
            ``"estimated"``: the draws have the errors of the fixed effects, which levels share more or less.
            ``"known"``: they have not.

        Returns
        -------
        pandas.DataFrame
            By level, sorted by the expected rank. ``estimate`` and ``std_error``: the predicted effect (BLUP)
            and the standard deviation of its error. ``rank``: that of the estimate, ties sharing the mean of
            their ranks. ``expected``: the posterior mean of the rank, the best guess in squared error.
            ``rank_low``, ``rank_high``: posterior quantiles of the rank. ``p_top``, ``p_best``: posterior
            probabilities of being among the top, and of rank 1. The note below the table has the
            Monte-Carlo standard errors; ``attrs`` the ``group``, the ``effect`` and ``num_top``.

        Raises
        ------
        DataError
            If the model has no such grouping or effect, or an argument is out of its range.

        Warns
        -----
        SingularFitWarning
            If the estimated variance of the effect is zero: all ranks are then equal.

        Notes
        -----
        Uncertainty of the variance parameters is not in the draws. An error shared by all levels alike, such
        as that of the intercept in balanced data, leaves every rank as it is. The effect of a level is that
        of its own grouping: that of a class within a school does not count the school's.

        Draws are ranked a few at a time, so that memory grows with the levels and not with the draws; a
        million levels take a fraction of a second for each draw.

        References
        ----------
        Goldstein & Spiegelhalter (1996), Journal of the Royal Statistical Society A 159(3), 385-443.
        Laird & Louis (1989), Journal of Educational Statistics 14(1), 29-46, for expected ranks.
        Lockwood, Louis & McCaffrey (2002), Journal of Educational and Behavioral Statistics 27(3), 255-270.
        Lin, Louis, Paddock & Ridgeway (2006), Bayesian Analysis 1(4), 915-946, for the top share.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> table = fit.ranks(effect="Days", num_draws=500)
        >>> table[["rank", "rank_low", "rank_high"]].astype(int).head(3)
                 rank  rank_low  rank_high
        Subject
        308         1         1          4
        337         2         1          5
        350         3         1          7
        """
        errors = self._errors_given(beta)
        chosen = self._level_effect(group, effect, at)
        return ranks(
            chosen, errors, level=level, top=top, ascending=ascending, num_draws=num_draws, seed=seed
        )

    def compare_levels(
        self,
        group: str,
        *levels: Any,
        effect: str | None = None,
        at: Mapping[str, float] | None = None,
        level: float = 0.95,
        beta: Beta = "estimated",
    ) -> pd.DataFrame:
        """Differences between levels of a grouping, with standard errors from their joint covariance.

        Intervals of two levels may overlap although the levels differ (Goldstein & Healy 1995, Journal of the
        Royal Statistical Society A 158(1), 175-177): what compares two levels is the interval of their
        difference.

        Parameters
        ----------
        group : str
            Grouping, e.g. ``"school"``.
        *levels
            Two to 200 levels; all pairs of them are compared.
        effect, at
            Random effect, or combination of effects; as for `ranks`.
        level : float
            Level of the intervals, for one pair at a time.
        beta : str
            ``"estimated"`` or ``"known"``; as for `ranks`.

        Returns
        -------
        pandas.DataFrame
            A row ``"a - b"`` for each pair: ``estimate``, ``std_error``, ``conf_low``, ``conf_high`` of the
            difference, and ``p_greater``, the posterior probability that a is the greater.

        Raises
        ------
        DataError
            If the model has no such grouping, level or effect.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.compare_levels("Subject", "308", "309", effect="Days").round(2).iloc[0].to_dict()
        {'estimate': 17.82, 'std_error': 3.26, 'conf_low': 11.43, 'conf_high': 24.21, 'p_greater': 1.0}
        """
        errors = self._errors_given(beta)
        chosen = self._level_effect(group, effect, at)
        return compare_levels(chosen, errors, levels, level)

    def comparison_intervals(
        self,
        group: str | None = None,
        effect: str | None = None,
        *,
        at: Mapping[str, float] | None = None,
        level: float = 0.95,
        beta: Beta = "estimated",
    ) -> pd.DataFrame:
        """Intervals of the levels of a grouping that may be compared by eye: two differ where they are apart.

        They are shorter than intervals for one level at a time, whose overlap says little about a difference:
        the intervals of two equal levels do not overlap with the probability 1 - level, on average over all
        pairs (Goldstein & Healy 1995, Journal of the Royal Statistical Society A 158(1), 175-177), by the
        joint covariance of their errors.

        Parameters
        ----------
        group, effect, at
            As for `ranks`.
        level : float
            For one pair at a time.
        beta : str
            As for `ranks`.

        Returns
        -------
        pandas.DataFrame
            By level: ``estimate``, ``std_error``, ``compare_low``, ``compare_high``. The half widths are the
            standard errors times ``attrs["factor"]``. Beyond 300 levels the average is over the pairs of 300
            of them, spread evenly over the standard errors.

        Raises
        ------
        DataError
            If the model has no such grouping or effect.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> table = fit.comparison_intervals(effect="Days", beta="known")
        >>> round(table.attrs["factor"], 3)
        1.386
        """
        errors = self._errors_given(beta)
        return comparison_intervals(self._level_effect(group, effect, at), errors, level)
