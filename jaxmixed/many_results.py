"""`ManyResults`: what the fits of many models tell, in tables with the models down the side."""

from __future__ import annotations

import warnings
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import pandas as pd

from jaxmixed.errors import ConvergenceWarning, DataError, printable, user_level
from jaxmixed.formatting import Table, counted, number, wrapped
from jaxmixed.many_comparison import ComparedModel, lrtest_columns
from jaxmixed.many_denominators import Designs
from jaxmixed.many_estimates import ManyEstimates
from jaxmixed.many_tables import (
    coefficient_df,
    coefficient_tables,
    reason_texts,
    standard_errors,
    variance_columns,
    variance_terms,
    wide_columns,
)
from jaxmixed.multiplicity import Adjustment, adjusted_p_values
from jaxmixed.parameter_values import residual_values
from jaxmixed.residual_inference import natural_names

if TYPE_CHECKING:
    from jaxmixed.frame import ModelFrame

What = Literal["tidy", "glance", "wide"]
_METHODS = {"ml": "maximum likelihood (ML)", "reml": "restricted maximum likelihood (REML)"}
_NAMED = 5


class ManyResults:
    """Fits of many models of one formula.

    Parameters
    ----------
    frame
        The design of all rows.
    estimates
        Estimates of all models.
    names
        Names of the models.
    details
        Why models were refused, by position, where the general reason does not say it.
    signature
        Sums over the rows of every data set, by which `lrtest` knows that two sets of fits belong together.
    designs
        Gives the designs of models again, for Satterthwaite's degrees of freedom.
    ddf
        Denominator degrees of freedom of tests and intervals where none are asked for.

    Notes
    -----
    Every table has NaN in the rows of models that could not be fitted; `reason` says why. Tests and intervals
    of coefficients are normal-theory (z), as those of `MixedResults`, unless `fit_many` or the method was
    told other degrees of freedom: ``"satterthwaite"`` (t tests as lmerTest's), ``"residual"``.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    >>> many = fit.refit_many(fit.simulate(3, seed=1))
    >>> many
    <ManyResults: Reaction ~ Days + (Days | Subject); REML, 3 models>
    >>> many.params.shape
    (3, 2)
    """

    frame: ModelFrame
    estimates: ManyEstimates
    names: pd.Index
    _details: dict[int, str]
    _signature: np.ndarray
    _designs: Designs | None
    ddf: str

    def __init__(
        self,
        *,
        frame: ModelFrame,
        estimates: ManyEstimates,
        names: pd.Index,
        details: dict[int, str],
        signature: np.ndarray,
        designs: Designs | None = None,
        ddf: str = "none",
    ) -> None:
        self.__dict__.update(frame=frame, estimates=estimates, names=names, ddf=ddf)
        self.__dict__.update(_details=details, _signature=signature, _designs=designs)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"results are read-only: {name} cannot be set")

    def __len__(self) -> int:
        return len(self.estimates)

    def __repr__(self) -> str:
        found = self.estimates
        failed, doubtful = _counts(found)
        verdict = f", {failed:,} without estimates" if failed else ""
        verdict += f", {doubtful:,} NOT CONVERGED" if doubtful else ""
        models = counted(len(found), "model")
        return f"<ManyResults: {printable(self.formula)}; {found.method.upper()}, {models}{verdict}>"

    # Facts of the fits

    @property
    def formula(self) -> str:
        """Text of the model formula."""
        return self.frame.formula.text

    @property
    def method(self) -> str:
        """Criterion of estimation: ``"ml"`` or ``"reml"``."""
        return self.estimates.method

    def _series(self, values: np.ndarray, name: str) -> pd.Series:
        return pd.Series(np.array(values), index=self.names, name=name)

    def _frame(self, values: np.ndarray, columns: Any) -> pd.DataFrame:
        return pd.DataFrame(np.array(values), index=self.names, columns=pd.Index(columns))

    @property
    def nobs(self) -> pd.Series:
        """Rows that each model uses; where rows have weights, their sum."""
        return self._series(self.estimates.nobs, "nobs")

    @property
    def converged(self) -> pd.Series:
        """Whether the checks of each optimum passed."""
        return self._series(self.estimates.converged, "converged")

    @property
    def is_singular(self) -> pd.Series:
        """Whether an estimated covariance matrix of random effects is singular."""
        return self._series(self.estimates.singular, "is_singular")

    @property
    def reason(self) -> pd.Series:
        """What is wrong with each model, in words; empty when all is well."""
        return self._series(reason_texts(self.estimates, self._details), "reason")

    @property
    def llf(self) -> pd.Series:
        """Log-likelihoods; under REML the restricted ones."""
        return self._series(self.estimates.llf, "llf")

    @property
    def deviance(self) -> pd.Series:
        """Minus twice `llf`, with all constants."""
        return self._series(self.estimates.deviance, "deviance")

    @property
    def aic(self) -> pd.Series:
        """Akaike's criterion, deviance + 2 × number of parameters."""
        return self._series(self.estimates.deviance + 2 * self.estimates.num_params, "aic")

    @property
    def bic(self) -> pd.Series:
        """Schwarz's criterion, deviance + log(`nobs`) × number of parameters."""
        logs = np.log(np.maximum(self.estimates.nobs, 1))
        return self._series(self.estimates.deviance + logs * self.estimates.num_params, "bic")

    @property
    def sigma(self) -> pd.Series:
        """Residual standard deviations (of a row of weight 1)."""
        return self._series(self.estimates.sigma, "sigma")

    @property
    def theta(self) -> pd.DataFrame:
        """Parameters of the relative covariance factors, a column each."""
        names = [
            f"{label.group}: {name}"
            for label, covariance in zip(self.estimates.labels, self.estimates.covariances, strict=True)
            for name in covariance.names(label.names)
        ]
        return self._frame(self.estimates.theta, names)

    # Fixed effects

    @property
    def residual_parameters(self) -> pd.DataFrame:
        """Parameters of correlated residuals, a row per model; without columns where they are independent."""
        own = self.frame.residual
        covariance = self.estimates.residual
        names = () if covariance is None else natural_names(covariance, own.labels)
        return self._frame(residual_values(self.estimates)[0], names)

    @property
    def params(self) -> pd.DataFrame:
        """Fixed-effects coefficients, a row per model; NaN for dropped (aliased) ones."""
        return self._frame(self.estimates.beta, self.estimates.x_names)

    @property
    def bse(self) -> pd.DataFrame:
        """Standard errors of the coefficients."""
        return self._frame(standard_errors(self.estimates), self.estimates.x_names)

    @cached_property
    def _df(self) -> dict[str, np.ndarray]:
        return {}

    def _degrees(self, ddf: str | None) -> np.ndarray:
        """Degrees of freedom of every coefficient of every model, computed once."""
        chosen = self.ddf if ddf is None else ddf
        if chosen not in self._df:
            self._df[chosen] = coefficient_df(self.estimates, self._designs, chosen)
        return self._df[chosen]

    @cached_property
    def _coefficients(self) -> dict[str, np.ndarray]:
        return coefficient_tables(self.estimates, self._degrees(None), adjust="none")

    @property
    def tvalues(self) -> pd.DataFrame:
        """Coefficients over their standard errors."""
        return self._frame(self._coefficients["statistic"], self.estimates.x_names)

    @property
    def pvalues(self) -> pd.DataFrame:
        """Two-sided p-values of `tvalues`, by the degrees of freedom `ddf`; not adjusted for their number."""
        return self._frame(self._coefficients["p_value"], self.estimates.x_names)

    def conf_int(self, level: float = 0.95, ddf: str | None = None) -> pd.DataFrame:
        """Wald confidence intervals of the coefficients.

        Parameters
        ----------
        level : float
        ddf : str, optional
            As for `coef_table`.

        Returns
        -------
        pandas.DataFrame
            A row per model; columns (coefficient, ``conf_low``) and (coefficient, ``conf_high``).
        """
        tables = coefficient_tables(self.estimates, self._degrees(ddf), level, "none")
        limits = np.stack([tables["conf_low"], tables["conf_high"]], axis=2)
        columns = pd.MultiIndex.from_product([self.estimates.x_names, ["conf_low", "conf_high"]])
        return pd.DataFrame(limits.reshape(len(self), -1), index=self.names, columns=columns)

    def coef_table(
        self, name: str, ddf: str | None = None, level: float = 0.95, adjust: Adjustment = "fdr_bh"
    ) -> pd.DataFrame:
        """One coefficient in all models.

        Parameters
        ----------
        name : str
            Of the coefficient.
        ddf : str, optional
            Denominator degrees of freedom: ``"none"`` (infinitely many, that is, normal tests),
            ``"satterthwaite"`` or ``"residual"``; by default those that `fit_many` was told. Satterthwaite's
            are computed from the designs of the models, at the first question.
        level : float
            Level of the intervals.
        adjust : str
            Adjustment of the p-values for the number of models: ``"fdr_bh"``, ``"fdr_by"``, ``"holm"``,
            ``"bonferroni"`` or ``"none"``.

        Returns
        -------
        pandas.DataFrame
            Columns ``estimate, std_error, df, statistic, p_value, p_adjusted, conf_low, conf_high``.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> many = fit.refit_many(fit.simulate(3, seed=1))
        >>> many.coef_table("Days")["statistic"].gt(2).all()
        np.True_
        >>> many.coef_table("Days", ddf="satterthwaite")["df"].round(2).tolist()
        [17.0, 17.0, 17.0]
        """
        if name not in self.estimates.x_names:
            raise DataError(
                f"there is no coefficient {name!r}; they are {', '.join(map(repr, self.estimates.x_names))}"
            )
        j = self.estimates.x_names.index(name)
        tables = coefficient_tables(self.estimates, self._degrees(ddf), level, adjust)
        return pd.DataFrame({key: values[:, j] for key, values in tables.items()}, index=self.names)

    # Variance parameters

    def variance_table(self, level: float = 0.95) -> pd.DataFrame:
        """The table `varcorr` with limits of another level."""
        labels, columns = variance_columns(self.estimates, level)
        m, size = len(self), len(labels["group"])
        table: dict[str, Any] = {"model": np.repeat(np.asarray(self.names), size)}
        table |= {name: np.tile(np.array(own, dtype=object), m) for name, own in labels.items()}
        table |= {name: values.reshape(-1) for name, values in columns.items()}
        return pd.DataFrame(table)

    @property
    def varcorr(self) -> pd.DataFrame:
        """Variance parameters of all models, a row for each model and parameter, the residual variance last.

        Columns ``model``, then those of `MixedResults.varcorr`.
        """
        return self.variance_table(0.95)

    # Tables

    def tidy(
        self, level: float = 0.95, adjust: Adjustment = "fdr_bh", ddf: str | None = None
    ) -> pd.DataFrame:
        """All parameters of all models in one table.

        Parameters
        ----------
        level : float
            Level of the intervals.
        adjust : str
            Adjustment of the p-values; those of each coefficient, over the models, are a family.
        ddf : str, optional
            As for `coef_table`.

        Returns
        -------
        pandas.DataFrame
            Columns ``model``, ``effect`` ("fixed" or "random"), ``group``, ``term``, ``estimate``,
            ``std_error``, ``df``, ``statistic``, ``p_value``, ``p_adjusted``, ``conf_low``, ``conf_high``.
            Variance parameters are named ``var(x)`` and ``cov(x, z)`` and have no test.
        """
        fixed = coefficient_tables(self.estimates, self._degrees(ddf), level, adjust)
        labels, random = variance_columns(self.estimates, level)
        m, p, size = len(self), len(self.estimates.x_names), len(labels["group"])
        kinds = np.array(["fixed"] * p + ["random"] * size, dtype=object)
        groups = np.array([None] * p + labels["group"], dtype=object)
        terms = np.array([*self.estimates.x_names, *variance_terms(labels)], dtype=object)
        table: dict[str, Any] = {
            "model": np.repeat(np.asarray(self.names), p + size),
            "effect": np.tile(kinds, m),
            "group": np.tile(groups, m),
            "term": np.tile(terms, m),
        }
        none = np.full((m, size), np.nan)
        for name, values in fixed.items():
            table[name] = np.concatenate([values, random.get(name, none)], axis=1).reshape(-1)
        return pd.DataFrame(table)

    def glance(self) -> pd.DataFrame:
        """Facts of every fit, a row per model."""
        found = self.estimates
        facts = {
            "nobs": found.nobs,
            "method": found.method,
            "num_params": found.num_params,
            "sigma": found.sigma,
            "llf": found.llf,
            "deviance": found.deviance,
            "aic": self.aic.to_numpy(),
            "bic": self.bic.to_numpy(),
            "converged": found.converged,
            "is_singular": found.singular,
            "reason": reason_texts(found, self._details),
        }
        return pd.DataFrame(facts, index=self.names)

    def to_frame(self) -> pd.DataFrame:
        """One row per model with every parameter and its standard error beside it.

        Returns
        -------
        pandas.DataFrame
            Columns ``converged``, ``is_singular``, ``reason``, ``nobs``, ``llf``, ``sigma``, and
            ``estimate[...]``, ``std_error[...]`` of every coefficient, variance and covariance.
        """
        columns = dict(wide_columns(self.estimates, self._details))
        return pd.DataFrame({name: np.array(own) for name, own in columns.items()}, index=self.names)

    def _table(self, what: What) -> pd.DataFrame:
        tables = {"tidy": self.tidy, "glance": self.glance, "wide": self.to_frame}
        if what not in tables:
            raise DataError(f"what is {what!r}; tables are {', '.join(map(repr, tables))}")
        table = tables[what]()
        return table if what == "tidy" else table.rename_axis("model").reset_index()

    def to_arrow(self, what: What = "tidy") -> Any:
        """A table as pyarrow.Table.

        Parameters
        ----------
        what : str
            ``"tidy"``, ``"glance"``, or ``"wide"`` (see `to_frame`).

        Returns
        -------
        pyarrow.Table
        """
        import pyarrow

        return pyarrow.Table.from_pandas(self._table(what), preserve_index=False)

    def to_parquet(self, path: str | Path, what: What = "tidy") -> None:
        """Write a table to a Parquet file.

        Parameters
        ----------
        path : str or Path
        what : str
            As for `to_arrow`.
        """
        from pyarrow import parquet

        parquet.write_table(self.to_arrow(what), path)

    # Tests and printing

    def lrtest(
        self, reduced: ManyResults, *, mixture: bool = False, adjust: Adjustment = "fdr_bh"
    ) -> pd.DataFrame:
        """Likelihood-ratio test against another model, for every data set.

        Parameters
        ----------
        reduced : ManyResults
            Fits of a model nested in this one to the same data sets (or of one in which this is nested), by
            the same method; under REML with the same fixed effects.
        mixture : bool
            As for `jaxmixed.lrtest`: the mixture of chi-squared distributions for one more random effect. One
            variance alone always has its mixture.
        adjust : str
            Adjustment of the p-values for the number of models.

        Returns
        -------
        pandas.DataFrame
            Columns ``statistic``, ``df``, ``p_value``, ``p_adjusted``, a row per model. ``attrs`` has the
            ``distribution`` and a ``note`` about it.

        Raises
        ------
        DataError
            If the data sets are not the same.
        DesignError
            If the models are not nested, or are REML fits with different fixed effects.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> data = jm.datasets.load("sleepstudy")
        >>> slope = jm.mixed("Reaction ~ Days + (Days | Subject)", data)
        >>> intercept = jm.mixed("Reaction ~ Days + (1 | Subject)", data)
        >>> Y = intercept.simulate(100, seed=1)
        >>> tests = slope.refit_many(Y).lrtest(intercept.refit_many(Y))
        >>> tests.attrs["distribution"], bool((tests["p_value"] > 0.5).mean() > 0.4)
        ('chi2(2)', True)
        """
        if not isinstance(reduced, ManyResults):
            raise DataError(f"lrtest() compares with ManyResults, not {type(reduced).__name__}")
        if not self.names.equals(reduced.names):
            raise DataError("the models of the two results have different names; fit both to the same data")
        one = ComparedModel(self.frame, self.estimates, self._signature)
        two = ComparedModel(reduced.frame, reduced.estimates, reduced._signature)
        found = lrtest_columns(two, one, mixture=mixture, adjust=adjust)
        attributes = {name: found.pop(name) for name in ("distribution", "note")}
        table = pd.DataFrame(found, index=self.names)
        table.attrs.update(attributes)
        return table

    def adjusted_pvalues(self, adjust: Adjustment = "fdr_bh") -> pd.DataFrame:
        """The p-values of each coefficient adjusted for the number of models."""
        return self._frame(adjusted_p_values(self._coefficients["p_value"], adjust), self.estimates.x_names)

    def summary(self) -> str:
        """Short text: what was fitted, how many models failed and why, and how the estimates vary."""
        found = self.estimates
        failed, doubtful = _counts(found)
        nobs = found.nobs[found.fitted]
        rows = f"{nobs.min():,g} to {nobs.max():,g}" if len(nobs) and nobs.min() < nobs.max() else ""
        rows = rows or (f"{nobs[0]:,g}" if len(nobs) else "none")
        lines = [
            f"{counted(len(found), 'linear mixed model')} fitted by {_METHODS[found.method]}",
            wrapped(printable(self.formula), first="Formula: ", indent="         "),
            f"Rows of a model: {rows}",
            f"Converged: {np.count_nonzero(found.converged):,}, singular:"
            f" {np.count_nonzero(found.singular):,}, not converged: {doubtful:,}, without estimates:"
            f" {failed:,}",
        ]
        bad = self.reason[~found.converged]
        lines += [
            wrapped(f"{times:,} × {printable(text)}", first="  ", indent="    ")
            for text, times in bad.value_counts().head(_NAMED).items()
        ]
        if len(nobs) and found.x_names:
            lines += ["", self._spread().text()]
        return "\n".join(lines)

    def _spread(self) -> Table:
        """How coefficients vary between the models."""
        good, errors = self.estimates.fitted, standard_errors(self.estimates)
        rows = []
        for j, name in enumerate(self.estimates.x_names):
            beta, error = self.estimates.beta[good, j], errors[good, j]
            known = ~np.isnan(beta)
            cells: tuple[str, ...] = ("", "", "", "")
            if known.any():
                low, middle, high = np.quantile(beta[known], [0.025, 0.5, 0.975])
                cells = tuple(map(number, (low, middle, high, np.median(error[known]))))
            rows.append((printable(name), *cells))
        header = ("Coefficient over models", "2.5%", "median", "97.5%", "median SE")
        return Table("", header, tuple(rows))

    def warn(self) -> None:
        """Say once how many models failed, and name the first of them."""
        bad = np.flatnonzero(~self.estimates.converged)
        if not len(bad):
            return
        reasons = self.reason
        named = "; ".join(f"{self.names[model]}: {reasons.iloc[model]}" for model in bad[:_NAMED])
        more = f"; and {len(bad) - _NAMED:,} more" if len(bad) > _NAMED else ""
        warnings.warn(
            printable(f"{len(bad):,} of {counted(len(self), 'model')} failed ({named}{more})."),
            ConvergenceWarning,
            stacklevel=user_level(),
        )


def _counts(estimates: ManyEstimates) -> tuple[int, int]:
    """Models without estimates, and those whose estimates failed a check."""
    fitted = estimates.fitted
    return int(np.count_nonzero(~fitted)), int(np.count_nonzero(fitted & ~estimates.converged))
