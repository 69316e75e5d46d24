"""What a fit does with further responses: it draws them, and it is fitted to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from jaxmixed.announcements import announce_verdicts
from jaxmixed.errors import DataError
from jaxmixed.later import later

if TYPE_CHECKING:
    from jaxmixed.bootstrap import Bootstrap, BootstrapKind, Interval, bootstrap, bootstrap_limits
    from jaxmixed.estimates import Estimates
    from jaxmixed.fixed_inference import FixedInference
    from jaxmixed.frame import ModelFrame
    from jaxmixed.many_fits import refit_many, refit_one
    from jaxmixed.many_results import ManyResults
    from jaxmixed.nulls import NullDistribution, permutation_test
    from jaxmixed.profiles import profile_limits
    from jaxmixed.replicates import simulate_fit
else:
    bootstrap = later("bootstrap", "bootstrap")
    bootstrap_limits = later("bootstrap", "bootstrap_limits")
    refit_many = later("many_fits", "refit_many")
    refit_one = later("many_fits", "refit_one")
    permutation_test = later("nulls", "permutation_test")
    profile_limits = later("profiles", "profile_limits")
    simulate_fit = later("replicates", "simulate_fit")


class Replication:
    """Methods of `MixedResults` that draw or take further responses."""

    frame: ModelFrame
    estimates: Estimates
    state: Any

    if TYPE_CHECKING:

        def __init__(self, *, frame: ModelFrame, estimates: Estimates, state: Any) -> None: ...

        @cached_property
        def _fitted(self) -> np.ndarray: ...

        def coef_table(
            self, ddf: str = "none", level: float = 0.95, *, vcov: FixedInference | None = None
        ) -> pd.DataFrame:
            """Table of the fixed effects."""

    def simulate(self, n: int = 1, seed: int | None = None, random: str = "new") -> pd.DataFrame:
        """Draw responses of the fitted model for the rows used, columns ``sim_1``, ...

        Parameters
        ----------
        n : int
            Number of responses.
        seed : int, optional
            Non-negative. Response i of a seed is the same whatever ``n``. None takes a fresh seed, which
            ``attrs["seed"]`` of the result tells.
        random : str
            ``"new"``: new random effects, for other groups of the same kind. ``"fitted"``: the predicted
            random effects, for new observations of these groups. Residuals are new in both, with the
            correlations of the model.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.simulate(1000, seed=1).shape
        (180, 1000)
        """
        return simulate_fit(self.frame, self.estimates, lambda: self._fitted, n, seed, random)

    def refit(self, y: Any) -> Self:
        """Fit the same model to another response.

        Parameters
        ----------
        y : array or Series
            A number for each row used (or for each row of the data), on the scale of the formula's left side:
            of ``log(y) ~ x``, logarithms. None may be missing.

        Returns
        -------
        MixedResults
            As a fresh fit, by the same method.

        Raises
        ------
        DataError
            If a value is missing or infinite, or all are equal.
        DesignError
            If no residual variance is left.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.refit(fit.frame.y + 100).params.round(3).to_dict()
        {'(Intercept)': 351.405, 'Days': 10.467}
        """
        frame, estimates, state = refit_one(self.frame, self.estimates, self.state, y)
        announce_verdicts(estimates, self.frame.formula.text)
        make: Callable[..., Self] = type(self)
        return make(frame=frame, estimates=estimates, state=state)

    def refit_many(
        self, Y: Any, *, devices: Any = None, mesh: Any = None, progress: bool | None = None
    ) -> ManyResults:
        """Fit the same model to many responses.

        Parameters
        ----------
        Y : array or data frame
            A column per response, a row for each row used (or for each row of the data), on the scale of the
            formula's left side; also a memory map, or the path of a ``.npy`` or Parquet file. A response with
            missing values (NaN) is fitted to the rows that it has. With a residual structure the responses
            are fitted one after the other.
        devices : int or sequence of jax.Device, optional
            How many workers, or which devices; by default all.
        mesh : jax.sharding.Mesh, optional
            All devices of a mesh, possibly of several processes.
        progress : bool, optional
            Whether to show a progress bar; by default on a terminal.

        Returns
        -------
        ManyResults

        Warns
        -----
        ConvergenceWarning
            Once, if models failed; `ManyResults.reason` has every reason.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> many = fit.refit_many(fit.simulate(100, seed=1))
        >>> many.params["Days"].mean().round(1)
        np.float64(10.4)
        """
        return refit_many(
            self.frame, self.estimates, self.state, Y, devices=devices, mesh=mesh, progress=progress
        )

    def bootstrap(
        self,
        n: int = 1000,
        kind: BootstrapKind = "parametric",
        seed: int | None = None,
        *,
        devices: Any = None,
        mesh: Any = None,
        progress: bool | None = None,
    ) -> Bootstrap:
        """Fit the model to replicates of the data.

        Parameters
        ----------
        n : int
            Number of replicates.
        kind : str
            ``"parametric"``: new random effects and residuals at the estimates, the responses of
            ``simulate(n, seed)``. ``"residual"``: predicted random effects and residuals, reflated to the
            estimated variances and drawn with replacement. ``"cluster"``: whole groups of the coarsest
            grouping (of a model without random effects, of correlated residuals) drawn with replacement.
            ``"case"``: rows drawn with replacement, each with its groups. Where residuals are correlated, or
            differ in variance, replicates are parametric or clusters.
        seed : int, optional
            Non-negative. Replicate i of a seed is the same whatever ``n`` and the devices. None takes a fresh
            seed, which the result tells.
        devices : int or sequence of jax.Device, optional
            How many workers, or which devices; all by default.
        mesh : jax.sharding.Mesh, optional
            Devices of one or several processes, each of which makes this call and gets the whole result.
        progress : bool, optional
            Show a progress bar; by default on a terminal.

        Returns
        -------
        Bootstrap
            With confidence intervals (`Bootstrap.conf_int`), biases and standard errors.

        Raises
        ------
        DataError
            For arguments of the wrong kind.
        DesignError
            For a cluster bootstrap without groups or with crossed groupings, and for residuals or rows that
            are drawn though a residual structure makes them unlike.

        Warns
        -----
        ConvergenceWarning
            Some replicates failed; they are counted and left out.
        InterruptedWarning
            After Ctrl-C: the replicates that are done are kept.

        References
        ----------
        Davison & Hinkley (1997), Bootstrap Methods and their Application. Carpenter, Goldstein & Rasbash
        (2003), Applied Statistics 52, 431-443 (residual).

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
        >>> boot = fit.bootstrap(100, seed=1)
        >>> boot.conf_int(level=0.9).loc["sd(Residual)", ["conf_low", "conf_high"]].round().tolist()
        [28.0, 34.0]
        """
        return bootstrap(self, n, kind, seed, devices=devices, mesh=mesh, progress=progress)

    def conf_int(
        self,
        level: float = 0.95,
        method: str = "wald",
        *,
        n: int = 1000,
        seed: int | None = None,
        kind: BootstrapKind = "parametric",
        interval: Interval = "percentile",
        which: str | Sequence[str] | None = None,
        devices: Any = None,
        mesh: Any = None,
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """Confidence intervals: of the coefficients (Wald), or of all parameters (profile, bootstrap).

        Parameters
        ----------
        level : float
            Confidence level.
        method : str
            ``"wald"``: estimate and standard error. ``"profile"``: where the likelihood (of a REML fit, the
            restricted likelihood), maximised over all other parameters, falls off to the level; see
            `profile`. ``"boot"``: the bootstrap.
        which : str or sequence of str, optional
            Parameters to profile; by default all.
        n, seed, kind, devices, mesh, progress
            Of the bootstrap, as for `bootstrap`.
        interval : str
            Bootstrap limits, as for `Bootstrap.conf_int`: ``"percentile"``, ``"bca"``, ``"studentized"``,
            ``"basic"`` or ``"normal"``.

        Returns
        -------
        pandas.DataFrame
            Columns ``conf_low`` and ``conf_high``; of the bootstrap also ``n_used``, the number of replicates
            that the limits rest on, and ``attrs["seed"]``. A profile's limits are as for `Profile.conf_int`.

        Raises
        ------
        DataError
            For another method, and as `bootstrap` and `Bootstrap.conf_int`.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("weight ~ week + (1 | id)", jm.datasets.load("pig"), method="ml")
        >>> fit.conf_int().loc["week"].round(4).tolist()
        [6.1334, 6.2864]
        >>> fit.conf_int(method="profile").loc["sd((Intercept) | id)"].round(3).tolist()
        [3.167, 4.797]
        >>> fit.conf_int(method="boot", n=100, seed=1).loc["sd(Residual)", "conf_low"].round(1)
        np.float64(1.9)
        """
        if method != "boot" and (seed is not None or kind != "parametric" or interval != "percentile"):
            raise DataError("seed=, kind= and interval= are of the bootstrap; pass method='boot', too")
        if method != "profile" and which is not None:
            raise DataError("which= is of profiles; pass method='profile', too")
        if method == "wald":
            return self.coef_table(level=level)[["conf_low", "conf_high"]]
        if method == "profile":
            return profile_limits(self, level, which)
        if method != "boot":
            raise DataError(
                f"method is {method!r}; confidence intervals are 'wald', 'profile' (profile likelihood) or "
                "'boot' (bootstrap)"
            )
        workers = {"devices": devices, "mesh": mesh, "progress": progress}
        return bootstrap_limits(self, level, interval, n, kind, seed, **workers)

    def permutation_test(
        self,
        group: str | None = None,
        n: int = 999,
        seed: int | None = None,
        *,
        devices: Any = None,
        mesh: Any = None,
        progress: bool | None = None,
    ) -> NullDistribution:
        """Test whether a grouping matters, by permuting its labels.

        If the random effects of a grouping have no variance, its labels are arbitrary: any other assignment
        of the rows to its levels is as good. The statistic is the likelihood ratio against the model without
        these random effects. Labels are permuted among rows or, where another grouping is nested in the
        tested one, among the groups of the coarsest of these; and only within the groups of coarser and
        crossed groupings. All numbers of rows (or groups) in a level stay what they are; responses and
        covariates stay with their rows.

        Parameters
        ----------
        group : str, optional
            The grouping that is tested; all its terms together. May be left out if there is only one.
        n : int
            Number of permutations.
        seed, devices, mesh, progress
            As for `bootstrap`.

        Returns
        -------
        NullDistribution
            With ``statistic``, ``p_value`` and the Monte-Carlo limits ``conf_int()``.

        Raises
        ------
        DataError
            For an unknown grouping.
        DesignError
            For a linear model, and where no label can change places.

        References
        ----------
        Fitzmaurice, Lipsitz & Ibrahim (2007), A note on permutation tests for variance components in
        multilevel generalized linear mixed models, Biometrics 63, 942-946.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.permutation_test(n=99, seed=1).p_value
        0.01
        """
        return permutation_test(self, group, n, seed, devices=devices, mesh=mesh, progress=progress)
