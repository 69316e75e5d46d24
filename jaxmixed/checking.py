"""Methods of a fit that check it: influence of rows and groups, certificate of convergence, report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxmixed.later import later

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pandas as pd

    from jaxmixed.certificate import Certificate, certificate
    from jaxmixed.estimates import Estimates
    from jaxmixed.fixed_inference import FixedInference
    from jaxmixed.frame import ModelFrame
    from jaxmixed.influence import Influence, InfluenceMethod, influence
    from jaxmixed.prediction_error import ErrorModel
    from jaxmixed.prediction_slopes import PredictionSlopes
    from jaxmixed.report import write_report
    from jaxmixed.residual_correlation import autocorrelation, variogram
else:
    certificate = later("certificate", "certificate")
    influence = later("influence", "influence")
    write_report = later("report", "write_report")
    autocorrelation = later("residual_correlation", "autocorrelation")
    variogram = later("residual_correlation", "variogram")


class Checking:
    """Methods of `MixedResults` that look for what an estimate hangs on, and whether it can be trusted."""

    frame: ModelFrame
    estimates: Estimates
    state: Any

    if TYPE_CHECKING:

        @property
        def _modes(self) -> tuple[np.ndarray, ...]: ...

        @property
        def _errors(self) -> ErrorModel: ...

        @property
        def _slopes(self) -> PredictionSlopes: ...

        @property
        def _fitted(self) -> np.ndarray: ...

        def fixed_inference(self, ddf: str = "none", vcov: FixedInference | None = None) -> FixedInference:
            """Inference on linear functions of the coefficients."""

        def residuals(self, kind: str = "response", random: bool | str = True) -> pd.Series:
            """Residuals of the rows used."""

    def influence(
        self,
        cases: Any = "rows",
        method: InfluenceMethod = "both",
        *,
        devices: Any = None,
        mesh: Any = None,
        progress: bool | None = None,
    ) -> Influence:
        """How much the estimates depend on single rows, or on single groups.

        Parameters
        ----------
        cases : str or array_like
            What is left out, one at a time: ``"rows"``; a grouping, e.g. ``"school"``; another column that
            the fit keeps; or a value for every row, the rows of one value being left out together.
        method : str
            ``"deletion"``: the model is fitted without each case, all fits at once; the only method for
            models with a residual structure, one fit after the other. ``"approximate"``: what deletion does
            to first order, from the derivatives of the estimates in how often each case counts (variance
            parameters included), which costs little more than the fit. ``"both"``: both, and a column
            ``disagree`` that says where the first order is not to be relied on.
        devices : int or sequence of jax.Device, optional
            How many workers, or which devices, fit the models; all by default.
        mesh : jax.sharding.Mesh, optional
            All devices of a mesh, possibly of several processes.
        progress : bool, optional
            Show a progress bar; by default on a terminal.

        Returns
        -------
        Influence
            `table` with leverage, Cook's distance, MDFFITS, COVRATIO and COVTRACE; `dfbetas` by coefficient;
            `rvc`, relative changes of the variance parameters; `refits`, the fits without each case; and
            `plot`. Its printed form names the cases that stand out.

        Raises
        ------
        DataError
            For another method, or a column or level that the fit does not have.
        DesignError
            If all rows are one case.

        Warns
        -----
        ConvergenceWarning
            If the model cannot be fitted without some of the cases; the table says why.
        InterruptedWarning
            After Ctrl-C: the cases that are done are kept.

        Notes
        -----
        What the formula computed from all rows (the mean in ``center(x)``, knots) stays as it is. A
        coefficient that cannot be estimated without a case is NaN there, and so are the measures of that case
        that need it. To first order whole groups count, with their random effects, where cases are made of
        them; otherwise (parts of groups, levels that are related) rows do, which is further from deletion.
        Cook's distance is that of SAS, HLMdiag and influence.ME; lme4's
        ``cooks.distance(influence(fit))`` multiplies it by (c - p) / c, with c cases and p coefficients.

        References
        ----------
        Christensen, Pearson & Johnson (1992), Case-deletion diagnostics for mixed models, Technometrics 34,
        38-45; Demidenko & Stukel (2005), Influence analysis for linear mixed-effects models, Statistics in
        Medicine 24, 893-909; Loy & Hofmann (2014), HLMdiag, Journal of Statistical Software 56(5).

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> found = fit.influence("Subject")
        >>> found.table.loc[["308", "309"], ["leverage", "cooks_distance", "cooks_distance_approx"]].round(4)
                 leverage  cooks_distance  cooks_distance_approx
        Subject
        308        1.6123          0.0924                 0.0824
        309        1.6123          0.1485                 0.1325
        >>> found.rvc.loc["335", "var(Days | Subject)"].round(3)
        np.float64(-0.27)
        """
        return influence(self, cases, method, devices=devices, mesh=mesh, progress=progress)

    def certificate(self, starts: int = 0, seed: int = 0) -> Certificate:
        """Say what was checked about the optimum: gradient, curvature, boundary; what is weak, what to do.

        Parameters
        ----------
        starts : int
            Also search from that many random starting points, and say how many of them led to the same
            optimum. Nothing is compiled anew; on small designs eight starts take milliseconds.
        seed : int
            Of the random starts.

        Returns
        -------
        Certificate
            Prints as text, and as HTML in notebooks. `boundary_table()`, `parameters` and `optima()` are
            tables; `refit()` fits the model from the best point that a start led to.

        Raises
        ------
        DataError
            If `starts` or `seed` is not a non-negative integer.

        Warns
        -----
        ConvergenceWarning
            If a start led to a lower deviance than the fit's.

        Notes
        -----
        Derivatives are exact. Parameters are those of the relative Cholesky factors of standardised columns,
        in which the optimiser works; the least determined direction is given on the scales of intervals:
        logarithms of standard deviations, atanh of correlations.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> found = fit.certificate(starts=8)
        >>> found.hessian_eigenvalues.round(3), round(found.condition_number, 2)
        (array([0.458, 0.977, 1.565]), 3.42)
        >>> found.optima()[["starts", "same_parameters"]].to_dict("records")
        [{'starts': 8, 'same_parameters': 8}]
        """
        return certificate(self, starts, seed)

    def autocorrelation(
        self,
        group: Any = None,
        time: Any = None,
        *,
        max_lag: int | None = None,
        level: float = 0.95,
        simulations: int | None = None,
        seed: int = 1,
    ) -> pd.DataFrame:
        """Autocorrelation of the normalized conditional residuals within groups, by lag.

        Normalized are standardized residuals, whitened where the model has them correlated: what is left then
        is what the structure does not explain.

        At each lag the mean product of residuals that are so far apart in the same group, over the mean
        square of all, as nlme's ``ACF``; groups may differ in length. Estimated random effects make
        conditional residuals correlated (negatively at short lags, in short series strongly) even where those
        of the model are independent. The limits, which are simulated from the fitted model, account for that.

        Parameters
        ----------
        group : str or array_like, optional
            Grouping, another column, or values by row; by default the groups of correlated residuals, or the
            grouping with the most levels. In a linear model all rows are one series.
        time : str or array_like, optional
            Column that the fit keeps, or values by row, that orders the rows of a group; by default the times
            of correlated residuals, or the order of the data. Where all times lie on a grid, lags are its
            steps, and rows that are missing leave gaps; else rows are counted.
        max_lag : int, optional
            By default 10 log10(length of the longest series), as in R.
        level : float
            Of the limits, each of which is for one lag.
        simulations : int, optional
            Simulated responses: by default 119, of more than 50,000 rows 39. 0: limits of independent
            residuals, normal quantiles over the root of the number of pairs.
        seed : int
            Of the simulations.

        Returns
        -------
        pandas.DataFrame
            Columns ``lag``, ``autocorrelation``, ``pairs``, ``low`` and ``high``.

        Raises
        ------
        DataError
            If several rows of a group have the same time, or there are no pairs.

        References
        ----------
        Pinheiro & Bates (2000), Mixed-Effects Models in S and S-PLUS, section 5.3.1.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> found = fit.autocorrelation(time="Days", max_lag=2)
        >>> found[["autocorrelation", "pairs"]].round(3).to_numpy().tolist()
        [[1.0, 180.0], [0.116, 162.0], [-0.167, 144.0]]
        >>> bool(found["autocorrelation"][1] > found["high"][1])
        True
        """
        found = autocorrelation(self, group, time, max_lag, level, simulations, seed)
        return found.noted()

    def variogram(
        self,
        x: Any = None,
        group: Any = None,
        *,
        max_distance: float | None = None,
        bins: int = 20,
        level: float = 0.95,
        simulations: int | None = None,
        seed: int = 1,
    ) -> pd.DataFrame:
        """Semivariogram of the normalized conditional residuals within groups, by distance.

        Half the mean squared difference of the residuals of pairs of rows of a group, as nlme's
        ``Variogram``. Where more than a million pairs exist, a million are drawn.

        Parameters
        ----------
        x : str or array_like, optional
            Column that the fit keeps, or values by row, whose differences are the distances; by default the
            times of correlated residuals, or positions in the group, in the order of the data.
        group : str or array_like, optional
            As for `autocorrelation`.
        max_distance : float, optional
            Pairs further apart are left out.
        bins : int
            Where there are more distances than that, they are put in so many bins with about as many pairs
            each.
        level, simulations, seed
            As for `autocorrelation`; without simulations there are no limits. The seed is that of the drawn
            pairs, too.

        Returns
        -------
        pandas.DataFrame
            Columns ``distance`` (median of the bin), ``semivariance``, ``pairs``, ``low`` and ``high``.

        References
        ----------
        Pinheiro & Bates (2000), Mixed-Effects Models in S and S-PLUS, section 5.3.2.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> found = fit.variogram("Days", max_distance=2, simulations=0)
        >>> found[["distance", "semivariance"]].round(3).to_numpy().tolist()
        [[1.0, 0.718], [2.0, 1.006]]
        """
        found = variogram(self, x, group, max_distance, bins, level, simulations, seed)
        return found.noted()

    def report(
        self,
        path: str | Path,
        *,
        level: float = 0.95,
        ddf: str = "none",
        title: str | None = None,
        figures: bool = True,
        overwrite: bool = False,
    ) -> Path:
        """Write everything about the fit as one HTML page, to read, print and pass on.

        The model in words and in mathematics, coefficients, variance parameters, tests, R-squared, the
        certificate of convergence, diagnostic plots, and what is needed to make the fit again. The page
        needs no network and no other files. Needs the extra ``jaxmixed[report]``.

        Parameters
        ----------
        path : str or Path
            Name of the page, ending in ``.html``.
        level : float
            Level of all intervals.
        ddf : str
            Degrees of freedom of the tests of coefficients, as for `coef_table`.
        title : str, optional
            By default the response and the kind of model.
        figures : bool
            Whether to draw the diagnostics.
        overwrite : bool
            Whether to replace a file of that name.

        Returns
        -------
        Path
            Of the page.

        Raises
        ------
        DataError
            If the page cannot be written there, a file of that name exists, or a library is missing.

        Examples
        --------
        >>> import tempfile
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fit.report(f"{folder}/sleep.html", ddf="satterthwaite", figures=False).name
        'sleep.html'
        """
        options: dict[str, Any] = {"level": level, "ddf": ddf, "title": title, "figures": figures}
        return write_report(self, path, overwrite=overwrite, **options)  # type: ignore[arg-type]
