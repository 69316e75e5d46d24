"""The bootstrap of a fit: its replicates, and the confidence limits, biases and errors that they give.

==========  ======================================================================================
kind        how a replicate is made
==========  ======================================================================================
parametric  new random effects and residuals are drawn from the fitted model
residual    predicted random effects and residuals, reflated to the estimated variances, are drawn
            with replacement (Carpenter, Goldstein & Rasbash 2003, Applied Statistics 52, 431-443)
cluster     groups of the coarsest grouping are drawn with replacement, with all their rows; a group
            drawn twice is two groups
case        rows are drawn with replacement, each with its groups
==========  ======================================================================================
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from jaxmixed import intervals, resampling
from jaxmixed._distributions import normal_quantile
from jaxmixed.draws import check_seed
from jaxmixed.errors import ConvergenceWarning, DataError, printable, user_level
from jaxmixed.fitted import Fitted
from jaxmixed.formatting import Table, counted, number, wrapped
from jaxmixed.inference import VarianceParameters
from jaxmixed.many_estimates import REASONS, ManyEstimates
from jaxmixed.parameter_values import (
    Parameters,
    all_values,
    estimated_values,
    parameters_of,
    residual_values,
    scaled_errors,
    variance_errors,
)
from jaxmixed.resampling import by_designs, by_responses, fit_all
from jaxmixed.residual_inference import residual_inference
from jaxmixed.weighted_samples import refuse_weighted_sample

BootstrapKind = Literal["parametric", "residual", "cluster", "case"]
Interval = Literal["percentile", "bca", "studentized", "basic", "normal"]
KINDS: tuple[BootstrapKind, ...] = get_args(BootstrapKind)
INTERVALS: tuple[Interval, ...] = get_args(Interval)

_RANGES = {"sd": (0.0, np.inf), "var": (0.0, np.inf), "corr": (-1.0, 1.0)}


class Bootstrap:
    """Replicates of a fit, and what they say of its parameters.

    Parameters
    ----------
    fit : MixedResults
    kind : str
        How the replicates were made.
    seed : int
    requested : int
        Number of replicates that were asked for.
    replicates : ManyEstimates
        Of those that were done.
    numbers : (m,) int array
        Their numbers.

    Notes
    -----
    Limits, biases and standard errors are of the replicates that converged (`n_ok`), singular ones included;
    `reasons` counts the others. Names of parameters are those of the coefficients, ``sd(x | group)``,
    ``corr(x, z | group)``, ``var(x | group)`` and ``cov(x, z | group)``; ``sd(Residual)`` is sigma.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
    >>> boot = fit.bootstrap(100, seed=1)
    >>> boot
    <Bootstrap: parametric, 100 replicates, seed 1, of Reaction ~ Days + (1 | Subject)>
    >>> boot.params.shape
    (100, 2)
    """

    def __init__(
        self,
        fit: Fitted,
        *,
        kind: BootstrapKind,
        seed: int,
        requested: int,
        replicates: ManyEstimates,
        numbers: np.ndarray,
    ) -> None:
        self.fit, self.kind, self.seed, self.requested = fit, kind, seed, requested
        self.replicates, self.numbers = replicates, numbers

    # Counts

    def __len__(self) -> int:
        return len(self.replicates)

    @property
    def n_ok(self) -> int:
        """Number of replicates that converged; the others are left out."""
        return int(self.replicates.converged.sum())

    @property
    def n_failed(self) -> int:
        """Number of replicates that could not be fitted or failed a check."""
        return len(self) - self.n_ok

    @property
    def n_singular(self) -> int:
        """Number of converged replicates with a singular covariance matrix."""
        return int((self.replicates.singular & self.replicates.converged).sum())

    @property
    def reasons(self) -> dict[str, int]:
        """Why replicates failed, in words, with their numbers."""
        return resampling.reason_counts(self.replicates.reason)

    def __repr__(self) -> str:
        done = counted(len(self), "replicate")
        done += f" of {self.requested:,}" if len(self) < self.requested else ""
        failed = f", {self.n_failed:,} failed" if self.n_failed else ""
        formula = printable(self.fit.frame.formula.text)
        return f"<Bootstrap: {self.kind}, {done}{failed}, seed {self.seed}, of {formula}>"

    # Replicates

    @cached_property
    def parameters(self) -> Parameters:
        """Names and kinds of all parameters."""
        return parameters_of(self.fit, residual=True)

    @cached_property
    def _all(self) -> np.ndarray:
        return np.concatenate([all_values(self.replicates), self._of_residuals[0]], axis=1)

    @cached_property
    def _of_residuals(self) -> tuple[np.ndarray, np.ndarray]:
        """Parameters of correlated residuals of all replicates, and their standard errors."""
        return residual_values(self.replicates)

    @cached_property
    def _values(self) -> np.ndarray:
        """Values of the converged replicates, (n_ok, P)."""
        return self._all[self.replicates.converged]

    @cached_property
    def _variances(self) -> VarianceParameters:
        return VarianceParameters.of(self.fit.estimates)

    @cached_property
    def _estimates(self) -> np.ndarray:
        """Estimates of the fit, (P,)."""
        own = residual_inference(self.fit.estimates)
        return np.concatenate([estimated_values(self.fit.estimates), own.values])

    def _frame(self, *kinds: str) -> pd.DataFrame:
        places = self.parameters.places(*kinds)
        names = [self.parameters.names[place] for place in places]
        return pd.DataFrame(self._all[:, places], index=self._index, columns=names)

    @property
    def _index(self) -> pd.Index:
        return pd.Index(self.numbers, name="replicate")

    @property
    def params(self) -> pd.DataFrame:
        """Coefficients, a row per replicate; NaN where it could not be fitted or lacks the column."""
        return self._frame("fixed")

    @property
    def sd(self) -> pd.DataFrame:
        """Standard deviations and correlations, a row per replicate; the residual's is the last."""
        return self._frame("sd", "corr")

    @property
    def varcorr(self) -> pd.DataFrame:
        """Variances and covariances, a row per replicate; the residual's is the last."""
        return self._frame("var", "cov")

    @property
    def residual(self) -> pd.DataFrame:
        """Parameters of correlated residuals, a row per replicate."""
        return self._frame("residual")

    @property
    def sigma(self) -> pd.Series:
        """Residual standard deviations."""
        return pd.Series(self.replicates.sigma.copy(), index=self._index, name="sigma")

    @property
    def theta(self) -> np.ndarray:
        """Parameters of the relative covariance factors, (replicates, k)."""
        return self.replicates.theta.copy()

    @property
    def llf(self) -> pd.Series:
        """(Restricted) log-likelihoods of the replicates."""
        return pd.Series(self.replicates.llf, index=self._index, name="llf")

    @property
    def reason(self) -> pd.Series:
        """Why each replicate failed; empty where it did not."""
        texts = [REASONS[int(code)] for code in self.replicates.reason]
        return pd.Series(texts, index=self._index, name="reason", dtype=object)

    # What they say

    def conf_int(self, level: float = 0.95, method: Interval = "percentile") -> pd.DataFrame:
        """Confidence intervals of all parameters.

        Parameters
        ----------
        level : float
            Confidence level.
        method : str
            ``"percentile"``; ``"basic"``: the percentile limits mirrored at the estimate; ``"normal"``: the
            replicates' bias and standard deviation; ``"studentized"``: from each replicate's own standard
            errors, on the scale of log standard deviations and atanh correlations; ``"bca"``: bias-corrected
            and accelerated, with a jackknife over the groups of the coarsest grouping (over rows in a linear
            model), whose fits it makes. Basic and normal limits are cut off at the ends of a parameter's
            range.

        Returns
        -------
        pandas.DataFrame
            Columns ``conf_low``, ``conf_high`` and ``n_used``, the number of replicates in which the
            parameter was estimated, by parameter. NaN where there is no estimate, where all replicates lie on
            one side of it (BCa), and where it has no standard error (studentized limits of a variance of
            zero).

        Raises
        ------
        DataError
            For another method, or a level that is none.
        DesignError
            For BCa limits with crossed groupings.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
        >>> boot = fit.bootstrap(100, seed=1)
        >>> boot.conf_int().loc["Days"].round(1).tolist()
        [8.9, 12.2, 100.0]
        """
        normal_quantile(level)  # refuses what is no level
        _check_choice("method", method, INTERVALS)
        used = (~np.isnan(self._values)).sum(axis=0)
        used[np.isnan(self._estimates)] = 0
        if method == "studentized":
            limits, used = self._studentized(level)
        else:
            limits = self._limits(level, method)
        limits[used == 0] = np.nan
        return pd.DataFrame(
            {"conf_low": limits[:, 0], "conf_high": limits[:, 1], "n_used": used},
            index=pd.Index(self.parameters.names),
        )

    def _limits(self, level: float, method: Interval) -> np.ndarray:
        """Limits from the values alone, (P, 2)."""
        jackknife = self._jackknife if method == "bca" else None
        found = []
        for place, (kind, estimate) in enumerate(zip(self.parameters.kinds, self._estimates, strict=True)):
            found.append(_limits_of(method, estimate, self._values[:, place], place, jackknife, level))
            if method in ("basic", "normal") and kind in _RANGES:
                found[-1] = tuple(np.clip(found[-1], *_RANGES[kind]).tolist())
        return np.array(found)

    def _studentized(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Studentised limits (P, 2) and how many replicates they use (P,)."""
        found = self.replicates
        own = np.sqrt(np.einsum("bii->bi", found.cov_beta))
        errors = np.concatenate([own, variance_errors(found), self._of_residuals[1]], axis=1)
        errors = errors[found.converged]
        at_fit = np.sqrt(np.diagonal(self.fit.estimates.cov_beta))
        of_residual = np.sqrt(np.diagonal(residual_inference(self.fit.estimates).covariance))
        se = np.concatenate([at_fit, scaled_errors(self._variances)[0], of_residual])
        limits = np.full((len(se), 2), np.nan)
        with np.errstate(all="ignore"):
            for place, kind in enumerate(self.parameters.kinds):
                if kind == "var":
                    continue
                there, back = _SCALES.get(kind, _SAME)
                estimate, values = there(self._estimates[place]), there(self._values[:, place])
                usual = intervals.studentized(estimate, se[place], values, errors[:, place], level)
                limits[place] = back(np.array(usual))
        used = (np.isfinite(errors) & (errors > 0)).sum(axis=0)
        used[np.isnan(se)] = 0
        deviations, variances = self.parameters.places("sd"), self.parameters.places("var")
        limits[variances], used[variances] = limits[deviations] ** 2, used[deviations]
        return limits, used

    @cached_property
    def _jackknife(self) -> np.ndarray:
        """Values without each of the coarsest groups (or rows), (groups, P)."""
        count, designs = resampling.leave_one_out(self.fit)
        found, _ = fit_all(by_designs(self.fit, designs), count, self.fit, most=resampling.MOST_LARGE)
        return np.concatenate([all_values(found), residual_values(found)[0]], axis=1)[found.converged]

    def _series(self, values: np.ndarray, name: str) -> pd.Series:
        return pd.Series(values, index=pd.Index(self.parameters.names), name=name)

    @property
    def bias(self) -> pd.Series:
        """Mean of the replicates minus the estimate."""
        return self._series(_over(np.mean, self._values) - self._estimates, "bias")

    @property
    def std_error(self) -> pd.Series:
        """Standard deviation of the replicates."""
        return self._series(_over(lambda own: np.std(own, ddof=1), self._values, 2), "std_error")

    def table(self, level: float = 0.95, method: Interval = "percentile") -> pd.DataFrame:
        """All parameters: estimate, bias, standard error and limits.

        Parameters
        ----------
        level : float
        method : str
            As for `conf_int`.

        Returns
        -------
        pandas.DataFrame
            Columns ``kind`` ("fixed", "sd", "corr", "var", "cov", "kernel", "residual"), ``group``,
            ``estimate``, ``bias``, ``std_error``, ``conf_low``, ``conf_high``, ``n_used``, by parameter.
        """
        columns = {
            "kind": self.parameters.kinds,
            "group": self.parameters.groups,
            "estimate": self._estimates,
            "bias": self.bias.to_numpy(),
            "std_error": self.std_error.to_numpy(),
        }
        limits = self.conf_int(level, method)
        return pd.concat([pd.DataFrame(columns, index=limits.index), limits], axis=1)

    def statistic(
        self,
        function: Callable[[pd.DataFrame], Any],
        level: float = 0.95,
        method: Literal["percentile", "basic", "normal"] = "percentile",
    ) -> pd.Series:
        """Estimate, bias, standard error and limits of any function of the parameters.

        Parameters
        ----------
        function : callable
            Takes a table with a column for each parameter, and gives a number for each row.
        level : float
        method : str
            ``"percentile"``, ``"basic"`` or ``"normal"``.

        Returns
        -------
        pandas.Series
            ``estimate, bias, std_error, conf_low, conf_high, n_used``.

        Raises
        ------
        DataError
            If the function does not give a number for each row.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
        >>> boot = fit.bootstrap(100, seed=1)
        >>> def icc(p):
        ...     between = p["var((Intercept) | Subject)"]
        ...     return between / (between + p["var(Residual)"])
        >>> boot.statistic(icc)[["estimate", "conf_low", "conf_high"]].round(1).tolist()
        [0.6, 0.3, 0.7]
        """
        normal_quantile(level)
        _check_choice("method", method, ("percentile", "basic", "normal"))
        names = list(self.parameters.names)
        estimate = _one_each(function, pd.DataFrame([self._estimates], columns=names))[0]
        values = _one_each(function, pd.DataFrame(self._values, columns=names))
        low, high = _limits_of(method, estimate, values, 0, None, level)
        own = intervals.known(values)
        found = {
            "estimate": estimate,
            "bias": own.mean() - estimate if len(own) else np.nan,
            "std_error": own.std(ddof=1) if len(own) > 1 else np.nan,
            "conf_low": low,
            "conf_high": high,
            "n_used": float(len(own)),
        }
        return pd.Series(found)

    def __str__(self) -> str:
        return self.summary()

    def summary(self, level: float = 0.95, method: Interval = "percentile") -> str:
        """The table as text, with what was done and what failed."""
        found = self.table(level, method)
        found = found[~found["kind"].isin(["var", "cov"])]
        rows: list[tuple[str, ...]] = []
        heading = ""
        for name, row in found.iterrows():
            group = str(row["group"])
            if group not in (heading, "Residual"):
                rows.append((printable(group),))
                heading = group
            own = str(name).replace(f" | {group})", ")")
            own = f"  {own}" if heading and group != "Residual" else own
            rows.append((printable(own), *(number(row[column], 5, 8) for column in _SHOWN)))
        header = ("", "estimate", "bias", "std. err.", f"[{100 * level:g}% conf.", "interval]")
        lines = [
            f"{self.kind.capitalize()} bootstrap, {counted(len(self), 'replicate')}, seed {self.seed}",
            wrapped(printable(self.fit.frame.formula.text), first="Formula: ", indent="         "),
            "",
            Table("", header, tuple(rows)).text(),
            f"Intervals: {method}.",
        ]
        if len(self) < self.requested:
            lines.append(f"Interrupted: {len(self):,} of {self.requested:,} replicates were done.")
        if self.n_singular:
            lines.append(f"{counted(self.n_singular, 'replicate')} singular (included).")
        if self.n_failed:
            lines.append(wrapped(_failures(self)))
        return "\n".join(lines)


_SHOWN = ("estimate", "bias", "std_error", "conf_low", "conf_high")
_SAME = (lambda x: x, lambda x: x)
_SCALES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "sd": (np.log, np.exp),
    "corr": (np.arctanh, np.tanh),
}


def _limits_of(
    method: str,
    estimate: float,
    values: np.ndarray,
    place: int,
    jackknife: np.ndarray | None,
    level: float,
) -> intervals.Limits:
    """Limits of one parameter by one method."""
    if jackknife is not None:
        return intervals.bca(estimate, values, jackknife[:, place], level)
    if method == "basic":
        return intervals.basic(estimate, values, level)
    if method == "normal":
        return intervals.normal(estimate, values, level)
    return intervals.percentile(values, level)


def _over(function: Callable[[np.ndarray], Any], values: np.ndarray, least: int = 1) -> np.ndarray:
    """A statistic of every column's known values."""
    columns = [intervals.known(column) for column in values.T]
    return np.array([function(own) if len(own) >= least else np.nan for own in columns])


def _one_each(function: Callable[[pd.DataFrame], Any], table: pd.DataFrame) -> np.ndarray:
    """A number for each row of a table from a user's function."""
    found = np.asarray(function(table), dtype=np.float64)
    if found.shape != (len(table),):
        raise DataError(
            f"the function gives an array of shape {found.shape} for {len(table)} replicates; it must give"
            " one number for each row of its table"
        )
    return found


def _check_choice(what: str, value: Any, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise DataError(f"{what} is {value!r}; choose {', '.join(map(repr, choices))}")


def _failures(found: Bootstrap) -> str:
    reasons = "; ".join(f"{count:,}: {text}" for text, count in found.reasons.items())
    return f"{found.n_failed:,} of {counted(len(found), 'replicate')} failed and are left out ({reasons})."


def bootstrap(
    fit: Fitted,
    n: int = 1000,
    kind: BootstrapKind = "parametric",
    seed: int | None = None,
    *,
    devices: Any = None,
    mesh: Any = None,
    progress: bool | None = None,
) -> Bootstrap:
    """Bootstrap a fit; arguments as for `MixedResults.bootstrap`."""
    n = resampling.check_count(n)
    _check_choice("kind", kind, KINDS)
    refuse_weighted_sample(fit.estimates, "bootstrap()", "every row and group would be drawn as one")
    seed = secrets.randbits(63) if seed is None else check_seed(seed)
    most = resampling.MOST
    if kind in ("parametric", "residual"):
        responses = (resampling.parametric if kind == "parametric" else resampling.residual)(fit, seed)
        fits = by_responses(fit, responses)
    else:
        designs = (resampling.cluster if kind == "cluster" else resampling.case)(fit, seed)
        fits, most = by_designs(fit, designs), resampling.MOST_LARGE
    found, numbers = fit_all(fits, n, fit, devices=devices, mesh=mesh, progress=progress, most=most)
    result = Bootstrap(fit, kind=kind, seed=seed, requested=n, replicates=found, numbers=numbers)
    if result.n_failed:
        warnings.warn(_failures(result), ConvergenceWarning, stacklevel=user_level())
    return result


def bootstrap_limits(
    fit: Fitted,
    level: float,
    interval: Interval,
    n: int,
    kind: BootstrapKind,
    seed: int | None,
    **workers: Any,
) -> pd.DataFrame:
    """Limits of a new bootstrap; see `MixedResults.conf_int`."""
    normal_quantile(level)
    _check_choice("interval", interval, INTERVALS)
    found = bootstrap(fit, n, kind, seed, **workers)
    limits = found.conf_int(level, interval)
    limits.attrs["seed"] = found.seed
    return limits
