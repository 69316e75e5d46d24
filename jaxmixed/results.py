"""`MixedResults`: everything a fit can tell, computed when it is asked for.

Constructing the object computes nothing. What is expensive (random effects, standard errors of variance
parameters) is computed once, at the first question that needs it; every table is handed out as a copy, so
that editing one changes no later answer.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pandas as pd

from jaxmixed._distributions import normal_quantile
from jaxmixed.checking import Checking
from jaxmixed.comparison import LikelihoodRatioTest, lrtest
from jaxmixed.errors import printable
from jaxmixed.inference import VarianceInference, VarianceParameters, variance_inference, variance_table
from jaxmixed.later import later
from jaxmixed.marginal import Marginal
from jaxmixed.predicting import Predicting
from jaxmixed.replication import Replication
from jaxmixed.residual_tables import ResidualTables
from jaxmixed.stata_writing import stata_command
from jaxmixed.tables import (
    RandomTerm,
    Scale,
    Summary,
    all_group_sizes,
    information_criteria,
    random_terms,
    summarise,
    tidy_table,
)
from jaxmixed.testing import Testing
from jaxmixed.weighted_samples import NO_CRITERIA, refuse_sampling_weights

if TYPE_CHECKING:
    from jaxmixed.estimates import Diagnostics, Estimates
    from jaxmixed.fixed_inference import FixedInference
    from jaxmixed.frame import ModelFrame
    from jaxmixed.plots import Plots
else:
    Plots = later("plots", "Plots")


class MixedResults(Predicting, Replication, Testing, Marginal, Checking, ResidualTables):
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
        """Number of levels of each grouping, those of correlated residuals included."""
        return {label: sizes[0] for label, sizes in all_group_sizes(self.frame, self.estimates).items()}

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
        """Akaike's criterion, deviance + 2 `num_params`; not of a pseudo-likelihood."""
        refuse_sampling_weights(self.estimates, "aic", NO_CRITERIA)
        return information_criteria(self.estimates)[0]

    @property
    def bic(self) -> np.float64:
        """Schwarz's criterion, deviance + log(`nobs`) `num_params`; not of a pseudo-likelihood."""
        refuse_sampling_weights(self.estimates, "bic", NO_CRITERIA)
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
        """Whether a random-effects covariance is singular, or a residual parameter at an end of its range."""
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
        """Standard errors of the coefficients, from (X'V⁻¹X)⁻¹; robust ones with sampling weights."""
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
        """Covariance matrix of the coefficients, NaN where dropped.

        (X'V⁻¹X)⁻¹ at the estimated variances; with sampling weights the robust one.
        """
        names = pd.Index(self.frame.x_names)
        return pd.DataFrame(np.array(self.estimates.cov_beta, dtype=np.float64), index=names, columns=names)

    # Random effects

    @cached_property
    def _inference(self) -> VarianceInference:
        return variance_inference(VarianceParameters.of(self.estimates)).model(0)

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

    def to_stata(self) -> str:
        """The `mixed` command of Stata that fits this model to the same data.

        Returns
        -------
        str
            One line. Levels that are texts count as numbered from 1 in their order, as Stata's `encode` and
            :func:`jaxmixed.stata` number them.

        Raises
        ------
        StataError
            Naming the part of the model that Stata's `mixed` does not have, such as a function in the formula
            or precision weights.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.to_stata()
        'mixed Reaction Days || Subject: Days, covariance(unstructured) reml'
        """
        return stata_command(self.frame, self.estimates.method)

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
            Columns ``effect`` ("fixed", "random" or "residual"), ``group``, ``term``, ``estimate``,
            ``std_error``, ``df``, ``statistic``, ``p_value``, ``conf_low``, ``conf_high``. Variance
            parameters are named ``var(x)`` and ``cov(x, z)``, those of a residual structure as in
            `residual_parameters`; they have no test.
        """
        fixed = self.fixed_inference(ddf, vcov)
        return tidy_table(self.frame, self.estimates, self._inference, fixed, level)

    def glance(self) -> pd.DataFrame:
        """Facts of the fit in one row."""
        aic, bic = information_criteria(self.estimates)
        facts = {
            "nobs": self.nobs,
            "n_dropped": self.n_dropped,
            "method": self.method,
            "num_params": self.num_params,
            "df_resid": self.df_resid,
            "sigma": self.sigma,
            "llf": self.llf,
            "deviance": self.deviance,
            "aic": aic,
            "bic": bic,
            "converged": self.converged,
            "is_singular": self.is_singular,
        }
        return pd.DataFrame([facts])

    def group_sizes(self) -> pd.DataFrame:
        """Levels of each grouping and rows in them: ``levels``, ``min``, ``mean``, ``max``."""
        found = all_group_sizes(self.frame, self.estimates)
        index = pd.Index(list(found), name="group")
        return pd.DataFrame(list(found.values()), index=index, columns=["levels", "min", "mean", "max"])

    @property
    def plot(self) -> Plots:
        """Plots of the fit, e.g. ``fit.plot.caterpillar()``."""
        return Plots(self)
