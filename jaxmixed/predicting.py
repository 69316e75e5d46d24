"""Methods of a fit about its rows and groups: random effects, fitted values, residuals, predictions."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from jaxmixed import effects
from jaxmixed.comparing import Comparing
from jaxmixed.effects import Beta
from jaxmixed.group_effects import by_group, check_beta, effects_covariance, group_coefficients
from jaxmixed.later import later
from jaxmixed.predict import fitted_values, linear_predictor
from jaxmixed.prediction_error import ErrorModel, error_model
from jaxmixed.prediction_slopes import PredictionSlopes, prediction_slopes
from jaxmixed.predictions import predictions
from jaxmixed.residual_kinds import leverage, residuals
from jaxmixed.residual_predictions import rows_to_predict
from jaxmixed.tables import distinct_groups
from jaxmixed.weighted_samples import NO_ERRORS, refuse_sampling_weights

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates
    from jaxmixed.fixed_inference import FixedInference
    from jaxmixed.frame import ModelFrame
    from jaxmixed.wcorrelation import WithinCorrelation, within_correlation
else:
    within_correlation = later("wcorrelation", "within_correlation")


class Predicting(Comparing):
    """Methods of `MixedResults` about what it predicts for rows and for groups."""

    frame: ModelFrame
    estimates: Estimates
    state: Any

    if TYPE_CHECKING:

        @property
        def params(self) -> pd.Series:
            """Fixed effects."""

        def fixed_inference(self, ddf: str = "none", vcov: FixedInference | None = None) -> FixedInference:
            """Inference on linear functions of the coefficients."""

    @cached_property
    def _errors(self) -> ErrorModel:
        refuse_sampling_weights(self.estimates, "the error of a prediction", NO_ERRORS, "use predict()")
        return error_model(self.state, self.estimates)

    @cached_property
    def _slopes(self) -> PredictionSlopes:
        return prediction_slopes(self._errors, self.estimates)

    # Random effects

    @cached_property
    def _modes(self) -> tuple[np.ndarray, ...]:
        return effects.random_effects(self.state, self.estimates) if self.estimates.terms else ()

    def ranef(self) -> dict[str, pd.DataFrame]:
        """Predicted random effects (conditional modes, BLUPs).

        Returns
        -------
        dict of str to pandas.DataFrame
            By grouping: a row per level, a column per effect, of all terms for that grouping.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.ranef()["Subject"].loc["308"].round(2).tolist()
        [2.26, 9.2]
        """
        return by_group(self.frame, self.estimates, self._modes)

    def ranef_se(self, beta: Beta = "known") -> dict[str, pd.DataFrame]:
        """Standard errors of the predicted random effects.

        Parameters
        ----------
        beta : str
            ``"known"``: given the fixed effects, as lme4's ``condVar`` and Stata's ``reses`` after ML.
            ``"estimated"``: with the uncertainty of the fixed effects added, the standard deviation of the
            predicted minus the true effect (Henderson 1975, Biometrics 31, 423-447).

        Returns
        -------
        dict of str to pandas.DataFrame
            Shaped as `ranef`.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("wm ~ 1 + (1 | id)", jm.datasets.load("mini_wright"), method="ml")
        >>> fit.ranef_se()["id"].iloc[0, 0].round(3)
        np.float64(13.959)
        """
        check_beta(beta)
        if not self.estimates.terms:
            return {}
        refuse_sampling_weights(self.estimates, "ranef_se()", NO_ERRORS)
        covariances = effects.random_effects_covariance(self.state, self.estimates, beta=beta)
        # Rounding can leave a variance of an effect that is zero at -1e-30.
        errors = [np.sqrt(np.maximum(np.einsum("mii->mi", values), 0.0)) for values in covariances]
        return by_group(self.frame, self.estimates, errors)

    def ranef_cov(
        self,
        group: str | None = None,
        levels: Any = None,
        *,
        beta: Beta = "known",
    ) -> pd.DataFrame:
        """Joint covariance of the errors of predicted random effects, for contrasts of groups.

        Parameters
        ----------
        group : str, optional
            Grouping; needed where the model has several.
        levels : sequence, optional
            Levels of the grouping, or one of them; by default all.
        beta : str
            ``"known"`` or ``"estimated"``, as for `ranef_se`, whose squares are the diagonal.

        Returns
        -------
        pandas.DataFrame
            Rows and columns by level and effect; in squared units of the response (per unit of a slope's
            variable).

        Raises
        ------
        DataError
            Naming a grouping or level that does not exist, or the size of a matrix that is too large.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.ranef_cov(levels=["308", "309"], beta="estimated").round(1).to_numpy()[0].tolist()
        [171.6, -19.7, 25.9, 1.7]
        """
        check_beta(beta)
        errors = self._errors.given_beta() if beta == "known" else self._errors
        return effects_covariance(self.frame, self.estimates, errors, self.ranef(), group, levels)

    def coef(self) -> dict[str, pd.DataFrame]:
        """Coefficients of every group: fixed effects plus that grouping's random effects, as lme4's `coef`.

        Returns
        -------
        dict of str to pandas.DataFrame
            By grouping: a row per level; the columns are the fixed effects, then random effects that have no
            fixed counterpart. A dropped (aliased) coefficient is NaN, unless it has random effects.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.coef()["Subject"].loc["308"].round(2).to_dict()
        {'(Intercept)': 253.66, 'Days': 19.67}
        """
        return group_coefficients(self.params, self.ranef())

    # Values by row

    def _rows(self, values: np.ndarray, name: str) -> pd.Series:
        return pd.Series(np.array(values, dtype=np.float64), index=self.frame.index, name=name)

    @cached_property
    def _fitted(self) -> np.ndarray:
        return fitted_values(self.frame, self.estimates, self._modes)

    @property
    def fittedvalues(self) -> pd.Series:
        """Conditional fitted values of the rows used: fixed effects, offset and predicted random effects."""
        return self._rows(self._fitted, "fitted")

    @property
    def resid(self) -> pd.Series:
        """Response minus `fittedvalues`."""
        return self.residuals("response")

    def residuals(self, kind: str = "response", random: bool | str = True) -> pd.Series:
        """Residuals of the rows used.

        Parameters
        ----------
        kind : str
            ``"response"``: response minus predictions (``"working"`` is the same, as in lme4).
            ``"pearson"``: those times the square root of the weight, as in lme4 (``"deviance"`` is the same);
            where variances differ, over the standard deviation relative to sigma.
            ``"standardized"``: divided by the standard deviation of what the predictions leave out; of
            conditional residuals that is the residual's own, ``sigma / sqrt(w)`` where all are alike, as
            Stata's ``rstandard`` and nlme's Pearson residuals, of marginal ones it is the standard deviation
            of the response, as SAS's.
            ``"studentized"``: divided by their own standard deviation, which is smaller because the row takes
            part in its prediction: ``sigma sqrt((1 - h) / w)`` with the `leverage` h of conditional residuals
            (lme4's ``rstudent``). NaN where that is zero.
            ``"deleted"``: studentized by the sigma that is estimated without the row, the relative variances
            held: t distributed with n - p - 1 degrees of freedom, were these known. Where residuals are
            correlated, the error of predicting the row from all others, those of its group among them.
            ``"normalized"``: whitened by the Cholesky factor of the residuals' covariance, by group in the
            order of time, as nlme's: uncorrelated with variance one if the structure holds, but for what
            estimation takes. Of independent residuals the same as standardized conditional ones.
            ``"scaled"``: marginal residuals made uncorrelated, ``L^{-1}(y - Xb)`` with ``L L'`` the
            covariance of the response; within an outermost group in the order of the rows, those of an inner
            group together. Only for nested groups.
        random : bool or str
            True: conditional residuals; False: marginal ones, from the fixed effects alone; a grouping:
            from predictions down to that level, see `predict`.

        Returns
        -------
        pandas.Series

        Raises
        ------
        DataError
            If there is no such kind or grouping.
        DesignError
            For scaled residuals of crossed groups.

        References
        ----------
        Pinheiro & Bates (2000), Mixed-Effects Models in S and S-PLUS, section 4.3; Fitzmaurice, Laird & Ware
        (2011), Applied Longitudinal Analysis, section 10.2, for scaled residuals.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.residuals("standardized").abs().max().round(2)
        np.float64(5.18)
        >>> fit.residuals("studentized", random=False).abs().max().round(2)
        np.float64(2.78)
        """
        return self._rows(residuals(self, kind, random, self.state), "resid")

    def leverage(self) -> pd.Series:
        """Leverages of the rows used: how much of an observation goes into its own fitted value.

        The diagonal of the matrix that takes the response to the conditional fitted values, at the estimated
        variances; lme4's ``hatvalues``. Their sum is the number of effective parameters (of fixed and random
        effects).

        Returns
        -------
        pandas.Series
            Between 0 and 1, unless residuals are correlated: the matrix is no longer symmetric.

        References
        ----------
        Hodges & Sargent (2001), Counting degrees of freedom in hierarchical and other richly-parameterised
        models, Biometrika 88, 367-379.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.leverage().sum().round(2)
        np.float64(29.02)
        """
        return self._rows(leverage(self), "leverage")

    def predict(
        self,
        newdata: Any = None,
        random: bool | str = True,
        allow_new_levels: bool = False,
        *,
        offset: Any = None,
        weights: Any = None,
    ) -> pd.Series:
        """Predictions for the rows used, or for new data.

        Parameters
        ----------
        newdata : table, optional
            New rows, encoded with the levels, contrasts and transforms of the fit; the response is not
            needed, nor the grouping columns where ``random`` leaves them out. A missing value gives NaN in
            its row.
        random : bool or str
            True: with the predicted random effects, and with what correlated residuals tell of new rows of
            the groups (Notes); False: population predictions; a grouping, e.g. ``"school"``: with the random
            effects of that grouping and of those that contain it.
        allow_new_levels : bool
            Take the random effects of levels that the model was not fitted to as zero, instead of refusing
            them.
        offset : array_like, optional
            Offset of the new rows, for a model whose offset was given as an array.
        weights : str, array_like or float, optional
            Precision weights of the new rows, for correlated residuals of a model with weights.

        Returns
        -------
        pandas.Series
            With the index of the data. Stata's ``predict, fitted relevel(school)`` is
            ``predict(random="school")``; `predictions` has standard errors and intervals.

        Notes
        -----
        Where residuals are correlated, a new row of a group that the model was fitted to, at a time at which
        the group was not observed, is predicted with the observed residuals e of the group: ``x'b + z'u +
        r'R^{-1}e`` with R their covariance and r that with the new row's (Goldberger 1962, JASA 57, 369-375).
        Each row is predicted from the observed rows alone. A row at a time at which its group was observed is
        taken as that row: its prediction is the fitted value, as without ``newdata``. `Exchangeable` knows no
        times, so that each row is a further one.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> new = {"Days": [10, 12], "Subject": ["308", "new"]}
        >>> fit.predict(new, allow_new_levels=True).round(2).tolist()
        [450.33, 377.01]

        A patient who left after the fourth week, worse than at the beginning:

        >>> trial = jm.datasets.load("depression")
        >>> fit = jm.mixed("change ~ arm * visit", trial, residuals="us(visit | patient)")
        >>> new = {"patient": ["012"], "arm": ["placebo"], "visit": ["W8"]}
        >>> round(fit.predict(new).item(), 2), round(fit.predict(new, random=False).item(), 2)
        (0.19, -7.06)
        """
        rows = rows_to_predict(self.frame, self.estimates, newdata, random, allow_new_levels, offset, weights)
        values = rows.values(self.estimates.beta, self._modes if rows.terms else ())
        return pd.Series(values, index=rows.index, name="predicted")

    def predictions(
        self,
        newdata: Any = None,
        random: bool | str = True,
        allow_new_levels: bool = False,
        *,
        interval: Literal["confidence", "prediction"] = "confidence",
        level: float = 0.95,
        offset: Any = None,
        ddf: str = "none",
        vcov: FixedInference | None = None,
        variance_parameters: Literal["known", "estimated"] = "known",
        weights: Any = None,
    ) -> pd.DataFrame:
        """Predictions with standard errors and intervals, for the rows used or for new data.

        Parameters
        ----------
        newdata, random, offset
            As for `predict`.
        allow_new_levels : bool
            Predict the population value for levels that the model was not fitted to, with the variance of
            their random effects in the standard error, instead of refusing them.
        interval : str
            ``"confidence"``: of the mean ``x'b + z'u`` of the row, with the random effects that `random`
            chooses; the standard error is that of the prediction error, from the joint covariance of fixed
            and predicted random effects. ``random=False`` gives Stata's ``stdp``. ``"prediction"``: of a new
            response in the row. The random effects that are not chosen are those of new groups, and add their
            variance, as does the residual: ``sigma^2 / w``, of unequal variances that of the row's level,
            stratum or covariate, and given the observed residuals where it is predicted with them.
        level : float
            Level of the intervals, which are normal unless `ddf` or `vcov` says otherwise.
        ddf, vcov
            Degrees of freedom of the intervals, which are t intervals then, in the column ``df``.
            ``"satterthwaite"``: of any prediction, from the exact derivatives of its variance. The other
            methods of `coef_table`, and a robust covariance, are of predictions from the fixed effects alone
            (``random=False`` with ``interval="confidence"``, or a linear model).
        variance_parameters : str
            ``"known"``: standard errors at the estimated variances, which are too small where groups are few.
            ``"estimated"``: with twice the term of Kackar and Harville, the variance of predictions that
            comes from that of the relative variances (exact derivatives; variances estimated as zero are held
            there): once for itself, and once for the bias of the variance at estimated parameters.
        weights : str, array_like or float, optional
            Precision weights of new responses, for ``interval="prediction"`` or correlated residuals: a
            column of the new data, one number per row, or one for all. Needed if the model has weights.

        Returns
        -------
        pandas.DataFrame
            Columns ``estimate, std_error, conf_low, conf_high`` with the index of the data; NaN in rows with
            missing values. With ``interval="prediction"`` the standard error is the standard deviation of the
            new response minus its prediction.

        Raises
        ------
        DataError
            Naming the column, level or argument at fault; for new levels of a grouping with a known
            relationship, whose variance and covariances are not known.

        Notes
        -----
        Intervals of groups have their level on average over groups, not for each: one far from the others is
        drawn towards them. Estimated variances make them too short in two ways, and where groups are few the
        choice to make is both ``variance_parameters="estimated"`` (predictions vary with the weights by
        which they shrink) and ``ddf="satterthwaite"`` (the variance itself is an estimate).

        Where residuals are correlated, new rows of a group at other times are predicted with its observed
        residuals, as in `predict`; the confidence interval is of the mean given these, and both choices count
        the residual parameters, too. `random` other than True leaves the residuals out.

        References
        ----------
        Henderson (1975), Biometrics 31, 423-447; Kackar & Harville (1984), JASA 79, 853-862; Prasad & Rao
        (1990), JASA 85, 163-171, for the term counted twice; Booth & Hobert (1998), JASA 93, 262-272, for it
        given the data.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> new = {"Days": [10, 10], "Subject": ["308", "new"]}
        >>> fit.predictions(new, allow_new_levels=True).round(1)
           estimate  std_error  conf_low  conf_high
        0     450.3       15.9     419.3      481.4
        1     356.1       67.6     223.6      488.5
        >>> fit.predictions({"Days": [10]}, random=False, ddf="kenward-roger").round(1)
           estimate  std_error    df  conf_low  conf_high
        0     356.1       16.0  17.0     322.3      389.9
        """
        return predictions(
            self,
            newdata,
            random,
            allow_new_levels,
            interval=interval,
            level=level,
            offset=offset,
            ddf=ddf,
            vcov=vcov,
            variance_parameters=variance_parameters,
            weights=weights,
        )

    def wcorrelation(self, level: Any = None, group: str | None = None) -> WithinCorrelation:
        """Standard deviations and correlations of the responses of one group that the model implies.

        Of random effects and residuals together, at the estimates; Stata's ``estat wcorrelation``.

        Parameters
        ----------
        level : label, optional
            Which group; by default the first of those with the most rows.
        group : str, optional
            Grouping; by default that of correlated residuals, or else the one with the most levels.

        Returns
        -------
        WithinCorrelation
            With ``sd``, ``correlation`` and ``covariance``, rows by time.

        Raises
        ------
        DataError
            Naming a grouping or level that does not exist, or a group of more rows than a matrix may have.
        DesignError
            If the model has no groups.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> trial = jm.datasets.load("depression")
        >>> fit = jm.mixed("change ~ arm * visit", trial, residuals="us(visit | patient)")
        >>> fit.wcorrelation("001").correlation.loc["W1"].round(2).tolist()
        [1.0, 0.84, 0.71, 0.62, 0.53]
        """
        return within_correlation(self.frame, self.estimates, level, group)

    def augment(self) -> pd.DataFrame:
        """Rows used, with what the model says of each.

        Returns
        -------
        pandas.DataFrame
            The response, the groupings, and ``.fitted``, ``.fixed`` (population prediction), ``.resid`` and
            ``.std_resid``; the dots keep these names apart from those of columns.
        """
        frame = self.frame
        columns: dict[str, Any] = {frame.response_name: np.array(frame.y)}
        for group in distinct_groups(frame, self.estimates):
            columns[group.label] = group.levels.take(group.codes)
        columns[".fitted"] = self._fitted
        columns[".fixed"] = linear_predictor(frame.X, self.estimates.beta, frame.offset)
        columns[".resid"] = frame.y - self._fitted
        columns[".std_resid"] = self.residuals("standardized").to_numpy()
        return pd.DataFrame(columns, index=frame.index)
