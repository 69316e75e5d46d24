"""How much the estimates of a fit depend on single rows, or on single groups."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
import pandas as pd

from jaxmixed.case_derivatives import CaseDerivatives, Cases, Rows, case_derivatives
from jaxmixed.deletion import NamedCases, delete_cases, refits_of
from jaxmixed.errors import DataError, DesignError, printable
from jaxmixed.formatting import NotedFrame, count, counted, wrapped
from jaxmixed.influence_measures import (
    KINDS,
    Measures,
    Numbers,
    disagreement,
    of_deletion,
    of_derivatives,
    usual_limits,
)
from jaxmixed.parameter_values import parameters_of
from jaxmixed.plot_influence import InfluencePlot, draw_influence
from jaxmixed.predict import fitted_rows, group_contribution
from jaxmixed.predictions import Fit as PredictingFit
from jaxmixed.removal import whole_level
from jaxmixed.residual_kinds import leverage
from jaxmixed.residual_refusals import refuse_residual_structure
from jaxmixed.robust_inference import resolve_clusters
from jaxmixed.weighted_samples import refuse_weighted_sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from jaxmixed.many_results import ManyResults

InfluenceMethod = Literal["both", "approximate", "deletion"]
METHODS: tuple[InfluenceMethod, ...] = get_args(InfluenceMethod)

_ROWS = "rows"
_SHOWN = 6


class Fit(PredictingFit, Protocol):
    """What influence needs of a fit."""

    state: Any


@dataclass(frozen=True, eq=False, repr=False)
class Influence:
    """Influence of rows or groups on a fit: what `MixedResults.influence` returns.

    Attributes
    ----------
    label : str
        Name of the cases: "rows", or the grouping.
    names : pandas.Index
        Labels of the cases.
    sizes : (c,) int array
        Rows in each.
    deletion : Measures or None
        From fits without each case.
    approximate : Measures or None
        To first order, from the derivatives of the estimates.
    refits : ManyResults or None
        The fits without each case: `refits.params`, `refits.varcorr`, `refits.theta`, `refits.deviance` ...
    fit : MixedResults
        Of all rows.
    codes : (n,) int array
        Case of each row used.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    >>> found = fit.influence("Subject")
    >>> found.cooks_distance.nlargest(2).round(4).to_dict()
    {'309': 0.1485, '335': 0.1295}
    """

    label: str
    names: pd.Index
    sizes: np.ndarray
    deletion: Measures | None
    approximate: Measures | None
    refits: ManyResults | None
    fit: Fit
    codes: np.ndarray
    _leverage: np.ndarray
    _disagree: np.ndarray | None

    @property
    def _best(self) -> Measures:
        found = self.approximate if self.deletion is None else self.deletion
        assert found is not None  # at least one was asked for
        return found

    @property
    def are_rows(self) -> bool:
        """Whether the cases are single rows."""
        return self.label == _ROWS and bool((self.sizes == 1).all())

    # Tables

    @property
    def table(self) -> pd.DataFrame:
        """Measures of every case, a row each.

        Columns: ``rows`` (of groups), ``leverage``; of the fits without each case ``cooks_distance``,
        ``mdffits``, ``covratio``, ``covtrace``; to first order the same, but ``mdffits``, with the ending
        ``_approx``; where both were asked for ``disagree``; and ``reason``, what is wrong with a fit without
        a case, mostly empty.
        """
        columns: dict[str, Any] = {} if self.are_rows else {"rows": self.sizes.copy()}
        columns["leverage"] = self._leverage.copy()
        if self.deletion is not None:
            own = self.deletion
            for values in (own.cooks_distance, own.mdffits, own.covratio, own.covtrace):
                columns[str(values.name)] = values.to_numpy()
        if self.approximate is not None:
            own = self.approximate
            for values in (own.cooks_distance, own.covratio, own.covtrace):
                columns[f"{values.name}_approx"] = values.to_numpy()
        if self._disagree is not None:
            columns["disagree"] = self._disagree.copy()
        if self.refits is not None:
            columns["reason"] = self._reasons()
        return NotedFrame(columns, index=self.names.rename(self.label))

    def _reasons(self) -> np.ndarray:
        """What is wrong with the fits without each case, (c,): failures, and coefficients that are lost."""
        assert self.refits is not None
        assert self.deletion is not None
        reasons = self.refits.reason.to_numpy(dtype=object)
        known = ~np.isnan(self.fit.estimates.beta)
        lost = np.isnan(self.deletion.dfbeta.to_numpy()) & known & self.refits.estimates.fitted[:, None]
        names = np.array(self.fit.frame.x_names, dtype=object)
        for case in np.flatnonzero(lost.any(axis=1)):
            reasons[case] = reasons[case] or f"no estimate of {', '.join(names[lost[case]])}"
        return reasons

    @property
    def leverage(self) -> pd.Series:
        """Leverages of the rows, or their sums over the rows of each group."""
        return pd.Series(self._leverage.copy(), index=self.names, name="leverage")

    @property
    def cooks_distance(self) -> pd.Series:
        """Cook's distances: of deletion, or to first order if only that was asked for."""
        return self._best.cooks_distance

    @property
    def mdffits(self) -> pd.Series:
        """MDFFITS of deletion."""
        return self._best.mdffits

    @property
    def covratio(self) -> pd.Series:
        """COVRATIO: of deletion, or to first order if only that was asked for."""
        return self._best.covratio

    @property
    def covtrace(self) -> pd.Series:
        """COVTRACE: of deletion, or to first order if only that was asked for."""
        return self._best.covtrace

    @property
    def dfbetas(self) -> pd.DataFrame:
        """DFBETAS of every coefficient: of deletion, or to first order if only that was asked for."""
        return self._best.dfbetas

    @property
    def rvc(self) -> pd.DataFrame:
        """Relative changes of variance parameters: of deletion, or to first order if only that was asked."""
        return self._best.rvc

    @property
    def disagree(self) -> pd.Series:
        """Cases of whose influence the first order gives a wrong idea; False where only one was asked for.

        Cook's distance, or the relative change of a variance parameter, differs by more than a third of the
        larger of the two values and by more than what has no consequence: half of the usual cut-off of Cook's
        distance (4 / cases), 0.1 for a variance. So does every case without which a coefficient cannot be
        estimated.
        """
        found = np.zeros(len(self.names), dtype=bool) if self._disagree is None else self._disagree.copy()
        return pd.Series(found, index=self.names, name="disagree")

    # Pictures

    def plot(self, kind: InfluencePlot = "index", *, mark: int = 5, ax: Axes | None = None) -> Axes:
        """Draw the influence of all cases.

        Parameters
        ----------
        kind : str
            ``"index"``: Cook's distance of every case, in order. ``"bubble"``: residuals against leverages,
            the area of a bubble in proportion to Cook's distance. ``"agreement"``: Cook's distance of
            deletion against that to first order.
        mark : int
            How many of the most influential cases carry their names.
        ax : matplotlib.axes.Axes, optional
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.influence("Subject", "approximate").plot().get_ylabel()
        "Cook's distance to first order"
        """
        return draw_influence(self, kind, mark, ax)

    # Text

    def _heading(self) -> str:
        ways = {
            (True, True): "fits without each of them, and first-order predictions",
            (True, False): "fits without each of them",
            (False, True): "first-order predictions of deletion",
        }[self.deletion is not None, self.approximate is not None]
        of = counted(len(self.names), "row" if self.are_rows else "level")
        of += "" if self.are_rows else f" of {printable(self.label)}"
        return f"Influence of {of}: {ways}"

    def _verdicts(self) -> list[str]:
        """Cases beyond the usual cut-offs, the largest changes, and where the two ways disagree."""
        cases, best = len(self.names), self._best
        p = int((~np.isnan(self.fit.estimates.beta)).sum())
        limits, found = usual_limits(cases, p), []
        with np.errstate(invalid="ignore"):
            sizes = np.abs(best.dfbetas.to_numpy())
            distant = best.cooks_distance.to_numpy() > limits.cooks_distance
            off = np.abs(best.covratio.to_numpy() - 1) > limits.covratio
            moved = (sizes > limits.dfbetas).any(axis=1)
        found += [
            f"Beyond the usual cut-offs (c = {counted(cases, 'case')}, p = {counted(p, 'coefficient')}):",
            f"  Cook's distance > 4/c = {limits.cooks_distance:.3g}: {self._listed(distant)}",
            f"  |DFBETAS| > 2/sqrt(c) = {limits.dfbetas:.3g}: {self._listed(moved)}",
            f"  |COVRATIO - 1| > 3p/c = {limits.covratio:.3g}: {self._listed(off)}",
        ]
        changes = []
        for name, column in best.rvc.items():
            if str(name).startswith("cov("):
                continue  # relative to what may be near zero
            known = column[np.isfinite(column)]
            if len(known):
                at = int(np.argmax(np.abs(known.to_numpy())))
                changes.append(
                    f"{printable(name)} {100 * known.iloc[at]:+.3g}% without {printable(known.index[at])}"
                )
        if changes:
            found.append("Largest changes of variance parameters: " + "; ".join(changes) + ".")
        if self._disagree is not None:
            found.append(
                "First order and deletion disagree materially for "
                + (self._listed(self._disagree) if self._disagree.any() else "no case")
                + "."
            )
        if self.refits is not None:
            reasons = self._reasons()
            for reason in dict.fromkeys(reasons[reasons != ""]):
                found.append(f"{printable(reason)}: {self._listed(reasons == reason)}.")
        return found

    def _lines(self) -> list[str]:
        """The verdicts, wrapped."""
        return [wrapped(line, indent="    ") for line in self._verdicts()]

    def _listed(self, mask: np.ndarray) -> str:
        """How many cases, and the first of them by Cook's distance."""
        chosen = np.flatnonzero(mask)
        if not len(chosen):
            return "none"
        order = np.argsort(-np.nan_to_num(self._best.cooks_distance.to_numpy()[chosen]), kind="stable")
        names = ", ".join(printable(self.names[place]) for place in chosen[order[:_SHOWN]])
        return f"{count(len(chosen))} ({names}{', ...' if len(chosen) > _SHOWN else ''})"

    def _largest(self) -> pd.DataFrame:
        """Rows of the table with the largest Cook's distances, and its most used columns."""
        distances = np.nan_to_num(self._best.cooks_distance.to_numpy(), nan=np.inf)
        table = self.table.iloc[np.argsort(-distances, kind="stable")[:_SHOWN]]
        less = ["covtrace", "covtrace_approx", "reason"]
        less += [] if self.deletion is None else ["covratio_approx"]
        return table.drop(columns=[name for name in less if name in table])

    def __repr__(self) -> str:
        shown = self._largest().to_string(float_format=lambda value: f"{value:.4g}")
        return "\n".join([self._heading(), "", shown, "", *self._lines()])

    def _repr_html_(self) -> str:
        """Fragment for notebooks: every name is escaped."""
        table = self._largest().to_html(float_format=lambda value: f"{value:.4g}")
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in self._verdicts())
        return f"<div><h4>{html.escape(self._heading())}</h4>{table}{lines}</div>"


