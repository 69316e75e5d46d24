"""`MixedResults`: everything a fit can tell, computed when it is asked for.

Constructing the object computes nothing. What is expensive (random effects, standard errors of variance
parameters) is computed once, at the first question that needs it; every table is handed out as a copy, so
that editing one changes no later answer.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import pandas as pd

from jaxmixed import effects
from jaxmixed._distributions import normal_quantile
from jaxmixed.comparison import LikelihoodRatioTest, lrtest
from jaxmixed.errors import DataError, printable
from jaxmixed.inference import VarianceInference, VarianceParameters, variance_inference, variance_table
from jaxmixed.marginal import Marginal
from jaxmixed.plots import Beta, Plots
from jaxmixed.predict import fitted_values, linear_predictor, predict
from jaxmixed.replication import Replication
from jaxmixed.tables import (
    RandomTerm,
    Scale,
    Summary,
    distinct_groups,
    group_sizes,
    information_criteria,
    random_terms,
    summarise,
    tidy_table,
)
from jaxmixed.testing import Testing

if TYPE_CHECKING:
    from jaxmixed.estimates import Diagnostics, Estimates
    from jaxmixed.fixed_inference import FixedInference
    from jaxmixed.frame import ModelFrame

_KINDS = ("response", "pearson", "standardized")
_BETAS = ("known", "estimated")


class MixedResults(Replication, Testing, Marginal):
    """A fitted linear mixed model.

    Parameters
    ----------
    frame
        The data as the model saw them.
    estimates
        The estimates and what was checked about them.
    state
        What later computations need of the fit; opaque.

    Notes
    -----
    Tests and intervals of coefficients are normal-theory (z) unless ``ddf=`` asks for t tests, as in Stata's
    ``mixed``. Under REML `llf`, `deviance`, `aic` and `bic` are of the restricted likelihood.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    >>> fit
    <MixedResults: Reaction ~ Days + (Days | Subject); REML, 180 rows, 18 Subject>
    >>> fit.params.round(3).to_dict()
    {'(Intercept)': 251.405, 'Days': 10.467}
    """

    frame: ModelFrame
    estimates: Estimates
    state: Any

    def __init__(self, *, frame: ModelFrame, estimates: Estimates, state: Any) -> None:
        self.__dict__.update(frame=frame, estimates=estimates, state=state)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"results are read-only: {name} cannot be set")

    def __repr__(self) -> str:
        groups = "".join(f", {m:,} {printable(label)}" for label, m in self.ngroups.items())
        verdict = "" if self.converged else "; NOT CONVERGED"
        verdict += "; singular" if self.is_singular else ""
        formula = printable(self.formula)
        return f"<MixedResults: {formula}; {self.method.upper()}, {self.nobs:,} rows{groups}{verdict}>"

    # Facts of the fit

    @property
    def formula(self) -> str:
        """Text of the model formula."""
        return self.frame.formula.text

    @property
    def method(self) -> str:
        """Criterion of estimation: ``"ml"`` or ``"reml"``."""
        return self.estimates.method

    @property
    def nobs(self) -> int:
        """Number of rows used."""
        return int(self.estimates.nobs)

    @property
    def n_dropped(self) -> int:
        """Number of rows dropped for missing values."""
        return int(self.frame.n_dropped)

    @property
    def dropped_by(self) -> dict[str, int]:
        """Missing values by column, for the columns that have some."""
        return dict(self.frame.dropped_by)

    @property
    def ngroups(self) -> dict[str, int]:
        """Number of levels of each grouping."""
        return {group.label: len(group.levels) for group in distinct_groups(self.frame, self.estimates)}

    @property
    def df_resid(self) -> int:
        """Rows minus the rank of the fixed-effects design."""
        return int(self.estimates.nobs - self.estimates.rank)

    @property
    def num_params(self) -> int:
        """Number of estimated parameters: coefficients, variance parameters and the residual variance."""
        return int(self.estimates.num_params)

    @property
    def llf(self) -> np.float64:
        """Log-likelihood; under REML the restricted one."""
        return np.float64(self.estimates.llf)

    @property
    def deviance(self) -> np.float64:
        """Minus twice `llf`, with all constants."""
        return np.float64(self.estimates.deviance)

    @property
    def aic(self) -> np.float64:
        """Akaike's criterion, deviance + 2 `num_params`."""
        return information_criteria(self.estimates)[0]

    @property
    def bic(self) -> np.float64:
        """Schwarz's criterion, deviance + log(`nobs`) `num_params`."""
        return information_criteria(self.estimates)[1]

    @property
    def sigma(self) -> np.float64:
        """Residual standard deviation (of a row of weight 1)."""
        return np.float64(self.estimates.sigma)

    @property
    def theta(self) -> np.ndarray:
        """Parameters of the relative covariance factors, terms in the order of `random_terms`."""
        return np.array(self.estimates.theta, dtype=np.float64)

    @property
    def converged(self) -> bool:
        """Whether the checks of the optimum passed; `diagnostics` says what was found."""
        return bool(self.estimates.diagnostics.converged)

    @property
    def is_singular(self) -> bool:
        """Whether an estimated covariance matrix of random effects is singular."""
        return bool(self.estimates.diagnostics.singular)

    @property
    def diagnostics(self) -> Diagnostics:
        """What was checked after the fit, and the verdicts in words."""
        return self.estimates.diagnostics

    # Fixed effects

    def _series(self, values: np.ndarray, name: str) -> pd.Series:
        return pd.Series(np.array(values, dtype=np.float64), index=pd.Index(self.frame.x_names), name=name)

    @property
    def params(self) -> pd.Series:
        """Fixed-effects coefficients by name; NaN for a dropped (aliased) one."""
        return self._series(self.estimates.beta, "estimate")

    @property
    def bse(self) -> pd.Series:
        """Standard errors of the coefficients, from (X'V⁻¹X)⁻¹."""
        return self._series(np.sqrt(np.diagonal(self.estimates.cov_beta)), "std_error")

    @property
    def tvalues(self) -> pd.Series:
        """Coefficients over their standard errors."""
        return self.coef_table()["statistic"]

    @property
    def pvalues(self) -> pd.Series:
        """Two-sided p-values of `tvalues`, from the normal distribution."""
        return self.coef_table()["p_value"]

    def cov_params(self) -> pd.DataFrame:
        """Covariance matrix of the coefficients, (X'V⁻¹X)⁻¹ at the estimated variances; NaN where dropped."""
        names = pd.Index(self.frame.x_names)
        return pd.DataFrame(np.array(self.estimates.cov_beta, dtype=np.float64), index=names, columns=names)

    # Random effects

    @cached_property
    def _inference(self) -> VarianceInference:
        return variance_inference(VarianceParameters.of(self.estimates)).model(0)

    @cached_property
    def _modes(self) -> tuple[np.ndarray, ...]:
        return effects.random_effects(self.state, self.estimates) if self.estimates.terms else ()

    @property
    def random_terms(self) -> tuple[RandomTerm, ...]:
        """Estimated covariances of the random effects, one per term."""
        return random_terms(self.estimates)

    def variance_table(self, level: float = 0.95) -> pd.DataFrame:
        """The table `varcorr` with limits of another level."""
        normal_quantile(level)  # refuses what is no level
        return pd.DataFrame(variance_table(self._inference, self.estimates, level))

    @property
    def varcorr(self) -> pd.DataFrame:
        """Variance parameters with exact-Hessian standard errors and 95% limits, the residual variance last.

        Columns: ``group``, ``effect``, ``effect2`` (of a covariance); ``estimate``, ``std_error``,
        ``conf_low``, ``conf_high`` on the scale of variances and covariances; the same with the prefix
        ``sd_or_corr`` on the scale of standard deviations and correlations. Limits of variances are symmetric
        on the log scale, those of correlations on the atanh scale. A parameter on the boundary of its range
        has no standard error (NaN).
        """
        return self.variance_table(0.95)

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
        return self._by_group(self._modes)

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
        if beta not in _BETAS:
            raise DataError(
                f"beta is {beta!r}; standard errors take the fixed effects as 'known' or as 'estimated'"
            )
        if not self.estimates.terms:
            return {}
        covariances = effects.random_effects_covariance(self.state, self.estimates, beta=beta)
        # Rounding can leave a variance of an effect that is zero at -1e-30.
        return self._by_group(
            [np.sqrt(np.maximum(np.einsum("mii->mi", values), 0.0)) for values in covariances]
        )

    def _by_group(self, arrays: Any) -> dict[str, pd.DataFrame]:
        """Tables of the terms, those of one grouping side by side."""
        tables: dict[str, list[pd.DataFrame]] = {}
        for term, values in zip(self.estimates.terms, arrays, strict=True):
            levels = self.frame.groups[term.frame_index].levels.rename(term.group)
            table = pd.DataFrame(np.array(values, dtype=np.float64), index=levels, columns=list(term.names))
            tables.setdefault(term.group, []).append(table)
        return {
            group: found[0] if len(found) == 1 else pd.concat(found, axis=1)
            for group, found in tables.items()
        }

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

    def residuals(self, kind: Literal["response", "pearson", "standardized"] = "response") -> pd.Series:
        """Residuals of the rows used.

        Parameters
        ----------
        kind : str
            ``"response"``: response minus fitted values. ``"pearson"``: those times the square root of the
            weight, as in lme4. ``"standardized"``: Pearson residuals divided by `sigma`, Stata's
            ``rstandard``.

        Returns
        -------
        pandas.Series

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.residuals("standardized").abs().max().round(2)
        np.float64(5.18)
        """
        if kind not in _KINDS:
            raise DataError(f"kind is {kind!r}; residuals() gives {', '.join(map(repr, _KINDS))}")
        values = self.frame.y - self._fitted
        if kind != "response" and self.frame.weights is not None:
            values = values * np.sqrt(self.frame.weights)
        if kind == "standardized":
            values = values / self.estimates.sigma
        return self._rows(values, "resid")

    def predict(
        self,
        newdata: Any = None,
        random: bool | str = True,
        allow_new_levels: bool = False,
        *,
        offset: Any = None,
    ) -> pd.Series:
        """Predictions for the rows used, or for new data.

        Parameters
        ----------
        newdata : table, optional
            New rows, encoded with the levels, contrasts and transforms of the fit; the response is not
            needed, nor the grouping columns where ``random`` leaves them out. A missing value gives NaN in
            its row.
        random : bool or str
            True: with the predicted random effects; False: population predictions; a grouping, e.g.
            ``"school"``: with the random effects of that grouping and of those that contain it.
        allow_new_levels : bool
            Take the random effects of levels that the model was not fitted to as zero, instead of refusing
            them.
        offset : array_like, optional
            Offset of the new rows, for a model whose offset was given as an array.

        Returns
        -------
        pandas.Series
            With the index of the data.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> new = {"Days": [10, 12], "Subject": ["308", "new"]}
        >>> fit.predict(new, allow_new_levels=True).round(2).tolist()
        [450.33, 377.01]
        """
        return predict(
            self.frame, self.estimates, lambda: self._modes, newdata, random, allow_new_levels, offset
        )

    # Derived quantities and comparisons

    def lrtest(
        self,
        other: MixedResults,
        *,
        mixture: bool = False,
        simulate: int | None = None,
        seed: int | None = None,
        devices: Any = None,
        mesh: Any = None,
        progress: bool | None = None,
    ) -> LikelihoodRatioTest:
        """Likelihood-ratio test against another fit; see `jaxmixed.lrtest`."""
        workers = {"devices": devices, "mesh": mesh, "progress": progress}
        return lrtest(self, other, mixture=mixture, simulate=simulate, seed=seed, **workers)

    # Tables and plots

    def summary(
        self,
        scale: Scale = "variance",
        level: float = 0.95,
        ddf: str = "none",
        *,
        vcov: FixedInference | None = None,
    ) -> Summary:
        """Printed summary: data, criterion, fixed and random effects, verdicts and notes.

        Parameters
        ----------
        scale : str
            What the table of random effects shows first, with standard errors and limits: ``"variance"`` or
            ``"sd"``.
        level : float
            Level of the intervals.
        ddf, vcov
            Degrees of freedom, or robust covariance, of the coefficients; as for `coef_table`.

        Returns
        -------
        Summary
            Prints as text, and as HTML in notebooks.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> print(fit.summary().title)
        Linear mixed model fitted by restricted maximum likelihood (REML)
        """
        fixed = self.fixed_inference(ddf, vcov)
        return summarise(self.frame, self.estimates, self._inference, fixed, scale, level)

    def tidy(
        self, level: float = 0.95, ddf: str = "none", *, vcov: FixedInference | None = None
    ) -> pd.DataFrame:
        """All parameters in one table: coefficients, then variances and covariances.

        Parameters
        ----------
        level : float
            Level of the intervals.
        ddf, vcov
            As for `coef_table`.

        Returns
        -------
        pandas.DataFrame
            Columns ``effect`` ("fixed" or "random"), ``group``, ``term``, ``estimate``, ``std_error``,
            ``df``, ``statistic``, ``p_value``, ``conf_low``, ``conf_high``. Variance parameters are named
            ``var(x)`` and ``cov(x, z)`` and have no test.
        """
        fixed = self.fixed_inference(ddf, vcov)
        return tidy_table(self.frame, self.estimates, self._inference, fixed, level)

    def glance(self) -> pd.DataFrame:
        """Facts of the fit in one row."""
        facts = {
            "nobs": self.nobs,
            "n_dropped": self.n_dropped,
            "method": self.method,
            "num_params": self.num_params,
            "df_resid": self.df_resid,
            "sigma": self.sigma,
            "llf": self.llf,
            "deviance": self.deviance,
            "aic": self.aic,
            "bic": self.bic,
            "converged": self.converged,
            "is_singular": self.is_singular,
        }
        return pd.DataFrame([facts])

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

    def group_sizes(self) -> pd.DataFrame:
        """Levels of each grouping and rows in them: ``levels``, ``min``, ``mean``, ``max``."""
        groups = distinct_groups(self.frame, self.estimates)
        rows = [group_sizes(group) for group in groups]
        index = pd.Index([group.label for group in groups], name="group")
        return pd.DataFrame(rows, index=index, columns=["levels", "min", "mean", "max"])

    @property
    def plot(self) -> Plots:
        """Plots of the fit, e.g. ``fit.plot.caterpillar()``."""
        return Plots(self)
