"""Methods of a fit about what it predicts on average: marginal means and effects, shares of variance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from jaxmixed.later import later
from jaxmixed.weighted_samples import AVERAGES, refuse_weighted_sample

if TYPE_CHECKING:
    from jaxmixed.collinearity import inflation_factors
    from jaxmixed.design_effects import design_effects, reliabilities
    from jaxmixed.emmeans import joint_tests, marginal_means
    from jaxmixed.estimates import Estimates
    from jaxmixed.fixed_inference import FixedInference
    from jaxmixed.frame import ModelFrame
    from jaxmixed.icc import Kind, intraclass_correlation
    from jaxmixed.marginal_means import MarginalMeans
    from jaxmixed.margins import Others, margins
    from jaxmixed.variance_explained import variance_explained
else:
    inflation_factors = later("collinearity", "inflation_factors")
    design_effects = later("design_effects", "design_effects")
    reliabilities = later("design_effects", "reliabilities")
    joint_tests = later("emmeans", "joint_tests")
    marginal_means = later("emmeans", "marginal_means")
    intraclass_correlation = later("icc", "intraclass_correlation")
    margins = later("margins", "margins")
    variance_explained = later("variance_explained", "variance_explained")


class Marginal:
    """Methods of `MixedResults` about averages of its predictions and shares of its variance."""

    frame: ModelFrame
    estimates: Estimates
    state: Any

    if TYPE_CHECKING:

        def fixed_inference(self, ddf: str = "none", vcov: FixedInference | None = None) -> FixedInference:
            """Inference on linear functions of the coefficients."""

    def emmeans(
        self,
        spec: str | Sequence[str],
        by: str | Sequence[str] | None = None,
        at: Mapping[str, Any] | None = None,
        weights: str = "equal",
        level: float = 0.95,
        *,
        ddf: str = "satterthwaite",
        vcov: FixedInference | None = None,
    ) -> MarginalMeans:
        """Estimated marginal means (least-squares means) of the fixed part, as R's emmeans.

        Predictions at every combination of the factors' levels, other variables at their means, averaged
        over all variables but those of `spec` and `by`.

        Parameters
        ----------
        spec : str or sequence of str
            Columns whose levels have means: ``"a"``, ``["a", "b"]``, ``"a * b"``, ``"a | b"`` (by groups of
            b); ``"1"`` for the overall mean. Of a numeric column the means are at the values of `at`.
        by : str or sequence of str, optional
            Columns of groups: contrasts and adjustments are within each.
        at : mapping, optional
            Values of columns: ``{"x": [0, 1], "group": ["b", "c"]}``. Without it factors have all levels, a
            number with one or two distinct values has those, another one its mean over the rows used.
            Functions of it are taken at the mean: ``log(x)`` is ``log(mean(x))``.
        weights : str
            How to average. ``"equal"``: all levels alike. ``"proportional"``: by their numbers of rows.
            ``"outer"``: by the product of these numbers over the variables averaged over. ``"cells"``: by
            the rows of each cell. ``"flat"``: all cells with rows alike. Rows count by their precision
            weights, where the model has some.
        level : float
            Level of the limits.
        ddf : str
            Denominator degrees of freedom; see `coef_table`.
        vcov : FixedInference, optional
            What `robust` returned, for its standard errors and degrees of freedom.

        Returns
        -------
        MarginalMeans
            Prints as a table; ``.table`` is a data frame, ``.contrast(...)``, ``.pairs()`` and ``.test()``
            go on from it.

        Raises
        ------
        DataError
            Naming the column, level or option that does not exist.

        Notes
        -----
        Offsets of the formula are evaluated at these values, an offset given as an argument is at its mean.
        Means that the data say nothing about, such as an average over cells without rows in a model with
        their interaction, are NaN, and a note says so; ``weights="flat"`` averages over the cells with rows,
        which are those of a factor nested in another.

        References
        ----------
        Searle, Speed & Milliken (1980), Population marginal means in the linear model, The American
        Statistician 34, 216-221.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> data = jm.datasets.load("oats")
        >>> fit = jm.mixed("yield ~ Variety + C(nitro) + (1 | Block/Variety)", data)
        >>> fit.emmeans("Variety").table[["Variety", "estimate", "std_error", "df"]].round(1)
               Variety  estimate  std_error   df
        0  Golden Rain     104.5        7.8  8.9
        1   Marvellous     109.8        7.8  8.9
        2      Victory      97.6        7.8  8.9
        >>> fit.emmeans("Variety").pairs().table["p_value"].round(3).tolist()
        [0.742, 0.61, 0.246]
        """
        inference = self.fixed_inference(ddf, vcov)
        return marginal_means(self.frame, inference, spec, by, at, weights, level)

    def emtrends(
        self,
        spec: str | Sequence[str],
        var: str,
        by: str | Sequence[str] | None = None,
        at: Mapping[str, Any] | None = None,
        weights: str = "equal",
        level: float = 0.95,
        *,
        ddf: str = "satterthwaite",
        vcov: FixedInference | None = None,
    ) -> MarginalMeans:
        """Marginal slopes in a numeric column, by the levels of others.

        Derivatives of the predictions of `emmeans`, exact through polynomials, splines, other functions and
        interactions (functions of the caller are differenced).

        Parameters
        ----------
        spec : str or sequence of str
            Columns whose levels have slopes; ``"1"`` for the overall slope.
        var : str
            Numeric column, at its mean unless `at` gives values.
        by, at, weights, level, ddf, vcov
            As for `emmeans`.

        Returns
        -------
        MarginalMeans

        Raises
        ------
        DataError, DesignError
            If the column is no number, or the fixed effects have none of that name.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> data = jm.datasets.load("sleepstudy")
        >>> fit = jm.mixed("Reaction ~ poly(Days, 2) + (Days | Subject)", data)
        >>> fit.emtrends("Days", "Days", at={"Days": [0, 9]}).table["estimate"].round(2).tolist()
        [7.43, 13.5]
        """
        inference = self.fixed_inference(ddf, vcov)
        return marginal_means(self.frame, inference, spec, by, at, weights, level, slope_of=var)

    def joint_tests(
        self,
        by: str | Sequence[str] | None = None,
        at: Mapping[str, Any] | None = None,
        weights: str = "equal",
        *,
        ddf: str = "satterthwaite",
        vcov: FixedInference | None = None,
    ) -> pd.DataFrame:
        """Joint test of each term: that the marginal means at its levels have no (interaction) contrasts.

        With factors alone these are tests of type III. Empty cells take degrees of freedom away instead of
        changing what is tested.

        Parameters
        ----------
        by : str or sequence of str, optional
            Separate tests at each combination of these columns' levels.
        at, weights, ddf, vcov
            As for `emmeans`; but numbers are at one below and one above their means, so that their slopes
            are tested, and factors' means are those at the numbers' means.

        Returns
        -------
        pandas.DataFrame
            ``num_df, den_df, statistic, p_value`` by term (and `by`).

        Examples
        --------
        >>> import jaxmixed as jm
        >>> data = jm.datasets.load("oats")
        >>> fit = jm.mixed("yield ~ Variety * C(nitro) + (1 | Block/Variety)", data)
        >>> fit.joint_tests()["statistic"].round(2).to_dict()
        {'Variety': 1.49, 'nitro': 37.69, 'Variety:nitro': 0.3}
        """
        return joint_tests(self.frame, self.fixed_inference(ddf, vcov), by, at, weights)

    def margins(
        self,
        dydx: str | Sequence[str] | None = None,
        at: Mapping[str, Any] | str | None = None,
        over: str | Sequence[str] | None = None,
        newdata: Any = None,
        level: float = 0.95,
        *,
        others: Others = "observed",
        ddf: str = "none",
        vcov: FixedInference | None = None,
    ) -> pd.DataFrame:
        """Average predictions or marginal effects of the fixed part, as Stata's ``margins``.

        Each is a linear function of the coefficients, averaged over rows: of predictions, of their
        derivatives in a numeric column (exact through transforms and interactions), or of their changes when
        a factor goes from its base level to another.

        Parameters
        ----------
        dydx : str or sequence of str, optional
            Columns of the data whose marginal effects are wanted, or ``"all"``; by default predictions are
            averaged.
        at : mapping or "means", optional
            Values that columns are held at, in all combinations: ``{"x": [0, 1], "group": "b"}``.
            ``"means"``: all columns at their means.
        over : str or sequence of str, optional
            Average within subgroups by columns of the fixed part or groupings (of `newdata`: by any column).
        newdata : table, optional
            Rows to average over instead of those of the fit; rows with a missing value are left out.
        level : float
            Level of the intervals.
        others : str
            What columns that `at` does not name are: ``"observed"``, or at their ``"means"``: numeric columns
            at their means in each subgroup, levels of factors weighted by their proportions (Stata's
            ``atmeans``).
        ddf : str
            Denominator degrees of freedom; see `coef_table`.
        vcov : FixedInference, optional
            What `robust` returned, for its standard errors and degrees of freedom.

        Returns
        -------
        pandas.DataFrame
            Columns ``estimate, std_error, df, statistic, p_value, conf_low, conf_high``. The index names the
            effect, the values of `at` and the subgroup, those that there are. Standard errors take the rows
            as fixed. Rows count alike, whatever their weights.

        Raises
        ------
        DataError, DesignError
            Naming the column or value that the fixed part does not have.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> data = jm.datasets.load("sleepstudy")
        >>> fit = jm.mixed("Reaction ~ Days + I(Days^2) + (Days | Subject)", data)
        >>> fit.margins(dydx="Days", at={"Days": [0, 9]})[["estimate", "std_error"]].round(2)
                     estimate  std_error
        effect Days
        Days   0         7.43       2.82
               9        13.50       2.82
        >>> fit.margins(at={"Days": 5})["estimate"].round(2).to_dict()
        {5: 301.05}
        """
        refuse_weighted_sample(self.estimates, "margins()", AVERAGES)
        return margins(self.frame, self.fixed_inference(ddf, vcov), dydx, at, over, newdata, level, others)

    def icc(
        self,
        kind: Kind = "correlation",
        level: float = 0.95,
        *,
        at: Mapping[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Intraclass correlations, with standard errors and limits.

        Parameters
        ----------
        kind : str
            ``"correlation"``: of two observations in one level, as Stata's ``estat icc``; that of an inner
            grouping contains the variances of the outer ones. ``"share"``: variance of each grouping over the
            total, also for crossed ones.
        level : float
            Level of the intervals, which are symmetric on the logit scale.
        at : mapping, optional
            Values of the columns that have random effects, ``{"week": [0, 4]}``: the variance of a grouping
            is then that of an observation with these covariates, z'Gz, and the correlation that of two such
            observations. Other numeric columns are taken at zero.

        Returns
        -------
        pandas.DataFrame
            Columns ``estimate, std_error, conf_low, conf_high``, a row per grouping, the outermost first (and
            for each value of `at`). With random slopes and without `at`, the values hold where the covariates
            are zero, as ``attrs["note"]`` says. Effects with one common variance (a kernel's, of the levels
            of a factor) need no `at`. A share that is zero has no standard error.

        Raises
        ------
        DesignError
            For a linear model, for crossed groupings (correlations), and for random effects without an
            intercept and without `at`.
        DataError
            If `at` names a column without random effects.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("wm ~ 1 + (1 | id)", jm.datasets.load("mini_wright"))
        >>> fit.icc().loc["id"].round(4).tolist()
        [0.9685, 0.0153, 0.9202, 0.988]
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.icc(at={"Days": [0, 9]})["estimate"].round(3).tolist()
        [0.483, 0.847]
        """
        return intraclass_correlation(self.frame, self.estimates, kind, level, at)

    def r2(self, level: float = 0.95) -> pd.DataFrame:
        """Marginal and conditional R-squared of Nakagawa and Schielzeth, for random slopes as Johnson's.

        The variance of an observation has three parts: that of the fixed predictions over the rows used,
        that of the random effects, averaged over these rows, and the residual variance. The marginal
        R-squared is the share of the first, the conditional one that of the first two.

        Parameters
        ----------
        level : float
            Level of the intervals, which are symmetric on the logit scale.

        Returns
        -------
        pandas.DataFrame
            Columns ``estimate, std_error, conf_low, conf_high``; rows ``marginal``, ``conditional``, and the
            share of each grouping, the outermost first, which add up to their difference. Standard errors by
            the delta method with the rows taken as fixed; a share of zero has none. Like R-squared of linear
            models, the marginal one is biased upwards in small samples.

        References
        ----------
        Nakagawa & Schielzeth (2013), Methods in Ecology and Evolution 4(2), 133-142; Johnson (2014), the same
        5(9), 944-946.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.r2()["estimate"].round(4).to_dict()
        {'marginal': 0.2787, 'conditional': 0.7992, 'Subject': 0.5206}
        """
        refuse_weighted_sample(self.estimates, "r2()", AVERAGES)
        return variance_explained(self.frame, self.estimates, level)

    def design_effect(self) -> pd.DataFrame:
        """Design effects: by how much grouping inflates the variance of the mean of all rows.

        Returns
        -------
        pandas.DataFrame
            A row per grouping, the outermost first, and their ``total``. ``icc``: share of the grouping in
            the variance, averaged over rows where there are random slopes. ``mean_size``: rows in a level.
            ``kish_size``: sum of squared sizes over rows. ``deff_mean``: 1 + (mean_size - 1) icc. ``deff``:
            the variance of the mean under the model over that of as many independent rows, which is 1 +
            (kish_size - 1) icc for a random intercept. ``effective_n``: rows over ``deff``. The total adds
            the excesses of all groupings, which is right for nested and for crossed ones.

        References
        ----------
        Kish (1965), Survey Sampling, sections 5.4 and 11.3.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.design_effect().loc["Subject", ["icc", "kish_size", "deff"]].round(3).tolist()
        [0.589, 10.0, 6.304]
        """
        refuse_weighted_sample(self.estimates, "design_effect()", AVERAGES)
        return design_effects(self.frame, self.estimates)

    def reliability(self) -> dict[str, pd.DataFrame]:
        """Reliability of the predicted random effects: shrinkage factors of the levels.

        The squared correlation between a level's effect and its prediction, 1 - Var(b | y) / Var(b) at the
        estimated parameters. For a random intercept it is that of the mean of a level's n rows,
        v / (v + sigma**2 / n), the factor by which the mean residual of the level is shrunken towards zero.

        Returns
        -------
        dict of str to pandas.DataFrame
            Shaped as `ranef`; NaN for effects without variance.

        References
        ----------
        Raudenbush & Bryk (2002), Hierarchical Linear Models, equation 3.42 (random intercepts).

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("wm ~ 1 + (1 | id)", jm.datasets.load("mini_wright"))
        >>> fit.reliability()["id"].iloc[0, 0].round(6)
        np.float64(0.983996)
        """
        refuse_weighted_sample(self.estimates, "reliability()", AVERAGES)
        return reliabilities(self.frame, self.estimates, self.state)

    def vif(self) -> pd.DataFrame:
        """Generalised variance inflation factors of the terms of the fixed part.

        By how much the variance of a term's coefficients (the squared volume of their confidence region) is
        larger than if its columns were unrelated to those of other terms, as R's ``car::vif``.

        Returns
        -------
        pandas.DataFrame
            Columns ``gvif``, ``df`` (coefficients of the term) and ``gvif_adj``, gvif ** (1 / (2 df)),
            comparable between terms: of one coefficient, by how much its standard error is inflated. Terms
            of interactions inflate their main effects unless variables are centred.

        Raises
        ------
        DesignError
            If there are no terms beside the intercept.

        References
        ----------
        Fox & Monette (1992), Journal of the American Statistical Association 87(417), 178-183.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> data = jm.datasets.load("sleepstudy")
        >>> fit = jm.mixed("Reaction ~ Days + I(Days^2) + (1 | Subject)", data)
        >>> fit.vif().round(3)
                     gvif  df  gvif_adj
        term
        Days       13.656   1     3.695
        I(Days^2)  13.656   1     3.695
        """
        refuse_weighted_sample(self.estimates, "vif()", AVERAGES)
        return inflation_factors(self.frame, self.estimates)