def named_cases(fit: Fit, cases: Any) -> NamedCases:
    """Cases that a user asks for.

    Parameters
    ----------
    fit : Fit
    cases : str or array_like
        See `MixedResults.influence`.

    Returns
    -------
    NamedCases

    Raises
    ------
    DataError, DesignError

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
    >>> len(named_cases(fit, "rows")), len(named_cases(fit, "Days"))
    (180, 10)
    """
    frame = fit.frame
    if cases is None:
        raise DataError("cases is None; give 'rows', the name of a grouping, or a value for every row")
    if isinstance(cases, str) and cases == _ROWS:
        return NamedCases(_ROWS, frame.index, np.arange(len(frame.y)), are_rows=True)
    found = resolve_clusters(frame, cases, "cases")
    if len(found.levels) < 2:
        raise DesignError(
            f"all rows used are in one case, {printable(found.levels[0])} of {printable(found.label)!r};"
            " nothing is left without it"
        )
    every_row = np.array_equal(found.codes, np.arange(len(frame.y)))
    return NamedCases(found.label, found.levels, found.codes, are_rows=every_row)


def influence(
    fit: Fit,
    cases: Any = _ROWS,
    method: InfluenceMethod = "both",
    *,
    devices: Any = None,
    mesh: Any = None,
    progress: bool | None = None,
) -> Influence:
    """Influence of rows or groups; see `MixedResults.influence`, which calls this."""
    if method not in METHODS:
        raise DataError(f"method is {method!r}; influence() knows {', '.join(map(repr, METHODS))}")
    refuse_weighted_sample(fit.estimates, "influence()", "a case that is left out would be several")
    if method != "deletion":
        refuse_residual_structure(
            fit.estimates,
            "the first order of deletion lets each row count for itself",
            "use method='deletion', which fits the model without each case; it is quick for groups",
        )
    chosen = named_cases(fit, cases)
    parameters = parameters_of(fit)
    variances = tuple(parameters.names[place] for place in parameters.places(*KINDS))

    def measures(numbers: Numbers) -> Measures:
        return Measures(numbers, chosen.names, fit.frame.x_names, variances)

    sizes = np.bincount(chosen.codes)
    first = second = refits = disagree = None
    if method != "deletion":
        derivatives = infinitesimal(fit, chosen.codes)
        first = of_derivatives(fit.estimates, derivatives)
        hats = derivatives.leverage
    else:
        hats = np.bincount(chosen.codes, leverage(fit))
    if method != "approximate":
        outcome = delete_cases(fit, chosen, devices=devices, mesh=mesh, progress=progress)
        refits = refits_of(fit, chosen, outcome)
        refits.warn()
        second = of_deletion(fit.estimates, outcome.estimates, parameters)
        if first is not None:
            judged = np.array([not name.startswith("cov(") for name in variances])
            disagree = disagreement(first, second, outcome.estimates.reason, judged)
    return Influence(
        label=chosen.label,
        names=chosen.names,
        sizes=sizes,
        deletion=None if second is None else measures(second),
        approximate=None if first is None else measures(first),
        refits=refits,
        fit=fit,
        codes=chosen.codes,
        _leverage=hats,
        _disagree=disagree,
    )


