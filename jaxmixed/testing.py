"""Methods of a fit that test its coefficients: tables, hypotheses, analysis of variance, robust errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jaxmixed.coefficient_names import Coefficients
from jaxmixed.denominators import FixedDf, Reference, kenward_roger, satterthwaite
from jaxmixed.errors import DataError, DesignError
from jaxmixed.fitting import spread_columns
from jaxmixed.fixed_inference import FixedInference, alias_basis
from jaxmixed.later import later
from jaxmixed.residual_variation import of_any_covariance
from jaxmixed.tables import coefficient_table
from jaxmixed.weighted_samples import refuse_weighted_sample, robust_title

if TYPE_CHECKING:
    from jaxmixed.anova import anova_table
    from jaxmixed.design_df import coefficient_df
    from jaxmixed.estimates import Estimates
    from jaxmixed.frame import ModelFrame
    from jaxmixed.linear_tests import joint_hypothesis, linear_combinations
    from jaxmixed.nonlinear import NonlinearScale, Parameters, nonlinear_combination
    from jaxmixed.profiles import Profile, profile
    from jaxmixed.robust import Kind
    from jaxmixed.robust_inference import RobustInference, robust_inference
else:
    anova_table = later("anova", "anova_table")
    coefficient_df = later("design_df", "coefficient_df")
    joint_hypothesis = later("linear_tests", "joint_hypothesis")
    linear_combinations = later("linear_tests", "linear_combinations")
    nonlinear_combination = later("nonlinear", "nonlinear_combination")
    profile = later("profiles", "profile")
    robust_inference = later("robust_inference", "robust_inference")

TITLES = {
    "none": "",
    "satterthwaite": "Satterthwaite's df",
    "kenward-roger": "Kenward-Roger standard errors and df",
    "residual": "residual df",
    "between-within": "between-within df",
    "containment": "containment df",
}
"""Methods for the denominator degrees of freedom of tests of coefficients, and what tables call them."""


class Testing:
    """Methods of `MixedResults` about its coefficients."""

    frame: ModelFrame
    estimates: Estimates
    state: Any

    @cached_property
    def _inferences(self) -> dict[str, FixedInference]:
        return {}

    def fixed_inference(self, ddf: str = "none", vcov: FixedInference | None = None) -> FixedInference:
        """Inference on linear functions of the coefficients, from which all tables of tests are made.

        Parameters
        ----------
        ddf : str
            Denominator degrees of freedom: ``"none"`` (normal and chi-squared tests), ``"satterthwaite"``,
            ``"kenward-roger"``, ``"residual"``, ``"between-within"``, ``"containment"``.
        vcov : FixedInference, optional
            What `robust` returned; takes the place of the model's covariance and degrees of freedom.

        Returns
        -------
        FixedInference

        Raises
        ------
        DataError
            If there is no such method.
        """
        if vcov is not None:
            if not isinstance(vcov, FixedInference):
                raise DataError(f"vcov= takes what fit.robust() returns, not {type(vcov).__name__}")
            if vcov.names != self.frame.x_names or not np.array_equal(
                vcov.beta, self.estimates.beta, equal_nan=True
            ):
                raise DataError("vcov= comes from another fit: its coefficients are not those of this one")
            return vcov
        if not isinstance(ddf, str) or ddf not in TITLES:
            raise DataError(f"ddf is {ddf!r}; choose one of {', '.join(map(repr, TITLES))}")
        if ddf not in self._inferences:
            found = self.estimates
            kept = ~np.isnan(found.beta)
            cov, reference = self._reference(ddf, kept)
            self._inferences[ddf] = FixedInference(
                names=self.frame.x_names,
                beta=found.beta,
                cov=cov,
                ddf=ddf,
                reference=reference,
                aliases=alias_basis(self.frame.X, kept),
                title=robust_title(found) or TITLES[ddf],
            )
        return self._inferences[ddf]

    def _reference(self, ddf: str, kept: np.ndarray) -> tuple[np.ndarray, Reference]:
        """Covariance (p, p) of all coefficients, and the distribution of statistics of the kept ones."""
        cov = self.estimates.cov_beta
        own = cov[np.ix_(kept, kept)]
        if ddf == "none":
            return cov, FixedDf(own, np.full(len(own), np.inf))
        why = "its degrees of freedom are of rows and groups that count once; ddf='none' gives normal tests"
        refuse_weighted_sample(self.estimates, f"ddf={ddf!r}", why)
        stats = self.state.compact
        if ddf == "satterthwaite":
            return cov, satterthwaite(self.estimates, stats)
        if ddf == "kenward-roger":
            _require_reml(self.estimates)
            found = kenward_roger(self.estimates, of_any_covariance(self.state))
            return spread_columns(found.covariance[None], np.flatnonzero(kept), len(kept))[0], found
        return cov, FixedDf(own, coefficient_df(ddf, self.frame, self.estimates))

    def coef_table(
        self, ddf: str = "none", level: float = 0.95, *, vcov: FixedInference | None = None
    ) -> pd.DataFrame:
        """Table of the fixed effects.

        Parameters
        ----------
        ddf : str
            Denominator degrees of freedom: ``"none"`` (normal tests, as Stata's ``mixed``),
            ``"satterthwaite"`` (lmerTest), ``"kenward-roger"`` (pbkrtest; standard errors are adjusted, too),
            ``"residual"``, ``"between-within"``, ``"containment"``.
        level : float
            Level of the intervals.
        vcov : FixedInference, optional
            What `robust` returned, for its standard errors and degrees of freedom.

        Returns
        -------
        pandas.DataFrame
            Columns ``estimate, std_error, df, statistic, p_value, conf_low, conf_high`` by coefficient.

        Notes
        -----
        With correlated residuals Kenward and Roger's adjustment is in the variances and covariances
        themselves where these are free (unstructured, banded; exchangeable or Toeplitz with one variance),
        and else in variances and the parameters of `residual_table`, as in SAS. Groups of correlated
        residuals count as groups for ``"between-within"``, as SAS's subjects do.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.coef_table().loc["Days", ["estimate", "std_error", "statistic"]].round(3).tolist()
        [10.467, 1.546, 6.771]
        """
        return coefficient_table(self.fixed_inference(ddf, vcov), level)

    @cached_property
    def _coefficients(self) -> Coefficients:
        return Coefficients.of(self.frame)

    def test(
        self,
        hypothesis: Any,
        rhs: Any = None,
        ddf: str = "none",
        *,
        vcov: FixedInference | None = None,
    ) -> pd.DataFrame:
        """Joint Wald test of linear hypotheses about the coefficients.

        Parameters
        ----------
        hypothesis : str, list, mapping, pandas.DataFrame or array_like
            Equations separated by commas, ``"x1 = x2 = 0"``, ``"2*x1 - x2/3 = 1.5, z = 0"``, with names as
            `coef_table` prints them; an expression without an equals sign is compared with zero. A term of
            the formula, e.g. ``"recipe"``, means all of its coefficients. Also a list of such texts, weights
            by name ``{"x1": 1, "x2": -1}``, a table with a column for each coefficient that has weights, or
            an array (c, p).
        rhs : float or (c,) array_like, optional
            Values under the hypotheses, where no equals sign says them; by default zero.
        ddf : str
            Denominator degrees of freedom, as in `coef_table`.
        vcov : FixedInference, optional
            What `robust` returned.

        Returns
        -------
        pandas.DataFrame
            One row: ``num_df, den_df, statistic, p_value``. With ``ddf="none"`` the statistic is
            chi-squared, as Stata's ``test`` prints it, and ``den_df`` is infinite; otherwise it is F.
            ``attrs["distribution"]`` is ``"chi2"`` or ``"F"``,
            ``attrs["hypotheses"]`` lists what was tested. Hypotheses that the others imply are left out and
            not counted.

        Raises
        ------
        FormulaError
            If a text cannot be read, or names no coefficient; the message shows where.
        DataError
            If hypotheses contradict each other, concern a dropped coefficient, or do not fit in shape.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("yield ~ Variety + nitro + (1 | Block/Variety)", jm.datasets.load("oats"))
        >>> fit.test("Variety")
           num_df  den_df  statistic   p_value
        0       2     inf   2.970681  0.226425
        Note: H0: VarietyMarvellous = 0, VarietyVictory = 0; statistic: chi-squared(2)
        >>> fit.test("nitro = 70, VarietyVictory = 0", ddf="satterthwaite")["p_value"].round(4).item()
        0.5516
        """
        return joint_hypothesis(self.fixed_inference(ddf, vcov), self._coefficients, hypothesis, rhs)

    def lincom(
        self,
        expressions: Any,
        level: float = 0.95,
        ddf: str = "none",
        *,
        vcov: FixedInference | None = None,
    ) -> pd.DataFrame:
        """Estimates of linear combinations of the coefficients, each with its test and interval.

        Parameters
        ----------
        expressions : str, list, mapping, pandas.DataFrame or array_like
            Expressions in the names that `coef_table` prints, ``"x1 + 2*x2"``, several separated by commas or
            in a list; ``{label: expression}``; otherwise as in `test`. A constant may be added.
        level : float
            Level of the intervals.
        ddf : str
            Degrees of freedom, as in `coef_table`.
        vcov : FixedInference, optional
            What `robust` returned.

        Returns
        -------
        pandas.DataFrame
            Columns of `coef_table`; a row per expression, named as it was written. The tests are of zero.

        Raises
        ------
        FormulaError
            If a text cannot be read, names no coefficient, or is an equation.
        DataError
            If a dropped coefficient is involved, or shapes do not fit.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.lincom("(Intercept) + 5*Days").round(2)[["estimate", "std_error", "conf_low", "conf_high"]]
                              estimate  std_error  conf_low  conf_high
        (Intercept) + 5*Days    303.74       9.58    284.96     322.52
        """
        return linear_combinations(self.fixed_inference(ddf, vcov), self._coefficients, expressions, level)

    def anova(
        self,
        type: int | str = 3,
        ddf: str = "satterthwaite",
        *,
        vcov: FixedInference | None = None,
    ) -> pd.DataFrame:
        """Analysis of variance of the fixed effects: an F test of each term.

        Parameters
        ----------
        type : int or str
            1: each term adjusted for those before it in the formula, by the triangular factor of X'X. 2: for
            all terms that do not contain it. 3: also for those that contain it, by hypotheses that depend
            neither on the coding of factors nor on the numbers of observations in the cells. As lmerTest and
            SAS define them; ``"I"``, ``"II"`` and ``"III"`` are accepted.
        ddf : str
            Denominator degrees of freedom, as in `coef_table`.
        vcov : FixedInference, optional
            What `robust` returned.

        Returns
        -------
        pandas.DataFrame
            A row per term in the order of the formula, of a model with none no row. Columns ``sum_sq``,
            ``mean_sq`` (F times sigma², times ``num_df`` in ``sum_sq``; F without Kenward and Roger's scale),
            ``num_df, den_df, statistic, p_value``. The statistic is F; with ``ddf="none"`` it is chi-squared
            over ``num_df``. A term whose columns were all dropped has ``num_df`` 0 and no values.

        References
        ----------
        Kuznetsova, Brockhoff & Christensen (2017), Journal of Statistical Software 82(13).

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("yield ~ Variety * nitro + (1 | Block/Variety)", jm.datasets.load("oats"))
        >>> fit.anova()[["num_df", "den_df", "statistic", "p_value"]].round(3)
                       num_df  den_df  statistic  p_value
        term
        Variety             2  21.575      1.942    0.168
        nitro               1  51.000    115.771    0.000
        Variety:nitro       2  51.000      0.499    0.610
        """
        # Sums of squares in units of one residual variance have no meaning where there are others.
        sigma = self.estimates.sigma if self.estimates.residual is None else np.nan
        return anova_table(self.frame, self.fixed_inference(ddf, vcov), sigma, type)

    def nlcom(
        self,
        fn: Callable[[Parameters], Any],
        scale: NonlinearScale = "identity",
        level: float = 0.95,
        names: Sequence[str] | None = None,
        *,
        ddf: str = "none",
        vcov: FixedInference | None = None,
    ) -> pd.DataFrame:
        """Functions of the parameters, with standard errors and limits by the delta method.

        Derivatives are automatic, so any differentiable function will do: ratios of coefficients, shares of
        variance, slopes in one of many groups, reliabilities.

        Parameters
        ----------
        fn : callable
            A function of the parameters ``p``, in ``jax.numpy``, that returns a number, an array or a dict
            of these. ``p["x"]`` is a coefficient and ``p.beta`` all of them; ``p.sigma`` the residual
            standard deviation; ``p.var("school")``, ``p.sd("school", "x")``, ``p.cov("school")``,
            ``p.corr("school", "x", "(Intercept)")`` tell about random effects of a grouping, by names of
            effects or as arrays in the order of ``p.effects("school")``; ``p.kernel("subject")["length"]`` is
            a kernel's parameter, ``p.theta`` are the parameters of the relative factors.
        scale : str
            Where the intervals are symmetric, to be transformed back: ``"identity"``, ``"log"`` (positive
            values), ``"logit"`` (shares), ``"atanh"`` (correlations).
        level : float
            Level of the intervals.
        names : sequence of str, optional
            Names of the rows; by default the keys of the dict, or the function's name.
        ddf : str
            Degrees of freedom of functions of coefficients alone, see `coef_table`; those of others are
            infinite.
        vcov : FixedInference, optional
            What `robust` returned: the covariance of the coefficients.

        Returns
        -------
        pandas.DataFrame
            Columns ``estimate, std_error, df, statistic, p_value, conf_low, conf_high``. Standard errors are
            those of the function itself on all scales. The test is of the value zero, on the identity scale;
            on others there is none (NaN). A value that no free parameter moves has no standard error (NaN):
            parameters on the boundary are held.

        Raises
        ------
        DataError
            If the function cannot be differentiated, or names what the model does not have.
        DesignError
            If a value is outside of the range of the scale.

        Notes
        -----
        Coefficients and variance parameters are taken as independent, which they are asymptotically.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> relative = fit.nlcom(lambda p: p["Days"] / p["(Intercept)"], names=["relative"])
        >>> relative.loc["relative", ["estimate", "std_error"]].round(4).tolist()
        [0.0416, 0.0064]
        >>> share = fit.nlcom(lambda p: p.var("Subject") / (p.var("Subject") + p.sigma**2), scale="logit")
        >>> share.loc["value", ["estimate", "conf_low", "conf_high"]].round(3).tolist()
        [0.483, 0.261, 0.712]
        """
        inference = self.fixed_inference(ddf, vcov)
        return nonlinear_combination(self.estimates, inference, fn, scale, level, names)

    def profile(self, which: str | Sequence[str] | None = None, level: float = 0.999) -> Profile:
        """Profile the likelihood: how fast it falls off around the estimate of each parameter.

        With a parameter held at a value, the likelihood is maximised over all others. What was fitted is
        profiled: the likelihood under ML; under REML the restricted likelihood, of a coefficient in the form
        that compares its values (Welham & Thompson 1997).

        Parameters
        ----------
        which : str or sequence of str, optional
            Parameters: names of coefficients, ``"sd(x | group)"``, ``"corr(x, z | group)"``, ``"sigma"``; by
            default all.
        level : float
            How far profiles go: to the limits of intervals of this level.

        Returns
        -------
        Profile
            With ``table``, ``conf_int()``, ``plot()`` and ``summary()``.

        Raises
        ------
        DataError
            If there is no such parameter.

        Warns
        -----
        ConvergenceWarning
            If a search failed, or found a lower deviance than that of the estimates.

        References
        ----------
        Bates, Maechler, Bolker & Walker (2015), Journal of Statistical Software 67(1), section 5.1. Welham &
        Thompson (1997), Journal of the Royal Statistical Society B 59, 701-714.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.profile().conf_int().loc["sd(Days | Subject)"].round(2).tolist()
        [3.93, 9.15]
        """
        return profile(self, which, level)

    def robust(self, kind: Kind = "CR2", cluster: Any = None, *, df: str | None = None) -> RobustInference:
        r"""Cluster-robust (sandwich) covariance of the coefficients.

        Standard errors and tests that hold for large numbers of clusters whatever the covariance within them,
        and with ``"CR2"`` for few clusters, too, if the model's covariance is about right:
        :math:`V^R = M (\sum_c X_c' V_c^{-1} A_c e_c e_c' A_c' V_c^{-1} X_c) M` with the fitted covariance V,
        :math:`M = (X' V^{-1} X)^{-1}` and the marginal residuals :math:`e = y - X \hat\beta`. The estimates
        stay as they are.

        Parameters
        ----------
        kind : str
            ``"CR0"``: :math:`A_c = I` (Liang and Zeger). ``"CR1"``: CR0 times m / (m - 1) for m clusters, as
            Stata's ``vce(robust)`` and ``vce(cluster)``. ``"CR1S"``: CR0 times m (n - 1) / ((m - 1) (n - p)).
            ``"CR2"``: bias-reduced (Bell and McCaffrey), exactly unbiased if the fitted covariance is the
            true one. ``"CR3"``: close to the jackknife that leaves out one cluster at a time, conservative.
        cluster : str or array_like, optional
            Independent clusters: by default the coarsest grouping of the random effects. The name of a
            grouping or of a column of the fixed effects, or one value for each row used, or of the data. Each
            level of every grouping must lie in one cluster.
        df : str, optional
            Degrees of freedom: ``"satterthwaite"``, the default of CR2 and CR3, for several functions at once
            those of Hotelling's approximation; ``"none"``, the default of the others: normal and chi-squared
            tests; ``"clusters"``: m - 1.

        Returns
        -------
        RobustInference
            Prints clusters and coefficients; has ``coef_table()``, ``cov_params()`` and ``test()``, and is
            what other methods take as ``vcov=``.

        Raises
        ------
        DesignError
            If clusters are correlated in the model: random effects that span several, crossed groupings
            without a cluster that contains them, levels with known relationships; if there is one cluster
            only, or CR3 would leave out the only cluster that determines a coefficient.
        DataError
            For a kind, a column or degrees of freedom that do not exist.

        Notes
        -----
        CR2 works with matrices of the order of a cluster's number of random effects, or of its number of rows
        where these are fewer or their precision weights differ.

        References
        ----------
        Bell & McCaffrey (2002), Bias reduction in standard errors for linear regression with multi-stage
        samples, Survey Methodology 28(2), 169-181. Pustejovsky & Tipton (2018), Small-sample methods for
        cluster-robust variance estimation and hypothesis testing in fixed effects models, Journal of Business
        and Economic Statistics 36(4), 672-683.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> robust = fit.robust()
        >>> robust.coef_table().loc["Days", ["std_error", "df"]].round(3).tolist()
        [1.546, 17.0]
        >>> fit.coef_table(vcov=fit.robust("CR0"))["std_error"].round(3).tolist()
        [6.632, 1.502]
        """
        return robust_inference(self.frame, self.estimates, self.state, kind, cluster, df)


def _require_reml(estimates: Estimates) -> None:
    if estimates.method != "reml":
        raise DesignError(
            "Kenward and Roger's method is one for REML fits, and this one is by maximum likelihood: fit with"
            ' method="reml", or use ddf="satterthwaite"'
        )