def infinitesimal(fit: Fit, codes: np.ndarray) -> CaseDerivatives:
    """Derivatives of the estimates in how often each case counts.

    Where cases are made of whole levels of a grouping, these are what is counted, with their random effects;
    otherwise it is the rows.

    Parameters
    ----------
    fit : Fit
    codes : (n,) int array
        Case of each row.

    Returns
    -------
    CaseDerivatives

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
    >>> infinitesimal(fit, fit.frame.groups[0].codes).beta.shape
    (18, 2)
    """
    frame, state = fit.frame, fit.state
    rows = fitted_rows(frame, fit.estimates)
    modes = fit._modes
    described = Rows(
        X=frame.X,
        terms=rows.terms,
        weights=np.ones(len(frame.y)) if frame.weights is None else frame.weights,
        resid=frame.y - rows.values(fit.estimates.beta, modes),
        contributions=[group_contribution(own.Z, own.codes, modes[own.term]) for own in rows.terms],
    )
    number = int(codes.max()) + 1
    counted_levels = whole_level(state, codes)
    if counted_levels is None:
        return case_derivatives(fit._errors, fit.estimates, described, Cases(codes, number))
    level, factor = counted_levels
    own = Cases(factor.codes, factor.size, level, state.positions[level][: factor.size])
    found = case_derivatives(fit._errors, fit.estimates, described, own)
    owner = np.empty(factor.size, dtype=np.int64)
    owner[factor.codes] = codes

    def summed(values: np.ndarray) -> np.ndarray:
        total = np.zeros((number, *values.shape[1:]))
        np.add.at(total, owner, values)
        return total

    return CaseDerivatives(*(summed(values) for values in found))
